/** The secure channel between two devices that share keys, and the encrypted records that it sends. */
import type { Bytes } from './base64.ts';
import type { Channel } from './client.ts';
import { checkArgument, codeOf, RelayError, type RelayErrorCode, traced } from './errors.ts';
import { Inbox, type WaitOptions, within } from './inbox.ts';
import { type Agreement, concat, open, seal, utf8 } from './keys.ts';

/** What is used of a plain channel to carry bytes to the other side and back. Tests make their own. */
export type Pipe = Pick<Channel, 'send' | 'receiveBytes' | 'done' | 'close'>;

/** The first byte of every record. */
export const kinds = {
  refuse: 0,
  ready: 1,
  verdict: 2,
  accept: 3,
  keepAlive: 4,
  end: 5,
  bytes: 16,
  text: 17,
  json: 18,
} as const;

/** The reasons for refusing to pair. On the wire, a reason is the byte of its index in this list. */
export const refusals: readonly RelayErrorCode[] = [
  'cancelled',
  'digits_malformed',
  'digits_mismatch',
  'code_mismatch',
];

export interface Opened {
  kind: number;
  body: Bytes;
}

/** The most bytes of a record's body. With tag and kind, in base64 and JSON, it fits into the relay's 65,536 bytes. */
export const MAX_BODY_BYTES = 49_000;

/** Sends and receives sealed records over a pipe. A changed, repeated, missing or misplaced record ends it. */
export class Records {
  readonly #pipe: Pipe;
  readonly #inbox = new Inbox<Opened>();
  #keys: Agreement | undefined;
  #sent = 0;
  #sending: Promise<void> = Promise.resolve();

  constructor(pipe: Pipe, keys: Agreement) {
    this.#pipe = pipe;
    this.#keys = keys;
    void this.#read();
  }

  /** Sends a record, in the order of the calls. Rejects if the connection has ended. */
  send(kind: number, body: Uint8Array = new Uint8Array()): Promise<void> {
    const sending = this.#sending.then(async () => {
      if (!this.#keys) throw this.#inbox.end as RelayError;
      const sealed = await seal(this.#keys.sending, this.#sent, concat(Uint8Array.of(kind), body));
      this.#sent += 1;
      if (!this.#keys) throw this.#inbox.end as RelayError;
      this.#pipe.send(sealed);
    });
    this.#sending = sending.catch((error: unknown) => void this.#finish(error as RelayError));
    return sending;
  }

  /**
   * The next record other than a keep-alive.
   * @throws {RelayError} The reason for the end: one that the other side sent sealed (`peer_done` and the refusals),
   *   one of the relay, or `not_authentic`.
   */
  next(options: WaitOptions): Promise<Opened> {
    return within(options, (over) => this.#inbox.next(over));
  }

  /** Closes the pipe after all records have been sent. Never throws. */
  async close(end = new RelayError('closed')): Promise<void> {
    await this.#sending;
    await this.#finish(end);
  }

  /** Tells the other side in a sealed record that this side is finished, and closes the pipe. Never throws. */
  async done(): Promise<void> {
    await this.send(kinds.end).catch(() => {});
    await this.#pipe.done();
    await this.close();
  }

  async #read(): Promise<void> {
    try {
      for (let count = 0; this.#keys; count += 1) {
        const sealed = await this.#pipe.receiveBytes({ timeoutMs: Infinity }).catch(distrust);
        if (this.#keys) this.#take(await open(this.#keys.receiving, count, sealed));
      }
    } catch (error) {
      await this.#finish(error as RelayError);
    }
  }

  #take(record: Bytes): void {
    // An empty record gets kind 255, which does not exist.
    const [kind = 255, reason = 0] = record;
    if (kind === kinds.refuse) {
      throw new RelayError(refusals[reason] ?? 'cancelled', 'the other side refused');
    }
    if (kind === kinds.end) throw new RelayError('peer_done');
    if (kind !== kinds.keepAlive) this.#inbox.put({ kind, body: record.slice(1) });
  }

  /**
   * Ends the records and closes the pipe; only the first reason counts. Removes the keys, so nothing is sealed or
   * opened any more.
   * @param end Every error caught here is a RelayError, since the functions called here throw nothing else.
   */
  async #finish(end: RelayError): Promise<void> {
    this.#keys = undefined;
    this.#inbox.finish(end);
    await this.#pipe.close();
  }
}

