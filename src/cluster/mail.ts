/**
 * What instances say to each other, through Redis. Redis delivers to each subscriber in order, and loses a message only
 * together with the subscriber's connection, which the subscriber notices. So nothing is numbered or acknowledged.
 */
import * as z from 'zod/mini';
import { closes } from '../wire/codes.ts';
import type { Redis } from './redis.ts';

/** Bytes that may wait in this process for Redis, of all clients together. */
const MAX_WAITING_BYTES = 64 * 1024 * 1024;
/** What an item counts for beside its text. */
const ITEM_BYTES = 64;

/** The number of a tunnel. Its instance gives each one a number of its own, and never the same again. */
const link = z.int();
const text = z.string();

/** To the owner of a session or a watch, from the instance of a socket. */
const toOwner = z.union([
  z.tuple([z.literal('data'), link, text, z.int()]),
  z.tuple([z.literal('connect'), link, text, text]),
  z.tuple([z.literal('announce'), link, text, text, text]),
  z.tuple([z.literal('done'), link]),
  z.tuple([z.literal('abort'), link, z.enum(['slow_consumer', 'session_data_limit'])]),
  z.tuple([z.literal('gone'), link]),
]);
/** To the instance of a socket, from the owner. */
const toSocket = z.union([
  z.tuple([z.literal('frame'), link, text]),
  z.tuple([z.literal('opened'), link]),
  z.tuple([z.literal('refused'), link, text]),
  z.tuple([z.literal('close'), link, z.enum(Object.keys(closes) as [keyof typeof closes])]),
  z.tuple([z.literal('ended'), link, z.int()]),
]);
export type ToOwner = z.infer<typeof toOwner>;
export type ToSocket = z.infer<typeof toSocket>;

/** Who says it, to which end of which tunnel, in order; or that everything between the two instances is over. */
const message = z.tuple([
  text,
  z.union([
    z.literal('over'),
    z.array(
      z.union([z.tuple([z.literal('owner'), toOwner]), z.tuple([z.literal('socket'), toSocket])]),
    ),
  ]),
]);
export type Item = ['owner', ToOwner] | ['socket', ToSocket];

/** Reads a message of another instance; undefined where it is none. */
export function readMessage(json: string): z.infer<typeof message> | undefined {
  try {
    return message.safeParse(JSON.parse(json)).data;
  } catch {
    return undefined;
  }
}

export class Mail {
  /** What is still to be said, by instance. Ends come last, behind the last frames to those whom they concern. */
  readonly #outboxes = new Map<string, { items: Item[]; ends: Item[]; bytes: number }>();
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
  send(to: string, item: Item): boolean {
    const [kind, , content] = item[1];
    const bytes = ITEM_BYTES + (typeof content === 'string' ? content.length : 0);
    const isFrame = kind === 'data' || kind === 'frame' || kind === 'announce';
    if (isFrame && this.#waitingBytes + bytes > MAX_WAITING_BYTES) return false;
    let outbox = this.#outboxes.get(to);
    if (!outbox) {
      outbox = { items: [], ends: [], bytes: 0 };
      this.#outboxes.set(to, outbox);
      setImmediate(() => this.#flush(to));
    }
    (kind === 'ended' ? outbox.ends : outbox.items).push(item);
    outbox.bytes += bytes;
    this.#waitingBytes += bytes;
    return true;
  }

  #flush(to: string): void {
    const outbox = this.#outboxes.get(to);
    if (!outbox) return;
    this.#outboxes.delete(to);
    this.#publish(to, [...outbox.items, ...outbox.ends], outbox.bytes);
  }

  /** Tells an instance that everything between it and this one is over. */
  tellOver(to: string): void {
    this.#publish(to, 'over', 0);
  }

  #publish(to: string, content: Item[] | 'over', bytes: number): void {
    const sending = this.redis
      .run('publish', [], [to, JSON.stringify([this.id, content])])
      .then((heard) => {
        if (heard === 0) this.onUnheard(to);
      })
      .catch(() => {}) // Redis is out of reach then, which ends everything with every instance.
      .finally(() => {
        this.#waitingBytes -= bytes;
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
