/** What the command line and the environment say together. */
import { parseArgs } from 'node:util';
import { type Config, readEnvironment } from './config.ts';

/**
 * Reads `--port` and `--host`, and for everything else the environment.
 * @throws {ConfigError} For a value that is not accepted.
 * @throws {TypeError} From `parseArgs`, for any other argument.
 */
export function readArguments(args: string[]): Config {
  const { port, host } = parseArgs({
    args,
    options: { port: { type: 'string', short: 'p' }, host: { type: 'string', short: 'H' } },
  }).values;
  return readEnvironment(process.env, {
    ...(port !== undefined && { port: { label: '--port', text: port } }),
    ...(host !== undefined && { host: { label: '--host', text: host } }),
  });
}
