/** What the command looks at below and around the WebSocket: name, connection, certificate, and what HTTP answers. */
import { lookup } from 'node:dns/promises';
import http, { type IncomingHttpHeaders } from 'node:http';
import https from 'node:https';
import net from 'node:net';
import tls from 'node:tls';
import ipaddr from 'ipaddr.js';
import { proxyFor } from '../client/proxy.ts';
import {
  type Answer,
  type Facts,
  factsOf,
  healthOf,
  isRelaysNotFound,
  refusalOf,
  saysOf,
} from './http-answers.ts';
import { Problem, type ProblemCode } from './problems.ts';
import type { Finding, StepName, Work } from './steps.ts';

const TIMEOUT_MS = 10_000;
/** A relay answers in less than 1 KiB. */
const MAX_BODY_BYTES = 65_536;
const DAY_MS = 86_400_000;
/**
 * A certificate is renewed when a third of its lifetime is left, by certbot and Caddy alike: when less than a fifth is
 * left, renewal seems to fail. For one that a person renews once a year, two weeks are time enough.
 */
const SOON_SHARE = 1 / 5;
const SOON_MS = 14 * DAY_MS;

/** Headers that a relay never sends, and proxies and platforms do. */
const PROXY_HEADERS = [
  'server',
  'via',
  'cf-ray',
  'fly-request-id',
  'x-served-by',
  'x-envoy-upstream-service-time',
];

const ACCEPT_JSON = { accept: 'application/json' };
const UPGRADE = {
  connection: 'Upgrade',
  upgrade: 'websocket',
  'sec-websocket-version': '13',
  'sec-websocket-key': 'YW1lc2gtcmVsYXktdGVzdA==',
};

/** The relay that is looked at, and what is found out about it on the way. */
export class Probe {
  /** The WebSocket's URL, with the access token where there is one. */
  readonly #url: URL;
  readonly #host: string;
  readonly #port: number;
  readonly #isSecure: boolean;
  /** The HTTP proxy that the environment names for the way to the relay. */
  readonly #via: URL | undefined;
  /** Of the relay, or of the HTTP proxy before it; after `connect`, only those that can be reached. */
  #addresses: string[] = [];
  /** The proxy in front of the relay that gave itself away in an answer, as it calls itself. */
  #proxy: string | undefined;

  constructor(url: URL) {
    this.#url = url;
    this.#host = hostOf(url);
    this.#isSecure = url.protocol === 'wss:';
    this.#port = Number(url.port) || (this.#isSecure ? 443 : 80);
    const via = proxyFor(url, process.env);
    // What cannot be read as a URL at all is taken for one of a kind that does not work.
    this.#via = via ? (URL.parse(via) ?? new URL('invalid://proxy')) : undefined;
  }

