/**
 * The wire: how a frame is read and written. What a client may say stands in `messages.ts`, the codes in `codes.ts`;
 * `PROTOCOL.md` explains it all.
 */
import type { ErrorCode } from './codes.ts';
import type { ClientMessage, clientMessages } from './messages.ts';

export * from './codes.ts';
export type { ClientMessage };

/** A frame that could not be read, and what could be told of it: who sent an unreadable init waits for its jti. */
export interface Malformed {
  malformed: ErrorCode;
  type?: string;
  jti?: string;
}

const DATA_HEAD = '{"type":"data","payload":"';
const DATA_TAIL = '"}';
// What ends a JSON string, or can't stand in one bare. Looking for the first costs a fifth of matching all the others.
// oxlint-disable-next-line no-control-regex
const special = /["\\\u0000-\u001f]/g;

/** Whether a frame is exactly what {@link frames.data} would write for it, so that it can be forwarded as it came. */
export function isCanonicalData(text: string): boolean {
  if (!text.startsWith(DATA_HEAD) || !text.endsWith(DATA_TAIL)) return false;
  special.lastIndex = DATA_HEAD.length;
  return special.test(text) && special.lastIndex === text.length - 1;
}

/** The two frames of every pairing, as every client writes them: read without the long way round. */
const canonicalCode = /^\{"type":"(listen|connect)","otc":"([0-9]{6})"\}$/;

let loaded: typeof clientMessages | undefined;

/** Loaded with the first frame that is not of the few above, since a start need not wait for them. */
function schemas(): typeof clientMessages {
  // oxlint-disable-next-line no-require-imports -- a frame is read in one go
  loaded ??= (require('./messages.ts') as typeof import('./messages.ts')).clientMessages;
  return loaded;
}

/**
 * No message nests at all, or has more than five fields. To JSON.parse 64 KiB of brackets are milliseconds, and of names
 * that were chosen to collide in its hash tables, a tenth of a second: such frames it never sees.
 */
const MAX_DEPTH = 32;
const MAX_COMMAS = 64;

// Character codes: to take each character as a string costs up to forty times as much.
const QUOTE = 0x22;
const COMMA = 0x2c;
const OPEN_BRACKET = 0x5b;
const BACKSLASH = 0x5c;
const CLOSE_BRACKET = 0x5d;
const OPEN_BRACE = 0x7b;
const CLOSE_BRACE = 0x7d;

function isTooComplex(text: string): boolean {
  let depth = 0;
  let commas = 0;
  for (let i = 0; i < text.length; i += 1) {
    const char = text.charCodeAt(i);
    if (char === QUOTE) {
      // To the end of the string, past every escaped character.
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

/** Reads one frame. Never throws: what is no message comes back with its error code. */
export function parse(text: string): ClientMessage | Malformed {
  const code = canonicalCode.exec(text);
  if (code) return { type: code[1], otc: code[2] } as ClientMessage;
  if (isTooComplex(text)) return { malformed: 'invalid_message' };
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return { malformed: 'invalid_message' };
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    return { malformed: 'invalid_message' };
  }
  const fields = value as Record<string, unknown>;
  const { type } = fields;
  if (type !== undefined && typeof type !== 'string') return { malformed: 'invalid_message' };
  if (type === undefined || !Object.hasOwn(schemas(), type)) return { malformed: 'unknown_type' };
  const result = schemas()[type as ClientMessage['type']].safeParse(fields);
  if (result.success) return result.data;
  const wrong = new Set(result.error.issues.map((issue) => issue.path[0]));
  if (wrong.has('otc')) return { malformed: 'invalid_otc' };
  if (wrong.has('jti')) return { malformed: 'jti' in fields ? 'invalid_jti' : 'missing_jti', type };
  return typeof fields.jti === 'string'
    ? { malformed: 'invalid_message', type, jti: fields.jti }
    : { malformed: 'invalid_message' };
}

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/** A binary frame as text, or undefined where it is not UTF-8. */
export function decodeBinary(bytes: Uint8Array): string | undefined {
  try {
    return utf8.decode(bytes);
  } catch {
    return undefined;
  }
}

/** Each made when it is first said: a start says none. */
const errorFrames: Partial<Record<ErrorCode, string>> = {};

/** What the relay sends, encoded. */
export const frames = {
  ack: JSON.stringify({ type: 'ack', message: 'session_open' }),
  peerFound: JSON.stringify({ type: 'peer_found' }),
  done: JSON.stringify({ type: 'done' }),
  error: (code: ErrorCode): string =>
    (errorFrames[code] ??= JSON.stringify({ type: 'error', code })),
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
