/** Reads files again and again while the relay runs: the access tokens, and the certificate with its key. */
import type { Log } from './observe/log.ts';

export class Reloader {
  /** What was wrong at the last read. */
  #problem: string | undefined;
  #isReading = false;

  /** @param kept Follows each problem in the log, and says what stays in use. */
  constructor(private readonly kept: string) {}

  /** Runs a read. If it fails, it logs one warning, not one for each read that fails in the same way. */
  async run(log: Log, read: () => Promise<void>): Promise<void> {
    // If the file system hangs, only one read waits, instead of one more each time.
    if (this.#isReading) return;
    this.#isReading = true;
    try {
      await read();
      this.#problem = undefined;
    } catch (error) {
      const problem = (error as Error).message;
      if (problem !== this.#problem) log.warn(`${problem}. ${this.kept}`);
      this.#problem = problem;
    } finally {
      this.#isReading = false;
    }
  }
}
