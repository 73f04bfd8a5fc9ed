/** A private relay: which requests its access tokens admit, and how the file of tokens is read again. */
import { describe, expect, spyOn, test } from 'bun:test';
import { chmod, mkdir, mkdtemp, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { AccessToken, parseTokens } from '../src/admission/access-token.ts';
import { Attempts } from '../src/admission/limits.ts';
import { AccessTokens, tokensOf } from '../src/admission/tokens.ts';
import { readOptions, type RelayOptions } from '../src/config.ts';
import { RelayServer } from '../src/server.ts';
import { redisServer, startRedis } from './redis.ts';
import {
  afterThisTest,
  memoryLog,
  openClient,
  startRelay,
  type TestRelay,
  until,
  within,
} from './support.ts';

const TOKEN = 'n5Jk-Zq_3vWcR8sTx0bLmD2y';
const OTHER = 'Qe7uHf1-KpYaV6oGi9_XwN4t';
const THIRD = 'third-0123456789abcdefgh';

async function folder(): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), 'amesh-tokens-'));
  afterThisTest(() => rm(path, { recursive: true }));
  return path;
}

describe('a file of tokens', () => {
  test('has one token per line, with or without a name; comments, blank lines and CRLF are ignored', () => {
    const tokens = parseTokens(`# ours\r\n\r\n  ${TOKEN}  \r\n\tlaptop\t${OTHER}\n#${THIRD}\n`);
    expect(tokens.map(({ name }) => name)).toEqual(['unnamed', 'laptop']);
    const digests = [TOKEN, OTHER].map((token) => Bun.SHA256.hash(token) as Uint8Array);
    expect(tokens.map((token, i) => token.has(digests[i] as Uint8Array))).toEqual([true, true]);
  });

  test.each([
    ['', 'it contains no token'],
    ['# nothing yet\n', 'it contains no token'],
    ['short', 'line 1: the token has only 5 characters; expected [NAME ]TOKEN'],
    [`${TOKEN}\nlaptop 0123456789abcde`, 'line 2: the token has only 15 characters'],
    ['x'.repeat(257), 'line 1: the token has 257 characters'],
    [`${TOKEN}=`, 'line 1: the token has a character that is not of base64url'],
    [`a b ${TOKEN}`, 'line 1: there are more than two words'],
    [`${TOKEN} # the laptop’s`, 'line 1: there are more than two words'],
    [`${TOKEN} laptop`, 'line 1: the name could be a token itself'],
    [`lap/top ${TOKEN}`, 'line 1: the name has a character other than'],
    [`${TOKEN}\n\nlaptop ${TOKEN}`, 'line 3: the token is already in an earlier line'],
    [`\0${TOKEN}`, 'line 1: the token has a character that is not of base64url'],
    [
      Array.from({ length: 1001 }, (_, i) => `token-0123456789-${i}`).join('\n'),
      'line 1001: there are more than 1000 tokens',
    ],
  ])('%p is refused', (text, message) => {
    let problem = '';
    try {
      parseTokens(text);
    } catch (error) {
      ({ message: problem } = error as Error);
    }
    expect(problem).toStartWith(message);
    expect(problem).not.toContain(TOKEN);
    if (message.includes('token has') || message.includes('no token')) {
      expect(problem).toEndWith("as made by: openssl rand -base64 24 | tr '+/' '-_'");
    }
  });

  test('the command that an error names makes tokens that are accepted', () => {
    const made = Bun.spawnSync(['sh', '-c', "openssl rand -base64 24 | tr '+/' '-_'"]);
    expect(parseTokens(made.stdout.toString())).toHaveLength(1);
  });
});

const basic = (pair: string): string => `Basic ${Buffer.from(pair).toString('base64')}`;

