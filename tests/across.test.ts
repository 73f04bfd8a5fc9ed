/** What happens between instances when something goes wrong at a certain moment, on the simulation's clock. */
import { describe, expect, test } from 'bun:test';
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

test('an owner that hangs is waited for no longer than three seconds, and that is no failed code', async () => {
  const { world, network, a, b } = await instances();
  new Party(a, 'target').send(listen);
  await world.play(50);
  const controller = new Party(b, 'controller');
  const inbox = network.inboxes.get(a.id)?.onMessage as (text: string) => void;
  const redis = network.inboxes.get(a.id) as { onMessage: (text: string) => void };
  redis.onMessage = () => {};
  controller.send(connect);
  await world.play(1500);
  expect(controller.heard).toEqual([]);
  await world.play(1500);
  expect(controller.heard.splice(0)).toEqual([error('relay_unavailable')]);
  expect(network.redis.entries.has('failed-codes:controller')).toBe(false);
  redis.onMessage = inbox;
  controller.send(connect);
  await world.play(50);
  expect(controller.heard).toEqual([found]);
});

test('an owner that hangs later on does not keep a controller, or a target that announced itself, for ever', async () => {
  const { world, network, a, b, controller } = await across();
  const watcher = new Party(a, 'watcher');
  watcher.send(watch);
  await world.play(50);
  const machine = new Party(b, 'machine');
  machine.send({ type: 'bootstrap_init', jti: 'bt_1', token: 't', targetPubKey: 'k' });
  await world.play(50);
  // It still listens, and neither reads nor sweeps.
  (network.inboxes.get(a.id) as { onMessage: unknown }).onMessage = () => {};
  a.sockets.sweep = () => false;
  await world.play(4000);
  controller.send(data('which starts the clock again'));
  await world.play(9500);
  expect(controller.heard).toEqual([]);
  await world.play(11_000);
  expect(controller.heard).toEqual([error('relay_unavailable')]);
  expect(machine.heard).toEqual([]);
  await world.play(310_000);
  expect(machine.heard).toEqual([
    { type: 'bootstrap_reject', jti: 'bt_1', error: 'relay_unavailable' },
  ]);
  expect(b.sockets.books.tunnels).toBe(0);
});

test('an answer that comes after its asker gave up leaves nobody alone in a session', async () => {
  const { world, network, a, b } = await instances();
  const target = new Party(a, 'target');
  target.send(listen);
  await world.play(50);
  const redis = network.inboxes.get(a.id) as { onMessage: (text: string) => void };
  const inbox = redis.onMessage;
  const late: string[] = [];
  redis.onMessage = (text) => void late.push(text);
  const controller = new Party(b, 'controller');
  controller.send(connect);
  await world.play(3000);
  expect(controller.heard).toEqual([error('relay_unavailable')]);
  redis.onMessage = inbox;
  for (const text of late.slice(0, 1)) inbox(text);
  await world.play(100);
  expect(target.heard).toEqual([open, found, error('peer_disconnected')]);
  expect(a.sockets.pairing.size).toBe(0);
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
  network.redis.entries.set(`code:${OTC}`, {
    value: 'i2.1',
    times: [],
    members: new Map(),
    until: Infinity,
  });
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
  a.sockets.sweep = () => false;
  const first = new Party(a, 'first');
  first.send(listen);
  await world.play(5010);
  const second = new Party(a, 'second');
  second.send(listen);
  await world.play(20);
  expect(first.heard).toEqual([open, error('otc_expired')]);
  expect(second.heard).toEqual([open]);
  second.close();

  const watcher = new Party(a, 'first');
  watcher.send(watch);
  await world.play(300_010);
  const next = new Party(a, 'second');
  next.send(watch);
  await world.play(20);
  expect(watcher.heard).toEqual([watching, { ...error('watch_expired'), jti: 'bt_1' }]);
  expect(next.heard).toEqual([watching]);
});

test('a watch that is renewed when its time is up can be announced to from everywhere', async () => {
  const { world, a, b } = await instances();
  const watcher = new Party(a, 'watcher');
  watcher.send(watch);
  a.sockets.sweep = () => false;
  await world.play(300_010);
  watcher.send(watch);
  await world.play(50);
  expect(watcher.heard).toEqual([watching, { ...error('watch_expired'), jti: 'bt_1' }, watching]);
  const init = { type: 'bootstrap_init', jti: 'bt_1', token: 't', targetPubKey: 'k' };
  new Party(b, 'machine').send(init);
  await world.play(50);
  expect(watcher.heard.at(-1)).toEqual(init);
});

