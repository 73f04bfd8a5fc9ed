/**
 * Which web pages may use the relay. A browser sends the page's origin with each WebSocket that it opens, and the page
 * can forge neither the origin nor the host. Other programs send no origin. Without this check, any page could use up
 * the failed attempts of its visitors.
 */

/** Why an upgrade was refused: `error` for programs, `message` for people. */
export interface Refused {
  error: 'access_token_missing' | 'access_token_wrong' | 'too_many_wrong_tokens' | 'origin_refused';
  message: string;
}

/** A host name or an address, with or without a port. No answer repeats any other `Host`. */
export const HOST = /^(?:[a-z0-9_.-]{1,253}|\[[0-9a-f:.]{2,45}\])(?::\d{1,5})?$/i;

/** The format of the allowed origins, for error messages: "expected …". */
export const ORIGIN_FORM =
  'origins as browsers send them (https://app.example.com, without a path), with commas in between, or * for any';

/** An origin in lower case and without its scheme's default port; undefined if the text is not an origin. */
export function parseOrigin(text: string): string | undefined {
  const [, scheme, host = ''] = /^([a-z][a-z0-9+.-]*):\/\/(.+)$/i.exec(text) ?? [];
  if (scheme === undefined || !HOST.test(host) || !URL.canParse(text)) return undefined;
  const { protocol, host: known } = new URL(text);
  return `${protocol}//${known}`.toLowerCase();
}

/** An entry of AMESH_ALLOWED_ORIGINS. @throws {Error} If it is neither an origin nor `*`. */
export function parseAllowed(text: string): string {
  const origin = text === '*' ? text : parseOrigin(text);
  if (origin !== undefined) return origin;
  throw new Error(`${JSON.stringify(text)} is not an origin; expected ${ORIGIN_FORM}`);
}

/**
 * The host in the address that the visitor's browser shows.
 * @param trusts Tells whether the proxy that sent the request is trusted. Called only if the proxy names a host.
 */
export function shownHost(headers: Headers, trusts: () => boolean): string {
  const forwarded = headers.get('x-forwarded-host');
  if (forwarded !== null && trusts()) return (forwarded.split(',', 1)[0] as string).trim();
  return headers.get('host') ?? '';
}

/** Whether the visitor's connection is encrypted, as far as the relay can tell. */
export function isSecure(headers: Headers, isTls: boolean, trusts: () => boolean): boolean {
  if (isTls) return true;
  const scheme = headers.get('x-forwarded-proto');
  return scheme !== null && /^\s*(?:https|wss)\b/i.test(scheme) && trusts();
}

export interface OriginRules {
  /** From AMESH_ALLOWED_ORIGINS: as {@link parseOrigin} returns them, or `*`. The relay's own host needs no entry. */
  allowed: readonly string[];
  /** Whether the relay itself speaks TLS. */
  isTls: boolean;
}

/**
 * Checks the origin of a request for a WebSocket.
 * @param trusts As in {@link shownHost}.
 * @returns The reason if refused, otherwise undefined.
 */
export function originRefusal(
  headers: Headers,
  { allowed, isTls }: OriginRules,
  trusts: () => boolean,
): Refused | undefined {
  const text = headers.get('origin');
  if (text === null || allowed.includes('*')) return undefined;
  const origin = parseOrigin(text);
  if (origin === undefined) {
    return refused(
      'This Origin is not the address of a web page. To let any page in, set AMESH_ALLOWED_ORIGINS=* for the relay.',
    );
  }
  if (allowed.includes(origin)) return undefined;
  const host = shownHost(headers, trusts);
  if (isOwn(origin, host, isSecure(headers, isTls, trusts))) return undefined;
  const seen = HOST.test(host) ? host : 'none that is valid';
  return refused(
    `A page of ${origin} may not use this relay, whose own host is ${seen} here. To let it in, set AMESH_ALLOWED_ORIGINS=${origin} for the relay. If it is the relay's own page, a proxy changes the Host header: make it pass on the Host header that it receives, with the port.`,
  );
}

const refused = (message: string): Refused => ({ error: 'origin_refused', message });

/**
 * Whether the page comes from the host that the request was sent to. A page without TLS does not belong to a relay with
 * TLS. Many proxies pass the host on without its port, such as nginx with `$host`; then only the name must match.
 */
function isOwn(origin: string, host: string, isEncrypted: boolean): boolean {
  const [scheme = ''] = origin.split('://', 1);
  if (scheme !== 'https' && (scheme !== 'http' || isEncrypted)) return false;
  const named = /:\d+$/.test(host) ? origin : origin.replace(/:\d+$/, '');
  return parseOrigin(`${scheme}://${host}`) === named;
}
