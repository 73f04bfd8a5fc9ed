/** One WebSocket of this instance. It hides Bun's socket from the rest of the relay. */
import type { ServerWebSocket } from 'bun';
import type { Peer, Session, Watch } from './peer.ts';
import { closes, type CloseReason, type ErrorCode } from './wire/codes.ts';

/** Connects a socket to the instance that owns its session, or the watch that it announced itself to. */
export interface Tunnel {
  /** Forwards a data frame, whose length as received is `bytes`. */
  forward(frame: string, bytes: number): void;
  /** Forwards `done`. Resolves when the session has ended, to the error code if the relay can't know. */
  done(): Promise<ErrorCode | undefined>;
  /** Ends the session and closes both sides with the close code of the reason. */
  abort(why: 'session_data_limit' | 'slow_consumer'): void;
  /** The socket has closed. */
  end(): void;
}

/** A socket of this instance. Bun stores it as `ws.data`. */
export class Connection implements Peer {
  ws!: ServerWebSocket<Connection>;
  session: Session | undefined = undefined;
  watches: Set<Watch> | undefined = undefined;
  announced: Set<Watch> | undefined = undefined;
  /** The tunnel to the owner of its session, if that is another instance. */
  tunnel: Tunnel | undefined = undefined;
  /** All its tunnels, those of announcements included; undefined until the first. */
  tunnels: Set<Tunnel> | undefined = undefined;
  /** While Redis is asked: the socket's further frames. */
  queue: (string | Buffer)[] | undefined = undefined;
  queuedBytes = 0;
  /** Whether the relay has closed it. */
  isClosed = false;
  /** Whether its close has completed. Bun has ended its subscriptions; its frames may still be in the queue. */
  isGone = false;
  malformed = 0;
  frames = 0;
  framesSince = 0;
  idleSince = 0;

  /**
   * @param onBacklog Called for each frame that could not be sent at once, because the client reads too slowly.
   * @param server The listener that accepted it: a relay that renewed its certificate has several.
   */
  constructor(
    readonly client: string,
    private readonly onBacklog: (connection: Connection, frame: string) => void = () => {},
    private readonly server?: object,
  ) {}

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
    if (sent === -1) this.onBacklog(this, frame);
    return sent !== 0;
  }

  publish(topic: string, frame: string, to: Peer): boolean {
    // Bun's topics reach the open sockets of one listener: not one that has closed, nor that of another instance.
    const isReached = to instanceof Connection && to.server === this.server && !to.isGone;
    if (this.isGone || !isReached) return to.trySend(frame);
    const sent = this.ws.publishText(topic, frame);
    if (sent === -1) to.onBacklog(to, frame);
    return sent !== 0;
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
