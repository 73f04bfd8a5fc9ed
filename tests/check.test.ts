import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test';
import { mkdtemp, rm } from 'node:fs/promises';
import { once } from 'node:events';
import http from 'node:http';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createHistogram } from 'node:perf_hooks';
import { announce, connect } from '../src/client/client.ts';
import {
  createRuns,
  lineOf,
  MIN_EVERY_SECONDS,
  repeat,
  type Run,
  summaryOf,
} from '../src/check/every.ts';
import { serveRegistry } from '../src/observe/metrics.ts';
import { Probe } from '../src/check/probe.ts';
import type { RelayOptions } from '../src/config.ts';
import { createRelayServer } from '../src/index.ts';
import type { ProblemCode } from '../src/check/problems.ts';
import { type Step, takeAll, wireTasks } from '../src/check/steps.ts';
import { generate } from 'selfsigned';
import { startPrivateRelay } from './private-relay.ts';
import { freePorts, startRelay as startTestRelay, within } from './support.ts';

// One step may wait ten seconds for an answer.
setDefaultTimeout(20_000);

const COMMAND = join(import.meta.dir, '../bin/amesh-relay.js');
const cleanUps: (() => unknown)[] = [];
afterAll(async () => {
  for (const cleanUp of cleanUps.reverse()) await cleanUp();
});

interface Outcome {
  exit: number;
  ok: boolean;
  steps: Step[];
  /** The last step that was not all well. */
  problem: Step | undefined;
}

function run(args: string[], environment: Record<string, string> = {}) {
  return Bun.spawn([process.execPath, COMMAND, 'check', ...args], {
    stdout: 'pipe',
    stderr: 'pipe',
    env: { ...process.env, ...environment },
  });
}

async function check(args: string[], environment?: Record<string, string>): Promise<Outcome> {
  const idle = args.includes('--idle') ? [] : ['--idle', '0'];
  const child = run(['--json', ...idle, ...args], environment);
  const { ok, steps } = (await new Response(child.stdout).json()) as Outcome;
  const problem = steps.findLast(({ status }) => status !== 'ok');
  return { exit: await child.exited, ok, steps, problem };
}

async function startRelay(
  options: RelayOptions = {},
): Promise<{ url: string; port: number; stop: () => Promise<void> }> {
  const relay = await createRelayServer({
    port: 0,
    host: '127.0.0.1',
    logLevel: 'silent',
    maxWatches: 1000,
    ...options,
  });
  cleanUps.push(() => relay.stop());
  return { ...(await relay.start()), stop: () => relay.stop() };
}

function serve(answer: (request: Request) => Response): string {
  const server = Bun.serve({ port: 0, hostname: '127.0.0.1', fetch: answer });
  cleanUps.push(() => server.stop(true));
  return `ws://127.0.0.1:${server.port}`;
}

/** What a failed check is to say, in a word and in words. */
function expectFailure(outcome: Outcome, problem: ProblemCode, ...words: string[]): void {
  expect(outcome.problem?.problem).toBe(problem);
  expect([outcome.exit, outcome.ok, outcome.problem?.status]).toEqual([1, false, 'failed']);
  const { found, means, change } = outcome.problem as Step;
  for (const word of words) expect(`${found} ${means} ${change}`).toContain(word);
}

function expectWarning(outcome: Outcome, problem: ProblemCode, ...words: string[]): void {
  expect(outcome.problem?.problem).toBe(problem);
  expect([outcome.exit, outcome.ok, outcome.problem?.status]).toEqual([0, true, 'warning']);
  const { found, means, change } = outcome.problem as Step;
  for (const word of words) expect(`${found} ${means} ${change}`).toContain(word);
}

