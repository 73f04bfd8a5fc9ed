/** Certificates that are renewed while the relay runs. */
import { describe, expect, test } from 'bun:test';
import { X509Certificate } from 'node:crypto';
import { mkdir, mkdtemp, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connect } from 'node:tls';
import { generate } from 'selfsigned';
import type { Connection } from '../src/connection.ts';
import { createRelayServer, ListenError } from '../src/index.ts';
import { createRegistry } from '../src/observe/metrics.ts';
import { endWarning } from '../src/tls.ts';
import { afterThisTest, type Client, openClient, startRelay, TestRelay, until } from './support.ts';

const DAY_MS = 86_400_000;
/** Within the life of every certificate here, and before the last third of it. */
const NOW = Date.UTC(2026, 0, 2);

const pair = (days = 90): Promise<{ cert: string; private: string }> =>
  generate([{ name: 'commonName', value: 'localhost' }], {
    notBeforeDate: new Date(NOW - DAY_MS),
    notAfterDate: new Date(NOW + days * DAY_MS),
  });
const [first, second] = await Promise.all([pair(), pair(45)]);
const endOf = (pem: string): number => new X509Certificate(pem).validToDate.getTime() / 1000;

/** A relay that serves `first` from two files, what it has logged since, and ways to look at it from outside. */
class Fixture {
  private constructor(
    readonly folder: string,
    readonly relay: TestRelay,
  ) {}

  static async start(folder: string): Promise<Fixture> {
    const [tlsCertFile, tlsKeyFile] = [join(folder, 'cert.pem'), join(folder, 'key.pem')];
    const relay = new TestRelay({ tlsCertFile, tlsKeyFile });
    ({ port: relay.port } = await relay.server.start());
    afterThisTest(() => relay.server.stop());
    const fixture = new Fixture(folder, relay);
    fixture.newLines();
    return fixture;
  }

  static async withFiles(): Promise<Fixture> {
    const folder = await emptyFolder();
    await put(folder, first);
    return Fixture.start(folder);
  }

  look(now = NOW): Promise<void> {
    return this.relay.server.renewCertificate(now);
  }

  /** Looks, and once more, whereupon only the newest listener is left on any system. */
  async lookTwice(): Promise<void> {
    await this.look();
    await this.look();
  }

  put(files: Partial<Awaited<ReturnType<typeof pair>>>): Promise<void> {
    return put(this.folder, files);
  }

  /** The end of the certificate that a newcomer is shown, in seconds. */
  served(): Promise<number> {
    const { port } = this.relay;
    return new Promise((resolve, reject) => {
      const socket = connect({ host: '127.0.0.1', port, rejectUnauthorized: false }, () => {
        const { valid_to: end } = socket.getPeerCertificate();
        socket.destroy();
        resolve(Date.parse(end) / 1000);
      });
      socket.on('error', reject);
    });
  }

  client(): Promise<Client> {
    const url = this.relay.url.replace('ws:', 'wss:');
    return openClient(url, { tls: { rejectUnauthorized: false } });
  }

  /** The lines of the log since the last call, without those about single clients. */
  newLines(): string[] {
    return this.relay.log.lines
      .splice(0)
      .map((line) => JSON.parse(line) as { level: string; message: string })
      .filter(({ level }) => level !== 'debug')
      .map(({ level, message }) => `${level}: ${message}`);
  }
}

async function emptyFolder(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'amesh-certificates-'));
  afterThisTest(() => rm(folder, { recursive: true }));
  return folder;
}

async function put(
  folder: string,
  files: Partial<Awaited<ReturnType<typeof pair>>>,
): Promise<void> {
  if (files.cert !== undefined) await writeFile(join(folder, 'cert.pem'), files.cert);
  if (files.private !== undefined) await writeFile(join(folder, 'key.pem'), files.private);
}

