import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test';
import { cp, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import axe from 'axe-core';
import { type Browser, type BrowserContextOptions, chromium, type Page } from 'playwright-core';
import pkg from '../package.json' with { type: 'json' };
import type { RelayOptions } from '../src/config.ts';
import { CallerResolver } from '../src/admission/client-address.ts';
import { createApp } from '../src/http.ts';
import { createRelayServer } from '../src/index.ts';
import { freePort } from './support.ts';

setDefaultTimeout(30_000);

const cleanUps: (() => unknown)[] = [];
afterAll(async () => {
  for (const cleanUp of cleanUps.reverse()) await cleanUp();
});

async function startRelay(options: RelayOptions = {}): Promise<string> {
  const relay = await createRelayServer({
    port: 0,
    host: '127.0.0.1',
    logLevel: 'silent',
    maxWatches: 1000,
    ...options,
  });
  cleanUps.push(() => relay.stop());
  const { port } = await relay.start();
  return `http://127.0.0.1:${port}/`;
}

const BROWSER_ACCEPT = 'text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8';
const asBrowser = (url: string, headers: Record<string, string> = {}): Promise<Response> =>
  fetch(url, { headers: { accept: BROWSER_ACCEPT, ...headers } });

describe('GET /', () => {
  test('gives machines the facts and nothing else', async () => {
    const url = await startRelay();
    const facts = {
      name: '@authmesh/relay',
      version: expect.any(String),
      websocket: `${url.replace('http', 'ws')}ws`,
      client: { address: '127.0.0.1', source: 'peer' },
    };
    for (const accept of ['application/json', '*/*', 'image/png', 'application/json, text/html']) {
      const response = await fetch(url, { headers: { accept } });
      expect(response.headers.get('content-type')).toBe('application/json');
      expect(response.headers.get('vary')).toBe('accept');
      const got = (await response.json()) as object;
      expect(got).toEqual(facts);
      expect(Object.keys(got)).toEqual(Object.keys(facts));
    }
  });

  test('shows the caller’s address by the configured rule', async () => {
    const url = await startRelay({ trustProxy: 'hops:1' });
    const response = await fetch(url, { headers: { 'x-forwarded-for': '6.6.6.6, 198.51.100.7' } });
    expect(await response.json()).toMatchObject({
      client: { address: '198.51.100.7', source: 'x-forwarded-for' },
    });
  });

  test('uses X-Forwarded-Proto only if it trusts the proxy', async () => {
    const websocket = async (url: string): Promise<string> => {
      const response = await fetch(url, { headers: { 'x-forwarded-proto': 'https' } });
      return ((await response.json()) as { websocket: string }).websocket;
    };
    expect(await websocket(await startRelay({ trustProxy: true }))).toStartWith('wss://');
    expect(await websocket(await startRelay())).toStartWith('ws://');
  });

  test('can be turned off', async () => {
    const url = await startRelay({ page: false });
    expect((await fetch(url)).status).toBe(404);
    expect((await asBrowser(url)).status).toBe(404);
  });

  test('does not repeat a Host header that is not a host', async () => {
    const url = await startRelay();
    for (const host of [
      'a"onload="x',
      '<script>',
      'a b',
      "x';",
      'user@host',
      'host/path',
      'host:1:2',
      'host:99999',
      '[:::::]',
      '1.2.3.999',
      '',
    ]) {
      const socket = await rawGet(url, host);
      expect(socket).toStartWith('HTTP/1.1 400 ');
      if (host) expect(socket).not.toContain(host);
    }
    for (const host of ['relay.example.com', 'a_b.example:8443', '[::1]:3001', '10.0.0.1']) {
      const socket = await rawGet(url, host);
      expect(socket).toStartWith('HTTP/1.1 200 ');
      expect(socket).toContain(`ws://${host}/ws`);
    }
  });

  test('escapes an address that a trusted proxy made up', async () => {
    const url = await startRelay({ trustProxy: 'header:x-real-ip' });
    const text = await (await asBrowser(url, { 'x-real-ip': '<img src=x>' })).text();
    expect(text).not.toContain('<img');
    expect(text).toContain('<code>127.0.0.1</code>');
  });

  test('answers a browser under a strict policy', async () => {
    const url = await startRelay();
    const response = await asBrowser(url);
    expect(response.headers.get('content-type')).toBe('text/html; charset=UTF-8');
    const policy = response.headers.get('content-security-policy') as string;
    expect(policy).toContain("default-src 'none'");
    expect(policy).toContain("frame-ancestors 'none'");
    expect(policy).not.toContain('unsafe');
    expect(response.headers.get('x-content-type-options')).toBe('nosniff');
    expect(response.headers.get('referrer-policy')).toBe('no-referrer');
    expect(response.headers.get('cache-control')).toBe('no-store');
    const text = await response.text();
    for (const [, body] of text.matchAll(/<(?:script|style)[^>]*>([^]*?)<\/(?:script|style)>/g)) {
      const hash = new Bun.CryptoHasher('sha256').update(body as string).digest('base64');
      expect(policy).toContain(`'sha256-${hash}'`);
    }
    expect(text).not.toMatch(/<[^>]+\s(?:style|on[a-z]+)=/);
    // Nothing is loaded from other hosts. There are only links to them.
    expect(text).not.toMatch(/<(?!a )[^>]+(?:src|href)="https?:/);
  });

  test.each([
    ['ok', 'Up, 1 session'],
    ['draining', 'Stopping, 1 session'],
    ['unavailable', 'Cut off from its Redis, 1 session'],
  ] as const)('a relay that is %s says %p', async (status, words) => {
    const app = createApp({
      health: () => ({ status, sessions: 1 }),
      page: true,
      callers: new CallerResolver({ by: 'peer' }, () => {}),
      isTls: false,
      isPrivate: false,
    });
    const headers = { accept: BROWSER_ACCEPT, host: 'relay' };
    const page = await app.request('/', { headers }, {});
    expect(await page.text()).toContain(words);
  });

  test('says so when it counts a proxy as the client', async () => {
    const url = await startRelay();
    const text = await (await asBrowser(url, { 'x-forwarded-for': '198.51.100.7' })).text();
    expect(text).toContain('AMESH_TRUST_PROXY');
    expect(text).not.toContain('198.51.100.7');
    expect(await (await asBrowser(url)).text()).not.toContain('AMESH_TRUST_PROXY</code>.');
  });
});

describe('the same page', () => {
  const home = join(import.meta.dir, '..');
  let folder: string;
  let expected: string;

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'relay-page-'));
    cleanUps.push(() => rm(folder, { recursive: true }));
    expected = await pageOf(join(home, 'bin/amesh-relay.js'));
  });

  /** The page of a relay that runs from this file, its port left out. */
  async function pageOf(file: string): Promise<string> {
    const child = Bun.spawn([process.execPath, file, '--port', '0', '--host', '127.0.0.1'], {
      cwd: folder,
      env: { ...process.env, LOG_LEVEL: 'info' },
      stdout: 'pipe',
    });
    try {
      const { value } = await child.stdout.getReader().read();
      const [line = ''] = new TextDecoder().decode(value).split('\n');
      const { port } = JSON.parse(line) as { port: number };
      const response = await asBrowser(`http://127.0.0.1:${port}/`);
      expect(response.status).toBe(200);
      return (await response.text()).replaceAll(String(port), 'PORT');
    } finally {
      child.kill();
      await child.exited;
    }
  }

  test('from a bundle without sources', async () => {
    const build = Bun.spawn([process.execPath, join(home, 'tools/bundle.ts'), folder]);
    expect(await build.exited).toBe(0);
    expect(await pageOf(join(folder, 'cli.js'))).toBe(expected);
  });

  test('from the installed package', async () => {
    const modules = join(folder, 'node_modules');
    const installed = join(modules, '@authmesh/relay');
    for (const part of ['src', 'bin', 'package.json']) {
      await cp(join(home, part), join(installed, part), { recursive: true });
    }
    for (const dependency of Object.keys(pkg.dependencies)) {
      await cp(join(home, 'node_modules', dependency), join(modules, dependency), {
        recursive: true,
        dereference: true,
      });
    }
    expect(await pageOf(join(installed, 'bin/amesh-relay.js'))).toBe(expected);
  });
});

