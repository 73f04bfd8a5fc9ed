import { describe, expect, test } from 'bun:test';
import { type Paired, Pairing, type Session } from '../src/pairing/pairing.ts';

const TTL = 30_000;

class Peer implements Paired<Peer> {
  session: Session<Peer> | undefined;
}

function create(limits = {}): Pairing<Peer> {
  return new Pairing<Peer>({
    sessionTtlMs: TTL,
    maxSessions: 10,
    maxSessionBytes: 100,
    maxSessionFrames: 1000,
    ...limits,
  });
}

/** A session that waits, or is paired, since `at`. */
function session(
  pairing: Pairing<Peer>,
  otc: string,
  at: number,
  controller?: Peer,
): Session<Peer> {
  const opened = pairing.open(new Peer(), otc, at);
  if (typeof opened === 'string') throw new Error(opened);
  if (controller) pairing.join(controller, otc, at);
  return opened;
}

describe('opening and joining', () => {
  test('a target waits, a controller joins, and both hold the session', () => {
    const pairing = create();
    const [target, controller] = [new Peer(), new Peer()];
    const opened = pairing.open(target, '000001', 5);
    expect(opened).toMatchObject({ otc: '000001', openedAt: 5, stageAt: 5, bytes: 0 });
    expect([pairing.waiting, pairing.paired, pairing.size]).toEqual([1, 0, 1]);
    expect(pairing.join(controller, '000001', 9)).toBe(opened as Session<Peer>);
    expect(opened).toMatchObject({ openedAt: 5, stageAt: 9 });
    expect([pairing.waiting, pairing.paired, pairing.size]).toEqual([0, 1, 1]);
    expect(target.session).toBe(opened as Session<Peer>);
    expect(controller.session).toBe(opened as Session<Peer>);
  });

  test('who may do what on a code, by the state of it', () => {
    const states = {
      free: () => create(),
      waiting: () => {
        const pairing = create();
        session(pairing, '000001', 0);
        return pairing;
      },
      paired: () => {
        const pairing = create();
        session(pairing, '000001', 0, new Peer());
        return pairing;
      },
      ended: () => {
        const pairing = create();
        pairing.end(session(pairing, '000001', 0, new Peer()));
        return pairing;
      },
    };
    const answers = Object.entries(states).map(([state, make]) => {
      const opened = make().open(new Peer(), '000001', 1);
      const joined = make().join(new Peer(), '000001', 1);
      return [
        state,
        typeof opened === 'string' ? opened : 'ok',
        typeof joined === 'string' ? joined : 'ok',
      ];
    });
    expect(answers).toEqual([
      ['free', 'ok', 'otc_not_found'],
      ['waiting', 'otc_in_use', 'ok'],
      ['paired', 'otc_in_use', 'peer_already_connected'],
      ['ended', 'ok', 'otc_not_found'],
    ]);
  });

  test('a peer is in at most one session, and the second attempt harms nothing', () => {
    const pairing = create();
    const { target } = session(pairing, '000001', 0);
    session(pairing, '000002', 0);
    expect(pairing.open(target, '000003', 1)).toBe('already_in_session');
    expect(pairing.join(target, '000002', 1)).toBe('already_in_session');
    expect(pairing.join(target, '000001', 1)).toBe('already_in_session');
    expect(pairing.size).toBe(2);
    expect(target.session?.otc).toBe('000001');
    expect(pairing.join(new Peer(), '000002', 1)).toMatchObject({ otc: '000002' });
  });

  test('the number of sessions is bounded, and an ended one makes room', () => {
    const pairing = create({ maxSessions: 2 });
    const first = session(pairing, '000001', 0, new Peer());
    session(pairing, '000002', 0);
    expect(pairing.open(new Peer(), '000003', 0)).toBe('relay_capacity');
    pairing.end(first);
    expect(pairing.open(new Peer(), '000003', 0)).toMatchObject({ otc: '000003' });
  });
});

