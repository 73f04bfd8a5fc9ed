/**
 * Which web pages may use the relay. A browser names the page's origin with each WebSocket that it opens, and a page can
 * forge neither that nor the host; other programs name none. So that no page of a stranger spends its visitors' attempts.
 */

/** Why a request for a WebSocket is not let in: for programs, and for a person. */
export interface Refused {
  error: 'access_token_missing' | 'access_token_wrong' | 'too_many_wrong_tokens' | 'origin_refused';
  message: string;
}

/** A host name or an address, with or without a port. Any other `Host` is not repeated to anyone. */
export const HOST = /^(?:[a-z0-9_.-]{1,253}|\[[0-9a-f:.]{2,45}\])(?::\d{1,5})?$/i;

/** What an origin has to be, as it follows "expected" in an error message. */
export const ORIGIN_FORM =
  'origins as browsers send them (https://app.example.com, without a path), with commas in between, or * for any';

/** An origin in its usual spelling: in lower case, without the port that its scheme has anyway. Undefined if it is none. */
export function parseOrigin(text: string): string | undefined {
  const [, scheme, host = ''] = /^([a-z][a-z0-9+.-]*):\/\/(.+)$/i.exec(text) ?? [];
  if (scheme === undefined || !HOST.test(host) || !URL.canParse(text)) return undefined;
  const { protocol, host: known } = new URL(text);
  return `${protocol}//${known}`.toLowerCase();
}

/**
 * The host that the visitor's browser shows.
 * @param trusts Whether the proxy that sent the request is trusted. Asked only where it names a host.
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
  /** From AMESH_ALLOWED_ORIGINS: as {@link parseOrigin} spells them, or `*`. The relay's own host needs no entry. */
  allowed: readonly string[];
  /** Whether the relay itself speaks TLS. */
  isTls: boolean;
}

/**
 * Whether a request may open a WebSocket as far as its origin goes.
 * @param trusts As in {@link shownHost}.
 * @returns Why not; undefined if it may.
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
    `A page of ${origin} may not use this relay, whose own host is ${seen} here. To let it in, set AMESH_ALLOWED_ORIGINS=${origin} for the relay. If it is the relay's own page, a proxy changes the Host header: have it pass on the one that it gets, with the port.`,
  );
}

const refused = (message: string): Refused => ({ error: 'origin_refused', message });

/**
 * Whether the page comes from the host that the request was sent to. A page without TLS is no part of a relay with. Many
 * proxies leave the port out of the host that they pass on, as nginx with `$host`: then the name alone has to match.
 */
function isOwn(origin: string, host: string, isEncrypted: boolean): boolean {
  const [scheme = '', shown = ''] = origin.split('://', 2);
  if (scheme !== 'https' && (scheme !== 'http' || isEncrypted)) return false;
  const own = parseOrigin(`${scheme}://${host}`);
  if (own === undefined) return false;
  const hasPort = /:\d+$/.test(host);
  return own === (hasPort ? origin : `${scheme}://${shown.replace(/:\d+$/, '')}`);
}
