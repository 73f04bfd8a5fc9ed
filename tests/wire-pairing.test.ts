import { describe, expect, test } from 'bun:test';
import { afterThisTest, isNotForTwo, startRelay, until } from './support.ts';

const listen = { type: 'listen', otc: '482916' };
const connect = { type: 'connect', otc: '482916' };
const data = (payload: string) => ({ type: 'data', payload });

describe('a pairing', () => {
  test('listen, connect, data both ways, done: each frame reaches the right peer', async () => {
    const relay = await startRelay();
    const { target, controller } = await relay.pair();
    target.send(data('from the target'));
    await controller.expect(data('from the target'));
    controller.send(data('from the controller'));
    await target.expect(data('from the controller'));
    target.send({ type: 'done' });
    await controller.expect({ type: 'done' });
    await Promise.all([target.expectNothing(), controller.expectNothing()]);
    expect(relay.sockets.pairing.size).toBe(0);
  });

  test('many at once do not receive each other’s frames', async () => {
    const relay = await startRelay();
    const codes = Array.from({ length: 50 }, (_, i) => String(i).padStart(6, '0'));
    const pairs = await Promise.all(codes.map((otc) => relay.pair(otc)));
    pairs.forEach(({ target, controller }, i) => {
      target.send(data(`t${i}`));
      controller.send(data(`c${i}`));
    });
    await Promise.all(
      pairs.map(async ({ target, controller }, i) => {
        await controller.expect(data(`t${i}`));
        await target.expect(data(`c${i}`));
        await Promise.all([target.expectNothing(), controller.expectNothing()]);
      }),
    );
  });

  test.each([
    'plain',
    '',
    'quote " backslash \\ slash /',
    'nul \0 tab \t',
    'emoji 😀',
    '\u2028\u2029',
    '\ud800 alone',
    '</script>',
    'x'.repeat(60_000),
  ])('the payload %.40p is forwarded unchanged, however its JSON was written', async (payload) => {
    const relay = await startRelay();
    const { target, controller } = await relay.pair();
    const units = Array.from({ length: payload.length }, (_, i) => payload.charCodeAt(i));
    const escaped = units.map((unit) => `\\u${unit.toString(16).padStart(4, '0')}`).join('');
    const forms = [
      JSON.stringify(data(payload)),
      ` {"x":{"payload":"no"}, "payload" : ${JSON.stringify(payload)} , "type":"data" } `,
      new TextEncoder().encode(JSON.stringify(data(payload))),
      ...(escaped.length < 60_000 ? [`{"type":"data","payload":"${escaped}"}`] : []),
    ];
    for (const form of forms) {
      target.send(form);
      expect(await controller.next()).toEqual(data(payload));
    }
  });

  test('only the payload is forwarded, and of a duplicate field the last one counts, as in JSON', async () => {
    const relay = await startRelay();
    const { target, controller } = await relay.pair();
    target.send('{"type":"data","payload":"a","otc":"482916","from":"me","__proto__":{"x":1}}');
    expect(await controller.nextText()).toBe('{"type":"data","payload":"a"}');
    target.send('{"type":"data","payload":"a","payload":"b"}');
    expect(await controller.nextText()).toBe('{"type":"data","payload":"b"}');
  });

  test('a thousand frames keep their order', async () => {
    const relay = await startRelay();
    const { target, controller } = await relay.pair();
    for (let i = 0; i < 1000; i += 1) {
      target.send(i % 3 ? JSON.stringify(data(String(i))) : `{"payload":"${i}","type":"data"}`);
    }
    for (let i = 0; i < 1000; i += 1) await controller.expect(data(String(i)));
  });
});

