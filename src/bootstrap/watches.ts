/** What happens to a watch, as both sides see it. The rules decide (`bootstrap.ts`); this carries it out and says so. */
import type { Answers } from '../answers.ts';
import type { Arbiter } from '../arbiter.ts';
import type { Bootstrap, Watch } from './bootstrap.ts';
import type { Clock, Connection } from '../connection.ts';
import { frames } from '../wire/frames.ts';
import type { Roster } from '../admission/connections.ts';
import type { Stats } from '../observe/stats.ts';

interface Parts {
  bootstrap: Bootstrap<Connection>;
  answers: Answers;
  roster: Roster;
  stats: Stats;
}

export class Watches {
  /** Who is told of what happens. Set before the first socket opens. */
  arbiter!: Arbiter;
  readonly #bootstrap: Bootstrap<Connection>;
  readonly #answers: Answers;
  readonly #roster: Roster;
  readonly #stats: Stats;
  readonly #now: Clock;

  constructor({ bootstrap, answers, roster, stats }: Parts, now: Clock) {
    this.#bootstrap = bootstrap;
    this.#answers = answers;
    this.#roster = roster;
    this.#stats = stats;
    this.#now = now;
  }

  /** Begins or renews a watch and says so. @returns It, or why not; then nothing was said. */
  watch(watcher: Connection, jti: string, now: number): ReturnType<Bootstrap<Connection>['watch']> {
    const watch = this.#bootstrap.watch(watcher, jti, now);
    if (typeof watch === 'string') return watch;
    this.#stats.bootstraps.watched += 1;
    this.#roster.occupy(watcher);
    this.#answers.send(watcher, frames.watching(jti));
    return watch;
  }

  /** Burns a jti and tells its watcher. @returns The watch, or why not; then nothing was said. */
  announce(
    target: Connection,
    jti: string,
    frame: string,
    now: number,
  ): ReturnType<Bootstrap<Connection>['announce']> {
    this.evictStale(jti, now);
    const watch = this.#bootstrap.announce(target, jti, now);
    if (typeof watch === 'string') return watch;
    this.#stats.bootstraps.announced += 1;
    this.#roster.occupy(target);
    this.#answers.send(watch.watcher, frame);
    return watch;
  }

  /** Passes a watcher's answer on. @returns Why not. */
  answer(
    watcher: Connection,
    jti: string,
    outcome: 'acknowledged' | 'rejected',
    frame: string,
  ): 'not_watching' | 'peer_not_connected' | undefined {
    this.evictStale(jti, this.#now());
    const watch = this.#bootstrap.answerable(watcher, jti);
    if (typeof watch === 'string') return watch;
    this.end(watch, outcome);
    if (watch.target) this.#answers.send(watch.target, frame);
    return undefined;
  }

  /** A peer has gone, and with it all that it watched or asked. */
  letGo({ watches, asks }: Connection): void {
    for (const watch of watches ?? []) {
      this.end(watch, 'abandoned');
      if (watch.target) this.#answers.reject(watch.target, watch.jti, 'watcher_disconnected');
    }
    for (const watch of asks ?? []) this.end(watch, 'abandoned');
  }

  end(
    watch: Watch<Connection>,
    outcome: 'acknowledged' | 'rejected' | 'expired' | 'abandoned',
  ): void {
    this.#bootstrap.end(watch);
    this.#stats.bootstraps[outcome] += 1;
    this.#roster.settle(watch.watcher, this.#now());
    if (watch.target) this.#roster.settle(watch.target, this.#now());
    this.arbiter.endedWatch(watch);
  }

  expire(watch: Watch<Connection>): void {
    this.end(watch, 'expired');
    this.#answers.watchExpired(watch.watcher, watch.jti);
    if (watch.target) this.#answers.reject(watch.target, watch.jti, 'watch_expired');
  }

  /** Between two sweeps, too, an end is exact. */
  evictStale(jti: string, now: number): void {
    const stale = this.#bootstrap.stale(jti, now);
    if (stale) this.expire(stale);
  }
}
