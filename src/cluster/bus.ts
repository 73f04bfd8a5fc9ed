/** What the cluster needs of Redis, so that a simulation can stand in for it. */
import type { Script } from './scripts.ts';

export interface Bus {
  /** Runs a script. Rejects when no answer came in time; then it is not run later either. */
  run(script: Script, keys: string[], values: (string | number)[]): Promise<unknown>;
  /** Resolves to how many instances heard it; rejects when that is not known. Never sent twice. */
  publish(channel: string, text: string): Promise<number>;
  /** Starts the connections anew. */
  reconnect(): void;
  /** Both ways are open, for the first time or again. */
  onReady: () => void;
  onMessage: (text: string) => void;
  /** What was published meanwhile may be lost. */
  onLost: (reason: unknown) => void;
}
