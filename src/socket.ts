/**
 * The relay's end of every WebSocket, and the only file that touches one: a frame comes in, the rules decide, and what
 * they decide goes out. Wholly synchronous: no frame overtakes another, and none sees half a change. Every rule has
 * done its part before a frame is sent, since a send to a socket that does not read closes it on the spot.
 */
import type { Server, WebSocketHandler } from 'bun';
import { Bootstrap, type Bootstrapped, type Watch } from './bootstrap.ts';
import { BurntList } from './burnt.ts';
import type { Cluster, Remote } from './cluster.ts';
import type { Config } from './config.ts';
import { Attempts, Tally } from './limits.ts';
import type { Log } from './log.ts';
import { type Paired, Pairing, type Session } from './pairing.ts';
import {
  type ClientMessage,
  type Close,
  closes,
  decodeBinary,
  type ErrorCode,
  frames,
  isCanonicalData,
  type Malformed,
  parse,
  type RejectReason,
} from './protocol.ts';
import { Stats } from './stats.ts';

/** From the protocol: a watch lasts five minutes, a socket may hold 100, and a jti stays burnt for 25 hours. */
export const WATCH_TTL_MS = 5 * 60_000;
const MAX_WATCHES_PER_SOCKET = 100;
export const BURNT_TTL_MS = 25 * 3_600_000;

/** The window in which a socket's frames other than forwarded data are counted. */
const FRAME_WINDOW_MS = 10_000;

/** Seconds without a byte, not even a pong, until Bun gives a connection up. It pings well before. */
const SILENCE_SECONDS = 30;

/** Evictions that one sweep makes at most (a few milliseconds of work), so that a mass expiry stalls nobody. */
const SWEEP_BATCH = 500;

const DATA_ENVELOPE_BYTES = frames.data('').length;

/** What the rules use of a socket. Bun's has it; so has one that is connected to another instance. */
export interface Wire {
  sendText(frame: string): number;
  publishText(topic: string, frame: string): number;
  subscribe(topic: string): unknown;
  unsubscribe(topic: string): unknown;
  close(code?: number, reason?: string): void;
}

/** One socket, as the rules see it; Bun carries it as `ws.data`. */
export class Connection implements Paired<Connection>, Bootstrapped<Connection> {
  ws!: Wire;
  session: Session<Connection> | undefined = undefined;
  watches: Set<Watch<Connection>> | undefined = undefined;
  asks: Set<Watch<Connection>> | undefined = undefined;
  malformed = 0;
  frames = 0;
  framesSince = 0;
  idleSince = 0;
  /** What the cluster keeps of a socket, where there is a cluster. */
  remote: Remote | undefined = undefined;
  readonly client: string;

  constructor(client: string) {
    this.client = client;
  }
}

export type BunServer = Server<Connection>;

/** Milliseconds on a clock that only moves forward. */
export type Clock = () => number;

export class Sockets {
  readonly stats = new Stats();
  readonly pairing: Pairing<Connection>;
  readonly bootstrap: Bootstrap<Connection>;
  readonly burnt: BurntList;
  /** While true, newcomers are refused and pairings under way go on. */
  draining = false;
  /** The other instances, where there are any. Set before the first socket opens. */
  cluster: Cluster | undefined = undefined;
  readonly #config: Config;
  readonly #log: Log;
  readonly #now: Clock;
  readonly #open = new Set<Connection>();
  /** Sockets that hold no session, no watch and no unanswered init; the longest idle comes first. */
  readonly #idle = new Set<Connection>();
  readonly #perClient = new Tally();
  readonly #failedCodes: Attempts;
  readonly #failedPerCode: Attempts;
  readonly #withdrawnListens: Attempts;
  readonly #watchAttempts: Attempts;
  readonly #refusedInits: Attempts;

