/** What a socket is to the other instances: its pipes, if it is ours; its link, if it is theirs. */
import type { Connection, Wire } from '../connection.ts';
import type { Peer } from './post.ts';

/** A socket's way to the owner of its session, or of the watch that it announced itself to. */
export interface Pipe {
  readonly connection: Connection;
  readonly peer: Peer;
  readonly number: number;
  /** The token id that was announced; none for a session. */
  readonly jti: string | undefined;
  /** The beat at which the owner was asked something that it has not answered. */
  askedAt: number | undefined;
  /** Frames sent; the owner says how many of them it has heard. */
  sent: number;
  /** Frames that were sent before the end was known here, and that the owner has not heard any more. */
  late: number;
  isOver: boolean;
  /** Comes to why not, where the owner refuses. */
  readonly opened: PromiseWithResolvers<string | undefined>;
  readonly over: PromiseWithResolvers<void>;
  send(frame: string): void;
}

/** What the cluster keeps of one socket. */
export class Remote {
  /** Frames that wait behind a question to Redis; `undefined` stands for the close. */
  queue: ({ frame: string | Buffer; cost: number } | undefined)[] | undefined;
  queuedBytes = 0;
  /** The relay has closed this socket: what waits is not heard any more. */
  isClosed = false;
  /** The session that it is in, at its owner's. */
  session: Pipe | undefined;
  readonly pipes = new Set<Pipe>();
  /** For a far peer: the way to its socket, and the frames that came. */
  link: { peer: Peer; number: number; received: number } | undefined;
}

/** The end of a session without Bun's topics: what it publishes goes straight to the other side. */
export class DirectWire implements Wire {
  readonly #of: Connection;
  readonly out: Wire;

  constructor(of: Connection, out: Wire) {
    this.#of = of;
    this.out = out;
  }

  publishText(_topic: string, frame: string): number {
    const { session } = this.#of;
    const other = session?.target === this.#of ? session.controller : session?.target;
    return other?.ws.sendText(frame) ?? frame.length;
  }

  sendText(frame: string): number {
    return this.out.sendText(frame);
  }

  subscribe(topic: string): void {
    this.out.subscribe(topic);
  }

  unsubscribe(topic: string): void {
    this.out.unsubscribe(topic);
  }

  close(code?: number, reason?: string): void {
    this.out.close(code, reason);
  }
}

/** Where a socket was that is closed, while frames of it still wait for their turn. */
export const nowhere: Wire = {
  sendText: (frame) => frame.length,
  publishText: (_topic, frame) => frame.length,
  subscribe: () => {},
  unsubscribe: () => {},
  close: () => {},
};
