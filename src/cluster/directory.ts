/** Asks Redis who owns a code or a token id, and keeps the claims of this instance. */
import { networksOf } from '../admission/limits.ts';
import { BURNT_TTL_MS, WATCH_TTL_MS } from '../bootstrap/bootstrap.ts';
import type { Config } from '../config.ts';
import type { Peer, Session, Watch } from '../peer.ts';
import { type ErrorCode, isReason, type RejectReason } from '../wire/codes.ts';
import type { Redis } from './redis.ts';
import type { Script } from './scripts.ts';

/** Claims that are renewed or released at once when Redis is back. */
const BATCH = 500;
/** Claims that may have to be released when Redis is back. The rest expire by themselves. */
const MAX_ORPHANS = 10_000;

export type Owned = Session | Watch;
/** `instance.number`, unique for ever: which instance owns something, and which thing of its own it is. */
export type Claim = `${string}.${number}`;

const CLAIM = /^[\w-]+\.\d+$/;
export const isClaim = (answer: string): answer is Claim => CLAIM.test(answer);
export const ownerOf = (claim: Claim): string => claim.slice(0, claim.indexOf('.'));

/** What each script may answer apart from an error code. Any other answer is not believed, and repeated to nobody. */
const ANSWERS = {
  claimCode: /^ok$/,
  findCode: CLAIM,
  failCode: /^(?:counted|burned)$/,
  claimWatch: /^ok$/,
  burn: CLAIM,
} as const satisfies Partial<Record<Script, RegExp>>;

const hash = (jti: string): string =>
  Buffer.from(Bun.SHA256.hash(jti).buffer).toString('base64url').slice(0, 22);

export class Directory {
  /** What this instance owns: its claim and its key in Redis. */
  readonly #claims = new Map<Owned, { claim: Claim; key: string }>();
  readonly #owned = new Map<Claim, Owned>();
  /** Claims that may stand in Redis though nobody here holds them. */
  #orphans: { key: string; claim: Claim }[] = [];
  #last = 0;

  constructor(
    private readonly id: string,
    private readonly config: Config,
    private readonly redis: Redis,
  ) {}

