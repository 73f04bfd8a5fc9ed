/** The relay's answers over plain HTTP. Requests that become a WebSocket do not reach this file. */
import { zValidator } from '@hono/zod-validator';
import { Hono } from 'hono';
import { cors } from 'hono/cors';
import { TrieRouter } from 'hono/router/trie-router';
import * as z from 'zod/mini';
import { name, version } from '../package.json' with { type: 'json' };
import type { CallerResolver } from './admission/client-address.ts';
import { HOST, isSecure, type Refused, shownHost } from './admission/origins.ts';

/** The answer to `GET /health`. */
export interface Health {
  status: 'ok' | 'draining' | 'unavailable';
  /** The sessions that the relay holds, waiting or paired. */
  sessions: number;
}

export interface AppOptions {
  health: () => Health;
  /** Whether `GET /` answers. */
  page: boolean;
  /** Finds the client of a request, and whether the proxy that sent it is trusted. */
  callers: CallerResolver;
  /** Whether the relay itself speaks TLS. */
  isTls: boolean;
  /** Whether a WebSocket needs an access token. */
  isPrivate: boolean;
}

/** What Bun passes to `fetch` besides the request. */
type Environment = {
  Bindings: { requestIP?: (request: Request) => { address: string } | null };
};

/** The paths that platforms and monitors ask again and again. */
export const PROBES = ['/health', '/livez'];

/** The longest path that is accepted, in characters. The longest route is `/health`. */
const MAX_PATH = 256;
/** How much of an `Accept` header is read, in characters. Browsers name `text/html` first. */
const MAX_ACCEPT = 256;

/**
 * The path of a request, as the routes below know it. Several slashes in a row count as one, since a proxy that serves
 * the relay under a prefix often sends `//ws`.
 *
 * @param request Without a valid `Host` header, its `url` is only a path.
 */
