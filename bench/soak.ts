/**
 * `bun run soak --minutes 10`: honest devices pair while hostile clients do their worst, on the shipped defaults. Ends
 * with a verdict and exit code 0 or 1: no honest pairing failed, memory is flat, and every book is empty.
 */
import { connect as dial, type Socket } from 'node:net';
import { parseArgs } from 'node:util';

const USAGE = `usage: bun run soak [--minutes 10] [--honest 20] [--hostile 200]

Starts a relay as it ships, lets so many honest devices pair and so many hostile clients do their worst for so many
minutes, waits 75 s more until every limit has run out, and ends with a verdict: exit code 0 if no honest pairing failed,
memory is flat and every book is empty, and 1 if not.`;

const { minutes, honest, hostile, help } = parseArgs({
  options: {
    help: { type: 'boolean', short: 'h', default: false },
    minutes: { type: 'string', default: '10' },
    honest: { type: 'string', default: '20' },
    hostile: { type: 'string', default: '200' },
  },
}).values;
const RUN_MS = Number(minutes) * 60_000;
const HONEST = Number(honest);
const HOSTILE = Number(hostile);
if (help) {
  console.log(USAGE);
  process.exit(0);
}
if (!(RUN_MS > 0 && HONEST > 0 && HOSTILE >= 0)) {
  console.error(USAGE);
  process.exit(2);
}
const PROGRESS_MS = 10_000;
/** A frame, a close, a pairing: nothing takes an honest device longer than this. */
const PATIENCE_MS = 10_000;
/** After the load: a session's 30 s, the limiters' 60 s, the pings' 30 s, and the sweeps between. */
const COOL_DOWN_MS = 75_000;
/** Flat: the last fifth of the run holds at most this much more than the second, both by their median. */
const RSS_SLACK = 1.1;

const relay = Bun.spawn([process.execPath, 'bin/amesh-relay.js'], {
  cwd: `${import.meta.dir}/..`,
  // Addresses come in a header, so that each device is a client of its own.
  env: {
    PATH: process.env.PATH,
    HOST: '127.0.0.1',
    PORT: '0',
    METRICS_PORT: '0',
    AMESH_TRUST_PROXY: '1',
  },
  stdout: 'pipe',
  stderr: 'inherit',
});
const log = relay.stdout.pipeThrough(new TextDecoderStream()).getReader();
const started = JSON.parse(((await log.read()).value ?? '').split('\n')[0] ?? '') as {
  port: number;
  metrics: number;
};
void (async () => {
  while (!(await log.read()).done);
})();
const URL_WS = `ws://127.0.0.1:${started.port}/ws`;

// Devices

class Device {
  readonly ws: WebSocket;
  readonly #frames: string[] = [];
  #wake = (): void => {};

