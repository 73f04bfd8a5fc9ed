/** Each accepted `listen` shows that nobody else uses the code, so their number is limited. */
import { expect, test } from 'bun:test';
import { isNotForTwo, openClient, startRelay, until } from './support.ts';

const listen = (otc: string) => ({ type: 'listen', otc });
const connect = (otc: string) => ({ type: 'connect', otc });
const open = { type: 'ack', message: 'session_open' };

test('with a limit of sixty, sixty in any 60 s, also if their sessions have ended', async () => {
  if (isNotForTwo('time passes in Redis too')) return;
  const relay = await startRelay({ idleMs: 3_600_000, maxListens: 60 });
  // A finished pairing of a client with itself shows as much as any other `listen`.
  for (let i = 0; i < 20; i += 1) {
    const { target, controller } = await relay.pair(String(i).padStart(6, '0'));
    target.send({ type: 'done' });
    await controller.expect({ type: 'done' });
    target.close();
    controller.close();
  }
  const expiring = await relay.connect();
  expiring.send(listen('100000'));
  await expiring.expect(open);
  relay.pass(30_000);
  const client = await relay.connect();
  for (let i = 0; i < 38; i += 1) {
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
  // Failed attempts are counted elsewhere, and other clients are not affected.
  await client.refused(connect('300000'), 'otc_not_found');
  expect(relay.sockets.books.failedCodes).toBe(1);
  relay.pass(30_000);
  client.send(listen('300000'));
  await client.expect(open);
});

test('a listen that is refused since the relay is full counts too, as it shows that the code is free', async () => {
  const relay = await startRelay({ maxListens: 3, maxSessions: 1 });
  const holder = await relay.connect();
  holder.send(listen('000000'));
  await holder.expect(open);
  for (let i = 1; i < 3; i += 1) await holder.refused(listen(`00000${i}`), 'already_in_session');
  const client = await relay.connect();
  for (let i = 1; i < 3; i += 1) await client.refused(listen(`00000${i}`), 'relay_capacity');
  await client.refused(listen('000003'), 'rate_limited');
});

test('the listens of one client do not count for another', async () => {
  const relay = await startRelay({ trustProxy: '1', maxListens: 1 });
  for (const address of ['203.0.113.1', '203.0.113.2']) {
    const client = await openClient(relay.url, { headers: { 'x-forwarded-for': address } });
    client.send(listen(`00000${address.at(-1)}`));
    await client.expect(open);
    client.send({ type: 'done' });
    await client.refused(listen('999999'), 'rate_limited');
  }
});
