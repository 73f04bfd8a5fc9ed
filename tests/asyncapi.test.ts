/** docs/asyncapi.yaml: as the relay's schemas are now. Whether it is AsyncAPI is tested in tests/schemas. */
import { expect, test } from 'bun:test';
import { path, yaml } from '../tools/asyncapi.ts';

test('docs/asyncapi.yaml is what `bun run asyncapi` would write', async () => {
  expect(await Bun.file(path).text()).toBe(yaml);
});
