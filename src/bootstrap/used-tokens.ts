/**
 * The used token ids, on a relay of one instance. Ids stay here for 25 hours, so each takes little memory: 56 bits of
 * its SHA-256, eight of which choose one of 256 shards. A shard of a full list has about 4,000 entries, so neither its
 * growth nor its expiry blocks the event loop.
 */

/** The most entries that one sweep removes, in a few milliseconds. A million are removed in under a minute. */
const SWEEP_BATCH = 20_000;

export class UsedTokens {
  // Shard → fingerprint → when it was burned. The oldest fingerprint comes first.
  readonly #shards = new Map<number, Map<number, number>>();
  #size = 0;

  /**
   * @param max How many ids the list holds until it {@link isFull}. With a million ids, a new one has the fingerprint
   *   of an older one, and so counts as used, with a probability of about 1 in 70 billion (2^20 / 2^56).
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

  /** The shard and the fingerprint of an id. The shard is created if it does not exist yet. */
  #locate(jti: string): [Map<number, number>, number] {
    const digest = Buffer.from(Bun.SHA256.hash(jti).buffer);
    const number = digest[0] as number;
    let shard = this.#shards.get(number);
    if (!shard) this.#shards.set(number, (shard = new Map()));
    return [shard, digest.readUIntBE(1, 6)];
  }
}
