/**
 * The listeners of the relay's port. One is enough until a certificate is renewed: Bun can't change that of a server, so
 * a second server listens on the same port, and the first stays for the sockets that it has.
 */
import type { BunServer } from './socket.ts';

export class Listeners {
  /** The newest is the last. Those before it stay as long as they have sockets. */
  readonly #all = new Set<BunServer>();

  /** The newest takes the newcomers, on Linux all of them. */
  add(listener: BunServer): void {
    this.#all.add(listener);
  }

  /** Lets only the newest listen. Sockets of the others stay open, and their servers as long as they have any. */
  closeFormer(): void {
    for (const former of [...this.#all].slice(0, -1)) {
      void former.stop().then(() => this.#all.delete(former));
    }
  }

  /**
   * Lets none listen.
   * @param force Cuts every socket off.
   * @returns When all sockets are gone.
   */
  async stop(force = false): Promise<void> {
    await Promise.all([...this.#all].map((listener) => listener.stop(force)));
  }
}
