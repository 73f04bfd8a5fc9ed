/*
 * The secure handshake of docs/secure.md, for the model checker Spin. `bun run model` checks it, as it is and with a part
 * left out, and tools/model.ts says what has to come of each.
 *
 * Two people pair at the same time: person p wants target p and controller p to meet. Everything in between is the relay,
 * which is the attacker: whatever a device hears is something that the relay hands it, chosen from all that the relay
 * can know by then. So it can drop, delay, reorder, repeat, mix up the two pairings, and play any side itself.
 *
 * Cryptography is perfect here: a key is known to whoever has one of its two private halves, a sealed record can be made
 * by whoever knows its key, a commitment hides and binds, and the receipt is not guessed. Digits are equal where both
 * sides heard the same. Otherwise they are equal only if the relay made them so, and that takes trying: it needs a value
 * of its own that it has not said yet, and has to know everything else that goes into both digits. That is what
 * `couldTryFor...` asks. The chance of one in a million, without trying, is left out.
 */

#define PEOPLE 2
#define NOBODY 15

/* Public keys, and the nonces that go with them. Target p has p, controller p has CONTROLLER(p), the relay has RELAY. */
#define CONTROLLER(p) (PEOPLE + (p))
#define RELAY (2 * PEOPLE)

/* What each target has heard, and come to. */
byte heardKey[PEOPLE] = NOBODY;       /* the answer: whose key */
bool hasRevealed[PEOPLE];             /* its own key and nonce */
bool isConvinced[PEOPLE];             /* the digits were right: it has sent its verdict */
bool hasPairedTarget[PEOPLE];

/* What each controller has heard, and come to. */
byte committedTo[PEOPLE] = NOBODY;    /* the key inside the commitment that it was given */
byte committedNonce[PEOPLE] = NOBODY;
bool hasAnswered[PEOPLE];             /* its own key */
byte revealedKey[PEOPLE] = NOBODY;
byte revealedNonce[PEOPLE] = NOBODY;
bool isShowing[PEOPLE];               /* its digits, and it has sent that it is ready */
bool hasPairedController[PEOPLE];

/* Whether the relay made the digits of this target and this controller equal by trying. PEOPLE is 2. */
bool isMadeEqual[4];
#define MADE_EQUAL(t, c) isMadeEqual[(t) * PEOPLE + (c)]

/* Whether target t and controller c have the same key: both heard the same, namely each other. */
#define SAME_KEY(t, c) \
  (heardKey[t] == CONTROLLER(c) && revealedKey[c] == (t) && revealedNonce[c] == (t))
#define SAME_DIGITS(t, c) (SAME_KEY(t, c) || MADE_EQUAL(t, c))

/* Whether the relay can seal records towards this side, because the private half is its own. */
#define KNOWS_KEY_OF_TARGET(t) (heardKey[t] == RELAY)
#define KNOWS_KEY_OF_CONTROLLER(c) (revealedKey[c] == RELAY)

/* Whether the relay has the receipt of target t: it is in a verdict that the relay can open. */
#define KNOWS_RECEIPT(t) (isConvinced[t] && KNOWS_KEY_OF_TARGET(t))

/* The relay is about to say a key of its own to t, knows what t will reveal, and all of c's digits. */
#define COULD_TRY_FOR_TARGET(t, c) (hasRevealed[t] && isShowing[c])
/* The relay is about to fix what it reveals to c, knows c's key, and all of t's digits. */
#define COULD_TRY_FOR_CONTROLLER(t, c) (hasAnswered[c] && heardKey[t] != NOBODY && hasRevealed[t])

/* The relay fixes a key and nonce towards controller c, and tries for each target that it can try for. */
inline tryForController(c) {
  if
  :: true
  :: COULD_TRY_FOR_CONTROLLER(0, c) -> MADE_EQUAL(0, c) = true
  :: COULD_TRY_FOR_CONTROLLER(1, c) -> MADE_EQUAL(1, c) = true
  fi
}

