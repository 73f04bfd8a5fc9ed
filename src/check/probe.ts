/** What the check command looks at below and around the WebSocket: name, connection, certificate, what HTTP answers. */
import { lookup } from 'node:dns/promises';
import http, { type IncomingHttpHeaders } from 'node:http';
import https from 'node:https';
import net from 'node:net';
import tls from 'node:tls';
import ipaddr from 'ipaddr.js';
import { parseAddress } from '../admission/client-address.ts';
import { type Finding, Problem } from './steps.ts';

const TIMEOUT_MS = 10_000;
const MAX_BODY_BYTES = 65_536;
const DAY_MS = 86_400_000;
/** Certificates of a month or three are renewed a month or so before their end: two weeks mean that renewal fails. */
const EXPIRES_SOON_DAYS = 14;

/** Headers that a relay never sends, and proxies and platforms do. */
const PROXY_HEADERS = [
  'server',
  'via',
  'cf-ray',
  'fly-request-id',
  'x-served-by',
  'x-envoy-upstream-service-time',
];

const isLoopback = (address: string): boolean => parseAddress(address)?.range() === 'loopback';
const isPublic = (address: string): boolean => parseAddress(address)?.range() === 'unicast';

/** The relay that is looked at, and what is found out about it on the way. */
export class Probe {
  readonly url: URL;
  #addresses: string[] = [];
  /** The proxy that gave itself away in an answer, as it calls itself. */
  #proxy: string | undefined;
  #healthIsRelays = false;

  constructor(url: URL) {
    this.url = url;
  }

