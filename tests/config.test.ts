import { describe, expect, test } from 'bun:test';
import { RedisUrl } from '../src/cluster/redis-url.ts';
import {
  changedSettings,
  ConfigError,
  readEnvironment,
  readOptions,
  settings,
  unknownSettings,
} from '../src/config.ts';

const refusal = (read: () => unknown): string => {
  try {
    read();
  } catch (error) {
    if (error instanceof ConfigError) return error.message;
    throw error;
  }
  throw new Error('it was accepted');
};

test('without any setting, everything has its default', () => {
  expect(readEnvironment({})).toEqual(readOptions({}));
  expect(readOptions({})).toMatchObject({
    port: 3001,
    host: '0.0.0.0',
    sessionTtlMs: 30_000,
    trustProxy: { by: 'peer' },
  });
  expect(Object.isFrozen(readOptions({}))).toBe(true);
});

test('the environment counts in seconds, options in milliseconds; flags come first', () => {
  expect(readEnvironment({ AMESH_SESSION_TTL: '45', PORT: ' 80 ', HOST: '' })).toMatchObject({
    sessionTtlMs: 45_000,
    port: 80,
    host: '0.0.0.0',
  });
  expect(readEnvironment({ PORT: '80' }, { port: { label: '--port', text: '81' } }).port).toBe(81);
});

test.each([
  ['PORT', 'abc'],
  ['PORT', '70000'],
  ['PORT', '3001.5'],
  ['PORT', '-1'],
  ['PORT', '0x10'],
  ['PORT', '1e3'],
  ['HOST', 'not a host'],
  ['HOST', '999.1.1.1'],
  ['HOST', 'http://example.com'],
  ['HOST', '1.2.3'],
  ['HOST', '::1%lo'],
  ['AMESH_SESSION_TTL', '4'],
  ['AMESH_SESSION_TTL', '301'],
  ['AMESH_SESSION_TTL', '30s'],
  ['AMESH_TRUST_PROXY', 'maybe'],
  ['LOG_LEVEL', 'loud'],
  ['AMESH_LOG_CLIENTS', '2'],
  ['METRICS_PORT', 'x'],
  ['AMESH_MAX_CONNECTIONS', '0'],
])('%s=%s is refused; the message has the name, the value and what is accepted', (env, value) => {
  const { accepts } = Object.values(settings).find((setting) => setting.env === env) as {
    accepts: string;
  };
  expect(refusal(() => readEnvironment({ [env]: value }))).toBe(
    `${env}: got ${JSON.stringify(value)}, expected ${accepts}`,
  );
});

describe('options', () => {
  test.each([
    [{ port: 'abc' }, 'port: got "abc"'],
    [{ port: 1.5 }, 'port: got 1.5'],
    [{ sessionTtlMs: 30 }, 'sessionTtlMs: got 30, expected whole milliseconds from 5000 to 300000'],
    [{ page: 1 }, 'page: got 1, expected true or false'],
    [
      { port: 9091, metricsPort: 9091 },
      'metricsPort: got 9091, expected another port than port has',
    ],
    [{ trustProxy: 'hops:x' }, 'trustProxy: got "hops:x"'],
    [{ pot: 3001 }, 'pot: there is no such option'],
    [{ tlsCertFile: '' }, 'tlsCertFile: got "", expected the path of a file'],
    [{ tlsCertFile: 'a' }, 'tlsKeyFile: not set, but tlsCertFile is; expected both or neither'],
    [{ maxFrameBytes: 2 ** 21 }, 'maxFrameBytes: 2097152 is more than maxBacklogBytes (1048576)'],
    [{ redisUrl: 'localhost' }, 'redisUrl: not accepted, since it does not begin with redis://'],
    [{ redisUrl: 5 }, 'redisUrl: not accepted, expected redis://'],
    [{ redisUrl: 'redis://a', redisUrlFile: 'b' }, 'redisUrlFile: set, and redisUrl too'],
    [{ accessToken: 'short' }, 'accessToken: not accepted, since the token has only 5 characters'],
    [{ accessToken: 5 }, 'accessToken: not accepted, expected 16 to 256 characters'],
    [{ accessTokensFile: '' }, 'accessTokensFile: got "", expected the path of a file'],
    [{ allowedOrigins: 'https://a' }, 'allowedOrigins: got "https://a", expected an array'],
    [{ allowedOrigins: ['*', 'a'] }, 'allowedOrigins: "a" is not an origin; expected origins as'],
    [{ allowedOrigins: ['{x}'] }, 'allowedOrigins: "{x}" is not an origin; expected origins as'],
    [
      { trustProxy: '1', trustedProxies: ['a'] },
      'trustedProxies: "a" is neither an address nor a range',
    ],
    [{ trustProxy: '1', trustedProxies: [] }, 'trustedProxies: got [], expected an array'],
    [{ trustedProxies: ['::1'] }, 'trustedProxies: set, but trustProxy is not'],
  ])('%p is refused', (options, message) => {
    expect(refusal(() => readOptions(options as object))).toStartWith(message);
  });

  test('a flag is named as a flag', () => {
    expect(
      refusal(() => readEnvironment({}, { port: { label: '--port', text: 'x' } })),
    ).toStartWith('--port: got "x"');
  });
});

