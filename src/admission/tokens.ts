/**
 * Access tokens. A relay with tokens is private: it accepts only requests that carry one of them. The tokens come from
 * the environment, from a file, or from both; the file is read again when it changes.
 */
import type { Log } from '../observe/log.ts';
import { TokensError } from '../relay.ts';
import { Reloader } from '../reloader.ts';
import { readSecretFile } from '../secret-file.ts';
import { type AccessToken, parseTokens } from './access-token.ts';
import type { Attempts } from './limits.ts';
import type { Refused } from './origins.ts';

const MISSING: Refused = {
  error: 'access_token_missing',
  message:
    'This relay is private. Send its access token: in the URL (wss://…/ws?token=TOKEN), as Authorization: Bearer TOKEN, or as the password of Basic.',
};
const WRONG: Refused = {
  error: 'access_token_wrong',
  message:
    'This relay is private, and this access token is wrong. Ask the operator of the relay for one.',
};
const TWICE: Refused = {
  error: 'access_token_wrong',
  message:
    'The request has more than one access token. Send only one: in the URL (once), or in the Authorization header.',
};
const TOO_MANY: Refused = {
  error: 'too_many_wrong_tokens',
  message: 'Too many wrong access tokens came from this address. Wait a minute.',
};

export class AccessTokens {
  #tokens: readonly AccessToken[];
  /** The hash of the file's text. A file that was broken has none, so that it counts as changed when it is mended. */
  #digest: string | undefined;
  readonly #reloader = new Reloader('The tokens read before stay valid');

  private constructor(
    /** The token from AMESH_ACCESS_TOKEN, if there is one. */
    private readonly own: readonly AccessToken[],
    private readonly file: string | undefined,
    private readonly log: Log,
    private readonly onNames: (names: string[]) => void,
  ) {
    this.#tokens = own;
  }

  /**
   * @param token From AMESH_ACCESS_TOKEN.
   * @param file The path from AMESH_ACCESS_TOKENS_FILE.
   * @param onNames Called with the names of the tokens once the file is read, and after each change.
   * @returns The tokens; undefined if none are configured, so that the relay is open to everyone.
   * @throws {TokensError} When the file cannot be used.
   */
  static async open(
    token: AccessToken | undefined,
    file: string | undefined,
    log: Log,
    onNames: (names: string[]) => void,
  ): Promise<AccessTokens | undefined> {
    if (!token && file === undefined) return undefined;
    const tokens = new AccessTokens(token ? [token] : [], file, log, onNames);
    await tokens.#readFile();
    return tokens;
  }

  /**
   * Checks the token of a request, and counts a wrong one against its client.
   * @param attempts The wrong tokens of each client. After too many, even a right token is refused: otherwise a client
   *   that guesses would learn which token is right.
   * @param now Milliseconds.
   * @returns The token that matched, or the reason for the refusal.
   */
  check(request: Request, client: string, attempts: Attempts, now: number): AccessToken | Refused {
    const [text, ...others] = tokensOf(request);
    if (text === undefined) return MISSING;
    if (attempts.isSpent(client, now)) return TOO_MANY;
    const digest = Bun.SHA256.hash(text) as Uint8Array;
    // Compares with every token, also after one has matched, so that the time reveals nothing.
    const token = this.#tokens.filter((candidate) => candidate.has(digest)).at(-1);
    if (token && others.length === 0) return token;
    attempts.add(client, now);
    return others.length === 0 ? WRONG : TWICE;
  }

  /**
   * Reads the file again, and replaces the tokens if it has changed. If the file is broken, the old tokens stay valid
   * and one warning is logged. Open sockets are not affected.
   */
  async reload(): Promise<void> {
    await this.#reloader.run(this.log, async () => {
      if (await this.#readFile()) {
        this.log.info('the access tokens have changed', { tokens: this.#tokens.length });
      }
    });
  }

  /** @returns Whether the file has changed since the last read. */
  async #readFile(): Promise<boolean> {
    if (this.file === undefined) return false;
    const before = this.#digest;
    this.#digest = undefined;
    try {
      const text = await readSecretFile(this.file);
      const digest = Bun.SHA256.hash(text, 'hex');
      if (digest !== before) {
        this.#tokens = [...this.own, ...parseTokens(text)];
        this.onNames(this.#tokens.map(({ name }) => name));
      }
      this.#digest = digest;
      return digest !== before;
    } catch (error) {
      throw new TokensError(`AMESH_ACCESS_TOKENS_FILE: ${this.file}: ${(error as Error).message}`);
    }
  }
}

/**
 * The tokens in a request: none, one, or several if the URL and the header differ or the URL has more than one. An
 * empty token in the URL is ignored.
 */
export function tokensOf({ url, headers }: Pick<Request, 'url' | 'headers'>): string[] {
  const inUrl = tokensInUrl(url);
  const inHeader = tokenInHeader(headers.get('authorization'));
  if (inHeader === undefined || (inUrl.length === 1 && inUrl[0] === inHeader)) return inUrl;
  return [...inUrl, inHeader];
}

function tokensInUrl(url: string): string[] {
  const [, query = ''] = /^[^?#]*\?([^#]*)/.exec(url) ?? [];
  // The form that devices send. Parsing a query in general would take ten times as long.
  if (/^token=[\w-]+$/.test(query)) return [query.slice('token='.length)];
  const tokens = new URLSearchParams(query).getAll('token');
  return tokens.length === 1 && tokens[0] === '' ? [] : tokens;
}

/** The text after `Bearer`, or the password of `Basic`. Other schemes are not for the relay, and are ignored. */
function tokenInHeader(value: string | null): string | undefined {
  const [, scheme, rest = ''] = /^(bearer|basic) +(.+)$/i.exec(value ?? '') ?? [];
  if (scheme === undefined) return undefined;
  if (/^bearer$/i.test(scheme)) return rest;
  // Two headers are joined with a comma, which is not base64. Such a text is returned as it is and matches no token.
  if (!/^[A-Za-z0-9+/]+={0,2}$/.test(rest)) return rest;
  const pair = Buffer.from(rest, 'base64').toString();
  const colon = pair.indexOf(':');
  return colon === -1 ? undefined : pair.slice(colon + 1) || undefined;
}
