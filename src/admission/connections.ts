/** The open sockets: how many each client has, and which of them are idle. Pure, like the limits. */
import type { Peer } from '../peer.ts';
import { Tally } from './limits.ts';

interface ConnectionLimits {
  maxConnections: number;
  maxConnectionsPerClient: number;
  /** Milliseconds that a socket may be idle. */
  idleMs: number;
}

export class Connections {
  /** While true, new sockets, sessions and watches are refused; pairings that have begun continue. */
  draining = false;
  /** Sockets that may be open at once. */
  maxConnections: number;
  readonly #open = new Set<Peer>();
  /** Sockets without a session, a watch or an unanswered announcement. The longest idle comes first. */
  readonly #idle = new Set<Peer>();
  readonly #perClient = new Tally();

  constructor(private readonly limits: ConnectionLimits) {
    this.maxConnections = limits.maxConnections;
  }

  get size(): number {
    return this.#open.size;
  }

  get books(): Record<'connections' | 'clients' | 'idle', number> {
    return {
      connections: this.#open.size,
      clients: this.#perClient.size,
      idle: this.#idle.size,
    };
  }

  /** Adds a new socket. Returns false if a limit is reached. */
  admit(connection: Peer, now: number): boolean {
    const { maxConnectionsPerClient } = this.limits;
    if (this.#open.size >= this.maxConnections) return false;
    if (this.#perClient.of(connection.client) >= maxConnectionsPerClient) return false;
    this.#open.add(connection);
    this.#perClient.add(connection.client);
    this.settle(connection, now);
    return true;
  }

  /** Removes a socket. Returns false if it was not there. */
  remove(connection: Peer): boolean {
    if (!this.#open.delete(connection)) return false;
    this.#idle.delete(connection);
    this.#perClient.remove(connection.client);
    return true;
  }

  has(connection: Peer): boolean {
    return this.#open.has(connection);
  }

  all(): Iterable<Peer> {
    return this.#open;
  }

  /** Updates whether a socket is idle. Call it after each change of its session, watches or announcements. */
  settle(connection: Peer, now: number): void {
    this.#idle.delete(connection);
    if (connection.isBusy || !this.#open.has(connection)) return;
    connection.idleSince = now;
    this.#idle.add(connection);
  }

  /** Sockets that have been idle for too long, the longest first. */
  *overdue(now: number): Generator<Peer, void, void> {
    for (const connection of this.#idle) {
      if (now - connection.idleSince < this.limits.idleMs) return;
      yield connection;
    }
  }
}
