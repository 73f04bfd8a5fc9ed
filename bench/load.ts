/**
 * The load: raw TCP with frames built by hand, so that the program that measures costs less than what it measures.
 * A pairing is what two deployed devices do: two upgrades, listen, connect, five payloads, the verdict and the close in
 * one breath.
 */
import type { Socket } from 'bun';

/** How devices meet on a server: which path they ask for, what they say first, and how a payload is wrapped. */
export interface Dialect {
  path(role: Role, code: string): string;
  /** What a device says first; undefined where the path has said it all. */
  hello(role: Role, code: string): string | undefined;
  /** The types of the frames that answer: to the target's hello, to the controller's, and to the target thereupon. */
  answers: { target: string; controller: string; met: string | undefined };
  data(from: Role, code: string, payload: string): string;
  dataType: string;
}

export type Role = 'target' | 'controller';

/** The relay's protocol, which the yardsticks `bare` and `ws` speak too. */
export const amesh: Dialect = {
  path: () => '/ws',
  hello: (role, otc) => JSON.stringify({ type: role === 'target' ? 'listen' : 'connect', otc }),
  answers: { target: 'ack', controller: 'peer_found', met: 'peer_found' },
  data: (_from, _code, payload) => JSON.stringify({ type: 'data', payload }),
  dataType: 'data',
};

/** PeerJS: a peer is known from its path on, and OFFER carries the payloads. */
export const peerjs: Dialect = {
  path: (role, code) => `/peerjs?key=peerjs&id=${role}${code}&token=t`,
  hello: () => undefined,
  answers: { target: 'OPEN', controller: 'OPEN', met: undefined },
  data: (from, code, payload) =>
    JSON.stringify({
      type: 'OFFER',
      dst: `${from === 'target' ? 'controller' : 'target'}${code}`,
      payload,
    }),
  dataType: 'OFFER',
};

/** Where the load goes. */
export interface Goal {
  port: number;
  dialect: Dialect;
  /** Whether each device names an address of its own, as a proxy in front of the server would. */
  strangers?: boolean;
}

/** Long enough for the slowest server under full load; what takes longer is a failure, and ends the run. */
const PATIENCE_MS = 20_000;
/** Loopback addresses in turn, since one has only 28,000 ports to be called from, each closed for a while after use. */
const ADDRESSES = 16;
/** Any key but zero, which some servers take a short cut for. */
const MASK = Uint8Array.of(0x5a, 0xc3, 0x96, 0x3c);
const TEXT = 0x1;
const CLOSE = 0x8;
const PING = 0x9;
const PONG = 0xa;

/** One masked frame, as a client sends it. */
function encode(opcode: number, body: Uint8Array): Buffer {
  const long = body.length > 125;
  const start = long ? 8 : 6;
  const frame = Buffer.allocUnsafe(start + body.length);
  frame[0] = 0x80 | opcode;
  frame[1] = 0x80 | (long ? 126 : body.length);
  if (long) frame.writeUInt16BE(body.length, 2);
  frame.set(MASK, start - 4);
  for (let i = 0; i < body.length; i++) {
    frame[start + i] = (body[i] as number) ^ (MASK[i & 3] as number);
  }
  return frame;
}

const text = (message: string): Buffer => encode(TEXT, Buffer.from(message));
const goodbye = encode(CLOSE, Uint8Array.of(1000 >> 8, 1000 & 0xff));

let calls = 0;

/** One client's end of a WebSocket. */
class Device {
  readonly closed = Promise.withResolvers<void>();
  /** Called for each frame while set, in place of {@link next}. */
  onFrame: (() => void) | undefined;
  #socket: Socket<Device> | undefined;
  #rest: Buffer | undefined;
  #upgraded = Promise.withResolvers<void>();
  #isUpgraded = false;
  #arrived: string[] = [];
  #awaited: ((type: string) => void) | undefined;
  #leaving = false;

  static async open({ port, strangers }: Goal, path: string): Promise<Device> {
    const device = new Device();
    const hostname = `127.0.0.${1 + (calls++ % ADDRESSES)}`;
    const stranger = `10.${(calls >> 16) & 255}.${(calls >> 8) & 255}.${calls & 255}`;
    const from = strangers ? `X-Forwarded-For: ${stranger}\r\n` : '';
    await Bun.connect({ hostname, port, data: device, socket: handlers });
    device.send(
      Buffer.from(
        `GET ${path} HTTP/1.1\r\nHost: ${hostname}:${port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n` +
          `Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n${from}\r\n`,
      ),
    );
    await device.#upgraded.promise;
    return device;
  }

