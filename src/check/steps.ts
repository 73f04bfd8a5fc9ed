/**
 * What a check does over the WebSocket, step by step. It needs the client library alone, so the command and the page do
 * the same.
 */
import {
  announce,
  type Channel,
  connect,
  generateCode,
  listen,
  RelayError,
  type RelayErrorCode,
  watch,
} from '../client/client.ts';
import { Problem, type ProblemCode, problemOf } from './problems.ts';

/** One thing that was looked at. */
export interface Step {
  name: StepName;
  status: 'ok' | 'warning' | 'failed';
  /** How long it took, in milliseconds. */
  ms: number;
  /** What was found, in a line. */
  found: string;
  /** What is wrong, for programs; with `means` and `change` where the status is not `ok`. */
  problem?: ProblemCode;
  /** What that means, in plain words. */
  means?: string;
  /** What to change. */
  change?: string;
  /** What was measured or seen, for programs. */
  facts?: Record<string, unknown>;
}

/** The title of each step, for people. The page has no `name`, `connect` and `tls`, since a browser tells it nothing of them. */
export const stepTitles = {
  name: 'Name resolved',
  connect: 'Connected',
  tls: 'TLS',
  health: 'Health',
  upgrade: 'WebSocket opened',
  address: 'Your address',
  code: 'Code taken',
  peer: 'Peer found',
  roundtrips: '50 round trips of 1 KiB',
  large: 'A frame of 60 KB',
  disconnect: 'Disconnect noticed',
  verdict: 'Verdict before goodbye',
  bootstrap: 'Bootstrap by token',
  instances: 'Every pairing meets',
  idle: 'Quiet socket kept',
} as const;

export type StepName = keyof typeof stepTitles;

/** What a step that did not fail has found. */
export interface Finding {
  /** A line; or a problem that is no more than a warning. */
  found: string | Problem;
  facts?: Record<string, unknown>;
}

/** Is told of each step as it begins and ends. */
export interface Reporter {
  begin: (name: StepName) => void;
  /** How far a step is that takes many seconds. */
  progress?: (name: StepName, text: string) => void;
  end: (step: Step) => void;
}

export type Work = () => Promise<Finding>;

/**
 * Does one step and reports it.
 * @returns Whether it went well enough to go on.
 */
export async function take(reporter: Reporter, name: StepName, work: Work): Promise<boolean> {
  reporter.begin(name);
  const start = performance.now();
  const finding: Finding | { failure: Problem } = await work().catch((error: unknown) => ({
    failure: problemOf(error),
  }));
  const ms = round(performance.now() - start);
  const result = 'failure' in finding ? finding.failure : finding.found;
  const facts = 'facts' in finding && { facts: finding.facts };
  if (typeof result === 'string') {
    reporter.end({ name, status: 'ok', ms, found: result, ...facts });
    return true;
  }
  const { code, found, means, change } = result;
  const status = 'failure' in finding ? 'failed' : 'warning';
  reporter.end({ name, status, ms, found, problem: code, means, change, ...facts });
  return status === 'warning';
}

/** Does one step after another until one fails. @returns Whether none failed. */
export async function takeAll(
  reporter: Reporter,
  steps: (readonly [StepName, Work])[],
): Promise<boolean> {
  for (const [name, work] of steps) if (!(await take(reporter, name, work))) return false;
  return true;
}

/** How long the relay may take for one answer. */
const timeoutMs = 10_000;
const ROUND_TRIPS = 50;
const SMALL_PAYLOAD = 'x'.repeat(1024);
const LARGE_PAYLOAD = 'x'.repeat(60_000);
/**
 * Pairings of a whole check, each over two new connections. A relay takes 60 codes a minute from one client, so twelve
 * checks fit into a minute. Of two instances that do not know each other, chosen at random, these and the bootstrap
 * leave one check in 64 unaware; chosen by turns, none.
 */
const PAIRINGS = 5;
/** A relay takes five failed codes a minute from one client; a check stops well before. */
const MAX_MISSES = 3;
/** How long the check leaves a socket quiet unless told otherwise, in seconds: longer than a device waits with its code. */
export const IDLE_SECONDS = 35;

/** Every step that the WebSocket alone allows, until one fails. @returns Whether none failed. */
export async function checkWire(url: string, reporter: Reporter): Promise<boolean> {
  const pairings = new Pairings(url);
  let opened!: Opened;
  let pair: Pair | undefined;
  try {
    return await takeAll(reporter, [
      ['code', async () => ((opened = await pairings.open()), { found: 'the relay takes it' })],
      ['peer', async () => ((pair = await pairings.join(opened)), { found: 'both sides know' })],
      ['roundtrips', () => roundTrips(pair as Pair)],
      ['large', () => largeFrame(pair as Pair)],
      ['disconnect', () => disconnect(pair as Pair)],
      ['verdict', () => verdict(pairings)],
      ['bootstrap', unlessLimited(() => bootstrap(url))],
      ['instances', unlessLimited(() => pairings.repeat())],
    ]);
  } finally {
    if (pair) void finish(pair);
  }
}