describe('a relay that is well', () => {
  test('every step, in order, with its time', async () => {
    const { url } = await startRelay();
    const { exit, steps } = await check([url]);
    expect(exit).toBe(0);
    expect(steps.map(({ name, status }) => `${name} ${status}`)).toEqual(
      'name connect health upgrade address code peer roundtrips large disconnect verdict bootstrap instances'
        .split(' ')
        .map((name) => `${name} ok`),
    );
    for (const { ms } of steps) expect(ms).toBeGreaterThanOrEqual(0);
    const facts = Object.assign({}, ...steps.map((step) => step.facts));
    expect(facts).toMatchObject({
      address: '127.0.0.1',
      source: 'peer',
      sessions: 0,
      pairings: 5,
    });
    expect(facts.p99Ms).toBeGreaterThanOrEqual(facts.p50Ms);
  });

  test('in plain words where there is no terminal', async () => {
    const { url } = await startRelay();
    const child = run([url, '--idle', '1'], { FORCE_COLOR: '' });
    const text = await new Response(child.stdout).text();
    expect(text).not.toContain('\u001b');
    expect(text).toContain('ok      Verdict before goodbye');
    expect(text).toEndWith('All well: a device gets through from here.\n');
    expect(await child.exited).toBe(0);
  });

  test('counts as pairings that were completed, and as bootstraps that were answered', async () => {
    const { url, sockets } = await startTestRelay();
    expect((await check([url, '--idle', '1'])).exit).toBe(0);
    const { begun, ended, bootstraps } = sockets.stats;
    expect(begun).toBe(5);
    expect(ended).toEqual({ completed: 5, expired: 0, abandoned: 0 });
    expect(bootstraps).toMatchObject({ watched: 2, acknowledged: 2, expired: 0, abandoned: 0 });
  });

  test('twelve checks within a minute: watches that are used up are a warning', async () => {
    const { url } = await startRelay({ maxWatches: 10, maxListens: 60 });
    for (let round = 1; round <= 10; round += 1)
      expect((await check([url])).problem).toBeUndefined();
    for (let round = 11; round <= 12; round += 1) {
      const outcome = await check([url, '--idle', '1']);
      expectWarning(outcome, 'rate_limited', 'no fault of the relay');
      const warned = outcome.steps.filter(({ status }) => status === 'warning');
      expect(warned.map(({ name }) => name)).toEqual(['bootstrap', 'idle']);
    }
  });

  test('its output may be cut', async () => {
    const { url } = await startRelay();
    const command = `"${process.execPath}" "${COMMAND}" check ${url} --idle 2 | head -2`;
    const shell = Bun.spawn(['bash', '-o', 'pipefail', '-c', command], {
      stdout: 'pipe',
      stderr: 'pipe',
    });
    expect(await shell.stdout.text()).toStartWith('Checking ws://');
    expect(await shell.stderr.text()).toBe('');
    // As of any program whose output nobody reads any more.
    expect(await shell.exited).toBe(141);
  });

  test('with its page turned off', async () => {
    const { url } = await startRelay({ page: false });
    const { exit, steps } = await check([url]);
    expect(exit).toBe(0);
    expect(steps.find(({ name }) => name === 'address')?.found).toContain('AMESH_PAGE=0?');
  });

  test('--idle keeps a socket quiet', async () => {
    const { url } = await startRelay({ idleMs: 1000 });
    const { exit, steps } = await check([url, '--idle', '2']);
    expect(exit).toBe(0);
    expect(steps.at(-1)).toMatchObject({ name: 'idle', status: 'ok' });
    expect(steps.at(-1)?.ms).toBeGreaterThanOrEqual(2000);
  });

  test('--wait for one that is still coming up', async () => {
    const asked = Promise.withResolvers<void>();
    const earlier = Bun.serve({
      port: 0,
      hostname: '127.0.0.1',
      fetch: () => {
        asked.resolve();
        return new Response('', { status: 502 });
      },
    });
    const { port } = earlier as { port: number };
    const child = run(['--wait', '15', '--idle', '0', '--json', `ws://127.0.0.1:${port}/ws`]);
    await asked.promise;
    await earlier.stop(true);
    await startRelay({ port });
    expect(await child.exited).toBe(0);
  });
});

describe('no relay to be had', () => {
  // Ten seconds of silence: begun first, looked at last.
  let silent: Promise<Outcome>;
  beforeAll(() => {
    const mute = net.createServer(() => {}).listen(0, '127.0.0.1');
    cleanUps.push(() => mute.close());
    mute.once('listening', () => {
      silent = check([`ws://127.0.0.1:${(mute.address() as net.AddressInfo).port}/ws`]);
    });
  });

  test('a name that does not exist', async () => {
    expectFailure(await check(['wss://nobody.invalid/ws']), 'name_unknown', 'nobody.invalid');
  });

  test('a port that nobody listens on', async () => {
    const [port] = freePorts(1) as [number];
    expectFailure(await check([`ws://127.0.0.1:${port}/ws`]), 'refused', `port ${port}`);
  });

  test('another path', async () => {
    const { url } = await startRelay();
    for (const path of ['/', '/websocket', '/wss']) {
      expectFailure(await check([url.replace('/ws', path)]), 'wrong_path', `Use ${url}`);
    }
  });

  test('a prefix that nobody takes off', async () => {
    const { port } = await startRelay();
    const proxy = serve((request) => {
      // Forwards what begins with /relay, as it is.
      const { pathname } = new URL(request.url);
      return pathname.startsWith('/relay')
        ? (fetch(`http://127.0.0.1:${port}${pathname}`) as never)
        : new Response('a site', { status: 404 });
    });
    const outcome = await check([`${proxy}/relay/ws`]);
    expectFailure(outcome, 'path_not_stripped', '/relay/ws', 'proxy_pass http://HOST:3001/;');
  });

  test('another site', async () => {
    const page = () => new Response('<h1>hello', { headers: { 'content-type': 'text/html' } });
    expectFailure(await check([`${serve(page)}/ws`]), 'not_a_relay', 'status 200, text/html');
    const lost = () => new Response('no', { status: 404 });
    expectFailure(await check([`${serve(lost)}/ws`]), 'not_a_relay', 'status 404');
  });

  test('a redirect, a login, a proxy without its relay, one that drains, one without its Redis', async () => {
    const redirect = serve(() => Response.redirect('https://relay.example.com/ws', 301));
    expectFailure(await check([`${redirect}/ws`]), 'redirected', 'https://relay.example.com/ws');
    const login = serve(() => new Response('', { status: 401 }));
    expectFailure(await check([`${login}/ws`]), 'forbidden', '401');
    const broken = serve(() => new Response('', { status: 502 }));
    expectFailure(await check([`${broken}/ws`]), 'bad_gateway', '502');
    const status = (word: string) => () =>
      Response.json({ status: word, sessions: 2 }, { status: 503 });
    expectFailure(await check([`${serve(status('draining'))}/ws`]), 'draining', '2 sessions');
    expectFailure(await check([`${serve(status('unavailable'))}/ws`]), 'redis_lost', 'REDIS_URL');
  });

  test('a relay that takes only small frames, and one that has had enough of us', async () => {
    const { url } = await startRelay({ maxFrameBytes: 8192 });
    expectFailure(await check([url]), 'frame_limit', 'AMESH_MAX_FRAME_BYTES');
    const strict = await startRelay({ maxFailedCodes: 1 });
    await connect(strict.url, '000000').catch(() => {});
    expectFailure(await check([strict.url]), 'rate_limited', 'Wait a minute');
    const full = await startRelay({ maxConnections: 1 });
    expectFailure(await check([full.url]), 'full', 'AMESH_MAX_CONNECTIONS');
  });

  test('wrong usage', async () => {
    const wrong = [
      ['https://relay.example.com'],
      ['relay.example.com'],
      ['--idle', '291'],
      ['--wait', '0'],
      ['wss://user:secret-secret-secret@relay.example.com/ws'],
      ['wss://relay.example.com/ws?token=secret-secret-secret#x'],
      ['--wait', 'long'],
      ['--loud'],
      ['--every', '14'],
      ['--every', '3601'],
      ['--every', 'minute'],
      ['--every', '60', '--idle', '60'],
      ['--every', '60', '--metrics-port', '99999'],
      ['--metrics-port', '9092'],
      ['ws://a/ws', 'ws://b/ws'],
    ];
    const tries = wrong.map(async (args) => {
      const child = run(args);
      const text = (await new Response(child.stderr).text()).trim();
      expect(text).toMatch(/^amesh-relay: .+$/);
      expect(text).not.toContain('secret');
      expect(await child.exited).toBe(2);
    });
    await Promise.all(tries);
  });

  test('somebody who takes the connection and says nothing', async () => {
    expectFailure(await silent, 'no_answer', 'within 10 s');
  });
});

