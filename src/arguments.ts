/** What the command line and the environment say together. */
import { type Config, readEnvironment } from './config.ts';

/**
 * Reads `--port` and `--host`, and for everything else the environment.
 * @throws {ConfigError} For a value that is not accepted.
 * @throws {TypeError} From `parseArgs`, for any other argument.
 */
export async function readArguments(args: string[]): Promise<Config> {
  if (args.length === 0) return readEnvironment(process.env);
  const { parseArgs } = await import('node:util');
  const { port, host } = parseArgs({
    args,
    options: { port: { type: 'string', short: 'p' }, host: { type: 'string', short: 'H' } },
  }).values;
  return readEnvironment(process.env, {
    ...(port !== undefined && { port: { label: '--port', text: port } }),
    ...(host !== undefined && { host: { label: '--host', text: host } }),
  });
}
