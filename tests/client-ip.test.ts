import { describe, expect, test } from 'bun:test';
import {
  AddressRanges,
  CallerResolver,
  parseAddress,
  parseProxyRule,
  type ProxyRule,
} from '../src/admission/client-address.ts';

test.each([
  ['', { by: 'peer' }],
  ['0', { by: 'peer' }],
  ['false', { by: 'peer' }],
  ['No', { by: 'peer' }],
  ['1', { by: 'leftmost' }],
  ['TRUE', { by: 'leftmost' }],
  ['yes', { by: 'leftmost' }],
  ['hops:1', { by: 'hops', hops: 1 }],
  ['hops:32', { by: 'hops', hops: 32 }],
  ['header:Fly-Client-IP', { by: 'header', header: 'fly-client-ip' }],
] as [string, ProxyRule][])('the setting %p', (text, rule) => {
  expect(parseProxyRule(text)).toEqual(rule);
});

test.each([
  'hops:0',
  'hops:33',
  'hops:-1',
  'hops:',
  'hops:1.5',
  'header:',
  'header:a b',
  'header:x:y',
  '2',
  'on',
  '10.0.0.1',
])('the setting %p is refused', (text) => {
  expect(() => parseProxyRule(text)).toThrow(`got ${JSON.stringify(text)}, expected unset`);
});

test.each([
  ['203.0.113.42', '203.0.113.42'],
  [' 203.0.113.42 ', '203.0.113.42'],
  ['203.0.113.42:51234', '203.0.113.42'],
  ['2001:db8::1', '2001:db8::1'],
  ['[2001:db8::1]:443', '2001:db8::1'],
  ['[2001:db8::1]', '2001:db8::1'],
  ['::ffff:203.0.113.42', '203.0.113.42'],
  ['[::ffff:cb00:712a]:80', '203.0.113.42'],
  ['64:ff9b::203.0.113.42', '203.0.113.42'],
  ['64:ff9b::cb00:712a', '203.0.113.42'],
  ['64:ff9b:1::cb00:712a', '64:ff9b:1::cb00:712a'],
  ['a:b', undefined],
  ['', undefined],
  ['unknown', undefined],
  ['_hidden', undefined],
  ['10', undefined],
  ['0x7f.1', undefined],
  ['1.2.3', undefined],
  ['1.2.3.256', undefined],
  ['1.2.3.4:', undefined],
  ['1.2.3.4:5:6', undefined],
  ['[1.2.3.4', undefined],
  ['2001:db8::1]:443', undefined],
  ['example.com', undefined],
  [`${' '.repeat(100)}1.2.3.4`, undefined],
])('the address %p', (text, address) => {
  expect(parseAddress(text)?.toString()).toBe(address as string);
});

describe('who is calling', () => {
  const from = (
    setting: string,
    headers: Record<string, string>,
    peer: string | undefined = '192.0.2.1',
  ) => {
    const warnings: string[] = [];
    const resolver = new CallerResolver(parseProxyRule(setting), (message) =>
      warnings.push(message),
    );
    return {
      ...resolver.resolve({ headers: new Headers(headers) }, () => peer),
      warnings,
      resolver,
    };
  };
  const chain = { 'x-forwarded-for': 'forged, 198.51.100.7, 203.0.113.42:51234' };

  test.each([
    ['0', chain, '192.0.2.1', 'peer'],
    ['1', chain, '192.0.2.1', 'peer'], // the left-most is unusable
    ['1', { 'x-forwarded-for': '198.51.100.7, 10.0.0.1' }, '198.51.100.7', 'x-forwarded-for'],
    ['hops:1', chain, '203.0.113.42', 'x-forwarded-for'],
    ['hops:2', chain, '198.51.100.7', 'x-forwarded-for'],
    ['hops:3', chain, '192.0.2.1', 'peer'],
    ['hops:4', chain, '192.0.2.1', 'peer'],
    ['hops:1', {}, '192.0.2.1', 'peer'],
    ['hops:2', { 'x-forwarded-for': ',198.51.100.7' }, '192.0.2.1', 'peer'],
    ['hops:1', { 'x-forwarded-for': ' 198.51.100.7 ' }, '198.51.100.7', 'x-forwarded-for'],
    ['hops:3', { 'x-forwarded-for': '1.1.1.1,1.1.1.1,1.1.1.1,' }, '1.1.1.1', 'x-forwarded-for'],
    ['hops:3', { 'x-forwarded-for': '1.1.1.1,' }, '192.0.2.1', 'peer'],
    ['header:X-Real-IP', { 'x-real-ip': '203.0.113.9' }, '203.0.113.9', 'x-real-ip'],
    ['header:X-Real-IP', { 'x-real-ip': '203.0.113.9, 203.0.113.10' }, '192.0.2.1', 'peer'],
    ['header:X-Real-IP', chain, '192.0.2.1', 'peer'],
  ] as [string, Record<string, string>, string, string][])(
    '%s with %p is %s',
    (setting, headers, client, source) => {
      expect(from(setting, headers)).toMatchObject({ client, source });
    },
  );

  test('IPv6 counts by /64 and is shown in full; a mapped address counts as IPv4', () => {
    const a = from('0', {}, '2001:db8:1:2:aaaa::1');
    const b = from('0', {}, '2001:db8:1:2:ffff:ffff:ffff:ffff');
    expect([a.client, a.address]).toEqual(['2001:db8:1:2::/64', '2001:db8:1:2:aaaa::1']);
    expect(b.client).toBe(a.client);
    expect(from('0', {}, '2001:db8:1:3::1').client).not.toBe(a.client);
    expect(from('0', {}, '::ffff:192.0.2.9').client).toBe('192.0.2.9');
    expect(from('0', {}, '').client).toBe('unknown');
  });

  test('warns once of a header that is not trusted, without an address', () => {
    const { warnings, resolver } = from('0', chain);
    resolver.resolve({ headers: new Headers(chain) }, () => '192.0.2.1');
    expect(warnings).toHaveLength(1);
    expect(warnings[0]).toContain('x-forwarded-for');
    expect(warnings[0]).not.toMatch(/\d+\.\d+\.\d+\.\d+/);
    expect(from('0', {}).warnings).toEqual([]);
  });

  test('stops checking after a thousand requests', () => {
    for (const [before, expected] of [
      [998, 1],
      [999, 0],
    ] as const) {
      const { warnings, resolver } = from('0', {});
      for (let i = 0; i < before; i += 1)
        resolver.resolve({ headers: new Headers() }, () => '192.0.2.1');
      resolver.resolve({ headers: new Headers(chain) }, () => '192.0.2.1');
      expect(warnings).toHaveLength(expected);
    }
  });

  test('warns once of a trusted header that is missing or unusable', () => {
    const { warnings, resolver } = from('header:Fly-Client-IP', {});
    resolver.resolve({ headers: new Headers() }, () => '192.0.2.1');
    expect(warnings).toHaveLength(1);
    expect(warnings[0]).toContain('fly-client-ip');
    expect(from('1', { 'x-forwarded-for': '198.51.100.7' }).warnings).toEqual([]);
  });
});

