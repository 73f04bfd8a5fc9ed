/**
 * The rules of pairing by code: which code belongs to which two peers, and until when. Pure: it uses no socket, and
 * `now` is an argument, in milliseconds on any clock that only moves forward.
 */
import type { Peer, Session } from '../peer.ts';

/** A busy pairing may last this many times `sessionTtlMs`. From the protocol: 5 minutes by default. */
const MAX_STAGES = 10;

interface PairingLimits {
  /** Milliseconds that a session waits for its controller, and later for each further frame. */
  sessionTtlMs: number;
  maxSessions: number;
  /** Payload bytes that a session may forward, both directions together. */
  maxSessionBytes: number;
  /** Frames that a session may forward, both directions together. */
  maxSessionFrames: number;
}

export class Pairing {
  /** Sessions without a controller, by code. All wait equally long, so the first one expires first. */
  readonly #waiting = new Map<string, Session>();
  readonly #paired = new Map<string, Session>();
  /** Paired sessions by the second in which they may expire, so that a sweep looks only at those that are due. */
  readonly #due = new Map<number, Set<Session>>();

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
  open(
    target: Peer,
    otc: string,
    now: number,
  ): Session | 'already_in_session' | 'otc_in_use' | 'relay_capacity' {
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
      dueSecond: 0,
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
  join(
    controller: Peer,
    session: Session,
    now: number,
  ): 'already_in_session' | 'peer_already_connected' | undefined {
    if (controller.session) return 'already_in_session';
    if (session.controller) return 'peer_already_connected';
    session.controller = controller;
    session.pairedAt = now;
    session.activeAt = now;
    this.#waiting.delete(session.otc);
    this.#paired.set(session.otc, session);
    this.#schedule(session);
    controller.session = session;
    return undefined;
  }

  /** Counts a frame that a peer wants to forward. Returns the peer's session, or the error code. */
  countFrame(
    sender: Peer,
    bytes: number,
    now: number,
  ): Session | 'no_session' | 'peer_not_connected' | 'session_data_limit' {
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
  end(session: Session): void {
    session.target.session = undefined;
    if (!session.controller) {
      this.#waiting.delete(session.otc);
      return;
    }
    session.controller.session = undefined;
    this.#paired.delete(session.otc);
    this.#unschedule(session);
  }

  /** Whether a session has expired, even if the sweeper has not ended it yet. */
  isOver(session: Session, now: number): boolean {
    return now >= this.#expiryOf(session);
  }

  /** All expired sessions. The caller ends each one before it takes the next. */
  *expired(now: number): Generator<Session, void, void> {
    for (const session of this.#waiting.values()) {
      if (!this.isOver(session, now)) break;
      yield session;
    }
    for (const [second, sessions] of this.#due) {
      if (second * 1000 > now) continue;
      for (const session of sessions) {
        if (this.isOver(session, now)) yield session;
        else if (Math.floor(this.#expiryOf(session) / 1000) !== second) {
          // Frames were forwarded in the meantime, so the session expires later.
          this.#unschedule(session);
          this.#schedule(session);
        }
      }
    }
  }

  /** When a session expires if no more frames are forwarded. */
  #expiryOf(session: Session): number {
    return Math.min(session.activeAt + this.limits.sessionTtlMs, this.lastEndOf(session));
  }

  /** When a session expires even if frames are forwarded. */
  lastEndOf({ controller, pairedAt }: Session): number {
    return pairedAt + this.limits.sessionTtlMs * (controller ? MAX_STAGES : 1);
  }

  #schedule(session: Session): void {
    const second = Math.floor(this.#expiryOf(session) / 1000);
    session.dueSecond = second;
    const sessions = this.#due.get(second);
    if (sessions) sessions.add(session);
    else this.#due.set(second, new Set([session]));
  }

  #unschedule(session: Session): void {
    const sessions = this.#due.get(session.dueSecond);
    sessions?.delete(session);
    if (sessions?.size === 0) this.#due.delete(session.dueSecond);
  }
}
