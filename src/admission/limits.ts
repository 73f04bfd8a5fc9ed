/**
 * Rate limits. Pure: `now` is an argument, in milliseconds on any clock that only moves forward.
 *
 * An IPv4 address is counted by itself. An IPv6 user usually has a /56 or a /48 and can use every /64 in it, so an
 * attempt from IPv6 is counted for its /64 and also for its /56 and its /48, which have eight times the limit.
 */
import type { Config } from '../config.ts';

/** The width of every window, in milliseconds. From the protocol: "per client and minute". */
export const WINDOW_MS = 60_000;

/** The limit of a whole IPv6 /56 or /48, as a multiple of one client's limit. From the protocol. */
export const NETWORK_FACTOR = 8;

/** Wrong access tokens allowed per client in any 60 s. Nobody types a token by hand, so more than that is guessing. */
const MAX_WRONG_TOKENS = 10;

/**
 * How many keys one limit tracks. When it is full, new keys are not tracked, so that the tracked ones keep their full
 * minute. An attacker who can fill it (100,000 addresses a minute, about 15 MB) is not stopped by limits per address.
 */
export const MAX_KEYS = 100_000;

/** The keys that an attempt is counted for: the client itself first, then its networks with eight times the limit. */
export function networksOf(client: string): string[] {
  if (!client.endsWith('/64')) return [client];
  const parts = /^([\da-f]+):([\da-f]+):([\da-f]+):([\da-f]+)::\/64$/.exec(client);
  if (!parts) return [client];
  const [, a, b, c, d = ''] = parts;
  const upper = (Number.parseInt(d, 16) & 0xff00).toString(16);
  return [client, `${a}:${b}:${c}:${upper}::/56`, `${a}:${b}:${c}::/48`];
}

/** Allows `max` attempts of a client in any 60 s. It stores the time of each, so it is for small limits. */
export class Attempts {
  // Key → times of its last attempts, oldest first. The keys are in the order of their last attempt.
  readonly #entries = new Map<string, number[]>();

  constructor(
    private readonly max: number,
    private readonly maxKeys: number = MAX_KEYS,
  ) {}

  get size(): number {
    return this.#entries.size;
  }

  /** Whether a client, or a network that it belongs to, has used up its attempts. */
  isSpent(client: string, now: number): boolean {
    if (this.#entries.size === 0) return false;
    return networksOf(client).some((key, i) => {
      const times = this.#entries.get(key);
      const oldest = times?.at(-this.#maxOf(i));
      return oldest !== undefined && now - oldest < WINDOW_MS;
    });
  }

  add(client: string, now: number): void {
    for (const [i, key] of networksOf(client).entries()) {
      const times = this.#entries.get(key) ?? [];
      if (!this.#entries.delete(key) && this.#entries.size >= this.maxKeys) continue;
      if (times.length === this.#maxOf(i)) times.shift();
      times.push(now);
      this.#entries.set(key, times);
    }
  }

  #maxOf(i: number): number {
    return i === 0 ? this.max : this.max * NETWORK_FACTOR;
  }

  sweep(now: number): void {
    for (const [key, times] of this.#entries) {
      if (now - (times.at(-1) as number) < WINDOW_MS) break;
      this.#entries.delete(key);
    }
  }
}

/**
 * Allows `max` events of a client per minute. A client's minute begins with its first event. It stores two numbers for
 * each client, however large the limit is. In return, two minutes in a row can have `2 × max` events within 60 s.
 */
export class MinuteCount {
  // The keys are in the order in which their minutes began.
  readonly #entries = new Map<string, { count: number; since: number }>();

  constructor(
    private readonly max: number,
    private readonly maxKeys: number = MAX_KEYS,
  ) {}

  get size(): number {
    return this.#entries.size;
  }

  /** Whether a client, or a network that it belongs to, has used up its minute. */
  isSpent(client: string, now: number): boolean {
    return networksOf(client).some((key, i) => {
      const minute = this.#entries.get(key);
      if (!minute || now - minute.since >= WINDOW_MS) return false;
      return minute.count >= (i === 0 ? this.max : this.max * NETWORK_FACTOR);
    });
  }

  add(client: string, now: number): void {
    for (const key of networksOf(client)) {
      const minute = this.#entries.get(key);
      if (minute && now - minute.since < WINDOW_MS) minute.count += 1;
      else if (this.#entries.delete(key) || this.#entries.size < this.maxKeys) {
        this.#entries.set(key, { count: 1, since: now });
      }
    }
  }

  sweep(now: number): void {
    for (const [key, { since }] of this.#entries) {
      if (now - since < WINDOW_MS) break;
      this.#entries.delete(key);
    }
  }
}

/** A token bucket for each client: `burst` at once, then `perSecond`. */
export class Budget {
  // Client → when its budget will be full again.
  readonly #entries = new Map<string, number>();

  constructor(
    private readonly burst: number,
    private readonly perSecond: number,
    private readonly maxKeys: number = MAX_KEYS,
  ) {}

  get size(): number {
    return this.#entries.size;
  }

  /** Takes an amount from a client's budget. Returns false, and takes nothing, if less is left. */
  take(client: string, amount: number, now: number): boolean {
    const perMs = this.perSecond / 1000;
    const fullAt = this.#entries.get(client);
    const spent = fullAt === undefined ? 0 : Math.max(0, fullAt - now) * perMs;
    if (spent + amount > this.burst) return false;
    if (fullAt !== undefined || this.#entries.size < this.maxKeys) {
      this.#entries.set(client, now + (spent + amount) / perMs);
    }
    return true;
  }

  /** Removes every client whose budget is full again. */
  sweep(now: number): void {
    for (const [client, fullAt] of this.#entries) if (fullAt <= now) this.#entries.delete(client);
  }
}

/** The limits per client and per code that this instance counts. */
export type Limits = ReturnType<typeof createLimits>;

export function createLimits(config: Config) {
  const sockets = config.maxConnectionsPerClient;
  return {
    failedCodes: new Attempts(config.maxFailedCodes),
    failedPerCode: new Attempts(config.maxFailedPerCode),
    /** An accepted `listen` shows that nobody else uses the code, so without a limit a client could test all codes. */
    listens: new MinuteCount(config.maxListens),
    watchAttempts: new Attempts(config.maxWatches),
    refusedInits: new Attempts(config.maxRefusedInits),
    wrongTokens: new Attempts(MAX_WRONG_TOKENS),
    /** Payload bytes that a client's sockets may forward. */
    bytes: new Budget(config.maxSessionBytes, config.maxBytesPerSecond),
    /** Upgrades and plain requests: twice the client's socket limit at once, then a quarter of that limit per second. */
    requests: new Budget(sockets * 2, sockets / 4),
  };
}
