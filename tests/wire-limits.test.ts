import { describe, expect, test } from 'bun:test';
import {
  type Client,
  openClient,
  isNotForTwo,
  startRelay,
  type TestRelay,
  until,
} from './support.ts';

const MINUTE = 60_000;
const listen = (otc: string) => ({ type: 'listen', otc });
const connect = (otc: string) => ({ type: 'connect', otc });
const open = { type: 'ack', message: 'session_open' };

/** A socket of another client, as a proxy reports it. */
const from = async (relay: TestRelay, address: string): Promise<Client> =>
  relay.connect({ headers: { 'x-forwarded-for': address } });

describe('failed code attempts of a client', () => {
  test('five in any 60 s, then every listen and connect is refused until the oldest is a minute old', async () => {
    if (isNotForTwo('time passes in Redis too')) return;
    const relay = await startRelay({ idleMs: 3_600_000 });
    const client = await relay.connect();
    for (const otc of ['000001', '000002', '000003', '000004']) {
      await client.refused(connect(otc), 'otc_not_found');
      relay.pass(1000);
    }
    await client.refused(connect('000005'), 'otc_not_found');
    const other = await relay.connect();
    for (const socket of [client, other]) {
      await socket.refused(connect('000006'), 'rate_limited');
      await socket.refused(listen('000007'), 'rate_limited');
    }
    relay.pass(MINUTE - 4000 - 1);
    await client.refused(listen('000007'), 'rate_limited');
    relay.pass(1);
    client.send(listen('000007'));
    await client.expect(open);
  });

  test('successes, refusals for other reasons and malformed frames do not count', async () => {
    if (isNotForTwo('time passes in Redis too')) return;
    const relay = await startRelay({ idleMs: 3_600_000 });
    for (let i = 0; i < 20; i += 1) {
      const { target, controller } = await relay.pair(String(i).padStart(6, '0'));
      await target.refused(connect('999999'), 'already_in_session');
      target.close();
      await controller.expectError('peer_disconnected');
    }
    const client = await relay.connect();
    for (let i = 0; i < 5; i += 1) await client.refused(connect('x'), 'invalid_otc');
    for (let i = 0; i < 4; i += 1) await client.refused(connect('999999'), 'otc_not_found');
    await relay.pair();
    await client.refused(connect('999998'), 'otc_not_found');
    for (let i = 0; i < 5; i += 1) {
      await client.refused(connect('999998'), 'rate_limited');
      relay.pass(1000);
    }
    relay.pass(MINUTE - 5000);
    await client.refused(connect('999997'), 'otc_not_found');
  });

  test('a code that is in use counts as failed, for listen and for connect', async () => {
    const relay = await startRelay({ maxFailedPerCode: 100 });
    const { target } = await relay.pair();
    const client = await relay.connect();
    for (let i = 0; i < 3; i += 1) await client.refused(listen('482916'), 'otc_in_use');
    for (let i = 0; i < 2; i += 1)
      await client.refused(connect('482916'), 'peer_already_connected');
    await client.refused(connect('482916'), 'rate_limited');
    await target.expectNothing();
  });

  test('are counted separately for each client, and together for a network', async () => {
    const relay = await startRelay({ trustProxy: '1' });
    const attacker = await from(relay, '2001:db8::1');
    for (let i = 0; i < 5; i += 1) await attacker.refused(connect(`00000${i}`), 'otc_not_found');
    await (await from(relay, '2001:db8::ffff')).refused(connect('482916'), 'rate_limited');
    await (await from(relay, '2001:db8:0:1::1')).refused(connect('482916'), 'otc_not_found');
    await (await from(relay, '198.51.100.7')).refused(connect('482916'), 'otc_not_found');
  });
});

describe('failed attempts on a code', () => {
  test('after five from all clients together, the code is burned for a minute', async () => {
    if (isNotForTwo('time passes in Redis too')) return;
    const relay = await startRelay({ trustProxy: '1' });
    for (let i = 0; i < 5; i += 1) {
      await (await from(relay, `198.51.100.${i}`)).refused(connect('482916'), 'otc_not_found');
    }
    const target = await from(relay, '203.0.113.1');
    await target.refused(listen('482916'), 'otc_in_use');
    await (await from(relay, '203.0.113.2')).refused(connect('482916'), 'otc_not_found');
    target.send(listen('482917'));
    await target.expect(open);
    relay.pass(MINUTE);
    const later = await from(relay, '203.0.113.3');
    later.send(listen('482916'));
    await later.expect(open);
  });

  test('while it is burned do not extend that minute', async () => {
    if (isNotForTwo('time passes in Redis too')) return;
    const relay = await startRelay({ trustProxy: '1' });
    for (let i = 0; i < 10; i += 1) {
      await (await from(relay, `198.51.100.${i}`)).refused(connect('482916'), 'otc_not_found');
      relay.pass(5000, { sweep: false });
    }
    relay.pass(10_000, { sweep: false });
    const target = await from(relay, '203.0.113.1');
    target.send(listen('482916'));
    await target.expect(open);
  });

  test('do not affect a session that already waits on it', async () => {
    const relay = await startRelay({ trustProxy: '1' });
    const target = await from(relay, '203.0.113.1');
    target.send(listen('482916'));
    await target.expect(open);
    for (let i = 0; i < 6; i += 1) {
      await (await from(relay, `198.51.100.${i}`)).refused(listen('482916'), 'otc_in_use');
    }
    const controller = await from(relay, '203.0.113.2');
    controller.send(connect('482916'));
    await controller.expect({ type: 'peer_found' });
    await (await from(relay, '198.51.100.7')).refused(connect('482916'), 'otc_not_found');
  });
});