proctype Target(byte me) {
  /* 1: its commitment is out, and says nothing. 2: an answer, with any key that the relay knows. */
  atomic {
    if
    :: heardKey[me] = RELAY;
       if
       :: true
       :: COULD_TRY_FOR_TARGET(me, 0) -> MADE_EQUAL(me, 0) = true
       :: COULD_TRY_FOR_TARGET(me, 1) -> MADE_EQUAL(me, 1) = true
       fi
    :: hasAnswered[0] -> heardKey[me] = CONTROLLER(0)
    :: hasAnswered[1] -> heardKey[me] = CONTROLLER(1)
    :: hasRevealed[1 - me] -> heardKey[me] = 1 - me
    fi
  }
  /* 3 */
  hasRevealed[me] = true;
  /* "Ready", under its key. */
  (KNOWS_KEY_OF_TARGET(me) || (SAME_KEY(me, 0) && isShowing[0]) || (SAME_KEY(me, 1) && isShowing[1]));
  /* The person types what the controller in front of them shows. It is right, or this ends here. */
  isShowing[me];
  SAME_DIGITS(me, me);
  isConvinced[me] = true;
  /* "Accept", under its key. */
  atomic {
    (KNOWS_KEY_OF_TARGET(me) ||
     (SAME_KEY(me, 0) && hasPairedController[0]) || (SAME_KEY(me, 1) && hasPairedController[1]));
    hasPairedTarget[me] = true;
    /* A target that has paired has a controller that has paired, the right one, with the same key. */
    assert(SAME_KEY(me, me) && hasPairedController[me])
  }
}

proctype Controller(byte me) {
  /* 1: a commitment, of a target or made by the relay to any key that it knows. */
  atomic {
    if
    :: committedTo[me] = 0; committedNonce[me] = 0
    :: committedTo[me] = 1; committedNonce[me] = 1
    :: committedTo[me] = RELAY; committedNonce[me] = RELAY; tryForController(me)
    :: hasRevealed[0] -> committedTo[me] = 0; committedNonce[me] = RELAY; tryForController(me)
    :: hasRevealed[1] -> committedTo[me] = 1; committedNonce[me] = RELAY; tryForController(me)
    :: hasAnswered[1 - me] ->
       committedTo[me] = CONTROLLER(1 - me); committedNonce[me] = RELAY; tryForController(me)
    fi
  }
  /* 2 */
  hasAnswered[me] = true;
  /* 3: what was committed to, once the relay knows it. */
  atomic {
#ifdef NO_COMMITMENT
    if
    :: revealedKey[me] = RELAY; revealedNonce[me] = RELAY; tryForController(me)
    :: hasRevealed[0] -> revealedKey[me] = 0; revealedNonce[me] = 0
    :: hasRevealed[1] -> revealedKey[me] = 1; revealedNonce[me] = 1
    fi;
#else
    (committedNonce[me] == RELAY || hasRevealed[committedNonce[me]]);
    revealedKey[me] = committedTo[me];
    revealedNonce[me] = committedNonce[me];
#endif
    isShowing[me] = true
  }
  /* The verdict, under its key and with the receipt of the code that the person typed. */
  atomic {
#ifdef NO_RECEIPT
    (KNOWS_KEY_OF_CONTROLLER(me) ||
     (SAME_KEY(0, me) && isConvinced[0]) || (SAME_KEY(1, me) && isConvinced[1]));
#else
    ((KNOWS_KEY_OF_CONTROLLER(me) && KNOWS_RECEIPT(me)) || (SAME_KEY(me, me) && isConvinced[me]));
#endif
    hasPairedController[me] = true;
    /* A controller that has paired has a target that was convinced, the right one, with the same key. */
    assert(SAME_KEY(me, me) && isConvinced[me])
  }
}

#ifdef IS_POSSIBLE
/* That the model can pair at all, and so says something: this is to fail. */
active proctype Nobody() {
  (hasPairedTarget[0] && hasPairedTarget[1] && hasPairedController[0] && hasPairedController[1]);
  assert(false)
}
#endif

init {
  atomic {
    run Target(0); run Target(1);
    run Controller(0); run Controller(1)
  }
}
