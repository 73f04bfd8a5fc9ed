/**
 * Many instances as one relay. Redis knows which instance owns which code and token id (`scripts.ts`), and carries what
 * instances say to each other (`messages.ts`). The instance that a target is connected to owns its session, and that of
 * a watcher its watch; no other changes it. A socket of another instance reaches the session or watch over a link
 * (`links.ts`).
 */
import { networksOf } from '../admission/limits.ts';
import { BURNT_TTL_MS, WATCH_TTL_MS } from '../bootstrap/bootstrap.ts';
import type { Connection } from '../connection.ts';
import type { Log } from '../observe/log.ts';
import { hideBurned } from '../pairing/sessions.ts';
import type { Peer, Session, Watch } from '../peer.ts';
import type { Cluster as ClusterOfSockets, Sockets } from '../socket.ts';
import { type ErrorCode, isReason, type RejectReason } from '../wire/codes.ts';
import { BEAT_MS, Guest, Links, Tunnel } from './links.ts';
import { type Item, readMessage } from './messages.ts';
import { ALL, RedisConnection, type Redis } from './redis.ts';
import { readRedisUrl, RedisError } from './redis-url.ts';
import type { Script } from './scripts.ts';

/** Claims that are sent to Redis at once when it is back. */
const BATCH = 500;
/** What a used token id takes in Redis: 129 bytes, measured on Redis 7.0 with 100,000 of them. */
const USED_TOKEN_BYTES = 130;
/** What Redis needs for everything else, with room to spare. */
const SPARE_MEMORY_BYTES = 64 * 1024 * 1024;
/** How long a start waits for Redis, in milliseconds. */
const START_WAIT_MS = 5000;

type Owned = Session | Watch;

/** A code or a token id that this instance has claimed. */
interface Claim {
  /** `instance.number`, never given again. Redis stores it under the key. */
  readonly name: string;
  readonly key: string;
  /** The session or watch: undefined from its end until Redis has released the claim. */
  owned: Owned | undefined;
}

const hash = (jti: string): string =>
  Buffer.from(Bun.SHA256.hash(jti).buffer).toString('base64url').slice(0, 22);

/** One key for each network that an attempt of a client counts for. */
const clientKeys = (limit: string, { client }: Peer): string[] =>
  networksOf(client).map((network) => `${limit}:${network}`);

const codeKeys = (peer: Peer, otc: string): string[] => [
  `code:${otc}`,
  `failed-on:${otc}`,
  ...clientKeys('failed-codes', peer),
];

export class Cluster implements ClusterOfSockets {
  readonly links: Links;
  /** The claims of this instance, by name. */
  readonly #claims = new Map<string, Claim>();
  readonly #claimOf = new WeakMap<Owned, Claim>();
  #lastName = 0;
  #isBeating = false;
  /** Whether the log says that a message could not be read. It says so once. */
  #hasWarned = false;
  /** Used token ids in Redis, as of the last beat. */
  #burnt = 0;
  /** Why Redis is out of reach: empty before its first answer, and undefined while it is in reach. */
  problem: string | undefined = '';

  /** @param id The name of this instance, random and new at each start. */
  constructor(
    readonly id: string,
    private readonly sockets: Sockets,
    private readonly redis: Redis,
    private readonly log: Log,
  ) {
    this.links = new Links(id, redis, sockets);
    redis.onMessage = (json) => this.#hear(json);
    redis.onLost = (reason) => this.#down(reason);
    redis.onReady = () => void this.beat();
  }

  get isUp(): boolean {
    return this.problem === undefined;
  }

