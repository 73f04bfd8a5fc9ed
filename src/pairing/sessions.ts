/** Carries out what the rules of pairing decide, and tells both sides. */
import type { Connections } from '../admission/connections.ts';
import type { Limits } from '../admission/limits.ts';
import type { Answers } from '../answers.ts';
import type { Outcome, Stats } from '../observe/stats.ts';
import type { Peer, Session } from '../peer.ts';
import type { CloseReason, ErrorCode } from '../wire/codes.ts';
import { frames } from '../wire/frames.ts';
import type { Pairing } from './pairing.ts';

const DATA_ENVELOPE_BYTES = frames.data('').length;

/** The payload bytes of a data frame: all of it but the shortest envelope, so that junk around a payload costs too. */
export const payloadBytes = (frameBytes: number): number =>
  Math.max(0, frameBytes - DATA_ENVELOPE_BYTES);

/** Whoever tries a burned code is not told that somebody uses it. */
export const hideBurned = (code: ErrorCode, isBurned: boolean): ErrorCode =>
  isBurned && code === 'peer_already_connected' ? 'otc_not_found' : code;

export class Sessions {
  constructor(
    private readonly pairing: Pairing,
    private readonly limits: Limits,
    private readonly connections: Connections,
    private readonly answers: Answers,
    private readonly stats: Stats,
  ) {}

  // What a peer asks of an instance on its own. Each returns the error code where the answer is no.

  listen(target: Peer, otc: string, now: number): ErrorCode | undefined {
    const { failedCodes, failedPerCode, listens } = this.limits;
    if (target.session) return 'already_in_session';
    if (this.connections.draining) return 'relay_draining';
    if (failedCodes.isSpent(target.client, now) || listens.isSpent(target.client, now)) {
      return 'rate_limited';
    }
    const isFree = !this.find(otc, now) && !failedPerCode.isSpent(otc, now);
    if (!isFree) return this.#failed(target, otc, 'otc_in_use', now);
    // Either answer tells that nobody else has the code.
    listens.add(target.client, now);
    const session = this.open(target, otc, now);
    return typeof session === 'string' ? session : undefined;
  }

  connect(controller: Peer, otc: string, now: number): ErrorCode | undefined {
    if (controller.session) return 'already_in_session';
    if (this.limits.failedCodes.isSpent(controller.client, now)) return 'rate_limited';
    const session = this.find(otc, now);
    if (!session) return this.#failed(controller, otc, 'otc_not_found', now);
    const refusal = this.join(controller, session, now);
    return refusal && this.#failed(controller, otc, refusal, now);
  }

