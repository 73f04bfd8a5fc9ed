import { afterAll, beforeAll, describe, expect, spyOn, test } from 'bun:test';
import { type AddressInfo, createConnection, createServer } from 'node:net';
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
import { proxyFor } from '../src/client/proxy.ts';
import { afterThisTest } from './support.ts';

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
  test('payloads arrive unchanged and in order, in both directions', async () => {
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

  test('a payload that is sent right before a close arrives', async () => {
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

  test('two calls of receive at the same time get one payload each', async () => {
    const { target, controller } = await pair();
    const both = Promise.all([target.receive(), target.receive()]);
    controller.send('first');
    controller.send('second');
    expect(await both).toEqual(['first', 'second']);
    await target.close();
  });

  test('a receive that has timed out takes no payload from the next one', async () => {
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

  test('bytes are sent as base64', async () => {
    const { target, controller } = await pair();
    const bytes = crypto.getRandomValues(new Uint8Array(49_000));
    controller.send(bytes);
    controller.send(new Uint8Array());
    controller.send('no base64');
    controller.send(new Uint8Array([0xff]));
    expect(await target.receiveBytes()).toEqual(bytes);
    expect(await target.receiveBytes()).toEqual(new Uint8Array());
    expect(await codeOf(target.receiveBytes())).toBe('invalid_payload');
    expect(await target.receive()).toBe('/w==');
    await target.close();
  });

  test('an invalid payload is refused, and the channel still works', async () => {
    const { target, controller } = await pair();
    for (const wrong of [undefined, null, 7, {}, ['a']]) {
      expect(() => controller.send(wrong as unknown as string)).toThrow('invalid_argument');
    }
    controller.send('still here');
    expect(await target.receive()).toBe('still here');
    await target.close();
  });

  test('await using closes at the end of the block', async () => {
    const { target, controller } = await pair();
    {
      await using leaving = controller;
      leaving.send('last words');
    }
    expect(await target.receive()).toBe('last words');
    expect(await codeOf(target.receive())).toBe('peer_disconnected');
  });

  test('an error has the stack of the caller', async () => {
    const { target, controller } = await pair();
    async function theReceiver() {
      await target.receive();
    }
    async function theConnector() {
      await connect(url, 'no code');
    }
    const receiving = failure(theReceiver());
    await controller.close();
    const error = await receiving;
    expect(error.stack).toStartWith('RelayError: peer_disconnected: ');
    expect(error.stack).toContain('theReceiver');
    expect((await failure(theConnector())).stack).toContain('theConnector');
    function theSender() {
      target.send('late');
    }
    try {
      theSender();
      throw new Error('it was sent');
    } catch (late) {
      expect((late as RelayError).code).toBe('peer_disconnected');
      expect((late as RelayError).stack).toContain('theSender');
    }
  });

  test('a frame over the limit ends the channel with frame_too_large', async () => {
    const { target, controller } = await pair();
    controller.send('x'.repeat(70_000));
    expect(await codeOf(controller.receive())).toBe('frame_too_large');
    expect(await codeOf(target.receive())).toBe('peer_disconnected');
  });
});

describe('a code that the library generates', () => {
  /** Sets the next codes that are generated. Later ones are random again. */
  function draw(...codes: string[]) {
    const original = crypto.getRandomValues.bind(crypto);
    const random = spyOn(crypto, 'getRandomValues').mockImplementation(<T>(array: T): T => {
      const code = codes.shift();
      if (code === undefined) return original(array as Uint32Array<ArrayBuffer>) as T;
      (array as Uint32Array)[0] = Number(code);
      return array;
    });
    afterThisTest(() => random.mockRestore());
    return codes;
  }

  test('is passed to onCode, and gives a channel', async () => {
    const code = Promise.withResolvers<string>();
    const listening = listen(url, { onCode: code.resolve });
    const controller = await connect(url, await code.promise);
    controller.send('hello');
    expect(await (await listening).receive()).toBe('hello');
    await controller.close();
  });

  test('is replaced if somebody waits on it, without reaching rate_limited', async () => {
    const strict = await createRelayServer({ port: 0, host: '127.0.0.1', logLevel: 'silent' });
    const { url: strictUrl } = await strict.start();
    afterThisTest(() => strict.stop());
    const taken = Promise.withResolvers<void>();
    const first = listen(strictUrl, '482916', { onWaiting: taken.resolve });
    first.catch(() => {});
    await taken.promise;
    const codes = draw('482916', '482916', '000017');
    const code = Promise.withResolvers<string>();
    const second = listen(strictUrl, { onCode: code.resolve });
    second.catch(() => {});
    expect(await code.promise).toBe('000017');
    // Even if all codes are in use, one failed attempt is left, so that the next call is not rate_limited.
    codes.push('482916', '482916');
    const third = Promise.withResolvers<string>();
    listen(strictUrl, { onCode: third.resolve }).catch(() => {});
    expect(await third.promise).toMatch(/^\d{6}$/);
  });

  test('has one deadline for all codes that it tries', async () => {
    const inUse = JSON.stringify({ type: 'error', code: 'otc_in_use' });
    const slow = Bun.serve({
      port: 0,
      hostname: '127.0.0.1',
      fetch: (request, server) => void server.upgrade(request),
      websocket: { message: (socket) => void setTimeout(() => socket.send(inUse), 150) },
    });
    afterThisTest(() => slow.stop(true));
    const listening = listen(`ws://127.0.0.1:${slow.port}`, { timeoutMs: 250, onCode() {} });
    expect(await codeOf(listening)).toBe('timeout');
  });

  test('fails after four that are in use', async () => {
    const code = generateCode();
    const waiting = Promise.withResolvers<void>();
    const first = listen(url, code, { onWaiting: waiting.resolve });
    await waiting.promise;
    draw(code, code, code, code);
    expect(await codeOf(listen(url, { onCode() {} }))).toBe('otc_in_use');
    await (await connect(url, code)).close();
    await (await first).close();
  });
});

describe('errors', () => {
  test('a code that is in use, unknown, or not a code', async () => {
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
    for (const timeoutMs of [NaN, -1, '5' as unknown as number]) {
      expect(await codeOf(listen(url, generateCode(), { timeoutMs }))).toBe('invalid_argument');
    }
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

  test('a URL that is invalid, of another scheme, or without a server', async () => {
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

  test('a close code without a reason is understood, and an unknown one is reported', async () => {
    answer = (ws) => ws.close(4001);
    expect(await codeOf(connect(oddUrl, '000000'))).toBe('session_expired');
    answer = (ws) => ws.close(4999, 'whatever');
    const error = await failure(connect(oddUrl, '000000'));
    expect([error.code, error.detail]).toEqual(['connection_lost', 'close code 4999']);
  });

  test('an answer about another token id', async () => {
    answer = (ws) => {
      ws.sendText('{"type":"bootstrap_ack","jti":"b","controllerPubKey":"","controllerSig":""}');
    };
    const introduction = { jti: 'a', token: '', targetPubKey: '' };
    expect(await codeOf(announce(oddUrl, introduction))).toBe('unexpected_frame');
    answer = (ws) => ws.sendText('{"type":"bootstrap_reject","jti":"b","error":"no_watcher"}');
    expect(await codeOf(announce(oddUrl, introduction))).toBe('unexpected_frame');
    answer = (ws) => ws.sendText('{"type":"bootstrap_watching","jti":"b"}');
    expect(await codeOf(watch(oddUrl, 'a'))).toBe('unexpected_frame');
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

  test('announced, acknowledged, and only once', async () => {
    const { watched } = await watching('bt_ack');
    const announced = announce(url, introduction('bt_ack'));
    const device = await watched;
    expect(device).toMatchObject(introduction('bt_ack'));
    await device.acknowledge({ publicKey: 'mine', controllerSig: 'sig' });
    expect(await announced).toEqual({ controllerPubKey: 'mine', controllerSig: 'sig' });
    expect(await codeOf(announce(url, introduction('bt_ack')))).toBe('token_already_used');
  });

  test('refused with the controller’s own text', async () => {
    const { watched } = await watching('bt_no');
    const announced = failure(announce(url, introduction('bt_no')));
    await (await watched).reject('bad_signature');
    const error = await announced;
    expect([error.code, error.detail]).toEqual(['rejected', 'bad_signature']);
  });

  test('a controller cannot refuse with one of the relay’s codes', async () => {
    const { watched } = await watching('bt_words');
    const announced = failure(announce(url, introduction('bt_words')));
    const device = await watched;
    expect(await codeOf(device.reject('no_watcher'))).toBe('invalid_argument');
    await device.reject();
    expect((await announced).code).toBe('rejected');
  });

  test('nobody watches, somebody else watches, the watcher leaves', async () => {
    expect(await codeOf(announce(url, introduction('bt_none')))).toBe('no_watcher');
    const { watched } = await watching('bt_left');
    expect(await codeOf(watch(url, 'bt_left'))).toBe('jti_already_watched');
    const announced = codeOf(announce(url, introduction('bt_left')));
    await (await watched).close();
    expect(await announced).toBe('watcher_disconnected');
  });

  test('an answer to a device that has left fails', async () => {
    const { watched } = await watching('bt_gone');
    const stop = new AbortController();
    const announced = codeOf(announce(url, introduction('bt_gone'), { signal: stop.signal }));
    const device = await watched;
    stop.abort();
    expect(await announced).toBe('aborted');
    // A new watch succeeds only when the abort has reached the relay.
    let again: RelayErrorCode;
    do {
      again = await codeOf(watch(url, 'bt_gone', { timeoutMs: 50 }));
    } while (again === 'jti_already_watched');
    expect(await codeOf(device.acknowledge({ publicKey: 'mine', controllerSig: 'sig' }))).toBe(
      'not_watching',
    );
  });
});

describe('a private relay', () => {
  const secret = 'a-secret-of-sixteen-letters';
  /** A server that answers every upgrade with this status, and records the URLs. */
  function serverWith(status: number) {
    const asked: string[] = [];
    const server = Bun.serve({
      port: 0,
      hostname: '127.0.0.1',
      fetch(request) {
        asked.push(request.url);
        return new Response('', { status });
      },
    });
    afterThisTest(() => server.stop(true));
    return { asked, url: `ws://127.0.0.1:${server.port}/ws` };
  }

  test('gets the token in the URL, next to other parameters', async () => {
    const { asked, url: url401 } = serverWith(401);
    for (const there of ['', '?a=b', '?token=old']) {
      await codeOf(connect(url401 + there, '000000', { token: `${secret}&+` }));
    }
    expect(asked.map((it) => new URL(it).search)).toEqual([
      `?token=${secret}%26%2B`,
      `?a=b&token=${secret}%26%2B`,
      `?token=${secret}%26%2B`,
    ]);
  });

  test.each([
    [401, 'unauthorized'],
    [403, 'origin_refused'],
    [429, 'rate_limited'],
    [502, 'unreachable'],
  ])('that answers %d gives %s, and no error shows the token', async (status, code) => {
    const { url: refusing } = serverWith(status);
    const introduction = { jti: 'a', token: '', targetPubKey: '' };
    for (const attempt of [
      listen(refusing, { onCode() {}, token: secret }),
      listen(refusing, '000000', { token: secret }),
      connect(`${refusing}?token=${secret}`, '000000'),
      watch(refusing, 'a', { token: secret }),
      announce(refusing, introduction, { token: secret }),
    ]) {
      const error = await failure(attempt);
      expect(error.code).toBe(code as RelayErrorCode);
      expect(Bun.inspect(error)).not.toContain(secret);
    }
  });

  test('with an invalid URL gives an error without the token', async () => {
    for (const wrong of [
      `http://h/?token=${secret}`,
      `ws://h:x/?token=${secret}`,
      `//?token=${secret}`,
    ]) {
      const error = await failure(connect(wrong, '000000', { token: secret }));
      expect(error.code).toBe('invalid_url');
      expect(Bun.inspect(error)).not.toContain(secret);
    }
  });
});

describe('an HTTP proxy', () => {
  test.each<[string, Record<string, string>, string | undefined]>([
    ['ws://relay.test/ws', {}, undefined],
    ['ws://relay.test/ws', { HTTP_PROXY: 'http://p' }, 'http://p'],
    ['wss://relay.test/ws', { HTTP_PROXY: 'http://p' }, undefined],
    ['wss://relay.test/ws', { HTTPS_PROXY: 'http://p' }, 'http://p'],
    ['wss://relay.test/ws', { https_proxy: 'http://p', HTTPS_PROXY: 'http://q' }, 'http://p'],
    ['wss://relay.test/ws', { HTTPS_PROXY: '' }, undefined],
    ['wss://relay.test/ws', { HTTPS_PROXY: 'http://p', NO_PROXY: '*' }, undefined],
    ['wss://relay.test/ws', { HTTPS_PROXY: 'http://p', NO_PROXY: 'x, relay.test' }, undefined],
    ['wss://a.relay.test/ws', { HTTPS_PROXY: 'http://p', no_proxy: '.Relay.test' }, undefined],
    ['wss://a.relay.test/ws', { HTTPS_PROXY: 'http://p', NO_PROXY: '*.relay.test' }, undefined],
    ['wss://relay.test/ws', { HTTPS_PROXY: 'http://p', NO_PROXY: 'relay.test:443' }, undefined],
    ['wss://relay.test/ws', { HTTPS_PROXY: 'http://p', NO_PROXY: 'relay.test:8443' }, 'http://p'],
    ['wss://myrelay.test/ws', { HTTPS_PROXY: 'http://p', NO_PROXY: 'relay.test,' }, 'http://p'],
  ])('for %s with %o is %p', (address, env, proxy) => {
    expect(proxyFor(new URL(address), env)).toBe(proxy);
  });

  /** A proxy that connects every client to the relay, and counts the connections. */
  function startProxy() {
    const tunnels: string[] = [];
    const server = createServer((client) => {
      client.on('error', () => {});
      client.once('data', (head) => {
        tunnels.push(String(head).split('\r\n')[0] as string);
        const ahead = createConnection(Number(new URL(url).port), '127.0.0.1', () => {
          client.write('HTTP/1.1 200 Connection established\r\n\r\n');
          client.pipe(ahead).pipe(client);
        });
        ahead.on('error', () => client.destroy());
        client.on('close', () => ahead.destroy());
      });
    });
    afterThisTest(() => server.close());
    return new Promise<{ tunnels: string[]; address: string }>((resolve) => {
      server.listen(0, '127.0.0.1', () => {
        const { port } = server.address() as AddressInfo;
        resolve({ tunnels, address: `http://127.0.0.1:${port}` });
      });
    });
  }

  for (const runtime of runtimes) {
    test(`leads a program in ${runtime} to a relay that it cannot reach itself`, async () => {
      const { tunnels, address } = await startProxy();
      await using nowhere = await project('docs/client.md', 'ws://relay.invalid/ws');
      const env = { HTTP_PROXY: address, NODE_USE_ENV_PROXY: '1', NO_PROXY: '', no_proxy: '' };
      const target = nowhere.run([runtime, 'target.mjs'], env);
      const code = await target.shows(/code (\d{6})\n/);
      await nowhere.run([runtime, 'controller.mjs', code], env).ended();
      expect(await target.ended()).toEndWith('received hello, target\n');
      expect(tunnels).toEqual(Array(2).fill('CONNECT relay.invalid:80 HTTP/1.1'));
    });
  }

  test('with an invalid URL gives an error without its password', async () => {
    const before = process.env.HTTP_PROXY;
    afterThisTest(() => {
      if (before === undefined) delete process.env.HTTP_PROXY;
      else process.env.HTTP_PROXY = before;
    });
    for (const wrong of [
      'http://me:secret@127.0.0.1:1',
      'socks5://me:secret@127.0.0.1:1',
      'secret',
    ]) {
      process.env.HTTP_PROXY = wrong;
      const error = await failure(connect('ws://relay.invalid/ws', '000000'));
      expect(error.code).toBeOneOf(['unreachable', 'invalid_url']);
      expect(Bun.inspect(error)).not.toContain('secret');
    }
  });
});

test('codes are six digits, all equally likely', () => {
  const counts = Array.from({ length: 10 }, () => 0);
  for (let i = 0; i < 20_000; i += 1) {
    const code = generateCode();
    expect(code).toMatch(/^[0-9]{6}$/);
    counts[Number(code[0])] = (counts[Number(code[0])] as number) + 1;
  }
  // 2,000 expected of each, with a standard deviation of 42.
  for (const count of counts) expect(Math.abs(count - 2000)).toBeLessThan(300);
});

test('a random number after the last whole million is replaced', () => {
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

    test(`${runtime}: where there is no relay, it fails without a crash`, async () => {
      await using nowhere = await project('docs/client.md', 'ws://127.0.0.1:1/ws');
      const command = ['sh', '-c', `${runtime} impatient.mjs; echo "exit code $?"`];
      expect(await nowhere.run(command).ended()).toBe('unreachable\nexit code 0\n');
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
