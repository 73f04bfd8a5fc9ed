/** The relay as a whole: it listens, keeps the timers, and stops. */
import { version } from '../package.json' with { type: 'json' };
import { CallerResolver } from './admission/client-address.ts';
import { originRefusal } from './admission/origins.ts';
import { AccessTokens } from './admission/tokens.ts';
import { type Config, connectable, type SettingName, settings } from './config.ts';
import type { Clock } from './connection.ts';
import { createApp, type Health, json, pathOf, PROBES, refusal, SUBPROTOCOLS } from './http.ts';
import { Listeners } from './listeners.ts';
import { createLog, type Log } from './observe/log.ts';
import { maxDescriptors, openDescriptors } from './observe/descriptors.ts';
import {
  ListenError,
  type Relay,
  type RelayAddress,
  RelayStateError,
  type StopOptions,
} from './relay.ts';
import { type BunServer, Sockets } from './socket.ts';
import type { Certificate, TlsFiles } from './tls.ts';

const SWEEP_EVERY_MS = 1000;
const SUMMARY_EVERY_MS = 60_000;
/** How often the file of access tokens is read, to see whether it has changed. It is small. */
const RELOAD_EVERY_MS = 1000;
/** How often the files of the certificate and its key are read, to see whether they have changed. */
const RENEW_EVERY_MS = 10_000;
/** How often a drain looks whether everything is done, in milliseconds. */
const DRAIN_LOOK_MS = 50;
/** How long clients have to answer their close frame before they are cut off, in milliseconds. */
const CLOSE_WAIT_MS = 500;
/** Descriptors that the process needs beside one for each socket: listeners, Redis, files, and requests under way. */
const SPARE_DESCRIPTORS = 256;
/** The relay reads no body. */
const MAX_REQUEST_BODY_BYTES = 1024;

/** For tests, which bring a clock of their own, sweep by hand, and look inside. */
interface Internals {
  now?: Clock;
  log?: Log;
}

export class RelayServer implements Relay {
  readonly sockets: Sockets;
  /** The port of the metrics, where there are any. */
  metricsPort: number | undefined;
  readonly #log: Log;
  readonly #callers: CallerResolver;
  #tokens: AccessTokens | undefined;
  readonly #endDrain = Promise.withResolvers<void>();
  readonly #listeners = new Listeners();
  /** What is open, each with how it is closed. */
  readonly #open = new AsyncDisposableStack();
  #certificate: Certificate | undefined;
  #isShortOfDescriptors = false;
  #started: Promise<RelayAddress> | undefined;
  #stopped: Promise<void> | undefined;

  constructor(config: Config, { now = () => performance.now(), log }: Internals = {}) {
    this.#log = log ?? createLog(config.logLevel);
    this.#callers = new CallerResolver(config.trustProxy, this.#log.warn, config.trustedProxies);
    this.sockets = new Sockets(config, this.#log, now);
  }

  get #health(): Health {
    const { cluster, connections, pairing } = this.sockets;
    const status = connections.draining
      ? 'draining'
      : cluster?.isUp === false
        ? 'unavailable'
        : 'ok';
    return { status, sessions: pairing.size };
  }