describe('bootstrap', () => {
  test('ten watches per client and minute, counted separately', async () => {
    if (isNotForTwo('time passes in Redis too')) return;
    const relay = await startRelay();
    const client = await relay.connect();
    for (let i = 0; i < 10; i += 1) {
      client.send({ type: 'bootstrap_watch', jti: `bt_${i}` });
      await client.expect({ type: 'bootstrap_watching', jti: `bt_${i}` });
    }
    await client.refused({ type: 'bootstrap_watch', jti: 'bt_x' }, 'rate_limited');
    client.send(listen('482916'));
    await client.expect(open);
    relay.pass(MINUTE - 1, { sweep: false });
    await client.refused({ type: 'bootstrap_watch', jti: 'bt_x' }, 'rate_limited');
    relay.pass(1, { sweep: false });
    client.send({ type: 'bootstrap_watch', jti: 'bt_x' });
    await client.expect({ type: 'bootstrap_watching', jti: 'bt_x' });
  });

  test('ten refused inits per client and minute, counted separately', async () => {
    if (isNotForTwo('time passes in Redis too')) return;
    const relay = await startRelay();
    const client = await relay.connect();
    const announce = (jti: string) =>
      client.send({ type: 'bootstrap_init', jti, token: 't', targetPubKey: 'k' });
    for (let i = 0; i < 10; i += 1) {
      announce(`bt_${i}`);
      await client.expect({ type: 'bootstrap_reject', jti: `bt_${i}`, error: 'no_watcher' });
    }
    announce('bt_x');
    await client.expect({ type: 'bootstrap_reject', jti: 'bt_x', error: 'rate_limited' });
    client.send({ type: 'bootstrap_watch', jti: 'bt_x' });
    await client.expect({ type: 'bootstrap_watching', jti: 'bt_x' });
    relay.pass(MINUTE, { sweep: false });
    announce('bt_x');
    await client.expect({ type: 'bootstrap_init', jti: 'bt_x', token: 't', targetPubKey: 'k' });
  });
});

describe('connections', () => {
  test('over the limit of the instance a socket is closed with 1013, until another one leaves', async () => {
    if (isNotForTwo('each instance has its own')) return;
    const relay = await startRelay({ maxConnections: 2 });
    const [first] = [await relay.connect(), await relay.connect()];
    await (await relay.connect()).expectClose(1013, 'too_many_connections');
    first.close();
    await until(() => relay.sockets.connections.size === 1, 'there is room');
    await (await relay.connect()).refused({ type: 'done' }, 'no_session');
  });

  test('over the limit of a client too, and other clients are still accepted', async () => {
    if (isNotForTwo('each instance has its own')) return;
    const relay = await startRelay({ trustProxy: '1', maxConnectionsPerClient: 2 });
    const mine = [await from(relay, '198.51.100.1'), await from(relay, '198.51.100.1')];
    await (await from(relay, '198.51.100.1')).expectClose(1013, 'too_many_connections');
    await (await from(relay, '198.51.100.2')).refused({ type: 'done' }, 'no_session');
    for (const socket of mine) await socket.refused({ type: 'done' }, 'no_session');
    expect(relay.sockets.books).toMatchObject({ connections: 3, clients: 2 });
  });

  test('at most 256 for one client by default', async () => {
    if (isNotForTwo('each instance has its own')) return;
    const relay = await startRelay();
    await Promise.all(Array.from({ length: 256 }, () => relay.connect()));
    await (await relay.connect()).expectClose(1013, 'too_many_connections');
  });
});

test('a relay with its maximum of sessions refuses with relay_capacity', async () => {
  const relay = await startRelay({ maxSessions: 1 });
  const { target } = await relay.pair();
  const client = await relay.connect();
  for (let i = 0; i < 6; i += 1) await client.refused(listen('000001'), 'relay_capacity');
  target.send({ type: 'done' });
  await target.expectNothing();
  client.send(listen('000001'));
  await client.expect(open);
});

