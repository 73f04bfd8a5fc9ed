/** Who is connected, how many of one client, and who of them holds nothing. Touches no socket. */
import type { Connection } from '../connection.ts';
import { Tally } from './limits.ts';

interface RosterLimits {
  maxConnections: number;
  maxConnectionsPerClient: number;
  idleMs: number;
}

export class Roster {
  /** While true, newcomers are refused and pairings under way go on. */
  draining = false;
  readonly #limits: RosterLimits;
  readonly #open = new Set<Connection>();
  /** Those that hold no session, no watch and no unanswered init; the longest idle comes first. */
  readonly #idle = new Set<Connection>();
  readonly #perClient = new Tally();

  constructor(limits: RosterLimits) {
    this.#limits = limits;
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

  /** @returns Whether there was room. */
  admit(connection: Connection, now: number): boolean {
    const { maxConnections, maxConnectionsPerClient } = this.#limits;
    if (this.#open.size >= maxConnections) return false;
    if (this.#perClient.of(connection.client) >= maxConnectionsPerClient) return false;
    this.#open.add(connection);
    this.#perClient.add(connection.client);
    this.settle(connection, now);
    return true;
  }

  /** @returns Whether it was there. */
  remove(connection: Connection): boolean {
    if (!this.#open.delete(connection)) return false;
    this.#idle.delete(connection);
    this.#perClient.remove(connection.client);
    return true;
  }

  has(connection: Connection): boolean {
    return this.#open.has(connection);
  }

  all(): Iterable<Connection> {
    return this.#open;
  }

  /** It holds something from now on. */
  occupy(connection: Connection): void {
    this.#idle.delete(connection);
  }

  /** Puts one among the idle, or takes it out, by what it holds now. */
  settle(connection: Connection, now: number): void {
    const holds =
      connection.session ||
      connection.watches?.size ||
      connection.asks?.size ||
      connection.remote?.pipes.size;
    this.#idle.delete(connection);
    if (holds || !this.#open.has(connection)) return;
    connection.idleSince = now;
    this.#idle.add(connection);
  }

  /** Those that were idle for too long, the longest first. */
  *overdue(now: number): Generator<Connection, void, void> {
    for (const connection of this.#idle) {
      if (now - connection.idleSince < this.#limits.idleMs) return;
      yield connection;
    }
  }
}
