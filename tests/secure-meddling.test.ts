/** What a hostile relay can do to a secure pairing: each attack, and then 100,000 payloads from a seed. Without a relay. */
import { describe, expect, test } from 'bun:test';
import { fromBase64, toBase64, type Bytes } from '../src/client/base64.ts';
import { Records, type SecureChannel } from '../src/client/secure-channel.ts';
import { RelayError } from '../src/client/errors.ts';
import { asController, asTarget } from '../src/client/handshake.ts';
import { agree, commitmentTo, newEphemeral, type Agreement } from '../src/client/keys.ts';
import { type From, rest, TestPipe, twoEnds } from './pipes.ts';
import { seeded } from './random.ts';

const otc = '482916';
const receipt = '730514';
const identity = new Uint8Array();
const utf8 = (text: string): Bytes => new TextEncoder().encode(text);

interface Outcome {
  code: string;
  channel?: SecureChannel;
}

async function outcome(work: Promise<SecureChannel>): Promise<Outcome> {
  try {
    return { code: 'paired', channel: await work };
  } catch (error) {
    if (!(error instanceof RelayError)) throw error;
    return { code: error.code };
  }
}

/** A pairing over two pipes, with a person who types the digits. */
async function pairOver({ target, controller }: Record<From, TestPipe>) {
  const digits = Promise.withResolvers<string>();
  const side = { otc, receipt, identity };
  const [ofTarget, ofController] = await Promise.all([
    outcome(asTarget(target, { ...side, askDigits: () => digits.promise }, rest)),
    outcome(asController(controller, { ...side, showDigits: digits.resolve }, rest)),
  ]);
  return { target: ofTarget, controller: ofController };
}

const flipped = (payload: string, bit: number): string => {
  const changed = fromBase64(payload) as Bytes;
  const at = (bit >> 3) % changed.length;
  changed[at] = (changed[at] as number) ^ (1 << (bit & 7));
  return toBase64(changed);
};

/** The payloads of a pairing in their order, each with its sender. */
const steps: [string, From, number][] = [
  ['commitment', 'target', 0],
  ['answer', 'controller', 0],
  ['reveal', 'target', 1],
  ['ready', 'controller', 1],
  ['verdict', 'target', 2],
  ['accept', 'controller', 2],
];

/** What can arrive in place of a payload. `before` are the earlier payloads of the same side. */
const tricks: [string, (payload: string, before: string[]) => string[]][] = [
  ['with a bit flipped in front', (payload) => [flipped(payload, 40)]],
  ['with its last bit flipped', (payload) => [flipped(payload, 8 * 500_000 - 8)]],
  ['cut short', (payload) => [toBase64((fromBase64(payload) as Bytes).slice(0, -1))]],
  ['as nothing', () => ['']],
  ['as text of another protocol', () => ['sas_confirmed']],
  ['behind what came before it', (payload, before) => [...before.slice(-1), payload]],
];

describe('a pairing ends the same on both sides', () => {
  test('without an attack: paired', async () => {
    const { target, controller } = await pairOver(twoEnds());
    expect([target.code, controller.code]).toEqual(['paired', 'paired']);
  });

  for (const [step, side, index] of steps) {
    test.each(tricks)(`when the ${step} arrives %s`, async (_how, trick) => {
      const before: string[] = [];
      let isChanged = false;
      const ends = twoEnds((from, payload, count) => {
        if (from !== side) return [payload];
        if (count !== index) {
          before.push(payload);
          return [payload];
        }
        const arrives = trick(payload, before);
        isChanged = !Bun.deepEquals(arrives, [payload]);
        return arrives;
      });
      const { target, controller } = await pairOver(ends);
      const both = [target.code, controller.code];
      if (!isChanged) expect(both).toEqual(['paired', 'paired']);
      // If the last payload is changed, the controller has paired. The target knows that this is possible.
      else if (step === 'accept') expect(both).toEqual(['unconfirmed', 'paired']);
      else expect(both).not.toContain('paired');
    });
  }

  test.each(steps)('when the connection breaks instead of the %s', async (step, side, index) => {
    const ends = twoEnds((from, payload, count) => {
      if (from !== side || count !== index) return [payload];
      for (const end of Object.values(ends)) end.end('peer_disconnected');
      return [];
    });
    const { target, controller } = await pairOver(ends);
    const both = [target.code, controller.code];
    if (step === 'accept') expect(both).toEqual(['unconfirmed', 'paired']);
    else expect(both).not.toContain('paired');
  });

  test('when each side receives only its own payloads', async () => {
    const ends = twoEnds(() => []);
    for (const end of Object.values(ends)) end.onSent = (payload) => end.arrive(payload);
    const { target, controller } = await pairOver(ends);
    // The controller sends nothing before it has received a payload of the target.
    expect([target.code, controller.code]).toEqual(['not_secure', 'peer_disconnected']);
  });

  test('when the relay connects two sides with different codes', async () => {
    const ends = twoEnds();
    const side = { receipt, identity };
    const [target, controller] = await Promise.all([
      outcome(asTarget(ends.target, { ...side, otc, askDigits: () => '000000' }, rest)),
      outcome(asController(ends.controller, { ...side, otc: '000000', showDigits() {} }, rest)),
    ]);
    expect([target.code, controller.code]).toEqual(['peer_disconnected', 'not_authentic']);
  });
});

