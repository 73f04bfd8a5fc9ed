/** The page's script: shows the relay's address, keeps the access token, and runs the copy buttons and the check. */
import { type Answer, factsOf, healthOf, refusalOf } from '../check/http-answers.ts';
import { Problem } from '../check/problems.ts';
import {
  conclusionOf,
  durationText,
  type Finding,
  IDLE_SECONDS,
  type Reporter,
  type Step,
  stepTitles,
  type Task,
  takeAll,
  wireTasks,
} from '../check/steps.ts';

const TIMEOUT_MS = 10_000;

const element = (id: string): HTMLElement => document.getElementById(id) as HTMLElement;

// The relay serves this page at its /. So if the browser sees a longer path, a proxy has added it as a prefix.
const base = new URL(location.pathname.replace(/\/*$/, '/'), location.origin);
(element('health') as HTMLAnchorElement).href = new URL('health', base).href;

/** The access token. Kept only in memory, so it is lost when the tab closes. */
let token = '';
const tokenInput = document.getElementById('token') as HTMLInputElement | null;

/** The URL of the WebSocket, with the token if there is one. */
function websocket(): URL {
  const url = new URL('ws', base);
  url.protocol = url.protocol.replace('http', 'ws');
  if (token) url.searchParams.set('token', token);
  return url;
}

/** Replaces the token by dots. For texts that are shown, not for those that are copied. */
const masked = (text: string): string =>
  token ? text.replaceAll(websocket().search, '?token=••••••').replaceAll(token, '••••••') : text;

// Behind a proxy the relay may not know its own name or that TLS is used. The browser knows both.
function showAddress(): void {
  for (const shown of document.querySelectorAll('.relay')) {
    const isInCommand = shown.previousSibling !== null;
    const quote = isInCommand && token ? "'" : '';
    shown.textContent = quote + masked(websocket().href) + quote;
  }
}
showAddress();

for (const [index, button] of document.querySelectorAll<HTMLElement>('button.copy').entries()) {
  const code = button.previousElementSibling as HTMLElement;
  code.id = `copied-${index}`;
  button.setAttribute('aria-describedby', code.id);
  copies(button, () => code.innerText.replace(masked(websocket().href), websocket().href), code);
}

const tokenForm = document.getElementById('token-form');
if (tokenForm) {
  tokenForm.hidden = false;
  tokenForm.addEventListener('submit', (event) => {
    event.preventDefault();
    token = tokenInput?.value.trim() ?? '';
    showAddress();
    element('told').textContent = token ? 'The token is in use' : 'No token is in use';
  });
}

/** Makes a button copy a text. Without TLS a page has no clipboard; then the element `shown` is selected instead. */
function copies(button: HTMLElement, text: () => string, shown: Element): void {
  const label = button.textContent;
  const told = (words: string): void => {
    button.textContent = words;
    element('told').textContent = words;
    setTimeout(() => {
      button.textContent = label;
      element('told').textContent = '';
    }, 2500);
  };
  button.hidden = false;
  button.addEventListener('click', () => {
    Promise.resolve()
      .then(() => navigator.clipboard.writeText(text()))
      .then(
        () => told('Copied'),
        () => {
          getSelection()?.selectAllChildren(shown);
          told('Selected');
        },
      );
  });
}

const button = element('run');
button.hidden = false;
button.addEventListener('click', () => {
  if (button.getAttribute('aria-disabled') === 'true') return;
  if (tokenInput && !token) {
    conclude('failed', 'This relay is private: give it your access token first.');
    tokenInput.focus();
    return;
  }
  button.setAttribute('aria-disabled', 'true');
  button.textContent = 'Checking…';
  void check().finally(() => {
    button.removeAttribute('aria-disabled');
    button.textContent = 'Run it again';
  });
});

/** The report of the last check as text, like that of the command. */
let report = '';
copies(element('copy-report'), () => report, element('steps'));
element('copy-report').hidden = true;

async function check(): Promise<void> {
  const list = new StepList();
  element('copy-report').hidden = true;
  conclude('', '');
  const tasks: Task[] = [
    ['health', health],
    ['upgrade', upgrade],
    ['address', address],
    ...wireTasks(websocket().href, IDLE_SECONDS, list.skip.signal),
  ];
  const { status, text } = conclusionOf(await takeAll(tasks, list));
  conclude(status, text);
  report = `${masked(websocket().href)}, checked by a browser, ${new Date().toISOString()}\n\n${list.text}\n${element('verdict').textContent}\n`;
  element('copy-report').hidden = false;
}

function conclude(status: Step['status'] | '', text: string): void {
  const verdict = element('verdict');
  verdict.className = status;
  verdict.textContent = text;
}

/** The badge beside the title. */
function showState(text: string, status: 'ok' | 'unavailable'): void {
  const state = element('state');
  state.textContent = text;
  state.parentElement?.classList.replace(state.parentElement.classList[1] ?? '', status);
}

async function ask(url: URL): Promise<Answer> {
  try {
    const response = await fetch(url, {
      headers: { accept: 'application/json' },
      cache: 'no-store',
      redirect: 'manual',
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    // A browser tells a page that there is a redirect, but not its target.
    const status = response.type === 'opaqueredirect' ? 302 : response.status;
    return { status, headers: response.headers, body: await response.text() };
  } catch (error) {
    showState('Does not answer', 'unavailable');
    const isLate = error instanceof DOMException && error.name === 'TimeoutError';
    const found = `the relay does not answer${isLate ? ` within ${TIMEOUT_MS / 1000} s` : ' any more'}`;
    throw new Problem('no_answer', found);
  }
}

async function health(): Promise<Finding> {
  const url = new URL('health', base);
  try {
    const finding = healthOf(await ask(url), url.pathname);
    if (typeof finding.found === 'string') showState(finding.found.replace('ok', 'Up'), 'ok');
    return finding;
  } catch (error) {
    if (error instanceof Problem && error.code !== 'no_answer') {
      showState(error.found, 'unavailable');
    }
    throw error;
  }
}

async function upgrade(): Promise<Finding> {
  const socket = new WebSocket(websocket());
  const isOpen = await new Promise<boolean>((resolve) => {
    socket.addEventListener('open', () => resolve(true));
    socket.addEventListener('error', () => resolve(false));
    setTimeout(() => resolve(false), TIMEOUT_MS);
  });
  socket.close();
  if (!isOpen) throw await refusal();
  return { found: 'it opened' };
}

/** Why no WebSocket opened. The browser does not tell, so the same URL is requested over plain HTTP. */
async function refusal(): Promise<Problem> {
  const url = websocket();
  url.protocol = location.protocol;
  const problem = refusalOf(await ask(url), url);
  // This is also the normal answer to a plain request.
  if (problem.code === 'upgrade_swallowed') {
    const host = factsOf(await ask(base))?.host;
    const { origin } = location;
    const found = 'no WebSocket opened, though a plain request reaches the relay';
    return host && host !== location.host
      ? new Problem('origin_refused', `${found}, which sees its own host as ${host}`, origin)
      : new Problem('upgrade_swallowed', found);
  }
  return problem;
}

async function address(): Promise<Finding> {
  const answer = await ask(base);
  const facts = factsOf(answer);
  if (!facts) return { found: `the relay does not tell (${answer.status})` };
  const { found } = facts;
  // The relay shows this element if the request for the page came through a proxy that it does not trust.
  const isProxy = document.querySelector('.doubt') !== null;
  return { found: isProxy ? new Problem('proxy_not_trusted', found) : found };
}

/** The list of steps on the page, with one line for each step. */
class StepList implements Reporter {
  /** The list as text. */
  text = '';
  /** Aborted by the Skip button: ends the last step early. */
  readonly skip = new AbortController();
  readonly #list = element('steps');
  #line!: HTMLLIElement;
  #found: HTMLElement | undefined;

  constructor() {
    this.#list.replaceChildren();
  }

  begin(name: Step['name']): void {
    this.#line = document.createElement('li');
    this.#line.append(part('div', stepTitles[name]));
    this.#list.append(this.#line);
    this.#found = undefined;
  }

  progress(_name: Step['name'], text: string): void {
    if (!this.#found) {
      this.#found = part('div', '', 'found');
      const skip = part('button', 'Skip', 'quiet small');
      skip.addEventListener('click', () => {
        button.focus();
        this.skip.abort();
      });
      this.#line.append(this.#found, skip);
    }
    this.#found.textContent = text;
  }

  end({ name, status, ms, found: whole, means, change }: Step): void {
    const found = masked(whole);
    const title = part('div', stepTitles[name]);
    title.append(part('span', status === 'ok' ? ': well. ' : `: ${status}. `, 'unseen'));
    const duration = durationText(ms);
    this.#line.replaceChildren(title, part('div', found, 'found'), part('time', duration));
    this.text += `${status.padEnd(7)} ${stepTitles[name]} (${duration}): ${found}\n`;
    if (means && change) {
      const advice = part('div', '', 'advice');
      advice.append(part('p', means), part('p', `→ ${change}`));
      this.#line.append(advice);
      this.text += `        ${means}\n        → ${change}\n`;
    }
    this.#line.classList.add(status);
  }
}

function part(tag: string, text: string, className = ''): HTMLElement {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}