describe('the tokens in a request', () => {
  test.each([
    ['', undefined, []],
    ['?x=1', undefined, []],
    ['?token=', undefined, []],
    [`?token=${TOKEN}`, undefined, [TOKEN]],
    [`?x=1&token=${TOKEN}&y=2`, undefined, [TOKEN]],
    [`?token=${TOKEN}#fragment`, undefined, [TOKEN]],
    [`#?token=${TOKEN}`, undefined, []],
    ['?token=%6e5Jk-Zq%5F3vWcR8sTx0bLmD2y', undefined, [TOKEN]],
    [`?%74oken=${TOKEN}`, undefined, [TOKEN]],
    [`?TOKEN=${TOKEN}`, undefined, []],
    [`?token[]=${TOKEN}`, undefined, []],
    [`;token=${TOKEN}`, undefined, []],
    [`?token=${TOKEN}&token=${TOKEN}`, undefined, [TOKEN, TOKEN]],
    [`?token=${TOKEN}&%74oken=${OTHER}`, undefined, [TOKEN, OTHER]],
    [`?token=&token=${TOKEN}`, undefined, ['', TOKEN]],
    [`?token=${TOKEN}&token`, undefined, [TOKEN, '']],
    [`?token=${TOKEN}+`, undefined, [`${TOKEN} `]],
    ['', `Bearer ${TOKEN}`, [TOKEN]],
    ['', `bEARER   ${TOKEN}`, [TOKEN]],
    ['', `Bearer ${TOKEN}, Bearer ${OTHER}`, [`${TOKEN}, Bearer ${OTHER}`]],
    ['', 'Bearer', []],
    ['', `Bearer:${TOKEN}`, []],
    ['', TOKEN, []],
    ['', `Digest ${TOKEN}`, []],
    ['', basic(`anyone:${TOKEN}`), [TOKEN]],
    ['', basic(`:${TOKEN}`), [TOKEN]],
    ['', basic(`a:b:${TOKEN}`), [`b:${TOKEN}`]],
    ['', basic(`${TOKEN}:`), []],
    ['', basic(TOKEN), []],
    ['', `${basic(`a:${TOKEN}`)}, Bearer x`, [`${basic(`a:${TOKEN}`).slice(6)}, Bearer x`]],
    [`?token=${TOKEN}`, `Bearer ${TOKEN}`, [TOKEN]],
    [`?token=${TOKEN}`, `Bearer ${OTHER}`, [TOKEN, OTHER]],
    [`?token=${OTHER}`, basic(`a:${TOKEN}`), [OTHER, TOKEN]],
    [`?token=${TOKEN}`, 'Negotiate abc', [TOKEN]],
  ] as [string, string | undefined, string[]][])(
    '/ws%s with %p',
    (query, authorization, tokens) => {
      const headers = new Headers(authorization === undefined ? {} : { authorization });
      expect(tokensOf({ url: `http://relay.test/ws${query}`, headers })).toEqual(tokens);
      // Without a Host, Bun's URL of a request is its path alone.
      expect(tokensOf({ url: `/ws${query}`, headers })).toEqual(tokens);
    },
  );
});

/** The status of a plain request to /ws: 400 means that it is allowed, and only the upgrade is missing. */
async function knock(
  relay: TestRelay,
  token?: string,
  headers: Record<string, string> = {},
): Promise<{ status: number; error: string; message: string; headers: Headers }> {
  const query = token === undefined ? '' : `?token=${token}`;
  const response = await fetch(`${relay.url.replace('ws', 'http')}${query}`, { headers });
  const answer = (await response.json()) as { error: string; message: string };
  return { status: response.status, headers: response.headers, ...answer };
}

const statusOf = async (relay: TestRelay, token?: string, headers?: Record<string, string>) =>
  (await knock(relay, token, headers)).status;

