/**
 * A client for the amesh relay: pairing by code and bootstrap by token, for people who write their own devices.
 * Runs wherever there is a standard `WebSocket`: Bun, Node.js 22, browsers. Needs nothing else.
 *
 * Payloads cross the relay as they are: encrypting and authenticating them is the two devices' own affair.
 *
 * @example
 * const code = generateCode();
 * const channel = await listen('wss://relay.example.com/ws', code, { onWaiting: () => show(code) });
 * channel.send('hello');
 * const answer = await channel.receive();
 * await channel.done();
 */
import { closes, type CloseReason, errorCodes, isReason, rejectReasons } from '../wire/codes.ts';

/** How long anything waits unless told otherwise, in milliseconds. */
const DEFAULT_TIMEOUT_MS = 60_000;
/** The relay ends a watch after five minutes and says so; what waits for it should still be there. */
const WATCH_TIMEOUT_MS = 310_000;
/** How long a closed connection may take to say goodbye, in milliseconds. */
const FAREWELL_MS = 2000;
/** The longest that a timer can run; beyond it there is none. */
const MAX_TIMER_MS = 2 ** 31 - 1;

const clientMeanings = {
  invalid_url: 'this is no ws:// or wss:// URL that can be opened',
  no_websocket: 'this runtime has no WebSocket: Bun, a browser, or Node.js 22 or later is needed',
  unreachable: 'no WebSocket connection came about at this URL',
  connection_lost: 'the connection ended without a word',
  frame_too_large: 'a frame was larger than the relay takes (64 KiB unless it is told otherwise)',
  unexpected_frame: 'the server said something that is not in the protocol',
  peer_done: 'the other side is finished',
  rejected: 'the controller refused',
  timeout: 'the deadline passed',
  aborted: 'the signal was aborted',
  closed: 'this side closed the connection',
} as const;

/** The relay's codes and reasons as the protocol names them, and the few that only this side can know. */
export type RelayErrorCode =
  keyof typeof errorCodes | keyof typeof rejectReasons | CloseReason | keyof typeof clientMeanings;

const meanings: Record<RelayErrorCode, string> = {
  ...errorCodes,
  ...rejectReasons,
  ...clientMeanings,
  ...(Object.fromEntries(
    Object.entries(closes).map(([reason, { means }]) => [reason, means]),
  ) as Record<CloseReason, string>),
};

/** The one error that everything here throws. Tell cases apart by `code`. */
export class RelayError extends Error {
  override name = 'RelayError';
  readonly code: RelayErrorCode;

  /**
   * @param detail What is known beyond the code, such as a controller's own words of refusal (`rejected`).
   * @param options `cause`: what a signal was aborted with, or what the runtime threw.
   */
  constructor(
    code: RelayErrorCode,
    readonly detail?: string,
    options?: ErrorOptions,
  ) {
    super(`${code}: ${meanings[code]}${detail ? ` (${detail})` : ''}`, options);
    this.code = code;
  }
}

/** For everything that waits. */
export interface WaitOptions {
  /** Milliseconds until it gives up with `timeout`; `Infinity` for never. Default 60,000. */
  timeoutMs?: number | undefined;
  /** Gives up with `aborted` when the signal is. */
  signal?: AbortSignal | undefined;
}

/** For what waits until the other device is there. */
export interface MeetOptions extends WaitOptions {
  /** Called once, when the relay has taken the code or the token id and the other device may come. */
  onWaiting?: (() => void) | undefined;
}

/**
 * Waits for a device that presents the same code; the relay keeps a code for 30 s.
 *
 * @param url The relay's WebSocket, such as `wss://relay.example.com/ws`.
 * @param otc Six digits, such as {@link generateCode} makes.
 * @returns The channel to the other device, once it is there.
 * @throws {RelayError} `otc_in_use`: choose another code. `otc_expired`: nobody came. `rate_limited`: wait a minute.
 */
export async function listen(
  url: string | URL,
  otc: string,
  options: MeetOptions = {},
): Promise<Channel> {
  return meet(url, options, DEFAULT_TIMEOUT_MS, async (wire, wait) => {
    wire.send({ type: 'listen', otc });
    await wire.expect('ack', wait);
    options.onWaiting?.();
    await wire.expect('peer_found', wait);
    return new Channel(wire);
  });
}

/**
 * Joins the device that listens on a code.
 *
 * @param url The relay's WebSocket, the same that the other device uses.
 * @param otc The six digits that the other device shows.
 * @throws {RelayError} `otc_not_found`: nobody listens on it (any more). `peer_already_connected`: another device came
 *   first. `rate_limited`: five codes were wrong; wait a minute.
 */