describe('silent sockets', () => {
  test('idle sockets are closed with 4002 after 30 s; a session, a watch or an open init keeps one open', async () => {
    const relay = await startRelay({ sessionTtlMs: 300_000 });
    const silent = await relay.connect();
    const { target, controller } = await relay.pair();
    const watcher = await relay.connect();
    watcher.send({ type: 'bootstrap_watch', jti: 'bt_1' });
    await watcher.expect({ type: 'bootstrap_watching', jti: 'bt_1' });
    const machine = await relay.connect();
    machine.send({ type: 'bootstrap_init', jti: 'bt_1', token: 't', targetPubKey: 'k' });
    await watcher.next();
    relay.pass(29_999);
    await silent.expectNothing();
    relay.pass(1);
    await silent.expectClose(4002, 'idle');
    relay.pass(60_000);
    for (const socket of [target, controller, watcher, machine]) await socket.expectNothing();
  });

  test('the idle time starts when its last session or watch ends, and frames do not restart it', async () => {
    const relay = await startRelay();
    const { target, controller } = await relay.pair();
    relay.pass(20_000);
    target.send({ type: 'done' });
    await controller.expect({ type: 'done' });
    relay.pass(20_000);
    await target.refused({ type: 'done' }, 'no_session');
    relay.pass(9999);
    await controller.expectNothing();
    relay.pass(1);
    await Promise.all([target, controller].map((peer) => peer.expectClose(4002, 'idle')));
    expect(relay.sockets.books).toMatchObject({ connections: 0 });
  });
});

describe('a socket that sends as fast as it can', () => {
  test.each([
    ['refused frames', [{ type: 'done' }]],
    ['valid frames', [listen('000001'), { type: 'done' }]],
    ['data that nobody gets', [{ type: 'data', payload: '' }]],
  ])('%s: is closed with 1008 after a thousand in ten seconds', async (_what, cycle) => {
    const relay = await startRelay();
    const client = await relay.connect();
    const text = cycle.map((frame) => JSON.stringify(frame));
    for (let i = 0; i < 1100; i += 1) client.send(text[i % text.length] as string);
    expect(await client.closed).toEqual({ code: 1008, reason: 'too_many_frames' });
    expect(relay.sockets.books).toMatchObject({ connections: 0, sessions: 0 });
  });

  test('pings count too', async () => {
    const relay = await startRelay();
    const client = await relay.connect();
    const { ws } = client as unknown as { ws: { ping: () => void } };
    for (let i = 0; i < 1100; i += 1) ws.ping();
    expect(await client.closed).toEqual({ code: 1008, reason: 'too_many_frames' });
  });

  test('a long frame counts once for each KiB of it', async () => {
    const relay = await startRelay();
    const client = await relay.connect();
    const long = JSON.stringify({ type: 'done', junk: 'x'.repeat(60_000) });
    for (let i = 0; i < 16; i += 1) await client.refused(long, 'no_session');
    client.send(long);
    expect(await client.closed).toEqual({ code: 1008, reason: 'too_many_frames' });
  });

  test('empty data frames end a session at its limit of frames', async () => {
    const relay = await startRelay({ maxSessionFrames: 100 });
    const { target, controller } = await relay.pair();
    for (let i = 0; i < 100; i += 1) target.send({ type: 'data', payload: '' });
    for (let i = 0; i < 100; i += 1) await controller.expect({ type: 'data', payload: '' });
    await controller.refused({ type: 'data', payload: '' }, 'session_data_limit');
    await target.expectClose(4003, 'session_data_limit');
  });

  test('extra fields around a payload count as bytes of the session', async () => {
    const relay = await startRelay({ maxSessionBytes: 2048 });
    const { target } = await relay.pair();
    await target.refused(
      { type: 'data', payload: 'x', junk: 'x'.repeat(3000) },
      'session_data_limit',
    );
  });

  test('is accepted below that limit, and data within a session is not counted', async () => {
    const relay = await startRelay();
    const { target, controller } = await relay.pair();
    for (let i = 0; i < 3000; i += 1) target.send({ type: 'data', payload: `${i}` });
    for (let i = 0; i < 3000; i += 1) await controller.expect({ type: 'data', payload: `${i}` });
    target.send({ type: 'done' });
    await controller.expect({ type: 'done' });
    for (let i = 0; i < 990; i += 1) await target.refused({ type: 'done' }, 'no_session');
    relay.pass(10_000);
    for (let i = 0; i < 990; i += 1) await target.refused({ type: 'done' }, 'no_session');
  });
});

test('health gives the number of sessions, and a proxy header counts only if it is trusted', async () => {
  const relay = await startRelay();
  const attacker = await openClient(relay.url, { headers: { 'x-forwarded-for': '198.51.100.1' } });
  for (let i = 0; i < 5; i += 1) await attacker.refused(connect(`00000${i}`), 'otc_not_found');
  const disguised = await openClient(relay.url, { headers: { 'x-forwarded-for': '198.51.100.2' } });
  await disguised.refused(connect('000006'), 'rate_limited');
  expect(relay.log.lines.filter((line) => line.includes('x-forwarded-for'))).toHaveLength(1);
  expect(await (await fetch(`${relay.http}/health`)).text()).toBe('{"status":"ok","sessions":0}\n');
});
