import { describe, expect, test } from 'bun:test';
import { clientMessages } from '../src/wire/messages.ts';
import { CODE_MESSAGE, decodeBinary, frames, isCanonicalData, parse } from '../src/wire/frames.ts';
import { seeded } from './random.ts';

const refusal = (text: string): unknown => {
  const message = parse(text);
  return 'malformed' in message ? message.malformed : message;
};

/** The name of a frame's test: its first 70 characters. */
const label = (text: string): string =>
  text.length > 70 ? `${text.slice(0, 70)}… (${text.length} characters)` : text;

describe('bad frames', () => {
  const refused = [
    ['', 'invalid_message'],
    ['not json', 'invalid_message'],
    ['null', 'invalid_message'],
    ['true', 'invalid_message'],
    ['42', 'invalid_message'],
    ['"listen"', 'invalid_message'],
    ['[]', 'invalid_message'],
    ['[{"type":"done"}]', 'invalid_message'],
    ['{"type":"done"', 'invalid_message'],
    ['{"type":"done"}{"type":"done"}', 'invalid_message'],
    ["{'type':'done'}", 'invalid_message'],
    ['\ufeff{"type":"done"}', 'invalid_message'],
    ['['.repeat(30_000), 'invalid_message'],
    ['{"a":'.repeat(10_000), 'invalid_message'],
    [`${'['.repeat(30_000)}${']'.repeat(30_000)}`, 'invalid_message'],
    ['{"type":5}', 'invalid_message'],
    ['{"type":null}', 'invalid_message'],
    ['{"type":["listen"]}', 'invalid_message'],
    ['{"type":{"toString":"listen"}}', 'invalid_message'],
    ['{}', 'unknown_type'],
    ['{"type":""}', 'unknown_type'],
    ['{"type":"nope"}', 'unknown_type'],
    ['{"type":"LISTEN"}', 'unknown_type'],
    ['{"type":"listen "}', 'unknown_type'],
    ['{"type":"__proto__"}', 'unknown_type'],
    ['{"type":"constructor"}', 'unknown_type'],
    ['{"type":"hasOwnProperty"}', 'unknown_type'],
    ['{"__proto__":{"type":"done"}}', 'unknown_type'],
    ['{"type":"ack"}', 'unknown_type'],
    ['{"type":"error"}', 'unknown_type'],
    ['{"type":"listen"}', 'invalid_otc'],
    ['{"type":"listen","otc":482916}', 'invalid_otc'],
    ['{"type":"listen","otc":["482916"]}', 'invalid_otc'],
    ['{"type":"listen","otc":{"toString":"482916"}}', 'invalid_otc'],
    ['{"type":"listen","otc":null}', 'invalid_otc'],
    ['{"type":"listen","otc":"48291"}', 'invalid_otc'],
    ['{"type":"listen","otc":"4829160"}', 'invalid_otc'],
    ['{"type":"connect","otc":"482916\\n"}', 'invalid_otc'],
    ['{"type":"connect","otc":" 482916"}', 'invalid_otc'],
    ['{"type":"connect","otc":"４８２９１６"}', 'invalid_otc'],
    ['{"type":"connect","otc":"٤٨٢٩١٦"}', 'invalid_otc'],
    ['{"type":"connect","otc":"-82916"}', 'invalid_otc'],
    ['{"type":"connect","otc":"48291a"}', 'invalid_otc'],
    ['{"type":"connect","otc":""}', 'invalid_otc'],
    ['{"type":"data"}', 'invalid_message'],
    ['{"type":"data","payload":5}', 'invalid_message'],
    ['{"type":"data","payload":null}', 'invalid_message'],
    ['{"type":"data","payload":{}}', 'invalid_message'],
    ['{"type":"data","payload":["x"]}', 'invalid_message'],
    ['{"type":"bootstrap_watch"}', 'missing_jti'],
    ['{"type":"bootstrap_watch","jti":""}', 'invalid_jti'],
    ['{"type":"bootstrap_watch","jti":null}', 'invalid_jti'],
    ['{"type":"bootstrap_watch","jti":7}', 'invalid_jti'],
    [`{"type":"bootstrap_watch","jti":"${'x'.repeat(129)}"}`, 'invalid_jti'],
    ['{"type":"bootstrap_init","token":"t","targetPubKey":"k"}', 'missing_jti'],
    ['{"type":"bootstrap_init","jti":"j","targetPubKey":"k"}', 'invalid_message'],
    ['{"type":"bootstrap_init","jti":"j","token":1,"targetPubKey":"k"}', 'invalid_message'],
    ['{"type":"bootstrap_init","jti":"j","token":"t"}', 'invalid_message'],
    ['{"type":"bootstrap_ack","jti":"j","controllerSig":"s"}', 'invalid_message'],
    ['{"type":"bootstrap_ack","jti":"j","publicKey":"k"}', 'invalid_message'],
    ['{"type":"bootstrap_ack","jti":"j","publicKey":1,"controllerSig":"s"}', 'invalid_message'],
    ['{"type":"bootstrap_ack","publicKey":"k","controllerSig":"s"}', 'missing_jti'],
    ['{"type":"bootstrap_reject","jti":"j","error":5}', 'invalid_message'],
    ['{"type":"bootstrap_reject"}', 'missing_jti'],
  ] as const;
  test.each(refused.map(([text, code]) => [label(text), text, code] as const))(
    '%p',
    (_label, text, code) => {
      expect(refusal(text)).toBe(code);
    },
  );

  test('a malformed init gives the type and the jti for the answer, if they could be read', () => {
    expect(parse('{"type":"bootstrap_init","jti":"j"}')).toEqual({
      malformed: 'invalid_message',
      type: 'bootstrap_init',
      jti: 'j',
    });
    expect(parse('{"type":"bootstrap_init","jti":5}')).toEqual({
      malformed: 'invalid_jti',
      type: 'bootstrap_init',
    });
  });
});

