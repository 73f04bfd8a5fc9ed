/**
 * A client for the amesh relay: pairing by code and bootstrap by token, for people who write their own devices.
 * Runs wherever there is a standard `WebSocket`: Bun, Node.js 22, browsers. Needs nothing else.
 *
 * Payloads cross the relay as they are. Who wants them encrypted and authenticated uses `secure.ts`, which is built on this.
 *
 * @example
 * const channel = await listen('wss://relay.example.com/ws', { onCode: (code) => show(code) });
 * channel.send('hello');
 * const answer = await channel.receive();
 * await channel.done();
 */
import { closes, type CloseReason, isReason } from '../wire/codes.ts';
import { type Bytes, fromBase64, toBase64 } from './base64.ts';
import { RelayError, type RelayErrorCode, traced } from './errors.ts';
import { Inbox, Wait, type WaitOptions } from './inbox.ts';
import { proxyFor } from './proxy.ts';

export { RelayError, type RelayErrorCode, type WaitOptions };

/** How long anything waits unless told otherwise, in milliseconds. */
const DEFAULT_TIMEOUT_MS = 60_000;
/** The relay ends a watch after five minutes and says so; what waits for it should still be there. */
const WATCH_TIMEOUT_MS = 310_000;
/** How long a closed connection may take to say goodbye, in milliseconds. */
const FAREWELL_MS = 2000;
/** How many codes `listen` draws. A relay takes five failed codes a minute from a client; this leaves one to spare. */
const MAX_DRAWS = 4;

/** For everything that opens a connection to the relay. */
export interface ConnectOptions extends WaitOptions {
  /**
   * The access token of a private relay; it goes out as `?token=…` of the URL, since a browser can set no header.
   * No error holds it.
   */
  token?: string | undefined;
}

/** For what waits until the other device is there. */
export interface MeetOptions extends ConnectOptions {
  /** Called once, when the relay has taken the code or the token id and the other device may come. */
  onWaiting?: (() => void) | undefined;
}

/** For a device that leaves the choice of its code to {@link listen}. */
export interface ListenOptions extends ConnectOptions {
  /** Called once, with the code, when the relay has taken it: show it now. */
  onCode: (otc: string) => void;
}

/**
 * Waits for a device that presents the same code; the relay keeps a code for 30 s. `listen` draws the code, as
 * {@link generateCode} does, and draws another where somebody waits on it already.
 *
 * @param url The relay's WebSocket, such as `wss://relay.example.com/ws`.
 * @returns The channel to the other device, once it is there.
 * @throws {RelayError} `otc_expired`: nobody came. `rate_limited`: wait a minute. `unauthorized`: the relay is private
 *   (Bun alone tells this apart from `unreachable`).
 */
export function listen(url: string | URL, options: ListenOptions): Promise<Channel>;
/**
 * Waits for a device that presents this code.
 *
 * @param otc Six digits. A code is used once.
 * @throws {RelayError} `otc_in_use`: choose another code. Otherwise as above.
 */
export function listen(url: string | URL, otc: string, options?: MeetOptions): Promise<Channel>;
export function listen(
  url: string | URL,
  first: ListenOptions | string,
  second: MeetOptions = {},
): Promise<Channel> {
  if (typeof first === 'string') return traced(() => listenOn(url, first, second));
  return traced(async () => {
    for (let draw = 1; ; draw += 1) {
      const otc = generateCode();
      try {
        return await listenOn(url, otc, { ...first, onWaiting: () => first.onCode(otc) });
      } catch (error) {
        const isTaken = error instanceof RelayError && error.code === 'otc_in_use';
        if (!isTaken || draw === MAX_DRAWS) throw error;
      }
    }
  });
}

