/** `amesh-relay check --every`: how it repeats, what it tells, and what its metrics say. */
import { describe, expect, test } from 'bun:test';
import { lineOf, repeat, type Run, serveRuns, Tally } from '../src/check/every.ts';
import type { Step } from '../src/check/steps.ts';
import { createRelayServer } from '../src/index.ts';
import { afterThisTest, freePort, within } from './support.ts';
import { command, run as runCommand } from './support-process.ts';

const step = (name: Step['name'], status: Step['status'], ms = 1): Step => ({
  name,
  status,
  ms,
  found: 'what was found',
  ...(status !== 'ok' && { problem: 'refused', means: 'm', change: 'c' }),
});

const run = (ok: boolean, ms: number, steps: Step[] = []): Run => ({
  time: '2026-01-02T03:04:05.678Z',
  ok,
  ms,
  steps,
});

describe('repeating', () => {
  test('one run after another, each told, until it is stopped', async () => {
    const stop = new AbortController();
    const told: Run[] = [];
    const pauses: number[] = [];
    await repeat(
      60_000,
      async () => ({ ok: told.length !== 1, steps: [] }),
      (done) => told.push(done),
      stop.signal,
      async (ms) => {
        pauses.push(ms);
        if (pauses.length === 3) stop.abort();
      },
    );
    expect(told.map(({ ok }) => ok)).toEqual([true, false, true]);
    for (const pause of pauses) expect(pause).toBeWithin(1, 60_001);
  });

  test('a run that is under way at the stop is not told of', async () => {
    const stop = new AbortController();
    const told: Run[] = [];
    await repeat(
      1000,
      async () => {
        stop.abort();
        return { ok: false, steps: [] };
      },
      (done) => told.push(done),
      stop.signal,
    );
    expect(told).toEqual([]);
  });

  test('the summary has the times of the runs that passed', () => {
    const tally = new Tally();
    expect(tally.summary).toMatchObject({ runs: 0, failures: 0, medianMs: null, slowestMs: null });
    for (const ms of [30, 10, 20]) tally.add(run(true, ms));
    tally.add(run(false, 9000));
    expect(tally.summary).toMatchObject({ runs: 4, failures: 1, medianMs: 20, slowestMs: 30 });
  });

  test('a line says when, how it went, how long it took, and what was not well', () => {
    expect(lineOf(run(true, 41, [step('health', 'ok')]))).toMatch(
      /^2026-01-02T03:04:05\.678Z {2}ok +41 ms$/,
    );
    expect(lineOf(run(false, 41, [step('health', 'ok'), step('connect', 'failed')]))).toMatch(
      /^2026-01-02T03:04:05\.678Z {2}failed +41 ms {2}\S.*: what was found \(refused\)$/,
    );
    expect(lineOf(run(true, 41, [step('address', 'warning')]))).toContain('  warning ');
  });
});

/** What is served at a port of this machine. */
const scrape = async (port: number): Promise<string> =>
  (await fetch(`http://127.0.0.1:${port}/metrics`)).text();

describe('metrics', () => {
  test('say nothing of a run before the first, and then what the last one was', async () => {
    const { port, record, stop } = await serveRuns('127.0.0.1', 0);
    afterThisTest(stop);
    expect(await scrape(port)).not.toMatch(/^amesh_relay_check_(success|last_run)/m);
    record(run(true, 10, [step('health', 'ok', 5), step('connect', 'ok', 2)]));
    record(run(false, 10, [step('health', 'failed', 8)]));
    const text = await scrape(port);
    for (const line of [
      'amesh_relay_check_success 0',
      'amesh_relay_check_step_seconds{step="health"} 0.008',
      'amesh_relay_check_runs_total{result="ok"} 1',
      'amesh_relay_check_runs_total{result="warning"} 0',
      'amesh_relay_check_runs_total{result="failed"} 1',
    ]) {
      expect(text).toContain(`${line}\n`);
    }
    // The steps of an earlier run are gone.
    expect(text).not.toContain('step="connect"');
    const at = Number(/^amesh_relay_check_last_run_timestamp_seconds (\S+)$/m.exec(text)?.[1]);
    expect(Math.abs(at - Date.now() / 1000)).toBeLessThan(60);
  });

  const promtool = Bun.which('promtool');
  if (!promtool) console.warn('SKIPPED: the form of the metrics, since there is no promtool');
  test.skipIf(!promtool)('have the form that promtool expects', async () => {
    const { port, record, stop } = await serveRuns('127.0.0.1', 0);
    afterThisTest(stop);
    record(run(true, 10, [step('health', 'ok', 5)]));
    const checked = Bun.spawnSync([promtool as string, 'check', 'metrics'], {
      stdin: Buffer.from(await scrape(port)),
    });
    expect(checked.stdout.toString() + checked.stderr.toString()).toBe('');
    expect(checked.exitCode).toBe(0);
  });

  test('a port in use is told as such', async () => {
    const { port, stop } = await serveRuns('127.0.0.1', 0);
    afterThisTest(stop);
    const error = await serveRuns('127.0.0.1', port).catch(String);
    expect(error).toContain(`--metrics-port: cannot listen on port ${port} of 127.0.0.1`);
  });
});

