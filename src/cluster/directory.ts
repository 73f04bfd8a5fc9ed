/** What this instance owns, as Redis knows it: which code and jti, by which claim; and the questions that Redis decides. */
import { BURNT_TTL_MS, type Watch, WATCH_TTL_MS } from '../bootstrap/bootstrap.ts';
import type { Bus } from './bus.ts';
import type { Config } from '../config.ts';
import type { Clock, Connection } from '../connection.ts';
import type { Session } from '../pairing/pairing.ts';
import { isReason } from '../wire/frames.ts';
import type { Script } from './scripts.ts';

/** Claims that are renewed at once when Redis is back. */
const RENEW_BATCH = 500;

export type Owned = Session<Connection> | Watch<Connection>;

/** Whose it is, and which of theirs. */
const CLAIM = /^[\w-]+\.\d+$/;
export const isClaim = (answer: string): boolean => CLAIM.test(answer);
export const ownerOf = (claim: string): string => claim.slice(0, claim.indexOf('.'));
/** What each script answers where it does not refuse. Anything else is not believed, and repeated to nobody. */
const SUCCESSES = {
  claimCode: /^ok$/,
  findCode: CLAIM,
  fail: /^(?:counted|burned)$/,
  claimWatch: /^ok$/,
  init: CLAIM,
} as const satisfies Partial<Record<Script, RegExp>>;
const hash = (jti: string): string =>
  Buffer.from(Bun.SHA256.hash(jti).buffer).toString('base64url');

interface Parts {
  id: string;
  config: Config;
  bus: Bus;
  now: Clock;
  /** The name of a key in Redis. */
  key: (kind: string, name: string) => string;
  serial: () => number;
  isUp: () => boolean;
  onFault: (error: unknown) => void;
  /** Somebody else has it now. */
  onTaken: (owned: Owned) => void;
}

export class Claims {
  readonly #parts: Parts;
  readonly #held = new Map<Owned, string>();
  /** Claims that may stand in Redis though nobody here holds them: keys and claims. */
  #orphans: [string, string][] = [];

  constructor(parts: Parts) {
    this.#parts = parts;
  }

  get books(): Record<'claims' | 'orphans', number> {
    return { claims: this.#held.size, orphans: this.#orphans.length };
  }

  #code(otc: string): string {
    return this.#parts.key('code', otc);
  }