  get books(): Record<'claims' | 'orphans', number> {
    return { claims: this.#claims.size, orphans: this.#orphans.length };
  }

  /** What a claim of this instance stands for, as long as that has not ended. */
  owned(claim: Claim): Owned | undefined {
    return this.#owned.get(claim);
  }

  /**
   * Claims a code for a target, then takes what `open` returns for the session that holds it, unless it is an error
   * code: then the claim is released.
   */
  async claimCode(
    target: Peer,
    otc: string,
    open: () => Session | ErrorCode,
    onEnd: (session: Session) => void,
  ): Promise<ErrorCode | undefined> {
    const { sessionTtlMs, maxFailedCodes, maxFailedPerCode, maxListens } = this.config;
    const claim = this.#newClaim();
    const keys = [...this.#codeKeys(target, otc), ...this.#clientKeys('listens', target)];
    const values = [claim, sessionTtlMs, maxFailedCodes, maxFailedPerCode, maxListens];
    const answer = await this.#ask('claimCode', keys, values);
    return this.#settle(answer, claim, this.#codeKey(otc), open, onEnd);
  }

  /** Claims a token id for a watcher, likewise. A watch that the watcher has already is renewed. */
  async claimWatch(
    watcher: Peer,
    jti: string,
    open: () => Watch | ErrorCode,
    onEnd: (watch: Watch) => void,
  ): Promise<ErrorCode | undefined> {
    const key = this.#jtiKey(jti);
    let claim = this.#newClaim();
    for (const watch of watcher.watches ?? []) {
      if (watch.jti === jti) claim = this.#claims.get(watch)?.claim ?? claim;
    }
    const keys = [key, ...this.#clientKeys('watches', watcher)];
    const answer = await this.#ask('claimWatch', keys, [
      claim,
      WATCH_TTL_MS,
      this.config.maxWatches,
    ]);
    return this.#settle(answer, claim, key, open, onEnd);
  }

  #settle<T extends Owned>(
    answer: string,
    claim: Claim,
    key: string,
    open: () => T | ErrorCode,
    onEnd: (what: T) => void,
  ): ErrorCode | undefined {
    if (answer !== 'ok') {
      if (answer === 'relay_unavailable') this.#orphan(key, claim);
      return answer as ErrorCode;
    }
    const what = open();
    if (typeof what === 'string') {
      // A renewed claim belongs to a watch that goes on.
      if (!this.#owned.has(claim)) this.#release(key, claim);
      return what;
    }
    this.#claims.set(what, { claim, key });
    this.#owned.set(claim, what);
    what.onEnd = () => {
      this.#claims.delete(what);
      this.#owned.delete(claim);
      this.#release(key, claim);
      onEnd(what);
    };
    return undefined;
  }

  /** The claim on a code, or the error code. */
  findCode(controller: Peer, otc: string): Promise<Claim | ErrorCode> {
    const { maxFailedCodes, maxFailedPerCode } = this.config;
    const values = [maxFailedCodes, maxFailedPerCode];
    return this.#ask('findCode', this.#codeKeys(controller, otc), values) as Promise<ErrorCode>;
  }

  /** Counts a failed attempt on a code. Returns whether the code is burned. */
  async failCode(controller: Peer, otc: string): Promise<boolean> {
    const { maxFailedCodes, maxFailedPerCode } = this.config;
    const values = [maxFailedCodes, maxFailedPerCode];
    return (await this.#ask('failCode', this.#codeKeys(controller, otc), values)) === 'burned';
  }

  /** Burns a token id that somebody watches. Returns the claim of its watch, or the error code. */
  burn(target: Peer, jti: string): Promise<Claim | RejectReason> {
    const { maxRefusedInits, maxBurnt, redisPrefix } = this.config;
    const keys = [
      this.#jtiKey(jti),
      `${redisPrefix}burnt`,
      ...this.#clientKeys('refused-inits', target),
    ];
    const values = [hash(jti), BURNT_TTL_MS, maxRefusedInits, maxBurnt];
    return this.#ask('burn', keys, values) as Promise<RejectReason>;
  }

  /**
   * Keeps the claim on something for so many milliseconds from now.
   * @returns False where somebody else has claimed it; true where it is held, or that could not be found out.
   */
  async prolong(what: Owned, ttlMs: number): Promise<boolean> {
    const held = this.#claims.get(what);
    if (!held) return true;
    const values = [held.claim, Math.max(1, Math.ceil(ttlMs))];
    return (await this.redis.run('hold', [held.key], values).catch(() => 1)) !== 0;
  }

  #release(key: string, claim: Claim): void {
    this.redis.run('release', [key], [claim]).catch(() => this.#orphan(key, claim));
  }

  #orphan(key: string, claim: Claim): void {
    if (this.#orphans.length < MAX_ORPHANS) this.#orphans.push({ key, claim });
  }

  /**
   * Puts right what Redis knows of this instance, after it was out of reach or came back empty.
   * @param ttlOf How long something still has, in milliseconds.
   * @returns What somebody else has claimed meanwhile.
   */
  async renew(ttlOf: (what: Owned) => number): Promise<Owned[]> {
    const taken: Owned[] = [];
    const owned = [...this.#claims];
    while (owned.length > 0) {
      await Promise.all(
        owned.splice(0, BATCH).map(async ([what, { claim, key }]) => {
          const ttl = Math.max(1, Math.ceil(ttlOf(what)));
          const isHeld = (await this.redis.run('hold', [key], [claim, ttl])) === 1;
          if (!isHeld && this.#claims.has(what)) taken.push(what);
        }),
      );
    }
    while (this.#orphans.length > 0) {
      const orphans = this.#orphans.slice(0, BATCH);
      await Promise.all(orphans.map(({ key, claim }) => this.redis.run('release', [key], [claim])));
      this.#orphans.splice(0, orphans.length);
    }
    return taken;
  }

  /** Comes to what the script answers, or to `relay_unavailable`. */
  async #ask(
    script: keyof typeof ANSWERS,
    keys: string[],
    values: (string | number)[],
  ): Promise<string> {
    try {
      const answer = String(await this.redis.run(script, keys, values));
      return ANSWERS[script].test(answer) || isReason(answer) ? answer : 'relay_unavailable';
    } catch {
      return 'relay_unavailable';
    }
  }

  #newClaim(): Claim {
    this.#last += 1;
    return `${this.id}.${this.#last}`;
  }

  #codeKey(otc: string): string {
    return `${this.config.redisPrefix}code:${otc}`;
  }

  #jtiKey(jti: string): string {
    return `${this.config.redisPrefix}jti:${hash(jti)}`;
  }

  #codeKeys(peer: Peer, otc: string): string[] {
    const attempts = `${this.config.redisPrefix}failed-on:${otc}`;
    return [this.#codeKey(otc), attempts, ...this.#clientKeys('failed-codes', peer)];
  }

  /** One key for each network that an attempt of a client counts for. */
  #clientKeys(limit: string, { client }: Peer): string[] {
    return networksOf(client).map((network) => `${this.config.redisPrefix}${limit}:${network}`);
  }
}
