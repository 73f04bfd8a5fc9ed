import { describe, expect, test } from 'bun:test';
import { Attempts, Tally, WINDOW_MS } from '../src/admission/limits.ts';

describe('attempts', () => {
  test('the fifth in a window spends a key, until the oldest is a minute old', () => {
    const attempts = new Attempts(5);
    for (const at of [0, 10, 20, 30]) attempts.add('a', at);
    expect(attempts.isSpent('a', 40)).toBe(false);
    attempts.add('a', 40);
    expect([40, WINDOW_MS - 1, WINDOW_MS].map((now) => attempts.isSpent('a', now))).toEqual([
      true,
      true,
      false,
    ]);
    expect(attempts.isSpent('b', 40)).toBe(false);
  });

  test('the window slides: no second burst at its edge', () => {
    const attempts = new Attempts(5);
    const allowed: number[] = [];
    for (let now = 0; now < 3 * WINDOW_MS; now += 100) {
      const isBurst = now % WINDOW_MS > WINDOW_MS - 1000 || now % WINDOW_MS < 1000;
      if (!isBurst || attempts.isSpent('a', now)) continue;
      attempts.add('a', now);
      allowed.push(now);
    }
    for (const start of allowed) {
      expect(
        allowed.filter((at) => at >= start && at < start + WINDOW_MS).length,
      ).toBeLessThanOrEqual(5);
    }
    expect(allowed.length).toBeGreaterThan(10);
  });

  test('a limit of one is a limit of one', () => {
    const attempts = new Attempts(1);
    attempts.add('a', 0);
    expect([attempts.isSpent('a', 59_999), attempts.isSpent('a', 60_000)]).toEqual([true, false]);
  });

  test('the book forgets whoever was last here a minute ago, and nobody else', () => {
    const attempts = new Attempts(5);
    attempts.add('early', 0);
    attempts.add('stays', 1);
    attempts.add('stays', 30_000);
    attempts.sweep(WINDOW_MS);
    expect([attempts.size, attempts.isSpent('stays', WINDOW_MS)]).toEqual([1, false]);
    attempts.sweep(30_000 + WINDOW_MS);
    expect(attempts.size).toBe(0);
  });

  test('whoever tries again moves behind the others, and the sweep misses nobody', () => {
    const attempts = new Attempts(5);
    attempts.add('early', 0);
    attempts.add('once', 1);
    attempts.add('early', 30_000);
    attempts.sweep(1 + WINDOW_MS);
    expect(attempts.size).toBe(1);
  });

  test('who stands in a full book is still counted', () => {
    const attempts = new Attempts(2, 1);
    attempts.add('here', 0);
    attempts.add('here', 1);
    expect([attempts.size, attempts.isSpent('here', 2)]).toEqual([1, true]);
  });

  test('the book is bounded, and nobody in it is forgotten because of newcomers', () => {
    const attempts = new Attempts(2, 1000);
    attempts.add('honest', 0);
    attempts.add('honest', 1);
    for (let i = 0; i < 100_000; i += 1) attempts.add(`new-${i}`, 2);
    expect(attempts.size).toBe(1000);
    expect(attempts.isSpent('honest', 3)).toBe(true);
    attempts.sweep(WINDOW_MS + 2);
    attempts.add('later', WINDOW_MS + 2);
    expect(attempts.size).toBe(1);
  });
});

test('a book holds 100,000 keys unless told otherwise', () => {
  const attempts = new Attempts(5);
  for (let i = 0; i < 100_100; i += 1) attempts.add(`${i}`, 0);
  expect(attempts.size).toBe(100_000);
});

test('a tally counts what each key holds, and forgets who holds nothing', () => {
  const tally = new Tally();
  tally.add('a');
  tally.add('a');
  tally.add('b');
  expect([tally.of('a'), tally.of('b'), tally.of('c'), tally.size]).toEqual([2, 1, 0, 2]);
  tally.remove('a');
  tally.remove('b');
  expect([tally.of('a'), tally.of('b'), tally.size]).toEqual([1, 0, 1]);
});
