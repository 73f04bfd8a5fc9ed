/**
 * Sockets of this instance whose session or watch is at another one. A tunnel passes their frames on and knows no rules;
 * at its other end stands a guest.
 */
import type { Connections } from '../admission/connections.ts';
import type { Answers } from '../answers.ts';
import type { Clock, Connection, Tunnel } from '../connection.ts';
import { type CloseReason, isReason, type RejectReason } from '../wire/codes.ts';
import type { Item, Mail } from './mail.ts';

/** How many beats of the cluster an owner has to answer. */
const ANSWER_BEATS = 4;

/** The way of one socket to the owner of one session or one watch. */
class OpenTunnel implements Tunnel {
  readonly connection: Connection;
  readonly owner: string;
  readonly link: number;
  /** The token id that was announced; undefined for a session. */
  readonly jti: string | undefined;
  /** Whether the owner has let the socket in. */
  isOpen = false;
  /** Frames that the socket sent. */
  sent = 0;
  /** Comes to the error code where the owner refuses. */
  readonly opened = Promise.withResolvers<RejectReason | undefined>();
  readonly over = Promise.withResolvers<undefined>();
  readonly #tunnels: Tunnels;

  constructor(
    tunnels: Tunnels,
    connection: Connection,
    owner: string,
    link: number,
    jti: string | undefined,
  ) {
    this.#tunnels = tunnels;
    this.connection = connection;
    this.owner = owner;
    this.link = link;
    this.jti = jti;
  }

  forward(frame: string, bytes: number): void {
    this.sent += 1;
    const isSent = this.#tunnels.tell(this, ['data', this.link, frame, bytes]);
    if (!isSent) this.#tunnels.tooSlow(this);
  }

  /** Resolves when the owner has ended the session: only then may the socket's next frame find the code free. */
  done(): Promise<undefined> {
    this.sent += 1;
    this.#tunnels.ask(this, ['done', this.link]);
    return this.over.promise;
  }

  abort(why: 'session_data_limit'): void {
    this.#tunnels.ask(this, ['abort', this.link, why]);
  }
}

export class Tunnels {
  readonly #mail: Mail;
  readonly #answers: Answers;
  readonly #connections: Connections;
  readonly #now: Clock;
  /** By owner, then by link. */
  readonly #open = new Map<string, Map<number, OpenTunnel>>();
  /** Tunnels whose owner was asked something, with the beats that it has left to answer. */
  readonly #asked = new Map<OpenTunnel, number>();
  #last = 0;

  constructor(mail: Mail, answers: Answers, connections: Connections, now: Clock) {
    this.#mail = mail;
    this.#answers = answers;
    this.#connections = connections;
    this.#now = now;
  }