export async function connect(
  url: string | URL,
  otc: string,
  options: WaitOptions = {},
): Promise<Channel> {
  return meet(url, options, DEFAULT_TIMEOUT_MS, async (wire, wait) => {
    wire.send({ type: 'connect', otc });
    await wire.expect('peer_found', wait);
    return new Channel(wire);
  });
}

/**
 * Watches for the device that boots with a token; the relay keeps a watch for five minutes.
 *
 * @param jti The token's id, 1 to 128 characters; nobody else may watch it at the time.
 * @param options `timeoutMs` is 310,000 unless given.
 * @returns The device's announcement, which is to be answered.
 * @throws {RelayError} `watch_expired`: no device came. `jti_already_watched`, `rate_limited`.
 */
export async function watch(
  url: string | URL,
  jti: string,
  options: MeetOptions = {},
): Promise<Announcement> {
  return meet(url, options, WATCH_TIMEOUT_MS, async (wire, wait) => {
    wire.send({ type: 'bootstrap_watch', jti });
    await wire.expect('bootstrap_watching', wait);
    options.onWaiting?.();
    const frame = await wire.expect('bootstrap_init', wait);
    return new Announcement(wire, jti, wire.text(frame, 'token'), wire.text(frame, 'targetPubKey'));
  });
}

/** What a device says of itself when it boots with a token. */
export interface Introduction {
  /** The token's id. */
  jti: string;
  /** The token, which the controller verifies. */
  token: string;
  /** The device's public key. */
  targetPubKey: string;
}

/** A controller's answer to an announcement. */
export interface Acknowledgement {
  controllerPubKey: string;
  /** The controller's signature, for the device to verify. */
  controllerSig: string;
}

/**
 * Announces a device that boots with a token, and waits for the controller's answer. The relay takes a token id once.
 *
 * @throws {RelayError} `no_watcher`: nobody watches for it yet, try again later. `token_already_used`: never try again.
 *   `rejected`: the controller refused, in its own words in `detail`. `watcher_disconnected`: it left without an answer.
 */
export async function announce(
  url: string | URL,
  { jti, token, targetPubKey }: Introduction,
  options: WaitOptions = {},
): Promise<Acknowledgement> {
  return meet(url, options, DEFAULT_TIMEOUT_MS, async (wire, wait) => {
    wire.send({ type: 'bootstrap_init', jti, token, targetPubKey });
    const frame = await wire.expect('bootstrap_ack', wait);
    const controllerPubKey = wire.text(frame, 'controllerPubKey');
    const controllerSig = wire.text(frame, 'controllerSig');
    await wire.close();
    return { controllerPubKey, controllerSig };
  });
}

/** Six random digits, 000000 to 999999, each code as likely as any other. */
export function generateCode(): string {
  const codes = 1_000_000;
  // What lies past the last whole million would make the low codes likelier.
  const end = 2 ** 32 - (2 ** 32 % codes);
  const draw = new Uint32Array(1);
  let number: number;
  do {
    number = crypto.getRandomValues(draw)[0] as number;
  } while (number >= end);
  return String(number % codes).padStart(6, '0');
}

/** Two devices, talking through the relay. Whatever arrives is kept until it is received. */
class Channel implements AsyncIterable<string> {
  readonly #wire: Wire;

  constructor(wire: Wire) {
    this.#wire = wire;
  }

  /**
   * Sends a payload: any string, together with its JSON escapes under 64 KiB.
   * @throws {RelayError} When the channel has ended, with the reason.
   */
  send(payload: string): void {
    this.#wire.send({ type: 'data', payload });
  }

  /**
   * The next payload, in the order sent. What came before the end is handed out before the end is told.
   * @throws {RelayError} `peer_done`: the other side is finished. `peer_disconnected`: it left. `otc_expired`: the 30 s
   *   of a pairing are over. After `timeout` and `aborted`, the channel goes on and can be asked again.
   */
  async receive(options: WaitOptions = {}): Promise<string> {
    const wait = new Wait(options, DEFAULT_TIMEOUT_MS);
    try {
      return this.#wire.text(await this.#wire.expect('data', wait), 'payload');
    } finally {
      wait.end();
    }
  }

  /** Every payload until the other side says that it is finished. Throws as {@link receive} does, `peer_done` apart. */
  async *[Symbol.asyncIterator](): AsyncGenerator<string, void, void> {
    try {
      for (;;) yield await this.receive();
    } catch (error) {
      if (!(error instanceof RelayError && error.code === 'peer_done')) throw error;
    }
  }

