/**
 * Bootstrap by token: who watches which token id (jti), who asked, and which ids are used up.
 * Knows no socket and no clock: `now` is an argument, in milliseconds on any clock that only moves forward.
 */
import type { BurntList } from './used-tokens.ts';

/** From the protocol: a watch lasts five minutes, and a jti stays burnt for 25 hours. */
export const WATCH_TTL_MS = 5 * 60_000;
export const BURNT_TTL_MS = 25 * 3_600_000;

/** Anything that can watch or announce. Bootstrap alone writes both sets; they are absent until needed. */
export interface Bootstrapped<P> {
  watches: Set<Watch<P>> | undefined;
  /** Watches that this peer announced itself to, and that owe it an answer. */
  asks: Set<Watch<P>> | undefined;
}

export interface Watch<P> {
  readonly jti: string;
  readonly watcher: P;
  /** The one peer that announced this jti, and gets the answer. */
  target: P | undefined;
  /** When the watch began, or was renewed. */
  since: number;
}

export class Bootstrap<P extends Bootstrapped<P>> {
  // At once the directory by jti and, in insertion order, the queue by age.
  readonly #watches = new Map<string, Watch<P>>();
  readonly #burnt: BurntList;
  readonly #ttlMs: number;
  readonly #maxPerPeer: number;
  #asked = 0;

  /**
   * @param ttlMs How long a watch lasts, in milliseconds.
   * @param maxPerPeer Watches that one peer may hold.
   */
  constructor(burnt: BurntList, ttlMs: number, maxPerPeer: number) {
    this.#burnt = burnt;
    this.#ttlMs = ttlMs;
    this.#maxPerPeer = maxPerPeer;
  }

  /** Watches, answered ones no more. */
  get size(): number {
    return this.#watches.size;
  }

  /** Watches that were announced to and owe an answer. */
  get asked(): number {
    return this.#asked;
  }

  /** A controller watches a jti, or renews its watch. */
  watch(watcher: P, jti: string, now: number): Watch<P> | 'jti_already_watched' | 'relay_capacity' {
    const held = this.#watches.get(jti);
    if (held) {
      if (held.watcher !== watcher) return 'jti_already_watched';
      held.since = now;
      this.#watches.delete(jti);
      this.#watches.set(jti, held);
      return held;
    }
    if ((watcher.watches?.size ?? 0) >= this.#maxPerPeer) return 'relay_capacity';
    const watch: Watch<P> = { jti, watcher, target: undefined, since: now };
    this.#watches.set(jti, watch);
    (watcher.watches ??= new Set()).add(watch);
    return watch;
  }

  /** A target announces a jti: that burns it, whatever comes after. The watch in return is to be told. */
  announce(
    target: P,
    jti: string,
    now: number,
  ): Watch<P> | 'token_already_used' | 'no_watcher' | 'relay_overloaded' {
    if (this.#burnt.has(jti, now)) return 'token_already_used';
    const watch = this.#watches.get(jti);
    if (!watch) return 'no_watcher';
    // A watch that was renewed for longer than a jti stays burnt still owes its first target the answer.
    if (watch.target) return 'token_already_used';
    if (this.#burnt.isFull(now)) return 'relay_overloaded';
    this.#burnt.add(jti, now);
    watch.target = target;
    this.#asked += 1;
    (target.asks ??= new Set()).add(watch);
    return watch;
  }

  /** The watch that a controller may answer now, whose target is to be told. The caller ends it. */
  answerable(watcher: P, jti: string): Watch<P> | 'not_watching' | 'peer_not_connected' {
    const watch = this.#watches.get(jti);
    if (watch?.watcher !== watcher) return 'not_watching';
    return watch.target ? watch : 'peer_not_connected';
  }

  /** Forgets a watch: its jti may be watched by others, and neither peer holds anything of it. */
  end(watch: Watch<P>): void {
    watch.watcher.watches?.delete(watch);
    if (watch.target?.asks?.delete(watch)) this.#asked -= 1;
    this.#watches.delete(watch.jti);
  }

  /** The watch on a jti whose time is up, if there is one that the sweeper has not met yet. */
  stale(jti: string, now: number): Watch<P> | undefined {
    const watch = this.#watches.get(jti);
    return watch && this.#isOver(watch, now) ? watch : undefined;
  }

  /** Every watch whose time is up, oldest first. The caller ends each before it takes the next. */
  *expired(now: number): Generator<Watch<P>, void, void> {
    for (const watch of this.#watches.values()) {
      if (!this.#isOver(watch, now)) break;
      yield watch;
    }
  }

  #isOver(watch: Watch<P>, now: number): boolean {
    return now - watch.since >= this.#ttlMs;
  }
}
