/** Secure pairing, its channel and the bootstrap, through a real relay and through one that meddles. */
import { expect, test } from 'bun:test';
import {
  bootstrapAsController,
  bootstrapAsTarget,
  createBootstrapToken,
  pairAsController,
  pairAsTarget,
  type ControllerOptions,
  RelayError,
  type RelayErrorCode,
  type SecureChannel,
  type TargetOptions,
} from '../src/client/secure.ts';
import { startRelay, within } from './support.ts';

type Outcome = RelayErrorCode | 'paired';

interface Attempt {
  target: Promise<SecureChannel>;
  controller: Promise<SecureChannel>;
}

/** A person at both devices: carries the code one way and the digits the other, as told. */
function meet(
  url: string,
  {
    typeCode = (code) => code,
    typeDigits = (digits) => digits,
    target = {},
    controller = {},
  }: {
    typeCode?: (code: string) => string;
    typeDigits?: (digits: string, signal: AbortSignal) => ReturnType<TargetOptions['askDigits']>;
    target?: Partial<TargetOptions>;
    controller?: Partial<ControllerOptions>;
  } = {},
): Attempt {
  const code = Promise.withResolvers<string>();
  const digits = Promise.withResolvers<string>();
  const attempt = {
    target: pairAsTarget(url, {
      showCode: code.resolve,
      askDigits: async (signal) => typeDigits(await digits.promise, signal),
      ...target,
    }),
    controller: code.promise.then((shown) =>
      pairAsController(url, typeCode(shown), { showDigits: digits.resolve, ...controller }),
    ),
  };
  for (const side of Object.values(attempt)) side.catch(() => {});
  return attempt;
}

async function paired(url: string, how?: Parameters<typeof meet>[1]) {
  const { target, controller } = meet(url, how);
  const [ofTarget, ofController] = await within(Promise.all([target, controller]), 'the pairing');
  return { target: ofTarget, controller: ofController };
}

async function codeOf(work: Promise<unknown>): Promise<Outcome> {
  try {
    await within(work, 'an outcome');
    return 'paired';
  } catch (error) {
    if (error instanceof RelayError) return error.code;
    throw error;
  }
}

const outcomes = ({ target, controller }: Attempt) =>
  Promise.all([codeOf(target), codeOf(controller)]);

test('two devices pair, know each other, and talk', async () => {
  const { url } = await startRelay();
  const server = { name: 'server', publicKey: 'MFkw' };
  const { target, controller } = await paired(url, {
    target: { identity: server },
    controller: { identity: 'laptop' },
  });
  expect(controller.peerIdentity).toEqual(server);
  expect(target.peerIdentity).toBe('laptop');
  const messages = [
    'text',
    '',
    '\uFEFF😀',
    new Uint8Array([0, 255]),
    { a: [1, null] },
    7,
    true,
    null,
  ];
  for (const message of messages) void controller.send(message);
  for (const message of messages) expect(await target.receive()).toEqual(message);
  await target.send('x'.repeat(49_000));
  await target.done();
  const received: unknown[] = [];
  for await (const message of controller) received.push(message);
  expect(received).toEqual(['x'.repeat(49_000)]);
  expect(await codeOf(controller.receive())).toBe('peer_done');
  expect(await codeOf(target.receive())).toBe('closed');
});

test.each<[string, Parameters<typeof meet>[1], [Outcome, Outcome]]>([
  [
    'other digits',
    { typeDigits: (it) => String((Number(it) + 1) % 1e6).padStart(6, '0') },
    ['digits_mismatch', 'digits_mismatch'],
  ],
  ['five digits', { typeDigits: (it) => it.slice(1) }, ['digits_malformed', 'digits_malformed']],
  ['nothing, which cancels', { typeDigits: () => undefined }, ['cancelled', 'cancelled']],
  [
    'a slip in the second half of the code',
    { typeCode: (it) => it.slice(0, -1) + ((Number(it.at(-1)) + 1) % 10) },
    ['code_mismatch', 'code_mismatch'],
  ],
  [
    'spaces and hyphens',
    {
      typeCode: (it) => ` ${it.slice(0, 3)} ${it.slice(3)} `,
      typeDigits: (it) => `${it.slice(0, 3)}-${it.slice(3)}\n`,
    },
    ['paired', 'paired'],
  ],
])('a person types %s', async (_what, how, expected) => {
  const { url } = await startRelay();
  expect(await outcomes(meet(url, how))).toEqual(expected);
});

test('a bootstrap', async () => {
  const { url } = await startRelay();
  const token = createBootstrapToken();
  const waiting = Promise.withResolvers<void>();
  const controller = bootstrapAsController(url, token, {
    publicKey: 'laptop',
    onWaiting: waiting.resolve,
  });
  await waiting.promise;
  expect(await bootstrapAsTarget(url, token, { publicKey: 'machine' })).toBe('laptop');
  expect(await controller).toBe('machine');
});
