import { describe, expect, test } from 'bun:test';
import { p256 } from '@noble/curves/nist.js';
import { type Client, isNotForTwo, startRelay, type TestRelay, until } from './support.ts';

const JTI = 'bt_01';
const watch = { type: 'bootstrap_watch', jti: JTI };
const watching = { type: 'bootstrap_watching', jti: JTI };
const init = { type: 'bootstrap_init', jti: JTI, token: 'amesh-bt-v1.h.p.s', targetPubKey: 'a2V5' };
const ack = { type: 'bootstrap_ack', jti: JTI, publicKey: 'cHVi', controllerSig: 'c2ln' };
const acked = { type: 'bootstrap_ack', jti: JTI, controllerPubKey: 'cHVi', controllerSig: 'c2ln' };
const reject = (error: string, jti: string = JTI) => ({ type: 'bootstrap_reject', jti, error });

async function watcherOf(relay: TestRelay, jti: string = JTI): Promise<Client> {
  const watcher = await relay.connect();
  watcher.send({ type: 'bootstrap_watch', jti });
  await watcher.expect({ type: 'bootstrap_watching', jti });
  return watcher;
}

/** A watcher and a target that has announced itself to it. */
async function asked(relay: TestRelay): Promise<{ watcher: Client; target: Client }> {
  const watcher = await watcherOf(relay);
  const target = await relay.connect();
  target.send(init);
  await watcher.expect(init);
  return { watcher, target };
}

// The signatures are made and checked as in the deployed controller and target.

const base64 = (bytes: Uint8Array): string => Buffer.from(bytes).toString('base64');
const utf8 = (text: string): Uint8Array => new TextEncoder().encode(text);
const ackMessage = (targetPubKey: string, jti: string): Uint8Array =>
  utf8(`amesh-bootstrap-ack-v1\n${targetPubKey}\n${jti}`);

function signToken(secretKey: Uint8Array, jti: string): string {
  const part = (value: object): string => Buffer.from(JSON.stringify(value)).toString('base64url');
  const input = `${part({ alg: 'ES256' })}.${part({ jti, single_use: true })}`;
  return `amesh-bt-v1.${input}.${Buffer.from(p256.sign(utf8(input), secretKey)).toString('base64url')}`;
}

async function provision(relay: TestRelay, jti: string): Promise<void> {
  const controller = p256.keygen();
  const machine = p256.keygen();
  const token = signToken(controller.secretKey, jti);
  const watcher = await watcherOf(relay, jti);

  const target = await relay.connect();
  const targetPubKey = base64(machine.publicKey);
  target.send({ type: 'bootstrap_init', jti, token, targetPubKey });

  const asking = await watcher.next();
  expect(asking).toEqual({ type: 'bootstrap_init', jti, token, targetPubKey });
  const [, ...input] = String(asking.token).split('.');
  const signature = Buffer.from(input.pop() as string, 'base64url');
  expect(p256.verify(signature, utf8(input.join('.')), controller.publicKey)).toBe(true);
  watcher.send({
    type: 'bootstrap_ack',
    jti,
    publicKey: base64(controller.publicKey),
    controllerSig: base64(
      p256.sign(ackMessage(String(asking.targetPubKey), jti), controller.secretKey),
    ),
  });

  const answer = await target.next();
  expect(answer.type).toBe('bootstrap_ack');
  const controllerKey = Buffer.from(String(answer.controllerPubKey), 'base64');
  expect(controllerKey.equals(controller.publicKey)).toBe(true);
  const isSigned = p256.verify(
    Buffer.from(String(answer.controllerSig), 'base64'),
    ackMessage(targetPubKey, jti),
    controllerKey,
  );
  expect(isSigned).toBe(true);
}