describe('good frames', () => {
  const read: [string, unknown][] = [
    ['{"type":"listen","otc":"000000"}', { type: 'listen', otc: '000000' }],
    [' { "otc" : "482916", "type" : "connect" } ', { type: 'connect', otc: '482916' }],
    ['{"type":"data","payload":""}', { type: 'data', payload: '' }],
    ['{"type":"done","extra":[1,2]}', { type: 'done' }],
    ['{"type":"d\\u006fne"}', { type: 'done' }],
    ['{"type":"bootstrap_watch","jti":"bt_1"}', { type: 'bootstrap_watch', jti: 'bt_1' }],
    [
      `{"type":"bootstrap_watch","jti":"${'x'.repeat(128)}"}`,
      { type: 'bootstrap_watch', jti: 'x'.repeat(128) },
    ],
    ['{"type":"bootstrap_reject","jti":"j"}', { type: 'bootstrap_reject', jti: 'j' }],
    [
      '{"type":"bootstrap_ack","jti":"j","controllerPubKey":"k","controllerSig":"s"}',
      { type: 'bootstrap_ack', jti: 'j', controllerPubKey: 'k', controllerSig: 's' },
    ],
  ];
  test.each(read.map(([text, message]) => [label(text), text, message] as const))(
    '%p',
    (_label, text, message) => {
      expect(parse(text)).toEqual(message as never);
    },
  );
});

describe('canonical data', () => {
  const payloads = [
    '',
    'a',
    'aGVsbG8=',
    'quote "',
    'back\\slash',
    'tab\t',
    'nul\0',
    'del\u007f',
    'ü',
    '😀',
    '\u2028\u2029',
    '\ud800',
    '}',
    '"}',
    '{"type":"data"}',
  ];

  test.each(payloads)('the fast path and the parser give the same frame for %p', (payload) => {
    const frame = frames.data(payload);
    expect(parse(frame)).toEqual({ type: 'data', payload });
    if (isCanonicalData(frame))
      expect(frames.data((JSON.parse(frame) as { payload: string }).payload)).toBe(frame);
  });

  test.each([
    ['{"type":"data","payload":"a"}', true],
    ['{"type":"data","payload":"ü😀\u2028"}', true],
    ['{"type":"data","payload":""}', true],
    [' {"type":"data","payload":"a"}', false],
    ['{"type":"data","payload":"a"}\n', false],
    ['{"type":"data","payload":"a","x":1}', false],
    ['{"type":"data","payload":"a","payload":"b"}', false],
    ['{"payload":"a","type":"data"}', false],
    ['{"type":"data","payload":"\\u0041"}', false],
    ['{"type":"data","payload":"\n"}', false],
    ['{"type":"data","payload":"\0"}', false],
    ['{"type":"data","payload":"a}', false],
    ['{"type":"data","payload":"}', false],
    ['{"type":"data","payload":"a"', false],
    ['{"type":"done"}', false],
  ])('%p: %p', (text, canonical) => {
    expect(isCanonicalData(text)).toBe(canonical);
  });
});

test('a binary frame must be UTF-8', () => {
  expect(decodeBinary(new TextEncoder().encode('{"type":"done"} 😀'))).toBe('{"type":"done"} 😀');
  expect(decodeBinary(new Uint8Array([0xff, 0xfe]))).toBeUndefined();
  // A byte order mark is not valid JSON, in binary and in text frames.
  expect(refusal(decodeBinary(new TextEncoder().encode('\ufeff{"type":"done"}')) ?? '')).toBe(
    'invalid_message',
  );
  expect(decodeBinary(new Uint8Array([0xed, 0xa0, 0x80]))).toBeUndefined();
});