  constructor(config: Config, log: Log, now: Clock) {
    this.#config = config;
    this.#log = log;
    this.#now = now;
    this.pairing = new Pairing(config);
    this.burnt = new BurntList(config.maxBurnt, BURNT_TTL_MS);
    this.bootstrap = new Bootstrap(this.burnt, WATCH_TTL_MS, MAX_WATCHES_PER_SOCKET);
    this.#failedCodes = new Attempts(config.maxFailedCodes);
    this.#failedPerCode = new Attempts(config.maxFailedPerCode);
    this.#withdrawnListens = new Attempts(config.maxWithdrawnListens);
    this.#watchAttempts = new Attempts(config.maxWatches);
    this.#refusedInits = new Attempts(config.maxRefusedInits);
  }

  get connections(): number {
    return this.#open.size;
  }

  /** Sessions, and bootstraps that await their answer: what a drain waits for. */
  get underWay(): number {
    return this.pairing.size + this.bootstrap.asked + (this.cluster?.pipes ?? 0);
  }

  /** The size of everything that is remembered. */
  get books(): Record<string, number> {
    return {
      connections: this.#open.size,
      clients: this.#perClient.size,
      idle: this.#idle.size,
      sessions: this.pairing.size,
      watches: this.bootstrap.size,
      burnt: this.burnt.size,
      failedCodes: this.#failedCodes.size,
      failedPerCode: this.#failedPerCode.size,
      withdrawnListens: this.#withdrawnListens.size,
      watchAttempts: this.#watchAttempts.size,
      refusedInits: this.#refusedInits.size,
      ...this.cluster?.books,
    };
  }

  /** Makes a request a socket of a client's; false where it asks for no upgrade. */
  upgrade(server: BunServer, request: Request, client: string): boolean {
    return server.upgrade(request, { data: new Connection(client) });
  }

  get handlers(): WebSocketHandler<Connection> {
    const { cluster } = this;
    return {
      open: (ws) => {
        ws.data.ws = ws;
        this.#guard(ws.data, () => this.#opened(ws.data));
      },
      // Chosen once, so that a relay on its own does not ask for each frame.
      message: cluster
        ? (ws, frame) => cluster.received(ws.data, frame)
        : (ws, frame) => {
            try {
              this.#received(ws.data, frame);
            } catch (error) {
              this.failed(ws.data, error);
            }
          },
      // Bun has answered it already; counted, since a flood of pings costs as much as any other.
      ping: (ws) => this.#guard(ws.data, () => void this.#isWithinFrameRate(ws.data, 0)),
      close: cluster ? (ws) => cluster.closed(ws.data) : (ws) => this.closed(ws.data),
      maxPayloadLength: this.#config.maxFrameBytes,
      backpressureLimit: this.#config.maxBacklogBytes,
      closeOnBackpressureLimit: false,
      idleTimeout: SILENCE_SECONDS,
      sendPings: true,
      perMessageDeflate: false,
      publishToSelf: false,
    };
  }

