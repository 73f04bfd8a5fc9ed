/** Access tokens, and the format of a file with a list of them. */

/** The name of an unnamed token in the metrics and the log. */
export const UNNAMED = 'unnamed';

/** 16 random characters of base64url have 96 bits. */
const MIN_LENGTH = 16;
const MAX_LENGTH = 256;
/** A request's token is compared with each of these, so the time of an upgrade grows with their number. */
const MAX_TOKENS = 1000;

/** A shell command that makes a token of 192 random bits. */
const MAKE_ONE = "openssl rand -base64 24 | tr '+/' '-_'";

/** The format of an access token, for error messages: "expected …". */
export const TOKEN_FORM = `${MIN_LENGTH} to ${MAX_LENGTH} characters of A-Z a-z 0-9 - _, as made by: ${MAKE_ONE}`;

/** What is wrong with a token; undefined if it is one. The answer never contains the text itself. */
function problemOf(text: string): string | undefined {
  if (!/^[\w-]*$/.test(text)) return 'the token has a character that is not of base64url';
  if (text.length < MIN_LENGTH) return `the token has only ${text.length} characters`;
  if (text.length > MAX_LENGTH) return `the token has ${text.length} characters`;
  return undefined;
}

/** One access token. Only its SHA-256 is kept, and printing or logging the object does not show it. */
export class AccessToken {
  readonly #digest: Uint8Array;

  /** @throws {Error} If the text is not a token. The message never contains the text itself. */
  constructor(
    text: string,
    readonly name = UNNAMED,
  ) {
    const problem = problemOf(text);
    if (problem) throw new Error(`not accepted, since ${problem}; expected ${TOKEN_FORM}`);
    this.#digest = Bun.SHA256.hash(text) as Uint8Array;
  }

  /** Compares in constant time. */
  has(digest: Uint8Array): boolean {
    return crypto.timingSafeEqual(this.#digest, digest);
  }

  toJSON(): string {
    return '(secret)';
  }
}

/**
 * Parses a file of tokens. Each line is `TOKEN` or `NAME TOKEN`; empty lines and lines that begin with `#` are ignored.
 * @throws {Error} With the number of the wrong line and what is wrong with it. It never contains the line's text.
 */
export function parseTokens(text: string): AccessToken[] {
  const tokens = new Map<string, AccessToken>();
  for (const [i, line] of text.split('\n').entries()) {
    const [token = '', name, ...others] = line.trim().split(/\s+/).reverse();
    if (token === '' || line.trim().startsWith('#')) continue;
    const refuse = (problem: string) => new Error(`line ${i + 1}: ${problem}`);
    const problem =
      others.length > 0 ? 'there are more than two words' : (nameProblem(name) ?? problemOf(token));
    if (problem) throw refuse(`${problem}; expected [NAME ]TOKEN, the token of ${TOKEN_FORM}`);
    if (tokens.has(token)) throw refuse('the token is already in an earlier line');
    if (tokens.size === MAX_TOKENS) throw refuse(`there are more than ${MAX_TOKENS} tokens`);
    tokens.set(token, new AccessToken(token, name));
  }
  if (tokens.size === 0) {
    throw new Error(`it contains no token; expected one per line, each of ${TOKEN_FORM}`);
  }
  return [...tokens.values()];
}

function nameProblem(name = UNNAMED): string | undefined {
  if (!/^[\w.-]{1,64}$/.test(name)) return 'the name has a character other than A-Z a-z 0-9 . - _';
  // If the two are swapped, the log would show the token as a name, and the name would be an easily guessed token.
  if (problemOf(name)) return undefined;
  return `the name could be a token itself; give it fewer than ${MIN_LENGTH} characters, or a dot`;
}
