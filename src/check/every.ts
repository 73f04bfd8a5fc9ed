/** `amesh-relay check --every`: a probe that runs all day. It reports each run as a line and as metrics, then a summary. */
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Registry } from 'prom-client';
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

/** Where metrics are served. */
export interface Endpoint {
  host: string;
  port: number;
}

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
    if (!ok) {
      this.#failures += 1;
      return;
    }
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

/** The metrics of the probe, and what tells them of a run. No label says anything about a device or an address. */
export async function createRuns(): Promise<{ registry: Registry; record: (run: Run) => void }> {
  const { Counter, Gauge, Registry } = await import('prom-client');
  const registry = new Registry();
  const registers = [registry];
  const gauge = (name: string, help: string, labelNames: string[] = []) =>
    new Gauge({ name, help, registers, labelNames });
  const success = gauge(
    'amesh_relay_check_success',
    '1 if a device would have got through in the last run, 0 if not.',
  );
  const seconds = gauge(
    'amesh_relay_check_step_seconds',
    'How long each step of the last run took.',
    ['step'],
  );
  const last = gauge(
    'amesh_relay_check_last_run_timestamp_seconds',
    'When the last run ended, in seconds since 1970.',
  );
  const runs = new Counter({
    name: 'amesh_relay_check_runs_total',
    help: 'Runs, by the result of the worst step.',
    registers,
    labelNames: ['result'],
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
  return { registry, record };
}

/** @throws {ListenError} Where the port cannot be had. */
async function serve(registry: Registry, host: string, port: number): Promise<number> {
  const { serveRegistry } = await import('../observe/metrics.ts');
  try {
    return serveRegistry(registry, host, port).port;
  } catch (error) {
    const { code } = error as { code?: string };
    throw new ListenError(`--metrics-port: cannot listen on port ${port} of ${host} (${code})`);
  }
}

/**
 * Repeats a check until SIGINT or SIGTERM, and prints a line a run and a summary.
 * @param url As it may be shown.
 * @param metrics Where metrics are to be served, if they are.
 * @returns 0 if no run failed, otherwise 1.
 */
export async function checkEvery(
  seconds: number,
  check: () => Promise<Report>,
  { url, json, metrics }: { url: string; json: boolean; metrics?: Endpoint | undefined },
): Promise<number> {
  const stop = new AbortController();
  const stopped = once(stop.signal, 'abort');
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => stop.abort());
  const say = (text: string): void => void process.stdout.write(`${text}\n`);
  const counted = metrics && (await createRuns());
  const port = counted && (await serve(counted.registry, metrics.host, metrics.port));
  const where = port === undefined ? '' : `, with metrics on port ${port}`;
  if (!json) say(`Checking ${url} from here every ${seconds} s${where}`);
  const tally = new Tally();
  const onRun = (run: Run): void => {
    tally.add(run);
    counted?.record(run);
    say(json ? JSON.stringify({ url, ...run }) : lineOf(run));
  };
  await Promise.race([repeat(seconds * 1000, check, onRun, stop.signal), stopped]);
  const { summary } = tally;
  say(json ? JSON.stringify({ summary }) : textOf(summary));
  return summary.failures > 0 ? 1 : 0;
}

function textOf({ runs, failures, medianMs, slowestMs, seconds }: Summary): string {
  const text = `${runs} run${runs === 1 ? '' : 's'} in ${seconds} s, ${failures || 'none'} failed`;
  if (medianMs === null || slowestMs === null) return text;
  return `${text}; median ${durationText(medianMs)}, slowest ${durationText(slowestMs)}`;
}
