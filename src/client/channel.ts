/** What two devices have once they share keys: records below, and above them a channel for what programs say. */
import type { Bytes } from './base64.ts';
import { RelayError, traced } from './errors.ts';
import { Inbox, Wait, type WaitOptions } from './inbox.ts';
import { type Agreement, concat, open, seal, utf8 } from './keys.ts';

/** What carries bytes to the other side: a plain channel, or a test's own. */
export interface Pipe {
  send(bytes: Uint8Array): void;
  receiveBytes(options?: WaitOptions): Promise<Bytes>;
  done(): Promise<void>;
  close(): Promise<void>;
}

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

/** Why a side refuses to pair; the byte that says so is the place in this list. */
export const refusals = [
  'cancelled',
  'digits_malformed',
  'digits_mismatch',
  'code_mismatch',
] as const;

export interface Opened {
  kind: number;
  body: Bytes;
}

/** A frame of the relay holds 65,536 bytes; in base64 and JSON, with the tag and the kind, that leaves this many. */
export const MAX_BODY_BYTES = 49_000;

const DEFAULT_TIMEOUT_MS = 60_000;

/** Sealed records over a pipe, in order, none twice, none missing. Whatever does not fit ends it. */
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

  /** Sends a record, in the order of the calls. Rejects when this has ended; who does not look is not harmed. */
  send(kind: number, body: Uint8Array = new Uint8Array()): Promise<void> {
    const sending = this.#sending.then(async () => {
      if (!this.#keys) throw this.#ended();
      const sealed = await seal(this.#keys.sending, this.#sent, concat(Uint8Array.of(kind), body));
      this.#sent += 1;
      if (!this.#keys) throw this.#ended();
      this.#pipe.send(sealed);
    });
    this.#sending = sending.catch((error: unknown) => this.#fail(error));
    return sending;
  }

  /**
   * The next record, keep-alives aside.
   * @throws {RelayError} The end, with its reason: the other side's own (`peer_done` and the refusals arrive sealed), the
   *   relay's, or `not_authentic`.
   */
  async next(options: WaitOptions): Promise<Opened> {
    const wait = new Wait(options, DEFAULT_TIMEOUT_MS);
    try {
      return await this.#inbox.next(wait);
    } finally {
      wait.end();
    }
  }

  /** Ends it from this side, after all that was sent has gone out. Never throws. */
  async close(end = new RelayError('closed')): Promise<void> {
    await this.#sending;
    this.#finish(end);
    await this.#pipe.close();
  }

  /** Says, sealed, that this side is finished, and ends it. Never throws. */
  async done(): Promise<void> {
    await this.send(kinds.end).catch(() => {});
    if (this.#keys) await this.#pipe.done();
    await this.close();
  }

  async #read(): Promise<void> {
    try {
      for (let count = 0; this.#keys; count += 1) {
        const sealed = await this.#pipe.receiveBytes({ timeoutMs: Infinity }).catch(distrust);
        if (this.#keys) this.#take(await open(this.#keys.receiving, count, sealed));
      }
    } catch (error) {
      this.#fail(error);
    }
  }

  #take(record: Bytes): void {
    // A record without a kind is of one that nobody knows.
    const [kind = 255, reason = 0] = record;
    if (kind === kinds.refuse) {
      throw new RelayError(refusals[reason] ?? 'cancelled', 'the other side said so');
    }
    if (kind === kinds.end) throw new RelayError('peer_done');
    if (kind !== kinds.keepAlive) this.#inbox.put({ kind, body: record.slice(1) });
  }

  /** @param error A RelayError: nothing below throws anything else. */
  #fail(error: unknown): void {
    this.#finish(error as RelayError);
    void this.#pipe.close();
  }

  /** The first end counts. The keys are let go of: nothing is sealed or opened any more. */
  #finish(end: RelayError): void {
    this.#keys = undefined;
    this.#inbox.finish(end);
  }

  #ended(): RelayError {
    return this.#inbox.end ?? new RelayError('closed');
  }
}

/** What the pipe below says of the other side is the relay's word alone. */
function distrust(error: unknown): never {
  const code = error instanceof RelayError ? error.code : undefined;
  if (code === 'invalid_payload') throw new RelayError('not_authentic');
  // The other side says it in a sealed record, and only then to the relay.
  if (code === 'peer_done') throw new RelayError('not_authentic', 'its end came without a seal');
  throw error;
}

