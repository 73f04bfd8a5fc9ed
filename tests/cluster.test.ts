/** Many instances as one relay, over a real redis-server. */
import { describe, expect, test } from 'bun:test';
import { connect as dial, createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { RedisConnection } from '../src/cluster/redis.ts';
import { RedisUrl } from '../src/cluster/redis-url.ts';
import { readOptions } from '../src/config.ts';
import { RelayServer } from '../src/server.ts';
import { redisServer, startInstances, startRedis, type TestRedis, untilReach } from './redis.ts';
import {
  afterThisTest,
  type Client,
  freePort,
  memoryLog,
  openClient,
  startRelay,
  type TestRelay,
  until,
  within,
} from './support.ts';
import { seeded } from './random.ts';

const listen = (otc = '482916') => ({ type: 'listen', otc });
const connect = (otc = '482916') => ({ type: 'connect', otc });
const data = (payload: string) => ({ type: 'data', payload });
const watch = (jti: string) => ({ type: 'bootstrap_watch', jti });
const watching = (jti: string) => ({ type: 'bootstrap_watching', jti });
const init = (jti: string) => ({ type: 'bootstrap_init', jti, token: 't', targetPubKey: 'k' });
const reject = (jti: string, error: string) => ({ type: 'bootstrap_reject', jti, error });
const open = { type: 'ack', message: 'session_open' };
const found = { type: 'peer_found' };

type Two = [TestRelay, TestRelay];

/** A target on one instance and a controller on another that have met. */
async function pairAcross(
  one: { connect: () => Promise<Client> },
  other: { connect: () => Promise<Client> },
  otc = '482916',
): Promise<{ target: Client; controller: Client }> {
  const [target, controller] = await Promise.all([one.connect(), other.connect()]);
  target.send(listen(otc));
  await target.expect(open);
  controller.send(connect(otc));
  await Promise.all([target.expect(found), controller.expect(found)]);
  return { target, controller };
}

/** Tries until it is answered as hoped: for what comes true within seconds. */
async function eventually(
  attempt: () => Promise<string>,
  hoped: string,
  withinMs = 5000,
): Promise<void> {
  const deadline = performance.now() + withinMs;
  for (;;) {
    const answer = await attempt();
    if (answer.includes(hoped)) return;
    if (performance.now() > deadline) throw new Error(`hoped for ${hoped}, got ${answer}`);
    await Bun.sleep(20);
  }
}

async function ask(relay: { connect: () => Promise<Client> }, frame: object): Promise<string> {
  const client = await relay.connect();
  client.send(frame as Record<string, unknown>);
  const answer = await client.nextText();
  client.close();
  return answer;
}

const health = async (relay: TestRelay): Promise<[number, string]> => {
  const response = await fetch(`${relay.http}/health`);
  return [response.status, await response.text()];
};

/** An instance in a process of its own, to be killed. */
async function startProcess(
  env: Record<string, string>,
): Promise<{ connect: () => Promise<Client>; child: Bun.Subprocess; stdout: () => string }> {
  const child = Bun.spawn([process.execPath, join(import.meta.dir, '../bin/amesh-relay.js')], {
    env: { ...process.env, PORT: '0', HOST: '127.0.0.1', ...env },
    stdout: 'pipe',
    stderr: 'pipe',
  });
  afterThisTest(() => child.kill('SIGKILL'));
  let said = '';
  const listening = Promise.withResolvers<{ websocket: string }>();
  void (async () => {
    for await (const chunk of child.stdout) {
      said += new TextDecoder().decode(chunk);
      const line = said.split('\n').find((text) => text.includes('"listening"'));
      if (line) listening.resolve(JSON.parse(line) as { websocket: string });
    }
  })();
  const { websocket } = await within(listening.promise, 'the process to listen');
  return { connect: async () => openClient(websocket), child, stdout: () => said };
}

const generous = {
  maxListens: 100_000,
  maxFailedCodes: 1000,
  maxFailedPerCode: 1000,
  maxWatches: 10_000,
  maxRefusedInits: 10_000,
};

describe.skipIf(!redisServer)('a pairing across instances', () => {
  test('each frame to the one it is for, in order, then the verdict before the close', async () => {
    const [a, b] = (await startInstances(await startRedis(), 2)) as Two;
    const { target, controller } = await pairAcross(a, b);
    for (let i = 0; i < 500; i += 1) {
      target.send(data(`t${i}`));
      controller.send(data(`c${i}`));
    }
    for (let i = 0; i < 500; i += 1) {
      await controller.expect(data(`t${i}`));
      await target.expect(data(`c${i}`));
    }
    target.send(data('sas_confirmed'));
    target.close();
    await controller.expect(data('sas_confirmed'));
    await controller.expectError('peer_disconnected');
    await controller.refused(data('late'), 'no_session');
    await until(() => a.sockets.underWay + b.sockets.underWay === 0, 'nothing is under way');
    await pairAcross(b, a);
  });

  test('all in one breath: connect, data and close', async () => {
    const [a, b] = (await startInstances(await startRedis(), 2)) as Two;
    for (const other of [a, b]) {
      const [target, controller] = await Promise.all([a.connect(), other.connect()]);
      target.send(listen());
      await target.expect(open);
      for (const frame of [connect(), data('1'), data('2')]) controller.send(frame);
      controller.close();
      for (const frame of [found, data('1'), data('2')]) await target.expect(frame);
      await target.expectError('peer_disconnected');
    }
  });

  test('a peer that does not read ends it for both with 4004, whichever of the two', async () => {
    const [a, b] = (await startInstances(await startRedis(), 2, {
      maxSessionBytes: 1_000_000_000,
      maxBacklogBytes: 65_536,
    })) as Two;
    for (const isTargetDeaf of [true, false]) {
      const fast = await (isTargetDeaf ? b : a).connect();
      if (!isTargetDeaf) {
        fast.send(listen());
        await fast.expect(open);
      }
      const deaf = await deafClient(isTargetDeaf ? a : b, isTargetDeaf ? listen() : connect());
      if (isTargetDeaf) {
        await until(() => a.sockets.pairing.size === 1, 'it listens');
        fast.send(connect());
      }
      await fast.expect(found);
      deaf.pause();
      for (let i = 0; i < 1000 && fast.ws.readyState === WebSocket.OPEN; i += 1) {
        fast.send(data('x'.repeat(60_000)));
        await new Promise((resolve) => setImmediate(resolve));
      }
      await fast.expectClose(4004, 'slow_consumer');
      await until(() => a.sockets.underWay + b.sockets.underWay === 0, 'nothing is under way');
      deaf.destroy();
    }
  });
});

/** A TCP connection that has upgraded and sent one frame. */
async function deafClient(relay: TestRelay, frame: object): Promise<Socket> {
  const socket = dial(relay.port, '127.0.0.1');
  afterThisTest(() => socket.destroy());
  socket.on('error', () => {});
  const payload = Buffer.from(JSON.stringify(frame));
  socket.write(
    `GET /ws HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n` +
      `Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n`,
  );
  // The mask is zero.
  socket.write(Buffer.concat([Buffer.from([0x81, 0x80 | payload.length, 0, 0, 0, 0]), payload]));
  await within(new Promise((resolve) => socket.once('connect', resolve)), 'a TCP connection');
  return socket;
}

describe.skipIf(!redisServer)('races, on three instances', () => {
  test('one listen wins a code, one connect its session; one watch a jti, one init burns it', async () => {
    const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31));
    const random = seeded(seed);
    const relays = await startInstances(await startRedis(), 3, generous);
    try {
      for (let round = 0; round < 200; round += 1) await race(relays, random, round);
    } catch (error) {
      throw new Error(`SEED=${seed}: ${(error as Error).message}`, { cause: error });
    }
  }, 60_000);
});

