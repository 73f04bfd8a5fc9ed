/**
 * Messages between instances. Pub/sub delivers at most once and in order, so the messages from one instance to another
 * are numbered; where one is missing, or the stream began anew, everything between the two is over. Nothing is ever
 * sent again. What the items ask for is nothing to this file.
 */
import type { Bus } from './bus.ts';
import type { Connection } from '../connection.ts';
import { isItem, type Item } from './links.ts';
import type { Log } from '../observe/log.ts';
import type { Pipe } from './remote.ts';
import { costOf, type Room } from './room.ts';

/** The stream that says: everything between us is over. */
const OVER = 0;

/** Who sends, its stream to this receiver, the number within it, and the items. */
type Envelope = [from: string, stream: number, seq: number, items: Item[]];

/** @returns Undefined where it is none. */
function decode(text: string): Envelope | undefined {
  try {
    const [from, stream, seq, items] = JSON.parse(text) as unknown[];
    const isEnvelope =
      typeof from === 'string' &&
      Number.isInteger(stream) &&
      Number.isInteger(seq) &&
      Array.isArray(items) &&
      items.every(isItem);
    return isEnvelope ? [from, stream as number, seq as number, items] : undefined;
  } catch {
    return undefined;
  }
}

export type Loss = 'relay_unavailable' | 'peer_disconnected';

/** Another instance. */
export class Peer {
  readonly id: string;
  readonly stream: number;
  sent = 0;
  itsStream: number | undefined;
  expected = 0;
  outbox: Item[] = [];
  /** What the clients' frames among them take up. */
  waiting = 0;
  /** Peers of ours whose sockets are over there, by link. */
  readonly fars = new Map<number, Connection>();
  /** Sockets of ours whose owner is over there, by link. */
  readonly pipes = new Map<number, Pipe>();

  constructor(id: string, stream: number) {
    this.id = id;
    this.stream = stream;
  }
}

interface Parts {
  id: string;
  bus: Bus;
  log: Log;
  room: Room;
  channelOf: (id: string) => string;
  serial: () => number;
  isUp: () => boolean;
  onFault: (error: unknown) => void;
  onItems: (peer: Peer, items: Item[]) => void;
  /** Everything with an instance is over. */
  onLost: (peer: Peer, why: Loss) => void;
  /** An instance counts anew: what it has answered is over. */
  onAnew: (peer: Peer) => void;
}

export class Post {
  readonly #parts: Parts;
  readonly #peers = new Map<string, Peer>();
  /** Instances with which everything ended when Redis went out of reach, and that may not know. */
  readonly #lost = new Set<string>();

  constructor(parts: Parts) {
    this.#parts = parts;
  }

  get peers(): ReadonlyMap<string, Peer> {
    return this.#peers;
  }

  peer(id: string): Peer {
    const known = this.#peers.get(id);
    if (known) return known;
    const peer = new Peer(id, this.#parts.serial());
    this.#peers.set(id, peer);
    return peer;
  }

  send(peer: Peer, item: Item): void {
    if (this.#peers.get(peer.id) !== peer) return;
    if (peer.outbox.push(item) === 1) setImmediate(() => this.#flush(peer));
  }

  /** Takes room for a client's frame, which is sent right after. @returns Whether there is any. */
  charge(peer: Peer, frame: string, client: string): boolean {
    if (this.#peers.get(peer.id) !== peer) return true;
    const cost = costOf(frame);
    if (!this.#parts.room.enter(client, cost)) return false;
    peer.waiting += cost;
    return true;
  }

  /** Sends what a peer is to hear, all that one turn of the loop has brought in one message. */
  #flush(peer: Peer): void {
    const { id, bus, room, channelOf, isUp, onFault } = this.#parts;
    const { waiting } = peer;
    const gone = (): void => room.leave(waiting);
    peer.waiting = 0;
    if (!isUp() || this.#peers.get(peer.id) !== peer) return gone();
    const envelope: Envelope = [id, peer.stream, peer.sent, peer.outbox];
    peer.sent += 1;
    peer.outbox = [];
    bus
      .publish(channelOf(peer.id), JSON.stringify(envelope))
      .finally(gone)
      .then((heard) => {
        if (heard > 0 || this.#peers.get(peer.id) !== peer) return;
        this.lose(peer, 'peer_disconnected');
        this.tellOver(peer.id);
      })
      .catch(onFault);
  }

  /** Where an instance is there after all, it must not take for alive what is over here. */
  tellOver(id: string): void {
    const { bus, channelOf, onFault } = this.#parts;
    const envelope: Envelope = [this.#parts.id, OVER, 0, []];
    bus.publish(channelOf(id), JSON.stringify(envelope)).catch(onFault);
  }

  delivered(text: string): void {
    if (!this.#parts.isUp()) return;
    const envelope = decode(text);
    if (envelope) this.#heard(envelope);
    // From no instance, or one of another version: it is quoted nowhere, and nobody is worse off.
    else this.#parts.log.warn('a message of another instance could not be understood');
  }

  #heard([from, stream, seq, items]: Envelope): void {
    let peer = this.peer(from);
    const isNew = peer.itsStream !== undefined && peer.itsStream !== stream;
    // The first of a stream may be lost like any other.
    const isGap = seq !== (peer.itsStream === stream ? peer.expected : 0);
    if (isGap) {
      this.lose(peer, 'relay_unavailable');
      this.tellOver(from);
      peer = this.peer(from);
    } else if (isNew) {
      this.#parts.onAnew(peer);
    }
    if (stream === OVER) {
      peer.itsStream = undefined;
      return;
    }
    peer.itsStream = stream;
    peer.expected = seq + 1;
    this.#parts.onItems(peer, items);
  }

  lose(peer: Peer, why: Loss): void {
    if (this.#peers.get(peer.id) !== peer) return;
    this.#peers.delete(peer.id);
    this.#parts.onLost(peer, why);
  }

  /** Redis is out of reach. */
  loseAll(): void {
    for (const peer of this.#peers.values()) {
      this.#lost.add(peer.id);
      this.lose(peer, 'relay_unavailable');
    }
  }

  /** Redis is in reach again. */
  tellLost(): void {
    for (const id of this.#lost) this.tellOver(id);
    this.#lost.clear();
  }
}
