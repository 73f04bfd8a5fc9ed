/** The tests' relay, on a free port with a clock that tests set, and clients that keep all frames. */
import { afterAll, afterEach } from 'bun:test';
import { readOptions, type RelayOptions } from '../src/config.ts';
import type { Log } from '../src/observe/log.ts';
import { errorCodes, rejectReasons } from '../src/wire/codes.ts';
import { RelayServer } from '../src/server.ts';

export type Frame = Record<string, unknown>;

/** How long anything may take before a test fails; without a failure nothing waits that long. */
const DEADLINE_MS = 5000;

const cleanUps: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

/** Every code that a relay has answered with, in any test of this run. */
const provoked = new Set<string>();

// `bun run check` runs every test, and asks that every code was provoked by one.
afterAll(() => {
  if (!process.env.EVERY_CODE) return;
  const codes = [...Object.keys(errorCodes), ...Object.keys(rejectReasons)];
  const missing = codes.filter((code) => !provoked.has(code));
  console.log(`codes provoked: ${codes.length - missing.length} of ${codes.length}`);
  if (missing.length > 0) throw new Error(`no test provokes ${missing.join(', ')}`);
});

/** Runs after the current test, in reverse order. */
export function afterThisTest(cleanUp: () => unknown): void {
  cleanUps.push(cleanUp);
}

/** The result of a promise, or an error that says what was waited for. */
export async function within<T>(promise: Promise<T>, what: string): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited in vain for ${what}`)), DEADLINE_MS);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** Waits until a condition is true. Checks it in every turn of the event loop. */
export async function until(condition: () => boolean, what: string): Promise<void> {
  const deadline = performance.now() + DEADLINE_MS;
  while (!condition()) {
    if (performance.now() > deadline) throw new Error(`waited in vain until ${what}`);
    await new Promise((resolve) => setImmediate(resolve));
  }
}

/** Ports that nobody listens on, at least now. */
export function freePorts(count: number): number[] {
  const held = Array.from({ length: count }, () =>
    Bun.listen({ hostname: '127.0.0.1', port: 0, socket: { data() {} } }),
  );
  return held.map((listener) => {
    listener.stop();
    return listener.port;
  });
}

export const freePort = (): number => freePorts(1)[0] as number;

/** A log that keeps its lines. */
export function memoryLog(): Log & { lines: string[] } {
  const lines: string[] = [];
  const at =
    (level: string) =>
    (message: string, fields: object = {}) => {
      lines.push(JSON.stringify({ level, message, ...fields }));
    };
  return { lines, debug: at('debug'), info: at('info'), warn: at('warn'), error: at('error') };
}

export class TestRelay {
  readonly log = memoryLog();
  readonly server: RelayServer;
  port = 0;
  #now = 1_000_000;

  constructor(options: RelayOptions) {
    this.server = new RelayServer(readOptions({ port: 0, host: '127.0.0.1', ...options }), {
      now: () => this.#now,
      log: this.log,
    });
  }

  get url(): string {
    return `ws://127.0.0.1:${this.port}/ws`;
  }

  get http(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  get sockets(): RelayServer['sockets'] {
    return this.server.sockets;
  }

  /** Moves the clock forward, and sweeps by default. */
  pass(milliseconds: number, { sweep = true } = {}): void {
    this.#now += milliseconds;
    while (sweep && this.sockets.sweep());
  }

  async connect(init?: { headers?: Record<string, string> }): Promise<Client> {
    return openClient(this.url, init);
  }

  /** A target and a controller that are paired. */
  async pair(otc = '482916'): Promise<{ target: Client; controller: Client }> {
    const [target, controller] = await Promise.all([this.connect(), this.connect()]);
    target.send({ type: 'listen', otc });
    await target.expect({ type: 'ack', message: 'session_open' });
    controller.send({ type: 'connect', otc });
    await Promise.all([target, controller].map((peer) => peer.expect({ type: 'peer_found' })));
    return { target, controller };
  }
}

/** Two instances used as one relay: sockets connect to them in turn, so that two peers are on different instances. */
class SpreadRelay extends TestRelay {
  readonly #other: TestRelay;
  #turn = 0;

  constructor(options: RelayOptions) {
    super(options);
    this.#other = new TestRelay(options);
  }