  get size(): number {
    let size = 0;
    for (const tunnels of this.#open.values()) size += tunnels.size;
    return size;
  }

  /** The instances that tunnels lead to. */
  get instances(): Iterable<string> {
    return this.#open.keys();
  }

  /** Asks the owner of a claim to let a controller join its session. Comes to the error code where it refuses. */
  connect(controller: Connection, owner: string, claim: string): Promise<RejectReason | undefined> {
    const tunnel = this.#dig(controller, owner, undefined);
    this.ask(tunnel, ['connect', tunnel.link, claim, controller.client]);
    return tunnel.opened.promise;
  }

  /** Asks the owner of a claim to tell its watcher of a target. Comes to the reason where it refuses. */
  announce(
    target: Connection,
    owner: string,
    claim: string,
    jti: string,
    frame: string,
  ): Promise<RejectReason | undefined> {
    const tunnel = this.#dig(target, owner, jti);
    const isSent = this.ask(tunnel, ['announce', tunnel.link, frame, claim, target.client]);
    if (!isSent) this.#drop(tunnel, 'relay_unavailable');
    return tunnel.opened.promise;
  }

  #dig(connection: Connection, owner: string, jti: string | undefined): OpenTunnel {
    const tunnel = new OpenTunnel(this, connection, owner, (this.#last += 1), jti);
    let tunnels = this.#open.get(owner);
    if (!tunnels) this.#open.set(owner, (tunnels = new Map()));
    tunnels.set(tunnel.link, tunnel);
    (connection.tunnels ??= new Set()).add(tunnel);
    this.#connections.settle(connection, this.#now());
    return tunnel;
  }

  tell(tunnel: OpenTunnel, item: Item): boolean {
    return this.#mail.send(tunnel.owner, item);
  }

  /** Tells the owner something that it has to answer in time. */
  ask(tunnel: OpenTunnel, item: Item): boolean {
    this.#asked.set(tunnel, ANSWER_BEATS);
    return this.tell(tunnel, item);
  }

  // What owners say.

  opened(owner: string, link: number): void {
    const tunnel = this.find(owner, link);
    if (!tunnel) {
      // It gave up waiting, and the owner may not know.
      this.#mail.send(owner, ['gone', link]);
      return;
    }
    tunnel.isOpen = true;
    this.#asked.delete(tunnel);
    if (tunnel.jti === undefined) tunnel.connection.tunnel = tunnel;
    tunnel.opened.resolve(undefined);
  }

  refused(owner: string, link: number, code: string): void {
    const tunnel = this.find(owner, link);
    if (tunnel) this.#drop(tunnel, isReason(code) ? code : 'relay_unavailable');
  }

  frame(owner: string, link: number, frame: string): void {
    const tunnel = this.find(owner, link);
    if (tunnel && !tunnel.connection.trySend(frame)) this.tooSlow(tunnel);
  }

  close(owner: string, link: number, reason: CloseReason): void {
    this.find(owner, link)?.connection.close(reason);
  }

  /** The session or watch has ended. Frames of the socket that the owner did not hear any more are answered. */
  ended(owner: string, link: number, heard: number): void {
    const tunnel = this.find(owner, link);
    if (!tunnel) return;
    this.#drop(tunnel);
    for (let late = tunnel.sent - heard; late > 0 && !tunnel.connection.isClosed; late -= 1) {
      this.#answers.refuse(tunnel.connection, 'no_session');
    }
  }

  // How it ends otherwise.

  /** One of the two sides does not read. Both are closed. */
  tooSlow(tunnel: OpenTunnel): void {
    this.tell(tunnel, ['abort', tunnel.link, 'slow_consumer']);
    this.#drop(tunnel);
    tunnel.connection.close('slow_consumer');
  }

  /** A socket has closed. */
  closed({ tunnels }: Connection): void {
    for (const tunnel of (tunnels ?? []) as Iterable<OpenTunnel>) {
      this.tell(tunnel, ['gone', tunnel.link]);
      this.#drop(tunnel);
    }
  }

  /** Everything with an instance is over. */
  lose(owner: string, why: 'relay_unavailable' | 'peer_disconnected'): void {
    for (const tunnel of this.#open.get(owner)?.values() ?? []) this.#lose(tunnel, why);
  }

  /** One more beat: gives up where an owner has not answered in time. */
  beat(): void {
    for (const [tunnel, beats] of this.#asked) {
      if (beats > 0) {
        this.#asked.set(tunnel, beats - 1);
        continue;
      }
      this.tell(tunnel, ['gone', tunnel.link]);
      this.#lose(tunnel, 'relay_unavailable');
    }
  }

  #lose(tunnel: OpenTunnel, why: 'relay_unavailable' | 'peer_disconnected'): void {
    const { connection, jti, isOpen } = tunnel;
    const reason = jti && why === 'peer_disconnected' ? 'watcher_disconnected' : why;
    this.#drop(tunnel, 'relay_unavailable');
    // Whoever still waits for the first answer is told by that.
    if (!isOpen) return;
    this.#answers.guard(connection, () => {
      if (jti) this.#answers.reject(connection, jti, reason);
      else this.#answers.refuse(connection, why);
    });
  }

  /** Forgets a tunnel. Its socket may go on without it. */
  #drop(tunnel: OpenTunnel, refusal?: RejectReason): void {
    const { connection } = tunnel;
    const tunnels = this.#open.get(tunnel.owner);
    tunnels?.delete(tunnel.link);
    if (tunnels?.size === 0) this.#open.delete(tunnel.owner);
    this.#asked.delete(tunnel);
    connection.tunnels?.delete(tunnel);
    if (connection.tunnel === tunnel) connection.tunnel = undefined;
    this.#connections.settle(connection, this.#now());
    tunnel.opened.resolve(refusal);
    tunnel.over.resolve(undefined);
  }

  find(owner: string, link: number): OpenTunnel | undefined {
    return this.#open.get(owner)?.get(link);
  }
}
