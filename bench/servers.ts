/** The servers that are compared, each a process of its own, and what the system says of that process. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { amesh, type Dialect, type Goal, peerjs } from './load.ts';

const here = import.meta.dir;
const relay = join(here, '..', 'bin', 'amesh-relay.js');
const bun = process.execPath;

export interface Contestant {
  /** As tables and plots name it. */
  label: string;
  command: string[];
  dialect: Dialect;
}

export const contestants = {
  relay: { label: 'relay', command: [bun, relay], dialect: amesh },
  bare: { label: 'bare Bun', command: [bun, join(here, 'yardsticks', 'bare.ts')], dialect: amesh },
  ws: {
    label: 'Node, ws',
    command: ['node', join(here, 'yardsticks', 'ws.mjs')],
    dialect: amesh,
  },
  peerjs: {
    label: 'PeerJS',
    command: ['node', join(here, 'yardsticks', 'peerjs.mjs')],
    dialect: peerjs,
  },
} satisfies Record<string, Contestant>;

export type Name = keyof typeof contestants;

/** As the relay ships. */
const asShipped = { ...process.env, PORT: '0', NODE_ENV: 'production' };

/** One client stands for ten thousand here, and waits longer than devices do: the relay as it ships, with more room. */
const withRoom = {
  ...asShipped,
  AMESH_MAX_CONNECTIONS: '100000',
  AMESH_MAX_CONNECTIONS_PER_CLIENT: '100000',
  AMESH_MAX_LISTENS: '1000000',
  AMESH_MAX_BYTES_PER_SECOND: '1073741824',
  AMESH_SESSION_TTL: '300',
  AMESH_IDLE_SECONDS: '3600',
};

/** Ticks of `/proc/PID/stat`, on every Linux that Bun runs on. */
const TICKS_PER_SECOND = 100;
const START_DEADLINE_MS = 10_000;

/** Starts a server and waits until it says which port it has; then it listens. */
export async function startServer(
  { command, dialect }: Contestant,
  { isAsShipped = false, strangers = false } = {},
): Promise<RunningServer> {
  const child = Bun.spawn(command, {
    env: {
      ...(isAsShipped ? asShipped : withRoom),
      ...(strangers && { AMESH_TRUST_PROXY: '1' }),
    },
    stdin: 'ignore',
    stdout: 'pipe',
    stderr: 'inherit',
  });
  const deadline = setTimeout(() => child.kill('SIGKILL'), START_DEADLINE_MS);
  const output = child.stdout.getReader();
  let said = '';
  for (;;) {
    const { value, done } = await output.read();
    if (done) throw new Error(`${command.join(' ')} did not start: ${said}`);
    said += Buffer.from(value).toString();
    const port = /"port":(\d+)/.exec(said)?.[1];
    if (port === undefined) continue;
    clearTimeout(deadline);
    void skip(output);
    return new RunningServer(child, { port: Number(port), dialect, strangers });
  }
}

export class RunningServer {
  readonly goal: Goal;
  readonly #child: Bun.Subprocess;

  constructor(child: Bun.Subprocess, goal: Goal) {
    this.#child = child;
    this.goal = goal;
  }

  /** Seconds of CPU that the process has used so far, in user and system mode, all threads. */
  get cpu(): number {
    const { exitCode, signalCode } = this.#child;
    if (exitCode !== null || signalCode !== null) {
      throw new Error(`the server ended early: ${signalCode ?? exitCode}`);
    }
    const stat = readFileSync(`/proc/${this.#child.pid}/stat`, 'latin1');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
  }

  /** Bytes of memory that the process holds. */
  get rss(): number {
    const status = readFileSync(`/proc/${this.#child.pid}/status`, 'latin1');
    return Number(/VmRSS:\s+(\d+) kB/.exec(status)?.[1]) * 1024;
  }

  async stop(): Promise<void> {
    this.#child.kill('SIGKILL');
    await this.#child.exited;
  }
}

/** A server that logs must not find its pipe full. */
async function skip(output: { read(): Promise<{ done: boolean }> }): Promise<void> {
  while (!(await output.read()).done);
}
