/** The certificate and key of a relay that speaks TLS itself. Loaded only where they are set. */
import { createPrivateKey, X509Certificate } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { createSecureContext } from 'node:tls';
import { TlsError } from './relay.ts';

/** What the files hold, as Bun takes it. */
export interface TlsFiles {
  cert: string;
  key: string;
}

/**
 * Reads both files, PEM each, and makes sure that Bun can serve with them: its own errors name neither file nor setting.
 * @throws {TlsError}
 */
export async function readTls(certFile: string, keyFile: string): Promise<TlsFiles> {
  const cert = await read('TLS_CERT_FILE', certFile);
  const key = await read('TLS_KEY_FILE', keyFile);
  const certificate = parse(
    'TLS_CERT_FILE',
    certFile,
    'certificate',
    () => new X509Certificate(cert),
  );
  const privateKey = parse('TLS_KEY_FILE', keyFile, 'private key without a passphrase', () =>
    createPrivateKey(key),
  );
  if (!certificate.checkPrivateKey(privateKey)) {
    throw new TlsError(
      `TLS_KEY_FILE: ${keyFile} is not the key of the certificate in ${certFile} (TLS_CERT_FILE); expected a pair, the server's own certificate first`,
    );
  }
  parse('TLS_CERT_FILE', certFile, 'certificate chain', () => createSecureContext({ cert, key }));
  return { cert, key };
}

async function read(setting: string, file: string): Promise<string> {
  try {
    return await readFile(file, 'utf8');
  } catch (error) {
    throw new TlsError(
      `${setting}: ${file} can't be read (${(error as NodeJS.ErrnoException).code}); expected a PEM file that this user may read`,
    );
  }
}

function parse<T>(setting: string, file: string, what: string, take: () => T): T {
  try {
    return take();
  } catch {
    throw new TlsError(`${setting}: ${file} holds no ${what} that can be read; expected PEM`);
  }
}
