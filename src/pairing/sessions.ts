/** Applies the rules of pairing, and sends the results to both peers. */
import type { Outcome } from '../observe/stats.ts';
import type { Peer, Session } from '../peer.ts';
import type { State } from '../state.ts';
import type { CloseReason, ErrorCode } from '../wire/codes.ts';
import { frames } from '../wire/frames.ts';

const DATA_ENVELOPE_BYTES = frames.data('').length;

/** The bytes that a data frame counts for: its length without the shortest envelope, so extra fields count as well. */
export const payloadBytes = (frameBytes: number): number =>
  Math.max(0, frameBytes - DATA_ENVELOPE_BYTES);

/** Hides from a client that tries a burned code that somebody uses it. */
export const hideBurned = (code: ErrorCode, isBurned: boolean): ErrorCode =>
  isBurned && code === 'peer_already_connected' ? 'otc_not_found' : code;

export class Sessions {
  constructor(private readonly state: State) {}

  // Requests of a peer on a relay of one instance. Each returns the error code if refused, otherwise undefined.

  listen(target: Peer, otc: string, now: number): ErrorCode | undefined {
    const { failedCodes, failedPerCode, listens } = this.state.limits;
    if (target.session) return 'already_in_session';
    if (this.state.connections.draining) return 'relay_draining';
    if (failedCodes.isSpent(target.client, now) || listens.isSpent(target.client, now)) {
      return 'rate_limited';
    }
    const isFree = !this.find(otc, now) && !failedPerCode.isSpent(otc, now);
    if (!isFree) return this.#failed(target, otc, 'otc_in_use', now);
    // Counted even if `open` then refuses, since both answers show that nobody else uses the code.
    listens.add(target.client, now);
    const session = this.open(target, otc, now);
    return typeof session === 'string' ? session : undefined;
  }

  connect(controller: Peer, otc: string, now: number): ErrorCode | undefined {
    if (controller.session) return 'already_in_session';
    if (this.state.limits.failedCodes.isSpent(controller.client, now)) return 'rate_limited';
    const session = this.find(otc, now);
    if (!session) return this.#failed(controller, otc, 'otc_not_found', now);
    const refusal = this.join(controller, session, now);
    return refusal && this.#failed(controller, otc, refusal, now);
  }

