/** docs/asyncapi.yaml is valid by AsyncAPI's own parser. */
import { expect, test } from 'bun:test';
import { document } from '../../tools/asyncapi.ts';
import { describeWithTools, read } from './support.ts';

/** Milliseconds. The parser alone takes a second to load, and longer on a busy machine. */
const PATIENCE = { timeout: 60_000 };

const yaml = await read('docs/asyncapi.yaml');
const parse = async (text: string) => {
  const { Parser } = await import('@asyncapi/parser');
  return new Parser().parse(text);
};

describeWithTools('AsyncAPI', () => {
  test('the document is valid, and says what it is meant to', PATIENCE, async () => {
    const parsed = await parse(yaml);
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
    expect((await parse(broken)).diagnostics.length).toBeGreaterThan(0);
  });
});
