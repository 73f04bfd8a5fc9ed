/** Everything that a check can find wrong. Each problem has one text, which the command and the page both show. */
import { RelayError } from '../client/client.ts';

interface Text {
  /** What it means for somebody who runs a relay. */
  means: string;
  /** What to change. */
  change: string;
}

/** A word in braces, such as `{url}`, is replaced by what is known where the problem is found. */
const texts = {
  name_unknown: {
    means: 'The name does not exist, or not yet everywhere, or this machine has no DNS.',
    change:
      'Check the spelling; create an A or AAAA record for the name and wait for it to spread (--wait 60).',
  },
  no_route: {
    means: 'This machine has no route to the address: nothing was sent to the relay.',
    change:
      'Check the network of this machine (ip route get ADDRESS), and the address in DNS. A machine without IPv6 reaches only a name that has an A record.',
  },
  refused: {
    means: 'The machine is there, and nothing listens on the port.',
    change:
      'Start the relay or the proxy in front, or use the port that it listens on; in a container, publish the port.',
  },
  no_answer: {
    means:
      'The relay was stopped, the machine is down, a firewall drops what is sent to the port, or what listens there hangs.',
    change:
      'Open the port in the firewall or the security group, and look whether the relay runs. From a browser: reload the page.',
  },
  not_everywhere: {
    means:
      'The name has several addresses, and not all of them answer: some devices will fail, others not.',
    change:
      'Make the relay listen on all of them (HOST=:: takes IPv6 too), or remove the address from DNS.',
  },
  proxy_unusable: {
    means:
      'The environment names an HTTP proxy for the way out (HTTPS_PROXY or HTTP_PROXY), and the proxy makes no connection to the relay.',
    change:
      'Check the address of the proxy and its user and password (http://USER:PASSWORD@HOST:PORT), and whether it lets CONNECT through to this host and port. Kerberos, NTLM and SOCKS do not work here. To go past the proxy: NO_PROXY={host}',
  },
  tls_expired: {
    means: 'No client will connect any more.',
    change:
      'Renew the certificate and reload what serves it; then find out why it was not renewed by itself.',
  },
  tls_not_yet_valid: {
    means: 'No client will connect yet.',
    change: 'Check the clock of this machine, and that of the machine that made the certificate.',
  },
  tls_expires_soon: {
    means: 'Little is left of the lifetime of the certificate, so its renewal seems to fail.',
    change: 'Renew it now, and look at the log of what should have done so.',
  },
  tls_wrong_name: {
    means: 'Another site answers under this name, or its certificate was not issued for it.',
    change:
      'Get a certificate for {host}, or make the server in front choose it by the name (SNI).',
  },
  tls_untrusted: {
    means: 'Clients refuse the connection.',
    change:
      'Serve the whole chain (fullchain.pem), with the intermediate certificate. If the certificate is signed by itself, get one from a public authority, such as Let’s Encrypt. For an authority of your own, give every client its root (NODE_EXTRA_CA_CERTS).',
  },
  tls_missing: {
    means: 'The port does not speak TLS, or ends the handshake.',
    change:
      'Use ws:// if the relay is meant to be reached without TLS, or the port that has it (443).',
  },
  tls_needed: { means: 'The address says ws://, and the port wants wss://.', change: 'Use {url}' },
  draining: {
    means: 'This instance is about to stop and takes nobody new.',
    change: 'If a deploy is under way, check again when it is through (--wait 60).',
  },
  redis_lost: {
    means: 'This instance cannot reach the Redis that it shares with the others.',
    change: 'Look at the Redis, at REDIS_URL, and at the network between them.',
  },
  bad_gateway: {
    means: 'A proxy answers, and it does not reach the relay behind it.',
    change:
      'Check that the relay runs (its log says "listening"), and that the proxy forwards to its host and port.',
  },
  health_hidden: {
    means:
      '{path}, beside the WebSocket, does not say how the relay is. That may be meant, or the path is wrong: the next step tells.',
    change:
      'If it is meant, nothing. To let a platform watch the relay, forward {path} to it as well.',
  },
  wrong_path: { means: 'The relay is there, at another path.', change: 'Use {url}' },
  path_not_stripped: {
    means:
      'The relay itself answered, and it has no such path: it knows /ws, /health and /, and nothing under a prefix. What stands in front passes the prefix on instead of taking it off.',
    change:
      'Take the prefix off. In nginx: location /PREFIX/ { proxy_pass http://HOST:3001/; } with the slash at the end of both; in Caddy: handle_path /PREFIX/* { reverse_proxy HOST:3001 }. Or use a URL without a prefix.',
  },
  not_a_relay: {
    means:
      'Something answers, and it is no relay: another site under this name, or a path that is not forwarded to the relay.',
    change: 'Check the host, the port and the path; forward the path to the relay’s /ws.',
  },
  redirected: {
    means: 'A WebSocket follows no redirect.',
    change: 'Use the address that it points to, with wss:// for https://.',
  },
  forbidden: {
    means:
      'Something in front of the relay does not let this request through: a login, a firewall, a rule.',
    change: 'Exempt {path} from it.',
  },
  too_many_requests: {
    means:
      'The relay, or something in front of it, was asked too often from your address in the last minute, or was given too many wrong access tokens.',
    change:
      'Wait a minute and check again; where the token was wrong, ask whoever runs the relay for the right one first.',
  },
  access_token_missing: {
    means: 'This relay is private: it lets in only those who have an access token.',
    change:
      'Ask whoever runs the relay for a token. Give it to this command in AMESH_ACCESS_TOKEN, and to a device in the URL: wss://HOST/ws?token=TOKEN',
  },
  access_token_wrong: {
    means: 'This relay is private, and it does not know this access token.',
    change:
      'Check that the token is whole, and that it is in the relay’s list (AMESH_ACCESS_TOKENS_FILE or AMESH_ACCESS_TOKEN).',
  },
  access_token_lost: {
    means:
      'A token was sent in the URL, and the relay saw none: what stands in front takes the query (?token=…) out.',
    change:
      'Pass the query on. In nginx, proxy_pass http://HOST:3001/; does, and a rewrite that ends in ? does not.',
  },
  origin_refused: {
    means:
      'The relay lets a web page in only from its own address, and takes this address for another site’s. Devices get through, and the check on the relay’s own page does not.',
    change:
      'Pass the host on as the browser sent it, with its port. In nginx: proxy_set_header Host $http_host; or allow the address: AMESH_ALLOWED_ORIGINS={origin}',
  },
  upgrade_swallowed: {
    means: 'A proxy in between takes the Upgrade header out.',
    change:
      'Let it pass WebSockets. In nginx: proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade"; in Apache: upgrade=websocket on ProxyPass; at a platform: switch WebSockets on.',
  },
  proxy_not_trusted: {
    means:
      'There is a proxy in between, and the relay takes the proxy for its client. So all clients count as one: five wrong codes by anyone lock everyone out for a minute.',
    change:
      'Set AMESH_TRUST_PROXY: hops:1 for one proxy that appends to X-Forwarded-For, or header:NAME for a header that it sets (Fly: header:fly-client-ip, Cloudflare: header:cf-connecting-ip). In nginx: proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;',
  },
  wrong_hop: {
    means:
      'The relay is reached over a public address, and the header gives it a private one: that of a proxy. So clients share their limits.',
    change:
      'Raise the N of AMESH_TRUST_PROXY=hops:N by one for each further proxy, or name a header that the outermost one sets.',
  },
  address_forgeable: {
    means:
      'The relay believes the address that a client writes into the header itself: who changes it with each attempt can guess codes without limit.',
    change:
      'Set AMESH_TRUST_PROXY=hops:1 where the proxy appends to X-Forwarded-For, or make the proxy overwrite the header.',
  },
  rate_limited: {
    means:
      'Too many codes were taken or wrong, or too many tokens watched, from your address in the last minute. That is a limit and no fault of the relay. If that was not you, the relay takes others for you: behind a proxy, that is AMESH_TRUST_PROXY not set.',
    change: 'Wait a minute and check again; set AMESH_TRUST_PROXY if there is a proxy.',
  },
  full: {
    means: 'The relay answers, and has as much to do as it may.',
    change:
      'Look at its sessions and connections; raise AMESH_MAX_CONNECTIONS, AMESH_MAX_CONNECTIONS_PER_CLIENT or AMESH_MAX_SESSIONS if they are meant to be there.',
  },
  frame_limit: {
    means: 'The protocol allows frames of up to 64 KiB, and something takes only smaller ones.',
    change:
      'Unset AMESH_MAX_FRAME_BYTES, and raise the limit on WebSocket messages of the proxy or firewall in between.',
  },
  instances_apart: {
    means:
      'Several instances answer at this address, and they do not know each other: a device that waits on one is not found by a device that reaches another.',
    change: 'Run one instance, or give them all the same REDIS_URL.',
  },
  order_lost: {
    means:
      'A device that sends its verdict and leaves is not heard: pairing will fail in the last step.',
    change:
      'Something between here and the relay drops data when a connection closes; look at the proxy or firewall there.',
  },
  idle_cut: {
    means:
      'Something between here and the relay ends connections on which no message was sent for a while: a device that waits is thrown out. The relay pings each socket, but the pings came too seldom or did not count.',
    change:
      'Raise the idle or read timeout of the proxy or load balancer, in nginx proxy_read_timeout and proxy_send_timeout, to 300 s or more.',
  },
  changed: {
    means: 'Something between here and the relay changes what it carries.',
    change: 'Let the proxy or firewall in between pass WebSocket frames through as they are.',
  },
  cut: {
    means:
      'The connection was taken, and ended or left without an answer: the port speaks another protocol, often TLS, or a proxy or firewall in between ended it.',
    change:
      'Use wss:// if the port speaks TLS; otherwise look at the timeouts, limits and log of the proxy or firewall in between.',
  },
  wire_error: {
    means: 'The relay, or something in front of it, did not behave as the protocol says.',
    change: 'Check that this address leads to an amesh relay of this version, and look at its log.',
  },
} satisfies Record<string, Text>;

/** What can be wrong, as `problem` in a step. */
export type ProblemCode = keyof typeof texts;

/** Something that is wrong, or may be: which problem, what was found, what it means and what to change. */
export class Problem extends Error {
  readonly means: string;
  readonly change: string;

  /**
   * @param found What was seen, in a line.
   * @param values What replaces the words in braces in the text of this problem.
   */
  constructor(
    readonly code: ProblemCode,
    readonly found: string,
    values: Record<string, string> = {},
  ) {
    super(found);
    const fill = (text: string): string =>
      text.replaceAll(/\{(\w+)\}/g, (whole, name: string) => values[name] ?? whole);
    this.means = fill(texts[code].means);
    this.change = fill(texts[code].change);
  }
}

/** Which problem an error of the client library is. Those that are not here are a `wire_error`. */
const problemOfError: Record<string, ProblemCode> = {
  rate_limited: 'rate_limited',
  unauthorized: 'access_token_wrong',
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

/** @throws The error itself, where it does not come from the client library: then it is a fault of this program. */
export function problemOf(error: unknown): Problem {
  if (error instanceof Problem) return error;
  if (!(error instanceof RelayError)) throw error;
  return new Problem(problemOfError[error.code] ?? 'wire_error', error.message);
}
