import { expect, test } from 'bun:test';
import { startRelay } from './support.ts';

const UPGRADE = {
  connection: 'Upgrade',
  upgrade: 'websocket',
  'sec-websocket-version': '13',
  'sec-websocket-key': 'dGhlIHNhbXBsZSBub25jZQ==',
};

test('health is exactly two fields, and counts sessions', async () => {
  const relay = await startRelay();
  const get = async () => (await fetch(`${relay.http}/health`)).text();
  expect(await get()).toBe('{"status":"ok","sessions":0}');
  await relay.pair();
  expect(await get()).toBe('{"status":"ok","sessions":1}');
});

test.each([
  ['GET', '/health', 200],
  ['HEAD', '/health', 200],
  ['GET', '/health?x=1', 200],
  ['POST', '/health', 405],
  ['DELETE', '/health', 405],
  ['PROPFIND', '/health', 405],
  ['GET', '/ws', 400],
  ['HEAD', '/ws', 400],
  ['POST', '/ws', 405],
  ['GET', '/health/', 404],
  ['GET', '/wss', 404],
  ['GET', '/metrics', 404],
  ['GET', '/../etc/passwd', 404],
  ['GET', '/%00', 404],
  ['PUT', '/nope', 404],
])('%s %s: %p', async (method, path, status) => {
  const relay = await startRelay();
  const response = await fetch(relay.http + path, { method });
  expect(response.status).toBe(status);
  expect(response.headers.get('content-type')).toContain('application/json');
  for (const name of ['server', 'x-powered-by', 'via'])
    expect(response.headers.has(name)).toBe(false);
  if (method !== 'HEAD') expect(await response.json()).toBeObject();
});

test('/ws says what a request lacks that is no upgrade', async () => {
  const relay = await startRelay();
  const missing = async (headers: Record<string, string>): Promise<string[]> => {
    const response = await fetch(relay.url.replace(/^ws/, 'http'), { headers });
    expect(response.status).toBe(400);
    return ((await response.json()) as { missing: string[] }).missing;
  };
  expect((await missing({})).map((line) => line.split(':')[0] as string)).toContain('upgrade');
  expect(await missing({ ...UPGRADE, 'sec-websocket-key': 'short' })).toEqual([
    'sec-websocket-key: must be 16 bytes in base64',
  ]);
  expect(await missing({ ...UPGRADE, upgrade: 'h2c' })).toEqual(['upgrade: must be "websocket"']);
});
