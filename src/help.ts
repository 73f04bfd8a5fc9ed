/** `amesh-relay --help`. */
import { version } from '../package.json' with { type: 'json' };
import { type Setting, settings } from './config.ts';

const withoutMarkdown = (text: string): string =>
  text.replaceAll('`', '').replaceAll(/\[(.*?)\]\(.*?\)/g, '$1');

function line({ env, help, shownDefault, range }: Setting): string {
  const normal = shownDefault && ` Default ${shownDefault}${range ? ` (${range})` : ''}.`;
  return `  ${env.padEnd(32)} ${withoutMarkdown(help)}${normal}`;
}

export const help = `amesh-relay ${version}: brings two amesh devices together by a 6-digit code, and forgets them.

Usage: amesh-relay [options]           Run the relay.
       amesh-relay health [options]    Ask the relay on this machine: silent and 0 when well, one line and 1 when not.
       amesh-relay check [URL] [--json] [--wait <s>] [--idle <s>] [--token <token>]
                                       Pair with oneself through a relay and whatever stands in front of it, step by
                                       step: 0 when a device gets through, 1 when not. URL: ws://127.0.0.1:3001/ws.
                                       --json for machines, --wait for a relay that is still coming up, --idle for how
                                       long a connection is left quiet at the end (35; 0 for not at all). The access
                                       token of a private relay: --token, ?token= in the URL, or AMESH_ACCESS_TOKEN,
                                       which no list of processes shows.

Options (they come before the environment):
  -p, --port <port>   ${settings.port.help} Default ${settings.port.shownDefault}.
  -H, --host <host>   ${settings.host.help} Default ${settings.host.shownDefault}.
  -h, --help          Print this.
  -v, --version       Print the version.

Environment:
${Object.values<Setting>(settings).map(line).join('\n')}

Then, on the two devices:
  amesh listen --relay ws://HOST:3001/ws
  amesh invite 482916 --relay ws://HOST:3001/ws

A signal (SIGTERM, SIGINT, SIGHUP) drains: pairings under way finish, then the relay stops. A second one stops it at once.
Exit codes: 0 stopped, 1 could not start, 2 wrong usage.
`;
