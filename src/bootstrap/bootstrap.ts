/**
 * The rules of bootstrap by token: who watches which token id (jti), and who announced itself with it. Pure: it uses no
 * socket, and `now` is an argument, in milliseconds on any clock that only moves forward. The used ids are stored
 * elsewhere: in `used-tokens.ts` for one instance, in Redis for many.
 */
import type { Peer, Watch } from '../peer.ts';

/** How long a watch lasts, in milliseconds. From the protocol: five minutes. */
export const WATCH_TTL_MS = 5 * 60_000;
/** How long a jti stays burnt, in milliseconds. From the protocol: 25 hours. */
export const BURNT_TTL_MS = 25 * 3_600_000;
/** Watches that one socket may hold. From the protocol. */
export const MAX_WATCHES_PER_PEER = 100;

export class Bootstrap {
  /** By jti. All last equally long and a renewed one moves to the end, so the first one expires first. */
  readonly #watches = new Map<string, Watch>();

  /** All watches, with a target or without. */
  get size(): number {
    return this.#watches.size;
  }

  /** Watches with a target that waits for an answer. */
  get unanswered(): number {
    return [...this.#watches.values()].filter(({ target }) => target).length;
  }

  find(jti: string): Watch | undefined {
    return this.#watches.get(jti);
  }

  /** A controller watches a jti, or renews its watch. Returns the watch, or the error code. */
  watch(watcher: Peer, jti: string, now: number): Watch | 'jti_already_watched' | 'relay_capacity' {
    const held = this.#watches.get(jti);
    if (held) {
      if (held.watcher !== watcher) return 'jti_already_watched';
      held.since = now;
      this.#watches.delete(jti);
      this.#watches.set(jti, held);
      return held;
    }
    if ((watcher.watches?.size ?? 0) >= MAX_WATCHES_PER_PEER) return 'relay_capacity';
    const watch: Watch = { jti, watcher, target: undefined, since: now, onEnd: undefined };
    this.#watches.set(jti, watch);
    (watcher.watches ??= new Set()).add(watch);
    return watch;
  }

  /** A target announces itself to a watch. Returns the error code if another target came first. */
  announce(target: Peer, watch: Watch): 'token_already_used' | undefined {
    if (watch.target) return 'token_already_used';
    watch.target = target;
    (target.announced ??= new Set()).add(watch);
    return undefined;
  }

  /** Removes a watch: others may watch its jti, and its peers no longer refer to it. */
  end(watch: Watch, now: number): void {
    const { jti, watcher, target } = watch;
    this.#watches.delete(jti);
    watcher.watches?.delete(watch);
    watcher.idleSince = now;
    if (!target) return;
    target.announced?.delete(watch);
    target.idleSince = now;
  }

  isOver(watch: Watch, now: number): boolean {
    return now - watch.since >= WATCH_TTL_MS;
  }

  /** All expired watches, oldest first. The caller ends each one before it takes the next. */
  *expired(now: number): Generator<Watch, void, void> {
    for (const watch of this.#watches.values()) {
      if (!this.isOver(watch, now)) break;
      yield watch;
    }
  }
}