  async start(): Promise<void> {
    for (const relay of [this, this.#other]) {
      ({ port: relay.port } = await relay.server.start());
      afterThisTest(() => relay.server.stop());
    }
  }

  override get url(): string {
    this.#turn += 1;
    return this.#turn % 2 ? super.url : this.#other.url;
  }

  override pass(milliseconds: number, options?: { sweep?: boolean }): void {
    super.pass(milliseconds, options);
    this.#other.pass(milliseconds, options);
  }

  /** The sums of both instances. */
  override get sockets(): RelayServer['sockets'] {
    return summed([super.sockets, this.#other.sockets]);
  }
}

/** Combines objects into one: its numbers are their sums, and a call is made on all of them. */
function summed<T extends object>(parts: T[]): T {
  return new Proxy(parts[0] as T, {
    get(_first, name) {
      const values = parts.map((part) => part[name as keyof T] as unknown);
      const [value] = values;
      if (typeof value === 'number') {
        return (values as number[]).reduce((total, number) => total + number, 0);
      }
      if (typeof value === 'function') {
        return (...args: unknown[]) =>
          parts
            .map((part, i) => (values[i] as Function).apply(part, args) as unknown)
            .some(Boolean);
      }
      return typeof value === 'object' && value !== null ? summed(values as object[]) : value;
    },
  });
}

/** Set by the test that runs the wire's suite again, over two instances. */
const sharedRedis = process.env.AMESH_TEST_REDIS_URL;

/** Whether a test cannot run over two instances. Prints the reason. */
export function isNotForTwo(reason: string): boolean {
  if (sharedRedis) console.log(`SKIPPED over two instances: ${reason}`);
  return sharedRedis !== undefined;
}

/** Starts a relay that stops after the test. */
export async function startRelay(options: RelayOptions = {}): Promise<TestRelay> {
  if (sharedRedis) {
    const redisPrefix = `test-${crypto.randomUUID()}:`;
    const spread = new SpreadRelay({ redisUrl: sharedRedis, redisPrefix, ...options });
    await spread.start();
    return spread;
  }
  const relay = new TestRelay(options);
  ({ port: relay.port } = await relay.server.start());
  afterThisTest(() => relay.server.stop());
  return relay;
}

export interface Closed {
  code: number;
  reason: string;
}

/** A WebSocket whose frames are kept in a queue until they are asked for. */
export class Client {
  readonly closed: Promise<Closed>;
  readonly ws: WebSocket;
  readonly #frames: string[] = [];
  #wake = (): void => {};
  #closed: Closed | undefined;

  constructor(ws: WebSocket) {
    this.ws = ws;
    ws.addEventListener('message', (event) => {
      const frame = String(event.data);
      const code = /"(?:code|error)":"(\w+)"/.exec(frame)?.[1];
      if (code) provoked.add(code);
      this.#frames.push(frame);
      this.#wake();
    });
    this.closed = new Promise((resolve) => {
      ws.addEventListener('close', ({ code, reason }) => {
        this.#closed = { code, reason };
        this.#wake();
        resolve(this.#closed);
      });
    });
  }

  /** Sends objects as JSON, and strings and bytes unchanged. */
  send(frame: Frame | string | Uint8Array<ArrayBuffer>): void {
    this.ws.send(
      typeof frame === 'string' || frame instanceof Uint8Array ? frame : JSON.stringify(frame),
    );
  }

  close(code?: number): void {
    this.ws.close(code);
  }

  /** The next frame as text. */
  async nextText(): Promise<string> {
    const frame = this.#frames.shift();
    if (frame !== undefined) return frame;
    if (this.#closed) throw new Error(`closed (${this.#closed.code}) with no frame left`);
    await within(
      new Promise<void>((resolve) => {
        this.#wake = resolve;
      }),
      'a frame',
    );
    return this.nextText();
  }

  async next(): Promise<Frame> {
    return JSON.parse(await this.nextText()) as Frame;
  }

  /** Fails unless the next frame is exactly this one. */
  async expect(frame: Frame): Promise<void> {
    const text = await this.nextText();
    if (!Bun.deepEquals(JSON.parse(text), frame, true)) {
      throw new Error(`expected ${JSON.stringify(frame)}, got ${text}`);
    }
  }

  async expectError(code: string): Promise<void> {
    await this.expect({ type: 'error', code });
  }

  /** Sends a frame and fails unless it is answered with this error. */
  async refused(frame: Frame | string | Uint8Array<ArrayBuffer>, code: string): Promise<void> {
    this.send(frame);
    await this.expectError(code);
  }

  /** Fails unless the socket is closed with this code, and no frame is left. */
  async expectClose(code: number, reason: string): Promise<void> {
    const closed = await within(this.closed, `close ${code}`);
    if (closed.code !== code || closed.reason !== reason) {
      throw new Error(`expected close ${code} ${reason}, got ${closed.code} ${closed.reason}`);
    }
    if (this.#frames.length > 0) throw new Error(`unexpected frame ${this.#frames[0]}`);
  }

  /** Fails if the relay has sent anything: after a ping and its pong, everything it sent has arrived. */
  async expectNothing(): Promise<void> {
    const pong = Promise.withResolvers<void>();
    this.ws.addEventListener('pong' as 'message', () => pong.resolve(), { once: true });
    (this.ws as WebSocket & { ping: () => void }).ping();
    await within(pong.promise, 'a pong');
    if (this.#frames.length > 0) throw new Error(`unexpected frame ${this.#frames[0]}`);
  }
}

export async function openClient(url: string, init: object = {}): Promise<Client> {
  const ws = new WebSocket(url, init as string[]);
  const client = new Client(ws);
  await within(
    new Promise<void>((resolve, reject) => {
      ws.addEventListener('open', () => resolve());
      ws.addEventListener('error', () => reject(new Error('the socket did not open')));
    }),
    'a socket to open',
  );
  afterThisTest(() => ws.terminate());
  return client;
}
