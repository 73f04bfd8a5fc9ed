/**
 * Sockets of this instance whose session or watch is at another one. A tunnel passes their frames on and knows no rules;
 * at its other end stands a guest.
 */
import type { Connections } from '../admission/connections.ts';
import type { Answers } from '../answers.ts';
import { WATCH_TTL_MS } from '../bootstrap/bootstrap.ts';
import type { Clock, Connection, Tunnel } from '../connection.ts';
import { isReason, type RejectReason } from '../wire/codes.ts';
import type { Mail, ToOwner, ToSocket } from './mail.ts';

/** How many beats of the cluster an owner has to answer. */
const ANSWER_BEATS = 4;
/** How much later than the owner's sweeper a tunnel ends by itself, in milliseconds: then the owner hangs. */
const MARGIN_MS = 5000;

/** The way of one socket to the owner of one session or one watch. */
class OwnerTunnel implements Tunnel {
  /** The token id that was announced; undefined for a session. */
  readonly jti: string | undefined;
  /** Whether the owner has let the socket in. */
  isOpen = false;
  /** Frames that the socket sent. */
  sent = 0;
  /** When a frame last went either way. */
  activeAt = 0;
  /** When it was last put at the end of its queue. */
  queuedAt = 0;
  /** Comes to the error code where the owner refuses. */
  readonly opened = Promise.withResolvers<RejectReason | undefined>();
  readonly over = Promise.withResolvers<undefined>();

  constructor(
    private readonly tunnels: Tunnels,
    readonly connection: Connection,
    readonly owner: string,
    readonly link: number,
    jti: string | undefined,
  ) {
    this.jti = jti;
  }

  forward(frame: string, bytes: number): void {
    this.sent += 1;
    this.activeAt = this.tunnels.now();
    const isSent = this.tunnels.tell(this, ['data', this.link, frame, bytes]);
    if (!isSent) this.tunnels.tooSlow(this);
  }

  /** Resolves when the owner has ended the session: only then may the socket's next frame find the code free. */
  done(): Promise<undefined> {
    this.sent += 1;
    this.tunnels.ask(this, ['done', this.link]);
    return this.over.promise;
  }

  abort(why: 'session_data_limit'): void {
    this.tunnels.ask(this, ['abort', this.link, why]);
  }
}

export class Tunnels {
  /** By owner, then by link. */
  readonly #open = new Map<string, Map<number, OwnerTunnel>>();
  /** Tunnels to sessions and to watches, those that wait longest for a look first. */
  readonly #toSessions = new Set<OwnerTunnel>();
  readonly #toWatches = new Set<OwnerTunnel>();
  /** Tunnels whose owner was asked something, with the beats that it has left to answer. */
  readonly #asked = new Map<OwnerTunnel, number>();
  #last = 0;

  constructor(
    private readonly mail: Mail,
    private readonly answers: Answers,
    private readonly connections: Connections,
    private readonly sessionTtlMs: number,
    readonly now: Clock,
  ) {}

  /** The instances that tunnels lead to. */
  get instances(): Iterable<string> {
    return this.#open.keys();
  }

  get size(): number {
    return this.#open.values().reduce((size, tunnels) => size + tunnels.size, 0);
  }

  find(owner: string, link: number): OwnerTunnel | undefined {
    return this.#open.get(owner)?.get(link);
  }

