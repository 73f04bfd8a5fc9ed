/** Who is connected, how many sockets each client has, and which of them hold nothing. Pure, like the limits. */
import type { Peer } from '../peer.ts';
import { Tally } from './limits.ts';

interface ConnectionLimits {
  maxConnections: number;
  maxConnectionsPerClient: number;
  /** Milliseconds that a socket may hold nothing. */
  idleMs: number;
}

export class Connections {
  /** While true, newcomers are refused, and pairings that have begun go on. */
  draining = false;
  /** Sockets that may be open at once. */
  maxConnections: number;
  readonly #open = new Set<Peer>();
  /** Those that hold no session, no watch and no unanswered announcement; the longest idle stands first. */
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

  /** Takes a socket in. Returns false where there is no room for it. */
  admit(connection: Peer, now: number): boolean {
    const { maxConnectionsPerClient } = this.limits;
    if (this.#open.size >= this.maxConnections) return false;
    if (this.#perClient.of(connection.client) >= maxConnectionsPerClient) return false;
    this.#open.add(connection);
    this.#perClient.add(connection.client);
    this.settle(connection, now);
    return true;
  }

  /** Forgets a socket. Returns false where it was not there. */
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

  /** Counts a socket as idle or not, by what it holds now. To be called after each change of what it holds. */
  settle(connection: Peer, now: number): void {
    this.#idle.delete(connection);
    if (connection.isBusy || !this.#open.has(connection)) return;
    connection.idleSince = now;
    this.#idle.add(connection);
  }

  /** Those that were idle for too long, the longest first. */
  *overdue(now: number): Generator<Peer, void, void> {
    for (const connection of this.#idle) {
      if (now - connection.idleSince < this.limits.idleMs) return;
      yield connection;
    }
  }
}
