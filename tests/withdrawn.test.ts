/** Taking codes and giving them back: a limit of each instance, so not among the tests that run over two. */
import { describe, test } from 'bun:test';
import { startRelay, until } from './support.ts';

const listen = (otc: string) => ({ type: 'listen', otc });
const connect = (otc: string) => ({ type: 'connect', otc });
const open = { type: 'ack', message: 'session_open' };

describe('a listen that is taken back', () => {
  test('as many as it is set to in any 60 s, by done or by leaving; pairings, expiry and connect are not touched', async () => {
    const relay = await startRelay({ idleMs: 3_600_000, maxWithdrawnListens: 60 });
    for (let i = 0; i < 100; i += 1) (await relay.pair()).target.send({ type: 'done' });
    const expiring = await relay.connect();
    expiring.send(listen('000000'));
    await expiring.expect(open);
    relay.pass(30_000);
    const client = await relay.connect();
    for (let i = 0; i < 59; i += 1) {
      client.send(listen(`1000${i + 10}`));
      await client.expect(open);
      client.send({ type: 'done' });
    }
    const leaver = await relay.connect();
    leaver.send(listen('200000'));
    await leaver.expect(open);
    leaver.close();
    await until(() => relay.sockets.pairing.size === 0, 'the leaver is gone');
    await client.refused(listen('300000'), 'rate_limited');
    await client.refused(connect('300000'), 'otc_not_found');
    relay.pass(60_000);
    client.send(listen('300000'));
    await client.expect(open);
  });
});
