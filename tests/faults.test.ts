/** Faults and attacks: all other clients continue to pair, and nothing is left in memory. */
import { afterEach, describe, expect, setSystemTime, test } from 'bun:test';
import { connect as dial, type Socket } from 'node:net';
import { readOptions } from '../src/config.ts';
import { RelayServer } from '../src/server.ts';
import { redisServer, startInstances, startRedis } from './redis.ts';
import {
  afterThisTest,
  type Client,
  isNotForTwo,
  openClient,
  startRelay,
  type TestRelay,
  until,
  within,
} from './support.ts';

const listen = (otc: string) => ({ type: 'listen', otc });
const connect = (otc: string) => ({ type: 'connect', otc });
const data = (payload: string) => ({ type: 'data', payload });

const UPGRADE = [
  'GET /ws HTTP/1.1',
  'Host: relay',
  'Connection: Upgrade',
  'Upgrade: websocket',
  'Sec-WebSocket-Version: 13',
  'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==',
  '\r\n',
].join('\r\n');

/** A text frame with a mask of zero. */
function frame(text: string): Buffer {
  const payload = Buffer.from(text);
  const head =
    payload.length < 126
      ? [0x81, 0x80 | payload.length]
      : [0x81, 0x80 | 126, payload.length >> 8, payload.length & 0xff];
  return Buffer.concat([Buffer.from([...head, 0, 0, 0, 0]), payload]);
}

/** A TCP connection that can send any bytes. */
async function raw(
  relay: TestRelay,
  ...what: (string | Buffer)[]
): Promise<Socket & { received: string }> {
  const socket = Object.assign(dial(relay.port, '127.0.0.1'), { received: '' });
  afterThisTest(() => socket.destroy());
  socket.on('error', () => {});
  socket.on('data', (chunk) => {
    socket.received += chunk.toString('latin1');
  });
  await within(new Promise((resolve) => socket.once('connect', resolve)), 'a TCP connection');
  for (const bytes of what) socket.write(bytes);
  return socket;
}

/** Two honest devices pair. When they have left and a minute has passed, every collection of the relay is empty. */
async function expectHealthy(relay: TestRelay): Promise<void> {
  const { target, controller } = await relay.pair('999999');
  target.send(data('all is well'));
  await controller.expect(data('all is well'));
  target.close();
  controller.close();
  await Promise.all([target.closed, controller.closed]);
  relay.pass(61_000);
  await until(() => relay.sockets.connections.size === 0, 'every socket is gone');
  expect(Object.entries(relay.sockets.books).filter(([, entries]) => entries > 0)).toEqual([]);
}

describe('an error in the relay’s code', () => {
  test('closes only the socket on which it happened, and its message is not logged', async () => {
    const relay = await startRelay();
    const bystanders = await relay.pair();
    const { pairing } = relay.sockets;
    const open = pairing.open.bind(pairing);
    pairing.open = (target, otc, now) => {
      if (otc === '666666') throw new RangeError(`secret ${otc}`);
      return open(target, otc, now);
    };
    const victim = await relay.connect();
    victim.send(listen('666666'));
    await victim.expectClose(1011, 'internal_error');
    const line = relay.log.lines.find((entry) => entry.includes('internal error')) ?? '';
    expect(line).toContain('RangeError');
    expect(line).not.toContain('secret');
    expect(line).not.toContain('666666');
    bystanders.target.send(data('unharmed'));
    await bystanders.controller.expect(data('unharmed'));
    bystanders.target.close();
    bystanders.controller.close();
    await expectHealthy(relay);
  });

  test('in a close handler or in the sweep affects nothing else', async () => {
    const relay = await startRelay();
    const { target, controller } = await relay.pair();
    const { pairing } = relay.sockets;
    const end = pairing.end.bind(pairing);
    let faults = 1;
    pairing.end = (...args) => {
      end(...args);
      if (faults-- > 0) throw new Error('fault');
    };
    target.close();
    await target.closed;
    controller.close();
    await controller.closed;
    const waiting = await relay.connect();
    waiting.send(listen('000001'));
    await waiting.expect({ type: 'ack', message: 'session_open' });
    faults = 1;
    relay.pass(30_000);
    await waiting.closed;
    await expectHealthy(relay);
  });
});

