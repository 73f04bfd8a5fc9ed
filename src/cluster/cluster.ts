/**
 * Many instances as one relay. Redis knows which instance owns which code and token id (`directory.ts`) and carries what
 * they say to each other (`mail.ts`). The instance that a target, or a watcher, is connected to owns its session, and is
 * the only one to change it. Whoever comes to it from another instance is a guest there (`guests.ts`) and has a tunnel
 * on its own instance (`tunnels.ts`).
 */
import { WATCH_TTL_MS } from '../bootstrap/bootstrap.ts';
import type { Config } from '../config.ts';
import type { Clock, Connection } from '../connection.ts';
import type { Log } from '../observe/log.ts';
import { hideBurned } from '../pairing/sessions.ts';
import type { Session, Watch } from '../peer.ts';
import type { Cluster as ClusterOfSockets, Sockets } from '../socket.ts';
import type { ErrorCode, RejectReason } from '../wire/codes.ts';
import { type Claim, Directory, isClaim, type Owned, ownerOf } from './directory.ts';
import { Guests } from './guests.ts';
import { type Item, Mail, readMessage, type ToOwner } from './mail.ts';
import { RedisConnections, type Redis } from './redis.ts';
import { RedisError, type RedisUrl } from './redis-url.ts';
import { Tunnels } from './tunnels.ts';

/** How often an instance asks whether Redis, and the instances that it has to do with, are there. Milliseconds. */
export const BEAT_MS = 500;
/** Beats without an answer, after which the connections to Redis are opened anew. */
const SILENT_BEATS = 3;
/** What a used token id takes in Redis: 129 bytes, measured on Redis 7.0 with 100,000 of them. */
const USED_TOKEN_BYTES = 130;
/** What Redis needs for everything else, with room to spare. */
const SPARE_MEMORY_BYTES = 64 * 1024 * 1024;
/** How long a start waits for Redis, in milliseconds. */
const START_WAIT_MS = 5000;

export class Cluster implements ClusterOfSockets {
  readonly #directory: Directory;
  readonly #mail: Mail;
  readonly #guests: Guests;
  readonly #tunnels: Tunnels;
  #isUp = false;
  #isBeating = false;
  #silentBeats = 0;
  /** Used token ids in Redis, as of the last beat. */
  #burnt = 0;
  /** Instances with which everything ended when Redis went out of reach, and that may not know. */
  readonly #untold = new Set<string>();
  /** Why Redis is out of reach. */
  problem = 'no answer yet';
  /** Called when Redis comes into reach, the first time and after each loss. */
  onUp: () => void = () => {};

  /** @param id This instance in this life of it: never given again. */
  constructor(
    readonly id: string,
    private readonly config: Config,
    private readonly sockets: Sockets,
    private readonly redis: Redis,
    private readonly log: Log,
    private readonly now: Clock,
  ) {
    const { answers, connections, sessions, watches } = sockets;
    this.#directory = new Directory(id, config, redis);
    this.#mail = new Mail(id, redis);
    this.#guests = new Guests(this.#mail, sessions, watches, now);
    this.#tunnels = new Tunnels(this.#mail, answers, connections, config.sessionTtlMs, now);
    this.#mail.onUnheard = (instance) => this.#lose(instance, 'peer_disconnected');
    redis.onMessage = (json) => this.#hear(json);
    redis.onLost = (reason) => this.#down(reason);
    redis.onReady = () => void this.beat();
  }

  get isUp(): boolean {
    return this.#isUp;
  }

  get tunnels(): number {
    return this.#tunnels.size;
  }

  get books(): Record<string, number> {
    return {
      tunnels: this.#tunnels.size,
      guests: this.#guests.size,
      ...this.#directory.books,
      burnt: this.#burnt,
      waitingBytes: this.#mail.waitingBytes,
    };
  }

  // What a socket of this instance asks. Each comes to the error code where the answer is no.

