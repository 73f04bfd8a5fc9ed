/**
 * The token ids that are used up, for one instance on its own. Nothing else is remembered for a day, so it is kept
 * small: of each id only 56 bits of its SHA-256, of which eight choose one of 256 shards. A shard of a full list holds
 * about 4,000 entries, so neither its growth nor its expiry stalls the event loop.
 */

/** Expired entries that one sweep removes at most: a million are gone in under a minute, a few milliseconds at a time. */
const SWEEP_BATCH = 20_000;

export class UsedTokens {
  // Shard → fingerprint → when it was burned; insertion order is age.
  readonly #shards = new Map<number, Map<number, number>>();
  #size = 0;

  /**
   * @param max Ids that the list holds; then {@link isFull} says so. A new id has the fingerprint of one of a million
   *   others with a probability of about 1 in 70 billion (2^20 / 2^56), and would then count as used.
   * @param ttlMs How long an id stays burned, in milliseconds.
   */
  constructor(
    private readonly max: number,
    private readonly ttlMs: number,
  ) {}

  get size(): number {
    return this.#size;
  }

  has(jti: string, now: number): boolean {
    const [shard, key] = this.#locate(jti);
    const burntAt = shard.get(key);
    return burntAt !== undefined && now - burntAt < this.ttlMs;
  }

  isFull(now: number): boolean {
    if (this.#size >= this.max) this.sweep(now);
    return this.#size >= this.max;
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
        if (now - burntAt < this.ttlMs || left === 0) break;
        shard.delete(key);
        this.#size -= 1;
        left -= 1;
      }
    }
  }

  /** The shard and the key of an id. A shard is made for the first id that belongs into it. */
  #locate(jti: string): [Map<number, number>, number] {
    const digest = Buffer.from(Bun.SHA256.hash(jti).buffer);
    const number = digest[0] as number;
    let shard = this.#shards.get(number);
    if (!shard) this.#shards.set(number, (shard = new Map()));
    return [shard, digest.readUIntBE(1, 6)];
  }
}
