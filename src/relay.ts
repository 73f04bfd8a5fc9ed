/**
 * What a relay is to a program that starts one. Apart from the server, so that its types need none of Bun's: not
 * everyone who type-checks against the package has those.
 */

/** Where a relay listens. */
export interface RelayAddress {
  /** The host as configured. */
  host: string;
  /** The port in use, also where 0 was asked for. */
  port: number;
  /** The WebSocket URL, to be given to `amesh listen --relay`. */
  url: string;
}

export interface StopOptions {
  /**
   * Let pairings under way finish first: `true` waits for as long as `drainMs` says, a number for at most that many
   * milliseconds. Default: close everything at once.
   */
  drain?: boolean | number;
}

export interface Relay {
  /**
   * Starts to listen.
   * @throws {RelayStateError} When it was started or stopped before.
   * @throws {ListenError} When the address cannot be had.
   * @throws {TlsError} When `tlsCertFile` or `tlsKeyFile` cannot be used.
   * @throws {TokensError} When `accessTokensFile` cannot be used.
   * @throws {RedisError} When `redisUrlFile` cannot be used, or Redis does not answer as it must within 5 s.
   */
  start(): Promise<RelayAddress>;
  /**
   * Refuses newcomers, lets pairings finish where asked to, closes every socket with 1001 and frees the port.
   * Can be called again: a second call without `drain` ends a drain that is under way.
   */
  stop(options?: StopOptions): Promise<void>;
}

/** A relay was asked for something that it can't do any more, or not yet. */
export class RelayStateError extends Error {
  override name = 'RelayStateError';
  readonly code = 'ERR_RELAY_STATE';
}

/** The operating system would not give the address. */
export class ListenError extends Error {
  override name = 'ListenError';
  readonly code = 'ERR_RELAY_LISTEN';
}

/** A certificate or a key that can't be used. The message names the setting, the file and what is wrong with it. */
export class TlsError extends Error {
  override name = 'TlsError';
  /** For programs that tell errors apart. */
  readonly code = 'ERR_RELAY_TLS';
}

/** A file of access tokens that can't be used. The message names the setting, the file and what is wrong with it. */
export class TokensError extends Error {
  override name = 'TokensError';
  /** For programs that tell errors apart. */
  readonly code = 'ERR_RELAY_TOKENS';
}
