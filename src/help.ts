/** The text of `amesh-relay --help`. */
import { version } from '../package.json' with { type: 'json' };
import { settings } from './config.ts';

/** The width of the help text, in columns. */
const WIDTH = 100;
const NAME_WIDTH = 34;

const withoutMarkdown = (text: string): string =>
  text.replaceAll('`', '').replaceAll(/\[(.*?)\]\(.*?\)/g, '$1');

/** A row of the help text: a name, and beside it its meaning in one or more lines. */
function row(name: string, meaning: string): string {
  const lines = Bun.wrapAnsi(meaning, WIDTH - NAME_WIDTH - 2).split('\n');
  return lines.map((line, i) => `  ${(i ? '' : name).padEnd(NAME_WIDTH)}${line}`).join('\n');
}

const environment = Object.values(settings).map(({ env, help, shownDefault, range }) => {
  const normal = shownDefault && ` Default ${shownDefault}${range ? ` (${range})` : ''}.`;
  return row(env, withoutMarkdown(help) + normal);
});

export const help = `amesh-relay ${version}: brings two amesh devices together by a 6-digit code, and forgets them.

Usage:
${row('amesh-relay [options]', 'Run the relay.')}
${row('amesh-relay health [options]', 'Check the relay on this machine: no output and exit code 0 if it is well, one line and 1 if not.')}
${row('amesh-relay check [URL] [options]', 'Test a relay and all proxies in front of it step by step, with a pairing of its own: exit code 0 if a device gets through, 1 if not. URL: ws://127.0.0.1:3001/ws by default.')}

Options of the relay and of health; they come before the environment:
${row('-p, --port <port>', `${settings.port.help} Default ${settings.port.shownDefault}.`)}
${row('-H, --host <host>', `${settings.host.help} Default ${settings.host.shownDefault}.`)}
${row('-h, --help', 'Print this.')}
${row('-v, --version', 'Print the version.')}

Options of check:
${row('--wait <s>', 'Wait up to this many seconds for a relay that is starting.')}
${row('--idle <s>', 'Keep a connection silent for this many seconds, to find a proxy that closes it. Default 35; with --every 0, which skips this.')}
${row('--token <token>', 'The access token of a private relay. It may also be ?token= in the URL, or AMESH_ACCESS_TOKEN, which lists of processes do not show.')}
${row('--json', 'Print JSON, for machines.')}
${row('--every <s>', 'Check again every <s> seconds (15 to 3600), with one line for each run, until SIGINT or SIGTERM. Then print a summary: exit code 0 if no run failed, 1 if one did.')}
${row('--metrics-port <port>', 'With --every: port for Prometheus (/metrics) of the check itself, at METRICS_HOST, or else HOST. Off by default.')}

Environment (files such as .env are not read):
${environment.join('\n')}

Then, on the two devices:
  amesh listen --relay ws://HOST:3001/ws
  amesh invite 482916 --relay ws://HOST:3001/ws

SIGTERM, SIGINT and SIGHUP drain: pairings under way finish, then the relay stops. A second one
stops it at once. SIGUSR1 and SIGUSR2 do nothing.
Exit codes: 0 stopped, 1 could not start, 2 wrong usage.
`;
