/**
 * Bun's WebSocket handlers: they read a frame, apply the rules, and send the answer.
 *
 * On one instance all of this is synchronous, so frames keep their order and never see a change that is half done. With
 * many instances, some frames wait for Redis; until it answers, the socket's further frames wait in its queue. Sending
 * to a socket that does not read closes it at once, so each rule changes its state before a frame is sent.
 */
import type { Server, ServerWebSocket, WebSocketHandler } from 'bun';
import { Watches } from './bootstrap/watches.ts';
import { Connection } from './connection.ts';
import { payloadBytes, Sessions } from './pairing/sessions.ts';
import { State } from './state.ts';
import type { ErrorCode, RejectReason } from './wire/codes.ts';
import { decodeBinary, frames, isCanonicalData, type Malformed, parse } from './wire/frames.ts';
import type { ClientMessage } from './wire/messages.ts';

/** The window in which a socket's frames other than forwarded data are counted, in milliseconds. */
const FRAME_WINDOW_MS = 10_000;

/**
 * Seconds without a byte, not even a pong, until Bun closes a connection. Bun pings after 8 to 12 s (measured on Bun
 * 1.4.5), so that proxies that cut a connection after 15 s of silence leave it open.
 */
const SILENCE_SECONDS = 20;

/** How long a refused socket may take to read its close code, in milliseconds. */
const REFUSED_MS = 1000;
/** Refused sockets that may be open at a time. Any more are terminated at once. */
const MAX_REFUSED = 1000;

/** How long a socket may read none of the bytes that wait for it, in milliseconds. */
const STALLED_MS = 10_000;

/** The most evictions of one sweep (a few milliseconds of work), so that a mass expiry does not block the relay. */
const SWEEP_BATCH = 500;

/** How many frames of the largest size may wait in a socket's queue for an answer of Redis. */
const QUEUED_FRAMES = 4;

export type BunServer = Server<Connection>;

/** The interface to the other instances. Requests resolve to the error code if refused, otherwise to undefined. */
export interface Cluster {
  /** Whether Redis is reachable. */
  readonly isUp: boolean;
  /** The number of entries in each of its collections. */
  readonly books: Record<string, number>;
  listen(target: Connection, otc: string): Promise<ErrorCode | undefined>;
  connect(controller: Connection, otc: string): Promise<ErrorCode | undefined>;
  watch(watcher: Connection, jti: string): Promise<ErrorCode | undefined>;
  announce(target: Connection, jti: string, frame: string): Promise<RejectReason | undefined>;
}

/** What a frame counts for while it waits: its length, and the memory that even an empty frame takes. */
const queuedSize = (frame: string | Buffer): number => frame.length + 64;

/** A message that the relay itself answers. */
type Question = Exclude<ClientMessage, { type: 'data' }>;
/** Why a question is refused; undefined if it is not. */
type Refusal = RejectReason | undefined;

export class Sockets extends State {
  readonly sessions = new Sessions(this);
  readonly watches = new Watches(this);
  /** The other instances, if there are any. Set it before the first socket opens. */
  cluster: Cluster | undefined = undefined;
  /** Sockets that were refused and are not closed yet, with the time of the refusal. */
  readonly #refused = new Map<Connection, number>();
  /** Sockets with unsent bytes: when the client last read some, and how many bytes wait if it has read none since. */
  readonly #stalled = new Map<Connection, { since: number; bytes: number }>();

  /** What a drain waits for: the number of sessions and of announcements without an answer. */
  get underWay(): number {
    return this.pairing.size + this.bootstrap.unanswered + (this.cluster?.books.tunnels ?? 0);
  }

  /** The number of entries in each collection of the relay. */
  get books(): Record<string, number> {
    const limits = Object.entries(this.limits).map(([name, { size }]) => [name, size] as const);
    return {
      ...this.connections.books,
      sessions: this.pairing.size,
      watches: this.bootstrap.size,
      burnt: this.used.size,
      ...Object.fromEntries(limits),
      ...this.cluster?.books,
    };
  }

