/** What the relay says over plain HTTP. */
import { zValidator } from '@hono/zod-validator';
import { Hono } from 'hono';
import * as z from 'zod/mini';

export interface Health {
  status: 'ok' | 'draining';
  sessions: number;
}

/** What a request needs to become a WebSocket, per RFC 6455, section 4.2.1. */
const upgradeHeaders = z.object({
  upgrade: z.string('missing').check(z.regex(/\bwebsocket\b/i, 'must be "websocket"')),
  connection: z.string('missing').check(z.regex(/\bupgrade\b/i, 'must be "Upgrade"')),
  'sec-websocket-version': z.literal('13', 'must be "13"'),
  'sec-websocket-key': z
    .string('missing')
    .check(z.regex(/^[A-Za-z0-9+/]{22}==$/, 'must be 16 bytes in base64')),
});

export function createHttp(health: () => Health): Hono {
  const http = new Hono();

  http.get('/health', (c) => {
    const now = health();
    return c.json(now, now.status === 'ok' ? 200 : 503, { 'cache-control': 'no-store' });
  });

  http.get(
    '/ws',
    zValidator('header', upgradeHeaders, (result, c) => {
      if (result.success) return undefined;
      const missing = result.error.issues.map(
        (issue) => `${issue.path.join('.')}: ${issue.message}`,
      );
      return c.json(
        { error: 'upgrade_required', message: 'This is a WebSocket endpoint.', missing },
        400,
      );
    }),
    // Headers that pass and yet made no socket: what else may be wrong, only Bun knows.
    (c) => c.json({ error: 'upgrade_failed', message: 'The WebSocket handshake failed.' }, 400),
  );

  http.on(['POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS'], ['/health', '/ws'], (c) =>
    c.json({ error: 'method_not_allowed' }, 405, { allow: 'GET, HEAD' }),
  );
  http.notFound((c) => c.json({ error: 'not_found' }, 404));
  http.onError((_error, c) => c.json({ error: 'internal_error' }, 500));
  return http;
}
