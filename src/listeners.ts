/**
 * The listeners of the relay's port. One is enough until a certificate is renewed: Bun can't change the certificate of a server, so
 * a second server listens on the same port, and the first stays for the sockets that it has.
 */
import type { BunServer } from './socket.ts';

/** The newest is the last to be added: it takes the newcomers, on Linux all of them. */
export class Listeners extends Set<BunServer> {
  /** The port that they share. */
  get port(): number {
    return this.values().next().value?.port as number;
  }

  /** Lets only the newest listen. Sockets of the others stay open, and their servers as long as they have any. */
  closeFormer(): void {
    for (const former of [...this].slice(0, -1)) {
      void former.stop().then(() => this.delete(former));
    }
  }

  /**
   * Lets none listen.
   * @param force Cuts every socket off.
   * @returns When all sockets are gone.
   */
  async stop(force = false): Promise<void> {
    await Promise.all([...this].map((listener) => listener.stop(force)));
  }
}