  /** Tells the other side, if it is still there, that this one is finished; ends the channel. Never throws. */
  async done(): Promise<void> {
    if (!this.#wire.hasEnded) this.#wire.send({ type: 'done' });
    await this.#wire.close();
  }

  /** Leaves, after all that was sent has gone out: the other side gets `peer_disconnected`. Never throws. */
  async close(): Promise<void> {
    await this.#wire.close();
  }
}

/** A device that announced itself, and waits to be answered. */
class Announcement implements Introduction {
  readonly #wire: Wire;

  constructor(
    wire: Wire,
    readonly jti: string,
    readonly token: string,
    readonly targetPubKey: string,
  ) {
    this.#wire = wire;
  }

  /**
   * Accepts the device.
   * @throws {RelayError} `not_watching`: the device left, or the five minutes are over; it was not told.
   */
  async acknowledge(
    { publicKey, controllerSig }: { publicKey: string; controllerSig: string },
    options: WaitOptions = {},
  ): Promise<void> {
    const { jti } = this;
    await this.#answer({ type: 'bootstrap_ack', jti, publicKey, controllerSig }, options);
  }

  /**
   * Refuses the device.
   * @param error Why, in a word that the device is given.
   * @throws {RelayError} As {@link acknowledge} does.
   */
  async reject(error = 'rejected', options: WaitOptions = {}): Promise<void> {
    await this.#answer({ type: 'bootstrap_reject', jti: this.jti, error }, options);
  }

  /** Leaves without an answer: the device gets `watcher_disconnected`. Never throws. */
  async close(): Promise<void> {
    await this.#wire.close();
  }

  async #answer(frame: Frame, options: WaitOptions): Promise<void> {
    const wait = new Wait(options, DEFAULT_TIMEOUT_MS);
    try {
      this.#wire.send(frame);
      // The relay says nothing to an answer that it passed on. It always says `no_session` to this, and in order.
      this.#wire.send({ type: 'done' });
      await this.#wire.expect('error', wait);
    } catch (error) {
      if (!(error instanceof RelayError && error.code === 'no_session')) throw error;
    } finally {
      wait.end();
      await this.#wire.close();
    }
  }
}

export type { Announcement, Channel };

interface Frame {
  type: string;
  [field: string]: unknown;
}

/** Opens a connection for a meeting, and closes it where that fails. */
async function meet<T>(
  url: string | URL,
  options: WaitOptions,
  timeoutMs: number,
  steps: (wire: Wire, wait: Wait) => Promise<T>,
): Promise<T> {
  const wait = new Wait(options, timeoutMs);
  let wire: Wire | undefined;
  try {
    if (wait.over) throw wait.over;
    wire = new Wire(url);
    return await steps(wire, wait);
  } catch (error) {
    void wire?.close();
    throw error;
  } finally {
    wait.end();
  }
}

/** One deadline and one signal, over any number of waits. */
class Wait {
  /** Why there is nothing left to wait for, once there isn't. */
  over: RelayError | undefined;
  /** Told when that happens. */
  onOver: ((error: RelayError) => void) | undefined;
  readonly #timer: ReturnType<typeof setTimeout> | undefined;
  readonly #signal: AbortSignal | undefined;

  constructor({ timeoutMs, signal }: WaitOptions, defaultTimeoutMs: number) {
    const limit = timeoutMs ?? defaultTimeoutMs;
    if (limit <= MAX_TIMER_MS) {
      this.#timer = setTimeout(() => this.#give(new RelayError('timeout', `${limit} ms`)), limit);
    }
    this.#signal = signal;
    if (signal?.aborted) this.#abort();
    else signal?.addEventListener('abort', this.#abort);
  }

  end(): void {
    clearTimeout(this.#timer);
    this.#signal?.removeEventListener('abort', this.#abort);
  }

  readonly #abort = (): void => {
    this.#give(new RelayError('aborted', undefined, { cause: this.#signal?.reason }));
  };

  #give(error: RelayError): void {
    this.over ??= error;
    this.onOver?.(error);
  }
}

interface Waiter {
  resolve: (frame: Frame) => void;
  reject: (error: RelayError) => void;
}

/** A connection that misses nothing: frames are kept from the first on, and its end is told after the last. */
class Wire {
  readonly #socket: WebSocket;
  readonly #unsent: Frame[] = [];
  readonly #arrived: Frame[] = [];
  readonly #waiters = new Set<Waiter>();
  readonly #gone: Promise<void>;
  #end: RelayError | undefined;

