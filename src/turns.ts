/** A socket's frames in their order, and its close behind them, also while a question about it is with Redis. */
import type { Answers } from './answers.ts';
import type { Connection } from './connection.ts';
import { DirectWire, nowhere, Remote } from './remote.ts';

/** What a waiting frame costs beside its bytes. */
const FRAME_OVERHEAD_BYTES = 64;

/** Bytes that may wait in this process, for Redis and behind questions to it: of all clients together, and of one. */
export const MAX_WAITING_BYTES = 64 * 1024 * 1024;
export const MAX_WAITING_BYTES_PER_CLIENT = MAX_WAITING_BYTES / 16;

/** What waits, so that nobody fills the process, nor keeps others out of the line to Redis. */
export class Room {
  #used = 0;
  readonly #byClient = new Map<string, number>();

  get used(): number {
    return this.#used;
  }

  /** @returns Whether a client's frame may wait; then `leave` has to follow. */
  enter(client: string, frame: string | Buffer): boolean {
    const bytes = frame.length + FRAME_OVERHEAD_BYTES;
    const held = (this.#byClient.get(client) ?? 0) + bytes;
    if (this.#used + bytes > MAX_WAITING_BYTES || held > MAX_WAITING_BYTES_PER_CLIENT) return false;
    this.#used += bytes;
    this.#byClient.set(client, held);
    return true;
  }

  leave(client: string, frame: string | Buffer): void {
    const bytes = frame.length + FRAME_OVERHEAD_BYTES;
    const left = (this.#byClient.get(client) ?? 0) - bytes;
    this.#used -= bytes;
    if (left > 0) this.#byClient.set(client, left);
    else this.#byClient.delete(client);
  }
}

interface Parts {
  room: Room;
  maxBacklogBytes: number;
  answers: Answers;
  received: (connection: Connection, frame: string | Buffer) => void;
  gone: (connection: Connection) => void;
}

export class Turns {
  readonly #parts: Parts;

  constructor(parts: Parts) {
    this.#parts = parts;
  }

  received(connection: Connection, frame: string | Buffer): void {
    const { room, maxBacklogBytes, answers, received } = this.#parts;
    const { remote } = connection;
    if (!remote?.queue) return received(connection, frame);
    const bytes = frame.length + FRAME_OVERHEAD_BYTES;
    if (remote.queuedBytes + bytes > maxBacklogBytes || !room.enter(connection.client, frame)) {
      return answers.close(connection, 'too_many_frames');
    }
    remote.queuedBytes += bytes;
    remote.queue.push(frame);
  }

  closed(connection: Connection): void {
    const { remote } = connection;
    if (!remote?.queue) return this.#parts.gone(connection);
    connection.ws = new DirectWire(connection, nowhere);
    remote.queue.push(undefined);
  }

  /** Does what takes its time; meanwhile the socket's frames, and its close, wait. */
  run(connection: Connection, job: () => Promise<void>): void {
    const remote = (connection.remote ??= new Remote());
    remote.queue = [];
    void job()
      .catch((error: unknown) => this.#parts.answers.failed(connection, error))
      .then(() => this.#drain(connection, remote));
  }

  #drain(connection: Connection, remote: Remote): void {
    const { room, received, gone } = this.#parts;
    const queue = remote.queue ?? [];
    remote.queue = undefined;
    for (const [i, frame] of queue.entries()) {
      if (frame === undefined) return gone(connection);
      remote.queuedBytes -= frame.length + FRAME_OVERHEAD_BYTES;
      room.leave(connection.client, frame);
      if (!remote.isClosed) received(connection, frame);
      if (remote.queue) {
        (remote.queue as typeof queue).push(...queue.slice(i + 1));
        return;
      }
    }
  }
}
