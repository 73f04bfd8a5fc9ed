/** What an answer over plain HTTP says about a relay, or about what stands in front of it. For the command and the page. */
import { Problem } from './problems.ts';
import type { Finding } from './steps.ts';

export interface Answer {
  /** 101 where a WebSocket came about. */
  status: number;
  headers: Headers;
  body: string;
}

/** Names that a header with a client's address has: x-forwarded-for, fly-client-ip. No other name is taken from a server. */
const ADDRESS_HEADER = /^[a-z-]{1,40}-(?:for|ip|clientip|address)$/;
/** An IPv4 or IPv6 address, by its characters. */
const ADDRESS = /^(?:unknown|[\d.]{7,15}|[\da-f:.]{2,45})$/i;

/**
 * What the relay says at `GET /`, as far as it can be believed.
 * @returns The `address` that the relay sees the caller under, and the `source` that it has the address from: `peer`, a
 *   header's name, or `another header`, which is not looked at further; both as a line in `found`; and the `host` and port
 *   that the relay takes for its own. Undefined where the answer is not that of a relay's `GET /`.
 */
export function factsOf({ body }: Answer) {
  const { client, websocket } = parseObject(body);
  const { address, source: told } = Object(client) as Record<string, unknown>;
  if (typeof address !== 'string' || !ADDRESS.test(address)) return undefined;
  const isKnown = told === 'peer' || ADDRESS_HEADER.test(String(told));
  const source = isKnown ? String(told) : 'another header';
  const found = `${address}, taken from ${source === 'peer' ? 'the connection' : source}`;
  return { address, source, found, host: URL.parse(String(websocket))?.host };
}

/**
 * @param path Where it was asked for.
 * @throws {Problem} Where the relay takes nobody, or a proxy does not reach it.
 */
export function healthOf(answer: Answer, path: string): Finding {
  const { status, sessions } = parseObject(answer.body);
  const count = Number.isSafeInteger(sessions) ? Number(sessions) : 0;
  const held = `${count || 'no'} session${count === 1 ? '' : 's'}`;
  if (status === 'ok' && answer.status === 200) {
    return { found: `ok, ${held}`, facts: { sessions: count } };
  }
  if (status === 'draining') throw new Problem('draining', `draining, ${held} left`);
  if (status === 'unavailable') throw new Problem('redis_lost', `no Redis, ${held}`);
  if (answer.status === 429) throw new Problem('too_many_requests', saysOf(answer));
  if (answer.status >= 500) throw new Problem('bad_gateway', saysOf(answer));
  return { found: new Problem('health_hidden', saysOf(answer), path) };
}

/**
 * Why a request for a WebSocket got another answer.
 * @param url What was asked for, with the access token where there was one.
 * @returns `path_not_stripped` or `not_a_relay` where the answer says no more than that nothing is there.
 */
export function refusalOf(answer: Answer, url: URL): Problem {
  const { status } = answer;
  const { pathname: path, searchParams } = url;
  const { error, missing } = parseObject(answer.body);
  const says = saysOf(answer);
  if (error === 'access_token_missing') {
    const isLost = searchParams.has('token');
    return new Problem(isLost ? 'access_token_lost' : 'access_token_missing', says);
  }
  if (error === 'access_token_wrong') return new Problem('access_token_wrong', says);
  if (status === 429) return new Problem('too_many_requests', says);
  if (status === 403 && String(error).startsWith('origin')) {
    return new Problem('origin_refused', says, originOf(url));
  }
  if (status === 401 || status === 403) return new Problem('forbidden', says, path);
  if (error === 'upgrade_required' || error === 'upgrade_failed' || status === 426) {
    const what = Array.isArray(missing) && missing.length > 0 ? ` (${missing.join(', ')})` : '';
    const found = `${says}: what asked for a WebSocket arrived as a plain request${what}`;
    return new Problem('upgrade_swallowed', found);
  }
  if (status >= 500) return new Problem('bad_gateway', says);
  if (status >= 300 && status < 400) {
    return new Problem(
      'redirected',
      `${says}, to ${answer.headers.get('location') ?? 'another address'}`,
    );
  }
  return status === 404 && error === 'not_found'
    ? new Problem('path_not_stripped', `the relay’s own answer, ${says} at ${path}`)
    : new Problem('not_a_relay', `${says} at ${path}`);
}

/** The origin of a page of the relay's own. */
export const originOf = (url: URL): string => url.origin.replace(/^ws/, 'http');

/** The answer in a few words: `status 502 from nginx, text/html`. */
export function saysOf({ status, headers }: Answer): string {
  const server = headers.get('server');
  const kind = headers.get('content-type')?.split(';')[0];
  return `status ${status}${server ? ` from ${server}` : ''}${kind ? `, ${kind}` : ''}`;
}

/** The JSON object that a text holds; an empty one where it holds none. */
function parseObject(text: string): Record<string, unknown> {
  try {
    return Object(JSON.parse(text)) as Record<string, unknown>;
  } catch {
    return {};
  }
}
