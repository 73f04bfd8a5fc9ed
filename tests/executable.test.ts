/** The relay as one executable, as a release has it for this system: built, and used in a folder of somebody else's. */
import { afterAll, beforeAll, expect, test } from 'bun:test';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pkg from '../package.json' with { type: 'json' };
import { connectable } from '../src/config.ts';

const root = join(import.meta.dir, '..');
const architecture = { x64: 'amd64', arm64: 'arm64' }[process.arch as string];
const system = `${process.platform === 'darwin' ? 'macos' : 'linux'}-${architecture}`;
let folder: string;
let executable: string;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'amesh-relay-executable-'));
  const build = Bun.spawn([process.execPath, 'tools/executables.ts', folder, system], {
    cwd: root,
    stdout: 'pipe',
  });
  executable = (await build.stdout.text()).trim();
  expect(await build.exited).toBe(0);
  // What Bun would read by itself, of another application in the same folder.
  await Bun.write(join(folder, '.env'), 'PORT=1\nREDIS_URL=redis://192.0.2.1\n');
  await Bun.write(join(folder, 'bunfig.toml'), 'preload = ["./preload.ts"]\n');
  await Bun.write(join(folder, 'preload.ts'), 'throw new Error("preloaded")\n');
}, 60_000);
afterAll(() => rm(folder, { recursive: true }));

function start(args: string[], env: Record<string, string> = {}) {
  return Bun.spawn([executable, ...args], { cwd: folder, env, stdout: 'pipe', stderr: 'pipe' });
}

test('tells its version, and has its help', async () => {
  expect(await start(['--version']).stdout.text()).toBe(`${pkg.version}\n`);
  expect(await start(['--help']).stdout.text()).toContain('AMESH_TRUST_PROXY');
});

test('runs the relay, its health, its check, the page and the metrics', async () => {
  const relay = start([], { PORT: '0', HOST: '127.0.0.1', METRICS_PORT: '0' });
  try {
    let log = '';
    for await (const chunk of relay.stdout) {
      log += Buffer.from(chunk).toString();
      if (log.includes('\n')) break;
    }
    const { port, host, metrics } = JSON.parse(log.split('\n')[0] as string) as {
      port: number;
      host: string;
      metrics: number;
    };
    const at = connectable(host);
    const health = start(['health'], { PORT: String(port) });
    expect([await health.exited, await health.stderr.text()]).toEqual([0, '']);
    const check = start(['check', `ws://${at}:${port}/ws`, '--idle', '0']);
    expect(await check.stdout.text()).toContain('All well: a device gets through from here.');
    expect(await check.exited).toBe(0);
    const page = await fetch(`http://${at}:${port}/`, { headers: { accept: 'text/html' } });
    // Its script is in the executable: there are no sources here to build it from.
    expect(await page.text()).toMatch(/<script[^>]*>[^]{1000,}<\/script>/);
    const scrape = await fetch(`http://${at}:${metrics}/metrics`);
    expect(await scrape.text()).toContain('amesh_relay_connections 0\n');
    relay.kill('SIGTERM');
    expect(await relay.exited).toBe(0);
  } finally {
    relay.kill('SIGKILL');
  }
}, 60_000);

test('says what is wrong with a setting', async () => {
  const refused = start([], { PORT: 'x' });
  expect(await refused.stderr.text()).toContain('PORT');
  expect(await refused.exited).toBe(2);
});
