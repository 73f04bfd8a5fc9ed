/**
 * Peers of this instance whose sockets are at another one. A session belongs to the instance of its target and a watch
 * to the instance of its watcher. Whoever comes to it from elsewhere is a guest there: a peer like any other, whose
 * `send` goes through Redis.
 */
import type { Watches } from '../bootstrap/watches.ts';
import type { Clock } from '../connection.ts';
import type { Peer, Session, Watch } from '../peer.ts';
import type { Sessions } from '../pairing/sessions.ts';
import type { CloseReason, ErrorCode } from '../wire/codes.ts';
import type { Item, Mail } from './mail.ts';

export class Guest implements Peer {
  readonly isLocal = false;
  readonly isBusy = true;
  idleSince = 0;
  session: Session | undefined = undefined;
  watches: Set<Watch> | undefined = undefined;
  announced: Set<Watch> | undefined = undefined;
  /** Frames that came from it. */
  received = 0;
  readonly client: string;
  /** The instance of its socket, and the number of the tunnel there. */
  readonly instance: string;
  readonly link: number;
  readonly #mail: Mail;

  constructor(client: string, instance: string, link: number, mail: Mail) {
    this.client = client;
    this.instance = instance;
    this.link = link;
    this.#mail = mail;
  }

  tell(item: Item): boolean {
    return this.#mail.send(this.instance, item);
  }

  send(frame: string): boolean {
    if (this.trySend(frame)) return true;
    this.close('slow_consumer');
    return false;
  }

  trySend(frame: string): boolean {
    return this.tell(['frame', this.link, frame]);
  }

  publish(_topic: string, frame: string): boolean {
    return this.trySend(frame);
  }

  // Bun's topics do not reach it.
  subscribe(): void {}
  unsubscribe(): void {}

  close(reason: CloseReason): void {
    this.tell(['close', this.link, reason]);
  }
}

export class Guests {
  readonly #mail: Mail;
  readonly #sessions: Sessions;
  readonly #watches: Watches;
  readonly #now: Clock;
  /** By instance, then by link. */
  readonly #guests = new Map<string, Map<number, Guest>>();

  constructor(mail: Mail, sessions: Sessions, watches: Watches, now: Clock) {
    this.#mail = mail;
    this.#sessions = sessions;
    this.#watches = watches;
    this.#now = now;
  }

  /** The instances that have guests here. */
  get instances(): Iterable<string> {
    return this.#guests.keys();
  }

  get size(): number {
    let size = 0;
    for (const guests of this.#guests.values()) size += guests.size;
    return size;
  }

  /** Somebody elsewhere wants to join a session, which is undefined where it has ended. */
  connect(instance: string, link: number, client: string, session: Session | undefined): void {
    if (session && !session.controller) {
      this.#sessions.join(this.#admit(instance, link, client), session, this.#now());
    } else {
      const code = session ? 'peer_already_connected' : 'otc_not_found';
      this.#mail.send(instance, ['refused', link, code]);
    }
  }

  /** Somebody elsewhere has burned a token id and announces itself to its watch, undefined where it has ended. */
  announce(
    instance: string,
    link: number,
    client: string,
    frame: string,
    watch: Watch | undefined,
  ): void {
    if (watch && !watch.target) {
      this.#watches.tell(this.#admit(instance, link, client), watch, frame, this.#now());
    } else {
      const reason = watch ? 'token_already_used' : 'watcher_disconnected';
      this.#mail.send(instance, ['refused', link, reason]);
    }
  }

  #admit(instance: string, link: number, client: string): Guest {
    const guest = new Guest(client, instance, link, this.#mail);
    let guests = this.#guests.get(instance);
    if (!guests) this.#guests.set(instance, (guests = new Map()));
    guests.set(link, guest);
    guest.tell(['opened', link]);
    return guest;
  }

  /** A frame of a guest. Those on their way when its session ended are counted by the other side. */
  data(instance: string, link: number, frame: string, bytes: number): void {
    const guest = this.find(instance, link);
    if (!guest) return;
    guest.received += 1;
    this.#sessions.forward(guest, frame, bytes, this.#now());
  }

  done(instance: string, link: number): void {
    const guest = this.find(instance, link);
    if (!guest) return;
    guest.received += 1;
    this.#sessions.done(guest, this.#now());
  }

  /** A guest's instance could not deliver to it, or the guest sent more than it may. */
  abort(instance: string, link: number, why: 'slow_consumer' | 'session_data_limit'): void {
    const guest = this.find(instance, link);
    if (!guest?.session) return;
    if (why === 'slow_consumer') this.#sessions.abort(guest.session, why, this.#now());
    else this.#sessions.overLimit(guest, this.#now());
  }

  gone(instance: string, link: number): void {
    const guest = this.find(instance, link);
    if (guest) this.#leave(guest, 'peer_disconnected');
  }

  /** All that a guest was here for has ended. To be called for the controller of a session and the target of a watch. */
  ended(peer: Peer | undefined): void {
    if (!(peer instanceof Guest)) return;
    const guests = this.#guests.get(peer.instance);
    if (!guests?.delete(peer.link)) return;
    if (guests.size === 0) this.#guests.delete(peer.instance);
    peer.tell(['ended', peer.link, peer.received]);
  }

  /** Everything with an instance is over. */
  lose(instance: string, why: 'relay_unavailable' | 'peer_disconnected'): void {
    for (const guest of this.#guests.get(instance)?.values() ?? []) this.#leave(guest, why);
  }

  #leave(guest: Guest, why: ErrorCode): void {
    this.#sessions.leave(guest, why, this.#now());
    this.#watches.leave(guest, 'watcher_disconnected', this.#now());
    this.ended(guest);
  }

  find(instance: string, link: number): Guest | undefined {
    return this.#guests.get(instance)?.get(link);
  }
}