  opened(socket: Socket<Device>): void {
    this.#socket = socket;
    socket.setNoDelay(true);
  }

  send(bytes: Buffer): void {
    if (this.#socket?.write(bytes) !== bytes.length) {
      throw new Error('the server does not take what it is sent');
    }
  }

  /** Waits for the next frame, which must be of this type. */
  async next(expected: string): Promise<void> {
    const type = this.#arrived.shift() ?? (await this.#arrival());
    if (type !== expected) throw new Error(`expected "${expected}", got "${type}"`);
  }

  /** Says goodbye, in one write with a last frame where there is one. What still arrives no longer counts. */
  leave(last?: Buffer): Promise<void> {
    this.#leaving = true;
    this.send(last ? Buffer.concat([last, goodbye]) : goodbye);
    return this.closed.promise;
  }

  received(chunk: Buffer): void {
    let bytes = this.#rest ? Buffer.concat([this.#rest, chunk]) : chunk;
    this.#rest = undefined;
    if (!this.#isUpgraded) {
      const end = bytes.indexOf('\r\n\r\n');
      if (end < 0) return void (this.#rest = Buffer.from(bytes));
      if (!bytes.toString('latin1', 0, 12).endsWith('101')) {
        return this.failed(new Error(`no upgrade: ${bytes.toString('latin1', 0, end)}`));
      }
      this.#isUpgraded = true;
      this.#upgraded.resolve();
      bytes = bytes.subarray(end + 4);
    }
    let at = 0;
    while (bytes.length >= at + 2) {
      let length = bytes[at + 1] as number;
      let body = at + 2;
      if (length === 126) {
        if (bytes.length < at + 4) break;
        length = bytes.readUInt16BE(at + 2);
        body = at + 4;
      }
      if (bytes.length < body + length) break;
      this.#frame((bytes[at] as number) & 0x0f, bytes, body, body + length);
      at = body + length;
    }
    if (at < bytes.length) this.#rest = Buffer.from(bytes.subarray(at));
  }

  failed(error: Error): void {
    this.#upgraded.reject(error);
    this.#awaited?.(`nothing: ${error.message}`);
    this.closed.resolve();
  }

  #frame(opcode: number, bytes: Buffer, from: number, to: number): void {
    if (opcode === PING) return this.send(encode(PONG, bytes.subarray(from, to)));
    if (opcode === CLOSE) return void this.#socket?.end();
    if (this.#leaving) return;
    if (this.onFrame) return this.onFrame();
    // Every frame of every server starts with {"type":"…
    const start = from + '{"type":"'.length;
    const type = bytes.toString('latin1', start, bytes.indexOf(0x22, start));
    if (this.#awaited) this.#awaited(type);
    else this.#arrived.push(type);
  }

  #arrival(): Promise<string> {
    return new Promise((resolve) => {
      this.#awaited = (type) => {
        this.#awaited = undefined;
        resolve(type);
      };
    });
  }
}

const handlers = {
  open: (socket: Socket<Device>) => socket.data.opened(socket),
  data: (socket: Socket<Device>, chunk: Buffer) => socket.data.received(chunk),
  close: (socket: Socket<Device>) => socket.data.failed(new Error('closed')),
  error: (socket: Socket<Device>, error: Error) => socket.data.failed(error),
};

let codes = 0;
/** A new six-digit code each time, a million long. */
const nextCode = (): string => String(codes++ % 1_000_000).padStart(6, '0');

/** A target that has said what it waits for. */
async function target(goal: Goal, code: string): Promise<Device> {
  const { dialect } = goal;
  const device = await Device.open(goal, dialect.path('target', code));
  const hello = dialect.hello('target', code);
  if (hello !== undefined) device.send(text(hello));
  await device.next(dialect.answers.target);
  return device;
}

/** The controller that a waiting target meets; both know of each other then. */
async function controller(goal: Goal, code: string, waiting: Device): Promise<Device> {
  const { dialect } = goal;
  const device = await Device.open(goal, dialect.path('controller', code));
  const hello = dialect.hello('controller', code);
  if (hello !== undefined) device.send(text(hello));
  await device.next(dialect.answers.controller);
  if (dialect.answers.met !== undefined) await waiting.next(dialect.answers.met);
  return device;
}

/** What deployed devices exchange, by size: two ephemeral keys, two encrypted identities, the verdict. */
const payloads = [44, 44, 420, 420, 72].map((length) => 'A'.repeat(length));

