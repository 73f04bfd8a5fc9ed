/** What the command looks at below and around the WebSocket: name, connection, certificate, and what HTTP answers. */
import { lookup } from 'node:dns/promises';
import { once } from 'node:events';
import http, { type IncomingMessage } from 'node:http';
import https from 'node:https';
import net from 'node:net';
import { addAbortSignal } from 'node:stream';
import tls from 'node:tls';
import ipaddr from 'ipaddr.js';
import { proxyFor } from '../client/proxy.ts';
import { type Answer, factsOf, healthOf, originOf, refusalOf, saysOf } from './http-answers.ts';
import { Problem, type ProblemCode } from './problems.ts';
import type { Finding, Task } from './steps.ts';

const TIMEOUT_MS = 10_000;
/** A relay answers in less than 1 KiB. */
const MAX_BODY_BYTES = 65_536;
const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
/**
 * A certificate is renewed when a third of its lifetime is left, by certbot and Caddy alike: when less than a fifth is
 * left, renewal seems to fail. For one that a person renews once a year, two weeks are time enough.
 */
const SOON_SHARE = 1 / 5;
const SOON_MS = 14 * DAY_MS;

/** Headers that a relay never sends, and proxies and platforms do. */
const PROXY_HEADERS =
  'server via cf-ray fly-request-id x-served-by x-envoy-upstream-service-time'.split(' ');

const ACCEPT_JSON = { accept: 'application/json' };
const UPGRADE = {
  connection: 'Upgrade',
  upgrade: 'websocket',
  'sec-websocket-version': '13',
  'sec-websocket-key': 'YW1lc2gtcmVsYXktdGVzdA==',
};

/** The relay that is looked at, and what is found out about it on the way. */
export class Probe {
  readonly #host: string;
  readonly #port: number;
  readonly #isSecure: boolean;
  /** The HTTP proxy that the environment names for the way to the relay. */
  readonly #via: URL | undefined;
  /** The addresses of the relay, or of the HTTP proxy if there is one; after `connect`, only those that can be reached. */
  #addresses: string[] = [];
  /** The proxy in front of the relay that gave itself away in an answer, as it calls itself. */
  #proxy: string | undefined;

  /** @param url The WebSocket's, with the access token where there is one. */
  constructor(private readonly url: URL) {
    this.#host = hostOf(url);
    this.#port = portOf(url);
    this.#isSecure = url.protocol === 'wss:';
    const via = proxyFor(url, process.env);
    // A text that is no URL gets a scheme that does not work, so that `#resolve` reports it.
    this.#via = via ? (URL.parse(via) ?? new URL('invalid://proxy')) : undefined;
  }

