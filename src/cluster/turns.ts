/** A socket's frames in their order, and its close behind them, also while a question about it is with Redis. */
import type { Answers } from '../answers.ts';
import type { Connection } from '../connection.ts';
import { DirectWire, nowhere, Remote } from './remote.ts';
import { costOf, type Room } from './room.ts';

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
    const cost = costOf(frame);
    if (remote.queuedBytes + cost > maxBacklogBytes || !room.enter(connection.client, cost)) {
      return answers.close(connection, 'too_many_frames');
    }
    remote.queuedBytes += cost;
    remote.queue.push({ frame, cost });
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
    for (const [i, waiting] of queue.entries()) {
      if (waiting === undefined) return gone(connection);
      remote.queuedBytes -= waiting.cost;
      room.leave(waiting.cost);
      if (!remote.isClosed) received(connection, waiting.frame);
      if (remote.queue) {
        (remote.queue as typeof queue).push(...queue.slice(i + 1));
        return;
      }
    }
  }
}
