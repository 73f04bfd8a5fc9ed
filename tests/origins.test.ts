/** Which web pages may use the relay, and which proxies may set the host and the scheme. */
import { describe, expect, test } from 'bun:test';
import { type OriginRules, originRefusal, parseOrigin } from '../src/admission/origins.ts';
import { openClient, startRelay, type TestRelay } from './support.ts';

test.each([
  ['https://app.example.com', 'https://app.example.com'],
  ['HTTPS://App.Example.COM:443', 'https://app.example.com'],
  ['http://app.example.com:80', 'http://app.example.com'],
  ['http://app.example.com:8080', 'http://app.example.com:8080'],
  ['http://[2001:DB8::1]:80', 'http://[2001:db8::1]'],
  ['chrome-extension://abcdef', 'chrome-extension://abcdef'],
  ['https://app.example.com/', undefined],
  ['https://app.example.com?x', undefined],
  ['https://user@app.example.com', undefined],
  ['https://a.example, https://b.example', undefined],
  ['https://*.example.com', undefined],
  ['https://app.example.com:99999', undefined],
  ['https://', undefined],
  ['app.example.com', undefined],
  ['null', undefined],
  ['', undefined],
])('the origin %p is %p', (text, origin) => {
  expect(parseOrigin(text)).toBe(origin as string);
});

const isIn = (
  headers: Record<string, string>,
  { allowed = [], isTls = false }: Partial<OriginRules> = {},
  trusted = false,
): boolean => originRefusal(new Headers(headers), { allowed, isTls }, () => trusted) === undefined;

describe('whether a page is the relay’s own', () => {
  test.each([
    ['https://relay.test', 'relay.test', true],
    ['http://relay.test', 'relay.test', true],
    ['https://relay.test', 'relay.test:443', true],
    ['https://relay.test:443', 'relay.test', true],
    ['http://relay.test', 'relay.test:80', true],
    ['https://Relay.Test', 'RELAY.test', true],
    ['http://relay.test:3001', 'relay.test:3001', true],
    ['http://[::1]:3001', '[::1]:3001', true],
    ['https://relay.test:8443', 'relay.test', true],
    ['http://relay.test', 'relay.test:443', false],
    ['https://relay.test', 'relay.test:80', false],
    ['https://relay.test', 'relay.test:3001', false],
    ['http://relay.test:3002', 'relay.test:3001', false],
    ['https://evil.test', 'relay.test', false],
    ['https://relay.test.evil.test', 'relay.test', false],
    ['https://evil-relay.test', 'relay.test', false],
    ['https://relay.test@evil.test', 'relay.test', false],
    ['https://relay.test.', 'relay.test', false],
    ['chrome-extension://relay.test', 'relay.test', false],
    ['https://relay.test, https://evil.test', 'relay.test', false],
    ['https://evil.test', 'relay.test, evil.test', false],
    ['https://evil.test', 'relay.test@evil.test', false],
    ['https://relay.test', '', false],
    ['null', 'relay.test', false],
    ['', 'relay.test', false],
  ])('%p at the host %p: %p', (origin, host, own) => {
    expect(isIn({ origin, host })).toBe(own);
  });

  test('a page without TLS is never the own page of a relay with TLS', () => {
    const origin = 'http://relay.test';
    expect(isIn({ origin, host: 'relay.test' }, { isTls: true })).toBe(false);
    const forwarded = { origin, host: 'relay.test', 'x-forwarded-proto': 'https' };
    expect(isIn(forwarded, {}, true)).toBe(false);
    expect(isIn(forwarded, {}, false)).toBe(true);
    expect(isIn({ ...forwarded, origin: 'https://relay.test' }, {}, true)).toBe(true);
  });

  test('a proxy says which host the browser shows, if it is trusted', () => {
    const shown = {
      origin: 'https://relay.test',
      host: '127.0.0.1:3001',
      'x-forwarded-host': 'relay.test, inner.test',
    };
    expect(isIn(shown, {}, true)).toBe(true);
    expect(isIn(shown, {}, false)).toBe(false);
    expect(isIn({ ...shown, origin: 'http://127.0.0.1:3001' }, {}, true)).toBe(false);
    expect(isIn({ ...shown, origin: 'https://inner.test' }, {}, true)).toBe(false);
  });

  test('the address of the proxy is asked for only if it is needed', () => {
    const never = (): boolean => {
      throw new Error('asked');
    };
    const rules = { allowed: [], isTls: false };
    expect(originRefusal(new Headers({ host: 'relay.test' }), rules, never)).toBeUndefined();
    const own = new Headers({ host: 'relay.test', origin: 'https://relay.test' });
    expect(originRefusal(own, rules, never)).toBeUndefined();
  });
});

