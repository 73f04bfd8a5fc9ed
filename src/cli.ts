/** The `amesh-relay` command. */
import { version } from '../package.json' with { type: 'json' };
import { readArguments } from './arguments.ts';
import { unknownSettings } from './config.ts';
import { createLog } from './observe/log.ts';
import { RelayServer } from './server.ts';

const USAGE_ERROR = 2;
const FAILURE = 1;

/**
 * A subcommand: takes the arguments after its name, resolves to the exit code. What `parseArgs` throws, and a
 * `ConfigError`, is told as wrong usage; help and version are answered before.
 */
export type Command = (args: string[]) => Promise<number>;

/** Every subcommand, loaded only when it is the one that runs. */
const commands: Record<string, () => Promise<Command>> = {
  health: async () => (await import('./check/health.ts')).health,
  check: async () => (await import('./check/check.ts')).check,
};

function fail(message: string, code: number): never {
  process.stderr.write(`amesh-relay: ${message}\n`);
  process.exit(code);
}

async function serve(args: string[]): Promise<void> {
  const config = await readArguments(args);
  const log = createLog(config.logLevel);
  const relay = new RelayServer(config, { log });
  const { host, port, url } = await relay.start();
  const health = `${url.replace(/^ws/, 'http').slice(0, -'/ws'.length)}/health`;
  const metrics = relay.metricsPort;
  log.info('listening', { websocket: url, health, host, port, version, metrics });
  log.info('settings', config);
  const unknown = unknownSettings(process.env);
  if (unknown.length > 0)
    log.warn('these are set, and are no settings of the relay', { names: unknown });

  let drain = true;
  const stop = (): void => {
    relay.stop({ drain }).then(
      () => process.exit(0),
      (error: unknown) => fail(String(error), FAILURE),
    );
    drain = false;
  };
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.on(signal, stop);
}

async function main(args: string[]): Promise<void> {
  if (args.includes('--help') || args.includes('-h')) {
    process.stdout.write((await import('./help.ts')).help);
    return;
  }
  if (args.includes('--version') || args.includes('-v')) {
    process.stdout.write(`${version}\n`);
    return;
  }
  const [name = '', ...rest] = args;
  if (!Object.hasOwn(commands, name)) return serve(args);
  const command = await commands[name]?.();
  process.exit(await command?.(rest));
}

main(process.argv.slice(2)).catch((error: Error & { code?: string }) => {
  const { code = '', message } = error;
  if (code === 'ERR_RELAY_CONFIG') fail(message, USAGE_ERROR);
  if (['ERR_RELAY_LISTEN', 'ERR_RELAY_TLS', 'ERR_RELAY_REDIS', 'ERR_RELAY_TOKENS'].includes(code)) {
    fail(message, FAILURE);
  }
  if (code.startsWith('ERR_PARSE_ARGS')) {
    fail(
      `${message.replaceAll(/\s+/g, ' ').replace(/\.?$/, '.')} See amesh-relay --help.`,
      USAGE_ERROR,
    );
  }
  throw error;
});
