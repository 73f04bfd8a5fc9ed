/** The scripts in Redis, and the model of them that the simulation plays with: the same answers to the same questions. */
import { expect, test } from 'bun:test';
import type { Script } from '../src/cluster/scripts.ts';
import { RedisBus } from '../src/cluster/redis.ts';
import { RedisUrl } from '../src/cluster/redis-url.ts';
import { redisServer, startRedis } from './redis.ts';
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
  'fail: counted',
  'fail: burned',
  'claimWatch: ok',
  'claimWatch: jti_already_watched',
  'claimWatch: rate_limited',
  'init: a claim',
  'init: token_already_used',
  'init: no_watcher',
  'init: relay_overloaded',
  'init: rate_limited',
  'hold: 1',
  'hold: 0',
];

test.skipIf(!redisServer)(
  'Redis and its model answer alike',
  async () => {
    const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 30));
    const random = seeded(seed);
    const pick = <T>(from: readonly T[]): T => from[Math.floor(random() * from.length)] as T;
    const redis = await startRedis();
    const bus = new RedisBus(RedisUrl.parse(redis.url) as RedisUrl, 'p:', 'p:to:me');
    afterThisTest(() => bus.close());
    const ready = Promise.withResolvers<void>();
    bus.onReady = () => ready.resolve();
    await within(ready.promise, 'the connections');
    const model = new ModelRedis('p:');

    // So long that nothing expires meanwhile: the model's time and Redis' are not the same.
    const long = 1_000_000;
    const owners = ['a', 'b', 'dead'];
    const claims = owners.flatMap((owner) => [`${owner}.1`, `${owner}.2`]);
    const code = (): string => `p:code:${pick(['1', '2', '3'])}`;
    const client = (): string => `p:codes-by:${pick(['x', 'y', 'z'])}`;
    const tries = (): string => `p:tries:${pick(['1', '2', '3'])}`;
    const jti = (): string => `p:jti:${pick(['1', '2'])}`;
    const questions: Record<Script, () => [string[], (string | number)[]]> = {
      claimCode: () => [
        [client(), tries(), code(), `p:listens-by:${pick(['x', 'y', 'z'])}`],
        [pick(claims), long, 15, 10, 20],
      ],
      findCode: () => [
        [client(), tries(), code()],
        [15, 10],
      ],
      fail: () => [
        [client(), tries()],
        [15, 10],
      ],
      claimWatch: () => [
        [`p:watches-by:${pick(['x', 'y', 'z'])}`, jti()],
        [pick(claims), long, 12, pick(['', ...claims])],
      ],
      init: () => [
        [`p:inits-by:${pick(['x', 'y', 'z'])}`, `p:burnt:${Math.floor(random() * 40)}`, jti()],
        [pick(owners), long, 12, Number(random() < 0.2)],
      ],
      hold: () => [[code()], [pick(claims), long]],
      release: () => [[pick([code(), jti()])], [pick(claims)]],
      beat: () => [[`p:alive:${pick(['a', 'b'])}`], [long, 'p:to:me', 1, ...owners]],
      resign: () => [[`p:alive:${pick(owners)}`], []],
    };
    const names = Object.keys(questions) as Script[];
    const missing = new Set(answers);
    // Until every kind of answer was seen, which takes a fraction of the most.
    for (let i = 0; i < 5000 || (missing.size > 0 && i < 50_000); i += 1) {
      if (i % 500 === 0) {
        await redis.command('FLUSHALL');
        model.entries.clear();
      }
      const script =
        random() < 0.1 ? 'beat' : pick(names.filter((name) => name !== 'resign' || random() < 0.3));
      const [keys, values] = questions[script]();
      const answer = await bus.run(script, keys, values);
      const expected = model.run(script, keys, values, 1000 + i, Infinity);
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
