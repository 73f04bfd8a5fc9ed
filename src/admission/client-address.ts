/** Finds the client's address for a request, also behind a proxy. The limits count by this address. */
import ipaddr from 'ipaddr.js';

/** Where the address comes from. `peer`: the TCP connection. The others: a header that a proxy wrote. */
export type ProxyRule =
  | { by: 'peer' }
  | { by: 'leftmost' }
  | { by: 'hops'; hops: number }
  | { by: 'header'; header: string };

export interface Caller {
  /** The key that limits count by: an IPv4 address, or the /64 of an IPv6 address. */
  client: string;
  /** The whole address. */
  address: string;
  /** Where the address was taken from: `peer`, or the name of a header. */
  source: string;
}

/** Headers that proxies write, and that clients do not send by themselves. */
export const PROXY_HEADERS = [
  'x-forwarded-for',
  'x-real-ip',
  'fly-client-ip',
  'cf-connecting-ip',
  'forwarded',
  'via',
];

/** The forms that {@link parseProxyRule} accepts. */
export const PROXY_RULE_FORMS =
  'unset, 0, false or no (the TCP peer); 1, true or yes (left-most X-Forwarded-For); hops:N (N-th X-Forwarded-For from the right, 1 to 32); header:NAME (that header)';

/** Parses AMESH_TRUST_PROXY. @throws {Error} If the text has none of the accepted forms. */
export function parseProxyRule(text: string): ProxyRule {
  const value = text.trim().toLowerCase();
  if (['', '0', 'false', 'no'].includes(value)) return { by: 'peer' };
  if (['1', 'true', 'yes'].includes(value)) return { by: 'leftmost' };
  const hops = /^hops:([1-9]|[12][0-9]|3[0-2])$/.exec(value)?.[1];
  if (hops) return { by: 'hops', hops: Number(hops) };
  const header = /^header:([!#$%&'*+.^_`|~0-9a-z-]+)$/.exec(value)?.[1];
  if (header) return { by: 'header', header };
  throw new Error(`got ${JSON.stringify(text)}, expected ${PROXY_RULE_FORMS}`);
}

/** The longest text that is parsed, in characters. An IPv6 address with a zone, brackets and a port is shorter. */
const MAX_ADDRESS = 80;

/** The range in which NAT64 and SIIT show an IPv4 address as IPv6: RFC 6052, section 2.1. */
const NAT64 = ipaddr.IPv6.parseCIDR('64:ff9b::/96');

/**
 * Parses an address with or without brackets and port. An IPv6 address that contains an IPv4 one (`::ffff:192.0.2.1`,
 * `64:ff9b::192.0.2.1`) becomes IPv4. Returns undefined if the text is not an address.
 */
export function parseAddress(text: string): ipaddr.IPv4 | ipaddr.IPv6 | undefined {
  if (text.length > MAX_ADDRESS) return undefined;
  const value = text.trim();
  const bare =
    /^\[([^\]]+)\](?::\d{1,5})?$/.exec(value)?.[1] ?? value.replace(/^([\d.]+):\d{1,5}$/, '$1');
  if (!ipaddr.IPv4.isValidFourPartDecimal(bare) && !ipaddr.IPv6.isValid(bare)) return undefined;
  const address = ipaddr.process(bare);
  const isNat64 = address instanceof ipaddr.IPv6 && address.match(NAT64);
  return isNat64 ? new ipaddr.IPv4(address.toByteArray().slice(12)) : address;
}

/** An IPv4 address in the usual form. */
const IPV4 = /^(?:(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)(?:\.(?!$)|$)){4}$/;

/** The caller with this address; undefined if the text is not an address. */
function callerAt(text: string, source: string): Caller | undefined {
  // The common form needs no parsing, which would cost a twentieth of a whole pairing.
  if (IPV4.test(text)) return { client: text, address: text, source };
  const found = parseAddress(text);
  if (found === undefined) return undefined;
  const [address = ''] = found.toString().split('%'); // Without the zone.
  if (found instanceof ipaddr.IPv4) return { client: address, address, source };
  const network = found.parts.slice(0, 4).map((part) => part.toString(16));
  return { client: `${network.join(':')}::/64`, address, source };
}

/** Every rule but that of the TCP peer. */
type HeaderRule = Exclude<ProxyRule, { by: 'peer' }>;

const headerOf = (rule: HeaderRule): string =>
  rule.by === 'header' ? rule.header : 'x-forwarded-for';

/** One entry of a list with commas: the first, or the n-th from the right. A long list is not split as a whole. */
function entryOf(list: string, fromRight: number | undefined): string | undefined {
  if (fromRight === undefined) return list.split(',', 1)[0];
  let end = list.length;
  for (let i = 1; i < fromRight; i += 1) {
    end = list.lastIndexOf(',', end - 1);
    if (end <= 0) return undefined;
  }
  return list.slice(list.lastIndexOf(',', end - 1) + 1, end);
}

/** The caller in the header that the rule names; undefined if the header is missing or has no valid address. */
function fromHeaders(rule: HeaderRule, headers: Headers): Caller | undefined {
  const name = headerOf(rule);
  const value = headers.get(name);
  if (value === null) return undefined;
  const entry =
    rule.by === 'header' ? value : entryOf(value, rule.by === 'hops' ? rule.hops : undefined);
  return entry === undefined ? undefined : callerAt(entry.trim(), name);
}

/** The format of a list of proxies, for error messages: "expected …". */
export const RANGES_FORM =
  'addresses (192.0.2.1, 2001:db8::1) and ranges (10.0.0.0/8, fd00::/8), with commas in between';

/** How many results an {@link AddressRanges} caches. A relay has few proxies. */
const MAX_CACHED = 1000;

/** The first address of a range, and its prefix length in bits. */
type Range = [ipaddr.IPv4 | ipaddr.IPv6, number];

/** Addresses and ranges of addresses, IPv4 and IPv6. */
export class AddressRanges {
  readonly #ranges: Range[];
  readonly #cache = new Map<string, boolean>();

  /** @throws {Error} If an entry is neither an address nor a range. */
  constructor(private readonly list: readonly string[]) {
    this.#ranges = list.map(parseRange);
  }

  /** Whether an address is in one of the ranges; false if the text is not an address. */
  has(text: string): boolean {
    const known = this.#cache.get(text);
    if (known !== undefined) return known;
    const address = parseAddress(text);
    const isIn = this.#ranges.some(
      ([base, bits]) => address?.kind() === base.kind() && address.match(base, bits),
    );
    if (this.#cache.size >= MAX_CACHED) this.#cache.clear();
    this.#cache.set(text, isIn);
    return isIn;
  }

  toJSON(): readonly string[] {
    return this.list;
  }
}

/** @throws {Error} If the text is neither an address nor a range. */
function parseRange(text: string): Range {
  const [, start = '', length] = /^([\da-f:.]+)(?:\/(\d{1,3}))?$/i.exec(text) ?? [];
  // An IPv4-mapped IPv6 address becomes IPv4, as the address of a peer does before it is compared.
  const base = /\.\d+:/.test(start) ? undefined : parseAddress(start);
  const width = base instanceof ipaddr.IPv4 ? 32 : 128;
  // ::ffff:10.0.0.0/104 is the IPv6 spelling of 10.0.0.0/8.
  const shift = width === 32 && start.includes(':') ? 96 : 0;
  const bits = length === undefined ? width : Number(length) - shift;
  if (base && bits >= 0 && bits <= width) return [base, bits];
  throw new Error(
    `${JSON.stringify(text)} is neither an address nor a range; expected ${RANGES_FORM}`,
  );
}

/** How many requests are checked for the header of a proxy that AMESH_TRUST_PROXY does not name. */
const MAX_CHECKS = 1000;

export class CallerResolver {
  #checksLeft = MAX_CHECKS;
  /** The warnings so far, since each is given once. */
  readonly #given = new Set<string>();

  /**
   * @param warn Gets a warning at most once if AMESH_TRUST_PROXY seems to be set wrong, and at most once if a header
   *   comes from a peer that is not one of `proxies`. The warnings contain no address.
   * @param proxies The proxies whose headers are trusted. Default: all.
   */
  constructor(
    private readonly rule: ProxyRule,
    private readonly warn: (message: string) => void,
    private readonly proxies?: AddressRanges,
  ) {}

  /**
   * Whether the proxy headers of a request (the visitor's address, host and scheme) are trusted.
   * @param peerOf As in {@link resolve}.
   */
  trusts(peerOf: () => string | undefined): boolean {
    if (this.rule.by === 'peer') return false;
    return this.proxies === undefined || this.proxies.has(peerOf() ?? '');
  }

  /**
   * Finds the client that sent a request.
   * @param request Its headers are read only if needed, since Bun builds the `Headers` object at the first access.
   * @param peerOf Returns the address of the TCP connection, undefined if that is closed. Called only if needed.
   */
  resolve(request: { readonly headers: Headers }, peerOf: () => string | undefined): Caller {
    const { rule } = this;
    if (rule.by === 'peer') {
      if (this.#checksLeft > 0) this.#lookForProxy(request.headers);
    } else {
      const named = fromHeaders(rule, request.headers);
      const isTrusted = this.trusts(peerOf);
      if (named && isTrusted) return named;
      if (named) {
        this.#warnOnce(
          `a request carries ${named.source}, but comes from none of AMESH_TRUSTED_PROXIES: the header is ignored, and the TCP peer counts as the client`,
        );
      } else if (isTrusted) {
        this.#warnOnce(
          `a request carries no usable ${headerOf(rule)}, though AMESH_TRUST_PROXY trusts it: the TCP peer counts as the client`,
        );
      }
    }
    const found = callerAt(peerOf() ?? '', 'peer');
    return found ?? { client: 'unknown', address: 'unknown', source: 'peer' };
  }

  #lookForProxy(headers: Headers): void {
    this.#checksLeft -= 1;
    const header = PROXY_HEADERS.find((name) => headers.has(name));
    if (header === undefined) return;
    this.#checksLeft = 0;
    this.warn(
      `a request carries ${header}, but AMESH_TRUST_PROXY is not set: behind a proxy all clients count as one`,
    );
  }

  #warnOnce(message: string): void {
    if (!this.#given.has(message)) this.warn(message);
    this.#given.add(message);
  }
}