function listenOn(url: string | URL, otc: string, options: MeetOptions): Promise<Channel> {
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
export function connect(
  url: string | URL,
  otc: string,
  options: ConnectOptions = {},
): Promise<Channel> {
  return traced(() =>
    meet(url, options, DEFAULT_TIMEOUT_MS, async (wire, wait) => {
      wire.send({ type: 'connect', otc });
      await wire.expect('peer_found', wait);
      return new Channel(wire);
    }),
  );
}

/**
 * Watches for the device that boots with a token; the relay keeps a watch for five minutes.
 *
 * @param jti The token's id, 1 to 128 characters; nobody else may watch it at the time.
 * @param options `timeoutMs` is 310,000 unless given.
 * @returns The device's announcement, which is to be answered.
 * @throws {RelayError} `watch_expired`: no device came. `jti_already_watched`, `rate_limited`.
 */
export function watch(
  url: string | URL,
  jti: string,
  options: MeetOptions = {},
): Promise<Announcement> {
  return traced(() =>
    meet(url, options, WATCH_TIMEOUT_MS, async (wire, wait) => {
      wire.jti = jti;
      wire.send({ type: 'bootstrap_watch', jti });
      await wire.expect('bootstrap_watching', wait);
      options.onWaiting?.();
      const frame = await wire.expect('bootstrap_init', wait);
      const [token, key] = [wire.text(frame, 'token'), wire.text(frame, 'targetPubKey')];
      return new Announcement(wire, jti, token, key);
    }),
  );
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
 *   The wire does not tell a controller that refuses in the relay's words from the relay.
 */
export function announce(
  url: string | URL,
  { jti, token, targetPubKey }: Introduction,
  options: ConnectOptions = {},
): Promise<Acknowledgement> {
  return traced(() =>
    meet(url, options, DEFAULT_TIMEOUT_MS, async (wire, wait) => {
      wire.jti = jti;
      wire.send({ type: 'bootstrap_init', jti, token, targetPubKey });
      const frame = await wire.expect('bootstrap_ack', wait);
      const controllerPubKey = wire.text(frame, 'controllerPubKey');
      const controllerSig = wire.text(frame, 'controllerSig');
      await wire.close();
      return { controllerPubKey, controllerSig };
    }),
  );
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
   * Sends a payload: any string, together with its JSON escapes under 64 KiB; or bytes, which go out as standard base64
   * (so at most 49,000 of them) and are received with {@link receiveBytes}.
   * @throws {RelayError} `invalid_argument`: neither of the two; nothing was sent, and the channel goes on. Otherwise
   *   the channel has ended, with the reason.
   */
  send(payload: string | Uint8Array): void {
    const text: unknown = payload instanceof Uint8Array ? toBase64(payload) : payload;
    if (typeof text !== 'string') {
      throw new RelayError('invalid_argument', 'a payload is a string or a Uint8Array');
    }
    this.#wire.send({ type: 'data', payload: text });
  }

  /**
   * The next payload, in the order sent. What came before the end is handed out before the end is told.
   * @throws {RelayError} `peer_done`: the other side is finished. `peer_disconnected`: it left. `otc_expired`: the
   *   pairing ran out of time. After `timeout` and `aborted`, the channel goes on and can be asked again.
   */
  receive(options: WaitOptions = {}): Promise<string> {
    return traced(async () => {
      const wait = new Wait(options, DEFAULT_TIMEOUT_MS);
      try {
        return this.#wire.text(await this.#wire.expect('data', wait), 'payload');
      } finally {
        wait.end();
      }
    });
  }

  /**
   * The next payload, as the bytes that the other side gave to {@link send}.
   * @throws {RelayError} `invalid_payload`: it is not base64; the channel goes on. Otherwise as {@link receive} does.
   */
  receiveBytes(options: WaitOptions = {}): Promise<Bytes> {
    return traced(async () => {
      const bytes = fromBase64(await this.receive(options));
      if (!bytes) throw new RelayError('invalid_payload');
      return bytes;
    });
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

  /** `await using` closes the channel where its block ends; say {@link done} before, if that is what you mean. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
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
  acknowledge(
    { publicKey, controllerSig }: { publicKey: string; controllerSig: string },
    options: WaitOptions = {},
  ): Promise<void> {
    const { jti } = this;
    return traced(() =>
      this.#answer({ type: 'bootstrap_ack', jti, publicKey, controllerSig }, options),
    );
  }

  /**
   * Refuses the device.
   * @param error Why, in a word that the device is given.
   * @throws {RelayError} `invalid_argument`: the word is one of the relay's own, which the device would take for the
   *   relay's; nothing was sent. Otherwise as {@link acknowledge} does.
   */
  reject(error = 'rejected', options: WaitOptions = {}): Promise<void> {
    return traced(async () => {
      if (isReason(error)) {
        throw new RelayError(
          'invalid_argument',
          `${error} is what the relay says, choose another word`,
        );
      }
      await this.#answer({ type: 'bootstrap_reject', jti: this.jti, error }, options);
    });
  }

  /** Leaves without an answer: the device gets `watcher_disconnected`. Never throws. */
  async close(): Promise<void> {
    await this.#wire.close();
  }

  /** `await using` leaves where its block ends; after an answer there is nothing left to leave. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
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
  options: ConnectOptions,
  timeoutMs: number,
  steps: (wire: Wire, wait: Wait) => Promise<T>,
): Promise<T> {
  const wait = new Wait(options, timeoutMs);
  let wire: Wire | undefined;
  try {
    if (wait.over) throw wait.over;
    wire = new Wire(url, options.token);
    return await steps(wire, wait);
  } catch (error) {
    void wire?.close();
    throw error;
  } finally {
    wait.end();
  }
}

/** A connection that misses nothing: frames are kept from the first on, and its end is told after the last. */
class Wire {
  /** The token id that this connection is about, if it is about one. */
  jti: string | undefined;
  readonly #socket: WebSocket;
  readonly #unsent: Frame[] = [];
  readonly #inbox = new Inbox<Frame>();
  readonly #gone: Promise<void>;

  constructor(url: string | URL, token: string | undefined) {
    this.#socket = openSocket(url, token);
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
        this.#finish(unopenedError('message' in event ? event.message : undefined));
        resolve();
      });
      this.#socket.addEventListener('close', ({ code, reason }) => {
        this.#finish(opened ? closeError(code, reason) : new RelayError('unreachable'));
        resolve();
      });
    });
  }

  get hasEnded(): boolean {
    return this.#inbox.end !== undefined || this.#socket.readyState > WebSocket.OPEN;
  }

  /** Sends a frame, or keeps it until the connection is open. */
  send(frame: Frame): void {
    // A socket that is closing takes what it is given, and drops it without a word.
    if (this.hasEnded) throw (this.#inbox.end ?? new RelayError('connection_lost')).again();
    if (this.#socket.readyState === WebSocket.CONNECTING) this.#unsent.push(frame);
    else this.#socket.send(JSON.stringify(frame));
  }

  /** The next frame, which is to be of this type. */
  async expect(type: string, wait: Wait): Promise<Frame> {
    const frame = await this.#inbox.next(wait);
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

  #take(data: unknown): void {
    const frame = decode(data);
    if (!frame) this.#finish(new RelayError('unexpected_frame'));
    else if (frame['jti'] !== undefined && frame['jti'] !== this.jti) {
      this.#finish(new RelayError('unexpected_frame', `${frame.type} for another jti`));
    } else if (frame.type === 'done') this.#finish(new RelayError('peer_done'));
    else if (frame.type === 'error') this.#finish(spokenError(frame.code, 'unexpected_frame'));
    else if (frame.type === 'bootstrap_reject') this.#finish(spokenError(frame.error, 'rejected'));
    else this.#inbox.put(frame);
  }

  #finish(end: RelayError): void {
    this.#inbox.finish(end);
    this.#socket.close(1000);
  }

  #unexpected(what: string): RelayError {
    const error = new RelayError('unexpected_frame', what);
    this.#finish(error);
    return error;
  }
}

