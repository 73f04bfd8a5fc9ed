import { describe, expect, test } from 'bun:test';
import { createRelayServer } from '../src/index.ts';
import { openClient, startRelay, within } from './support.ts';

const listen = { type: 'listen', otc: '482916' };
const data = (payload: string) => ({ type: 'data', payload });

describe('a drain', () => {
  test('lets a pairing finish, and refuses new sockets and sessions', async () => {
    const relay = await startRelay();
    const { target, controller } = await relay.pair();
    const idle = await relay.connect();
    const stopped = relay.server.stop({ drain: true });

    const health = await fetch(`${relay.http}/health`);
    expect([health.status, await health.text()]).toEqual([
      503,
      '{"status":"draining","sessions":1}\n',
    ]);
    await idle.refused({ type: 'listen', otc: '000001' }, 'relay_draining');
    await idle.refused({ type: 'bootstrap_watch', jti: 'bt_1' }, 'relay_draining');
    const newcomer = await relay.connect();
    await newcomer.expectError('relay_draining');
    await newcomer.expectClose(1001, 'relay_shutting_down');

    target.send(data('sas_confirmed'));
    target.close();
    await controller.expect(data('sas_confirmed'));
    await controller.expectError('peer_disconnected');
    await controller.expectClose(1001, 'relay_shutting_down');
    await idle.expectClose(1001, 'relay_shutting_down');
    await within(stopped, 'the drain to end');
    expect(fetch(`${relay.http}/health`)).rejects.toThrow();
  });

  test('lets a controller join whose socket is already open', async () => {
    const relay = await startRelay();
    const [target, controller] = [await relay.connect(), await relay.connect()];
    target.send(listen);
    await target.expect({ type: 'ack', message: 'session_open' });
    const stopped = relay.server.stop({ drain: true });
    controller.send({ type: 'connect', otc: '482916' });
    await Promise.all([target, controller].map((peer) => peer.expect({ type: 'peer_found' })));
    controller.send(data('in time'));
    await target.expect(data('in time'));
    target.send({ type: 'done' });
    await controller.expect({ type: 'done' });
    await within(stopped, 'the drain to end');
  });

  test('waits for an unanswered init, but not for a watch without one', async () => {
    const relay = await startRelay();
    const [watcher, target] = [await relay.connect(), await relay.connect()];
    for (const jti of ['bt_1', 'bt_2']) {
      watcher.send({ type: 'bootstrap_watch', jti });
      await watcher.expect({ type: 'bootstrap_watching', jti });
    }
    target.send({ type: 'bootstrap_init', jti: 'bt_1', token: 't', targetPubKey: 'k' });
    await watcher.next();
    const stopped = relay.server.stop({ drain: true });
    watcher.send({ type: 'bootstrap_ack', jti: 'bt_1', publicKey: 'k', controllerSig: 's' });
    await target.expect({
      type: 'bootstrap_ack',
      jti: 'bt_1',
      controllerPubKey: 'k',
      controllerSig: 's',
    });
    await watcher.expectClose(1001, 'relay_shutting_down');
    await within(stopped, 'the drain to end');
  });

  test('ends when the last pairing expires, or after its own time', async () => {
    const relay = await startRelay();
    const { target } = await relay.pair();
    const stopped = relay.server.stop({ drain: true });
    relay.pass(30_000);
    await target.expectError('otc_expired');
    await within(stopped, 'the drain to end');

    const hasty = await startRelay();
    const pair = await hasty.pair();
    await within(hasty.server.stop({ drain: 20 }), 'the drain to end');
    await pair.target.expectClose(1001, 'relay_shutting_down');
    await pair.controller.expectClose(1001, 'relay_shutting_down');
  });

  test('ends at once when stop is called again without it', async () => {
    const relay = await startRelay();
    const { target } = await relay.pair();
    const draining = relay.server.stop({ drain: true });
    await target.expectNothing();
    await within(relay.server.stop(), 'the stop');
    await within(draining, 'the drain');
    await target.expectClose(1001, 'relay_shutting_down');
  });

  test('loses no pairing that had begun, under load', async () => {
    const relay = await startRelay({ maxConnectionsPerClient: 1000, maxListens: 1000 });
    const pairs = await Promise.all(
      Array.from({ length: 200 }, (_, i) => relay.pair(String(i).padStart(6, '0'))),
    );
    const stopped = relay.server.stop({ drain: true });
    await Promise.all(
      pairs.map(async ({ target, controller }, i) => {
        for (let round = 0; round < 5; round += 1) {
          target.send(data(`${i}.${round}`));
          await controller.expect(data(`${i}.${round}`));
          controller.send(data(`${i}.${round}`));
          await target.expect(data(`${i}.${round}`));
        }
        target.send(data('sas_confirmed'));
        target.close();
        await controller.expect(data('sas_confirmed'));
      }),
    );
    await within(stopped, 'the drain to end');
    expect(relay.sockets.stats).toMatchObject({
      begun: 200,
      ended: { completed: 200, abandoned: 0, expired: 0 },
    });
  });
});