  get #host(): string {
    return this.url.hostname.replace(/^\[|\]$/g, '');
  }

  get #port(): number {
    return Number(this.url.port) || (this.#isSecure ? 443 : 80);
  }

  get #isSecure(): boolean {
    return this.url.protocol === 'wss:';
  }

  async resolve(): Promise<Finding> {
    const host = this.#host;
    if (ipaddr.isValid(host)) {
      this.#addresses = [host];
      return { found: `${host} is an address already` };
    }
    try {
      const found = await lookup(host, { all: true });
      this.#addresses = [...new Set(found.map(({ address }) => address))];
    } catch (error) {
      throw new Problem(
        'name_unknown',
        `${host} has no address (${codeOf(error)})`,
        'The name does not exist, or not yet everywhere, or this machine has no DNS.',
        'Check the spelling; create an A or AAAA record for the name and wait for it to spread (--wait 60).',
      );
    }
    return { found: this.#addresses.join(', '), facts: { addresses: this.#addresses } };
  }

  /** Connects to every address that the name has: where one is dead, only some clients fail. */
  async connect(): Promise<Finding> {
    const outcomes = await Promise.all(
      this.#addresses.map(async (address) => ({ address, code: await this.#tcp(address) })),
    );
    const good = outcomes.filter(({ code }) => code === undefined);
    const bad = outcomes.filter(
      // Without IPv6 on this machine nothing is said about the relay's.
      ({ address, code }) => code && !(address.includes(':') && UNROUTABLE.has(code)),
    );
    const [worst] = bad;
    const told = bad.map(({ address, code }) => `${address}: ${code}`).join(', ');
    const found = `port ${this.#port} on ${good.map(({ address }) => address).join(', ')}`;
    if (good.length === 0) throw unreachable(worst?.code ?? 'ENETUNREACH', this.#host, this.#port);
    if (!worst || isLoopback(worst.address)) return { found };
    return {
      found: `${found}; not on ${told}`,
      warning: new Problem(
        'not_everywhere',
        told,
        'The name has several addresses, and not all of them answer: some devices will fail, others not.',
        'Make the relay listen on all of them (HOST=:: takes IPv6 too), or remove the address from DNS.',
      ),
    };
  }

  async certificate(): Promise<Finding> {
    const host = this.#host;
    const { certificate, error } = await this.#handshake();
    const issuer = nameOf(certificate.issuer);
    const days = Math.floor((Date.parse(certificate.valid_to) - Date.now()) / DAY_MS);
    const facts = { issuer, validTo: new Date(certificate.valid_to).toISOString(), daysLeft: days };
    if (days < 0) {
      throw new Problem(
        'tls_expired',
        `the certificate by ${issuer} ended ${-days} day${days === -1 ? '' : 's'} ago`,
        'No client will connect any more.',
        'Renew the certificate and reload what serves it; then find out why it was not renewed by itself.',
      );
    }
    if (tls.checkServerIdentity(host, certificate)) {
      throw new Problem(
        'tls_wrong_name',
        `the certificate is for ${certificate.subjectaltname?.replaceAll('DNS:', '') ?? nameOf(certificate.subject)}, not for ${host}`,
        'Another site answers under this name, or its certificate was not issued for it.',
        `Get a certificate for ${host}, or make the server in front choose it by name (SNI).`,
      );
    }
    if (error) {
      const isSelfSigned = nameOf(certificate.subject) === issuer;
      throw new Problem(
        'tls_untrusted',
        isSelfSigned
          ? `the certificate is signed by itself (${error})`
          : `the certificate’s issuer, ${issuer}, is not trusted here (${error})`,
        'Clients refuse the connection.',
        isSelfSigned
          ? 'Get a certificate from a public authority, such as Let’s Encrypt, or have every client trust this one (NODE_EXTRA_CA_CERTS).'
          : 'Serve the whole chain (fullchain.pem), with the intermediate certificate. For an authority of your own, give every client its root (NODE_EXTRA_CA_CERTS).',
      );
    }
    const found = `by ${issuer}, ${days} day${days === 1 ? '' : 's'} left`;
    if (days >= EXPIRES_SOON_DAYS) return { found, facts };
    return {
      found,
      facts,
      warning: new Problem(
        'tls_expires_soon',
        found,
        'The certificate ends soon; renewal seems to fail, since it is mostly done a month ahead.',
        'Renew it now, and look at the log of what should have done so.',
      ),
    };
  }

  async health(): Promise<Finding> {
    const answer = await this.#ask(this.#beside('health'));
    const health = parseObject(answer.body);
    const sessions = Number(health?.sessions);
    if (health?.status === 'ok' && answer.status === 200) {
      this.#healthIsRelays = true;
      return { found: `ok, ${sessions} session${sessions === 1 ? '' : 's'}`, facts: { sessions } };
    }
    if (health?.status === 'draining') {
      throw new Problem(
        'draining',
        `the relay is draining, ${sessions} sessions left`,
        'This instance is about to stop and takes nobody new.',
        'If a deploy is under way, check again when it is through (--wait 60).',
      );
    }
    if (health?.status === 'unavailable') {
      throw new Problem(
        'redis_lost',
        'the relay has lost its Redis',
        'This instance cannot reach the Redis that it shares with the others.',
        'Look at the Redis, at REDIS_URL, and at the network between them.',
      );
    }
    if (isGatewayError(answer.status)) throw badGateway(answer);
    return {
      found: `${this.#beside('health').pathname} is not answered by a relay (${answer.status})`,
      warning: new Problem(
        'health_hidden',
        `status ${answer.status}`,
        'What answers beside the WebSocket is no relay. That may be meant, or the path is wrong: the next step tells.',
        'If it is meant, nothing. To let a platform watch the relay, forward /health to it as well.',
      ),
    };
  }

  async upgrade(): Promise<Finding> {
    const answer = await this.#ask(httpUrl(this.url), UPGRADE);
    if (answer.status === 101) return { found: 'status 101' };
    throw await this.#refusal(answer);
  }

  /** The address that the relay sees the caller under, and whether that can be right. */
  async address(): Promise<Finding> {
    const answer = await this.#ask(this.#beside(''), ACCEPT_JSON);
    const client = clientOf(answer.body);
    if (!client) return { found: `the relay does not tell (${answer.status}; AMESH_PAGE=0?)` };
    const { address, source } = client;
    const found = `${address}, taken from ${source === 'peer' ? 'the connection' : source}`;
    const warning = await this.#doubt(address, source);
    return { found, facts: { address, source }, ...(warning && { warning }) };
  }

  async #doubt(address: string, source: string): Promise<Problem | undefined> {
    const isOutside = this.#addresses.some(isPublic) && !isPublic(address);
    if (source === 'peer' && (this.#proxy !== undefined || isOutside)) {
      return new Problem(
        'proxy_not_trusted',
        `${address} is not you`,
        `${this.#proxy ? `A proxy answers for the relay (${this.#proxy})` : `The relay is reached over a public address and yet sees a private one (${address}): there is a proxy in between`}, and the relay takes the proxy for its client. So all clients count as one: five wrong codes by anyone lock everyone out for a minute.`,
        'Set AMESH_TRUST_PROXY: hops:1 for one proxy that appends to X-Forwarded-For, or header:NAME for a header that it sets (Fly: header:fly-client-ip, Cloudflare: header:cf-connecting-ip). In nginx: proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;',
      );
    }
    if (source === 'peer') return undefined;
    if (isOutside) {
      return new Problem(
        'wrong_hop',
        `${address} is a private address`,
        'The relay is reached over a public address, and the header gives it a private one: that of a proxy. So clients share their limits.',
        'Raise the N of AMESH_TRUST_PROXY=hops:N by one for each further proxy, or name a header that the outermost one sets.',
      );
    }
    // An address for documentation (RFC 5737), which nobody has: only who makes it up comes from there.
    const madeUp = '203.0.113.7';
    const forged = await this.#ask(this.#beside(''), { ...ACCEPT_JSON, [source]: madeUp });
    if (clientOf(forged.body)?.address !== madeUp) return undefined;
    return new Problem(
      'address_forgeable',
      `a made-up ${source} was believed`,
      'The relay believes the address that a client writes into the header itself: who changes it with each attempt can guess codes without limit.',
      'Set AMESH_TRUST_PROXY=hops:1 where the proxy appends to X-Forwarded-For, or make the proxy overwrite the header.',
    );
  }

  /** Why an upgrade was answered with something else. */
  async #refusal(answer: Answer): Promise<Problem> {
    const { status, headers, body } = answer;
    const says = `status ${status}${typeof headers['content-type'] === 'string' ? `, ${headers['content-type'].split(';')[0]}` : ''}`;
    const { error, missing } = parseObject(body) ?? {};
    if (error === 'upgrade_required' || error === 'upgrade_failed' || status === 426) {
      return new Problem(
        'upgrade_swallowed',
        `${says}: what asked for a WebSocket arrived as a plain request${Array.isArray(missing) ? ` (${missing.join(', ')})` : ''}`,
        'A proxy in between takes the Upgrade header out.',
        'Let it pass WebSockets. In nginx: proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade"; in Apache: upgrade=websocket on ProxyPass; at a platform: switch WebSockets on.',
      );
    }
    if (isGatewayError(status)) return badGateway(answer);
    if (status >= 300 && status < 400) {
      return new Problem(
        'redirected',
        `${says}, to ${headers.location ?? 'nowhere'}`,
        'A WebSocket follows no redirect.',
        'Use the address that it points to, with wss:// for https://.',
      );
    }
    if (status === 401 || status === 403 || status === 429) {
      return new Problem(
        'forbidden',
        says,
        'Something in front of the relay lets this request not through: a login, a firewall, a rate limit.',
        `Exempt ${this.url.pathname} from it.`,
      );
    }
    if (status === 400 && !this.#isSecure && (await this.#speaksTls())) {
      return new Problem(
        'tls_needed',
        `${says}; port ${this.#port} speaks TLS`,
        'The address says ws://, and the port wants wss://.',
        `Use ${this.url.href.replace(/^ws:/, 'wss:')}`,
      );
    }
    const right = await this.#rightPath();
    if (right) {
      return new Problem(
        'wrong_path',
        `${says} at ${this.url.pathname}`,
        'The relay is there, at another path.',
        `Use ${right}`,
      );
    }
    return new Problem(
      'not_a_relay',
      `${says} at ${this.url.pathname}`,
      'Something answers, and it is no relay: another site under this name, or a path that is not forwarded to the relay.',
      'Check the host, the port and the path; forward the path to the relay’s /ws.',
    );
  }

  /** The WebSocket's URL, where the relay is to be found here and the path was all that was wrong. */
  async #rightPath(): Promise<string | undefined> {
    for (const candidate of new Set([
      '/ws',
      this.#beside('ws').pathname,
      `${this.url.pathname.replace(/\/$/, '')}/ws`,
    ])) {
      const url = new URL(candidate, this.url);
      if (url.pathname === this.url.pathname) continue;
      if ((await this.#ask(httpUrl(url), UPGRADE)).status === 101) return url.href;
    }
    return this.#healthIsRelays ? new URL('/ws', this.url).href : undefined;
  }

  #beside(path: string): URL {
    return new URL(`./${path}`, httpUrl(this.url));
  }

  #tcp(address: string): Promise<string | undefined> {
    return new Promise((resolve) => {
      const socket = net.connect({ host: address, port: this.#port });
      const end = (code?: string): void => {
        socket.destroy();
        resolve(code);
      };
      socket.setTimeout(TIMEOUT_MS, () => end('ETIMEDOUT'));
      socket.once('connect', () => end());
      socket.once('error', (error) => end(codeOf(error)));
    });
  }

  #handshake(): Promise<{ certificate: tls.PeerCertificate; error: string | undefined }> {
    const host = this.#host;
    const port = this.#port;
    return new Promise((resolve, reject) => {
      const socket = tls.connect({
        host,
        port,
        rejectUnauthorized: false,
        ...(!ipaddr.isValid(host) && { servername: host }),
      });
      socket.setTimeout(TIMEOUT_MS, () => socket.destroy(timedOut()));
      socket.once('secureConnect', () => {
        const certificate = socket.getPeerCertificate();
        // Bun gives the code; Node.js would give an error that has it.
        const error = socket.authorizationError as string | Error | null;
        resolve({ certificate, error: error ? String(error) : undefined });
        socket.destroy();
      });
      socket.once('error', (error) => {
        const code = codeOf(error);
        reject(
          code === 'ETIMEDOUT'
            ? unreachable(code, host, port)
            : new Problem(
                'tls_missing',
                `no TLS on port ${port} (${code})`,
                'The port does not speak TLS, or ends the handshake.',
                'Use ws:// if the relay is meant to be reached without TLS, or the port that has it (443).',
              ),
        );
      });
    });
  }

  #speaksTls(): Promise<boolean> {
    return this.#handshake().then(
      () => true,
      () => false,
    );
  }

  #ask(url: URL, headers: Record<string, string> = {}): Promise<Answer> {
    const { request } = url.protocol === 'https:' ? https : http;
    return new Promise((resolve, reject) => {
      const asked = request(url, { headers, agent: false, timeout: TIMEOUT_MS });
      const deadline = setTimeout(() => asked.destroy(timedOut()), TIMEOUT_MS);
      const answered = (status: number, answerHeaders: IncomingHttpHeaders, body: string): void => {
        const name = PROXY_HEADERS.find((header) => header in answerHeaders);
        this.#proxy ??= name && (name === 'server' ? String(answerHeaders[name]) : name);
        resolve({ status, headers: answerHeaders, body });
      };
      asked.once('upgrade', ({ headers: answerHeaders }, socket) => {
        socket.destroy();
        answered(101, answerHeaders, '');
      });
      asked.once('response', (response) => {
        let body = '';
        response.setEncoding('utf8');
        response.on('data', (chunk: string) => {
          body += chunk;
          if (body.length > MAX_BODY_BYTES) response.destroy();
        });
        response.once('close', () => answered(response.statusCode ?? 0, response.headers, body));
        response.once('error', () => {});
      });
      asked.once('timeout', () => asked.destroy(timedOut()));
      asked.once('error', (error) => reject(unreachable(codeOf(error), this.#host, this.#port)));
      asked.once('close', () => clearTimeout(deadline));
      asked.end();
    });
  }
}

interface Answer {
  status: number;
  headers: IncomingHttpHeaders;
  body: string;
}

const ACCEPT_JSON = { accept: 'application/json' };
const UPGRADE = {
  connection: 'Upgrade',
  upgrade: 'websocket',
  'sec-websocket-version': '13',
  'sec-websocket-key': 'YW1lc2gtcmVsYXktdGVzdA==',
};
const UNROUTABLE = new Set(['ENETUNREACH', 'EHOSTUNREACH', 'EADDRNOTAVAIL', 'EAFNOSUPPORT']);

const timedOut = (): Error => Object.assign(new Error('timed out'), { code: 'ETIMEDOUT' });

const codeOf = (error: unknown): string =>
  (error instanceof Error && 'code' in error && String(error.code)) || 'no reason given';

const httpUrl = (url: URL): URL => new URL(url.href.replace(/^ws/, 'http'));

const isGatewayError = (status: number): boolean => status >= 500;

function nameOf({ O, CN }: { O?: string | string[]; CN?: string | string[] }): string {
  return [O, CN].flat().filter(Boolean).join(' ') || 'nobody';
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

function clientOf(body: string): { address: string; source: string } | undefined {
  const client = parseObject(body)?.client as Record<string, unknown> | undefined;
  if (typeof client?.address !== 'string' || typeof client.source !== 'string') return undefined;
  return { address: client.address, source: client.source };
}

function badGateway({ status, headers }: Answer): Problem {
  return new Problem(
    'bad_gateway',
    `status ${status}${typeof headers.server === 'string' ? ` from ${headers.server}` : ''}`,
    'A proxy answers, and it does not reach the relay behind it.',
    'Check that the relay runs (its log says "listening"), and that the proxy forwards to its host and port.',
  );
}

function unreachable(code: string, host: string, port: number): Problem {
  if (code === 'ECONNREFUSED') {
    return new Problem(
      'refused',
      `port ${port} on ${host} is closed`,
      'The machine is there, and nothing listens on the port.',
      'Start the relay or the proxy in front, or use the port that it listens on; in a container, publish the port.',
    );
  }
  if (code === 'ETIMEDOUT') {
    return new Problem(
      'no_answer',
      `no answer from ${host} on port ${port} within ${TIMEOUT_MS / 1000} s`,
      'The host is down, a firewall drops what is sent to the port, or what listens there hangs.',
      'Open the port in the firewall or the security group, and look whether the relay runs.',
    );
  }
  if (UNROUTABLE.has(code)) {
    return new Problem(
      'no_route',
      `no way to ${host} (${code})`,
      'This network has no route to the address.',
      'Check the address in DNS, and the network of this machine.',
    );
  }
  return new Problem(
    'cut',
    `the connection to ${host}:${port} ended without an answer (${code})`,
    'Something took the connection and ended it: a port that speaks another protocol, often TLS, or a firewall.',
    'Use wss:// if the port speaks TLS; otherwise look at what listens there.',
  );
}