  /** Counts a failed attempt against the client, and against the code until it is burned. Returns the error code. */
  #failed({ client }: Peer, otc: string, code: ErrorCode, now: number): ErrorCode {
    const { failedCodes, failedPerCode } = this.state.limits;
    failedCodes.add(client, now);
    const isBurned = failedPerCode.isSpent(otc, now);
    if (!isBurned) failedPerCode.add(otc, now);
    return hideBurned(code, isBurned);
  }

  // The same steps without the limits: the cluster calls them too, after its own checks.

  /** The session on a code. An expired one is ended first, so that expiry is exact between two sweeps too. */
  find(otc: string, now: number): Session | undefined {
    const session = this.state.pairing.find(otc);
    if (!session || !this.state.pairing.isOver(session, now)) return session;
    this.expire(session, now);
    return undefined;
  }

  /** Opens a session and acknowledges it to the target. Returns the session, or the error code. */
  open(target: Peer, otc: string, now: number): Session | ErrorCode {
    const session = this.state.pairing.open(target, otc, now);
    if (typeof session === 'string') return session;
    this.state.stats.opened += 1;
    target.subscribe(otc);
    target.send(frames.ack);
    return session;
  }

  /** Joins a controller to a session. Tells both peers, the target first, as the deployed relay does. */
  join(controller: Peer, session: Session, now: number): ErrorCode | undefined {
    const refusal = this.state.pairing.join(controller, session, now);
    if (refusal) return refusal;
    this.state.stats.begun += 1;
    for (const tell of this.state.stats.onBegun) tell(now - session.openedAt);
    controller.subscribe(session.otc);
    // If the target does not read, `send` closes it at once. That ends the session and tells the controller.
    if (session.target.send(frames.peerFound)) controller.send(frames.peerFound);
    return undefined;
  }

  /**
   * Forwards a data frame to the other peer, or ends the session if a limit is reached or that peer does not read.
   * @param bytes The length of the frame as received.
   * @returns The error code if there is no other peer.
   */
  forward(sender: Peer, frame: string, bytes: number, now: number): ErrorCode | undefined {
    const payload = payloadBytes(bytes);
    const session = this.state.pairing.countFrame(sender, payload, now);
    if (session === 'session_data_limit') return this.overLimit(sender, now);
    if (typeof session === 'string') return session;
    if (!this.#sendToOther(sender, session, frame)) return this.abort(session, now);
    this.state.stats.framesForwarded += 1;
    this.state.stats.bytesForwarded += payload;
    return undefined;
  }

  /** A peer sent more than it may: the sender gets the error code, then both peers are closed. */
  overLimit(sender: Peer, now: number): undefined {
    const { session } = sender;
    if (!session) return;
    this.end(session, 'abandoned', now);
    this.state.answers.refuse(sender, 'session_data_limit');
    this.#closeBoth(session, 'session_data_limit');
  }

  /** A peer sent `done`: the other peer gets it too, and the session ends. Returns the error code if there is none. */
  done(sender: Peer, now: number): 'no_session' | undefined {
    const { session } = sender;
    if (!session) return 'no_session';
    const outcome = session.controller ? 'completed' : 'abandoned';
    this.#endWith(sender, session, frames.done, outcome, now);
    return undefined;
  }

  /** A peer has disconnected. `why` is the error code that the other peer gets. */
  leave(peer: Peer, why: ErrorCode, now: number): void {
    const { session } = peer;
    if (!session) return;
    const outcome = session.targetSent && session.controllerSent ? 'completed' : 'abandoned';
    this.#endWith(peer, session, frames.error(why), outcome, now);
  }

  /** Ends a session with a last frame to the other peer, which arrives after everything that was sent before. */
  #endWith(sender: Peer, session: Session, frame: string, outcome: Outcome, now: number): void {
    const isSent = this.#sendToOther(sender, session, frame);
    this.end(session, outcome, now);
    if (!isSent) this.#closeBoth(session, 'slow_consumer');
  }

  /** Sends to the other peer, if there is one. Returns false if that peer does not read. */
  #sendToOther(sender: Peer, session: Session, frame: string): boolean {
    const other = sender === session.target ? session.controller : session.target;
    return !other || sender.publish(session.otc, frame, other);
  }

  /** Ends a session of which one peer does not read, and closes both. */
  abort(session: Session, now: number): undefined {
    this.end(session, 'abandoned', now);
    this.#closeBoth(session, 'slow_consumer');
  }

  /** Ends a session and tells both peers why; their sockets stay open. */
  lose(session: Session, why: ErrorCode, now: number, outcome: Outcome = 'abandoned'): void {
    const { answers } = this.state;
    this.end(session, outcome, now);
    answers.refuse(session.target, why);
    if (session.controller) answers.refuse(session.controller, why);
  }

  expire(session: Session, now: number): void {
    this.lose(session, 'otc_expired', now, 'expired');
    this.#closeBoth(session, 'session_expired');
  }

  end(session: Session, outcome: Outcome, now: number): void {
    this.state.pairing.end(session, now);
    this.state.stats.ended[outcome] += 1;
    if (session.controller) {
      for (const tell of this.state.stats.onEnded) tell(now - session.pairedAt, outcome);
    }
    session.target.unsubscribe(session.otc);
    session.controller?.unsubscribe(session.otc);
    session.onEnd?.();
  }

  #closeBoth({ target, controller }: Session, why: CloseReason): void {
    target.close(why);
    controller?.close(why);
  }
}