  /**
   * Evicts what has outlived its time.
   * @returns Whether something may be left, because this sweep had done its share.
   */
  sweep(): boolean {
    const now = this.#now();
    let left = SWEEP_BATCH;
    for (const session of this.pairing.expired(now)) {
      if (left-- === 0) return true;
      this.#guard(session.target, () => this.#expireSession(session));
    }
    for (const watch of this.bootstrap.expired(now)) {
      if (left-- === 0) return true;
      this.#guard(watch.watcher, () => this.expireWatch(watch));
    }
    for (const connection of this.#idle) {
      if (now - connection.idleSince < this.#config.idleMs) break;
      if (left-- === 0) return true;
      this.#guard(connection, () => this.close(connection, 'idle'));
    }
    this.#failedCodes.sweep(now);
    this.#failedPerCode.sweep(now);
    this.#withdrawnListens.sweep(now);
    this.#watchAttempts.sweep(now);
    this.#refusedInits.sweep(now);
    this.burnt.sweep(now);
    return false;
  }

  /** Closes every socket with 1001. */
  closeAll(): void {
    for (const connection of this.#open) {
      this.#guard(connection, () => {
        if (connection.session) this.end(connection.session, 'abandoned');
        this.close(connection, 'shutting_down');
      });
    }
  }

  #opened(connection: Connection): void {
    const { client } = connection;
    if (this.draining) {
      this.refuse(connection, 'relay_draining');
      this.close(connection, 'shutting_down');
    } else if (
      this.#open.size >= this.#config.maxConnections ||
      this.#perClient.of(client) >= this.#config.maxConnectionsPerClient
    ) {
      this.close(connection, 'too_many_connections');
    } else {
      this.#open.add(connection);
      this.#perClient.add(client);
      this.stats.connectionsAccepted += 1;
      this.settle(connection);
      this.#trace(connection, 'connected');
    }
  }

  /** A socket's frame. */
  received(connection: Connection, frame: string | Buffer): void {
    this.#guard(connection, () => this.#received(connection, frame));
  }

  /** A socket is closed. */
  closed(connection: Connection): void {
    this.#guard(connection, () => this.#closed(connection));
  }

  #closed(connection: Connection): void {
    if (!this.#open.delete(connection)) return;
    this.#idle.delete(connection);
    this.#perClient.remove(connection.client);
    this.letGo(connection);
    this.#trace(connection, 'disconnected');
  }

  /** A peer has gone, and with it all that it held; `why` is what the other side of its session is told. */
  letGo(connection: Connection, why: ErrorCode = 'peer_disconnected'): void {
    const { session, watches, asks } = connection;
    if (session) this.leave(connection, session, frames.error(why));
    for (const watch of watches ?? []) {
      this.endWatch(watch, 'abandoned');
      if (watch.target) this.reject(watch.target, watch.jti, 'watcher_disconnected');
    }
    for (const watch of asks ?? []) this.endWatch(watch, 'abandoned');
  }

  #received(connection: Connection, frame: string | Buffer): void {
    const text = typeof frame === 'string' ? frame : decodeBinary(frame);
    if (text === undefined) return this.#malformed(connection, { malformed: 'invalid_message' });
    const bytes = Buffer.byteLength(text);
    if (isCanonicalData(text)) return this.#forward(connection, text, bytes);
    const message = parse(text);
    if ('malformed' in message) return this.#malformed(connection, message);
    if (message.type === 'data') {
      // An owner elsewhere charges the frame as it came, too.
      if (connection.remote?.session) return connection.remote.session.send(text);
      return this.#forward(connection, frames.data(message.payload), bytes);
    }
    if (!this.#isWithinFrameRate(connection, bytes)) return;
    if (!this.cluster?.takes(connection, message)) this.#control(connection, message);
  }

  #control(connection: Connection, message: Exclude<ClientMessage, { type: 'data' }>): void {
    switch (message.type) {
      case 'listen':
        return this.#listen(connection, message.otc);
      case 'connect':
        return this.#connect(connection, message.otc);
      case 'done':
        return this.#done(connection);
      case 'bootstrap_watch':
        return this.#watch(connection, message.jti);
      case 'bootstrap_init':
        return this.#init(connection, message.jti, message.token, message.targetPubKey);
      case 'bootstrap_ack':
        return this.#answer(
          connection,
          message.jti,
          'acknowledged',
          frames.bootstrapAck(
            message.jti,
            (message.publicKey ?? message.controllerPubKey) as string,
            message.controllerSig,
          ),
        );
      case 'bootstrap_reject':
        return this.#answer(
          connection,
          message.jti,
          'rejected',
          frames.reject(message.jti, message.error ?? 'rejected'),
        );
    }
  }

  // Pairing by code

  #listen(target: Connection, otc: string): void {
    if (target.session) return this.refuse(target, 'already_in_session');
    if (this.draining) return this.refuse(target, 'relay_draining');
    const now = this.#now();
    if (this.#failedCodes.isSpent(target.client, now) || this.hasWithdrawnTooOften(target)) {
      return this.refuse(target, 'rate_limited');
    }
    this.evictStaleSession(otc, now);
    const session = this.#failedPerCode.isSpent(otc, now)
      ? 'otc_in_use'
      : this.open(target, otc, now);
    if (session === 'otc_in_use') return this.#failCode(target, otc, session, now);
    if (typeof session === 'string') this.refuse(target, session);
  }

  /** Whether a client has taken too many codes and given them back. */
  hasWithdrawnTooOften({ client }: Connection): boolean {
    return this.#withdrawnListens.isSpent(client, this.#now());
  }

  /** Opens a session and says so. @returns It, or why not; then nothing was said. */
  open(target: Connection, otc: string, now: number): ReturnType<Pairing<Connection>['open']> {
    const session = this.pairing.open(target, otc, now);
    if (typeof session === 'string') return session;
    this.stats.opened += 1;
    this.#idle.delete(target);
    target.ws.subscribe(otc);
    this.#send(target, frames.ack);
    return session;
  }

  #connect(controller: Connection, otc: string): void {
    if (controller.session) return this.refuse(controller, 'already_in_session');
    const now = this.#now();
    if (this.#failedCodes.isSpent(controller.client, now)) {
      return this.refuse(controller, 'rate_limited');
    }
    this.evictStaleSession(otc, now);
    const session = this.join(controller, otc, now);
    if (session === 'already_in_session') return this.refuse(controller, session);
    if (typeof session === 'string') this.#failCode(controller, otc, session, now);
  }

  /** Joins a session and tells both sides. @returns It, or why not; then nothing was said. */
  join(controller: Connection, otc: string, now: number): ReturnType<Pairing<Connection>['join']> {
    const session = this.pairing.join(controller, otc, now);
    if (typeof session === 'string') return session;
    this.stats.begun += 1;
    this.stats.onBegun?.(now - session.openedAt);
    this.#idle.delete(controller);
    controller.ws.subscribe(otc);
    this.cluster?.joined(session);
    if (this.#send(controller, frames.peerFound)) this.#send(session.target, frames.peerFound);
    return session;
  }

  /** @param received Bytes of the frame as it came, which is what a session is charged: junk around a payload costs too. */
  #forward(sender: Connection, frame: string, received: number): void {
    const bytes = Math.max(0, received - DATA_ENVELOPE_BYTES);
    const session = this.pairing.carry(sender, bytes);
    if (typeof session === 'string') return this.#refuseData(sender, session, frame, received);
    if (sender.ws.publishText(session.otc, frame) === 0) {
      this.end(session, 'abandoned');
      return this.closePair(session, 'slow_consumer');
    }
    this.stats.framesForwarded += 1;
    this.stats.bytesForwarded += bytes;
  }

  #refuseData(
    sender: Connection,
    code: 'no_session' | 'peer_not_connected' | 'session_data_limit',
    frame: string,
    received: number,
  ): void {
    if (sender.remote?.session) return sender.remote.session.send(frame);
    if (!this.#isWithinFrameRate(sender, received)) return;
    const { session } = sender;
    if (code === 'session_data_limit' && session) {
      this.end(session, 'abandoned');
      this.refuse(sender, code);
      this.closePair(session, 'session_data_limit');
    } else {
      this.refuse(sender, code);
    }
  }

  #done(sender: Connection): void {
    const { session } = sender;
    if (!session) return this.refuse(sender, 'no_session');
    this.leave(sender, session, frames.done);
  }

  /** One side is through. The other hears it behind all that was sent before, and the session is forgotten. */
  leave(leaver: Connection, session: Session<Connection>, farewell: string): void {
    // To take a code and give it back tells that nobody else has it: a way to try codes that never fails.
    if (!session.controller) this.#withdrawnListens.add(leaver.client, this.#now());
    const isHeard = !session.controller || leaver.ws.publishText(session.otc, farewell) !== 0;
    this.end(session);
    if (!isHeard) this.closePair(session, 'slow_consumer');
  }

  end(session: Session<Connection>, outcome?: 'expired' | 'abandoned'): void {
    this.pairing.end(session);
    this.stats[outcome ?? (session.bytes > 0 ? 'completed' : 'abandoned')] += 1;
    if (session.controller) this.stats.onEnded?.(this.#now() - session.stageAt);
    for (const peer of [session.target, session.controller]) {
      if (!peer) continue;
      peer.ws.unsubscribe(session.otc);
      this.settle(peer);
    }
    this.cluster?.ended(session);
  }

  #expireSession(session: Session<Connection>): void {
    this.end(session, 'expired');
    for (const peer of [session.target, session.controller]) {
      if (peer) this.refuse(peer, 'otc_expired');
    }
    this.closePair(session, 'session_expired');
  }

  closePair(session: Session<Connection>, why: Close): void {
    this.close(session.target, why);
    if (session.controller) this.close(session.controller, why);
  }

  evictStaleSession(otc: string, now: number): void {
    const stale = this.pairing.stale(otc, now);
    if (stale) this.#expireSession(stale);
  }

  /** A failed attempt counts against the client and against the code, until either is spent. */
  #failCode(
    connection: Connection,
    otc: string,
    code: 'otc_in_use' | 'otc_not_found' | 'peer_already_connected',
    now: number,
  ): void {
    this.#failedCodes.add(connection.client, now);
    const isBurned = this.#failedPerCode.isSpent(otc, now);
    if (!isBurned) this.#failedPerCode.add(otc, now);
    this.refuse(connection, isBurned && code === 'peer_already_connected' ? 'otc_not_found' : code);
  }

  // Bootstrap by token

  #watch(watcher: Connection, jti: string): void {
    if (this.draining) return this.refuse(watcher, 'relay_draining');
    const now = this.#now();
    if (this.#watchAttempts.isSpent(watcher.client, now)) {
      return this.refuse(watcher, 'rate_limited');
    }
    this.#watchAttempts.add(watcher.client, now);
    this.evictStaleWatch(jti, now);
    // It may have been the watcher's own, which then heard of it, and is closed if it does not read.
    if (!this.#open.has(watcher)) return;
    const watch = this.watch(watcher, jti, now);
    if (typeof watch === 'string') this.refuse(watcher, watch);
  }

  /** Begins or renews a watch and says so. @returns It, or why not; then nothing was said. */
  watch(watcher: Connection, jti: string, now: number): ReturnType<Bootstrap<Connection>['watch']> {
    const watch = this.bootstrap.watch(watcher, jti, now);
    if (typeof watch === 'string') return watch;
    this.stats.bootstraps.watched += 1;
    this.#idle.delete(watcher);
    this.#send(watcher, frames.watching(jti));
    return watch;
  }

  #init(target: Connection, jti: string, token: string, targetPubKey: string): void {
    const now = this.#now();
    if (this.#refusedInits.isSpent(target.client, now)) {
      return this.reject(target, jti, 'rate_limited');
    }
    this.evictStaleWatch(jti, now);
    const watch = this.announce(target, jti, frames.init(jti, token, targetPubKey), now);
    if (typeof watch !== 'string') return;
    this.#refusedInits.add(target.client, now);
    this.reject(target, jti, watch);
  }

  /** Burns a jti and tells its watcher. @returns The watch, or why not; then nothing was said. */
  announce(
    target: Connection,
    jti: string,
    frame: string,
    now: number,
  ): ReturnType<Bootstrap<Connection>['announce']> {
    const watch = this.bootstrap.announce(target, jti, now);
    if (typeof watch === 'string') return watch;
    this.stats.bootstraps.announced += 1;
    this.#idle.delete(target);
    this.#send(watch.watcher, frame);
    return watch;
  }

  #answer(
    watcher: Connection,
    jti: string,
    outcome: 'acknowledged' | 'rejected',
    frame: string,
  ): void {
    this.evictStaleWatch(jti, this.#now());
    const watch = this.bootstrap.answerable(watcher, jti);
    if (typeof watch === 'string') return this.refuse(watcher, watch);
    this.endWatch(watch, outcome);
    if (watch.target) this.#send(watch.target, frame);
  }

  endWatch(
    watch: Watch<Connection>,
    outcome: 'acknowledged' | 'rejected' | 'expired' | 'abandoned',
  ): void {
    this.bootstrap.end(watch);
    this.stats.bootstraps[outcome] += 1;
    this.settle(watch.watcher);
    if (watch.target) this.settle(watch.target);
    this.cluster?.endedWatch(watch);
  }

  expireWatch(watch: Watch<Connection>): void {
    this.endWatch(watch, 'expired');
    this.stats.refusals.watch_expired += 1;
    this.#send(watch.watcher, frames.watchExpired(watch.jti));
    if (watch.target) this.reject(watch.target, watch.jti, 'watch_expired');
  }

  evictStaleWatch(jti: string, now: number): void {
    const stale = this.bootstrap.stale(jti, now);
    if (stale) this.expireWatch(stale);
  }

  // One socket

  /** Puts a socket among the idle, or takes it out, by what it holds now. */
  settle(connection: Connection): void {
    const holds =
      connection.session ||
      connection.watches?.size ||
      connection.asks?.size ||
      connection.remote?.isHolding;
    this.#idle.delete(connection);
    if (holds || !this.#open.has(connection)) return;
    connection.idleSince = this.#now();
    this.#idle.add(connection);
  }

  #malformed(connection: Connection, { malformed: code, type, jti }: Malformed): void {
    if (type === 'bootstrap_init') this.reject(connection, jti, code);
    else this.refuse(connection, code);
    connection.malformed += 1;
    if (connection.malformed >= this.#config.maxMalformed)
      this.close(connection, 'too_many_errors');
  }

  /** A long frame counts as one for each KiB begun, since reading it costs as much. */
  #isWithinFrameRate(connection: Connection, bytes: number): boolean {
    const now = this.#now();
    if (now - connection.framesSince >= FRAME_WINDOW_MS) {
      connection.framesSince = now;
      connection.frames = 0;
    }
    connection.frames += 1 + (bytes >> 10);
    if (connection.frames <= this.#config.maxControlFrames) return true;
    this.close(connection, 'too_many_frames');
    return false;
  }

  refuse(connection: Connection, code: ErrorCode): void {
    this.stats.refusals[code] += 1;
    this.#trace(connection, 'refused', code);
    this.#send(connection, frames.error(code));
  }

  reject(target: Connection, jti: string | undefined, reason: RejectReason): void {
    this.stats.refusals[reason] += 1;
    this.#trace(target, 'rejected', reason);
    this.#send(target, frames.reject(jti, reason));
  }

  /** @returns Whether the frame is on its way; otherwise the socket is closed now. */
  #send(connection: Connection, frame: string): boolean {
    if (connection.ws.sendText(frame) !== 0) return true;
    this.close(connection, 'slow_consumer');
    return false;
  }

  close(connection: Connection, why: Close): void {
    if (connection.remote) connection.remote.isClosed = true;
    const { code, reason } = closes[why];
    connection.ws.close(code, reason);
  }

  #guard(connection: Connection, step: () => void): void {
    try {
      step();
    } catch (error) {
      this.failed(connection, error);
    }
  }

  /** A fault of our own ends the one socket it happened on. Its message might quote a frame, so it is not logged. */
  failed(connection: Connection, error: unknown): void {
    const { name, stack = '' } = error instanceof Error ? error : new Error('not an Error');
    const where = stack.split('\n').filter((line) => line.trimStart().startsWith('at '));
    this.#log.error('internal error', {
      name,
      where: where.slice(0, 4).map((line) => line.trim()),
    });
    this.close(connection, 'internal_error');
  }

  /** What single clients do is for debugging, unless the operator asked to see clients. */
  #trace(connection: Connection, event: string, code?: string): void {
    const { logClients, logLevel } = this.#config;
    if (logClients) this.#log.info(event, { code, client: connection.client });
    else if (logLevel === 'debug') this.#log.debug(event, { code });
  }
}
