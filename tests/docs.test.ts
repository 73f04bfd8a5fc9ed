/** The tables in the documentation, against the code that they speak of. */
import { expect, test } from 'bun:test';
import { join } from 'node:path';
import { readOptions, type Setting, settings } from '../src/config.ts';
import { createRegistry } from '../src/observe/metrics.ts';
import { RelayServer } from '../src/server.ts';

const root = join(import.meta.dir, '..');

const settingRows = Object.entries<Setting>(settings).map(
  ([option, { env, shownDefault, range = '', help }]) =>
    `| \`${env}\` | \`${option}\` | ${shownDefault && `\`${shownDefault}\``} | ${range} | ${help} |`,
);

async function metricRows(): Promise<string[]> {
  const { sockets } = new RelayServer(readOptions({ logLevel: 'silent' }));
  const metrics = await createRegistry(sockets).getMetricsAsJSON();
  return metrics.map(({ name, type, help, values }) => {
    const labels = new Set(values.flatMap((value) => Object.keys(value.labels)));
    labels.delete('le');
    return `| \`${name}\` | ${String(type)} | ${[...labels].map((label) => `\`${label}\``).join(', ')} | ${help} |`;
  });
}

/** The rows that stand between a marker and its end, without the table's head. */
async function rowsOf(file: string, marker: string): Promise<string[]> {
  const text = await Bun.file(join(root, file)).text();
  const between = text.split(`<!-- ${marker} -->`)[1]?.split(`<!-- /${marker} -->`)[0] ?? '';
  const rows = between
    .split('\n')
    .filter((line) => line.startsWith('|'))
    .slice(2);
  return rows.map((row) => row.replaceAll(/ +/g, ' ').replaceAll(/\| (?=\|)/g, '| '));
}

const normal = (rows: string[]): string[] => rows.map((row) => row.replaceAll(/ +/g, ' '));

test('the README has every setting, with its default and its range', async () => {
  expect(await rowsOf('README.md', 'settings')).toEqual(normal(settingRows));
});

test('the README’s figures are those of the last benchmark', async () => {
  const [readme, results] = await Promise.all(
    ['README.md', 'bench/results/results.md'].map((file) => Bun.file(join(root, file)).text()),
  );
  const part = readme?.split('## How fast it is')[1]?.split('\n## ')[0] ?? '';
  const rows = [
    ...(results ?? '').matchAll(/^\| ([^|]+) \| ([\d.]+) \| [^|]+ \| ≤ [^|]+ \| (.+) \|$/gm),
  ];
  const ratios = new Map(rows.map(([, what, median]) => [what, median]));
  const claimed = [
    'CPU per pairing, beside bare Bun',
    'CPU per pairing, beside Node with ws',
    'CPU per pairing, beside PeerJS',
    'CPU per frame, beside bare Bun',
    'Start of the bundle, beside bare Bun',
    'RSS per waiting session, beside bare Bun',
  ].map((what) => ratios.get(what));
  expect([...part.matchAll(/\b(\d\.\d\d) times/g)].map(([, ratio]) => ratio)).toEqual(claimed);
  const words = ['none', 'one', 'two', 'three', 'four', 'five'];
  const missed = words[rows.filter(([, , , reaches]) => reaches?.includes('no')).length];
  expect(part).toContain(`the ${missed} of nine aims that were missed`);
});

test('docs/metrics.md has every metric, with its type and labels', async () => {
  expect(await rowsOf('docs/metrics.md', 'metrics')).toEqual(normal(await metricRows()));
});

test('every metric in an alert exists', async () => {
  const text = await Bun.file(join(root, 'docs/metrics.md')).text();
  const names = new Set((await metricRows()).map((row) => row.split('`')[1]));
  for (const [used] of text.matchAll(/amesh_relay_[a-z0-9_]+/g)) {
    expect(names).toContain(used.replace(/_(bucket|sum|count)$/, ''));
  }
});

test('what CONTRIBUTING.md names is where it says', async () => {
  const text = await Bun.file(join(root, 'CONTRIBUTING.md')).text();
  const line = text.split('## The life of a frame')[1]?.split('\nBeside that line')[0] ?? '';
  const sources: string[] = [];
  for (const [, name = ''] of line.matchAll(/`([\w#./-]+)`/g)) {
    if (name.endsWith('.ts')) sources.push(await Bun.file(join(root, name)).text());
    else if (name !== '/ws') expect(sources.join(), name).toMatch(new RegExp(`${name}\\b`));
  }
  expect(sources.length).toBeGreaterThan(7);
});
