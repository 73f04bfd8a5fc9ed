/** The HTML page at `/`. Loaded at the first request for it. */
import type { Context } from 'hono';
import { html, raw } from 'hono/html';
import { PROXY_HEADERS } from '../admission/client-address.ts';

/** The repository of amesh itself. */
const AMESH = 'https://github.com/ameshdev/amesh';

const ICON_SVG =
  '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32" width="44" height="44" aria-hidden="true" fill="#1a8a72"><path d="M8 22.500 13 12.500M24 22.500 19 12.500" stroke="#1a8a72" stroke-width="2.5"/><circle cx="16" cy="8.500" r="5" fill="none" stroke="#1a8a72" stroke-width="2.5"/><circle cx="6.500" cy="25" r="4"/><circle cx="25.500" cy="25" r="4"/></svg>';
const ICON = `data:image/svg+xml,${encodeURIComponent(ICON_SVG)}`;

const STATES = { ok: 'Up', draining: 'Stopping', unavailable: 'Cut off from its Redis' };

/** What the page shows of the relay and of the caller. */
interface Facts {
  version: string;
  /** The WebSocket URL as the caller would write it. */
  websocket: string;
  /** The caller's address as the relay sees it, and its source: `peer` (the TCP connection) or the name of a header. */
  client: { address: string; source: string };
  /** Whether a WebSocket needs an access token. Default false. */
  private?: boolean;
  status: keyof typeof STATES;
  sessions: number;
}

let assets: ReturnType<typeof loadAssets> | undefined;

export async function servePage(c: Context, facts: Facts): Promise<Response> {
  const { version, websocket, client, status, sessions } = facts;
  assets ??= loadAssets();
  const { style, script, hashes } = await assets.catch((error: unknown) => {
    // It may have failed for want of file descriptors, so the next request tries again.
    assets = undefined;
    throw error;
  });
  // Any port is allowed, since a proxy may drop it from the Host header. In some browsers 'self' does not include ws:.
  const host = new URL(websocket).hostname;
  c.header(
    'content-security-policy',
    `default-src 'none'; ${hashes}; img-src data:; connect-src 'self' ws://${host}:* wss://${host}:*; base-uri 'none'; form-action 'none'; frame-ancestors 'none'`,
  );
  c.header('referrer-policy', 'no-referrer');
  c.header('cross-origin-opener-policy', 'same-origin');
  const isPeer = client.source === 'peer';
  const why = isPeer
    ? 'since your connection comes from there'
    : `as the header ${client.source} says`;
  const isProxySeenAsClient =
    isPeer && PROXY_HEADERS.some((name) => c.req.header(name) !== undefined);
  /** The relay's address, or a command with it, and a copy button. The script corrects the address in the browser. */
  const copyable = (label: unknown, command = '') =>
    html`<div class="line">
      <p class="soft">${label}</p>
      <code>${command}<span class="relay">${websocket}</span></code>
      <button class="copy" type="button" hidden>Copy</button>
    </div>`;
  const page = html`<!doctype html>
    <html lang="en">
      <head>
        <meta charset="utf-8" />
        <meta name="viewport" content="width=device-width, initial-scale=1" />
        <meta name="robots" content="noindex" />
        <title>amesh relay</title>
        <link rel="icon" href="${ICON}" />
        ${raw(`<style>${style}</style>`)}
      </head>
      <body>
        <main>
          <header>
            ${raw(ICON_SVG)}
            <h1>amesh relay</h1>
            <p class="state ${status === 'ok' ? 'ok' : 'warning'}" id="state">
              ${STATES[status]}, ${sessions || 'no'} session${sessions === 1 ? '' : 's'}
            </p>
          </header>
          <p class="lead soft">
            Two devices meet here by a six-digit code, pass each other a few encrypted messages, and
            are forgotten. No accounts, and nothing of what they say is kept. It is a part of
            <a href="${AMESH}">amesh</a>, which gives devices identities in place of API keys.
          </p>

          <section aria-labelledby="use">
            <h2 id="use">Pair over this relay</h2>
            ${
              facts.private &&
              html`<p>
                  This relay is private: devices need an access token, which you get from whoever
                  runs it. It goes into the address, as <code>?token=…</code>
                </p>
                <form class="line" hidden>
                  <label class="soft" for="token">Your access token</label>
                  <input id="token" type="password" autocomplete="off" />
                  <button>Use it</button>
                  <p class="soft">
                    It stays in this tab, until you close or reload it. In a command, other users of
                    your machine can read it; from the variable <code>AMESH_RELAY_URL</code>, which
                    takes the same address, they can't.
                  </p>
                </form>`
            }
            ${copyable('Its address, the same for both devices:')}
            ${copyable('On the device to be paired, which shows a code:', 'amesh listen --relay ')}
            ${copyable('On yours, with that code:', 'amesh invite 482916 --relay ')}
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
            <div class="line">
              <button id="run" type="button" hidden>Run the check</button>
              <button id="skip" type="button" hidden>Skip the wait</button>
              <button id="copy-report" type="button" hidden>Copy the report</button>
              <p id="verdict" role="status"></p>
            </div>
            <ol id="steps" aria-label="Steps of the check"></ol>
            ${copyable(
              html`From another machine, in a terminal with <a href="https://bun.com">Bun</a>; it
                sees more than a browser may:`,
              'bunx @authmesh/relay check ',
            )}
          </section>

          <section aria-labelledby="you">
            <h2 id="you">How it sees you</h2>
            <p>
              The relay takes you for <code>${client.address}</code>, ${why}. Limits on wrong codes
              count by this address.
            </p>
            ${
              isProxySeenAsClient &&
              html`<p class="warning" id="doubt">
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
        <p id="told" role="status"></p>
        ${raw(`<script type="module">${script}</script>`)}
      </body>
    </html>`;
  return c.html(page);
}

/** Style and script, and what the Content-Security-Policy says to allow these and no others: not one space may change. */
async function loadAssets(): Promise<{ style: string; script: string; hashes: string }> {
  // @ts-expect-error -- TypeScript knows text imports of .txt alone
  const style = (await import('./page.css', { with: { type: 'text' } })).default as string;
  // Inside node_modules Bun runs no macros, for security, so the import fails there; but the sources are present.
  const script = await import('./bundled.ts').then(
    (bundled) => bundled.script,
    async () => (await import('./build.ts')).buildPageScript(),
  );
  return { style, script, hashes: `script-src ${hashOf(script)}; style-src ${hashOf(style)}` };
}

const hashOf = (text: string): string =>
  `'sha256-${new Bun.CryptoHasher('sha256').update(text).digest('base64')}'`;
