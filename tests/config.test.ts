import { describe, expect, test } from 'bun:test';
import {
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

test('without anything, everything has its default', () => {
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
  ['AMESH_SESSION_TTL', '4'],
  ['AMESH_SESSION_TTL', '301'],
  ['AMESH_SESSION_TTL', '30s'],
  ['AMESH_TRUST_PROXY', 'maybe'],
  ['LOG_LEVEL', 'loud'],
  ['AMESH_LOG_CLIENTS', '2'],
  ['METRICS_PORT', 'x'],
  ['AMESH_MAX_CONNECTIONS', '0'],
])('%s=%s is refused with its name, what came and what is accepted', (env, value) => {
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
  ])('%p is refused', (options, message) => {
    expect(refusal(() => readOptions(options as object))).toStartWith(message);
  });

  test('a flag is named as a flag', () => {
    expect(
      refusal(() => readEnvironment({}, { port: { label: '--port', text: 'x' } })),
    ).toStartWith('--port: got "x"');
  });
});

test('the metrics may share the port on another address, and where the system chooses both', () => {
  const elsewhere = { METRICS_PORT: '3001', METRICS_HOST: '127.0.0.1' };
  expect(readEnvironment(elsewhere).metricsPort).toBe(3001);
  expect(readEnvironment({ PORT: '0', METRICS_PORT: '0' }).metricsPort).toBe(0);
});

test("a misspelt name is found, a client's own is not", () => {
  const environment = {
    AMESH_MAX_CONECTIONS: '5',
    AMESH_MAX_SESSIONS: '5',
    AMESH_RELAY_URL: 'x',
    PATH: 'x',
  };
  expect(unknownSettings(environment)).toEqual(['AMESH_MAX_CONECTIONS']);
});

test('the default that is shown is the default in force', () => {
  for (const [name, { env, shownDefault }] of Object.entries(settings)) {
    const shown = readEnvironment({ [env]: shownDefault });
    expect(shown[name as keyof typeof shown]).toEqual(
      readEnvironment({})[name as keyof typeof shown],
    );
  }
});
