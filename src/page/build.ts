/**
 * Bundles the page's script into one JavaScript file. The bundler runs in a separate process: this function is also
 * called as a macro, and a bundler that is running a macro cannot bundle anything else.
 */
export async function buildPageScript(): Promise<string> {
  const entry = `${import.meta.dir}/script.ts`;
  const build = Bun.spawn([process.execPath, 'build', entry, '--target=browser', '--minify']);
  const script = await new Response(build.stdout).text();
  if ((await build.exited) !== 0) throw new Error('the page’s script could not be bundled');
  return script;
}
