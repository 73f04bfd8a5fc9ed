/** Parses the setting REDIS_URL. The modules that talk to Redis are loaded only if it is set. */
import { readSecretFile } from '../secret-file.ts';

/** Redis could not be reached, or is not what the relay needs. */
export class RedisError extends Error {
  override name = 'RedisError';
  readonly code = 'ERR_RELAY_REDIS';
}

/** What a Redis URL looks like, for messages. */
export const REDIS_URL_FORM =
  'redis://[user:password@]host[:port][/database], or rediss:// for TLS';

/** Characters that end the part of a URL in which a password stands, each as it is written inside of one. */
const ENCODED = '# as %23, / as %2F, ? as %3F, @ as %40, % as %25';

/** What can be wrong with a Redis URL, told without its secrets. The first that is found counts. */
const problems: [RegExp, string][] = [
  [/^["'`].*["'`]$/, 'it stands in quotes; leave them out'],
  [/^(?:\/|unix:|rediss?:\/\/\/)/i, 'a unix socket cannot be used; give a host and a port'],
  [/^(?![a-z][a-z0-9+.-]*:\/\/)/i, 'it does not begin with redis:// or rediss://'],
  [/^[^:]*sentinel/i, 'Sentinel is not supported; give the address of the primary'],
  [/^(?!rediss?:)([^:]*)/i, 'its scheme is $1; write redis://, or rediss:// for TLS'],
  // With an unencoded / # or ? in the password, the part up to it is taken for the host.
  [
    /\/\/[^/?#]*[/?#].*@/,
    `the user or the password holds a character that must be encoded: ${ENCODED}`,
  ],
  [/\/\/(?:[?#]|$)/, 'it names no host'],
  [/\?/, 'it has a query (from ? on), which is not supported; leave it out'],
  [/#/, 'it has a fragment (from # on); leave it out, or write # as %23'],
  [/\/\/.*\/(?!\d{0,4}$)/, 'what follows the host is not the number of a database, such as /0'],
];

function problemOf(text: string): string | undefined {
  for (const [pattern, problem] of problems) {
    const match = pattern.exec(text);
    if (match) return problem.replace('$1', match[1] ?? '');
  }
  if (!URL.canParse(text)) {
    // Neither part of a password nor of an IPv6 address.
    const hasOddPort = /:(?!\d{1,4}(?:\/|$))[^:@\]]*$/.test(text);
    return hasOddPort
      ? 'its port is not a number from 0 to 65535'
      : `its host is not a name or an address (in a user or password, write ${ENCODED})`;
  }
  try {
    decodeURIComponent(text);
    return undefined;
  } catch {
    return 'the user or the password holds a % that must be encoded: % as %25';
  }
}

/** A Redis URL. Printing or logging it does not show user and password. */
export class RedisUrl {
  readonly #url: URL;

  /** @throws {Error} If the URL cannot be used. The message repeats no part that may be a secret. */
  constructor(text: string) {
    const problem = problemOf(text);
    if (problem) throw new Error(`not accepted, since ${problem}; expected ${REDIS_URL_FORM}`);
    this.#url = new URL(text);
  }

  /** With user and password, as ioredis takes it. */
  get href(): string {
    return this.#url.href;
  }

  get database(): number {
    return Number(this.#url.pathname.slice(1));
  }

  /** Takes user and password out of a text. */
  redact(text: string): string {
    let said = text;
    for (const secret of [this.#url.password, this.#url.username].map(decodeURIComponent)) {
      if (secret !== '') said = said.replaceAll(secret, '***');
    }
    return said;
  }

  /** Without user and password. */
  toString(): string {
    const { protocol, hostname, port } = this.#url;
    return `${protocol}//${hostname}:${port || 6379}/${this.database}`;
  }

  toJSON(): string {
    return this.toString();
  }
}

/**
 * Reads a file that holds nothing but a Redis URL, from REDIS_URL_FILE.
 * @throws {RedisError}
 */
export async function readRedisUrl(file: string): Promise<RedisUrl> {
  try {
    return new RedisUrl((await readSecretFile(file)).trim());
  } catch (error) {
    throw new RedisError(`REDIS_URL_FILE: ${file}: ${(error as Error).message}`);
  }
}
