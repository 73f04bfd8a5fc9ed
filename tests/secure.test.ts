/** Secure pairing, its channel and the bootstrap, through a real relay and through a hostile one. */
import { describe, expect, test } from 'bun:test';
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
import { type Bytes, fromBase64Url } from '../src/client/base64.ts';
import { announce, connect, listen } from '../src/client/client.ts';
import { bootstrapKeys } from '../src/client/keys.ts';
import { afterThisTest, startRelay, within } from './support.ts';

type Outcome = RelayErrorCode | 'paired';

interface Attempt {
  target: Promise<SecureChannel>;
  controller: Promise<SecureChannel>;
}

/** A person at both devices, who types the code on one and the digits on the other. */
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

test('two devices pair, get each other’s identity, and exchange messages', async () => {
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

test('a program cancels, on either side, and both are told', async () => {
  const { url } = await startRelay();
  for (const side of ['target', 'controller'] as const) {
    const stop = new AbortController();
    const asked = Promise.withResolvers<AbortSignal>();
    const attempt = meet(url, {
      typeDigits: (_digits, signal) => {
        asked.resolve(signal);
        return new Promise(() => {});
      },
      [side]: { signal: stop.signal },
    });
    const question = await within(asked.promise, 'the question');
    stop.abort();
    const [target, controller] = await outcomes(attempt);
    expect({ target, controller }).toEqual({
      target: 'cancelled',
      controller: 'cancelled',
      [side]: 'aborted',
    });
    // What the person types is no longer needed.
    expect(question.aborted).toBe(true);
  }
});

test('an error of askDigits cancels, and is the cause', async () => {
  const { url } = await startRelay();
  const closed = new Error('the window was closed');
  const attempt = meet(url, { typeDigits: () => Promise.reject(closed) });
  expect(await outcomes(attempt)).toEqual(['cancelled', 'cancelled']);
  expect(await attempt.target.catch((error: RelayError) => error.cause)).toBe(closed);
});

test('the relay goes away while the person types', async () => {
  const relay = await startRelay();
  const attempt = meet(relay.url, {
    typeDigits: () => {
      void relay.server.stop();
      return new Promise(() => {});
    },
  });
  expect(await outcomes(attempt)).toEqual(['relay_shutting_down', 'relay_shutting_down']);
});

test('a deadline is for the whole pairing', async () => {
  const { url } = await startRelay();
  const typeDigits = () => new Promise<string>(() => {});
  const attempt = meet(url, { typeDigits, target: { timeoutMs: 300 } });
  expect(await outcomes(attempt)).toEqual(['timeout', 'cancelled']);
  expect(await codeOf(meet(url, { target: { timeoutMs: NaN } }).target)).toBe('invalid_argument');
});

test('a code that nobody waits on, or that is invalid', async () => {
  const { url } = await startRelay();
  const showDigits = () => {};
  expect(await codeOf(pairAsController(url, '123456789012', { showDigits }))).toBe('otc_not_found');
  for (const wrong of [
    '',
    '482916',
    '4829167305145',
    '４８２９１６７３０５１４',
    'abcdef-ghijkl',
  ]) {
    expect(await codeOf(pairAsController(url, wrong, { showDigits }))).toBe('invalid_code');
  }
});

test('a peer that speaks the plain protocol', async () => {
  const { url } = await startRelay();
  const code = Promise.withResolvers<string>();
  const target = pairAsTarget(url, { showCode: code.resolve, askDigits: () => '' });
  const plainController = await connect(url, (await code.promise).slice(0, 6));
  plainController.send('hello');
  expect(await codeOf(target)).toBe('not_secure');
  await plainController.close();

  const otc = Promise.withResolvers<string>();
  const plainTarget = listen(url, { onCode: otc.resolve });
  const controller = pairAsController(url, `${await otc.promise}-000000`, { showDigits() {} });
  (await plainTarget).send('hello');
  expect(await codeOf(controller)).toBe('not_secure');
});

test('a peer that closes without done, and a channel at the end of its block', async () => {
  const { url } = await startRelay();
  const { target, controller } = await paired(url);
  {
    await using leaving = controller;
    void leaving.send('last words');
  }
  expect(await target.receive()).toBe('last words');
  expect(await codeOf(target.receive())).toBe('peer_disconnected');
  expect(await codeOf(controller.send('late'))).toBe('closed');
});

test('an error has the stack of the caller', async () => {
  const { url } = await startRelay();
  async function theCaller() {
    await pairAsController(url, '000000-000000', { showDigits() {} });
  }
  const error = await theCaller().catch((reason: RelayError) => reason);
  expect(error?.stack).toStartWith('RelayError: otc_not_found');
  expect(error?.stack).toContain('theCaller');
});

describe('a bootstrap', () => {
  async function watching(url: string, token: string) {
    const waiting = Promise.withResolvers<void>();
    const controller = bootstrapAsController(url, token, {
      publicKey: 'laptop',
      onWaiting: waiting.resolve,
    });
    controller.catch(() => {});
    await within(waiting.promise, 'the watch');
    return { controller };
  }

  test('gives both sides the other’s key, and shows nobody the token', async () => {
    const { url } = await startRelay();
    const token = createBootstrapToken();
    const frames: string[] = [];
    const { controller } = await watching(`${await tapped(url, frames)}`, token);
    expect(await bootstrapAsTarget(url, token, { publicKey: 'machine' })).toBe('laptop');
    expect(await controller).toBe('machine');
    expect(frames.join()).toContain('bootstrap_init');
    expect(frames.join()).not.toContain(token);
    expect(await codeOf(bootstrapAsTarget(url, token, { publicKey: 'machine' }))).toBe(
      'token_already_used',
    );
  });

  test('refuses senders who know only the announcement or the id', async () => {
    const { url } = await startRelay();
    const token = createBootstrapToken();
    const { jti } = await bootstrapKeys(fromBase64Url(token) as Bytes);
    const { controller } = await watching(url, token);
    const forged = announce(url, { jti, token: 'bm8=', targetPubKey: 'mine' });
    expect(await codeOf(forged)).toBe('rejected');
    expect(await codeOf(controller)).toBe('not_authentic');
  });

  test('detects a relay that replaces a key', async () => {
    const token = createBootstrapToken();
    for (const field of ['targetPubKey', 'controllerPubKey', 'token', 'controllerSig']) {
      const { url } = await startRelay();
      const meddling = await tapped(url, [], (frame) => {
        if (field in frame) frame[field] = 'bWluZQ==';
      });
      const { controller } = await watching(meddling, token);
      const machine = codeOf(bootstrapAsTarget(meddling, token, { publicKey: 'machine' }));
      const isAnswer = field.startsWith('controller');
      // If the relay changes the answer, the controller still has the right machine's key.
      expect(await machine).toBe(isAnswer ? 'not_authentic' : 'rejected');
      expect(await codeOf(controller)).toBe(isAnswer ? 'paired' : 'not_authentic');
    }
  });

  test('says what is wrong with its arguments', async () => {
    const { url } = await startRelay();
    const publicKey = 'machine';
    for (const wrong of ['', 'x'.repeat(43).replace('x', '+'), 'x'.repeat(42)]) {
      expect(await codeOf(bootstrapAsTarget(url, wrong, { publicKey }))).toBe('invalid_argument');
    }
    const token = createBootstrapToken();
    for (const wrong of ['x'.repeat(16_385), '\uD800', undefined as unknown as string]) {
      const booting = bootstrapAsTarget(url, token, { publicKey: wrong });
      expect(await codeOf(booting)).toBe('invalid_argument');
    }
    expect(await codeOf(bootstrapAsTarget(url, token, { publicKey }))).toBe('no_watcher');
  });
});

/** A proxy in front of the relay that sees every frame and can change those to a client. */
async function tapped(
  url: string,
  frames: string[],
  meddle: (frame: Record<string, unknown>) => void = () => {},
): Promise<string> {
  const ahead = new WeakMap<object, WebSocket>();
  const proxy = Bun.serve({
    port: 0,
    hostname: '127.0.0.1',
    fetch: (request, server) => (server.upgrade(request) ? undefined : new Response('')),
    websocket: {
      open(ws) {
        const behind = new WebSocket(url);
        ahead.set(ws, behind);
        behind.addEventListener('message', ({ data }) => {
          frames.push(String(data));
          const frame = JSON.parse(String(data)) as Record<string, unknown>;
          meddle(frame);
          ws.sendText(JSON.stringify(frame));
        });
        behind.addEventListener('close', ({ code }) => ws.close(code === 1006 ? 1011 : code));
      },
      async message(ws, data) {
        frames.push(String(data));
        const behind = ahead.get(ws) as WebSocket;
        if (behind.readyState === WebSocket.CONNECTING) {
          await new Promise((resolve) => behind.addEventListener('open', resolve));
        }
        behind.send(data);
      },
      close: (ws) => ahead.get(ws)?.close(),
    },
  });
  afterThisTest(() => proxy.stop(true));
  return `ws://127.0.0.1:${proxy.port}/ws`;
}
