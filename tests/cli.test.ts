import { describe, expect, test } from 'bun:test';
import { mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { networkInterfaces, tmpdir } from 'node:os';
import { join } from 'node:path';
import pkg from '../package.json' with { type: 'json' };
import { settings } from '../src/config.ts';
import { afterThisTest, openClient, startRelay, until, within } from './support.ts';

const COMMAND = join(import.meta.dir, '..', pkg.bin['amesh-relay']);
const NODE = Bun.which('node');
const SCRIPT = Bun.which('script');

interface Ran {
  code: number;
  out: string;
  err: string;
}

async function run(
  args: string[],
  env: Record<string, string> = {},
  command = [process.execPath, COMMAND],
): Promise<Ran> {
  const child = Bun.spawn([...command, ...args], {
    env: { PATH: process.env.PATH, ...env },
    stdout: 'pipe',
    stderr: 'pipe',
    timeout: 5000,
  });
  const [out, err, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  return { code, out, err };
}

/** The running command: the log line with its address, and all later lines. */
async function serve(env: Record<string, string> = {}, args: string[] = []) {
  const child = Bun.spawn([process.execPath, COMMAND, ...args], {
    env: { PATH: process.env.PATH, PORT: '0', HOST: '127.0.0.1', ...env },
    stdout: 'pipe',
    stderr: 'inherit',
  });
  afterThisTest(() => child.kill('SIGKILL'));
  const lines: Record<string, unknown>[] = [];
  const started = Promise.withResolvers<Record<string, unknown>>();
  const ended = (async () => {
    let rest = '';
    for await (const chunk of child.stdout.pipeThrough(new TextDecoderStream())) {
      const parts = (rest + chunk).split('\n');
      rest = parts.pop() ?? '';
      for (const part of parts) {
        const line = JSON.parse(part) as Record<string, unknown>;
        lines.push(line);
        if (line.msg === 'listening') started.resolve(line);
      }
    }
  })();
  const listening = await within(started.promise, 'the command to listen');
  return { child, lines, listening, ended, url: String(listening.websocket) };
}

describe('a wrong start is one clear line', () => {
  test.each([
    [['--port', 'abc'], {}, 2, '--port: got "abc", expected a whole number from 0 to 65535'],
    [['--port=70000'], {}, 2, '--port: got "70000", expected a whole number from 0 to 65535'],
    [['--port', '3001.5'], {}, 2, '--port: got "3001.5", expected a whole number from 0 to 65535'],
    [[], { PORT: 'abc' }, 2, 'PORT: got "abc", expected a whole number from 0 to 65535'],
    [
      ['--host', '999.1.1.1'],
      {},
      2,
      '--host: got "999.1.1.1", expected an IP address or a host name of this machine',
    ],
    [['--frobnicate'], {}, 2, "Unknown option '--frobnicate'"],
    [['now'], {}, 2, 'there is no command "now"; expected health or check, or none'],
    [['chekc'], {}, 2, 'there is no command "chekc"; did you mean check?'],
    [['--host', '127.0.0.1', 'now'], {}, 2, "'now'"],
    [
      ['--host', 'no-such-host.invalid', '--port', '0'],
      {},
      1,
      '"no-such-host.invalid" does not resolve',
    ],
    [['--host', '192.0.2.1', '--port', '0'], {}, 1, '192.0.2.1 is no address of this machine'],
    [
      ['--host', 'fe80::1', '--port', '0'],
      {},
      1,
      'host (HOST): fe80::1 is no address of this machine',
    ],
    [
      ['check', 'https://relay.test/'],
      {},
      2,
      'expected a WebSocket URL such as wss://relay.test/ws',
    ],
    [['--host', '::1%lo'], {}, 2, '--host: got "::1%lo", expected an IP address'],
    [
      [],
      { AMESH_TRUST_PROXY: 'maybe' },
      2,
      'AMESH_TRUST_PROXY: got "maybe", expected unset, 0, false or no',
    ],
  ] as [string[], Record<string, string>, number, string][])(
    '%p %p',
    async (args, env, code, message) => {
      const ran = await run(args, env);
      expect(ran.err).toContain(message);
      expect(ran.err).toMatch(/^amesh-relay: .+\n$/);
      expect([ran.code, ran.out]).toEqual([code, '']);
    },
  );

  test('a port in use', async () => {
    const relay = await startRelay();
    const ran = await run(['--host', '127.0.0.1', '--port', String(relay.port)]);
    expect(ran.err).toMatch(
      new RegExp(`^amesh-relay: port \\(PORT\\): ${relay.port} is in use on 127.0.0.1; .+\\n$`),
    );
    expect(ran.code).toBe(1);
  });
});

test('--help names every setting within 100 columns, --version the version', async () => {
  const { code, out } = await run(['--help']);
  expect(code).toBe(0);
  expect(out.split('\n').filter((line) => line.length > 100)).toEqual([]);
  for (const { env } of Object.values(settings)) expect(out).toContain(`  ${env} `);
  expect(await run(['-v'])).toEqual({ code: 0, out: `${pkg.version}\n`, err: '' });
});

test('logs where it listens, with the real port, and answers there', async () => {
  const { listening, lines, url } = await serve();
  expect(listening.port).toBeGreaterThan(0);
  expect(listening.families).toEqual(['IPv4']);
  expect(url).toBe(`ws://127.0.0.1:${String(listening.port)}/ws`);
  expect(await (await fetch(String(listening.health))).text()).toBe(
    '{"status":"ok","sessions":0}\n',
  );
  await until(() => lines.length === 2, 'the settings are there');
  expect(lines[1]).toMatchObject({ msg: 'settings', sessionTtlMs: 30_000, maxConnections: 10_000 });
});

test('on :: it serves IPv4, and IPv6 if the machine has it', async () => {
  const { listening } = await serve({ HOST: '::' });
  const hasIPv6 = Object.values(networkInterfaces())
    .flat()
    .some((address) => address?.family === 'IPv6');
  expect(listening.families).toEqual(hasIPv6 ? ['IPv4', 'IPv6'] : ['IPv4']);
  const port = String(listening.port);
  for (const host of ['127.0.0.1', ...(hasIPv6 ? ['[::1]'] : [])]) {
    expect((await fetch(`http://${host}:${port}/health`)).status).toBe(200);
  }
});

test.skipIf(!SCRIPT)('at a terminal it says where, and only what was changed', async () => {
  const command = `"${COMMAND}" --port 0 --host 127.0.0.1`;
  const child = Bun.spawn([SCRIPT as string, '-qefc', command, '/dev/null'], {
    env: {
      PATH: process.env.PATH,
      TERM: 'xterm-256color',
      AMESH_SESSION_TTL: '60',
      AMESH_MAX_WATCHES: '10',
      REDIS_URL: '',
    },
    stdout: 'pipe',
    stdin: 'ignore',
    timeout: 10_000,
  });
  afterThisTest(() => child.kill('SIGKILL'));
  let text = '';
  const reader = child.stdout.getReader();
  while (!text.includes('settings')) {
    const { value, done } = await within(reader.read(), 'a line');
    if (done) break;
    text += new TextDecoder().decode(value);
  }
  expect(text).toContain('\u001b[');
  const lines = Bun.stripANSI(text).trim().split(/\r?\n/);
  expect(lines[0]).toMatch(
    / listening {2}websocket=ws:\/\/127\.0\.0\.1:\d+\/ws {2}families=IPv4 {2}version=[\d.]+$/,
  );
  expect(lines[1]).toMatch(/ in a browser: http:\/\/127\.0\.0\.1:\d+\/$/);
  expect(lines[2]).toEndWith(
    ' settings that you changed  --port=0  --host=127.0.0.1  AMESH_SESSION_TTL=60',
  );
});
if (!SCRIPT) console.warn('SKIPPED: what is shown at a terminal, since there is no script(1)');

test('neither .env nor bunfig.toml of the current folder is read', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'amesh-relay-test-'));
  afterThisTest(() => rmSync(folder, { recursive: true }));
  await Bun.write(join(folder, '.env'), 'PORT=nonsense\nLOG_LEVEL=nonsense\n');
  await Bun.write(join(folder, 'bunfig.toml'), 'preload = ["./preload.ts"]\n');
  await Bun.write(join(folder, 'preload.ts'), 'console.log("preloaded"); process.exit(3);');
  const bundle = join(folder, 'bundle');
  expect(
    await Bun.spawn([process.execPath, join(import.meta.dir, '../tools/bundle.ts'), bundle]).exited,
  ).toBe(0);
  // In the image, Bun is at the path in the bundle's first line.
  const [first = ''] = (await Bun.file(join(bundle, 'cli.js')).text()).split('\n', 1);
  const flags = first.split(' ').slice(3);
  expect(first).toStartWith('#!/usr/bin/env -S /usr/local/bin/bun --');
  for (const command of [[COMMAND], [process.execPath, ...flags, join(bundle, 'cli.js')]]) {
    // A port in use ends the start right after its settings are read.
    const { port } = await startRelay();
    const child = Bun.spawn([...command, '--host', '127.0.0.1', '--port', String(port)], {
      cwd: folder,
      env: { PATH: process.env.PATH },
      stdout: 'pipe',
      stderr: 'pipe',
    });
    expect(await child.stderr.text()).toContain(`${port} is in use`);
    expect([await child.exited, await child.stdout.text()]).toEqual([1, '']);
  }
});