/**
 * Two paired devices, talking through the relay, which can read and change nothing: what it alters, repeats, reorders or
 * leaves out ends the channel with `not_authentic`.
 */
export class SecureChannel implements AsyncIterable<unknown> {
  readonly #records: Records;

  /** @param peerIdentity What the other side gave as `identity` when the two paired; undefined for nothing. */
  constructor(
    records: Records,
    readonly peerIdentity: unknown,
  ) {
    this.#records = records;
  }

  /**
   * Sends a message: a `Uint8Array` as bytes, a string as text, anything else as JSON. At most 49,000 bytes. Messages
   * arrive in the order of the calls, whether or not one waits for the promise.
   *
   * @throws {RelayError} `invalid_argument`: this cannot be sent; the channel goes on. Otherwise the channel has ended,
   *   with the reason.
   */
  send(message: unknown): Promise<void> {
    const sending = traced(async () => this.#records.send(...encode(message)));
    // The end of a channel is told by `receive`: a program that does not await `send` must not die of it.
    sending.catch(() => {});
    return sending;
  }

  /**
   * The next message as it was sent: a `Uint8Array`, a string, or what JSON makes of it. What came before the end is
   * handed out before the end is told.
   *
   * @throws {RelayError} `peer_done`: the other side is finished, and said all that it had to say. `not_authentic`: the
   *   relay meddled. `peer_disconnected` and the like: the connection ended, and something may be missing. After
   *   `timeout` and `aborted`, the channel goes on and can be asked again.
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

  /** Every message until the other side is finished. Throws as {@link receive} does, `peer_done` apart. */
  async *[Symbol.asyncIterator](): AsyncGenerator<unknown, void, void> {
    try {
      for (;;) yield await this.receive({ timeoutMs: Infinity });
    } catch (error) {
      if (!(error instanceof RelayError && error.code === 'peer_done')) throw error;
    }
  }

  /** Tells the other side that this one has said all that it had to say; ends the channel. Never throws. */
  async done(): Promise<void> {
    await this.#records.done();
  }

  /** Leaves, after all that was sent has gone out: the other side gets `peer_disconnected`. Never throws. */
  async close(): Promise<void> {
    await this.#records.close();
  }

  /** `await using` closes the channel where its block ends; say {@link done} before, if that is what you mean. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

function encode(message: unknown): [number, Uint8Array] {
  const [kind, body] =
    message instanceof Uint8Array
      ? [kinds.bytes, message.slice()]
      : typeof message === 'string'
        ? [kinds.text, wellFormed(message)]
        : [kinds.json, toJson(message)];
  if (body.length > MAX_BODY_BYTES) {
    throw new RelayError('invalid_argument', `a message holds at most ${MAX_BODY_BYTES} bytes`);
  }
  return [kind, body];
}

function decode({ kind, body }: Opened): unknown {
  if (kind === kinds.bytes) return body;
  if (kind === kinds.text) return toText(body);
  if (kind === kinds.json) return fromJson(body);
  throw new RelayError('unexpected_frame', `record ${kind}`);
}

function wellFormed(text: string): Bytes {
  if (!text.isWellFormed()) throw new RelayError('invalid_argument', 'half a surrogate pair');
  return utf8(text);
}

/** @throws {RelayError} `invalid_argument`: JSON has no word for it. */
export function toJson(value: unknown): Bytes {
  let text: string | undefined;
  try {
    text = JSON.stringify(value);
  } catch (cause) {
    throw new RelayError('invalid_argument', 'JSON has no word for this', { cause });
  }
  if (text === undefined) throw new RelayError('invalid_argument', 'JSON has no word for this');
  return utf8(text);
}

/** @throws {RelayError} `unexpected_frame`: it is not JSON. */
export function fromJson(bytes: Bytes): unknown {
  try {
    return JSON.parse(toText(bytes)) as unknown;
  } catch {
    throw new RelayError('unexpected_frame', 'what should be JSON is not');
  }
}

function toText(bytes: Bytes): string {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw new RelayError('unexpected_frame', 'what should be UTF-8 is not');
  }
}
