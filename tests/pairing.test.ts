import { describe, expect, test } from 'bun:test';
import type { Session } from '../src/peer.ts';
import { Pairing } from '../src/pairing/pairing.ts';
import { SilentPeer as Peer } from './peer.ts';

const TTL = 30_000;

function create(limits = {}): Pairing {
  return new Pairing({
    sessionTtlMs: TTL,
    maxSessions: 10,
    maxSessionBytes: 100,
    maxSessionFrames: 1000,
    ...limits,
  });
}

/** A session that waits, or is paired, since `at`. */
function session(pairing: Pairing, otc: string, at: number, controller?: Peer): Session {
  const opened = pairing.open(new Peer(), otc, at);
  if (typeof opened === 'string') throw new Error(opened);
  if (controller) pairing.join(controller, opened, at);
  return opened;
}

describe('opening and joining', () => {
  test('a target waits, a controller joins, and both have the session', () => {
    const pairing = create();
    const [target, controller] = [new Peer(), new Peer()];
    const opened = pairing.open(target, '000001', 5) as Session;
    expect(opened).toMatchObject({ otc: '000001', openedAt: 5, bytes: 0 });
    expect([pairing.waiting, pairing.paired, pairing.size]).toEqual([1, 0, 1]);
    expect(pairing.find('000001')).toBe(opened);
    expect(pairing.join(controller, opened, 9)).toBeUndefined();
    expect(opened).toMatchObject({ openedAt: 5, pairedAt: 9, activeAt: 9 });
    expect([pairing.waiting, pairing.paired, pairing.size]).toEqual([0, 1, 1]);
    expect(target.session).toBe(opened);
    expect(controller.session).toBe(opened);
  });

  test('what each peer may do on a code, for each state of the code', () => {
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
        pairing.end(session(pairing, '000001', 0, new Peer()), 0);
        return pairing;
      },
    };
    const answers = Object.entries(states).map(([state, make]) => {
      const opened = make().open(new Peer(), '000001', 1);
      const pairing = make();
      const found = pairing.find('000001');
      const joined = found ? (pairing.join(new Peer(), found, 1) ?? 'ok') : 'not found';
      return [state, typeof opened === 'string' ? opened : 'ok', joined];
    });
    expect(answers).toEqual([
      ['free', 'ok', 'not found'],
      ['waiting', 'otc_in_use', 'ok'],
      ['paired', 'otc_in_use', 'peer_already_connected'],
      ['ended', 'ok', 'not found'],
    ]);
  });

  test('a peer is in at most one session, and a second attempt changes nothing', () => {
    const pairing = create();
    const first = session(pairing, '000001', 0);
    const { target } = first;
    const second = session(pairing, '000002', 0);
    expect(pairing.open(target, '000003', 1)).toBe('already_in_session');
    expect(pairing.join(target, second, 1)).toBe('already_in_session');
    expect(pairing.join(target, first, 1)).toBe('already_in_session');
    expect(pairing.size).toBe(2);
    expect(target.session?.otc).toBe('000001');
    expect(pairing.join(new Peer(), second, 1)).toBeUndefined();
  });

  test('the number of sessions is bounded, and an ended one makes room', () => {
    const pairing = create({ maxSessions: 2 });
    const first = session(pairing, '000001', 0, new Peer());
    session(pairing, '000002', 0);
    expect(pairing.open(new Peer(), '000003', 0)).toBe('relay_capacity');
    pairing.end(first, 0);
    expect(pairing.open(new Peer(), '000003', 0)).toMatchObject({ otc: '000003' });
  });
});

