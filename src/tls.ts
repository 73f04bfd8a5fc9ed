/** The certificate and key of a relay that speaks TLS itself, and their renewal. Loaded only where they are set. */
import { createPrivateKey, X509Certificate } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { createSecureContext } from 'node:tls';
import type { Log } from './observe/log.ts';
import { TlsError } from './relay.ts';
import { Reloader } from './reloader.ts';

/** How often a certificate that is about to end is warned of, in milliseconds: once a day. */
const WARN_EVERY_MS = 86_400_000;

/** What the files hold, as Bun takes it. */
export interface TlsFiles {
  cert: string;
  key: string;
}

/** When a certificate is valid, in milliseconds of Unix time. */
interface Validity {
  from: number;
  to: number;
}

/**
 * The pair of files that the relay serves with. They are read again and again and compared by their content, so it does
 * not matter how a renewal puts them there: written in place, renamed, or behind a symbolic link that now leads elsewhere.
 */
export class Certificate {
  /** What was last said of the certificate's end, and when. */
  #warned: { message: string; at: number } | undefined;
  readonly #reloader: Reloader;

  private constructor(
    private readonly certFile: string,
    private readonly keyFile: string,
    private readonly log: Log,
    /** The pair in service. */
    public files: TlsFiles,
    private validity: Validity,
  ) {
    this.#reloader = new Reloader(log, 'The certificate read before stays in service');
  }

  /**
   * @param certFile The path from TLS_CERT_FILE.
   * @param keyFile The path from TLS_KEY_FILE.
   * @param now Milliseconds of Unix time.
   * @throws {TlsError} When the files cannot be used.
   */
  static async open(
    certFile: string,
    keyFile: string,
    log: Log,
    now: number,
  ): Promise<Certificate> {
    const files = await readFiles(certFile, keyFile);
    const validity = checkFiles(files, certFile, keyFile);
    const certificate = new Certificate(certFile, keyFile, log, files, validity);
    certificate.#warnOfEnd(now);
    return certificate;
  }

  /** When the certificate in service ends, in seconds of Unix time. */
  get notAfter(): number {
    return this.validity.to / 1000;
  }

  /**
   * Reads the files again, and has a pair served that differs from the one in service. A pair that cannot be used leaves
   * the old one in service, and is warned of once, not with each look.
   * @param now Milliseconds of Unix time.
   * @param serve Listens with the pair. Where it throws, the old one stays.
   */
  async renew(now: number, serve: (files: TlsFiles) => void): Promise<void> {
    await this.#reloader.run(async () => {
      const files = await readFiles(this.certFile, this.keyFile);
      if (Bun.deepEquals(files, this.files)) return;
      const validity = checkFiles(files, this.certFile, this.keyFile);
      serve(files);
      this.files = files;
      this.validity = validity;
      this.#warned = undefined;
      const notAfter = new Date(validity.to).toISOString();
      this.log.info('the certificate has changed', { notAfter });
    });
    this.#warnOfEnd(now);
  }

  #warnOfEnd(now: number): void {
    const { validity } = this;
    const message = endWarning(validity, now);
    const isSaid =
      this.#warned?.message === message && now - (this.#warned?.at ?? 0) < WARN_EVERY_MS;
    if (isSaid) return;
    this.#warned = message === undefined ? undefined : { message, at: now };
    if (message) this.log.warn(message, { notAfter: new Date(validity.to).toISOString() });
  }
}

/** What there is to say about a certificate's end; undefined while a third of its life or more is left. */
export function endWarning({ from, to }: Validity, now: number): string | undefined {
  if (now >= to) return 'the certificate has ended, and clients refuse it: renew it';
  if (to - now < (to - from) / 3) {
    return 'the certificate ends soon, with less than a third of its life left: see that it is renewed';
  }
  return undefined;
}

async function readFiles(certFile: string, keyFile: string): Promise<TlsFiles> {
  return { cert: await read('TLS_CERT_FILE', certFile), key: await read('TLS_KEY_FILE', keyFile) };
}

/**
 * Makes sure that Bun can serve with what the files hold, PEM each: its own errors name neither file nor setting.
 * @returns When the certificate is valid.
 * @throws {TlsError}
 */
function checkFiles({ cert, key }: TlsFiles, certFile: string, keyFile: string): Validity {
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
  const { validFromDate, validToDate } = certificate;
  return { from: validFromDate.getTime(), to: validToDate.getTime() };
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
