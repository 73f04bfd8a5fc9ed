/**
 * What a check does over the wire, one step after another, each with its time. It needs the client library alone, so
 * that the command and a browser do the very same.
 */
import {
  announce,
  type Channel,
  connect,
  generateCode,
  listen,
  RelayError,
  type RelayErrorCode,
  watch,
} from '../client/client.ts';

/** One thing that was looked at. */
export interface Step {
  name: StepName;
  status: 'ok' | 'warning' | 'failed';
  /** How long it took, in milliseconds. */
  ms: number;
  /** What was found, in a line. */
  found: string;
  /** What is wrong, for programs; with `means` and `change` where the status is not `ok`. */
  problem?: ProblemCode;
  /** What that means, in plain words. */
  means?: string;
  /** What to change. */
  change?: string;
  /** What was measured or seen, for programs. */
  facts?: Record<string, unknown>;
}

/** Every step with the words a person reads, in the order they come; the first six are the command's alone. */
export const stepTitles = {
  name: 'Name resolved',
  connect: 'Connected',
  tls: 'TLS',
  health: 'Health',
  upgrade: 'WebSocket opened',
  address: 'Your address',
  code: 'Code taken',
  peer: 'Peer found',
  roundtrips: '50 round trips of 1 KiB',
  large: 'A frame of 60 KB',
  verdict: 'Verdict before goodbye',
  disconnect: 'Disconnect noticed',
  bootstrap: 'Bootstrap by token',
  instances: 'Every pairing meets',
  idle: 'Quiet socket kept',
} as const;

export type StepName = keyof typeof stepTitles;

/** What can be wrong, as `problem` in a step. */
export type ProblemCode =
  | 'name_unknown'
  | 'refused'
  | 'no_route'
  | 'no_answer'
  | 'not_everywhere'
  | 'tls_expired'
  | 'tls_expires_soon'
  | 'tls_wrong_name'
  | 'tls_untrusted'
  | 'tls_missing'
  | 'tls_needed'
  | 'draining'
  | 'redis_lost'
  | 'bad_gateway'
  | 'health_hidden'
  | 'wrong_path'
  | 'not_a_relay'
  | 'redirected'
  | 'forbidden'
  | 'upgrade_swallowed'
  | 'proxy_not_trusted'
  | 'wrong_hop'
  | 'address_forgeable'
  | 'rate_limited'
  | 'full'
  | 'frame_limit'
  | 'instances_apart'
  | 'order_lost'
  | 'idle_cut'
  | 'cut'
  | 'wire_error';

/** A step that went wrong, or might have: what it is called, what was found, what it means, what to change. */
export class Problem extends Error {
  constructor(
    readonly code: ProblemCode,
    readonly found: string,
    readonly means: string,
    readonly change: string,
  ) {
    super(found);
  }
}

/** What a step that went well has to say, perhaps with a warning. */
export interface Finding {
  found: string;
  facts?: Record<string, unknown>;
  warning?: Problem;
}

export interface Reporter {
  begin: (name: StepName) => void;
  end: (step: Step) => void;
}

/**
 * Does one step and reports it.
 * @returns Whether it went well enough to go on.
 */
export async function take(
  reporter: Reporter,
  name: StepName,
  work: () => Promise<Finding>,
): Promise<boolean> {
  reporter.begin(name);
  const start = performance.now();
  const ms = (): number => Math.round((performance.now() - start) * 10) / 10;
  try {
    const { found, facts, warning } = await work();
    reporter.end({
      name,
      status: warning ? 'warning' : 'ok',
      ms: ms(),
      found,
      ...(warning && { problem: warning.code, means: warning.means, change: warning.change }),
      ...(facts && { facts }),
    });
    return true;
  } catch (error) {
    const { code, found, means, change } = error instanceof Problem ? error : explain(error);
    reporter.end({ name, status: 'failed', ms: ms(), found, problem: code, means, change });
    return false;
  }
}

const STEP_TIMEOUT_MS = 10_000;
const ROUND_TRIPS = 50;
const LARGE_PAYLOAD = 'x'.repeat(60_000);
/** Pairings that a whole check makes, each over two fresh connections. */
const PAIRINGS = 10;
/** A relay takes five failed codes a minute from one client; a check stops well before. */
const MAX_MISSES = 3;

