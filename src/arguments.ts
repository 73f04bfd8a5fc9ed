/** Reads the settings from the command line and the environment. */
import { type Config, type Flags, readEnvironment } from './config.ts';

/**
 * Reads `--port` and `--host`.
 * @throws {TypeError} From `parseArgs`, for any other argument.
 */
export async function readFlags(args: string[]): Promise<Flags> {
  if (args.length === 0) return {};
  const { parseArgs } = await import('node:util');
  const { port, host } = parseArgs({
    args,
    options: { port: { type: 'string', short: 'p' }, host: { type: 'string', short: 'H' } },
  }).values;
  return {
    ...(port !== undefined && { port: { label: '--port', text: port } }),
    ...(host !== undefined && { host: { label: '--host', text: host } }),
  };
}

/**
 * Reads the flags, and the environment for all other settings.
 * @throws {ConfigError} For a value that is not accepted.
 * @throws {TypeError} From `parseArgs`, for an argument that is none of the flags.
 */
export async function readArguments(args: string[]): Promise<Config> {
  return readEnvironment(process.env, await readFlags(args));
}
