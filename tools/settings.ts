/**
 * Writes the tables of settings from their schema: all of them into docs/settings.md, and those that people set into the
 * README. `bun run settings` does it; whatever else stands on the two pages stays as it is.
 */
import { join } from 'node:path';
import { type SettingName, settings } from '../src/config.ts';

/** The settings in the README's table, in this order. */
const COMMON: SettingName[] = [
  'port',
  'host',
  'trustProxy',
  'accessToken',
  'sessionTtlMs',
  'tlsCertFile',
  'tlsKeyFile',
  'redisUrl',
  'metricsPort',
  'logLevel',
];

/** The lines that the table stands between. */
const START = '<!-- settings -->';
const END = '<!-- /settings -->';

const row = (cells: string[]): string => `| ${cells.join(' | ')} |`;
const head = (names: string[]): string[] => [row(names), row(names.map(() => '---'))];
const code = (text: string): string => text && `\`${text}\``;

/** The table of each page, as lines of Markdown. `bun fmt` aligns the columns. */
const tables: Record<string, string[]> = {
  'README.md': [
    ...head(['Environment', 'Default', 'What it is']),
    ...COMMON.map((name) => {
      const { env, shownDefault, help } = settings[name];
      return row([code(env), code(shownDefault), help]);
    }),
  ],
  'docs/settings.md': [
    ...head(['Environment', 'Option', 'Default', 'Accepts', 'What it is']),
    ...Object.entries(settings).map(([option, { env, shownDefault, range = '', help }]) => {
      // The links in the schema are written for the root of the repository.
      const here = help.replaceAll('](docs/', '](');
      return row([code(env), code(option), code(shownDefault), range, here]);
    }),
  ],
};

/** The pages that have a table of settings, from the root of the repository. */
export const pages = Object.keys(tables);

/**
 * A page with its table as the schema has it now.
 * @param page One of {@link pages}.
 * @param text What the page holds.
 * @throws {Error} If the page has no place for the table.
 */
export function withTable(page: string, text: string): string {
  const [before, rest = ''] = text.split(START);
  const [, after] = rest.split(END);
  if (after === undefined) throw new Error(`${page} must hold the lines ${START} and ${END}`);
  return `${before}${START}\n\n${tables[page]?.join('\n')}\n\n${END}${after}`;
}

if (import.meta.main) {
  for (const page of pages) {
    const file = Bun.file(join(import.meta.dir, '..', page));
    await file.write(withTable(page, await file.text()));
  }
}