/**
 * Watches a token id on a socket over which no message goes for a while, and sees whether it still hears of it then.
 * @param seconds At most 290, since a watch lasts five minutes.
 * @param skip Ends the waiting early; then the step says how long it waited.
 */
export function checkIdle(
  url: string,
  seconds: number,
  reporter: Reporter,
  skip?: AbortSignal,
): Promise<boolean> {
  const start = performance.now();
  const waited = (): number => Math.round((performance.now() - start) / 1000);
  const skipped = new Promise<void>((resolve) => {
    skip?.addEventListener('abort', () => resolve());
  });
  const beQuiet = async (met: Promise<unknown>): Promise<void> => {
    for (let left = seconds; left > 0 && !skip?.aborted; left -= 1) {
      reporter.progress?.('idle', `${left} s left`);
      await Promise.race([sleep(1000), met, skipped]);
    }
  };
  const work = async (): Promise<Finding> => {
    try {
      await meetByToken(url, beQuiet);
    } catch (error) {
      if (!(error instanceof RelayError) || isError(error, 'rate_limited')) throw error;
      throw new Problem('idle_cut', `cut after ${waited()} s without a message (${error.code})`);
    }
    const found = `${skip?.aborted ? 'skipped, ' : ''}still there after ${waited()} s`;
    return { found, facts: { idleSeconds: waited() } };
  };
  return take(reporter, 'idle', unlessLimited(work));
}

interface Pair {
  target: Channel;
  controller: Channel;
}

interface Opened {
  code: string;
  /** Comes with the controller. */
  met: Promise<Channel>;
  /** Ends the waiting. */
  stop: AbortController;
}

/** Makes pairs, each over two new connections, and counts those that did not find each other. */
class Pairings {
  readonly #url: string;
  #made = 0;
  #missed = 0;

  constructor(url: string) {
    this.#url = url;
  }