describe('connections that go wrong', () => {
  test('half an upgrade, closed or left open', async () => {
    const relay = await startRelay();
    for (let i = 0; i < 100; i += 1) {
      const socket = await raw(relay, UPGRADE.slice(0, 20 + i));
      if (i % 2) socket.destroy();
    }
    await expectHealthy(relay);
  });

  test('a flood of headers', async () => {
    const relay = await startRelay();
    const socket = await raw(
      relay,
      `GET /ws HTTP/1.1\r\nHost: x\r\n${'X-Flood: '.concat('x'.repeat(1000), '\r\n').repeat(500)}\r\n`,
    );
    await within(
      new Promise((resolve) => socket.once('close', resolve)),
      'the flood to be cut off',
    );
    expect(socket.received).not.toContain('101 Switching');
    await expectHealthy(relay);
  });

  test('a slow-loris on the WebSocket: half a frame, and no more', async () => {
    const relay = await startRelay();
    for (let i = 0; i < 50; i += 1)
      await raw(relay, UPGRADE, frame('{"type":"done"}').subarray(0, 1 + (i % 15)));
    await until(() => relay.sockets.connections.size === 50, 'all are in');
    relay.pass(30_000);
    await expectHealthy(relay);
  });

  test('frames that break RFC 6455: unmasked, reserved bits, a bad opcode, text that is no UTF-8, a huge length', async () => {
    const relay = await startRelay();
    const broken = [
      Buffer.from([0x81, 0x02, 0x7b, 0x7d]),
      Buffer.from([0xf1, 0x80, 0, 0, 0, 0]),
      Buffer.from([0x83, 0x80, 0, 0, 0, 0]),
      Buffer.from([0x81, 0x82, 0, 0, 0, 0, 0xff, 0xfe]),
      Buffer.from([0x81, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]),
    ];
    for (const bytes of broken) {
      const socket = await raw(relay, UPGRADE);
      await until(() => relay.sockets.connections.size === 1, 'it is in');
      socket.write(bytes);
      socket.end();
      await until(() => relay.sockets.connections.size === 0, 'it is out');
    }
    await expectHealthy(relay);
  });

  test('both ends of a session close at once, over and over', async () => {
    const relay = await startRelay({ maxListens: 1000 });
    for (let i = 0; i < 100; i += 1) {
      const { target, controller } = await relay.pair();
      if (i % 3 === 0) target.send({ type: 'done' });
      target.close();
      if (i % 2) controller.close();
      else controller.ws.terminate();
      await Promise.all([target.closed, controller.closed]);
      await until(() => relay.sockets.connections.size === 0, 'both are gone');
    }
    await expectHealthy(relay);
  });
});

/** A target, and its controller, which no longer reads. */
/** @param at The instance that the controller connects to. */
async function pairWithPaused(
  relay: TestRelay,
  at = relay,
): Promise<[target: Client, controller: Awaited<ReturnType<typeof raw>>]> {
  const target = await relay.connect();
  target.send(listen('482916'));
  await target.expect({ type: 'ack', message: 'session_open' });
  const controller = await raw(at, UPGRADE, frame(JSON.stringify(connect('482916'))));
  await target.expect({ type: 'peer_found' });
  controller.pause();
  return [target, controller];
}

