/**
 * A client as the rules see it, and the two things that it can hold: a session and a watch. Data only: the rules for
 * them are in `pairing/pairing.ts` and `bootstrap/bootstrap.ts`.
 */
import type { CloseReason } from './wire/codes.ts';

/** One client: a socket of this instance, or a socket of another instance that has business here. */
export interface Peer {
  /** Whom limits count it for: an IPv4 address, or the /64 of an IPv6 address. */
  readonly client: string;
  /** Whether it is a socket of this instance, so that Bun's topics reach it. */
  readonly isLocal: boolean;
  session: Session | undefined;
  /** What it watches; absent until the first. */
  watches: Set<Watch> | undefined;
  /** Watches that it announced itself to and that owe it an answer; absent until the first. */
  announced: Set<Watch> | undefined;
  /** Whether it holds a session, a watch or an unanswered announcement. */
  readonly isBusy: boolean;
  /** When it last began to hold nothing. */
  idleSince: number;
  /** Sends a frame. Closes the peer, and returns false, where it does not read. */
  send(frame: string): boolean;
  /** Sends a frame. Returns false where the peer does not read. */
  trySend(frame: string): boolean;
  /** Sends a frame to the one other peer on a topic. Returns false where that one does not read. */
  publish(topic: string, frame: string, to: Peer): boolean;
  /** A frame to it could not be sent at once, and waits. */
  noteBacklog(frame: string): void;
  subscribe(topic: string): void;
  unsubscribe(topic: string): void;
  close(reason: CloseReason): void;
}

/** A code that a target waits on, and the controller that came, once it came. */
export interface Session {
  readonly otc: string;
  readonly target: Peer;
  controller: Peer | undefined;
  readonly openedAt: number;
  /** When the controller came; `openedAt` before that. */
  pairedAt: number;
  /** When the last frame was forwarded; `pairedAt` before that. */
  activeAt: number;
  /** The second in which the sweeper looks at it next, once it is paired. */
  dueSecond: number;
  /** Bytes forwarded, both directions together. */
  bytes: number;
  /** Frames forwarded, both directions together. */
  frames: number;
  /** Whether a frame went each way. */
  targetSent: boolean;
  controllerSent: boolean;
  /** Called once when the session has ended. */
  onEnd: (() => void) | undefined;
}

/** A token id that a controller watches, and the target that announced itself with it, once it did. */
export interface Watch {
  readonly jti: string;
  readonly watcher: Peer;
  target: Peer | undefined;
  /** When the watch began or was renewed. */
  since: number;
  /** Called once when the watch has ended. */
  onEnd: (() => void) | undefined;
}
