/** The file descriptors of this process, read from /proc on Linux. Other systems give 0 open and no limit. */

/** How many are open. */
export async function openDescriptors(): Promise<number> {
  const { readdir } = await import('node:fs/promises');
  return (await readdir('/proc/self/fd').catch(() => [])).length;
}

/** How many may be open. Bun raises the soft limit to the hard one when it starts. */
export async function maxDescriptors(): Promise<number> {
  const limits = await Bun.file('/proc/self/limits')
    .text()
    .catch(() => '');
  return Number(/^Max open files\s+(\d+)/m.exec(limits)?.[1] ?? Infinity);
}
