import { describe, expect, test } from 'bun:test';
import { Bootstrap, type Bootstrapped, type Watch } from '../src/bootstrap/bootstrap.ts';
import { BurntList } from '../src/bootstrap/used-tokens.ts';

const WATCH_TTL = 300_000;
const BURNT_TTL = 25 * 3_600_000;

class Peer implements Bootstrapped<Peer> {
  watches: Set<Watch<Peer>> | undefined;
  asks: Set<Watch<Peer>> | undefined;
}

/** Everything that can happen to one jti, to be brought into any state. */
class World {
  readonly burnt = new BurntList(3, BURNT_TTL);
  readonly bootstrap = new Bootstrap<Peer>(this.burnt, WATCH_TTL, 2);
  readonly watcher = new Peer();
  readonly target = new Peer();
  readonly stranger = new Peer();

  watch(peer = this.watcher, jti = 'bt_1', now = 0): Watch<Peer> {
    const watch = this.bootstrap.watch(peer, jti, now);
    if (typeof watch === 'string') throw new Error(watch);
    return watch;
  }

  ask(now = 1): Watch<Peer> {
    const watch = this.bootstrap.announce(this.target, 'bt_1', now);
    if (typeof watch === 'string') throw new Error(watch);
    return watch;
  }
}

const brief = (answer: unknown): unknown => (typeof answer === 'string' ? answer : 'ok');

const states: Record<string, (world: World) => unknown> = {
  unwatched: () => {},
  watched: (world) => world.watch(),
  asked: (world) => [world.watch(), world.ask()],
  answered: (world) => [world.watch(), world.bootstrap.end(world.ask())],
  'burnt, watched again': (world) => [
    world.watch(),
    world.bootstrap.end(world.ask()),
    world.watch(),
  ],
  'expired, unused': (world) => world.bootstrap.end(world.watch()),
  'watcher gone while asked': (world) => [world.watch(), world.bootstrap.end(world.ask())],
};

/** [state, stranger watches, watcher watches, stranger answers, watcher answers, target announces] */
const table = [
  ['unwatched', 'ok', 'ok', 'not_watching', 'not_watching', 'no_watcher'],
  ['watched', 'jti_already_watched', 'ok', 'not_watching', 'peer_not_connected', 'ok'],
  ['asked', 'jti_already_watched', 'ok', 'not_watching', 'ok', 'token_already_used'],
  ['answered', 'ok', 'ok', 'not_watching', 'not_watching', 'token_already_used'],
  [
    'burnt, watched again',
    'jti_already_watched',
    'ok',
    'not_watching',
    'peer_not_connected',
    'token_already_used',
  ],
  ['expired, unused', 'ok', 'ok', 'not_watching', 'not_watching', 'no_watcher'],
  ['watcher gone while asked', 'ok', 'ok', 'not_watching', 'not_watching', 'token_already_used'],
] as const;

test('the table covers every state', () => {
  expect(table.map(([state]) => state as string)).toEqual(Object.keys(states));
});

test.each(table)('who may do what to a jti that is %s', (state, ...expected) => {
  const after = (act: (world: World) => unknown): unknown => {
    const world = new World();
    states[state]?.(world);
    return brief(act(world));
  };
  expect([
    after(({ bootstrap, stranger }) => bootstrap.watch(stranger, 'bt_1', 2)),
    after(({ bootstrap, watcher }) => bootstrap.watch(watcher, 'bt_1', 2)),
    after(({ bootstrap, stranger }) => bootstrap.answerable(stranger, 'bt_1')),
    after(({ bootstrap, watcher }) => bootstrap.answerable(watcher, 'bt_1')),
    after(({ bootstrap, stranger }) => bootstrap.announce(stranger, 'bt_1', 2)),
  ]).toEqual([...expected]);
});

