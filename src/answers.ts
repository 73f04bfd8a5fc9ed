/** Refusals: each one is counted, logged if the operator asked for that, and sent to the peer. */
import type { Config } from './config.ts';
import type { Clock } from './connection.ts';
import { ClientNames } from './observe/client-names.ts';
import type { Log } from './observe/log.ts';
import type { Stats } from './observe/stats.ts';
import type { Peer } from './peer.ts';
import type { ErrorCode, RejectReason } from './wire/codes.ts';
import { frames } from './wire/frames.ts';

export class Answers {
  readonly #names: ClientNames;

  constructor(
    { logClients }: Config,
    private readonly log: Log,
    private readonly stats: Stats,
    now: Clock,
  ) {
    this.#names = new ClientNames(logClients, now);
  }

  refuse(peer: Peer, code: ErrorCode): void {
    this.stats.refusals[code] += 1;
    this.trace(peer.client, 'refused', { code });
    peer.send(frames.error(code));
  }

  /** Refuses a `bootstrap_init`, in the only form that deployed targets understand. */
  reject(target: Peer, jti: string | undefined, reason: RejectReason): void {
    this.stats.refusals[reason] += 1;
    this.trace(target.client, 'rejected', { code: reason });
    target.send(frames.reject(jti, reason));
  }

  /** Runs a step for a peer. An error in the relay's code closes that peer's socket and nothing else. */
  guard(peer: Peer, step: () => void): void {
    try {
      step();
    } catch (error) {
      this.failed(peer, error);
    }
  }

  /** Logs an internal error and closes the peer. The message might quote a frame, so only name and stack are logged. */
  failed(peer: Peer, error: unknown): void {
    const { name, stack = '' } = error instanceof Error ? error : new Error('not an Error');
    const lines = stack.split('\n').map((line) => line.trim());
    const where = lines.filter((line) => line.startsWith('at ')).slice(0, 4);
    this.log.error('internal error', { name, where });
    peer.close('internal_error');
  }

  /** Logs what a client does: at level debug, or at info with its name if AMESH_LOG_CLIENTS is set. */
  trace(client: string, event: string, fields: { code?: string; token?: string } = {}): void {
    const name = this.#names.of(client);
    if (name === undefined) this.log.debug(event, fields);
    else this.log.info(event, { ...fields, client: name });
  }
}
