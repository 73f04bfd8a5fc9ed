/** `amesh-relay --help`, and what else helps somebody who typed something wrong. */
import { version } from '../package.json' with { type: 'json' };
import { settings } from './config.ts';

/** No line is wider, in columns. */
const WIDTH = 100;
const NAME_WIDTH = 34;

const withoutMarkdown = (text: string): string =>
  text.replaceAll('`', '').replaceAll(/\[(.*?)\]\(.*?\)/g, '$1');

/** A name, and what it means beside it, in as many lines as that takes. */
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
${row('amesh-relay health [options]', 'Ask the relay on this machine how it is: silent and 0 if it is well, one line and 1 if not.')}
${row('amesh-relay check [URL] [options]', 'Pair with oneself through a relay and whatever stands in front of it, step by step: 0 if a device gets through, 1 if not. URL: ws://127.0.0.1:3001/ws by default.')}

Options of the relay and of health; they come before the environment:
${row('-p, --port <port>', `${settings.port.help} Default ${settings.port.shownDefault}.`)}
${row('-H, --host <host>', `${settings.host.help} Default ${settings.host.shownDefault}.`)}
${row('-h, --help', 'Print this.')}
${row('-v, --version', 'Print the version.')}

Options of check:
${row('--wait <s>', 'Wait up to so many seconds for a relay that is still coming up.')}
${row('--idle <s>', 'Leave a connection quiet for so many seconds, to find a proxy that cuts it. Default 35, and with --every 0, which is not at all.')}
${row('--token <token>', 'The access token of a private relay. It may also be ?token= in the URL, or AMESH_ACCESS_TOKEN, which no list of processes shows.')}
${row('--json', 'Print JSON, for machines.')}
${row('--every <s>', 'Check again every so many seconds (15 to 3600), a line each, until SIGINT or SIGTERM; then say how it went: 0 if no run failed, 1 if one did.')}
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

/** The word that a mistyped one most likely means: it differs from it by at most two letters. */
export function nearest(typed: string, words: string[]): string | undefined {
  const [best] = words
    .map((word) => ({ word, distance: editDistance(typed.slice(0, 100), word) }))
    .sort((a, b) => a.distance - b.distance);
  return best && best.distance <= 2 ? best.word : undefined;
}

/** How many letters must be added, removed, replaced or swapped with their neighbour to make one word of the other. */
function editDistance(a: string, b: string): number {
  const rows: number[][] = [Array.from({ length: b.length + 1 }, (_, j) => j)];
  const at = (i: number, j: number): number => rows[i]?.[j] ?? Infinity;
  for (let i = 1; i <= a.length; i += 1) {
    rows.push([i]);
    for (let j = 1; j <= b.length; j += 1) {
      const isSwap = a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1];
      rows[i]?.push(
        Math.min(
          at(i - 1, j) + 1,
          at(i, j - 1) + 1,
          at(i - 1, j - 1) + (a[i - 1] === b[j - 1] ? 0 : 1),
          isSwap ? at(i - 2, j - 2) + 1 : Infinity,
        ),
      );
    }
  }
  return at(a.length, b.length);
}
