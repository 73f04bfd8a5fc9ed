/**
 * A client for the amesh relay: pairing by code and bootstrap by token, for programs on your own devices.
 * Runs wherever there is a standard `WebSocket`: Bun, Node.js 22, browsers. It has no dependencies.
 *
 * Payloads are not encrypted. For encrypted and authenticated ones use `secure.ts`, which is built on this client.
 *
 * @example
 * const channel = await listen('wss://relay.example.com/ws', { onCode: (code) => show(code) });
 * channel.send('hello');
 * const answer = await channel.receive();
 * await channel.done();
 */
import { closes, type CloseReason, isReason } from '../wire/codes.ts';
import { type Bytes, fromBase64, toBase64 } from './base64.ts';
import { checkArgument, codeOf, RelayError, type RelayErrorCode, traced } from './errors.ts';
import { Inbox, timeLeft, type WaitOptions, within } from './inbox.ts';
import { proxyFor } from './proxy.ts';

export { RelayError, type RelayErrorCode, type WaitOptions };

/** The default timeout of `watch`, in milliseconds: longer than five minutes, after which the relay ends a watch. */
const WATCH_TIMEOUT_MS = 310_000;
/** How long `close` waits for the connection to close, in milliseconds. */
const CLOSE_WAIT_MS = 2000;
/** How many codes `listen` tries. A relay allows a client five failed codes a minute, so one attempt is left. */
const MAX_DRAWS = 4;

/** Options of every call that opens a connection to the relay. */
export interface ConnectOptions extends WaitOptions {
  /** The access token of a private relay. A browser cannot set a header, so it is sent in the URL. No error has it. */
  token?: string | undefined;
}

/** Options of calls that wait for the other device. */
export interface MeetOptions extends ConnectOptions {
  /** Called once, when the relay has accepted the code or the token id and the other device can connect. */
  onWaiting?: (() => void) | undefined;
}

/** Options of {@link listen} without a code. */
export interface ListenOptions extends ConnectOptions {
  /** Called once with the code, when the relay has accepted it: show it now. */
  onCode: (otc: string) => void;
}

/**
 * Waits for a device that connects with the same code; the relay keeps a code for 30 s. `listen` generates the code
 * with {@link generateCode}, and generates another one if somebody waits on it already.
 *
 * @param url The relay's WebSocket, such as `wss://relay.example.com/ws`.
 * @returns The channel to the other device, when it has connected.
 * @throws {RelayError} `otc_expired`: nobody came. `rate_limited`: wait a minute. `unauthorized`: the relay is private
 *   (only Bun can tell this apart from `unreachable`).
 */
export function listen(url: string | URL, options: ListenOptions): Promise<Channel>;
/**
 * Waits for a device that connects with this code.
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
  if (typeof first === 'string') {
    return meet(url, second, { type: 'listen', otc: first }, async (wire, over) => {
      await wire.expect('ack', over);
      second.onWaiting?.();
      await wire.expect('peer_found', over);
      return new Channel(wire);
    });
  }
  return traced(async () => {
    const { token, onCode } = first;
    const rest = timeLeft(first);
    for (let draw = 1; ; draw += 1) {
      const otc = generateCode();
      try {
        return await listen(url, otc, { ...rest(), token, onWaiting: () => onCode(otc) });
      } catch (error) {
        if (codeOf(error) !== 'otc_in_use' || draw === MAX_DRAWS) throw error;
      }
    }
  });
}

/**
 * Joins the device that listens on a code, at the same relay.
 *
 * @param otc The six digits that the other device shows.
 * @throws {RelayError} `otc_not_found`: nobody listens on it (any more). `peer_already_connected`: another device came
 *   first. `rate_limited`: five codes were wrong; wait a minute.
 */
export function connect(
  url: string | URL,
  otc: string,
  options: ConnectOptions = {},
): Promise<Channel> {
  return meet(url, options, { type: 'connect', otc }, async (wire, over) => {
    await wire.expect('peer_found', over);
    return new Channel(wire);
  });
}

/**
 * Waits for the device that boots with a token; the relay keeps a watch for five minutes.
 *
 * @param jti The token's id, 1 to 128 characters; nobody else may watch it at the same time.
 * @param options `timeoutMs` is 310,000 unless given.
 * @returns The device's announcement. Answer it.
 * @throws {RelayError} `watch_expired`: no device came. `jti_already_watched`, `rate_limited`.
 */
