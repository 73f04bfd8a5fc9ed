/** The names of clients in the log. */
import type { Clock } from '../connection.ts';

/** How long a pseudonym stays the same, in milliseconds: a day. */
export const KEY_TTL_MS = 24 * 3_600_000;

/** 16 hexadecimal digits are 64 bits, so even a million clients hardly ever share a name. */
const NAME_LENGTH = 16;

export class ClientNames {
  #key: Uint8Array | undefined;
  #keySince = 0;

  /** @param mode false: clients have no name; true: their address; `pseudonym`: a pseudonym. */
  constructor(
    private readonly mode: boolean | 'pseudonym',
    private readonly now: Clock,
  ) {}

  /**
   * The name of a client; undefined if clients are not logged. A pseudonym is a hash (HMAC-SHA256) of the address. Its
   * key is in memory only and is replaced once a day, so afterwards nobody can tell which address had which name.
   */
  of(client: string): string | undefined {
    if (this.mode === false) return undefined;
    if (this.mode === true) return client;
    const now = this.now();
    if (!this.#key || now - this.#keySince >= KEY_TTL_MS) {
      this.#key = crypto.getRandomValues(new Uint8Array(32));
      this.#keySince = now;
    }
    const hash = new Bun.CryptoHasher('sha256', this.#key).update(client).digest('hex');
    return hash.slice(0, NAME_LENGTH);
  }
}