describe('a private relay', () => {
  const TOKEN = 'a-token-for-the-check_0123';
  let open: string;
  let door: string;
  beforeAll(async () => {
    open = (await startRelay()).url;
    const started = startPrivateRelay(open, TOKEN);
    cleanUps.push(started.stop);
    door = started.url;
  });

  test.each([
    ['--token', () => [door, '--token', TOKEN], {}],
    ['the URL', () => [`${door}?token=${TOKEN}`], {}],
    ['the environment', () => [door], { AMESH_ACCESS_TOKEN: TOKEN }],
  ] as const)('lets in who has the token in %s, and it is not shown', async (_, args, env) => {
    for (const json of [[], ['--json']]) {
      const child = run([...args(), '--idle', '0', ...json], env);
      const [said, complained] = await Promise.all([child.stdout.text(), child.stderr.text()]);
      expect(await child.exited).toBe(0);
      expect(said).toContain('/ws?token=…');
      expect(said + complained).not.toContain(TOKEN);
    }
  });

  test('says what is wrong with the token', async () => {
    expectFailure(await check([door]), 'access_token_missing', 'AMESH_ACCESS_TOKEN');
    expectFailure(await check([door, '--token', 'no-such-token-0123456']), 'access_token_wrong');
    const lost = startPrivateRelay(open, TOKEN, { keepsQuery: false });
    cleanUps.push(lost.stop);
    expectFailure(await check([lost.url, '--token', TOKEN]), 'access_token_lost', '?token=');
    const missingPath = await check([door.replace('/ws', '/'), '--token', TOKEN]);
    expectFailure(missingPath, 'wrong_path', `Use ${door}?token=…`);
  });

  test('that had enough of us', async () => {
    const busy = serve(() => Response.json({ error: 'too_many_wrong_tokens' }, { status: 429 }));
    expectFailure(await check([`${busy}/ws`]), 'too_many_requests', 'wrong access tokens');
  });
});

