/**
 * The page's script, as browsers take it: one file, no TypeScript. In a process of its own, since the bundler that runs
 * this as a macro can't be asked to bundle something else meanwhile.
 */
export async function buildPageScript(): Promise<string> {
  const entry = `${import.meta.dir}/script.ts`;
  const build = Bun.spawn([process.execPath, 'build', entry, '--target=browser', '--minify']);
  const script = await new Response(build.stdout).text();
  if ((await build.exited) !== 0) throw new Error('the page’s script could not be built');
  return script;
}
