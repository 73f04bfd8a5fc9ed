import { describe, test } from 'bun:test';
import { existsSync } from 'node:fs';
import { mkdtemp, rm, symlink } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

export const root = join(import.meta.dir, '../..');
export const read = (file: string): Promise<string> => Bun.file(join(root, file)).text();

/** Tests that need the packages of this folder. Where `bun run tools` has not installed them, one skipped test says so. */
export function describeWithTools(name: string, tests: () => void): void {
  if (existsSync(join(import.meta.dir, 'node_modules'))) describe(name, tests);
  else test.skip(`${name}: SKIPPED, its packages are not installed; npm run tools installs them`);
}

/** What TypeScript says of a program that may import this folder's packages; nothing where it has no errors. */
export async function typeErrors(program: string): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'amesh-relay-types-'));
  try {
    await symlink(join(import.meta.dir, 'node_modules'), join(folder, 'node_modules'));
    await Bun.write(join(folder, 'all.ts'), program);
    const flags = ['--noEmit', '--strict', '--skipLibCheck', '--module', 'preserve'];
    const tsc = Bun.spawn([join(root, 'node_modules/.bin/tsc'), ...flags, 'all.ts'], {
      cwd: folder,
      stdout: 'pipe',
    });
    return await tsc.stdout.text();
  } finally {
    await rm(folder, { recursive: true });
  }
}
