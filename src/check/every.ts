/** `amesh-relay check --every`: a probe that runs all day. It reports each run as a line and as metrics, then a summary. */
import { createHistogram, type Histogram } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Registry } from 'prom-client';
import type { Config } from '../config.ts';
import { ListenError } from '../relay.ts';
import { conclusionOf, durationText, type Step, stepTitles } from './steps.ts';

/**
 * The shortest time from one run to the next, in seconds. Then no more than five runs begin within any 60 s. Of what a
 * relay with default settings allows one address in that time, they take 25 of 60 codes, 10 of 10 watches (with --idle; 5
 * without), and 5 of 5 failed codes where they fail. So the relay never answers a probe with `rate_limited`.
 */
export const MIN_EVERY_SECONDS = 15;

/** Where metrics are served. */
export type Endpoint = Pick<Config, 'host' | 'port'>;

/** One check of many. */
export interface Run {
  /** When it began, as ISO 8601. */
  time: string;
  /** How long it took, in milliseconds. */
  ms: number;
  ok: boolean;
  steps: Step[];
}

/**
 * Repeats a check without end. Runs never overlap: if one takes longer than the interval, the runs that would begin
 * meanwhile are left out.
 * @param pause Waits for so many milliseconds.
 */
export async function* repeat(
  everyMs: number,
  check: () => Promise<Step[]>,
  pause: (ms: number) => Promise<unknown> = sleep,
): AsyncGenerator<Run, never> {
  const begun = performance.now();
  for (;;) {
    const time = new Date().toISOString();
    const start = performance.now();
    const steps = await check();
    const now = performance.now();
    const ok = conclusionOf(steps).status !== 'failed';
    yield { time, ms: Math.round(now - start), ok, steps };
    await pause(everyMs - ((now - begun) % everyMs));
  }
}

/**
 * All runs together.
 * @param times How many milliseconds the runs took that passed. The median and the slowest are null if there is none.
 * @param seconds From the first run to the end.
 */
export function summaryOf(times: Histogram, failures: number, seconds: number) {
  const { count, max } = times;
  return {
    runs: count + failures,
    failures,
    medianMs: count > 0 ? times.percentile(50) : null,
    slowestMs: count > 0 ? max : null,
    seconds,
  };
}

type Summary = ReturnType<typeof summaryOf>;

function textOf({ runs, failures, medianMs, slowestMs, seconds }: Summary): string {
  const text = `${runs} run${runs === 1 ? '' : 's'} in ${seconds} s, ${failures || 'none'} failed`;
  if (medianMs === null || slowestMs === null) return text;
  return `${text}; median ${durationText(medianMs)}, slowest ${durationText(slowestMs)}`;
}

/** A run as a line: its time, the status of its worst step, its duration, and each step that was not well. */
export function lineOf({ time, ms, steps }: Run): string {
  const { status } = conclusionOf(steps);
  const problems = steps
    .filter(({ problem }) => problem)
    .map(({ name, found, problem }) => `${stepTitles[name]}: ${found} (${problem})`);
  const line = `${time}  ${status.padEnd(7)} ${durationText(ms).padStart(9)}`;
  return [line, ...problems].join('  ');
}

/** The metrics of the runs, and the function that records one. No label says anything about a device or an address. */
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
    runs.inc({ result: conclusionOf(run.steps).status });
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
 * Repeats a check until SIGINT or SIGTERM, and prints a line a run. At the signal it prints a summary and exits with 0
 * if no run failed, otherwise with 1. A run that is under way then is not reported.
 * @param url As it may be shown.
 * @param metrics Where metrics are to be served, if they are.
 */
export async function checkEvery(
  seconds: number,
  check: () => Promise<Step[]>,
  { url, json, metrics }: { url: string; json: boolean; metrics?: Endpoint | undefined },
): Promise<never> {
  const begun = performance.now();
  const times = createHistogram();
  let failures = 0;
  const say = (text: string): void => void process.stdout.write(`${text}\n`);
  const stop = (): void => {
    const summary = summaryOf(times, failures, Math.round((performance.now() - begun) / 1000));
    say(json ? JSON.stringify({ summary }) : textOf(summary));
    process.exit(failures > 0 ? 1 : 0);
  };
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, stop);
  const counted = metrics && (await createRuns());
  const port = counted && (await serve(counted.registry, metrics.host, metrics.port));
  const where = port === undefined ? '' : `, with metrics on port ${port}`;
  if (!json) say(`Checking ${url} from here every ${seconds} s${where}`);
  const runs = repeat(seconds * 1000, check);
  for (;;) {
    const { value: run } = await runs.next();
    if (run.ok) times.record(Math.max(run.ms, 1));
    else failures += 1;
    counted?.record(run);
    say(json ? JSON.stringify({ url, ...run }) : lineOf(run));
  }
}