  async listen(target: Connection, otc: string): Promise<ErrorCode | undefined> {
    const { connections, sessions } = this.sockets;
    if (target.session || target.tunnel) return 'already_in_session';
    if (connections.draining) return 'relay_draining';
    if (!this.#isUp) return 'relay_unavailable';
    return this.#directory.claimCode(
      target,
      otc,
      () => {
        if (connections.draining) return 'relay_draining';
        if (!this.#isUp) return 'relay_unavailable';
        sessions.find(otc, this.now());
        return sessions.open(target, otc, this.now());
      },
      ({ controller }) => this.#guests.ended(controller),
    );
  }

  async connect(controller: Connection, otc: string): Promise<ErrorCode | undefined> {
    if (controller.session || controller.tunnel) return 'already_in_session';
    if (!this.#isUp) return 'relay_unavailable';
    const claim = await this.#directory.findCode(controller, otc);
    if (!isClaim(claim)) return claim;
    const refusal = await this.#join(controller, claim);
    if (!refusal || refusal === 'relay_unavailable') return refusal;
    return hideBurned(refusal, await this.#directory.failCode(controller, otc));
  }

  async #join(controller: Connection, claim: Claim): Promise<ErrorCode | undefined> {
    if (!this.#isUp) return 'relay_unavailable';
    if (ownerOf(claim) !== this.id) {
      return (await this.#tunnels.open(controller, ownerOf(claim), claim)) as ErrorCode;
    }
    const session = this.#session(claim);
    if (!session) return 'otc_not_found';
    const refusal = this.sockets.sessions.join(controller, session, this.now());
    if (!refusal) this.#keep(session);
    return refusal;
  }

  async watch(watcher: Connection, jti: string): Promise<ErrorCode | undefined> {
    const { connections, watches } = this.sockets;
    if (connections.draining) return 'relay_draining';
    if (!this.#isUp) return 'relay_unavailable';
    return this.#directory.claimWatch(
      watcher,
      jti,
      () => {
        if (connections.draining) return 'relay_draining';
        if (!this.#isUp) return 'relay_unavailable';
        return watches.open(watcher, jti, this.now());
      },
      ({ target }) => this.#guests.ended(target),
    );
  }

  async announce(
    target: Connection,
    jti: string,
    frame: string,
  ): Promise<RejectReason | undefined> {
    if (!this.#isUp) return 'relay_unavailable';
    const claim = await this.#directory.burn(target, jti);
    if (!isClaim(claim)) return claim;
    if (!this.#isUp) return 'relay_unavailable';
    if (ownerOf(claim) !== this.id) {
      return this.#tunnels.open(target, ownerOf(claim), claim, { jti, frame });
    }
    const watch = this.#watch(claim);
    // It was watched when it was burned, and is not any more.
    if (!watch) return 'watcher_disconnected';
    return this.sockets.watches.tell(target, watch, frame, this.now());
  }

  closed(connection: Connection): void {
    this.#tunnels.closed(connection);
  }

  // What this instance owns.

  #session(claim: string): Session | undefined {
    const owned = isClaim(claim) ? this.#directory.owned(claim) : undefined;
    if (!owned || !('otc' in owned)) return undefined;
    return this.sockets.sessions.find(owned.otc, this.now()) === owned ? owned : undefined;
  }

  #watch(claim: string): Watch | undefined {
    const owned = isClaim(claim) ? this.#directory.owned(claim) : undefined;
    if (!owned || 'otc' in owned) return undefined;
    return this.sockets.watches.find(owned.jti, this.now()) === owned ? owned : undefined;
  }

  /** How long something may last at most, in milliseconds from now. */
  #ttlOf(owned: Owned): number {
    const end = 'otc' in owned ? this.sockets.pairing.lastEndOf(owned) : owned.since + WATCH_TTL_MS;
    return end - this.now();
  }

  /** Keeps the claim on a code for as long as its pairing may last. */
  #keep(session: Session): void {
    void this.#directory.prolong(session, this.#ttlOf(session)).then((isHeld) => {
      if (!isHeld) this.#taken(session);
    });
  }

  /** Somebody else has claimed it. */
  #taken(owned: Owned): void {
    const { answers, sessions, watches } = this.sockets;
    if ('otc' in owned) {
      const isHeld = owned.target.session === owned;
      if (isHeld) {
        answers.guard(owned.target, () => sessions.lose(owned, 'relay_unavailable', this.now()));
      }
    } else {
      answers.guard(owned.watcher, () => watches.expire(owned, this.now()));
    }
  }

  // What other instances say.

  #hear(json: string): void {
    const message = readMessage(json);
    if (!message) {
      this.log.warn('another program, or another version, sent a message that is not understood');
      return;
    }
    const [from, content] = message;
    // Whoever says something while this instance is down takes it for one that is up.
    if (!this.#isUp) this.#untold.add(from);
    else if (content === 'over') this.#lose(from, 'relay_unavailable');
    else for (const item of content) this.#handle(from, item);
  }