async function race(relays: TestRelay[], random: () => number, round: number): Promise<void> {
  const otc = String(Math.floor(random() * 10)).padStart(6, '0');
  const jti = `bt_${round}`;
  const crowd = await Promise.all(
    Array.from({ length: 6 }, async () =>
      (relays[Math.floor(random() * 3)] as TestRelay).connect(),
    ),
  );
  /** All say it, some a moment later; the one whose answer is `hoped`, and there must be one. */
  const winner = async (clients: Client[], frame: object, hoped: string): Promise<Client> => {
    const answers = await Promise.all(
      clients.map(async (client) => {
        for (let turns = Math.floor(random() * 4); turns > 0; turns -= 1) {
          await new Promise((resolve) => setImmediate(resolve));
        }
        client.send(frame as Record<string, unknown>);
        return client.nextText();
      }),
    );
    const winners = clients.filter((_, i) => answers[i]?.includes(hoped));
    if (winners.length !== 1) throw new Error(`round ${round}: ${answers.join(' ')}`);
    return winners[0] as Client;
  };
  const target = await winner(crowd.slice(0, 3), listen(otc), 'session_open');
  const controllers = crowd.slice(3);
  const controller = await winner(controllers, connect(otc), 'peer_found');
  await target.expect(found);
  controller.send(data(`c${round}`));
  target.send(data(`t${round}`));
  await Promise.all([target.expect(data(`c${round}`)), controller.expect(data(`t${round}`))]);
  const [leaver, left] = random() < 0.5 ? [target, controller] : [controller, target];
  if (random() < 0.5) {
    leaver.send({ type: 'done' });
    await left.expect({ type: 'done' });
  } else {
    leaver.close();
    await left.expectError('peer_disconnected');
  }
  const free = crowd.filter((client) => client !== leaver);
  const watcher = await winner(free.slice(0, 2), watch(jti), 'bootstrap_watching');
  const machines = free.slice(2);
  for (const machine of machines) machine.send(init(jti));
  await watcher.expect(init(jti));
  watcher.send({ type: 'bootstrap_ack', jti, publicKey: 'p', controllerSig: 's' });
  const answers = await Promise.all(machines.map((machine) => machine.nextText()));
  const acks = answers.filter((answer) => answer.includes('bootstrap_ack')).length;
  const refusals = answers.filter((answer) => answer.includes('token_already_used')).length;
  if (acks !== 1 || acks + refusals !== machines.length) throw new Error(answers.join(' '));
  await watcher.expectNothing();
  for (const client of crowd) client.close();
}

