import { afterAll, beforeAll, describe, expect, spyOn, test } from 'bun:test';
import {
  announce,
  connect,
  generateCode,
  listen,
  RelayError,
  type RelayErrorCode,
  type Channel,
  watch,
} from '../src/client/client.ts';
import { type CloseReason, closes } from '../src/wire/codes.ts';
import { createRelayServer } from '../src/index.ts';
import { project, runtimes } from './built-client.ts';

const relay = await createRelayServer({
  port: 0,
  host: '127.0.0.1',
  logLevel: 'silent',
  maxWatches: 1000,
  maxFailedCodes: 1000,
});
const { url } = await relay.start();
afterAll(() => relay.stop());

async function pair(): Promise<{ target: Channel; controller: Channel }> {
  const code = generateCode();
  const waiting = Promise.withResolvers<void>();
  const listening = listen(url, code, { onWaiting: waiting.resolve });
  await waiting.promise;
  const controller = await connect(url, code);
  return { target: await listening, controller };
}

async function failure(work: Promise<unknown>): Promise<RelayError> {
  const error = await work.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(RelayError);
  return error as RelayError;
}

const codeOf = async (work: Promise<unknown>): Promise<RelayErrorCode> =>
  (await failure(work)).code;

describe('pairing', () => {
  test('payloads cross both ways, in order, as they were', async () => {
    const { target, controller } = await pair();
    const payloads = ['a', '', '"\\\n\u2028😀', 'x'.repeat(60_000)];
    for (const payload of payloads) controller.send(payload);
    for (const payload of payloads) expect(await target.receive()).toBe(payload);
    target.send('back');
    expect(await controller.receive()).toBe('back');
    await controller.close();
  });

  test('iteration ends with done, after everything that was sent', async () => {
    const { target, controller } = await pair();
    controller.send('1');
    controller.send('2');
    await controller.done();
    const got: string[] = [];
    for await (const payload of target) got.push(payload);
    expect(got).toEqual(['1', '2']);
    expect(await codeOf(target.receive())).toBe('peer_done');
    await target.done();
  });

  test('a verdict that is followed by a close at once is heard', async () => {
    for (let round = 0; round < 20; round += 1) {
      const { target, controller } = await pair();
      target.send('verdict');
      await target.close();
      expect(await controller.receive()).toBe('verdict');
      expect(await codeOf(controller.receive())).toBe('peer_disconnected');
    }
  });

  test('iteration throws when the peer leaves', async () => {
    const { target, controller } = await pair();
    controller.send('1');
    await controller.close();
    const got: string[] = [];
    const reading = (async () => {
      for await (const payload of target) got.push(payload);
    })();
    expect(await codeOf(reading)).toBe('peer_disconnected');
    expect(got).toEqual(['1']);
  });

  test('two that receive at once get one payload each', async () => {
    const { target, controller } = await pair();
    const both = Promise.all([target.receive(), target.receive()]);
    controller.send('first');
    controller.send('second');
    expect(await both).toEqual(['first', 'second']);
    await target.close();
  });

  test('a receive that gave up takes nothing from the next', async () => {
    const { target, controller } = await pair();
    expect(await codeOf(target.receive({ timeoutMs: 5 }))).toBe('timeout');
    const stop = new AbortController();
    const receiving = target.receive({ signal: stop.signal });
    stop.abort('enough');
    const error = await failure(receiving);
    expect([error.code, error.cause]).toEqual(['aborted', 'enough']);
    controller.send('still here');
    expect(await target.receive()).toBe('still here');
    await target.close();
  });

  test('after the end, a channel says why', async () => {
    const { target, controller } = await pair();
    await target.close();
    expect(await codeOf(target.receive())).toBe('closed');
    expect(() => target.send('late')).toThrow(RelayError);
    expect(await codeOf(controller.receive())).toBe('peer_disconnected');
    await target.close();
  });

  test('a frame over the limit ends the channel with a name', async () => {
    const { target, controller } = await pair();
    controller.send('x'.repeat(70_000));
    expect(await codeOf(controller.receive())).toBe('frame_too_large');
    expect(await codeOf(target.receive())).toBe('peer_disconnected');
  });
});