describe('a peer that does not read', () => {
  test('ends the session for both with 4004 when a mebibyte waits, and loses nothing before', async () => {
    // The operating system buffers megabytes before anything waits in the relay.
    const relay = await startRelay({ maxSessionBytes: 100_000_000 });
    const [target, slow] = await pairWithPaused(relay);
    const payload = 'x'.repeat(60_000);
    for (let i = 0; i < 1500; i += 1) target.send(data(payload));
    await target.expectClose(4004, 'slow_consumer');
    slow.resume();
    await within(new Promise((resolve) => slow.once('end', resolve)), 'the slow one to catch up');
    expect(slow.received.split(payload).length - 1).toBe(relay.sockets.stats.framesForwarded);
    expect(slow.received.slice(-'slow_consumer'.length)).toBe('slow_consumer');
    await expectHealthy(relay);
  });

  test('is closed even if only refusals wait for it', async () => {
    const relay = await startRelay({
      maxFrameBytes: 1024,
      maxBacklogBytes: 1024,
      maxControlFrames: 1_000_000,
    });
    const deaf = await raw(relay, UPGRADE);
    await until(() => relay.sockets.connections.size === 1, 'it is in');
    deaf.pause();
    const flood = Buffer.concat(Array.from({ length: 10_000 }, () => frame('{"type":"done"}')));
    for (let i = 0; i < 100 && relay.sockets.connections.size > 0; i += 1) {
      await new Promise((resolve) => deaf.write(flood, resolve));
    }
    await until(() => relay.sockets.connections.size === 0, 'it is out');
    deaf.destroy();
    await expectHealthy(relay);
  });
});

describe('races', () => {
  test('a thousand connects to one code at once: exactly one wins', async () => {
    const relay = await startRelay({ trustProxy: '1' });
    const target = await relay.connect({ headers: { 'x-forwarded-for': '203.0.113.1' } });
    const controllers = await Promise.all(
      Array.from({ length: 1000 }, (_, i) =>
        relay.connect({ headers: { 'x-forwarded-for': `10.0.${i >> 8}.${i & 255}` } }),
      ),
    );
    target.send(listen('482916'));
    await target.expect({ type: 'ack', message: 'session_open' });
    for (const controller of controllers) controller.send(connect('482916'));
    const answers = await Promise.all(controllers.map((controller) => controller.nextText()));
    expect(answers.filter((answer) => answer.includes('peer_found'))).toHaveLength(1);
    expect(
      answers.filter((answer) => /peer_already_connected|otc_not_found/.test(answer)),
    ).toHaveLength(999);
    await target.expect({ type: 'peer_found' });
    await target.expectNothing();
    const winner = controllers[answers.findIndex((answer) => answer.includes('peer_found'))];
    winner?.send(data('mine'));
    await target.expect(data('mine'));
    for (const socket of [target, ...controllers]) socket.close();
    await expectHealthy(relay);
  });

  test('a thousand listens on one code at once: exactly one wins', async () => {
    const relay = await startRelay({ trustProxy: '1' });
    const targets = await Promise.all(
      Array.from({ length: 1000 }, (_, i) =>
        relay.connect({ headers: { 'x-forwarded-for': `10.0.${i >> 8}.${i & 255}` } }),
      ),
    );
    for (const target of targets) target.send(listen('482916'));
    const answers = await Promise.all(targets.map((target) => target.nextText()));
    expect(answers.filter((answer) => answer.includes('session_open'))).toHaveLength(1);
    for (const socket of targets) socket.close();
    await expectHealthy(relay);
  });
});

describe('the system clock', () => {
  afterEach(() => {
    setSystemTime();
  });

  test.each([-3_600_000, 3_600_000])(
    'moved by %p ms ends no session and frees no limit',
    async (shift) => {
      const relay = new RelayServer(
        readOptions({ port: 0, host: '127.0.0.1', logLevel: 'silent' }),
      );
      const { url } = await relay.start();
      afterThisTest(() => relay.stop());
      const target = await openClient(url);
      target.send(listen('482916'));
      await target.expect({ type: 'ack', message: 'session_open' });
      const stranger = await openClient(url);
      for (let i = 0; i < 5; i += 1) await stranger.refused(connect(`00000${i}`), 'otc_not_found');
      setSystemTime(new Date(Date.now() + shift));
      relay.sockets.sweep();
      await target.expectNothing();
      await stranger.refused(connect('482916'), 'rate_limited');
      expect(relay.sockets.books).toMatchObject({ connections: 2, sessions: 1 });
    },
  );
});