describe('a private relay', () => {
  test('admits requests with its token, in the URL or in a header', async () => {
    const relay = await startRelay({ accessToken: TOKEN });
    const target = await openClient(`${relay.url}?token=${TOKEN}`);
    const controller = await openClient(relay.url, {
      headers: { authorization: `Bearer ${TOKEN}` },
    });
    target.send({ type: 'listen', otc: '482916' });
    await target.expect({ type: 'ack', message: 'session_open' });
    controller.send({ type: 'connect', otc: '482916' });
    await controller.expect({ type: 'peer_found' });
    const third = await openClient(relay.url, { headers: { authorization: basic(`me:${TOKEN}`) } });
    await third.refused({ type: 'connect', otc: '000001' }, 'otc_not_found');
  });

  test('says before the upgrade what is missing or wrong, and never repeats the token', async () => {
    const relay = await startRelay({ accessToken: TOKEN });
    const missing = await knock(relay);
    expect([missing.status, missing.error]).toEqual([401, 'access_token_missing']);
    expect(missing.message).toContain('?token=TOKEN');
    expect(missing.headers.get('www-authenticate')).toBe('Bearer realm="amesh relay"');
    expect(missing.headers.get('cache-control')).toBe('no-store');
    const wrong = await knock(relay, OTHER);
    expect([wrong.status, wrong.error]).toEqual([401, 'access_token_wrong']);
    expect(wrong.headers.get('www-authenticate')).toEndWith('error="invalid_token"');
    const twice = await knock(relay, `${TOKEN}&token=${OTHER}`);
    expect([twice.status, twice.error]).toEqual([401, 'access_token_wrong']);
    expect(twice.message).toContain('more than one');
    for (const { message } of [missing, wrong, twice]) expect(message).not.toMatch(/n5Jk|Qe7u/);
    expect(await openClient(relay.url).catch(String)).toContain('did not open');
    expect(await openClient(`${relay.url}?token=${OTHER}`).catch(String)).toContain('did not open');
  });

  test.each([
    ['a part of it', TOKEN.slice(0, -1)],
    ['more than it', `${TOKEN}A`],
    ['another case', TOKEN.toLowerCase()],
    ['a blank behind', `${TOKEN}%20`],
    ['a NUL behind', `${TOKEN}%00`],
    ['encoded twice', TOKEN.replace('_', '%255F')],
    ['a wide letter', TOKEN.replace('n', '%EF%BD%8E')],
    ['very much', 'x'.repeat(8000)],
  ])('does not admit %s', async (_what, token) => {
    const relay = await startRelay({ accessToken: TOKEN });
    expect(await statusOf(relay, token)).toBe(401);
    expect(await statusOf(relay, TOKEN)).toBe(400);
  });

  test('still answers probes and serves the page, and says that it is private', async () => {
    const relay = await startRelay({ accessToken: TOKEN });
    for (const path of ['/health', '/livez']) {
      expect((await fetch(relay.http + path)).status).toBe(200);
    }
    expect(await (await fetch(relay.http)).json()).toMatchObject({ private: true });
    const open = await startRelay();
    expect(await (await fetch(open.http)).json()).not.toHaveProperty('private');
  });

  test('refuses every token for a minute after ten wrong ones', async () => {
    const relay = await startRelay({ accessToken: TOKEN, trustProxy: '1' });
    const guesser = { 'x-forwarded-for': '198.51.100.7' };
    for (let i = 0; i < 10; i += 1) {
      expect(await statusOf(relay, `guess-${i}-0123456789`, guesser)).toBe(401);
    }
    const refused = await knock(relay, TOKEN, guesser);
    expect([refused.status, refused.error]).toEqual([429, 'too_many_wrong_tokens']);
    expect(refused.headers.get('retry-after')).toBe('60');
    expect(await statusOf(relay, OTHER, guesser)).toBe(429);
    expect(await statusOf(relay, undefined, guesser)).toBe(401);
    expect(await statusOf(relay, TOKEN, { 'x-forwarded-for': '198.51.100.8' })).toBe(400);
    relay.pass(60_000);
    expect(await statusOf(relay, TOKEN, guesser)).toBe(400);
  });

  test('does not count a request without a token as a wrong one', async () => {
    const relay = await startRelay({ accessToken: TOKEN });
    for (let i = 0; i < 20; i += 1) expect(await statusOf(relay)).toBe(401);
    expect(await statusOf(relay, TOKEN)).toBe(400);
  });

  test('counts by the name of the token, and never shows a token', async () => {
    const path = join(await folder(), 'tokens');
    await writeFile(path, `laptop ${TOKEN}\nconstructor ${OTHER}\n`);
    const relay = await startRelay({
      accessToken: THIRD,
      accessTokensFile: path,
      metricsPort: 0,
      logClients: true,
      logLevel: 'debug',
    });
    for (const token of [TOKEN, TOKEN, THIRD]) {
      const client = await openClient(`${relay.url}?token=${token}`);
      await client.refused('no JSON', 'invalid_message');
    }
    await statusOf(relay, `${OTHER}x`);
    await statusOf(relay);
    const metrics = await (
      await fetch(`http://127.0.0.1:${relay.server.metricsPort}/metrics`)
    ).text();
    for (const line of [
      'amesh_relay_admitted_total{token="laptop"} 2',
      'amesh_relay_admitted_total{token="constructor"} 0',
      'amesh_relay_admitted_total{token="unnamed"} 1',
      'amesh_relay_turned_away_total{reason="access_token_wrong"} 1',
      'amesh_relay_turned_away_total{reason="access_token_missing"} 1',
      'amesh_relay_turned_away_total{reason="origin_refused"} 0',
    ]) {
      expect(metrics).toContain(`${line}\n`);
    }
    expect(relay.log.lines.join('\n')).toContain('"token":"laptop"');
    const said = metrics + relay.log.lines.join('\n');
    for (const token of [TOKEN, OTHER, THIRD]) expect(said).not.toContain(token);
  });

  test('compares with every token, however much of a wrong one is right', async () => {
    const path = join(await folder(), 'tokens');
    await writeFile(path, OTHER);
    const tokens = await AccessTokens.open(new AccessToken(TOKEN), path, memoryLog(), () => {});
    const compare = spyOn(crypto, 'timingSafeEqual');
    afterThisTest(() => compare.mockRestore());
    for (const token of [TOKEN, OTHER, THIRD, TOKEN.slice(0, 20), 'x', `${TOKEN}%00`]) {
      compare.mockClear();
      const request = { url: `/ws?token=${token}`, headers: new Headers() } as Request;
      tokens?.check(request, 'x', new Attempts(10), 0);
      expect(compare).toHaveBeenCalledTimes(2);
    }
  });
});