  /**
   * Asks the owner of a claim to let a socket in: a controller into a session, or a target, with its token id and its
   * frame, to a watch. Comes to the error code where the owner refuses.
   */
  open(
    connection: Connection,
    owner: string,
    claim: string,
    announcement?: { jti: string; frame: string },
  ): Promise<RejectReason | undefined> {
    const link = (this.#last += 1);
    const tunnel = new OwnerTunnel(this, connection, owner, link, announcement?.jti);
    const tunnels = this.#open.get(owner);
    if (tunnels) tunnels.set(link, tunnel);
    else this.#open.set(owner, new Map([[link, tunnel]]));
    (connection.tunnels ??= new Set()).add(tunnel);
    this.connections.settle(connection, this.now());
    const isSent = announcement
      ? this.ask(tunnel, ['announce', link, announcement.frame, claim, connection.client])
      : this.ask(tunnel, ['connect', link, claim, connection.client]);
    if (!isSent) this.#drop(tunnel, 'relay_unavailable');
    return tunnel.opened.promise;
  }

  tell(tunnel: OwnerTunnel, what: ToOwner): boolean {
    return this.mail.send(tunnel.owner, ['owner', what]);
  }

  /** Tells the owner something that it has to answer in time. */
  ask(tunnel: OwnerTunnel, what: ToOwner): boolean {
    this.#asked.set(tunnel, ANSWER_BEATS);
    return this.tell(tunnel, what);
  }

  /** What an owner says to a socket of this instance. */
  hear(owner: string, what: ToSocket): void {
    const tunnel = this.find(owner, what[1]);
    if (!tunnel) {
      // It gave up waiting for this, and the owner may not know.
      if (what[0] === 'opened') this.mail.send(owner, ['owner', ['gone', what[1]]]);
      return;
    }
    const { connection } = tunnel;
    switch (what[0]) {
      case 'opened':
        this.#asked.delete(tunnel);
        tunnel.isOpen = true;
        tunnel.activeAt = this.now();
        this.#queue(tunnel);
        if (tunnel.jti === undefined) connection.tunnel = tunnel;
        return tunnel.opened.resolve(undefined);
      case 'refused':
        return this.#drop(tunnel, isReason(what[2]) ? what[2] : 'relay_unavailable');
      case 'frame':
        tunnel.activeAt = this.now();
        if (!connection.trySend(what[2])) this.tooSlow(tunnel);
        return;
      case 'close':
        return connection.close(what[2]);
      case 'ended':
        this.#drop(tunnel);
        // Frames that the owner did not hear any more are answered as on one instance.
        for (let late = tunnel.sent - what[2]; late > 0 && !connection.isClosed; late -= 1) {
          this.answers.refuse(connection, 'no_session');
        }
    }
  }

  /** One of the two sides does not read. Both are closed. */
  tooSlow(tunnel: OwnerTunnel): void {
    this.tell(tunnel, ['abort', tunnel.link, 'slow_consumer']);
    this.#drop(tunnel);
    tunnel.connection.close('slow_consumer');
  }

  /** A socket has closed. */
  closed({ tunnels }: Connection): void {
    for (const tunnel of (tunnels ?? []) as Iterable<OwnerTunnel>) {
      this.tell(tunnel, ['gone', tunnel.link]);
      this.#drop(tunnel);
    }
  }

  /** Puts a tunnel at the end of its queue. */
  #queue(tunnel: OwnerTunnel): void {
    tunnel.queuedAt = this.now();
    const queue = tunnel.jti === undefined ? this.#toSessions : this.#toWatches;
    queue.delete(tunnel);
    queue.add(tunnel);
  }

  /** Gives up tunnels whose owner should have ended them long ago: it hangs. */
  #giveUp(queue: Set<OwnerTunnel>, ttlMs: number): void {
    const now = this.now();
    for (const tunnel of queue) {
      if (now - tunnel.queuedAt < ttlMs + MARGIN_MS) return;
      if (now - tunnel.activeAt < ttlMs + MARGIN_MS) this.#queue(tunnel);
      else this.#abandon(tunnel);
    }
  }

  #abandon(tunnel: OwnerTunnel): void {
    this.tell(tunnel, ['gone', tunnel.link]);
    this.#lose(tunnel, 'relay_unavailable');
  }

  /** One more beat: gives up where an owner has not answered in time. */
  beat(): void {
    this.#giveUp(this.#toSessions, this.sessionTtlMs);
    this.#giveUp(this.#toWatches, WATCH_TTL_MS);
    for (const [tunnel, beats] of this.#asked) {
      this.#asked.set(tunnel, beats - 1);
      if (beats <= 0) this.#abandon(tunnel);
    }
  }

  /** Everything with an instance is over. */
  lose(owner: string, why: 'relay_unavailable' | 'peer_disconnected'): void {
    for (const tunnel of this.#open.get(owner)?.values() ?? []) this.#lose(tunnel, why);
  }

  #lose(tunnel: OwnerTunnel, why: 'relay_unavailable' | 'peer_disconnected'): void {
    const { connection, jti, isOpen } = tunnel;
    this.#drop(tunnel, 'relay_unavailable');
    // Whoever still waits for the first answer is told by that.
    if (!isOpen) return;
    if (jti === undefined) return this.answers.refuse(connection, why);
    const isAlone = why === 'peer_disconnected';
    this.answers.reject(connection, jti, isAlone ? 'watcher_disconnected' : why);
  }

  /** Forgets a tunnel. Its socket may go on without it. */
  #drop(tunnel: OwnerTunnel, refusal?: RejectReason): void {
    const { connection, owner, link } = tunnel;
    const tunnels = this.#open.get(owner);
    tunnels?.delete(link);
    if (tunnels?.size === 0) this.#open.delete(owner);
    this.#toSessions.delete(tunnel);
    this.#toWatches.delete(tunnel);
    this.#asked.delete(tunnel);
    connection.tunnels?.delete(tunnel);
    if (connection.tunnel === tunnel) connection.tunnel = undefined;
    this.connections.settle(connection, this.now());
    tunnel.opened.resolve(refusal);
    tunnel.over.resolve(undefined);
  }
}
