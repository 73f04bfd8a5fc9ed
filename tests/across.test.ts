/** What happens between instances when something goes wrong at a certain moment, on the simulation's clock. */
import { describe, expect, test } from 'bun:test';
import { costOf, MAX_WAITING_BYTES, Room } from '../src/cluster/room.ts';
import { type Instance, SimulatedSocket, Simulation } from './simulation.ts';
import type { Frame } from './support.ts';

const OTC = '482916';
const listen = { type: 'listen', otc: OTC };
const connect = { type: 'connect', otc: OTC };
const data = (payload: string) => ({ type: 'data', payload });
const open = { type: 'ack', message: 'session_open' };
const found = { type: 'peer_found' };
const error = (code: string) => ({ type: 'error', code });
const watch = { type: 'bootstrap_watch', jti: 'bt_1' };
const watching = { type: 'bootstrap_watching', jti: 'bt_1' };

class Party extends SimulatedSocket {
  readonly heard: Frame[] = [];
  code: number | undefined;

  constructor(instance: Instance, client: string) {
    super(instance, client);
    this.onFrame = (frame) => this.heard.push(frame);
    this.onClose = (code) => {
      this.code = code;
    };
  }
}

async function instances() {
  const simulation = new Simulation(1, 3);
  const { world, network } = simulation;
  await world.play(1000);
  const [a, b, c] = simulation.instances as [Instance, Instance, Instance];
  return { world, network, a, b, c };
}

/** A target on `a` and a controller on `b`, in one session. */
async function across() {
  const all = await instances();
  const target = new Party(all.a, 'target');
  const controller = new Party(all.b, 'controller');
  target.send(listen);
  await all.world.play(50);
  controller.send(connect);
  await all.world.play(50);
  expect(target.heard.splice(0)).toEqual([open, found]);
  expect(controller.heard.splice(0)).toEqual([found]);
  return { ...all, target, controller };
}

test('a question that is lost is answered within three seconds, and is no failed code', async () => {
  const { world, network, a, b } = await instances();
  new Party(a, 'target').send(listen);
  await world.play(50);
  const controller = new Party(b, 'controller');
  network.vanishing = 1;
  controller.send(connect);
  await world.play(1900);
  expect(controller.heard).toEqual([]);
  await world.play(1100);
  expect(controller.heard.splice(0)).toEqual([error('relay_unavailable')]);
  expect(network.redis.entries.has('amesh:codes-by:controller')).toBe(false);
  controller.send(connect);
  await world.play(50);
  expect(controller.heard).toEqual([found]);
});

test('a code is its owner’s for as long as the pairing lasts', async () => {
  const { world, a, b, c } = await instances();
  const target = new Party(a, 'target');
  target.send(listen);
  await world.play(4000);
  new Party(b, 'controller').send(connect);
  await world.play(3000);
  const other = new Party(c, 'other');
  other.send(listen);
  await world.play(50);
  expect(other.heard).toEqual([error('otc_in_use')]);
  expect(target.heard).toEqual([open, found]);
});

test('whose code another instance has taken meanwhile is told', async () => {
  const { world, network, a } = await instances();
  const target = new Party(a, 'target');
  target.send(listen);
  await world.play(50);
  network.redis.entries.set(`amesh:code:${OTC}`, { value: 'i2.1', times: [], until: Infinity });
  a.cutOff();
  await world.play(1500);
  expect(target.heard).toEqual([open, error('relay_unavailable')]);
  expect(a.sockets.pairing.size).toBe(0);
  target.send(listen);
  await world.play(50);
  expect(target.heard.at(-1)).toEqual(error('otc_in_use'));
});

test('what was sent before the end was known is answered', async () => {
  const { world, target, controller } = await across();
  target.send({ type: 'done' });
  for (const payload of ['1', '2']) controller.send(data(payload));
  await world.play(100);
  expect(controller.heard).toEqual([{ type: 'done' }, error('no_session'), error('no_session')]);
  expect(target.heard).toEqual([]);
});

