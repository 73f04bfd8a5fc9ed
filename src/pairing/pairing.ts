/**
 * The rules of pairing by code: which code belongs to which two peers, and until when. Pure: it uses no socket, and
 * `now` is an argument, in milliseconds on any clock that only moves forward.
 */
import type { Config } from '../config.ts';
import type { Peer, Session } from '../peer.ts';
import type { ErrorCode } from '../wire/codes.ts';

/** A busy pairing may last this many times `sessionTtlMs`. From the protocol: 5 minutes by default. */
const MAX_STAGES = 10;

type PairingLimits = Pick<
  Config,
  'sessionTtlMs' | 'maxSessions' | 'maxSessionBytes' | 'maxSessionFrames'
>;

export class Pairing {
  /** Sessions without a controller, by code. All wait equally long, so the first one expires first. */
  readonly #waiting = new Map<string, Session>();
  readonly #paired = new Map<string, Session>();

  constructor(private readonly limits: PairingLimits) {}

  get waiting(): number {
    return this.#waiting.size;
  }

  get paired(): number {
    return this.#paired.size;
  }

  get size(): number {
    return this.#waiting.size + this.#paired.size;
  }

  /** A target opens a session on a code and waits. Returns the session, or the error code. */
  open(target: Peer, otc: string, now: number): Session | ErrorCode {
    if (target.session) return 'already_in_session';
    if (this.find(otc)) return 'otc_in_use';
    if (this.size >= this.limits.maxSessions) return 'relay_capacity';
    const session: Session = {
      otc,
      target,
      controller: undefined,
      openedAt: now,
      pairedAt: now,
      activeAt: now,
      bytes: 0,
      frames: 0,
      targetSent: false,
      controllerSent: false,
      onEnd: undefined,
    };
    this.#waiting.set(otc, session);
    target.session = session;
    return session;
  }

  /** The session on a code, waiting or paired. */
  find(otc: string): Session | undefined {
    return this.#waiting.get(otc) ?? this.#paired.get(otc);
  }

  /** A controller joins a session, and the session's time starts again. Returns the error code if it cannot join. */
  join(controller: Peer, session: Session, now: number): ErrorCode | undefined {
    if (controller.session) return 'already_in_session';
    if (session.controller) return 'peer_already_connected';
    session.controller = controller;
    session.pairedAt = now;
    session.activeAt = now;
    this.#waiting.delete(session.otc);
    this.#paired.set(session.otc, session);
    controller.session = session;
    return undefined;
  }

  /** Counts a frame that a peer wants to forward. Returns the peer's session, or the error code. */
  countFrame(sender: Peer, bytes: number, now: number): Session | ErrorCode {
    const { session } = sender;
    if (!session) return 'no_session';
    if (!session.controller) return 'peer_not_connected';
    const { maxSessionBytes, maxSessionFrames } = this.limits;
    if (session.bytes + bytes > maxSessionBytes || session.frames >= maxSessionFrames) {
      return 'session_data_limit';
    }
    session.bytes += bytes;
    session.frames += 1;
    session.activeAt = now;
    if (sender === session.target) session.targetSent = true;
    else session.controllerSent = true;
    return session;
  }

  /** Removes a session: its code is free again, and its peers no longer refer to it. */
  end(session: Session, now: number): void {
    (session.controller ? this.#paired : this.#waiting).delete(session.otc);
    for (const peer of [session.target, session.controller]) {
      if (!peer) continue;
      peer.session = undefined;
      peer.idleSince = now;
    }
  }

  /** Whether a session has expired, even if the sweeper has not ended it yet. */
  isOver(session: Session, now: number): boolean {
    const isQuiet = now - session.activeAt >= this.limits.sessionTtlMs;
    return isQuiet || now >= this.lastEndOf(session);
  }

  /**
   * All expired sessions. The caller ends each one before it takes the next. Each paired session is looked at, since
   * its time starts again with each frame.
   */
  *expired(now: number): Generator<Session, void, void> {
    for (const session of this.#waiting.values()) {
      if (!this.isOver(session, now)) break;
      yield session;
    }
    for (const session of this.#paired.values()) if (this.isOver(session, now)) yield session;
  }

  /** When a session expires even if frames are forwarded. */
  lastEndOf({ controller, pairedAt }: Session): number {
    return pairedAt + this.limits.sessionTtlMs * (controller ? MAX_STAGES : 1);
  }
}
