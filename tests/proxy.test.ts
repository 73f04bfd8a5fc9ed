/** The relay behind the real nginx and the real Caddy, with the configuration that is shipped: who is the client then? */
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'bun:test';
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { generate } from 'selfsigned';
import { createRelayServer } from '../src/index.ts';
import { redisServer, startInstances, startRedis } from './redis.ts';
import { freePort, type TestRelay } from './support.ts';

const root = join(import.meta.dir, '..');
const read = (file: string): Promise<string> => Bun.file(join(root, file)).text();
let folder: string;
let pem: { cert: string; private: string };

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'amesh-relay-proxy-'));
  pem = await generate([{ name: 'commonName', value: 'relay.example.com' }]);
});
afterAll(() => rm(folder, { recursive: true }));

const cleanUps: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

interface Proxy {
  command: string[];
  scheme: 'ws' | 'wss';
}

/** A relay, and a proxy before it. @returns The WebSocket URL at the proxy. */
async function behind(
  trustProxy: string,
  start: (relay: number, port: number) => Promise<Proxy>,
): Promise<string> {
  const relay = await createRelayServer({
    port: 0,
    host: '127.0.0.1',
    trustProxy,
    logLevel: 'silent',
  });
  const { port: relayPort } = await relay.start();
  cleanUps.push(() => relay.stop());
  return startProxy((port) => start(relayPort, port));
}

/** @returns The WebSocket URL at a proxy, as soon as what is behind it is well. */
async function startProxy(start: (port: number) => Promise<Proxy>): Promise<string> {
  // A port that was free a moment ago may be another program's now: then once more with another.
  for (let attempt = 1; ; attempt += 1) {
    const port = freePort();
    const { command, scheme } = await start(port);
    const proxy = Bun.spawn(command, {
      stdout: 'ignore',
      stderr: 'pipe',
      env: { ...process.env, HOME: folder },
    });
    cleanUps.push(async () => {
      proxy.kill();
      await proxy.exited;
    });
    const health = `${scheme.replace('ws', 'http')}://127.0.0.1:${port}/health`;
    while (proxy.exitCode === null) {
      const up = await fetch(health, { tls: { rejectUnauthorized: false } }).catch(() => undefined);
      if (up?.ok) return `${scheme}://127.0.0.1:${port}/ws`;
      await Bun.sleep(20);
    }
    if (attempt === 3) throw new Error(await proxy.stderr.text());
  }
}

/** What a socket of this client is answered to one frame. */
async function ask(url: string, frame: object, headers: Record<string, string>): Promise<string> {
  const { promise, resolve, reject } = Promise.withResolvers<string>();
  const ws = new WebSocket(url, { headers, tls: { rejectUnauthorized: false } });
  ws.onopen = () => ws.send(JSON.stringify(frame));
  ws.onmessage = ({ data }) => resolve(String(data));
  ws.onerror = () => reject(new Error('no socket'));
  const answer = await promise;
  ws.close();
  return answer;
}

const guess = (attempt: number): object => ({ type: 'connect', otc: String(100_000 + attempt) });

/** One real client that lies about its address, a new lie each time. */
async function lie(url: string, header: string): Promise<string[]> {
  const answers: string[] = [];
  for (let attempt = 1; attempt <= 6; attempt += 1) {
    answers.push(await ask(url, guess(attempt), { [header]: `203.0.113.${attempt}` }));
  }
  return answers.map((answer) => (JSON.parse(answer) as { code: string }).code);
}

const FIVE_FAILURES = [...Array<string>(5).fill('otc_not_found'), 'rate_limited'];

