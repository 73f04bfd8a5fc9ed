/** The results as a Markdown table, with what they were to reach, and the machine beside them. */
import { readFileSync } from 'node:fs';
import { cpus, release, totalmem } from 'node:os';
import { createRequire } from 'node:module';
import { type Measured, median, ratio, spread } from './measures.ts';

export type Results = Record<string, Measured>;

interface Claim {
  what: string;
  aim: number;
  /** Lower quartile, median and upper quartile of the rounds; undefined where it was not measured. */
  got: [number, number, number] | undefined;
}

function versus(results: Results, key: string, over: string, under: string): Claim['got'] {
  const samples = results[key]?.samples;
  return samples?.[over] && samples[under] && spread(samples[over], samples[under]);
}

/** Everything that the relay is to be, as ratios. */
export function claims(results: Results): Claim[] {
  return [
    ['CPU per pairing, beside bare Bun', 1.1, versus(results, 'pairingCpu', 'relay', 'bare')],
    [
      'CPU per pairing behind a proxy, beside bare Bun',
      1.12,
      versus(results, 'strangersCpu', 'relay', 'bare'),
    ],
    ['CPU per frame, beside bare Bun', 1.05, versus(results, 'frameCpu', 'relay', 'bare')],
    [
      'CPU per frame, 16 at a time, beside bare Bun',
      1.05,
      versus(results, 'burstCpu', 'relay', 'bare'),
    ],
    [
      'RSS per waiting session, beside bare Bun',
      1.15,
      versus(results, 'waitingRss', 'relay', 'bare'),
    ],
    [
      'CPU per pairing with 10,000 waiting, beside none',
      1.05,
      versus(results, 'waiting.relay', '10000', '0'),
    ],
    ['Start of the bundle, beside bare Bun', 2.5, versus(results, 'start', 'relay', 'bare')],
    ['CPU per pairing, beside Node with ws', 0.4, versus(results, 'pairingCpu', 'relay', 'ws')],
    ['CPU per pairing, beside PeerJS', 0.3, versus(results, 'pairingCpu', 'relay', 'peerjs')],
  ].map(([what, aim, got]) => ({ what, aim, got }) as Claim);
}

const figure = (value: number): string =>
  value >= 100 ? String(Math.round(value)) : value.toPrecision(3);

export function toMarkdown(results: Results): string {
  const parts = [
    claimTable(claims(results)),
    contestantTable(results),
    waitingTable(results),
    startTable(results),
  ];
  return parts.filter((part) => part !== '').join('\n\n');
}

function table(head: string[], rows: string[][]): string {
  const line = (cells: string[]): string => `| ${cells.join(' | ')} |`;
  const rule = head.map((_, i) => (i === 0 ? '---' : '--:'));
  return [line(head), line(rule), ...rows.map(line)].join('\n');
}

function claimTable(all: Claim[]): string {
  const rows = all.flatMap(({ what, aim, got }) => {
    if (!got) return [];
    const [low, middle, high] = got.map((value) => value.toFixed(2));
    const reached = got[1] <= aim ? 'yes' : '**no**';
    return [[what, `${middle}`, `${low} – ${high}`, `≤ ${aim.toFixed(2)}`, reached]];
  });
  const head = ['ratio', 'median', 'middle half of the rounds', 'aim', 'median reaches it'];
  return rows.length ? table(head, rows) : '';
}

/** The quantities that every contestant has; the ratio beside each figure is to bare Bun. */
function contestantTable(results: Results): string {
  const keys = [
    'pairingCpu',
    'strangersCpu',
    'pairingRate',
    'frameCpu',
    'burstCpu',
    'p50',
    'p99',
    'waitingRss',
  ];
  const rows = keys.flatMap((key) => {
    const measured = results[key];
    if (!measured) return [];
    const { title, unit, samples } = measured;
    const cells = ['relay', 'bare', 'ws', 'peerjs'].map((name) =>
      samples[name]
        ? `${figure(median(samples[name]))} (${ratio(samples[name], samples.bare).toFixed(2)})`
        : 'not measured',
    );
    return [[`${title}, ${unit}`, ...cells]];
  });
  return rows.length ? table(['', 'relay', 'bare Bun', 'Node, ws', 'PeerJS'], rows) : '';
}

function waitingTable(results: Results): string {
  const found = Object.entries(results).filter(([key]) => key.startsWith('waiting.'));
  const levels = Object.keys(found[0]?.[1].samples ?? {});
  if (!levels.length) return '';
  const rows = found.map(([, { title, samples }]) => [
    title,
    ...levels.map(
      (level) =>
        `${figure(median(samples[level] ?? []))} (${ratio(samples[level], samples['0']).toFixed(2)})`,
    ),
  ]);
  return table(
    ['µs, and the ratio to the first column', ...levels.map((n) => `${n} waiting`)],
    rows,
  );
}

function startTable(results: Results): string {
  const samples = results.start?.samples;
  if (!samples) return '';
  const rows = Object.entries(samples).map(([name, all]) => [
    name,
    figure(median(all)),
    ratio(all, samples.bare).toFixed(2),
  ]);
  return table(['from exec to the first /health', 'ms', 'ratio to bare Bun'], rows);
}

/** What was measured, and on what. */
export function surroundings(): string {
  const require = createRequire(import.meta.url);
  const version = (name: string): string => require(`${name}/package.json`).version;
  const node = Bun.spawnSync(['node', '--version']).stdout.toString().trim();
  const [cpu] = cpus();
  const model =
    cpu?.model.trim() || /model name\s*: (.*)/.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1];
  const gigabytes = Math.round(totalmem() / 2 ** 30);
  return [
    `${cpus().length} × ${model}, ${gigabytes} GiB, Linux ${release()}`,
    `Bun ${Bun.version}, Node.js ${node}, ws ${version('ws')}, peer ${version('peer')}, Hono ${version('hono')}`,
  ].join('; ');
}