describe('a hostile address', () => {
  test('has a budget of requests, and requests over the budget are not read', async () => {
    if (isNotForTwo('each instance has its own')) return;
    const relay = await startRelay({ maxConnectionsPerClient: 10 });
    const socket = await raw(relay, 'GET / HTTP/1.1\r\nHost: relay\r\n\r\n'.repeat(100));
    await until(() => socket.destroyed || socket.readableEnded, 'the connection is closed');
    const answers = [...socket.received.matchAll(/HTTP\/1\.1 (\d+)/g)].map(([, status]) => status);
    expect(answers.filter((status) => status === '200').length).toBe(20);
    expect(answers.filter((status) => status === '429').length).toBe(1);
    const refused = await fetch(`${relay.http}/`);
    expect([refused.status, refused.headers.get('retry-after')]).toEqual([429, '1']);
    expect(await refused.json()).toEqual({ error: 'too_many_requests' });
    expect(await openClient(relay.url).catch((error: Error) => error.message)).toBe(
      'the socket did not open',
    );
    // Probes are still answered, one for each connection, and the budget is refilled.
    for (const path of ['/health', '/livez']) {
      const probes = `GET ${path} HTTP/1.1\r\nHost: relay\r\n\r\n`.repeat(50);
      const prober = await raw(relay, probes);
      await until(() => prober.destroyed || prober.readableEnded, 'its connection is closed');
      expect(prober.received.match(/HTTP\/1\.1 \d+/g)).toEqual(['HTTP/1.1 200']);
    }
    relay.pass(1000);
    (await relay.connect()).close();
  });

  test('a refused socket that does not close is terminated', async () => {
    if (isNotForTwo('each instance has its own')) return;
    const relay = await startRelay({ maxConnectionsPerClient: 1 });
    await relay.connect();
    const refused = await raw(relay, UPGRADE);
    await until(() => refused.received.includes('too_many_connections'), 'it is told why');
    relay.pass(999);
    expect(refused.destroyed).toBe(false);
    relay.pass(1);
    await until(() => refused.destroyed, 'it is cut off');
  });

  test('a peer that reads nothing for 10 s ends its pairing with 4004, one that reads slowly does not', async () => {
    if (isNotForTwo('a deaf peer on another instance is dealt with there')) return;
    const relay = await startRelay({ maxBacklogBytes: 100_000_000, maxSessionBytes: 100_000_000 });
    const [sender, deaf] = await pairWithPaused(relay);
    const payload = 'x'.repeat(60_000);
    for (let i = 0; i < 300; i += 1) sender.send(data(payload));
    await until(() => relay.sockets.stats.framesForwarded === 300, 'all is forwarded');
    relay.pass(9000);
    // It reads some bytes, and so gets another 10 s.
    const before = deaf.received.length;
    deaf.resume();
    await until(() => deaf.received.length > before + 1_000_000, 'it reads');
    deaf.pause();
    sender.send(data(payload));
    await until(() => relay.sockets.stats.framesForwarded === 301, 'one more');
    relay.pass(1000);
    await sender.expectNothing();
    relay.pass(10_000);
    await sender.expectClose(4004, 'slow_consumer');
    expect(relay.sockets.pairing.size).toBe(0);
  });

  test.skipIf(!redisServer)('also when it is on another instance', async () => {
    const limits = { maxBacklogBytes: 100_000_000, maxSessionBytes: 100_000_000 };
    const [a, b] = (await startInstances(await startRedis(), 2, limits)) as [TestRelay, TestRelay];
    const [sender] = await pairWithPaused(a, b);
    for (let i = 0; i < 300; i += 1) sender.send(data('x'.repeat(60_000)));
    await until(() => {
      b.pass(1000);
      return a.sockets.pairing.size === 0;
    }, 'the pairing is over');
    await sender.expectClose(4004, 'slow_consumer');
  });
});