describe('refusals do not affect the session', () => {
  test('a second listen or connect on the same socket', async () => {
    const relay = await startRelay();
    const { target, controller } = await relay.pair();
    for (const peer of [target, controller]) {
      await peer.refused({ type: 'listen', otc: '111111' }, 'already_in_session');
      await peer.refused(connect, 'already_in_session');
    }
    target.send(data('still here'));
    await controller.expect(data('still here'));
    expect(relay.sockets.pairing.size).toBe(1);
  });

  test('a second target, a second controller, a wrong code', async () => {
    const relay = await startRelay();
    const { target, controller } = await relay.pair();
    const stranger = await relay.connect();
    await stranger.refused(listen, 'otc_in_use');
    await stranger.refused(connect, 'peer_already_connected');
    await stranger.refused({ type: 'connect', otc: '000000' }, 'otc_not_found');
    await stranger.refused(data('injected'), 'no_session');
    await stranger.refused({ type: 'done' }, 'no_session');
    controller.send(data('fine'));
    await target.expect(data('fine'));
    await Promise.all([target.expectNothing(), controller.expectNothing()]);
  });

  test('malformed frames, up to the ninth', async () => {
    const relay = await startRelay();
    const { target, controller } = await relay.pair();
    for (let i = 0; i < 9; i += 1)
      await target.refused({ type: 'data', payload: i }, 'invalid_message');
    target.send(data('fine'));
    await controller.expect(data('fine'));
    await controller.expectNothing();
  });

  test('data before the controller has joined', async () => {
    const relay = await startRelay();
    const target = await relay.connect();
    target.send(listen);
    await target.expect({ type: 'ack', message: 'session_open' });
    await target.refused(data('early'), 'peer_not_connected');
    const controller = await relay.connect();
    controller.send(connect);
    await controller.expect({ type: 'peer_found' });
    await controller.expectNothing();
  });
});

describe('the end', () => {
  test('a frame sent right before the close arrives before peer_disconnected', async () => {
    const relay = await startRelay();
    for (let round = 0; round < 50; round += 1) {
      const { target, controller } = await relay.pair();
      target.send(data('sas_confirmed'));
      target.close();
      await controller.expect(data('sas_confirmed'));
      await controller.expectError('peer_disconnected');
    }
  });

  test('a peer that disconnects is reported, and its code is free', async () => {
    const relay = await startRelay();
    const { target, controller } = await relay.pair();
    controller.ws.terminate();
    await target.expectError('peer_disconnected');
    await target.refused(data('late'), 'no_session');
    await relay.pair();
  });

  test('after it, a socket reaches nobody, even if the code is used again at once', async () => {
    const relay = await startRelay();
    const first = await relay.pair();
    first.target.send({ type: 'done' });
    await first.controller.expect({ type: 'done' });
    const second = await relay.pair();
    for (const old of [first.target, first.controller]) {
      await old.refused(data('injected'), 'no_session');
      await old.refused({ type: 'done' }, 'no_session');
      old.close();
      await old.closed;
    }
    second.target.send(data('ours alone'));
    await second.controller.expect(data('ours alone'));
    await Promise.all([second.target.expectNothing(), second.controller.expectNothing()]);
  });

  test('after it, a socket may start again, in either role', async () => {
    const relay = await startRelay();
    const { target, controller } = await relay.pair();
    controller.send({ type: 'done' });
    await target.expect({ type: 'done' });
    controller.send(listen);
    await controller.expect({ type: 'ack', message: 'session_open' });
    target.send(connect);
    await Promise.all([target, controller].map((peer) => peer.expect({ type: 'peer_found' })));
    target.send(data('roles changed'));
    await controller.expect(data('roles changed'));
  });

  test('the next listen on that code may follow done at once', async () => {
    const relay = await startRelay();
    const { target, controller } = await relay.pair();
    for (let round = 0; round < 20; round += 1) {
      target.send(data(`last of round ${round}`));
      target.send({ type: 'done' });
      target.send(listen);
      await target.expect({ type: 'ack', message: 'session_open' });
      await controller.expect(data(`last of round ${round}`));
      await controller.expect({ type: 'done' });
      controller.send(connect);
      await Promise.all([target, controller].map((peer) => peer.expect({ type: 'peer_found' })));
    }
    await Promise.all([target.expectNothing(), controller.expectNothing()]);
  });

  test('a waiting target may give up', async () => {
    const relay = await startRelay();
    const target = await relay.connect();
    target.send(listen);
    await target.expect({ type: 'ack', message: 'session_open' });
    target.send({ type: 'done' });
    await target.expectNothing();
    const controller = await relay.connect();
    await controller.refused(connect, 'otc_not_found');
  });
});

