/**
 * Bundles the relay as the image carries it. Usage: bun tools/bundle.ts DIRECTORY
 *
 * `cli.js` holds what every start needs, as bytecode. Each module that is loaded by `import()` becomes a file of its own
 * beside it, so that a start does not read it. Bun's own `splitting` would do the same, but has no bytecode, and a start
 * then takes four times as long as a bare server's instead of two and a half.
 */
import { dirname, join, parse } from 'node:path';

const [outdir] = process.argv.slice(2);
if (outdir === undefined) throw new Error('expected the directory that the bundle goes to');

const entrypoints = new Set([join(import.meta.dir, '../src/cli.ts')]);
for (const entrypoint of entrypoints) {
  await Bun.build({
    entrypoints: [entrypoint],
    outdir,
    target: 'bun',
    format: 'cjs',
    minify: true,
    bytecode: true,
    // Neither the .env nor the bunfig.toml of the current folder is read.
    banner: '#!/usr/bin/env -S /usr/local/bin/bun --env-file=/dev/null --config=/dev/null',
    plugins: [
      {
        name: 'a file for each import()',
        setup(build) {
          build.onResolve({ filter: /^\.\.?\/.*\.ts$/ }, ({ kind, path, importer }) => {
            if (kind !== 'dynamic-import') return undefined;
            entrypoints.add(join(dirname(importer), path));
            return { path: `./${parse(path).name}.js`, external: true };
          });
        },
      },
    ],
  });
}