  constructor(ws: WebSocket) {
    this.ws = ws;
    ws.addEventListener('message', ({ data }) => {
      this.#frames.push(String(data));
      this.#wake();
    });
    ws.addEventListener('close', () => this.#wake());
  }

  static async open(address: string): Promise<Device> {
    const ws = new WebSocket(URL_WS, { headers: { 'x-forwarded-for': address } });
    const device = new Device(ws);
    await patiently(
      new Promise<void>((resolve, reject) => {
        ws.addEventListener('open', () => resolve());
        ws.addEventListener('error', () => reject(new Error('no upgrade')));
      }),
    );
    return device;
  }

  send(frame: object): void {
    this.ws.send(JSON.stringify(frame));
  }

  async expect(part: string): Promise<string> {
    const frame = this.#frames.shift();
    if (frame === undefined) {
      if (this.ws.readyState === WebSocket.CLOSED) throw new Error(`closed instead of ${part}`);
      await patiently(
        new Promise<void>((resolve) => {
          this.#wake = resolve;
        }),
      );
      return this.expect(part);
    }
    if (!frame.includes(part)) throw new Error(`${frame.slice(0, 80)} instead of ${part}`);
    return frame;
  }
}

async function patiently<T>(promise: Promise<T>): Promise<T> {
  let timer: Timer | undefined;
  try {
    return await Promise.race([
      promise,
      new Promise<never>((_, reject) => {
        timer = setTimeout(() => reject(new Error('took too long')), PATIENCE_MS);
      }),
    ]);
  } finally {
    clearTimeout(timer);
  }
}

const random = (below: number): number => Math.floor(Math.random() * below);
let addresses = 0;
/** A client that nobody was before. */
const newAddress = (): string => {
  addresses += 1;
  return `10.${(addresses >> 16) & 255}.${(addresses >> 8) & 255}.${addresses & 255}`;
};
const code = (): string => String(random(1_000_000)).padStart(6, '0');

// Honest work

const done = { pairings: 0, bootstraps: 0, retries: 0 };
const failures: string[] = [];
const latencies: number[] = [];

async function pair(): Promise<void> {
  const start = performance.now();
  const [target, controller] = await Promise.all([
    Device.open(newAddress()),
    Device.open(newAddress()),
  ]);
  let otc = code();
  target.send({ type: 'listen', otc });
  // A code that somebody guessed at is burned: a device takes another, as the protocol says.
  while ((await target.expect('"')).includes('otc_in_use')) {
    done.retries += 1;
    otc = code();
    target.send({ type: 'listen', otc });
  }
  controller.send({ type: 'connect', otc });
  await Promise.all([target.expect('peer_found'), controller.expect('peer_found')]);
  for (let round = 0; round < 3; round += 1) {
    target.send({ type: 'data', payload: `t${round}${'x'.repeat(200)}` });
    await controller.expect(`t${round}`);
    controller.send({ type: 'data', payload: `c${round}${'x'.repeat(200)}` });
    await target.expect(`c${round}`);
  }
  target.send({ type: 'data', payload: 'sas_confirmed' });
  target.ws.close();
  await controller.expect('sas_confirmed');
  await controller.expect('peer_disconnected');
  controller.ws.close();
  latencies.push(performance.now() - start);
  done.pairings += 1;
}

async function bootstrap(): Promise<void> {
  const [watcher, target] = await Promise.all([
    Device.open(newAddress()),
    Device.open(newAddress()),
  ]);
  const jti = `bt_${crypto.randomUUID()}`;
  watcher.send({ type: 'bootstrap_watch', jti });
  await watcher.expect('bootstrap_watching');
  target.send({ type: 'bootstrap_init', jti, token: 't', targetPubKey: 'k' });
  await watcher.expect('bootstrap_init');
  watcher.send({ type: 'bootstrap_ack', jti, publicKey: 'k', controllerSig: 's' });
  await target.expect('bootstrap_ack');
  for (const device of [watcher, target]) device.ws.close();
  done.bootstraps += 1;
}

// Hostile work: each takes one round, and may fail as it likes

const UPGRADE = (address: string): string =>
  `GET /ws HTTP/1.1\r\nHost: relay\r\nX-Forwarded-For: ${address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n`;

async function tcp(bytes: string): Promise<Socket> {
  const socket = dial(started.port, '127.0.0.1');
  socket.on('error', () => {});
  socket.write(bytes);
  await patiently(new Promise((resolve) => socket.once('connect', resolve)));
  return socket;
}

const closed = async (ws: WebSocket): Promise<void> => {
  if (ws.readyState < WebSocket.CLOSING)
    await new Promise((resolve) => ws.addEventListener('close', resolve));
};

const hostilities: Record<string, (address: string) => Promise<unknown>> = {
  async guesser(address) {
    const device = await Device.open(address);
    for (let i = 0; i < 50; i += 1) device.send({ type: 'connect', otc: code() });
    await Bun.sleep(500);
    device.ws.close();
  },
  async babbler(address) {
    const { ws } = await Device.open(address);
    for (const frame of [
      'null',
      '[',
      '{"type":{}}',
      '['.repeat(30_000),
      '\0',
      '{"type":"__proto__"}',
    ])
      ws.send(frame);
    for (let i = 0; i < 10; i += 1) ws.send(new Uint8Array([0xff, i]));
    await closed(ws);
  },
  async flooder(address) {
    const { ws } = await Device.open(address);
    for (let i = 0; i < 2000; i += 1)
      ws.send(i % 2 ? '{"type":"done"}' : `{"type":"listen","otc":"${code()}"}`);
    await closed(ws);
  },
  async silent(address) {
    const { ws } = await Device.open(address);
    await closed(ws);
  },
  async giant(address) {
    const { ws } = await Device.open(address);
    ws.send(JSON.stringify({ type: 'data', payload: 'x'.repeat(70_000) }));
    await closed(ws);
  },
  async deaf(address) {
    const otc = code();
    const target = await Device.open(address);
    target.send({ type: 'listen', otc });
    const socket = await tcp(UPGRADE(address));
    await Bun.sleep(100);
    const text = JSON.stringify({ type: 'connect', otc });
    socket.write(
      Buffer.concat([Buffer.from([0x81, 0x80 | text.length, 0, 0, 0, 0]), Buffer.from(text)]),
    );
    socket.pause();
    await Bun.sleep(100);
    for (let i = 0; i < 100; i += 1) target.send({ type: 'data', payload: 'x'.repeat(60_000) });
    await Promise.race([closed(target.ws), Bun.sleep(35_000)]);
    socket.destroy();
  },
  async slowLoris(address) {
    const socket = await tcp(UPGRADE(address).slice(0, 60));
    for (let i = 60; i < 120 && !socket.destroyed; i += 1) {
      socket.write(UPGRADE(address).charAt(i));
      await Bun.sleep(200);
    }
    socket.destroy();
  },
  async churner(address) {
    for (let i = 0; i < 20; i += 1) (await Device.open(address)).ws.terminate();
  },
  async abandoner(address) {
    const device = await Device.open(address);
    device.send({ type: 'listen', otc: code() });
    if (random(2)) await closed(device.ws);
    else device.ws.terminate();
  },
  async watcher(address) {
    const device = await Device.open(address);
    for (let i = 0; i < 50; i += 1)
      device.send({ type: 'bootstrap_watch', jti: `x${random(1e9)}` });
    await Bun.sleep(1000);
    device.ws.terminate();
  },
  async replayer(address) {
    const device = await Device.open(address);
    for (let i = 0; i < 50; i += 1)
      device.send({ type: 'bootstrap_init', jti: 'x', token: 't', targetPubKey: 'k' });
    await Bun.sleep(1000);
    device.ws.close();
  },
};
const kinds = Object.values(hostilities);

// The run

async function scrape(): Promise<Map<string, number>> {
  const text = await (await fetch(`http://127.0.0.1:${started.metrics}/metrics`)).text();
  const lines = text.split('\n').filter((line) => line && !line.startsWith('#'));
  return new Map(
    lines.map((line) => [
      line.slice(0, line.lastIndexOf(' ')),
      Number(line.slice(line.lastIndexOf(' '))),
    ]),
  );
}

const end = performance.now() + RUN_MS;
const isOver = (): boolean => performance.now() >= end;

async function honestWorker(): Promise<void> {
  while (!isOver()) {
    try {
      await (random(10) ? pair() : bootstrap());
    } catch (error) {
      failures.push(String(error));
    }
    await Bun.sleep(random(100));
  }
}

async function hostileWorker(i: number): Promise<void> {
  // A few addresses each: limits are there to be met.
  const own = [newAddress(), newAddress(), newAddress()];
  while (!isOver()) {
    const kind = kinds[(i + random(2)) % kinds.length];
    await kind?.(own[random(own.length)] as string).catch(() => {});
    await Bun.sleep(50 + random(200));
  }
}

const quantile = (values: number[], q: number): number =>
  values.toSorted((a, b) => a - b)[Math.floor(values.length * q)] ?? Number.NaN;
const MiB = 1 << 20;
const rss: number[] = [];

async function progress(): Promise<void> {
  const start = performance.now();
  console.log(
    '  time  sessions  connections  pairings  failed  refusals  p99 ms  RSS MiB  loop p99 ms',
  );
  let seen = 0;
  while (!isOver()) {
    await Bun.sleep(Math.min(PROGRESS_MS, Math.max(0, end - performance.now())));
    const metrics = await scrape();
    const of = (name: string): number =>
      [...metrics].reduce(
        (sum, [key, value]) => (key.split('{')[0] === name ? sum + value : sum),
        0,
      );
    rss.push(of('amesh_relay_resident_memory_bytes'));
    const cells: [string | number, number][] = [
      [`${Math.round((performance.now() - start) / 1000)} s`, 6],
      [of('amesh_relay_sessions'), 10],
      [of('amesh_relay_connections'), 13],
      [done.pairings, 10],
      [failures.length, 8],
      [of('amesh_relay_refusals_total'), 10],
      [quantile(latencies.slice(seen), 0.99).toFixed(1), 8],
      [((rss.at(-1) ?? 0) / MiB).toFixed(0), 9],
      [
        (
          (metrics.get('amesh_relay_event_loop_delay_seconds{quantile="0.99"}') ?? 0) * 1000
        ).toFixed(1),
        13,
      ],
    ];
    seen = latencies.length;
    console.log(cells.map(([text, width]) => String(text).padStart(width)).join(''));
  }
}

console.log(
  `${HONEST} honest and ${HOSTILE} hostile clients for ${minutes} minutes, against Bun ${Bun.version}`,
);
const workers = [
  progress(),
  ...Array.from({ length: HONEST }, honestWorker),
  ...Array.from({ length: HOSTILE }, (_, i) => hostileWorker(i)),
];
await workers[0];
console.log('cooling down …');
console.log(
  `The load is over. ${COOL_DOWN_MS / 1000} s more, until sessions and limits have run out and every book should be empty.`,
);
await Bun.sleep(COOL_DOWN_MS);
const books = [...(await scrape())].filter(
  ([name]) => name.startsWith('amesh_relay_book_entries') && !name.includes('burnt'),
);
const left = books.filter(([, entries]) => entries > 0);
const fifth = Math.max(1, Math.floor(rss.length / 5));
const [early, late] = [
  quantile(rss.slice(fifth, 2 * fifth), 0.5),
  quantile(rss.slice(-fifth), 0.5),
];
relay.kill('SIGTERM');
const exitCode = await relay.exited;

const verdicts: [boolean, string][] = [
  [
    failures.length === 0 && done.pairings > 0,
    `${done.pairings} honest pairings and ${done.bootstraps} bootstraps, ${failures.length} failed${failures.length ? `: ${[...new Set(failures)].slice(0, 5).join('; ')}` : ''}`,
  ],
  [
    late <= early * RSS_SLACK,
    `RSS ${(early / MiB).toFixed(0)} MiB in the second fifth of the run, ${(late / MiB).toFixed(0)} MiB in the last`,
  ],
  [
    left.length === 0 && books.length > 0,
    left.length
      ? `left in the books: ${left.map(([name, entries]) => `${name} ${entries}`).join(', ')}`
      : 'every book is empty',
  ],
  [exitCode === 0, `the relay ended with exit code ${exitCode}`],
];
console.log(
  `honest pairings: p50 ${quantile(latencies, 0.5).toFixed(1)} ms, p99 ${quantile(latencies, 0.99).toFixed(1)} ms; ${done.retries} codes were taken`,
);
for (const [ok, text] of verdicts) console.log(`${ok ? 'ok  ' : 'FAIL'} ${text}`);
process.exit(verdicts.every(([ok]) => ok) ? 0 : 1);
