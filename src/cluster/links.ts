/**
 * A link joins a socket of one instance to a session or a watch that another instance owns. Its end at the socket's
 * instance is a tunnel, which passes frames on and knows no rules. Its end at the owner's instance is a guest, which is
 * a peer like any other, except that what is sent to it goes to the tunnel.
 */
import { setImmediate } from 'node:timers/promises';
import { WATCH_TTL_MS } from '../bootstrap/bootstrap.ts';
import type { Connection, Tunnel as SocketTunnel } from '../connection.ts';
import type { Peer, Session, Watch } from '../peer.ts';
import type { Sockets } from '../socket.ts';
import {
  closes,
  type CloseReason,
  type ErrorCode,
  isReason,
  type RejectReason,
} from '../wire/codes.ts';
import type { Item, Word } from './messages.ts';
import type { Redis } from './redis.ts';

/** How often an instance asks whether Redis and the instances that it has links with are there, in milliseconds. */
export const BEAT_MS = 500;
/** How many beats an owner has to answer. */
const ANSWER_BEATS = 4;
/** How much longer than the owner's own limit a tunnel waits, in milliseconds. If it is silent for longer, it hangs. */
const MARGIN_MS = 5000;
/** Bytes that may wait in this process for Redis, of all clients together. */
const MAX_WAITING_BYTES = 64 * 1024 * 1024;
/** What an item counts for: its text, and the rest with room to spare. */
const bytesOf = (item: Item): number => 64 + item[2].length;

/** Why the links with an instance have ended: Redis is out of reach, or the instance has gone. */
type Loss = 'relay_unavailable' | 'peer_disconnected';

abstract class End {
  /** The link ends after this beat if nothing has arrived until then. */
  deadline = Infinity;
  /** Who is closed when something fails here. */
  abstract readonly peer: Peer;

  /**
   * @param instance The instance at the other end.
   * @param link A unique name.
   * @param client The client that limits count the socket for.
   */
  constructor(
    protected readonly links: Links,
    readonly instance: string,
    readonly link: string,
    readonly client: string,
  ) {
    links.ends.set(link, this);
  }

  say(word: Word, text = '', count = 0): boolean {
    return this.links.send(this.instance, [word, this.link, text, count]);
  }

  /** Hears what the other end says. */
  abstract hear(word: Word, text: string, count: number): void;

  /** The other end is out of reach. */
  abstract lose(why: Loss): void;
}

export class Guest extends End implements Peer {
  readonly peer = this;
  readonly isBusy = true;
  idleSince = 0;
  session: Session | undefined = undefined;
  watches: Set<Watch> | undefined = undefined;
  announced: Set<Watch> | undefined = undefined;
  #received = 0;

  trySend(frame: string): boolean {
    return this.say('frame', frame);
  }

  send(frame: string): boolean {
    const isSent = this.trySend(frame);
    if (!isSent) this.close('slow_consumer');
    return isSent;
  }

  close(reason: CloseReason): void {
    this.say('close', reason);
  }

  // Bun's topics do not reach it.
  publish(_topic: string, frame: string, to: Peer): boolean {
    return to.trySend(frame);
  }
  subscribe(): void {}
  unsubscribe(): void {}

  hear(word: Word, text: string, count: number): void {
    const { sessions } = this.links.sockets;
    const now = this.links.sockets.now();
    if (word === 'frame' || word === 'done') this.#received += 1;
    if (word === 'frame') sessions.forward(this, text, count, now);
    else if (word === 'done') sessions.done(this, now);
    else if (word === 'end') this.lose('peer_disconnected');
    else if (text === 'session_data_limit') sessions.overLimit(this, now);
    else if (text === 'slow_consumer' && this.session) sessions.abort(this.session, now);
  }

  lose(why: Loss): void {
    const { sessions, watches, now } = this.links.sockets;
    sessions.leave(this, why, now());
    watches.leave(this, 'watcher_disconnected', now());
    this.end();
  }

  /** Removes this guest: its session or watch has ended, or has refused it. */
  end(refusal = ''): void {
    if (!this.links.ends.delete(this.link)) return;
    const received = this.#received;
    // A session ends before its last frames are sent, and those go first.
    queueMicrotask(() => this.say('end', refusal, received));
  }
}

export class Tunnel extends End implements SocketTunnel {
  /** The question that the owner has not answered yet. Resolves to the error code if the owner refuses. */
  #question: PromiseWithResolvers<RejectReason | undefined> | undefined;
  /** Frames that the socket sent. */
  #sent = 0;

  /** @param jti The token id that was announced; undefined for a session. */
  constructor(
    links: Links,
    instance: string,
    link: string,
    readonly peer: Connection,
    private readonly jti: string | undefined,
  ) {
    super(links, instance, link, peer.client);
    (peer.tunnels ??= new Set()).add(this);
  }

  /** Asks the owner of a claim to let the socket in. The frame is the announcement to a watch; empty for a session. */
  open(claim: string, frame: string): Promise<RejectReason | undefined> {
    return this.#ask(['open', this.link, frame, claim, this.client]);
  }

  forward(frame: string, bytes: number): void {
    this.#sent += 1;
    this.#extendDeadline();
    if (!this.say('frame', frame, bytes)) this.#tooSlow();
  }

  /** Resolves when the owner has ended the session: only then may the socket's next frame find the code free. */
  done(): Promise<ErrorCode | undefined> {
    this.#sent += 1;
    return this.#ask(['done', this.link, '', 0]) as Promise<ErrorCode | undefined>;
  }

  abort(why: 'session_data_limit' | 'slow_consumer'): void {
    this.say('close', why);
  }

