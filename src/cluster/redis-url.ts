/** Where Redis is: the setting REDIS_URL, read. What talks to Redis is loaded only where it is set. */
import ipaddr from 'ipaddr.js';
import { readSecretFile } from '../secret-file.ts';

/** Redis could not be reached, or is not what the relay needs. */
export class RedisError extends Error {
  override name = 'RedisError';
  readonly code = 'ERR_RELAY_REDIS';
}

/** What a Redis URL looks like, for messages. */
export const REDIS_URL_FORM =
  'redis://[user:password@]host[:port][/database], or rediss:// for TLS';

/** A Redis URL that shows user and password to nobody who only prints it. */
export class RedisUrl {
  readonly #url: URL;

  private constructor(url: URL) {
    this.#url = url;
  }

  /**
   * Reads a URL.
   * @returns What is wrong with it, and what is accepted, if it cannot be used. The text repeats no part that may be
   *   a secret.
   */
  static parse(text: string): RedisUrl | string {
    const problem = problemOf(text);
    if (problem === undefined) return new RedisUrl(new URL(text));
    return `not accepted, since ${problem}; expected ${REDIS_URL_FORM}`;
  }

  /** A name or an address; an IPv6 address without brackets. */
  get host(): string {
    return bare(this.#url.hostname);
  }

  get port(): number {
    return Number(this.#url.port || 6379);
  }

  get database(): number {
    return Number(this.#url.pathname.slice(1));
  }

  get isTls(): boolean {
    return this.#url.protocol === 'rediss:';
  }

  /** What ioredis takes as `tls`; undefined without TLS. An address has no server name: RFC 6066, section 3. */
  get tls(): { servername?: string } | undefined {
    if (!this.isTls) return undefined;
    return ipaddr.isValid(this.host) ? {} : { servername: this.host };
  }

  get username(): string {
    return decodeURIComponent(this.#url.username);
  }

  get password(): string {
    return decodeURIComponent(this.#url.password);
  }

  /** Without user and password. */
  toString(): string {
    return `${this.#url.protocol}//${this.#url.hostname}:${this.port}/${this.database}`;
  }

  toJSON(): string {
    return this.toString();
  }
}

const bare = (hostname: string): string => hostname.replaceAll(/^\[|\]$/g, '');

/** Characters that end the part of a URL in which a password stands, each as it is written inside of one. */
const ENCODED = { '#': '%23', '/': '%2F', '?': '%3F', '@': '%40', '%': '%25' };
const encodeThem = Object.entries(ENCODED)
  .map(([plain, encoded]) => `${plain} as ${encoded}`)
  .join(', ');

/** What is wrong with a Redis URL, as a sentence without its secrets; undefined if nothing is. */
function problemOf(text: string): string | undefined {
  if (/^["'`].*["'`]$/.test(text)) return 'it stands in quotes; leave them out';
  const scheme = /^([a-z][a-z0-9+.-]*):\/\//i.exec(text)?.[1]?.toLowerCase();
  if (text.startsWith('/') || scheme === 'unix' || /^rediss?:\/\/\//i.test(text)) {
    return 'a unix socket cannot be used; give the host and port on which Redis listens';
  }
  if (scheme === undefined) return `it does not begin with redis:// or rediss://`;
  if (scheme.includes('sentinel')) {
    return 'Sentinel is not supported; give the address of the primary, or of a proxy that follows it';
  }
  if (scheme !== 'redis' && scheme !== 'rediss') {
    return `its scheme is ${scheme}; write redis://, or rediss:// for TLS`;
  }
  // With an unencoded / # or ? in the password, the part up to it is taken for the host.
  const [authority = ''] = text.slice(scheme.length + 3).split(/[/?#]/, 1);
  const rest = text.slice(scheme.length + 3 + authority.length);
  if (rest.includes('@')) {
    return `the user or the password holds a character that must be encoded: ${encodeThem}`;
  }
  const url = URL.parse(text);
  if (url === null) {
    const at = authority.lastIndexOf('@');
    const port = /:([^:\]]*)$/.exec(authority.slice(at + 1))?.[1];
    return port !== undefined && !/^\d{1,4}$/.test(port)
      ? 'its port is not a number from 0 to 65535'
      : `its host is not a name or an address (in a user or password, write ${encodeThem})`;
  }
  if (url.hostname === '') return 'it names no host';
  if (url.search !== '') return 'it has a query (from ? on), which is not supported; leave it out';
  if (url.hash !== '') return 'it has a fragment (from # on); leave it out, or write # as %23';
  if (!/^(?:\/\d{0,4})?$/.test(url.pathname)) {
    return 'what follows the host is not the number of a database, such as /0';
  }
  try {
    decodeURIComponent(url.username + url.password);
  } catch {
    return 'the user or the password holds a % that must be encoded: % as %25';
  }
  return undefined;
}

/**
 * Reads a file that holds nothing but a Redis URL, from REDIS_URL_FILE.
 * @throws {RedisError}
 */
export async function readRedisUrl(file: string): Promise<RedisUrl> {
  const url = await readSecretFile(file).then(
    (text) => RedisUrl.parse(text.trim()),
    (error: Error) => error.message,
  );
  if (url instanceof RedisUrl) return url;
  throw new RedisError(`REDIS_URL_FILE: ${file}: ${url}`);
}
