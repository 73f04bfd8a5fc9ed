/**
 * The relay's end of every WebSocket: Bun's events come in here, and each frame goes to what handles its kind. Wholly
 * synchronous: no frame overtakes another, and none sees half a change. Every rule has done its part before a frame is
 * sent, since a send to a socket that does not read closes it on the spot.
 */
import type { Server, WebSocketHandler } from 'bun';
import { Answers } from './answers.ts';
import { Alone, type Arbiter } from './arbiter.ts';
import { Bootstrap, BURNT_TTL_MS, WATCH_TTL_MS } from './bootstrap/bootstrap.ts';
import { BurntList } from './bootstrap/used-tokens.ts';
import type { Cluster } from './cluster/cluster.ts';
import type { Config } from './config.ts';
import { type Clock, Connection } from './connection.ts';
import { Limits } from './admission/limits.ts';
import type { Log } from './observe/log.ts';
import { Pairing } from './pairing/pairing.ts';
import {
  type ClientMessage,
  decodeBinary,
  type ErrorCode,
  frames,
  isCanonicalData,
  type Malformed,
  parse,
} from './wire/frames.ts';
import { Roster } from './admission/connections.ts';
import { Sessions } from './pairing/sessions.ts';
import { Stats } from './observe/stats.ts';
import { Watches } from './bootstrap/watches.ts';

/** From the protocol. */
const MAX_WATCHES_PER_SOCKET = 100;

/** The window in which a socket's frames other than forwarded data are counted. */
const FRAME_WINDOW_MS = 10_000;

/** Seconds without a byte, not even a pong, until Bun gives a connection up. It pings well before. */
const SILENCE_SECONDS = 30;

/** Evictions that one sweep makes at most (a few milliseconds of work), so that a mass expiry stalls nobody. */
const SWEEP_BATCH = 500;

export type BunServer = Server<Connection>;

export class Sockets {
  readonly stats = new Stats();
  readonly pairing: Pairing<Connection>;
  readonly bootstrap: Bootstrap<Connection>;
  readonly burnt: BurntList;
  readonly roster: Roster;
  readonly limits: Limits;
  readonly answers: Answers;
  readonly sessions: Sessions;
  readonly watches: Watches;
  readonly #config: Config;
  readonly #now: Clock;
  #cluster: Cluster | undefined = undefined;
  #arbiter!: Arbiter;

  constructor(config: Config, log: Log, now: Clock) {
    this.#config = config;
    this.#now = now;
    this.pairing = new Pairing(config);
    this.burnt = new BurntList(config.maxBurnt, BURNT_TTL_MS);
    this.bootstrap = new Bootstrap(this.burnt, WATCH_TTL_MS, MAX_WATCHES_PER_SOCKET);
    this.roster = new Roster(config);
    this.limits = new Limits(config);
    this.answers = new Answers(config, log, this.stats);
    this.sessions = new Sessions(this, now);
    this.watches = new Watches(this, now);
    this.#use(new Alone(this, now));
  }

  /** Makes this instance one of many. To be called before the first socket opens. */
  join(cluster: Cluster): void {
    this.#cluster = cluster;
    this.#use(cluster);
  }

  /** The other instances, where there are any. */
  get cluster(): Cluster | undefined {
    return this.#cluster;
  }

