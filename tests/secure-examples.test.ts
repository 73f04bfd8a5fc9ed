/** Secure pairing as users write it: the documentation's programs, a page in Chromium, and another language. */
import { afterAll, beforeAll, describe, expect, test } from 'bun:test';
import { join } from 'node:path';
import { chromium, type Browser, type Page } from 'playwright-core';
import { createRelayServer } from '../src/index.ts';
import { pairAsController, pairAsTarget, createBootstrapToken } from '../src/client/secure.ts';
import { project, type Project, runtimes, start } from './built-client.ts';

const relay = await createRelayServer({ port: 0, host: '127.0.0.1', logLevel: 'silent' });
const { url } = await relay.start();
let built: Project & AsyncDisposable;
beforeAll(async () => {
  built = await project('docs/secure.md', url);
});
afterAll(async () => {
  await built[Symbol.asyncDispose]();
  await relay.stop();
});

describe('the documentation’s programs', () => {
  for (const [i, runtime] of runtimes.entries()) {
    const other = runtimes[(i + 1) % runtimes.length] as string;
    test(`a target in ${runtime}, a controller in ${other}`, async () => {
      const target = built.run([runtime, 'target.mjs']);
      const code = await target.shows(/code (\d{6}-\d{6})\n/);
      const controller = built.run([other, 'controller.mjs', code]);
      const digits = await controller.shows(/digits (\d{6})\n/);
      await target.shows(/digits on the other device\? /);
      target.types(digits);
      const said = await target.ended();
      expect(said).toContain('received {');
      expect(said).toContain('target');
      expect(await controller.ended()).toEndWith('\nthe target is finished\n');
    });

    test(`a bootstrap: the controller in ${runtime}, the machine in ${other}`, async () => {
      const watcher = built.run([runtime, 'watcher.mjs']);
      const token = await watcher.shows(/BOOTSTRAP_TOKEN=(\S+)\n/);
      const machine = built.run([other, 'booting.mjs'], { BOOTSTRAP_TOKEN: token });
      expect(await machine.ended()).toBe('accepted by controller-key\n');
      expect(await watcher.ended()).toEndWith('accepted machine-key\n');
    });
  }
});

test('the code for a browser is under 12 KB, compressed', async () => {
  const home = join(built.folder, 'node_modules/@authmesh/relay/dist');
  const parts = [...new Bun.Glob('*.js').scanSync(home)].filter((name) => name !== 'client.js');
  const texts = await Promise.all(parts.map((name) => Bun.file(join(home, name)).bytes()));
  const sizes = texts.map((text) => Bun.gzipSync(text, { level: 9 }).length);
  expect(sizes.length).toBeGreaterThan(0);
  expect(sizes.reduce((sum, size) => sum + size)).toBeLessThan(12_000);
});

const executablePath = Bun.which('chromium');
if (!executablePath)
  console.warn('SKIPPED: secure pairing in a browser, since there is no chromium');

describe.skipIf(!executablePath)('a page in Chromium', () => {
  let browser: Browser;
  let page: Page;

  beforeAll(async () => {
    browser = await chromium.launch({
      executablePath: executablePath as string,
      args: [
        '--no-sandbox',
        '--disable-gpu',
        '--disable-quic',
        '--no-first-run',
        '--disable-background-networking',
        '--disable-component-update',
        '--disable-sync',
      ],
    });
    // The page has the relay's own origin, which the relay accepts. The library is added to it.
    page = await browser.newPage({ bypassCSP: true });
    const origin = url.replace(/^ws(.*)\/ws$/, 'http$1');
    const home = join(built.folder, 'node_modules/@authmesh/relay/dist');
    await page.route(`${origin}/app/*.js`, async (route) => {
      const name = new URL(route.request().url()).pathname.replace('/app/', '');
      const body = await Bun.file(join(home, name)).text();
      return route.fulfill({ contentType: 'text/javascript', body });
    });
    await page.goto(`${origin}/`);
  }, 30_000);
  afterAll(() => browser.close());

  test('as the target', async () => {
    const code = Promise.withResolvers<string>();
    const digits = Promise.withResolvers<string>();
    await page.exposeFunction('showCode', code.resolve);
    await page.exposeFunction('askDigits', () => digits.promise);
    const inPage = page.evaluate(async (relayUrl) => {
      const path = '/app/secure.js';
      const { pairAsTarget: pair } = (await import(path)) as { pairAsTarget: typeof pairAsTarget };
      const { showCode, askDigits } = globalThis as unknown as {
        showCode: (code: string) => void;
        askDigits: () => Promise<string>;
      };
      const channel = await pair(relayUrl, { showCode, askDigits, identity: { name: 'page' } });
      await channel.send(new Uint8Array([1, 2, 3]));
      const heard = await channel.receive();
      await channel.done();
      return [channel.peerIdentity, heard];
    }, url);
    const channel = await pairAsController(url, await code.promise, {
      showDigits: digits.resolve,
      identity: 'program',
    });
    expect(channel.peerIdentity).toEqual({ name: 'page' });
    expect(await channel.receive()).toEqual(Uint8Array.of(1, 2, 3));
    await channel.send('hello');
    expect(await inPage).toEqual(['program', 'hello']);
  });

  test('as the controller, and the error after a wrong answer', async () => {
    const digits: PromiseWithResolvers<string>[] = [];
    await page.exposeFunction('showDigits', (shown: string) => digits.at(-1)?.resolve(shown));
    for (const [answer, expected] of [
      [(shown: string) => shown, 'paired'],
      [() => 'no', 'digits_malformed'],
    ] as const) {
      const shown = Promise.withResolvers<string>();
      digits.push(shown);
      const code = Promise.withResolvers<string>();
      const target = pairAsTarget(url, {
        showCode: code.resolve,
        askDigits: async () => answer(await shown.promise),
      });
      target.catch(() => {});
      const inPage = page.evaluate(
        async ([relayUrl, typed]) => {
          const path = '/app/secure.js';
          const library = (await import(path)) as { pairAsController: typeof pairAsController };
          const { showDigits } = globalThis as unknown as { showDigits: (it: string) => void };
          try {
            await library.pairAsController(relayUrl, typed, { showDigits });
            return 'paired';
          } catch (error) {
            return (error as { code: string }).code;
          }
        },
        [url, await code.promise] as const,
      );
      expect(await inPage).toBe(expected);
    }
  });
});