describe('trusted proxies', () => {
  test.each([
    ['10.0.0.0/8', '10.255.0.1', true],
    ['10.0.0.0/8', '11.0.0.1', false],
    ['10.1.2.3/8', '10.9.9.9', true],
    ['192.0.2.1', '192.0.2.1', true],
    ['192.0.2.1', '192.0.2.2', false],
    ['192.0.2.1/32', '::ffff:192.0.2.1', true],
    ['192.0.2.0/31', '192.0.2.1', true],
    ['0.0.0.0/0', '203.0.113.9', true],
    ['0.0.0.0/0', '2001:db8::1', false],
    ['::/0', '203.0.113.9', false],
    ['::/0', '2001:db8::1', true],
    ['fd00::/8', 'fdff::1', true],
    ['fd00::/8', 'fe00::1', false],
    ['2001:db8::1', '2001:0DB8:0::0001', true],
    ['fe80::/10', 'fe80::1%eth0', true],
    ['::ffff:10.0.0.0/104', '10.1.2.3', true],
    ['10.0.0.0/8', 'nonsense', false],
    ['10.0.0.0/8', '', false],
  ])('%s has %s: %p', (range, address, isIn) => {
    const proxies = new AddressRanges(['198.51.100.0/24', range]);
    // Asked twice, since the first answer is cached.
    expect([proxies.has(address), proxies.has(address)]).toEqual([isIn, isIn]);
  });

  test.each([
    '10/8',
    '10.0.0.0/33',
    '10.0.0.0/',
    '10.0.0.0/-1',
    '10.0.0.0/8/8',
    '10.0.0.0/255.0.0.0',
    '010.0.0.1',
    '10.0.0.1:80',
    '[::1]',
    '::1/129',
    '::ffff:10.0.0.0/95',
    'fe80::1%eth0',
    'localhost',
    '',
  ])('%p is refused', (text) => {
    expect(() => new AddressRanges(['10.0.0.0/8', text])).toThrow(
      `${JSON.stringify(text)} is neither an address nor a range; expected addresses`,
    );
  });

  const chain = { 'x-forwarded-for': '198.51.100.7' };
  const from = (peer: string | undefined, warnings: string[] = []) => {
    const resolver = new CallerResolver(
      { by: 'leftmost' },
      (message) => warnings.push(message),
      new AddressRanges(['10.0.0.0/8']),
    );
    return (headers: Record<string, string>): string =>
      resolver.resolve({ headers: new Headers(headers) }, () => peer).client;
  };

  test('are trusted; for any other peer there is one warning, and the TCP peer counts as the client', () => {
    const warnings: string[] = [];
    expect(from('10.0.0.1', warnings)(chain)).toBe('198.51.100.7');
    expect(warnings).toEqual([]);
    const stranger = from('11.0.0.1', warnings);
    expect([stranger(chain), stranger(chain), stranger({})]).toEqual(Array(3).fill('11.0.0.1'));
    expect(warnings).toEqual([expect.stringContaining('AMESH_TRUSTED_PROXIES')]);
    expect(warnings[0]).not.toMatch(/\d+\.\d+\.\d+\.\d+/);
    expect(from(undefined)(chain)).toBe('unknown');
  });

  test('that send no header cause the same warning as without the list', () => {
    const warnings: string[] = [];
    expect(from('10.0.0.1', warnings)({})).toBe('10.0.0.1');
    expect(warnings).toEqual([expect.stringContaining('no usable x-forwarded-for')]);
  });

  test('without the list the TCP peer is not asked for', () => {
    const resolver = new CallerResolver({ by: 'leftmost' }, () => {});
    const never = (): string => {
      throw new Error('asked');
    };
    expect(resolver.trusts(never)).toBe(true);
    expect(resolver.resolve({ headers: new Headers(chain) }, never).client).toBe('198.51.100.7');
  });
});
