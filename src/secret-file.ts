/** Reads secrets from files. Containers and systemd pass secrets in this way, to keep them out of the environment. */

/** The largest file that is read. Secrets are much smaller; the limit stops a wrong path from filling the memory. */
const MAX_BYTES = 1024 * 1024;

/**
 * Reads a text file. Leaves out the byte order mark that some editors put at its beginning.
 * @throws {Error} The message says what is wrong with the file. It never contains the file's text.
 */
export async function readSecretFile(path: string): Promise<string> {
  const file = Bun.file(path);
  try {
    const facts = await file.stat();
    if (facts.isDirectory()) throw new Error('it is a directory; expected a file');
    // Reading a pipe could wait for ever.
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