describe('a watch', () => {
  test('ends without a trace in either peer', () => {
    const world = new World();
    world.watch();
    const asked = world.ask();
    expect([world.bootstrap.size, world.bootstrap.asked]).toEqual([1, 1]);
    expect([world.watcher.watches?.size, world.target.asks?.size]).toEqual([1, 1]);
    world.bootstrap.end(asked);
    world.bootstrap.end(asked);
    expect([world.bootstrap.size, world.bootstrap.asked]).toEqual([0, 0]);
    expect([world.watcher.watches?.size, world.target.asks?.size]).toEqual([0, 0]);
  });

  test('is renewed by its watcher, which moves it behind the others', () => {
    const { bootstrap, watcher, stranger } = new World();
    bootstrap.watch(watcher, 'bt_1', 0);
    bootstrap.watch(stranger, 'bt_2', 1000);
    bootstrap.watch(watcher, 'bt_1', 2000);
    expect(watcher.watches?.size).toBe(1);
    const over = (now: number): string[] => [...bootstrap.expired(now)].map(({ jti }) => jti);
    expect(over(WATCH_TTL + 999)).toEqual([]);
    expect(over(WATCH_TTL + 1000)).toEqual(['bt_2']);
    expect(bootstrap.stale('bt_1', WATCH_TTL + 1000)).toBeUndefined();
    expect(over(WATCH_TTL + 2000)).toEqual(['bt_2', 'bt_1']);
    expect(bootstrap.stale('bt_1', WATCH_TTL + 2000)?.jti).toBe('bt_1');
  });

  test('is one of a bounded number for each peer; renewing takes no more', () => {
    const { bootstrap, watcher, stranger } = new World();
    expect(['a', 'b', 'c', 'a'].map((jti) => brief(bootstrap.watch(watcher, jti, 0)))).toEqual([
      'ok',
      'ok',
      'relay_capacity',
      'ok',
    ]);
    expect(brief(bootstrap.watch(stranger, 'c', 0))).toBe('ok');
  });
});

describe('burning', () => {
  test('happens on the first announcement, whatever comes after, and lasts 25 hours', () => {
    const world = new World();
    world.watch();
    world.bootstrap.end(world.ask(10));
    world.watch(world.watcher, 'bt_1', BURNT_TTL);
    expect(brief(world.bootstrap.announce(world.target, 'bt_1', 10 + BURNT_TTL - 1))).toBe(
      'token_already_used',
    );
    expect(brief(world.bootstrap.announce(world.target, 'bt_1', 10 + BURNT_TTL))).toBe('ok');
  });

  test('outlasts its 25 hours while the answer is owed', () => {
    const world = new World();
    world.watch();
    const asked = world.ask(1);
    expect(brief(world.bootstrap.announce(world.stranger, 'bt_1', 1 + BURNT_TTL))).toBe(
      'token_already_used',
    );
    world.bootstrap.end(asked);
    expect([world.bootstrap.asked, world.target.asks?.size]).toEqual([0, 0]);
  });

  test('spares a jti that nobody watches, and one that found the list full', () => {
    const world = new World();
    expect(world.bootstrap.announce(world.target, 'bt_1', 0)).toBe('no_watcher');
    expect(world.burnt.size).toBe(0);
    for (const jti of ['x', 'y', 'z']) world.burnt.add(jti, 0);
    world.watch();
    expect(world.bootstrap.announce(world.target, 'bt_1', 1)).toBe('relay_overloaded');
    expect(world.burnt.has('bt_1', 1)).toBe(false);
    expect(brief(world.bootstrap.announce(world.target, 'bt_1', BURNT_TTL))).toBe('ok');
  });
});

describe('the burnt list', () => {
  test('forgets by age, also without a sweep, and counts what it holds', () => {
    const burnt = new BurntList(1000, 100);
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

  test('an id burned again is among the youngest, and hides none that is older', () => {
    const burnt = new BurntList(1000, 100);
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

  test('holds as many as it may and says when it is full', () => {
    const burnt = new BurntList(500, 100);
    for (let i = 0; i < 500; i += 1) {
      expect(burnt.isFull(0)).toBe(false);
      burnt.add(`bt_${i}`, i < 250 ? 0 : 50);
    }
    expect(burnt.isFull(99)).toBe(true);
    expect(burnt.isFull(100)).toBe(false);
    expect(burnt.size).toBe(250);
  });

  test('empties in steps, each of a bounded size', () => {
    const burnt = new BurntList(100_000, 100);
    for (let i = 0; i < 50_000; i += 1) burnt.add(`bt_${i}`, 0);
    const sizes = [100, 100, 100].map((now) => {
      burnt.sweep(now);
      return burnt.size;
    });
    expect(sizes).toEqual([30_000, 10_000, 0]);
  });
});
