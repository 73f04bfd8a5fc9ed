/** `amesh-relay check`: pairs with itself through whatever stands in between, and says step by step what it finds. */
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs, stripVTControlCharacters, styleText } from 'node:util';
import { ConfigError, readEnvironment } from '../config.ts';
import { checkEvery, type Endpoint, MIN_EVERY_SECONDS } from './every.ts';
import { Probe } from './probe.ts';
import {
  conclusionOf,
  durationText,
  IDLE_SECONDS,
  type Reporter,
  type Step,
  type StepName,
  stepTitles,
  takeAll,
  wireTasks,
} from './steps.ts';

const DEFAULT_URL = 'ws://127.0.0.1:3001/ws';
const RETRY_MS = 1000;
/** A relay ends a watch after five minutes. */
const MAX_IDLE_SECONDS = 290;
const MAX_WAIT_SECONDS = 3600;

/** @returns 0 when a device would get through from here, 1 when not. Warnings leave it 0. */
export async function check(args: string[]): Promise<number> {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: {
      json: { type: 'boolean', default: false },
      wait: { type: 'string' },
      idle: { type: 'string' },
      token: { type: 'string' },
      every: { type: 'string' },
      'metrics-port': { type: 'string' },
    },
  });
  if (positionals.length > 1) throw usage(`got ${positionals.length} URLs, expected one`);
  const url = readUrl(positionals[0] ?? DEFAULT_URL);
  const seconds = (flag: 'wait' | 'idle' | 'every', min: number, max: number, normal: number) => {
    const text = values[flag];
    if (text === undefined) return normal;
    const read = /^\d{1,4}$/.test(text) ? Number(text) : -1;
    if (read >= min && read <= max) return read;
    const got = JSON.stringify(text);
    throw usage(`--${flag}: got ${got}, expected whole seconds from ${min} to ${max}`);
  };
  const wait = seconds('wait', 1, MAX_WAIT_SECONDS, 0);
  const every = seconds('every', MIN_EVERY_SECONDS, MAX_WAIT_SECONDS, 0);
  // A probe measures, so unless told otherwise it does not wait.
  const idle = seconds('idle', 0, MAX_IDLE_SECONDS, every ? 0 : IDLE_SECONDS);
  if (every && idle >= every) {
    throw usage(`--idle: got ${idle}, expected less than the ${every} seconds of --every`);
  }
  const metrics = readMetricsPort(values['metrics-port'], every > 0);
  const token =
    values.token || url.searchParams.get('token') || process.env['AMESH_ACCESS_TOKEN'] || '';
  if (token) url.searchParams.set('token', token);

  const printable = createPrintable(token);
  const shownUrl = printable(url.href);
  const screen = values.json || every ? undefined : new Screen(shownUrl, printable);
  const look = async (): Promise<Step[]> => {
    const tasks = [...new Probe(url).tasks(), ...wireTasks(url.href, idle)];
    return printable(await takeAll(tasks, screen));
  };
  if (wait > 0) await untilUp(url, wait, screen);
  if (every) return checkEvery(every, look, { url: shownUrl, json: values.json, metrics });
  const steps = await look();
  const { status, text } = conclusionOf(steps);
  const ok = status !== 'failed';
  if (screen) screen.conclude(status, text);
  else process.stdout.write(`${JSON.stringify({ url: shownUrl, ok, steps }, null, 2)}\n`);
  return ok ? 0 : 1;
}

/** Waits for a relay that is still coming up: until a WebSocket opens, or the time is over. */
async function untilUp(url: URL, seconds: number, screen?: Screen): Promise<void> {
  const deadline = performance.now() + seconds * 1000;
  while (conclusionOf(await takeAll(new Probe(url).tasks())).status === 'failed') {
    const left = deadline - performance.now();
    if (left <= 0) return;
    screen?.passing(`not up yet, ${Math.ceil(left / 1000)} s left`);
    await sleep(Math.min(RETRY_MS, left));
  }
}

