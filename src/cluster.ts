/**
 * Many instances as one relay. The instance that a target (or a watcher) is connected to owns its session, and is the
 * only one to write it. Redis says who owns which code and jti, counts what must be counted together, and carries
 * messages between instances, one channel each. A controller on another instance is to the owner a peer like any
 * other (`far`), whose wire is a link; on its own instance its socket is a pipe to the owner, and knows no rules.
 *
 * Pub/sub delivers at most once and in order. So the messages from one instance to another are numbered; where one is
 * missing, or the stream began anew, every link between the two is over. Nothing is ever sent again.
 */
import type { Bus } from './bus.ts';
import type { Config } from './config.ts';
import type { Log } from './log.ts';
import type { Session } from './pairing.ts';
import type { Watch } from './bootstrap.ts';
import { type ClientMessage, type ErrorCode, frames, type RejectReason } from './protocol.ts';
import {
  BURNT_TTL_MS,
  type Clock,
  Connection,
  type Sockets,
  WATCH_TTL_MS,
  type Wire,
} from './socket.ts';

/** How often an instance says that it lives, in milliseconds. */
export const BEAT_MS = 500;
/** An instance that was silent for so long is dead: its codes and watches are free. */
export const DEAD_AFTER_MS = 3000;
/** Beats that another instance has for an answer. */
const ANSWER_BEATS = 4;
/** Beats of which nothing is heard, after which the connections are made anew. */
const SILENT_BEATS = 3;
/** Bytes that may wait in this process, for Redis and behind questions to it, from all sockets together. */
const MAX_WAITING_BYTES = 64 * 1024 * 1024;
/** What a waiting frame costs beside its bytes. */
const FRAME_OVERHEAD_BYTES = 64;
/** Claims that are renewed at once when Redis is back. */
const RENEW_BATCH = 500;

/** The stream that says: every link between us is over. */
const OVER = 0;

/** What goes over a link: a frame as it is, anything else as an array. */
type ToEdge = string | ['yes'] | ['no', string] | ['end', number] | ['close', number, string];
type ToOwner =
  | string
  | ['connect', otc: string, client: string]
  | ['init', jti: string, client: string, frame: string]
  | ['slow']
  | ['gone'];
type Item = ['edge', link: number, what: ToEdge] | ['owner', link: number, what: ToOwner];
/** Who sends, its stream to this receiver, the number within it, and the items. */
type Envelope = [from: string, stream: number, seq: number, items: Item[]];

/** Another instance. */
class Peer {
  readonly id: string;
  readonly stream: number;
  sent = 0;
  itsStream: number | undefined;
  expected = 0;
  outbox: Item[] = [];
  /** Peers of ours whose sockets are over there, by link. */
  readonly fars = new Map<number, Connection>();
  /** Sockets of ours whose owner is over there, by link. */
  readonly pipes = new Map<number, Pipe>();

  constructor(id: string, stream: number) {
    this.id = id;
    this.stream = stream;
  }
}

/** A socket's way to the owner of its session, or of the watch that it announced itself to. */
interface Pipe {
  readonly connection: Connection;
  readonly peer: Peer;
  readonly number: number;
  /** The token id that was announced; none for a session. */
  readonly jti: string | undefined;
  /** The beat at which the owner was asked something that it has not answered. */
  askedAt: number | undefined;
  /** Frames sent; the owner says how many of them it has heard. */
  sent: number;
  /** Frames that were sent before the end was known here, and that the owner has not heard any more. */
  late: number;
  isOver: boolean;
  /** Comes to why not, where the owner refuses. */
  readonly opened: PromiseWithResolvers<string | undefined>;
  readonly over: PromiseWithResolvers<void>;
  send(frame: string): void;
}

/** What the cluster keeps of one socket. */
export class Remote {
  /** Frames that wait behind a question to Redis; `undefined` stands for the close. */
  queue: (string | Buffer | undefined)[] | undefined;
  queuedBytes = 0;
  /** The relay has closed this socket: what waits is not heard any more. */
  isClosed = false;
  /** The session that it is in, at its owner's. */
  session: Pipe | undefined;
  readonly pipes = new Set<Pipe>();
  /** For a far peer: the way to its socket, and the frames that came. */
  link: { peer: Peer; number: number; received: number } | undefined;

