/** TLS without a proxy. */
import { afterAll, beforeAll, describe, expect, test } from 'bun:test';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { generate } from 'selfsigned';
import { createRelayServer, TlsError } from '../src/index.ts';
import { run, startProcess } from './support-process.ts';

let folder: string;
const file = (name: string): string => join(folder, name);

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'amesh-relay-tls-'));
  const names = [{ name: 'commonName', value: 'localhost' }];
  const [own, other] = await Promise.all([generate(names), generate(names)]);
  const files = {
    'cert.pem': own.cert,
    'key.pem': own.private,
    'other-key.pem': other.private,
    'chain.pem': `${own.cert}\n${other.cert}`,
    'torn.pem': `${own.cert}\n${other.cert.slice(0, 200)}`,
    'no.pem': 'hello',
  };
  await Promise.all(Object.entries(files).map(([name, text]) => Bun.write(file(name), text)));
});
afterAll(() => rm(folder, { recursive: true }));

describe('TLS', () => {
  test('serves wss:// and https://, says so, and health asks by it', async () => {
    const env = { TLS_CERT_FILE: file('chain.pem'), TLS_KEY_FILE: file('key.pem') };
    await using relay = await startProcess(env);
    const { websocket, health } = relay.listening;
    expect(websocket).toBe(`wss://127.0.0.1:${relay.port}/ws`);
    const tls = {
      ca: await Bun.file(file('cert.pem')).text(),
      checkServerIdentity: () => undefined,
    };
    expect(await (await fetch(health, { tls })).text()).toBe('{"status":"ok","sessions":0}\n');

    const { promise: answer, resolve, reject } = Promise.withResolvers<string>();
    const ws = new WebSocket(websocket, { tls });
    ws.onopen = () => ws.send('{"type":"listen","otc":"482916"}');
    ws.onmessage = ({ data }) => resolve(String(data));
    ws.onerror = () => reject(new Error('no socket'));
    expect(await answer).toBe('{"type":"ack","message":"session_open"}');
    ws.close();

    expect(await run(['health'], { ...env, PORT: String(relay.port) })).toEqual({
      code: 0,
      out: '',
      err: '',
    });
  });

  test.each([
    [
      'no such file',
      'nowhere.pem',
      'key.pem',
      /^TLS_CERT_FILE: \S+nowhere\.pem can't be read \(ENOENT\); /,
    ],
    ['a folder', 'cert.pem', '.', /^TLS_KEY_FILE: \S+ can't be read \(EISDIR\); /],
    [
      'no certificate',
      'no.pem',
      'key.pem',
      /^TLS_CERT_FILE: \S+no\.pem holds no certificate that can be read; /,
    ],
    [
      'no key',
      'cert.pem',
      'cert.pem',
      /^TLS_KEY_FILE: \S+cert\.pem holds no private key .* can be read; /,
    ],
    [
      'a torn chain',
      'torn.pem',
      'key.pem',
      /^TLS_CERT_FILE: \S+torn\.pem holds no certificate chain that can be read; /,
    ],
    [
      'another certificate’s key',
      'cert.pem',
      'other-key.pem',
      /^TLS_KEY_FILE: \S+other-key\.pem is not the key of the certificate in \S+cert\.pem /,
    ],
  ])('%s ends the start with one line that names the setting', async (_, cert, key, message) => {
    const relay = await createRelayServer({
      port: 0,
      host: '127.0.0.1',
      tlsCertFile: file(cert),
      tlsKeyFile: file(key),
      logLevel: 'silent',
    });
    const error = await relay.start().then(
      () => undefined,
      (reason: unknown) => reason,
    );
    expect(error).toBeInstanceOf(TlsError);
    expect((error as TlsError).message).toMatch(message);
    expect((error as TlsError).message).not.toInclude('\n');
  });

  test('the command is 1 for a file that is missing, 2 for one setting without the other', async () => {
    const [TLS_CERT_FILE, TLS_KEY_FILE] = [file('cert.pem'), file('nowhere.pem')];
    const missing = await run([], { PORT: '0', TLS_CERT_FILE, TLS_KEY_FILE });
    expect(missing).toMatchObject({ code: 1, out: '' });
    expect(missing.err).toMatch(/^amesh-relay: TLS_KEY_FILE: .*\n$/);
    expect(await run([], { PORT: '0', TLS_CERT_FILE })).toEqual({
      code: 2,
      out: '',
      err: 'amesh-relay: TLS_KEY_FILE: not set, but TLS_CERT_FILE is; expected both or neither\n',
    });
  });
});
