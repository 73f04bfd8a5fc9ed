/** How much may wait in this process for Redis, or behind a question to it, and how much of it may be one client's. */
import type { Clock } from '../connection.ts';
import { frames } from '../wire/frames.ts';

/** Bytes that may wait, of all clients together. */
export const MAX_WAITING_BYTES = 64 * 1024 * 1024;
/** Bytes that a client may send each second, once it has sent as much as a session may carry: all links go by one line. */
const CLIENT_BYTES_PER_SECOND = 1024 * 1024;
/** What a frame costs beside its bytes: its envelope, and what it takes to handle it. */
const FRAME_OVERHEAD_BYTES = 64;

/** Bytes as they go over the line, where what JSON escapes is longer. */
export const costOf = (frame: string | Buffer): number =>
  FRAME_OVERHEAD_BYTES +
  (typeof frame === 'string' ? Buffer.byteLength(JSON.stringify(frame)) : frame.length);

interface SessionLimits {
  maxSessionBytes: number;
  maxSessionFrames: number;
}

export class Room {
  readonly #burst: number;
  readonly #now: Clock;
  #used = 0;
  /** What each client has sent, less what has run off since. */
  readonly #levels = new Map<string, { bytes: number; at: number }>();

  constructor({ maxSessionBytes, maxSessionFrames }: SessionLimits, now: Clock) {
    const session = maxSessionBytes + maxSessionFrames * costOf(frames.data(''));
    this.#burst = Math.min(session, MAX_WAITING_BYTES / 2);
    this.#now = now;
  }

  get used(): number {
    return this.#used;
  }

  get clients(): number {
    return this.#levels.size;
  }

  /** @returns Whether a client's frame of that cost may wait; then `leave` has to follow. */
  enter(client: string, cost: number): boolean {
    const now = this.#now();
    const bytes = this.#levelOf(client, now) + cost;
    if (this.#used + cost > MAX_WAITING_BYTES || bytes > this.#burst) return false;
    this.#used += cost;
    this.#levels.set(client, { bytes, at: now });
    return true;
  }

  leave(cost: number): void {
    this.#used -= cost;
  }

  /** Forgets whose share is whole again. */
  sweep(): void {
    const now = this.#now();
    for (const client of this.#levels.keys()) {
      if (this.#levelOf(client, now) === 0) this.#levels.delete(client);
    }
  }

  #levelOf(client: string, now: number): number {
    const level = this.#levels.get(client);
    if (!level) return 0;
    return Math.max(0, level.bytes - ((now - level.at) / 1000) * CLIENT_BYTES_PER_SECOND);
  }
}
