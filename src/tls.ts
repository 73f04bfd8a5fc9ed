/** The certificate and key of a relay that speaks TLS itself, and their renewal. Loaded only where they are set. */
import { createPrivateKey, X509Certificate } from 'node:crypto';
import { createSecureContext } from 'node:tls';
import type { Log } from './observe/log.ts';
import { TlsError } from './relay.ts';
import { Reloader } from './reloader.ts';

const DAY_MS = 86_400_000;

/** What the files hold, as Bun takes it, and when the certificate is valid, in milliseconds of Unix time. */
export interface TlsFiles {
  cert: string;
  key: string;
  from: number;
  to: number;
}

/**
 * The pair of files that the relay serves with. They are read again and again and compared by their content, so it does
 * not matter how a renewal puts them there: written in place, renamed, or behind a symbolic link that now leads elsewhere.
 */
export class Certificate {
  /** What was last said of the certificate's end, and on which day before it. */
  #said = '';
  readonly #reloader = new Reloader('The certificate read before stays in service');

  private constructor(
    private readonly read: (known?: TlsFiles) => Promise<TlsFiles>,
    private readonly log: Log,
    /** The pair in service. */
    public files: TlsFiles,
  ) {}

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
    const read = (known?: TlsFiles) => readPair(certFile, keyFile, known);
    const certificate = new Certificate(read, log, await read());
    certificate.#warnOfEnd(now);
    return certificate;
  }

  /**
   * Reads the files again. If they have changed, serves with the new pair. If they cannot be used, the old pair stays in
   * service, and there is one warning, not one for each look.
   * @param now Milliseconds of Unix time.
   * @param serve Listens with the pair. Where it throws, the old one stays.
   */
  async renew(now: number, serve: (files: TlsFiles) => void): Promise<void> {
    await this.#reloader.run(this.log, async () => {
      const files = await this.read(this.files);
      if (files === this.files) return;
      serve(files);
      this.files = files;
      this.log.info('the certificate has changed', { notAfter: dateOf(files) });
    });
    this.#warnOfEnd(now);
  }

  /** Warns once a day, and at once of a renewed pair. */
  #warnOfEnd(now: number): void {
    const { to } = this.files;
    const warning = endWarning(this.files, now);
    const said = `${warning} ${to} ${Math.ceil((to - now) / DAY_MS)}`;
    if (warning && said !== this.#said) this.log.warn(warning, { notAfter: dateOf(this.files) });
    this.#said = said;
  }
}

const dateOf = ({ to }: TlsFiles): string => new Date(to).toISOString();

/** What there is to say about a certificate's end; undefined while a third of its life or more is left. */
export function endWarning(
  { from, to }: Pick<TlsFiles, 'from' | 'to'>,
  now: number,
): string | undefined {
  if (now >= to) return 'the certificate has ended, and clients refuse it: renew it';
  if (to - now < (to - from) / 3) {
    return 'the certificate ends soon, with less than a third of its life left: see that it is renewed';
  }
  return undefined;
}

/**
 * Reads the files, and makes sure that Bun can serve with what they hold, PEM each: its own errors name neither file nor
 * setting.
 * @param known The pair in service. Returned if the files still hold it, and then nothing is parsed.
 * @throws {TlsError}
 */
async function readPair(certFile: string, keyFile: string, known?: TlsFiles): Promise<TlsFiles> {
  const [ofCert, ofKey] = [`TLS_CERT_FILE: ${certFile}`, `TLS_KEY_FILE: ${keyFile}`];
  const cert = await read(ofCert, certFile);
  const key = await read(ofKey, keyFile);
  if (known && cert === known.cert && key === known.key) return known;
  const certificate = parse(ofCert, 'certificate', () => new X509Certificate(cert));
  const privateKey = parse(ofKey, 'private key without a passphrase', () => createPrivateKey(key));
  if (!certificate.checkPrivateKey(privateKey)) {
    throw new TlsError(
      `${ofKey} is not the key of the certificate in ${certFile} (TLS_CERT_FILE); expected a pair, the server's own certificate first`,
    );
  }
  parse(ofCert, 'certificate chain', () => createSecureContext({ cert, key }));
  const { validFromDate, validToDate } = certificate;
  return { cert, key, from: validFromDate.getTime(), to: validToDate.getTime() };
}

/** @param label The setting and the file, for the error. */
async function read(label: string, file: string): Promise<string> {
  try {
    return await Bun.file(file).text();
  } catch (error) {
    throw new TlsError(
      `${label} can't be read (${(error as NodeJS.ErrnoException).code}); expected a PEM file that this user may read`,
    );
  }
}

function parse<T>(label: string, what: string, take: () => T): T {
  try {
    return take();
  } catch {
    throw new TlsError(`${label} holds no ${what} that can be read; expected PEM`);
  }
}
