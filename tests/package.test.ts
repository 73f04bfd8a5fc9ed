/** The package as its users get it: packed, installed into an empty project, run, imported and type-checked there. */
import { afterAll, beforeAll, expect, test } from 'bun:test';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pkg from '../package.json' with { type: 'json' };

const root = join(import.meta.dir, '..');
let project: string;
let packed: string[];

/** Runs a command in the project. */
async function run(
  command: string[],
  { cwd = project, env = {} }: { cwd?: string; env?: Record<string, string> } = {},
): Promise<{ code: number; out: string; err: string }> {
  const PATH = process.env['PATH'] ?? '';
  const child = Bun.spawn(command, {
    cwd,
    env: { PATH, HOME: process.env['HOME'] ?? project, ...env },
    stdout: 'pipe',
    stderr: 'pipe',
  });
  const [out, err, code] = await Promise.all([
    child.stdout.text(),
    child.stderr.text(),
    child.exited,
  ]);
  return { code, out, err };
}

async function succeed(command: string[], options?: Parameters<typeof run>[1]): Promise<string> {
  const { code, out, err } = await run(command, options);
  if (code !== 0) throw new Error(`${command.join(' ')}: ${out}${err}`);
  return out;
}

beforeAll(async () => {
  project = await mkdtemp(join(tmpdir(), 'amesh-relay-package-'));
  const tarball = join(project, 'package.tgz');
  await succeed(['bun', 'pm', 'pack', '--quiet', '--filename', tarball], { cwd: root });
  packed = (await succeed(['tar', '-tzf', tarball])).trim().split('\n');
  await Bun.write(join(project, 'package.json'), '{"private":true,"type":"module"}');
  await succeed(['bun', 'add', '--prefer-offline', tarball]);
}, 60_000);
afterAll(() => rm(project, { recursive: true }));

test('holds the code, the types and the documents, and nothing else', () => {
  const wanted =
    /^package\/(?:package\.json|(?:README|CHANGELOG|PROTOCOL|SECURITY)\.md|LICENSE|bin\/[\w-]+\.js|src\/[\w/-]+\.(?:ts|css)|dist\/[\w/-]+\.d\.ts|dist\/[\w-]+\.js|deploy\/(?:amesh-relay\.service|nginx\.conf|haproxy\.cfg|apache\.conf|Caddyfile|prometheus\/[\w.-]+\.ya?ml|grafana\/amesh-relay\.json)|docs\/[\w-]+\.md|docs\/secure-vectors\.json)$/;
  expect(packed.filter((file) => !wanted.test(file))).toEqual([]);
  const declared = packed.filter((file) => file.startsWith('package/dist/')).length;
  expect(declared).toBeGreaterThan(0);
});

test('holds every file that package.json names', () => {
  const named = [
    pkg.bin['amesh-relay'],
    ...Object.values(pkg.exports).flatMap((entry) =>
      typeof entry === 'string' ? [entry] : Object.values(entry),
    ),
  ].map((file) => `package/${file.replace(/^\.\//, '')}`);
  expect(named.filter((file) => !packed.includes(file))).toEqual([]);
});

test('runs with bunx', async () => {
  expect(await succeed(['bunx', pkg.name, '--version'])).toBe(`${pkg.version}\n`);
  const refused = await run(['bunx', pkg.name], { env: { PORT: 'x' } });
  expect(refused).toMatchObject({ code: 2, out: '' });
});

test('imports under Bun, and works', async () => {
  await Bun.write(
    join(project, 'use.ts'),
    `import { ConfigError, createRelayServer, type Relay, type RelayOptions } from '${pkg.name}';
    const options: RelayOptions = { port: 0, host: '127.0.0.1', logLevel: 'silent' };
    const relay: Relay = await createRelayServer(options);
    const { url } = await relay.start();
    const health = url.replace('ws:', 'http:').replace('/ws', '/health');
    console.log(await (await fetch(health)).text());
    await relay.stop({ drain: true });
    // @ts-expect-error There is no such option.
    const error: unknown = await createRelayServer({ prot: 1 }).catch((reason: unknown) => reason);
    console.log(error instanceof ConfigError);`,
  );
  expect(await succeed(['bun', 'use.ts'])).toBe('{"status":"ok","sessions":0}\n\ntrue\n');
});

test('the program of docs/library.md runs, and drains on SIGTERM', async () => {
  const text = await Bun.file(join(root, 'docs/library.md')).text();
  const program = /```ts\n([^]*?)```/.exec(text)?.[1] ?? '';
  await Bun.write(
    join(project, 'library.ts'),
    program.replace('port: 3001', "port: 0, host: '127.0.0.1'"),
  );
  const child = Bun.spawn(['bun', 'library.ts'], { cwd: project, stdout: 'pipe' });
  const lines = child.stdout.pipeThrough(new TextDecoderStream()).getReader();
  const { value = '' } = await lines.read();
  expect(value).toMatch(/^a relay at ws:\/\/127\.0\.0\.1:\d+\/ws\n$/);
  child.kill('SIGTERM');
  expect(await child.exited).toBe(0);
});

test('the client imports wherever there is a WebSocket', async () => {
  await Bun.write(
    join(project, 'client.ts'),
    `import { generateCode } from '${pkg.name}/client';
    const code: string = generateCode();
    console.log(/^[0-9]{6}$/.test(code));`,
  );
  await Bun.write(
    join(project, 'secure.ts'),
    `import { connect, RelayError } from '${pkg.name}/client';
    import { pairAsController, pairAsTarget, RelayError as Same, type SecureChannel } from '${pkg.name}/secure';
    const failing: Promise<SecureChannel> = pairAsController('no url', '000000-000000', { showDigits() {} });
    // Both entries have one class of error.
    console.log(await failing.catch((error) => error instanceof RelayError && error instanceof Same));
    void pairAsTarget, connect;`,
  );
  expect(await succeed(['bun', 'secure.ts'])).toBe('true\n');
  expect(await succeed(['bun', 'client.ts'])).toBe('true\n');
  const node = Bun.which('node');
  if (!node) return console.warn('SKIPPED: there is no Node here to import the client with');
  const script = `import { generateCode } from '${pkg.name}/client'; console.log(generateCode().length);`;
  expect(await succeed([node, '--input-type=module', '-e', script])).toBe('6\n');
});

// The project has no types but the package's own and those of its dependencies; its libraries are checked too.
test.each([
  ['nodenext', 'nodenext'],
  ['preserve', 'bundler'],
])(
  'type-checks: strict, module %s, resolution %s',
  async (module, resolution) => {
    const tsc = join(root, 'node_modules/.bin/tsc');
    const flags = ['--noEmit', '--strict', '--target', 'esnext', '--skipLibCheck', 'false'];
    const how = ['--module', module, '--moduleResolution', resolution];
    expect(await run([tsc, ...flags, ...how, 'use.ts', 'client.ts', 'secure.ts'])).toMatchObject({
      code: 0,
      out: '',
    });
  },
  20_000,
);

test('says under Node what it needs', async () => {
  const node = Bun.which('node');
  if (!node) return console.warn('SKIPPED: there is no Node here to import the package with');
  const names = Object.keys(await import('../src/index.ts')).join(', ');
  const { code, err } = await run([
    node,
    '--input-type=module',
    '-e',
    `import { ${names} } from '${pkg.name}'`,
  ]);
  expect(code).toBe(1);
  expect(err).toContain(`${pkg.name} needs Bun >=`);
});
