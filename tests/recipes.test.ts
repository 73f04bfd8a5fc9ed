/**
 * The shipped files for HAProxy and Apache, run by the real servers; and what the access logs of all proxies keep.
 * nginx and Caddy have more tests in proxy.test.ts.
 */
import { afterAll, beforeAll, describe, expect, test } from 'bun:test';
import { mkdir, mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { generate } from 'selfsigned';
import { afterThisTest, freePort, openClient, startRelay, type TestRelay } from './support.ts';

const root = join(import.meta.dir, '..');
const read = async (file: string): Promise<string> =>
  change(await Bun.file(join(root, 'deploy', file)).text());
/** Changes a shipped file before a proxy is started with it. The tests of paths set it; nothing else does. */
let change = (shipped: string): string => shipped;
const which = (command: string): string | null =>
  Bun.which(command, { PATH: `${process.env['PATH']}:/usr/sbin` });
const isRoot = process.getuid?.() === 0;
/** The certificates here are made up. */
const tls = { rejectUnauthorized: false };

let folder: string;
let cert: string;
let key: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'amesh-relay-recipes-'));
  const pem = await generate([{ name: 'commonName', value: 'relay.example.com' }]);
  [cert, key] = [pem.cert, pem.private];
});
afterAll(() => rm(folder, { recursive: true }));

interface Place {
  /** The relay's port and the proxy's. */
  relay: number;
  port: number;
  /** A folder of the proxy's own, with `cert.pem`, `key.pem`, and `both.pem`. */
  here: string;
}