/** Fails unless frames go both ways. */
async function exchange(one: Client, other: Client): Promise<void> {
  for (const [from, to] of [
    [one, other],
    [other, one],
  ] as const) {
    for (let i = 0; i < 20; i += 1) from.send({ type: 'data', payload: `frame ${i}` });
    for (let i = 0; i < 20; i += 1) await to.expect({ type: 'data', payload: `frame ${i}` });
  }
}

async function listens(fixture: Fixture, otc: string): Promise<Client> {
  const target = await fixture.client();
  target.send({ type: 'listen', otc });
  await target.expect({ type: 'ack', message: 'session_open' });
  return target;
}

async function joins(fixture: Fixture, target: Client, otc: string): Promise<Client> {
  const controller = await fixture.client();
  controller.send({ type: 'connect', otc });
  for (const peer of [target, controller]) await peer.expect({ type: 'peer_found' });
  return controller;
}

/** A target that came before a renewal, and its controller, which came after it. */
async function pairAcross(fixture: Fixture): Promise<[target: Client, controller: Client]> {
  const target = await listens(fixture, '000001');
  await fixture.put(second);
  await fixture.lookTwice();
  return [target, await joins(fixture, target, '000001')];
}

const CHANGED = 'info: the certificate has changed';

describe('a renewed certificate', () => {
  test('is for newcomers; open and waiting sessions go on, and pair with newcomers', async () => {
    const fixture = await Fixture.withFiles();
    const target = await listens(fixture, '000001');
    const controller = await joins(fixture, target, '000001');
    const waiting = await listens(fixture, '000002');
    await exchange(target, controller);
    expect(await fixture.served()).toBe(endOf(first.cert));

    await fixture.put(second);
    await fixture.look();
    // Elsewhere either listener may get a newcomer until the next look.
    if (process.platform !== 'linux') await fixture.look();
    expect(await fixture.served()).toBe(endOf(second.cert));
    expect(fixture.newLines()).toEqual([CHANGED]);
    await exchange(target, controller);
    const newcomer = await joins(fixture, waiting, '000002');
    await exchange(waiting, newcomer);
    expect(fixture.relay.sockets.connections.size).toBe(4);

    // From the second look on the first listener is closed.
    await fixture.look();
    expect(await fixture.served()).toBe(endOf(second.cert));
    await exchange(target, controller);
    await exchange(newcomer, waiting);
    const both = await listens(fixture, '000003');
    await exchange(both, await joins(fixture, both, '000003'));
    expect(fixture.newLines()).toEqual([]);

    newcomer.send({ type: 'done' });
    await waiting.expect({ type: 'done' });
    controller.close();
    await target.expectError('peer_disconnected');
  });

  test('divides a pair of which one side does not read, as before', async () => {
    const fixture = await Fixture.withFiles();
    const [target, controller] = await pairAcross(fixture);
    // A stalled socket, as Bun reports it: what it is sent is lost.
    const [oldest] = fixture.relay.sockets.connections.all() as Iterable<Connection>;
    if (oldest) oldest.ws.sendText = () => 0;
    controller.send({ type: 'data', payload: 'x' });
    await controller.expectClose(4004, 'slow_consumer');
    await target.expectClose(4004, 'slow_consumer');
  });

  test('counts every socket against the limit, and stops with all of them', async () => {
    const fixture = await Fixture.withFiles();
    fixture.relay.sockets.connections.maxConnections = 2;
    const old = await fixture.client();
    await fixture.put(second);
    await fixture.lookTwice();
    const newcomer = await fixture.client();
    const third = await fixture.client();
    await third.expectClose(1013, 'too_many_connections');
    await fixture.relay.server.stop();
    await old.expectClose(1001, 'relay_shutting_down');
    await newcomer.expectClose(1001, 'relay_shutting_down');
    expect(await fixture.served().catch(() => 'refused')).toBe('refused');
  });

  test('drains what came in by either listener', async () => {
    const fixture = await Fixture.withFiles();
    const [target, controller] = await pairAcross(fixture);
    const stopped = fixture.relay.server.stop({ drain: 60_000 });
    await exchange(target, controller);
    const late = await fixture.client();
    await late.expectError('relay_draining');
    await fixture.lookTwice();
    expect(await fixture.served()).toBe(endOf(second.cert));
    controller.send({ type: 'done' });
    await target.expect({ type: 'done' });
    await stopped;
    await target.expectClose(1001, 'relay_shutting_down');
    await controller.expectClose(1001, 'relay_shutting_down');
  });

  test('is seen behind a symbolic link that leads elsewhere, as certbot and Kubernetes do it', async () => {
    const folder = await emptyFolder();
    for (const [name, files] of Object.entries({ first, second })) {
      await mkdir(join(folder, name));
      await put(join(folder, name), files);
    }
    await symlink('first', join(folder, 'data'));
    for (const name of ['cert.pem', 'key.pem']) {
      await symlink(`data/${name}`, join(folder, name));
    }
    const fixture = await Fixture.start(folder);
    await symlink('second', join(folder, 'next'));
    await rename(join(folder, 'next'), join(folder, 'data'));
    await fixture.lookTwice();
    expect(await fixture.served()).toBe(endOf(second.cert));
    expect(fixture.newLines()).toEqual([CHANGED]);
  });
});

