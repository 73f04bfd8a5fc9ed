/**
 * The types of a client, a session and a watch. Data only: the rules are in `pairing/pairing.ts` and
 * `bootstrap/bootstrap.ts`.
 */
import type { CloseReason } from './wire/codes.ts';

/** One client: a socket of this instance, or a socket of another instance that uses a session or watch of this one. */
export interface Peer {
  /** The key that limits count it by: an IPv4 address, or the /64 of an IPv6 address. */
  readonly client: string;
  session: Session | undefined;
  /** The watches that it holds; undefined until the first. */
  watches: Set<Watch> | undefined;
  /** Watches that it announced itself to and that have not answered; undefined until the first. */
  announced: Set<Watch> | undefined;
  /** Whether it holds a session, a watch or an unanswered announcement. */
  readonly isBusy: boolean;
  /** When it last became idle. */
  idleSince: number;
  /** Sends a frame. If the peer does not read, closes it and returns false. */
  send(frame: string): boolean;
  /** Sends a frame. Returns false if the peer does not read. */
  trySend(frame: string): boolean;
  /** Sends a frame to the other peer, over the topic if both are on it. Returns false if that peer does not read. */
  publish(topic: string, frame: string, to: Peer): boolean;
  subscribe(topic: string): void;
  unsubscribe(topic: string): void;
  close(reason: CloseReason): void;
}

/** A code that a target waits on, and the controller once it has joined. */
export interface Session {
  readonly otc: string;
  readonly target: Peer;
  controller: Peer | undefined;
  readonly openedAt: number;
  /** When the controller joined; `openedAt` before that. */
  pairedAt: number;
  /** When the last frame was forwarded; `pairedAt` before that. */
  activeAt: number;
  /** Bytes forwarded, both directions together. */
  bytes: number;
  /** Frames forwarded, both directions together. */
  frames: number;
  /** Whether the target, and the controller, has sent a frame. */
  targetSent: boolean;
  controllerSent: boolean;
  /** Called once when the session has ended. */
  onEnd: (() => void) | undefined;
}

/** A token id that a controller watches, and the target once it has announced itself. */
export interface Watch {
  readonly jti: string;
  readonly watcher: Peer;
  target: Peer | undefined;
  /** When the watch began or was renewed. */
  since: number;
  /** Called once when the watch has ended. */
  onEnd: (() => void) | undefined;
}
