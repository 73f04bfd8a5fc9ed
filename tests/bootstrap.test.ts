import { describe, expect, test } from 'bun:test';
import { Bootstrap, MAX_WATCHES_PER_PEER, WATCH_TTL_MS } from '../src/bootstrap/bootstrap.ts';
import { UsedTokens } from '../src/bootstrap/used-tokens.ts';
import type { Watch } from '../src/peer.ts';
import { SilentPeer as Peer } from './peer.ts';

/** Brings one jti into any state. */
class World {
  readonly bootstrap = new Bootstrap();
  readonly watcher = new Peer();
  readonly target = new Peer();
  readonly stranger = new Peer();

  watch(peer = this.watcher, jti = 'bt_1', now = 0): Watch {
    const watch = this.bootstrap.watch(peer, jti, now);
    if (typeof watch === 'string') throw new Error(watch);
    return watch;
  }

  announced(): Watch {
    const watch = this.watch();
    const refusal = this.bootstrap.announce(this.target, watch);
    if (refusal) throw new Error(refusal);
    return watch;
  }
}

const states: Record<string, (world: World) => unknown> = {
  unwatched: () => {},
  watched: (world) => world.watch(),
  announced: (world) => world.announced(),
  ended: (world) => world.bootstrap.end(world.announced(), 0),
  'watched again': (world) => [world.bootstrap.end(world.announced(), 0), world.watch()],
};

/** [state, a stranger watches, the watcher watches, somebody announces itself] */
const table = [
  ['unwatched', 'ok', 'ok', 'nobody watches'],
  ['watched', 'jti_already_watched', 'ok', 'ok'],
  ['announced', 'jti_already_watched', 'ok', 'token_already_used'],
  ['ended', 'ok', 'ok', 'nobody watches'],
  ['watched again', 'jti_already_watched', 'ok', 'ok'],
] as const;

test('the table covers every state', () => {
  expect(table.map(([state]) => state as string)).toEqual(Object.keys(states));
});

test.each(table)('what each peer may do with a jti that is %s', (state, ...expected) => {
  const after = (act: (world: World) => unknown): unknown => {
    const world = new World();
    states[state]?.(world);
    const answer = act(world) ?? 'ok';
    return typeof answer === 'string' ? answer : 'ok';
  };
  expect([
    after(({ bootstrap, stranger }) => bootstrap.watch(stranger, 'bt_1', 2)),
    after(({ bootstrap, watcher }) => bootstrap.watch(watcher, 'bt_1', 2)),
    after(({ bootstrap, stranger }) => {
      const watch = bootstrap.find('bt_1');
      return watch ? bootstrap.announce(stranger, watch) : 'nobody watches';
    }),
  ]).toEqual([...expected]);
});

describe('a watch', () => {
  test('ends without a trace in either peer', () => {
    const world = new World();
    const watch = world.announced();
    expect([world.bootstrap.size, world.bootstrap.unanswered]).toEqual([1, 1]);
    expect([world.watcher.watches?.size, world.target.announced?.size]).toEqual([1, 1]);
    world.bootstrap.end(watch, 0);
    world.bootstrap.end(watch, 0);
    expect([world.bootstrap.size, world.bootstrap.unanswered]).toEqual([0, 0]);
    expect([world.watcher.watches?.size, world.target.announced?.size]).toEqual([0, 0]);
  });

  test('is renewed by its watcher, which moves it to the end of the queue', () => {
    const { bootstrap, watcher, stranger } = new World();
    const first = bootstrap.watch(watcher, 'bt_1', 0) as Watch;
    bootstrap.watch(stranger, 'bt_2', 1000);
    bootstrap.watch(watcher, 'bt_1', 2000);
    expect(watcher.watches?.size).toBe(1);
    const over = (now: number): string[] => [...bootstrap.expired(now)].map(({ jti }) => jti);
    expect(over(WATCH_TTL_MS + 999)).toEqual([]);
    expect(over(WATCH_TTL_MS + 1000)).toEqual(['bt_2']);
    expect(bootstrap.isOver(first, WATCH_TTL_MS + 1999)).toBe(false);
    expect(over(WATCH_TTL_MS + 2000)).toEqual(['bt_2', 'bt_1']);
    expect(bootstrap.isOver(first, WATCH_TTL_MS + 2000)).toBe(true);
  });

  test('is limited to a hundred for each peer; a renewed one is not counted again', () => {
    const { bootstrap, watcher, stranger } = new World();
    for (let i = 0; i < MAX_WATCHES_PER_PEER; i += 1) bootstrap.watch(watcher, `bt_${i}`, 0);
    expect(bootstrap.watch(watcher, 'one more', 0)).toBe('relay_capacity');
    expect(bootstrap.watch(watcher, 'bt_0', 0)).toMatchObject({ jti: 'bt_0' });
    expect(bootstrap.watch(stranger, 'one more', 0)).toMatchObject({ jti: 'one more' });
  });
});

describe('the burnt list', () => {
  test('forgets ids by age, also without a sweep, and counts its ids', () => {
    const burnt = new UsedTokens(1000, 100);
    burnt.add('a', 0);
    burnt.add('b', 50);
    expect([
      burnt.has('a', 99),
      burnt.has('a', 100),
      burnt.has('b', 100),
      burnt.has('c', 0),
    ]).toEqual([true, false, true, false]);
    burnt.sweep(100);
    expect(burnt.size).toBe(1);
    burnt.add('b', 120);
    expect([burnt.size, burnt.has('b', 219)]).toEqual([1, true]);
    burnt.sweep(220);
    expect(burnt.size).toBe(0);
  });

  test('an id that is burned again becomes one of the newest, and older ones still expire', () => {
    const burnt = new UsedTokens(1000, 100);
    const shardOf = (jti: string): number =>
      new Bun.CryptoHasher('sha256').update(jti).digest()[0] as number;
    const [first, second] = Array.from({ length: 2000 }, (_, i) => `bt_${i}`).filter(
      (jti) => shardOf(jti) === shardOf('bt_0'),
    ) as [string, string];
    burnt.add(first, 0);
    burnt.add(second, 10);
    burnt.add(first, 50);
    burnt.sweep(110);
    expect([burnt.size, burnt.has(first, 110)]).toEqual([1, true]);
  });

  test('holds ids up to its limit, and tells when it is full', () => {
    const burnt = new UsedTokens(500, 100);
    for (let i = 0; i < 500; i += 1) {
      expect(burnt.isFull(0)).toBe(false);
      burnt.add(`bt_${i}`, i < 250 ? 0 : 50);
    }
    expect(burnt.isFull(99)).toBe(true);
    expect(burnt.isFull(100)).toBe(false);
    expect(burnt.size).toBe(250);
  });

  test('removes expired ids in steps of a limited size', () => {
    const burnt = new UsedTokens(100_000, 100);
    for (let i = 0; i < 50_000; i += 1) burnt.add(`bt_${i}`, 0);
    const sizes = [100, 100, 100].map((now) => {
      burnt.sweep(now);
      return burnt.size;
    });
    expect(sizes).toEqual([30_000, 10_000, 0]);
  });
});