  /** A fault of ours ends the one socket that it happened on. */
  #handle(from: string, [end, what]: Item): void {
    try {
      if (end === 'socket') this.#tunnels.hear(from, what);
      else if (what[0] === 'connect') this.#admit(from, what);
      else if (what[0] === 'announce') {
        const [, link, frame, claim, client] = what;
        this.#guests.announce(from, link, client, frame, this.#watch(claim));
      } else this.#guests.hear(from, what);
    } catch (error) {
      const link = what[1];
      const peer = this.#guests.find(from, link) ?? this.#tunnels.find(from, link)?.connection;
      this.sockets.answers.failed(peer, error);
    }
  }

  #admit(from: string, [, link, claim, client]: Extract<ToOwner, ['connect', ...unknown[]]>): void {
    const session = this.#session(claim);
    const isJoining = session && !session.controller;
    this.#guests.connect(from, link, client, session);
    if (isJoining) this.#keep(session);
  }

  /** Everything with an instance is over. */
  #lose(instance: string, why: 'relay_unavailable' | 'peer_disconnected'): void {
    this.#guests.lose(instance, why);
    this.#tunnels.lose(instance, why);
  }

  // Whether Redis is in reach.

  /** To be called every `BEAT_MS`: asks Redis, on both connections, and which other instances are there. */
  async beat(): Promise<void> {
    if (this.#isBeating) return;
    this.#isBeating = true;
    this.#tunnels.beat();
    try {
      const others = new Set([...this.#guests.instances, ...this.#tunnels.instances]);
      const { redisPrefix } = this.config;
      const [answer] = await Promise.all([
        this.redis.run(
          'beat',
          [`${redisPrefix}probe`, `${redisPrefix}burnt`],
          [this.id, ...others],
        ),
        this.redis.ping(),
      ]);
      const [, burnt, ...absent] = answer as [number, number, ...string[]];
      this.#burnt = burnt;
      if (absent.includes(this.id)) throw new Error('it does not know this instance any more');
      for (const instance of absent) this.#lose(instance, 'peer_disconnected');
      this.#silentBeats = 0;
      if (!this.#isUp) await this.#up();
    } catch (error) {
      this.#down((error as Error).message);
      this.#silentBeats += 1;
      if (this.#silentBeats % SILENT_BEATS === 0) this.redis.reconnect();
    }
    this.#isBeating = false;
  }

  async #up(): Promise<void> {
    const taken = await this.#directory.renew((owned) => this.#ttlOf(owned));
    for (const owned of taken) this.#taken(owned);
    for (const instance of this.#untold) this.#mail.tellOver(instance);
    this.#untold.clear();
    this.#isUp = true;
    this.onUp();
  }

  /** From now on this instance is on its own: what crossed is over, and pairs within it go on. */
  #down(reason: string): void {
    const isNews = this.#isUp || reason !== this.problem;
    this.problem = reason;
    if (isNews) {
      this.log.warn('Redis is out of reach: only pairings within this instance go on', {
        problem: reason,
      });
    }
    if (!this.#isUp) return;
    this.#isUp = false;
    for (const instance of new Set([...this.#guests.instances, ...this.#tunnels.instances])) {
      this.#untold.add(instance);
      this.#lose(instance, 'relay_unavailable');
    }
  }

  /** Leaves for good, once everything that was said has gone out. */
  async leave(): Promise<void> {
    await this.#mail.settled();
    this.#isUp = false;
    this.redis.onLost = () => {};
    this.redis.close();
  }
}

/**
 * Makes a relay one of many.
 * @returns What takes it out again.
 * @throws {RedisError} Where Redis does not answer as it must within 5 s.
 */
export async function joinCluster(
  config: Config,
  sockets: Sockets,
  log: Log,
  now: Clock,
): Promise<{ leave: () => Promise<void> }> {
  const id = Buffer.from(crypto.getRandomValues(new Uint8Array(9))).toString('base64url');
  const url = config.redisUrl as RedisUrl;
  const redis = new RedisConnections(url, `${config.redisPrefix}inbox:`, id);
  const cluster = new Cluster(id, config, sockets, redis, log, now);
  const { promise: isUp, resolve } = Promise.withResolvers<boolean>();
  cluster.onUp = () => resolve(true);
  const timer = setInterval(() => void cluster.beat(), BEAT_MS);
  const deadline = setTimeout(() => resolve(false), START_WAIT_MS);
  const leave = async (): Promise<void> => {
    clearInterval(timer);
    await cluster.leave();
  };
  log.info('waiting for Redis', { redis: url, atMostMs: START_WAIT_MS });
  if (!(await isUp)) {
    await leave();
    throw new RedisError(`REDIS_URL: ${url.toString()} can’t be used: ${cluster.problem}`);
  }
  clearTimeout(deadline);
  await warnOfMemory(redis, config, log);
  cluster.onUp = () => log.info('Redis is in reach again');
  sockets.cluster = cluster;
  return { leave };
}

/** Warns where Redis may forget used token ids, or can't hold as many as it is to. */
async function warnOfMemory(redis: RedisConnections, config: Config, log: Log): Promise<void> {
  const { limit, policy } = await redis.memory().catch(() => ({ limit: 0, policy: '' }));
  if (limit === 0) return;
  if (policy !== 'noeviction') {
    log.warn('Redis may forget used tokens: set its maxmemory-policy to noeviction', { policy });
  }
  const needed = config.maxBurnt * USED_TOKEN_BYTES + SPARE_MEMORY_BYTES;
  if (limit < needed) {
    log.warn('Redis has less memory than AMESH_MAX_BURNT may need: raise its maxmemory', {
      maxmemory: limit,
      needed,
    });
  }
}
