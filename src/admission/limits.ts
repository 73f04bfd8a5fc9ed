/**
 * What a client may do in which time. Pure: `now` is an argument, in milliseconds on any clock that only moves forward.
 *
 * An IPv4 address counts for itself. Whoever has IPv6 usually has a /56 or a /48 and can use every /64 in it, so an
 * attempt from IPv6 counts for its /64 and also, with eight times the limit, for its /56 and its /48.
 */
import type { Config } from '../config.ts';

/** The width of every window, in milliseconds. From the protocol: "per client and minute". */
export const WINDOW_MS = 60_000;

/** How many times a client's limit all clients of an IPv6 /56, and all of a /48, have together. From the protocol. */
export const NETWORK_FACTOR = 8;

/** Wrong access tokens that a client has in any 60 s. Nobody types one, so whoever needs more is guessing. */
const MAX_WRONG_TOKENS = 10;

/**
 * How many keys a book holds. When it is full, new keys are not tracked, so that those who are tracked keep their full
 * minute. Whoever can fill it (100,000 addresses a minute, about 15 MB) is not held back by a limit per address.
 */
export const MAX_KEYS = 100_000;

/** The networks that an attempt of a client counts for: the client itself first, then those with eight times its limit. */
export function networksOf(client: string): string[] {
  if (!client.endsWith('/64')) return [client];
  const parts = /^([\da-f]+):([\da-f]+):([\da-f]+):([\da-f]+)::\/64$/.exec(client);
  if (!parts) return [client];
  const [, a, b, c, d = ''] = parts;
  const upper = (Number.parseInt(d, 16) & 0xff00).toString(16);
  return [client, `${a}:${b}:${c}:${upper}::/56`, `${a}:${b}:${c}::/48`];
}

/** At most `max` attempts of a client in any 60 s. It keeps the time of each, so it is for small limits. */
export class Attempts {
  // Key → times of its last attempts, oldest first. The keys stand in the order of their last attempt.
  readonly #book = new Map<string, number[]>();

  constructor(
    private readonly max: number,
    private readonly maxKeys: number = MAX_KEYS,
  ) {}

  get size(): number {
    return this.#book.size;
  }

  /** Whether a client, or a network that it belongs to, has used up its attempts. */
  isSpent(client: string, now: number): boolean {
    if (this.#book.size === 0) return false;
    return networksOf(client).some((key, i) => {
      const times = this.#book.get(key);
      const oldest = times?.at(-this.#maxOf(i));
      return oldest !== undefined && now - oldest < WINDOW_MS;
    });
  }

  add(client: string, now: number): void {
    for (const [i, key] of networksOf(client).entries()) this.#add(key, this.#maxOf(i), now);
  }

  #maxOf(i: number): number {
    return i === 0 ? this.max : this.max * NETWORK_FACTOR;
  }

  #add(key: string, max: number, now: number): void {
    const times = this.#book.get(key) ?? [];
    if (!this.#book.delete(key) && this.#book.size >= this.maxKeys) return;
    if (times.length === max) times.shift();
    times.push(now);
    this.#book.set(key, times);
  }

  sweep(now: number): void {
    for (const [key, times] of this.#book) {
      if (now - (times.at(-1) as number) < WINDOW_MS) break;
      this.#book.delete(key);
    }
  }
}

/**
 * At most `max` of something for a client in a minute that begins with the first. Two numbers for each client, however
 * large the limit is; in return, two neighbouring minutes can hold `2 × max` within 60 s.
 */
export class MinuteCount {
  // Keys stand in the order in which their minutes began.
  readonly #book = new Map<string, { count: number; since: number }>();

  constructor(
    private readonly max: number,
    private readonly maxKeys: number = MAX_KEYS,
  ) {}

  get size(): number {
    return this.#book.size;
  }

  /** Whether a client, or a network that it belongs to, has used up its minute. */
  isSpent(client: string, now: number): boolean {
    return networksOf(client).some((key, i) => {
      const minute = this.#book.get(key);
      if (!minute || now - minute.since >= WINDOW_MS) return false;
      return minute.count >= (i === 0 ? this.max : this.max * NETWORK_FACTOR);
    });
  }

