/** The clients in examples/, against the real relay, in processes of their own. */
import { expect, test } from 'bun:test';
import { join } from 'node:path';
import { afterThisTest, startRelay, within } from './support.ts';

const python = Bun.which('python3');
if (!python) console.warn('SKIPPED: examples/pair.py is not tested, since there is no python3');

function pair(...args: string[]) {
  const child = Bun.spawn(
    [python as string, join(import.meta.dir, '../examples/pair.py'), ...args],
    {
      env: { ...process.env, PYTHONDONTWRITEBYTECODE: '1' },
      stdout: 'pipe',
      stderr: 'pipe',
    },
  );
  afterThisTest(() => child.kill());
  return child;
}

/** What a process said once it has ended, and how. */
async function told(child: ReturnType<typeof pair>) {
  const [out, problem, code] = await within(
    Promise.all([child.stdout.text(), child.stderr.text(), child.exited]),
    'the end of pair.py',
  );
  return { out, problem: problem.trim(), code };
}

/** The code that a listening pair.py shows, and the rest of what it says. */
async function shownBy(child: ReturnType<typeof pair>) {
  const lines = child.stdout.pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  while (!text.includes('\n')) {
    const { value, done } = await within(lines.read(), 'the code');
    if (done) throw new Error(`pair.py ended: ${await child.stderr.text()}`);
    text += value;
  }
  lines.releaseLock();
  return text;
}

test.skipIf(!python)('pair.py pairs two processes', async () => {
  const relay = await startRelay();
  const target = pair('listen', relay.url);
  const shown = await shownBy(target);
  expect(shown).toMatch(/^code \d{6}\n$/);
  const controller = await told(pair('connect', relay.url, shown.slice(5, 11)));
  expect(controller).toEqual({ out: 'received hello from the target\n', problem: '', code: 0 });
  expect(await within(target.exited, 'the target')).toBe(0);
  expect(relay.sockets.stats).toMatchObject({
    opened: 1,
    begun: 1,
    ended: { completed: 1, abandoned: 0 },
  });
});

test.skipIf(!python)('pair.py says why it gave up', async () => {
  const relay = await startRelay();
  expect(await told(pair('connect', relay.url, '482916'))).toEqual({
    out: '',
    problem: 'pair.py: otc_not_found',
    code: 1,
  });
  const nowhere = await told(pair('connect', `${relay.http.replace('http', 'ws')}/x`, '482916'));
  expect(nowhere.problem).toStartWith('pair.py: no WebSocket here');
});

test.skipIf(!python)('pair.py is told when its code has expired', async () => {
  const relay = await startRelay();
  const target = pair('listen', relay.url);
  await shownBy(target);
  relay.pass(30_000);
  expect(await within(target.exited, 'the target')).toBe(1);
  expect((await target.stderr.text()).trim()).toBe('pair.py: otc_expired');
});
