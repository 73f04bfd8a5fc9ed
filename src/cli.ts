/** The `amesh-relay` command. */
import { parseArgs } from 'node:util';
import pkg from '../package.json' with { type: 'json' };
import { ConfigError, readEnvironment, settings, type SettingName } from './config.ts';
import { createLog } from './log.ts';
import { ListenError, RelayServer } from './server.ts';

const USAGE_ERROR = 2;
const FAILURE = 1;

const HELP = `amesh-relay ${pkg.version}: brings two amesh devices together by a 6-digit code, and forgets them.

Usage: amesh-relay [options]

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

A signal (SIGTERM, SIGINT) drains: pairings under way finish, then the relay stops. A second one stops it at once.
Exit codes: 0 stopped, 1 could not start, 2 wrong usage.
`;

function fail(message: string, code: number): never {
  process.stderr.write(`amesh-relay: ${message}\n`);
  process.exit(code);
}

function readArguments(): Partial<Record<SettingName, { label: string; text: string }>> {
  const flags = (() => {
    try {
      return parseArgs({
        options: {
          port: { type: 'string', short: 'p' },
          host: { type: 'string', short: 'H' },
          help: { type: 'boolean', short: 'h' },
          version: { type: 'boolean', short: 'v' },
        },
      }).values;
    } catch (error) {
      return fail(
        `${(error as Error).message.split('\n')[0]} See amesh-relay --help.`,
        USAGE_ERROR,
      );
    }
  })();
  if (flags.help) {
    process.stdout.write(HELP);
    process.exit(0);
  }
  if (flags.version) {
    process.stdout.write(`${pkg.version}\n`);
    process.exit(0);
  }
  return {
    ...(flags.port !== undefined && { port: { label: '--port', text: flags.port } }),
    ...(flags.host !== undefined && { host: { label: '--host', text: flags.host } }),
  };
}

async function main(): Promise<void> {
  const config = readEnvironment(process.env, readArguments());
  const log = createLog(config.logLevel);
  const relay = new RelayServer(config, { log });
  const { host, port, url } = await relay.start();
  const health = `${url.replace(/^ws/, 'http').slice(0, -'/ws'.length)}/health`;
  const metrics = relay.metricsPort;
  log.info('listening', {
    websocket: url,
    health,
    host,
    port,
    version: pkg.version,
    metrics,
    settings: config,
  });

  let drain = true;
  const stop = (): void => {
    relay.stop({ drain }).then(
      () => process.exit(0),
      (error: unknown) => fail(String(error), FAILURE),
    );
    drain = false;
  };
  process.on('SIGTERM', stop);
  process.on('SIGINT', stop);
}

main().catch((error: unknown) => {
  if (error instanceof ConfigError) fail(error.message, USAGE_ERROR);
  if (error instanceof ListenError) fail(error.message, FAILURE);
  throw error;
});
