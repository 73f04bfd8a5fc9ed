/**
 * Many instances as one relay. The instance that a target (or a watcher) is connected to owns its session, and is the
 * only one to write it. Redis says who owns which code and jti, counts what must be counted together (`claims.ts`), and
 * carries messages between instances (`post.ts`, `links.ts`), as long as it is in reach (`reach.ts`). A question to it
 * takes its time; meanwhile the socket's frames wait their turn (`turns.ts`).
 */
import { type Arbiter, failure } from '../arbiter.ts';
import type { Watch } from '../bootstrap/bootstrap.ts';
import type { Bus } from './bus.ts';
import { Claims, isClaim, type Owned, ownerOf } from './directory.ts';
import type { Config } from '../config.ts';
import type { Clock, Connection } from '../connection.ts';
import { Links } from './links.ts';
import type { Log } from '../observe/log.ts';
import type { Session } from '../pairing/pairing.ts';
import { Post } from './post.ts';
import type { ErrorCode, RejectReason } from '../wire/frames.ts';
import { Reach } from './reach.ts';
import { DirectWire } from './remote.ts';
import { Room } from './room.ts';
import type { Sockets } from '../socket.ts';
import { Turns } from './turns.ts';

interface Parts {
  /** This instance, in this life of it: nobody else's name, ever. */
  id: string;
  config: Config;
  sockets: Sockets;
  bus: Bus;
  log: Log;
  now: Clock;
}

export class Cluster implements Arbiter {
  readonly id: string;
  readonly #sockets: Sockets;
  readonly #now: Clock;
  readonly #reach: Reach;
  readonly #claims: Claims;
  readonly #post: Post;
  readonly #links: Links;
  readonly #turns: Turns;
  readonly #room: Room;

