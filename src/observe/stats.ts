/** The relay's counters: plain numbers, since counting has to be cheap. The log and the metrics read them. */
import { UNNAMED } from '../admission/access-token.ts';
import { errorCodes, rejectReasons, type RejectReason } from '../wire/codes.ts';

/**
 * How a session ends: `completed` with `done`, or after data had gone both ways; `expired` when its time was over;
 * `abandoned` in any other way: a peer left early, a limit was reached, or an instance was lost.
 */
export type Outcome = 'completed' | 'expired' | 'abandoned';

export class Stats {
  connectionsAccepted = 0;
  framesForwarded = 0;
  bytesForwarded = 0;
  /** Sessions opened by a `listen`. */
  opened = 0;
  /** Sessions that a controller joined. */
  begun = 0;
  /** Sessions that ended. */
  readonly ended = zeroes<Outcome>(['completed', 'expired', 'abandoned']);
  /** Refusals, by the error code or reason that the client got. */
  readonly refusals = zeroes<RejectReason>([
    ...(Object.keys(errorCodes) as RejectReason[]),
    ...(Object.keys(rejectReasons) as RejectReason[]),
  ]);
  /** Refused upgrades, by the error in the HTTP answer. */
  readonly turnedAway = zeroes([
    'access_token_missing',
    'access_token_wrong',
    'too_many_wrong_tokens',
    'origin_refused',
  ] as const);
  /** Sockets that were admitted with an access token, by the token's name. */
  admitted = new Map([[UNNAMED, 0]]);
  readonly bootstraps = zeroes([
    'watched',
    'announced',
    'acknowledged',
    'rejected',
    'expired',
    'abandoned',
  ] as const);
  /** When the certificate ends, in seconds of Unix time; undefined without TLS. */
  certificateEnd: number | undefined = undefined;
  /** Called when a pairing begins, with the milliseconds from `listen` to `peer_found`. */
  readonly onBegun: ((waitedMs: number) => void)[] = [];
  /** Called when a pairing ends, with the milliseconds since `peer_found`. */
  readonly onEnded: ((lastedMs: number, outcome: Outcome) => void)[] = [];
  #last = this.#total();

  /** Sets the names of the access tokens. Counters of other names are removed, so that their number is bounded. */
  nameTokens(names: readonly string[]): void {
    const counts = [UNNAMED, ...names].map((name) => [name, this.admitted.get(name) ?? 0] as const);
    this.admitted = new Map(counts);
  }

  /** What happened since the last call, for the log; undefined if nothing happened. */
  sinceLast(): Record<string, number> | undefined {
    const [last, total] = [this.#last, this.#total()];
    this.#last = total;
    const since = Object.entries(total).map(
      ([what, count]) => [what, count - (last[what] ?? 0)] as const,
    );
    return since.some(([, count]) => count > 0) ? Object.fromEntries(since) : undefined;
  }

  #total(): Record<string, number> {
    return {
      connections: this.connectionsAccepted,
      pairings: this.ended.completed,
      expired: this.ended.expired,
      abandoned: this.ended.abandoned,
      bootstraps: this.bootstraps.acknowledged,
      frames: this.framesForwarded,
      bytes: this.bytesForwarded,
      refusals: sum(this.refusals),
      turnedAway: sum(this.turnedAway),
    };
  }
}

const sum = (counts: Record<string, number>): number =>
  Object.values(counts).reduce((total, count) => total + count, 0);

const zeroes = <K extends string>(keys: readonly K[]): Record<K, number> =>
  Object.fromEntries(keys.map((key) => [key, 0])) as Record<K, number>;