test('a relay that acts as the target cannot confirm the digits to the controller', async () => {
  const [relayEnd, victim] = [new TestPipe(), new TestPipe()];
  victim.onSent = (payload) => relayEnd.arrive(payload);
  victim.onClosed = () => relayEnd.end('peer_disconnected');
  relayEnd.onSent = (payload) => victim.arrive(payload);
  // The relay knows the digits, but not the second half of the code.
  const side = { otc, identity };
  const shown = Promise.withResolvers<string>();
  const [relay, controller] = await Promise.all([
    outcome(
      asTarget(relayEnd, { ...side, receipt: '000000', askDigits: () => shown.promise }, rest),
    ),
    outcome(asController(victim, { ...side, receipt, showDigits: shown.resolve }, rest)),
  ]);
  expect([relay.code, controller.code]).toEqual(['code_mismatch', 'code_mismatch']);
});

describe('a channel ends with an error', () => {
  /** Two paired devices, and what the relay does to the messages of the controller. */
  async function talking(meddle: (payloads: string[]) => string[]) {
    const held: string[] = [];
    const ends = twoEnds((from, payload, count) => {
      if (from === 'target' || count < 3) return [payload];
      held.push(payload);
      return [];
    });
    const { target, controller } = await pairOver(ends);
    if (!target.channel || !controller.channel) throw new Error('not paired');
    for (const text of ['1', '2', '3']) await controller.channel.send(text);
    for (const payload of meddle(held)) ends.target.arrive(payload);
    return { target: target.channel, controller: controller.channel, ends };
  }

  async function read(channel: SecureChannel) {
    const got: unknown[] = [];
    try {
      for await (const message of channel) got.push(message);
      return [...got, 'done'];
    } catch (error) {
      return [...got, (error as RelayError).code];
    }
  }

  test.each<[string, (payloads: string[]) => string[], string[]]>([
    ['is dropped', ([a = '', , c = '']) => [a, c], ['1', 'not_authentic']],
    ['is repeated', ([a = '', b = '']) => [a, a, b], ['1', 'not_authentic']],
    ['comes too early', ([a = '', b = '', c = '']) => [a, c, b], ['1', 'not_authentic']],
    ['is changed', ([a = '', b = '']) => [a, flipped(b, 3)], ['1', 'not_authentic']],
    ['is no base64', ([a = '']) => [a, '!'], ['1', 'not_authentic']],
    ['is empty', ([a = '']) => [a, ''], ['1', 'not_authentic']],
  ])('when a message %s', async (_what, meddle, expected) => {
    const { target } = await talking(meddle);
    expect(await read(target)).toEqual(expected);
    expect(await target.send('x').catch((error: RelayError) => error.code)).toBe('not_authentic');
  });

  test('when the relay sends done, and the other side did not', async () => {
    const { target, ends } = await talking(([a = '']) => [a]);
    ends.target.end('peer_done');
    expect(await read(target)).toEqual(['1', 'not_authentic']);
  });

  test('when the peer itself sends what is not in the protocol', async () => {
    for (const [kind, body] of [
      [1, ''],
      [2, 'x'],
      [99, ''],
      [17, '\x80'],
      [18, '{'],
    ] as const) {
      const { a, b } = await recordsOfTwo();
      void a.send(
        kind,
        Uint8Array.from(body, (char) => char.charCodeAt(0)),
      );
      const { SecureChannel: Channel } = await import('../src/client/secure-channel.ts');
      expect(await read(new Channel(b, undefined))).toEqual(['unexpected_frame']);
    }
  });
});