/** The first Python that has the package: Debian's own may come after another one in the PATH. */
const pythonWithCryptography = ['python3', '/usr/bin/python3'].find(
  (command) =>
    Bun.which(command) &&
    Bun.spawnSync([command, '-c', 'import cryptography'], { stderr: 'ignore' }).exitCode === 0,
);
if (!pythonWithCryptography) {
  console.warn(
    'SKIPPED: examples/secure.py, since python3 has no `cryptography` (Debian: python3-cryptography)',
  );
}

describe.skipIf(!pythonWithCryptography)('examples/secure.py', () => {
  const examples = join(import.meta.dir, '../examples');
  const python = (...args: string[]) =>
    start([pythonWithCryptography as string, 'secure.py', ...args], examples, {
      PYTHONDONTWRITEBYTECODE: '1',
    });

  test('computes the test vectors', async () => {
    const said = await python('check', '../docs/secure-vectors.json').ended();
    expect(said).toBe('all vectors hold\n');
  });

  test('pairs as the controller', async () => {
    const code = Promise.withResolvers<string>();
    const digits = Promise.withResolvers<string>();
    const target = pairAsTarget(url, {
      showCode: code.resolve,
      askDigits: () => digits.promise,
      identity: { name: 'typescript' },
    });
    const program = python('controller', url, await code.promise);
    digits.resolve(await program.shows(/digits (\d{6})\n/));
    const channel = await target;
    expect(channel.peerIdentity).toEqual({ name: 'python' });
    await channel.send('grüezi');
    expect(await channel.receive()).toBe('hello from the controller');
    await channel.done();
    expect(await program.ended()).toEndWith('paired with {"name":"typescript"}\nreceived grüezi\n');
  });

  test('pairs as the target', async () => {
    const program = python('target', url);
    const code = await program.shows(/code (\S+)\n/);
    const channel = await pairAsController(url, code, { showDigits: program.types });
    expect(channel.peerIdentity).toEqual({ name: 'python' });
    expect(await channel.receive()).toBe('hello from the target');
    await channel.send('grüezi');
    const rest: unknown[] = [];
    for await (const message of channel) rest.push(message);
    expect(rest).toEqual([]);
    expect(await program.ended()).toEndWith(
      'paired with somebody without a name\nreceived grüezi\n',
    );
  });

  test('refuses digits that do not match, and both sides say so', async () => {
    const program = start(
      ['sh', '-c', 'exec "$0" secure.py target "$1" 2>&1', pythonWithCryptography as string, url],
      examples,
      { PYTHONDONTWRITEBYTECODE: '1' },
    );
    const code = await program.shows(/code (\S+)\n/);
    const showDigits = (digits: string) => program.types(digits === '000000' ? '000001' : '000000');
    const refused = pairAsController(url, code, { showDigits }).catch((error: unknown) => error);
    expect(await refused).toMatchObject({ code: 'digits_mismatch' });
    expect(await program.ended()).toEndWith('secure.py: digits_mismatch\n');
  });

  test('boots a machine, and watches for one', async () => {
    for (const isMachine of [true, false]) {
      const token = createBootstrapToken();
      const js = ['bun', isMachine ? 'watcher.mjs' : 'booting.mjs'];
      if (isMachine) {
        const watcher = built.run(js);
        const its = await watcher.shows(/BOOTSTRAP_TOKEN=(\S+)\n/);
        expect(await python('boot', url, its, 'py').ended()).toBe('accepted by controller-key\n');
        expect(await watcher.ended()).toEndWith('accepted py\n');
      } else {
        const watcher = python('watch', url, token, 'py');
        await watcher.shows(/watching\n/);
        const machine = built.run(js, { BOOTSTRAP_TOKEN: token });
        expect(await machine.ended()).toBe('accepted by py\n');
        expect(await watcher.ended()).toEndWith('accepted machine-key\n');
      }
    }
  });
});
