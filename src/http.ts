/** What the relay says over plain HTTP. Loaded with the first request that is neither an upgrade nor `GET /health`. */
import { Hono } from 'hono';
import { accepts } from 'hono/accepts';
import { TrieRouter } from 'hono/router/trie-router';
import { name, version } from '../package.json' with { type: 'json' };
import type { Caller } from './admission/client-address.ts';
import { type Health, healthResponse } from './status.ts';

/** What `GET /` has to ask for; without it, there is no `/`. */
interface Surroundings {
  caller: (request: Request, peer: string | undefined) => Caller;
  /** Whether the caller speaks TLS, to this relay or to the proxy in front. */
  isSecure: (headers: Headers) => boolean;
}

/** What `GET /` tells. */
export interface Facts {
  name: string;
  version: string;
  /** The WebSocket URL as the caller would write it. */
  websocket: string;
  /** The address that the relay sees the caller under, and where it was taken from. */
  client: { address: string; source: string };
}

type Environment = { Bindings: { peer?: string | undefined } };

/** A name or an address with or without a port: nothing else is repeated to anyone. */
const HOST = /^(?:[a-z0-9_.-]{1,253}|\[[0-9a-f:.]{2,45}\])(?::\d{1,5})?$/i;

export function createHttp(
  health: () => Health,
  surroundings: Surroundings | undefined,
): Hono<Environment> {
  // Hono's own choice of router takes a millisecond to make, at the first request.
  const http = new Hono<Environment>({ router: new TrieRouter() });

  if (surroundings) {
    const { caller, isSecure } = surroundings;
    http.get('/', async (c) => {
      const { headers } = c.req.raw;
      const host = headers.get('host') ?? '';
      if (!HOST.test(host) || !URL.canParse(`ws://${host}`))
        return c.json({ error: 'invalid_host' }, 400);
      const { address, source } = caller(c.req.raw, c.env.peer);
      const facts: Facts = {
        name,
        version,
        websocket: `${isSecure(headers) ? 'wss' : 'ws'}://${host}/ws`,
        client: { address, source },
      };
      c.header('cache-control', 'no-store');
      c.header('vary', 'accept');
      c.header('x-content-type-options', 'nosniff');
      const type = accepts(c, {
        header: 'Accept',
        supports: ['application/json', 'text/html'],
        default: 'application/json',
      });
      if (type === 'application/json') return c.json(facts);
      const { servePage } = await import('./page/page.ts');
      return servePage(c, facts, health());
    });
  }

  // A plain GET is answered before Hono is asked; HEAD, and whatever else a path like this one has, by Hono.
  http.get('/health', () => healthResponse(health()));

  http.get(
    '/ws',
    async (c, next) => (await import('./upgrade.ts')).requireUpgrade(c as never, next),
    // Headers that pass and yet made no socket: what else may be wrong, only Bun knows.
    (c) => c.json({ error: 'upgrade_failed', message: 'The WebSocket handshake failed.' }, 400),
  );

  const paths = ['/health', '/ws', ...(surroundings ? ['/'] : [])];
  for (const path of paths) {
    http.all(path, (c) => c.json({ error: 'method_not_allowed' }, 405, { allow: 'GET, HEAD' }));
  }
  http.notFound((c) => c.json({ error: 'not_found' }, 404));
  http.onError((_error, c) => c.json({ error: 'internal_error' }, 500));
  return http;
}
