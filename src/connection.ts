/** One socket, as everything behind the listener sees it. */
import type { Bootstrapped, Watch } from './bootstrap/bootstrap.ts';
import type { Paired, Session } from './pairing/pairing.ts';
import type { Remote } from './cluster/remote.ts';

/** What the relay uses of a socket. Bun's has it; so has one that is connected to another instance. */
export interface Wire {
  sendText(frame: string): number;
  publishText(topic: string, frame: string): number;
  subscribe(topic: string): unknown;
  unsubscribe(topic: string): unknown;
  close(code?: number, reason?: string): void;
}

/** Bun carries it as `ws.data`. */
export class Connection implements Paired<Connection>, Bootstrapped<Connection> {
  ws!: Wire;
  session: Session<Connection> | undefined = undefined;
  watches: Set<Watch<Connection>> | undefined = undefined;
  asks: Set<Watch<Connection>> | undefined = undefined;
  malformed = 0;
  frames = 0;
  framesSince = 0;
  idleSince = 0;
  /** What the cluster keeps of a socket, where there is a cluster. */
  remote: Remote | undefined = undefined;
  readonly client: string;

  constructor(client: string) {
    this.client = client;
  }
}

/** Milliseconds on a clock that only moves forward. */
export type Clock = () => number;