describe('a bootstrap', () => {
  test('with real signatures, checked by the target as the deployed one does', async () => {
    const relay = await startRelay();
    await provision(relay, 'bt_real');
    expect(relay.sockets.books.watches).toBe(0);
    expect(relay.sockets.stats.bootstraps.acknowledged).toBe(1);
  });

  test('a hundred machines at once', async () => {
    const relay = await startRelay({ maxWatches: 100 });
    await Promise.all(Array.from({ length: 100 }, (_, i) => provision(relay, `bt_${i}`)));
    expect(relay.sockets.books.watches).toBe(0);
    expect(relay.sockets.stats.bootstraps.acknowledged).toBe(100);
  });

  test('only the fields of the protocol are forwarded, in both directions', async () => {
    const relay = await startRelay();
    const watcher = await watcherOf(relay);
    const target = await relay.connect();
    target.send({ ...init, evil: true, error: 'x' });
    expect(await watcher.nextText()).toBe(JSON.stringify(init));
    watcher.send({ ...ack, evil: true, error: 'x' });
    expect(await target.nextText()).toBe(JSON.stringify(acked));
  });

  test('controllerPubKey is accepted in place of publicKey', async () => {
    const relay = await startRelay();
    const { watcher, target } = await asked(relay);
    watcher.send(acked);
    await target.expect(acked);
  });

  test('a rejection reaches the target, with its reason or without', async () => {
    const relay = await startRelay();
    const first = await asked(relay);
    first.watcher.send({ type: 'bootstrap_reject', jti: JTI, error: 'wrong_name' });
    await first.target.expect(reject('wrong_name'));
    const watcher = await watcherOf(relay, 'bt_02');
    const target = await relay.connect();
    target.send({ ...init, jti: 'bt_02' });
    await watcher.next();
    watcher.send({ type: 'bootstrap_reject', jti: 'bt_02' });
    await target.expect(reject('rejected', 'bt_02'));
  });
});

describe('a token is used once', () => {
  test('a second use is refused before and after the answer, from any client, and under a new watch', async () => {
    const relay = await startRelay();
    const { watcher, target } = await asked(relay);
    const thief = await relay.connect();
    thief.send(init);
    await thief.expect(reject('token_already_used'));
    watcher.send(ack);
    await target.expect(acked);
    target.send(init);
    await target.expect(reject('token_already_used'));
    watcher.send(watch);
    await watcher.expect(watching);
    thief.send(init);
    await thief.expect(reject('token_already_used'));
    await watcher.expectNothing();
  });

  test('also when the watcher left without an answer, for 25 hours', async () => {
    if (isNotForTwo('time passes in Redis too')) return;
    const relay = await startRelay();
    const { watcher, target } = await asked(relay);
    watcher.close();
    await target.expect(reject('watcher_disconnected'));
    relay.pass(25 * 3_600_000 - 1);
    const again = await watcherOf(relay);
    const late = await relay.connect();
    late.send(init);
    await late.expect(reject('token_already_used'));
    relay.pass(1);
    late.send(init);
    await again.expect(init);
    relay.pass(25 * 3_600_000);
    expect(relay.sockets.used.size).toBe(0);
  });

  test('if nobody watches, it is not used up', async () => {
    const relay = await startRelay();
    const target = await relay.connect();
    target.send(init);
    await target.expect(reject('no_watcher'));
    const watcher = await watcherOf(relay);
    target.send(init);
    await watcher.expect(init);
  });

  test('a malformed init uses nothing up and reaches nobody', async () => {
    const relay = await startRelay();
    const watcher = await watcherOf(relay);
    const target = await relay.connect();
    const { token: _token, ...withoutToken } = init;
    const bad: [object, object][] = [
      [withoutToken, reject('invalid_message')],
      [{ ...init, targetPubKey: 7 }, reject('invalid_message')],
      [
        { ...init, jti: undefined },
        { type: 'bootstrap_reject', error: 'missing_jti' },
      ],
      [
        { ...init, jti: 5 },
        { type: 'bootstrap_reject', error: 'invalid_jti' },
      ],
      [
        { ...init, jti: 'x'.repeat(129) },
        { type: 'bootstrap_reject', error: 'invalid_jti' },
      ],
    ];
    for (const [frame, answer] of bad) {
      target.send(frame as never);
      await target.expect(answer as never);
    }
    await watcher.expectNothing();
    expect(relay.sockets.used.size).toBe(0);
    target.send(init);
    await watcher.expect(init);
  });

  test('when the list is full, new ones are refused and stay unused', async () => {
    const relay = await startRelay({ maxBurnt: 1 });
    await asked(relay);
    const watcher = await watcherOf(relay, 'bt_02');
    const target = await relay.connect();
    target.send({ ...init, jti: 'bt_02' });
    await target.expect(reject('relay_overloaded', 'bt_02'));
    await watcher.expectNothing();
    expect(relay.sockets.used.has('bt_02', 1_000_000)).toBe(false);
  });
});