  #ask(item: Item): Promise<RejectReason | undefined> {
    this.#question = Promise.withResolvers();
    this.deadline = this.links.beats + ANSWER_BEATS;
    if (!this.links.send(this.instance, item)) this.#leave('relay_unavailable');
    return this.#question.promise;
  }

  /** A frame went in either direction, so the deadline starts again. */
  #extendDeadline(): void {
    if (this.#question) return;
    const ttlMs = this.jti === undefined ? this.links.sockets.config.sessionTtlMs : WATCH_TTL_MS;
    this.deadline = this.links.beats + (ttlMs + MARGIN_MS) / BEAT_MS;
  }

  hear(word: Word, text: string, count: number): void {
    const { peer } = this;
    if (word === 'opened') {
      this.#question?.resolve(undefined);
      this.#question = undefined;
      this.#extendDeadline();
      if (this.jti === undefined) peer.tunnel = this;
    } else if (word === 'frame') {
      this.#extendDeadline();
      if (!peer.trySend(text)) this.#tooSlow();
    } else if (word === 'close' && Object.hasOwn(closes, text)) {
      peer.close(text as CloseReason);
    } else if (word === 'end') {
      this.#leave(text === '' ? undefined : isReason(text) ? text : 'relay_unavailable');
      // The session ended before these frames reached the owner. Each is answered as on one instance.
      for (let late = this.#sent - count; late > 0 && !peer.isClosed; late -= 1) {
        this.links.sockets.answers.refuse(peer, 'no_session');
      }
    }
  }

  /** One of the two sides does not read. Both are closed. */
  #tooSlow(): void {
    this.abort('slow_consumer');
    this.#leave();
    this.peer.close('slow_consumer');
  }

  lose(why: Loss): void {
    const { answers } = this.links.sockets;
    const isAsked = this.#question !== undefined;
    this.say('end');
    this.#leave('relay_unavailable');
    // The answer to its question tells the socket.
    if (isAsked) return;
    if (this.jti === undefined) return answers.refuse(this.peer, why);
    const isAlone = why === 'peer_disconnected';
    answers.reject(this.peer, this.jti, isAlone ? 'watcher_disconnected' : why);
  }

  /** Its socket has closed. */
  end(): void {
    this.say('end');
    this.#leave();
  }

  /** Removes the tunnel. The socket stays open. */
  #leave(refusal?: RejectReason): void {
    const { peer, links } = this;
    links.ends.delete(this.link);
    peer.tunnels?.delete(this);
    if (peer.tunnel === this) peer.tunnel = undefined;
    peer.idleSince = links.sockets.now();
    this.#question?.resolve(refusal);
  }
}

export class Links {
  /** By link: every end at this instance. */
  readonly ends = new Map<string, End>();
  /** The items that are sent at the end of this turn of the loop, by instance. */
  readonly #outboxes = new Map<string, Item[]>();
  #waitingBytes = 0;
  /** Resolves when every message until now has reached Redis or has failed. Redis answers in order, so it is the last. */
  settled = Promise.resolve();
  /** Beats so far. Deadlines count beats and not time, which also passes while this process hangs and reads nothing. */
  beats = 0;

  constructor(
    private readonly id: string,
    private readonly redis: Redis,
    readonly sockets: Sockets,
  ) {}

  get books(): { tunnels: number; guests: number; waitingBytes: number } {
    const guests = this.ends.values().reduce((sum, end) => sum + Number(end instanceof Guest), 0);
    return { tunnels: this.ends.size - guests, guests, waitingBytes: this.#waitingBytes };
  }

  /** Handles an item of another instance. An error in the relay's code closes the one socket that it is about. */
  hear(from: string, [word, link, text, count]: Exclude<Item, ['open', ...unknown[]]>): void {
    const end = this.ends.get(link);
    if (word === 'over') this.lose('relay_unavailable', ({ instance }) => instance === from);
    else if (end?.instance === from) {
      this.sockets.answers.guard(end.peer, () => end.hear(word, text, count));
    }
    // The tunnel gave up waiting for this, and the owner may not know.
    else if (word === 'opened') this.send(from, ['end', link, '', 0]);
  }

  /** Ends each link on which nothing has arrived until its deadline. Looking at 10,000 links takes 0.2 ms. */
  beat(): void {
    this.beats += 1;
    this.lose('relay_unavailable', ({ deadline }) => deadline < this.beats);
  }

  /** Ends all links of which the other end is out of reach. */
  lose(why: Loss, isLost: (end: End) => boolean): void {
    for (const end of this.ends.values()) {
      if (isLost(end)) this.sockets.answers.guard(end.peer, () => end.lose(why));
    }
  }

  /**
   * Sends an item to an instance at the end of this turn of the loop, in one message with all other items until then.
   * @returns False if too much waits for Redis to take one more frame. Items without a frame are always taken.
   */
  send(to: string, item: Item): boolean {
    const bytes = bytesOf(item);
    const isFrame = item[0] === 'frame' || item[0] === 'open';
    if (isFrame && this.#waitingBytes + bytes > MAX_WAITING_BYTES) return false;
    this.#waitingBytes += bytes;
    const outbox = this.#outboxes.get(to);
    if (outbox) outbox.push(item);
    else this.settled = this.#flush(to, [item]);
    return true;
  }

  async #flush(to: string, items: Item[]): Promise<void> {
    this.#outboxes.set(to, items);
    await setImmediate();
    this.#outboxes.delete(to);
    try {
      const text = JSON.stringify([this.id, items]);
      const heard = await this.redis.run('publish', [], [to, text]);
      if (heard === 0) this.lose('peer_disconnected', ({ instance }) => instance === to);
    } catch {
      // Redis is out of reach, which ends all links.
    }
    for (const item of items) this.#waitingBytes -= bytesOf(item);
  }
}
