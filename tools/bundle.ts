/**
 * Bundles the relay as the image carries it: what every start needs in one file, and each part that is loaded when it
 * is first needed in one of its own, so that no start reads it. Usage: bun tools/bundle.ts DIRECTORY
 */
import { dirname, join, parse } from 'node:path';

const source = join(import.meta.dir, '..', 'src');
const [outdir] = process.argv.slice(2);
if (outdir === undefined) throw new Error('expected the directory that the bundle goes to');

const start = join(source, 'cli.ts');
const parts = new Set([start]);
for (const part of parts) {
  await Bun.build({
    entrypoints: [part],
    outdir,
    target: 'bun',
    format: 'cjs',
    minify: true,
    bytecode: true,
    banner: part === start ? '#!/usr/local/bin/bun' : '',
    plugins: [{ name: 'parts', setup: apart }],
  });
}

/** Leaves out what is loaded lazily, and notes it as a part. */
function apart(build: Bun.PluginBuilder): void {
  build.onResolve({ filter: /^\.\/[\w-]+\.ts$/ }, ({ importer, kind, path }) => {
    if (kind !== 'dynamic-import' && kind !== 'require-call') return undefined;
    parts.add(join(dirname(importer), path));
    return { path: `./${parse(path).name}.js`, external: true };
  });
}
