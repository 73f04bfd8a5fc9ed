/** Who may have what is asked for: the limits, then the rules. `Alone` decides for one instance, `Cluster` for many. */
import type { Watch } from './bootstrap/bootstrap.ts';
import type { Clock, Connection } from './connection.ts';
import type { Limits } from './admission/limits.ts';
import type { Session } from './pairing/pairing.ts';
import type { ErrorCode, RejectReason } from './wire/frames.ts';
import type { Roster } from './admission/connections.ts';
import type { Sessions } from './pairing/sessions.ts';
import type { Watches } from './bootstrap/watches.ts';

/** What a socket asks comes back with why not; what it gets, it is told on the way. */
export interface Arbiter {
  listen(target: Connection, otc: string): ErrorCode | undefined;
  connect(controller: Connection, otc: string): ErrorCode | undefined;
  done(sender: Connection): ErrorCode | undefined;
  watch(watcher: Connection, jti: string): ErrorCode | undefined;
  init(target: Connection, jti: string, frame: string): RejectReason | undefined;
  // What became of it, for whom it may concern.
  joined(session: Session<Connection>): void;
  ended(session: Session<Connection>): void;
  endedWatch(watch: Watch<Connection>): void;
}

/** Who tries a code that is burned does not learn that it is in use. */
export const failure = <C extends string>(code: C, isBurned: boolean): C | 'otc_not_found' =>
  isBurned && code === 'peer_already_connected' ? 'otc_not_found' : code;

interface Parts {
  roster: Roster;
  limits: Limits;
  sessions: Sessions;
  watches: Watches;
}

export class Alone implements Arbiter {
  readonly #parts: Parts;
  readonly #now: Clock;

  constructor(parts: Parts, now: Clock) {
    this.#parts = parts;
    this.#now = now;
  }

  listen(target: Connection, otc: string): ErrorCode | undefined {
    const { roster, limits, sessions } = this.#parts;
    if (target.session) return 'already_in_session';
    if (roster.draining) return 'relay_draining';
    const now = this.#now();
    if (
      limits.failedCodes.isSpent(target.client, now) ||
      limits.listens.isSpent(target.client, now)
    ) {
      return 'rate_limited';
    }
    sessions.evictStale(otc, now);
    const session = limits.failedPerCode.isSpent(otc, now)
      ? 'otc_in_use'
      : sessions.open(target, otc, now);
    if (session === 'otc_in_use') return this.#failed(target, otc, session, now);
    // Either answer tells that nobody else has the code.
    limits.listens.add(target.client, now);
    return typeof session === 'string' ? session : undefined;
  }

  connect(controller: Connection, otc: string): ErrorCode | undefined {
    const { limits, sessions } = this.#parts;
    if (controller.session) return 'already_in_session';
    const now = this.#now();
    if (limits.failedCodes.isSpent(controller.client, now)) return 'rate_limited';
    const session = sessions.join(controller, otc, now);
    if (session === 'already_in_session') return session;
    return typeof session === 'string' ? this.#failed(controller, otc, session, now) : undefined;
  }

  /** A failed attempt counts against the client and against the code, until either is spent. */
  #failed(
    { client }: Connection,
    otc: string,
    code: 'otc_in_use' | 'otc_not_found' | 'peer_already_connected',
    now: number,
  ): ErrorCode {
    const { failedCodes, failedPerCode } = this.#parts.limits;
    failedCodes.add(client, now);
    const isBurned = failedPerCode.isSpent(otc, now);
    if (!isBurned) failedPerCode.add(otc, now);
    return failure(code, isBurned);
  }

  done(sender: Connection): ErrorCode | undefined {
    return this.#parts.sessions.done(sender);
  }

  watch(watcher: Connection, jti: string): ErrorCode | undefined {
    const { roster, limits, watches } = this.#parts;
    if (roster.draining) return 'relay_draining';
    const now = this.#now();
    if (limits.watchAttempts.isSpent(watcher.client, now)) return 'rate_limited';
    limits.watchAttempts.add(watcher.client, now);
    watches.evictStale(jti, now);
    // It may have been the watcher's own, which then heard of it, and is closed if it does not read.
    if (!roster.has(watcher)) return undefined;
    const watch = watches.watch(watcher, jti, now);
    return typeof watch === 'string' ? watch : undefined;
  }

  init(target: Connection, jti: string, frame: string): RejectReason | undefined {
    const { limits, watches } = this.#parts;
    const now = this.#now();
    if (limits.refusedInits.isSpent(target.client, now)) return 'rate_limited';
    const watch = watches.announce(target, jti, frame, now);
    if (typeof watch !== 'string') return undefined;
    limits.refusedInits.add(target.client, now);
    return watch;
  }

  joined(): void {}
  ended(): void {}
  endedWatch(): void {}
}