describe('the file at the start', () => {
  const problemOf = async (options: RelayOptions): Promise<string> => {
    const relay = new RelayServer(readOptions({ port: 0, host: '127.0.0.1', ...options }), {
      log: memoryLog(),
    });
    afterThisTest(() => relay.stop());
    return relay.start().then(
      () => 'it started',
      (error: Error) => `${error.name}: ${error.message}`,
    );
  };

  test('is refused if it cannot be used; the message has its path and the reason', async () => {
    const at = await folder();
    const path = join(at, 'tokens');
    const start = (): Promise<string> => problemOf({ accessTokensFile: path });
    const begins = `TokensError: AMESH_ACCESS_TOKENS_FILE: ${path}: `;
    expect(await start()).toBe(`${begins}it does not exist`);
    await writeFile(path, '');
    expect(await start()).toStartWith(`${begins}it contains no token; expected one per line`);
    await writeFile(path, `laptop ${TOKEN.slice(0, 10)}`);
    expect(await start()).toStartWith(`${begins}line 1: the token has only 10 characters`);
    await writeFile(path, 'x'.repeat(1024 * 1024 + 1));
    expect(await start()).toBe(`${begins}it is longer than 1 MiB`);
    await rm(path);
    await mkdir(path);
    expect(await start()).toBe(`${begins}it is a directory; expected a file`);
    await rm(path, { recursive: true });
    Bun.spawnSync(['mkfifo', path]);
    expect(await start()).toBe(`${begins}it is not a regular file`);
    await rm(path);
    await writeFile(path, `\uFEFF${TOKEN}\r\n`);
    expect(await start()).toBe('it started');
  });

  test('is refused if this user may not read it', async () => {
    if (process.getuid?.() === 0) return console.log('SKIPPED: root may read every file');
    const path = join(await folder(), 'tokens');
    await writeFile(path, TOKEN);
    await chmod(path, 0);
    expect(await problemOf({ accessTokensFile: path })).toEndWith('this user may not read it');
  });

  test('REDIS_URL_FILE is refused in the same way, and its content is never shown', async () => {
    const path = join(await folder(), 'redis');
    const begins = `RedisError: REDIS_URL_FILE: ${path}: `;
    expect(await problemOf({ redisUrlFile: path })).toBe(`${begins}it does not exist`);
    await writeFile(path, 'redis://:hunter2@127.0.0.1/x\n');
    const problem = await problemOf({ redisUrlFile: path });
    expect(problem).toStartWith(`${begins}not accepted, since what follows the host`);
    expect(problem).not.toContain('hunter2');
  });

  test.skipIf(!redisServer)(
    'REDIS_URL_FILE holds the URL, and a line break behind it',
    async () => {
      const redis = await startRedis();
      const path = join(await folder(), 'redis');
      await writeFile(path, `${redis.url}\n`);
      expect(await problemOf({ redisUrlFile: path })).toBe('it started');
    },
  );
});

