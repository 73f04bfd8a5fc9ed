/**
 * How a frame is read and written. The messages that a client may send are in `messages.ts`, the codes of errors and
 * closes in `codes.ts`; `PROTOCOL.md` explains both.
 */
import type { ErrorCode } from './codes.ts';
import { type ClientMessage, clientMessages } from './messages.ts';

/** A frame that could not be read: the error code for its sender. */
export interface Malformed {
  malformed: ErrorCode;
  /** The message type and the token id, if they could be read: the answer to a `bootstrap_init` needs both. */
  type?: string;
  jti?: string;
}

const DATA_HEAD = '{"type":"data","payload":"';
const DATA_TAIL = '"}';
/** The characters that end a JSON string or must be escaped in one. */
// oxlint-disable-next-line no-control-regex
const special = /["\\\u0000-\u001f]/g;

/**
 * Whether a frame is exactly what {@link frames.data} would write for its payload. Such a frame can be forwarded as it
 * came, without parsing it. Deployed clients write their data like this.
 */
export function isCanonicalData(text: string): boolean {
  if (!text.startsWith(DATA_HEAD) || !text.endsWith(DATA_TAIL)) return false;
  special.lastIndex = DATA_HEAD.length;
  // The first special character of the payload must be the quote that ends it.
  return special.test(text) && special.lastIndex === text.length - 1;
}

/**
 * How complex a frame may be. No message has nested values or more than five fields, but JSON.parse takes milliseconds
 * for 64 KiB of brackets, and a tenth of a second for field names chosen to collide in its hash tables. So a frame with
 * more than this is refused before it is parsed.
 */
const MAX_DEPTH = 32;
const MAX_COMMAS = 64;

// Character codes: comparing one-character strings is up to forty times slower.
const QUOTE = 0x22;
const COMMA = 0x2c;
const OPEN_BRACKET = 0x5b;
const BACKSLASH = 0x5c;
const CLOSE_BRACKET = 0x5d;
const OPEN_BRACE = 0x7b;
const CLOSE_BRACE = 0x7d;

/** Whether a frame has too many commas, or brackets nested too deeply, outside of its strings. */
function isTooComplex(text: string): boolean {
  let depth = 0;
  let commas = 0;
  for (let i = 0; i < text.length; i += 1) {
    const char = text.charCodeAt(i);
    if (char === QUOTE) {
      // Skip to the end of the string. A backslash escapes the character after it.
      for (i += 1; i < text.length && text.charCodeAt(i) !== QUOTE; i += 1) {
        if (text.charCodeAt(i) === BACKSLASH) i += 1;
      }
    } else if (char === COMMA) {
      commas += 1;
      if (commas > MAX_COMMAS) return true;
    } else if (char === OPEN_BRACKET || char === OPEN_BRACE) {
      depth += 1;
      if (depth > MAX_DEPTH) return true;
    } else if (char === CLOSE_BRACKET || char === CLOSE_BRACE) depth -= 1;
  }
  return false;
}

/** How deployed clients write these two messages. Reading them by this form saves more than 3 % of a pairing. */
export const CODE_MESSAGE = /^\{"type":"(listen|connect)","otc":"([0-9]{6})"\}$/;

/** Parses one frame. It never throws: for a frame that is not a valid message, the result has the error code. */
export function parse(text: string): ClientMessage | Malformed {
  const code = CODE_MESSAGE.exec(text);
  if (code) return { type: code[1], otc: code[2] } as ClientMessage;
  let value: unknown;
  try {
    if (!isTooComplex(text)) value = JSON.parse(text);
  } catch {
    // It is answered like every other text that holds no object.
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    return { malformed: 'invalid_message' };
  }
  const { type, jti } = value as Record<string, unknown>;
  if (type !== undefined && typeof type !== 'string') return { malformed: 'invalid_message' };
  if (type === undefined || !Object.hasOwn(clientMessages, type)) {
    return { malformed: 'unknown_type' };
  }
  const result = clientMessages[type as ClientMessage['type']].safeParse(value);
  if (result.success) return result.data;
  const wrong = new Set(result.error.issues.map((issue) => issue.path[0]));
  if (wrong.has('otc')) return { malformed: 'invalid_otc' };
  if (wrong.has('jti'))
    return { malformed: jti === undefined ? 'missing_jti' : 'invalid_jti', type };
  return { malformed: 'invalid_message', type, ...(typeof jti === 'string' && { jti }) };
}

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/** A binary frame as text; undefined if it is not UTF-8. */
export function decodeBinary(bytes: Uint8Array): string | undefined {
  try {
    return utf8.decode(bytes);
  } catch {
    return undefined;
  }
}

/** The frames that the relay sends, as JSON text. */
export const frames = {
  ack: JSON.stringify({ type: 'ack', message: 'session_open' }),
  peerFound: JSON.stringify({ type: 'peer_found' }),
  done: JSON.stringify({ type: 'done' }),
  error: (code: ErrorCode): string => JSON.stringify({ type: 'error', code }),
  data: (payload: string): string => JSON.stringify({ type: 'data', payload }),
  watching: (jti: string): string => JSON.stringify({ type: 'bootstrap_watching', jti }),
  watchExpired: (jti: string): string =>
    JSON.stringify({ type: 'error', code: 'watch_expired', jti }),
  init: (jti: string, token: string, targetPubKey: string): string =>
    JSON.stringify({ type: 'bootstrap_init', jti, token, targetPubKey }),
  bootstrapAck: (jti: string, controllerPubKey: string, controllerSig: string): string =>
    JSON.stringify({ type: 'bootstrap_ack', jti, controllerPubKey, controllerSig }),
  reject: (jti: string | undefined, error: string): string =>
    JSON.stringify({ type: 'bootstrap_reject', jti, error }),
} as const;
