/**
 * The token ids that are used up. It is the one thing the relay remembers for a day, so it is kept small: of each id
 * only 56 bits of its SHA-256, eight of which choose one of 256 shards. A shard of a full list holds about 4,000
 * entries, so that neither its growth nor its expiry ever stalls the event loop.
 */

/** Expired entries that one sweep removes at most: a million in under a minute, a few milliseconds each. */
const SWEEP_BATCH = 20_000;

export class BurntList {
  // Shard → fingerprint → when it was burned; insertion order is age.
  readonly #shards = new Map<number, Map<number, number>>();
  readonly #max: number;
  readonly #ttlMs: number;
  #size = 0;

  /**
   * @param max Ids that the list holds; beyond it {@link isFull} says so. Two ids out of a million share a fingerprint
   *   with a probability of about 1 in 70 billion for each new id (2^20 / 2^56): then the later one counts as used.
   * @param ttlMs How long an id stays burned, in milliseconds.
   */
  constructor(max: number, ttlMs: number) {
    this.#max = max;
    this.#ttlMs = ttlMs;
  }

  get size(): number {
    return this.#size;
  }

  has(jti: string, now: number): boolean {
    const [shard, key] = this.#locate(jti);
    const burntAt = shard.get(key);
    return burntAt !== undefined && now - burntAt < this.#ttlMs;
  }

  isFull(now: number): boolean {
    if (this.#size >= this.#max) this.sweep(now);
    return this.#size >= this.#max;
  }

  add(jti: string, now: number): void {
    const [shard, key] = this.#locate(jti);
    if (!shard.delete(key)) this.#size += 1;
    shard.set(key, now);
  }

  sweep(now: number): void {
    let left = SWEEP_BATCH;
    for (const shard of this.#shards.values()) {
      for (const [key, burntAt] of shard) {
        if (now - burntAt < this.#ttlMs || left === 0) break;
        shard.delete(key);
        this.#size -= 1;
        left -= 1;
      }
    }
  }

  /** The shard and the key of an id; a shard comes into being with the first id that asks for it. */
  #locate(jti: string): [Map<number, number>, number] {
    // Bun's own, since loading node:crypto costs a start several milliseconds.
    const digest = Buffer.from(Bun.SHA256.hash(jti).buffer);
    const number = digest[0] as number;
    let shard = this.#shards.get(number);
    if (!shard) this.#shards.set(number, (shard = new Map()));
    return [shard, digest.readUIntBE(1, 6)];
  }
}
