import { describe, expect, test } from 'bun:test';
import { pathOf } from '../src/http.ts';
import { startRelay, within } from './support.ts';

const UPGRADE = {
  connection: 'Upgrade',
  upgrade: 'websocket',
  'sec-websocket-version': '13',
  'sec-websocket-key': 'dGhlIHNhbXBsZSBub25jZQ==',
};

/** Sends text over TCP. Resolves to the answer, up to the end of the headers or of the connection. */
async function raw(port: number, text: string, end: string): Promise<string> {
  const answered = Promise.withResolvers<string>();
  let answer = '';
  const socket = await Bun.connect({
    hostname: '127.0.0.1',
    port,
    socket: {
      data(_socket, bytes) {
        answer += bytes.toString();
        if (answer.includes(end)) answered.resolve(answer);
      },
      close: () => answered.resolve(answer),
    },
  });
  socket.write(text);
  const all = await within(answered.promise, 'an answer');
  socket.end();
  return all;
}

test('health has exactly two fields, and counts sessions', async () => {
  const relay = await startRelay();
  const get = async () => (await fetch(`${relay.http}/health`)).text();
  expect(await get()).toBe('{"status":"ok","sessions":0}\n');
  await relay.pair();
  expect(await get()).toBe('{"status":"ok","sessions":1}\n');
});

test('livez answers while the relay drains, when health is 503', async () => {
  const relay = await startRelay();
  const { target } = await relay.pair();
  const stopped = relay.server.stop({ drain: true });
  const health = await fetch(`${relay.http}/health`);
  expect([health.status, await health.text()]).toEqual([
    503,
    '{"status":"draining","sessions":1}\n',
  ]);
  const alive = await fetch(`${relay.http}/livez`);
  expect([alive.status, await alive.text()]).toEqual([200, '{"status":"alive"}\n']);
  target.send({ type: 'done' });
  await stopped;
});

test.each([
  ['GET', '/health', 200],
  ['HEAD', '/health', 200],
  ['GET', '/health?x=1', 200],
  ['GET', '//health', 200],
  ['POST', '/health', 405],
  ['DELETE', '/health', 405],
  ['PROPFIND', '/health', 405],
  ['POST', '/livez', 405],
  ['POST', '/', 405],
  ['GET', '/ws', 400],
  ['GET', '//ws', 400],
  ['HEAD', '/ws', 400],
  ['POST', '/ws', 405],
  ['OPTIONS', '/ws', 405],
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
  expect(response.headers.get('allow')).toBe(status === 405 ? 'GET, HEAD' : null);
  for (const name of ['server', 'x-powered-by', 'via'])
    expect(response.headers.has(name)).toBe(false);
  if (method !== 'HEAD') expect(await response.json()).toBeObject();
});

test('a path that is too long gets 414, whatever it begins with', async () => {
  const relay = await startRelay();
  for (const path of [`/${'x'.repeat(256)}`, `${'/'.repeat(300)}health`, '/'.repeat(14_000)]) {
    const answer = await raw(relay.port, `GET ${path} HTTP/1.1\r\nHost: a\r\n\r\n`, '}\n');
    expect(answer).toStartWith('HTTP/1.1 414 ');
  }
  expect((await fetch(`${relay.http}/${'x'.repeat(255)}`)).status).toBe(404);
  expect((await fetch(`${relay.http}/health?${'x'.repeat(5000)}`)).status).toBe(200);
});

test.each([
  ['http://relay.test/health', '/health'],
  ['https://relay.test:8443/ws?token=/a//b', '/ws'],
  ['http://[::1]:3001//ws', '/ws'],
  ['http://relay.test', '/'],
  ['http://relay.test?x', '/'],
  ['/health', '/health'],
  ['///health?x', '/health'],
  ['//relay.test/health', '/relay.test/health'],
  ['/health#x', '/health'],
])('the path of %s is %p', (url, path) => {
  expect(pathOf({ url })).toBe(path);
});

