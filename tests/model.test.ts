/** The model of the secure handshake, as `bun run model` checks it. */
import { expect, test } from 'bun:test';
import { canCheck, check, variants } from '../tools/model.ts';

if (!canCheck()) {
  console.warn(
    'SKIPPED: the model, since there is no spin or no gcc (Debian: spin, gcc, libc6-dev)',
  );
}

test.skipIf(!canCheck()).each(variants.map((variant) => [variant.what, variant] as const))(
  'Spin on the model: %s',
  async (_what, { flags, holds }) => {
    const found = await check(flags);
    expect(found).toMatchObject({ holds, failed: holds ? undefined : expect.any(String) });
    expect(found.states).toBeGreaterThan(100);
  },
  30_000,
);