  /** Waits with a code. On a busy relay a code may be somebody’s; then another one is tried. */
  async open(): Promise<Opened> {
    for (let attempt = 1; ; attempt += 1) {
      const code = generateCode();
      const stop = new AbortController();
      try {
        const { met } = await started((onWaiting) =>
          listen(this.#url, code, { timeoutMs, signal: stop.signal, onWaiting }),
        );
        return { code, met, stop };
      } catch (error) {
        if (!isError(error, 'otc_in_use') || attempt === MAX_MISSES) throw error;
      }
    }
  }

  /** Joins what was opened. Where it is not found, it tries with new pairs, since the next ones may meet. */
  async join({ code, met, stop }: Opened): Promise<Pair> {
    this.#made += 1;
    try {
      const controller = await connect(this.#url, code, { timeoutMs });
      return { target: await met, controller };
    } catch (error) {
      stop.abort();
      if (!isError(error, 'otc_not_found')) throw error;
      this.#missed += 1;
      if (this.#missed === MAX_MISSES) throw this.#apart();
      return this.join(await this.open());
    }
  }

  async repeat(): Promise<Finding> {
    while (this.#missed === 0 && this.#made < PAIRINGS) {
      const pair = await this.join(await this.open());
      await exchange(pair.controller, pair.target, 'check');
      await exchange(pair.target, pair.controller, 'check');
      await finish(pair);
    }
    if (this.#missed > 0) throw this.#apart();
    const found = `${this.#made} of ${this.#made}, each over two new connections`;
    return { found, facts: { pairings: this.#made } };
  }

  #apart(): Problem {
    const found = `in ${this.#missed} of ${this.#made} pairings the code was unknown a moment after it was taken`;
    return new Problem('instances_apart', found);
  }
}

async function roundTrips({ target, controller }: Pair): Promise<Finding> {
  const times: number[] = [];
  for (let trip = 0; trip < ROUND_TRIPS; trip += 1) {
    const start = performance.now();
    await exchange(controller, target, SMALL_PAYLOAD);
    await exchange(target, controller, SMALL_PAYLOAD);
    times.push(performance.now() - start);
  }
  times.sort((a, b) => a - b);
  const percentile = (p: number): number =>
    round(times[Math.ceil((p / 100) * times.length) - 1] as number);
  const [p50Ms, p99Ms] = [percentile(50), percentile(99)];
  return { found: `p50 ${p50Ms} ms, p99 ${p99Ms} ms`, facts: { p50Ms, p99Ms } };
}

async function largeFrame({ target, controller }: Pair): Promise<Finding> {
  try {
    await exchange(controller, target, LARGE_PAYLOAD);
  } catch (error) {
    if (!(error instanceof RelayError)) throw error;
    throw new Problem('frame_limit', `a frame of 60 KB did not arrive (${error.code})`);
  }
  return { found: 'arrived whole' };
}

/** The relay is to tell a device at once that the other is gone. */
async function disconnect({ target, controller }: Pair): Promise<Finding> {
  const start = performance.now();
  const leaving = controller.close();
  await endOf(target);
  const noticedMs = round(performance.now() - start);
  await leaving;
  return { found: `after ${noticedMs} ms`, facts: { noticedMs } };
}

/** The deployed target sends its verdict and closes in the same breath. */
async function verdict(pairings: Pairings): Promise<Finding> {
  const { target, controller } = await pairings.join(await pairings.open());
  await exchange(controller, target, 'check');
  target.send('verdict');
  const leaving = target.close();
  try {
    sameOrProblem(await controller.receive({ timeoutMs }), 'verdict');
  } catch (error) {
    if (!(error instanceof RelayError)) throw error;
    throw new Problem(
      'order_lost',
      `the other side heard of the goodbye, and not what was said before (${error.code})`,
    );
  }
  await endOf(controller);
  await leaving;
  return { found: 'heard, and then the goodbye' };
}

async function bootstrap(url: string): Promise<Finding> {
  try {
    await meetByToken(url);
  } catch (error) {
    if (!isError(error, 'no_watcher')) throw error;
    throw new Problem('instances_apart', 'the token was unknown a moment after its watch began');
  }
  return { found: 'watched, announced, acknowledged' };
}

/**
 * Watches a token id, announces a device under it over another connection, and answers the device.
 * @param meanwhile What happens while the watch waits. Its argument settles early where the watch ends early.
 */
async function meetByToken(
  url: string,
  meanwhile?: (met: Promise<unknown>) => Promise<void>,
): Promise<void> {
  const jti = `check_${crypto.randomUUID()}`;
  const stop = new AbortController();
  try {
    const { met } = await started((onWaiting) =>
      watch(url, jti, { signal: stop.signal, onWaiting }),
    );
    await meanwhile?.(met);
    const announced = announce(url, { jti, token: 'check', targetPubKey: 'check' }, { timeoutMs });
    announced.catch(() => {});
    const device = await Promise.race([met, announced.then(() => met)]);
    await device.acknowledge({ publicKey: 'check', controllerSig: 'check' }, { timeoutMs });
    sameOrProblem((await announced).controllerPubKey, 'check');
  } catch (error) {
    stop.abort();
    throw error;
  }
}

/**
 * Starts to wait for another device.
 * @returns As soon as the relay has taken the code or the token id: `met`, which comes with the other device.
 */
async function started<T>(
  start: (onWaiting: () => void) => Promise<T>,
): Promise<{ met: Promise<T> }> {
  const taken = Promise.withResolvers<void>();
  const met = start(taken.resolve);
  met.catch(() => {});
  const late = sleep(timeoutMs).then(() => {
    throw new RelayError('timeout', `${timeoutMs} ms`);
  });
  await Promise.race([taken.promise, met, late]);
  return { met };
}

async function exchange(from: Channel, to: Channel, payload: string): Promise<void> {
  from.send(payload);
  sameOrProblem(await to.receive({ timeoutMs }), payload);
}

/** Ends a pairing as devices do that are through with it. */
async function finish({ target, controller }: Pair): Promise<void> {
  await Promise.all([target.done(), controller.done()]);
}

/** Waits until a channel ends because the other side left. */
async function endOf(channel: Channel): Promise<void> {
  try {
    await channel.receive({ timeoutMs });
  } catch (error) {
    if (!isError(error, 'peer_disconnected')) throw error;
  }
}

/** Where a limit on this client is used up, a step is left out with a warning: that is no fault of the relay. */
function unlessLimited(work: Work): Work {
  return () =>
    work().catch((error: unknown) => {
      if (!isError(error, 'rate_limited')) throw error;
      return { found: new Problem('rate_limited', `left out: ${(error as Error).message}`) };
    });
}

function sameOrProblem(got: string, sent: string): void {
  if (got !== sent) throw new Problem('changed', 'what arrived is not what was sent');
}

const isError = (error: unknown, code: RelayErrorCode): boolean =>
  error instanceof RelayError && error.code === code;

/** How long a step took, for people. */
export function durationText(ms: number): string {
  if (ms >= 10_000) return `${Math.round(ms / 1000)} s`;
  return ms < 10 ? `${ms.toFixed(1)} ms` : `${Math.round(ms)} ms`;
}

const round = (ms: number): number => Math.round(ms * 10) / 10;

const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