/** How each proxy is started with its shipped file, changed in nothing but ports, paths and names. @returns The command. */
const proxies: Record<string, { command: string; start: (place: Place) => Promise<string[]> }> = {
  HAProxy: {
    command: 'haproxy',
    async start({ relay, port, here }) {
      const shipped = (await read('haproxy.cfg'))
        .replace('log /dev/log local0', 'log stdout format raw local0')
        .replace(/^    (?:user|group) haproxy\n/gm, (line) => (isRoot ? line : ''))
        .replace('bind :::443 v4v6', `bind 127.0.0.1:${port}`)
        .replaceAll('/etc/haproxy/relay.example.com.pem', `${here}/both.pem`)
        .replace('127.0.0.1:3001 check inter 2s', `127.0.0.1:${relay} check inter 100ms`);
      await Bun.write(`${here}/haproxy.cfg`, shipped);
      return ['-db', '-f', `${here}/haproxy.cfg`];
    },
  },
  Apache: {
    command: 'apache2',
    async start({ relay, port, here }) {
      const modules = ['mpm_event', 'authz_core', 'ssl', 'headers', 'proxy', 'proxy_http'];
      const shipped = (await read('apache.conf'))
        .replace('*:443', `127.0.0.1:${port}`)
        .replace('127.0.0.1:3001', `127.0.0.1:${relay}`)
        .replace(/\/etc\/letsencrypt\S+fullchain\.pem/, `${here}/cert.pem`)
        .replace(/\/etc\/letsencrypt\S+privkey\.pem/, `${here}/key.pem`)
        .replaceAll('/var/log/apache2', here);
      await Bun.write(
        `${here}/apache.conf`,
        `ServerRoot ${here}
        ServerName localhost
        PidFile ${here}/pid
        DefaultRuntimeDir ${here}
        ErrorLog ${here}/start.log
        ${isRoot ? 'User www-data\nGroup www-data' : ''}
        Listen 127.0.0.1:${port}
        ${modules.map((name) => `LoadModule ${name}_module /usr/lib/apache2/modules/mod_${name}.so`).join('\n')}
        ${shipped}`,
      );
      return ['-DFOREGROUND', '-f', `${here}/apache.conf`];
    },
  },
  nginx: {
    command: 'nginx',
    async start({ relay, port, here }) {
      const shipped = (await read('nginx.conf'))
        .replace('listen 443', `listen 127.0.0.1:${port}`)
        .replace(/^.*\[::\]:443.*\n/m, '')
        .replace('127.0.0.1:3001', `127.0.0.1:${relay}`)
        .replace(/\/etc\/letsencrypt\S+fullchain\.pem/, `${here}/cert.pem`)
        .replace(/\/etc\/letsencrypt\S+privkey\.pem/, `${here}/key.pem`)
        .replaceAll('/var/log/nginx', here);
      const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'];
      await Bun.write(
        `${here}/nginx.conf`,
        `daemon off; pid ${here}/pid; error_log stderr;
        events {}
        http { ${temporary.map((kind) => `${kind}_temp_path ${here}/${kind};`).join(' ')}
        ${shipped} }`,
      );
      return ['-e', 'stderr', '-p', here, '-c', `${here}/nginx.conf`];
    },
  },
  Caddy: {
    command: 'caddy',
    async start({ relay, port, here }) {
      const shipped = (await read('Caddyfile'))
        .replace(/^\{$/m, '{\n\tadmin off\n\tauto_https disable_redirects\n\tskip_install_trust')
        .replace(/^relay\.example\.com \{$/m, (line) =>
          line
            .replace('relay.example.com', `https://127.0.0.1:${port}`)
            .concat(`\n\ttls ${here}/cert.pem ${here}/key.pem`),
        )
        .replace('127.0.0.1:3001', `127.0.0.1:${relay}`);
      await Bun.write(`${here}/Caddyfile`, shipped);
      return ['run', '--adapter', 'caddyfile', '--config', `${here}/Caddyfile`];
    },
  },
  'the Caddy of docker-compose.yml': {
    command: 'caddy',
    async start({ relay, port, here }) {
      const shipped = (await read('compose.Caddyfile'))
        .replace(/^\{$/m, '{\n\tauto_https disable_redirects\n\tskip_install_trust')
        .replace(
          '{$DOMAIN} {',
          `https://127.0.0.1:${port} {\n\ttls ${here}/cert.pem ${here}/key.pem`,
        )
        .replace('http://127.0.0.1:8080', `http://127.0.0.1:${freePort()}`)
        .replaceAll('relay-behind-tls:3001', `127.0.0.1:${relay}`);
      await Bun.write(`${here}/Caddyfile`, shipped);
      return ['run', '--adapter', 'caddyfile', '--config', `${here}/Caddyfile`];
    },
  },
};

interface Behind {
  relay: TestRelay;
  /** At the proxy: `https://…` and `wss://…/ws`. */
  http: string;
  ws: string;
  /** All that the proxy has written to any log until now. */
  logs: () => Promise<string>;
}

/** A relay, and this proxy before it, which answers under this path. */
async function behind(name: keyof typeof proxies, path = ''): Promise<Behind> {
  const { command, start } = proxies[name] as (typeof proxies)[string];
  const relay = await startRelay({ trustProxy: 'hops:1', maxFailedCodes: 2 });
  // A port that was free a moment ago may be another program's now: then once more with another.
  for (let attempt = 1; ; attempt += 1) {
    const port = freePort();
    const here = join(folder, `${command}-${port}`);
    await mkdir(here);
    await Promise.all([
      Bun.write(`${here}/cert.pem`, cert),
      Bun.write(`${here}/key.pem`, key),
      Bun.write(`${here}/both.pem`, `${cert}\n${key}`),
    ]);
    const proxy = Bun.spawn(
      [which(command) as string, ...(await start({ relay: relay.port, port, here }))],
      {
        stdout: Bun.file(`${here}/output.log`),
        stderr: Bun.file(`${here}/errors.log`),
        env: { ...process.env, HOME: here },
        // In a group of processes of its own, which ends as one: asked politely, Apache takes ten seconds.
        detached: true,
      },
    );
    afterThisTest(async () => {
      if (proxy.exitCode === null) process.kill(-proxy.pid, 'SIGKILL');
      await proxy.exited;
    });
    const logs = async (): Promise<string> => {
      const files = (await readdir(here)).filter((file) => file.endsWith('.log'));
      return (await Promise.all(files.map((file) => Bun.file(join(here, file)).text()))).join('\n');
    };
    const http = `https://127.0.0.1:${port}${path}`;
    while (proxy.exitCode === null) {
      const up = await fetch(`${http}/health`, { tls }).catch(() => undefined);
      if (up?.ok) return { relay, http, ws: `${http.replace('http', 'ws')}/ws`, logs };
      await Bun.sleep(20);
    }
    if (attempt === 3) throw new Error(await logs());
  }
}

const isHere = (name: string): boolean => which(proxies[name]?.command as string) !== null;
for (const name of Object.keys(proxies)) {
  if (!isHere(name)) console.warn(`SKIPPED: there is no ${name} here to test its file with`);
}

for (const name of ['HAProxy', 'Apache', 'the Caddy of docker-compose.yml'] as const) {
  describe.skipIf(!isHere(name))(name, () => {
    test('passes a pairing, frames of 60,000 characters included', async () => {
      const { ws } = await behind(name);
      const [target, controller] = await Promise.all([
        openClient(ws, { tls }),
        openClient(ws, { tls }),
      ]);
      target.send({ type: 'listen', otc: '482916' });
      await target.expect({ type: 'ack', message: 'session_open' });
      controller.send({ type: 'connect', otc: '482916' });
      await Promise.all([target, controller].map((peer) => peer.expect({ type: 'peer_found' })));
      const data = { type: 'data', payload: 'x'.repeat(60_000) };
      controller.send(data);
      await target.expect(data);
      target.send({ type: 'done' });
      await controller.expect({ type: 'done' });
    });

    test('the client is who the proxy saw, whatever the client says', async () => {
      const { ws, http } = await behind(name);
      const forged = (attempt: number): object => ({
        tls,
        headers: { 'x-forwarded-for': `203.0.113.${attempt}` },
      });
      for (const [attempt, code] of ['otc_not_found', 'otc_not_found', 'rate_limited'].entries()) {
        const client = await openClient(ws, forged(attempt));
        await client.refused({ type: 'connect', otc: `10000${attempt}` }, code);
      }
      const page = (await (await fetch(http, forged(1))).json()) as Record<string, unknown>;
      expect(page).toMatchObject({ websocket: ws, client: { address: '127.0.0.1' } });
    });

    test('a relay that drains keeps its sockets, and one that is back is used at once', async () => {
      const { relay, ws, http } = await behind(name);
      const client = await openClient(ws, { tls });
      const answers = async (status: number): Promise<void> => {
        while ((await fetch(`${http}/health`, { tls })).status !== status) await Bun.sleep(20);
      };
      relay.sockets.connections.draining = true;
      await answers(503);
      await client.expectNothing();
      relay.sockets.connections.draining = false;
      await answers(200);
    });
  });
}

describe('no log of a proxy has the query string or the page that a request came from', () => {
  const SECRET = 'a-token-of-a-private-relay';

  test.each(Object.keys(proxies).filter(isHere))('%s', async (name) => {
    const { relay, http, ws, logs } = await behind(name);
    const request = { tls, headers: { referer: `${http}/?token=${SECRET}` } };
    const client = await openClient(`${ws}?token=${SECRET}`, request);
    client.send({ type: 'listen', otc: '482916' });
    await client.expect({ type: 'ack', message: 'session_open' });
    client.close();
    await client.closed;
    expect((await fetch(`${http}/livez?token=${SECRET}`, request)).status).toBe(200);
    // A relay that is gone makes an error of the proxy's, which has a log of its own in most.
    await relay.server.stop();
    expect((await fetch(`${http}/livez?token=${SECRET}`, request)).status).toBeGreaterThan(500);
    // A proxy writes its lines a moment after its answers: one for the socket, and one for each of the requests.
    const isComplete = (text: string): boolean =>
      text.includes('/ws') && text.split('/livez').length > 2;
    while (!isComplete(await logs())) await Bun.sleep(20);
    const text = await logs();
    expect(text).not.toContain(SECRET);
    expect(text).not.toContain('token');
  });
});

describe('under a path of another site, as docs/proxies.md has it', async () => {
  const text = await Bun.file(join(root, 'docs/proxies.md')).text();
  const [, part = ''] = text.split('\n## Under a path');
  /** The lines that the document gives for each proxy, and what they take the place of. */
  const variants: Record<string, [language: string, shipped: RegExp]> = {
    nginx: ['nginx', / *location \/ \{\n *proxy_pass .*\n/],
    Caddy: ['caddy', /\treverse_proxy 127.*\n/],
    HAProxy: ['haproxy', / *default_backend .*\n/],
    Apache: ['apache', / *ProxyPass .*\n/],
  };

  test.each(Object.keys(variants).filter(isHere))('%s', async (name) => {
    const [language, replaced] = variants[name] as (typeof variants)[string];
    const lines = new RegExp(`\`\`\`${language}\\n([^]*?)\`\`\``).exec(part)?.[1] ?? '';
    expect(lines).toContain('/relay');
    change = (shipped) => {
      expect(shipped).toMatch(replaced);
      // HAProxy: what follows the comment belongs to the backend, which is the last part of the file.
      const [here = '', backend = ''] = lines.split(/^ *# At the end of the backend:\n/m);
      return `${shipped.replace(replaced, here)}${backend}`;
    };
    afterThisTest(() => (change = (shipped) => shipped));
    const { http, ws } = await behind(name, '/relay');
    const page = (await (await fetch(`${http}/`, { tls })).json()) as { websocket: string };
    // nginx passes the name on without the port, which is 443 as shipped.
    expect(page.websocket.replace(/:\d+\//, '/')).toBe(ws.replace(/:\d+\//, '/'));
    const client = await openClient(ws, { tls });
    await client.refused({ type: 'connect', otc: '482916' }, 'otc_not_found');
    // Elsewhere on that site there is no relay.
    const elsewhere = await fetch(`${http.replace('/relay', '')}/health`, { tls });
    expect(await elsewhere.text()).not.toContain('"sessions"');
  });
});
