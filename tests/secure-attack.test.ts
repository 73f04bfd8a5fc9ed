/**
 * A relay in the middle that tries keys until the digits match, as SECURITY.md describes it: against the handshake of
 * amesh 0.7 and against the secure one. People compare the last two digits only, so that it is over in seconds.
 */
import { expect, test } from 'bun:test';
import { asController, asTarget } from '../src/client/handshake.ts';
import { Records, kinds } from '../src/client/secure-channel.ts';
import type { Bytes } from '../src/client/base64.ts';
import {
  agree,
  commitmentTo,
  concat,
  type Ephemeral,
  newEphemeral,
  utf8,
} from '../src/client/keys.ts';
import * as amesh07 from './amesh-0.7.ts';
import { type From, rest, TestPipe, twoEnds } from './pipes.ts';
import { Inbox } from '../src/client/inbox.ts';

const seen = (digits: string): string => digits.slice(-2);

/** The share of successes, and the interval of the true share (Wilson's interval for `z` standard deviations). */
function share(successes: number, runs: number, z: number): [number, number] {
  const p = successes / runs;
  const middle = (p + z ** 2 / (2 * runs)) / (1 + z ** 2 / runs);
  const half = (z / (1 + z ** 2 / runs)) * Math.sqrt((p * (1 - p)) / runs + (z / (2 * runs)) ** 2);
  return [middle - half, middle + half];
}

function report(what: string, successes: number, runs: number): void {
  const [low, high] = share(successes, runs, 1.96).map((it) => (100 * it).toFixed(1));
  console.log(
    `${what}: ${successes} of ${runs} attacks succeed (95 % interval: ${low} to ${high} %)`,
  );
}

/** Two connections of a handshake, one for each side. */
function line(): [amesh07.Line, amesh07.Line] {
  const inboxes = [new Inbox<string>(), new Inbox<string>()] as const;
  const end = (mine: Inbox<string>, theirs: Inbox<string>): amesh07.Line => ({
    say: (payload) => theirs.put(payload),
    hear: () => mine.next(AbortSignal.timeout(5000)),
  });
  return [end(...inboxes), end(inboxes[1], inboxes[0])];
}

/** One attack on amesh 0.7: the relay finishes with the target, and then looks for an identity that fits. */
async function attack07(pool: amesh07.Device[]): Promise<boolean> {
  const [[targetEnd, toTarget], [controllerEnd, toController]] = [line(), line()];
  const [server, laptop] = [amesh07.device('server'), amesh07.device('laptop')];
  const target = amesh07.handshake(targetEnd, server, 'target');
  const controller = amesh07.handshake(controllerEnd, laptop, 'controller');
  const relay = pool[0] as amesh07.Device;
  const withTarget = await amesh07.handshake(toTarget, relay, 'controller');

  const ephemeral = amesh07.device('');
  toController.say(amesh07.base64(ephemeral.publicKey));
  const shared = amesh07.agree(ephemeral.secretKey, amesh07.bytes(await toController.hear()));
  const key = amesh07.sessionKeyOf(shared);
  const { publicKey } = JSON.parse(amesh07.decrypt(key, await toController.hear())) as {
    publicKey: string;
  };
  const fitting = pool.find(
    (it) =>
      seen(amesh07.sasOf(it.publicKey, amesh07.bytes(publicKey), shared)) === seen(withTarget.sas),
  );
  toController.say(
    amesh07.encrypt(key, JSON.stringify(amesh07.identify(fitting ?? (pool[0] as amesh07.Device)))),
  );
  const shown = [await target, await controller].map(({ sas }) => seen(sas));
  return shown[0] === shown[1];
}

test('amesh 0.7: a relay that tries identities nearly always succeeds', async () => {
  const runs = 60;
  const pool = Array.from({ length: 1000 }, () => amesh07.device('relay'));
  let successes = 0;
  for (let run = 0; run < runs; run += 1) if (await attack07(pool)) successes += 1;
  report('amesh 0.7, two digits', successes, runs);
  // One in 23,000 attacks finds no identity among a thousand.
  expect(successes).toBeGreaterThanOrEqual(runs - 1);
});

const otc = '482916';
const receipt = '730514';

/** The relay's end of either connection, which speaks the protocol by hand. */
function legs() {
  const [a, b] = [twoEnds(), twoEnds()];
  return {
    victims: { target: a.target, controller: b.controller },
    toTarget: a.controller,
    toController: b.target,
  };
}

const say = (pipe: TestPipe, kind: number, ...parts: Bytes[]): void =>
  pipe.send(concat(utf8('ams1'), Uint8Array.of(kind), ...parts));
const hear = async (pipe: TestPipe): Promise<Bytes> => (await pipe.receiveBytes(rest())).slice(5);

/**
 * One attack on the secure handshake.
 * @param first The side with which the relay finishes first. Then it tries keys on the other side.
 * @param isTold Whether the relay knows the target's key and nonce, as if there were no commitment.
 */
