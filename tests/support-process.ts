/** Runs the command in a separate process, as its user does. */
import { join } from 'node:path';

export const command = join(import.meta.dir, '../bin/amesh-relay.js');

/** The environment of a process under test, without the settings of this process. */
const environment = { PATH: process.env['PATH'] };

/** Runs to the end. */
export async function run(
  args: string[],
  env: Record<string, string> = {},
): Promise<{ code: number; out: string; err: string }> {
  const child = Bun.spawn(['bun', command, ...args], {
    env: { ...environment, ...env },
    stdout: 'pipe',
    stderr: 'pipe',
  });
  const [out, err, code] = await Promise.all([
    child.stdout.text(),
    child.stderr.text(),
    child.exited,
  ]);
  return { code, out, err };
}

export interface RunningRelay extends AsyncDisposable {
  port: number;
  /** Its log line when it began to listen. */
  listening: { websocket: string; health: string };
  process: Bun.Subprocess<'ignore', 'pipe', 'inherit'>;
}

/** Starts the command on a free port, and resolves when it listens. Ends it at the end of the block. */
export async function startProcess(env: Record<string, string> = {}): Promise<RunningRelay> {
  const child = Bun.spawn(['bun', command], {
    env: { ...environment, PORT: '0', HOST: '127.0.0.1', ...env },
    stdin: 'ignore',
    stdout: 'pipe',
    stderr: 'inherit',
  });
  let text = '';
  const decoder = new TextDecoder();
  for await (const chunk of child.stdout) {
    text += decoder.decode(chunk, { stream: true });
    if (text.includes('\n')) break;
  }
  const listening = JSON.parse(text.slice(0, text.indexOf('\n'))) as RunningRelay['listening'] & {
    port: number;
  };
  return {
    port: listening.port,
    listening,
    process: child,
    async [Symbol.asyncDispose]() {
      child.kill('SIGKILL');
      await child.exited;
    },
  };
}
