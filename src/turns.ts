/** A socket's frames in their order, and its close behind them, also while a question about it is with Redis. */
import type { Answers } from './answers.ts';
import type { Connection } from './connection.ts';
import { DirectWire, nowhere, Remote } from './remote.ts';

/** What a waiting frame costs beside its bytes. */
const FRAME_OVERHEAD_BYTES = 64;

/** Bytes that may wait in this process, for Redis and behind questions to it, from all sockets together. */
export class Room {
  used = 0;
  readonly #max: number;

  constructor(max: number) {
    this.#max = max;
  }

  has(bytes: number): boolean {
    return this.used + bytes <= this.#max;
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
    if (remote.queuedBytes + bytes > maxBacklogBytes || !room.has(bytes)) {
      return answers.close(connection, 'too_many_frames');
    }
    remote.queuedBytes += bytes;
    room.used += bytes;
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
      const bytes = frame.length + FRAME_OVERHEAD_BYTES;
      remote.queuedBytes -= bytes;
      room.used -= bytes;
      if (!remote.isClosed) received(connection, frame);
      if (remote.queue) {
        (remote.queue as typeof queue).push(...queue.slice(i + 1));
        return;
      }
    }
  }
}