  add(client: string, now: number): void {
    for (const key of networksOf(client)) {
      const minute = this.#book.get(key);
      if (minute && now - minute.since < WINDOW_MS) minute.count += 1;
      else if (this.#book.delete(key) || this.#book.size < this.maxKeys) {
        this.#book.set(key, { count: 1, since: now });
      }
    }
  }

  sweep(now: number): void {
    for (const [key, { since }] of this.#book) {
      if (now - since < WINDOW_MS) break;
      this.#book.delete(key);
    }
  }
}

/** A budget for each client that refills steadily: `burst` at once, then `perSecond`. */
export class Budget {
  // Client → when its budget will be whole again.
  readonly #book = new Map<string, number>();
  readonly #perMs: number;

  constructor(
    private readonly burst: number,
    perSecond: number,
    private readonly maxKeys: number = MAX_KEYS,
  ) {
    this.#perMs = perSecond / 1000;
  }

  get size(): number {
    return this.#book.size;
  }

  /** Takes an amount from a client's budget. Returns false, and takes nothing, where it is not there. */
  take(client: string, amount: number, now: number): boolean {
    const wholeAt = this.#book.get(client);
    const spent = wholeAt === undefined ? 0 : Math.max(0, wholeAt - now) * this.#perMs;
    if (spent + amount > this.burst) return false;
    if (wholeAt !== undefined || this.#book.size < this.maxKeys) {
      this.#book.set(client, now + (spent + amount) / this.#perMs);
    }
    return true;
  }

  /** Forgets every client whose budget is whole again. */
  sweep(now: number): void {
    for (const [client, wholeAt] of this.#book) if (wholeAt <= now) this.#book.delete(client);
  }
}

/** How many of something each client holds at present. */
export class Tally {
  readonly #held = new Map<string, number>();

  get size(): number {
    return this.#held.size;
  }

  of(key: string): number {
    return this.#held.get(key) ?? 0;
  }

  add(key: string): void {
    this.#held.set(key, this.of(key) + 1);
  }

  remove(key: string): void {
    const left = this.of(key) - 1;
    if (left > 0) this.#held.set(key, left);
    else this.#held.delete(key);
  }
}

/** Every limit per client or per code that this instance counts. */
export class Limits {
  readonly failedCodes: Attempts;
  readonly failedPerCode: Attempts;
  /** An accepted `listen` tells that nobody else has the code, so without a limit it is a way to try them all. */
  readonly listens: MinuteCount;
  readonly watchAttempts: Attempts;
  readonly refusedInits: Attempts;
  readonly wrongTokens = new Attempts(MAX_WRONG_TOKENS);
  /** Payload bytes that a client's sockets may forward. */
  readonly bytes: Budget;
  /** Upgrades and plain requests: at once twice as many as a client may hold sockets, then a quarter of that a second. */
  readonly requests: Budget;

  constructor(config: Config) {
    this.failedCodes = new Attempts(config.maxFailedCodes);
    this.failedPerCode = new Attempts(config.maxFailedPerCode);
    this.listens = new MinuteCount(config.maxListens);
    this.watchAttempts = new Attempts(config.maxWatches);
    this.refusedInits = new Attempts(config.maxRefusedInits);
    this.bytes = new Budget(config.maxSessionBytes, config.maxBytesPerSecond);
    const sockets = config.maxConnectionsPerClient;
    this.requests = new Budget(sockets * 2, sockets / 4);
  }

  /** The number of keys in each book. */
  get books(): Record<string, number> {
    const books = Object.entries(this) as [string, { size: number }][];
    return Object.fromEntries(books.map(([name, { size }]) => [name, size]));
  }

  sweep(now: number): void {
    const books = Object.values(this) as { sweep: (now: number) => void }[];
    for (const book of books) book.sweep(now);
  }
}
