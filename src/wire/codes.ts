/** Every error and close code of the protocol, with its meaning. Imports nothing, since the browser's client uses it. */

/** The codes of an `error` frame, and what each means. */
export const errorCodes = {
  invalid_message: 'not JSON, not an object, or a field of the wrong type',
  unknown_type: 'no such message type',
  invalid_otc: 'the code is not a string of six ASCII digits',
  otc_in_use: 'another target waits on this code, or it is burned for a minute; choose a new one',
  otc_not_found: 'nobody waits on this code',
  otc_expired: 'the session ran out of time',
  peer_already_connected: 'another controller came first',
  peer_not_connected: 'the other side has not come yet',
  peer_disconnected: 'the other side left',
  already_in_session: 'this socket is in a session already',
  no_session: 'this socket is in no session',
  session_data_limit: 'more was sent than a session may carry',
  rate_limited: 'too many attempts from this client; wait a minute',
  relay_capacity: 'the relay holds as much as it may',
  relay_draining: 'the relay is about to stop; connect again to reach another',
  relay_unavailable: 'the instances behind this relay cannot reach each other',
  missing_jti: 'the token id is missing',
  invalid_jti: 'the token id is not a string of 1 to 128 characters',
  jti_already_watched: 'another socket watches this token id',
  not_watching: 'this socket does not watch this token id',
  watch_expired: 'the watch ran out of time',
} as const;

export type ErrorCode = keyof typeof errorCodes;

/** Further values that the `error` of a `bootstrap_reject` from the relay can have, beside the error codes. */
export const rejectReasons = {
  token_already_used: 'this token id was announced before',
  no_watcher: 'no controller watches this token id; it stays unused',
  watcher_disconnected: 'the controller left before it answered',
  relay_overloaded: 'the list of used token ids is full',
} as const;

export type RejectReason = keyof typeof rejectReasons | ErrorCode;

/** Whether a text is an error code or one of the further reasons. */
export const isReason = (text: string): text is RejectReason =>
  Object.hasOwn(errorCodes, text) || Object.hasOwn(rejectReasons, text);

/** The reasons for which the relay closes a socket, each with its close code and what it means. */
export const closes = {
  relay_shutting_down: {
    code: 1001,
    means: 'the relay is going away; connect again to reach another',
  },
  too_many_errors: { code: 1008, means: 'the relay was sent too much that it could not read' },
  too_many_frames: {
    code: 1008,
    means: 'more was sent than the relay takes in so short a time',
  },
  internal_error: { code: 1011, means: 'the relay failed' },
  too_many_connections: {
    code: 1013,
    means: 'the relay has as many connections as it takes, in all or from this client',
  },
  session_expired: { code: 4001, means: 'the session ran out of time' },
  idle: { code: 4002, means: 'the connection did nothing for too long' },
  session_data_limit: { code: 4003, means: 'more was sent than a session may carry' },
  slow_consumer: { code: 4004, means: 'one side did not read what the other sent' },
} as const;

export type CloseReason = keyof typeof closes;