describe.skipIf(!redisServer)('what counts together', () => {
  test('a burnt jti stays burnt, also when every relay is new', async () => {
    const redis = await startRedis();
    const old = (await startInstances(redis, 2)) as Two;
    const watcher = await old[0].connect();
    watcher.send(watch('bt_1'));
    await watcher.expect(watching('bt_1'));
    const machine = await old[1].connect();
    machine.send(init('bt_1'));
    await watcher.expect(init('bt_1'));
    await Promise.all(old.map((relay) => relay.server.stop()));
    const [a, b] = (await startInstances(redis, 2)) as Two;
    const again = await a.connect();
    again.send(watch('bt_1'));
    await again.expect(watching('bt_1'));
    for (const relay of [a, b]) {
      expect(await ask(relay, init('bt_1'))).toBe(
        JSON.stringify(reject('bt_1', 'token_already_used')),
      );
    }
    await again.expectNothing();
  });

  test('failed codes, watches and refused inits of a client, and failures on a code', async () => {
    const [a, b] = (await startInstances(await startRedis(), 2, { trustProxy: '1' })) as Two;
    const from = async (relay: TestRelay, address: string): Promise<Client> =>
      relay.connect({ headers: { 'x-forwarded-for': address } });
    const spread = [await from(a, '198.51.100.1'), await from(b, '198.51.100.1')];
    const turn = (i: number): Client => spread[i % 2] as Client;
    for (let i = 0; i < 5; i += 1) await turn(i).refused(connect(`00000${i}`), 'otc_not_found');
    for (const client of spread) await client.refused(listen(), 'rate_limited');
    for (let i = 0; i < 10; i += 1) {
      turn(i).send(watch(`bt_${i}`));
      await turn(i).expect(watching(`bt_${i}`));
    }
    for (const client of spread) await client.refused(watch('bt_x'), 'rate_limited');
    for (let i = 0; i < 10; i += 1) {
      turn(i).send(init(`no_${i}`));
      await turn(i).expect(reject(`no_${i}`, 'no_watcher'));
    }
    turn(0).send(init('bt_0'));
    await turn(0).expect(reject('bt_0', 'rate_limited'));
    for (let i = 0; i < 5; i += 1) {
      const relay = i % 2 ? a : b;
      await (await from(relay, `203.0.113.${i}`)).refused(connect('777777'), 'otc_not_found');
    }
    await (await from(a, '192.0.2.1')).refused(listen('777777'), 'otc_in_use');
  });

  test('every key expires, its name begins with the prefix, and no payload is stored', async () => {
    const redis = await startRedis();
    const [a, b] = (await startInstances(redis, 2, { redisPrefix: 'mine:' })) as Two;
    const { target, controller } = await pairAcross(a, b);
    target.send(data('for the controller alone'));
    await controller.expect(data('for the controller alone'));
    const watcher = await a.connect();
    watcher.send(watch('bt_secret'));
    await watcher.expect(watching('bt_secret'));
    (await b.connect()).send(init('bt_secret'));
    await watcher.expect(init('bt_secret'));
    await ask(b, connect('000000'));
    await ask(b, init('nobody'));
    const keys = (await redis.command('KEYS', '*')).split('\n');
    const kinds = new Set(keys.map((key) => key.split(':')[1]));
    expect(kinds).toEqual(
      new Set([
        'burnt',
        'code',
        'failed-codes',
        'failed-on',
        'jti',
        'listens',
        'refused-inits',
        'watches',
      ]),
    );
    for (const key of keys) {
      expect(key).toStartWith('mine:');
      expect(key).not.toContain('secret');
      const ttl = Number(await redis.command('PTTL', key));
      expect(ttl).toBeGreaterThan(0);
      expect(ttl).toBeLessThanOrEqual(25 * 3_600_000);
      const dump = await redis.command('DUMP', key);
      expect(dump).not.toContain('for the controller alone');
    }
  });

  test('accepted listens of a client', async () => {
    const [a, b] = (await startInstances(await startRedis(), 2, { maxListens: 2 })) as Two;
    for (const [i, relay] of [a, b].entries()) {
      const target = await relay.connect();
      target.send(listen(`00000${i}`));
      await target.expect(open);
      target.send({ type: 'done' });
    }
    for (const relay of [a, b])
      expect(await ask(relay, listen('000003'))).toContain('rate_limited');
  });

  test('what is refused by the owner’s own limits leaves nothing behind', async () => {
    const options = { maxBurnt: 1, maxWatches: 1000 };
    const redis = await startRedis();
    const [a, b] = (await startInstances(redis, 2, options)) as Two;
    const watcher = await a.connect();
    for (let i = 0; i < 100; i += 1) {
      watcher.send(watch(`bt_${i}`));
      await watcher.expect(watching(`bt_${i}`));
    }
    await watcher.refused(watch('bt_100'), 'relay_capacity');
    const other = await b.connect();
    other.send(watch('bt_100'));
    await other.expect(watching('bt_100'));
    const target = await b.connect();
    target.send(init('bt_0'));
    await watcher.expect(init('bt_0'));
    // Refused, and still good: it is not burned.
    for (let i = 0; i < 2; i += 1) {
      target.send(init('bt_1'));
      await target.expect(reject('bt_1', 'relay_overloaded'));
    }
    // A list that is full, also for relays that have just started, does not keep devices from pairing by code.
    const [next] = (await startInstances(redis, 1, options)) as [TestRelay];
    expect(await ask(next, init('bt_1'))).toBe(JSON.stringify(reject('bt_1', 'relay_overloaded')));
    await pairAcross(a, next);
  });

  test('attempts that seem to lie in the future, since Redis’ clock was set back, limit nobody', async () => {
    const redis = await startRedis();
    const [relay] = (await startInstances(redis, 1)) as [TestRelay];
    const later = Array.from({ length: 5 }, (_, i) => `${Date.now() + 600_000 + i}`);
    await redis.command('RPUSH', 'amesh:failed-codes:127.0.0.1', ...later);
    expect(await ask(relay, connect('000000'))).toContain('otc_not_found');
  });

  test('relays of another prefix are strangers', async () => {
    const redis = await startRedis();
    const [a] = await startInstances(redis, 1, { redisPrefix: 'one:' });
    const [b] = await startInstances(redis, 1, { redisPrefix: 'two:' });
    const target = await (a as TestRelay).connect();
    target.send(listen());
    await target.expect(open);
    expect(await ask(b as TestRelay, connect())).toContain('otc_not_found');
  });
});