test.each([
  ['--help', 1],
  ['check --json ws://127.0.0.1:9/ws', 0],
  ['check ws://127.0.0.1:9/ws', 1],
])('no stack trace if the reader of %s closes the pipe early', async (args, lines) => {
  const command = `{ "${COMMAND}" ${args}; echo "code $?" >&2; } | { ${'read line; '.repeat(lines)} exec <&-; }`;
  const shell = Bun.spawn(['sh', '-c', command], {
    env: { PATH: process.env.PATH },
    stderr: 'pipe',
  });
  expect(await within(shell.stderr.text(), 'the command to end')).toMatch(/^code \d+\n$/);
});

test('flags come before the environment', async () => {
  const { listening } = await serve({ HOST: '192.0.2.1', PORT: 'nonsense' }, [
    '--host',
    '127.0.0.1',
    '--port',
    '0',
  ]);
  expect(listening.host).toBe('127.0.0.1');
});

/** A signal takes a moment to arrive. */
async function untilDraining({ health }: Record<string, unknown>): Promise<void> {
  while ((await fetch(String(health))).ok);
}

describe('signals', () => {
  test.each(['SIGTERM', 'SIGINT', 'SIGHUP'] as const)(
    '%s drains: what is under way ends first, then it exits with 0',
    async (signal) => {
      const { child, url, lines, listening, ended } = await serve();
      const [target, controller] = [await openClient(url), await openClient(url)];
      target.send({ type: 'listen', otc: '482916' });
      await target.next();
      controller.send({ type: 'connect', otc: '482916' });
      await Promise.all([target.next(), controller.next()]);
      child.kill(signal);
      await untilDraining(listening);
      const newcomer = await openClient(url);
      await newcomer.expectError('relay_draining');
      target.send({ type: 'data', payload: 'sas_confirmed' });
      target.close();
      await controller.expect({ type: 'data', payload: 'sas_confirmed' });
      await controller.expectError('peer_disconnected');
      await controller.expectClose(1001, 'relay_shutting_down');
      expect(await within(child.exited, 'the command to end')).toBe(0);
      await ended;
      expect(lines.map(({ msg }) => msg)).toEqual(['listening', 'settings', 'draining', 'stopped']);
    },
  );

  test('a signal while it waits for Redis ends it at once', async () => {
    using mute = Bun.listen({ hostname: '127.0.0.1', port: 0, socket: { data() {} } });
    const child = Bun.spawn([process.execPath, COMMAND], {
      env: { PATH: process.env.PATH, PORT: '0', REDIS_URL: `redis://127.0.0.1:${mute.port}` },
      stdout: 'pipe',
    });
    afterThisTest(() => child.kill('SIGKILL'));
    const { value } = await within(child.stdout.getReader().read(), 'it to wait');
    expect(new TextDecoder().decode(value)).toContain('waiting for Redis');
    const asked = performance.now();
    child.kill('SIGTERM');
    expect(await within(child.exited, 'the command to end')).toBe(0);
    expect(performance.now() - asked).toBeLessThan(4000); // It would wait for Redis for 5 s.
  });

  test('SIGUSR1 and SIGUSR2 do nothing, nor does SIGHUP under nohup', async () => {
    const child = Bun.spawn(['nohup', process.execPath, COMMAND], {
      env: { PATH: process.env.PATH, PORT: '0', HOST: '127.0.0.1' },
      stdout: 'pipe',
      stderr: 'ignore',
    });
    afterThisTest(() => child.kill('SIGKILL'));
    const reader = child.stdout.getReader();
    const { value } = await within(reader.read(), 'the first line');
    const { health } = JSON.parse(new TextDecoder().decode(value).split('\n')[0] as string) as {
      health: string;
    };
    for (const signal of ['SIGHUP', 'SIGUSR1', 'SIGUSR2'] as const) child.kill(signal);
    expect((await fetch(health)).status).toBe(200);
    child.kill('SIGTERM');
    expect(await within(child.exited, 'the command to end')).toBe(0);
  });

  test('a second signal closes everything at once', async () => {
    const { child, url, listening } = await serve();
    const target = await openClient(url);
    target.send({ type: 'listen', otc: '482916' });
    await target.next();
    child.kill('SIGTERM');
    await untilDraining(listening);
    const newcomer = await openClient(url);
    await newcomer.expectError('relay_draining');
    child.kill('SIGTERM');
    await target.expectClose(1001, 'relay_shutting_down');
    expect(await within(child.exited, 'the command to end')).toBe(0);
  });
});

