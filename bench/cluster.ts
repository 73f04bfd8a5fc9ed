/**
 * What a cluster adds: two instances and a redis-server in processes of their own, on this machine. Prints what
 * docs/scaling.md reports. `bun bench/cluster.ts`, with redis-server on the path.
 */
import { join } from 'node:path';

const REDIS_PORT = Number(process.env.REDIS_PORT ?? 17_379);
const redisUrl = `redis://127.0.0.1:${REDIS_PORT}`;
const children: Bun.Subprocess[] = [];

async function start(env: Record<string, string>): Promise<{ url: string; pid: number }> {
  const child = Bun.spawn([process.execPath, join(import.meta.dir, '../bin/amesh-relay.js')], {
    env: {
      ...process.env,
      PORT: '0',
      HOST: '127.0.0.1',
      AMESH_MAX_CONNECTIONS_PER_CLIENT: '100000',
      AMESH_MAX_LISTENS: '1000000',
      AMESH_MAX_BYTES_PER_SECOND: '1073741824',
      AMESH_MAX_SESSION_BYTES: '1073741824',
      ...env,
    },
    stdout: 'pipe',
  });
  children.push(child);
  let said = '';
  for await (const chunk of child.stdout.pipeThrough(new TextDecoderStream())) {
    said += chunk;
    const url = /"websocket":"([^"]+)"/.exec(said)?.[1];
    if (url) return { url, pid: child.pid };
  }
  throw new Error(`the relay did not start: ${said}`);
}

async function redis(...command: string[]): Promise<string> {
  return Bun.$`redis-cli -p ${REDIS_PORT} ${command}`.text();
}

/** Seconds of processor time that a process has used. */
async function cpu(pid: number): Promise<number> {
  const stat = await Bun.file(`/proc/${pid}/stat`).text();
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[11]) + Number(fields[12])) / 100;
}

const opened = async (url: string): Promise<WebSocket> => {
  const ws = new WebSocket(url);
  await new Promise((resolve) => ws.addEventListener('open', resolve, { once: true }));
  return ws;
};
const next = async (ws: WebSocket): Promise<string> =>
  new Promise((resolve, reject) => {
    ws.addEventListener('message', ({ data }) => resolve(String(data)), { once: true });
    ws.addEventListener('close', () => reject(new Error('closed')), { once: true });
  });
const say = (ws: WebSocket, frame: object): void => ws.send(JSON.stringify(frame));

let codes = 0;
const payload = 'x'.repeat(300);

/** A whole handshake: two sockets, five frames of 300 bytes, both close. @returns Milliseconds from connect to peer_found. */
async function pairing(one: string, other: string): Promise<number> {
  const otc = String((codes += 1) % 1_000_000).padStart(6, '0');
  const [target, controller] = await Promise.all([opened(one), opened(other)]);
  say(target, { type: 'listen', otc });
  await next(target);
  const began = performance.now();
  const found = [next(target), next(controller)];
  say(controller, { type: 'connect', otc });
  await Promise.all(found);
  const took = performance.now() - began;
  for (let i = 0; i < 5; i += 1) {
    const [from, to] = i % 2 ? [controller, target] : [target, controller];
    const got = next(to);
    say(from, { type: 'data', payload });
    await got;
  }
  target.close();
  controller.close();
  return took;
}

/** Milliseconds that a frame of 1 KiB takes from one side to the other, many times. */
async function hops(one: string, other: string, count: number): Promise<number[]> {
  const otc = String((codes += 1) % 1_000_000).padStart(6, '0');
  const [target, controller] = await Promise.all([opened(one), opened(other)]);
  say(target, { type: 'listen', otc });
  await next(target);
  const found = [next(target), next(controller)];
  say(controller, { type: 'connect', otc });
  await Promise.all(found);
  const times: number[] = [];
  for (let i = 0; i < count; i += 1) {
    const [from, to] = i % 2 ? [controller, target] : [target, controller];
    const got = next(to);
    const began = performance.now();
    say(from, { type: 'data', payload: 'x'.repeat(1024) });
    await got;
    times.push(performance.now() - began);
  }
  target.close();
  controller.close();
  return times;
}