describe('the library', () => {
  test('starts once, can be stopped several times, and leaves nothing open', async () => {
    const relay = await createRelayServer({ port: 0, host: '127.0.0.1', logLevel: 'silent' });
    const { host, port, url } = await relay.start();
    expect(url).toBe(`ws://127.0.0.1:${port}/ws`);
    expect(host).toBe('127.0.0.1');
    expect(relay.start()).rejects.toThrow('the relay is started already');
    const client = await openClient(url);
    await Promise.all([relay.stop(), relay.stop()]);
    await client.expectClose(1001, 'relay_shutting_down');
    await relay.stop();
    expect(relay.start()).rejects.toThrow('the relay is stopped already');
    const successor = await createRelayServer({ port, host: '127.0.0.1', logLevel: 'silent' });
    await successor.start();
    await successor.stop();
  });

  test('can be stopped before it was started', async () => {
    const relay = await createRelayServer({ port: 0, logLevel: 'silent' });
    await relay.stop();
    expect(relay.start()).rejects.toThrow('stopped already');
  });

  test('can be stopped while it starts', async () => {
    const relay = await createRelayServer({ port: 0, host: 'localhost', logLevel: 'silent' });
    const starting = relay.start();
    await relay.stop();
    const { port } = await starting;
    expect(fetch(`http://localhost:${port}/health`)).rejects.toThrow();
  });

  test('leaves no timer, socket or listener that would keep the process alive', async () => {
    const program = `
      import { createRelayServer } from '${import.meta.dir}/../src/index.ts';
      const relay = await createRelayServer({ port: 0, host: '127.0.0.1', metricsPort: 0, logLevel: 'silent' });
      const { url } = await relay.start();
      const ws = new WebSocket(url);
      await new Promise((resolve) => ws.addEventListener('open', resolve));
      ws.send('{"type":"listen","otc":"482916"}');
      await new Promise((resolve) => ws.addEventListener('message', resolve));
      await relay.stop();
      console.log('stopped');`;
    const child = Bun.spawn([process.execPath, '-e', program], { stdout: 'pipe' });
    expect(await within(child.exited, 'the process to end by itself')).toBe(0);
    expect(await new Response(child.stdout).text()).toBe('stopped\n');
  });

  test('refuses unknown options, and a port that is in use', async () => {
    expect(createRelayServer({ port: 70_000 })).rejects.toThrow(
      'port: got 70000, expected a whole number from 0 to 65535',
    );
    const relay = await startRelay();
    const second = await createRelayServer({
      port: relay.port,
      host: '127.0.0.1',
      logLevel: 'silent',
    });
    expect(second.start()).rejects.toThrow(`${relay.port} is in use on 127.0.0.1`);
  });
});
