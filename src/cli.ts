/** The `amesh-relay` command. */
import pkg from '../package.json' with { type: 'json' };
import { readArguments } from './arguments.ts';
import { settings, unknownSettings } from './config.ts';
import { createLog } from './log.ts';
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
  health: async () => (await import('./health.ts')).health,
  check: async () => (await import('./check.ts')).check,
};

const help =
  () => `amesh-relay ${pkg.version}: brings two amesh devices together by a 6-digit code, and forgets them.

Usage: amesh-relay [options]           Run the relay.
       amesh-relay health [options]    Ask the relay on this machine: silent and 0 when well, one line and 1 when not.
       amesh-relay check [URL] [--json] [--wait <s>] [--idle <s>]
                                       Pair with oneself through a relay and whatever stands in front of it, step by
                                       step: 0 when a device gets through, 1 when not. URL: ws://127.0.0.1:3001/ws.
                                       --wait for a relay that is still coming up, --idle for a proxy that cuts quiet
                                       sockets (90, say), --json for machines.

Options (they come before the environment):
  -p, --port <port>   ${settings.port.help} Default ${settings.port.shownDefault}.
  -H, --host <host>   ${settings.host.help} Default ${settings.host.shownDefault}.
  -h, --help          Print this.
  -v, --version       Print the version.

Environment:
${Object.values(settings)
  .map(
    ({ env, help, shownDefault }) =>
      `  ${env.padEnd(32)} ${help.replaceAll('`', '')}${shownDefault && ` Default ${shownDefault}.`}`,
  )
  .join('\n')}

Then, on the two devices:
  amesh listen --relay ws://HOST:3001/ws
  amesh invite 482916 --relay ws://HOST:3001/ws

A signal (SIGTERM, SIGINT, SIGHUP) drains: pairings under way finish, then the relay stops. A second one stops it at once.
Exit codes: 0 stopped, 1 could not start, 2 wrong usage.
`;

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
  log.info('listening', { websocket: url, health, host, port, version: pkg.version, metrics });
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
    process.stdout.write(help());
    return;
  }
  if (args.includes('--version') || args.includes('-v')) {
    process.stdout.write(`${pkg.version}\n`);
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
  if (['ERR_RELAY_LISTEN', 'ERR_RELAY_TLS', 'ERR_RELAY_REDIS'].includes(code)) {
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