test.skipIf(!redisServer)('the rights that docs/scaling.md gives are enough', async () => {
  const redis = await startRedis();
  const page = await Bun.file(join(import.meta.dir, '../docs/scaling.md')).text();
  const rights = /With an ACL: `([^`]+)`/.exec(page)?.[1]?.split(' ') ?? [];
  await redis.command('ACL', 'SETUSER', 'relay', 'on', '>secret', ...rights);
  const redisUrl = redis.url.replace('//', '//relay:secret@');
  const [a, b] = (await startInstances(redis, 2, { redisUrl })) as Two;
  const { target, controller } = await pairAcross(a, b);
  controller.send(data('over there'));
  await target.expect(data('over there'));
  controller.send({ type: 'done' });
  const watcher = await a.connect();
  watcher.send(watch('bt_1'));
  await watcher.expect(watching('bt_1'));
  (await b.connect()).send(init('bt_1'));
  await watcher.expect(init('bt_1'));
  await ask(b, connect('000000'));
  await ask(b, init('nobody'));
  expect(await redis.command('ACL', 'LOG')).toBe('');
});

test.skipIf(!redisServer)('a start that fails behind Redis leaves nothing in it', async () => {
  const redis = await startRedis();
  const holder = await startRelay();
  for (const options of [{ port: holder.port }, { metricsPort: holder.port }]) {
    const relay = new RelayServer(
      readOptions({ port: 0, host: '127.0.0.1', redisUrl: redis.url, ...options }),
      { log: memoryLog() },
    );
    expect(await relay.start().catch((problem: Error) => problem.message)).toContain('in use');
    expect(await redis.command('KEYS', '*')).toBe('');
  }
});

test.skipIf(!redisServer)(
  'junk around a payload is charged to the session across instances, too',
  async () => {
    const redis = await startRedis();
    const relays = (await startInstances(redis, 2)) as Two;
    const { target, controller } = await pairAcross(relays[0], relays[1]);
    const junk = JSON.stringify({ ...data('x'), junk: 'j'.repeat(60_000) });
    for (let i = 0; i < 90; i += 1) controller.send(junk);
    await controller.expectError('session_data_limit');
    await controller.expectClose(4003, 'session_data_limit');
    expect(await target.closed).toEqual({ code: 4003, reason: 'session_data_limit' });
  },
  20_000,
);

test('TLS to Redis names the server, unless that is an address: RFC 6066, section 3', async () => {
  const hellos: string[] = [];
  const server = createServer((socket) => {
    socket.on('error', () => {});
    socket.once('data', (hello) => {
      hellos.push(hello.toString('latin1'));
      socket.destroy();
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  afterThisTest(() => void server.close());
  const { port } = server.address() as { port: number };
  for (const host of ['localhost', '127.0.0.1']) {
    const before = hellos.length;
    const url = new RedisUrl(`rediss://${host}:${port}`);
    const connection = new RedisConnection(url, '', 'id');
    afterThisTest(() => connection.close());
    await until(() => hellos.length > before, 'a hello');
    connection.close();
    expect(hellos[before]?.includes(host), host).toBe(host === 'localhost');
  }
});

