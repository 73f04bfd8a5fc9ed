/** Plays every transcript in PROTOCOL.md against the relay, and looks that no code is missing there. */
import { expect, test } from 'bun:test';
import { join } from 'node:path';
import { closes, errorCodes, rejectReasons } from '../src/wire/codes.ts';
import { readEnvironment, type SettingName, settings } from '../src/config.ts';
import { type Client, startRelay, type TestRelay, within } from './support.ts';

const page = await Bun.file(join(import.meta.dir, '../PROTOCOL.md')).text();

const transcripts = [...page.matchAll(/^```transcript\n(.*?)^```$/gms)].map((match) => ({
  line: page.slice(0, match.index).split('\n').length,
  steps: (match[1] as string).trimEnd().split('\n'),
}));

/** "(1025 times x)" stands for what would not fit on a line. */
const written = (frame: string): string =>
  frame.replace(/\((\d+) times (.)\)/, (_, count: string, character: string) =>
    character.repeat(Number(count)),
  );

function relayOf(steps: string[]): Promise<TestRelay> {
  const line = steps[0]?.startsWith('relay: ') ? (steps.shift() as string).slice(7) : '';
  const environment = Object.fromEntries(line.split(' ').map((pair) => pair.split('=')));
  const names = (Object.keys(settings) as SettingName[]).filter(
    (name) => settings[name].env in environment,
  );
  const config = readEnvironment(environment);
  return startRelay(Object.fromEntries(names.map((name) => [name, config[name]])));
}

/** Waits until the relay has taken all that a client has sent, or has closed it. */
async function settled({ ws, closed }: Client): Promise<void> {
  if (ws.readyState !== WebSocket.OPEN) return;
  const pong = new Promise((resolve) => {
    ws.addEventListener('pong' as 'message', resolve, { once: true });
  });
  (ws as WebSocket & { ping: () => void }).ping();
  await within(Promise.race([pong, closed]), 'a pong');
}

async function play(steps: string[]): Promise<void> {
  const relay = await relayOf(steps);
  const clients = new Map<string, Client>();
  const clientOf = async (name: string): Promise<Client> => {
    const client = clients.get(name) ?? (await relay.connect());
    clients.set(name, client);
    return client;
  };
  for (const step of steps) {
    const [, seconds] = /^(\d+) s pass$/.exec(step) ?? [];
    const [, path, status, body] = /^GET (\S+) < (\d+) (.*)$/.exec(step) ?? [];
    const [, name, verb, rest = ''] = /^(\w+) +(>|<|leaves$) ?(.*)$/.exec(step) ?? [];
    if (seconds) {
      relay.pass(Number(seconds) * 1000);
    } else if (step === 'the relay drains') {
      void relay.server.stop({ drain: true });
    } else if (path) {
      const response = await fetch(relay.http + path);
      // Every answer ends with a line break.
      expect(`${response.status} ${await response.text()}`).toBe(`${status} ${body}\n`);
    } else if (name && verb === '>') {
      const client = await clientOf(name);
      client.send(written(rest));
      await settled(client);
    } else if (name && verb === '<' && rest.startsWith('close ')) {
      const [, code, reason = ''] = rest.split(' ');
      await (await clientOf(name)).expectClose(Number(code), reason);
      clients.delete(name);
    } else if (name && verb === '<') {
      expect(`${name} < ${await (await clientOf(name)).nextText()}`).toBe(
        `${name} < ${written(rest)}`,
      );
    } else if (name && verb === 'leaves') {
      const client = await clientOf(name);
      client.close(1000);
      await within(client.closed, 'the close');
      clients.delete(name);
    } else {
      throw new Error(`a step that nobody can play: ${step}`);
    }
  }
  for (const client of clients.values()) await client.expectNothing();
}

test.each(transcripts)('PROTOCOL.md, transcript at line $line', async ({ steps }) => {
  await play([...steps]);
});

test('every JSON object in PROTOCOL.md stands in a transcript', () => {
  const prose = page.replaceAll(/^```transcript\n.*?^```$/gms, '');
  expect(prose.match(/\{".*?\}/g)).toBeNull();
  expect(transcripts.length).toBeGreaterThan(10);
});

/** The first cells of the table between a marker and its end. */
function cells(marker: string, columns: number): string[] {
  const table = page.split(`<!-- ${marker} -->`)[1]?.split(`<!-- /${marker} -->`)[0] ?? '';
  return table
    .split('\n')
    .filter((line) => line.startsWith('|'))
    .slice(2)
    .map((row) =>
      row
        .split('|')
        .slice(1, columns + 1)
        .map((cell) => cell.replaceAll('`', '').trim())
        .join(' '),
    );
}

test('PROTOCOL.md has every code, and no other', () => {
  expect(cells('errors', 1)).toEqual(Object.keys(errorCodes));
  expect(cells('rejects', 1)).toEqual(Object.keys(rejectReasons));
  expect(cells('closes', 2)).toEqual(
    Object.entries(closes).map(([reason, { code }]) => `${code} ${reason}`),
  );
});

test('PROTOCOL.md has the defaults of the settings that it names', () => {
  const limits = page.split('## Timing and limits')[1]?.split('\n\n- A *client*')[0] ?? '';
  const named = [...limits.matchAll(/^\|[^|]*\| (?:about )?([\d,]+)[^|]*\|[^|]*\| `(\w+)` *\|$/gm)];
  expect(named.length).toBeGreaterThan(10);
  for (const [, value, env] of named) {
    const setting = Object.values(settings).find((candidate) => candidate.env === env);
    expect(`${env} ${value?.replaceAll(',', '')}`).toBe(`${env} ${setting?.shownDefault}`);
  }
});