  /** Upgrades a request to a socket of the client. Returns false if that is not possible. */
  upgrade(server: BunServer, request: Request, client: string): boolean {
    return server.upgrade(request, { data: new Connection(client, this.#onBacklog, server) });
  }

  get handlers(): WebSocketHandler<Connection> {
    const { answers } = this;
    // Bun answers pings by itself. Pings and pongs are counted, since a flood of them costs as much as other frames.
    const count = ({ data }: ServerWebSocket<Connection>): void =>
      answers.guard(data, () => void this.#isWithinFrameRate(data, 0, this.now()));
    return {
      open: (ws) => {
        ws.data.ws = ws;
        answers.guard(ws.data, () => this.#opened(ws.data));
      },
      // Not `answers.guard`, which would need a closure for each frame.
      message: ({ data: connection }, frame) => {
        try {
          if (connection.queue) return this.#enqueue(connection, frame);
          const answered = this.#received(connection, frame, this.now());
          if (answered) void this.#wait(connection, answered);
        } catch (error) {
          answers.failed(connection, error);
        }
      },
      ping: count,
      pong: count,
      drain: ({ data }) => {
        this.#stalled.delete(data);
        if (data.ws.getBufferedAmount() > 0) this.#onBacklog(data, '');
      },
      close: ({ data: connection }) => {
        this.#refused.delete(connection);
        this.#stalled.delete(connection);
        if (connection.queue) connection.isGone = true;
        else this.#closed(connection);
      },
      maxPayloadLength: this.config.maxFrameBytes,
      backpressureLimit: this.config.maxBacklogBytes,
      closeOnBackpressureLimit: false,
      idleTimeout: SILENCE_SECONDS,
      sendPings: true,
      perMessageDeflate: false,
      publishToSelf: false,
    };
  }

  readonly #onBacklog = (connection: Connection, frame: string): void => {
    const stalled = this.#stalled.get(connection);
    if (stalled) stalled.bytes += Buffer.byteLength(frame);
    else {
      const bytes = connection.ws.getBufferedAmount();
      this.#stalled.set(connection, { since: this.now(), bytes });
    }
  };

  #opened(connection: Connection): void {
    const { connections, answers } = this;
    const now = this.now();
    if (connections.draining) {
      answers.refuse(connection, 'relay_draining');
      connection.close('relay_shutting_down');
    } else if (connections.admit(connection, now)) {
      this.stats.connectionsAccepted += 1;
      answers.trace(connection.client, 'connected');
    } else {
      connection.close('too_many_connections');
      if (this.#refused.size < MAX_REFUSED) this.#refused.set(connection, now);
      else connection.ws.terminate();
    }
  }

  /** Terminates refused sockets that did not close, and closes sockets that do not read. */
  #closeStuck(now: number): void {
    for (const [connection, since] of this.#refused) {
      if (now - since < REFUSED_MS) break;
      connection.ws.terminate();
    }
    for (const [connection, { since, bytes }] of this.#stalled) {
      if (now - since < STALLED_MS) break;
      this.#stalled.delete(connection);
      const waiting = connection.ws.getBufferedAmount();
      if (waiting < bytes) {
        if (waiting > 0) this.#stalled.set(connection, { since: now, bytes: waiting });
      } else if (connection.session) {
        this.sessions.abort(connection.session, now);
      } else {
        connection.tunnel?.abort('slow_consumer');
        connection.close('slow_consumer');
      }
    }
  }

  #closed(connection: Connection): void {
    this.answers.guard(connection, () => {
      if (!this.connections.remove(connection)) return;
      const now = this.now();
      this.sessions.leave(connection, 'peer_disconnected', now);
      this.watches.leave(connection, 'watcher_disconnected', now);
      // Only now, since a topic reaches the other peer from here too, with fewer writes to its socket.
      connection.isGone = true;
      connection.tunnels?.forEach((tunnel) => tunnel.end());
      this.answers.trace(connection.client, 'disconnected');
    });
  }

  /** Handles a frame. Returns a promise if the answer has to wait for Redis. */
  #received(
    connection: Connection,
    frame: string | Buffer,
    now: number,
  ): Promise<void> | undefined {
    const text = typeof frame === 'string' ? frame : decodeBinary(frame);
    if (text === undefined) return this.#malformed(connection, { malformed: 'invalid_message' });
    const bytes = Buffer.byteLength(text);
    if (isCanonicalData(text)) return this.#forward(connection, text, bytes, now);
    const message = parse(text);
    if ('malformed' in message) return this.#malformed(connection, message);
    if (message.type === 'data') {
      return this.#forward(connection, frames.data(message.payload), bytes, now);
    }
    if (!this.#isWithinFrameRate(connection, bytes, now)) return undefined;
    return this.#answer(connection, message, now);
  }

  /** @param bytes The length of the frame as received. */
  #forward(connection: Connection, frame: string, bytes: number, now: number): undefined {
    const { session, tunnel, client } = connection;
    if ((session || tunnel) && !this.limits.bytes.take(client, payloadBytes(bytes), now)) {
      if (tunnel) tunnel.abort('session_data_limit');
      else this.sessions.overLimit(connection, now);
    } else if (tunnel) {
      tunnel.forward(frame, bytes);
    } else {
      const refusal = this.sessions.forward(connection, frame, bytes, now);
      if (refusal && this.#isWithinFrameRate(connection, bytes, now)) {
        this.answers.refuse(connection, refusal);
      }
    }
  }

  // Not in `#received`, which would allocate what the closure needs for each frame.
  #answer(connection: Connection, message: Question, now: number): Promise<void> | undefined {
    const refusal = this.#ask(connection, message, now);
    if (!(refusal instanceof Promise)) return this.#refuse(connection, refusal, message);
    return refusal.then((reason) => this.#refuse(connection, reason, message));
  }

  /** Refuses a message, in the form that its sender understands. */
  #refuse(connection: Connection, reason: Refusal, { type, jti }: Partial<Malformed>): undefined {
    if (!reason) return;
    if (type === 'bootstrap_init') this.answers.reject(connection, jti, reason);
    else this.answers.refuse(connection, reason as ErrorCode);
  }