/**
 * Every step that the wire alone allows, until one fails.
 * @returns Whether all went well.
 */
export async function checkWire(url: string, reporter: Reporter): Promise<boolean> {
  const pairings = new Pairings(url);
  let opened: Opened | undefined;
  let pair: Pair | undefined;
  const steps: [StepName, () => Promise<Finding>][] = [
    ['code', async () => ((opened = await pairings.open()), { found: 'the relay listens for it' })],
    [
      'peer',
      async () => ((pair = await pairings.join(opened as Opened)), { found: 'both sides know' }),
    ],
    ['roundtrips', () => roundTrips(pair as Pair)],
    ['large', () => largeFrame(pair as Pair)],
    ['disconnect', () => disconnect(pair as Pair)],
    ['verdict', () => verdict(pairings)],
    ['bootstrap', () => bootstrap(url)],
    ['instances', () => pairings.repeat()],
  ];
  try {
    for (const [name, work] of steps) if (!(await take(reporter, name, work))) return false;
    return true;
  } finally {
    opened?.stop.abort();
    void pair?.target.close();
    void pair?.controller.close();
  }
}

/**
 * Watches a token id on a socket that says nothing for a while, and sees whether it still hears of it then.
 * @param seconds At most 290: a watch lasts five minutes.
 */
export function checkIdle(url: string, seconds: number, reporter: Reporter): Promise<boolean> {
  return take(reporter, 'idle', async () => {
    const start = performance.now();
    const jti = newJti();
    const watching = Promise.withResolvers<void>();
    const watched = watch(url, jti, { onWaiting: watching.resolve });
    await Promise.race([watching.promise, watched]);
    let timer: ReturnType<typeof setTimeout> | undefined;
    const quiet = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, seconds * 1000);
    });
    try {
      await Promise.race([quiet, watched]);
      const announced = announce(url, introduction(jti), { timeoutMs: STEP_TIMEOUT_MS });
      announced.catch(() => {});
      const device = await Promise.race([watched, announced.then(() => watched)]);
      await device.acknowledge({ publicKey: 'check', controllerSig: 'check' });
      await announced;
    } catch (error) {
      if (!(error instanceof RelayError)) throw error;
      const after = Math.round((performance.now() - start) / 1000);
      throw new Problem(
        'idle_cut',
        `cut after ${after} s of silence (${error.code})`,
        'Something between here and the relay ends connections on which nothing was said for a while: a device that waits is thrown out. The relay pings each socket, but the pings came too seldom or did not count.',
        'Raise the idle or read timeout of the proxy or load balancer, in nginx proxy_read_timeout and proxy_send_timeout, to 300 s or more.',
      );
    } finally {
      clearTimeout(timer);
    }
    return { found: `still there after ${seconds} s` };
  });
}

interface Pair {
  target: Channel;
  controller: Channel;
}

interface Opened {
  code: string;
  listening: Promise<Channel>;
  stop: AbortController;
}

/** Makes pairs, each over two fresh connections, and counts those that did not find each other. */
class Pairings {
  readonly #url: string;
  #made = 0;
  #missed = 0;

  constructor(url: string) {
    this.#url = url;
  }

