/** The error class of the client library, with a code for each problem. */
import { type CloseReason, closes, errorCodes, rejectReasons } from '../wire/codes.ts';

const meanings = {
  ...errorCodes,
  ...rejectReasons,
  ...(Object.fromEntries(
    Object.entries(closes).map(([reason, { means }]) => [reason, means]),
  ) as Record<CloseReason, string>),

  invalid_argument: 'the call does not accept this argument',
  invalid_url: 'this is not a valid ws:// or wss:// URL',
  no_websocket: 'this runtime has no WebSocket: Bun, a browser, or Node.js 22 or later is needed',
  unreachable: 'no WebSocket connection could be opened at this URL',
  unauthorized: 'the relay is private, and the access token is missing or wrong',
  origin_refused: 'the relay does not serve pages of this origin',
  connection_lost: 'the connection ended without a reason',
  frame_too_large: 'a frame was larger than the relay accepts (64 KiB by default)',
  unexpected_frame: 'the server sent something that is not in the protocol',
  invalid_payload: 'the payload from the other side is not base64',
  peer_done: 'the other side is finished',
  rejected: 'the controller refused',
  timeout: 'the deadline passed',
  aborted: 'the signal was aborted',
  closed: 'this side closed the connection',

  // Only a secure pairing, channel or bootstrap can throw these.
  invalid_code: 'the code is not the twelve digits that the other device shows',
  not_secure: 'the other side does not speak the secure protocol',
  digits_malformed: 'the typed digits are not six digits',
  digits_mismatch:
    'the typed digits are not those of this connection: a typing error, or an attacker is in between',
  code_mismatch:
    'the other side does not know the second half of the code: a typing error, or an attacker is in between',
  cancelled: 'a person or a program cancelled the pairing',
  unconfirmed:
    'the connection ended after this side agreed, before the other side confirmed; the other side may have paired',
  not_authentic: 'a message was changed, replayed, reordered or forged on the way',
};

/** The codes and reasons of the protocol, and the client's own codes. */
export type RelayErrorCode = keyof typeof meanings;

/** The only error class that this library throws. Use `code` to tell the cases apart. */
export class RelayError extends Error {
  override name = 'RelayError';

  /**
   * @param detail More than the code says, such as the text of a controller that refuses (`rejected`).
   * @param options `cause`: the reason of an aborted signal, or the error of the runtime.
   */
  constructor(
    readonly code: RelayErrorCode,
    readonly detail?: string,
    options?: ErrorOptions,
  ) {
    super(`${code}: ${meanings[code]}${detail ? ` (${detail})` : ''}`, options);
  }

  /** A copy of this error, and of its cause if it has one, with the stack of `site`. */
  again(site = new Error()): RelayError {
    const copy = new RelayError(this.code, this.detail, this);
    const frames = site.stack?.replace(/^\w*Error\b.*\n/, '') ?? '';
    copy.stack = `${copy.name}: ${copy.message}\n${frames}`;
    return copy;
  }
}

/** The code of an error; undefined if it does not come from this library. */
export const codeOf = (error: unknown): RelayErrorCode | undefined =>
  error instanceof RelayError ? error.code : undefined;

/** @throws {RelayError} `invalid_argument`, with this detail, unless it holds. */
export function checkArgument(isValid: boolean, detail: string): asserts isValid {
  if (!isValid) throw new RelayError('invalid_argument', detail);
}

/**
 * Runs the work of a public function, and gives its errors the stack of the call. Most errors are created when a frame
 * or a timer arrives, and their own stack does not show the caller.
 */
export function traced<T>(work: () => Promise<T>): Promise<T> {
  const site = new Error();
  return work().catch((error: unknown) => {
    throw error instanceof RelayError ? error.again(site) : error;
  });
}