test('what has outlived its time is out of the way before the sweeper comes', async () => {
  const { world, a } = await instances();
  const first = new Party(a, 'first');
  first.send(listen);
  await world.play(5004);
  const second = new Party(a, 'second');
  second.send(listen);
  await world.play(20);
  expect(first.heard).toEqual([open, error('otc_expired')]);
  expect(second.heard).toEqual([open]);
  second.close();

  const watcher = new Party(a, 'first');
  watcher.send(watch);
  await world.play(300_004);
  const next = new Party(a, 'second');
  next.send(watch);
  await world.play(20);
  expect(watcher.heard).toEqual([watching, { ...error('watch_expired'), jti: 'bt_1' }]);
  expect(next.heard).toEqual([watching]);
});

describe('while a question is under way', () => {
  test('frames wait, up to a backlog', async () => {
    const { world, a } = await instances();
    const within = new Party(a, 'within');
    const beyond = new Party(a, 'beyond');
    within.send(listen);
    beyond.send({ ...listen, otc: '000000' });
    for (let i = 0; i < 16; i += 1) within.send(data('x'.repeat(60_000)));
    for (let i = 0; i < 18; i += 1) beyond.send(data('x'.repeat(60_000)));
    expect([within.code, beyond.code]).toEqual([undefined, 1008]);
    await world.play(50);
    expect(within.heard.slice(0, 2)).toEqual([open, error('peer_not_connected')]);
    expect(a.sockets.cluster?.books.waitingBytes).toBe(0);
  });

  test('what waits behind the frame that ends a connection is not heard', async () => {
    const { world, a } = await instances();
    const party = new Party(a, 'party');
    party.send(watch);
    for (let i = 0; i < 10; i += 1) party.send({ type: 'nonsense' });
    party.send(listen);
    await world.play(100);
    expect(party.code).toBe(1008);
    expect(a.sockets.books).toMatchObject({ connections: 0, sessions: 0, watches: 0, claims: 0 });
  });
});

test('a fault on one side of a link ends that connection alone, and is logged as ours', async () => {
  const { world, a, b, target, controller } = await across();
  const join = a.sockets.pairing.join.bind(a.sockets.pairing);
  a.sockets.pairing.join = () => {
    throw new Error(`with ${OTC} in its message`);
  };
  new Party(a, 'second').send({ ...listen, otc: '000000' });
  await world.play(50);
  const unlucky = new Party(b, 'unlucky');
  unlucky.send({ ...connect, otc: '000000' });
  controller.send(data('in the same breath'));
  await world.play(100);
  a.sockets.pairing.join = join;
  expect(unlucky.code).toBe(1011);
  expect(target.heard).toEqual([data('in the same breath')]);
  const faults = a.log.lines.filter((line) => line.includes('internal error'));
  expect(faults.length).toBe(1);
  expect(faults[0]).not.toContain(OTC);
  target.send(data('and on'));
  await world.play(50);
  expect(controller.heard).toEqual([data('and on')]);
});

test('what no instance says is believed by none, and ends nothing', async () => {
  const { world, network, a, target, controller } = await across();
  const object = { toString: 1, valueOf: 1 };
  for (const forged of [
    [object, 1, 0, []],
    [[object], 1, 0, []],
    ['i9', object, 0, []],
    ['i9', 1, '0', []],
    ['i9', 1, 0, object],
    ['i9', 1, 0, [['owner', 1]]],
    ['i9', 1, 0, [['owner', 1, null]]],
    ['i9', 1, 0, [['edge', object, ['yes']]]],
    ['i9', 1, 0, ['owner']],
    ['i9', 1, 0, [['owner', 1, ['connect', 7, 'x']]]],
    ['i9', 1, 0, [['owner', 1, ['init', 'bt_1', 'x', object]]]],
    object,
    null,
  ]) {
    network.publish('amesh:to:i1', JSON.stringify(forged));
    network.publish('amesh:to:i1', `[${JSON.stringify(forged)}`);
  }
  await world.play(100);
  expect(a.log.lines.filter((line) => line.includes('could not be understood')).length).toBe(26);
  expect(a.sockets.cluster?.books).toMatchObject({ instances: 1, fars: 1 });
  controller.send(data('undisturbed'));
  await world.play(50);
  expect(target.heard).toEqual([data('undisturbed')]);
});

