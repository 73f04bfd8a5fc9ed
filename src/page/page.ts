/** The page at `/`, for people. Loaded when the first of them comes. */
import type { Context } from 'hono';
import { html, raw } from 'hono/html';
import { PROXY_HEADERS } from '../admission/client-address.ts';

/** What the page shows of the relay and of the caller. */
interface Facts {
  version: string;
  /** The WebSocket URL as the caller would write it. */
  websocket: string;
  /** The address that the relay sees the caller under, and whether it comes from the TCP connection or a header. */
  client: { address: string; source: string };
}

interface Health {
  status: 'ok' | 'draining' | 'unavailable';
  sessions: number;
}

interface Asset {
  text: string;
  /** As a Content-Security-Policy names it. */
  hash: string;
}

const ICON =
  '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32" fill="none" stroke="currentColor" stroke-width="2.5"><path d="M8 22.500 13 12.500M24 22.500 19 12.500"/><circle cx="16" cy="8.500" r="5"/><circle cx="6.500" cy="25" r="4" fill="currentColor" stroke="none"/><circle cx="25.500" cy="25" r="4" fill="currentColor" stroke="none"/></svg>';
const FAVICON = `data:image/svg+xml,${encodeURIComponent(ICON.replace('currentColor', '#1a8a72'))}`;

const STATES = {
  ok: 'Up',
  draining: 'Stopping',
  unavailable: 'Cut off from its Redis',
} satisfies Record<Health['status'], string>;

let assets: Promise<{ style: Asset; script: Asset }> | undefined;

export async function servePage(c: Context, facts: Facts, health: Health): Promise<Response> {
  const { style, script } = await loadAssets();
  const host = new URL(facts.websocket).host;
  c.header(
    'content-security-policy',
    `default-src 'none'; script-src '${script.hash}'; style-src '${style.hash}'; img-src data:; connect-src 'self' ws://${host} wss://${host}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'`,
  );
  c.header('referrer-policy', 'no-referrer');
  c.header('cross-origin-opener-policy', 'same-origin');
  const isProxyMistaken =
    facts.client.source === 'peer' &&
    PROXY_HEADERS.some((name) => c.req.header(name) !== undefined);
  return c.html(page(facts, health, isProxyMistaken, style.text, script.text));
}

/** Style and script go in whole: one blank more, and they are not what the policy allows. */
function page(
  { version, websocket, client }: Facts,
  { status, sessions }: Health,
  isProxyMistaken: boolean,
  style: string,
  script: string,
) {
  return html`<!doctype html>
    <html lang="en">
      <head>
        <meta charset="utf-8" />
        <meta name="viewport" content="width=device-width, initial-scale=1" />
        <meta name="color-scheme" content="light dark" />
        <meta name="robots" content="noindex" />
        <title>amesh relay</title>
        <link rel="icon" href="${FAVICON}" />
        ${raw(`<style>${style}</style>`)}
      </head>
      <body>
        <main>
          <header>
            ${raw(ICON.replace('<svg', '<svg aria-hidden="true"'))}
            <h1>amesh relay</h1>
            <p class="state ${status}">
              <span id="state">${STATES[status]}, ${count(sessions)}</span>
            </p>
          </header>
          <p class="lead">
            Two devices meet here by a six-digit code, pass each other a few encrypted messages, and
            are forgotten. No accounts, and nothing of what they say is kept.
          </p>

          <section aria-labelledby="use">
            <h2 id="use">Pair over this relay</h2>
            <p class="soft">Its address, the same for both devices:</p>
            <div class="address">
              <code id="address">${websocket}</code>
              <button class="quiet" id="copy" type="button" hidden>Copy</button>
            </div>
            <dl>
              <dt>On the device to be paired, which shows a code</dt>
              <dd>
                <code>amesh listen --relay <span class="relay">${websocket}</span></code>
              </dd>
              <dt>On yours, with that code</dt>
              <dd>
                <code>amesh invite 482916 --relay <span class="relay">${websocket}</span></code>
              </dd>
            </dl>
          </section>

          <section aria-labelledby="check">
            <h2 id="check">Does it work from here?</h2>
            <p class="soft">
              Your browser opens two connections and pairs with itself, so that you see what a
              device on your network would see.
            </p>
            <div class="run">
              <button id="run" type="button" hidden>Run the check</button>
              <p id="verdict" role="status"></p>
            </div>
            <noscript>
              <p>
                This needs JavaScript. Without it, in a terminal:
                <code>bunx @authmesh/relay check ${websocket}</code>
              </p>
            </noscript>
            <ol id="steps" aria-label="Steps of the check"></ol>
          </section>

          <section aria-labelledby="you">
            <h2 id="you">How it sees you</h2>
            <p>
              The relay takes you for <code>${client.address}</code>, ${origin(client.source)}.
              Limits on wrong codes count by this address.
            </p>
            ${
              isProxyMistaken &&
              html`<p class="doubt">
                Is that you? A proxy passed your request on, and the relay takes the proxy for its
                client. So everybody shares one limit, until whoever runs this sets
                <code>AMESH_TRUST_PROXY</code>.
              </p>`
            }
          </section>
        </main>
        <footer>
          @authmesh/relay ${version}. For machines: <a href="health">health</a>, and this page as
          JSON.
        </footer>
        <p class="unseen" id="copied" role="status"></p>
        ${raw(`<script type="module">${script}</script>`)}
      </body>
    </html>`;
}

const origin = (source: string): string =>
  source === 'peer' ? 'since your connection comes from there' : `as the header ${source} says`;

const count = (sessions: number): string =>
  sessions === 0 ? 'no sessions' : sessions === 1 ? '1 session' : `${sessions} sessions`;

/** Builds style and script once. What failed (no file descriptor was left, say) is tried again with the next request. */
function loadAssets(): Promise<{ style: Asset; script: Asset }> {
  assets ??= buildAssets().catch((error: unknown) => {
    assets = undefined;
    throw error;
  });
  return assets;
}

async function buildAssets(): Promise<{ style: Asset; script: Asset }> {
  // @ts-expect-error -- TypeScript knows text imports of .txt alone
  const style = (await import('./page.css', { with: { type: 'text' } })) as { default: string };
  // Bun builds nothing that early inside node_modules, for security; but there the sources are at hand.
  const script = await import('./bundled.ts').then(
    (bundled) => bundled.script,
    async () => (await import('./build.ts')).buildPageScript(),
  );
  return { style: asset(style.default), script: asset(script) };
}

function asset(text: string): Asset {
  return { text, hash: `sha256-${new Bun.CryptoHasher('sha256').update(text).digest('base64')}` };
}
