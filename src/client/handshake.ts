/**
 * The handshake of a secure pairing: three plain messages, six digits that a person reads on the controller and types
 * on the target, and three sealed records. Then both sides are authenticated. docs/secure.md explains why it is safe.
 */
import type { Bytes } from './base64.ts';
import {
  fromJson,
  kinds,
  type Opened,
  type Pipe,
  Records,
  refusals,
  SecureChannel,
  toJson,
} from './secure-channel.ts';
import { checkArgument, codeOf, RelayError } from './errors.ts';
import type { WaitOptions } from './inbox.ts';
import {
  agree,
  areEqual,
  commitmentTo,
  concat,
  type Ephemeral,
  newEphemeral,
  utf8,
} from './keys.ts';

/** How each plain message begins, with the number of the message as the last byte. */
const COMMIT = utf8('ams1\x01');
const ANSWER = utf8('ams1\x02');
const REVEAL = utf8('ams1\x03');

const HASH_BYTES = 32;
const POINT_BYTES = 65;
const NONCE_BYTES = 32;
const RECEIPT_BYTES = 6;
const MAX_IDENTITY_BYTES = 16_384;

/** How often the target sends a keep-alive while a person types. A relay may end a silent pairing after 30 s. */
const KEEP_ALIVE_MS = 10_000;

interface Side {
  /** The six digits that the relay knows. */
  otc: string;
  /** Six digits that the relay does not know. With them the target proves that a person typed digits on it. */
  receipt: string;
  /** What the other side gets when both are authenticated, encoded by {@link encodeIdentity}. */
  identity: Bytes;
  /** Default: a new one. Only tests set it. */
  ephemeral?: Ephemeral | undefined;
}

export interface TargetSide extends Side {
  askDigits: (signal: AbortSignal) => Answer | Promise<Answer>;
  /** 32 bytes. Default: new random ones. Only tests set it. */
  nonce?: Bytes | undefined;
  keepAliveMs?: number | undefined;
}

/** What a person typed; null or undefined if the person cancelled. */
export type Answer = string | null | undefined;

export interface ControllerSide extends Side {
  showDigits: (digits: string) => void;
}

/**
 * Runs the target's side, over a pipe to the other device. If it fails, tells the other side why and closes the pipe.
 * @param rest Returns the time that is left, and the signal, for the next wait.
 */
export function asTarget(
  pipe: Pipe,
  side: TargetSide,
  rest: () => WaitOptions,
): Promise<SecureChannel> {
  return attempt(pipe, async (hold) => {
    const { privateKey, publicKey } = side.ephemeral ?? (await newEphemeral());
    const nonce = side.nonce ?? crypto.getRandomValues(new Uint8Array(NONCE_BYTES));
    const commitment = await commitmentTo(side.otc, publicKey, nonce);
    pipe.send(concat(COMMIT, commitment));
    const controllerKey = await receivePlain(pipe, ANSWER, POINT_BYTES, rest());
    pipe.send(concat(REVEAL, publicKey, nonce));
    const transcript = { otc: side.otc, commitment, controllerKey, targetKey: publicKey, nonce };
    const agreement = await agree('target', privateKey, transcript);
    const records = hold(new Records(pipe, agreement));
    expectKind(await records.next(rest()), kinds.ready);

    // While the person types, no record is expected: one that arrives is an error or the end. Later it is the answer.
    const reply = records.next(rest());
    const typed = await ask(records, reply, side);
    if (!/^[0-9]{6}$/.test(typed)) throw new RelayError('digits_malformed');
    if (!areEqual(utf8(typed), utf8(agreement.digits))) throw new RelayError('digits_mismatch');
    await records.send(kinds.verdict, concat(utf8(side.receipt), side.identity));
    try {
      const peerIdentity = decodeIdentity(expectKind(await reply, kinds.accept));
      return new SecureChannel(records, peerIdentity);
    } catch (error) {
      // A refusal arrives sealed, so the other side has not paired. After any other end, it may have paired.
      if (error instanceof RelayError && refusals.includes(error.code)) throw error;
      throw new RelayError('unconfirmed', undefined, { cause: error });
    }
  });
}

