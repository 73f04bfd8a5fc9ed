/** The figures in SECURITY.md, against the defaults and a relay that has them. */
import { expect, test } from 'bun:test';
import { join } from 'node:path';
import { BURNT_TTL_MS } from '../src/bootstrap/bootstrap.ts';
import { readOptions } from '../src/config.ts';
import { MAX_KEYS, NETWORK_FACTOR, WINDOW_MS } from '../src/admission/limits.ts';
import { startRelay, type TestRelay } from './support.ts';

const page = (await Bun.file(join(import.meta.dir, '../SECURITY.md')).text()).replaceAll(
  / +/g,
  ' ',
);
const limits = readOptions({});
const CODES = 1_000_000;
const text = (value: number): string => Math.round(value).toLocaleString('en-US');

test('SECURITY.md computes with the defaults', () => {
  const { maxFailedCodes, maxListens, sessionTtlMs, maxConnections, maxConnectionsPerClient } =
    limits;
  const odds = (tests: number): string => `1 in ${text(CODES / tests)}`;
  // The end of one minute of listens and the beginning of the next.
  const listens = 2 * maxListens;
  const both = maxFailedCodes + listens;
  const network = NETWORK_FACTOR * maxFailedCodes;
  const aMinute = maxFailedCodes + maxListens;
  const burntByOne = limits.maxWatches * 60 * (BURNT_TTL_MS / 3_600_000);
  const burntBy = (clients: number): number => Math.ceil(limits.maxBurnt / burntByOne / clients);
  // Each attempt from another /64 in another /56, and all in one /48.
  const places = 2 * network + 1;
  // A code lives shorter than the window of the limit, so the limit is the number of guesses.
  expect(sessionTtlMs).toBeLessThan(WINDOW_MS);
  for (const claim of [
    `| one address | ${maxFailedCodes} | ${odds(maxFailedCodes)} | ${maxFailedCodes} + ${listens} = ${both} | ${odds(both)} |`,
    `| one IPv6 /56 or /48 | ${NETWORK_FACTOR} × ${maxFailedCodes} = ${network} | ${odds(network)} | ${NETWORK_FACTOR} × ${both} = ${text(NETWORK_FACTOR * both)} | ${odds(NETWORK_FACTOR * both)} |`,
    `| a thousand addresses | 1,000 × ${maxFailedCodes} = ${text(1000 * maxFailedCodes)} | ${odds(1000 * maxFailedCodes)} | 1,000 × ${both} = ${text(1000 * both)} | ${odds(1000 * both)} |`,
    `a client has ${maxListens} accepted \`listen\`s a minute`,
    `${maxFailedCodes} + ${maxListens} = ${aMinute} codes a minute and needs ${text(CODES / aMinute)} minutes on average, ${text(CODES / aMinute / 1440)} days`,
    `${text(CODES / maxFailedCodes)} minutes, ${text(CODES / maxFailedCodes / 1440)} days`,
    `holds ${text(MAX_KEYS)} clients and networks`,
    `${text(Math.ceil(MAX_KEYS / places))} IPv6 /48s (each fills ${places} places with its ${network} attempts)`,
    `2 × ${maxListens} = ${listens} codes waiting at most, which is ${odds(listens)} for each slip, and ${(maxListens * sessionTtlMs) / 60_000} on average`,
    `${limits.maxWatches} ids a minute of its own making, ${text(burntByOne)} in 25 hours; ${burntBy(1)} of them fill the list in that time, or ${burntBy(NETWORK_FACTOR)} IPv6 /48s`,
    `${burntBy(1)} addresses all token ids`,
    `40 × ${maxConnectionsPerClient} = ${text(40 * maxConnectionsPerClient)}, so ${Math.ceil(maxConnections / maxConnectionsPerClient)} clients take all ${text(maxConnections)}`,
    `one new id in ${Math.round(2 ** 56 / limits.maxBurnt / 1e10) * 10} billion`,
    `remembers ${text(limits.maxBurnt)} ids`,
    `forwards ${limits.maxSessionBytes / 2 ** 20} MiB at once and then ${limits.maxBytesPerSecond / 2 ** 20} MiB a second`,
  ]) {
    expect(page).toContain(claim);
  }
});

/** What an address learns of codes that nobody waits on, asked until it is told no more. */
async function guesses(relay: TestRelay, address: string, first: number): Promise<number> {
  const client = await relay.connect({ headers: { 'x-forwarded-for': address } });
  for (let n = 0; ; n += 1) {
    client.send({ type: 'connect', otc: String(first + n).padStart(6, '0') });
    const { code } = await client.next();
    if (code === 'rate_limited') return n;
    expect(code).toBe('otc_not_found');
  }
}

test('one address has five guesses while a code lives, a hundred have five hundred', async () => {
  const relay = await startRelay({ trustProxy: '1' });
  const addresses = Array.from({ length: 100 }, (_, i) => `198.51.100.${i}`);
  const counts = await Promise.all(addresses.map((address, i) => guesses(relay, address, i * 10)));
  relay.pass(limits.sessionTtlMs - 1);
  const later = await Promise.all(addresses.map((address, i) => guesses(relay, address, i * 10)));
  expect([...counts, ...later].reduce((sum, count) => sum + count)).toBe(500);
});

test('one IPv6 /48 has as many guesses as eight addresses', async () => {
  const relay = await startRelay({ trustProxy: '1' });
  let count = 0;
  for (let i = 0; i < 20; i += 1) {
    const address = `2001:db8:7:${(i * 0x100).toString(16)}::1`;
    count += await guesses(relay, address, i * 10);
  }
  expect(count).toBe(8 * limits.maxFailedCodes);
});

test('one address tests 124 codes in a moment, where two minutes of listens meet', async () => {
  const relay = await startRelay({ trustProxy: '1' });
  const address = '198.51.100.7';
  let codes = 0;
  /** Listens on free codes until it is told no more, and at most so often. */
  const listen = async (most: number): Promise<number> => {
    const client = await relay.connect({ headers: { 'x-forwarded-for': address } });
    for (let n = 0; n < most; n += 1) {
      client.send({ type: 'listen', otc: String((codes += 1)).padStart(6, '0') });
      if ((await client.next()).code === 'rate_limited') return n;
      client.send({ type: 'done' });
    }
    return most;
  };
  expect(await listen(1)).toBe(1);
  relay.pass(WINDOW_MS - 1);
  const before = await listen(1000);
  relay.pass(1);
  const after = await listen(1000);
  expect(before + after + (await guesses(relay, address, 900_000))).toBe(124);
});
