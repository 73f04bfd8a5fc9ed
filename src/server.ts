/** The relay as a whole: it listens, keeps the timers, and stops. */
import { version } from '../package.json' with { type: 'json' };
import { CallerResolver } from './admission/client-address.ts';
import type { AccessToken } from './admission/access-token.ts';
import { originRefusal, type Refused } from './admission/origins.ts';
import { AccessTokens } from './admission/tokens.ts';
import { type Config, connectable, type SettingName, settings } from './config.ts';
import type { Clock } from './connection.ts';
import { createApp, type Health, pathOf, PROBES, refusal, SUBPROTOCOLS } from './http.ts';
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
  readonly #config: Config;
  readonly #log: Log;
  readonly #callers: CallerResolver;
  #tokens: AccessTokens | undefined;
  readonly #endDrain = Promise.withResolvers<void>();
  readonly #now: Clock;
  readonly #listeners = new Listeners();
  #port: number | undefined;
  #certificate: Certificate | undefined;
  #cluster: { leave: () => Promise<void> } | undefined;
  #metrics: { port: number; stop: () => Promise<void> } | undefined;
  #isShortOfDescriptors = false;
  #timers: NodeJS.Timeout[] = [];
  #state: 'new' | 'started' | 'stopped' = 'new';
  #started: Promise<RelayAddress> | undefined;
  #stopped: Promise<void> | undefined;

  constructor(config: Config, { now = () => performance.now(), log }: Internals = {}) {
    this.#config = config;
    this.#now = now;
    this.#log = log ?? createLog(config.logLevel);
    const warn = (message: string): void => this.#log.warn(message);
    this.#callers = new CallerResolver(config.trustProxy, warn, config.trustedProxies);
    this.sockets = new Sockets(config, this.#log, now);
  }

  /** The port of the metrics, where there are any. */
  get metricsPort(): number | undefined {
    return this.#metrics?.port;
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
    if (this.#state !== 'new') {
      throw new RelayStateError(`the relay is ${this.#state} already; create another one`);
    }
    this.#state = 'started';
    this.#started = this.#start();
    return this.#started;
  }

  async #start(): Promise<RelayAddress> {
    const { host, port, metricsPort, metricsHost = host } = this.#config;
    const tls = await this.#readCertificate();
    await this.#readTokens();
    const redisUrl = await this.#readRedisUrl();
    if (redisUrl) {
      const { joinCluster } = await import('./cluster/cluster.ts');
      this.#cluster = await joinCluster(redisUrl, this.sockets, this.#log);
    }
    try {
      const listenFirst = tls && (await import('./shared-port.ts')).listenFirst;
      const server = await listen('host', 'port', host, port, () => {
        const serve = (): BunServer => this.#serve(host, port, tls);
        return listenFirst ? listenFirst(host, port, serve) : serve();
      });
      this.#listeners.add(server);
      if (metricsPort !== undefined) {
        const { serveMetrics } = await import('./observe/metrics.ts');
        this.#metrics = await listen('metricsHost', 'metricsPort', metricsHost, metricsPort, () =>
          serveMetrics(this.sockets, metricsHost, metricsPort),
        );
      }
      this.#port = server.port;
    } catch (error) {
      await this.#listeners.stop(true);
      await this.#cluster?.leave();
      throw error;
    }
    const bound = this.#port as number;
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
    this.#timers = [
      setInterval(() => this.#sweep(), SWEEP_EVERY_MS),
      setInterval(() => this.#summarise(), SUMMARY_EVERY_MS),
      setInterval(() => void this.#tokens?.reload(), RELOAD_EVERY_MS),
      setInterval(() => void this.renewCertificate(Date.now()), RENEW_EVERY_MS),
    ];
    await this.#fitDescriptors();
    return { host, port: bound, url };
  }

  async stop({ drain = false }: StopOptions = {}): Promise<void> {
    if (!drain) this.#endDrain.resolve();
    this.#stopped ??= this.#shutDown(drain === true ? this.#config.drainMs : Number(drain));
    await this.#stopped;
  }

  async #shutDown(drainMs: number): Promise<void> {
    this.#state = 'stopped';
    this.sockets.connections.draining = true;
    // Told to stop while it starts, or after it could not start: shut down whatever there is by then.
    await this.#started?.catch(() => {});
    if (this.#port === undefined) return;
    if (drainMs > 0) await this.#drain(drainMs);
    for (const timer of this.#timers) clearInterval(timer);
    this.sockets.closeAll();
    await Promise.race([this.#listeners.stop(), Bun.sleep(CLOSE_WAIT_MS)]);
    await this.#listeners.stop(true);
    await this.#cluster?.leave();
    await this.#metrics?.stop();
    this.#log.info('stopped');
  }

  /** Waits until nothing is under way, the time is up, or somebody would rather not wait. */
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

  async #readCertificate(): Promise<TlsFiles | undefined> {
    const { tlsCertFile, tlsKeyFile } = this.#config;
    if (tlsCertFile === undefined || tlsKeyFile === undefined) return undefined;
    const { Certificate } = await import('./tls.ts');
    this.#certificate = await Certificate.open(tlsCertFile, tlsKeyFile, this.#log, Date.now());
    this.sockets.stats.certificateEnd = this.#certificate.notAfter;
    return this.#certificate.files;
  }

  /**
   * Serves newcomers with a renewed certificate, if there is one, and leaves everybody else alone.
   * @param now Milliseconds of Unix time.
   */
  async renewCertificate(now: number): Promise<void> {
    const certificate = this.#certificate;
    if (!certificate) return;
    this.#listeners.closeFormer();
    await certificate.renew(now, (tls) => {
      if (this.#state === 'stopped') return;
      this.#listeners.add(this.#serve(this.#config.host, this.#port as number, tls));
    });
    this.sockets.stats.certificateEnd = certificate.notAfter;
  }

  async #readTokens(): Promise<void> {
    const { accessToken, accessTokensFile } = this.#config;
    const { stats } = this.sockets;
    this.#tokens = await AccessTokens.open(accessToken, accessTokensFile, this.#log, (names) =>
      stats.nameTokens(names),
    );
  }

  async #readRedisUrl(): Promise<Config['redisUrl']> {
    const { redisUrl, redisUrlFile } = this.#config;
    if (redisUrlFile === undefined) return redisUrl;
    const { readRedisUrl } = await import('./cluster/redis-url.ts');
    return readRedisUrl(redisUrlFile);
  }

  #serve(hostname: string, port: number, tls: TlsFiles | undefined): BunServer {
    const app = createApp({
      health: () => this.#health,
      page: this.#config.page,
      callers: this.#callers,
      isTls: tls !== undefined,
      isPrivate: this.#tokens !== undefined,
    });
    const origins = { allowed: this.#config.allowedOrigins, isTls: tls !== undefined };
    return Bun.serve({
      hostname,
      port,
      ...(tls && { tls, reusePort: true }),
      // The upgrade is not a Hono route, since that would cost a tenth of a whole pairing.
      fetch: (request, server) => {
        const now = this.#now();
        const path = pathOf(request);
        const peerOf = (): string | undefined => server.requestIP(request)?.address;
        const { client } = this.#callers.resolve(request, peerOf);
        if (!this.sockets.limits.requests.take(client, 1, now)) {
          return PROBES.includes(path) ? closing(app.fetch(request, server)) : tooManyRequests();
        }
        if (path !== '/ws') return app.fetch(request, server);
        const admission =
          // Before the token, so that no web page uses up the attempts of its visitors.
          originRefusal(request.headers, origins, () => this.#callers.trusts(peerOf)) ??
          this.#tokens?.check(request, client, this.sockets.limits.wrongTokens, now);
        if (admission && 'error' in admission) return this.#turnAway(client, admission);
        const protocols = request.headers.get('sec-websocket-protocol');
        const isClean = protocols === null || SUBPROTOCOLS.test(protocols);
        if (isClean && this.sockets.upgrade(server, request, client)) {
          if (admission) this.#admitted(client, admission);
          return undefined;
        }
        return app.fetch(request, server);
      },
      error: () => Response.json({ error: 'internal_error' }, { status: 500 }),
      websocket: this.sockets.handlers,
      maxRequestBodySize: MAX_REQUEST_BODY_BYTES,
    });
  }

  #admitted(client: string, { name }: AccessToken): void {
    const { admitted } = this.sockets.stats;
    admitted.set(name, (admitted.get(name) ?? 0) + 1);
    this.sockets.answers.trace(client, 'admitted', { token: name });
  }

  #turnAway(client: string, refused: Refused): Response {
    this.sockets.stats.turnedAway[refused.error] += 1;
    this.sockets.answers.trace(client, 'turned away', { code: refused.error });
    return refusal(refused);
  }

  /** At its limit of descriptors a process can neither accept nor refuse anybody, so it takes fewer sockets than that. */
  async #fitDescriptors(): Promise<void> {
    const nofile = await maxDescriptors();
    const room = Math.max(1, nofile - SPARE_DESCRIPTORS);
    if (room >= this.#config.maxConnections) return;
    this.sockets.connections.maxConnections = room;
    this.#log.warn('the limit of open files (nofile) allows fewer than AMESH_MAX_CONNECTIONS', {
      nofile,
      sockets: room,
    });
  }

  /** Such a process says nothing of it by itself. */
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

/** For a client over its budget. Its connection is closed, so that whatever else it has sent costs nothing. */
function tooManyRequests(): Response {
  return new Response('{"error":"too_many_requests"}\n', {
    status: 429,
    headers: { 'content-type': 'application/json', 'retry-after': '1', connection: 'close' },
  });
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

/** Takes an address, or says in one line why it can't be had. Bun calls an unknown host a port in use. */
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
    switch ((error as { code?: string }).code) {
      case 'EADDRINUSE':
        throw failed(
          portOption,
          `${port} is in use on ${host}; stop what holds it, or choose another port`,
        );
      case 'EACCES':
        throw failed(
          portOption,
          `${port} needs privileges that this process lacks; choose a port from 1024 up`,
        );
      case 'EADDRNOTAVAIL':
      case 'EINVAL':
        throw failed(
          hostOption,
          `${host} is no address of this machine; expected one that is, or 0.0.0.0 for all`,
        );
      default:
        throw error;
    }
  }
}
