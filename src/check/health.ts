/** `amesh-relay health`: asks the relay on this machine how it is. For health checks where there is no curl. */
import { readArguments } from '../arguments.ts';
import { connectable } from '../config.ts';

/** With the start of this process well within 2 s. */
const DEADLINE_MS = 1500;

/** @returns 0 and nothing said when the relay is well, 1 and one line when it is not. */
export async function health(args: string[]): Promise<number> {
  const { host, port, tlsCertFile } = await readArguments(args);
  const url = `${tlsCertFile ? 'https' : 'http'}://${connectable(host)}:${port}/health`;
  const problem = await ask(url);
  if (problem) process.stderr.write(`amesh-relay: ${url}: ${problem}\n`);
  return problem ? 1 : 0;
}

/** What is wrong, in one line; undefined where nothing is. */
async function ask(url: string): Promise<string | undefined> {
  // The relay is here, whatever proxy the environment names for the way out.
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
    const { code, message } = error as Error & { code?: string };
    return code === 'ECONNREFUSED'
      ? 'nothing listens there; start the relay, or give the port it has (PORT, --port)'
      : message.split('\n')[0];
  }
}