export function watch(
  url: string | URL,
  jti: string,
  options: MeetOptions = {},
): Promise<Announcement> {
  const patient = { ...options, timeoutMs: options.timeoutMs ?? WATCH_TIMEOUT_MS };
  return meet(url, patient, { type: 'bootstrap_watch', jti }, async (wire, over) => {
    await wire.expect('bootstrap_watching', over);
    options.onWaiting?.();
    const said = await wire.expect('bootstrap_init', over, 'token', 'targetPubKey');
    return new Announcement(wire, jti, said.token, said.targetPubKey);
  });
}

/** What a device announces when it boots with a token. */
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
 * Announces a device that boots with a token, and waits for the controller's answer. A token id works only once.
 *
 * @throws {RelayError} `no_watcher`: nobody watches for it yet, try again later. `token_already_used`: never try again.
 *   `rejected`: the controller refused, with its text in `detail`. `watcher_disconnected`: it left without an answer.
 *   If a controller refuses with one of the relay's own codes, this cannot be told apart from a refusal by the relay.
 */
export function announce(
  url: string | URL,
  { jti, token, targetPubKey }: Introduction,
  options: ConnectOptions = {},
): Promise<Acknowledgement> {
  const first = { type: 'bootstrap_init', jti, token, targetPubKey };
  return meet(url, options, first, async (wire, over) => {
    const said = await wire.expect('bootstrap_ack', over, 'controllerPubKey', 'controllerSig');
    await wire.close();
    return { controllerPubKey: said.controllerPubKey, controllerSig: said.controllerSig };
  });
}

/** Six random digits, 000000 to 999999, each code as likely as any other. */
export function generateCode(): string {
  const codes = 1_000_000;
  // Numbers after the last whole million are not used, since they would make low codes more likely.
  const end = 2 ** 32 - (2 ** 32 % codes);
  const draw = new Uint32Array(1);
  let number: number;
  do {
    number = crypto.getRandomValues(draw)[0] as number;
  } while (number >= end);
  return String(number % codes).padStart(6, '0');
}

/** A channel between two devices through the relay. Payloads that arrive are kept until they are received. */
class Channel implements AsyncIterable<string> {
  readonly #wire: Wire;

  constructor(wire: Wire) {
    this.#wire = wire;
  }

  /**
   * Sends a payload: a string of less than 64 KiB including its JSON escapes; or at most 49,000 bytes, which are sent
   * as standard base64 and received with {@link receiveBytes}.
   * @throws {RelayError} `invalid_argument`: it is neither of the two; nothing was sent, and the channel still works.
   *   Otherwise the channel has ended, with the reason.
   */
  send(payload: string | Uint8Array): void {
    const text: unknown = payload instanceof Uint8Array ? toBase64(payload) : payload;
    checkArgument(typeof text === 'string', 'a payload is a string or a Uint8Array');
    this.#wire.send({ type: 'data', payload: text });
  }

  /**
   * The next payload, in the order sent. All payloads that arrived are returned before the end is thrown.
   * @throws {RelayError} `peer_done`: the other side is finished. `peer_disconnected`: it left. `otc_expired`: the
   *   pairing ran out of time. After `timeout` and `aborted`, the channel still works: call `receive` again.
   */
  receive(options: WaitOptions = {}): Promise<string> {
    return within(options, async (over) => {
      const { payload } = await this.#wire.expect('data', over, 'payload');
      return payload;
    });
  }

  /**
   * The next payload, as the bytes that the other side gave to {@link send}.
   * @throws {RelayError} `invalid_payload`: it is not base64; the channel still works. Otherwise as {@link receive}.
   */
  receiveBytes(options: WaitOptions = {}): Promise<Bytes> {
    return traced(async () => {
      const bytes = fromBase64(await this.receive(options));
      if (!bytes) throw new RelayError('invalid_payload');
      return bytes;
    });
  }

  /** Every payload until the other side is finished. Throws the errors of {@link receive}, except `peer_done`. */
  async *[Symbol.asyncIterator](): AsyncGenerator<string, void, void> {
    try {
      for (;;) yield await this.receive();
    } catch (error) {
      if (codeOf(error) !== 'peer_done') throw error;
    }
  }

