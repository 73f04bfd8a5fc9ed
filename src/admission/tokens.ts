/**
 * Access tokens: a relay that has any is private, and lets in only requests that bring one of them. They come from the
 * environment, from a file, or from both; the file is read again when it changes.
 */
import type { Log } from '../observe/log.ts';
import { TokensError } from '../relay.ts';
import { readSecretFile } from '../secret-file.ts';
import { type AccessToken, parseTokens } from './access-token.ts';
import type { Attempts } from './limits.ts';
import type { Refused } from './origins.ts';

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
    const digest = Bun.SHA256.hash(text) as Uint8Array;
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
