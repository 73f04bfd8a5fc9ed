/** A queue of received items, and the waits for items that have not arrived yet. */
import { RelayError } from './errors.ts';

/** The longest time that a timer supports, in milliseconds. A longer wait has no timer. */
const MAX_TIMER_MS = 2 ** 31 - 1;

/** Options of every call that waits. */
export interface WaitOptions {
  /** Milliseconds until it fails with `timeout`; `Infinity`: never. Default 60,000 unless the call says otherwise. */
  timeoutMs?: number | undefined;
  /** When it is aborted, the call fails with `aborted`. */
  signal?: AbortSignal | undefined;
}

/** One deadline and one signal, shared by any number of waits. */
export class Wait {
  /** The error when the deadline has passed or the signal was aborted; undefined before. */
  over: RelayError | undefined;
  /** Called when that happens. */
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
      this.#timer = setTimeout(() => this.#finish(new RelayError('timeout', `${limit} ms`)), limit);
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
    this.#finish(new RelayError('aborted', undefined, { cause: this.#signal?.reason }));
  };

  #finish(error: RelayError): void {
    this.over ??= error;
    this.onOver?.(error);
  }
}

interface Waiter<T> {
  resolve: (item: T) => void;
  reject: (error: RelayError) => void;
}

/** A queue that keeps all items until they are asked for. The error of its end comes after the last item. */
export class Inbox<T> {
  /** The error that ended the queue; undefined before. Only the first one counts. */
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