/** What `process` is where there is one. */
interface Environment {
  versions?: Record<string, string>;
  env?: Record<string, string | undefined>;
}

function openSocket(address: string | URL, token: string | undefined): WebSocket {
  if (typeof WebSocket === 'undefined') throw new RelayError('no_websocket');
  if (!URL.canParse(String(address))) throw new RelayError('invalid_url');
  const url = new URL(address);
  if (url.protocol !== 'ws:' && url.protocol !== 'wss:') throw new RelayError('invalid_url');
  if (token !== undefined) url.searchParams.set('token', token);
  // Node.js goes through a proxy with NODE_USE_ENV_PROXY=1, a browser by its own settings; Bun has to be told.
  const { process: { versions, env } = {} } = globalThis as { process?: Environment };
  const proxy = versions?.['bun'] ? proxyFor(url, env ?? {}) : undefined;
  try {
    return proxy
      ? new WebSocket(url.href, { proxy } as object as string[])
      : new WebSocket(url.href);
  } catch {
    // What the runtime says of it holds the URL, and so perhaps the access token or the proxy's password.
    throw new RelayError('invalid_url', proxy && 'or its HTTP proxy is not http:// or https://');
  }
}

/** Why no connection came about. Bun tells the status; Node.js and browsers don't, for a page's own good. */
function unopenedError(said: unknown): RelayError {
  // Before the colon, Bun repeats the URL, which may hold the access token.
  const why =
    typeof said === 'string' ? said.replace(/^WebSocket connection to '.*' failed: /s, '') : '';
  const status = /^Expected 101 status code: (\d{3})/.exec(why)?.[1];
  if (status === '401') return new RelayError('unauthorized');
  if (status === '403') return new RelayError('origin_refused');
  if (status === '429') return new RelayError('rate_limited');
  return new RelayError('unreachable', why.trim() || undefined);
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