test('pages of other hosts are accepted if they are listed, or if all are allowed', () => {
  const host = 'relay.test';
  const allowed = ['https://app.test'];
  expect(isIn({ host, origin: 'https://app.test' }, { allowed })).toBe(true);
  expect(isIn({ host, origin: 'https://APP.test:443' }, { allowed })).toBe(true);
  expect(isIn({ host, origin: 'http://app.test' }, { allowed })).toBe(false);
  expect(isIn({ host, origin: 'https://app.test:8443' }, { allowed })).toBe(false);
  expect(isIn({ host, origin: 'https://sub.app.test' }, { allowed })).toBe(false);
  expect(isIn({ host, origin: 'https://relay.test' }, { allowed })).toBe(true);
  for (const origin of ['https://evil.test', 'null', 'anything']) {
    expect(isIn({ host, origin }, { allowed: ['*'] })).toBe(true);
  }
});

/** The status of a plain request to /ws: 400 means that it is allowed, and only the upgrade is missing. */
const statusOf = async (relay: TestRelay, headers: Record<string, string>): Promise<number> =>
  (await fetch(relay.url.replace('ws', 'http'), { headers })).status;

describe('over a socket', () => {
  test('a page of another host is refused before the upgrade, and the answer says what to set', async () => {
    const relay = await startRelay({ logClients: true });
    const origin = 'https://evil.test';
    const response = await fetch(relay.url.replace('ws', 'http'), { headers: { origin } });
    expect(response.status).toBe(403);
    const { error, message } = (await response.json()) as { error: string; message: string };
    expect(error).toBe('origin_refused');
    expect(message).toContain('AMESH_ALLOWED_ORIGINS=https://evil.test');
    expect(message).toContain(`127.0.0.1:${relay.port}`);
    expect(await openClient(relay.url, { headers: { origin } }).catch(String)).toContain(
      'did not open',
    );
    expect(relay.sockets.stats.turnedAway.origin_refused).toBe(2);
    const own = await openClient(relay.url, { headers: { origin: relay.http } });
    await own.refused({ type: 'connect', otc: '000001' }, 'otc_not_found');
    expect(await statusOf(relay, { origin: '<script>' })).toBe(403);
  });

  test('a page of another host does not use up its visitor’s wrong tokens', async () => {
    const token = 'n5Jk-Zq_3vWcR8sTx0bLmD2y';
    const relay = await startRelay({ accessToken: token });
    const guess = (query: string, headers: Record<string, string>) =>
      fetch(`${relay.url.replace('ws', 'http')}?token=${query}`, { headers });
    for (let i = 0; i < 20; i += 1) {
      expect((await guess('wrong-0123456789abc', { origin: 'https://evil.test' })).status).toBe(
        403,
      );
    }
    expect((await guess(token, {})).status).toBe(400);
  });

  test('a forwarded host counts only from a proxy that is trusted', async () => {
    const headers = { origin: 'https://relay.test', 'x-forwarded-host': 'relay.test' };
    expect(await statusOf(await startRelay(), headers)).toBe(403);
    expect(await statusOf(await startRelay({ trustProxy: '1' }), headers)).toBe(400);
    const trusting = (...trustedProxies: string[]): Promise<TestRelay> =>
      startRelay({ trustProxy: '1', trustedProxies });
    expect(await statusOf(await trusting('127.0.0.0/8'), headers)).toBe(400);
    expect(await statusOf(await trusting('10.0.0.0/8', '::1'), headers)).toBe(403);
  });

  test('an address counts only from a proxy that is trusted, and so do host and scheme', async () => {
    const facts = async (...trustedProxies: string[]): Promise<object> => {
      const relay = await startRelay({ trustProxy: 'hops:1', trustedProxies });
      const headers = {
        'x-forwarded-for': '198.51.100.7',
        'x-forwarded-host': 'relay.test',
        'x-forwarded-proto': 'https',
      };
      const { client, websocket } = (await (await fetch(relay.http, { headers })).json()) as {
        client: { address: string };
        websocket: string;
      };
      const told = relay.log.lines.filter((line) => line.includes('AMESH_TRUSTED_PROXIES'));
      return { address: client.address, websocket: websocket.replace(/\d{4,}/, 'PORT'), told };
    };
    expect(await facts('127.0.0.1')).toEqual({
      address: '198.51.100.7',
      websocket: 'wss://relay.test/ws',
      told: [],
    });
    expect(await facts('127.0.0.2', 'fd00::/8')).toMatchObject({
      address: '127.0.0.1',
      websocket: 'ws://127.0.0.1:PORT/ws',
      told: [expect.not.stringContaining('198.51')],
    });
  });
});