/** A pairing from end to end. */
async function pair(url: string): Promise<void> {
  const open = (): Promise<{ ws: WebSocket; next: () => Promise<string> }> => {
    const ws = new WebSocket(url, { tls: { rejectUnauthorized: false } });
    const frames: string[] = [];
    let wake = (): void => {};
    ws.onmessage = ({ data }) => {
      frames.push(String(data));
      wake();
    };
    const next = async (): Promise<string> => {
      while (frames.length === 0) await new Promise<void>((resolve) => (wake = resolve));
      return frames.shift() as string;
    };
    return new Promise((resolve) => (ws.onopen = () => resolve({ ws, next })));
  };
  const [target, controller] = await Promise.all([open(), open()]);
  target.ws.send('{"type":"listen","otc":"482916"}');
  expect(await target.next()).toBe('{"type":"ack","message":"session_open"}');
  controller.ws.send('{"type":"connect","otc":"482916"}');
  for (const peer of [target, controller]) expect(await peer.next()).toBe('{"type":"peer_found"}');
  const data = JSON.stringify({ type: 'data', payload: 'x'.repeat(60_000) });
  controller.ws.send(data);
  expect(await target.next()).toBe(data);
  target.ws.send('{"type":"done"}');
  expect(await controller.next()).toBe('{"type":"done"}');
  target.ws.close();
  controller.ws.close();
}

const nginx = Bun.which('nginx', { PATH: `${process.env['PATH']}:/usr/sbin` });
const caddy = Bun.which('caddy');
for (const [name, found] of Object.entries({ nginx, caddy })) {
  if (!found) console.warn(`SKIPPED: there is no ${name} here to test the relay behind it`);
}

/** `forward` replaces the shipped way to pass the address on. */
function withNginx(forward?: string) {
  return async (relay: number, port: number) => {
    const here = join(folder, `nginx-${port}`);
    await mkdir(here);
    await Promise.all([
      Bun.write(join(here, 'cert.pem'), pem.cert),
      Bun.write(join(here, 'key.pem'), pem.private),
    ]);
    const shipped = (await read('deploy/nginx.conf'))
      .replace('listen 443', `listen 127.0.0.1:${port}`)
      .replace('127.0.0.1:3001', `127.0.0.1:${relay}`)
      .replace(/\/etc\/letsencrypt\S+fullchain\.pem/, join(here, 'cert.pem'))
      .replace(/\/etc\/letsencrypt\S+privkey\.pem/, join(here, 'key.pem'))
      .replaceAll('/var/log/nginx', here)
      .replace(/proxy_set_header X-Forwarded-For .*;/, (line) => forward ?? line);
    const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'];
    await Bun.write(
      join(here, 'nginx.conf'),
      `daemon off; pid ${here}/pid; error_log stderr;
      events {}
      http { access_log off; ${temporary.map((kind) => `${kind}_temp_path ${here}/${kind};`).join(' ')}
      ${shipped} }`,
    );
    const command = [nginx as string, '-e', 'stderr', '-p', here, '-c', join(here, 'nginx.conf')];
    return { command, scheme: 'wss' as const };
  };
}

