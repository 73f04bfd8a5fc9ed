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
const healthUrl = new URL('health', base);
element('health').setAttribute('href', healthUrl.href);

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
  button.hidden = false;
  code.id = `copied-${index}`;
  button.setAttribute('aria-describedby', code.id);
  copies(button, () => code.innerText.replace(masked(websocket().href), websocket().href), code);
}

/** Tells screen readers of a change that others see elsewhere on the page. */
const told = element('told');

const form = tokenInput?.form;
form?.removeAttribute('hidden');
form?.addEventListener('submit', (event) => {
  event.preventDefault();
  token = tokenInput?.value.trim() ?? '';
  showAddress();
  told.textContent = token ? 'The token is in use' : 'No token is in use';
});

/** Makes a button copy a text. Without TLS a page has no clipboard; then the element `shown` is selected instead. */
function copies(button: HTMLElement, text: () => string, shown: Element): void {
  const label = button.textContent;
  button.addEventListener('click', async () => {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = 'Copied';
    } catch {
      getSelection()?.selectAllChildren(shown);
      button.textContent = 'Selected';
    }
    told.textContent = button.textContent;
    setTimeout(() => {
      button.textContent = label;
      told.textContent = '';
    }, 2500);
  });
}

/** The report of the last check as text, like that of the command. */
let report = '';
copies(element('copy-report'), () => report, element('steps'));

/** The line of the step that runs, and what it has found so far. */
let line: HTMLElement;
let found: HTMLElement;

/** Shows each step in a line of its own, and adds it to the report. */
const reporter: Reporter = {
  begin(name) {
    line = part('li');
    found = part('small');
    line.append(part('div', stepTitles[name]), found);
    element('steps').append(line);
  },

  progress(_name, text) {
    found.textContent = text;
    element('skip').hidden = false;
  },

  end({ name, status, ms, found: whole, problem, means, change }) {
    element('skip').hidden = true;
    const text = masked(whole);
    const duration = durationText(ms);
    line.className = status;
    found.textContent = text;
    line.append(part('time', duration));
    report += `${status.padEnd(7)} ${stepTitles[name]} (${duration}): ${text}\n`;
    for (const advice of means && change ? [means, `→ ${change}`] : []) {
      line.append(part('p', advice));
      report += `        ${advice}\n`;
    }
    if (problem === 'no_answer' || (name === 'health' && status !== 'warning')) {
      const state = element('state');
      state.textContent = problem === 'no_answer' ? 'Does not answer' : text.replace('ok', 'Up');
      state.className = `state ${status}`;
    }
  },
};

const button = element('run');
button.hidden = false;
button.addEventListener('click', () => {
  if (button.ariaDisabled === 'true') return;
  if (tokenInput && !token) {
    conclude('failed', 'This relay is private: give it your access token first.');
    tokenInput.focus();
    return;
  }
  button.ariaDisabled = 'true';
  button.textContent = 'Checking…';
  void check().finally(() => {
    button.ariaDisabled = null;
    button.textContent = 'Run it again';
  });
});

async function check(): Promise<void> {
  const url = websocket().href;
  report = `${masked(url)}, checked by a browser, ${new Date().toISOString()}\n\n`;
  element('steps').replaceChildren();
  element('copy-report').hidden = true;
  conclude('', '');
  const skip = new AbortController();
  element('skip').onclick = () => {
    button.focus();
    skip.abort();
  };
  const tasks: Task[] = [
    ['health', async () => healthOf(await ask(healthUrl), healthUrl.pathname)],
    ['upgrade', upgrade],
    ['address', address],
    ...wireTasks(url, IDLE_SECONDS, skip.signal),
  ];
  const { status, text } = conclusionOf(await takeAll(tasks, reporter));
  conclude(status, text);
  report += `\n${element('verdict').textContent}\n`;
  element('copy-report').hidden = false;
}

function conclude(status: Step['status'] | '', text: string): void {
  const verdict = element('verdict');
  verdict.className = status;
  verdict.textContent = text;
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
    const isLate = error instanceof DOMException && error.name === 'TimeoutError';
    const found = `the relay does not answer${isLate ? ` within ${TIMEOUT_MS / 1000} s` : ' any more'}`;
    throw new Problem('no_answer', found);
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
  const isProxy = document.getElementById('doubt') !== null;
  return { found: isProxy ? new Problem('proxy_not_trusted', found) : found };
}

function part(tag: string, text = ''): HTMLElement {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}
