/** Everything that a check can find wrong. Each problem has one text, which the command and the page both show. */
import { RelayError } from '../client/client.ts';

/**
 * What each problem means for somebody who runs a relay, and after the arrow what to change. `{}` becomes the one thing
 * that is known only where the problem is found, such as the right URL.
 */
const texts = {
  name_unknown:
    'The name does not exist, or not yet everywhere, or this machine has no DNS. → Check the spelling; create an A or AAAA record for the name and wait for it to spread (--wait 60).',
  no_route:
    'This machine has no route to the address: nothing was sent to the relay. → Check the network of this machine (ip route get ADDRESS), and the address in DNS. A machine without IPv6 reaches only a name that has an A record.',
  refused:
    'The machine is there, and nothing listens on the port. → Start the relay or the proxy in front, or use the port that it listens on; in a container, publish the port.',
  no_answer:
    'The relay was stopped, the machine is down, a firewall drops what is sent to the port, or what listens there hangs. → Open the port in the firewall or the security group, and look whether the relay runs. From a browser: reload the page.',
  not_everywhere:
    'The name has several addresses, and not all of them answer: some devices will fail, others not. → Make the relay listen on all of them (HOST=:: takes IPv6 too), or remove the address from DNS.',
  proxy_unusable:
    'The environment names an HTTP proxy for the way out (HTTPS_PROXY or HTTP_PROXY), and the proxy makes no connection to the relay. → Check the address of the proxy and its user and password (http://USER:PASSWORD@HOST:PORT), and whether it lets CONNECT through to this host and port. Kerberos, NTLM and SOCKS do not work here. To go past the proxy: NO_PROXY={}',
  tls_expired:
    'No client will connect any more. → Renew the certificate and reload what serves it; then find out why it was not renewed by itself.',
  tls_not_yet_valid:
    'No client will connect yet. → Check the clock of this machine, and that of the machine that made the certificate.',
  tls_expires_soon:
    'Little is left of the lifetime of the certificate, so its renewal seems to fail. → Renew it now, and look at the log of what should have done so.',
  tls_wrong_name:
    'Another site answers under this name, or its certificate was not issued for it. → Get a certificate for {}, or make the server in front choose it by the name (SNI).',
  tls_untrusted:
    'Clients refuse the connection. → Serve the whole chain (fullchain.pem), with the intermediate certificate. If the certificate is signed by itself, get one from a public authority, such as Let’s Encrypt. For an authority of your own, give every client its root (NODE_EXTRA_CA_CERTS).',
  tls_missing:
    'The port does not speak TLS, or ends the handshake. → Use ws:// if the relay is meant to be reached without TLS, or the port that has it (443).',
  tls_needed: 'The address says ws://, and the port wants wss://. → Use {}',
  draining:
    'This instance is about to stop and takes nobody new. → If a deploy is under way, check again when it is through (--wait 60).',
  redis_lost:
    'This instance cannot reach the Redis that it shares with the others. → Look at the Redis, at REDIS_URL, and at the network between them.',
  bad_gateway:
    'A proxy answers, and it does not reach the relay behind it. → Check that the relay runs (its log says "listening"), and that the proxy forwards to its host and port.',
  health_hidden:
    '{}, beside the WebSocket, does not say how the relay is. That may be meant, or the path is wrong: the next step tells. → If it is meant, nothing. To let a platform watch the relay, forward {} to it as well.',
  wrong_path: 'The relay is there, at another path. → Use {}',
  path_not_stripped:
    'The relay itself answered, and it has no such path: it knows /ws, /health and /, and nothing under a prefix. What stands in front passes the prefix on instead of taking it off. → Take the prefix off. In nginx: location /PREFIX/ { proxy_pass http://HOST:3001/; } with the slash at the end of both; in Caddy: handle_path /PREFIX/* { reverse_proxy HOST:3001 }. Or use a URL without a prefix.',
  not_a_relay:
    'Something answers, and it is no relay: another site under this name, or a path that is not forwarded to the relay. → Check the host, the port and the path; forward the path to the relay’s /ws.',
  redirected:
    'A WebSocket follows no redirect. → Use the address that it points to, with wss:// for https://.',
  forbidden:
    'Something in front of the relay does not let this request through: a login, a firewall, a rule. → Exempt {} from it.',
  too_many_requests:
    'The relay, or something in front of it, was asked too often from your address in the last minute, or was given too many wrong access tokens. → Wait a minute and check again; where the token was wrong, ask whoever runs the relay for the right one first.',
  access_token_missing:
    'This relay is private: it lets in only those who have an access token. → Ask whoever runs the relay for a token. Give it to this command in AMESH_ACCESS_TOKEN, and to a device in the URL: wss://HOST/ws?token=TOKEN',
  access_token_wrong:
    'This relay is private, and it does not know this access token. → Check that the token is whole, and that it is in the relay’s list (AMESH_ACCESS_TOKENS_FILE or AMESH_ACCESS_TOKEN).',
  access_token_lost:
    'A token was sent in the URL, and the relay saw none: what stands in front takes the query (?token=…) out. → Pass the query on. In nginx, proxy_pass http://HOST:3001/; does, and a rewrite that ends in ? does not.',
  origin_refused:
    'The relay lets a web page in only from its own address, and takes this address for another site’s. Devices get through, and the check on the relay’s own page does not. → Pass the host on as the browser sent it, with its port. In nginx: proxy_set_header Host $http_host; or allow the address: AMESH_ALLOWED_ORIGINS={}',
  upgrade_swallowed:
    'A proxy in between takes the Upgrade header out. → Let it pass WebSockets. In nginx: proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade"; in Apache: upgrade=websocket on ProxyPass; at a platform: switch WebSockets on.',
  proxy_not_trusted:
    'There is a proxy in between, and the relay takes the proxy for its client. So all clients count as one: five wrong codes by anyone lock everyone out for a minute. → Set AMESH_TRUST_PROXY: hops:1 for one proxy that appends to X-Forwarded-For, or header:NAME for a header that it sets (Fly: header:fly-client-ip, Cloudflare: header:cf-connecting-ip). In nginx: proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;',
  wrong_hop:
    'The relay is reached over a public address, and the header gives it a private one: that of a proxy. So clients share their limits. → Raise the N of AMESH_TRUST_PROXY=hops:N by one for each further proxy, or name a header that the outermost one sets.',
  address_forgeable:
    'The relay believes the address that a client writes into the header itself: who changes it with each attempt can guess codes without limit. → Set AMESH_TRUST_PROXY=hops:1 where the proxy appends to X-Forwarded-For, or make the proxy overwrite the header.',
  rate_limited:
    'Too many codes were taken or wrong, or too many tokens watched, from your address in the last minute. That is a limit and no fault of the relay. If that was not you, the relay takes others for you: behind a proxy, that is AMESH_TRUST_PROXY not set. → Wait a minute and check again; set AMESH_TRUST_PROXY if there is a proxy.',
  full: 'The relay answers, and has as much to do as it may. → Look at its sessions and connections; raise AMESH_MAX_CONNECTIONS, AMESH_MAX_CONNECTIONS_PER_CLIENT or AMESH_MAX_SESSIONS if they are meant to be there.',
  frame_limit:
    'The protocol allows frames of up to 64 KiB, and something takes only smaller ones. → Unset AMESH_MAX_FRAME_BYTES, and raise the limit on WebSocket messages of the proxy or firewall in between.',
  instances_apart:
    'Several instances answer at this address, and they do not know each other: a device that waits on one is not found by a device that reaches another. → Run one instance, or give them all the same REDIS_URL.',
  order_lost:
    'A device that sends its verdict and leaves is not heard: pairing will fail in the last step. → Something between here and the relay drops data when a connection closes; look at the proxy or firewall there.',
  idle_cut:
    'Something between here and the relay ends connections on which no message was sent for a while: a device that waits is thrown out. The relay pings each socket, but the pings came too seldom or did not count. → Raise the idle or read timeout of the proxy or load balancer, in nginx proxy_read_timeout and proxy_send_timeout, to 300 s or more.',
  changed:
    'Something between here and the relay changes what it carries. → Let the proxy or firewall in between pass WebSocket frames through as they are.',
  cut: 'The connection was taken, and ended or left without an answer: the port speaks another protocol, often TLS, or a proxy or firewall in between ended it. → Use wss:// if the port speaks TLS; otherwise look at the timeouts, limits and log of the proxy or firewall in between.',
  wire_error:
    'The relay, or something in front of it, did not behave as the protocol says. → Check that this address leads to an amesh relay of this version, and look at its log.',
} satisfies Record<string, `${string} → ${string}`>;