/** One whole pairing. @returns Milliseconds from `listen` to the verdict. */
async function pair(goal: Goal): Promise<number> {
  const { dialect } = goal;
  const code = nextCode();
  const first = await Device.open(goal, dialect.path('target', code));
  const start = performance.now();
  const hello = dialect.hello('target', code);
  if (hello !== undefined) first.send(text(hello));
  await first.next(dialect.answers.target);
  const second = await controller(goal, code, first);
  let left: Promise<void> | undefined;
  for (const [i, payload] of payloads.entries()) {
    const role = i % 2 === 0 ? 'target' : 'controller';
    const [sender, receiver] = role === 'target' ? [first, second] : [second, first];
    const frame = text(dialect.data(role, code, payload));
    if (i === payloads.length - 1) left = sender.leave(frame);
    else sender.send(frame);
    await receiver.next(dialect.dataType);
  }
  const took = performance.now() - start;
  await Promise.all([left, second.leave()]);
  return took;
}

export interface Pairings {
  count: number;
  seconds: number;
  /** Milliseconds from `listen` to the verdict, one for each pairing. */
  latencies: number[];
}

/** Pairs devices for that long, so many pairings at a time. */
export async function pairings(goal: Goal, seconds: number, lanes: number): Promise<Pairings> {
  const latencies: number[] = [];
  const start = performance.now();
  const end = start + seconds * 1000;
  await within(
    seconds * 1000 + PATIENCE_MS,
    Array.from({ length: lanes }, async () => {
      while (performance.now() < end) latencies.push(await pair(goal));
    }),
  );
  return { count: latencies.length, seconds: (performance.now() - start) / 1000, latencies };
}

/** Two devices that have met. */
export interface Session {
  code: string;
  target: Device;
  controller: Device;
}

export async function sessions(goal: Goal, count: number): Promise<Session[]> {
  return within(
    PATIENCE_MS,
    Array.from({ length: count }, async () => {
      const code = nextCode();
      const first = await target(goal, code);
      return { code, target: first, controller: await controller(goal, code, first) };
    }),
  );
}

export async function endSessions(open: Session[]): Promise<void> {
  await within(
    PATIENCE_MS,
    open.flatMap((session) => [session.target.leave(), session.controller.leave()]),
  );
}

/** Frames of 1 KiB that a session may exchange: below the 5 MiB that the relay lets a session carry. */
const FRAMES_PER_SESSION = 5000;

/**
 * Each session plays ping-pong with frames of 1 KiB, for that long or until it has carried what it may.
 * @param burst Frames sent at a time, in one write.
 * @returns Frames forwarded.
 */
export async function pingPong(
  { dialect }: Goal,
  open: Session[],
  seconds: number,
  burst: number,
): Promise<number> {
  const payload = 'A'.repeat(1024);
  const end = performance.now() + seconds * 1000;
  let frames = 0;
  await within(
    seconds * 1000 + PATIENCE_MS,
    open.map(async (session) => {
      const { promise, resolve } = Promise.withResolvers<void>();
      const ping = repeat(text(dialect.data('target', session.code, payload)), burst);
      const pong = repeat(text(dialect.data('controller', session.code, payload)), burst);
      let left = Math.floor(FRAMES_PER_SESSION / (2 * burst));
      session.controller.onFrame = every(burst, () => session.controller.send(pong));
      session.target.onFrame = every(burst, () => {
        frames += 2 * burst;
        left -= 1;
        if (left === 0 || performance.now() >= end) resolve();
        else session.target.send(ping);
      });
      session.target.send(ping);
      await promise;
    }),
  );
  return frames;
}

/** Sockets that wait on a code each, opened a hundred at a time. */
export async function waiters(goal: Goal, count: number): Promise<Device[]> {
  const devices: Device[] = [];
  let left = count;
  await within(
    PATIENCE_MS * 2,
    Array.from({ length: 100 }, async () => {
      while (left-- > 0) devices.push(await target(goal, nextCode()));
    }),
  );
  return devices;
}

export async function leaveAll(devices: Device[]): Promise<void> {
  await within(
    PATIENCE_MS,
    devices.map((device) => device.leave()),
  );
}

export type { Device };

function repeat(frame: Buffer, times: number): Buffer {
  return Buffer.concat(Array.from({ length: times }, () => frame));
}

function every(times: number, step: () => void): () => void {
  let seen = 0;
  return () => {
    seen += 1;
    if (seen % times === 0) step();
  };
}

async function within<T>(ms: number, work: Promise<T>[]): Promise<T[]> {
  const { promise, reject } = Promise.withResolvers<never>();
  const timer = setTimeout(() => reject(new Error(`no end after ${ms} ms`)), ms);
  try {
    return await Promise.race([Promise.all(work), promise]);
  } finally {
    clearTimeout(timer);
  }
}