  #jti(jti: string): string {
    return this.#parts.key('jti', hash(jti));
  }

  #limits(client: string, otc: string): [string, string] {
    return [this.#parts.key('codes-by', client), this.#parts.key('tries', otc)];
  }

  #keyOf(owned: Owned): string {
    return 'otc' in owned ? this.#code(owned.otc) : this.#jti(owned.jti);
  }

  #newClaim(): string {
    return `${this.#parts.id}.${this.#parts.serial()}`;
  }

  /** @returns `ok` and the claim, or why not. */
  async claimCode(client: string, otc: string): Promise<[answer: string, claim: string]> {
    const { sessionTtlMs, maxFailedCodes, maxFailedPerCode, maxListens } = this.#parts.config;
    const claim = this.#newClaim();
    const key = this.#code(otc);
    const keys = [...this.#limits(client, otc), key, this.#parts.key('listens-by', client)];
    const values = [claim, sessionTtlMs, maxFailedCodes, maxFailedPerCode, maxListens];
    const answer = await this.#ask('claimCode', keys, values);
    if (answer === 'relay_unavailable') this.#orphans.push([key, claim]);
    return [answer, claim];
  }

  /** @returns The claim on a code, or why not. */
  findCode(client: string, otc: string): Promise<string> {
    const { maxFailedCodes, maxFailedPerCode } = this.#parts.config;
    const keys = [...this.#limits(client, otc), this.#code(otc)];
    return this.#ask('findCode', keys, [maxFailedCodes, maxFailedPerCode]);
  }

  /** Counts a failed attempt. @returns Whether the code is burned. */
  async fail(client: string, otc: string): Promise<boolean> {
    const { maxFailedCodes, maxFailedPerCode } = this.#parts.config;
    const limits = [maxFailedCodes, maxFailedPerCode];
    return (await this.#ask('fail', this.#limits(client, otc), limits)) === 'burned';
  }

  /** @returns `ok` and the claim, or why not. */
  async claimWatch(watcher: Connection, jti: string): Promise<[answer: string, claim: string]> {
    const claim = this.#newClaim();
    const key = this.#jti(jti);
    let own = '';
    for (const watch of watcher.watches ?? []) {
      if (watch.jti === jti) own = this.#held.get(watch) ?? '';
    }
    const answer = await this.#ask(
      'claimWatch',
      [this.#parts.key('watches-by', watcher.client), key],
      [claim, WATCH_TTL_MS, this.#parts.config.maxWatches, own],
    );
    if (answer === 'relay_unavailable') this.#orphans.push([key, claim]);
    return [answer, claim];
  }

  /** Burns a jti where its watch is ours. @returns The claim of its watch, or why not. */
  burn(client: string, jti: string, isFull: boolean): Promise<string> {
    return this.#ask(
      'init',
      [this.#parts.key('inits-by', client), this.#parts.key('burnt', hash(jti)), this.#jti(jti)],
      [this.#parts.id, BURNT_TTL_MS, this.#parts.config.maxRefusedInits, Number(isFull)],
    );
  }

  hold(owned: Owned, claim: string): void {
    this.#held.set(owned, claim);
  }

  /** A session's time starts again. */
  prolong(session: Session<Connection>): void {
    const { bus, config, isUp, onFault } = this.#parts;
    const claim = this.#held.get(session);
    if (!claim || !isUp()) return;
    bus.run('hold', [this.#code(session.otc)], [claim, config.sessionTtlMs]).catch(onFault);
  }

  giveUp(owned: Owned): void {
    const claim = this.#held.get(owned);
    if (claim === undefined) return;
    this.#held.delete(owned);
    this.#release(this.#keyOf(owned), claim);
  }

  releaseCode(otc: string, claim: string): void {
    this.#release(this.#code(otc), claim);
  }

  releaseWatch(jti: string, claim: string): void {
    this.#release(this.#jti(jti), claim);
  }

  #release(key: string, claim: string): void {
    const { bus, isUp, onFault } = this.#parts;
    if (!isUp()) {
      this.#orphans.push([key, claim]);
      return;
    }
    bus.run('release', [key], [claim]).catch((error: unknown) => {
      this.#orphans.push([key, claim]);
      onFault(error);
    });
  }

  /** Puts right what Redis holds of this instance, and gives up what others have taken meanwhile. */
  async renew(): Promise<void> {
    const { bus, config, now, onTaken } = this.#parts;
    const held = [...this.#held];
    while (held.length > 0) {
      const renewals = held.splice(0, RENEW_BATCH).map(async ([owned, claim]) => {
        const isCode = 'otc' in owned;
        const began = isCode ? owned.stageAt : owned.since;
        const left = (isCode ? config.sessionTtlMs : WATCH_TTL_MS) - (now() - began);
        const ttl = Math.max(1, Math.ceil(left));
        const holds = await bus.run('hold', [this.#keyOf(owned)], [claim, ttl]);
        if (holds !== 1 && this.#held.has(owned)) onTaken(owned);
      });
      await Promise.all(renewals);
    }
    while (this.#orphans.length > 0) {
      const orphans = this.#orphans.slice(0, RENEW_BATCH);
      await Promise.all(orphans.map(([key, claim]) => bus.run('release', [key], [claim])));
      this.#orphans.splice(0, orphans.length);
    }
  }

  async #ask(
    script: keyof typeof SUCCESSES,
    keys: string[],
    values: (string | number)[],
  ): Promise<string> {
    const { bus, isUp, onFault } = this.#parts;
    if (!isUp()) return 'relay_unavailable';
    try {
      const answer = String(await bus.run(script, keys, values));
      if (answer === 'late' || !isUp()) return 'relay_unavailable';
      if (SUCCESSES[script].test(answer) || isReason(answer)) return answer;
      throw new Error('it answers what the scripts do not');
    } catch (error) {
      onFault(error);
      return 'relay_unavailable';
    }
  }
}
