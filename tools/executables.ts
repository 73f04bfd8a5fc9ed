/**
 * Builds the relay as one executable, which needs no Bun, for each system that it is released for.
 * Usage: bun tools/executables.ts DIRECTORY [SYSTEM...]      (SYSTEM: a name from the table below; all if left out)
 *
 * Bun takes the runtime of another system from the npm registry (the package @oven/bun-…, of its own version).
 */
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';

/** The end of each executable's name, as `uname` and Debian write it, and what Bun calls that system. */
const systems: Record<string, string> = {
  'linux-amd64': 'bun-linux-x64',
  'linux-arm64': 'bun-linux-arm64',
  'linux-amd64-musl': 'bun-linux-x64-musl',
  'linux-arm64-musl': 'bun-linux-arm64-musl',
  'macos-amd64': 'bun-darwin-x64',
  'macos-arm64': 'bun-darwin-arm64',
};

const [outdir, ...wanted] = process.argv.slice(2);
const unknown = wanted.filter((name) => !Object.hasOwn(systems, name));
if (outdir === undefined || unknown.length > 0) {
  console.error(
    `usage: bun tools/executables.ts DIRECTORY [SYSTEM...]; a SYSTEM is one of ${Object.keys(systems).join(', ')}`,
  );
  process.exit(2);
}

await mkdir(outdir, { recursive: true });
for (const name of wanted.length > 0 ? wanted : Object.keys(systems)) {
  const file = join(outdir, `amesh-relay-${name}`);
  const build = Bun.spawn(
    [
      process.execPath,
      'build',
      join(import.meta.dir, '../src/cli.ts'),
      '--compile',
      `--target=${systems[name]}`,
      `--outfile=${file}`,
      '--minify',
      // Machine-independent code that the runtime need not parse: a start takes a third of the time with it.
      '--bytecode',
      // Neither the .env nor the bunfig.toml of the folder that it is started in is read.
      '--no-compile-autoload-dotenv',
      '--no-compile-autoload-bunfig',
    ],
    { stdout: 'ignore', stderr: 'inherit' },
  );
  if ((await build.exited) !== 0) process.exit(1);
  console.log(file);
}