  get isHolding(): boolean {
    return this.pipes.size > 0;
  }
}

/** The end of a session without Bun's topics: what it publishes goes straight to the other side. */
class DirectWire implements Wire {
  readonly #of: Connection;
  readonly out: Wire;

  constructor(of: Connection, out: Wire) {
    this.#of = of;
    this.out = out;
  }

  publishText(_topic: string, frame: string): number {
    const { session } = this.#of;
    const other = session?.target === this.#of ? session.controller : session?.target;
    return other?.ws.sendText(frame) ?? frame.length;
  }

  sendText(frame: string): number {
    return this.out.sendText(frame);
  }

  subscribe(topic: string): void {
    this.out.subscribe(topic);
  }

  unsubscribe(topic: string): void {
    this.out.unsubscribe(topic);
  }

  close(code?: number, reason?: string): void {
    this.out.close(code, reason);
  }
}

/** Where a socket was that is closed, while frames of it still wait for their turn. */
const nowhere: Wire = {
  sendText: (frame) => frame.length,
  publishText: (_topic, frame) => frame.length,
  subscribe: () => {},
  unsubscribe: () => {},
  close: () => {},
};

/** Whether the owner has said yes. */
const isOpen = (pipe: Pipe): boolean =>
  pipe.askedAt === undefined || pipe.connection.remote?.session === pipe;

const isClaim = (answer: string): boolean => answer.includes('.');
const ownerOf = (claim: string): string => claim.slice(0, claim.indexOf('.'));
const hash = (jti: string): string =>
  Buffer.from(Bun.SHA256.hash(jti).buffer).toString('base64url');

export interface ClusterParts {
  /** This instance, in this life of it: nobody else's name, ever. */
  id: string;
  config: Config;
  sockets: Sockets;
  bus: Bus;
  log: Log;
  now: Clock;
}

export class Cluster {
  readonly id: string;
  readonly #config: Config;
  readonly #sockets: Sockets;
  readonly #bus: Bus;
  readonly #log: Log;
  readonly #now: Clock;
  readonly #peers = new Map<string, Peer>();
  /** What this instance owns, and the claim by which Redis knows it. */
  readonly #claims = new Map<Session<Connection> | Watch<Connection>, string>();
  /** Claims that may stand in Redis though nobody here holds them: keys and claims. */
  #orphans: [string, string][] = [];
  /** Instances whose links ended when Redis went out of reach, and that may not know. */
  readonly #lost = new Set<string>();
  #serial = 0;
  #beats = 0;
  #answered = 0;
  #echoed = 0;
  #isUp = false;
  #isBeating = false;
  #isRecovering = false;
  #waitingBytes = 0;
  /** What was wrong when Redis was last out of reach. */
  lastProblem = 'no answer yet';
  /** Called once, when this instance is the first time one of many. */
  onUp: (() => void) | undefined;

  constructor({ id, config, sockets, bus, log, now }: ClusterParts) {
    this.id = id;
    this.#config = config;
    this.#sockets = sockets;
    this.#bus = bus;
    this.#log = log;
    this.#now = now;
    bus.onMessage = (text) => this.#delivered(text);
    bus.onLost = (reason) => this.#down(reason);
    bus.onReady = () => void this.beat();
  }

  /** Whether Redis answers, and what others send arrives. */
  get isUp(): boolean {
    return this.#isUp;
  }