  async start(): Promise<RelayAddress> {
    if (this.#started || this.#stopped) {
      const state = this.#stopped ? 'stopped' : 'started';
      throw new RelayStateError(`the relay is ${state} already; create another one`);
    }
    this.#started = this.#start().catch(async (error: unknown) => {
      await this.#open.disposeAsync();
      throw error;
    });
    return this.#started;
  }

  async #start(): Promise<RelayAddress> {
    const { config } = this.sockets;
    const { host, port, metricsPort, metricsHost = host, tlsCertFile, tlsKeyFile } = config;
    if (tlsCertFile !== undefined && tlsKeyFile !== undefined) {
      const { Certificate } = await import('./tls.ts');
      this.#certificate = await Certificate.open(tlsCertFile, tlsKeyFile, this.#log, Date.now());
    }
    const tls = this.#certificate?.files;
    const { accessToken, accessTokensFile, redisUrl, redisUrlFile } = config;
    this.#tokens = await AccessTokens.open(accessToken, accessTokensFile, this.#log, (names) =>
      this.sockets.stats.nameTokens(names),
    );
    if (redisUrl || redisUrlFile !== undefined) {
      const { joinCluster } = await import('./cluster/cluster.ts');
      this.#open.defer(await joinCluster(this.sockets, this.#log));
    }
    const listenFirst = tls && (await import('./shared-port.ts')).listenFirst;
    const server = await listen('host', 'port', host, port, () => {
      const serve = (): BunServer => this.#serve(port, tls);
      return listenFirst ? listenFirst(host, port, serve) : serve();
    });
    this.#listeners.add(server);
    this.#open.defer(() => this.#listeners.stop(true));
    if (metricsPort !== undefined) {
      const { serveMetrics } = await import('./observe/metrics.ts');
      const metrics = await listen('metricsHost', 'metricsPort', metricsHost, metricsPort, () =>
        serveMetrics(this.sockets, metricsHost, metricsPort),
      );
      this.#open.defer(metrics.stop);
      this.metricsPort = metrics.port;
    }
    const bound = server.port as number;
    const authority = `${connectable(host)}:${bound}`;
    const url = `${tls ? 'wss' : 'ws'}://${authority}/ws`;
    this.#log.info('listening', {
      websocket: url,
      health: `${tls ? 'https' : 'http'}://${authority}/health`,
      host,
      port: bound,
      families: await familiesOf(host),
      version,
      metrics: this.metricsPort,
    });
    const timers = [
      setInterval(() => this.#sweep(), SWEEP_EVERY_MS),
      setInterval(() => this.#summarise(), SUMMARY_EVERY_MS),
      setInterval(() => void this.#tokens?.reload(), RELOAD_EVERY_MS),
      setInterval(() => void this.renewCertificate(Date.now()), RENEW_EVERY_MS),
    ];
    this.#open.defer(() => timers.forEach(clearInterval));
    await this.#fitDescriptors();
    return { host, port: bound, url };
  }

  async stop({ drain = false }: StopOptions = {}): Promise<void> {
    if (!drain) this.#endDrain.resolve();
    this.#stopped ??= this.#shutDown(drain === true ? this.sockets.config.drainMs : Number(drain));
    await this.#stopped;
  }

  async #shutDown(drainMs: number): Promise<void> {
    this.sockets.connections.draining = true;
    // `stop` may be called during the start, or after a start that failed.
    const address = await this.#started?.catch(() => {});
    if (!address) return;
    if (drainMs > 0) await this.#drain(drainMs);
    this.sockets.closeAll();
    await Promise.race([this.#listeners.stop(), Bun.sleep(CLOSE_WAIT_MS)]);
    await this.#open.disposeAsync();
    this.#log.info('stopped');
  }

  /** Waits until nothing is under way, the time is up, or `stop` is called again without `drain`. */
  async #drain(drainMs: number): Promise<void> {
    this.#log.info('draining', { underWay: this.sockets.underWay, atMostMs: drainMs });
    const look = setInterval(() => {
      if (this.sockets.underWay === 0) this.#endDrain.resolve();
    }, DRAIN_LOOK_MS);
    const deadline = setTimeout(() => this.#endDrain.resolve(), drainMs);
    await this.#endDrain.promise;
    clearInterval(look);
    clearTimeout(deadline);
  }

  /**
   * Serves newcomers with a renewed certificate, if there is one, and leaves everybody else alone.
   * @param now Milliseconds of Unix time.
   */
  async renewCertificate(now: number): Promise<void> {
    this.#listeners.closeFormer();
    await this.#certificate?.renew(now, (tls) => {
      if (!this.#stopped) this.#listeners.add(this.#serve(this.#listeners.port, tls));
    });
  }

  #serve(port: number, tls: TlsFiles | undefined): BunServer {
    const { host: hostname, page, allowedOrigins } = this.sockets.config;
    const { answers, limits, stats } = this.sockets;
    const isTls = tls !== undefined;
    const origins = { allowed: allowedOrigins, isTls };
    const app = createApp({
      health: () => this.#health,
      page,
      callers: this.#callers,
      isTls,
      isPrivate: this.#tokens !== undefined,
    });
    const server: BunServer = Bun.serve({
      hostname,
      port,
      ...(tls && { tls, reusePort: true }),
      // The upgrade is not a Hono route, since that would cost a tenth of a whole pairing.
      fetch: (request, server) => {
        const now = this.sockets.now();
        const path = pathOf(request);
        const peerOf = (): string | undefined => server.requestIP(request)?.address;
        const { client } = this.#callers.resolve(request, peerOf);
        if (!limits.requests.take(client, 1, now)) {
          if (PROBES.includes(path)) return closing(app.fetch(request, server));
          // Its connection is closed, so that whatever else it has sent costs nothing.
          const headers = { 'retry-after': '1', connection: 'close' };
          return json({ error: 'too_many_requests' }, 429, headers);
        }
        if (path !== '/ws') return app.fetch(request, server);
        const admission =
          // Before the token, so that no web page uses up the attempts of its visitors.
          originRefusal(request.headers, origins, () => this.#callers.trusts(peerOf)) ??
          this.#tokens?.check(request, client, limits.wrongTokens, now);
        if (admission && 'error' in admission) {
          stats.turnedAway[admission.error] += 1;
          answers.trace(client, 'turned away', { code: admission.error });
          return refusal(admission);
        }
        const protocols = request.headers.get('sec-websocket-protocol');
        const isClean = protocols === null || SUBPROTOCOLS.test(protocols);
        if (!isClean || !this.sockets.upgrade(server, request, client)) {
          return app.fetch(request, server);
        }
        if (admission) {
          const { name } = admission;
          stats.admitted.set(name, (stats.admitted.get(name) ?? 0) + 1);
          answers.trace(client, 'admitted', { token: name });
        }
        return undefined;
      },
      error: () => json({ error: 'internal_error' }, 500),
      websocket: this.sockets.handlers,
      maxRequestBodySize: MAX_REQUEST_BODY_BYTES,
    });
    stats.certificateEnd = tls && tls.to / 1000;
    return server;
  }

  /** At its limit of descriptors a process can neither accept nor refuse anybody, so it takes fewer sockets than that. */
  async #fitDescriptors(): Promise<void> {
    const nofile = await maxDescriptors();
    const room = Math.max(1, nofile - SPARE_DESCRIPTORS);
    if (room >= this.sockets.config.maxConnections) return;
    this.sockets.connections.maxConnections = room;
    this.#log.warn('the limit of open files (nofile) allows fewer than AMESH_MAX_CONNECTIONS', {
      nofile,
      sockets: room,
    });
  }

  /** Warns when file descriptors run short, since neither Bun nor the system says so. */
  async #lookAtDescriptors(): Promise<void> {
    const [open, max] = await Promise.all([openDescriptors(), maxDescriptors()]);
    const isShort = open > max * 0.9;
    if (isShort && !this.#isShortOfDescriptors) {
      this.#log.warn('file descriptors run short; raise the limit of open files (nofile)', {
        open,
        max,
      });
    }
    this.#isShortOfDescriptors = isShort;
  }

  #sweep(): void {
    // A sweep that did its share lets others have their turn before it goes on.
    if (this.sockets.sweep()) setImmediate(() => this.#sweep());
  }

  #summarise(): void {
    void this.#lookAtDescriptors();
    const summary = this.sockets.stats.sinceLast();
    if (!summary) return;
    const { connections, pairing } = this.sockets;
    this.#log.info('last minute', { ...summary, open: connections.size, sessions: pairing.size });
  }
}