test('150,000 random frames: always a result, and the fast paths agree with the parser', () => {
  const seed = Number(process.env.FUZZ_SEED ?? 20_261_124);
  const next = seeded(seed);
  const pick = <T>(from: readonly T[]): T => from[Math.floor(next() * from.length)] as T;
  const types = [...Object.keys(clientMessages), '__proto__', 'ack', ''];
  const names = [
    'type',
    'otc',
    'payload',
    'jti',
    'token',
    'targetPubKey',
    'publicKey',
    'controllerSig',
    'error',
    '__proto__',
    'x',
  ];
  const texts = [
    '482916',
    '000000',
    'bt_1',
    '"',
    '\\',
    '\u0000',
    '\u2028',
    '\ud800',
    '😀',
    '',
    'x'.repeat(200),
  ];
  const value = (depth: number): unknown => {
    const kind = next();
    if (kind < 0.55) return pick(texts);
    if (kind < 0.65) return pick([0, -1, 482_916, 1e300, null, true, false]);
    if (kind < 0.8 || depth > 3) return pick(types);
    return kind < 0.9 ? [value(depth + 1), value(depth + 1)] : { [pick(names)]: value(depth + 1) };
  };
  const frame = (): string => {
    if (next() < 0.02) return JSON.stringify({ type: pick(types), otc: pick(texts) });
    const fields = [`"type":${JSON.stringify(next() < 0.9 ? pick(types) : value(0))}`];
    for (let i = Math.floor(next() * 4); i > 0; i -= 1) {
      fields.push(`${JSON.stringify(pick(names))}:${JSON.stringify(value(0))}`);
    }
    const text = `{${fields.join(',')}}`;
    if (next() < 0.7) return text;
    const at = Math.floor(next() * text.length);
    return (
      text.slice(0, at) +
      pick(['"', '\\', '{', '}', '[', '\n', '\u0001', 'ü', ',', '']) +
      text.slice(at + Math.floor(next() * 3))
    );
  };

  const seen = new Set<string>();
  let shortcuts = 0;
  for (let i = 0; i < 150_000; i += 1) {
    const text = frame().toWellFormed(); // as every frame that UTF-8 carries
    const message = parse(text);
    seen.add('malformed' in message ? message.malformed : message.type);
    if (CODE_MESSAGE.test(text)) {
      shortcuts += 1;
      // A blank in front changes nothing for JSON, and the shortcut does not know it.
      expect(parse(` ${text}`)).toEqual(message);
    }
    const canonical = isCanonicalData(text);
    const isData = !('malformed' in message) && message.type === 'data';
    if (canonical && (!isData || frames.data(message.payload) !== text)) {
      throw new Error(`seed ${seed}: canonical, but not what would be written: ${text}`);
    }
    if (
      isData &&
      !isCanonicalData(text) &&
      frames.data(message.payload) === text &&
      !/\\/.test(text)
    ) {
      throw new Error(`seed ${seed}: canonical, but not recognised: ${text}`);
    }
  }
  expect(shortcuts).toBeGreaterThan(100);
  expect([...seen].sort()).toEqual(
    [
      ...Object.keys(clientMessages),
      'invalid_message',
      'unknown_type',
      'invalid_otc',
      'missing_jti',
      'invalid_jti',
    ].sort(),
  );
});

test('brackets are counted only outside of strings', () => {
  const payload = `${'[{'.repeat(2000)}\\"${'['.repeat(100)}`;
  expect(parse(JSON.stringify({ payload, type: 'data' }))).toEqual({ type: 'data', payload });
  for (const nested of [
    '['.repeat(32_000) + ']'.repeat(32_000),
    `${'{"a":'.repeat(9000)}1${'}'.repeat(9000)}`,
  ]) {
    expect(parse(`{"type":"done","junk":${nested}}`)).toEqual({ malformed: 'invalid_message' });
  }
  const flat = [...Array.from({ length: 60 }, () => [[]]), '[{'.repeat(1000)];
  expect(parse(JSON.stringify({ type: 'done', flat }))).toEqual({ type: 'done' });
});

test('a frame with thousands of fields is refused before it is parsed', () => {
  const fields = (count: number): string =>
    Array.from({ length: count }, (_, i) => `,"${'x'.repeat(20)}${i}":0`).join('');
  expect(parse(`{"type":"done"${fields(64)}}`)).toEqual({ type: 'done' });
  expect(parse(`{"type":"done"${fields(65)}}`)).toEqual({ malformed: 'invalid_message' });
  const payload = '","'.repeat(500);
  expect(parse(JSON.stringify({ type: 'data', payload }))).toEqual({ type: 'data', payload });
});