describe.skipIf(!redisServer)('Redis fails', () => {
  test('gone: what is on one instance goes on, the rest ends; back: all works again', async () => {
    const redis = await startRedis();
    const relays = (await startInstances(redis, 2)) as Two;
    const [a, b] = relays;
    const near = await a.pair('111111');
    const across = await pairAcross(a, b, '222222');
    const waiting = await a.connect();
    waiting.send(listen('333333'));
    await waiting.expect(open);
    const watcher = await b.connect();
    watcher.send(watch('bt_1'));
    await watcher.expect(watching('bt_1'));
    await redis.kill();
    await across.target.expectError('relay_unavailable');
    await across.controller.expectError('relay_unavailable');
    await untilReach(relays, false);
    near.target.send(data('still here'));
    await near.controller.expect(data('still here'));
    for (const relay of relays) {
      for (const frame of [listen('444444'), connect('333333'), watch('bt_2')]) {
        expect(await ask(relay, frame)).toBe('{"type":"error","code":"relay_unavailable"}');
      }
      expect(await ask(relay, init('bt_1'))).toBe(
        JSON.stringify(reject('bt_1', 'relay_unavailable')),
      );
    }
    expect(await health(a)).toEqual([503, '{"status":"unavailable","sessions":2}\n']);
    await across.target.refused(data('late'), 'no_session');

    // Empty, as after a failover to a replica that knew nothing.
    await redis.start();
    await untilReach(relays, true);
    expect(await health(b)).toEqual([200, '{"status":"ok","sessions":0}\n']);
    await pairAcross(b, a, '222222');
    const controller = await b.connect();
    controller.send(connect('333333'));
    await Promise.all([waiting.expect(found), controller.expect(found)]);
    await (await b.connect()).refused(listen('111111'), 'otc_in_use');
    (await a.connect()).send(init('bt_1'));
    await watcher.expect(init('bt_1'));
    for (const client of [across.target, across.controller]) await client.expectNothing();
    near.controller.send(data('all along'));
    await near.target.expect(data('all along'));
  }, 20_000);

  test('a lost subscription ends what went across, and comes back by itself', async () => {
    const redis = await startRedis();
    const relays = (await startInstances(redis, 2)) as Two;
    const [a, b] = relays;
    for (let round = 0; round < 3; round += 1) {
      const { target, controller } = await pairAcross(a, b);
      await redis.command('CLIENT', 'KILL', 'TYPE', 'pubsub');
      await target.expectError('relay_unavailable');
      await controller.expectError('relay_unavailable');
      await untilReach(relays, true);
    }
    await pairAcross(b, a);
  }, 20_000);

  test('a stall: newcomers are refused, nothing arrives late, and all is well afterwards', async () => {
    const redis = await startRedis();
    const relays = (await startInstances(redis, 2)) as Two;
    const [a, b] = relays;
    const { target, controller } = await pairAcross(a, b);
    redis.signal('SIGSTOP');
    for (let i = 0; i < 50; i += 1) target.send(data(`stalled ${i}`));
    const asked = await Promise.all(Array.from({ length: 20 }, async () => a.connect()));
    asked.forEach((client, i) => client.send(listen(`90000${i % 10}`)));
    for (const client of asked) await client.expectError('relay_unavailable');
    await target.expectError('relay_unavailable');
    await controller.expectError('relay_unavailable');
    await untilReach(relays, false);
    redis.signal('SIGCONT');
    await untilReach(relays, true);
    const second = await pairAcross(b, a);
    for (let i = 0; i < 10; i += 1) {
      const client = asked[i] as Client;
      client.send(listen(`90000${i}`));
      await client.expect(open);
    }
    second.target.send(data('ours'));
    await second.controller.expect(data('ours'));
    await Promise.all([controller, second.target, second.controller].map((c) => c.expectNothing()));
    for (const { sockets } of relays) {
      expect(sockets.books).toMatchObject({ claims: sockets.pairing.size, waitingBytes: 0 });
    }
  }, 20_000);

  test('the network swallows everything and closes nothing: connections are made anew', async () => {
    const redis = await startRedis();
    const tunnels = new Set<{ isDead: boolean }>();
    const tunnel = createServer((near) => {
      const state = { isDead: false };
      tunnels.add(state);
      const far = dial(redis.port, '127.0.0.1');
      for (const [from, to] of [
        [near, far],
        [far, near],
      ] as const) {
        from.on('data', (bytes) => void (state.isDead || to.write(bytes)));
        from.on('error', () => {});
        from.on('close', () => void (state.isDead || to.destroy()));
      }
    });
    await new Promise<void>((resolve) => tunnel.listen(0, '127.0.0.1', resolve));
    afterThisTest(() => void tunnel.close());
    const { port } = tunnel.address() as { port: number };
    const relays = (await startInstances(redis, 2, {
      redisUrl: `redis://127.0.0.1:${port}`,
    })) as Two;
    await pairAcross(relays[0], relays[1]);
    for (const state of tunnels) state.isDead = true;
    await untilReach(relays, false);
    await eventually(async () => `${relays.every((r) => r.sockets.cluster?.isUp)}`, 'true', 15_000);
    await pairAcross(relays[0], relays[1], '222222');
  }, 30_000);

  test('what Redis itself complains of is in the log, once, and without secrets', async () => {
    const redis = await startRedis(['--requirepass', 'hunter2']);
    const redisUrl = redis.url.replace('//', '//:hunter2@');
    const [relay] = (await startInstances(redis, 1, { redisUrl })) as [TestRelay];
    const asOperator = (...command: string[]): Promise<string> =>
      redis.command('--no-auth-warning', '-a', 'hunter2', ...command);
    await asOperator('CONFIG', 'SET', 'requirepass', 'swordfish');
    for (const type of ['normal', 'pubsub']) {
      await redis.command('--no-auth-warning', '-a', 'swordfish', 'CLIENT', 'KILL', 'TYPE', type);
    }
    const complaints = (): string[] => relay.log.lines.filter((line) => line.includes('WRONGPASS'));
    await until(() => complaints().length > 0, 'the complaint is logged');
    // It is tried again and again, and logged no more often.
    await eventually(async () => {
      const stats = await redis.command('--no-auth-warning', '-a', 'swordfish', 'INFO', 'stats');
      return `${Number(/total_connections_received:(\d+)/.exec(stats)?.[1]) > 12}`;
    }, 'true');
    expect(complaints()).toHaveLength(1);
    await redis.command(
      '--no-auth-warning',
      '-a',
      'swordfish',
      'CONFIG',
      'SET',
      'requirepass',
      'hunter2',
    );
    await untilReach([relay], true);
    expect(relay.log.lines.join()).not.toMatch(/hunter2|swordfish/);
  }, 20_000);

  test('what is refused while it is gone leaves nothing behind', async () => {
    const redis = await startRedis();
    const [relay] = (await startInstances(redis, 1)) as [TestRelay];
    await redis.kill();
    await untilReach([relay], false);
    const { claims } = relay.sockets.books;
    const client = await relay.connect();
    for (let i = 0; i < 20; i += 1) {
      await client.refused(listen(), 'relay_unavailable');
      await client.refused(watch('bt_1'), 'relay_unavailable');
    }
    expect(relay.sockets.books.claims).toBe(claims as number);
  }, 20_000);

  test('full: refused rather than risked, until there is room', async () => {
    const redis = await startRedis();
    const relays = (await startInstances(redis, 2)) as Two;
    await redis.command('CONFIG', 'SET', 'maxmemory', '1');
    await untilReach(relays, false);
    expect(await ask(relays[0], init('bt_1'))).toContain('relay_unavailable');
    expect(relays[0].log.lines.filter((line) => line.includes('OOM'))).toHaveLength(1);
    await redis.command('CONFIG', 'SET', 'maxmemory', '0');
    await untilReach(relays, true);
    await pairAcross(relays[0], relays[1]);
  }, 20_000);

  const cannotStart: [string, string[], (redis: TestRedis) => string, string][] = [
    ['needs a password', ['--requirepass', 'hunter2'], ({ url }) => url, 'NOAUTH'],
    [
      'needs another password',
      ['--requirepass', 'hunter2'],
      ({ url }) => url.replace('//', '//:swordfish@'),
      'WRONGPASS',
    ],
    ['is full', ['--maxmemory', '1'], ({ url }) => url, 'OOM'],
    ['is a replica', ['--replicaof', '127.0.0.1 1'], ({ url }) => url, 'READONLY'],
    ['has no such database', [], ({ url }) => `${url}/999`, 'out of range'],
    [
      'has no RESP3',
      ['--rename-command', 'HELLO', ''],
      ({ url }) => url,
      "unknown command 'hello'",
    ],
    ['speaks no TLS', [], ({ url }) => url.replace('redis:', 'rediss:'), ''],
  ];
  test('at the start: one clear line says what is wrong, never a password, and the exit code is 1', async () => {
    await Promise.all(
      cannotStart.map(async ([what, args, url, problem]) => {
        const redis = await startRedis(args);
        const child = Bun.spawn(
          [process.execPath, join(import.meta.dir, '../bin/amesh-relay.js')],
          {
            env: { ...process.env, PORT: '0', REDIS_URL: url(redis) },
            stdout: 'pipe',
            stderr: 'pipe',
          },
        );
        expect(await child.exited, what).toBe(1);
        const said = await new Response(child.stderr).text();
        expect(said).toMatch(/^amesh-relay: REDIS_URL: redis.*\n$/);
        expect(said, what).toContain(problem);
        expect(said + (await new Response(child.stdout).text())).not.toMatch(/hunter2|swordfish/);
      }),
    );
  }, 20_000);
});

