/** What arrives and has not been asked for, and who asks for what has not arrived. */
import { RelayError } from './errors.ts';

/** The longest that a timer can run; beyond it there is none. */
const MAX_TIMER_MS = 2 ** 31 - 1;

/** For everything that waits. */
export interface WaitOptions {
  /** Milliseconds until it gives up with `timeout`; `Infinity` for never. Default 60,000 unless a call says otherwise. */
  timeoutMs?: number | undefined;
  /** Gives up with `aborted` when the signal is. */
  signal?: AbortSignal | undefined;
}

/** One deadline and one signal, over any number of waits. */
export class Wait {
  /** Why there is nothing left to wait for, once there isn't. */
  over: RelayError | undefined;
  /** Told when that happens. */
  onOver: ((error: RelayError) => void) | undefined;
  readonly #timer: ReturnType<typeof setTimeout> | undefined;
  readonly #signal: AbortSignal | undefined;

  /** @throws {RelayError} `invalid_argument`: `timeoutMs` is no number, or less than 0. */
  constructor({ timeoutMs, signal }: WaitOptions, defaultTimeoutMs: number) {
    const limit = timeoutMs ?? defaultTimeoutMs;
    if (!(typeof limit === 'number' && limit >= 0)) {
      throw new RelayError('invalid_argument', 'timeoutMs is milliseconds, 0 or more');
    }
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

interface Waiter<T> {
  resolve: (item: T) => void;
  reject: (error: RelayError) => void;
}

/** A queue that misses nothing: it keeps what arrives until it is asked for, and tells its end after the last. */
export class Inbox<T> {
  /** Why nothing more will arrive, once that is so. The first reason is the one that counts. */
  end: RelayError | undefined;
  readonly #arrived: T[] = [];
  readonly #waiters = new Set<Waiter<T>>();

  put(item: T): void {
    if (this.end) return;
    const [waiter] = this.#waiters;
    if (!waiter) this.#arrived.push(item);
    else if (this.#waiters.delete(waiter)) waiter.resolve(item);
  }

  finish(end: RelayError): void {
    if (this.end) return;
    this.end = end;
    for (const waiter of this.#waiters) waiter.reject(end);
    this.#waiters.clear();
  }

  /** The next item, in the order of arrival. A wait that is over takes nothing. */
  next(wait: Wait): Promise<T> {
    return new Promise((resolve, reject) => {
      if (wait.over) return reject(wait.over);
      if (this.#arrived.length > 0) return resolve(this.#arrived.shift() as T);
      if (this.end) return reject(this.end);
      const waiter = { resolve, reject };
      this.#waiters.add(waiter);
      wait.onOver = (error) => {
        if (this.#waiters.delete(waiter)) reject(error);
      };
    });
  }
}
