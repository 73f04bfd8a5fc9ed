/**
 * What instances say to each other, through Redis. Redis delivers to each subscriber in order, and loses a message only
 * together with the subscriber's connection, which the subscriber notices. So nothing is numbered or acknowledged.
 */
import * as z from 'zod/mini';
import type { Redis } from './redis.ts';

/** Bytes that may wait in this process for Redis, of all clients together. */
const MAX_WAITING_BYTES = 64 * 1024 * 1024;
/** What an item counts for beside its text. */
const ITEM_BYTES = 64;

const text = z.string();
const item = z.union([
  // A socket wants to get to what a claim stands for: the link, its announcement if it is for a watch (else empty), the
  // claim, and whom limits count the socket for.
  z.tuple([z.literal('open'), text, text, text, text]),
  z.tuple([
    z.enum([
      'frame', // a frame, and the bytes that it came as
      'opened', // the owner has let the socket in
      'done', // the client said that it is through
      'close', // the reason for which both ends, or the socket at the other end, are to be closed
      'end', // nothing more comes: the error code if the owner refused, and the number of frames that it got
      'over', // everything between the two instances has ended (the link is empty)
    ]),
    text, // the link
    text,
    z.int(),
  ]),
]);
export type Item = z.infer<typeof item>;
export type Word = Exclude<Item[0], 'open'>;

/** The instance that says it, and what it says, in order. */
const message = z.tuple([text, z.array(item)]);

/** Reads a message of another instance; undefined where it is none. */
export function readMessage(json: string): z.infer<typeof message> | undefined {
  try {
    return message.safeParse(JSON.parse(json)).data;
  } catch {
    return undefined;
  }
}

export class Mail {
  /** What is still to be said, by instance. */
  readonly #outboxes = new Map<string, { items: Item[]; bytes: number }>();
  readonly #underWay = new Set<Promise<void>>();
  #waitingBytes = 0;
  /** Told when an instance does not hear what it is told. */
  onUnheard: (instance: string) => void = () => {};

  constructor(
    private readonly id: string,
    private readonly redis: Redis,
  ) {}

  get waitingBytes(): number {
    return this.#waitingBytes;
  }

  /**
   * Says something to an instance at the end of this turn of the loop, in one message with all that is said till then.
   * @returns False where too much waits for Redis to carry one more frame. What is not a frame is always taken.
   */
  send(to: string, what: Item): boolean {
    const bytes = ITEM_BYTES + what[2].length;
    const isFrame = what[0] === 'frame' || what[0] === 'open';
    if (isFrame && this.#waitingBytes + bytes > MAX_WAITING_BYTES) return false;
    let outbox = this.#outboxes.get(to);
    if (!outbox) {
      outbox = { items: [], bytes: 0 };
      this.#outboxes.set(to, outbox);
      setImmediate(() => this.#flush(to));
    }
    outbox.items.push(what);
    outbox.bytes += bytes;
    this.#waitingBytes += bytes;
    return true;
  }

  #flush(to: string): void {
    const outbox = this.#outboxes.get(to);
    if (!outbox) return;
    this.#outboxes.delete(to);
    const sending = this.redis
      .run('publish', [], [to, JSON.stringify([this.id, outbox.items])])
      .then((heard) => {
        if (heard === 0) this.onUnheard(to);
      })
      .catch(() => {}) // Redis is out of reach then, which ends everything with every instance.
      .finally(() => {
        this.#waitingBytes -= outbox.bytes;
        this.#underWay.delete(sending);
      });
    this.#underWay.add(sending);
  }

  /** Sends what is still to be said, and waits until Redis has it. */
  async settled(): Promise<void> {
    for (const to of this.#outboxes.keys()) this.#flush(to);
    await Promise.all(this.#underWay);
  }
}
