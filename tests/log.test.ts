import { expect, test } from 'bun:test';
import { Stats } from '../src/observe/stats.ts';
import { createLog, type LogLevel } from '../src/observe/log.ts';

function lines(level: LogLevel, isTTY = false): string[] {
  const written: string[] = [];
  const log = createLog(level, { isTTY, write: (line) => written.push(line) });
  log.debug('d');
  log.info('i', { port: 3001, metrics: undefined });
  log.warn('w');
  log.error('e', { name: 'TypeError' });
  return written;
}

test('one JSON object a line, with time, level and message', () => {
  const [line] = lines('info');
  expect(line).toEndWith('\n');
  const { time, ...rest } = JSON.parse(line as string) as Record<string, unknown>;
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
  expect(lines(level)).toHaveLength(count);
});

test('plain words at a terminal', () => {
  expect(lines('info', true)[0]).toMatch(/^\d\d:\d\d:\d\d info {2}i {2}port=3001\n$/);
});

test('a summary counts from the last one, and there is none where nothing happened', () => {
  const stats = new Stats();
  expect(stats.sinceLast()).toBeUndefined();
  stats.connectionsAccepted += 2;
  stats.refusals.no_session += 3;
  expect(stats.sinceLast()).toMatchObject({ connections: 2, refusals: 3, pairings: 0 });
  stats.refusals.otc_in_use += 1;
  expect(stats.sinceLast()).toMatchObject({ connections: 0, refusals: 1 });
  expect(stats.sinceLast()).toBeUndefined();
});