  /** A failed attempt counts against the client, and against the code until that is burned. */
  #failed({ client }: Peer, otc: string, code: ErrorCode, now: number): ErrorCode {
    const { failedCodes, failedPerCode } = this.limits;
    failedCodes.add(client, now);
    const isBurned = failedPerCode.isSpent(otc, now);
    if (!isBurned) failedPerCode.add(otc, now);
    return hideBurned(code, isBurned);
  }

  // The steps behind it, for whoever has checked the limits.

  /** The session on a code. One whose time is up is ended first, so that expiry is exact between two sweeps too. */
  find(otc: string, now: number): Session | undefined {
    const session = this.pairing.find(otc);
    if (!session || !this.pairing.isOver(session, now)) return session;
    this.expire(session, now);
    return undefined;
  }

  /** Opens a session and says so to the target. */
  open(target: Peer, otc: string, now: number): ReturnType<Pairing['open']> {
    const session = this.pairing.open(target, otc, now);
    if (typeof session === 'string') return session;
    this.stats.opened += 1;
    this.connections.settle(target, now);
    target.subscribe(otc);
    target.send(frames.ack);
    return session;
  }

  /** Joins a controller to a session and tells both, the target first, as the deployed relay does. */
  join(controller: Peer, session: Session, now: number): ReturnType<Pairing['join']> {
    const refusal = this.pairing.join(controller, session, now);
    if (refusal) return refusal;
    this.stats.begun += 1;
    for (const tell of this.stats.onBegun) tell(now - session.openedAt);
    this.connections.settle(controller, now);
    controller.subscribe(session.otc);
    // A target that does not read is closed on the spot, which ends the session and tells the controller so.
    if (session.target.send(frames.peerFound)) controller.send(frames.peerFound);
    return undefined;
  }

  /**
   * Carries a data frame to the other side, or ends the session where that can't be.
   * @param bytes Of the frame as it came.
   * @returns The error code where there is nobody to carry it to.
   */
  forward(
    sender: Peer,
    frame: string,
    bytes: number,
    now: number,
  ): 'no_session' | 'peer_not_connected' | undefined {
    const payload = payloadBytes(bytes);
    const session = this.pairing.carry(sender, payload, now);
    if (session === 'session_data_limit') return this.overLimit(sender, now);
    if (typeof session === 'string') return session;
    if (!this.#tellOther(sender, session, frame)) return this.abort(session, 'slow_consumer', now);
    this.stats.framesForwarded += 1;
    this.stats.bytesForwarded += payload;
    return undefined;
  }

  /** A peer sent more than it may: both sides are closed, and the sender is told why first. */
  overLimit(sender: Peer, now: number): undefined {
    const { session } = sender;
    if (!session) return;
    this.end(session, 'abandoned', now);
    this.answers.refuse(sender, 'session_data_limit');
    this.#closeBoth(session, 'session_data_limit');
  }

  /** One side said that it is through. */
  done(sender: Peer, now: number): 'no_session' | undefined {
    const { session } = sender;
    if (!session) return 'no_session';
    this.#leave(sender, session, frames.done, session.controller ? 'completed' : 'abandoned', now);
    return undefined;
  }

  /** A peer has gone. `why` is what the other side is told. */
  leave(peer: Peer, why: ErrorCode, now: number): void {
    const { session } = peer;
    if (!session) return;
    const isComplete = session.targetSent && session.controllerSent;
    this.#leave(peer, session, frames.error(why), isComplete ? 'completed' : 'abandoned', now);
  }

  /** The other side hears the last frame behind everything that was sent before it, and the session is forgotten. */
  #leave(
    leaver: Peer,
    session: Session,
    lastFrame: string,
    outcome: 'completed' | 'abandoned',
    now: number,
  ): void {
    const isHeard = !session.controller || this.#tellOther(leaver, session, lastFrame);
    this.end(session, outcome, now);
    if (!isHeard) this.#closeBoth(session, 'slow_consumer');
  }

  /** Bun's topic reaches the other side where both are sockets of this instance. */
  #tellOther(sender: Peer, session: Session, frame: string): boolean {
    const other = sender === session.target ? session.controller : session.target;
    if (!other) return true;
    return sender.isLocal && other.isLocal
      ? sender.publish(session.otc, frame, other)
      : other.trySend(frame);
  }

  /** Ends a session that can't go on, and closes both sides. */
  abort(session: Session, why: CloseReason, now: number): undefined {
    this.end(session, 'abandoned', now);
    this.#closeBoth(session, why);
  }

  /** Ends a session and tells both sides why; their sockets stay open. */
  lose(session: Session, why: ErrorCode, now: number): void {
    this.end(session, 'abandoned', now);
    this.#refuseBoth(session, why);
  }

  expire(session: Session, now: number): void {
    this.end(session, 'expired', now);
    this.#refuseBoth(session, 'otc_expired');
    this.#closeBoth(session, 'session_expired');
  }

  end(session: Session, outcome: Outcome, now: number): void {
    this.pairing.end(session);
    this.stats[outcome] += 1;
    if (session.controller) {
      for (const tell of this.stats.onEnded) tell(now - session.pairedAt, outcome);
    }
    for (const peer of [session.target, session.controller]) {
      if (!peer) continue;
      peer.unsubscribe(session.otc);
      this.connections.settle(peer, now);
    }
    session.onEnd?.();
  }

  #refuseBoth({ target, controller }: Session, why: ErrorCode): void {
    this.answers.refuse(target, why);
    if (controller) this.answers.refuse(controller, why);
  }

  #closeBoth({ target, controller }: Session, why: CloseReason): void {
    target.close(why);
    controller?.close(why);
  }
}
