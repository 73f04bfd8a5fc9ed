/** The client library as the package has it, built into a folder of its own, and programs that run there. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pkg from '../package.json' with { type: 'json' };
import { afterThisTest } from './support.ts';

const root = join(import.meta.dir, '..');

/** Bun, and Node.js if it has a WebSocket. */
export const runtimes: string[] = ['bun'];
const node = Bun.spawnSync(['node', '--version']).stdout.toString();
if (Number(/^v(\d+)/.exec(node)?.[1] ?? 0) >= 22) runtimes.push('node');
else {
  console.warn(
    `SKIPPED: the client's examples in Node.js, which has no WebSocket before 22 (here: ${node.trim() || 'none'})`,
  );
}

export interface Program {
  /** Waits until the output matches, and returns the first group. */
  shows: (wanted: RegExp) => Promise<string>;
  types: (line: string) => void;
  /** Its whole output, when it has ended. */
  ended: () => Promise<string>;
}

export interface Project {
  folder: string;
  /** Runs a program of the project. */
  run: (command: string[], env?: Record<string, string>) => Program;
}

/**
 * Installs the built library, and writes the programs of a page of the documentation beside it: each block that begins
 * with a comment that names its file.
 * @param url What stands for the relay's URL in them.
 */
export async function project(page: string, url: string): Promise<Project & AsyncDisposable> {
  const folder = await mkdtemp(join(tmpdir(), 'relay-client-'));
  const home = join(folder, 'node_modules', pkg.name);
  // Like `bun run client`, so that the tests use the same build as the package.
  const build = pkg.scripts.client.replace('--outdir=dist', `--outdir=${join(home, 'dist')}`);
  const built = Bun.spawnSync(build.split(' '), { cwd: root, stderr: 'pipe' });
  if (!built.success) throw new Error(built.stderr.toString());
  await Bun.write(join(home, 'package.json'), JSON.stringify(pkg));
  const text = await Bun.file(join(root, page)).text();
  for (const [, name = '', code = ''] of text.matchAll(/```js\n\/\/ (\S+)\n([^]*?)```/g)) {
    await Bun.write(join(folder, name), code.replace('wss://relay.example.com/ws', url));
  }
  return {
    folder,
    run: (command, env = {}) => start(command, folder, env),
    [Symbol.asyncDispose]: () => rm(folder, { recursive: true }),
  };
}

/** Starts a program, and reads its output. */
export function start(command: string[], cwd: string, env: Record<string, string> = {}): Program {
  const child = Bun.spawn(command, {
    cwd,
    env: { ...process.env, ...env },
    stdin: 'pipe',
    stdout: 'pipe',
    stderr: 'inherit',
  });
  afterThisTest(() => child.kill());
  const reader = child.stdout.pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  const more = async (): Promise<boolean> => {
    const { done, value } = await reader.read();
    text += value ?? '';
    return !done;
  };
  return {
    async shows(wanted) {
      for (;;) {
        const match = wanted.exec(text);
        if (match) return match[1] ?? '';
        if (!(await more())) throw new Error(`${command.join(' ')} ended with: ${text}`);
      }
    },
    types(line) {
      void child.stdin.write(`${line}\n`);
      void child.stdin.flush();
    },
    async ended() {
      while (await more());
      await child.exited;
      return text;
    },
  };
}