test('no log line contains a code, a payload, a token or an address', async () => {
  const { child, url, lines, ended } = await serve({ LOG_LEVEL: 'debug' });
  const [target, controller] = [await openClient(url), await openClient(url)];
  target.send({ type: 'listen', otc: '482916' });
  await target.next();
  controller.send({ type: 'connect', otc: '482917' });
  await controller.next();
  controller.send({ type: 'connect', otc: '482916' });
  await Promise.all([target.next(), controller.next()]);
  target.send({ type: 'data', payload: 'the-payload' });
  await controller.next();
  controller.send({ type: 'bootstrap_watch', jti: 'the-jti' });
  await controller.next();
  target.send({
    type: 'bootstrap_init',
    jti: 'the-jti',
    token: 'the-token',
    targetPubKey: 'the-key',
  });
  await controller.next();
  target.send('{"type":"the-type');
  await target.next();
  target.close();
  child.kill('SIGTERM');
  await within(child.exited, 'the command to end');
  await ended;
  // The first two lines have the address and the settings.
  const log = JSON.stringify(lines.slice(2));
  expect(log).toContain('refused');
  for (const secret of ['482916', '482917', 'the-', '127.0.0.1']) expect(log).not.toContain(secret);
});

test.each([
  ['that nobody reads', 'sleep 60'],
  ['whose reader has died', 'exit'],
])('a stdout %s neither ends nor blocks the relay', async (_what, reader) => {
  const command = `"${process.execPath}" "${COMMAND}" --port 0 --host 127.0.0.1 | { read first; echo "$first"; exec >&-; ${reader}; }`;
  const shell = Bun.spawn(['sh', '-c', command], {
    env: { PATH: process.env.PATH, LOG_LEVEL: 'debug' },
    stdout: 'pipe',
    detached: true,
  });
  afterThisTest(() => process.kill(-shell.pid, 'SIGKILL'));
  const { value } = await within(shell.stdout.getReader().read(), 'the first line');
  const { websocket: url } = JSON.parse(new TextDecoder().decode(value)) as { websocket: string };
  let client = await openClient(url);
  // Two lines each: more than the 64 KiB that a pipe holds.
  for (let i = 0; i < 400; i += 1) {
    for (let j = 0; j < 2; j += 1) await client.refused('null', 'invalid_message');
    const next = await openClient(url);
    client.close();
    client = next;
  }
});

