/** What happens to a session, as both sides see it. The rules decide (`pairing.ts`); this carries it out and says so. */
import type { Answers } from '../answers.ts';
import type { Arbiter } from '../arbiter.ts';
import type { Clock, Connection } from '../connection.ts';
import type { Pairing, Session } from './pairing.ts';
import { type CloseReason, type ErrorCode, frames } from '../wire/frames.ts';
import type { Roster } from '../admission/connections.ts';
import type { Stats } from '../observe/stats.ts';

const DATA_ENVELOPE_BYTES = frames.data('').length;

interface Parts {
  pairing: Pairing<Connection>;
  answers: Answers;
  roster: Roster;
  stats: Stats;
}

export class Sessions {
  /** Who is told of what happens. Set before the first socket opens. */
  arbiter!: Arbiter;
  readonly #pairing: Pairing<Connection>;
  readonly #answers: Answers;
  readonly #roster: Roster;
  readonly #stats: Stats;
  readonly #now: Clock;

  constructor({ pairing, answers, roster, stats }: Parts, now: Clock) {
    this.#pairing = pairing;
    this.#answers = answers;
    this.#roster = roster;
    this.#stats = stats;
    this.#now = now;
  }

  /** Opens a session and says so. @returns It, or why not; then nothing was said. */
  open(target: Connection, otc: string, now: number): ReturnType<Pairing<Connection>['open']> {
    const session = this.#pairing.open(target, otc, now);
    if (typeof session === 'string') return session;
    this.#stats.opened += 1;
    this.#roster.occupy(target);
    target.ws.subscribe(otc);
    this.#answers.send(target, frames.ack);
    return session;
  }

  /** Joins a session and tells both sides. @returns It, or why not; then nothing was said. */
  join(controller: Connection, otc: string, now: number): ReturnType<Pairing<Connection>['join']> {
    this.evictStale(otc, now);
    const session = this.#pairing.join(controller, otc, now);
    if (typeof session === 'string') return session;
    this.#stats.begun += 1;
    this.#stats.onBegun?.(now - session.openedAt);
    this.#roster.occupy(controller);
    controller.ws.subscribe(otc);
    this.arbiter.joined(session);
    if (this.#answers.send(controller, frames.peerFound)) {
      this.#answers.send(session.target, frames.peerFound);
    }
    return session;
  }

  /**
   * Carries a frame to the other side, or ends the session where it can't be carried.
   * @param received Bytes of the frame as it came, which is what a session is charged: junk around a payload costs too.
   * @returns Why not, where there is nobody to carry it to.
   */
  forward(
    sender: Connection,
    frame: string,
    received: number,
  ): 'no_session' | 'peer_not_connected' | undefined {
    const bytes = Math.max(0, received - DATA_ENVELOPE_BYTES);
    const session = this.#pairing.carry(sender, bytes);
    if (session === 'session_data_limit') return this.#spent(sender);
    if (typeof session === 'string') return session;
    if (sender.ws.publishText(session.otc, frame) === 0) {
      this.end(session, 'abandoned');
      this.closePair(session, 'slow_consumer');
      return undefined;
    }
    this.#stats.framesForwarded += 1;
    this.#stats.bytesForwarded += bytes;
    return undefined;
  }

  /** A session has carried all that it may. */
  #spent(sender: Connection): undefined {
    const session = sender.session as Session<Connection>;
    this.end(session, 'abandoned');
    this.#answers.refuse(sender, 'session_data_limit');
    this.closePair(session, 'session_data_limit');
  }

  /** @returns Why not. */
  done(sender: Connection): 'no_session' | undefined {
    if (!sender.session) return 'no_session';
    this.#leave(sender, sender.session, frames.done);
    return undefined;
  }

  /** One side is through. The other hears it behind all that was sent before, and the session is forgotten. */
  #leave(leaver: Connection, session: Session<Connection>, farewell: string): void {
    const isHeard = !session.controller || leaver.ws.publishText(session.otc, farewell) !== 0;
    this.end(session);
    if (!isHeard) this.closePair(session, 'slow_consumer');
  }

  /** A peer has gone; `why` is what the other side is told. */
  letGo(connection: Connection, why: ErrorCode): void {
    const { session } = connection;
    if (session) this.#leave(connection, session, frames.error(why));
  }

  end(session: Session<Connection>, outcome?: 'expired' | 'abandoned'): void {
    this.#pairing.end(session);
    this.#stats[outcome ?? (session.bytes > 0 ? 'completed' : 'abandoned')] += 1;
    if (session.controller) this.#stats.onEnded?.(this.#now() - session.stageAt);
    for (const peer of [session.target, session.controller]) {
      if (!peer) continue;
      peer.ws.unsubscribe(session.otc);
      this.#roster.settle(peer, this.#now());
    }
    this.arbiter.ended(session);
  }

  closePair(session: Session<Connection>, why: CloseReason): void {
    this.#answers.close(session.target, why);
    if (session.controller) this.#answers.close(session.controller, why);
  }

  expire(session: Session<Connection>): void {
    this.end(session, 'expired');
    for (const peer of [session.target, session.controller]) {
      if (peer) this.#answers.refuse(peer, 'otc_expired');
    }
    this.closePair(session, 'session_expired');
  }

  /** Between two sweeps, too, an end is exact. */
  evictStale(otc: string, now: number): void {
    const stale = this.#pairing.stale(otc, now);
    if (stale) this.expire(stale);
  }
}