describe('behind an HTTP proxy for the way out', () => {
  const asked: string[] = [];
  let proxy: string;
  let relay: { url: string; port: number };

  beforeAll(async () => {
    relay = await startRelay();
    const server = http.createServer((_request, response) => response.writeHead(501).end());
    server.on('connect', ({ url = '', headers }: http.IncomingMessage, client: net.Socket) => {
      asked.push(`${url} ${headers['proxy-authorization']}`);
      if (!url.startsWith('relay.invalid:')) return client.end('HTTP/1.1 403 Forbidden\r\n\r\n');
      const upstream = net.connect(relay.port, '127.0.0.1', () => {
        client.write('HTTP/1.1 200 OK\r\n\r\n');
        client.pipe(upstream).pipe(client);
      });
      for (const socket of [client, upstream]) socket.on('error', () => socket.destroy());
      return undefined;
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    cleanUps.push(() => server.close());
    proxy = `127.0.0.1:${(server.address() as net.AddressInfo).port}`;
  });

  test('goes through it, although the name is known to the proxy alone', async () => {
    const url = 'ws://relay.invalid:8080/ws';
    const outcome = await check([url], { HTTP_PROXY: `http://user:pass%20word@${proxy}` });
    expect([outcome.exit, outcome.problem]).toEqual([0, undefined]);
    expect(outcome.steps[1]?.found).toBe(`through the HTTP proxy ${proxy}`);
    expect(new Set(asked)).toEqual(new Set([`relay.invalid:8080 Basic ${btoa('user:pass word')}`]));
  });

  test('says so where the proxy does not let it through, or is none', async () => {
    const url = 'wss://other.invalid/ws';
    const refused = await check([url], { HTTPS_PROXY: `http://${proxy}` });
    expectFailure(refused, 'proxy_unusable', 'status 403', 'NO_PROXY=other.invalid');
    const [port] = freePorts(1) as [number];
    const closed = await check([url], { https_proxy: `http://127.0.0.1:${port}` });
    expectFailure(closed, 'proxy_unusable', `port ${port} on 127.0.0.1 is closed`);
    const socks = await check([url], { HTTPS_PROXY: `socks5://${proxy}` });
    expectFailure(socks, 'proxy_unusable', 'does not begin with http:// or https://');
    // Neither is an encoded character: %er is no number, and %ff no UTF-8.
    for (const user of ['us%er', 'us%ff']) {
      const outcome = await check([url], { HTTPS_PROXY: `http://${user}:password@${proxy}` });
      expectFailure(outcome, 'proxy_unusable', 'holds a % that must be written as %25');
    }
  });

  test('goes past it where NO_PROXY says so', async () => {
    const environment = { HTTP_PROXY: `http://${proxy}`, NO_PROXY: '127.0.0.1' };
    const { exit, steps } = await check([relay.url], environment);
    expect([exit, steps[0]?.found]).toEqual([0, '127.0.0.1 is an address already']);
  });
});

test('nothing that a hostile server says reaches the terminal raw', async () => {
  const evil = '\u001b[2J\u001b]0;owned\u0007\u009b31m\u202etxt\r\nX-Injected: yes\u0000';
  let asked: Headers[] = [];
  const server = Bun.serve({
    port: 0,
    hostname: '127.0.0.1',
    fetch: (request, bun) => {
      asked.push(request.headers);
      if (bun.upgrade(request)) return undefined;
      if (request.url.endsWith('/health')) return Response.json({ status: 'ok', sessions: evil });
      const client = { address: '10.0.0.1', source: `x\r\nx-injected: yes` };
      return Response.json({ client, websocket: evil, private: evil });
    },
    websocket: {
      message: (ws) => {
        ws.send(JSON.stringify({ type: `${evil}${'long '.repeat(10_000)}` }));
      },
    },
  });
  cleanUps.push(() => server.stop(true));
  const missing = serve(() =>
    Response.json({ error: 'upgrade_required', missing: [evil] }, { status: 400 }),
  );
  const moved = serve(
    () =>
      new Response(evil, {
        status: 302,
        headers: { location: 'https://a/\u009b31m', server: 'x' },
      }),
  );
  for (const url of [`ws://127.0.0.1:${server.port}/ws`, `${missing}/ws`, `${moved}/ws`]) {
    for (const json of [[], ['--json']]) {
      const child = run([url, ...json]);
      const [said, complained] = await Promise.all([child.stdout.text(), child.stderr.text()]);
      expect(await child.exited).toBe(1);
      expect(complained).toBe('');
      expect(said.length).toBeLessThan(5000);
      expect(said.replaceAll('\n', '')).not.toMatch(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/u);
    }
  }
  expect(asked.some((headers) => headers.has('x-injected'))).toBe(false);
});

const openssl = Bun.which('openssl');
if (!openssl) console.warn('check: TLS not tested, since there is no openssl');

describe.skipIf(!openssl)('TLS', () => {
  let folder: string;
  const path = (name: string): string => join(folder, name);
  const make = (...args: string[]): void => {
    const { success, stderr } = Bun.spawnSync([openssl as string, ...args], { cwd: folder });
    if (!success) throw new Error(stderr.toString());
  };

  function certify(name: string, host: string, days: number): void {
    const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
    const alt = ['-addext', `subjectAltName=DNS:${host}`];
    make(
      'req',
      ...key,
      '-keyout',
      `${name}.key`,
      '-out',
      `${name}.csr`,
      '-subj',
      `/CN=${host}`,
      ...alt,
    );
    const authority = [
      '-CA',
      'ca.pem',
      '-CAkey',
      'ca.key',
      '-CAcreateserial',
      '-copy_extensions',
      'copy',
    ];
    make(
      'x509',
      '-req',
      '-in',
      `${name}.csr`,
      '-out',
      `${name}.pem`,
      '-days',
      `${days}`,
      ...authority,
    );
  }

  async function tlsRelay(name: string): Promise<string> {
    const { port } = await startRelay({
      tlsCertFile: path(`${name}.pem`),
      tlsKeyFile: path(`${name}.key`),
    });
    return `wss://localhost:${port}/ws`;
  }

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'relay-tls-'));
    cleanUps.push(() => rm(folder, { recursive: true }));
    const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
    const own = ['req', '-x509', ...key, '-days', '60'];
    make(...own, '-keyout', 'ca.key', '-out', 'ca.pem', '-subj', '/O=Test/CN=Authority');
    make(
      ...own,
      '-keyout',
      'self.key',
      '-out',
      'self.pem',
      '-subj',
      '/CN=localhost',
      '-addext',
      'subjectAltName=DNS:localhost',
    );
    certify('good', 'localhost', 60);
    certify('expired', 'localhost', -1);
    certify('other', 'other.example', 60);
  });

  const trusting = () => ({ NODE_EXTRA_CA_CERTS: path('ca.pem') });

  test('a good certificate: its issuer and the days left', async () => {
    const { exit, steps } = await check([await tlsRelay('good')], trusting());
    expect(exit).toBe(0);
    expect(steps.find(({ name }) => name === 'tls')).toMatchObject({
      found: 'by Test Authority, 59 days left',
      facts: { issuer: 'Test Authority', daysLeft: 59 },
    });
  });

  test.each([
    ['90 days, 20 left', 90, 20.5, '20 days left', false],
    ['90 days, 10 left', 90, 10.5, '10 days left', true],
    ['45 days, 11 left', 45, 11.5, '11 days left', false],
    ['45 days, 8 left', 45, 8.5, '8 days left', true],
    ['6 days, 3 left', 6, 3.5, '3 days left', false],
    ['6 days, a day left', 6, 1.1, '26 hours left', true],
    ['a year, 20 days left', 365, 20.5, '20 days left', false],
  ])('judged by its lifetime: %s', async (_, lifetime, left, words, isSoon) => {
    const day = 86_400_000;
    const pem = await generate([{ name: 'commonName', value: 'localhost' }], {
      notBeforeDate: new Date(Date.now() - (lifetime - left) * day),
      notAfterDate: new Date(Date.now() + left * day),
      extensions: [{ name: 'subjectAltName', altNames: [{ type: 2, value: 'localhost' }] }],
    });
    const name = `life-${lifetime}-${left}`;
    await Promise.all([
      Bun.write(path(`${name}.pem`), pem.cert),
      Bun.write(path(`${name}.key`), pem.private),
    ]);
    const url = await tlsRelay(name);
    const { steps } = await check([url], { NODE_EXTRA_CA_CERTS: path(`${name}.pem`) });
    const step = steps.find((it) => it.name === 'tls') as Step;
    expect([step.problem, step.found]).toEqual([
      isSoon ? 'tls_expires_soon' : undefined,
      `by localhost, ${words}`,
    ]);
  });

  test('one that has ended', async () => {
    expectFailure(
      await check([await tlsRelay('expired')], trusting()),
      'tls_expired',
      'Test Authority',
    );
  });

  test('one for another name, one signed by itself, one by a stranger', async () => {
    const other = await check([await tlsRelay('other')], trusting());
    expectFailure(other, 'tls_wrong_name', 'other.example', 'localhost');
    expectFailure(await check([await tlsRelay('self')]), 'tls_untrusted', 'signed by itself');
    const stranger = await check([await tlsRelay('good')]);
    expectFailure(stranger, 'tls_untrusted', 'Test Authority', 'fullchain.pem');
  });

  test('wss:// to a port without TLS, and ws:// to one with it', async () => {
    const { url } = await startRelay();
    expectFailure(await check([url.replace('ws:', 'wss:')]), 'tls_missing', 'Use ws://');
    const secure = await tlsRelay('good');
    expectFailure(await check([secure.replace('wss:', 'ws:')]), 'cut', 'wss://');
  });
});