  constructor(url: string | URL) {
    this.#socket = openSocket(url);
    let opened = false;
    this.#socket.addEventListener('open', () => {
      opened = true;
      for (const frame of this.#unsent.splice(0)) this.#socket.send(JSON.stringify(frame));
    });
    this.#socket.addEventListener('message', ({ data }) => this.#take(data));
    this.#gone = new Promise((resolve) => {
      // A connection that never came about ends with an error event; Node.js 22 lets no close event follow.
      this.#socket.addEventListener('error', (event) => {
        if (opened) return;
        const said = 'message' in event && typeof event.message === 'string' && event.message;
        this.#finish(new RelayError('unreachable', said || undefined));
        resolve();
      });
      this.#socket.addEventListener('close', ({ code, reason }) => {
        this.#finish(opened ? closeError(code, reason) : new RelayError('unreachable'));
        resolve();
      });
    });
  }

  get hasEnded(): boolean {
    return this.#end !== undefined;
  }

  /** Sends a frame, or keeps it until the connection is open. */
  send(frame: Frame): void {
    if (this.#end) throw this.#end;
    if (this.#socket.readyState === WebSocket.CONNECTING) this.#unsent.push(frame);
    else this.#socket.send(JSON.stringify(frame));
  }

  /** The next frame, which is to be of this type. */
  async expect(type: string, wait: Wait): Promise<Frame> {
    const frame = await this.#next(wait);
    if (frame.type !== type) throw this.#unexpected(frame.type);
    return frame;
  }

  /** A field of a frame that is to be a string. */
  text(frame: Frame, field: string): string {
    const value = frame[field];
    if (typeof value !== 'string') throw this.#unexpected(`${frame.type} without ${field}`);
    return value;
  }

  async close(): Promise<void> {
    this.#finish(new RelayError('closed'));
    let timer: ReturnType<typeof setTimeout> | undefined;
    const enough = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, FAREWELL_MS);
    });
    await Promise.race([this.#gone, enough]);
    clearTimeout(timer);
  }

  #next(wait: Wait): Promise<Frame> {
    return new Promise((resolve, reject) => {
      if (wait.over) return reject(wait.over);
      const frame = this.#arrived.shift();
      if (frame) return resolve(frame);
      if (this.#end) return reject(this.#end);
      const waiter = { resolve, reject };
      this.#waiters.add(waiter);
      wait.onOver = (error) => {
        if (this.#waiters.delete(waiter)) reject(error);
      };
    });
  }

  #take(data: unknown): void {
    if (this.#end) return;
    const frame = decode(data);
    if (!frame) this.#finish(new RelayError('unexpected_frame'));
    else if (frame.type === 'done') this.#finish(new RelayError('peer_done'));
    else if (frame.type === 'error') this.#finish(spokenError(frame.code, 'unexpected_frame'));
    else if (frame.type === 'bootstrap_reject') this.#finish(spokenError(frame.error, 'rejected'));
    else {
      const [waiter] = this.#waiters;
      if (!waiter) this.#arrived.push(frame);
      else if (this.#waiters.delete(waiter)) waiter.resolve(frame);
    }
  }

  /** The first end is the one that counts. */
  #finish(end: RelayError): void {
    if (this.#end) return;
    this.#end = end;
    for (const waiter of this.#waiters) waiter.reject(end);
    this.#waiters.clear();
    this.#socket.close(1000);
  }

  #unexpected(what: string): RelayError {
    const error = new RelayError('unexpected_frame', what);
    this.#finish(error);
    return error;
  }
}

function openSocket(url: string | URL): WebSocket {
  if (typeof WebSocket === 'undefined') throw new RelayError('no_websocket');
  try {
    const { protocol, href } = new URL(url);
    if (protocol === 'ws:' || protocol === 'wss:') return new WebSocket(href);
  } catch (cause) {
    throw new RelayError('invalid_url', undefined, { cause });
  }
  throw new RelayError('invalid_url');
}

function decode(data: unknown): Frame | undefined {
  if (typeof data !== 'string') return undefined;
  try {
    const frame = JSON.parse(data) as Frame | null;
    return typeof frame?.type === 'string' ? frame : undefined;
  } catch {
    return undefined;
  }
}

/** What the relay, or through it a controller, gave as the reason. */
function spokenError(reason: unknown, otherwise: 'unexpected_frame' | 'rejected'): RelayError {
  if (typeof reason !== 'string') return new RelayError(otherwise);
  return isReason(reason) ? new RelayError(reason) : new RelayError(otherwise, reason);
}

function closeError(code: number, reason: string): RelayError {
  if (code === 1009) return new RelayError('frame_too_large');
  const known = (Object.keys(closes) as CloseReason[]).filter((name) => closes[name].code === code);
  // A proxy may drop the reason; then the number has to do.
  const why = known.find((name) => name === reason) ?? known[0];
  return why ? new RelayError(why) : new RelayError('connection_lost', `close code ${code}`);
}