test('a socket that stays open after a session receives nothing of the next one on its code', async () => {
  const relay = await startRelay();
  const old = await relay.pair();
  old.target.send({ type: 'done' });
  await old.controller.expect({ type: 'done' });
  const { target, controller } = await relay.pair();
  for (const [from, to] of [
    [target, controller],
    [controller, target],
  ] as const) {
    from.send(data('for the peer alone'));
    await to.expect(data('for the peer alone'));
  }
  await Promise.all([old.target, old.controller].map((peer) => peer.expectNothing()));
});

describe('expiry', () => {
  test('a waiting session ends 30 s after listen, a silent pairing 30 s after it began', async () => {
    const relay = await startRelay();
    const waiting = await relay.connect();
    waiting.send({ type: 'listen', otc: '111111' });
    await waiting.expect({ type: 'ack', message: 'session_open' });
    relay.pass(25_000);
    const { target, controller } = await relay.pair();
    relay.pass(4999);
    await waiting.expectNothing();
    relay.pass(1);
    await waiting.expectError('otc_expired');
    await waiting.expectClose(4001, 'session_expired');
    relay.pass(25_000 - 1);
    await Promise.all([target.expectNothing(), controller.expectNothing()]);
    relay.pass(1);
    for (const peer of [target, controller]) {
      await peer.expectError('otc_expired');
      await peer.expectClose(4001, 'session_expired');
    }
    expect(relay.sockets.pairing.size).toBe(0);
  });

  test('each forwarded frame restarts the time of a pairing, up to five minutes after it began', async () => {
    const relay = await startRelay();
    const { target, controller } = await relay.pair();
    for (let second = 0; second < 280; second += 20) {
      relay.pass(20_000);
      const [from, to] = second % 40 ? [target, controller] : [controller, target];
      from.send(data(`${second}`));
      await to.expect(data(`${second}`));
    }
    relay.pass(19_999);
    await Promise.all([target.expectNothing(), controller.expectNothing()]);
    relay.pass(1);
    for (const peer of [target, controller]) {
      await peer.expectError('otc_expired');
      await peer.expectClose(4001, 'session_expired');
    }
  });

  test('a pairing that falls silent ends 30 s after its last frame', async () => {
    const relay = await startRelay();
    const { target, controller } = await relay.pair();
    relay.pass(5_500);
    target.send(data('once'));
    await controller.expect(data('once'));
    relay.pass(29_999);
    await Promise.all([target.expectNothing(), controller.expectNothing()]);
    relay.pass(1);
    await target.expectError('otc_expired');
    await controller.expectError('otc_expired');
  });

  test('the time restarts when the controller joins: 25 s before it and 25 s after it', async () => {
    const relay = await startRelay();
    const [target, controller] = await Promise.all([relay.connect(), relay.connect()]);
    target.send(listen);
    await target.expect({ type: 'ack', message: 'session_open' });
    relay.pass(25_000);
    controller.send(connect);
    await Promise.all([target, controller].map((peer) => peer.expect({ type: 'peer_found' })));
    relay.pass(25_000);
    target.send(data('sas_confirmed'));
    await controller.expect(data('sas_confirmed'));
  });

  test('is exact between two sweeps: connect fails, listen succeeds, and the old target is told', async () => {
    if (isNotForTwo('time passes in Redis too')) return;
    const relay = await startRelay();
    const old = await relay.connect();
    old.send(listen);
    await old.expect({ type: 'ack', message: 'session_open' });
    relay.pass(30_000, { sweep: false });
    const controller = await relay.connect();
    await controller.refused(connect, 'otc_not_found');
    await old.expectError('otc_expired');
    await old.expectClose(4001, 'session_expired');

    const older = await relay.connect();
    older.send(listen);
    await older.expect({ type: 'ack', message: 'session_open' });
    relay.pass(30_000, { sweep: false });
    const next = await relay.connect();
    next.send(listen);
    await next.expect({ type: 'ack', message: 'session_open' });
    await older.expectError('otc_expired');
  });

  test('the sweeper runs by itself', async () => {
    const relay = await startRelay();
    const target = await relay.connect();
    target.send(listen);
    await target.expect({ type: 'ack', message: 'session_open' });
    relay.pass(30_000, { sweep: false });
    await target.expectError('otc_expired');
  });

  test('a thousand at once leave nothing behind', async () => {
    const relay = await startRelay({ maxConnectionsPerClient: 2000, maxListens: 2000 });
    const targets = await Promise.all(Array.from({ length: 1000 }, () => relay.connect()));
    await Promise.all(
      targets.map(async (target, i) => {
        target.send({ type: 'listen', otc: String(i).padStart(6, '0') });
        await target.expect({ type: 'ack', message: 'session_open' });
      }),
    );
    relay.pass(30_000);
    await Promise.all(targets.map((target) => target.expectError('otc_expired')));
    expect(relay.sockets.books).toMatchObject({ connections: 0, clients: 0, sessions: 0 });
  });
});

