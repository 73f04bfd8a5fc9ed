import { describe, expect, test } from 'bun:test';
import { Connections } from '../src/admission/connections.ts';
import { Attempts, Budget, MinuteCount, networksOf, WINDOW_MS } from '../src/admission/limits.ts';
import { readOptions } from '../src/config.ts';
import { SilentPeer } from './peer.ts';

describe('attempts', () => {
  test('the fifth attempt in a window uses up the limit, until the oldest is a minute old', () => {
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

  test('a limit of one allows one attempt', () => {
    const attempts = new Attempts(1);
    attempts.add('a', 0);
    expect([attempts.isSpent('a', 59_999), attempts.isSpent('a', 60_000)]).toEqual([true, false]);
  });

  test('a sweep removes exactly the keys whose last attempt is a minute old', () => {
    const attempts = new Attempts(5);
    attempts.add('early', 0);
    attempts.add('stays', 1);
    attempts.add('stays', 30_000);
    attempts.sweep(WINDOW_MS);
    expect([attempts.size, attempts.isSpent('stays', WINDOW_MS)]).toEqual([1, false]);
    attempts.sweep(30_000 + WINDOW_MS);
    expect(attempts.size).toBe(0);
  });

  test('a new attempt moves its key to the end, and the sweep misses no key', () => {
    const attempts = new Attempts(5);
    attempts.add('early', 0);
    attempts.add('once', 1);
    attempts.add('early', 30_000);
    attempts.sweep(1 + WINDOW_MS);
    expect(attempts.size).toBe(1);
  });

  test('keys that are tracked are still counted when no new ones fit', () => {
    const attempts = new Attempts(2, 1);
    attempts.add('here', 0);
    attempts.add('here', 1);
    expect([attempts.size, attempts.isSpent('here', 2)]).toEqual([1, true]);
  });

  test('the number of keys is limited, and new keys do not replace tracked ones', () => {
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

describe('IPv6', () => {
  const at = (d: number, c = 3): string => `2001:db8:${c.toString(16)}:${d.toString(16)}::/64`;

  test('a client is counted for its /64, its /56 and its /48; an IPv4 address for itself', () => {
    expect(networksOf('2001:db8:3:12ab::/64')).toEqual([
      '2001:db8:3:12ab::/64',
      '2001:db8:3:1200::/56',
      '2001:db8:3::/48',
    ]);
    expect(networksOf('203.0.113.7')).toEqual(['203.0.113.7']);
    expect(networksOf('unknown')).toEqual(['unknown']);
  });

  test.each([
    ['attempts', () => new Attempts(5)],
    ['a count by the minute', () => new MinuteCount(5)],
  ] as const)('%s: a /56 and a /48 have eight times as much together', (_what, make) => {
    const neighbours = make();
    for (let d = 0; d < 8; d += 1) {
      for (let i = 0; i < 5; i += 1) neighbours.add(at(d), 0);
    }
    expect([at(8), at(0xff), at(0x100), at(8, 4)].map((c) => neighbours.isSpent(c, 1))).toEqual([
      true,
      true,
      true,
      false,
    ]);
    const spread = make();
    for (let d = 0; d < 40; d += 1) spread.add(at(d * 256), 0);
    expect([at(0xff00), at(0, 4)].map((c) => spread.isSpent(c, 1))).toEqual([true, false]);
    expect(spread.isSpent(at(0xff00), WINDOW_MS)).toBe(false);
  });
});

describe('a count by the minute', () => {
  test('is used up after `max` events, until a minute after the first one', () => {
    const listens = new MinuteCount(3);
    for (const now of [0, 10_000, 59_000]) {
      expect(listens.isSpent('a', now)).toBe(false);
      listens.add('a', now);
    }
    expect([59_999, 60_000].map((now) => listens.isSpent('a', now))).toEqual([true, false]);
    expect(listens.isSpent('b', 59_999)).toBe(false);
    listens.add('a', 60_000);
    listens.sweep(60_000);
    expect(listens.size).toBe(1);
    listens.sweep(120_000);
    expect(listens.size).toBe(0);
  });

  test('has a limited number of keys, and new keys do not replace tracked ones', () => {
    const listens = new MinuteCount(1, 2);
    for (const client of ['a', 'b', 'c']) listens.add(client, 0);
    expect(['a', 'b', 'c'].map((client) => listens.isSpent(client, 1))).toEqual([
      true,
      true,
      false,
    ]);
    expect(listens.size).toBe(2);
  });
});

describe('a budget', () => {
  test('allows a burst, then what is refilled each second', () => {
    const bytes = new Budget(100, 10);
    expect([bytes.take('a', 60, 0), bytes.take('a', 41, 0), bytes.take('a', 40, 0)]).toEqual([
      true,
      false,
      true,
    ]);
    expect([bytes.take('a', 11, 1000), bytes.take('a', 10, 1000)]).toEqual([false, true]);
    expect(bytes.take('a', 100, 11_000)).toBe(true);
    expect(bytes.take('b', 101, 0)).toBe(false);
  });

  test('removes clients whose budget is full again, and has a limited number of keys', () => {
    const bytes = new Budget(100, 10, 2);
    for (const client of ['a', 'b', 'c']) bytes.take(client, 20, 0);
    expect(bytes.size).toBe(2);
    bytes.sweep(1999);
    expect(bytes.size).toBe(2);
    bytes.sweep(2000);
    expect(bytes.size).toBe(0);
  });
});

test('a limit tracks 100,000 keys by default', () => {
  const attempts = new Attempts(5);
  for (let i = 0; i < 100_100; i += 1) attempts.add(`${i}`, 0);
  expect(attempts.size).toBe(100_000);
});

test('sockets are counted for each client, and a client without any is forgotten', () => {
  const connections = new Connections(readOptions({ maxConnectionsPerClient: 2 }));
  const [first, second, third, other] = ['a', 'a', 'a', 'b'].map((client) =>
    Object.assign(new SilentPeer(), { client }),
  ) as [SilentPeer, SilentPeer, SilentPeer, SilentPeer];
  const admitted = [first, second, third, other].map((peer) => connections.admit(peer, 0));
  expect(admitted).toEqual([true, true, false, true]);
  expect(connections.books).toEqual({ connections: 3, clients: 2 });
  expect([first, third, other].map((peer) => connections.remove(peer))).toEqual([
    true,
    false,
    true,
  ]);
  expect(connections.books).toEqual({ connections: 1, clients: 1 });
  expect([third, other].map((peer) => connections.admit(peer, 0))).toEqual([true, true]);
});