describe.skipIf(!redisServer)('an instance', () => {
  test('is killed: its peers elsewhere are told, its codes and watches are free again', async () => {
    const redis = await startRedis();
    const [a] = (await startInstances(redis, 1, generous)) as [TestRelay];
    const b = await startProcess({ REDIS_URL: redis.url });
    const mine = await pairAcross(a, b, '111111');
    const its = await pairAcross(b, a, '222222');
    const waiting = await b.connect();
    waiting.send(listen('333333'));
    await waiting.expect(open);
    const watcher = await b.connect();
    watcher.send(watch('bt_1'));
    await watcher.expect(watching('bt_1'));
    const machine = await a.connect();
    machine.send(init('bt_1'));
    await watcher.expect(init('bt_1'));
    b.child.kill('SIGKILL');
    await mine.target.expectError('peer_disconnected');
    await its.controller.expectError('peer_disconnected');
    expect(await machine.nextText()).toContain('bootstrap_reject');
    for (const otc of ['222222', '333333']) {
      await eventually(() => ask(a, listen(otc)), 'session_open');
    }
    await eventually(() => ask(a, watch('bt_1')), 'bootstrap_watching');
  }, 20_000);

  test('drains: its pairs finish, newcomers go to the others, under load none is lost', async () => {
    const redis = await startRedis();
    const [a, b] = (await startInstances(redis, 2, {
      ...generous,
      maxConnectionsPerClient: 2000,
    })) as Two;
    const code = (i: number): string => String(i).padStart(6, '0');
    const pairs = await Promise.all(
      Array.from({ length: 100 }, async (_, i) =>
        i % 2 ? pairAcross(a, b, code(i)) : pairAcross(b, a, code(i)),
      ),
    );
    const stopped = a.server.stop({ drain: true });
    expect(await ask(b, listen('999999'))).toContain('session_open');
    await Promise.all(
      pairs.map(async ({ target, controller }, i) => {
        for (let round = 0; round < 5; round += 1) {
          target.send(data(`${i}.${round}`));
          await controller.expect(data(`${i}.${round}`));
          controller.send(data(`${i}.${round}`));
          await target.expect(data(`${i}.${round}`));
        }
        target.send(data('sas_confirmed'));
        target.close();
        await controller.expect(data('sas_confirmed'));
        await controller.expectError('peer_disconnected');
      }),
    );
    await within(stopped, 'the drain to end');
    const { stats } = a.sockets;
    expect(stats.ended.completed + b.sockets.stats.ended.completed).toBe(100);
    const next = await startInstances(redis, 1, generous);
    await pairAcross(next[0] as TestRelay, b);
  }, 20_000);

  test('stops at once: who is elsewhere is told, and its codes are free', async () => {
    const [a, b] = (await startInstances(await startRedis(), 2)) as Two;
    const mine = await pairAcross(a, b, '111111');
    const its = await pairAcross(b, a, '222222');
    await a.server.stop();
    await mine.controller.expectError('peer_disconnected');
    await its.target.expectError('peer_disconnected');
    const target = await b.connect();
    target.send(listen('111111'));
    await target.expect(open);
  });

  test('with TLS, a user, a password and a database number', async () => {
    const folder = (await Bun.$`mktemp -d`.text()).trim();
    afterThisTest(() => Bun.$`rm -rf ${folder}`);
    await Bun.$`openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout ${folder}/key.pem -out ${folder}/cert.pem`.quiet();
    const port = freePort();
    const user = ['--user', 'relay', 'on', '>p%40ss/w:rd', '~amesh:*', '&amesh:*', '+@all'];
    await startRedis(
      ['--tls-port', `${port}`, '--tls-auth-clients', 'no'].concat(
        ['--tls-cert-file', `${folder}/cert.pem`, '--tls-key-file', `${folder}/key.pem`],
        user,
        ['--user', 'default', 'off'],
      ),
    );
    const secret = encodeURIComponent('p%40ss/w:rd');
    const env = {
      REDIS_URL: `rediss://relay:${secret}@localhost:${port}/3`,
      NODE_EXTRA_CA_CERTS: `${folder}/cert.pem`,
    };
    // By name and by address.
    const byAddress = { ...env, REDIS_URL: env.REDIS_URL.replace('localhost', '127.0.0.1') };
    const [a, b] = await Promise.all([startProcess(env), startProcess(byAddress)]);
    const { target, controller } = await pairAcross(a, b);
    target.send(data('over TLS'));
    await controller.expect(data('over TLS'));
    expect(a.stdout()).toContain(`rediss://localhost:${port}/3`);
    expect(a.stdout()).not.toContain('w:rd');
    expect(a.stdout()).not.toContain(secret);
  });
});

