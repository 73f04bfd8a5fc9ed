/** Prometheus' view of the relay, on a port of its own. Loaded only where METRICS_PORT is set. */
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { Counter, Gauge, Histogram, Registry } from 'prom-client';
import { version } from '../../package.json' with { type: 'json' };
import type { Sockets } from '../socket.ts';
import { maxDescriptors, openDescriptors } from './descriptors.ts';

/** From a code typed at once to one typed in its last second; a session's stage lasts at most 300 s. */
const WAIT_BUCKETS_SECONDS = [0.1, 0.5, 1, 2, 5, 10, 15, 20, 30, 60, 120, 300];

/** Every metric: its type, labels and help. The documentation's table is compared with this one. */
export function createRegistry(sockets: Sockets): Registry {
  const { stats, pairing, bootstrap } = sockets;
  const registry = new Registry();
  const registers = [registry];

  /** One that reads undefined has no value in that scrape. */
  const gauge = (
    name: string,
    help: string,
    read: () => number | undefined | Promise<number>,
  ): void => {
    void new Gauge({
      name,
      help,
      registers,
      async collect() {
        const value = await read();
        if (value === undefined) this.remove();
        else this.set(value);
      },
    });
  };
  const counter = (name: string, help: string, read: () => number): void => {
    void new Counter({
      name,
      help,
      registers,
      collect() {
        this.reset();
        this.inc(read());
      },
    });
  };
  /** One series for each value of a label, all there from the first scrape. */
  const counters = (
    name: string,
    help: string,
    label: string,
    read: () => Record<string, number>,
  ): void => {
    void new Counter({
      name,
      help,
      registers,
      labelNames: [label],
      collect() {
        this.reset();
        for (const [value, count] of Object.entries(read())) this.inc({ [label]: value }, count);
      },
    });
  };

  gauge('amesh_relay_connections', 'Sockets open now.', () => sockets.connections.size);
  counter('amesh_relay_connections_total', 'Sockets accepted.', () => stats.connectionsAccepted);
  void new Gauge({
    name: 'amesh_relay_sessions',
    help: 'Sessions held now, by stage.',
    registers,
    labelNames: ['stage'],
    collect() {
      this.set({ stage: 'waiting' }, pairing.waiting);
      this.set({ stage: 'paired' }, pairing.paired);
    },
  });
  counter('amesh_relay_sessions_opened_total', 'Sessions opened by a listen.', () => stats.opened);
  counter(
    'amesh_relay_pairings_begun_total',
    'Sessions that a controller joined.',
    () => stats.begun,
  );
  counters('amesh_relay_sessions_ended_total', 'Sessions ended, by outcome.', 'outcome', () => ({
    completed: stats.completed,
    expired: stats.expired,
    abandoned: stats.abandoned,
  }));
  counter(
    'amesh_relay_frames_forwarded_total',
    'Data frames forwarded.',
    () => stats.framesForwarded,
  );
  counter(
    'amesh_relay_forwarded_bytes_total',
    'Payload bytes forwarded.',
    () => stats.bytesForwarded,
  );
  counters(
    'amesh_relay_refusals_total',
    'Refusals, by the code that the client was given.',
    'code',
    () => stats.refusals,
  );
  counters(
    'amesh_relay_admitted_total',
    'Sockets let in by an access token, by its name.',
    'token',
    () => Object.fromEntries(stats.admitted),
  );
  counters(
    'amesh_relay_turned_away_total',
    'Requests for a socket that were refused before the upgrade.',
    'reason',
    () => stats.turnedAway,
  );
  gauge('amesh_relay_watches', 'Token ids watched now.', () => bootstrap.size);
  counters(
    'amesh_relay_bootstraps_total',
    'Bootstrap watches, announcements and how they ended.',
    'outcome',
    () => stats.bootstraps,
  );
  gauge('amesh_relay_burnt_jtis', 'Used token ids remembered now.', () => sockets.books.burnt ?? 0);
  void new Gauge({
    name: 'amesh_relay_book_entries',
    help: 'Entries in each of the books, all of which are bounded.',
    registers,
    labelNames: ['book'],
    collect() {
      for (const [book, entries] of Object.entries(sockets.books)) this.set({ book }, entries);
    },
  });
  gauge('amesh_relay_draining', '1 while the relay drains.', () =>
    Number(sockets.connections.draining),
  );
  gauge('amesh_relay_resident_memory_bytes', 'Resident set size.', () => process.memoryUsage.rss());

  gauge(
    'amesh_relay_redis_up',
    '1 while the Redis of many instances is in reach, 0 while not; absent without one.',
    () => sockets.cluster && Number(sockets.cluster.isUp),
  );
  gauge(
    'amesh_relay_tls_certificate_not_after_seconds',
    'When the certificate ends, in seconds of Unix time; absent without TLS.',
    () => stats.certificateEnd,
  );
  gauge('amesh_relay_open_fds', 'File descriptors that the process has open.', openDescriptors);
  gauge('amesh_relay_max_fds', 'File descriptors that it may have open.', maxDescriptors);
  const build = new Gauge({
    name: 'amesh_relay_build_info',
    help: 'Always 1, with the version.',
    registers,
    labelNames: ['version'],
  });
  build.set({ version }, 1);

  const delay = monitorEventLoopDelay({ resolution: 10 });
  delay.enable();
  let sinceLast = { p50: 0, p99: 0, max: 0 };
  const delays = {
    p50: 'Event-loop delay since the last scrape, median.',
    p99: 'Event-loop delay since the last scrape, 99th percentile.',
    max: 'Event-loop delay since the last scrape, the longest.',
  };
  for (const [which, help] of Object.entries(delays) as [keyof typeof delays, string][]) {
    gauge(`amesh_relay_event_loop_delay_${which}_seconds`, help, () => {
      // The first of the three that a scrape reads takes the figures for all.
      if (which === 'p50') {
        sinceLast = { p50: delay.percentile(50), p99: delay.percentile(99), max: delay.max };
        delay.reset();
      }
      return sinceLast[which] / 1e9;
    });
  }

  const waited = new Histogram({
    name: 'amesh_relay_listen_to_peer_found_seconds',
    help: 'Time from listen to peer_found.',
    buckets: WAIT_BUCKETS_SECONDS,
    registers,
  });
  const lasted = new Histogram({
    name: 'amesh_relay_pairing_duration_seconds',
    help: 'Time from peer_found to the end of the session.',
    buckets: WAIT_BUCKETS_SECONDS,
    registers,
  });
  stats.onBegun.push((milliseconds) => waited.observe(milliseconds / 1000));
  stats.onEnded.push((milliseconds) => lasted.observe(milliseconds / 1000));
  return registry;
}

export const serveMetrics = (sockets: Sockets, hostname: string, port: number): MetricsServer =>
  serveRegistry(createRegistry(sockets), hostname, port);

export interface MetricsServer {
  port: number;
  stop: () => Promise<void>;
}

/** Serves metrics at `/metrics`. */
export function serveRegistry(registry: Registry, hostname: string, port: number): MetricsServer {
  const server = Bun.serve({
    hostname,
    port,
    routes: {
      '/metrics': {
        GET: async () =>
          new Response(await registry.metrics(), {
            headers: { 'content-type': registry.contentType },
          }),
      },
    },
    fetch: () => Response.json({ error: 'not_found' }, { status: 404 }),
    error: () => Response.json({ error: 'internal_error' }, { status: 500 }),
  });
  return { port: server.port as number, stop: () => server.stop(true) };
}
