/** What an answer over plain HTTP says about a relay, or about what stands in front of it. For the command and the page. */
import { Problem } from './problems.ts';
import type { Finding } from './steps.ts';

export interface Answer {
  /** 101 where a WebSocket came about. */
  status: number;
  /** The headers `content-type`, `location` and `server`, where they were told. */
  type?: string | undefined;
  location?: string | undefined;
  server?: string | undefined;
  body: string;
}

/** Headers that `AMESH_TRUST_PROXY` is commonly set to. No other name is taken from a server. */
const ADDRESS_HEADERS = [
  'x-forwarded-for',
  'x-real-ip',
  'x-client-ip',
  'true-client-ip',
  'cf-connecting-ip',
  'fly-client-ip',
  'fastly-client-ip',
  'x-azure-clientip',
  'x-envoy-external-address',
  'x-appengine-user-ip',
];

/** An IPv4 or IPv6 address, by its characters. */
const ADDRESS = /^(?:unknown|[\d.]{7,15}|[\da-f:.]{2,45})$/i;

/** What the relay says at `GET /`, as far as it can be believed. */
export interface Facts {
  /** The address that the relay sees the caller under. */
  address: string;
  /** Where it has that address from: `peer`, a header's name, or `another header`, which is not looked at further. */
  source: string;
  /** The host and port that the relay takes for its own. */
  host: string | undefined;
  /** Whether an access token is needed. */
  isPrivate: boolean;
}

/** @returns Undefined where the answer is not that of a relay's `GET /`. */
export function factsOf({ body }: Answer): Facts | undefined {
  const facts = parseObject(body);
  const { address, source } = (facts?.['client'] ?? {}) as Record<string, unknown>;
  if (typeof address !== 'string' || !ADDRESS.test(address)) return undefined;
  const isKnown = source === 'peer' || ADDRESS_HEADERS.includes(String(source));
  return {
    address,
    source: isKnown ? String(source) : 'another header',
    host: URL.parse(String(facts?.['websocket']))?.host,
    isPrivate: facts?.['private'] === true,
  };
}

/**
 * @param path Where it was asked for.
 * @throws {Problem} Where the relay takes nobody, or a proxy does not reach it.
 */
export function healthOf(answer: Answer, path: string): Finding {
  const health = parseObject(answer.body);
  const count = Number.isSafeInteger(health?.['sessions']) ? Number(health?.['sessions']) : 0;
  const sessions = `${count || 'no'} session${count === 1 ? '' : 's'}`;
  const status = health?.['status'];
  if (status === 'ok' && answer.status === 200) {
    return { found: `ok, ${sessions}`, facts: { sessions: count } };
  }
  if (status === 'draining') throw new Problem('draining', `draining, ${sessions} left`);
  if (status === 'unavailable') throw new Problem('redis_lost', `no Redis, ${sessions}`);
  if (answer.status === 429) throw new Problem('too_many_requests', saysOf(answer));
  if (answer.status >= 500) throw new Problem('bad_gateway', saysOf(answer));
  return { found: new Problem('health_hidden', saysOf(answer), { path }) };
}

/**
 * Why what asked for a WebSocket was answered with something else.
 * @param sent What was asked: the path, the page that a browser says it comes from, and whether there was a token.
 * @returns Undefined where the answer alone does not tell.
 */
export function refusalOf(
  answer: Answer,
  sent: { path: string; origin: string; hasToken: boolean },
): Problem | undefined {
  const { status } = answer;
  const { error, missing } = parseObject(answer.body) ?? {};
  const says = saysOf(answer);
  if (error === 'access_token_missing') {
    return new Problem(sent.hasToken ? 'access_token_lost' : 'access_token_missing', says);
  }
  if (error === 'access_token_wrong') return new Problem('access_token_wrong', says);
  if (status === 429) return new Problem('too_many_requests', says);
  if (status === 403 && String(error).startsWith('origin')) {
    return new Problem('origin_refused', says, { origin: sent.origin });
  }
  if (status === 401 || status === 403) {
    return new Problem('forbidden', says, { path: sent.path });
  }
  if (error === 'upgrade_required' || error === 'upgrade_failed' || status === 426) {
    const what = Array.isArray(missing) && missing.length > 0 ? ` (${missing.join(', ')})` : '';
    const found = `${says}: what asked for a WebSocket arrived as a plain request${what}`;
    return new Problem('upgrade_swallowed', found);
  }
  if (status >= 500) return new Problem('bad_gateway', says);
  if (status >= 300 && status < 400) {
    return new Problem('redirected', `${says}, to ${answer.location ?? 'another address'}`);
  }
  return undefined;
}

/** Whether it is the relay itself that knows no such path, and not another site. */
export const isRelaysNotFound = ({ status, body }: Answer): boolean =>
  status === 404 && parseObject(body)?.['error'] === 'not_found';

/** The answer in a few words: `status 502 from nginx, text/html`. */
export function saysOf({ status, type, server }: Answer): string {
  const kind = type?.split(';')[0];
  return `status ${status}${server ? ` from ${server}` : ''}${kind ? `, ${kind}` : ''}`;
}

function parseObject(text: string): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === 'object' && value !== null
      ? (value as Record<string, unknown>)
      : undefined;
  } catch {
    return undefined;
  }
}
