/**
 * Access tokens: a relay that has any is private, and lets in only requests that bring one of them. They come from the
 * environment, from a file, or from both; the file is read again when it changes.
 */
import type { Log } from '../observe/log.ts';
import { TokensError } from '../relay.ts';
import { readSecretFile } from '../secret-file.ts';
import type { Attempts } from './limits.ts';

/** What the metrics and the log call a token that has no name. */
export const UNNAMED = 'unnamed';

/** 16 characters of base64url are 96 bits when they are random. */
const MIN_LENGTH = 16;
const MAX_LENGTH = 256;
/** Each token is compared with each that a request brings, so the time of an upgrade grows with their number. */
const MAX_TOKENS = 1000;

/** Makes a token of 192 random bits. */
const MAKE_ONE = "openssl rand -base64 24 | tr '+/' '-_'";

/** What an access token has to be, as it follows "expected" in an error message. */
export const TOKEN_FORM = `${MIN_LENGTH} to ${MAX_LENGTH} characters of A-Z a-z 0-9 - _, as made by: ${MAKE_ONE}`;

/** A token, of which nothing but its SHA-256 is kept. Whoever prints or logs it sees its name alone. */
export class AccessToken {
  readonly #digest: Uint8Array;

  private constructor(
    text: string,
    readonly name: string,
  ) {
    this.#digest = digestOf(text);
  }

  /** @returns What is wrong with the text, where it is no token. The answer never holds the text itself. */
  static parse(text: string, name = UNNAMED): AccessToken | string {
    if (!/^[\w-]*$/.test(text)) return 'the token has a character that is not of base64url';
    if (text.length < MIN_LENGTH) return `the token has only ${text.length} characters`;
    if (text.length > MAX_LENGTH) return `the token has ${text.length} characters`;
    return new AccessToken(text, name);
  }

