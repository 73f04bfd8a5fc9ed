import { describe, expect, test } from 'bun:test';
import { join } from 'node:path';
import { ConfigError, createRelayServer } from '../src/index.ts';
import { ClientNames, KEY_TTL_MS } from '../src/observe/client-names.ts';
import { createLog, humanLine, jsonLine, type LogLevel } from '../src/observe/log.ts';
import { Stats } from '../src/observe/stats.ts';

test('one JSON object a line, with time, level and message', () => {
  const line = jsonLine('info', 'i', { port: 3001, metrics: undefined });
  expect(line).toEndWith('}\n');
  const { time, ...rest } = JSON.parse(line) as Record<string, unknown>;
  expect(rest).toEqual({ level: 'info', msg: 'i', port: 3001 });
  expect(new Date(String(time)).getTime()).toBeGreaterThan(0);
});

test.each([
  ['debug', 4],
  ['info', 3],
  ['warn', 2],
  ['error', 1],
  ['silent', 0],
] as [LogLevel, number][])('%s lets %p of four through', (level, count) => {
  const events: unknown[] = [];
  const log = createLog(level, (...event) => events.push(event));
  log.debug('d');
  log.info('i', { port: 3001 });
  log.warn('w');
  log.error('e');
  expect(events).toHaveLength(count);
  if (count > 2) expect(events).toContainEqual(['info', 'i', { port: 3001 }]);
});

test('plain text at a terminal, in colour if the terminal has colours', () => {
  const fields = { port: 3001, name: 'a', metrics: undefined };
  expect(humanLine('info', 'hello', fields, false)).toMatch(
    /^\d\d:\d\d:\d\d hello {2}port=3001 {2}name=a\n$/,
  );
  expect(humanLine('warn', 'hello', {}, false)).toMatch(/^\d\d:\d\d:\d\d warn: hello\n$/);
  const red = humanLine('error', 'hello', fields, true);
  expect(red).toContain('\u001b[31merror: hello\u001b[0m');
  expect(Bun.stripANSI(red)).toBe(humanLine('error', 'hello', fields, false));
});

test('the library passes its log function all events from info up, or from `logLevel` up', async () => {
  const told = async (options: object): Promise<string[]> => {
    const events: string[] = [];
    const log = (level: string, message: string) => events.push(`${level} ${message}`);
    const relay = await createRelayServer({ port: 0, host: '127.0.0.1', log, ...options });
    await relay.start();
    await relay.stop({ drain: true });
    return events;
  };
  expect(await told({})).toEqual(['info listening', 'info draining', 'info stopped']);
  expect(await told({ logLevel: 'warn' })).toEqual([]);
  const wrong = createRelayServer({ log: 'info' as never });
  expect(await wrong.catch((error: unknown) => error)).toBeInstanceOf(ConfigError);
});

test.each([
  [
    'throws',
    () => {
      throw new Error('of the log');
    },
  ],
  ['rejects', () => Promise.reject(new Error('of the log'))],
] as [string, () => void][])(
  'a log function that %s does the relay no harm',
  async (_what, log) => {
    const relay = await createRelayServer({ port: 0, host: '127.0.0.1', log });
    const { port } = await relay.start();
    expect((await fetch(`http://127.0.0.1:${port}/health`)).status).toBe(200);
    await relay.stop({ drain: true });
  },
);

test('the library logs nothing by default', async () => {
  const program = (options: string) =>
    `import { createRelayServer } from ${JSON.stringify(join(import.meta.dir, '../src/index.ts'))};
    const relay = await createRelayServer({ port: 0, host: '127.0.0.1' ${options} });
    await relay.start();
    await relay.stop({ drain: true });`;
  const output = async (options: string): Promise<string> => {
    const child = Bun.spawn([process.execPath, '-e', program(options)], { stderr: 'inherit' });
    return child.stdout.text();
  };
  expect(await output('')).toBe('');
  const logged = (await output(", logLevel: 'info'")).trim().split('\n');
  expect(logged.map((line) => (JSON.parse(line) as { msg: string }).msg)).toEqual([
    'listening',
    'draining',
    'stopped',
  ]);
});

describe('the name of a client in the log', () => {
  test('is nothing, its address, or a pseudonym', () => {
    const now = (): number => 0;
    expect(new ClientNames(false, now).of('203.0.113.7')).toBeUndefined();
    expect(new ClientNames(true, now).of('203.0.113.7')).toBe('203.0.113.7');
    expect(new ClientNames('pseudonym', now).of('203.0.113.7')).toMatch(/^[0-9a-f]{16}$/);
  });

  test('a pseudonym stays the same for a day, then changes', () => {
    let now = 5;
    const names = new ClientNames('pseudonym', () => now);
    const first = names.of('203.0.113.7');
    expect(names.of('2001:db8:0:1::/64')).not.toBe(first);
    now += KEY_TTL_MS - 1;
    expect(names.of('203.0.113.7')).toBe(first);
    now += 1;
    const second = names.of('203.0.113.7');
    expect(second).not.toBe(first);
    now += KEY_TTL_MS - 1;
    expect(names.of('203.0.113.7')).toBe(second);
  });

  test('two relays give one client different pseudonyms, since each has its own key', () => {
    const [one, another] = [1, 2].map(() => new ClientNames('pseudonym', () => 0).of('192.0.2.1'));
    expect(one).not.toBe(another);
  });
});

test('a summary counts since the last one, and there is none if nothing happened', () => {
  const stats = new Stats();
  expect(stats.sinceLast()).toBeUndefined();
  stats.connectionsAccepted += 2;
  stats.refusals.no_session += 3;
  expect(stats.sinceLast()).toMatchObject({ connections: 2, refusals: 3, pairings: 0 });
  stats.refusals.otc_in_use += 1;
  expect(stats.sinceLast()).toMatchObject({ connections: 0, refusals: 1 });
  expect(stats.sinceLast()).toBeUndefined();
});
