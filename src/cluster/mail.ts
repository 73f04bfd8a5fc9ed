/**
 * What instances say to each other, through Redis. Redis delivers to each subscriber in order, and loses a message only
 * together with the subscriber's connection, which the subscriber notices. So nothing is numbered or acknowledged.
 */
import { z } from 'zod';
import { closes } from '../wire/codes.ts';
import type { Redis } from './redis.ts';

/** Bytes that may wait in this process for Redis, of all clients together. */
const MAX_WAITING_BYTES = 64 * 1024 * 1024;
/** What an item counts for beside its text. */
const ITEM_BYTES = 64;

/** The number of a tunnel. Its instance gives each one a number of its own, and never the same again. */
const link = z.int();
const text = z.string();

const item = z.union([
  // To the owner of a session or a watch, from the instance of a socket.
  z.tuple([z.literal('data'), link, text, z.int()]),
  z.tuple([z.literal('connect'), link, text, text]),
  z.tuple([z.literal('announce'), link, text, text, text]),
  z.tuple([z.literal('done'), link]),
  z.tuple([z.literal('abort'), link, z.enum(['slow_consumer', 'session_data_limit'])]),
  z.tuple([z.literal('gone'), link]),
  // To the instance of a socket, from the owner.
  z.tuple([z.literal('frame'), link, text]),
  z.tuple([z.literal('opened'), link]),
  z.tuple([z.literal('refused'), link, text]),
  z.tuple([z.literal('close'), link, z.enum(Object.keys(closes) as [keyof typeof closes])]),
  z.tuple([z.literal('ended'), link, z.int()]),
  // Everything between the two is over.
  z.tuple([z.literal('over'), link]),
]);
export type Item = z.infer<typeof item>;

/** Who says it, and what, in order. */
const message = z.tuple([text, z.array(item)]);

/** Reads a message of another instance; undefined where it is none. */
export function readMessage(json: string): z.infer<typeof message> | undefined {
  try {
    return message.safeParse(JSON.parse(json)).data;
  } catch {
    return undefined;
  }
}

interface Outbox {
  items: Item[];
  /** Ends are said last, behind the last frames to those whom they concern. */
  ends: Item[];
  bytes: number;
}

export class Mail {
  readonly #id: string;
  readonly #redis: Redis;
  readonly #outboxes = new Map<string, Outbox>();
  readonly #underWay = new Set<Promise<void>>();
  #waitingBytes = 0;
  /** Told when an instance does not hear what it is told. */
  onUnheard: (instance: string) => void = () => {};

  constructor(id: string, redis: Redis) {
    this.#id = id;
    this.#redis = redis;
  }

  get waitingBytes(): number {
    return this.#waitingBytes;
  }

  /**
   * Says something to an instance at the end of this turn of the loop, in one message with all that is said till then.
   * @returns False where too much waits for Redis already to carry a frame; anything else is always taken.
   */
  send(to: string, said: Item): boolean {
    const bytes = ITEM_BYTES + (said[2] === undefined ? 0 : String(said[2]).length);
    const isFrame = said[0] === 'data' || said[0] === 'frame' || said[0] === 'announce';
    if (isFrame && this.#waitingBytes + bytes > MAX_WAITING_BYTES) return false;
    let outbox = this.#outboxes.get(to);
    if (!outbox) {
      outbox = { items: [], ends: [], bytes: 0 };
      this.#outboxes.set(to, outbox);
      setImmediate(() => this.#flush(to));
    }
    (said[0] === 'ended' ? outbox.ends : outbox.items).push(said);
    outbox.bytes += bytes;
    this.#waitingBytes += bytes;
    return true;
  }

  #flush(to: string): void {
    const outbox = this.#outboxes.get(to);
    if (!outbox) return;
    this.#outboxes.delete(to);
    const json = JSON.stringify([this.#id, [...outbox.items, ...outbox.ends]]);
    const sending = this.#redis
      .run('publish', [], [to, json])
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