describe('carrying', () => {
  test('counts both directions together, up to the limit and no further', () => {
    const pairing = create();
    const controller = new Peer();
    const { target } = session(pairing, '000001', 0, controller);
    expect(pairing.carry(target, 60)).toMatchObject({ bytes: 60 });
    expect(pairing.carry(controller, 41)).toBe('session_data_limit');
    expect(pairing.carry(controller, 40)).toMatchObject({ bytes: 100 });
    expect(pairing.carry(target, 0)).toMatchObject({ bytes: 100 });
    expect(pairing.carry(target, 1)).toBe('session_data_limit');
  });

  test('counts frames too, since an empty one costs no byte', () => {
    const pairing = create({ maxSessionFrames: 2 });
    const controller = new Peer();
    const { target } = session(pairing, '000001', 0, controller);
    expect(pairing.carry(target, 0)).toMatchObject({ frames: 1 });
    expect(pairing.carry(controller, 0)).toMatchObject({ frames: 2 });
    expect(pairing.carry(target, 0)).toBe('session_data_limit');
  });

  test('needs a session, and a controller in it', () => {
    const pairing = create();
    expect(pairing.carry(new Peer(), 1)).toBe('no_session');
    expect(pairing.carry(session(pairing, '000001', 0).target, 1)).toBe('peer_not_connected');
  });
});

describe('ending', () => {
  test('leaves neither peer nor code anything, and not the next session on that code', () => {
    const pairing = create();
    const controller = new Peer();
    const first = session(pairing, '000001', 0, controller);
    pairing.end(first);
    expect([first.target.session, controller.session, pairing.size]).toEqual([
      undefined,
      undefined,
      0,
    ]);
    const second = session(pairing, '000001', 0, new Peer());
    expect(pairing.carry(first.target, 1)).toBe('no_session');
    expect(pairing.carry(controller, 1)).toBe('no_session');
    expect(second.target.session).toBe(second);
    expect(pairing.size).toBe(1);
  });
});

describe('expiry', () => {
  /** [what, age when waiting began, age when paired, is it over?], at a time to live of 30 s. */
  const table: [string, number, number | undefined, boolean][] = [
    ['fresh, waiting', 0, undefined, false],
    ['almost over, waiting', TTL - 1, undefined, false],
    ['just over, waiting', TTL, undefined, true],
    ['long over, waiting', TTL * 100, undefined, true],
    ['joined at once', TTL - 1, TTL - 1, false],
    ['joined late, the clock starts again', TTL + 10_000, TTL - 1, false],
    ['joined, just over', TTL + 10_000, TTL, true],
    ['joined at its last moment', 2 * TTL - 1, TTL, true],
  ];
  test.each(table)('%s', (_what, waitedSince, pairedSince, isOver) => {
    const now = 1_000_000;
    const pairing = create();
    session(pairing, '000001', now - waitedSince);
    if (pairedSince !== undefined) pairing.join(new Peer(), '000001', now - pairedSince);
    expect([...pairing.expired(now)].map(({ otc }) => otc)).toEqual(isOver ? ['000001'] : []);
    expect(pairing.stale('000001', now)?.otc).toBe(isOver ? '000001' : undefined);
    expect(pairing.stale('000002', now)).toBeUndefined();
  });

  test('meets exactly those whose time is up, oldest first of each stage, and looks at no other', () => {
    const pairing = create();
    const ages = { '000001': 50, '000002': 40, '000003': 35, '000004': 20, '000005': 10 };
    for (const [otc, age] of Object.entries(ages)) session(pairing, otc, 100_000 - age * 1000);
    pairing.join(new Peer(), '000001', 100_000 - 31_000);
    pairing.join(new Peer(), '000002', 100_000 - 29_000);
    const met: string[] = [];
    for (const over of pairing.expired(100_000)) {
      met.push(over.otc);
      pairing.end(over);
    }
    expect(met).toEqual(['000003', '000001']);
    expect(pairing.size).toBe(3);
    expect([...pairing.expired(100_000)]).toEqual([]);
  });
});