  /** Tells the other side, if it is still there, that this one is finished, and ends the channel. Never throws. */
  async done(): Promise<void> {
    if (!this.#wire.hasEnded) this.#wire.send({ type: 'done' });
    await this.#wire.close();
  }

  /** Closes the channel after everything has been sent. The other side gets `peer_disconnected`. Never throws. */
  async close(): Promise<void> {
    await this.#wire.close();
  }

  /** `await using` closes the channel at the end of its block. To end it as finished, call {@link done} before. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/** The announcement of a device that waits for an answer. */
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
   * @throws {RelayError} `not_watching`: the device left, or the five minutes are over; it did not get the answer.
   */
  acknowledge(
    { publicKey, controllerSig }: { publicKey: string; controllerSig: string },
    options: WaitOptions = {},
  ): Promise<void> {
    const { jti } = this;
    return this.#answer({ type: 'bootstrap_ack', jti, publicKey, controllerSig }, options);
  }

  /**
   * Refuses the device.
   * @param error The reason, which is sent to the device.
   * @throws {RelayError} `invalid_argument`: the reason is one of the relay's own codes, so the device would think that
   *   the relay refused; nothing was sent. Otherwise as {@link acknowledge}.
   */
  async reject(error = 'rejected', options: WaitOptions = {}): Promise<void> {
    const detail = `${error} is one of the relay's own codes; choose another text`;
    checkArgument(!isReason(error), detail);
    await this.#answer({ type: 'bootstrap_reject', jti: this.jti, error }, options);
  }

  /** Closes the connection. A device without an answer gets `watcher_disconnected`. Never throws. */
  async close(): Promise<void> {
    await this.#wire.close();
  }

  /** `await using` closes the connection at the end of its block. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #answer(frame: Frame, options: WaitOptions): Promise<void> {
    return within(options, async (over) => {
      try {
        this.#wire.send(frame);
        // The relay does not confirm an answer. But it always answers `done` with `no_session`, in order.
        this.#wire.send({ type: 'done' });
        await this.#wire.expect('error', over);
      } catch (error) {
        if (codeOf(error) !== 'no_session') throw error;
      } finally {
        await this.#wire.close();
      }
    });
  }
}

export type { Announcement, Channel };

interface Frame {
  type: string;
  [field: string]: unknown;
}

/** Opens a connection, sends its first frame, and runs `steps` on it. Closes the connection if they fail. */
function meet<T>(
  url: string | URL,
  options: ConnectOptions,
  first: Frame,
  steps: (wire: Wire, over: AbortSignal) => Promise<T>,
): Promise<T> {
  return within(options, async (over) => {
    over.throwIfAborted();
    const wire = new Wire(url, options.token, first);
    try {
      return await steps(wire, over);
    } catch (error) {
      void wire.close();
      throw error;
    }
  });
}

/** A connection to the relay. Frames are kept until they are asked for; the error of the end comes after the last. */
class Wire {
  readonly #socket: WebSocket;
  readonly #inbox = new Inbox<Frame>();
  #onClosed = (): void => {};
  readonly #closed = new Promise<void>((resolve) => {
    this.#onClosed = resolve;
  });