describe('limits of a session', () => {
  test('at most 5 MiB of payload, both directions together', async () => {
    const relay = await startRelay();
    const { target, controller } = await relay.pair();
    const chunk = 'x'.repeat(32_768);
    for (let i = 0; i < 160; i += 1) {
      const [from, to] = i % 2 ? [controller, target] : [target, controller];
      from.send(data(chunk));
      await to.expect(data(chunk));
    }
    target.send(data(''));
    await controller.expect(data(''));
    target.send(data('!'));
    await target.expectError('session_data_limit');
    await target.expectClose(4003, 'session_data_limit');
    await controller.expectClose(4003, 'session_data_limit');
  });

  test('bytes are counted, not characters', async () => {
    const relay = await startRelay({ maxSessionBytes: 1024 });
    const { target, controller } = await relay.pair();
    target.send(data('😀'.repeat(256)));
    await controller.expect(data('😀'.repeat(256)));
    await target.refused(data('x'), 'session_data_limit');
  });

  test('at most 64 KiB per frame: one byte more closes with 1009, and the peer is told', async () => {
    const relay = await startRelay();
    const { target, controller } = await relay.pair();
    const room = 65_536 - JSON.stringify(data('')).length;
    target.send(data('x'.repeat(room)));
    await controller.expect(data('x'.repeat(room)));
    target.send(data('x'.repeat(room + 1)));
    expect((await target.closed).code).toBe(1009);
    await controller.expectError('peer_disconnected');
    await until(() => relay.sockets.connections.size === 1, 'the socket is gone');
  });

  test('ten malformed frames, of any kind, text or binary, close with 1008', async () => {
    const relay = await startRelay();
    const client = await relay.connect();
    const bad: [string | Uint8Array<ArrayBuffer>, string][] = [
      ['null', 'invalid_message'],
      ['{"type":"nope"}', 'unknown_type'],
      ['{"type":"listen","otc":1}', 'invalid_otc'],
      ['{"type":"bootstrap_watch"}', 'missing_jti'],
      ['{"type":"bootstrap_watch","jti":""}', 'invalid_jti'],
      [new Uint8Array([0xff]), 'invalid_message'],
      [new Uint8Array(), 'invalid_message'],
      ['', 'invalid_message'],
      ['{"type":"__proto__"}', 'unknown_type'],
    ];
    for (const [frame, code] of bad) await client.refused(frame, code);
    await client.refused('[', 'invalid_message');
    await client.expectClose(1008, 'too_many_errors');
  });
});

test('relays in one process share nothing', async () => {
  const [a, b] = [await startRelay(), await startRelay()];
  const target = await a.connect();
  target.send(listen);
  await target.expect({ type: 'ack', message: 'session_open' });
  const controller = await b.connect();
  await controller.refused(connect, 'otc_not_found');
  expect([a.sockets.pairing.size, b.sockets.pairing.size]).toEqual([1, 0]);
});

test('the process that holds a relay has no unhandled error', async () => {
  const errors: unknown[] = [];
  const note = (error: unknown) => errors.push(error);
  process.on('uncaughtException', note);
  afterThisTest(() => process.off('uncaughtException', note));
  const relay = await startRelay();
  const { target } = await relay.pair();
  for (const frame of ['['.repeat(60_000), '{"type":{}}', '\0'.repeat(100)]) target.send(frame);
  await target.expectError('invalid_message');
  await target.expectError('invalid_message');
  await target.expectError('invalid_message');
  expect(errors).toEqual([]);
  expect(relay.log.lines.filter((line) => line.includes('internal error'))).toEqual([]);
});