describe('a pair that cannot be used leaves the old one in service, with one warning', () => {
  test.each<[string, (fixture: Fixture) => Promise<void>, RegExp]>([
    [
      'a certificate half written',
      (fixture) => fixture.put({ cert: second.cert.slice(0, 300) }),
      /^warn: TLS_CERT_FILE: \S+cert\.pem holds no certificate that can be read; .+ stays in service$/,
    ],
    [
      'a key half written',
      (fixture) => fixture.put({ ...second, private: second.private.slice(0, 300) }),
      /^warn: TLS_KEY_FILE: \S+key\.pem holds no private key .+ stays in service$/,
    ],
    [
      'a new certificate with the old key',
      (fixture) => fixture.put({ cert: second.cert }),
      /^warn: TLS_KEY_FILE: \S+key\.pem is not the key of the certificate .+ stays in service$/,
    ],
    [
      'an empty file',
      (fixture) => fixture.put({ cert: '' }),
      /^warn: TLS_CERT_FILE: \S+cert\.pem holds no certificate .+ stays in service$/,
    ],
    [
      'a file that has vanished',
      ({ folder }) => rm(join(folder, 'key.pem')),
      /^warn: TLS_KEY_FILE: \S+key\.pem can't be read \(ENOENT\); .+ stays in service$/,
    ],
  ])('%s', async (_, spoil, warning) => {
    const fixture = await Fixture.withFiles();
    const target = await listens(fixture, '000001');
    await spoil(fixture);
    for (let i = 0; i < 3; i += 1) await fixture.look();
    const lines = fixture.newLines();
    expect(lines).toHaveLength(1);
    expect(lines[0]).toMatch(warning);
    expect(await fixture.served()).toBe(endOf(first.cert));
    await exchange(target, await joins(fixture, target, '000001'));

    // The same trouble another time is another warning; what is served does not change meanwhile.
    await fixture.put(first);
    await fixture.look();
    expect(fixture.newLines()).toEqual([]);
    await spoil(fixture);
    await fixture.look();
    expect(fixture.newLines()).toHaveLength(1);

    await fixture.put(second);
    await fixture.lookTwice();
    expect(await fixture.served()).toBe(endOf(second.cert));
    expect(fixture.newLines()).toEqual([CHANGED]);
  });
});

