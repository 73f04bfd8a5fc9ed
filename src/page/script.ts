/** What runs in the page: the relay's address as this browser knows it, a copy button, and the check. */
import {
  checkWire,
  type Finding,
  type Reporter,
  type Step,
  stepTitles,
  take,
} from '../check/steps.ts';
import { Problem } from '../check/problems.ts';

const element = (id: string): HTMLElement => document.getElementById(id) as HTMLElement;

const websocket = new URL('ws', location.href);
websocket.protocol = location.protocol === 'https:' ? 'wss:' : 'ws:';
websocket.search = websocket.hash = '';

// Behind a proxy the relay may know neither its name nor that there is TLS; the browser does.
for (const shown of [element('address'), ...document.querySelectorAll('.relay')]) {
  shown.textContent = websocket.href;
}

const copy = element('copy');
copy.hidden = false;
copy.addEventListener('click', () => {
  copyText(websocket.href, element('address')).then(
    () => told('Copied'),
    () => told('Selected: copy it by hand'),
  );
});

function told(text: string): void {
  copy.textContent = text;
  element('copied').textContent = text;
  setTimeout(() => {
    copy.textContent = 'Copy';
    element('copied').textContent = '';
  }, 2500);
}

/** Without TLS a browser has no clipboard to offer; then the text is selected at least. */
async function copyText(text: string, shown: Element): Promise<void> {
  try {
    await navigator.clipboard.writeText(text);
  } catch (error) {
    getSelection()?.selectAllChildren(shown);
    throw error;
  }
}

const button = element('run');
button.hidden = false;
button.addEventListener('click', () => {
  if (button.getAttribute('aria-disabled') === 'true') return;
  button.setAttribute('aria-disabled', 'true');
  button.textContent = 'Checking…';
  void check().finally(() => {
    button.removeAttribute('aria-disabled');
    button.textContent = 'Run it again';
  });
});

async function check(): Promise<void> {
  const list = new StepList();
  conclude('', '');
  const start = performance.now();
  const ok =
    (await take(list, 'health', health)) &&
    (await take(list, 'address', address)) &&
    (await checkWire(websocket.href, list));
  const seconds = ((performance.now() - start) / 1000).toFixed(1);
  if (!ok) conclude('failed', 'A device would not get through from here.');
  else if (list.warnings > 0)
    conclude('warning', 'A device gets through from here, with a warning.');
  else conclude('ok', `All well: a device gets through from here (${seconds} s).`);
}

function conclude(status: Step['status'] | '', text: string): void {
  const verdict = element('verdict');
  verdict.className = status;
  verdict.textContent = text;
}

async function ask(path: string): Promise<Record<string, unknown>> {
  try {
    const response = await fetch(new URL(path, location.href), {
      headers: { accept: 'application/json' },
      cache: 'no-store',
      signal: AbortSignal.timeout(10_000),
    });
    return (await response.json()) as Record<string, unknown>;
  } catch (error) {
    throw new Problem(
      'no_answer',
      String(error),
      'The relay, or what stands in front of it, does not answer any more.',
      'Reload this page; look whether the relay runs.',
    );
  }
}

async function health(): Promise<Finding> {
  const answer = await ask('health');
  const status = String(answer.status);
  const sessions = Number(answer.sessions);
  const found = `${status}, ${sessions || 'no'} session${sessions === 1 ? '' : 's'}`;
  if (status === 'ok') {
    element('state').textContent = found.replace('ok', 'Up');
    return { found };
  }
  if (status === 'unavailable') {
    throw new Problem('redis_lost', found);
  }
  throw new Problem('draining', found);
}

async function address(): Promise<Finding> {
  const { client } = (await ask('.')) as {
    client: { address: string; source: string };
  };
  const source = client.source === 'peer' ? 'the connection' : client.source;
  const found = `${client.address}, taken from ${source}`;
  // The relay itself has seen, in what this page was asked for with, that it can't be right.
  const doubt = document.querySelector('.doubt')?.textContent.replaceAll(/\s+/g, ' ').trim();
  if (!doubt) return { found };
  return { found: new Problem('proxy_not_trusted', found) };
}

/** The steps as they happen, one line each. */
class StepList implements Reporter {
  warnings = 0;
  readonly #list = element('steps');
  #line: HTMLLIElement | undefined;

  constructor() {
    this.#list.replaceChildren();
  }

  begin(name: Step['name']): void {
    this.#line = document.createElement('li');
    this.#line.append(part('div', stepTitles[name]));
    this.#list.append(this.#line);
  }

  end({ name, status, ms, found, means, change }: Step): void {
    if (status === 'warning') this.warnings += 1;
    const title = part('div', stepTitles[name]);
    title.append(part('span', status === 'ok' ? ': well. ' : `: ${status}. `, 'unseen'));
    const time = part('time', ms < 10 ? `${ms.toFixed(1)} ms` : `${Math.round(ms)} ms`);
    this.#line?.replaceChildren(title, part('div', found, 'found'), time);
    if (means && change) {
      const advice = part('div', '', 'advice');
      advice.append(part('p', means), part('p', `→ ${change}`));
      this.#line?.append(advice);
    }
    this.#line?.classList.add(status);
  }
}

function part(tag: string, text: string, className = ''): HTMLElement {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}