test('an answer that is none of the protocol’s is repeated to nobody', async () => {
  const { world, network, a, b } = await instances();
  const run = network.redis.run.bind(network.redis);
  for (const answer of ['HOSTILE', 'i9.1', 'toString', '']) {
    network.redis.run = (script, ...rest) =>
      script === 'claimCode' || script === 'claimWatch' ? answer : run(script, ...rest);
    const party = new Party(a, 'party');
    party.send(listen);
    await world.play(50);
    expect(party.heard).toEqual([error('relay_unavailable')]);
    network.redis.run = run;
    await world.play(2000);
  }
  new Party(a, 'target').send(listen);
  await world.play(50);
  a.sockets.pairing.join = () => 'HOSTILE' as 'otc_not_found';
  const controller = new Party(b, 'controller');
  controller.send(connect);
  await world.play(50);
  expect(controller.heard).toEqual([error('relay_unavailable')]);
  for (const { log, sockets } of [a, b]) {
    expect(log.lines.join()).not.toContain('HOSTILE');
    expect(Object.values(sockets.stats.refusals)).not.toContain(NaN);
  }
});

test.each(['controller', 'target'] as const)(
  'a %s’s flood across instances ends its own pairings, and no other',
  async (side) => {
    const { world, a, b, target, controller } = await across();
    const pairs: Record<typeof side, Party>[] = [];
    for (const otc of ['000000', '000001', '000002']) {
      const pair = { target: new Party(a, 'one of many'), controller: new Party(b, 'controller') };
      if (side === 'controller') pair.controller = new Party(b, 'flooder');
      else pair.target = new Party(a, 'flooder');
      pair.target.send({ ...listen, otc });
      await world.play(50);
      pair.controller.send({ ...connect, otc });
      await world.play(50);
      pairs.push(pair);
    }
    for (const pair of pairs) {
      for (let i = 0; i < 80; i += 1) pair[side].send(data('x'.repeat(60_000)));
    }
    controller.send(data('in between'));
    const long = 'and back '.repeat(7000);
    target.send(data(long));
    await world.play(200);
    expect(pairs.map((pair) => pair[side].code)).toEqual([undefined, undefined, 4004]);
    const other = side === 'target' ? 'controller' : 'target';
    expect(
      pairs.map((pair) => pair[other].heard.filter(({ type }) => type === 'data').length),
    ).toEqual([80, 80, expect.any(Number)]);
    expect([target.heard, controller.heard]).toEqual([[data('in between')], [data(long)]]);
    controller.send(data('on a line that is cut'));
    b.cutOff();
    await world.play(2000);
    for (const { sockets } of [a, b]) expect(sockets.cluster?.books.waitingBytes).toBe(0);
  },
);

test('the room where frames wait has a share for each client, and an end', () => {
  let now = 0;
  const limits = { maxSessionBytes: 5 * 2 ** 20, maxSessionFrames: 0 };
  const room = new Room(limits, () => now);
  const cost = costOf('x'.repeat(65_470));
  const fill = (client: string): number => {
    let entered = 0;
    while (entered < 2000 && room.enter(client, cost)) entered += 1;
    return entered;
  };
  const share = fill('one');
  expect(share).toBe(80);
  for (let i = 0; i < share; i += 1) room.leave(cost);
  expect([room.used, room.clients, fill('one')]).toEqual([0, 1, 0]);
  now += 1000;
  expect(fill('one')).toBe(1024 / 64);
  let clients = 1;
  while (clients < 100 && fill(`c${clients}`) > 0) clients += 1;
  expect(room.used).toBe(MAX_WAITING_BYTES);
  expect(clients).toBeGreaterThan(10);
  now += 4999;
  room.sweep();
  expect(room.clients).toBeGreaterThan(0);
  now += 1;
  room.sweep();
  expect(room.clients).toBe(0);
});
