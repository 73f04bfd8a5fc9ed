import { existsSync } from 'node:fs';
import { join } from 'node:path';

export const root = join(import.meta.dir, '../..');
export const read = (file: string): Promise<string> => Bun.file(join(root, file)).text();

/** Whether `bun run tools` has installed the packages that the tests of this folder need. */
export const areToolsHere = existsSync(join(import.meta.dir, 'node_modules'));
if (!areToolsHere) {
  console.warn(
    'SKIPPED: tests/schemas, since its packages are not installed; `npm run tools` installs them',
  );
}
