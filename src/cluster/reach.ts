/** Whether this instance is one of many: Redis answers, and what others send arrives. It says twice a second that it lives. */
import type { Bus } from './bus.ts';
import type { Log } from '../observe/log.ts';

/** How often an instance says that it lives, in milliseconds. */
export const BEAT_MS = 500;
/** An instance that was silent for so long is dead: its codes and watches are free. */
const DEAD_AFTER_MS = 3000;
/** Beats of which nothing is heard, after which the connections are made anew. */
const SILENT_BEATS = 3;

interface Parts {
  bus: Bus;
  log: Log;
  /** The key under which this instance is known to live, and the channel on which it hears. */
  alive: string;
  channel: string;
  /** Before each beat; in return, the instances that are to be looked after. */
  onBeat: () => Iterable<string>;
  onDead: (id: string) => void;
  onDown: () => void;
  /** Puts right what Redis holds of this instance, before it counts as up. */
  recover: () => Promise<void>;
  onRecovered: () => void;
}

export class Reach {
  readonly #parts: Parts;
  #beats = 0;
  #answered = 0;
  #echoed = 0;
  #isUp = false;
  #isBeating = false;
  #isRecovering = false;
  /** What was wrong when Redis was last out of reach. */
  lastProblem = 'no answer yet';
  /** Called once, when this instance is the first time one of many. */
  onUp: (() => void) | undefined;

  constructor(parts: Parts) {
    this.#parts = parts;
  }

  get isUp(): boolean {
    return this.#isUp;
  }

  /** The clock of whoever waits for an answer. */
  get beats(): number {
    return this.#beats;
  }

  /** To be called every `BEAT_MS`. */
  async beat(): Promise<void> {
    if (this.#isBeating) return;
    this.#isBeating = true;
    await this.#beatOnce();
    this.#isBeating = false;
  }

  async #beatOnce(): Promise<void> {
    const { bus, alive, channel, onBeat, onDead } = this.#parts;
    // A connection may have died without a word of it; TCP itself would wait a quarter of an hour.
    const silent = this.#beats - Math.min(this.#answered, this.#echoed);
    if (silent > 0 && silent % SILENT_BEATS === 0) {
      this.down(new Error('nothing arrives on its channel'));
      bus.reconnect();
    }
    const others = onBeat();
    const beat = (this.#beats += 1);
    try {
      const [isKnown, ...dead] = (await bus.run(
        'beat',
        [alive],
        [DEAD_AFTER_MS, channel, beat, ...others],
      )) as [number, ...string[]];
      this.#answered = beat;
      if (!isKnown && this.#isUp) this.down(new Error('it has forgotten this instance'));
      for (const id of dead) onDead(id);
      this.#recoverWhenWell();
    } catch (error) {
      this.down(error);
    }
  }

  /** A beat of our own came back to us. */
  echoed(beat: number): void {
    this.#echoed = beat;
    this.#recoverWhenWell();
  }

  /** From now on this instance is on its own: what went across is over, what stays within goes on. */
  down(reason: unknown): void {
    this.lastProblem = String((reason as Error).message || reason).split('\n')[0] as string;
    if (!this.#isUp) return;
    this.#isUp = false;
    this.#parts.log.warn('Redis is out of reach: only pairings under way on this instance go on', {
      problem: this.lastProblem,
    });
    this.#parts.onDown();
  }

  #recoverWhenWell(): void {
    const isWell = this.#answered === this.#beats && this.#echoed === this.#beats;
    if (this.#isUp || this.#isRecovering || !isWell) return;
    this.#isRecovering = true;
    void this.#recover()
      .catch((error: unknown) => this.down(error))
      .finally(() => {
        this.#isRecovering = false;
      });
  }

  async #recover(): Promise<void> {
    await this.#parts.recover();
    this.#isUp = true;
    this.#parts.onRecovered();
    if (this.onUp) this.onUp();
    else this.#parts.log.info('Redis is in reach again');
    this.onUp = undefined;
  }

  /** Leaves for good. Without its owner, a claim is worth nothing. */
  async resign(): Promise<void> {
    if (!this.#isUp) return;
    this.#isUp = false;
    await this.#parts.bus.run('resign', [this.#parts.alive], []).catch(() => {});
  }
}
