/** Calls that wait with a deadline and a signal, and a queue of received items that they wait for. */
import { checkArgument, RelayError, traced } from './errors.ts';

const DEFAULT_TIMEOUT_MS = 60_000;
/** The longest time that a timer supports, in milliseconds. A longer wait has no timer. */
const MAX_TIMER_MS = 2 ** 31 - 1;

/** Options of every call that waits. */
export interface WaitOptions {
  /** Milliseconds until it fails with `timeout`; `Infinity`: never. Default 60,000 unless the call says otherwise. */
  timeoutMs?: number | undefined;
  /** When it is aborted, the call fails with `aborted`. */
  signal?: AbortSignal | undefined;
}

/**
 * Runs the work of a public function that waits, with {@link traced}.
 * @param work Its signal is aborted when the deadline has passed or the caller's signal was aborted. The reason is the
 *   RelayError to throw then.
 * @throws {RelayError} `invalid_argument`: `timeoutMs` is no number, or less than 0.
 */
export function within<T>(
  { timeoutMs, signal }: WaitOptions,
  work: (over: AbortSignal) => Promise<T>,
): Promise<T> {
  return traced(async () => {
    const limit = timeoutMs ?? DEFAULT_TIMEOUT_MS;
    const isValid = typeof limit === 'number' && limit >= 0;
    checkArgument(isValid, 'timeoutMs is milliseconds, 0 or more');
    const over = new AbortController();
    const expire = () => over.abort(new RelayError('timeout', `${limit} ms`));
    const abort = () => over.abort(new RelayError('aborted', undefined, { cause: signal?.reason }));
    const timer = limit <= MAX_TIMER_MS ? setTimeout(expire, limit) : undefined;
    if (signal?.aborted) abort();
    signal?.addEventListener('abort', abort);
    try {
      return await work(over.signal);
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener('abort', abort);
    }
  });
}

/** One deadline for several calls. @returns A function that gives the options of the next call, with the time left. */
export function timeLeft(
  { timeoutMs, signal }: WaitOptions,
  defaultTimeoutMs = DEFAULT_TIMEOUT_MS,
): () => WaitOptions {
  const start = performance.now();
  const limit = timeoutMs ?? defaultTimeoutMs;
  // What is no limit stays as it is, and is refused by the call.
  const left = () => (limit >= 0 ? Math.max(limit - (performance.now() - start), 0) : limit);
  return () => ({ signal, timeoutMs: left() });
}

interface Waiter<T> {
  resolve: (item: T) => void;
  reject: (error: unknown) => void;
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
    else {
      this.#waiters.delete(waiter);
      waiter.resolve(item);
    }
  }

  finish(end: RelayError): void {
    if (this.end) return;
    this.end = end;
    for (const waiter of this.#waiters) waiter.reject(end);
    this.#waiters.clear();
  }

  /** The next item, in the order of arrival. A wait that is over takes nothing, and throws the signal's reason. */
  async next(over: AbortSignal): Promise<T> {
    over.throwIfAborted();
    if (this.#arrived.length > 0) return this.#arrived.shift() as T;
    if (this.end) throw this.end;
    return new Promise((resolve, reject) => {
      const waiter = { resolve, reject };
      this.#waiters.add(waiter);
      over.addEventListener('abort', () => {
        this.#waiters.delete(waiter);
        reject(over.reason as RelayError);
      });
    });
  }
}