const nginx = Bun.which('nginx') ?? Bun.which('nginx', { PATH: '/usr/sbin' });
if (!nginx) console.warn('check: nothing tested behind nginx, since there is none');

describe.skipIf(!nginx)('behind nginx', () => {
  const WEBSOCKET =
    'proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $forwarded_connection;';
  const FORWARDED = 'proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;';
  const sites = [
    ...(['plain', 'deaf', 'split', 'trusted', 'forgeable', 'hasty', 'lost'] as const),
    'noPages',
  ] as const;
  const urls = {} as Record<(typeof sites)[number], string>;

  beforeAll(async () => {
    const folder = await mkdtemp(join(tmpdir(), 'relay-nginx-'));
    const [one, two, hop, left] = await Promise.all([
      startRelay(),
      startRelay(),
      startRelay({ trustProxy: 'hops:1' }),
      startRelay({ trustProxy: true }),
    ]);
    const [nobody, ...ports] = freePorts(sites.length + 1) as [number, ...number[]];
    const site = (index: number, upstream: string, settings: string): string =>
      `server { listen 127.0.0.1:${ports[index]}; location / { proxy_pass http://${upstream}; ${settings} } }`;
    const local = (port: number): string => `127.0.0.1:${port}`;
    const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi']
      .map((kind) => `${kind}_temp_path ${folder}/${kind};`)
      .join(' ');
    await Bun.write(
      join(folder, 'nginx.conf'),
      `daemon off; pid ${folder}/pid; error_log ${folder}/error.log; events {}
      http {
        access_log off; ${temporary}
        map $http_upgrade $forwarded_connection { default upgrade; '' close; }
        upstream both { server ${local(one.port)}; server ${local(two.port)}; }
        ${site(0, local(one.port), WEBSOCKET)}
        ${site(1, local(one.port), '')}
        ${site(2, 'both', WEBSOCKET)}
        ${site(3, local(hop.port), `${WEBSOCKET + FORWARDED} proxy_set_header Host $http_host;`)}
        ${site(4, local(left.port), WEBSOCKET + FORWARDED)}
        ${site(5, local(hop.port), `${WEBSOCKET + FORWARDED} proxy_read_timeout 1s;`)}
        ${site(6, local(nobody), WEBSOCKET)}
        ${site(7, local(hop.port), `${WEBSOCKET + FORWARDED} if ($http_origin) { return 403; }`)}
      }`,
    );
    sites.forEach((name, index) => (urls[name] = `ws://127.0.0.1:${ports[index]}/ws`));
    const proxy = Bun.spawn([nginx as string, '-c', join(folder, 'nginx.conf')], {
      stderr: 'inherit',
    });
    cleanUps.push(async () => {
      proxy.kill();
      await proxy.exited;
      await rm(folder, { recursive: true });
    });
    while (!(await fetch(`http://127.0.0.1:${ports[0]}/health`).catch(() => undefined))) {
      if (proxy.exitCode !== null) throw new Error('nginx did not start');
    }
  });

  test('the proxy setting is missing', async () => {
    expectWarning(
      await check([urls.plain]),
      'proxy_not_trusted',
      'nginx',
      'all clients count as one',
      'AMESH_TRUST_PROXY',
    );
  });

  test('the Upgrade header is swallowed', async () => {
    expectFailure(
      await check([urls.deaf]),
      'upgrade_swallowed',
      'upgrade: missing',
      'proxy_set_header Upgrade',
    );
  });

  test('two instances that do not know each other', async () => {
    expectFailure(
      await check([urls.split]),
      'instances_apart',
      'do not know each other',
      'REDIS_URL',
    );
  });

  test('the proxy setting is right', async () => {
    const { exit, problem, steps } = await check([urls.trusted]);
    expect([exit, problem]).toEqual([0, undefined]);
    expect(steps.find(({ name }) => name === 'address')?.facts).toEqual({
      address: '127.0.0.1',
      source: 'x-forwarded-for',
    });
  });

  test('the proxy setting believes what a client makes up', async () => {
    expectWarning(await check([urls.forgeable]), 'address_forgeable', 'hops:1');
  });

  test('web pages are turned away', async () => {
    const origin = urls.noPages.replace('ws:', 'http:').replace('/ws', '');
    expectWarning(
      await check([urls.noPages]),
      'origin_refused',
      `AMESH_ALLOWED_ORIGINS=${origin}`,
      'proxy_set_header Host $http_host',
    );
  });

  test('a relay that stops while the check waits drains, and nothing cut the connection', async () => {
    const relay = createRelayServer({ port: 0, host: '127.0.0.1', logLevel: 'silent' });
    const { url } = await (await relay).start();
    const steps = await takeAll(wireTasks(url, 30).slice(-1), {
      begin() {},
      progress: async () => (await relay).stop(),
      end() {},
    });
    expect(steps).toMatchObject([{ name: 'idle', status: 'failed', problem: 'draining' }]);
  });

  test('quiet sockets are cut', async () => {
    const outcome = await check([urls.hasty, '--idle', '9']);
    expectFailure(outcome, 'idle_cut', 'proxy_read_timeout');
    expect(outcome.problem?.ms).toBeLessThan(8000);
  });

  test('the relay behind it is down', async () => {
    expectFailure(await check([urls.lost]), 'bad_gateway', 'status 502 from nginx');
  });
});

