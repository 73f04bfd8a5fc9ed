/** Applies the rules of bootstrap, and sends the results to both peers. */
import type { Stats } from '../observe/stats.ts';
import type { Peer, Watch } from '../peer.ts';
import type { State } from '../state.ts';
import type { ErrorCode, RejectReason } from '../wire/codes.ts';
import { frames } from '../wire/frames.ts';

export class Watches {
  constructor(private readonly state: State) {}

  // Requests of a peer on a relay of one instance. Each returns the error code if refused, otherwise undefined.

  watch(watcher: Peer, jti: string, now: number): ErrorCode | undefined {
    const { watchAttempts } = this.state.limits;
    if (this.state.connections.draining) return 'relay_draining';
    if (watchAttempts.isSpent(watcher.client, now)) return 'rate_limited';
    watchAttempts.add(watcher.client, now);
    const watch = this.open(watcher, jti, now);
    return typeof watch === 'string' ? watch : undefined;
  }

  /** A target announces itself with a jti. If somebody watches the jti, it is burned, whatever the answer is. */
  announce(target: Peer, jti: string, frame: string, now: number): RejectReason | undefined {
    const { refusedInits } = this.state.limits;
    if (refusedInits.isSpent(target.client, now)) return 'rate_limited';
    const refusal = this.#burn(target, jti, frame, now);
    if (refusal) refusedInits.add(target.client, now);
    return refusal;
  }

  #burn(target: Peer, jti: string, frame: string, now: number): RejectReason | undefined {
    if (this.state.used.has(jti, now)) return 'token_already_used';
    const watch = this.find(jti, now);
    if (!watch) return 'no_watcher';
    if (this.state.used.isFull(now)) return 'relay_overloaded';
    this.state.used.add(jti, now);
    return this.tell(target, watch, frame);
  }

  // The same steps without the limits: the cluster calls them too, after its own checks.

  /** The watch on a jti. An expired one is ended first, so that expiry is exact between two sweeps too. */
  find(jti: string, now: number): Watch | undefined {
    const watch = this.state.bootstrap.find(jti);
    if (!watch || !this.state.bootstrap.isOver(watch, now)) return watch;
    this.expire(watch, now);
    return undefined;
  }

  /** Begins or renews a watch and confirms it to the watcher. Returns the watch, or the error code. */
  open(watcher: Peer, jti: string, now: number): Watch | ErrorCode {
    this.find(jti, now);
    // `find` may have just ended this watcher's own watch, and closed the watcher because it does not read.
    if (!this.state.connections.has(watcher)) return 'relay_unavailable';
    const watch = this.state.bootstrap.watch(watcher, jti, now);
    if (typeof watch === 'string') return watch;
    this.state.stats.bootstraps.watched += 1;
    watcher.send(frames.watching(jti));
    return watch;
  }

  /** Sends a target's announcement to the watcher. Returns the error code if another target came first. */
  tell(target: Peer, watch: Watch, frame: string): 'token_already_used' | undefined {
    const refusal = this.state.bootstrap.announce(target, watch);
    if (refusal) return refusal;
    this.state.stats.bootstraps.announced += 1;
    watch.watcher.send(frame);
    return undefined;
  }

  /** Sends a watcher's answer to the target, and ends the watch. Returns the error code if refused. */
  answer(
    watcher: Peer,
    jti: string,
    outcome: 'acknowledged' | 'rejected',
    frame: string,
    now: number,
  ): 'not_watching' | 'peer_not_connected' | undefined {
    const watch = this.find(jti, now);
    if (watch?.watcher !== watcher) return 'not_watching';
    const { target } = watch;
    if (!target) return 'peer_not_connected';
    this.end(watch, outcome, now);
    target.send(frame);
    return undefined;
  }

  /** A peer has disconnected: its watches and announcements end. `why` is the reason that waiting targets get. */
  leave({ watches, announced }: Peer, why: RejectReason, now: number): void {
    watches?.forEach((watch) => {
      this.end(watch, 'abandoned', now);
      if (watch.target) this.state.answers.reject(watch.target, watch.jti, why);
    });
    announced?.forEach((watch) => this.end(watch, 'abandoned', now));
  }

  end(watch: Watch, outcome: keyof Stats['bootstraps'], now: number): void {
    this.state.bootstrap.end(watch, now);
    this.state.stats.bootstraps[outcome] += 1;
    watch.onEnd?.();
  }

  expire(watch: Watch, now: number): void {
    this.end(watch, 'expired', now);
    this.state.stats.refusals.watch_expired += 1;
    watch.watcher.send(frames.watchExpired(watch.jti));
    if (watch.target) this.state.answers.reject(watch.target, watch.jti, 'watch_expired');
  }
}