test('a message that cannot be sent is refused, and the channel still works', async () => {
  const { target, controller } = await pairOver(twoEnds());
  const circle: unknown[] = [];
  circle.push(circle);
  for (const wrong of [undefined, () => {}, 1n, circle, '\uD800', 'x'.repeat(49_001)]) {
    const refused = target.channel?.send(wrong).catch((error: RelayError) => error.code);
    expect(await refused).toBe('invalid_argument');
  }
  await target.channel?.send('still here');
  expect(await controller.channel?.receive()).toBe('still here');
});

/** The keys of a finished handshake. */
async function agreements(): Promise<Record<From, Agreement>> {
  const [t, c] = [await newEphemeral(), await newEphemeral()];
  const nonce = new Uint8Array(32);
  const commitment = await commitmentTo(otc, t.publicKey, nonce);
  const said = { otc, commitment, controllerKey: c.publicKey, targetKey: t.publicKey, nonce };
  return {
    target: await agree('target', t.privateKey, said),
    controller: await agree('controller', c.privateKey, said),
  };
}

async function recordsOfTwo() {
  const keys = await agreements();
  const ends = twoEnds();
  return {
    a: new Records(ends.target, keys.target),
    b: new Records(ends.controller, keys.controller),
  };
}

test('100,000 payloads from a seed: only RelayErrors, and nothing hangs', async () => {
  const random = seeded(20_240);
  const below = (end: number): number => Math.floor(random() * end);
  const pick = <T>(choices: T[]): T => choices[below(choices.length)] as T;
  let payloads = 0;
  const bytes = (length: number): Bytes => Uint8Array.from({ length }, () => below(256));
  const heads = [1, 2, 3].map((kind) => [...utf8('ams1'), kind]);
  const point = (await newEphemeral()).publicKey;
  const shapes: (() => string)[] = [
    () => String.fromCharCode(...Array.from({ length: below(40) }, () => below(0x300))),
    () => toBase64(bytes(below(200))),
    () => toBase64(Uint8Array.from([...pick(heads), ...bytes(pick([0, 31, 32, 33, 65, 97, 98]))])),
    () => toBase64(Uint8Array.from([...pick(heads), ...point, ...bytes(pick([0, 32]))])),
    () => '='.repeat(below(5)),
  ];
  const codes = new Map<string, number>();
  const count = ({ code }: Outcome): number => codes.set(code, (codes.get(code) ?? 0) + 1).size;
  /** Sends random payloads to one side, some of them in place of the right ones, until it has ended. */
  const attack = async (role: From): Promise<void> => {
    const ends = twoEnds((from, payload) => {
      if (from === role || below(3) > 0) return [payload];
      payloads += 1;
      const junk = below(3) ? pick(shapes)() : flipped(payload, below(10_000));
      return below(2) ? [junk, payload] : [junk];
    });
    const digits = Promise.withResolvers<string>();
    const side = { otc, receipt, identity };
    const askDigits = () => (below(2) ? digits.promise : pick(['', '000000', 'x', undefined]));
    const both = await Promise.all([
      outcome(asTarget(ends.target, { ...side, askDigits }, rest)),
      outcome(asController(ends.controller, { ...side, showDigits: digits.resolve }, rest)),
    ]);
    for (const it of both) count(it);
    if (both[0].channel) expect(both[1].code).toBe('paired');
  };
  for (let i = 0; i < 2000; i += 1) await attack(pick(['target', 'controller']));
  // Most payloads fail at the first check, so most go to a side that waits for its first one, or that has keys.
  const side = { otc, receipt, identity, showDigits() {} };
  const keys = await agreements();
  while (payloads < 100_000) {
    const pipe = new TestPipe();
    const [first, ...more] = Array.from({ length: 1 + below(4) }, () => pick(shapes)());
    for (const payload of [first as string, ...more]) pipe.arrive(payload);
    payloads += 1 + more.length;
    pipe.end('peer_disconnected');
    if (below(4)) {
      const { code } = await outcome(asController(pipe, side, rest));
      expect(code).not.toBe('paired');
      count({ code });
    } else {
      const records = new Records(pipe, keys.target);
      const error = await records.next(rest()).catch((reason: unknown) => reason);
      expect(error).toBeInstanceOf(RelayError);
      count(error as RelayError);
    }
  }
  // Each kind of end has happened.
  expect([...codes.keys()].toSorted()).toEqual(
    expect.arrayContaining([
      'cancelled',
      'digits_malformed',
      'digits_mismatch',
      'not_authentic',
      'not_secure',
      'paired',
      'peer_disconnected',
      'unconfirmed',
    ]),
  );
});