test('instances apart are found out by bootstraps too, and by chance only half of the time', async () => {
  // Two that meet in every other pairing, as behind a proxy that chooses at random.
  const relays = await Promise.all([startRelay(), startRelay()]);
  const choices = [0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
  let next = 0;
  const proxy = net.createServer((client) => {
    const { port } = relays[choices[next++ % choices.length] as number] as { port: number };
    const upstream = net.connect(port, '127.0.0.1');
    client.pipe(upstream).pipe(client);
    for (const socket of [client, upstream]) socket.on('error', () => socket.destroy());
  });
  const listening = Promise.withResolvers<void>();
  proxy.listen(0, '127.0.0.1', listening.resolve);
  await listening.promise;
  cleanUps.push(() => proxy.close());
  const outcome = await check([`ws://127.0.0.1:${(proxy.address() as net.AddressInfo).port}/ws`]);
  expectFailure(outcome, 'instances_apart', 'REDIS_URL');
});

test('a check leaves nothing behind', async () => {
  const { url, port } = await startRelay();
  expect((await check([url])).exit).toBe(0);
  const health = await fetch(`http://127.0.0.1:${port}/health`);
  expect(await health.json()).toEqual({ status: 'ok', sessions: 0 });
  expect(
    await announce(url, { jti: 'check', token: '', targetPubKey: '' }).catch(
      (error: { code: string }) => error.code,
    ),
  ).toBe('no_watcher');
});

const canUnshare = Bun.spawnSync(['unshare', '--net', '--mount', 'true']).success;
if (!canUnshare)
  console.warn('SKIPPED: no network namespace to be had here, so no route is missing');

test.skipIf(!canUnshare)(
  'no route is told from a closed port, and does not count where there is another way',
  async () => {
    const folder = await mkdtemp(join(tmpdir(), 'relay-route-'));
    cleanUps.push(() => rm(folder, { recursive: true }));
    const hosts =
      '127.0.0.1 localhost\n127.0.0.1 both.test\n2001:db8::1 both.test\n2001:db8::1 six.test\n192.0.2.1 four.test\n';
    await Bun.write(join(folder, 'hosts'), hosts);
    const [port] = freePorts(1) as [number];
    const urls = ['both', 'six', 'four'].map((name) => `ws://${name}.test:${port}/ws`);
    // In a namespace of its own a machine has a loopback interface, and no route to anywhere.
    const script = `ip link set lo up && mount --bind ${folder}/hosts /etc/hosts || exit 9
    LOG_LEVEL=info "$1" "$2" --host 127.0.0.1 --port ${port} > ${folder}/log & relay=$!
    until grep -q listening ${folder}/log; do sleep 0.05; done
    for url in ${urls.join(' ')} ws://127.0.0.1:1/ws; do "$1" "$2" check --json --idle 0 $url; echo ,; done
    kill $relay`;
    const child = Bun.spawn(
      ['unshare', '--net', '--mount', 'sh', '-c', script, 'sh', process.execPath, COMMAND],
      { stdout: 'pipe' },
    );
    const text = await child.stdout.text();
    const outcomes = JSON.parse(`[${text.trim().replace(/,$/, '')}]`) as Outcome[];
    const seen = outcomes.map(({ ok, steps }) => [ok, steps.at(-1)?.problem]);
    expect(seen).toEqual([
      [true, undefined],
      [false, 'no_route'],
      [false, 'no_route'],
      [false, 'refused'],
    ]);
    expect(outcomes[0]?.steps[1]?.found).toContain('no route from here to 2001:db8::1');
  },
);

describe('--every', () => {
  /** What one run of the command does, without the time that it would leave a socket quiet. */
  function look(url: string, { idle = false } = {}): Promise<Step[]> {
    const wire = wireTasks(url, idle ? 1 : 0, AbortSignal.abort());
    return takeAll([...new Probe(new URL(url)).tasks(), ...wire]);
  }

  /** Repeats a check so many times; `between` happens in each pause. */
  async function repeated(
    count: number,
    check: () => Promise<Step[]>,
    between: (ms: number, run: number) => unknown = () => {},
  ): Promise<Run[]> {
    const runs: Run[] = [];
    const pause = async (ms: number): Promise<unknown> => between(ms, runs.length);
    for await (const run of repeat(MIN_EVERY_SECONDS * 1000, check, pause)) {
      if (runs.push(run) === count) break;
    }
    return runs;
  }

  test('as often as it may, it stays within the limits of a relay for one address', async () => {
    const relay = await startTestRelay();
    const check = () => look(relay.url, { idle: true });
    const runs = await repeated(9, check, () => relay.pass(MIN_EVERY_SECONDS * 1000));
    expect(runs.map(lineOf).filter((line) => !/Z  ok +\S+ m?s$/.test(line))).toEqual([]);
    expect(relay.sockets.stats.refusals.rate_limited).toBe(0);
    // There is no room for two runs more in the same minute.
    const hasty = await repeated(3, check, () => relay.pass(1000));
    expect(hasty.map(({ steps }) => steps.at(-1)?.problem)).toContain('rate_limited');
  });

  test('where instances do not know each other, it says so each time, and is not held off for it', async () => {
    // A run opens seven connections. The last, that of the controller, leads to an instance that knows nothing of the code.
    const [first, second] = await Promise.all([startTestRelay(), startTestRelay()]);
    let next = 0;
    const proxy = net.createServer((client) => {
      const { port } = ++next % 7 === 0 ? second : first;
      const upstream = net.connect(port, '127.0.0.1');
      client.pipe(upstream).pipe(client);
      for (const socket of [client, upstream]) socket.on('error', () => socket.destroy());
    });
    proxy.listen(0, '127.0.0.1');
    await once(proxy, 'listening');
    cleanUps.push(() => proxy.close());
    const url = `ws://127.0.0.1:${(proxy.address() as net.AddressInfo).port}/ws`;
    const runs = await repeated(
      7,
      () => look(url),
      () => [first, second].map((relay) => relay.pass(MIN_EVERY_SECONDS * 1000)),
    );
    expect(runs.map(({ steps }) => steps.at(-1)?.problem)).toEqual(
      Array(7).fill('instances_apart'),
    );
    expect(second.sockets.stats.refusals.otc_not_found).toBe(7);
  });

  test('a relay that goes away and comes back; runs begin at whole multiples of the time', async () => {
    const first = await startRelay();
    const pauses: number[] = [];
    const metrics = await createRuns();
    const server = serveRegistry(metrics.registry, '127.0.0.1', 0);
    cleanUps.push(server.stop);
    const scrape = async (): Promise<string> =>
      (await fetch(`http://127.0.0.1:${server.port}/metrics`)).text();
    const before = await scrape();
    expect(before).not.toMatch(/^amesh_relay_check_(?:success|last_run_timestamp_seconds) /m);
    expect(before).toContain('amesh_relay_check_runs_total{result="failed"} 0');

    const relays = [first];
    const scraped: string[] = [];
    const runs = await repeated(
      3,
      () => look(first.url),
      async (ms, run) => {
        pauses.push(ms);
        if (run === 1) await relays[0]?.stop();
        if (run === 2) relays.push(await startRelay({ port: first.port }));
      },
    );
    for (const run of runs) {
      metrics.record(run);
      scraped.push(await scrape());
    }
    expect(runs.map(({ ok }) => ok)).toEqual([true, false, true]);
    expect(lineOf(runs[1] as Run)).toMatch(
      /^20\S+Z  failed +\S+ ms  Connected: port \d+ .+ \(refused\)$/,
    );
    expect(scraped.map((text) => /^amesh_relay_check_success (\d)$/m.exec(text)?.[1])).toEqual([
      '1',
      '0',
      '1',
    ]);
    const [, failed = '', last = ''] = scraped;
    expect(last).toContain('amesh_relay_check_step_seconds{step="roundtrips"}');
    expect(failed).not.toContain('roundtrips');
    expect(last).toContain('amesh_relay_check_runs_total{result="ok"} 2');
    expect(last).toContain('amesh_relay_check_runs_total{result="failed"} 1');
    const ended = Number(/^amesh_relay_check_last_run_timestamp_seconds (\S+)$/m.exec(last)?.[1]);
    expect(Math.abs(Date.now() / 1000 - ended)).toBeLessThan(60);
    expect(new Set([...last.matchAll(/(\w+)="/g)].map(([, label]) => label))).toEqual(
      new Set(['step', 'result']),
    );
    const times = createHistogram();
    for (const { ms, ok } of runs) if (ok) times.record(ms);
    expect(summaryOf(times, 1, 30)).toEqual({
      runs: 3,
      failures: 1,
      medianMs: Math.min(runs[0]?.ms as number, runs[2]?.ms as number),
      slowestMs: Math.max(runs[0]?.ms as number, runs[2]?.ms as number),
      seconds: 30,
    });
    for (const ms of pauses) expect(ms).toBeWithin(1, MIN_EVERY_SECONDS * 1000);

    const promtool = Bun.which('promtool');
    if (!promtool) console.warn('check: metrics not tried with promtool, since there is none');
    else {
      const tool = Bun.spawnSync([promtool, 'check', 'metrics'], { stdin: Buffer.from(last) });
      expect([String(tool.stdout), String(tool.stderr), tool.exitCode]).toEqual(['', '', 0]);
    }
  });

  /** The command, its first run, and what it says when it is told to stop. */
  async function stopped(signal: NodeJS.Signals, ...args: string[]) {
    const child = run(args);
    let text = '';
    let isStopped = false;
    for await (const chunk of child.stdout.pipeThrough(new TextDecoderStream())) {
      text += chunk;
      if (isStopped || !/^.*(?:"ok":|Z  \w+).*\n/m.test(text)) continue;
      isStopped = true;
      child.kill(signal);
    }
    return { lines: text.trimEnd().split('\n'), exit: await child.exited };
  }

  test('a summary at SIGINT, in words', async () => {
    const { url } = await startRelay();
    const [port] = freePorts(1) as [number];
    const args = [url, '--every', '60', '--metrics-port', String(port)];
    const { lines, exit } = await stopped('SIGINT', ...args);
    expect(lines).toEqual([
      `Checking ${url} from here every 60 s, with metrics on port ${port}`,
      expect.stringMatching(/^20\d\d-\S+Z  ok +\S+ m?s$/),
      expect.stringMatching(/^1 run in \d+ s, none failed; median \S+ m?s, slowest \S+ m?s$/),
    ]);
    expect(exit).toBe(0);
  });

  test('a summary at SIGTERM, as JSON: 1 since a run failed', async () => {
    const [port] = freePorts(1) as [number];
    const url = `ws://127.0.0.1:${port}/ws`;
    const { lines, exit } = await stopped('SIGTERM', url, '--every', '60', '--json');
    const [first, last] = lines.map((line) => JSON.parse(line) as object);
    expect(lines).toHaveLength(2);
    expect(first).toMatchObject({
      url,
      ok: false,
      steps: [{ name: 'name' }, { problem: 'refused' }],
    });
    expect(Object.keys(first as object)).toEqual(['url', 'time', 'ms', 'ok', 'steps']);
    expect(last).toEqual({
      summary: {
        runs: 1,
        failures: 1,
        medianMs: null,
        slowestMs: null,
        seconds: expect.any(Number),
      },
    });
    expect(exit).toBe(1);
  });

  test('a port for metrics that cannot be had is one clear line', async () => {
    const { port } = await startRelay();
    const child = run(['--every', '60', '--metrics-port', String(port)], {
      METRICS_HOST: '127.0.0.1',
    });
    expect(await within(child.stderr.text(), 'the error')).toBe(
      `amesh-relay: --metrics-port: cannot listen on port ${port} of 127.0.0.1 (EADDRINUSE)\n`,
    );
    expect(await child.exited).toBe(1);
  });
});