/** For a probe over its client's budget: it is answered, and its connection is closed all the same. */
async function closing(answer: Response | Promise<Response>): Promise<Response> {
  const response = await answer;
  response.headers.set('connection', 'close');
  return response;
}

/** The address families that a host serves; undefined for a name, which may have either. */
async function familiesOf(host: string): Promise<string[] | undefined> {
  if (/^[\d.]+$/.test(host)) return ['IPv4'];
  if (!host.includes(':')) return undefined;
  if (host !== '::') return ['IPv6'];
  const { networkInterfaces } = await import('node:os');
  try {
    const addresses = Object.values(networkInterfaces()).flat();
    return addresses.some((address) => address?.family === 'IPv6') ? ['IPv4', 'IPv6'] : ['IPv4'];
  } catch {
    // A service that may not open a netlink socket, as the systemd unit has it, is not told its interfaces.
    return undefined;
  }
}

/** Listens on an address, or throws an error that says in one line why that failed. Bun calls an unknown host a port in use. */
async function listen<T>(
  hostOption: 'host' | 'metricsHost',
  portOption: 'port' | 'metricsPort',
  host: string,
  port: number,
  take: () => T,
): Promise<T> {
  const failed = (option: SettingName, why: string): ListenError =>
    new ListenError(`${option} (${settings[option].env}): ${why}`);
  try {
    return take();
  } catch (error) {
    const { lookup } = await import('node:dns/promises');
    await lookup(host).catch(() => {
      throw failed(hostOption, `"${host}" does not resolve; expected an address of this machine`);
    });
    const notOurs = `${host} is no address of this machine; expected one that is, or 0.0.0.0 for all`;
    const ofHost: Record<string, string> = { EADDRNOTAVAIL: notOurs, EINVAL: notOurs };
    const ofPort: Record<string, string> = {
      EADDRINUSE: `${port} is in use on ${host}; stop what holds it, or choose another port`,
      EACCES: `${port} needs privileges that this process lacks; choose a port from 1024 up`,
    };
    const { code = '' } = error as { code?: string };
    if (ofHost[code]) throw failed(hostOption, ofHost[code]);
    if (ofPort[code]) throw failed(portOption, ofPort[code]);
    throw error;
  }
}
