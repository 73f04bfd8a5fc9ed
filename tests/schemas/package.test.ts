/**
 * The package as it would be published, read by the two linters of the field: publint looks whether every program finds
 * the files that package.json names, attw ("Are the types wrong?") whether TypeScript finds the types that belong to them.
 */
import { afterAll, beforeAll, expect, test } from 'bun:test';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describeWithTools, root } from './support.ts';

describeWithTools('the packed package', () => {
  let folder: string;
  let tarball: string;

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'amesh-relay-packed-'));
    tarball = join(folder, 'package.tgz');
    const pack = ['bun', 'pm', 'pack', '--quiet', '--filename', tarball];
    const { exitCode, stderr } = Bun.spawnSync(pack, { cwd: root });
    if (exitCode !== 0) throw new Error(stderr.toString());
  }, 60_000);
  afterAll(() => rm(folder, { recursive: true }));

  test('publint finds no problem', async () => {
    const { publint } = await import('publint');
    const { messages } = await publint({
      pack: { tarball: await Bun.file(tarball).arrayBuffer() },
      strict: true,
    });
    // bin/amesh-relay.js begins with #!/bin/sh, so that it can start Bun with arguments. publint takes that for a file
    // that is not executable, since it knows only the shebangs of Node.js, Bun and Deno.
    const problems = messages.filter(({ code }) => code !== 'BIN_FILE_NOT_EXECUTABLE');
    expect(problems).toEqual([]);
    expect(messages.length - problems.length).toBe(1);
  });

  test('attw finds the right types for every entry', () => {
    const attw = join(import.meta.dir, 'node_modules/@arethetypeswrong/cli/dist/index.js');
    // The package has no CommonJS, so only programs that use ES modules are asked for: Bun, Node.js, and bundlers.
    const flags = ['--profile', 'esm-only', '--no-color', '--no-emoji'];
    const { exitCode, stdout } = Bun.spawnSync([process.execPath, attw, tarball, ...flags]);
    const report = stdout.toString();
    expect(exitCode, report).toBe(0);
    // It has looked at all of them.
    for (const entry of ['', '/client', '/secure']) {
      expect(report).toContain(`"@authmesh/relay${entry}"`);
    }
  }, 60_000);
});
