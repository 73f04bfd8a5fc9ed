/** What an access token is, and how a file of them is read. */

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

/** A token, of which nothing but its SHA-256 is kept. Whoever prints or logs it does not see that either. */
export class AccessToken {
  readonly #digest: Uint8Array;

  private constructor(
    text: string,
    readonly name: string,
  ) {
    this.#digest = Bun.SHA256.hash(text) as Uint8Array;
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
    return '(secret)';
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