  #use(arbiter: Arbiter): void {
    this.#arbiter = arbiter;
    this.sessions.arbiter = arbiter;
    this.watches.arbiter = arbiter;
  }

  /** Sessions, and bootstraps that await their answer: what a drain waits for. */
  get underWay(): number {
    return this.pairing.size + this.bootstrap.asked + (this.cluster?.pipes ?? 0);
  }

  /** The size of everything that is remembered. */
  get books(): Record<string, number> {
    return {
      ...this.roster.books,
      sessions: this.pairing.size,
      watches: this.bootstrap.size,
      burnt: this.burnt.size,
      ...this.limits.books,
      ...this.cluster?.books,
    };
  }

  /** Makes a request a socket of a client's; false where it asks for no upgrade. */
  upgrade(server: BunServer, request: Request, client: string): boolean {
    return server.upgrade(request, { data: new Connection(client) });
  }

  get handlers(): WebSocketHandler<Connection> {
    const { cluster, answers } = this;
    return {
      open: (ws) => {
        ws.data.ws = ws;
        answers.guard(ws.data, () => this.#opened(ws.data));
      },
      // Chosen once, so that a relay on its own does not ask for each frame; and guarded without a closure for each.
      message: cluster
        ? (ws, frame) => cluster.received(ws.data, frame)
        : (ws, frame) => {
            try {
              this.#received(ws.data, frame);
            } catch (error) {
              answers.failed(ws.data, error);
            }
          },
      // Bun has answered it already; counted, since a flood of pings costs as much as any other.
      ping: (ws) => answers.guard(ws.data, () => void this.#isWithinFrameRate(ws.data, 0)),
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

  #opened(connection: Connection): void {
    if (this.roster.draining) {
      this.answers.refuse(connection, 'relay_draining');
      this.answers.close(connection, 'relay_shutting_down');
    } else if (this.roster.admit(connection, this.#now())) {
      this.stats.connectionsAccepted += 1;
      this.answers.trace(connection, 'connected');
    } else {
      this.answers.close(connection, 'too_many_connections');
    }
  }

  /** A socket's frame, from whatever way it came. */
  received(connection: Connection, frame: string | Buffer): void {
    this.answers.guard(connection, () => this.#received(connection, frame));
  }

  /** A socket is closed. */
  closed(connection: Connection): void {
    this.answers.guard(connection, () => {
      if (!this.roster.remove(connection)) return;
      this.letGo(connection);
      this.answers.trace(connection, 'disconnected');
    });
  }

  /** A peer has gone, and with it all that it held; `why` is what the other side of its session is told. */
  letGo(connection: Connection, why: ErrorCode = 'peer_disconnected'): void {
    this.sessions.letGo(connection, why);
    this.watches.letGo(connection);
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
    if (this.#isWithinFrameRate(connection, bytes)) this.#control(connection, message);
  }

  #forward(sender: Connection, frame: string, received: number): void {
    const refusal = this.sessions.forward(sender, frame, received);
    if (refusal === undefined) return;
    if (sender.remote?.session) return sender.remote.session.send(frame);
    if (this.#isWithinFrameRate(sender, received)) this.answers.refuse(sender, refusal);
  }

  #control(connection: Connection, message: Exclude<ClientMessage, { type: 'data' }>): void {
    if (message.type === 'bootstrap_init') {
      const { jti, token, targetPubKey } = message;
      const reason = this.#arbiter.init(connection, jti, frames.init(jti, token, targetPubKey));
      if (reason) this.answers.reject(connection, jti, reason);
    } else {
      const code = this.#decide(connection, message);
      if (code) this.answers.refuse(connection, code);
    }
  }

  /** @returns Why not. */
  #decide(
    connection: Connection,
    message: Exclude<ClientMessage, { type: 'data' | 'bootstrap_init' }>,
  ): ErrorCode | undefined {
    switch (message.type) {
      case 'listen':
        return this.#arbiter.listen(connection, message.otc);
      case 'connect':
        return this.#arbiter.connect(connection, message.otc);
      case 'done':
        return this.#arbiter.done(connection);
      case 'bootstrap_watch':
        return this.#arbiter.watch(connection, message.jti);
      case 'bootstrap_ack': {
        const { jti, publicKey, controllerPubKey, controllerSig } = message;
        const key = (publicKey ?? controllerPubKey) as string;
        const frame = frames.bootstrapAck(jti, key, controllerSig);
        return this.watches.answer(connection, jti, 'acknowledged', frame);
      }
      case 'bootstrap_reject': {
        const { jti, error = 'rejected' } = message;
        return this.watches.answer(connection, jti, 'rejected', frames.reject(jti, error));
      }
    }
  }

  #malformed(connection: Connection, { malformed: code, type, jti }: Malformed): void {
    if (type === 'bootstrap_init') this.answers.reject(connection, jti, code);
    else this.answers.refuse(connection, code);
    connection.malformed += 1;
    if (connection.malformed >= this.#config.maxMalformed)
      this.answers.close(connection, 'too_many_errors');
  }

  /** A long frame counts once more for each whole KiB, since reading it costs as much. */
  #isWithinFrameRate(connection: Connection, bytes: number): boolean {
    const now = this.#now();
    if (now - connection.framesSince >= FRAME_WINDOW_MS) {
      connection.framesSince = now;
      connection.frames = 0;
    }
    connection.frames += 1 + (bytes >> 10);
    if (connection.frames <= this.#config.maxControlFrames) return true;
    this.answers.close(connection, 'too_many_frames');
    return false;
  }

  /**
   * Evicts what has outlived its time.
   * @returns Whether something may be left, because this sweep had done its share.
   */
  sweep(): boolean {
    const now = this.#now();
    const { answers } = this;
    let left = SWEEP_BATCH;
    for (const session of this.pairing.expired(now)) {
      if (left-- === 0) return true;
      answers.guard(session.target, () => this.sessions.expire(session));
    }
    for (const watch of this.bootstrap.expired(now)) {
      if (left-- === 0) return true;
      answers.guard(watch.watcher, () => this.watches.expire(watch));
    }
    for (const connection of this.roster.overdue(now)) {
      if (left-- === 0) return true;
      answers.guard(connection, () => answers.close(connection, 'idle'));
    }
    this.limits.sweep(now);
    this.burnt.sweep(now);
    return false;
  }

  /** Closes every socket with 1001. */
  closeAll(): void {
    for (const connection of this.roster.all()) {
      this.answers.guard(connection, () => {
        if (connection.session) this.sessions.end(connection.session, 'abandoned');
        this.answers.close(connection, 'relay_shutting_down');
      });
    }
  }
}
