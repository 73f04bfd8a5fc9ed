/** The scripts in Redis give the same answers as the model of them that the simulation uses. */
import { expect, spyOn, test } from 'bun:test';
import type { Script } from '../src/cluster/scripts.ts';
import { RedisConnection } from '../src/cluster/redis.ts';
import { RedisUrl } from '../src/cluster/redis-url.ts';
import { redisServer, startRedis, type TestRedis } from './redis.ts';
import { seeded } from './random.ts';
import { ModelRedis } from './simulation.ts';
import { afterThisTest, within } from './support.ts';

/** Every answer that the scripts have. */
const answers = [
  'claimCode: ok',
  'claimCode: otc_in_use',
  'claimCode: rate_limited',
  'findCode: a claim',
  'findCode: otc_not_found',
  'findCode: rate_limited',
  'failCode: counted',
  'failCode: burned',
  'claimWatch: ok',
  'claimWatch: jti_already_watched',
  'claimWatch: rate_limited',
  'burn: a claim',
  'burn: token_already_used',
  'burn: no_watcher',
  'burn: relay_overloaded',
  'burn: rate_limited',
  'publish: 1',
  'publish: 0',
  'hold: 1',
  'hold: 0',
];

async function connect(redis: TestRedis): Promise<RedisConnection> {
  const bus = new RedisConnection(new RedisUrl(redis.url), 'p:', 'a');
  afterThisTest(() => bus.close());
  const ready = Promise.withResolvers<void>();
  bus.onReady = () => ready.resolve();
  await within(ready.promise, 'the connection');
  return bus;
}

test.skipIf(!redisServer)(
  'Redis and its model answer alike',
  async () => {
    const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 30));
    const random = seeded(seed);
    const pick = <T>(from: readonly T[]): T => from[Math.floor(random() * from.length)] as T;
    const redis = await startRedis();
    const bus = await connect(redis);
    const model = new ModelRedis(
      (instance) => instance === 'a',
      (instance) => Number(instance === 'a'),
    );

    // So long that nothing expires meanwhile: the model's time and Redis' are not the same.
    const long = 1_000_000;
    const claims = ['a.1', 'a.2', 'dead.1'];
    const code = (): string => `code:${pick(['1', '2', '3'])}`;
    /** The keys of a client: an IPv4 address has one, and an IPv6 address three, of which neighbours share two. */
    const client = (limit: string): string[] => {
      const who = pick(['x', 'y', 'one', 'two']);
      return (who.length === 1 ? [who] : [who, '/56', '/48']).map((key) => `${limit}:${key}`);
    };
    const codeKeys = (): string[] => {
      const [otc, clients] = [pick(['1', '2', '3']), client('failed-codes')];
      return [`code:${otc}`, `failed-on:${otc}`, ...clients];
    };
    const claimKeys = (): string[] => {
      const keys = codeKeys();
      const listens = keys.slice(2).map((key) => key.replace('failed-codes', 'listens'));
      return [...keys, ...listens];
    };
    const jti = (): string => `jti:${pick(['1', '2'])}`;
    const questions: Record<Script, () => [string[], (string | number)[]]> = {
      claimCode: () => [claimKeys(), [pick(claims), long, 15, 10, 20]],
      findCode: () => [codeKeys(), [15, 10]],
      failCode: () => [codeKeys(), [15, 10]],
      claimWatch: () => [
        [jti(), ...client('watches')],
        [pick(claims), long, 12],
      ],
      burn: () => [
        [jti(), 'burnt', ...client('refused-inits')],
        [`${Math.floor(random() * 40)}`, long, 12, 10],
      ],
      hold: () => [[code()], [pick(claims), long]],
      release: () => [[pick([code(), jti()])], [pick(claims)]],
      publish: () => [[], [pick(['a', 'dead']), 'text']],
      beat: () => [
        ['probe', 'burnt'],
        ['a', 'dead'],
      ],
    };
    const names = Object.keys(questions) as Script[];
    const missing = new Set(answers);
    // Until every kind of answer was seen, which takes a fraction of the most.
    for (let i = 0; i < 5000 || (missing.size > 0 && i < 50_000); i += 1) {
      if (i % 500 === 0) {
        await redis.command('FLUSHALL');
        model.entries.clear();
      }
      const script = pick(names);
      const [keys, values] = questions[script]();
      const answer = await bus.run(script, keys, values);
      const expected = model.run(script, keys, values, 1000 + i, Infinity);
      if (script === 'beat') (expected as unknown[])[0] = (answer as unknown[])[0];
      expect(
        answer,
        `SEED=${seed}, step ${i}: ${script} ${keys.join(' ')} ${values.join(' ')}`,
      ).toEqual(expected);
      const kind = `${script}: ${claims.includes(String(answer)) ? 'a claim' : String(answer)}`;
      missing.delete(kind);
    }
    expect([...missing], `SEED=${seed}`).toEqual([]);
  },
  60_000,
);

test.skipIf(!redisServer)('what comes to Redis too late fails, and changes nothing', async () => {
  const redis = await startRedis();
  const bus = await connect(redis);
  await bus.run('beat', ['probe', 'burnt'], []);
  const lost: string[] = [];
  bus.onLost = (reason) => lost.push(reason);
  const clock = spyOn(performance, 'now').mockReturnValue(performance.now() - 5000);
  const late = [
    bus.run('hold', ['code:1'], ['a.1', 1000]),
    bus.run('publish', [], ['a', 'a frame that must not be lost without a word']),
  ];
  clock.mockRestore();
  for (const { status } of await Promise.allSettled(late)) expect(status).toBe('rejected');
  expect(lost).toEqual(Array(2).fill('LATE it took too long to arrive'));
  expect(await redis.command('KEYS', '*')).toBe('');
});
