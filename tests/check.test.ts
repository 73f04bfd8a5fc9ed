import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test';
import { mkdtemp, rm } from 'node:fs/promises';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { announce, connect } from '../src/client/client.ts';
import type { RelayOptions } from '../src/config.ts';
import { createRelayServer } from '../src/index.ts';
import type { ProblemCode } from '../src/check/problems.ts';
import type { Step } from '../src/check/steps.ts';
import { freePorts } from './support.ts';

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

async function startRelay(options: RelayOptions = {}): Promise<{ url: string; port: number }> {
  const relay = await createRelayServer({
    port: 0,
    host: '127.0.0.1',
    logLevel: 'silent',
    maxWatches: 1000,
    ...options,
  });
  cleanUps.push(() => relay.stop());
  return relay.start();
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

  test('three checks within a minute are within the limits', async () => {
    const { url } = await startRelay({ maxWatches: 10 });
    for (let round = 0; round < 3; round += 1) expect((await check([url])).exit).toBe(0);
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
    for (const args of [
      ['https://relay.example.com'],
      ['relay.example.com'],
      ['--idle', '291'],
      ['--wait', 'long'],
      ['--loud'],
      ['ws://a/ws', 'ws://b/ws'],
    ]) {
      const child = run(args);
      expect((await new Response(child.stderr).text()).trim()).toMatch(/^amesh-relay: .+$/);
      expect(await child.exited).toBe(2);
    }
  });

  test('somebody who takes the connection and says nothing', async () => {
    expectFailure(await silent, 'no_answer', 'within 10 s');
  });
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
    certify('soon', 'localhost', 5);
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

  test('one that ends soon, one that has ended', async () => {
    const soon = await check([await tlsRelay('soon')], trusting());
    expectWarning(soon, 'tls_expires_soon', '4 days left');
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
  const sites = ['plain', 'deaf', 'split', 'trusted', 'forgeable', 'hasty', 'lost'] as const;
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
        ${site(3, local(hop.port), WEBSOCKET + FORWARDED)}
        ${site(4, local(left.port), WEBSOCKET + FORWARDED)}
        ${site(5, local(hop.port), `${WEBSOCKET + FORWARDED} proxy_read_timeout 1s;`)}
        ${site(6, local(nobody), WEBSOCKET)}
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
