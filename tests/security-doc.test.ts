/** The figures in SECURITY.md, against the defaults and a relay that has them. */
import { expect, test } from 'bun:test';
import { join } from 'node:path';
import { BURNT_TTL_MS } from '../src/bootstrap/bootstrap.ts';
import { readOptions } from '../src/config.ts';
import { MAX_KEYS } from '../src/admission/limits.ts';
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
  const byListen = maxFailedCodes + maxListens;
  const byMany = maxFailedCodes + 3000;
  const burntByOne = limits.maxWatches * 60 * (BURNT_TTL_MS / 3_600_000);
  // A code lives shorter than the window of the limit, so the limit is the number of guesses.
  expect(sessionTtlMs).toBeLessThan(60_000);
  for (const claim of [
    `| one address | ${maxFailedCodes} | 1 in ${text(CODES / maxFailedCodes)} |`,
    `1,000 × ${maxFailedCodes} = ${text(1000 * maxFailedCodes)} | 1 in ${text(CODES / (1000 * maxFailedCodes))} |`,
    `65,536 × ${maxFailedCodes} = ${text(65_536 * maxFailedCodes)} | 1 in ${text(CODES / (65_536 * maxFailedCodes))} |`,
    `${text(CODES / maxFailedCodes)} minutes on average, ${text(CODES / maxFailedCodes / 1440)} days`,
    `kept for ${text(MAX_KEYS)} clients`,
    `${maxFailedCodes} + ${text(maxListens)} = ${text(byListen)} codes in 30 s for one address, 1 in ${text(CODES / byListen)}, and ${text(CODES / maxListens)} minutes on average`,
    `A thousand addresses test ${text(1000 * byListen)}, 1 in ${text(CODES / byListen / 1000)}`,
    `\`AMESH_MAX_LISTENS=3000\` makes it ${text(byMany)} codes, 1 in ${text(CODES / byMany)} for one address`,
    `${limits.maxWatches} ids a minute of its own making, ${text(burntByOne)} in 25 hours; ${Math.ceil(limits.maxBurnt / burntByOne)} of them fill the list`,
    `${Math.ceil(limits.maxBurnt / burntByOne)} all token ids`,
    `${maxConnectionsPerClient} per address, 1 in ${text(CODES / maxConnectionsPerClient)} `,
    `all ${text(maxConnections)} connections (40 × ${maxConnectionsPerClient} = ${text(40 * maxConnectionsPerClient)})`,
    `one new id in ${Math.round(2 ** 56 / limits.maxBurnt / 1e10) * 10} billion`,
    `remembers ${text(limits.maxBurnt)} ids`,
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