describe('what goes wrong on the way', () => {
  test('the code that is taken, unknown, or no code', async () => {
    const code = generateCode();
    const stop = new AbortController();
    const waiting = Promise.withResolvers<void>();
    const first = listen(url, code, { signal: stop.signal, onWaiting: waiting.resolve });
    await waiting.promise;
    expect(await codeOf(listen(url, code))).toBe('otc_in_use');
    stop.abort();
    expect(await codeOf(first)).toBe('aborted');
    expect(await codeOf(connect(url, generateCode()))).toBe('otc_not_found');
    expect(await codeOf(connect(url, '12345'))).toBe('invalid_otc');
  });

  test('a deadline, and a signal that is aborted already', async () => {
    expect(await codeOf(listen(url, generateCode(), { timeoutMs: 20 }))).toBe('timeout');
    const signal = AbortSignal.abort();
    expect(await codeOf(listen(url, generateCode(), { signal }))).toBe('aborted');
  });

  test('a runtime without WebSocket', async () => {
    const { WebSocket } = globalThis;
    try {
      Reflect.deleteProperty(globalThis, 'WebSocket');
      expect(await codeOf(connect(url, '000000'))).toBe('no_websocket');
    } finally {
      globalThis.WebSocket = WebSocket;
    }
  });

  test('a URL that is none, of another kind, or with nobody there', async () => {
    for (const wrong of ['relay', 'http://127.0.0.1/ws', 'ws://:0/', '']) {
      expect(await codeOf(connect(wrong, '000000'))).toBe('invalid_url');
    }
    const nobody = Bun.serve({ port: 0, hostname: '127.0.0.1', fetch: () => new Response('') });
    const { port } = nobody;
    expect(await codeOf(connect(`ws://127.0.0.1:${port}/ws`, '000000'))).toBe('unreachable');
    await nobody.stop(true);
    expect(await codeOf(connect(`ws://127.0.0.1:${port}/ws`, '000000'))).toBe('unreachable');
  });
});

describe('a server that is not quite the relay', () => {
  let answer: (ws: Bun.ServerWebSocket<undefined>) => void;
  let odd: Bun.Server<undefined>;
  let oddUrl: string;
  beforeAll(() => {
    odd = Bun.serve({
      port: 0,
      hostname: '127.0.0.1',
      fetch: (request, server) => (server.upgrade(request) ? undefined : new Response('')),
      websocket: { message: (ws) => answer(ws) },
    });
    oddUrl = `ws://127.0.0.1:${odd.port}/ws`;
  });
  afterAll(() => odd.stop(true));

  for (const [reason, { code }] of Object.entries(closes) as [CloseReason, { code: number }][]) {
    test(`close ${code} is ${reason}`, async () => {
      answer = (ws) => ws.close(code, reason);
      expect(await codeOf(connect(oddUrl, '000000'))).toBe(reason);
    });
  }

  test('a close code alone is understood, and one of no meaning told', async () => {
    answer = (ws) => ws.close(4001);
    expect(await codeOf(connect(oddUrl, '000000'))).toBe('session_expired');
    answer = (ws) => ws.close(4999, 'whatever');
    const error = await failure(connect(oddUrl, '000000'));
    expect([error.code, error.detail]).toEqual(['connection_lost', 'close code 4999']);
  });

  test('frames that no relay sends', async () => {
    const odds = ['', 'null', '[]', '{"type":1}', '{"type":"ack"}', '{"type":"error"}'];
    for (const frame of [...odds, '{"type":"error","code":"toString"}']) {
      answer = (ws) => ws.sendText(frame);
      expect(await codeOf(connect(oddUrl, '000000'))).toBe('unexpected_frame');
    }
    answer = (ws) => ws.sendBinary(new Uint8Array([1]));
    expect(await codeOf(connect(oddUrl, '000000'))).toBe('unexpected_frame');
  });
});

