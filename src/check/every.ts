/** `amesh-relay check --every`: a probe that runs all day. It reports each run as a line and as metrics, then a summary. */
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { ListenError } from '../relay.ts';
import { durationText, type Step, stepTitles } from './steps.ts';

/**
 * The shortest time from one run to the next, in seconds. Then no more than five runs begin within any 60 s. Of what a
 * relay with default settings allows one address in that time, they take 25 of 60 codes, 10 of 10 watches (with --idle; 5
 * without), and 5 of 5 failed codes where they fail. So the relay never answers a probe with `rate_limited`.
 */
export const MIN_EVERY_SECONDS = 15;

/** The median is that of the latest runs, at most so many. */
const MAX_TIMES = 10_000;

/** What one check found. */
export interface Report {
  ok: boolean;
  steps: Step[];
}

export interface Run extends Report {
  /** When it began, as ISO 8601. */
  time: string;
  /** How long it took, in milliseconds. */
  ms: number;
}

/** All runs together. The times are those of the runs that passed, or null if none did. */
export interface Summary {
  runs: number;
  failures: number;
  medianMs: number | null;
  slowestMs: number | null;
  /** From the first run to the end, in seconds. */
  seconds: number;
}

/**
 * Repeats a check until it is stopped. Runs never overlap: if one takes longer than the interval, the runs that would
 * begin meanwhile are left out. A run that is under way at the stop is not reported.
 * @param pause Waits for so many milliseconds.
 */
export async function repeat(
  everyMs: number,
  check: () => Promise<Report>,
  onRun: (run: Run) => void,
  stop: AbortSignal,
  pause: (ms: number) => Promise<unknown> = sleep,
): Promise<void> {
  const begun = performance.now();
  while (!stop.aborted) {
    const time = new Date().toISOString();
    const start = performance.now();
    const report = await check();
    if (stop.aborted) return;
    const now = performance.now();
    onRun({ time, ms: Math.round(now - start), ...report });
    await pause(everyMs - ((now - begun) % everyMs));
  }
}

/** Counts runs. */
export class Tally {
  readonly #begun = performance.now();
  readonly #times: number[] = [];
  #slowestMs: number | null = null;
  #runs = 0;
  #failures = 0;

  add({ ok, ms }: Run): void {
    this.#runs += 1;
    if (!ok) this.#failures += 1;
    if (!ok) return;
    if (this.#times.push(ms) > MAX_TIMES) this.#times.shift();
    this.#slowestMs = Math.max(ms, this.#slowestMs ?? 0);
  }

  get summary(): Summary {
    const medianMs = this.#times.toSorted((a, b) => a - b)[this.#times.length >> 1] ?? null;
    const seconds = Math.round((performance.now() - this.#begun) / 1000);
    return {
      runs: this.#runs,
      failures: this.#failures,
      medianMs,
      slowestMs: this.#slowestMs,
      seconds,
    };
  }
}

/** The result of a run: that of its worst step. */
function resultOf({ ok, steps }: Report): Step['status'] {
  if (!ok) return 'failed';
  return steps.some(({ status }) => status === 'warning') ? 'warning' : 'ok';
}

/** A run as a line: its time, its result, its duration, and each step that was not well. */
export function lineOf(run: Run): string {
  const said = run.steps.filter(({ status }) => status !== 'ok');
  const problems = said.map(
    ({ name, found, problem }) => `${stepTitles[name]}: ${found} (${problem})`,
  );
  const line = `${run.time}  ${resultOf(run).padEnd(7)} ${durationText(run.ms).padStart(9)}`;
  return [line, ...problems].join('  ');
}

/** The metrics of the probe, on a port of their own. No label says anything about a device or an address. */
export async function serveRuns(
  hostname: string,
  port: number,
): Promise<{ port: number; record: (run: Run) => void; stop: () => Promise<void> }> {
  const { Counter, Gauge, Registry } = await import('prom-client');
  const { serveRegistry } = await import('../observe/metrics.ts');
  const registry = new Registry();
  const registers = [registry];
  const success = new Gauge({
    name: 'amesh_relay_check_success',
    help: '1 if a device would have got through in the last run, 0 if not.',
    registers,
  });
  const seconds = new Gauge({
    name: 'amesh_relay_check_step_seconds',
    help: 'How long each step of the last run took.',
    registers,
    labelNames: ['step'],
  });
  const runs = new Counter({
    name: 'amesh_relay_check_runs_total',
    help: 'Runs, by the result of the worst step.',
    registers,
    labelNames: ['result'],
  });
  const last = new Gauge({
    name: 'amesh_relay_check_last_run_timestamp_seconds',
    help: 'When the last run ended, in seconds since 1970.',
    registers,
  });
  // Before the first run there is nothing to tell; a 0 would be a failure.
  success.remove();
  last.remove();
  for (const result of ['ok', 'warning', 'failed']) runs.inc({ result }, 0);
  const record = (run: Run): void => {
    success.set(Number(run.ok));
    seconds.reset();
    for (const { name, ms } of run.steps) seconds.set({ step: name }, ms / 1000);
    runs.inc({ result: resultOf(run) });
    last.setToCurrentTime();
  };
  try {
    return { ...serveRegistry(registry, hostname, port), record };
  } catch (error) {
    const { code } = error as { code?: string };
    throw new ListenError(`--metrics-port: cannot listen on port ${port} of ${hostname} (${code})`);
  }
}

/**
 * Repeats a check until SIGINT or SIGTERM.
 * @param check The check, with the URL as it may be shown.
 * @param metrics Where to serve metrics; undefined for nowhere.
 * @returns 0 if no run failed, otherwise 1.
 */
export async function checkEvery(
  seconds: number,
  { url, check }: { url: string; check: () => Promise<Report> },
  { json, metrics }: { json: boolean; metrics: { host: string; port: number } | undefined },
): Promise<number> {
  const stop = new AbortController();
  const stopped = once(stop.signal, 'abort');
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => stop.abort());
  const say = (text: string): void => void process.stdout.write(`${text}\n`);
  const served = metrics && (await serveRuns(metrics.host, metrics.port));
  const where = served ? `, with metrics on port ${served.port}` : '';
  if (!json) say(`Checking ${url} from here every ${seconds} s${where}`);
  const tally = new Tally();
  const onRun = (run: Run): void => {
    tally.add(run);
    served?.record(run);
    say(json ? JSON.stringify({ url, ...run }) : lineOf(run));
  };
  await Promise.race([repeat(seconds * 1000, check, onRun, stop.signal), stopped]);
  const { summary } = tally;
  const { runs, failures, medianMs, slowestMs } = summary;
  const times =
    medianMs === null || slowestMs === null
      ? ''
      : `; median ${durationText(medianMs)}, slowest ${durationText(slowestMs)}`;
  if (json) say(JSON.stringify({ summary }));
  else
    say(`${runs} run${runs === 1 ? '' : 's'} in ${summary.seconds} s, ${failures} failed${times}`);
  return failures > 0 ? 1 : 0;
}
