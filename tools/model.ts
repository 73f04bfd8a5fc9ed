/**
 * Checks the model of the secure handshake with Spin: that it holds as it is, and that Spin finds the relay's way in where
 * a part is left out. Needs `spin` and `gcc`.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const model = join(import.meta.dir, '../docs/model/handshake.pml');

export const variants = [
  { flags: [], what: 'the handshake', holds: true },
  { flags: ['-DNO_COMMITMENT'], what: 'without the commitment', holds: false },
  { flags: ['-DNO_RECEIPT'], what: 'without the receipt', holds: false },
  { flags: ['-DIS_POSSIBLE'], what: 'that nobody ever pairs', holds: false },
];

export const canCheck = (): boolean => Boolean(Bun.which('spin') && Bun.which('gcc'));

/**
 * @returns Whether the model holds with these flags, in how many states, and the first assertion that fails where it
 *   does not.
 */
export async function check(
  flags: string[],
): Promise<{ holds: boolean; states: number; failed: string | undefined }> {
  const folder = await mkdtemp(join(tmpdir(), 'relay-model-'));
  const run = async (command: string[]): Promise<string> => {
    const child = Bun.spawn(command, { cwd: folder, stdout: 'pipe', stderr: 'pipe' });
    const [out, problem] = await Promise.all([child.stdout.text(), child.stderr.text()]);
    if ((await child.exited) !== 0) throw new Error(`${command.join(' ')}: ${out}${problem}`);
    return out;
  };
  try {
    await run(['spin', '-a', ...flags, model]);
    await run(['gcc', '-O1', '-DSAFETY', '-o', 'pan', 'pan.c']);
    // -E: a side that waits for ever is no fault, since a relay may drop everything.
    const said = await run(['./pan', '-E']);
    const errors = /errors: (\d+)/.exec(said)?.[1];
    const states = /(\d+) states, stored/.exec(said)?.[1];
    // What was not searched to the end has shown nothing.
    if (
      errors === undefined ||
      states === undefined ||
      /depth too small|out of memory/.test(said)
    ) {
      throw new Error(`Spin did not search everything: ${said}`);
    }
    const failed = /assertion violated (.+) \(at depth/.exec(said)?.[1];
    return { holds: errors === '0', states: Number(states), failed };
  } finally {
    await rm(folder, { recursive: true });
  }
}

if (import.meta.main) {
  if (!canCheck()) {
    console.error(
      'The model needs Spin and a C compiler. Debian: apt-get install spin gcc libc6-dev',
    );
    process.exit(2);
  }
  for (const { flags, what, holds } of variants) {
    const found = await check(flags);
    const outcome = found.holds ? 'holds' : `fails, as ${found.failed}`;
    const verdict = found.holds === holds ? 'as it should' : 'AND SHOULD NOT';
    console.log(`${what}: ${outcome}, in ${found.states} states, ${verdict}`);
    if (found.holds !== holds) process.exitCode = 1;
  }
}
