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
  facts?: Record<string, unknown> | undefined;
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
  facts?: Step['facts'];
}

/** Is told of each step as it begins and ends. */
export interface Reporter {
  begin: (name: StepName) => void;
  /** How far a step is that takes many seconds. */
  progress: (name: StepName, text: string) => void;
  end: (step: Step) => void;
}

/** A step's name and what it does. What the work throws is why the step failed. */
export type Task = readonly [StepName, (progress: (text: string) => void) => Promise<Finding>];

/** Steps that are left out, with a warning, if a limit on this client is used up, which is no fault of the relay. */
const canBeLeftOut = new Set<StepName>(['bootstrap', 'instances', 'idle']);

/** Does one step after another until one fails. @returns The steps that were done. */
export async function takeAll(tasks: Task[], reporter?: Reporter): Promise<Step[]> {
  const steps: Step[] = [];
  for (const [name, work] of tasks) {
    reporter?.begin(name);
    const start = performance.now();
    let status: Step['status'] = 'warning';
    let finding: Finding;
    try {
      finding = await work((text) => reporter?.progress(name, text));
    } catch (error) {
      let found = problemOf(error);
      if (found.code === 'rate_limited' && canBeLeftOut.has(name)) {
        found = new Problem('rate_limited', `left out: ${found.found}`);
      } else status = 'failed';
      finding = { found };
    }
    const ms = round(performance.now() - start);
    const { found, facts } = finding;
    const step: Step =
      typeof found === 'string'
        ? { name, status: 'ok', ms, found, facts }
        : { name, status, ms, found: found.found, problem: found.code, ...found.advice, facts };
    steps.push(step);
    reporter?.end(step);
    if (step.status === 'failed') break;
  }
  return steps;
}

