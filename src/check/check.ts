/** `amesh-relay check`: pairs with itself through whatever stands in between, and says step by step what it finds. */
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs, styleText } from 'node:util';
import { ConfigError } from '../config.ts';
import { Probe } from './probe.ts';
import {
  checkIdle,
  checkWire,
  type Finding,
  type Reporter,
  type Step,
  type StepName,
  stepTitles,
  take,
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
    },
  });
  if (positionals.length > 1) {
    throw new ConfigError(`check: got ${positionals.length} URLs, expected one`);
  }
  const url = readUrl(positionals[0] ?? DEFAULT_URL);
  const wait = readSeconds('--wait', values.wait, MAX_WAIT_SECONDS);
  const idle = readSeconds('--idle', values.idle, MAX_IDLE_SECONDS);

  const output = values.json ? new JsonOutput(url) : new HumanOutput(url, process.stdout);
  if (wait > 0) await untilUp(url, wait, output);
  const ok = await run(url, idle, output);
  output.conclude(ok);
  return ok ? 0 : 1;
}

async function run(url: URL, idle: number, output: Reporter): Promise<boolean> {
  for (const [name, work] of foundations(new Probe(url))) {
    if (!(await take(output, name, work))) return false;
  }
  if (!(await checkWire(url.href, output))) return false;
  return idle === 0 || checkIdle(url.href, idle, output);
}

function foundations(probe: Probe): [StepName, () => Promise<Finding>][] {
  return [
    ['name', () => probe.resolve()],
    ['connect', () => probe.connect()],
    ...(probe.url.protocol === 'wss:'
      ? ([['tls', () => probe.certificate()]] satisfies [StepName, () => Promise<Finding>][])
      : []),
    ['health', () => probe.health()],
    ['upgrade', () => probe.upgrade()],
    ['address', () => probe.address()],
  ];
}

/** Waits for a relay that is still coming up: until a WebSocket opens, or the time is over. */
async function untilUp(url: URL, seconds: number, output: Output): Promise<void> {
  const deadline = performance.now() + seconds * 1000;
  const silent: Reporter = { begin: () => {}, end: () => {} };
  for (;;) {
    let up = true;
    for (const [name, work] of foundations(new Probe(url))) up &&= await take(silent, name, work);
    const left = deadline - performance.now();
    if (up || left <= 0) return;
    output.waiting(Math.ceil(left / 1000));
    await sleep(Math.min(RETRY_MS, left));
  }
}

function readUrl(text: string): URL {
  const url = URL.parse(text);
  if (url && /^wss?:$/.test(url.protocol) && !url.username && !url.hash) return url;
  const meant = /^https?:$/.test(url?.protocol ?? '')
    ? `${url?.protocol.replace('http', 'ws')}//${url?.host}/ws`
    : 'wss://relay.example.com/ws';
  throw new ConfigError(
    `check: got ${JSON.stringify(text)}, expected a WebSocket URL such as ${meant}`,
  );
}

function readSeconds(flag: string, text: string | undefined, max: number): number {
  if (text === undefined) return 0;
  const seconds = /^\d{1,4}$/.test(text) ? Number(text) : 0;
  if (seconds >= 1 && seconds <= max) return seconds;
  throw new ConfigError(
    `${flag}: got ${JSON.stringify(text)}, expected whole seconds from 1 to ${max}`,
  );
}

interface Output extends Reporter {
  waiting: (secondsLeft: number) => void;
  conclude: (ok: boolean) => void;
}

/** One document, when all is done. */
class JsonOutput implements Output {
  readonly #url: URL;
  readonly #steps: Step[] = [];

  constructor(url: URL) {
    this.#url = url;
  }

  begin(): void {}

  waiting(): void {}

  end(step: Step): void {
    this.#steps.push(step);
  }

  conclude(ok: boolean): void {
    const document = { url: this.#url.href, ok, steps: this.#steps };
    process.stdout.write(`${JSON.stringify(document, null, 2)}\n`);
  }
}

const TITLE_WIDTH = Math.max(...Object.values(stepTitles).map((title) => title.length));
const INDENT = '    ';
const MAX_WIDTH = 100;
const MARKS = { ok: ['✓', 'green'], warning: ['!', 'yellow'], failed: ['✗', 'red'] } as const;

/** A line for each step as it ends; at a terminal also while it runs, and in colour. */
class HumanOutput implements Output {
  readonly #out: NodeJS.WriteStream;
  readonly #isTerminal: boolean;
  #warnings = 0;

  constructor(url: URL, out: NodeJS.WriteStream) {
    this.#out = out;
    this.#isTerminal = Boolean(out.isTTY);
    this.#line(`Checking ${this.#style('bold', url.href)} from here\n`);
  }

  waiting(secondsLeft: number): void {
    if (this.#isTerminal)
      this.#replace(this.#style('dim', `  … not up yet, ${secondsLeft} s left`));
  }

  begin(name: StepName): void {
    if (this.#isTerminal) this.#replace(this.#style('dim', `  … ${stepTitles[name]}`));
  }

  end({ name, status, ms, found, means, change }: Step): void {
    if (status === 'warning') this.#warnings += 1;
    const [sign, colour] = MARKS[status];
    const mark = this.#isTerminal ? this.#style(colour, `  ${sign}`) : status.padEnd(7);
    const time = this.#style('dim', `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`.padStart(9));
    if (this.#isTerminal) this.#replace('');
    this.#line(`${mark} ${stepTitles[name].padEnd(TITLE_WIDTH)} ${time}  ${found}`);
    if (means && change) {
      this.#line(this.#wrap(means));
      this.#line(this.#wrap(`→ ${change}`));
    }
  }

  conclude(ok: boolean): void {
    const warned = this.#warnings === 1 ? 'one warning' : `${this.#warnings} warnings`;
    if (!ok) this.#line(`\n${this.#style('red', 'A device would not get through from here.')}`);
    else if (this.#warnings > 0) {
      this.#line(`\n${this.#style('yellow', `A device gets through from here, with ${warned}.`)}`);
    } else this.#line(`\n${this.#style('green', 'All well: a device gets through from here.')}`);
  }

  #style(style: 'bold' | 'dim' | 'red' | 'green' | 'yellow', text: string): string {
    return this.#isTerminal && !process.env.NO_COLOR
      ? styleText(style, text, { validateStream: false })
      : text;
  }

  #line(text: string): void {
    this.#out.write(`${text}\n`);
  }

  #replace(text: string): void {
    this.#out.write(`\r\u001b[K${text}`);
  }

  /** Breaks a text at the terminal's edge, and in any case where it would be hard to read. */
  #wrap(text: string): string {
    const width = Math.min(this.#out.columns || MAX_WIDTH, MAX_WIDTH);
    const lines: string[] = [];
    for (const word of text.split(' ')) {
      const line = lines.at(-1);
      if (line !== undefined && line.length + 1 + word.length < width - INDENT.length) {
        lines[lines.length - 1] = `${line} ${word}`;
      } else lines.push(word);
    }
    return lines.map((line) => INDENT + line).join('\n');
  }
}