async function withCaddy(relay: number, port: number) {
  const shipped = (await read('deploy/Caddyfile'))
    .replace(/^\{$/m, '{\n\tadmin off')
    .replace(/^relay\.example\.com/m, `http://127.0.0.1:${port}`)
    .replace('127.0.0.1:3001', `127.0.0.1:${relay}`);
  const file = join(folder, `Caddyfile-${port}`);
  await Bun.write(file, shipped);
  const command = [caddy as string, 'run', '--adapter', 'caddyfile', '--config', file];
  return { command, scheme: 'ws' as const };
}

describe.skipIf(!nginx)('nginx', () => {
  test.each([
    ['appending (as shipped), hops:1', undefined, 'hops:1', 'X-Forwarded-For'],
    ['overwriting, 1', 'proxy_set_header X-Forwarded-For $remote_addr;', '1', 'X-Forwarded-For'],
    [
      'X-Real-IP, header:x-real-ip',
      'proxy_set_header X-Real-IP $remote_addr;',
      'header:x-real-ip',
      'X-Real-IP',
    ],
  ])(
    '%s: passes pairings, and a forged address evades no limit',
    async (_, forward, rule, header) => {
      const url = await behind(rule, withNginx(forward));
      await pair(url);
      expect(await lie(url, header)).toEqual(FIVE_FAILURES);
    },
  );

  test('appending with 1 is what the table warns of: each lie is a client of its own', async () => {
    const url = await behind('1', withNginx());
    expect(await lie(url, 'X-Forwarded-For')).toEqual(Array(6).fill('otc_not_found'));
  });

  test('two clients have two counts', async () => {
    const url = await behind(
      'hops:1',
      withNginx('proxy_set_header X-Forwarded-For $http_test_client;'),
    );
    for (let attempt = 1; attempt <= 5; attempt += 1) {
      await ask(url, guess(attempt), { 'Test-Client': '192.0.2.1' });
    }
    expect(await ask(url, guess(6), { 'Test-Client': '192.0.2.1' })).toContain('rate_limited');
    expect(await ask(url, guess(7), { 'Test-Client': '192.0.2.2' })).toContain('otc_not_found');
  });
});

describe.skipIf(!caddy)('Caddy', () => {
  test.each(['hops:1', '1'])(
    '%s: passes pairings, and a forged address evades no limit',
    async (rule) => {
      const url = await behind(rule, withCaddy);
      await pair(url);
      expect(await lie(url, 'X-Forwarded-For')).toEqual(FIVE_FAILURES);
    },
  );
});

interface ComposeFile {
  services: Record<'relay-1', { environment: Record<'AMESH_TRUST_PROXY', string> }> &
    Record<'redis', { command: string[] }>;
}

/** What docker-compose.yml's profile "cluster" starts, on this machine's network. */
async function cluster(): Promise<{ url: string; relays: [TestRelay, TestRelay] }> {
  const { services } = Bun.YAML.parse(await read('docker-compose.yml')) as ComposeFile;
  const relays = (await startInstances(await startRedis(services.redis.command.slice(1)), 2, {
    trustProxy: services['relay-1'].environment.AMESH_TRUST_PROXY,
  })) as [TestRelay, TestRelay];
  const url = await startProxy(async (port) => {
    const shipped = (await read('deploy/cluster.Caddyfile'))
      .replace(/^:3002/m, `http://127.0.0.1:${port}`)
      .replace('relay-1:3001', `127.0.0.1:${relays[0].port}`)
      .replace('relay-2:3001', `127.0.0.1:${relays[1].port}`);
    const file = join(folder, `cluster-${port}`);
    await Bun.write(file, shipped);
    const command = [caddy as string, 'run', '--adapter', 'caddyfile', '--config', file];
    return { command, scheme: 'ws' };
  });
  return { url, relays };
}

describe.skipIf(!caddy || !redisServer)('two relays behind Caddy, by turns', () => {
  test('all is well by amesh-relay check', async () => {
    const { url, relays } = await cluster();
    const command = [process.execPath, join(root, 'bin/amesh-relay.js')];
    const check = Bun.spawn([...command, 'check', url, '--idle', '1'], { stdout: 'pipe' });
    expect(await check.stdout.text()).toContain('All well: a device gets through from here.');
    expect(await check.exited).toBe(0);
    const accepted = relays.map(({ sockets }) => sockets.stats.connectionsAccepted);
    expect(Math.min(...accepted)).toBeGreaterThan(0);
  });

  test('passes pairings, and a forged address evades no limit', async () => {
    const { url } = await cluster();
    await pair(url);
    expect(await lie(url, 'X-Forwarded-For')).toEqual(FIVE_FAILURES);
  });

  test('one that drains is passed over, and one that is gone', async () => {
    const { url, relays } = await cluster();
    for (const relay of relays) {
      relay.sockets.connections.draining = true;
      await untilPassedOver(url, relay);
      await pair(url);
      await pair(url);
      relay.sockets.connections.draining = false;
    }
    await relays[0].server.stop();
    await pair(url);
    await pair(url);
  });
});

/** Until the proxy hands no request to this relay any more: it would answer 503. */
async function untilPassedOver(url: string, relay: TestRelay): Promise<void> {
  const health = url.replace('ws:', 'http:').replace('/ws', '/health');
  for (let well = 0; well < 4;) {
    const { ok } = await fetch(health);
    well = ok ? well + 1 : 0;
    await Bun.sleep(20);
  }
  expect(relay.sockets.connections.draining).toBe(true);
}

describe('no proxy', () => {
  test('unset: a forged address evades no limit', async () => {
    const relay = await createRelayServer({ port: 0, host: '127.0.0.1', logLevel: 'silent' });
    const { url } = await relay.start();
    expect(await lie(url, 'X-Forwarded-For')).toEqual(FIVE_FAILURES);
    await relay.stop();
  });
});
