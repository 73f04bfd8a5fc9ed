/** Who is calling: the address that every limit per client hangs on, behind whichever proxy. */
import type * as Address from './address.ts';

/** Which address to believe. `peer`: the TCP connection's; the others read a header that a proxy wrote. */
export type ProxyRule =
  | { by: 'peer' }
  | { by: 'leftmost' }
  | { by: 'hops'; hops: number }
  | { by: 'header'; header: string };

export interface Caller {
  /** What limits count by: an IPv4 address, or the /64 of an IPv6 address. */
  client: string;
  /** The whole address, as far as the caller may be shown it. */
  address: string;
  /** Where the address was taken from: `peer`, or the header's name. */
  source: string;
}

/** An IPv4 address from the operating system, told from an IPv6 one. */
const IPV4 = /^\d+\.\d+\.\d+\.\d+$/;

/** What proxies write, and clients on their own do not. */
export const PROXY_HEADERS = [
  'x-forwarded-for',
  'x-real-ip',
  'fly-client-ip',
  'cf-connecting-ip',
  'forwarded',
  'via',
];

export const PROXY_RULE_FORMS =
  'unset, 0, false or no (the TCP peer); 1, true or yes (left-most X-Forwarded-For); hops:N (N-th X-Forwarded-For from the right, 1 to 32); header:NAME (that header)';

/** Reads the setting; undefined where it is none of the accepted forms. */
export function parseProxyRule(text: string): ProxyRule | undefined {
  const value = text.trim().toLowerCase();
  if (['', '0', 'false', 'no'].includes(value)) return { by: 'peer' };
  if (['1', 'true', 'yes'].includes(value)) return { by: 'leftmost' };
  const hops = /^hops:([1-9]|[12][0-9]|3[0-2])$/.exec(value)?.[1];
  if (hops) return { by: 'hops', hops: Number(hops) };
  const header = /^header:([!#$%&'*+.^_`|~0-9a-z-]+)$/.exec(value)?.[1];
  if (header) return { by: 'header', header };
  return undefined;
}

/** Loaded with the first address that is more than four numbers, since a start need not wait for it. */
function callerAt(text: string, source: string): Caller | undefined {
  // oxlint-disable-next-line no-require-imports -- a request is answered in one go
  return (require('./address.ts') as typeof Address).callerAt(text, source);
}

/** The address that the headers give by the rule; undefined where it is missing or unusable. */
function fromHeaders(
  rule: Exclude<ProxyRule, { by: 'peer' }>,
  headers: Headers,
): Caller | undefined {
  const name = rule.by === 'header' ? rule.header : 'x-forwarded-for';
  const value = headers.get(name);
  if (value === null) return undefined;
  const entries = rule.by === 'header' ? [value] : value.split(',');
  const entry = entries.at(rule.by === 'hops' ? -rule.hops : 0);
  return entry === undefined ? undefined : callerAt(entry, name);
}

export class CallerResolver {
  readonly #rule: ProxyRule;
  readonly #warn: (message: string) => void;
  /** Requests that are still looked at for a setting that looks wrong: what is not seen in these will not be. */
  #looks = 1000;

  /** @param warn Called at most once, with a setting that looks wrong; never with an address. */
  constructor(rule: ProxyRule, warn: (message: string) => void) {
    this.#rule = rule;
    this.#warn = warn;
  }

  /**
   * @param request Its headers are not touched where they don't matter, since Bun makes them only then.
   * @param peer The TCP connection's address; undefined where it is gone already.
   */
  resolve(request: { readonly headers: Headers }, peer: string | undefined): Caller {
    const named = this.#rule.by === 'peer' ? undefined : fromHeaders(this.#rule, request.headers);
    if (named) return named;
    if (this.#looks > 0) this.#look(request.headers);
    // As the operating system writes it, IPv4 needs no parsing, which would cost a twentieth of a whole pairing.
    if (peer !== undefined && IPV4.test(peer)) {
      return { client: peer, address: peer, source: 'peer' };
    }
    const found = peer === undefined ? undefined : callerAt(peer, 'peer');
    return found ?? { client: 'unknown', address: 'unknown', source: 'peer' };
  }

  #look(headers: Headers): void {
    const rule = this.#rule;
    if (rule.by === 'peer') {
      this.#looks -= 1;
      const header = PROXY_HEADERS.find((name) => headers.has(name));
      if (header === undefined) return;
      this.#looks = 0;
      this.#warn(
        `a request carries ${header}, but AMESH_TRUST_PROXY is not set: behind a proxy all clients count as one`,
      );
    } else {
      this.#looks = 0;
      this.#warn(
        `a request carries no usable ${rule.by === 'header' ? rule.header : 'x-forwarded-for'}, though AMESH_TRUST_PROXY trusts it: the TCP peer counts as the client`,
      );
    }
  }
}
