/**
 * `bun run bench`: the relay beside a bare Bun relay, the same with Node's `ws`, and PeerJS.
 *
 *   bun run bench                     everything, about seven minutes; writes bench/results
 *   bun run bench --quick             under a minute, to see that it works; writes nothing
 *   bun run bench --only pairing      one measure (or several, with commas); writes nothing
 */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { measures } from './measures.ts';
import { plots } from './plots.ts';
import { claims, type Results, surroundings, toMarkdown } from './report.ts';

const { values: flags } = parseArgs({
  options: {
    help: { type: 'boolean', short: 'h', default: false },
    quick: { type: 'boolean', default: false },
    only: { type: 'string' },
  },
});
if (flags.help) {
  console.log(`usage: bun run bench [--quick] [--only ${Object.keys(measures).join(',')}]

Measures the relay beside a bare Bun relay, the same with Node's ws, and PeerJS, all in turns. Everything takes about eight
minutes and writes bench/results; --quick takes a minute, to see that it works, and --only takes some of the measures:
neither writes anything.`);
  process.exit(0);
}
const chosen = flags.only?.split(',') ?? Object.keys(measures);
const unknown = chosen.find((name) => !Object.hasOwn(measures, name));
if (unknown !== undefined) {
  console.error(`--only: got "${unknown}", expected ${Object.keys(measures).join(', ')}`);
  process.exit(2);
}

const start = performance.now();
const elapsed = (): string => `${Math.round((performance.now() - start) / 1000)} s`.padStart(5);
const progress = (line: string): void => console.error(`${elapsed()}  ${line}`);

progress(surroundings());
const results: Results = {};
for (const name of chosen) {
  const measure = measures[name] as (typeof measures)[string];
  progress(name);
  Object.assign(results, await measure.run(flags.quick ? measure.quick : measure.whole, progress));
}

const markdown = toMarkdown(results);
console.log(`\n${markdown}\n`);
const all = claims(results).filter(({ got }) => got);
const reached = all.filter(({ aim, got }) => (got?.[1] ?? Infinity) <= aim);
console.log(
  `${reached.length} of ${all.length} aims are reached. Only ratios count: the figures themselves are this machine's.`,
);

if (!flags.quick && flags.only === undefined) {
  const directory = join(import.meta.dir, 'results');
  mkdirSync(directory, { recursive: true });
  const pictures = await plots(results);
  for (const [file, svg] of Object.entries(pictures)) await Bun.write(join(directory, file), svg);
  const page = [
    '# How the relay compares',
    'Written by `bun run bench`. All figures come from one run, in which the servers took turns round by round; a figure is the median of its rounds, and a ratio (in brackets: to bare Bun) the median of the ratios in each round. Only ratios are claimed: the figures themselves are this machine’s.',
    `${surroundings()}.`,
    ...Object.keys(pictures).map((file) => `![](./${file})`),
    markdown,
  ];
  await Bun.write(join(directory, 'results.md'), `${page.join('\n\n')}\n`);
  progress(`written to ${directory}`);
}
process.exit(0);