function readUrl(text: string): URL {
  const url = URL.parse(text);
  if (url && /^wss?:$/.test(url.protocol) && !url.username && !url.password && !url.hash) {
    return url;
  }
  const meant = /^https?:$/.test(url?.protocol ?? '')
    ? `${url?.protocol.replace('http', 'ws')}//${url?.host}/ws`
    : 'wss://relay.example.com/ws';
  // A password, an access token: what stands where secrets are kept is not repeated.
  const shown = text.replace(/\/\/[^/]*@/, '//…@').replace(/[?#].*/s, '?…');
  throw usage(`got ${JSON.stringify(shown)}, expected a WebSocket URL such as ${meant}`);
}

const usage = (message: string): Error => new ConfigError(`check: ${message}`);

/** Where a probe serves its metrics: at METRICS_HOST or else HOST, as the relay does. */
function readMetricsPort(text: string | undefined, isProbe: boolean): Endpoint | undefined {
  if (text === undefined) return undefined;
  if (!isProbe) throw usage('--metrics-port: got no --every; expected both, or neither');
  const { HOST, METRICS_HOST } = process.env;
  const metricsPort = { label: 'check: --metrics-port', text };
  // Port 0 is no port that could be the same.
  const config = readEnvironment({ HOST, METRICS_HOST, PORT: '0' }, { metricsPort });
  return { host: config.metricsHost ?? config.host, port: config.metricsPort as number };
}

type Printable = <T>(value: T) => T;

/** No text from a server fills the screen. */
const MAX_TEXT = 500;
/** Control characters, and what else a terminal or a reader may take for more than text. */
const UNPRINTABLE = /[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Zl}\p{Zp}]/gu;

/**
 * @returns A function through which everything goes that is shown. In every text of a value, it takes out what a terminal
 *   would obey, since it may come from a hostile server, and the access token.
 */
function createPrintable(token: string): Printable {
  const secrets = token.length < 4 ? [] : [token, encodeURIComponent(token)];
  const clean = (text: string): string => {
    let shown = stripVTControlCharacters(text).replaceAll(UNPRINTABLE, '');
    shown = shown.replaceAll(/([?&]token=)[^&#\s]*/g, '$1…');
    for (const secret of secrets) shown = shown.replaceAll(secret, '…');
    return shown.length > MAX_TEXT ? `${shown.slice(0, MAX_TEXT)}…` : shown;
  };
  return (value) =>
    JSON.parse(JSON.stringify(value), (_key, part: unknown) =>
      typeof part === 'string' ? clean(part) : part,
    );
}

const TITLE_WIDTH = Math.max(...Object.values(stepTitles).map((title) => title.length));
const INDENT = '    ';
const MAX_WIDTH = 100;
const MARKS = { ok: ['✓', 'green'], warning: ['!', 'yellow'], failed: ['✗', 'red'] } as const;

/** For people: a line for each step as it ends; at a terminal also while it runs, and in colour. */
class Screen implements Reporter {
  readonly #out = process.stdout;
  readonly #isTerminal = Boolean(this.#out.isTTY);
  #saidProgress = false;

  constructor(
    url: string,
    private readonly printable: Printable,
  ) {
    this.#line(`Checking ${this.#style('bold', url)} from here\n`);
  }

  /** A line that the next one replaces. */
  passing(text: string): void {
    if (this.#isTerminal) this.#out.write(`\r\u001b[K${this.#style('dim', `  … ${text}`)}`);
  }

  begin(name: StepName): void {
    this.passing(stepTitles[name]);
  }

  progress(name: StepName, text: string): void {
    const whole = `${stepTitles[name]}: ${text} (--idle 0 leaves it out)`;
    if (!this.#isTerminal && !this.#saidProgress) this.#line(`…       ${whole}`);
    this.#saidProgress = true;
    this.passing(whole);
  }

  end(step: Step): void {
    const { name, status, ms, found, means, change } = this.printable(step);
    const [sign, colour] = MARKS[status];
    const mark = this.#isTerminal
      ? `\r\u001b[K${this.#style(colour, `  ${sign}`)}`
      : status.padEnd(7);
    const time = this.#style('dim', durationText(ms).padStart(9));
    this.#line(`${mark} ${stepTitles[name].padEnd(TITLE_WIDTH)} ${time}  ${found}`);
    if (!means || !change) return;
    const width = Math.min(this.#out.columns || MAX_WIDTH, MAX_WIDTH) - INDENT.length;
    for (const text of [means, `→ ${change}`]) {
      this.#line(INDENT + Bun.wrapAnsi(text, width).replaceAll('\n', `\n${INDENT}`));
    }
  }

  conclude(status: Step['status'], text: string): void {
    this.#line(`\n${this.#style(MARKS[status][1], text)}`);
  }

  #style(style: 'bold' | 'dim' | 'red' | 'green' | 'yellow', text: string): string {
    const isPlain = !this.#isTerminal || process.env['NO_COLOR'];
    return isPlain ? text : styleText(style, text, { validateStream: false });
  }

  #line(text: string): void {
    this.#out.write(`${text}\n`);
  }
}
