/** Finds the HTTP proxy for a WebSocket, from the usual environment variables. */

/**
 * @param url Where the connection goes: `HTTPS_PROXY` counts for `wss:`, `HTTP_PROXY` for `ws:`, in either case.
 * @param env The environment. `NO_PROXY` lists, with commas, hosts (and their subdomains), `host:port`, or `*`.
 * @returns The proxy's URL, or undefined for a direct connection.
 */
export function proxyFor(url: URL, env: Record<string, string | undefined>): string | undefined {
  const named = (name: string): string | undefined =>
    env[name.toLowerCase()] || env[name] || undefined;
  const proxy = named(url.protocol === 'wss:' ? 'HTTPS_PROXY' : 'HTTP_PROXY');
  const host = url.hostname;
  const port = url.port || (url.protocol === 'wss:' ? '443' : '80');
  const isExempt = (named('NO_PROXY') ?? '')
    .toLowerCase()
    .split(',')
    .map((entry) => entry.trim().replace(/^\*?\./, ''))
    .some(
      (name) =>
        name === '*' ||
        (name !== '' && [host, `${host}:${port}`].some((it) => `.${it}`.endsWith(`.${name}`))),
    );
  return isExempt ? undefined : proxy;
}