describe('a request that is unusual in its first lines', () => {
  test.each([
    ['of HTTP/1.0 without a Host', 'GET PATH HTTP/1.0\r\n'],
    ['of HTTP/1.0 with one', 'GET PATH HTTP/1.0\r\nHost: relay.test\r\n'],
    ['with an empty Host', 'GET PATH HTTP/1.1\r\nHost:\r\n'],
    ['with a Host that is none', 'GET PATH HTTP/1.1\r\nHost: a b/c\r\n'],
    ['with an absolute target', 'GET http://other.test:80PATH HTTP/1.1\r\nHost: relay.test\r\n'],
    ['with an absolute target and no Host', 'GET http://other.testPATH HTTP/1.0\r\n'],
    ['with doubled slashes', 'GET /PATH HTTP/1.1\r\nHost: relay.test\r\n'],
  ])('%s gets /health and a WebSocket', async (_what, head) => {
    const relay = await startRelay();
    const health = await raw(relay.port, `${head.replace('PATH', '/health')}\r\n`, '}\n');
    expect(health).toStartWith('HTTP/1.1 200 ');
    expect(health).toEndWith('{"status":"ok","sessions":0}\n');
    const fields = Object.entries(UPGRADE).map(([name, value]) => `${name}: ${value}\r\n`);
    const upgrade = `${head.replace('PATH', '/ws')}${fields.join('')}\r\n`;
    expect(await raw(relay.port, upgrade, '\r\n\r\n')).toStartWith('HTTP/1.1 101 ');
  });
});

test('HEAD gives the length that GET would have', async () => {
  const relay = await startRelay();
  for (const path of ['/health', '/livez', '/', '/nope']) {
    const { length } = await (await fetch(relay.http + path)).bytes();
    const answer = await raw(
      relay.port,
      `HEAD ${path} HTTP/1.1\r\nHost: ${relay.http.slice(7)}\r\n\r\n`,
      '\r\n\r\n',
    );
    expect(answer.toLowerCase()).toContain(`content-length: ${length}\r\n`);
    expect(answer).toEndWith('\r\n\r\n');
  }
});

test('a page on another site may read only what is public', async () => {
  const relay = await startRelay();
  const origin = 'https://status.example.com';
  const allowed = async (path: string, method = 'GET'): Promise<string | null> => {
    const response = await fetch(relay.http + path, { method, headers: { origin } });
    return response.headers.get('access-control-allow-origin');
  };
  for (const path of ['/health', '/livez', '/']) {
    expect(await allowed(path)).toBe('*');
    const preflight = await fetch(relay.http + path, {
      method: 'OPTIONS',
      headers: { origin, 'access-control-request-method': 'GET' },
    });
    expect(preflight.status).toBe(204);
    expect(preflight.headers.get('access-control-allow-methods')).toBe('GET,HEAD');
    expect(preflight.headers.has('access-control-allow-credentials')).toBe(false);
  }
  expect(await allowed('/ws')).toBeNull();
  expect(await allowed('/nope')).toBeNull();
});

test('/ws says what is missing in a request that is not an upgrade', async () => {
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

test.each([
  ['chat, super.chat', 101],
  ['a b', 400],
  ['@{}', 400],
  ['a,,b', 400],
  ['', 400],
])('a request with the subprotocols %p gets %p', async (protocols, status) => {
  const relay = await startRelay();
  const headers = Object.entries({ ...UPGRADE, 'sec-websocket-protocol': protocols });
  const lines = headers.map(([name, value]) => `${name}: ${value}`);
  const answer = await raw(
    relay.port,
    ['GET /ws HTTP/1.1', 'Host: relay', ...lines, '\r\n'].join('\r\n'),
    '\r\n\r\n',
  );
  expect(answer).toStartWith(`HTTP/1.1 ${status} `);
});

test.each([
  ['1', '/relay/', '/relay/ws'],
  ['1', '/a/b', '/a/b/ws'],
  ['1', '/"><script>', '/ws'],
  ['0', '/relay', '/ws'],
])('with AMESH_TRUST_PROXY=%s the prefix %p leads to %p', async (trustProxy, prefix, path) => {
  const relay = await startRelay({ trustProxy });
  const headers = { 'x-forwarded-prefix': prefix };
  const facts = (await (await fetch(relay.http, { headers })).json()) as { websocket: string };
  expect(new URL(facts.websocket).pathname).toBe(path);
});