  async open(): Promise<Opened> {
    for (let attempt = 1; ; attempt += 1) {
      const code = generateCode();
      const stop = new AbortController();
      const waiting = Promise.withResolvers<void>();
      const listening = listen(this.#url, code, {
        timeoutMs: STEP_TIMEOUT_MS,
        signal: stop.signal,
        onWaiting: waiting.resolve,
      });
      try {
        await Promise.race([waiting.promise, listening]);
        return { code, listening, stop };
      } catch (error) {
        // On a busy relay a code may be somebody's.
        const isTaken = error instanceof RelayError && error.code === 'otc_in_use';
        if (!isTaken || attempt === MAX_MISSES) throw error;
      }
    }
  }

  /** Joins what was opened; where it is not found, tries with fresh pairs, since the next may meet. */
  async join(opened: Opened): Promise<Pair> {
    let { code, listening, stop } = opened;
    for (;;) {
      this.#made += 1;
      try {
        const controller = await connect(this.#url, code, { timeoutMs: STEP_TIMEOUT_MS });
        return { target: await listening, controller };
      } catch (error) {
        stop.abort();
        await listening.catch(() => {});
        if (!(error instanceof RelayError && error.code === 'otc_not_found')) throw error;
        this.#missed += 1;
        if (this.#missed === MAX_MISSES) throw this.#apart();
        ({ code, listening, stop } = await this.open());
      }
    }
  }

  async repeat(): Promise<Finding> {
    while (this.#missed === 0 && this.#made < PAIRINGS) {
      const { target, controller } = await this.join(await this.open());
      await Promise.all([target.close(), controller.close()]);
    }
    if (this.#missed > 0) throw this.#apart();
    return {
      found: `${this.#made} of ${this.#made}, each over two new connections`,
      facts: { pairings: this.#made },
    };
  }

  #apart(): Problem {
    return new Problem(
      'instances_apart',
      `in ${this.#missed} of ${this.#made} pairings the code was unknown a moment after it was taken`,
      'Several instances answer at this address, and they do not know each other: a device that waits on one is not found by a device that reaches another.',
      'Run one instance, or give them all the same REDIS_URL.',
    );
  }
}

async function roundTrips({ target, controller }: Pair): Promise<Finding> {
  const payload = 'x'.repeat(1024);
  const times: number[] = [];
  for (let round = 0; round < ROUND_TRIPS; round += 1) {
    const start = performance.now();
    controller.send(payload);
    target.send(await target.receive({ timeoutMs: STEP_TIMEOUT_MS }));
    sameOrProblem(await controller.receive({ timeoutMs: STEP_TIMEOUT_MS }), payload);
    times.push(performance.now() - start);
  }
  times.sort((a, b) => a - b);
  const percentile = (p: number): number =>
    Math.round((times[Math.ceil((p / 100) * times.length) - 1] as number) * 10) / 10;
  const [p50, p99] = [percentile(50), percentile(99)];
  return { found: `p50 ${p50} ms, p99 ${p99} ms`, facts: { p50Ms: p50, p99Ms: p99 } };
}

async function largeFrame({ target, controller }: Pair): Promise<Finding> {
  try {
    controller.send(LARGE_PAYLOAD);
    sameOrProblem(await target.receive({ timeoutMs: STEP_TIMEOUT_MS }), LARGE_PAYLOAD);
  } catch (error) {
    if (!(error instanceof RelayError)) throw error;
    throw new Problem(
      'frame_limit',
      `a frame of 60 KB did not arrive (${error.code})`,
      'The protocol allows frames of up to 64 KiB, and something takes only smaller ones.',
      'Unset AMESH_MAX_FRAME_BYTES, and raise the limit on WebSocket messages of the proxy or firewall in between.',
    );
  }
  return { found: 'arrived whole' };
}

/** The relay is to tell a peer that the other is gone, at once. */
async function disconnect({ target, controller }: Pair): Promise<Finding> {
  const start = performance.now();
  const leaving = controller.close();
  await endOf(target);
  const ms = Math.round((performance.now() - start) * 10) / 10;
  await leaving;
  return { found: `after ${ms} ms`, facts: { noticedMs: ms } };
}

/** The deployed target sends its verdict and closes in the same breath. */
async function verdict(pairings: Pairings): Promise<Finding> {
  const { target, controller } = await pairings.join(await pairings.open());
  target.send('verdict');
  const leaving = target.close();
  try {
    sameOrProblem(await controller.receive({ timeoutMs: STEP_TIMEOUT_MS }), 'verdict');
  } catch (error) {
    if (!(error instanceof RelayError)) throw error;
    throw new Problem(
      'order_lost',
      `the other side heard of the goodbye, and not what was said before (${error.code})`,
      'A device that sends its verdict and leaves is not heard: pairing will fail in the last step.',
      'Something between here and the relay drops data when a connection closes; look at the proxy or firewall there.',
    );
  }
  await endOf(controller);
  await leaving;
  return { found: 'heard, and then the goodbye' };
}

async function bootstrap(url: string): Promise<Finding> {
  const jti = newJti();
  const timeoutMs = STEP_TIMEOUT_MS;
  const stop = new AbortController();
  const watching = Promise.withResolvers<void>();
  const watched = watch(url, jti, {
    timeoutMs,
    signal: stop.signal,
    onWaiting: watching.resolve,
  });
  await Promise.race([watching.promise, watched]);
  const announced = announce(url, introduction(jti), { timeoutMs });
  try {
    const device = await Promise.race([watched, announced.then(() => watched)]);
    await device.acknowledge({ publicKey: 'check', controllerSig: 'check' }, { timeoutMs });
    const { controllerPubKey } = await announced;
    sameOrProblem(controllerPubKey, 'check');
  } catch (error) {
    stop.abort();
    await Promise.allSettled([watched, announced]);
    if (!(error instanceof RelayError && error.code === 'no_watcher')) throw error;
    throw new Problem(
      'instances_apart',
      'the token was unknown a moment after its watch began',
      'Several instances answer at this address, and they do not know each other: a device that boots on one is not seen by a controller that watches on another.',
      'Run one instance, or give them all the same REDIS_URL.',
    );
  }
  return { found: 'watched, announced, acknowledged' };
}

/** Waits until a channel ends because the other side left. */
async function endOf(channel: Channel): Promise<void> {
  try {
    await channel.receive({ timeoutMs: STEP_TIMEOUT_MS });
  } catch (error) {
    if (error instanceof RelayError && error.code === 'peer_disconnected') return;
    throw error;
  }
}

function sameOrProblem(got: string, sent: string): void {
  if (got === sent) return;
  throw new Problem(
    'wire_error',
    'what arrived is not what was sent',
    'Something between here and the relay changes what it carries.',
    'Let the proxy or firewall in between pass WebSocket frames through as they are.',
  );
}

const newJti = (): string => `check_${crypto.randomUUID()}`;

const introduction = (jti: string) => ({ jti, token: 'check', targetPubKey: 'check' });

/** What an error of the client library means to somebody who runs a relay. */
function explain(error: unknown): Problem {
  if (!(error instanceof RelayError)) throw error;
  const [code, means, change] = explanations[error.code] ?? [
    'wire_error',
    'The relay, or something in front of it, did not behave as the protocol says.',
    'Check that this address leads to an amesh relay of this version, and look at its log.',
  ];
  return new Problem(code, error.message, means, change);
}

const full: [ProblemCode, string, string] = [
  'full',
  'The relay answers, and has as much to do as it may.',
  'Look at its sessions and connections; raise AMESH_MAX_CONNECTIONS, AMESH_MAX_CONNECTIONS_PER_CLIENT or AMESH_MAX_SESSIONS if they are meant to be there.',
];
const leaving: [ProblemCode, string, string] = [
  'draining',
  'This instance is about to stop and takes nobody new.',
  'If a deploy is under way, check again when it is through (--wait 60).',
];
const cut: [ProblemCode, string, string] = [
  'cut',
  'Something between here and the relay ended the connection, or let nothing through.',
  'Look at the timeouts, limits and log of the proxy or firewall in between.',
];

const explanations: { [C in RelayErrorCode]?: [ProblemCode, string, string] } = {
  rate_limited: [
    'rate_limited',
    'Too many codes were wrong, or too many tokens watched, from your address in the last minute. If that was not you, the relay takes others for you: behind a proxy, that is AMESH_TRUST_PROXY not set.',
    'Wait a minute and check again; set AMESH_TRUST_PROXY if there is a proxy.',
  ],
  relay_capacity: full,
  relay_overloaded: full,
  too_many_connections: full,
  relay_draining: leaving,
  relay_shutting_down: leaving,
  relay_unavailable: [
    'redis_lost',
    'This instance cannot reach the Redis that it shares with the others.',
    'Look at the Redis, at REDIS_URL, and at the network between them.',
  ],
  connection_lost: cut,
  timeout: cut,
  unreachable: cut,
};