test.skipIf(!redisServer)(
  'the suite of the wire holds over two instances',
  async () => {
    const redis = await startRedis();
    const suites = ['wire-pairing', 'wire-bootstrap', 'wire-limits', 'handshake'];
    const child = Bun.spawn(
      [
        process.execPath,
        'test',
        '--timeout',
        '30000',
        ...suites.map((name) => join(import.meta.dir, `${name}.test.ts`)),
      ],
      {
        env: { ...process.env, AMESH_TEST_REDIS_URL: redis.url, EVERY_CODE: '' },
        stdout: 'pipe',
        stderr: 'pipe',
      },
    );
    const [out, report] = await Promise.all([
      new Response(child.stdout).text(),
      new Response(child.stderr).text(),
    ]);
    for (const line of out.matchAll(/^SKIPPED.*$/gm)) console.log(line[0]);
    expect(await child.exited, report).toBe(0);
  },
  120_000,
);

test.skipIf(!redisServer)('what no instance would say harms nobody', async () => {
  const redis = await startRedis();
  const relays = (await startInstances(redis, 2)) as Two;
  const [channel = ''] = (await redis.command('PUBSUB', 'CHANNELS')).split('\n');
  for (const text of ['{', 'null', '["x",[["connect",1]]]', '["x",7]', '["x",[["data",1,2,3]]]']) {
    await redis.command('PUBLISH', channel, text);
    await untilReach(relays, true);
  }
  await pairAcross(relays[0], relays[1]);
});
