/** Pipes without a relay: the test gets what one side sends, and decides what arrives at the other. */
import { fromBase64, toBase64, type Bytes } from '../src/client/base64.ts';
import type { Pipe } from '../src/client/secure-channel.ts';
import { RelayError, type RelayErrorCode } from '../src/client/errors.ts';
import { Inbox, type WaitOptions, within } from '../src/client/inbox.ts';

/** One end. Payloads are the texts that the relay would forward. */
export class TestPipe implements Pipe {
  /** Called with each payload that this side sends. */
  onSent: (payload: string) => void = () => {};
  /** Called when this side leaves. */
  onClosed: () => void = () => {};
  readonly #inbox = new Inbox<string>();

  get hasEnded(): boolean {
    return this.#inbox.end !== undefined;
  }

  send(bytes: Uint8Array): void {
    if (this.#inbox.end) throw this.#inbox.end;
    this.onSent(toBase64(bytes));
  }

  receiveBytes(options: WaitOptions = {}): Promise<Bytes> {
    return within(options, async (over) => {
      const bytes = fromBase64(await this.#inbox.next(over));
      if (!bytes) throw new RelayError('invalid_payload');
      return bytes;
    });
  }

  /** Gives this side a payload, as if the other side had sent it. */
  arrive(payload: string): void {
    this.#inbox.put(payload);
  }

  end(code: RelayErrorCode): void {
    this.#inbox.finish(new RelayError(code));
  }

  async done(): Promise<void> {
    await this.close();
  }

  async close(): Promise<void> {
    if (this.#inbox.end) return;
    this.end('closed');
    this.onClosed();
  }
}

export type From = 'target' | 'controller';

/**
 * Two ends and what is between them.
 * @param meddle What becomes of a payload, the `count`-th of its side: what arrives in its place.
 */
export function twoEnds(
  meddle: (from: From, payload: string, count: number) => string[] = (_from, payload) => [payload],
): Record<From, TestPipe> {
  const ends = { target: new TestPipe(), controller: new TestPipe() };
  const connect = (from: From, to: From): void => {
    let count = 0;
    ends[from].onSent = (payload) => {
      for (const changed of meddle(from, payload, count++)) ends[to].arrive(changed);
    };
    ends[from].onClosed = () => ends[to].end('peer_disconnected');
  };
  connect('target', 'controller');
  connect('controller', 'target');
  return ends;
}

/** For a handshake that may take a second. */
export const rest = (): WaitOptions => ({ timeoutMs: 5000 });