export function pathOf({ url }: { url: string }): string {
  const start = url.startsWith('/') ? 0 : url.indexOf('/', url.indexOf('://') + 3);
  if (start === -1) return '/';
  const target = url.slice(start);
  const end = target.search(/[?#]/);
  const path = end === -1 ? target : target.slice(0, end);
  // One character more than allowed, so that the app answers that the path is too long.
  if (path.length > MAX_PATH) return path.slice(0, MAX_PATH + 1);
  return path.includes('//') ? path.replaceAll(/\/{2,}/g, '/') : path;
}

/** A list of subprotocols, each a token: RFC 6455, section 11.3.4. Bun would accept the first one unchecked. */
export const SUBPROTOCOLS = /^[!#$%&'*+.^_`|~\w-]+(?:[ \t]*,[ \t]*[!#$%&'*+.^_`|~\w-]+)*$/;

/** What a request needs to become a WebSocket: RFC 6455, section 4.2.1. */
const upgradeHeaders = z.object({
  upgrade: z.string('missing').check(z.regex(/\bwebsocket\b/i, 'must be "websocket"')),
  connection: z.string('missing').check(z.regex(/\bupgrade\b/i, 'must be "Upgrade"')),
  'sec-websocket-version': z.literal('13', 'must be "13"'),
  'sec-websocket-key': z
    .string('missing')
    .check(z.regex(/^[A-Za-z0-9+/]{22}==$/, 'must be 16 bytes in base64')),
  'sec-websocket-protocol': z.optional(
    z.string().check(z.regex(SUBPROTOCOLS, 'must be a list of tokens')),
  ),
});

/** JSON with a line break at its end, which is easier to read in a terminal. */
export const json = (value: object, status = 200, headers: Record<string, string> = {}): Response =>
  new Response(`${JSON.stringify(value)}\n`, {
    status,
    headers: { 'content-type': 'application/json', ...headers },
  });

const UNCACHED = { 'cache-control': 'no-store' };

/** RFC 6750, section 3. Basic works too but is not named: browsers would ask their user for a password. */
const BEARER = 'Bearer realm="amesh relay"';

/** The status and the headers of each refusal. */
const REFUSALS = {
  access_token_missing: [401, { 'www-authenticate': BEARER }],
  access_token_wrong: [401, { 'www-authenticate': `${BEARER}, error="invalid_token"` }],
  origin_refused: [403, {}],
  too_many_wrong_tokens: [429, { 'retry-after': '60' }],
} as const;

/** The answer to a request for a WebSocket that is refused before the upgrade. */
export function refusal({ error, message }: Refused): Response {
  const [status, headers] = REFUSALS[error];
  return json({ error, message }, status, { ...UNCACHED, ...headers });
}

/** The path under which a trusted proxy serves the relay, as `X-Forwarded-Prefix` says; empty if there is none. */
function prefixOf(headers: Headers, trusts: () => boolean): string {
  const prefix = headers.get('x-forwarded-prefix')?.replace(/\/$/, '') ?? '';
  return /^(?:\/[\w.~-]+){1,8}$/.test(prefix) && trusts() ? prefix : '';
}

/** The relay's routes. `app.fetch` takes a request and Bun's server. */
export function createApp({ health, page, callers, isTls, isPrivate }: AppOptions) {
  // Hono's default router compiles at the first request, which would take a millisecond longer.
  const app = new Hono<Environment>({ getPath: pathOf, router: new TrieRouter() });

  app.use(async (c, next) => {
    if (c.req.path.length > MAX_PATH) return json({ error: 'path_too_long' }, 414);
    await next();
    // Hono drops the body of an answer to HEAD, so Bun would set its length to 0.
    if (c.req.method === 'HEAD') {
      c.header('content-length', String((await c.res.clone().bytes()).length));
    }
    return undefined;
  });

  // These hold nothing private, so a status page on any other site may read them.
  const open = page ? [...PROBES, '/'] : PROBES;
  for (const path of open) {
    app.use(path, cors({ origin: '*', allowMethods: ['GET', 'HEAD'], allowHeaders: ['*'] }));
  }

  app.get('/health', () => {
    const state = health();
    return json(state, state.status === 'ok' ? 200 : 503, UNCACHED);
  });

  app.get('/livez', () => json({ status: 'alive' }, 200, UNCACHED));

  if (page) {
    app.get('/', async (c) => {
      const { headers } = c.req.raw;
      const peerOf = () => c.env.requestIP?.(c.req.raw)?.address;
      const trusts = () => callers.trusts(peerOf);
      const host = shownHost(headers, trusts);
      if (!HOST.test(host) || !URL.canParse(`ws://${host}`)) {
        return json({ error: 'invalid_host' }, 400);
      }
      const scheme = isSecure(headers, isTls, trusts) ? 'wss' : 'ws';
      const { address, source } = callers.resolve(c.req.raw, peerOf);
      const facts = {
        name,
        version,
        websocket: `${scheme}://${host}${prefixOf(headers, trusts)}/ws`,
        client: { address, source },
        ...(isPrivate && { private: true }),
      };
      c.header('cache-control', 'no-store');
      c.header('vary', 'accept');
      c.header('x-content-type-options', 'nosniff');
      const accept = c.req.header('accept')?.slice(0, MAX_ACCEPT) ?? '';
      if (!accept.includes('text/html') || accept.includes('application/json')) return json(facts);
      const { servePage } = await import('./page/page.ts');
      return servePage(c, { ...facts, ...health() });
    });
  }

  app.get(
    '/ws',
    zValidator('header', upgradeHeaders, (result) => {
      if (result.success) return undefined;
      const missing = result.error.issues.map(
        ({ path, message }) => `${path.join('.')}: ${message}`,
      );
      const message = 'This is a WebSocket endpoint.';
      return json({ error: 'upgrade_required', message, missing }, 400);
    }),
    // The headers are right, but Bun refused the upgrade. It gives no reason.
    () => json({ error: 'upgrade_failed', message: 'The WebSocket handshake failed.' }, 400),
  );

  for (const path of [...open, '/ws']) {
    app.all(path, () => json({ error: 'method_not_allowed' }, 405, { allow: 'GET, HEAD' }));
  }
  app.notFound(() => json({ error: 'not_found' }, 404));
  app.onError(() => json({ error: 'internal_error' }, 500));
  return app;
}
