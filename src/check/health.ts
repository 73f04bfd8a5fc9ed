/** `amesh-relay health`: asks the relay on this machine how it is. For health checks where there is no curl. */
import { connectable, readEnvironment, readFlags } from '../config.ts';

/** In milliseconds. Together with the start of this process, well within two seconds. */
const DEADLINE_MS = 1500;

/** @returns 0, saying nothing, if the relay is well; 1 and one line if it is not. */
export async function health(args: string[]): Promise<number> {
  const started = await Bun.file('/proc/1/cmdline')
    .text()
    .catch(() => '');
  // The last of two equal flags counts.
  const flags = await readFlags([...flagsIn(started), ...args]);
  const { host, port, tlsCertFile } = readEnvironment(process.env, flags);
  if (port === 0) {
    process.stderr.write(
      'amesh-relay: port 0 means that the system chose one; give the port that the log says (PORT, --port)\n',
    );
    return 1;
  }
  const url = `${tlsCertFile ? 'https' : 'http'}://${connectable(host)}:${port}/health`;
  const problem = await ask(url);
  if (problem) process.stderr.write(`amesh-relay: ${url}: ${problem}\n`);
  return problem ? 1 : 0;
}

/**
 * The flags that a relay was started with: in a container the relay is process 1, and it is the one to ask.
 * @param commandLine As `/proc/PID/cmdline` has it: words, each ended by a NUL.
 * @returns None if the process is no relay.
 */
export function flagsIn(commandLine: string): string[] {
  const words = commandLine.split('\0');
  const at = words.findIndex((word) => /(?:^|\/)amesh-relay(?:\.js)?$/.test(word));
  const flags = at < 0 ? [] : words.slice(at + 1, -1);
  return flags[0]?.startsWith('-') ? flags : [];
}

/** What is wrong, in one line; undefined if nothing is. */
async function ask(url: string): Promise<string | undefined> {
  // The relay is on this machine, whatever proxy the environment names for the way out.
  process.env.NO_PROXY = '*';
  try {
    const response = await fetch(url, {
      signal: AbortSignal.timeout(DEADLINE_MS),
      // The certificate is for the relay's public name, and this asks by its local address.
      tls: { rejectUnauthorized: false },
    });
    const health = (await response.json().catch(() => null)) as { status?: unknown } | null;
    if (response.ok && health?.status === 'ok') return undefined;
    return `answered ${response.status} ${JSON.stringify(health?.status) ?? 'and is no relay'}`;
  } catch (error) {
    const { code, name } = error as Error & { code?: string };
    if (code === 'ECONNREFUSED' || code === 'ConnectionRefused') {
      return 'nothing listens there; start the relay, or give the port it has (PORT, --port)';
    }
    if (name === 'TimeoutError') return `no answer within ${DEADLINE_MS / 1000} s`;
    return url.startsWith('https:')
      ? 'no answer over TLS; the port may speak plain HTTP (then unset TLS_CERT_FILE), or be another program’s'
      : 'no answer over HTTP; the port may speak TLS (then set TLS_CERT_FILE as for the relay), or be another program’s';
  }
}