describe('counting frames', () => {
  test('counts the bytes of both directions together, up to the limit', () => {
    const pairing = create();
    const controller = new Peer();
    const { target } = session(pairing, '000001', 0, controller);
    expect(pairing.countFrame(target, 60, 0)).toMatchObject({ bytes: 60 });
    expect(pairing.countFrame(controller, 41, 0)).toBe('session_data_limit');
    expect(pairing.countFrame(controller, 40, 0)).toMatchObject({ bytes: 100 });
    expect(pairing.countFrame(target, 0, 0)).toMatchObject({ bytes: 100 });
    expect(pairing.countFrame(target, 1, 0)).toBe('session_data_limit');
  });

  test('counts frames too, since an empty one has no payload bytes', () => {
    const pairing = create({ maxSessionFrames: 2 });
    const controller = new Peer();
    const { target } = session(pairing, '000001', 0, controller);
    expect(pairing.countFrame(target, 0, 0)).toMatchObject({ frames: 1 });
    expect(pairing.countFrame(controller, 0, 0)).toMatchObject({ frames: 2 });
    expect(pairing.countFrame(target, 0, 0)).toBe('session_data_limit');
  });

  test('needs a session, and a controller in it', () => {
    const pairing = create();
    expect(pairing.countFrame(new Peer(), 1, 0)).toBe('no_session');
    expect(pairing.countFrame(session(pairing, '000001', 0).target, 1, 0)).toBe(
      'peer_not_connected',
    );
  });
});

describe('ending', () => {
  test('clears both peers and the code, and does not affect the next session on that code', () => {
    const pairing = create();
    const controller = new Peer();
    const first = session(pairing, '000001', 0, controller);
    pairing.end(first, 0);
    expect([first.target.session, controller.session, pairing.size]).toEqual([
      undefined,
      undefined,
      0,
    ]);
    const second = session(pairing, '000001', 0, new Peer());
    expect(pairing.countFrame(first.target, 1, 0)).toBe('no_session');
    expect(pairing.countFrame(controller, 1, 0)).toBe('no_session');
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
    const only = session(pairing, '000001', now - waitedSince);
    if (pairedSince !== undefined) pairing.join(new Peer(), only, now - pairedSince);
    expect([...pairing.expired(now)].map(({ otc }) => otc)).toEqual(isOver ? ['000001'] : []);
    expect(pairing.isOver(only, now)).toBe(isOver);
  });

  test('each frame restarts the time of a pairing, up to ten times the time to live', () => {
    const pairing = create({ maxSessionBytes: 1_000_000 });
    const only = session(pairing, '000001', 0, new Peer());
    const ends: number[] = [];
    for (let now = 0; now < 10 * TTL; now += 1000) {
      if (now < 5000 || now > 100_000) pairing.countFrame(only.target, 1, now);
      if ([...pairing.expired(now)].length > 0) ends.push(now);
    }
    // Silent since 4 s, it expires at 34 s. This test does not end it, so it stays expired until the next frame.
    expect([ends[0], ends.at(-1)]).toEqual([34_000, 100_000]);
    expect(pairing.isOver(only, 10 * TTL - 1)).toBe(false);
    pairing.countFrame(only.target, 1, 10 * TTL - 1);
    expect(pairing.isOver(only, 10 * TTL)).toBe(true);
    expect([...pairing.expired(10 * TTL)]).toEqual([only]);
  });

  test('returns exactly the expired sessions, the oldest waiting one first', () => {
    const pairing = create();
    const ages = { '000001': 50, '000002': 40, '000003': 35, '000004': 20, '000005': 10 };
    const sessions = Object.entries(ages).map(([otc, age]) =>
      session(pairing, otc, 100_000 - age * 1000),
    );
    pairing.join(new Peer(), sessions[0] as Session, 100_000 - 31_000);
    pairing.join(new Peer(), sessions[1] as Session, 100_000 - 29_000);
    const met: string[] = [];
    for (const over of pairing.expired(100_000)) {
      met.push(over.otc);
      pairing.end(over, 100_000);
    }
    expect(met).toEqual(['000003', '000001']);
    expect(pairing.size).toBe(3);
    expect([...pairing.expired(100_000)]).toEqual([]);
  });

  test('returns a busy pairing within the second in which it expires', () => {
    const pairing = create({ maxSessionBytes: 1_000_000 });
    const sessions = ['000001', '000002'].map((otc) => session(pairing, otc, 0, new Peer()));
    const metAt: Record<string, number> = {};
    for (let now = 0; now < 120_000; now += 1000) {
      if (now < 45_000) pairing.countFrame((sessions[0] as Session).target, 1, now);
      if (now === 7000) pairing.countFrame((sessions[1] as Session).target, 1, now + 500);
      for (const over of pairing.expired(now)) {
        metAt[over.otc] = now;
        pairing.end(over, now);
      }
    }
    expect(metAt).toEqual({ '000001': 74_000, '000002': 38_000 });
  });
});
