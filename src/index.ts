/**
 * The amesh relay as a library.
 *
 * @example
 * const relay = await createRelayServer({ port: 3001 });
 * const { url } = await relay.start();
 * await relay.stop({ drain: true });
 */
import { readOptions, type RelayOptions } from './config.ts';
import type { Relay } from './relay.ts';
import { RelayServer } from './server.ts';

export { ConfigError, type RelayOptions } from './config.ts';
export {
  ListenError,
  type Relay,
  type RelayAddress,
  RelayStateError,
  type StopOptions,
  TlsError,
  TokensError,
} from './relay.ts';
export { RedisError } from './cluster/redis-url.ts';

/**
 * Creates a relay; {@link Relay.start} makes it listen. Relays share nothing, so one process may hold several. The
 * environment is not read: that is the command's part.
 *
 * @param options What is left out has the default that the README's table gives. Times are milliseconds (`…Ms`).
 * @throws {ConfigError} For a value that is not accepted, or an option that does not exist.
 */
export async function createRelayServer(options: RelayOptions = {}): Promise<Relay> {
  return new RelayServer(readOptions(options));
}
