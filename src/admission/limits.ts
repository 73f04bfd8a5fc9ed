/**
 * Attempts in a sliding window, and connections, per client or per code.
 * Knows no socket and no clock: `now` is an argument, in milliseconds on any clock that only moves forward.
 */

import type { Config } from '../config.ts';

/** The width of every window. From the protocol: "per client and minute". */
export const WINDOW_MS = 60_000;

/**
 * How many keys a book holds. One that comes when it is full is not written down, so that those who stand there keep
 * their full minute: whoever can fill it (100,000 addresses a minute, about 15 MB at five attempts each) is not held by a limit per address.
 */
export const MAX_KEYS = 100_000;

/** Who did what in the last minute: at most `max` attempts for a key in any 60 s. */
export class Attempts {
  // Key → times of its last attempts, oldest first; insertion order is by last attempt.
  readonly #book = new Map<string, number[]>();
  readonly #max: number;
  readonly #maxKeys: number;

  constructor(max: number, maxKeys: number = MAX_KEYS) {
    this.#max = max;
    this.#maxKeys = maxKeys;
  }

  get size(): number {
    return this.#book.size;
  }

  /** Whether a key has used up its attempts. */
  isSpent(key: string, now: number): boolean {
    const times = this.#book.get(key);
    const oldest = times?.length === this.#max ? times[0] : undefined;
    return oldest !== undefined && now - oldest < WINDOW_MS;
  }

  add(key: string, now: number): void {
    const times = this.#book.get(key) ?? [];
    if (!this.#book.delete(key) && this.#book.size >= this.#maxKeys) return;
    // By halves, so that a long list is not moved for each attempt.
    const half = times.length >> 1;
    if (half > 0 && now - (times[half] as number) >= WINDOW_MS) times.splice(0, half + 1);
    if (times.length === this.#max) times.shift();
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

/** How many of something each key holds at present. */
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
  /** That a `listen` was accepted tells that nobody else has the code: without a limit, a way to try them all. */
  readonly listens: Attempts;
  readonly watchAttempts: Attempts;
  readonly refusedInits: Attempts;

  constructor(config: Config) {
    this.failedCodes = new Attempts(config.maxFailedCodes);
    this.failedPerCode = new Attempts(config.maxFailedPerCode);
    this.listens = new Attempts(config.maxListens);
    this.watchAttempts = new Attempts(config.maxWatches);
    this.refusedInits = new Attempts(config.maxRefusedInits);
  }

  get books(): Record<string, number> {
    return Object.fromEntries(
      Object.entries(this).map(([book, { size }]: [string, Attempts]) => [book, size]),
    );
  }

  sweep(now: number): void {
    for (const attempts of Object.values(this) as Attempts[]) attempts.sweep(now);
  }
}
