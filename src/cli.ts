/** The `amesh-relay` command: arguments, subcommands, signals and exit codes. */
import { version } from '../package.json' with { type: 'json' };
import {
  changedSettings,
  type Config,
  ConfigError,
  type Flags,
  readEnvironment,
  readFlags,
  unknownSettings,
} from './config.ts';
import { createLog, isTerminal, type Log } from './observe/log.ts';
import type { Outcome } from './observe/stats.ts';
import { RelayServer } from './server.ts';

const FAILURE = 1;
const USAGE_ERROR = 2;
/** The exit code that shells report for a program that was ended by a closed pipe: 128 + SIGPIPE. */
const CLOSED_PIPE = 141;

/**
 * The subcommands. Each takes the arguments after its name and resolves to the exit code. A `ConfigError` or an error of
 * `parseArgs` that it throws is reported as wrong usage. Only the one that runs is loaded.
 */
const commands: Record<string, (args: string[]) => Promise<number>> = {
  health: async (args) => (await import('./check/health.ts')).health(args),
  check: async (args) => (await import('./check/check.ts')).check(args),
};

function fail(message: string, code: number): never {
  process.stderr.write(`amesh-relay: ${message}\n`);
  process.exit(code);
}

async function serve(args: string[]): Promise<void> {
  const flags = await readFlags(args);
  const config = readEnvironment(process.env, flags);
  const log = createLog(config.logLevel);
  const relay = new RelayServer(config, { log });
  let isListening = false;
  let drain = true;
  // Set before the start, since process 1 of a container ignores signals that it does not handle.
  onSignals(() => {
    if (!isListening) process.exit(0);
    relay.stop({ drain }).then(
      () => process.exit(0),
      (error: unknown) => fail(String(error), FAILURE),
    );
    drain = false;
  });
  const { url } = await relay.start();
  isListening = true;
  if (isTerminal()) tellPeople(log, config, relay, url, flags);
  else log.info('settings', config);
  const unknown = unknownSettings(process.env);
  if (unknown.length > 0) log.warn('unknown AMESH_ variables, ignored', { names: unknown });
}

/** For people at a terminal: the page's URL, the settings that they changed, and a line when a pairing begins or ends. */
function tellPeople(
  log: Log,
  config: Config,
  { metricsPort, sockets }: RelayServer,
  url: string,
  flags: Flags,
): void {
  const page = url.replace(/^ws/, 'http').slice(0, -'ws'.length);
  if (config.page) log.info(`See it and try it in a browser: ${page}`);
  if (metricsPort !== undefined) log.info('metrics are on', { port: metricsPort });
  const changed = changedSettings(process.env, flags);
  if (Object.keys(changed).length > 0) log.info('settings that you changed', changed);
  const after = (ms: number) => ({ after: `${(ms / 1000).toFixed(1)} s` });
  sockets.stats.onBegun.push((ms) => log.info('two devices have met', after(ms)));
  sockets.stats.onEnded.push((ms, outcome) =>
    log.info(`their pairing ${ENDINGS[outcome]}`, after(ms)),
  );
}

const ENDINGS: Record<Outcome, string> = {
  completed: 'is complete',
  expired: 'ran out of time',
  abandoned: 'ended early',
};

/** Calls `stop` at each SIGTERM, SIGINT and SIGHUP. Ignores SIGUSR1 and SIGUSR2, which would end the process. */
function onSignals(stop: () => void): void {
  for (const signal of ['SIGTERM', 'SIGINT'] as const) process.on(signal, stop);
  for (const signal of ['SIGUSR1', 'SIGUSR2'] as const) process.on(signal, () => {});
  void ignoresHangup().then((ignores) => {
    if (!ignores) process.on('SIGHUP', stop);
  });
}

/** Whether SIGHUP was ignored when this process started, which is what nohup does. Known only on Linux. */
async function ignoresHangup(): Promise<boolean> {
  const status = await Bun.file('/proc/self/status')
    .text()
    .catch(() => '');
  const mask = /^SigIgn:\s*([0-9a-f]+)$/m.exec(status)?.[1] ?? '0';
  return (BigInt(`0x${mask}`) & 1n) === 1n;
}

async function main(args: string[]): Promise<void> {
  const [name = '', ...rest] = args;
  const isServing = args.length === 0 || name.startsWith('-');
  const asksHelp = args.includes('--help') || args.includes('-h');
  const asksVersion = args.includes('--version') || args.includes('-v');
  if (isServing && !asksHelp && !asksVersion) return serve(args);

  // A reader that closes the pipe early (`amesh-relay check … | head -2`) is not a failure to report.
  process.stdout.on('error', () => process.exit(CLOSED_PIPE));
  if (asksHelp) {
    process.stdout.write((await import('./help.ts')).help);
  } else if (asksVersion) {
    process.stdout.write(`${version}\n`);
  } else if (Object.hasOwn(commands, name)) {
    process.exit(await commands[name]?.(rest));
  } else {
    const names = Object.keys(commands);
    const meant = names.find((known) => known.slice(0, 2) === name.slice(0, 2));
    throw new ConfigError(
      `there is no command ${JSON.stringify(name)}; ${meant ? `did you mean ${meant}?` : `expected ${names.join(' or ')}, or none to run the relay.`} See amesh-relay --help.`,
    );
  }
}

main(process.argv.slice(2)).catch((error: Error & { code?: string }) => {
  const { code = '', message } = error;
  if (code === 'ERR_RELAY_CONFIG') fail(message, USAGE_ERROR);
  if (code.startsWith('ERR_RELAY_')) fail(message, FAILURE);
  if (code.startsWith('ERR_PARSE_ARGS')) {
    const line = message.replaceAll(/\s+/g, ' ').replace(/\.?$/, '.');
    fail(`${line} See amesh-relay --help.`, USAGE_ERROR);
  }
  throw error;
});
