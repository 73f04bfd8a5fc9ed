/** What the relay says to one socket: frames, refusals, the close; each counted, and traced where asked to. */
import {
  closes,
  type CloseReason,
  type ErrorCode,
  frames,
  type RejectReason,
} from './wire/frames.ts';
import type { Config } from './config.ts';
import type { Connection } from './connection.ts';
import type { Log } from './observe/log.ts';
import type { Stats } from './observe/stats.ts';

export class Answers {
  readonly #config: Config;
  readonly #log: Log;
  readonly #stats: Stats;

  constructor(config: Config, log: Log, stats: Stats) {
    this.#config = config;
    this.#log = log;
    this.#stats = stats;
  }

  /** @returns Whether the frame is on its way; otherwise the socket is closed now. */
  send(connection: Connection, frame: string): boolean {
    if (connection.ws.sendText(frame) !== 0) return true;
    this.close(connection, 'slow_consumer');
    return false;
  }

  refuse(connection: Connection, code: ErrorCode): void {
    this.#stats.refusals[code] += 1;
    this.trace(connection, 'refused', code);
    this.send(connection, frames.error(code));
  }

  reject(target: Connection, jti: string | undefined, reason: RejectReason): void {
    this.#stats.refusals[reason] += 1;
    this.trace(target, 'rejected', reason);
    this.send(target, frames.reject(jti, reason));
  }

  /** To a watcher: nobody came, or it never answered who did. */
  watchExpired(watcher: Connection, jti: string): void {
    this.#stats.refusals.watch_expired += 1;
    this.send(watcher, frames.watchExpired(jti));
  }

  close(connection: Connection, reason: CloseReason): void {
    if (connection.remote) connection.remote.isClosed = true;
    connection.ws.close(closes[reason].code, reason);
  }

  guard(connection: Connection, step: () => void): void {
    try {
      step();
    } catch (error) {
      this.failed(connection, error);
    }
  }

  /** A fault of our own ends the one socket it happened on. Its message might quote a frame, so it is not logged. */
  failed(connection: Connection, error: unknown): void {
    const { name, stack = '' } = error instanceof Error ? error : new Error('not an Error');
    const where = stack.split('\n').filter((line) => line.trimStart().startsWith('at '));
    this.#log.error('internal error', {
      name,
      where: where.slice(0, 4).map((line) => line.trim()),
    });
    this.close(connection, 'internal_error');
  }

  /** What single clients do is for debugging, unless the operator asked to see clients. */
  trace(connection: Connection, event: string, code?: string): void {
    const { logClients, logLevel } = this.#config;
    if (logClients) this.#log.info(event, { code, client: connection.client });
    else if (logLevel === 'debug') this.#log.debug(event, { code });
  }
}