/** Replaces errors of the pipe that come from the relay alone, which may lie, by `not_authentic`. */
function distrust(error: unknown): never {
  const code = codeOf(error);
  if (code === 'invalid_payload') throw new RelayError('not_authentic');
  // An honest peer sends its end as a sealed record first, and only then tells the relay.
  if (code === 'peer_done')
    throw new RelayError('not_authentic', 'the end of the other side was not sealed');
  throw error;
}

/**
 * A channel between two paired devices. The relay cannot read the messages. If it changes, repeats, reorders or drops
 * one, the channel ends with `not_authentic`.
 */
export class SecureChannel implements AsyncIterable<unknown> {
  readonly #records: Records;

  /** @param peerIdentity What the other side gave as `identity` when pairing; undefined if it gave none. */
  constructor(
    records: Records,
    readonly peerIdentity: unknown,
  ) {
    this.#records = records;
  }

  /**
   * Sends a message: a `Uint8Array` as bytes, a string as text, anything else as JSON. At most 49,000 bytes. Messages
   * arrive in the order of the calls, even if the caller does not await the promise.
   *
   * @throws {RelayError} `invalid_argument`: this cannot be sent; the channel still works. Otherwise the channel has
   *   ended, with the reason.
   */
  send(message: unknown): Promise<void> {
    const sending = traced(async () => this.#records.send(...encode(message)));
    // `receive` reports the end of the channel too, so a program that does not await `send` must not crash from it.
    sending.catch(() => {});
    return sending;
  }

  /**
   * The next message as it was sent: a `Uint8Array`, a string, or a value parsed from JSON. All messages that
   * arrived are returned before the end is thrown.
   *
   * @throws {RelayError} `peer_done`: the other side is finished; no message is missing. `not_authentic`: the relay
   *   changed something. `peer_disconnected` and the like: the connection ended, and messages may be missing. After
   *   `timeout` and `aborted`, the channel still works: call `receive` again.
   */
  receive(options: WaitOptions = {}): Promise<unknown> {
    return traced(async () => {
      const opened = await this.#records.next(options);
      try {
        return decode(opened);
      } catch (error) {
        await this.#records.close(error as RelayError);
        throw error;
      }
    });
  }

  /** Every message until the other side is finished. Throws the errors of {@link receive}, except `peer_done`. */
  async *[Symbol.asyncIterator](): AsyncGenerator<unknown, void, void> {
    try {
      for (;;) yield await this.receive({ timeoutMs: Infinity });
    } catch (error) {
      if (codeOf(error) !== 'peer_done') throw error;
    }
  }

  /** Tells the other side that this one is finished, and ends the channel. Never throws. */
  async done(): Promise<void> {
    await this.#records.done();
  }

  /** Closes the channel after everything has been sent. The other side gets `peer_disconnected`. Never throws. */
  async close(): Promise<void> {
    await this.#records.close();
  }

  /** `await using` closes the channel at the end of its block. To end it as finished, call {@link done} before. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

function encode(message: unknown): [number, Uint8Array] {
  const isText = typeof message === 'string';
  checkArgument(!isText || message.isWellFormed(), 'the text has half a surrogate pair');
  const [kind, body] =
    message instanceof Uint8Array
      ? [kinds.bytes, message.slice()]
      : isText
        ? [kinds.text, utf8(message)]
        : [kinds.json, toJson(message)];
  checkArgument(body.length <= MAX_BODY_BYTES, `a message holds at most ${MAX_BODY_BYTES} bytes`);
  return [kind, body];
}

function decode({ kind, body }: Opened): unknown {
  if (kind === kinds.bytes) return body;
  if (kind === kinds.text) return toText(body);
  if (kind === kinds.json) return fromJson(body);
  throw new RelayError('unexpected_frame', `record ${kind}`);
}

/** @throws {RelayError} `invalid_argument`: the value cannot be written as JSON. */
export function toJson(value: unknown): Bytes {
  try {
    const text = JSON.stringify(value) as string | undefined;
    if (text === undefined) throw new TypeError('JSON has no form for it');
    return utf8(text);
  } catch (cause) {
    throw new RelayError('invalid_argument', 'this cannot be written as JSON', { cause });
  }
}

/** @throws {RelayError} `unexpected_frame`: the bytes are not JSON. */
export function fromJson(bytes: Bytes): unknown {
  try {
    return JSON.parse(toText(bytes)) as unknown;
  } catch {
    throw new RelayError('unexpected_frame', 'a message is not valid JSON');
  }
}

function toText(bytes: Bytes): string {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw new RelayError('unexpected_frame', 'a message is not valid UTF-8');
  }
}
