/**
 * Pairing by code: which code belongs to which two peers, and until when.
 * Knows no socket and no clock: `now` is an argument, in milliseconds on any clock that only moves forward.
 */

/** Anything that can stand at one end of a session. Pairing alone writes `session`. */
export interface Paired<P> {
  session: Session<P> | undefined;
}

export interface Session<P> {
  readonly otc: string;
  readonly target: P;
  controller: P | undefined;
  /** When the session was opened. */
  readonly openedAt: number;
  /** When its present stage began: waiting for the controller, or paired. */
  stageAt: number;
  /** Bytes forwarded, both directions together. */
  bytes: number;
  /** Frames forwarded, both directions together. */
  frames: number;
}

interface PairingLimits {
  /** How long each stage of a session may last. */
  sessionTtlMs: number;
  maxSessions: number;
  /** Bytes that a session may carry, both directions together. */
  maxSessionBytes: number;
  /** Frames that a session may carry, both directions together. */
  maxSessionFrames: number;
}

export class Pairing<P extends Paired<P>> {
  // Each map is at once the directory by code and, in insertion order, the queue by age of its stage.
  readonly #waiting = new Map<string, Session<P>>();
  readonly #paired = new Map<string, Session<P>>();
  readonly #limits: PairingLimits;

  constructor(limits: PairingLimits) {
    this.#limits = limits;
  }

  get waiting(): number {
    return this.#waiting.size;
  }

  get paired(): number {
    return this.#paired.size;
  }

  get size(): number {
    return this.#waiting.size + this.#paired.size;
  }

  /** A target opens a session on a code and waits. */
  open(
    target: P,
    otc: string,
    now: number,
  ): Session<P> | 'already_in_session' | 'otc_in_use' | 'relay_capacity' {
    if (target.session) return 'already_in_session';
    if (this.#find(otc)) return 'otc_in_use';
    if (this.size >= this.#limits.maxSessions) return 'relay_capacity';
    const session: Session<P> = {
      otc,
      target,
      controller: undefined,
      openedAt: now,
      stageAt: now,
      bytes: 0,
      frames: 0,
    };
    this.#waiting.set(otc, session);
    target.session = session;
    return session;
  }

  /** A controller joins the session that waits on a code; its clock starts again. */
  join(
    controller: P,
    otc: string,
    now: number,
  ): Session<P> | 'already_in_session' | 'otc_not_found' | 'peer_already_connected' {
    if (controller.session) return 'already_in_session';
    const session = this.#waiting.get(otc);
    if (!session) return this.#paired.has(otc) ? 'peer_already_connected' : 'otc_not_found';
    session.controller = controller;
    session.stageAt = now;
    this.#waiting.delete(otc);
    this.#paired.set(otc, session);
    controller.session = session;
    return session;
  }

  /** Counts a frame that a peer wants forwarded; the session in return, if it may be. */
  carry(
    sender: P,
    bytes: number,
  ): Session<P> | 'no_session' | 'peer_not_connected' | 'session_data_limit' {
    const { session } = sender;
    if (!session) return 'no_session';
    if (!session.controller) return 'peer_not_connected';
    const { maxSessionBytes, maxSessionFrames } = this.#limits;
    if (session.bytes + bytes > maxSessionBytes || session.frames >= maxSessionFrames) {
      return 'session_data_limit';
    }
    session.bytes += bytes;
    session.frames += 1;
    return session;
  }

  /** Forgets a session: its code is free, and neither peer holds anything of it. */
  end(session: Session<P>): void {
    session.target.session = undefined;
    if (session.controller) session.controller.session = undefined;
    (session.controller ? this.#paired : this.#waiting).delete(session.otc);
  }

  /** The session on a code whose time is up, if there is one that the sweeper has not met yet. */
  stale(otc: string, now: number): Session<P> | undefined {
    const session = this.#find(otc);
    return session && this.#isOver(session, now) ? session : undefined;
  }

  /** Every session whose time is up, oldest first. The caller ends each before it takes the next. */
  *expired(now: number): Generator<Session<P>, void, void> {
    for (const queue of [this.#waiting, this.#paired]) {
      for (const session of queue.values()) {
        if (!this.#isOver(session, now)) break;
        yield session;
      }
    }
  }

  #find(otc: string): Session<P> | undefined {
    return this.#waiting.get(otc) ?? this.#paired.get(otc);
  }

  #isOver(session: Session<P>, now: number): boolean {
    return now - session.stageAt >= this.#limits.sessionTtlMs;
  }
}
