/** The documentation, against the code that it speaks of; and its links. */
import { expect, test } from 'bun:test';
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { readOptions } from '../src/config.ts';
import { createRegistry } from '../src/observe/metrics.ts';
import { RelayServer } from '../src/server.ts';
import { pages, withTable } from '../tools/settings.ts';

const root = join(import.meta.dir, '..');

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

test.each(pages)('%s has the settings that `bun run settings` would write', async (page) => {
  // The formatter aligns the columns, so blanks and the rules below the heads do not count.
  const plain = (text: string): string => text.replaceAll(/ +/g, ' ').replaceAll(/-{3,}/g, '---');
  const text = await Bun.file(join(root, page)).text();
  expect(plain(text)).toBe(plain(withTable(page, text)));
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

const documents = ['*.md', '.github/**/*.md', 'docs/*.md', 'bench/results/*.md'].flatMap((glob) => [
  ...new Bun.Glob(glob).scanSync({ cwd: root, dot: true }),
]);
const withoutCode = (text: string): string => text.replaceAll(/^ *```[^]*?^ *```$/gm, '');

/** The names that GitHub gives the headings of a document, for links to them. */
const anchors = (text: string): string[] =>
  [...withoutCode(text).matchAll(/^#+ (.*)$/gm)].map(([, heading = '']) =>
    heading
      .toLowerCase()
      .replaceAll(/\[([^\]]*)\]\([^)]*\)/g, '$1')
      .replaceAll(/[^\p{L}\p{N}_ -]/gu, '')
      .replaceAll(' ', '-'),
  );

test.each(documents)('%s: every link within the repository leads somewhere', async (file) => {
  const text = withoutCode(await Bun.file(join(root, file)).text());
  const links = [...text.matchAll(/\]\(([^)\s]+)\)|(?:src|href)="([^"]+)"/g)]
    .map(([, target, attribute]) => (target ?? attribute) as string)
    .filter((target) => !/^(?:https?|mailto):/.test(target));
  for (const target of links) {
    const [path = '', anchor] = target.split('#');
    const to = path === '' ? file : join(dirname(file), path);
    expect(existsSync(join(root, to)), target).toBe(true);
    if (anchor) expect(anchors(await Bun.file(join(root, to)).text()), target).toContain(anchor);
  }
});

test.each([...new Bun.Glob('docs/*.md').scanSync(root)])(
  '%s ends with a way to see that it works',
  async (file) => {
    const text = await Bun.file(join(root, file)).text();
    expect(text.slice(text.lastIndexOf('ee that it works'))).toMatch(/```sh\n[^]*```\s*$/);
  },
);
