/**
 * The library's types for a program that starts a relay. They are separate from the server so that they do not use
 * Bun's types, which a program that type-checks against this package may not have.
 */

/** Where a relay listens. */
export interface RelayAddress {
  /** The host as configured. */
  host: string;
  /** The port in use, also if port 0 was configured. */
  port: number;
  /** The WebSocket URL, for `amesh listen --relay`. */
  url: string;
}

export interface StopOptions {
  /**
   * Whether pairings under way may finish first: `true` waits for at most `drainMs`, a number for at most that many
   * milliseconds. Default: close everything at once.
   */
  drain?: boolean | number;
}

export interface Relay {
  /**
   * Starts to listen.
   * @throws {RelayStateError} When it was started or stopped before.
   * @throws {ListenError} When the relay cannot listen on the address.
   * @throws {TlsError} When `tlsCertFile` or `tlsKeyFile` cannot be used.
   * @throws {TokensError} When `accessTokensFile` cannot be used.
   * @throws {RedisError} When `redisUrlFile` cannot be used, or Redis does not answer correctly within 5 s.
   */
  start(): Promise<RelayAddress>;
  /**
   * Refuses new sockets, lets pairings finish if `drain` is set, closes every socket with 1001 and frees the port.
   * Can be called again: a second call without `drain` ends a drain that is under way.
   */
  stop(options?: StopOptions): Promise<void>;
}

/** The method cannot be called in the relay's present state. */
export class RelayStateError extends Error {
  override name = 'RelayStateError';
  readonly code = 'ERR_RELAY_STATE';
}

/** The relay cannot listen on the address. The message names the setting, the value and the reason. */
export class ListenError extends Error {
  override name = 'ListenError';
  readonly code = 'ERR_RELAY_LISTEN';
}

/** A certificate or a key that can't be used. The message names the setting, the file and what is wrong with it. */
export class TlsError extends Error {
  override name = 'TlsError';
  readonly code = 'ERR_RELAY_TLS';
}

/** A file of access tokens that can't be used. The message names the setting, the file and what is wrong with it. */
export class TokensError extends Error {
  override name = 'TokensError';
  readonly code = 'ERR_RELAY_TOKENS';
}
