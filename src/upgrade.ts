/** What `/ws` says to a request that can't become a WebSocket. Loaded with the first of them. */
import { zValidator } from '@hono/zod-validator';
import * as z from 'zod/mini';

/** What a request needs to become a WebSocket, per RFC 6455, section 4.2.1. */
const upgradeHeaders = z.object({
  upgrade: z.string('missing').check(z.regex(/\bwebsocket\b/i, 'must be "websocket"')),
  connection: z.string('missing').check(z.regex(/\bupgrade\b/i, 'must be "Upgrade"')),
  'sec-websocket-version': z.literal('13', 'must be "13"'),
  'sec-websocket-key': z
    .string('missing')
    .check(z.regex(/^[A-Za-z0-9+/]{22}==$/, 'must be 16 bytes in base64')),
});

/** Answers 400 with what is missing, or lets the request pass. */
export const requireUpgrade = zValidator('header', upgradeHeaders, (result, c) => {
  if (result.success) return undefined;
  const missing = result.error.issues.map((issue) => `${issue.path.join('.')}: ${issue.message}`);
  return c.json(
    { error: 'upgrade_required', message: 'This is a WebSocket endpoint.', missing },
    400,
  );
});