  #ask(connection: Connection, message: Question, now: number): Refusal | Promise<Refusal> {
    const { cluster, sessions, watches } = this;
    switch (message.type) {
      case 'listen':
        return (cluster ?? sessions).listen(connection, message.otc, now);
      case 'connect':
        return (cluster ?? sessions).connect(connection, message.otc, now);
      case 'done':
        return connection.tunnel?.done() ?? sessions.done(connection, now);
      case 'bootstrap_watch':
        return (cluster ?? watches).watch(connection, message.jti, now);
      case 'bootstrap_init': {
        const { jti, token, targetPubKey } = message;
        const frame = frames.init(jti, token, targetPubKey);
        return (cluster ?? watches).announce(connection, jti, frame, now);
      }
      case 'bootstrap_ack': {
        const { jti, publicKey, controllerPubKey, controllerSig } = message;
        const key = (publicKey ?? controllerPubKey) as string;
        const frame = frames.bootstrapAck(jti, key, controllerSig);
        return watches.answer(connection, jti, 'acknowledged', frame, now);
      }
      case 'bootstrap_reject': {
        const { jti, error = 'rejected' } = message;
        return watches.answer(connection, jti, 'rejected', frames.reject(jti, error), now);
      }
    }
  }

  #enqueue(connection: Connection, frame: string | Buffer): void {
    connection.queuedBytes += queuedSize(frame);
    if (connection.queuedBytes > QUEUED_FRAMES * this.config.maxFrameBytes) {
      connection.close('too_many_frames');
    } else {
      connection.queue?.push(frame);
    }
  }

  /** Waits until a frame is answered, and then handles the frames that came meanwhile. */
  async #wait(connection: Connection, answered: Promise<void>): Promise<void> {
    const queue: (string | Buffer)[] = [];
    connection.queue = queue;
    await answered.catch((error: unknown) => this.answers.failed(connection, error));
    for (let frame = queue.shift(); frame !== undefined; frame = queue.shift()) {
      connection.queuedBytes -= queuedSize(frame);
      if (connection.isClosed) continue;
      try {
        await this.#received(connection, frame, this.now());
      } catch (error) {
        this.answers.failed(connection, error);
      }
    }
    connection.queue = undefined;
    if (connection.isGone) this.#closed(connection);
  }

  #malformed(connection: Connection, message: Malformed): undefined {
    this.#refuse(connection, message.malformed, message);
    connection.malformed += 1;
    if (connection.malformed >= this.config.maxMalformed) connection.close('too_many_errors');
  }

  /** Counts a frame, and closes a socket over the limit. Each whole KiB counts as one more, since it costs as much. */
  #isWithinFrameRate(connection: Connection, bytes: number, now: number): boolean {
    if (now - connection.framesSince >= FRAME_WINDOW_MS) {
      connection.framesSince = now;
      connection.frames = 0;
    }
    connection.frames += 1 + (bytes >> 10);
    if (connection.frames <= this.config.maxControlFrames) return true;
    connection.close('too_many_frames');
    return false;
  }

  /**
   * Ends what has expired.
   * @returns Whether something may be left, because this sweep reached its maximum.
   */
  sweep(): boolean {
    const now = this.now();
    const { answers } = this;
    let left = SWEEP_BATCH;
    for (const session of this.pairing.expired(now)) {
      if (left-- === 0) return true;
      answers.guard(session.target, () => this.sessions.expire(session, now));
    }
    for (const watch of this.bootstrap.expired(now)) {
      if (left-- === 0) return true;
      answers.guard(watch.watcher, () => this.watches.expire(watch, now));
    }
    for (const connection of this.connections.overdue(now)) {
      if (left-- === 0) return true;
      answers.guard(connection, () => connection.close('idle'));
    }
    this.#closeStuck(now);
    for (const limit of Object.values(this.limits)) limit.sweep(now);
    this.used.sweep(now);
    return false;
  }

  /** Closes every socket with 1001. Their peers on other instances get `peer_disconnected`. */
  closeAll(): void {
    const now = this.now();
    for (const connection of this.connections.all()) {
      this.answers.guard(connection, () => {
        const { session } = connection;
        if (session?.controller && !(session.controller instanceof Connection)) {
          this.sessions.leave(connection, 'peer_disconnected', now);
        } else if (session) {
          this.sessions.end(session, 'abandoned', now);
        }
        connection.close('relay_shutting_down');
      });
    }
  }
}