async function attackSecure(pool: Ephemeral[], first: From, isTold = false): Promise<boolean> {
  const { victims, toTarget, toController } = legs();
  const shown = Promise.withResolvers<string>();
  const typed = Promise.withResolvers<string>();
  const [ephemeral, nonce] = [await newEphemeral(), crypto.getRandomValues(new Uint8Array(32))];
  const side = { otc, receipt, identity: new Uint8Array() };
  const askDigits = () => typed.promise;
  const target = asTarget(victims.target, { ...side, ephemeral, nonce, askDigits }, rest);
  const controller = asController(victims.controller, { ...side, showDigits: shown.resolve }, rest);
  const confirmed = target.then(
    () => true,
    () => false,
  );
  controller.catch(() => {});
  const [one, another] = pool as [Ephemeral, Ephemeral];

  /** The digits with this key, if the parts that the relay has not seen are as it guesses. */
  const guess = async (own: Ephemeral, unseen: { targetKey: Bytes; nonce: Bytes }) => {
    const commitment = await commitmentTo(otc, unseen.targetKey, unseen.nonce);
    const said = { otc, commitment, controllerKey: own.publicKey, ...unseen };
    return (await agree('controller', own.privateKey, said)).digits;
  };
  const fitting = async (digits: string, unseen: { targetKey: Bytes; nonce: Bytes }) => {
    for (const own of pool) if (seen(await guess(own, unseen)) === seen(digits)) return own;
    return one;
  };

  /** With the controller: the relay must send the commitment before it sees the controller's key. */
  const withController = async (own: Ephemeral): Promise<string> => {
    const drawn = crypto.getRandomValues(new Uint8Array(32));
    const commitment = await commitmentTo(otc, own.publicKey, drawn);
    say(toController, 1, commitment);
    const controllerKey = await hear(toController);
    say(toController, 3, own.publicKey, drawn);
    const said = { otc, commitment, controllerKey, targetKey: own.publicKey, nonce: drawn };
    return (await agree('target', own.privateKey, said)).digits;
  };
  /** With the target: the relay must send its key before it sees the target's key and nonce. */
  const withTarget = async (own: Ephemeral, commitment: Bytes) => {
    say(toTarget, 2, own.publicKey);
    const revealed = await hear(toTarget);
    const parts = { targetKey: revealed.slice(0, 65), nonce: revealed.slice(65) };
    const said = { otc, commitment, controllerKey: own.publicKey, ...parts };
    return agree('controller', own.privateKey, said);
  };

  const commitment = await hear(toTarget);
  let digits: string;
  let keys;
  if (first === 'controller') {
    digits = await withController(one);
    const told = { targetKey: ephemeral.publicKey, nonce };
    const guessed = { targetKey: another.publicKey, nonce: new Uint8Array(32) };
    keys = await withTarget(await fitting(digits, isTold ? told : guessed), commitment);
  } else {
    keys = await withTarget(one, commitment);
    const guessed = { targetKey: another.publicKey, nonce: new Uint8Array(32) };
    digits = await withController(await fitting(keys.digits, guessed));
  }
  // The person compares two digits, and types what the target expects if these two are right.
  expect(await shown.promise).toBe(digits);
  const records = new Records(toTarget, keys);
  void records.send(kinds.ready);
  typed.resolve(seen(digits) === seen(keys.digits) ? keys.digits : digits);
  const verdict = await records.next(rest()).catch(() => undefined);
  if (verdict) void records.send(kinds.accept);
  const succeeded = await confirmed;
  for (const pipe of [toTarget, toController]) await pipe.close();
  return succeeded;
}

test('the secure handshake: one attack in a hundred succeeds, as expected with two digits', async () => {
  const runs = 2000;
  // Trying more keys does not help the attacker, so two are enough for this test.
  const pool = [await newEphemeral(), await newEphemeral()];
  let successes = 0;
  for (let run = 0; run < runs; run += 1) {
    if (await attackSecure(pool, run % 2 ? 'target' : 'controller')) successes += 1;
  }
  report('secure handshake, two digits', successes, runs);
  // Five standard deviations: this fails by chance less than once in a million times.
  const [low, high] = share(successes, runs, 5);
  expect(low).toBeLessThan(0.01);
  expect(high).toBeGreaterThan(0.01);
  expect(high).toBeLessThan(0.04);
}, 60_000);

test('the same attacker succeeds if it knows what the target has committed to', async () => {
  const runs = 20;
  const pool = await Promise.all(Array.from({ length: 1000 }, newEphemeral));
  let successes = 0;
  for (let run = 0; run < runs; run += 1) {
    if (await attackSecure(pool, 'controller', true)) successes += 1;
  }
  report('secure handshake without its commitment, two digits', successes, runs);
  expect(successes).toBeGreaterThanOrEqual(runs - 1);
}, 60_000);