describe('as a command', () => {
  /** Runs `check --every` until its first run is told, stops it, and returns its lines. */
  async function probe(url: string, args: string[], signal: 'SIGINT' | 'SIGTERM') {
    const child = Bun.spawn(['bun', command, 'check', '--every', '60', ...args, url], {
      env: { PATH: process.env['PATH'] },
      stdout: 'pipe',
      stderr: 'inherit',
    });
    afterThisTest(() => child.kill('SIGKILL'));
    const head = args.includes('--json') ? 1 : 2;
    let text = '';
    let isStopped = false;
    for await (const chunk of child.stdout.pipeThrough(new TextDecoderStream())) {
      text += chunk;
      if (isStopped || text.split('\n').length <= head) continue;
      isStopped = true;
      child.kill(signal);
    }
    return { lines: text.trim().split('\n'), code: await within(child.exited, 'the end') };
  }

  test('it tells each run in a line, and at SIGINT a summary; 0 if no run failed', async () => {
    const relay = await createRelayServer({ port: 0, host: '127.0.0.1' });
    const { url } = await relay.start();
    afterThisTest(() => relay.stop());
    const { lines, code } = await probe(url, [], 'SIGINT');
    expect(lines[0]).toBe(`Checking ${url} from here every 60 s`);
    expect(lines[1]).toMatch(/^\d{4}-\S+Z {2}ok +\d+ ms$/);
    expect(lines[2]).toMatch(/^1 run in \d+ s, 0 failed; median \d+ ms, slowest \d+ ms$/);
    expect(lines).toHaveLength(3);
    expect(code).toBe(0);
  });

  test('with --json each line is an object; 1 if a run failed', async () => {
    const url = `ws://127.0.0.1:${freePort()}/ws`;
    const { lines, code } = await probe(url, ['--json', '--metrics-port', '0'], 'SIGTERM');
    const [first, second] = lines.map((line) => JSON.parse(line) as Partial<Run> & object);
    expect(first).toMatchObject({ url, ok: false });
    expect(first?.steps?.at(-1)).toMatchObject({ status: 'failed' });
    expect(second as object).toEqual({
      summary: expect.objectContaining({ runs: 1, failures: 1, medianMs: null }),
    });
    expect(code).toBe(1);
  });

  test.each([
    [['--every', '14'], '--every: got "14", expected whole seconds from 15 to 3600'],
    [['--every', '60', '--idle', '60'], '--idle: got 60, expected less than the 60 seconds'],
    [['--metrics-port', '9092'], '--metrics-port: got no --every; expected both, or neither'],
    [['--every', '60', '--metrics-port', 'x'], '--metrics-port: got "x", expected a whole number'],
  ])('%j is refused in one line', async (args, message) => {
    const { code, err } = await runCommand(['check', ...args]);
    expect(err).toStartWith(`amesh-relay: check: ${message}`);
    expect(err.trim().split('\n')).toHaveLength(1);
    expect(code).toBe(2);
  });
});

test('the shortest interval stays within what a relay with default limits allows', async () => {
  const relay = await createRelayServer({ port: 0, host: '127.0.0.1', logLevel: 'silent' });
  const { url } = await relay.start();
  afterThisTest(() => relay.stop());
  // Five runs begin within 60 s at most; here they come at once.
  for (let i = 0; i < 5; i += 1) {
    const { code, out } = await runCommand(['check', '--idle', '0', '--json', url]);
    expect({ code, limited: out.includes('rate_limited') }).toEqual({ code: 0, limited: false });
  }
});
