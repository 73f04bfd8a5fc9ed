/** What the client library throws: one class, whose codes say what went wrong. */
import { type CloseReason, closes, errorCodes, rejectReasons } from '../wire/codes.ts';

const clientMeanings = {
  invalid_argument: 'what was passed is not what this call takes',
  invalid_url: 'this is no ws:// or wss:// URL that can be opened',
  no_websocket: 'this runtime has no WebSocket: Bun, a browser, or Node.js 22 or later is needed',
  unreachable: 'no WebSocket connection came about at this URL',
  unauthorized: 'the relay is private, and the access token is missing or wrong',
  origin_refused: 'the relay does not serve pages of this origin',
  connection_lost: 'the connection ended without a word',
  frame_too_large: 'a frame was larger than the relay takes (64 KiB unless it is told otherwise)',
  unexpected_frame: 'the server said something that is not in the protocol',
  invalid_payload: 'what the other side sent is not base64',
  peer_done: 'the other side is finished',
  rejected: 'the controller refused',
  timeout: 'the deadline passed',
  aborted: 'the signal was aborted',
  closed: 'this side closed the connection',
} as const;

/** What only a secure pairing, channel or bootstrap can come to. */
const secureMeanings = {
  invalid_code: 'the code is not the twelve digits that the other device shows',
  not_secure: 'the other side does not speak the secure protocol',
  digits_malformed: 'what was typed is not six digits',
  digits_mismatch:
    'the digits that were typed are not those of this connection: a slip, or somebody is in between',
  code_mismatch:
    'the other side does not know the second half of the code: a slip, or somebody is in between',
  cancelled: 'a person or a program cancelled the pairing',
  unconfirmed:
    'the connection ended after this side had agreed and before it heard from the other, which may take itself for paired',
  not_authentic: 'what arrived was changed, replayed, reordered or forged on the way',
} as const;

/** The relay's codes and reasons as the protocol names them, and those that only this side can know. */
export type RelayErrorCode =
  | keyof typeof errorCodes
  | keyof typeof rejectReasons
  | CloseReason
  | keyof typeof clientMeanings
  | keyof typeof secureMeanings;

const meanings: Record<RelayErrorCode, string> = {
  ...errorCodes,
  ...rejectReasons,
  ...clientMeanings,
  ...secureMeanings,
  ...(Object.fromEntries(
    Object.entries(closes).map(([reason, { means }]) => [reason, means]),
  ) as Record<CloseReason, string>),
};

/** The one error that everything here throws. Tell cases apart by `code`. */
export class RelayError extends Error {
  override name = 'RelayError';
  readonly code: RelayErrorCode;

  /**
   * @param detail What is known beyond the code, such as a controller's own words of refusal (`rejected`).
   * @param options `cause`: what a signal was aborted with, or what the runtime threw.
   */
  constructor(
    code: RelayErrorCode,
    readonly detail?: string,
    options?: ErrorOptions,
  ) {
    super(`${code}: ${meanings[code]}${detail ? ` (${detail})` : ''}`, options);
    this.code = code;
  }

  /** The same error once more, with the stack of whoever is told of it now. */
  again(site = new Error()): RelayError {
    const options = 'cause' in this ? { cause: this.cause } : undefined;
    const copy = new RelayError(this.code, this.detail, options);
    const frames = site.stack?.replace(/^\w*Error\b.*\n/, '') ?? '';
    copy.stack = `${copy.name}: ${copy.message}\n${frames}`;
    return copy;
  }
}

/**
 * Runs what a public function promises. Most errors here are made where a frame or a timer arrives, whose stack says
 * nothing; what is thrown out of here has the stack of the call.
 */
export function traced<T>(work: () => Promise<T>): Promise<T> {
  const site = new Error();
  return work().catch((error: unknown) => {
    throw error instanceof RelayError ? error.again(site) : error;
  });
}
