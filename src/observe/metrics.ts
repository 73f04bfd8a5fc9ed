/** Prometheus' view of the relay, on a port of its own. Loaded only where METRICS_PORT is set. */
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { Counter, Gauge, Histogram, Registry } from 'prom-client';
import { version } from '../../package.json' with { type: 'json' };
import type { Sockets } from '../socket.ts';
import { maxDescriptors, openDescriptors } from './descriptors.ts';

/** From a code typed at once to one typed in its last second; a session's stage lasts at most 300 s. */
const WAIT_BUCKETS_SECONDS = [0.1, 0.5, 1, 2, 5, 10, 15, 20, 30, 60, 120, 300];

/** The labels that there are. A metric has one of them, or none. */
const labelNames = ['stage', 'outcome', 'code', 'token', 'reason', 'book', 'version'] as const;
type Labelled = Partial<Record<(typeof labelNames)[number], Record<string, number>>>;

/** Every metric: its type, labels and help. The documentation's table is compared with this one. */
export function createRegistry(sockets: Sockets): Registry {
  const { stats, pairing, bootstrap } = sockets;
  const registry = new Registry();
  const registers = [registry];

  /** @param read The value at a scrape, or one for each value of a label. Undefined: none at this scrape. */
  const add = (
    Kind: typeof Counter | typeof Gauge,
    name: string,
    help: string,
    read: () => number | Labelled | undefined | Promise<number>,
  ): void => {
    void new Kind({
      name: `amesh_relay_${name}`,
      help,
      registers,
      labelNames,
      async collect() {
        const found = await read();
        this.reset();
        if (typeof found === 'number') this.inc(found);
        else {
          for (const [label, values] of Object.entries(found ?? {})) {
            for (const [value, n] of Object.entries(values)) this.inc({ [label]: value }, n);
          }
        }
      },
    });
  };
  const gauge = add.bind(undefined, Gauge);
  const counter = add.bind(undefined, Counter);

  gauge('connections', 'Sockets open now.', () => sockets.connections.size);
  counter('connections_total', 'Sockets accepted.', () => stats.connectionsAccepted);
  gauge('sessions', 'Sessions held now, by stage.', () => ({
    stage: { waiting: pairing.waiting, paired: pairing.paired },
  }));
  counter('sessions_opened_total', 'Sessions opened by a listen.', () => stats.opened);
  counter('pairings_begun_total', 'Sessions that a controller joined.', () => stats.begun);
  counter('sessions_ended_total', 'Sessions ended, by outcome.', () => ({ outcome: stats.ended }));
  counter('frames_forwarded_total', 'Data frames forwarded.', () => stats.framesForwarded);
  counter('forwarded_bytes_total', 'Payload bytes forwarded.', () => stats.bytesForwarded);
  counter('refusals_total', 'Refusals, by the code that the client was given.', () => ({
    code: stats.refusals,
  }));
  counter('admitted_total', 'Sockets let in by an access token, by its name.', () => ({
    token: Object.fromEntries(stats.admitted),
  }));
  counter(
    'turned_away_total',
    'Requests for a socket that were refused before the upgrade.',
    () => ({
      reason: stats.turnedAway,
    }),
  );
  gauge('watches', 'Token ids watched now.', () => bootstrap.size);
  counter('bootstraps_total', 'Bootstrap watches, announcements and how they ended.', () => ({
    outcome: stats.bootstraps,
  }));
  gauge('burnt_jtis', 'Used token ids remembered now.', () => sockets.books.burnt ?? 0);
  gauge('book_entries', 'Entries in each of the books, all of which are bounded.', () => ({
    book: sockets.books,
  }));
  gauge('draining', '1 while the relay drains.', () => Number(sockets.connections.draining));
  gauge('resident_memory_bytes', 'Resident set size.', () => process.memoryUsage.rss());
  gauge(
    'redis_up',
    '1 while the Redis of many instances is in reach, 0 while not; absent without one.',
    () => sockets.cluster && Number(sockets.cluster.isUp),
  );
  gauge(
    'tls_certificate_not_after_seconds',
    'When the certificate ends, in seconds of Unix time; absent without TLS.',
    () => stats.certificateEnd,
  );
  gauge('open_fds', 'File descriptors that the process has open.', openDescriptors);
  gauge('max_fds', 'File descriptors that it may have open.', maxDescriptors);
  gauge('build_info', 'Always 1, with the version.', () => ({ version: { [version]: 1 } }));

  const delay = monitorEventLoopDelay({ resolution: 10 });
  delay.enable();
  const delays = 'Event-loop delay since the last scrape';
  gauge('event_loop_delay_p50_seconds', `${delays}, median.`, () => delay.percentile(50) / 1e9);
  gauge(
    'event_loop_delay_p99_seconds',
    `${delays}, 99th percentile.`,
    () => delay.percentile(99) / 1e9,
  );
  gauge('event_loop_delay_max_seconds', `${delays}, the longest.`, () => {
    const { max } = delay;
    // A scrape reads the metrics in their order, and this one is the last of the three.
    delay.reset();
    return max / 1e9;
  });

  const histogram = (name: string, help: string) => {
    const buckets = WAIT_BUCKETS_SECONDS;
    const times = new Histogram({ name: `amesh_relay_${name}`, help, buckets, registers });
    return (milliseconds: number): void => times.observe(milliseconds / 1000);
  };
  stats.onBegun.push(histogram('listen_to_peer_found_seconds', 'Time from listen to peer_found.'));
  stats.onEnded.push(
    histogram('pairing_duration_seconds', 'Time from peer_found to the end of the session.'),
  );
  return registry;
}

export const serveMetrics = (sockets: Sockets, hostname: string, port: number) =>
  serveRegistry(createRegistry(sockets), hostname, port);

/** Serves metrics at `/metrics`. */
export function serveRegistry(registry: Registry, hostname: string, port: number) {
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
