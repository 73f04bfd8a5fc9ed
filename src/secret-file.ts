/** A secret that stands in a file: how containers and systemd hand them over, out of sight of the environment. */

/** Far more than any secret needs, so that a wrong path does not fill the memory. */
const MAX_BYTES = 1024 * 1024;

/**
 * Reads a file of text, without the byte order mark that some editors begin it with.
 * @throws {Error} Whose message says what is wrong with the file. It never holds what is in the file.
 */
export async function readSecretFile(path: string): Promise<string> {
  const file = Bun.file(path);
  try {
    const facts = await file.stat();
    if (facts.isDirectory()) throw new Error('it is a directory; expected a file');
    // Reading a pipe could wait for good.
    if (!facts.isFile()) throw new Error('it is not a regular file');
    if (facts.size > MAX_BYTES) throw new Error('it is longer than 1 MiB');
    return (await file.text()).replace(/^\uFEFF/, '');
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code === undefined) throw new Error(message, { cause: error });
    if (code === 'ENOENT') throw new Error('it does not exist', { cause: error });
    if (code === 'EACCES') throw new Error('this user may not read it', { cause: error });
    throw new Error(`it can't be read (${code})`, { cause: error });
  }
}
