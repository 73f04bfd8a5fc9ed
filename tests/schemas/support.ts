import { describe, test } from 'bun:test';
import { existsSync } from 'node:fs';
import { join } from 'node:path';

export const root = join(import.meta.dir, '../..');
export const read = (file: string): Promise<string> => Bun.file(join(root, file)).text();

/** Tests that need the packages of this folder. Where `bun run tools` has not installed them, one skipped test says so. */
export function describeWithTools(name: string, tests: () => void): void {
  if (existsSync(join(import.meta.dir, 'node_modules'))) describe(name, tests);
  else test.skip(`${name}: SKIPPED, its packages are not installed; npm run tools installs them`);
}
