/**
 * The amesh relay as a library.
 *
 * @example
 * const relay = await createRelayServer({ port: 3001 });
 * const { url } = await relay.start();
 * await relay.stop({ drain: true });
 */
import { ConfigError, readOptions, type RelayOptions as Settings } from './config.ts';
import { createLog, type LogFunction } from './observe/log.ts';
import type { Relay } from './relay.ts';
import { RelayServer } from './server.ts';

export { RedisError } from './cluster/redis-url.ts';
export { ConfigError };
export type { LogFunction } from './observe/log.ts';
export {
  ListenError,
  type Relay,
  type RelayAddress,
  RelayStateError,
  type StopOptions,
  TlsError,
  TokensError,
} from './relay.ts';

export interface RelayOptions extends Settings {
  /** Receives the relay's log. Default: stdout if `logLevel` is set; otherwise nothing is logged. */
  log?: LogFunction;
}

/**
 * Creates a relay; {@link Relay.start} makes it listen. Relays share nothing, so one process may run several. Unlike
 * the command, this function does not read the environment.
 *
 * @param options Missing options have the defaults of docs/settings.md, except that nothing is logged without
 *   `logLevel` or `log`. Times are milliseconds (`…Ms`).
 * @throws {ConfigError} For a value that is not accepted, or an option that does not exist.
 */
export async function createRelayServer({ log, ...settings }: RelayOptions = {}): Promise<Relay> {
  if (log !== undefined && typeof log !== 'function') {
    throw new ConfigError('log: expected a function that takes level, message and fields');
  }
  const logLevel = settings.logLevel ?? (log ? 'info' : 'silent');
  const config = readOptions({ ...settings, logLevel });
  return new RelayServer(config, { log: createLog(logLevel, log && ignoringErrors(log)) });
}

/** Ignores errors of a log function, since they must not end the relay. */
function ignoringErrors(log: LogFunction): LogFunction {
  return (level, message, fields) => {
    void Promise.try(log, level, message, fields).catch(() => {});
  };
}