test('a peer with keys may seal any record: only RelayErrors, and nothing hangs', async () => {
  const random = seeded(77);
  const below = (end: number): number => Math.floor(random() * end);
  const bytes = (length: number): Bytes => Uint8Array.from({ length }, () => below(256));
  const body = (): Bytes =>
    below(2)
      ? bytes(below(30))
      : utf8(['{}', '"', '[[', receipt, '\u{10FFFF}'][below(5)] as string);
  const codes = new Set<string>();
  for (let round = 0; round < 1500; round += 1) {
    const [own, peer] = [await newEphemeral(), await newEphemeral()];
    const role: From = below(2) ? 'target' : 'controller';
    const ends = twoEnds();
    const pipe = ends[role === 'target' ? 'controller' : 'target'];
    const side = { otc, receipt, identity, ephemeral: own };
    const working =
      role === 'target'
        ? asTarget(ends.target, { ...side, askDigits: () => new Promise(() => {}) }, rest)
        : asController(ends.controller, { ...side, showDigits() {} }, rest);
    const settled = outcome(working);
    // The hostile peer sends correct plain messages, so that it has keys.
    const nonce = bytes(32);
    const say = (kind: number, ...parts: Bytes[]) =>
      pipe.send(Uint8Array.from([...utf8('ams1'), kind, ...parts.flatMap((part) => [...part])]));
    const hear = async () => (await pipe.receiveBytes(rest())).slice(5);
    let said;
    if (role === 'target') {
      const commitment = await hear();
      say(2, peer.publicKey);
      const revealed = await hear();
      const parts = { targetKey: revealed.slice(0, 65), nonce: revealed.slice(65) };
      said = { otc, commitment, controllerKey: peer.publicKey, ...parts };
    } else {
      const commitment = await commitmentTo(otc, peer.publicKey, nonce);
      say(1, commitment);
      const controllerKey = await hear();
      say(3, peer.publicKey, nonce);
      said = { otc, commitment, controllerKey, targetKey: peer.publicKey, nonce };
    }
    const keys = await agree(role === 'target' ? 'controller' : 'target', peer.privateKey, said);
    const records = new Records(pipe, keys);
    for (let i = 0; i < 1 + below(5); i += 1) {
      const isVerdict = role === 'controller' && below(4) === 0;
      if (isVerdict) void records.send(2, utf8(receipt)).catch(() => {});
      else void records.send(below(8) ? below(20) : below(256), body()).catch(() => {});
    }
    await records.close();
    const { code, channel } = await settled;
    codes.add(code);
    if (!channel) continue;
    // Afterwards, only its sealed records or the end arrive.
    try {
      for await (const message of channel) expect(message).toBeDefined();
    } catch (error) {
      expect(error).toBeInstanceOf(RelayError);
      codes.add((error as RelayError).code);
    }
  }
  for (const code of ['paired', 'unexpected_frame', 'code_mismatch', 'peer_disconnected']) {
    expect([...codes]).toContain(code);
  }
}, 30_000);