  get books(): Record<string, number> {
    return { ...this.links.books, claims: this.#claims.size, burnt: this.#burnt };
  }

  // Requests of this instance's sockets. Each resolves to the error code if refused, otherwise to undefined.

  async listen(target: Connection, otc: string): Promise<ErrorCode | undefined> {
    const { sessionTtlMs, maxFailedCodes, maxFailedPerCode, maxListens } = this.sockets.config;
    if (target.session || target.tunnel) return 'already_in_session';
    const keys = [...codeKeys(target, otc), ...clientKeys('listens', target)];
    const values = [sessionTtlMs, maxFailedCodes, maxFailedPerCode, maxListens];
    return this.#claim('claimCode', keys, values, (now) => {
      this.sockets.sessions.find(otc, now);
      return this.sockets.sessions.open(target, otc, now);
    });
  }

  async watch(watcher: Connection, jti: string): Promise<ErrorCode | undefined> {
    const keys = [`jti:${hash(jti)}`, ...clientKeys('watches', watcher)];
    const { bootstrap, config, watches } = this.sockets;
    const values = [WATCH_TTL_MS, config.maxWatches];
    const held = bootstrap.find(jti);
    const claim = held?.watcher === watcher ? this.#claimOf.get(held) : undefined;
    const open = (now: number) => watches.open(watcher, jti, now);
    return this.#claim('claimWatch', keys, values, open, claim);
  }

  async connect(controller: Connection, otc: string): Promise<ErrorCode | undefined> {
    const { maxFailedCodes, maxFailedPerCode } = this.sockets.config;
    if (controller.session || controller.tunnel) return 'already_in_session';
    const keys = codeKeys(controller, otc);
    const limits = [maxFailedCodes, maxFailedPerCode];
    const claim = await this.#ask('findCode', keys, limits);
    if (isReason(claim)) return claim as ErrorCode;
    const refusal = (await this.#reach(controller, claim)) as ErrorCode | undefined;
    if (!refusal || refusal === 'relay_unavailable') return refusal;
    const counted = await this.#ask('failCode', keys, limits);
    return hideBurned(refusal, counted === 'burned');
  }

  async announce(
    target: Connection,
    jti: string,
    frame: string,
  ): Promise<RejectReason | undefined> {
    const { maxRefusedInits, maxBurnt } = this.sockets.config;
    const id = hash(jti);
    const keys = [`jti:${id}`, 'burnt', ...clientKeys('refused-inits', target)];
    const values = [id, BURNT_TTL_MS, maxRefusedInits, maxBurnt];
    const claim = await this.#ask('burn', keys, values);
    return isReason(claim) ? claim : this.#reach(target, claim, jti, frame);
  }

  /**
   * Brings a socket to the session or watch of a claim, here or through a tunnel.
   * @param jti For a target that announces itself, as is the frame.
   */
  async #reach(
    socket: Connection,
    claim: string,
    jti?: string,
    frame = '',
  ): Promise<RejectReason | undefined> {
    const [owner = ''] = claim.split('.');
    if (owner === this.id) return this.#enter(socket, claim, frame);
    return new Tunnel(this.links, owner, this.#newName(), socket, jti).open(claim, frame);
  }

  /** On the owner: joins a peer to the session of a claim or, if there is a frame, announces the peer to the watch. */
  #enter(peer: Peer, name: string, frame: string): RejectReason | undefined {
    const { sessions, watches } = this.sockets;
    const claim = this.#claims.get(name);
    const owned = claim?.owned;
    const now = this.sockets.now();
    if (frame !== '') {
      // It was watched when the token was burned, and may not be any more.
      if (!owned || 'otc' in owned || !watches.find(owned.jti, now)) return 'watcher_disconnected';
      return watches.tell(peer, owned, frame);
    }
    if (!claim || !owned || !('otc' in owned) || !sessions.find(owned.otc, now)) {
      return 'otc_not_found';
    }
    const refusal = sessions.join(peer, owned, now);
    // The pairing may last longer than the wait for it.
    if (!refusal) this.#update(claim);
    return refusal;
  }

  // What this instance has claimed.

  /**
   * Claims a key in Redis and then opens the session or watch. If `open` returns an error code, releases the claim.
   * @param keys The first one is claimed.
   * @param renewed The existing claim, if a watch is renewed.
   */
  async #claim(
    script: Script,
    keys: string[],
    values: number[],
    open: (now: number) => Owned | ErrorCode,
    renewed?: Claim,
  ): Promise<ErrorCode | undefined> {
    if (this.sockets.connections.draining) return 'relay_draining';
    if (!this.isUp) return 'relay_unavailable';
    const claim = renewed ?? { name: this.#newName(), key: keys[0] as string, owned: undefined };
    const answer = await this.#ask(script, keys, [claim.name, ...values]);
    // The script refused, so Redis has not stored the claim.
    if (isReason(answer) && answer !== 'relay_unavailable') return answer as ErrorCode;
    this.#claims.set(claim.name, claim);
    const owned = answer === 'ok' ? open(this.sockets.now()) : 'relay_unavailable';
    if (typeof owned === 'string') {
      this.#update(claim);
      return owned;
    }
    claim.owned = owned;
    // The watch may have ended during the wait, which released the claim. So it is claimed again.
    if (renewed) this.#update(claim);
    this.#claimOf.set(owned, claim);
    owned.onEnd = () => {
      claim.owned = undefined;
      this.#update(claim);
      const guest = 'otc' in owned ? owned.controller : owned.target;
      if (guest instanceof Guest) guest.end();
    };
    return undefined;
  }

  /** Renews or releases a claim in Redis. If that fails, `#up` does it when Redis is back. */
  #update(claim: Claim): void {
    this.#updated(claim).catch(() => {});
  }

  /** Renews a claim for as long as its session or watch may last, or releases it. */
  async #updated(claim: Claim): Promise<void> {
    const { name, key, owned } = claim;
    if (!owned) {
      await this.redis.run('release', [key], [name]);
      if (!claim.owned) this.#claims.delete(name);
      return;
    }
    const end = 'otc' in owned ? this.sockets.pairing.lastEndOf(owned) : owned.since + WATCH_TTL_MS;
    const ttlMs = Math.max(1, Math.ceil(end - this.sockets.now()));
    const isHeld = await this.redis.run('hold', [key], [name, ttlMs]);
    if (isHeld === 0 && claim.owned === owned) this.#taken(owned);
  }

  /** Another instance has claimed it. */
  #taken(owned: Owned): void {
    const { answers, sessions, watches, now } = this.sockets;
    if ('otc' in owned) {
      answers.guard(owned.target, () => sessions.lose(owned, 'relay_unavailable', now()));
    } else {
      answers.guard(owned.watcher, () => watches.expire(owned, now()));
    }
  }

  /** Resolves to the answer of a script, or to `relay_unavailable` if Redis is out of reach. */
  async #ask(script: Script, keys: string[], values: (string | number)[]): Promise<string> {
    const answer = this.isUp && (await this.redis.run(script, keys, values).catch(() => false));
    return this.isUp ? String(answer) : 'relay_unavailable';
  }

  /** A name for a claim or a link. */
  #newName(): string {
    this.#lastName += 1;
    return `${this.id}.${this.#lastName}`;
  }

  // Messages of other instances.

  #hear(json: string): void {
    const message = readMessage(json);
    if (!message) {
      if (!this.#hasWarned) {
        this.log.warn(
          'received a message through Redis that this version cannot read: another program, or another version of the relay, uses the same Redis',
        );
      }
      this.#hasWarned = true;
      return;
    }
    if (!this.isUp) return;
    const [from, items] = message;
    for (const item of items) {
      if (item[0] === 'open') this.#admit(from, item);
      else this.links.hear(from, item);
    }
  }

  #admit(from: string, [, link, frame, claim, client]: Extract<Item, ['open', ...string[]]>): void {
    // The name of a link is unique, so no instance asks for one that exists.
    if (this.links.ends.has(link)) return;
    const guest = new Guest(this.links, from, link, client);
    this.sockets.answers.guard(guest, () => {
      const refusal = this.#enter(guest, claim, frame);
      if (refusal) guest.end(refusal);
      else guest.say('opened');
    });
  }

  // Whether Redis is in reach.

  /** To be called every `BEAT_MS`: asks whether Redis works, and which other instances are there. */
  async beat(): Promise<void> {
    if (this.#isBeating) return;
    this.#isBeating = true;
    try {
      this.links.beat();
      const others = this.links.ends.values().map(({ instance }) => instance);
      const instances = new Set([this.id, ...others]);
      const answer = await this.redis.run('beat', ['probe', 'burnt'], [...instances]);
      const [, burnt, ...absent] = answer as [number, number, ...string[]];
      this.#burnt = burnt;
      if (absent.includes(this.id))
        throw new Error('it has lost the subscription of this instance');
      this.links.lose('peer_disconnected', ({ instance }) => absent.includes(instance));
      if (!this.isUp) await this.#up();
    } catch (error) {
      this.#down((error as Error).message);
    } finally {
      this.#isBeating = false;
    }
  }

  /** Sends all claims to Redis again, which may have lost them, or still have some that have ended. */
  async #up(): Promise<void> {
    const claims = [...this.#claims.values()];
    while (claims.length > 0) {
      await Promise.all(claims.splice(0, BATCH).map((claim) => this.#updated(claim)));
    }
    // Other instances may still have links from before. They end them when they hear this.
    this.links.send(ALL, ['over', '', '', 0]);
    if (this.problem) this.log.info('Redis is in reach again');
    this.problem = undefined;
  }

  /** Redis is out of reach: all links end. Pairings within this instance go on. */
  #down(problem: string): void {
    if (problem !== this.problem) {
      this.log.warn('Redis is out of reach: only pairings within this instance go on', { problem });
    }
    this.problem = problem;
    this.links.lose('relay_unavailable', () => true);
  }
}

/**
 * Makes a relay one of many.
 * @returns A function that takes the relay out of the cluster.
 * @throws {RedisError} If the file of its URL cannot be used, or Redis does not answer as it must within 5 s.
 */
export async function joinCluster(sockets: Sockets, log: Log): Promise<() => Promise<void>> {
  const { config } = sockets;
  const url = config.redisUrl ?? (await readRedisUrl(config.redisUrlFile as string));
  const id = Buffer.from(crypto.getRandomValues(new Uint8Array(9))).toString('base64url');
  const redis = new RedisConnection(url, config.redisPrefix, id);
  const cluster = new Cluster(id, sockets, redis, log);
  const timer = setInterval(() => void cluster.beat(), BEAT_MS);
  const leave = async (): Promise<void> => {
    clearInterval(timer);
    await cluster.links.settled;
    redis.close();
  };
  log.info('waiting for Redis', { redis: url, atMostMs: START_WAIT_MS });
  const deadline = performance.now() + START_WAIT_MS;
  while (!cluster.isUp && performance.now() < deadline) await Bun.sleep(5);
  if (!cluster.isUp) {
    await leave();
    const problem = cluster.problem || 'no answer yet';
    throw new RedisError(`REDIS_URL: ${url.toString()} can’t be used: ${problem}`);
  }
  await warnOfMemory(redis, config.maxBurnt, log);
  sockets.cluster = cluster;
  return leave;
}

/** Warns if Redis may forget used token ids, or has too little memory for AMESH_MAX_BURNT of them. */
async function warnOfMemory(redis: RedisConnection, maxBurnt: number, log: Log): Promise<void> {
  const info = await redis.memory().catch(() => '');
  const maxmemory = Number(/^maxmemory:(\d+)/m.exec(info)?.[1] ?? 0);
  const policy = /^maxmemory_policy:(\S+)/m.exec(info)?.[1];
  if (maxmemory === 0) return;
  if (policy !== 'noeviction') {
    log.warn('Redis may forget used tokens: set its maxmemory-policy to noeviction', { policy });
  }
  const needed = maxBurnt * USED_TOKEN_BYTES + SPARE_MEMORY_BYTES;
  if (maxmemory < needed) {
    const problem = 'Redis has less memory than AMESH_MAX_BURNT may need: raise its maxmemory';
    log.warn(problem, { maxmemory, needed });
  }
}