  /** Sockets of this instance that have something under way at another. */
  get pipes(): number {
    let pipes = 0;
    for (const peer of this.#peers.values()) pipes += peer.pipes.size;
    return pipes;
  }

  get books(): Record<string, number> {
    let fars = 0;
    for (const peer of this.#peers.values()) fars += peer.fars.size;
    return {
      instances: this.#peers.size,
      pipes: this.pipes,
      fars,
      claims: this.#claims.size,
      orphans: this.#orphans.length,
      waitingBytes: this.#waitingBytes,
    };
  }

  // A socket's frames, in their order

  /** A socket's frame. */
  received(connection: Connection, frame: string | Buffer): void {
    const { remote } = connection;
    if (!remote?.queue) return this.#sockets.received(connection, frame);
    const bytes = frame.length + FRAME_OVERHEAD_BYTES;
    if (
      remote.queuedBytes + bytes > this.#config.maxBacklogBytes ||
      this.#waitingBytes + bytes > MAX_WAITING_BYTES
    ) {
      return this.#sockets.close(connection, 'too_many_frames');
    }
    remote.queuedBytes += bytes;
    this.#waitingBytes += bytes;
    remote.queue.push(frame);
  }

  /** A socket is closed: that, too, comes behind the frames that it sent before. */
  closed(connection: Connection): void {
    const { remote } = connection;
    if (!remote?.queue) return this.#gone(connection);
    connection.ws = new DirectWire(connection, nowhere);
    remote.queue.push(undefined);
  }

  #gone(connection: Connection): void {
    const { remote } = connection;
    if (remote?.link) return this.#sockets.letGo(connection);
    for (const pipe of remote?.pipes ?? []) {
      this.#post(pipe.peer, ['owner', pipe.number, ['gone']]);
      this.#drop(pipe);
    }
    this.#sockets.closed(connection);
  }

  /** Whether a message is one that others have a say in. */
  takes(connection: Connection, message: ClientMessage): boolean {
    switch (message.type) {
      case 'listen':
        return this.#run(connection, () => this.#listen(connection, message.otc));
      case 'connect':
        return this.#run(connection, () => this.#connect(connection, message.otc));
      case 'done':
        return connection.remote?.session
          ? this.#run(connection, () => this.#done(connection))
          : false;
      case 'bootstrap_watch':
        return this.#run(connection, () => this.#watch(connection, message.jti));
      case 'bootstrap_init': {
        const { jti, token, targetPubKey } = message;
        return this.#run(connection, () =>
          this.#init(connection, jti, frames.init(jti, token, targetPubKey)),
        );
      }
      default:
        return false;
    }
  }

  /** Does what takes its time; meanwhile the socket's frames, and its close, wait. */
  #run(connection: Connection, job: () => Promise<void>): true {
    const remote = (connection.remote ??= new Remote());
    remote.queue = [];
    void job()
      .catch((error: unknown) => this.#sockets.failed(connection, error))
      .then(() => this.#drain(connection, remote));
    return true;
  }

  #drain(connection: Connection, remote: Remote): void {
    const queue = remote.queue ?? [];
    remote.queue = undefined;
    for (const [i, frame] of queue.entries()) {
      if (frame === undefined) return this.#gone(connection);
      const bytes = frame.length + FRAME_OVERHEAD_BYTES;
      remote.queuedBytes -= bytes;
      this.#waitingBytes -= bytes;
      if (!remote.isClosed) this.#sockets.received(connection, frame);
      if (remote.queue) {
        (remote.queue as typeof queue).push(...queue.slice(i + 1));
        return;
      }
    }
  }

  // What others have a say in

  async #listen(target: Connection, otc: string): Promise<void> {
    const sockets = this.#sockets;
    if (target.session || target.remote?.session) {
      return sockets.refuse(target, 'already_in_session');
    }
    if (sockets.draining) return sockets.refuse(target, 'relay_draining');
    if (!this.#isUp) return sockets.refuse(target, 'relay_unavailable');
    if (sockets.hasWithdrawnTooOften(target)) return sockets.refuse(target, 'rate_limited');
    const { sessionTtlMs, maxFailedCodes, maxFailedPerCode } = this.#config;
    const claim = this.#newClaim();
    const answer = await this.#ask(
      'claimCode',
      [this.#codesBy(target), this.#tries(otc), this.#code(otc)],
      [claim, sessionTtlMs, maxFailedCodes, maxFailedPerCode],
    );
    if (answer !== 'ok') {
      if (answer === 'relay_unavailable') this.#orphans.push([this.#code(otc), claim]);
      return sockets.refuse(target, answer as ErrorCode);
    }
    const now = this.#now();
    sockets.evictStaleSession(otc, now);
    const session = sockets.draining ? 'relay_draining' : sockets.open(target, otc, now);
    if (typeof session === 'string') {
      this.#release(this.#code(otc), claim);
      return sockets.refuse(target, session);
    }
    this.#claims.set(session, claim);
  }