/** What can be wrong, as `problem` in a step. */
export type ProblemCode = keyof typeof texts;

/** Something that is wrong, or may be. Thrown where a device would not get through, returned where it is a warning. */
export class Problem extends Error {
  /** What it means, in plain words, and what to change. */
  readonly advice: { means: string; change: string };

  /**
   * @param found What was seen, in a line.
   * @param detail What stands for `{}` in the text of this problem.
   */
  constructor(
    readonly code: ProblemCode,
    readonly found: string,
    detail = '',
  ) {
    super(found);
    const [means = '', change = ''] = texts[code].replaceAll('{}', () => detail).split(' → ');
    this.advice = { means, change };
  }
}

/** The problem that each error of the client library stands for. All others are a `wire_error`. */
const problemOfError: Record<string, ProblemCode> = {
  rate_limited: 'rate_limited',
  unauthorized: 'access_token_wrong',
  // Each check makes up its own code and token id, so nobody else can have taken them.
  otc_not_found: 'instances_apart',
  no_watcher: 'instances_apart',
  relay_capacity: 'full',
  relay_overloaded: 'full',
  too_many_connections: 'full',
  relay_draining: 'draining',
  relay_shutting_down: 'draining',
  relay_unavailable: 'redis_lost',
  connection_lost: 'cut',
  timeout: 'cut',
  unreachable: 'cut',
};

/** @throws The error itself, if it does not come from the client library: then it is a fault of this program. */
export function problemOf(error: unknown): Problem {
  if (error instanceof Problem) return error;
  if (!(error instanceof RelayError)) throw error;
  return new Problem(problemOfError[error.code] ?? 'wire_error', error.message);
}