describe('the file while the relay runs', () => {
  /** The tokens of a file, and the lines that they logged. */
  async function open(path: string) {
    const log = memoryLog();
    const names: string[][] = [];
    const tokens = (await AccessTokens.open(undefined, path, log, (now) =>
      names.push(now),
    )) as AccessTokens;
    const isIn = (token: string): boolean => {
      const request = { url: `/ws?token=${token}`, headers: new Headers() } as Request;
      return !('error' in tokens.check(request, 'x', new Attempts(10), 0));
    };
    const known = (): string[] => [TOKEN, OTHER, THIRD].filter(isIn);
    return { tokens, log, names, known };
  }

  test('may be replaced or rewritten, and without a change nothing is logged', async () => {
    const path = join(await folder(), 'tokens');
    await writeFile(path, `laptop ${TOKEN}`);
    const { tokens, log, names, known } = await open(path);
    await tokens.reload();
    expect(log.lines).toEqual([]);
    await writeFile(`${path}.new`, `laptop ${TOKEN}\nserver ${OTHER}`);
    await rename(`${path}.new`, path);
    await tokens.reload();
    expect(known()).toEqual([TOKEN, OTHER]);
    await writeFile(path, `server ${THIRD}`);
    await tokens.reload();
    expect(known()).toEqual([THIRD]);
    expect(names).toEqual([['laptop'], ['laptop', 'server'], ['server']]);
    expect(log.lines).toHaveLength(2);
    expect(log.lines[0]).toContain('"tokens":2');
  });

  test('may be changed as in Kubernetes: the file is a link into a folder that is a link', async () => {
    const at = await folder();
    const put = async (revision: string, text: string): Promise<void> => {
      await mkdir(join(at, revision));
      await writeFile(join(at, revision, 'tokens'), text);
      await symlink(revision, join(at, '..data_tmp'));
      await rename(join(at, '..data_tmp'), join(at, '..data'));
    };
    await put('..one', TOKEN);
    await symlink('..data/tokens', join(at, 'tokens'));
    const { tokens, known } = await open(join(at, 'tokens'));
    await put('..two', OTHER);
    await rm(join(at, '..one'), { recursive: true });
    await tokens.reload();
    expect(known()).toEqual([OTHER]);
  });

  test('while the file is broken the old tokens stay valid, with one warning, until it is correct again', async () => {
    const path = join(await folder(), 'tokens');
    await writeFile(path, TOKEN);
    const { tokens, log, known } = await open(path);
    const breakages: [() => Promise<unknown>, string][] = [
      [() => rm(path), 'it does not exist'],
      [() => mkdir(path), 'it is a directory'],
      [() => rm(path, { recursive: true }).then(() => writeFile(path, '')), 'it contains no token'],
      [() => writeFile(path, `${OTHER}\nshort`), 'line 2: the token has only 5 characters'],
    ];
    for (const [breakIt, problem] of breakages) {
      log.lines.length = 0;
      await breakIt();
      await tokens.reload();
      await tokens.reload();
      expect(known()).toEqual([TOKEN]);
      expect(log.lines).toHaveLength(1);
      expect(log.lines[0]).toContain('"level":"warn"');
      expect(log.lines[0]).toContain(problem);
      expect(log.lines[0]).toContain('stay valid');
    }
    await writeFile(path, OTHER);
    await tokens.reload();
    expect(known()).toEqual([OTHER]);
    expect(log.lines).toHaveLength(2);
  });

  test('may change many times while it is read; the last version is used', async () => {
    const path = join(await folder(), 'tokens');
    await writeFile(path, TOKEN);
    const { tokens, log, known } = await open(path);
    for (let i = 0; i < 100; i += 1) {
      const written = writeFile(path, i % 2 ? TOKEN : OTHER);
      await Promise.all([tokens.reload(), tokens.reload(), written]);
    }
    await writeFile(path, `${THIRD}\n${OTHER}`);
    await tokens.reload();
    expect(known()).toEqual([OTHER, THIRD]);
    expect(log.lines.join()).not.toContain(TOKEN);
  });

  test('is read again by the relay itself, and no socket is closed', async () => {
    const path = join(await folder(), 'tokens');
    await writeFile(path, TOKEN);
    const relay = await startRelay({ accessTokensFile: path });
    const client = await openClient(`${relay.url}?token=${TOKEN}`);
    await writeFile(path, OTHER);
    await until(
      () => relay.log.lines.some((line) => line.includes('access tokens have changed')),
      'the tokens have changed',
    );
    expect(await within(statusOf(relay, TOKEN), 'an answer')).toBe(401);
    expect(await statusOf(relay, OTHER)).toBe(400);
    await client.refused({ type: 'connect', otc: '000001' }, 'otc_not_found');
  });
});
