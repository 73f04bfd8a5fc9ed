import { expect, test } from 'bun:test';
import { errorCodes, rejectReasons } from '../src/wire/codes.ts';
import { startRelay, type TestRelay } from './support.ts';

async function scrape(relay: TestRelay): Promise<Map<string, number>> {
  const response = await fetch(`http://127.0.0.1:${relay.server.metricsPort}/metrics`);
  expect(response.headers.get('content-type')).toStartWith('text/plain; version=0.0.4');
  const text = await response.text();
  return new Map(
    text
      .split('\n')
      .filter((line) => line && !line.startsWith('#'))
      .map((line) => {
        const at = line.lastIndexOf(' ');
        return [line.slice(0, at), Number(line.slice(at + 1))];
      }),
  );
}

test('there is no port, and no library loaded, unless asked for', async () => {
  const relay = await startRelay();
  expect(relay.server.metricsPort).toBeUndefined();
  const child = Bun.spawnSync([
    process.execPath,
    '-e',
    `
    const { createRelayServer } = await import('${import.meta.dir}/../src/index.ts');
    const relay = await createRelayServer({ port: 0, logLevel: 'silent' });
    await relay.start();
    console.log(Object.keys(require.cache).filter((path) => path.includes('prom-client')).length);
    await relay.stop();`,
  ]);
  expect(child.stdout.toString()).toBe('0\n');
});

test('every code and outcome is there from the first scrape', async () => {
  const relay = await startRelay({ metricsPort: 0 });
  const metrics = await scrape(relay);
  for (const code of [...Object.keys(errorCodes), ...Object.keys(rejectReasons)]) {
    expect(metrics.get(`amesh_relay_refusals_total{code="${code}"}`)).toBe(0);
  }
  for (const outcome of ['completed', 'expired', 'abandoned']) {
    expect(metrics.get(`amesh_relay_sessions_ended_total{outcome="${outcome}"}`)).toBe(0);
  }
  for (const name of metrics.keys()) expect(name).toStartWith('amesh_relay_');
  expect(metrics.get('amesh_relay_resident_memory_bytes')).toBeGreaterThan(1e6);
  expect(metrics.has('amesh_relay_event_loop_delay_p99_seconds')).toBe(true);
});

test('they count what happened, twice scraped alike', async () => {
  const relay = await startRelay({ metricsPort: 0 });
  const { target, controller } = await relay.pair();
  target.send({ type: 'data', payload: '12345' });
  await controller.next();
  const waiting = await relay.connect();
  waiting.send({ type: 'listen', otc: '000001' });
  await waiting.next();
  const stranger = await relay.connect();
  await stranger.refused({ type: 'connect', otc: '000002' }, 'otc_not_found');
  stranger.send({ type: 'bootstrap_init', jti: 'bt_1', token: 't', targetPubKey: 'k' });
  await stranger.next();
  expect(Object.fromEntries(await scrape(relay))).toMatchObject({
    amesh_relay_connections: 4,
    amesh_relay_connections_total: 4,
    'amesh_relay_sessions{stage="waiting"}': 1,
    'amesh_relay_sessions{stage="paired"}': 1,
    amesh_relay_sessions_opened_total: 2,
    amesh_relay_pairings_begun_total: 1,
    amesh_relay_frames_forwarded_total: 1,
    amesh_relay_forwarded_bytes_total: 5,
    'amesh_relay_refusals_total{code="otc_not_found"}': 1,
    'amesh_relay_refusals_total{code="no_watcher"}': 1,
    amesh_relay_listen_to_peer_found_seconds_count: 1,
    amesh_relay_pairing_duration_seconds_count: 0,
  });
  relay.pass(30_000);
  await waiting.closed;
  const later = await scrape(relay);
  expect(later.get('amesh_relay_sessions_ended_total{outcome="expired"}')).toBe(2);
  expect(later.get('amesh_relay_pairing_duration_seconds_sum')).toBe(30);
  expect(later.get('amesh_relay_connections_total')).toBe(4);
});

test('a pairing is completed with done or once data went both ways, and abandoned otherwise', async () => {
  const relay = await startRelay({ metricsPort: 0 });
  const both = await relay.pair('000001');
  both.target.send({ type: 'data', payload: 'x' });
  await both.controller.next();
  both.controller.send({ type: 'data', payload: 'x' });
  await both.target.next();
  both.target.close();
  await both.controller.expectError('peer_disconnected');
  const done = await relay.pair('000002');
  done.target.send({ type: 'done' });
  await done.controller.expect({ type: 'done' });
  const oneWay = await relay.pair('000003');
  oneWay.target.send({ type: 'data', payload: 'x' });
  await oneWay.controller.next();
  oneWay.controller.close();
  await oneWay.target.expectError('peer_disconnected');
  const metrics = await scrape(relay);
  expect(metrics.get('amesh_relay_sessions_ended_total{outcome="completed"}')).toBe(2);
  expect(metrics.get('amesh_relay_sessions_ended_total{outcome="abandoned"}')).toBe(1);
});
