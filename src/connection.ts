/** One WebSocket of this instance, as everything behind Bun's handlers sees it. */
import type { Peer, Session, Watch } from './peer.ts';
import { closes, type CloseReason } from './wire/codes.ts';

/** What the relay uses of Bun's socket. */
export interface Socket {
  sendText(frame: string): number;
  publishText(topic: string, frame: string): number;
  subscribe(topic: string): unknown;
  unsubscribe(topic: string): unknown;
  close(code?: number, reason?: string): void;
  terminate(): void;
  getBufferedAmount(): number;
}

/** A socket's way to the instance that owns its session, or the watch that it announced itself to. */
export interface Tunnel {
  /** Passes a data frame on, which came as so many bytes. */
  forward(frame: string, bytes: number): void;
  /** Says that this side is through. Resolves when the session has ended. */
  done(): Promise<undefined>;
  /** Ends the session for both sides, with the close code that says why. */
  abort(why: 'session_data_limit'): void;
}

/** Bun carries it as `ws.data`. */
export class Connection implements Peer {
  ws!: Socket;
  session: Session | undefined = undefined;
  watches: Set<Watch> | undefined = undefined;
  announced: Set<Watch> | undefined = undefined;
  /** To the owner of its session, where that is another instance. */
  tunnel: Tunnel | undefined = undefined;
  /** Every way to another instance, those of announcements included; absent until the first. */
  tunnels: Set<Tunnel> | undefined = undefined;
  /** Frames that wait while Redis is asked; `undefined` among them stands for the close. */
  queue: (string | Buffer | undefined)[] | undefined = undefined;
  queuedBytes = 0;
  /** The relay has closed it. */
  isClosed = false;
  /** It is closed. Bun has ended its subscriptions, and frames of it may still wait in the queue. */
  isGone = false;
  malformed = 0;
  frames = 0;
  framesSince = 0;
  idleSince = 0;

  /**
   * @param onBacklog Told of each frame that waits, because the client does not read fast enough.
   * @param server The one that it came in by: a relay that renewed its certificate has several.
   */
  constructor(
    readonly client: string,
    private readonly onBacklog: (connection: Connection, frame: string) => void = () => {},
    private readonly server?: object,
  ) {}

  get isLocal(): boolean {
    return !this.isGone;
  }

  get isBusy(): boolean {
    return (
      this.session !== undefined ||
      Boolean(this.watches?.size || this.announced?.size || this.tunnels?.size)
    );
  }

  send(frame: string): boolean {
    if (this.trySend(frame)) return true;
    this.close('slow_consumer');
    return false;
  }

  trySend(frame: string): boolean {
    if (this.isGone) return true;
    const sent = this.ws.sendText(frame);
    if (sent === -1) this.noteBacklog(frame);
    return sent !== 0;
  }

  publish(topic: string, frame: string, to: Peer): boolean {
    // Bun's topics do not reach the sockets of another server.
    if (to instanceof Connection && to.server !== this.server) return to.trySend(frame);
    const sent = this.ws.publishText(topic, frame);
    if (sent === -1) to.noteBacklog(frame);
    return sent !== 0;
  }

  noteBacklog(frame: string): void {
    this.onBacklog(this, frame);
  }

  subscribe(topic: string): void {
    if (!this.isGone) this.ws.subscribe(topic);
  }

  unsubscribe(topic: string): void {
    if (!this.isGone) this.ws.unsubscribe(topic);
  }

  close(reason: CloseReason): void {
    this.isClosed = true;
    this.ws.close(closes[reason].code, reason);
  }
}

/** Milliseconds on a clock that only moves forward. */
export type Clock = () => number;