describe('while a question is under way', () => {
  test('frames wait, up to four of the longest', async () => {
    const { world, a } = await instances();
    const within = new Party(a, 'within');
    const beyond = new Party(a, 'beyond');
    within.send(listen);
    beyond.send({ ...listen, otc: '000000' });
    for (let i = 0; i < 4; i += 1) within.send(data('x'.repeat(60_000)));
    for (let i = 0; i < 5; i += 1) beyond.send(data('x'.repeat(60_000)));
    expect([within.code, beyond.code]).toEqual([undefined, 1008]);
    await world.play(50);
    expect(within.heard.slice(0, 2)).toEqual([open, error('peer_not_connected')]);
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
  const forgeries = [
    [object, []],
    [[object], []],
    ['i9', object],
    ['i9', 'over'],
    ['i9', ['over']],
    ['i9', [['over', 'i9.1', '']]],
    ['i9', [['open', 'i9.1']]],
    ['i9', [['open', 'i9.1', '', 'i1.1', object]]],
    ['i9', [['open', 'i9.1', '', 7, 'x']]],
    ['i9', [['frame', 'i9.1', null, 1]]],
    ['i9', [['frame', object, 'x', 1]]],
    ['i9', [['frame', 'i9.1', 'x', 1.5]]],
    ['i9', [['toString', 'i9.1', 'x', 1]]],
    object,
    null,
  ];
  for (const forged of forgeries) {
    network.publish('i1', JSON.stringify(forged));
    network.publish('i1', `[${JSON.stringify(forged)}`);
  }
  await world.play(100);
  expect(a.log.lines.filter((line) => line.includes('cannot read')).length).toBe(1);
  // What is well-formed, and cannot be: another instance's link, one that is there already, no reason of the protocol's.
  for (const forged of [
    ['i9', [['end', 'i2.1', '', 0]]],
    ['i2', [['open', 'i2.1', '', 'i1.1', 'x']]],
    ['i2', [['close', 'i2.1', 'toString', 0]]],
    ['i9', [['open', 'i9.1', '', 'i1.7', 'x']]],
    ['i9', [['open', 'i9.1', 'x', 'i1.1', 'x']]],
    ['i9', [['over', '', '', 0]]],
  ]) {
    network.publish('i1', JSON.stringify(forged));
  }
  await world.play(100);
  expect(a.sockets.cluster?.books).toMatchObject({ guests: 1, tunnels: 0 });
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
  (network.inboxes.get(a.id) as { onMessage: unknown }).onMessage = () => {};
  const controller = new Party(b, 'controller');
  controller.send(connect);
  await world.play(20);
  network.publish(b.id, JSON.stringify([a.id, [['end', 'i2.1', 'HOSTILE', 0]]]));
  await world.play(50);
  expect(controller.heard).toEqual([error('relay_unavailable')]);
  for (const { log, sockets } of [a, b]) {
    expect(log.lines.join()).not.toContain('HOSTILE');
    expect(Object.values(sockets.stats.refusals)).not.toContain(NaN);
  }
});

test('a flood across instances ends the flooder’s own session, and no other', async () => {
  const { world, a, b, target, controller } = await across();
  const flooded = new Party(a, 'flooded');
  const flooder = new Party(b, 'flooder');
  flooded.send({ ...listen, otc: '000000' });
  await world.play(50);
  flooder.send({ ...connect, otc: '000000' });
  await world.play(50);
  for (let i = 0; i < 100; i += 1) flooder.send(data('x'.repeat(60_000)));
  controller.send(data('in between'));
  const long = 'and back '.repeat(7000);
  target.send(data(long));
  await world.play(200);
  expect([flooded.code, flooder.code]).toEqual([4003, 4003]);
  expect(flooder.heard).toEqual([found, error('session_data_limit')]);
  expect([target.heard, controller.heard]).toEqual([[data('in between')], [data(long)]]);
  for (const { sockets } of [a, b]) expect(sockets.cluster?.books.waitingBytes).toBe(0);
});

test('what waits for Redis is bounded: beyond it a pairing ends with 4004', async () => {
  const { world, network, a, b } = await instances();
  const pairs: [Party, Party][] = [];
  for (let i = 0; i < 20; i += 1) {
    const otc = String(i).padStart(6, '0');
    const pair: [Party, Party] = [new Party(a, `target ${i}`), new Party(b, `controller ${i}`)];
    pair[0].send({ ...listen, otc });
    await world.play(20);
    pair[1].send({ ...connect, otc });
    await world.play(20);
    pairs.push(pair);
  }
  network.stalledUntil = world.now + 500;
  for (const [, controller] of pairs) {
    for (let i = 0; i < 80; i += 1) controller.send(data('x'.repeat(60_000)));
  }
  await world.play(1000);
  const codes = pairs.map(([, controller]) => controller.code);
  expect(codes.filter((code) => code === 4004).length).toBeGreaterThan(0);
  expect(codes.filter((code) => code === undefined).length).toBeGreaterThan(0);
  // Both sides of each end alike.
  expect(pairs.map(([target]) => target.code)).toEqual(codes);
  expect(b.sockets.cluster?.books.waitingBytes).toBe(0);
});

test('what waits in a socket for Redis is bounded, also while it answers, and empty frames count', async () => {
  const { world, a } = await instances();
  const [empty, long] = [new Party(a, 'empty'), new Party(a, 'long')];
  for (const party of [empty, long]) party.send(connect);
  for (let i = 0; i < 5000; i += 1) void a.handlers.message?.(empty as never, '');
  for (let i = 0; i < 4; i += 1) long.send(data('x'.repeat(60_000)));
  await world.play(50);
  expect([empty.code, long.code]).toEqual([1008, undefined]);
  // Each answer makes room for one frame, and for no more.
  long.heard.length = 0;
  for (let i = 0; i < 4; i += 1) long.send(connect);
  for (let i = 0; i < 4; i += 1) long.send(data('x'.repeat(60_000)));
  while (long.heard.length === 0) await world.play(1);
  expect(long.data.queue).toBeDefined();
  long.send(data('x'.repeat(60_000)));
  expect(long.code).toBe(1008);
});

test('a controller and the owner’s target leave in one breath, and hear of it as on one instance', async () => {
  const { world, a, target, controller } = await across();
  controller.send({ type: 'done' });
  controller.send(listen);
  await world.play(100);
  expect(target.heard).toEqual([{ type: 'done' }]);
  expect(controller.heard).toEqual([open]);
  expect(a.sockets.pairing.size).toBe(0);
});
