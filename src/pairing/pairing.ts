/**
 * The rules of pairing by code: which code belongs to which two peers, and until when. Pure: it knows no socket, and
 * `now` is an argument, in milliseconds on any clock that only moves forward.
 */
import type { Peer, Session } from '../peer.ts';

/** How many times `sessionTtlMs` a pairing may last however busy it is. From the protocol: 5 minutes by default. */
const MAX_STAGES = 10;

interface PairingLimits {
  /** Milliseconds that a session may wait for its controller, and then for each further frame. */
  sessionTtlMs: number;
  maxSessions: number;
  /** Bytes that a session may carry, both directions together. */
  maxSessionBytes: number;
  /** Frames that a session may carry, both directions together. */
  maxSessionFrames: number;
}

export class Pairing {
  /** Sessions without a controller by code. All wait equally long, so the first to be over stands first. */
  readonly #waiting = new Map<string, Session>();
  readonly #paired = new Map<string, Session>();
  /** Paired sessions by the second in which they may be over, so that a sweep meets only those. */
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

  /** A controller joins a session, whose clock starts again. Returns the error code where it can't. */
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
    this.#file(session);
    controller.session = session;
    return undefined;
  }

  /** Counts a frame that a peer wants forwarded. Returns its session, or the error code. */
  carry(
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

  /** Forgets a session: its code is free, and neither peer holds anything of it. */
  end(session: Session): void {
    session.target.session = undefined;
    if (!session.controller) {
      this.#waiting.delete(session.otc);
      return;
    }
    session.controller.session = undefined;
    this.#paired.delete(session.otc);
    this.#unfile(session);
  }

  /** Whether a session's time is up, though the sweeper may not have met it yet. */
  isOver(session: Session, now: number): boolean {
    return now >= this.#endOf(session);
  }

  /** Every session whose time is up. The caller ends each before it takes the next. */
  *expired(now: number): Generator<Session, void, void> {
    for (const session of this.#waiting.values()) {
      if (!this.isOver(session, now)) break;
      yield session;
    }
    for (const [second, sessions] of this.#due) {
      if (second * 1000 > now) continue;
      for (const session of sessions) {
        if (this.isOver(session, now)) yield session;
        else if (Math.floor(this.#endOf(session) / 1000) !== second) {
          // Frames were forwarded since it was filed here, so its time was put off.
          this.#unfile(session);
          this.#file(session);
        }
      }
    }
  }

  /** When a session will be over if nothing more is forwarded. */
  #endOf(session: Session): number {
    return Math.min(session.activeAt + this.limits.sessionTtlMs, this.lastEndOf(session));
  }

  /** When a session will be over at the latest. */
  lastEndOf({ controller, pairedAt }: Session): number {
    return pairedAt + this.limits.sessionTtlMs * (controller ? MAX_STAGES : 1);
  }

  #file(session: Session): void {
    const second = Math.floor(this.#endOf(session) / 1000);
    session.dueSecond = second;
    const sessions = this.#due.get(second);
    if (sessions) sessions.add(session);
    else this.#due.set(second, new Set([session]));
  }

  #unfile(session: Session): void {
    const sessions = this.#due.get(session.dueSecond);
    sessions?.delete(session);
    if (sessions?.size === 0) this.#due.delete(session.dueSecond);
  }
}