  /** Takes the same time whatever the digest is. */
  has(digest: Uint8Array): boolean {
    return crypto.timingSafeEqual(this.#digest, digest);
  }

  equals(other: AccessToken): boolean {
    return this.has(other.#digest);
  }

  toJSON(): string {
    return this.name;
  }
}

/**
 * Reads the lines of a file of tokens: `TOKEN` or `NAME TOKEN` each. Empty lines, and those that begin with `#`, do not
 * count.
 * @throws {Error} With the number of the line that is wrong, and what is wrong with it; never with what it holds.
 */
export function parseTokens(text: string): AccessToken[] {
  const tokens: AccessToken[] = [];
  for (const [i, whole] of text.split('\n').entries()) {
    const line = whole.trim();
    if (line === '' || line.startsWith('#')) continue;
    const token = parseLine(line);
    if (typeof token === 'string') {
      throw new Error(`line ${i + 1}: ${token}; expected [NAME ]TOKEN, the token of ${TOKEN_FORM}`);
    }
    if (tokens.some((earlier) => earlier.equals(token))) {
      throw new Error(`line ${i + 1}: the token stands in an earlier line already`);
    }
    if (tokens.length === MAX_TOKENS) {
      throw new Error(`line ${i + 1}: that is one more than ${MAX_TOKENS} tokens`);
    }
    tokens.push(token);
  }
  if (tokens.length === 0) {
    throw new Error(`it holds no token; expected one a line, each of ${TOKEN_FORM}`);
  }
  return tokens;
}

function parseLine(line: string): AccessToken | string {
  const words = line.split(/\s+/);
  if (words.length > 2) return 'there are more than two words';
  const [token = '', name] = words.reverse();
  if (name === undefined) return AccessToken.parse(token);
  if (!/^[\w.-]{1,64}$/.test(name)) return 'the name has a character other than A-Z a-z 0-9 . - _';
  // Whoever writes the token before the name would see it in the log, and let in whoever guesses the name.
  if (typeof AccessToken.parse(name) !== 'string') {
    return `the name could be a token itself; give it fewer than ${MIN_LENGTH} characters, or a dot`;
  }
  return AccessToken.parse(token, name);
}

/** Why a request for a WebSocket is not let in: for programs, and for a person. */
export interface Refused {
  error: 'access_token_missing' | 'access_token_wrong' | 'too_many_wrong_tokens' | 'origin_refused';
  message: string;
}

const MISSING: Refused = {
  error: 'access_token_missing',
  message:
    'This relay is private. Bring its access token: in the URL (wss://…/ws?token=TOKEN), as Authorization: Bearer TOKEN, or as the password of Basic.',
};
const WRONG: Refused = {
  error: 'access_token_wrong',
  message: 'This relay is private, and does not know this access token. Ask whoever runs it.',
};
const TWICE: Refused = {
  error: 'access_token_wrong',
  message:
    'The request brings more than one access token. Bring one: in the URL (once), or in the Authorization header.',
};
const TOO_MANY: Refused = {
  error: 'too_many_wrong_tokens',
  message: 'Too many wrong access tokens came from this address. Wait a minute.',
};

export class AccessTokens {
  #tokens: readonly AccessToken[] = [];
  /** Of the file as it was read last, and of what was wrong with it then. */
  #read: { digest: string; problem?: string } | undefined;
  #isReading = false;

  private constructor(
    private readonly own: AccessToken | undefined,
    private readonly file: string | undefined,
    private readonly log: Log,
    private readonly onNames: (names: string[]) => void,
  ) {}

  /**
   * @param token From AMESH_ACCESS_TOKEN.
   * @param file The path from AMESH_ACCESS_TOKENS_FILE.
   * @param onNames Called with the names of the tokens, now and whenever they have changed.
   * @returns undefined where the relay has no tokens, and is open to everyone.
   * @throws {TokensError} When the file cannot be used.
   */
  static async open(
    token: AccessToken | undefined,
    file: string | undefined,
    log: Log,
    onNames: (names: string[]) => void,
  ): Promise<AccessTokens | undefined> {
    if (!token && file === undefined) return undefined;
    const tokens = new AccessTokens(token, file, log, onNames);
    try {
      await tokens.#readFile();
    } catch (error) {
      throw new TokensError(`AMESH_ACCESS_TOKENS_FILE: ${file}: ${(error as Error).message}`);
    }
    return tokens;
  }

  /**
   * Decides on a request by the tokens that it brings, and counts a wrong one against its client.
   * @param attempts How many wrong ones each client had. Whoever has had too many is told so whatever the token is, since
   *   to be told which one is right is what a guesser is after.
   * @param now Milliseconds.
   */
  check(request: Request, client: string, attempts: Attempts, now: number): AccessToken | Refused {
    const [text, ...others] = tokensOf(request);
    if (text === undefined) return MISSING;
    if (attempts.isSpent(client, now)) return TOO_MANY;
    const token = this.#find(text);
    if (token && others.length === 0) return token;
    attempts.add(client, now);
    return others.length === 0 ? WRONG : TWICE;
  }

  /** Compares with every token, also after one has matched, so that the time it takes tells nothing. */
  #find(text: string): AccessToken | undefined {
    const digest = digestOf(text);
    let found: AccessToken | undefined;
    for (const token of this.#tokens) if (token.has(digest)) found = token;
    return found;
  }

  /**
   * Reads the file again, and takes its tokens in the place of the old ones if it has changed. A file that is broken
   * leaves the old ones in force, and is warned of once. Nobody who is connected is disturbed.
   */
  async reload(): Promise<void> {
    // On a hung file system one look waits, not more with each second.
    if (this.file === undefined || this.#isReading) return;
    this.#isReading = true;
    try {
      if (await this.#readFile()) {
        this.log.info('the access tokens have changed', { tokens: this.#tokens.length });
      }
    } catch (error) {
      const problem = (error as Error).message;
      if (problem !== this.#read?.problem) {
        this.log.warn(
          `AMESH_ACCESS_TOKENS_FILE: ${this.file}: ${problem}. The tokens read before stay in force`,
        );
      }
      this.#read = { digest: '', problem };
    } finally {
      this.#isReading = false;
    }
  }

  /** @returns Whether anything has changed since. */
  async #readFile(): Promise<boolean> {
    const own = this.own ? [this.own] : [];
    const text = this.file === undefined ? '' : await readSecretFile(this.file);
    const digest = Bun.SHA256.hash(text, 'hex');
    if (digest === this.#read?.digest) return false;
    this.#tokens = this.file === undefined ? own : [...own, ...parseTokens(text)];
    this.#read = { digest };
    this.onNames(this.#tokens.map(({ name }) => name));
    return true;
  }
}

function digestOf(text: string): Uint8Array {
  return Bun.SHA256.hash(text) as Uint8Array;
}

/**
 * The tokens that a request brings: none, one, or several where its places disagree or the URL has more than one. An
 * empty one counts as none.
 */
export function tokensOf({ url, headers }: Pick<Request, 'url' | 'headers'>): string[] {
  const inUrl = tokensInUrl(url);
  const inHeader = tokenInHeader(headers.get('authorization'));
  if (inHeader === undefined || (inUrl.length === 1 && inUrl[0] === inHeader)) return inUrl;
  return [...inUrl, inHeader];
}

function tokensInUrl(url: string): string[] {
  const [target = ''] = url.split('#', 1);
  const start = target.indexOf('?');
  if (start === -1) return [];
  const query = target.slice(start + 1);
  // What devices send; reading any query would cost ten times as much.
  if (/^token=[\w-]+$/.test(query)) return [query.slice('token='.length)];
  const tokens = new URLSearchParams(query).getAll('token');
  return tokens.length === 1 && tokens[0] === '' ? [] : tokens;
}

/** What follows `Bearer`, or the password of `Basic`. Any other scheme is somebody else's. */
function tokenInHeader(value: string | null): string | undefined {
  const [, scheme, rest = ''] = /^(bearer|basic) +(.+)$/i.exec(value ?? '') ?? [];
  if (scheme === undefined) return undefined;
  if (/^bearer$/i.test(scheme)) return rest;
  // What is not base64 through and through (two headers become one with a comma) is no token that anyone has.
  if (!/^[A-Za-z0-9+/]+={0,2}$/.test(rest)) return rest;
  const pair = Buffer.from(rest, 'base64').toString();
  const colon = pair.indexOf(':');
  return colon === -1 ? undefined : pair.slice(colon + 1) || undefined;
}