  async #connect(controller: Connection, otc: string): Promise<void> {
    const sockets = this.#sockets;
    if (controller.session || controller.remote?.session) {
      return sockets.refuse(controller, 'already_in_session');
    }
    const { maxFailedCodes, maxFailedPerCode } = this.#config;
    const limits = [this.#codesBy(controller), this.#tries(otc)];
    const answer = await this.#ask(
      'findCode',
      [...limits, this.#code(otc)],
      [maxFailedCodes, maxFailedPerCode],
    );
    if (!isClaim(answer)) return sockets.refuse(controller, answer as ErrorCode);
    const refusal =
      ownerOf(answer) === this.id
        ? this.#join(controller, otc)
        : await this.#open(controller, ownerOf(answer), ['connect', otc, controller.client]);
    if (!refusal) return;
    if (refusal === 'relay_unavailable') return sockets.refuse(controller, refusal);
    const burned = await this.#ask('fail', limits, [maxFailedCodes, maxFailedPerCode]);
    sockets.refuse(
      controller,
      burned === 'burned' && refusal === 'peer_already_connected'
        ? 'otc_not_found'
        : (refusal as ErrorCode),
    );
  }

  /** @returns Why not, where it is refused. */
  #join(controller: Connection, otc: string): string | undefined {
    const now = this.#now();
    this.#sockets.evictStaleSession(otc, now);
    const session = this.#sockets.join(controller, otc, now);
    return typeof session === 'string' ? session : undefined;
  }

  /** Until the owner has heard it, this socket can't know whether it may begin anew. */
  async #done(connection: Connection): Promise<void> {
    const pipe = connection.remote?.session as Pipe;
    pipe.askedAt = this.#beats;
    pipe.send(frames.done);
    await pipe.over.promise;
  }

  async #watch(watcher: Connection, jti: string): Promise<void> {
    const sockets = this.#sockets;
    if (sockets.draining) return sockets.refuse(watcher, 'relay_draining');
    if (!this.#isUp) return sockets.refuse(watcher, 'relay_unavailable');
    const claim = this.#newClaim();
    let own = '';
    for (const watch of watcher.watches ?? []) {
      if (watch.jti === jti) own = this.#claims.get(watch) ?? '';
    }
    const answer = await this.#ask(
      'claimWatch',
      [this.#key('watches-by', watcher.client), this.#jti(jti)],
      [claim, WATCH_TTL_MS, this.#config.maxWatches, own],
    );
    if (answer !== 'ok') {
      if (answer === 'relay_unavailable') this.#orphans.push([this.#jti(jti), claim]);
      return sockets.refuse(watcher, answer as ErrorCode);
    }
    const now = this.#now();
    sockets.evictStaleWatch(jti, now);
    const watch = sockets.draining ? 'relay_draining' : sockets.watch(watcher, jti, now);
    if (typeof watch === 'string') {
      this.#release(this.#jti(jti), claim);
      return sockets.refuse(watcher, watch);
    }
    this.#claims.set(watch, claim);
  }

  async #init(target: Connection, jti: string, frame: string): Promise<void> {
    let outcome = await this.#announce(target, jti, frame);
    if (outcome && isClaim(outcome)) {
      outcome = await this.#open(target, ownerOf(outcome), ['init', jti, target.client, frame]);
    }
    if (outcome) this.#sockets.reject(target, jti, outcome as RejectReason);
  }

  /**
   * Burns a jti and tells its watcher, where that is one of ours.
   * @returns Where it is another's, the claim; where it is refused, why.
   */
  async #announce(target: Connection, jti: string, frame: string): Promise<string | undefined> {
    const sockets = this.#sockets;
    const answer = await this.#ask(
      'init',
      [this.#key('inits-by', target.client), this.#key('burnt', hash(jti)), this.#jti(jti)],
      [
        this.id,
        BURNT_TTL_MS,
        this.#config.maxRefusedInits,
        Number(sockets.burnt.isFull(this.#now())),
      ],
    );
    if (!isClaim(answer) || ownerOf(answer) !== this.id) return answer;
    const now = this.#now();
    sockets.evictStaleWatch(jti, now);
    const watch = sockets.announce(target, jti, frame, now);
    // It was watched when it was burned, and is not any more.
    if (watch === 'no_watcher') return 'watcher_disconnected';
    return typeof watch === 'string' ? watch : undefined;
  }

  // What the rules tell

  /** A controller has joined: the code's time starts again, and a far one needs another way than Bun's topics. */
  joined(session: Session<Connection>): void {
    const claim = this.#claims.get(session);
    if (claim && this.#isUp) {
      const { sessionTtlMs } = this.#config;
      this.#bus
        .run('hold', [this.#code(session.otc)], [claim, sessionTtlMs])
        .catch((error: unknown) => this.#down(error));
    }
    const link = session.controller?.remote?.link;
    if (!link) return;
    this.#post(link.peer, ['edge', link.number, ['yes']]);
    session.target.ws = new DirectWire(session.target, session.target.ws);
  }

  ended(session: Session<Connection>): void {
    this.#disown(session, this.#code(session.otc));
    if (session.controller?.remote?.link) this.#endLink(session.controller);
    if (session.target.ws instanceof DirectWire) session.target.ws = session.target.ws.out;
  }

  endedWatch(watch: Watch<Connection>): void {
    this.#disown(watch, this.#jti(watch.jti));
    if (watch.target?.remote?.link) this.#endLink(watch.target);
  }

  #disown(owned: Session<Connection> | Watch<Connection>, key: string): void {
    const claim = this.#claims.get(owned);
    if (claim === undefined) return;
    this.#claims.delete(owned);
    this.#release(key, claim);
  }

  // Links

  /** @returns Why not, where the owner refuses. */
  async #open(
    connection: Connection,
    owner: string,
    question: ['connect', string, string] | ['init', string, string, string],
  ): Promise<string | undefined> {
    if (!this.#isUp) return 'relay_unavailable';
    const peer = this.#peer(owner);
    const number = (this.#serial += 1);
    const pipe: Pipe = {
      connection,
      peer,
      number,
      jti: question[0] === 'init' ? question[1] : undefined,
      askedAt: this.#beats,
      sent: 0,
      late: 0,
      isOver: false,
      opened: Promise.withResolvers(),
      over: Promise.withResolvers(),
      send: (frame) => {
        pipe.sent += 1;
        this.#post(peer, ['owner', number, frame]);
      },
    };
    peer.pipes.set(number, pipe);
    connection.remote?.pipes.add(pipe);
    this.#sockets.settle(connection);
    this.#post(peer, ['owner', number, question]);
    return pipe.opened.promise;
  }

  /** Forgets a pipe; its socket may go on without it. */
  #drop(pipe: Pipe, refusal = 'relay_unavailable'): void {
    if (pipe.isOver) return;
    pipe.isOver = true;
    pipe.peer.pipes.delete(pipe.number);
    const { remote } = pipe.connection;
    remote?.pipes.delete(pipe);
    if (remote?.session === pipe) remote.session = undefined;
    this.#sockets.settle(pipe.connection);
    pipe.opened.resolve(refusal);
    pipe.over.resolve();
  }

  /** The owner is out of reach. Who still waits for its first answer is told by the question's own way. */
  #breakPipe(pipe: Pipe, why: 'relay_unavailable' | 'peer_disconnected'): void {
    const { connection, jti } = pipe;
    const wasOpen = isOpen(pipe);
    if (jti === undefined) {
      this.#drop(pipe);
      if (wasOpen) this.#sockets.refuse(connection, why);
    } else {
      const reason = why === 'peer_disconnected' ? 'watcher_disconnected' : why;
      this.#drop(pipe, reason);
      if (wasOpen) this.#sockets.reject(connection, jti, reason);
    }
  }

  #endLink(far: Connection): void {
    const link = far.remote?.link;
    if (!link?.peer.fars.delete(link.number)) return;
    this.#post(link.peer, ['edge', link.number, ['end', link.received]]);
  }

  /** What a peer's socket sent, or what became of it. */
  #fromEdge(peer: Peer, number: number, what: ToOwner): void {
    const far = peer.fars.get(number);
    if (typeof what === 'string') {
      if (!far?.remote?.link) return;
      far.remote.link.received += 1;
      return this.#sockets.received(far, what);
    }
    switch (what[0]) {
      case 'connect': {
        const [, otc, client] = what;
        const controller = this.#far(peer, number, client);
        const refusal = this.#join(controller, otc);
        if (refusal) this.#refuseFar(controller, refusal);
        return;
      }
      case 'init': {
        const [, jti, client, frame] = what;
        const target = this.#far(peer, number, client);
        this.#run(target, async () => {
          const refusal = await this.#announce(target, jti, frame);
          // A claim of somebody else's: the watch has moved on since it was looked up.
          if (refusal) this.#refuseFar(target, isClaim(refusal) ? 'no_watcher' : refusal);
          else this.#post(peer, ['edge', number, ['yes']]);
        });
        return;
      }
      case 'slow': {
        const session = far?.session;
        if (!session) return;
        this.#sockets.end(session, 'abandoned');
        return this.#sockets.closePair(session, 'slow_consumer');
      }
      case 'gone':
        if (far) this.closed(far);
    }
  }

  #far(peer: Peer, number: number, client: string): Connection {
    const far = new Connection(client);
    const link = { peer, number, received: 0 };
    const post = (what: ToEdge): void => this.#post(peer, ['edge', number, what]);
    far.remote = Object.assign(new Remote(), { link });
    far.ws = new DirectWire(far, {
      ...nowhere,
      sendText: (frame) => {
        post(frame);
        return frame.length;
      },
      close: (code = 1000, reason = '') => post(['close', code, reason]),
    });
    peer.fars.set(number, far);
    return far;
  }

  #refuseFar(far: Connection, refusal: string): void {
    const link = far.remote?.link;
    if (link?.peer.fars.delete(link.number)) {
      this.#post(link.peer, ['edge', link.number, ['no', refusal]]);
    }
  }

  /** What the owner says to a socket of ours. */
  #fromOwner(pipe: Pipe, what: ToEdge): void {
    const { connection } = pipe;
    if (typeof what === 'string') {
      if (connection.ws.sendText(what) !== 0) return;
      if (!pipe.isOver) this.#post(pipe.peer, ['owner', pipe.number, ['slow']]);
      this.#drop(pipe);
      return this.#sockets.close(connection, 'slow_consumer');
    }
    switch (what[0]) {
      case 'yes':
        pipe.askedAt = undefined;
        if (pipe.jti === undefined && connection.remote) connection.remote.session = pipe;
        return pipe.opened.resolve(undefined);
      case 'no':
        return this.#drop(pipe, what[1]);
      case 'end':
        pipe.late = pipe.sent - what[1];
        return this.#drop(pipe);
      case 'close':
        if (connection.remote) connection.remote.isClosed = true;
        connection.ws.close(what[1], what[2]);
    }
  }

  // Between instances

  #peer(id: string): Peer {
    const known = this.#peers.get(id);
    if (known) return known;
    const peer = new Peer(id, (this.#serial += 1));
    this.#peers.set(id, peer);
    return peer;
  }

  #post(peer: Peer, item: Item): void {
    if (this.#peers.get(peer.id) !== peer) return;
    if (peer.outbox.push(item) === 1) queueMicrotask(() => this.#flush(peer));
  }

  /** Sends what a peer is to hear, all that one event has brought in one message. */
  #flush(peer: Peer): void {
    if (!this.#isUp || this.#peers.get(peer.id) !== peer) return;
    const envelope: Envelope = [this.id, peer.stream, peer.sent, peer.outbox];
    peer.sent += 1;
    peer.outbox = [];
    const text = JSON.stringify(envelope);
    if (this.#waitingBytes + text.length > MAX_WAITING_BYTES) {
      return this.#down(new Error('it is too slow'));
    }
    this.#waitingBytes += text.length;
    this.#bus
      .publish(this.#channel(peer.id), text)
      .finally(() => {
        this.#waitingBytes -= text.length;
      })
      .then((heard) => {
        if (heard > 0 || this.#peers.get(peer.id) !== peer) return;
        this.#lose(peer, 'peer_disconnected');
        this.#tellOver(peer.id);
      })
      .catch((error: unknown) => this.#down(error));
  }

  /** Where an instance is there after all, it must not take for alive what is over here. */
  #tellOver(id: string): void {
    const envelope: Envelope = [this.id, OVER, 0, []];
    this.#bus
      .publish(this.#channel(id), JSON.stringify(envelope))
      .catch((error: unknown) => this.#down(error));
  }

  #delivered(text: string): void {
    if (/^\d+$/.test(text)) {
      this.#echoed = Number(text);
      return this.#recoverWhenWell();
    }
    if (!this.#isUp) return;
    try {
      this.#heard(JSON.parse(text) as Envelope);
    } catch {
      // From no instance, or one of another version: it is quoted nowhere, and nobody is worse off.
      this.#log.warn('a message of another instance could not be understood');
    }
  }

  #heard([from, stream, seq, items]: Envelope): void {
    let peer = this.#peer(from);
    const isNew = peer.itsStream !== undefined && peer.itsStream !== stream;
    // The first of a stream may be lost like any other.
    const isGap = seq !== (peer.itsStream === stream ? peer.expected : 0);
    if (isGap) {
      this.#lose(peer, 'relay_unavailable');
      this.#tellOver(from);
      peer = this.#peer(from);
    } else if (isNew) {
      // It may yet answer, in its new stream, what it was asked and has not answered.
      this.#unlink(peer, 'relay_unavailable', isOpen);
    }
    if (stream === OVER) return;
    peer.itsStream = stream;
    peer.expected = seq + 1;
    // A pipe's last words may come behind its end.
    const heard = new Map<number, Pipe>();
    for (const [to, number, what] of items) {
      if (to === 'owner') this.#fromEdge(peer, number, what);
      else {
        const pipe = peer.pipes.get(number) ?? heard.get(number);
        if (!pipe) continue;
        heard.set(number, pipe);
        this.#fromOwner(pipe, what);
      }
    }
    for (const { connection, late } of heard.values()) {
      for (let i = 0; i < late && !connection.remote?.isClosed; i += 1) {
        this.#sockets.refuse(connection, 'no_session');
      }
    }
  }

  /** Every link with an instance is over. */
  #lose(peer: Peer, why: 'relay_unavailable' | 'peer_disconnected'): void {
    if (this.#peers.get(peer.id) !== peer) return;
    this.#peers.delete(peer.id);
    this.#unlink(peer, why, () => true);
  }

  #unlink(
    peer: Peer,
    why: 'relay_unavailable' | 'peer_disconnected',
    which: (pipe: Pipe) => boolean,
  ): void {
    peer.itsStream = undefined;
    for (const far of peer.fars.values()) {
      const { remote } = far;
      if (remote?.queue) this.closed(far);
      else this.#sockets.letGo(far, why);
    }
    for (const pipe of peer.pipes.values()) if (which(pipe)) this.#breakPipe(pipe, why);
  }

  /** Tells those elsewhere that their peers here are about to go. */
  farewell(): void {
    for (const peer of this.#peers.values()) {
      for (const { session } of peer.fars.values()) {
        if (session) {
          this.#sockets.leave(session.target, session, frames.error('peer_disconnected'));
        }
      }
    }
  }

  /** Gives up all that this instance owns. */
  async resign(): Promise<void> {
    if (!this.#isUp) return;
    this.#isUp = false;
    // Without its owner, a claim is worth nothing.
    await this.#bus.run('resign', [this.#key('alive', this.id)], []).catch(() => {});
  }

  // Redis

  #key(kind: string, name: string): string {
    return `${this.#config.redisPrefix}${kind}:${name}`;
  }

  #code(otc: string): string {
    return this.#key('code', otc);
  }

  #tries(otc: string): string {
    return this.#key('tries', otc);
  }

  #codesBy(connection: Connection): string {
    return this.#key('codes-by', connection.client);
  }

  #jti(jti: string): string {
    return this.#key('jti', hash(jti));
  }

  #channel(id: string): string {
    return this.#key('to', id);
  }

  #newClaim(): string {
    return `${this.id}.${(this.#serial += 1)}`;
  }

  async #ask(
    script: 'claimCode' | 'findCode' | 'fail' | 'claimWatch' | 'init',
    keys: string[],
    values: (string | number)[],
  ): Promise<string> {
    if (!this.#isUp) return 'relay_unavailable';
    try {
      const answer = String(await this.#bus.run(script, keys, values));
      return answer === 'late' || !this.#isUp ? 'relay_unavailable' : answer;
    } catch (error) {
      this.#down(error);
      return 'relay_unavailable';
    }
  }

  #release(key: string, claim: string): void {
    if (!this.#isUp) {
      this.#orphans.push([key, claim]);
      return;
    }
    this.#bus.run('release', [key], [claim]).catch((error: unknown) => {
      this.#orphans.push([key, claim]);
      this.#down(error);
    });
  }

  /** Says that this instance lives, and looks whether Redis and the others do. To be called every `BEAT_MS`. */
  async beat(): Promise<void> {
    if (this.#isBeating) return;
    this.#isBeating = true;
    await this.#beatOnce();
    this.#isBeating = false;
  }

  async #beatOnce(): Promise<void> {
    // A connection may have died without a word of it; TCP itself would wait a quarter of an hour.
    const silent = this.#beats - Math.min(this.#answered, this.#echoed);
    if (silent > 0 && silent % SILENT_BEATS === 0) {
      this.#down(new Error('nothing arrives on its channel'));
      this.#bus.reconnect();
    }
    this.#expirePipes();
    const beat = (this.#beats += 1);
    try {
      const [isKnown, ...dead] = (await this.#bus.run(
        'beat',
        [this.#key('alive', this.id)],
        [DEAD_AFTER_MS, this.#channel(this.id), beat, ...this.#peers.keys()],
      )) as [number, ...string[]];
      this.#answered = beat;
      if (!isKnown && this.#isUp) this.#down(new Error('it has forgotten this instance'));
      for (const id of dead) {
        this.#lose(this.#peer(id), 'peer_disconnected');
        this.#tellOver(id);
      }
      this.#recoverWhenWell();
    } catch (error) {
      this.#down(error);
    }
  }

  #expirePipes(): void {
    for (const peer of this.#peers.values()) {
      for (const pipe of peer.pipes.values()) {
        if (pipe.askedAt === undefined || this.#beats - pipe.askedAt <= ANSWER_BEATS) continue;
        this.#post(peer, ['owner', pipe.number, ['gone']]);
        this.#breakPipe(pipe, 'relay_unavailable');
      }
    }
  }

  /** From now on this instance is on its own: what went across is over, what stays within goes on. */
  #down(reason: unknown): void {
    this.lastProblem = String((reason as Error).message || reason).split('\n')[0] as string;
    if (!this.#isUp) return;
    this.#isUp = false;
    this.#log.warn('Redis is out of reach: only pairings under way on this instance go on', {
      problem: this.lastProblem,
    });
    for (const peer of this.#peers.values()) {
      this.#lost.add(peer.id);
      this.#lose(peer, 'relay_unavailable');
    }
  }

  #recoverWhenWell(): void {
    const isWell = this.#answered === this.#beats && this.#echoed === this.#beats;
    if (this.#isUp || this.#isRecovering || !isWell) return;
    this.#isRecovering = true;
    void this.#recover()
      .catch((error: unknown) => this.#down(error))
      .finally(() => {
        this.#isRecovering = false;
      });
  }

  /** Puts right what Redis holds of this instance, and ends what others have taken meanwhile. */
  async #recover(): Promise<void> {
    const { sessionTtlMs } = this.#config;
    const claims = [...this.#claims];
    while (claims.length > 0) {
      const renewals = claims.splice(0, RENEW_BATCH).map(async ([owned, claim]) => {
        const isCode = 'otc' in owned;
        const key = isCode ? this.#code(owned.otc) : this.#jti(owned.jti);
        const began = isCode ? owned.stageAt : owned.since;
        const left = (isCode ? sessionTtlMs : WATCH_TTL_MS) - (this.#now() - began);
        const holds = await this.#bus.run('hold', [key], [claim, Math.max(1, Math.ceil(left))]);
        if (holds !== 1) this.#abandon(owned);
      });
      await Promise.all(renewals);
    }
    while (this.#orphans.length > 0) {
      const orphans = this.#orphans.slice(0, RENEW_BATCH);
      await Promise.all(orphans.map(([key, claim]) => this.#bus.run('release', [key], [claim])));
      this.#orphans.splice(0, orphans.length);
    }
    this.#isUp = true;
    for (const id of this.#lost) this.#tellOver(id);
    this.#lost.clear();
    if (this.onUp) this.onUp();
    else this.#log.info('Redis is in reach again');
    this.onUp = undefined;
  }

  /** Somebody else has it now. */
  #abandon(owned: Session<Connection> | Watch<Connection>): void {
    if (!this.#claims.has(owned)) return;
    if (!('otc' in owned)) return this.#sockets.expireWatch(owned);
    const { target, controller } = owned;
    this.#sockets.end(owned, 'abandoned');
    this.#sockets.refuse(target, 'relay_unavailable');
    if (controller) this.#sockets.refuse(controller, 'relay_unavailable');
  }
}