/** A request that fetch would not send. */
async function rawGet(url: string, host: string): Promise<string> {
  const { port } = new URL(url);
  const answer = Promise.withResolvers<string>();
  let text = '';
  await Bun.connect({
    hostname: '127.0.0.1',
    port: Number(port),
    socket: {
      open: (socket) => {
        socket.write(`GET / HTTP/1.1\r\nHost: ${host}\r\nConnection: close\r\n\r\n`);
      },
      data: (_socket, data) => {
        text += data.toString();
      },
      close: () => answer.resolve(text),
    },
  });
  return answer.promise;
}

const nginx = Bun.which('nginx', { PATH: `${process.env['PATH']}:/usr/sbin` });
if (!nginx) console.warn('SKIPPED: no page under a prefix is tested, since there is no nginx');

const executablePath = Bun.which('chromium') ?? Bun.which('chromium-browser');
if (!executablePath) console.warn('page: not tested in a browser, since there is no chromium');

describe.skipIf(!executablePath)('in Chromium', () => {
  let browser: Browser;
  let url: string;

  beforeAll(async () => {
    url = await startRelay();
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
    cleanUps.push(() => browser.close());
  });

  const DESKTOP = { width: 1100, height: 800 };
  const PHONE = { width: 360, height: 740 };

  /** Opens the page. Records its errors and its requests to other hosts. */
  async function open(
    options: BrowserContextOptions = {},
    at = url,
  ): Promise<{ page: Page; complaints: string[] }> {
    const context = await browser.newContext({ viewport: DESKTOP, ...options });
    const page = await context.newPage();
    const complaints: string[] = [];
    page.on('console', (message) => complaints.push(message.text()));
    page.on('pageerror', (error) => complaints.push(String(error)));
    page.on('request', (request) => {
      const asked = request.url();
      if (!asked.startsWith(at) && !asked.startsWith('data:')) complaints.push(asked);
    });
    await page.goto(at);
    return { page, complaints };
  }

  /** Runs the check, without the wait at its end. */
  const verdict = async (page: Page): Promise<string> => {
    const skip = page.getByRole('button', { name: 'Skip' });
    await page.locator('#verdict:not(:empty)').or(skip).first().waitFor();
    if (await skip.isVisible()) await skip.click();
    await page.locator('#verdict:not(:empty)').waitFor();
    return page.locator('#verdict').innerText();
  };

  test('load, click, all steps green', async () => {
    const { page, complaints } = await open();
    expect(await page.locator('.relay').first().innerText()).toBe(`${url.replace('http', 'ws')}ws`);
    await page.getByRole('button', { name: 'Run the check' }).click();
    expect(await verdict(page)).toStartWith('All well: a device gets through from here');
    const steps = page.locator('#steps li');
    expect(await steps.count()).toBe(12);
    expect(await page.locator('#steps li.ok').count()).toBe(12);
    for (const time of await steps.locator('time').allInnerTexts())
      expect(time).toMatch(/^[\d.]+ ms$/);
    expect(await steps.first().innerText()).toContain('ok, no sessions');
    await page.getByRole('button', { name: 'Run it again' }).click();
    expect(await verdict(page)).toStartWith('All well');
    await page.getByRole('button', { name: 'Run it again' }).waitFor();
    expect(complaints).toEqual([]);
    await page.context().close();
  });

  test('by keyboard alone', async () => {
    const { page } = await open({ permissions: ['clipboard-read', 'clipboard-write'] });
    const focused = () => page.evaluate('document.activeElement.textContent');
    const websocket = `${url.replace('http', 'ws')}ws`;
    await page.keyboard.press('Tab');
    expect(await focused()).toBe('amesh');
    for (const command of ['', 'amesh listen --relay ', 'amesh invite 482916 --relay ']) {
      await page.keyboard.press('Tab');
      await page.keyboard.press('Space');
      await page.getByRole('button', { name: 'Copied' }).waitFor();
      expect(await page.evaluate('navigator.clipboard.readText()')).toBe(command + websocket);
      await page.getByRole('button', { name: 'Copied' }).waitFor({ state: 'detached' });
    }
    await page.keyboard.press('Tab');
    await page.keyboard.press('Tab');
    expect(await focused()).toBe('Run the check');
    const outline = 'getComputedStyle(document.activeElement).outlineStyle';
    expect(await page.evaluate(outline)).toBe('solid');
    await page.keyboard.press('Enter');
    expect(await verdict(page)).toStartWith('All well');
    expect(await focused()).toBe('Run it again');
    await page.keyboard.press('Tab');
    await page.keyboard.press('Space');
    await page.getByRole('button', { name: 'Copied' }).waitFor();
    const report = await page.evaluate<string>('navigator.clipboard.readText()');
    expect(report).toStartWith(`${websocket}, checked by a browser, `);
    expect(report).toContain('ok      Verdict before goodbye (');
    expect(report).toEndWith('All well: a device gets through from here.\n');
    await page.context().close();
  });

  test('a failed step is shown with what to change', async () => {
    const { page } = await open({}, await startRelay({ maxFrameBytes: 8192 }));
    await page.locator('#run').click();
    expect(await verdict(page)).toBe('A device would not get through from here.');
    expect(await page.locator('#steps li.failed').innerText()).toContain('AMESH_MAX_FRAME_BYTES');
    await page.context().close();
  });

  test('a stopped relay is not shown as up', async () => {
    const relay = await createRelayServer({ port: 0, host: '127.0.0.1', logLevel: 'silent' });
    const { port } = await relay.start();
    const { page } = await open({}, `http://127.0.0.1:${port}/`);
    expect(await page.locator('.state.ok').innerText()).toBe('Up, no sessions');
    await relay.stop();
    await page.locator('#run').click();
    expect(await verdict(page)).toBe('A device would not get through from here.');
    expect(await page.locator('.state:not(.ok)').innerText()).toBe('Does not answer');
    const said = await page.locator('#steps').innerText();
    expect(said).toContain('the relay does not answer any more');
    expect(said).not.toContain('Error');
    await page.context().close();
  });

  test.each([
    ['as a plain request', 'proxy_set_header Upgrade', true, () => undefined],
    ['under another host', 'AMESH_ALLOWED_ORIGINS=http://127.0.0.1:', false, () => undefined],
    [
      'not at all',
      'A proxy answers, and it does not reach the relay',
      true,
      () => new Response('', { status: 502 }),
    ],
    ['elsewhere', 'A WebSocket follows no redirect.', true, () => Response.redirect('/login', 302)],
  ])(
    'no WebSocket opens, as it is passed on %s: as much help as from the command',
    async (_, help, keepsHost, answerSocket) => {
      const server = Bun.serve({
        port: 0,
        hostname: '127.0.0.1',
        fetch: async (request) => {
          const { pathname } = new URL(request.url);
          if (pathname !== '/') {
            return (pathname === '/ws' && answerSocket()) || fetch(url + pathname.slice(1));
          }
          const { accept = '', host = '' } = Object.fromEntries(request.headers);
          return fetch(url, { headers: { accept, ...(keepsHost && { host }) } });
        },
      });
      cleanUps.push(() => server.stop(true));
      const { page } = await open({}, `http://127.0.0.1:${server.port}/`);
      await page.locator('#run').click();
      expect(await verdict(page)).toBe('A device would not get through from here.');
      expect(await page.locator('#steps li.failed').innerText()).toContain(help);
      await page.context().close();
    },
  );

  test('a page of another host is refused, and one that is listed is accepted', async () => {
    const other = `http://localhost:${new URL(url).port}`;
    const listing = await startRelay({ allowedOrigins: [other] });
    const { page } = await open({}, other);
    const opens = (relay: string): Promise<boolean> =>
      page.evaluate(
        (to) =>
          new Promise<boolean>((resolve) => {
            const ws = new WebSocket(to);
            ws.onopen = () => resolve(true);
            ws.onerror = () => resolve(false);
          }),
        `${relay.replace('http:', 'ws:')}ws`,
      );
    // The relay's own page may not connect to other hosts, so this uses a page without a policy.
    await page.goto(`${other}/health`);
    expect([await opens(url), await opens(listing)]).toEqual([false, true]);
    expect(await opens(`${other}/`)).toBe(true);
    await page.context().close();
  });

  test('a private relay: asks for the token, pairs with it, and never shows it', async () => {
    const token = 'a-token-for-the-page_01234';
    const home = await startRelay({ accessToken: token });
    const { page, complaints } = await open(
      { permissions: ['clipboard-read', 'clipboard-write'] },
      home,
    );
    const give = async (text: string): Promise<void> => {
      await page.getByLabel('Your access token').fill(text);
      await page.keyboard.press('Enter');
      await page.locator('#run').click();
    };
    await page.locator('#run').click();
    expect(await verdict(page)).toBe('This relay is private: give it your access token first.');
    await give('no-such-token-0123456');
    await page.locator('#steps li.failed').waitFor();
    expect(await page.locator('#steps li.failed').innerText()).toContain('does not know this');
    complaints.length = 0;
    await give(token);
    await page.getByRole('button', { name: 'Skip' }).click();
    await page.locator('#verdict.ok').waitFor();
    const address = `${home.replace('http:', 'ws:')}ws?token=`;
    expect(await page.locator('.relay').first().innerText()).toBe(`${address}••••••`);
    expect(await page.locator('html').innerHTML()).not.toContain(token);
    await page.getByRole('button', { name: 'Copy' }).nth(1).click();
    await page.getByRole('button', { name: 'Copied' }).waitFor();
    expect(await page.evaluate('navigator.clipboard.readText()')).toBe(
      `amesh listen --relay '${address}${token}'`,
    );
    expect(page.url()).not.toContain(token);
    const stored = 'localStorage.length + sessionStorage.length + document.cookie.length';
    expect(await page.evaluate(stored)).toBe(0);
    expect(complaints).toEqual([]);
    await page.context().close();
  });

  test.skipIf(!nginx)('under a prefix, behind a proxy that forwards no port', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'relay-prefix-'));
    const port = freePort();
    const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi']
      .map((kind) => `${kind}_temp_path ${folder}/${kind};`)
      .join(' ');
    await Bun.write(
      join(folder, 'nginx.conf'),
      `daemon off; pid ${folder}/pid; error_log stderr; events {}
      http {
        access_log off; ${temporary}
        server {
          listen 127.0.0.1:${port};
          location /relay {
            proxy_pass ${url};
            proxy_http_version 1.1;
            proxy_set_header Host $host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection "upgrade";
          }
        }
      }`,
    );
    const proxy = Bun.spawn([nginx as string, '-c', join(folder, 'nginx.conf')]);
    cleanUps.push(async () => {
      proxy.kill();
      await proxy.exited;
      await rm(folder, { recursive: true });
    });
    const home = `http://127.0.0.1:${port}/relay`;
    while (!(await fetch(home).catch(() => undefined))) {
      if (proxy.exitCode !== null) throw new Error('nginx did not start');
      await Bun.sleep(20);
    }
    for (const at of [home, `${home}/`]) {
      const { page, complaints } = await open({}, at);
      expect(await page.locator('.relay').first().innerText()).toBe(
        `ws://127.0.0.1:${port}/relay/ws`,
      );
      await page.locator('#run').click();
      expect(await verdict(page)).toStartWith('All well');
      expect(await page.locator('#health').getAttribute('href')).toBe(`${home}/health`);
      expect(complaints).toEqual([]);
      await page.context().close();
    }
  });

  test('a proxy that the relay counts as the client is a warning', async () => {
    const { page } = await open({ extraHTTPHeaders: { 'x-forwarded-for': '198.51.100.7' } });
    await page.locator('#run').click();
    expect(await verdict(page)).toBe('A device gets through from here, with a warning.');
    expect(await page.locator('#steps li.warning').innerText()).toContain('AMESH_TRUST_PROXY');
    await page.context().close();
  });

  test('without JavaScript', async () => {
    const { page, complaints } = await open({ javaScriptEnabled: false });
    const text = await page.locator('body').innerText();
    expect(text).toContain('Up, no sessions');
    expect(text).toContain(`amesh listen --relay ${url.replace('http', 'ws')}ws`);
    expect(text).toContain('The relay takes you for 127.0.0.1');
    expect(text).toContain('bunx @authmesh/relay check');
    expect(await page.locator('button:visible').count()).toBe(0);
    expect(complaints).toEqual([]);
    await page.context().close();
  });

  for (const viewport of [DESKTOP, PHONE]) {
    for (const colorScheme of ['light', 'dark'] as const) {
      test(`accessible and within the screen: ${viewport.width} px, ${colorScheme}`, async () => {
        const { page } = await open({ viewport, colorScheme });
        await page.locator('#run').click();
        await verdict(page);
        await page.evaluate(axe.source);
        const { violations } = await page.evaluate<axe.AxeResults>(
          "axe.run({ runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'] })",
        );
        expect(violations.map(({ id, nodes }) => `${id}: ${nodes[0]?.html}`)).toEqual([]);
        const overflow = 'document.documentElement.scrollWidth - innerWidth';
        expect(await page.evaluate<number>(overflow)).toBeLessThanOrEqual(0);
        await page.context().close();
      });
    }
  }
});