/** What a check comes to: the status of its worst step, and a sentence. */
export function conclusionOf(steps: Step[]): Pick<Step, 'status'> & { text: string } {
  if (steps.at(-1)?.status === 'failed') {
    return { status: 'failed', text: 'A device would not get through from here.' };
  }
  const warnings = steps.filter(({ status }) => status === 'warning').length;
  if (warnings === 0) return { status: 'ok', text: 'All well: a device gets through from here.' };
  const warned = warnings === 1 ? 'a warning' : `${warnings} warnings`;
  return { status: 'warning', text: `A device gets through from here, with ${warned}.` };
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

/**
 * Every step that the WebSocket alone allows.
 * @param idleSeconds How long a socket is left quiet, if not 0. At most 290, since a watch lasts five minutes.
 * @param skip Ends that time early; then the step says how long it was.
 */
export function wireTasks(url: string, idleSeconds: number, skip?: AbortSignal): Task[] {
  let target!: Waiting;
  let pair!: Pair;
  const withPair = (work: (pair: Pair) => Promise<Finding>) => () =>
    work(pair).catch((error: unknown) => {
      void finish(pair);
      throw error;
    });
  const idle: Task = ['idle', (progress) => beQuiet(url, idleSeconds, progress, skip)];
  return [
    ['code', async () => ((target = await waitWithCode(url)), { found: 'the relay takes it' })],
    ['peer', async () => ((pair = await join(url, target)), { found: 'both sides were told' })],
    ['roundtrips', withPair(roundTrips)],
    ['large', withPair(largeFrame)],
    ['disconnect', withPair(disconnect)],
    ['verdict', () => verdict(url)],
    ['bootstrap', () => meetByToken(url)],
    ['instances', () => morePairings(url)],
    ...(idleSeconds > 0 ? [idle] : []),
  ];
}

/** Starts to wait for another device. @returns When the relay has taken the code. */
async function waitWithCode(url: string) {
  const taken = Promise.withResolvers<string>();
  const met = listen(url, { timeoutMs, onCode: taken.resolve });
  met.catch(taken.reject);
  return { code: await taken.promise, met };
}

type Waiting = Awaited<ReturnType<typeof waitWithCode>>;

/** Two devices that have met. */
interface Pair {
  target: Channel;
  controller: Channel;
}

async function join(url: string, { code, met }: Waiting): Promise<Pair> {
  const controller = await connect(url, code, { timeoutMs });
  return { target: await met, controller };
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
  const percentile = (p: number): number => round(times[Math.ceil(p * ROUND_TRIPS) - 1] as number);
  const [p50Ms, p99Ms] = [percentile(0.5), percentile(0.99)];
  return { found: `p50 ${p50Ms} ms, p99 ${p99Ms} ms`, facts: { p50Ms, p99Ms } };
}

async function largeFrame({ target, controller }: Pair): Promise<Finding> {
  const lost = (): string => 'a frame of 60 KB did not arrive';
  await explained('frame_limit', lost, exchange(controller, target, LARGE_PAYLOAD));
  return { found: 'arrived whole' };
}

/** The relay must tell a device at once that the other is gone. */
async function disconnect({ target, controller }: Pair): Promise<Finding> {
  const start = performance.now();
  const leaving = controller.close();
  await endOf(target);
  const noticedMs = round(performance.now() - start);
  await leaving;
  return { found: `after ${noticedMs} ms`, facts: { noticedMs } };
}

/** Pairs two devices for a piece of work, and ends their pairing. */
async function paired(url: string, work: (pair: Pair) => Promise<void>): Promise<void> {
  const pair = await join(url, await waitWithCode(url));
  try {
    await work(pair);
  } finally {
    await finish(pair);
  }
}

/** The deployed target sends its verdict and closes at once. */
async function verdict(url: string): Promise<Finding> {
  await paired(url, async ({ target, controller }) => {
    await exchange(controller, target, 'check');
    const heard = exchange(target, controller, 'verdict');
    void target.close();
    const lost = (): string =>
      'the other side was told of the close, and did not get what was sent before';
    await explained('order_lost', lost, heard);
    await endOf(controller);
  });
  return { found: 'it arrived, and then the close' };
}

/** Pairs until there were as many pairings as a check has: one for the first steps, and one for the verdict. */
async function morePairings(url: string): Promise<Finding> {
  for (let made = 2; made < PAIRINGS; made += 1) {
    await paired(url, async ({ target, controller }) => {
      await exchange(controller, target, 'check');
      await exchange(target, controller, 'check');
    });
  }
  const found = `${PAIRINGS} of ${PAIRINGS}, each over two new connections`;
  return { found, facts: { pairings: PAIRINGS } };
}

/** Leaves the socket of a watch quiet for a while, and sees whether it still hears of a device then. */
async function beQuiet(
  url: string,
  seconds: number,
  progress: (text: string) => void,
  skip?: AbortSignal,
): Promise<Finding> {
  const start = performance.now();
  const waited = (): number => Math.round((performance.now() - start) / 1000);
  const cut = (): string => `cut after ${waited()} s without a message`;
  await explained('idle_cut', cut, meetByToken(url, seconds, progress, skip));
  const found = `${skip?.aborted ? 'skipped, ' : ''}still there after ${waited()} s`;
  return { found, facts: { idleSeconds: waited() } };
}

/**
 * Watches a token id, announces a device under it over another connection, and answers the device.
 * @param seconds How long nothing is sent between the watch and the announcement.
 */
async function meetByToken(
  url: string,
  seconds = 0,
  progress?: (text: string) => void,
  skip?: AbortSignal,
): Promise<Finding> {
  const jti = `check_${crypto.randomUUID()}`;
  const taken = Promise.withResolvers<void>();
  const watching = { timeoutMs: seconds * 1000 + timeoutMs, onWaiting: taken.resolve };
  const met = watch(url, jti, watching);
  await Promise.race([taken.promise, met]);
  for (let left = seconds; left > 0 && !skip?.aborted; left -= 1) {
    progress?.(`${left} s left`);
    await Promise.race([sleep(1000, skip), met]);
  }
  const announced = announce(url, { jti, token: 'check', targetPubKey: 'check' }, { timeoutMs });
  announced.catch(() => {});
  const device = await Promise.race([met, announced.then(() => met)]);
  await device.acknowledge({ publicKey: 'check', controllerSig: 'check' }, { timeoutMs });
  sameOrProblem((await announced).controllerPubKey, 'check');
  return { found: 'watched, announced, acknowledged' };
}

async function exchange(from: Channel, to: Channel, payload: string): Promise<void> {
  from.send(payload);
  sameOrProblem(await to.receive({ timeoutMs }), payload);
}

function sameOrProblem(got: string, sent: string): void {
  if (got !== sent) throw new Problem('changed', 'what arrived is not what was sent');
}

/** Ends a pairing as devices do that are through with it. */
async function finish({ target, controller }: Pair): Promise<void> {
  await Promise.all([target.done(), controller.done()]);
}

/** Waits until a channel ends because the other side left. */
async function endOf(channel: Channel): Promise<void> {
  await channel.receive({ timeoutMs }).catch((error: unknown) => {
    if (!(error instanceof RelayError && error.code === 'peer_disconnected')) throw error;
  });
}

/** Problems that the relay itself tells of. They mean the same in every step. */
const toldByRelay = new Set<ProblemCode>(['draining', 'redis_lost', 'full', 'rate_limited']);

/**
 * Turns an error of the client library into the problem that it shows in this step.
 * @throws {Problem} With this code, and what `found` returns then.
 */
async function explained(code: ProblemCode, found: () => string, work: Promise<unknown>) {
  await work.catch((error: unknown) => {
    if (!(error instanceof RelayError) || toldByRelay.has(problemOf(error).code)) throw error;
    throw new Problem(code, `${found()} (${error.code})`);
  });
}

/** How long a step took, for people. */
export function durationText(ms: number): string {
  if (ms >= 10_000) return `${Math.round(ms / 1000)} s`;
  return ms < 10 ? `${ms.toFixed(1)} ms` : `${Math.round(ms)} ms`;
}

const round = (ms: number): number => Math.round(ms * 10) / 10;

/** @param skip Ends the sleep early. */
const sleep = (ms: number, skip?: AbortSignal): Promise<void> =>
  new Promise((resolve) => {
    setTimeout(resolve, ms);
    skip?.addEventListener('abort', () => resolve());
  });
