/** What stands in front of a relay in the tests of the check and of the page: a door that asks for an access token. */
import { Hono } from 'hono';
import { servePage } from '../src/page/page.ts';

/**
 * A relay that needs an access token, made of one that needs none. It answers as PROTOCOL.md says that a private one does.
 * @param relay The WebSocket URL of a relay that runs.
 * @param options `keepsQuery: false`: as behind a proxy that takes the query out of each request.
 */
export function startPrivateRelay(
  relay: string,
  token: string,
  { keepsQuery = true } = {},
): { url: string; stop: () => Promise<void> } {
  const app = new Hono();
  const home = relay.replace('ws', 'http').replace(/ws$/, '');
  app.get('/', async (c) => {
    const facts = await fetch(home).then((response) => response.json() as Promise<object>);
    const here = { ...facts, websocket: `ws://${c.req.header('host')}/ws`, private: true };
    if (!c.req.header('accept')?.includes('text/html')) return c.json(here);
    return servePage(c, { ...here, status: 'ok', sessions: 0 } as never);
  });
  app.get('/health', () => fetch(`${home}health`));
  app.all('/ws', (c) => c.json({ error: 'upgrade_required' }, 400));

  const server = Bun.serve<{ upstream: WebSocket }>({
    port: 0,
    hostname: '127.0.0.1',
    fetch: (request, bun) => {
      const url = new URL(request.url);
      if (url.pathname !== '/ws') return app.fetch(request);
      const given = keepsQuery ? url.searchParams.get('token') : null;
      if (given !== token) {
        const error = given === null ? 'access_token_missing' : 'access_token_wrong';
        return Response.json(
          { error, message: 'This relay is private.' },
          { status: 401, headers: { 'www-authenticate': 'Bearer' } },
        );
      }
      const upstream = new WebSocket(relay);
      return bun.upgrade(request, { data: { upstream } }) ? undefined : app.fetch(request);
    },
    websocket: {
      async open(client) {
        const { upstream } = client.data;
        upstream.addEventListener('message', ({ data }) => client.send(String(data)));
        upstream.addEventListener('close', ({ code, reason }) =>
          // 1005 and 1006 say that there was no close code, and can't be sent.
          client.close(code === 1005 || code === 1006 ? 1000 : code, reason),
        );
      },
      async message({ data: { upstream } }, message) {
        if (upstream.readyState === WebSocket.CONNECTING) {
          await new Promise((resolve) => upstream.addEventListener('open', resolve));
        }
        upstream.send(message);
      },
      close({ data: { upstream } }) {
        upstream.close();
      },
    },
  });
  return { url: `ws://127.0.0.1:${server.port}/ws`, stop: () => server.stop(true) };
}