  /** @param first Sent when the connection is open. Frames with another `jti` than this one are refused. */
  constructor(url: string | URL, token: string | undefined, first: Frame) {
    this.#socket = openSocket(url, token);
    let opened = false;
    this.#socket.addEventListener('open', () => {
      opened = true;
      this.#socket.send(JSON.stringify(first));
    });
    this.#socket.addEventListener('message', ({ data }) => this.#take(data, first['jti']));
    // A connection that could not be opened gets an error event. In Node.js 22 no close event follows. And a call of
    // `close` gives another error event there at once, so these two events must not close the socket.
    this.#socket.addEventListener('error', (event) => {
      if (opened) return;
      this.#inbox.finish(unopenedError('message' in event ? event.message : undefined));
      this.#onClosed();
    });
    this.#socket.addEventListener('close', ({ code, reason }) => {
      this.#inbox.finish(opened ? closeError(code, reason) : new RelayError('unreachable'));
      this.#onClosed();
    });
  }

  get hasEnded(): boolean {
    return this.#inbox.end !== undefined || this.#socket.readyState > WebSocket.OPEN;
  }

  /** Sends a frame. Only after a frame has arrived, so the connection is open. */
  send(frame: Frame): void {
    // A closing socket would drop the frame silently.
    if (this.hasEnded) throw (this.#inbox.end ?? new RelayError('connection_lost')).again();
    this.#socket.send(JSON.stringify(frame));
  }

  /** The next frame. @throws {RelayError} `unexpected_frame`: it has another type, or a field is not a string. */
  async expect<Field extends string>(
    type: string,
    over: AbortSignal,
    ...fields: Field[]
  ): Promise<Record<Field, string>> {
    const frame = await this.#inbox.next(over);
    const missing = fields.find((field) => typeof frame[field] !== 'string');
    if (frame.type === type && !missing) return frame as Frame & Record<Field, string>;
    const detail = frame.type === type ? `${type} without ${missing}` : frame.type;
    const error = new RelayError('unexpected_frame', detail);
    this.#finish(error);
    throw error;
  }

  async close(): Promise<void> {
    this.#finish(new RelayError('closed'));
    const timer = setTimeout(this.#onClosed, CLOSE_WAIT_MS);
    await this.#closed;
    clearTimeout(timer);
  }

  #take(data: unknown, jti: unknown): void {
    const frame = decode(data);
    if (!frame) this.#finish(new RelayError('unexpected_frame'));
    else if (frame['jti'] !== undefined && frame['jti'] !== jti) {
      this.#finish(new RelayError('unexpected_frame', `${frame.type} for another jti`));
    } else if (frame.type === 'done') this.#finish(new RelayError('peer_done'));
    else if (frame.type === 'error') this.#finish(reasonError(frame['code'], 'unexpected_frame'));
    else if (frame.type === 'bootstrap_reject')
      this.#finish(reasonError(frame['error'], 'rejected'));
    else this.#inbox.put(frame);
  }

  #finish(end: RelayError): void {
    this.#inbox.finish(end);
    this.#socket.close(1000);
  }
}

/** The part of `process` that is used, on runtimes that have it. */
interface Environment {
  versions?: Record<string, string>;
  env?: Record<string, string | undefined>;
}

function openSocket(address: string | URL, token: string | undefined): WebSocket {
  if (typeof WebSocket === 'undefined') throw new RelayError('no_websocket');
  const url = URL.canParse(String(address)) ? new URL(address) : undefined;
  if (url?.protocol !== 'ws:' && url?.protocol !== 'wss:') throw new RelayError('invalid_url');
  if (token !== undefined) url.searchParams.set('token', token);
  // Node.js uses a proxy with NODE_USE_ENV_PROXY=1, a browser by its own settings. For Bun it must be given here.
  const { process: { versions, env } = {} } = globalThis as { process?: Environment };
  const proxy = versions?.['bun'] ? proxyFor(url, env ?? {}) : undefined;
  try {
    return new WebSocket(url.href, proxy ? ({ proxy } as object as string[]) : []);
  } catch {
    // The runtime's error is left out: it contains the URL, and so perhaps the access token or the proxy's password.
    throw new RelayError(
      'invalid_url',
      proxy && 'or the URL of its HTTP proxy is not http:// or https://',
    );
  }
}

/** Why no connection could be opened. Bun tells the HTTP status; Node.js and browsers do not. */
function unopenedError(said: unknown): RelayError {
  // Remove the URL from Bun's message, since it may contain the access token.
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

/** The error for a reason that came from the relay, or through it from a controller. */
function reasonError(reason: unknown, otherwise: 'unexpected_frame' | 'rejected'): RelayError {
  if (typeof reason !== 'string') return new RelayError(otherwise);
  return isReason(reason) ? new RelayError(reason) : new RelayError(otherwise, reason);
}

function closeError(code: number, reason: string): RelayError {
  if (code === 1009) return new RelayError('frame_too_large');
  const known = (Object.keys(closes) as CloseReason[]).filter((name) => closes[name].code === code);
  // A proxy may drop the reason. Then only the code is known.
  const why = known.find((name) => name === reason) ?? known[0];
  return why ? new RelayError(why) : new RelayError('connection_lost', `close code ${code}`);
}