/** Runs the controller's side; otherwise like {@link asTarget}. */
export function asController(
  pipe: Pipe,
  side: ControllerSide,
  rest: () => WaitOptions,
): Promise<SecureChannel> {
  return attempt(pipe, async (hold) => {
    const commitment = await receivePlain(pipe, COMMIT, HASH_BYTES, rest());
    const { privateKey, publicKey } = side.ephemeral ?? (await newEphemeral());
    pipe.send(concat(ANSWER, publicKey));
    const revealed = await receivePlain(pipe, REVEAL, POINT_BYTES + NONCE_BYTES, rest());
    const targetKey = revealed.slice(0, POINT_BYTES);
    const nonce = revealed.slice(POINT_BYTES);
    const transcript = { otc: side.otc, commitment, controllerKey: publicKey, targetKey, nonce };
    const agreement = await agree('controller', privateKey, transcript);
    const records = hold(new Records(pipe, agreement));
    side.showDigits(agreement.digits);
    await records.send(kinds.ready);

    const verdict = expectKind(await records.next(rest()), kinds.verdict);
    if (!areEqual(verdict.subarray(0, RECEIPT_BYTES), utf8(side.receipt))) {
      throw new RelayError('code_mismatch');
    }
    const peerIdentity = decodeIdentity(verdict.slice(RECEIPT_BYTES));
    await records.send(kinds.accept, side.identity);
    return new SecureChannel(records, peerIdentity);
  });
}

/** Runs one side. If it fails, tells the other side, in a sealed record if there are keys, and closes the pipe. */
async function attempt(
  pipe: Pipe,
  run: (hold: (records: Records) => Records) => Promise<SecureChannel>,
): Promise<SecureChannel> {
  let records: Records | undefined;
  try {
    return await run((made) => (records = made));
  } catch (error) {
    const reason = error instanceof RelayError ? refusals.indexOf(error.code) : 0;
    await records?.send(kinds.refuse, Uint8Array.of(Math.max(reason, 0))).catch(() => {});
    await (records ?? pipe).close();
    throw error;
  }
}

async function ask(records: Records, reply: Promise<Opened>, side: TargetSide): Promise<string> {
  const over = new AbortController();
  const keepAlive = setInterval(
    () => void records.send(kinds.keepAlive).catch(() => {}),
    side.keepAliveMs ?? KEEP_ALIVE_MS,
  );
  const asking = (async () => side.askDigits(over.signal))().catch((cause: unknown) => {
    throw new RelayError('cancelled', undefined, { cause });
  });
  const interrupted = reply.then(({ kind }) => {
    throw new RelayError('unexpected_frame', `record ${kind}`);
  });
  try {
    const typed = await Promise.race([interrupted, asking]);
    if (typed === undefined || typed === null) throw new RelayError('cancelled');
    return String(typed).replaceAll(/[\s-]/g, '');
  } finally {
    clearInterval(keepAlive);
    over.abort();
  }
}

function expectKind({ kind, body }: Opened, expected: number): Bytes {
  if (kind !== expected) throw new RelayError('unexpected_frame', `record ${kind}`);
  return body;
}

/** Receives the next plain message: the bytes after its `head`, which must be this many. */
async function receivePlain(
  pipe: Pipe,
  head: Bytes,
  size: number,
  options: WaitOptions,
): Promise<Bytes> {
  const bytes = await pipe.receiveBytes(options).catch((error: unknown) => {
    throw codeOf(error) === 'invalid_payload' ? new RelayError('not_secure') : error;
  });
  const body = bytes.slice(head.length);
  if (body.length !== size || !areEqual(bytes.subarray(0, head.length), head)) {
    throw new RelayError('not_secure');
  }
  return body;
}

/** @throws {RelayError} `invalid_argument`: it cannot be written as JSON, or is longer than 16,384 bytes. */
export function encodeIdentity(identity: unknown): Bytes {
  const bytes = identity === undefined ? new Uint8Array() : toJson(identity);
  const isShort = bytes.length <= MAX_IDENTITY_BYTES;
  checkArgument(isShort, `an identity is at most ${MAX_IDENTITY_BYTES} bytes`);
  return bytes;
}

function decodeIdentity(bytes: Bytes): unknown {
  if (bytes.length > MAX_IDENTITY_BYTES) throw new RelayError('unexpected_frame', 'identity');
  return bytes.length === 0 ? undefined : fromJson(bytes);
}
