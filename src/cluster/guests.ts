/**
 * Peers of this instance whose sockets are at another one. A session belongs to the instance of its target and a watch
 * to the instance of its watcher. Whoever comes to it from elsewhere is a guest there: a peer like any other, whose
 * `send` goes through Redis.
 */
import type { Watches } from '../bootstrap/watches.ts';
import type { Clock } from '../connection.ts';
import type { Sessions } from '../pairing/sessions.ts';
import type { Peer, Session, Watch } from '../peer.ts';
import type { CloseReason } from '../wire/codes.ts';
import type { Mail, ToOwner, ToSocket } from './mail.ts';

class Guest implements Peer {
  readonly isLocal = false;
  readonly isBusy = true;
  idleSince = 0;
  session: Session | undefined = undefined;
  watches: Set<Watch> | undefined = undefined;
  announced: Set<Watch> | undefined = undefined;
  /** Frames that came from it. */
  received = 0;

  /** @param link The number of the tunnel at the instance of its socket. */
  constructor(
    readonly client: string,
    readonly instance: string,
    readonly link: number,
    private readonly mail: Mail,
  ) {}

  tell(what: ToSocket): boolean {
    return this.mail.send(this.instance, ['socket', what]);
  }

  trySend(frame: string): boolean {
    return this.tell(['frame', this.link, frame]);
  }

  send(frame: string): boolean {
    const isSent = this.trySend(frame);
    if (!isSent) this.close('slow_consumer');
    return isSent;
  }

  close(reason: CloseReason): void {
    this.tell(['close', this.link, reason]);
  }

  // Bun's topics do not reach it.
  publish(): boolean {
    return false;
  }
  noteBacklog(): void {}
  subscribe(): void {}
  unsubscribe(): void {}
}

export class Guests {
  /** By instance, then by link. */
  readonly #guests = new Map<string, Map<number, Guest>>();

  constructor(
    private readonly mail: Mail,
    private readonly sessions: Sessions,
    private readonly watches: Watches,
    private readonly now: Clock,
  ) {}

  /** The instances that have guests here. */
  get instances(): Iterable<string> {
    return this.#guests.keys();
  }

  get size(): number {
    return this.#guests.values().reduce((size, guests) => size + guests.size, 0);
  }

  find(instance: string, link: number): Guest | undefined {
    return this.#guests.get(instance)?.get(link);
  }

  /** Somebody elsewhere wants to join a session, which is undefined where it has ended. */
  connect(instance: string, link: number, client: string, session: Session | undefined): void {
    if (session && !session.controller) {
      this.sessions.join(this.#admit(instance, link, client), session, this.now());
    } else {
      this.#refuse(instance, link, session ? 'peer_already_connected' : 'otc_not_found');
    }
  }

  /** Somebody elsewhere has burned a token id and announces itself to its watch, undefined where that has ended. */
  announce(
    instance: string,
    link: number,
    client: string,
    frame: string,
    watch: Watch | undefined,
  ): void {
    if (watch && !watch.target) {
      this.watches.tell(this.#admit(instance, link, client), watch, frame, this.now());
    } else {
      this.#refuse(instance, link, watch ? 'token_already_used' : 'watcher_disconnected');
    }
  }

  #refuse(instance: string, link: number, code: string): void {
    this.mail.send(instance, ['socket', ['refused', link, code]]);
  }

  #admit(instance: string, link: number, client: string): Guest {
    const guest = new Guest(client, instance, link, this.mail);
    const guests = this.#guests.get(instance);
    if (guests) guests.set(link, guest);
    else this.#guests.set(instance, new Map([[link, guest]]));
    guest.tell(['opened', link]);
    return guest;
  }

  /** What a guest's instance says of it. Frames that come after its end are counted by the other side. */
  hear(instance: string, what: ToOwner): void {
    const guest = this.find(instance, what[1]);
    if (!guest) return;
    const now = this.now();
    switch (what[0]) {
      case 'data':
        guest.received += 1;
        this.sessions.forward(guest, what[2], what[3], now);
        return;
      case 'done':
        guest.received += 1;
        this.sessions.done(guest, now);
        return;
      case 'abort':
        if (!guest.session) return;
        if (what[2] === 'session_data_limit') return this.sessions.overLimit(guest, now);
        return this.sessions.abort(guest.session, what[2], now);
      case 'gone':
        return this.#leave(guest, 'peer_disconnected');
    }
  }

  /** Everything with an instance is over. */
  lose(instance: string, why: 'relay_unavailable' | 'peer_disconnected'): void {
    for (const guest of this.#guests.get(instance)?.values() ?? []) this.#leave(guest, why);
  }

  #leave(guest: Guest, why: 'relay_unavailable' | 'peer_disconnected'): void {
    this.sessions.leave(guest, why, this.now());
    this.watches.leave(guest, 'watcher_disconnected', this.now());
    this.ended(guest);
  }

  /** What a peer was here for has ended, in case it is a guest. */
  ended(peer: Peer | undefined): void {
    if (!(peer instanceof Guest)) return;
    const guests = this.#guests.get(peer.instance);
    if (!guests?.delete(peer.link)) return;
    if (guests.size === 0) this.#guests.delete(peer.instance);
    peer.tell(['ended', peer.link, peer.received]);
  }
}