  /** Every step before the first WebSocket, in order. */
  tasks(): Task[] {
    const certificate: Task = ['tls', () => this.#certificate()];
    return [
      ['name', () => this.#resolve()],
      ['connect', () => this.#connect()],
      ...(this.#isSecure ? [certificate] : []),
      ['health', () => this.#health()],
      ['upgrade', () => this.#upgrade()],
      ['address', () => this.#address()],
    ];
  }

  async #resolve(): Promise<Finding> {
    const via = this.#via;
    if (via && !/^https?:$/.test(via.protocol)) {
      throw this.#unreachable('its URL does not begin with http:// or https://');
    }
    const host = hostOf(via ?? this.url);
    const forWhom = via ? `left to the HTTP proxy ${via.host}: ` : '';
    this.#addresses = [host];
    if (ipaddr.isValid(host)) return { found: `${forWhom}${host} is an address already` };
    const found = await lookup(host, { all: true }).catch((error: unknown) => {
      throw this.#unreachable(`${host} has no address (${codeOf(error)})`, 'name_unknown');
    });
    this.#addresses = [...new Set(found.map(({ address }) => address))];
    const facts = via ? {} : { addresses: this.#addresses };
    return { found: `${forWhom}${this.#addresses.join(', ')}`, facts };
  }

  /** Connects to every address that the name has: where one of them is dead, only some clients fail. */
  async #connect(): Promise<Finding> {
    const port = portOf(this.#via ?? this.url);
    const problems = await Promise.all(this.#addresses.map((address) => reach(address, port)));
    const good = this.#addresses.filter((_, index) => !problems[index]);
    const bad = problems.filter((problem) => problem !== undefined);
    // What this machine has no route to says nothing about the relay, as long as there is another way to it.
    const dead = bad.find(({ code }) => code !== 'no_route');
    if (good.length === 0) {
      const { code, found } = (dead ?? bad[0]) as Problem;
      const isNamed = !this.#via && !ipaddr.isValid(this.#host);
      throw this.#unreachable(isNamed ? `${this.#host}: ${found}` : found, code);
    }
    this.#addresses = good;
    if (this.#via) {
      (await this.#open()).destroy();
      return { found: `through the HTTP proxy ${this.#via.host}` };
    }
    const others = bad.map(({ found }) => found).join(', ');
    const found = `port ${port} on ${good.join(', ')}`;
    if (!dead) return { found: others ? `${found} (${others})` : found };
    // Of localhost’s two addresses, one is enough.
    if (good.every((address) => rangeOf(address) === 'loopback')) return { found };
    return { found: new Problem('not_everywhere', `${found}; ${others}`) };
  }

  async #certificate(): Promise<Finding> {
    const socket = await this.#secure(false).catch((error: unknown) => {
      if (error instanceof Problem) throw error;
      throw new Problem('tls_missing', `no TLS on port ${this.#port} (${codeOf(error)})`);
    });
    const certificate = socket.getPeerCertificate();
    // Bun gives the code; Node.js would give an error that has it.
    const untrusted = socket.authorizationError as string | Error | null;
    socket.destroy();
    const [issuer, subject] = [nameOf(certificate.issuer), nameOf(certificate.subject)];
    const [from, to] = [Date.parse(certificate.valid_from), Date.parse(certificate.valid_to)];
    const [now, left] = [Date.now(), to - Date.now()];
    const whose = `the certificate by ${issuer}`;
    if (left < 0) throw new Problem('tls_expired', `${whose} ended ${durationOf(-left)} ago`);
    if (from > now) {
      throw new Problem('tls_not_yet_valid', `${whose} begins in ${durationOf(from - now)}`);
    }
    if (tls.checkServerIdentity(this.#host, certificate)) {
      const names = certificate.subjectaltname?.replaceAll('DNS:', '') ?? subject;
      const found = `the certificate is for ${names}, not for ${this.#host}`;
      throw new Problem('tls_wrong_name', found, this.#host);
    }
    if (untrusted) {
      const why =
        subject === issuer ? ' is signed by itself' : `’s issuer, ${issuer}, is not trusted here`;
      throw new Problem('tls_untrusted', `the certificate${why} (${untrusted})`);
    }
    const found = `by ${issuer}, ${durationOf(left)} left`;
    const daysLeft = Math.floor(left / DAY_MS);
    const facts = { issuer, validTo: new Date(to).toISOString(), daysLeft };
    const isSoon = left < Math.min((to - from) * SOON_SHARE, SOON_MS);
    return { found: isSoon ? new Problem('tls_expires_soon', found) : found, facts };
  }

  async #health(): Promise<Finding> {
    const url = this.#beside('health');
    return healthOf(await this.#ask(url), url.pathname);
  }

  /** Opens a WebSocket as a device does, and then as the relay’s own page does, which says where it comes from. */
  async #upgrade(): Promise<Finding> {
    const answer = await this.#ask(this.url, UPGRADE);
    if (answer.status !== 101) throw await this.#refusal(answer);
    const origin = originOf(this.url);
    const asPage = await this.#ask(this.url, { ...UPGRADE, origin });
    if (asPage.status !== 403) return { found: 'status 101' };
    const found = `status 101; for a page of ${origin}, ${saysOf(asPage)}`;
    return { found: new Problem('origin_refused', found, origin) };
  }

  /** Why there was no WebSocket. If the answer does not tell, looks for TLS and at other paths. */
  async #refusal(answer: Answer): Promise<Problem> {
    const { pathname: path, href } = this.url;
    const problem = refusalOf(answer, this.url);
    if (problem.code !== 'not_a_relay' && problem.code !== 'path_not_stripped') return problem;
    const found = `${saysOf(answer)} at ${path}`;
    if (answer.status === 400 && !this.#isSecure) {
      const socket = await this.#secure(false).catch(() => undefined);
      socket?.destroy();
      const where = `port ${this.#port} speaks TLS`;
      if (socket) return new Problem('tls_needed', `${found}; ${where}`, href.replace('ws', 'wss'));
    }
    // The relay may be here, and only the path wrong.
    const others = ['/ws', this.#beside('ws').pathname, `${path.replace(/\/$/, '')}/ws`];
    for (const other of new Set(others)) {
      const url = new URL(this.url);
      url.pathname = other;
      const { status, body } = other === path ? answer : await this.#ask(url, UPGRADE);
      if (status === 101 || body.includes('"access_token_')) {
        return new Problem('wrong_path', found, url.href);
      }
    }
    return problem;
  }

  /** The address that the relay sees the caller under, and whether that can be right. */
  async #address(): Promise<Finding> {
    const answer = await this.#ask(this.#beside(''), ACCEPT_JSON);
    const told = factsOf(answer);
    if (!told) return { found: `the relay does not tell (${answer.status}; AMESH_PAGE=0?)` };
    const { address, source, found } = told;
    const facts = { address, source };
    const warning = (code: ProblemCode, why: string): Finding => {
      return { found: new Problem(code, found + why), facts };
    };
    const isPublic = (it: string): boolean => rangeOf(it) === 'unicast';
    if (source === 'peer' && this.#proxy !== undefined) {
      return warning('proxy_not_trusted', `; ${this.#proxy} answers for the relay`);
    }
    if (!this.#via && this.#addresses.some(isPublic) && !isPublic(address)) {
      const code = source === 'peer' ? 'proxy_not_trusted' : 'wrong_hop';
      return warning(code, ': a private address, and the relay’s is public');
    }
    // An address for documentation (RFC 5737), which nobody has: only who makes it up comes from there.
    const madeUp = '203.0.113.7';
    if (source !== 'peer' && source !== 'another header') {
      const forged = await this.#ask(this.#beside(''), { ...ACCEPT_JSON, [source]: madeUp });
      if (factsOf(forged)?.address === madeUp) {
        return warning('address_forgeable', `; a made-up ${source} was believed`);
      }
    }
    return { found, facts };
  }

  #beside(path: string): URL {
    const url = new URL(`./${path}`, this.url);
    url.search = '';
    return url;
  }

  /** Sends a request over a connection of its own, and closes it after the answer, also if that is a WebSocket. */
  async #ask(url: URL, headers: Record<string, string> = {}): Promise<Answer> {
    let socket: net.Socket | undefined;
    try {
      socket = await (this.#isSecure ? this.#secure(true) : this.#open());
      const request = http.request({
        path: url.pathname + url.search,
        headers: { ...headers, host: url.host },
        createConnection: () => socket as net.Socket,
      });
      request.end();
      const [response] = await heard<[IncomingMessage]>(request, 'upgrade', 'response');
      const { statusCode: status = 0 } = response;
      const got = new Headers(response.headers as Record<string, string>);
      const name = PROXY_HEADERS.find((header) => got.has(header));
      this.#proxy ??= name === 'server' ? String(got.get(name)) : name;
      return { status, headers: got, body: status === 101 ? '' : await bodyOf(response) };
    } catch (error) {
      throw problemOf(error, this.#host, this.#port);
    } finally {
      socket?.destroy();
    }
  }

  /** @param isStrict Whether a certificate that no client would trust is refused. */
  async #secure(isStrict: boolean): Promise<tls.TLSSocket> {
    const name = ipaddr.isValid(this.#host) ? {} : { servername: this.#host };
    const options = { socket: await this.#open(), rejectUnauthorized: isStrict, ...name };
    return connected(tls.connect(options), 'secureConnect');
  }

  /** A connection to the relay, through the HTTP proxy where there is one. */
  async #open(): Promise<net.Socket> {
    const via = this.#via;
    if (!via) {
      return connected(net.connect({ host: this.#addresses[0], port: this.#port }), 'connect');
    }
    const target = `${this.url.hostname}:${this.#port}`;
    const login = { 'proxy-authorization': `Basic ${this.#loginOf(via)}` };
    const request = (via.protocol === 'https:' ? https : http).request({
      host: hostOf(via),
      port: portOf(via),
      method: 'CONNECT',
      path: target,
      headers: { host: target, ...(via.username && login) },
      agent: false,
    });
    request.end();
    const answer = heard<[IncomingMessage, net.Socket?]>(request, 'connect', 'response');
    const [{ statusCode }, socket] = await answer.catch((error: unknown) => {
      throw this.#unreachable(`no answer to CONNECT ${target} (${codeOf(error)})`);
    });
    if (statusCode === 200 && socket) return socket;
    request.destroy();
    socket?.destroy();
    throw this.#unreachable(`it answers CONNECT ${target} with status ${statusCode}`);
  }

  /** The user and the password in the URL of the HTTP proxy, in base64. */
  #loginOf({ username, password }: URL): string {
    try {
      return Buffer.from([username, password].map(decodeURIComponent).join(':')).toString('base64');
    } catch {
      throw this.#unreachable('its user or password holds a % that must be written as %25');
    }
  }

  /** Why this machine does not reach the relay. If there is an HTTP proxy, it is reported as the proxy's problem. */
  #unreachable(why: string, code: ProblemCode = 'no_answer'): Problem {
    const via = this.#via;
    if (!via) return new Problem(code, why);
    return new Problem('proxy_unusable', `the HTTP proxy ${via.host}: ${why}`, this.#host);
  }
}

/**
 * Tries to connect to an address.
 *
 * Bun 1.4 reports every failed connection as a refused port. A UDP socket gets the true reason: at once if this machine
 * has no route, and after an empty datagram if no machine has the address.
 *
 * @returns What is wrong, if no connection came about.
 */
async function reach(address: string, port: number): Promise<Problem | undefined> {
  let told: string | undefined;
  // Bun passes the error alone, although its types say that the socket comes first.
  const error = (reason: unknown): void => {
    told ??= codeOf(reason);
  };
  let udp: Bun.udp.ConnectedSocket<'buffer'> | undefined;
  let hasRoute = false;
  try {
    const hostname = address.includes(':') ? '::' : '0.0.0.0';
    const connect = { hostname: address, port };
    udp = await Bun.udpSocket({ hostname, connect, socket: { error } });
    udp.send('');
    hasRoute = true;
    (await connected(net.connect({ host: address, port }), 'connect')).destroy();
    return undefined;
  } catch (failed) {
    if (!hasRoute) {
      return new Problem('no_route', `no route from here to ${address} (${codeOf(failed)})`);
    }
    await Bun.sleep(50);
    return told === 'EHOSTUNREACH' || told === 'ENETUNREACH'
      ? new Problem('no_answer', `no machine answers at ${address} (${told})`)
      : problemOf(failed, address, port);
  } finally {
    udp?.close();
  }
}

async function connected<S extends net.Socket>(socket: S, event: string): Promise<S> {
  await heard(socket, event);
  return socket;
}

/**
 * Waits for the first of some events.
 * @returns What it comes with.
 * @throws The error that the source has instead; an `AbortError` when the time is up. Then the source is destroyed.
 */
function heard<T extends unknown[]>(
  source: net.Socket | http.ClientRequest,
  ...events: string[]
): Promise<T> {
  const signal = AbortSignal.timeout(TIMEOUT_MS);
  const first = Promise.race(events.map((event) => once(source, event, { signal }) as Promise<T>));
  first.catch(() => source.destroy());
  // Nobody listens any more to an error that comes later.
  source.on('error', () => {});
  return first;
}

async function bodyOf(response: IncomingMessage): Promise<string> {
  let body = '';
  addAbortSignal(AbortSignal.timeout(TIMEOUT_MS), response.setEncoding('utf8'));
  for await (const chunk of response) {
    body += chunk;
    if (body.length > MAX_BODY_BYTES) break;
  }
  return body;
}

/** What it means that a connection failed. */
function problemOf(error: unknown, host: string, port: number): Problem {
  if (error instanceof Problem) return error;
  if (error instanceof Error && error.name === 'AbortError') {
    const found = `no answer from ${host}, port ${port}, within ${TIMEOUT_MS / 1000} s`;
    return new Problem('no_answer', found);
  }
  const code = codeOf(error);
  return code === 'ECONNREFUSED'
    ? new Problem('refused', `port ${port} on ${host} is closed`)
    : new Problem('cut', `${host}, port ${port}, ended the connection without an answer (${code})`);
}

const codeOf = (error: unknown): string =>
  (error instanceof Error && 'code' in error && String(error.code)) || 'no reason given';

const hostOf = (url: URL): string => url.hostname.replace(/^\[|\]$/g, '');

const portOf = (url: URL): number =>
  Number(url.port) || (/^(?:https|wss):$/.test(url.protocol) ? 443 : 80);

/** What kind of address it is: `unicast` for a public one. */
const rangeOf = (address: string): string | undefined =>
  ipaddr.isValid(address) ? ipaddr.process(address).range() : undefined;

/** In days, or in hours where that says more. */
function durationOf(ms: number): string {
  const isLong = ms >= 2 * DAY_MS;
  const count = Math.floor(ms / (isLong ? DAY_MS : HOUR_MS));
  return `${count} ${isLong ? 'day' : 'hour'}${count === 1 ? '' : 's'}`;
}

function nameOf(subject: { O?: string | string[]; CN?: string | string[] } | undefined): string {
  return [subject?.O, subject?.CN].flat().filter(Boolean).join(' ') || 'nobody';
}
