/** What one relay holds and counts: its peers, sessions and watches, its limits, and its counters. */
import { Connections } from './admission/connections.ts';
import { createLimits, type Limits } from './admission/limits.ts';
import { Answers } from './answers.ts';
import { Bootstrap, BURNT_TTL_MS } from './bootstrap/bootstrap.ts';
import { UsedTokens } from './bootstrap/used-tokens.ts';
import type { Config } from './config.ts';
import type { Clock } from './connection.ts';
import type { Log } from './observe/log.ts';
import { Stats } from './observe/stats.ts';
import { Pairing } from './pairing/pairing.ts';

export class State {
  readonly stats = new Stats();
  readonly bootstrap = new Bootstrap();
  readonly pairing: Pairing;
  readonly used: UsedTokens;
  readonly connections: Connections;
  readonly limits: Limits;
  readonly answers: Answers;

  constructor(
    readonly config: Config,
    log: Log,
    readonly now: Clock,
  ) {
    this.pairing = new Pairing(config);
    this.used = new UsedTokens(config.maxBurnt, BURNT_TTL_MS);
    this.connections = new Connections(config);
    this.limits = createLimits(config);
    this.answers = new Answers(config, log, this.stats, now);
  }
}