describe('the end of a certificate', () => {
  const validity = { from: 0, to: 90 * DAY_MS };
  test.each([
    ['a third of its life is left', 60 * DAY_MS, undefined],
    ['less is left', 60 * DAY_MS + 1, 'ends soon'],
    ['one millisecond is left', 90 * DAY_MS - 1, 'ends soon'],
    ['it has ended', 90 * DAY_MS, 'has ended'],
  ])('%s', (_, now, warning) => {
    const said = endWarning(validity, now);
    if (warning === undefined) expect(said).toBeUndefined();
    else expect(said).toInclude(warning);
  });

  test('is warned of once a day, at once when it has come, and with each renewed pair', async () => {
    const fixture = await Fixture.withFiles();
    const ends = endOf(first.cert) * 1000;
    const soon = expect.stringMatching(/^warn: the certificate ends soon/);
    const ended = expect.stringMatching(/^warn: the certificate has ended/);
    const said = async (now: number): Promise<string[]> => {
      await fixture.look(now);
      return fixture.newLines();
    };
    expect(await said(NOW)).toEqual([]);
    expect(await said(ends - 2 * DAY_MS)).toEqual([soon]);
    expect(await said(ends - 2 * DAY_MS + 10_000)).toEqual([]);
    expect(await said(ends - DAY_MS)).toEqual([soon]);
    expect(await said(ends)).toEqual([ended]);
    expect(await said(ends + 10_000)).toEqual([]);
    await fixture.put(second);
    expect(await said(ends + 20_000)).toEqual([CHANGED, ended]);
    await fixture.put(await pair(400));
    expect(await said(ends + 30_000)).toEqual([CHANGED]);
  });

  test('is a metric, absent without TLS', async () => {
    const name = 'amesh_relay_tls_certificate_not_after_seconds';
    const scraped = async (relay: TestRelay): Promise<string[]> =>
      (await createRegistry(relay.sockets).metrics())
        .split('\n')
        .filter((line) => line.startsWith(name));
    expect(await scraped(await startRelay())).toEqual([]);
    const fixture = await Fixture.withFiles();
    expect(await scraped(fixture.relay)).toEqual([`${name} ${endOf(first.cert)}`]);
    await fixture.put(second);
    await fixture.look();
    expect(await scraped(fixture.relay)).toEqual([`${name} ${endOf(second.cert)}`]);
  });

  test('is warned of at the start too', async () => {
    const folder = await emptyFolder();
    await put(folder, await pair(-0.5));
    const warned: string[] = [];
    const relay = await createRelayServer({
      port: 0,
      host: '127.0.0.1',
      tlsCertFile: join(folder, 'cert.pem'),
      tlsKeyFile: join(folder, 'key.pem'),
      log: (level, message) => void (level === 'warn' && warned.push(message)),
    });
    await relay.start();
    afterThisTest(() => relay.stop());
    expect(warned).toEqual([expect.stringMatching(/^the certificate has ended/)]);
  });
});

test('a second relay on the port of one with TLS is refused, as on any other', async () => {
  const fixture = await Fixture.withFiles();
  const relay = await createRelayServer({
    port: fixture.relay.port,
    host: '127.0.0.1',
    tlsCertFile: join(fixture.folder, 'cert.pem'),
    tlsKeyFile: join(fixture.folder, 'key.pem'),
  });
  const error = await relay.start().catch((reason: unknown) => reason);
  expect(error).toBeInstanceOf(ListenError);
  expect((error as ListenError).message).toMatch(/^port \(PORT\): \d+ is in use on 127\.0\.0\.1; /);
});

test('every newcomer gets through while certificates are swapped', async () => {
  if (process.platform !== 'linux') {
    console.log('SKIPPED: newcomers may be lost where the system is not Linux');
    return;
  }
  const fixture = await Fixture.withFiles();
  let isOver = false;
  let opened = 0;
  const open = async (): Promise<void> => {
    while (!isOver) {
      const client = await fixture.client();
      client.send({ type: 'connect', otc: '000001' });
      await client.next();
      client.close();
      await client.closed;
      opened += 1;
    }
  };
  const running = Promise.all(Array.from({ length: 4 }, open));
  for (let i = 1; i <= 10; i += 1) {
    const goal = opened + 4;
    await fixture.put(i % 2 ? second : first);
    await fixture.look();
    await until(() => opened >= goal, 'clients have come');
  }
  isOver = true;
  await running;
  expect(fixture.newLines().filter((line) => line === CHANGED)).toHaveLength(10);
});