describe('a jti belongs to its watcher', () => {
  test('nobody else can watch it, acknowledge it or reject it, before the init or after', async () => {
    const relay = await startRelay();
    const watcher = await watcherOf(relay);
    const stranger = await relay.connect();
    const attacks: [object, string][] = [
      [watch, 'jti_already_watched'],
      [ack, 'not_watching'],
      [{ type: 'bootstrap_reject', jti: JTI, error: 'spoofed' }, 'not_watching'],
    ];
    for (const [frame, code] of attacks) await stranger.refused(frame as never, code);
    const target = await relay.connect();
    target.send(init);
    await watcher.expect(init);
    for (const [frame, code] of attacks) {
      await stranger.refused(frame as never, code);
    }
    await target.refused(ack, 'not_watching');
    await target.expectNothing();
    watcher.send(ack);
    await target.expect(acked);
    await watcher.refused(ack, 'not_watching');
  });

  test('its watcher may renew it, and may not answer before an init', async () => {
    const relay = await startRelay();
    const watcher = await watcherOf(relay);
    watcher.send(watch);
    await watcher.expect(watching);
    await watcher.refused(ack, 'peer_not_connected');
    await watcher.refused({ type: 'bootstrap_reject', jti: JTI }, 'peer_not_connected');
    const target = await relay.connect();
    target.send(init);
    await watcher.expect(init);
  });

  test('the answer goes only to the socket that sent the init', async () => {
    const relay = await startRelay();
    const { watcher, target } = await asked(relay);
    const thief = await relay.connect();
    thief.send(init);
    await thief.expect(reject('token_already_used'));
    watcher.send(ack);
    await target.expect(acked);
    await thief.expectNothing();
  });

  test('when its watcher has left, it is free', async () => {
    const relay = await startRelay();
    const watcher = await watcherOf(relay);
    watcher.close();
    await until(() => relay.sockets.bootstrap.size === 0, 'the watch is over');
    await watcherOf(relay);
  });
});

test('after an answer both sides are idle, and their idle time starts', async () => {
  const relay = await startRelay();
  const { watcher, target } = await asked(relay);
  relay.pass(40_000);
  watcher.send(ack);
  await target.expect(acked);
  relay.pass(29_999);
  await Promise.all([watcher.expectNothing(), target.expectNothing()]);
  relay.pass(1);
  await Promise.all([watcher, target].map((side) => side.expectClose(4002, 'idle')));
});

describe('a watch ends', () => {
  test('after five minutes, and is renewed by the same frame', async () => {
    const relay = await startRelay();
    const watcher = await watcherOf(relay);
    relay.pass(200_000);
    watcher.send(watch);
    await watcher.expect(watching);
    relay.pass(299_999);
    await watcher.expectNothing();
    relay.pass(1);
    await watcher.expect({ type: 'error', code: 'watch_expired', jti: JTI });
    const target = await relay.connect();
    target.send(init);
    await target.expect(reject('no_watcher'));
  });

  test('exactly, between two sweeps', async () => {
    if (isNotForTwo('time passes in Redis too')) return;
    const relay = await startRelay();
    const first = await watcherOf(relay);
    relay.pass(300_000, { sweep: false });
    const second = await watcherOf(relay);
    await first.expect({ type: 'error', code: 'watch_expired', jti: JTI });
    relay.pass(300_000, { sweep: false });
    const target = await relay.connect();
    target.send(init);
    await target.expect(reject('no_watcher'));
    await second.expect({ type: 'error', code: 'watch_expired', jti: JTI });
    await second.refused(ack, 'not_watching');
  });

  test('exactly, also for an answer that comes too late', async () => {
    const relay = await startRelay();
    const { watcher, target } = await asked(relay);
    relay.pass(300_000, { sweep: false });
    watcher.send(ack);
    await watcher.expect({ type: 'error', code: 'watch_expired', jti: JTI });
    await watcher.expectError('not_watching');
    await target.expect(reject('watch_expired'));
  });

  test('and its target is told', async () => {
    const relay = await startRelay();
    const { watcher, target } = await asked(relay);
    relay.pass(300_000);
    await target.expect(reject('watch_expired'));
    await watcher.expect({ type: 'error', code: 'watch_expired', jti: JTI });
  });

  test('when the target leaves', async () => {
    const relay = await startRelay();
    const { watcher, target } = await asked(relay);
    target.close();
    await until(() => relay.sockets.bootstrap.size === 0, 'the watch is over');
    await watcher.refused(ack, 'not_watching');
  });

  test('for all hundred of a socket when it leaves, and for no other', async () => {
    const relay = await startRelay({ maxWatches: 1000 });
    const watcher = await watcherOf(relay, 'bt_0');
    for (let i = 1; i < 100; i += 1) watcher.send({ type: 'bootstrap_watch', jti: `bt_${i}` });
    for (let i = 1; i < 100; i += 1)
      await watcher.expect({ type: 'bootstrap_watching', jti: `bt_${i}` });
    await watcher.refused({ type: 'bootstrap_watch', jti: 'bt_100' }, 'relay_capacity');
    await watcherOf(relay, 'bt_other');
    watcher.close();
    await until(() => relay.sockets.bootstrap.size === 1, 'all hundred are over');
  });
});
