/** `amesh-relay health`, as a container's health check runs it. */
import { describe, expect, test } from 'bun:test';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { flagsIn } from '../src/check/health.ts';
import { run, startProcess } from './support-process.ts';

describe('amesh-relay health', () => {
  test('is silent and 0 when the relay is well, by PORT as by --port', async () => {
    await using relay = await startProcess();
    const well = { code: 0, out: '', err: '' };
    expect(await run(['health'], { PORT: String(relay.port) })).toEqual(well);
    expect(await run(['health', '--port', String(relay.port)])).toEqual(well);
    expect(await run(['health', '--host', 'localhost', '-p', String(relay.port)])).toEqual(well);
  });

  test('asks the relay here, whatever proxy the environment names', async () => {
    await using relay = await startProcess();
    const proxy = 'http://127.0.0.1:9';
    const env = { PORT: String(relay.port), http_proxy: proxy, HTTP_PROXY: proxy };
    expect(await run(['health'], env)).toEqual({ code: 0, out: '', err: '' });
  });

  test('says in one line that nobody listens, and is 1', async () => {
    await using relay = await startProcess();
    relay.process.kill('SIGKILL');
    await relay.process.exited;
    const { code, out, err } = await run(['health'], { PORT: String(relay.port) });
    expect({ code, out }).toEqual({ code: 1, out: '' });
    expect(err).toMatch(
      /^amesh-relay: http:\/\/127\.0\.0\.1:\d+\/health: nothing listens there; .+\n$/,
    );
  });

  test('is 1 while the relay drains', async () => {
    await using relay = await startProcess();
    const { promise: acknowledged, resolve } = Promise.withResolvers<unknown>();
    const target = new WebSocket(relay.listening.websocket);
    target.onopen = () => target.send('{"type":"listen","otc":"482916"}');
    target.onmessage = resolve;
    await acknowledged;
    relay.process.kill('SIGTERM');
    while ((await fetch(relay.listening.health)).ok) await Bun.sleep(5);
    const { code, err } = await run(['health'], { PORT: String(relay.port) });
    expect({ code, err }).toEqual({
      code: 1,
      err: `amesh-relay: ${relay.listening.health}: answered 503 "draining"\n`,
    });
    target.send('{"type":"done"}');
    expect(await relay.process.exited).toBe(0);
  });

  test('says that port 0 is no port to ask', async () => {
    const { code, out, err } = await run(['health'], { PORT: '0' });
    expect({ code, out }).toEqual({ code: 1, out: '' });
    expect(err).toMatch(
      /^amesh-relay: port 0 means that the system chose one; give the port .+\n$/,
    );
  });

  test('is 1 for something that is no relay, and for something that never answers', async () => {
    using other = Bun.serve({ port: 0, hostname: '127.0.0.1', fetch: () => new Response('hello') });
    const stranger = await run(['health', '-p', String(other.port)]);
    expect(stranger).toMatchObject({ code: 1, out: '' });
    expect(stranger.err).toEndWith('/health: answered 200 and is no relay\n');

    const { promise: listening, resolve } = Promise.withResolvers<void>();
    const mute = createServer().listen(0, '127.0.0.1', resolve);
    await listening;
    const { port } = mute.address() as { port: number };
    const silence = await run(['health', '-p', String(port)]);
    expect(silence).toMatchObject({ code: 1, out: '' });
    expect(silence.err).toEndWith('/health: no answer within 1.5 s\n');
    mute.close();
  });

  test('says in one line that the port speaks TLS, and the other way round', async () => {
    const { generate } = await import('selfsigned');
    const pems = await generate([{ name: 'commonName', value: 'relay.test' }]);
    const folder = await mkdtemp(join(tmpdir(), 'amesh-relay-test-'));
    const [TLS_CERT_FILE, TLS_KEY_FILE] = [join(folder, 'cert.pem'), join(folder, 'key.pem')];
    await Bun.write(TLS_CERT_FILE, pems.cert);
    await Bun.write(TLS_KEY_FILE, pems.private);
    const files = { TLS_CERT_FILE, TLS_KEY_FILE };
    await using secure = await startProcess(files);
    expect(await run(['health'], { PORT: String(secure.port), ...files })).toEqual({
      code: 0,
      out: '',
      err: '',
    });
    const plainly = await run(['health'], { PORT: String(secure.port) });
    expect(plainly).toMatchObject({ code: 1, out: '' });
    expect(plainly.err).toMatch(
      /^amesh-relay: http:\S+: no answer over HTTP; .+ TLS_CERT_FILE.+\n$/,
    );
    await using plain = await startProcess();
    const securely = await run(['health'], { PORT: String(plain.port), ...files });
    expect(securely.err).toMatch(/^amesh-relay: https:\S+: no answer over TLS; .+\n$/);
    await rm(folder, { recursive: true });
  });

  test.each([
    [
      ['bun', '--env-file=/dev/null', '/usr/local/bin/amesh-relay', '--port', '4000'],
      ['--port', '4000'],
    ],
    [
      ['docker-init', '--', 'amesh-relay', '-p', '4000'],
      ['-p', '4000'],
    ],
    [['bun', '/app/bin/amesh-relay.js'], []],
    [['amesh-relay', 'check', '--json'], []],
    [['/sbin/init', '--port', '4000'], []],
    [['sh', '-c', 'amesh-relay --port 4000'], []],
  ])('knows the flags of process 1 if that is a relay: %p', (words, flags) => {
    expect(flagsIn(`${words.join('\0')}\0`)).toEqual(flags);
  });

  test('takes wrong usage as the relay does: one line, and 2', async () => {
    for (const args of [['--port', 'x'], ['--nope'], ['extra'], ['--port']]) {
      const { code, out, err } = await run(['health', ...args]);
      expect({ args, code, out, lines: err.split('\n').length - 1 }).toEqual({
        args,
        code: 2,
        out: '',
        lines: 1,
      });
    }
  });
});
