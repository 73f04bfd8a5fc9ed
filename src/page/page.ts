/** The HTML page at `/`. Loaded at the first request for it. */
import type { Context } from 'hono';
import { html, raw } from 'hono/html';
import { PROXY_HEADERS } from '../admission/client-address.ts';

/** The repository of amesh itself. */
const AMESH = 'https://github.com/ameshdev/amesh';

/** The facts about the relay and the caller that the page shows. */
interface Facts {
  version: string;
  /** The WebSocket URL as the caller would write it. */
  websocket: string;
  /** The caller's address as the relay sees it, and its source: `peer` (the TCP connection) or the name of a header. */
  client: { address: string; source: string };
  /** Whether a WebSocket needs an access token. Default false. */
  private?: boolean;
}

interface Health {
  status: 'ok' | 'draining' | 'unavailable';
  sessions: number;
}

interface Asset {
  text: string;
  /** In the form of a Content-Security-Policy. */
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
  // Any port is allowed, since a proxy may drop it from the Host header. In some browsers 'self' does not include ws:.
  const host = new URL(facts.websocket).hostname;
  c.header(
    'content-security-policy',
    `default-src 'none'; script-src '${script.hash}'; style-src '${style.hash}'; img-src data:; connect-src 'self' ws://${host}:* wss://${host}:*; base-uri 'none'; form-action 'none'; frame-ancestors 'none'`,
  );
  c.header('referrer-policy', 'no-referrer');
  c.header('cross-origin-opener-policy', 'same-origin');
  const isProxySeenAsClient =
    facts.client.source === 'peer' &&
    PROXY_HEADERS.some((name) => c.req.header(name) !== undefined);
  return c.html(page(facts, health, isProxySeenAsClient, style.text, script.text));
}

/** Style and script must stay unchanged: the policy allows only their hashes, so one more space would block them. */
function page(
  { version, websocket, client, private: isPrivate }: Facts,
  { status, sessions }: Health,
  isProxySeenAsClient: boolean,
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
            are forgotten. No accounts, and nothing of what they say is kept. It is a part of
            <a href="${AMESH}">amesh</a>, which gives devices identities in place of API keys.
          </p>

          <section aria-labelledby="use">
            <h2 id="use">Pair over this relay</h2>
            ${
              isPrivate &&
              html`<p>
                  This relay is private: devices need an access token, which you get from whoever
                  runs it. It goes into the address, as <code>?token=…</code>
                </p>
                <form id="token-form" hidden>
                  <label for="token">Your access token</label>
                  <div class="line">
                    <input
                      id="token"
                      type="password"
                      autocomplete="off"
                      autocapitalize="none"
                      spellcheck="false"
                    />
                    <button class="quiet">Use it</button>
                  </div>
                  <p class="soft">
                    It stays in this tab, until you close or reload it. In a command, other users of
                    your machine can read it; from the variable <code>AMESH_RELAY_URL</code>, which
                    takes the same address, they can't.
                  </p>
                </form>`
            }
            <p class="soft">Its address, the same for both devices:</p>
            ${copyable(websocket)}
            <p class="soft">On the device to be paired, which shows a code:</p>
            ${copyable(websocket, 'amesh listen --relay ')}
            <p class="soft">On yours, with that code:</p>
            ${copyable(websocket, 'amesh invite 482916 --relay ')}
            <p class="soft">
              Where the command comes from: <a href="${AMESH}">${AMESH.slice(8)}</a>
            </p>
          </section>

          <section aria-labelledby="check">
            <h2 id="check">Does it work from here?</h2>
            <p class="soft">
              Your browser opens two connections and pairs with itself, so that you see what a
              device on your network would see. Most of it takes a second; then it waits, to see
              whether a quiet connection is kept.
            </p>
            <div class="run">
              <button id="run" type="button" hidden>Run the check</button>
              <button class="quiet" id="copy-report" type="button" hidden>Copy the report</button>
              <p id="verdict" role="status"></p>
            </div>
            <ol id="steps" aria-label="Steps of the check"></ol>
            <p class="soft terminal">
              From another machine, in a terminal with <a href="https://bun.com">Bun</a>; it sees
              more than a browser may:
            </p>
            ${copyable(websocket, 'bunx @authmesh/relay check ')}
          </section>

          <section aria-labelledby="you">
            <h2 id="you">How it sees you</h2>
            <p>
              The relay takes you for <code>${client.address}</code>, ${origin(client.source)}.
              Limits on wrong codes count by this address.
            </p>
            ${
              isProxySeenAsClient &&
              html`<p class="doubt">
                Is that you? A proxy passed your request on, and the relay takes the proxy for its
                client. So everybody shares one limit, until whoever runs this sets
                <code>AMESH_TRUST_PROXY</code>.
              </p>`
            }
          </section>
        </main>
        <footer>
          @authmesh/relay ${version}, a relay for <a href="${AMESH}">amesh</a>. For machines:
          <a id="health" href="health">health</a>, and this page as JSON.
        </footer>
        <p class="unseen" id="told" role="status"></p>
        ${raw(`<script type="module">${script}</script>`)}
      </body>
    </html>`;
}

/** The relay's address, or a command with it, and a copy button. The script corrects the address in the browser. */
const copyable = (websocket: string, command = '') =>
  html`<div class="line">
    <code class="copyable">${command}<span class="relay">${websocket}</span></code>
    <button class="quiet copy" type="button" hidden>Copy</button>
  </div>`;

const origin = (source: string): string =>
  source === 'peer' ? 'since your connection comes from there' : `as the header ${source} says`;

const count = (sessions: number): string =>
  sessions === 0 ? 'no sessions' : sessions === 1 ? '1 session' : `${sessions} sessions`;

/** Builds style and script once. If that fails, for example without file descriptors, the next request tries again. */
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
  // Inside node_modules Bun runs no macros, for security, so the import fails there; but the sources are present.
  const script = await import('./bundled.ts').then(
    (bundled) => bundled.script,
    async () => (await import('./build.ts')).buildPageScript(),
  );
  return { style: asset(style.default), script: asset(script) };
}

function asset(text: string): Asset {
  return { text, hash: `sha256-${new Bun.CryptoHasher('sha256').update(text).digest('base64')}` };
}