  /** Every step before the first WebSocket, in order. */
  steps(): [StepName, Work][] {
    return [
      ['name', () => this.#resolve()],
      ['connect', () => this.#connect()],
      ...(this.#isSecure ? ([['tls', () => this.#certificate()]] as [StepName, Work][]) : []),
      ['health', () => this.#health()],
      ['upgrade', () => this.#upgrade()],
      ['address', () => this.#address()],
    ];
  }

  async #resolve(): Promise<Finding> {
    const host = this.#via ? hostOf(this.#via) : this.#host;
    const forWhom = this.#via ? `left to the HTTP proxy ${this.#via.host}: ` : '';
    if (this.#via && !/^https?:$/.test(this.#via.protocol)) {
      throw this.#proxyUnusable('its URL does not begin with http:// or https://');
    }
    if (ipaddr.isValid(host)) {
      this.#addresses = [host];
      return { found: `${forWhom}${host} is an address already` };
    }
    try {
      const found = await lookup(host, { all: true });
      this.#addresses = [...new Set(found.map(({ address }) => address))];
    } catch (error) {
      const why = `${host} has no address (${codeOf(error)})`;
      throw this.#via ? this.#proxyUnusable(why) : new Problem('name_unknown', why);
    }
    const facts = this.#via ? {} : { addresses: this.#addresses };
    return { found: `${forWhom}${this.#addresses.join(', ')}`, facts };
  }

  /** Connects to every address that the name has: where one of them is dead, only some clients fail. */
  async #connect(): Promise<Finding> {
    const port = this.#via ? portOf(this.#via) : this.#port;
    const outcomes = await Promise.all(
      this.#addresses.map(async (address) => ({ address, ...(await reach(address, port)) })),
    );
    const good = outcomes.filter(({ problem }) => !problem).map(({ address }) => address);
    const bad = outcomes.filter(({ problem }) => problem);
    // What this machine has no route to says nothing about the relay, as long as there is another way to it.
    const [dead] = bad.filter(({ problem }) => problem !== 'no_route');
    if (this.#via && good.length === 0) throw this.#proxyUnusable(bad[0]?.why ?? 'no answer');
    if (good.length === 0) {
      const { problem = 'no_route', address, why } = dead ?? bad[0] ?? {};
      throw new Problem(problem, address === this.#host ? `${why}` : `${this.#host}: ${why}`);
    }
    this.#addresses = good;
    if (this.#via) {
      (await this.#tunnel()).destroy();
      return { found: `through the HTTP proxy ${this.#via.host}` };
    }
    const others = bad.map(({ why }) => why).join(', ');
    const found = `port ${port} on ${good.join(', ')}`;
    if (!dead) return { found: others ? `${found} (${others})` : found };
    // Of localhost’s two addresses, one is enough.
    if (rangeOf(dead.address) === 'loopback') return { found };
    return { found: new Problem('not_everywhere', `${found}; ${others}`) };
  }

  async #certificate(): Promise<Finding> {
    const host = this.#host;
    let socket: tls.TLSSocket;
    try {
      socket = await this.#secure(false);
    } catch (error) {
      if (error instanceof Problem) throw error;
      throw new Problem('tls_missing', `no TLS on port ${this.#port} (${codeOf(error)})`);
    }
    const certificate = socket.getPeerCertificate();
    // Bun gives the code; Node.js would give an error that has it.
    const untrusted = socket.authorizationError as string | Error | null;
    socket.destroy();
    const issuer = nameOf(certificate.issuer);
    const [from, to] = [Date.parse(certificate.valid_from), Date.parse(certificate.valid_to)];
    const left = to - Date.now();
    const daysLeft = Math.floor(left / DAY_MS);
    if (left < 0) {
      const found = `the certificate by ${issuer} ended ${durationOf(-left)} ago`;
      throw new Problem('tls_expired', found);
    }
    if (from > Date.now()) {
      const found = `the certificate by ${issuer} begins in ${durationOf(from - Date.now())}`;
      throw new Problem('tls_not_yet_valid', found);
    }
    if (tls.checkServerIdentity(host, certificate)) {
      const names = certificate.subjectaltname?.replaceAll('DNS:', '');
      const found = `the certificate is for ${names ?? nameOf(certificate.subject)}, not for ${host}`;
      throw new Problem('tls_wrong_name', found, { host });
    }
    if (untrusted) {
      const found =
        nameOf(certificate.subject) === issuer
          ? `the certificate is signed by itself (${untrusted})`
          : `the certificate’s issuer, ${issuer}, is not trusted here (${untrusted})`;
      throw new Problem('tls_untrusted', found);
    }
    const found = `by ${issuer}, ${durationOf(left)} left`;
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
    const answer = await this.#ask(this.#url, UPGRADE);
    if (answer.status !== 101) throw await this.#refusal(answer);
    const origin = httpUrl(this.#url).origin;
    const asPage = await this.#ask(this.#url, { ...UPGRADE, origin });
    if (asPage.status !== 403) return { found: 'status 101' };
    const found = `status 101; for a page of ${origin}, ${saysOf(asPage)}`;
    return { found: new Problem('origin_refused', found, { origin }) };
  }

  /** Why there was no WebSocket; where the answer does not tell, what else is to be found there. */
  async #refusal(answer: Answer): Promise<Problem> {
    const path = this.#url.pathname;
    const hasToken = this.#url.searchParams.has('token');
    const problem = refusalOf(answer, { path, origin: httpUrl(this.#url).origin, hasToken });
    if (problem) return problem;
    const found = `${saysOf(answer)} at ${path}`;
    if (answer.status === 400 && !this.#isSecure && (await this.#speaksTls())) {
      const url = this.#url.href.replace(/^ws:/, 'wss:');
      return new Problem('tls_needed', `${found}; port ${this.#port} speaks TLS`, { url });
    }
    const url = await this.#rightPath();
    if (url) return new Problem('wrong_path', found, { url });
    return isRelaysNotFound(answer)
      ? new Problem('path_not_stripped', `the relay’s own answer, ${found}`)
      : new Problem('not_a_relay', found);
  }

  /** The URL of the WebSocket, where the relay is to be found here and only the path was wrong. */
  async #rightPath(): Promise<string | undefined> {
    const here = this.#url.pathname;
    const paths = ['/ws', this.#beside('ws').pathname, `${here.replace(/\/$/, '')}/ws`];
    for (const path of new Set(paths)) {
      if (path === here) continue;
      const url = new URL(this.#url);
      url.pathname = path;
      const answer = await this.#ask(url, UPGRADE);
      if (answer.status === 101 || answer.body.includes('"access_token_')) return url.href;
    }
    return undefined;
  }

  /** The address that the relay sees the caller under, and whether that can be right. */
  async #address(): Promise<Finding> {
    const answer = await this.#ask(this.#beside(''), ACCEPT_JSON);
    const facts = factsOf(answer);
    if (!facts) return { found: `the relay does not tell (${answer.status}; AMESH_PAGE=0?)` };
    const { address, source } = facts;
    const found = `${address}, taken from ${source === 'peer' ? 'the connection' : source}`;
    return { found: (await this.#doubt(facts, found)) ?? found, facts: { address, source } };
  }

  async #doubt({ address, source }: Facts, found: string): Promise<Problem | undefined> {
    const isPublic = (it: string): boolean => rangeOf(it) === 'unicast';
    const isOutside = !this.#via && this.#addresses.some(isPublic) && !isPublic(address);
    if (source === 'peer' && this.#proxy !== undefined) {
      return new Problem('proxy_not_trusted', `${found}; ${this.#proxy} answers for the relay`);
    }
    if (isOutside) {
      const code = source === 'peer' ? 'proxy_not_trusted' : 'wrong_hop';
      return new Problem(code, `${found}: a private address, and the relay’s is public`);
    }
    if (source === 'peer' || source === 'another header') return undefined;
    // An address for documentation (RFC 5737), which nobody has: only who makes it up comes from there.
    const madeUp = '203.0.113.7';
    const forged = await this.#ask(this.#beside(''), { ...ACCEPT_JSON, [source]: madeUp });
    if (factsOf(forged)?.address !== madeUp) return undefined;
    return new Problem('address_forgeable', `${found}; a made-up ${source} was believed`);
  }

  #beside(path: string): URL {
    const url = new URL(`./${path}`, this.#url);
    url.search = '';
    return url;
  }

  async #speaksTls(): Promise<boolean> {
    const socket = await this.#secure(false).catch(() => undefined);
    socket?.destroy();
    return socket !== undefined;
  }

  /** Asks over a connection of its own. Where the headers ask for a WebSocket, that is all that is done with it. */
  async #ask(url: URL, headers: Record<string, string> = {}): Promise<Answer> {
    try {
      const socket = await (this.#isSecure ? this.#secure(true) : this.#open());
      return await this.#request(socket, url, headers);
    } catch (error) {
      if (error instanceof Problem) throw error;
      const where = `${this.#host}:${this.#port}`;
      throw codeOf(error) === 'ETIMEDOUT'
        ? new Problem('no_answer', `no answer from ${where} within ${TIMEOUT_MS / 1000} s`)
        : new Problem('cut', `${where} ended the connection without an answer (${codeOf(error)})`);
    }
  }

  #request(socket: net.Socket, url: URL, headers: Record<string, string>): Promise<Answer> {
    return new Promise((resolve, reject) => {
      // TLS, where there is any, is on the socket already.
      const target = new URL(url.href.replace(/^wss?:/, 'http:'));
      const request = http.request(target, {
        headers: { ...headers, host: url.host },
        createConnection: () => socket,
        signal: AbortSignal.timeout(TIMEOUT_MS),
      });
      const answered = (status: number, got: IncomingHttpHeaders, body: string): void => {
        const name = PROXY_HEADERS.find((header) => header in got);
        this.#proxy ??= name && (name === 'server' ? String(got[name]) : name);
        const { 'content-type': type, location, server } = got;
        resolve({ status, type, location, server: String(server ?? ''), body });
        socket.destroy();
      };
      request.once('upgrade', (response) => answered(101, response.headers, ''));
      request.once('response', (response) => {
        let body = '';
        response.setEncoding('utf8');
        response.on('data', (chunk: string) => {
          body += chunk;
          if (body.length > MAX_BODY_BYTES) response.destroy();
        });
        response.once('close', () => answered(response.statusCode ?? 0, response.headers, body));
        response.once('error', () => {});
      });
      request.on('error', (error) => {
        socket.destroy();
        reject(error.name === 'AbortError' || error.name === 'TimeoutError' ? timedOut() : error);
      });
      request.end();
    });
  }

  /** @param isStrict Whether a certificate that no client would trust is refused. */
  async #secure(isStrict: boolean): Promise<tls.TLSSocket> {
    const raw = await this.#open();
    return connected(
      tls.connect({
        socket: raw,
        rejectUnauthorized: isStrict,
        ...(!ipaddr.isValid(this.#host) && { servername: this.#host }),
      }),
      'secureConnect',
    );
  }

  /** A connection to the relay, through the HTTP proxy where there is one. */
  #open(): Promise<net.Socket> {
    if (this.#via) return this.#tunnel();
    return connected(net.connect({ host: this.#addresses[0], port: this.#port }), 'connect');
  }

  #tunnel(): Promise<net.Socket> {
    const via = this.#via as URL;
    const target = `${this.#url.hostname}:${this.#port}`;
    const user = decodeURIComponent(via.username);
    const password = decodeURIComponent(via.password);
    const authorization = `Basic ${Buffer.from(`${user}:${password}`).toString('base64')}`;
    return new Promise((resolve, reject) => {
      const { request } = via.protocol === 'https:' ? https : http;
      const asked = request({
        host: hostOf(via),
        port: portOf(via),
        method: 'CONNECT',
        path: target,
        headers: { host: target, ...(user && { 'proxy-authorization': authorization }) },
        agent: false,
        signal: AbortSignal.timeout(TIMEOUT_MS),
      });
      const refuse = (why: string): void => reject(this.#proxyUnusable(why));
      asked.once('connect', ({ statusCode }, socket: net.Socket) => {
        if (statusCode === 200) return resolve(socket);
        socket.destroy();
        refuse(`it answers CONNECT ${target} with status ${statusCode}`);
      });
      asked.once('response', ({ statusCode }) => {
        asked.destroy();
        refuse(`it answers CONNECT ${target} with status ${statusCode}`);
      });
      asked.on('error', (error) => refuse(`no answer to CONNECT ${target} (${codeOf(error)})`));
      asked.end();
    });
  }

  #proxyUnusable(why: string): Problem {
    const found = `the HTTP proxy ${this.#via?.host}: ${why}`;
    return new Problem('proxy_unusable', found, { host: this.#host });
  }
}

interface Reach {
  /** Undefined where a connection came about. */
  problem?: ProblemCode;
  /** What happened, with the address. */
  why?: string;
}

/**
 * Tries to connect to an address.
 *
 * Bun 1.4 calls every connection that the system refuses to make a refused port. A UDP socket is told the true reason: at
 * once where this machine has no route, and later where nobody has the address (an empty datagram is enough for that).
 */
async function reach(address: string, port: number): Promise<Reach> {
  let heard: string | undefined;
  let listener: { close: () => void } | undefined;
  try {
    const socket = await Bun.udpSocket({
      hostname: address.includes(':') ? '::' : '0.0.0.0',
      connect: { hostname: address, port },
      socket: {
        data: () => {},
        error: (error: unknown) => {
          heard ??= codeOf((error as { error?: unknown }).error ?? error);
        },
      } as object,
    });
    listener = socket;
    socket.send('');
  } catch (error) {
    listener?.close();
    return { problem: 'no_route', why: `no route from here to ${address} (${codeOf(error)})` };
  }
  try {
    (await connected(net.connect({ host: address, port }), 'connect')).destroy();
    return {};
  } catch (error) {
    if (codeOf(error) === 'ETIMEDOUT') {
      const why = `no answer from ${address} on port ${port} within ${TIMEOUT_MS / 1000} s`;
      return { problem: 'no_answer', why };
    }
    await Bun.sleep(50);
    if (heard === 'EHOSTUNREACH' || heard === 'ENETUNREACH') {
      return { problem: 'no_answer', why: `no machine answers at ${address} (${heard})` };
    }
    if (codeOf(error) === 'ECONNREFUSED') {
      return { problem: 'refused', why: `port ${port} on ${address} is closed` };
    }
    return { problem: 'cut', why: `no connection to ${address}, port ${port} (${codeOf(error)})` };
  } finally {
    listener.close();
  }
}

/** Waits for a socket's event, or for its error, or until the time is up. */
function connected<S extends net.Socket>(socket: S, event: string): Promise<S> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => socket.destroy(timedOut()), TIMEOUT_MS);
    socket.once(event, () => {
      clearTimeout(timer);
      resolve(socket);
    });
    socket.on('error', (error) => {
      clearTimeout(timer);
      reject(error);
    });
  });
}

const timedOut = (): Error => Object.assign(new Error('timed out'), { code: 'ETIMEDOUT' });

const codeOf = (error: unknown): string =>
  (error instanceof Error && 'code' in error && String(error.code)) || 'no reason given';

const hostOf = (url: URL): string => url.hostname.replace(/^\[|\]$/g, '');

const portOf = (url: URL): number => Number(url.port) || (url.protocol === 'https:' ? 443 : 80);

const httpUrl = (url: URL): URL => new URL(url.href.replace(/^ws/, 'http'));

/** What kind of address it is: `unicast` for a public one. */
const rangeOf = (address: string): string | undefined =>
  ipaddr.isValid(address) ? ipaddr.process(address).range() : undefined;

/** In days, or in hours where that says more. */
function durationOf(ms: number): string {
  const [count, unit] =
    ms < 2 * DAY_MS ? [ms / (DAY_MS / 24), 'hour'] : ([ms / DAY_MS, 'day'] as const);
  return `${Math.floor(count)} ${unit}${Math.floor(count) === 1 ? '' : 's'}`;
}

function nameOf(subject: { O?: string | string[]; CN?: string | string[] } | undefined): string {
  return [subject?.O, subject?.CN].flat().filter(Boolean).join(' ') || 'nobody';
}
