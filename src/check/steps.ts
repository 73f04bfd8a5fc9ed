/** What a check does over the WebSocket, step by step. It needs the client library alone, so the page does the same. */
import { announce, type Channel, connect, listen, RelayError, watch } from '../client/client.ts';
import { Problem, type ProblemCode, problemOf } from './problems.ts';

/** One thing that was looked at. */
export interface Step {
  name: StepName;
  status: 'ok' | 'warning' | 'failed';
  /** How long it took, in milliseconds. */
  ms: number;
  /** What was found, in a line. */
  found: string;
  /** What is wrong, for programs, what that means, and what to change: where the status is not `ok`. */
  problem?: ProblemCode;
  means?: string;
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

/** A step's name and what it does. What the work throws is why the step failed. */
export type Task = readonly [StepName, () => Promise<Finding>];

/** Steps that are left out, with a warning, where a limit on this client is used up: that is no fault of the relay. */
const canBeLeftOut = new Set<StepName>(['bootstrap', 'instances', 'idle']);

/** Does one step after another until one fails, and reports each. @returns Whether none failed. */
export async function takeAll(reporter: Reporter, tasks: Task[]): Promise<boolean> {
  for (const [name, work] of tasks) {
    reporter.begin(name);
    const start = performance.now();
    let hasFailed = false as boolean;
    const { found, facts } = await work().catch((error: unknown): Finding => {
      const problem = problemOf(error);
      hasFailed = problem.code !== 'rate_limited' || !canBeLeftOut.has(name);
      return {
        found: hasFailed ? problem : new Problem('rate_limited', `left out: ${problem.found}`),
      };
    });
    const ms = round(performance.now() - start);
    const told = facts && { facts };
    if (typeof found === 'string') reporter.end({ name, status: 'ok', ms, found, ...told });
    else {
      const { code: problem, means, change } = found;
      const status = hasFailed ? 'failed' : 'warning';
      reporter.end({ name, status, ms, found: found.found, problem, means, change, ...told });
    }
    if (hasFailed) return false;
  }
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
/** How long the check leaves a socket quiet unless told otherwise, in seconds: longer than a device waits with its code. */
export const IDLE_SECONDS = 35;

/** Every step that the WebSocket alone allows, until one fails. @returns Whether none failed. */
export async function checkWire(url: string, reporter: Reporter): Promise<boolean> {
  let target!: Waiting<Channel>;
  let pair!: Pair;
  const ok = await takeAll(reporter, [
    ['code', async () => ((target = await waitWithCode(url)), { found: 'the relay takes it' })],
    ['peer', async () => ((pair = await join(url, target)), { found: 'both sides know' })],
    ['roundtrips', () => roundTrips(pair)],
    ['large', () => largeFrame(pair)],
    ['disconnect', () => disconnect(pair)],
    ['verdict', () => verdict(url)],
    [
      'bootstrap',
      async () => (await meetByToken(url), { found: 'watched, announced, acknowledged' }),
    ],
    ['instances', () => morePairings(url)],
  ]);
  if (!ok) void finish(pair);
  return ok;
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
  const skipped = new Promise((resolve) => {
    skip?.addEventListener('abort', resolve);
  });
  const work = async (): Promise<Finding> => {
    const start = performance.now();
    const waited = (): number => Math.round((performance.now() - start) / 1000);
    const beQuiet = async (met: Promise<unknown>): Promise<void> => {
      for (let left = seconds; left > 0 && !skip?.aborted; left -= 1) {
        reporter.progress?.('idle', `${left} s left`);
        await Promise.race([sleep(1000), met, skipped]);
      }
    };
    await explained(meetByToken(url, seconds, beQuiet), ({ code }) =>
      code === 'rate_limited'
        ? undefined
        : new Problem('idle_cut', `cut after ${waited()} s without a message (${code})`),
    );
    const found = `${skip?.aborted ? 'skipped, ' : ''}still there after ${waited()} s`;
    return { found, facts: { idleSeconds: waited() } };
  };
  return takeAll(reporter, [['idle', work]]);
}

/** A device that waits for another one. */
interface Waiting<T> {
  /** The code, where it waits with one. */
  code: string;
  /** Comes with the other device. */
  met: Promise<T>;
}

/**
 * Starts to wait for another device.
 * @param start Waits, and calls its argument when the relay has taken the code or the token id.
 * @returns At that time.
 */
async function waitBy<T>(
  start: (onTaken: (code: string) => void) => Promise<T>,
): Promise<Waiting<T>> {
  const taken = Promise.withResolvers<string>();
  const met = start(taken.resolve);
  met.catch(taken.reject);
  void sleep(timeoutMs).then(() => taken.reject(new RelayError('timeout', `${timeoutMs} ms`)));
  return { code: await taken.promise, met };
}

const waitWithCode = (url: string): Promise<Waiting<Channel>> =>
  waitBy((onCode) => listen(url, { timeoutMs, onCode }));

/** Two devices that have met. */
interface Pair {
  target: Channel;
  controller: Channel;
}

async function join(url: string, { code, met }: Waiting<Channel>): Promise<Pair> {
  const controller = await connect(url, code, { timeoutMs });
  return { target: await met, controller };
}

const meetByCode = async (url: string): Promise<Pair> => join(url, await waitWithCode(url));

async function roundTrips({ target, controller }: Pair): Promise<Finding> {
  const times: number[] = [];
  for (let trip = 0; trip < ROUND_TRIPS; trip += 1) {
    const start = performance.now();
    await exchange(controller, target, SMALL_PAYLOAD);
    await exchange(target, controller, SMALL_PAYLOAD);
    times.push(performance.now() - start);
  }
  times.sort((a, b) => a - b);
  const percentile = (p: number): number => round(times[Math.ceil(p * ROUND_TRIPS) - 1] as number);
  const [p50Ms, p99Ms] = [percentile(0.5), percentile(0.99)];
  return { found: `p50 ${p50Ms} ms, p99 ${p99Ms} ms`, facts: { p50Ms, p99Ms } };
}

async function largeFrame({ target, controller }: Pair): Promise<Finding> {
  await explained(
    exchange(controller, target, LARGE_PAYLOAD),
    ({ code }) => new Problem('frame_limit', `a frame of 60 KB did not arrive (${code})`),
  );
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
async function verdict(url: string): Promise<Finding> {
  const { target, controller } = await meetByCode(url);
  await exchange(controller, target, 'check');
  const heard = exchange(target, controller, 'verdict');
  const leaving = target.close();
  await explained(heard, ({ code }) => {
    const found = `the other side heard of the goodbye, and not what was said before (${code})`;
    return new Problem('order_lost', found);
  });
  await endOf(controller);
  await leaving;
  return { found: 'heard, and then the goodbye' };
}

/** Pairs until there were as many pairings as a check has: one for the first steps, and one for the verdict. */
async function morePairings(url: string): Promise<Finding> {
  for (let made = 2; made < PAIRINGS; made += 1) {
    const pair = await meetByCode(url);
    await exchange(pair.controller, pair.target, 'check');
    await exchange(pair.target, pair.controller, 'check');
    await finish(pair);
  }
  const found = `${PAIRINGS} of ${PAIRINGS}, each over two new connections`;
  return { found, facts: { pairings: PAIRINGS } };
}

/**
 * Watches a token id, announces a device under it over another connection, and answers the device.
 * @param seconds How long the watch waits before the device comes.
 * @param meanwhile What happens in that time. Its argument settles early where the watch ends early.
 */
async function meetByToken(
  url: string,
  seconds = 0,
  meanwhile?: (met: Promise<unknown>) => Promise<void>,
): Promise<void> {
  const jti = `check_${crypto.randomUUID()}`;
  const { met } = await waitBy((onTaken) =>
    watch(url, jti, { timeoutMs: seconds * 1000 + timeoutMs, onWaiting: () => onTaken('') }),
  );
  await meanwhile?.(met);
  const announced = announce(url, { jti, token: 'check', targetPubKey: 'check' }, { timeoutMs });
  announced.catch(() => {});
  const device = await Promise.race([met, announced.then(() => met)]);
  await device.acknowledge({ publicKey: 'check', controllerSig: 'check' }, { timeoutMs });
  sameOrProblem((await announced).controllerPubKey, 'check');
}

async function exchange(from: Channel, to: Channel, payload: string): Promise<void> {
  from.send(payload);
  sameOrProblem(await to.receive({ timeoutMs }), payload);
}

function sameOrProblem(got: string, sent: string): void {
  if (got !== sent) throw new Problem('changed', 'what arrived is not what was sent');
}

/** Ends a pairing as devices do that are through with it. */
async function finish(pair: Pair | undefined): Promise<void> {
  await Promise.all([pair?.target.done(), pair?.controller.done()]);
}

/** Waits until a channel ends because the other side left. */
async function endOf(channel: Channel): Promise<void> {
  await channel.receive({ timeoutMs }).catch((error: unknown) => {
    if (!(error instanceof RelayError && error.code === 'peer_disconnected')) throw error;
  });
}

/** What an error of the relay means at this place, where it means more than elsewhere. */
function explained<T>(
  work: Promise<T>,
  meaning: (error: RelayError) => Problem | undefined,
): Promise<T> {
  return work.catch((error: unknown) => {
    throw (error instanceof RelayError && meaning(error)) || error;
  });
}

/** How long a step took, for people. */
export function durationText(ms: number): string {
  if (ms >= 10_000) return `${Math.round(ms / 1000)} s`;
  return ms < 10 ? `${ms.toFixed(1)} ms` : `${Math.round(ms)} ms`;
}

const round = (ms: number): number => Math.round(ms * 10) / 10;

const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
