/** Every error and close code of the protocol, with its meaning. Imports nothing, because browsers load it too. */

/** The codes of an `error` frame, and what each means. */
export const errorCodes = {
  invalid_message: 'not JSON, not an object, or a field of the wrong type',
  unknown_type: 'no such message type',
  invalid_otc: 'the code is not a string of six ASCII digits',
  otc_in_use: 'another target waits on this code, or it is burned for a minute; choose a new one',
  otc_not_found: 'nobody waits on this code',
  otc_expired: 'the session ran out of time',
  peer_already_connected: 'another controller came first',
  peer_not_connected: 'the other side has not connected yet',
  peer_disconnected: 'the other side left',
  already_in_session: 'this socket is in a session already',
  no_session: 'this socket is in no session',
  session_data_limit: 'the session reached its data limit',
  rate_limited: 'too many attempts from this client; wait a minute',
  relay_capacity: 'the relay is full',
  relay_draining: 'the relay is about to stop; connect again to reach another',
  relay_unavailable: 'the instances behind this relay cannot reach each other',
  missing_jti: 'the token id is missing',
  invalid_jti: 'the token id is not a string of 1 to 128 characters',
  jti_already_watched: 'another socket watches this token id',
  not_watching: 'this socket does not watch this token id',
  watch_expired: 'the watch ran out of time',
} as const;

export type ErrorCode = keyof typeof errorCodes;

/** More values for the `error` of a `bootstrap_reject` from the relay, besides the error codes. */
export const rejectReasons = {
  token_already_used: 'this token id was announced before',
  no_watcher: 'no controller watches this token id; it stays unused',
  watcher_disconnected: 'the controller left before it answered',
  relay_overloaded: 'the list of used token ids is full',
} as const;

export type RejectReason = keyof typeof rejectReasons | ErrorCode;

/** Whether a text is an error code or one of the reject reasons. */
export const isReason = (text: string): text is RejectReason =>
  Object.hasOwn(errorCodes, text) || Object.hasOwn(rejectReasons, text);

/** Why the relay closes a socket: each reason with its close code and its meaning. */
export const closes = {
  relay_shutting_down: {
    code: 1001,
    means: 'the relay is stopping; connect again to reach another',
  },
  too_many_errors: {
    code: 1008,
    means: 'the client sent too many frames that the relay could not read',
  },
  too_many_frames: { code: 1008, means: 'the client sent too many frames in a short time' },
  internal_error: { code: 1011, means: 'an error happened in the relay' },
  too_many_connections: {
    code: 1013,
    means: 'the relay has reached its limit of connections, in total or for this client',
  },
  session_expired: { code: 4001, means: 'the session ran out of time' },
  idle: { code: 4002, means: 'the connection was idle for too long' },
  session_data_limit: { code: 4003, means: 'the session reached its data limit' },
  slow_consumer: { code: 4004, means: 'one side did not read what the other sent' },
} as const;

export type CloseReason = keyof typeof closes;