test.each([
  ['1', /^127\.0\.0\.1$/],
  ['pseudonym', /^[0-9a-f]{16}$/],
])('AMESH_LOG_CLIENTS=%s logs the names of clients', async (mode, name) => {
  const { child, url, lines, ended } = await serve({ AMESH_LOG_CLIENTS: mode });
  const client = await openClient(url);
  await client.refused({ type: 'connect', otc: '482916' }, 'otc_not_found');
  child.kill('SIGTERM');
  await within(child.exited, 'the command to end');
  await ended;
  const told = lines.filter(({ client }) => client !== undefined);
  expect(told.map(({ msg }) => msg)).toEqual(['connected', 'refused', 'disconnected']);
  expect(told[1]).toMatchObject({ code: 'otc_not_found' });
  expect(new Set(told.map(({ client }) => client)).size).toBe(1);
  expect(told[0]?.['client']).toMatch(name);
  expect(JSON.stringify(lines)).not.toContain('482916');
});

describe.skipIf(!NODE)('without Bun', () => {
  test('in Node, one line says that Bun is needed, and how to get it', async () => {
    const ran = await run([], {}, [NODE as string, COMMAND]);
    expect(ran.err).toMatch(
      /^amesh-relay: needs Bun >=1\.4\.4, and this is Node\.js v[\d.]+; install it .+\n$/,
    );
    expect(ran.code).toBe(1);
  });

  test('the command says the same if there is no Bun in the PATH', async () => {
    const onlyNode = mkdtempSync(join(tmpdir(), 'amesh-relay-test-'));
    afterThisTest(() => rmSync(onlyNode, { recursive: true }));
    symlinkSync(NODE as string, join(onlyNode, 'node'));
    const ran = await run([], { PATH: onlyNode }, ['/bin/sh', COMMAND]);
    expect(ran.err).toMatch(/^amesh-relay: needs Bun .+\n$/);
    expect(ran.code).toBe(1);
  });

  test('an import in Node says the same', async () => {
    const ran = await run([], {}, [
      NODE as string,
      '--input-type=module',
      '-e',
      `await import(${JSON.stringify(join(import.meta.dir, '..', pkg.exports['.'].default))}).catch((error) => console.log(error.message))`,
    ]);
    expect(ran.out).toMatch(
      /^@authmesh\/relay needs Bun >=1\.4\.4, and this is Node\.js v[\d.]+; install it .+\n$/,
    );
  });
});
if (!NODE)
  console.warn('SKIPPED: what the command says under Node.js, since there is no node on the PATH');