const at = (times: number[], quantile: number): string =>
  (times.toSorted((a, b) => a - b)[Math.floor(times.length * quantile)] as number).toFixed(2);
const both = (times: number[]): string => `p50 ${at(times, 0.5)} ms, p99 ${at(times, 0.99)} ms`;

async function commands(): Promise<{ total: number; byName: Map<string, number> }> {
  const byName = new Map<string, number>();
  for (const [, name, calls] of (await redis('INFO', 'commandstats')).matchAll(
    /^cmdstat_(\S+):calls=(\d+)/gm,
  )) {
    byName.set(String(name), Number(calls));
  }
  // What scripts call is counted, too: these are the ones that come over the wire, and the beats' few publishes.
  const total = ['evalsha', 'eval', 'publish'].reduce(
    (sum, name) => sum + (byName.get(name) ?? 0),
    0,
  );
  return { total, byName };
}

async function pairings(
  one: string,
  other: string,
  count: number,
  atOnce: number,
): Promise<number[]> {
  const times: number[] = [];
  let left = count;
  await Promise.all(
    Array.from({ length: atOnce }, async () => {
      while (left-- > 0) times.push(await pairing(one, other));
    }),
  );
  return times;
}

try {
  const server = Bun.spawn(
    [
      'redis-server',
      '--port',
      `${REDIS_PORT}`,
      '--save',
      '',
      '--appendonly',
      'no',
      '--bind',
      '127.0.0.1',
    ],
    { stdout: 'ignore' },
  );
  children.push(server);
  while (!(await redis('PING').catch(() => '')).includes('PONG')) await Bun.sleep(20);
  const alone = await start({});
  const [a, b] = await Promise.all([
    start({ REDIS_URL: redisUrl }),
    start({ REDIS_URL: redisUrl }),
  ]);
  const ways = [
    ['one instance, no REDIS_URL', alone, alone],
    ['same instance, REDIS_URL', a, a],
    ['two instances', a, b],
  ] as const;
  for (const [, one, other] of ways) await pairings(one.url, other.url, 500, 8);
  for (const [what, one, other] of ways) {
    const quiet = await pairings(one.url, other.url, 500, 1);
    console.log(`${what}: connect to peer_found ${both(quiet)}`);
    console.log(`${what}: a frame of 1 KiB ${both(await hops(one.url, other.url, 5000))}`);
  }
  for (const [what, one, other] of ways) {
    const count = 3000;
    const pids = [...new Set([one.pid, other.pid]), server.pid];
    const before = { redis: await commands(), cpu: await Promise.all(pids.map(cpu)) };
    const began = performance.now();
    await pairings(one.url, other.url, count, 32);
    const seconds = (performance.now() - began) / 1000;
    const after = { redis: await commands(), cpu: await Promise.all(pids.map(cpu)) };
    const used = after.cpu.map((now, i) => now - (before.cpu[i] as number));
    const redisUsed = used.pop() as number;
    const relays = used.reduce((sum, one_) => sum + one_, 0);
    const us = (total: number): string => `${((total / count) * 1e6).toFixed(0)} us`;
    const calls = (name: string): number =>
      ((after.redis.byName.get(name) ?? 0) - (before.redis.byName.get(name) ?? 0)) / count;
    console.log(
      `${what}: ${(count / seconds).toFixed(0)} pairings/s with 32 at once; per pairing: relays' CPU ${us(relays)}, ` +
        `Redis' CPU ${us(redisUsed)}, Redis commands ${((after.redis.total - before.redis.total) / count).toFixed(2)} ` +
        `(scripts ${calls('evalsha').toFixed(2)}, publish ${calls('publish').toFixed(2)})`,
    );
  }
} finally {
  for (const child of children) child.kill();
}