  constructor({ id, config, sockets, bus, log, now }: Parts) {
    this.id = id;
    this.#sockets = sockets;
    this.#now = now;
    this.#room = new Room(config, now);
    const { answers, sessions } = sockets;
    let last = 0;
    const serial = (): number => (last += 1);
    const isUp = (): boolean => this.#reach.isUp;
    const onFault = (error: unknown): void => this.#reach.down(error);
    const key = (kind: string, name: string): string => `${config.redisPrefix}${kind}:${name}`;

    this.#turns = new Turns({
      room: this.#room,
      maxBacklogBytes: config.maxBacklogBytes,
      answers,
      received: (connection, frame) => sockets.received(connection, frame),
      gone: (connection) => this.#gone(connection),
    });
    this.#claims = new Claims({
      id,
      config,
      bus,
      now,
      key,
      serial,
      isUp,
      onFault,
      onTaken: (owned) => this.#taken(owned),
    });
    this.#post = new Post({
      id,
      bus,
      log,
      room: this.#room,
      channelOf: (other) => key('to', other),
      serial,
      isUp,
      onFault,
      onItems: (peer, items) => this.#links.deliver(peer, items),
      onLost: (peer, why) => this.#links.lose(peer, why),
      onAnew: (peer) => this.#links.loseOpen(peer),
    });
    this.#links = new Links(
      {
        answers,
        sessions,
        serial,
        beats: () => this.#reach.beats,
        isUp,
        settle: (connection) => sockets.roster.settle(connection, now()),
        received: (far, frame) => sockets.received(far, frame),
        closed: (far) => this.closed(far),
        letGo: (far, why) => sockets.letGo(far, why),
        join: (far, otc) => this.#join(far, otc),
        announce: (far, jti, frame, then) =>
          this.#turns.run(far, async () => {
            const refusal = await this.#announce(far, jti, frame);
            // A claim of somebody else's: the watch has moved on since it was looked up.
            then(refusal && isClaim(refusal) ? 'no_watcher' : refusal);
          }),
      },
      this.#post,
    );
    this.#reach = new Reach({
      bus,
      log,
      alive: key('alive', id),
      channel: key('to', id),
      onBeat: () => {
        this.#links.expire();
        this.#room.sweep();
        return this.#post.peers.keys();
      },
      onDead: (other) => {
        this.#post.lose(this.#post.peer(other), 'peer_disconnected');
        this.#post.tellOver(other);
      },
      onDown: () => this.#post.loseAll(),
      recover: () => this.#claims.renew(),
      onRecovered: () => this.#post.tellLost(),
    });
    bus.onMessage = (text) => {
      if (/^\d+$/.test(text)) this.#reach.echoed(Number(text));
      else this.#post.delivered(text);
    };
    bus.onLost = onFault;
    bus.onReady = () => void this.beat();
  }

  get isUp(): boolean {
    return this.#reach.isUp;
  }

  get lastProblem(): string {
    return this.#reach.lastProblem;
  }

  set onUp(told: () => void) {
    this.#reach.onUp = told;
  }

  get pipes(): number {
    return this.#links.pipes;
  }

  get books(): Record<string, number> {
    return {
      instances: this.#post.peers.size,
      pipes: this.#links.pipes,
      fars: this.#links.fars,
      ...this.#claims.books,
      waitingBytes: this.#room.used,
      senders: this.#room.clients,
    };
  }

  beat(): Promise<void> {
    return this.#reach.beat();
  }

  farewell(): void {
    this.#links.farewell();
  }

  resign(): Promise<void> {
    return this.#reach.resign();
  }

  received(connection: Connection, frame: string | Buffer): void {
    this.#turns.received(connection, frame);
  }

  closed(connection: Connection): void {
    this.#turns.closed(connection);
  }

  #gone(connection: Connection): void {
    const sockets = this.#sockets;
    if (connection.remote?.link) {
      return sockets.answers.guard(connection, () => {
        sockets.letGo(connection);
        this.#links.end(connection);
      });
    }
    this.#links.leave(connection);
    sockets.closed(connection);
  }

  // What others have a say in

  listen(target: Connection, otc: string): undefined {
    this.#ask(target, () => this.#listen(target, otc));
  }

  connect(controller: Connection, otc: string): undefined {
    this.#ask(controller, () => this.#connect(controller, otc));
  }

  done(sender: Connection): ErrorCode | undefined {
    const pipe = sender.remote?.session;
    if (!pipe) return this.#sockets.sessions.done(sender);
    this.#turns.run(sender, () => this.#links.done(pipe));
    return undefined;
  }

  watch(watcher: Connection, jti: string): undefined {
    this.#ask(watcher, () => this.#watch(watcher, jti));
  }

  init(target: Connection, jti: string, frame: string): undefined {
    this.#turns.run(target, async () => {
      const reason = await this.#init(target, jti, frame);
      if (reason) this.#sockets.answers.reject(target, jti, reason as RejectReason);
    });
  }

  /** Takes its time to say why not; meanwhile the socket's frames wait. */
  #ask(connection: Connection, question: () => Promise<string | undefined>): void {
    this.#turns.run(connection, async () => {
      const refusal = await question();
      if (refusal) this.#sockets.answers.refuse(connection, refusal as ErrorCode);
    });
  }

  async #listen(target: Connection, otc: string): Promise<string | undefined> {
    const { roster, sessions } = this.#sockets;
    if (target.session || target.remote?.session) return 'already_in_session';
    if (roster.draining) return 'relay_draining';
    if (!this.isUp) return 'relay_unavailable';
    const [answer, claim] = await this.#claims.claimCode(target.client, otc);
    if (answer !== 'ok') return answer;
    const now = this.#now();
    sessions.evictStale(otc, now);
    const session = roster.draining ? 'relay_draining' : sessions.open(target, otc, now);
    if (typeof session === 'string') {
      this.#claims.releaseCode(otc, claim);
      return session;
    }
    this.#claims.hold(session, claim);
    return undefined;
  }

  async #connect(controller: Connection, otc: string): Promise<string | undefined> {
    if (controller.session || controller.remote?.session) return 'already_in_session';
    const { client } = controller;
    const answer = await this.#claims.findCode(client, otc);
    if (!isClaim(answer)) return answer;
    const owner = ownerOf(answer);
    const refusal =
      owner === this.id
        ? this.#join(controller, otc)
        : await this.#links.open(controller, owner, ['connect', otc, client]);
    if (!refusal || refusal === 'relay_unavailable') return refusal;
    return failure(refusal, await this.#claims.fail(client, otc));
  }

  /** @returns Why not. */
  #join(controller: Connection, otc: string): string | undefined {
    const session = this.#sockets.sessions.join(controller, otc, this.#now());
    return typeof session === 'string' ? session : undefined;
  }

  async #watch(watcher: Connection, jti: string): Promise<string | undefined> {
    const { roster, watches } = this.#sockets;
    if (roster.draining) return 'relay_draining';
    if (!this.isUp) return 'relay_unavailable';
    const [answer, claim] = await this.#claims.claimWatch(watcher, jti);
    if (answer !== 'ok') return answer;
    const now = this.#now();
    watches.evictStale(jti, now);
    const watch = roster.draining ? 'relay_draining' : watches.watch(watcher, jti, now);
    if (typeof watch === 'string') {
      this.#claims.releaseWatch(jti, claim);
      return watch;
    }
    this.#claims.hold(watch, claim);
    return undefined;
  }

  async #init(target: Connection, jti: string, frame: string): Promise<string | undefined> {
    const outcome = await this.#announce(target, jti, frame);
    if (!outcome || !isClaim(outcome)) return outcome;
    return this.#links.open(target, ownerOf(outcome), ['init', jti, target.client, frame]);
  }

  /**
   * Burns a jti and tells its watcher, where that is one of ours.
   * @returns Where it is another's, the claim; where it is refused, why.
   */
  async #announce(target: Connection, jti: string, frame: string): Promise<string | undefined> {
    const { burnt, watches } = this.#sockets;
    const answer = await this.#claims.burn(target.client, jti, burnt.isFull(this.#now()));
    if (!isClaim(answer) || ownerOf(answer) !== this.id) return answer;
    const watch = watches.announce(target, jti, frame, this.#now());
    // It was watched when it was burned, and is not any more.
    if (watch === 'no_watcher') return 'watcher_disconnected';
    return typeof watch === 'string' ? watch : undefined;
  }

  // What it is told

  /** A controller has joined: the code's time starts again, and a far one needs another way than Bun's topics. */
  joined(session: Session<Connection>): void {
    this.#claims.prolong(session);
    const { target, controller } = session;
    if (!controller?.remote?.link) return;
    this.#links.accept(controller);
    target.ws = new DirectWire(target, target.ws);
  }

  ended(session: Session<Connection>): void {
    this.#claims.giveUp(session);
    this.#links.end(session.controller);
    const { target } = session;
    if (target.ws instanceof DirectWire) target.ws = target.ws.out;
  }

  endedWatch(watch: Watch<Connection>): void {
    this.#claims.giveUp(watch);
    this.#links.end(watch.target);
  }

  /** Somebody else has it now. */
  #taken(owned: Owned): void {
    const { answers, sessions, watches } = this.#sockets;
    if (!('otc' in owned)) return watches.expire(owned);
    const { target, controller } = owned;
    sessions.end(owned, 'abandoned');
    answers.refuse(target, 'relay_unavailable');
    if (controller) answers.refuse(controller, 'relay_unavailable');
  }
}