test('lists in the environment are separated by commas or blanks', () => {
  const config = readEnvironment({
    AMESH_TRUST_PROXY: '1',
    AMESH_TRUSTED_PROXIES: '10.0.0.0/8, ::1',
    AMESH_ALLOWED_ORIGINS: 'https://A.test:443,chrome-extension://abc',
  });
  expect(config.trustedProxies?.has('10.1.1.1')).toBe(true);
  expect(JSON.stringify(config.trustedProxies)).toBe('["10.0.0.0/8","::1"]');
  expect(config.allowedOrigins).toEqual(['https://a.test', 'chrome-extension://abc']);
});

test('an access token is never shown', () => {
  const AMESH_ACCESS_TOKEN = 'n5Jk-Zq_3vWcR8sTx0bLmD2y';
  const config = readEnvironment({ AMESH_ACCESS_TOKEN });
  const shown = JSON.stringify([
    config,
    Bun.inspect(config),
    changedSettings({ AMESH_ACCESS_TOKEN }),
  ]);
  expect(shown).toContain('(secret)');
  expect(shown).not.toContain('n5Jk');
  const wrong = refusal(() => readEnvironment({ AMESH_ACCESS_TOKEN: 'n5Jk n5Jk' }));
  expect(wrong).toStartWith('AMESH_ACCESS_TOKEN: not accepted, since ');
  expect(wrong).not.toContain('n5Jk');
});

test('the metrics may use the same port on another address, or if the system chooses both ports', () => {
  const elsewhere = { METRICS_PORT: '3001', METRICS_HOST: '127.0.0.1' };
  expect(readEnvironment(elsewhere).metricsPort).toBe(3001);
  expect(readEnvironment({ PORT: '0', METRICS_PORT: '0' }).metricsPort).toBe(0);
});

test.each([
  ['redis://127.0.0.1', undefined],
  ['rediss://user:p%23%2F%3F%40@redis.example.com:6380/3', undefined],
  ['redis://user:p@ss@redis.example.com', undefined],
  ['redis://[::1]:6379/0', undefined],
  ['REDIS://redis', undefined],
  ['"redis://redis"', 'it stands in quotes; leave them out'],
  ['redis://:se#cret@redis', 'a character that must be encoded: # as %23'],
  ['redis://:se/cret@redis', 'a character that must be encoded: # as %23, / as %2F'],
  ['redis://:se?cret@redis', 'a character that must be encoded'],
  ['redis://:se%cret@redis', 'holds a % that must be encoded: % as %25'],
  ['redis://redis?db=1', 'it has a query'],
  ['redis://redis/0#x', 'it has a fragment'],
  ['redis://redis/cache', 'the number of a database'],
  ['redis://redis:99999', 'its port is not a number from 0 to 65535'],
  ['redis://redis:secret', 'its port is not a number'],
  ['redis://', 'it names no host'],
  ['redis://:secret@', 'its host is not a name or an address'],
  ['redis-sentinel://:secret@a:26379/mymaster', 'Sentinel is not supported'],
  ['redis+sentinel://a', 'Sentinel is not supported'],
  ['http://:secret@redis', 'its scheme is http; write redis://'],
  ['unix:///run/redis.sock', 'a unix socket cannot be used'],
  ['/run/redis.sock', 'a unix socket cannot be used'],
  ['redis:///run/redis.sock', 'a unix socket cannot be used'],
  ['localhost:6379', 'it does not begin with redis:// or rediss://'],
])('REDIS_URL=%s', (url, problem) => {
  if (problem === undefined) {
    expect(readEnvironment({ REDIS_URL: url }).redisUrl).toBeInstanceOf(RedisUrl);
    return;
  }
  const message = refusal(() => readEnvironment({ REDIS_URL: url }));
  expect(message).toStartWith('REDIS_URL: not accepted, since ');
  expect(message).toContain(problem);
  expect(message).toEndWith(
    '; expected redis://[user:password@]host[:port][/database], or rediss:// for TLS',
  );
  expect(message).not.toMatch(/se.?cret/);
});

test('the changed settings are shown as they were set, without secrets', () => {
  const environment = {
    PORT: '3001',
    AMESH_SESSION_TTL: ' 60 ',
    REDIS_URL: 'redis://u:secret@redis/1',
  };
  expect(changedSettings(environment, { port: { label: '--port', text: '80' } })).toEqual({
    '--port': '80',
    AMESH_SESSION_TTL: '60',
    REDIS_URL: 'redis://redis:6379/1',
  });
  expect(changedSettings({})).toEqual({});
});

test('a misspelt name is reported, one of the amesh client is not', () => {
  const environment = {
    AMESH_MAX_CONECTIONS: '5',
    AMESH_MAX_SESSIONS: '5',
    AMESH_RELAY_URL: 'x',
    PATH: 'x',
  };
  expect(unknownSettings(environment)).toEqual(['AMESH_MAX_CONECTIONS']);
});

test('the default that is shown is the default that is used', () => {
  for (const [name, { env, shownDefault }] of Object.entries(settings)) {
    const shown = readEnvironment({ [env]: shownDefault });
    expect(shown[name as keyof typeof shown]).toEqual(
      readEnvironment({})[name as keyof typeof shown],
    );
  }
});
