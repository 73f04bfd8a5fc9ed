/** docs/asyncapi.yaml: as the relay's schemas are now, and valid by the official parser. */
import { expect, test } from 'bun:test';
import { Parser } from '@asyncapi/parser';
import { document, path, yaml } from '../tools/asyncapi.ts';

/** The parser alone takes a second to load, and longer on a busy machine. */
const PATIENCE = { timeout: 60_000 };

test('docs/asyncapi.yaml is what `bun run asyncapi` would write', async () => {
  expect(await Bun.file(path).text()).toBe(yaml);
});

test('docs/asyncapi.yaml is AsyncAPI, and says what it is meant to', PATIENCE, async () => {
  const parsed = await new Parser().parse(await Bun.file(path).text());
  expect(parsed.diagnostics).toEqual([]);
  const [channel] = parsed.document?.channels().all() ?? [];
  expect(channel?.address()).toBe('/ws');
  expect(channel?.messages().all()).toHaveLength(
    Object.keys(document.channels.relay.messages).length,
  );
  const init = parsed.document?.operations().get('receive.bootstrap_init');
  expect(init?.action()).toBe('receive');
  expect(
    init
      ?.reply()
      ?.messages()
      .all()
      .map((message) => message.name()),
  ).toEqual(['bootstrap_ack', 'bootstrap_reject']);
});

test('the parser tells a broken document from a sound one', PATIENCE, async () => {
  const broken = yaml.replace('action: receive', 'action: recieve');
  expect((await new Parser().parse(broken)).diagnostics.length).toBeGreaterThan(0);
});