describe('bootstrap', () => {
  async function watching(jti: string) {
    const ready = Promise.withResolvers<void>();
    const watched = watch(url, jti, { onWaiting: ready.resolve });
    await ready.promise;
    return { watched };
  }
  const introduction = (jti: string) => ({ jti, token: 'token', targetPubKey: 'key' });

  test('announced, acknowledged, and once only', async () => {
    const { watched } = await watching('bt_ack');
    const announced = announce(url, introduction('bt_ack'));
    const device = await watched;
    expect(device).toMatchObject(introduction('bt_ack'));
    await device.acknowledge({ publicKey: 'mine', controllerSig: 'sig' });
    expect(await announced).toEqual({ controllerPubKey: 'mine', controllerSig: 'sig' });
    expect(await codeOf(announce(url, introduction('bt_ack')))).toBe('token_already_used');
  });

  test('refused in the controller’s own words', async () => {
    const { watched } = await watching('bt_no');
    const announced = failure(announce(url, introduction('bt_no')));
    await (await watched).reject('bad_signature');
    const error = await announced;
    expect([error.code, error.detail]).toEqual(['rejected', 'bad_signature']);
  });

  test('nobody watches, somebody else watches, the watcher leaves', async () => {
    expect(await codeOf(announce(url, introduction('bt_none')))).toBe('no_watcher');
    const { watched } = await watching('bt_left');
    expect(await codeOf(watch(url, 'bt_left'))).toBe('jti_already_watched');
    const announced = codeOf(announce(url, introduction('bt_left')));
    await (await watched).close();
    expect(await announced).toBe('watcher_disconnected');
  });

  test('an answer to a device that is gone is not taken for done', async () => {
    const { watched } = await watching('bt_gone');
    const stop = new AbortController();
    const announced = codeOf(announce(url, introduction('bt_gone'), { signal: stop.signal }));
    const device = await watched;
    stop.abort();
    expect(await announced).toBe('aborted');
    // The abort reaches the relay when it does: whoever watches now finds the id free.
    let again: RelayErrorCode;
    do {
      again = await codeOf(watch(url, 'bt_gone', { timeoutMs: 50 }));
    } while (again === 'jti_already_watched');
    expect(await codeOf(device.acknowledge({ publicKey: 'mine', controllerSig: 'sig' }))).toBe(
      'not_watching',
    );
  });
});

test('codes are six digits, all alike', () => {
  const counts = Array.from({ length: 10 }, () => 0);
  for (let i = 0; i < 20_000; i += 1) {
    const code = generateCode();
    expect(code).toMatch(/^[0-9]{6}$/);
    counts[Number(code[0])] = (counts[Number(code[0])] as number) + 1;
  }
  // 2,000 expected of each, with a standard deviation of 42.
  for (const count of counts) expect(Math.abs(count - 2000)).toBeLessThan(300);
});

test('a draw from past the last whole million is drawn again', () => {
  const draws = [4_294_967_295, 4_294_000_000, 4_293_999_999];
  const random = spyOn(crypto, 'getRandomValues').mockImplementation(<T>(array: T): T => {
    (array as Uint32Array)[0] = draws.shift() as number;
    return array;
  });
  expect(generateCode()).toBe('999999');
  expect(draws).toEqual([]);
  random.mockRestore();
});

describe('the documentation’s examples, from the built package', () => {
  let built: Awaited<ReturnType<typeof project>>;
  beforeAll(async () => {
    built = await project('docs/client.md', url);
  });
  afterAll(() => built[Symbol.asyncDispose]());

  for (const runtime of runtimes) {
    test(`${runtime}: target and controller`, async () => {
      const target = built.run([runtime, 'target.mjs']);
      const code = await target.shows(/code (\d{6})\n/);
      const controller = built.run([runtime, 'controller.mjs', code]);
      expect(await controller.ended()).toBe('received hello, controller\nthe target is finished\n');
      expect(await target.ended()).toEndWith('received hello, target\n');
    });

    test(`${runtime}: impatient`, async () => {
      expect(await built.run([runtime, 'impatient.mjs']).ended()).toBe('timeout\n');
    });
  }

  test('watcher and booting device', async () => {
    const runtime = runtimes.at(-1) as string;
    const watcher = built.run([runtime, 'watcher.mjs']);
    await watcher.shows(/watching\n/);
    expect(await built.run([runtime, 'booting.mjs']).ended()).toBe(
      'accepted by controller-key signature\n',
    );
    expect(await watcher.ended()).toBe('watching\naccepted device-key\n');
  });
});
