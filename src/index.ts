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
  /** Takes what the relay logs. Default: stdout, if `logLevel` is set; otherwise nobody. */
  log?: LogFunction;
}

/**
 * Creates a relay; {@link Relay.start} makes it listen. Relays share nothing, so one process may hold several. The
 * environment is not read; only the command does that.
 *
 * @param options What is left out has the default that docs/settings.md gives, except that nothing is logged without
 *   `logLevel` or `log`. Times are milliseconds (`…Ms`).
 * @throws {ConfigError} For a value that is not accepted, or an option that does not exist.
 */
export async function createRelayServer({ log, ...settings }: RelayOptions = {}): Promise<Relay> {
  if (log !== undefined && typeof log !== 'function') {
    throw new ConfigError('log: expected a function that takes level, message and fields');
  }
  const logLevel = settings.logLevel ?? (log ? 'info' : 'silent');
  const config = readOptions({ ...settings, logLevel });
  return new RelayServer(config, { log: createLog(logLevel, log && harmless(log)) });
}

/** A log function that throws, or rejects, must not end a relay that is well. */
function harmless(log: LogFunction): LogFunction {
  return (level, message, fields) => {
    void Promise.try(log, level, message, fields).catch(() => {});
  };
}
