/** What is measured. Every measure takes the contestants in turn, round by round, so that a slow minute is shared. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { endSessions, leaveAll, pairings, pingPong, sessions, waiters } from './load.ts';
import { type Contestant, contestants, type Name, RunningServer, startServer } from './servers.ts';

export interface Effort {
  rounds: number;
  /** How long one contestant's turn takes. */
  seconds: number;
  /** Sessions that wait, where that is measured. */
  crowd: number;
}

/** One quantity: a sample for each contestant and round. */
export interface Measured {
  title: string;
  unit: string;
  samples: Record<string, number[]>;
}

export type Progress = (line: string) => void;
export type Measure = (effort: Effort, progress: Progress) => Promise<Record<string, Measured>>;

const names = Object.keys(contestants) as Name[];
/** Pairings under way at a time: enough to keep a server busy. */
const BUSY_LANES = 16;
/** Few enough that what is timed is the server and not the queue before it. */
const CALM_LANES = 4;
/** Sessions that exchange frames at a time. */
const SESSIONS = 80;
const BURST = 16;
const KEEP_STILL_MS = 300;
/** Pairings until a process has compiled what it runs often. Each of the first ones costs more than a later one. */
const WARM_UP = 20_000;
/** The most turns that warming up takes, for a slow server and for a quick run. */
const WARM_UP_TURNS = 20;

export function median(values: number[]): number {
  return quantile(values, 0.5);
}

/** Of paired samples the ratio in each round, and of those the median: what slows a whole round cancels out. */
export function ratio(over?: number[], under?: number[]): number {
  return spread(over, under)[1];
}

/** The lower quartile, the median and the upper quartile of the rounds' ratios. */
export function spread(over: number[] = [], under: number[] = []): [number, number, number] {
  const ratios = over.map((value, i) => value / (under[i] as number));
  return [quantile(ratios, 0.25), quantile(ratios, 0.5), quantile(ratios, 0.75)];
}

function quantile(values: number[], q: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  const at = (sorted.length - 1) * q;
  const [low, high] = [sorted[Math.floor(at)] ?? NaN, sorted[Math.ceil(at)] ?? NaN];
  return low + (high - low) * (at - Math.floor(at));
}

/** Runs a turn for each contestant in each round, after one that doesn't count; another one begins each time. */
async function alternate<K extends string>(
  keys: readonly K[],
  { rounds }: Effort,
  progress: Progress,
  turn: (key: K) => Promise<Record<string, number>>,
): Promise<Record<string, Record<string, number[]>>> {
  const samples: Record<string, Record<string, number[]>> = {};
  for (let round = 0; round <= rounds; round++) {
    const first = round % keys.length;
    for (const key of [...keys.slice(first), ...keys.slice(0, first)]) {
      const values = await turn(key);
      if (round === 0) continue;
      for (const [quantity, value] of Object.entries(values)) {
        ((samples[quantity] ??= {})[key] ??= []).push(value);
      }
    }
    if (round === 0) progress('  warm');
    else progress(`  round ${round} of ${rounds}: ${summary(samples)}`);
  }
  return samples;
}

function summary(samples: Record<string, Record<string, number[]>>): string {
  return Object.entries(samples)
    .map(([quantity, by]) => {
      const last = Object.entries(by).map(([key, all]) => `${key} ${all.at(-1)?.toPrecision(3)}`);
      return `${quantity} ${last.join(', ')}`;
    })
    .join('; ');
}

async function withServers<T>(use: (servers: Record<Name, RunningServer>) => Promise<T>) {
  const running = await Promise.all(names.map((name) => startServer(contestants[name])));
  try {
    return await use(
      Object.fromEntries(names.map((name, i) => [name, running[i]])) as Record<Name, RunningServer>,
    );
  } finally {
    await Promise.all(running.map((server) => server.stop()));
  }
}

/** Server CPU per pairing, in microseconds, and what it gets done. */
async function pairing(server: RunningServer, seconds: number) {
  const before = server.cpu;
  const { count, seconds: took } = await pairings(server.goal, seconds, BUSY_LANES);
  return { cpu: ((server.cpu - before) / count) * 1e6, rate: count / took };
}

/** Lets a server pair devices until it is warm. */
async function warmUp(server: RunningServer, { seconds }: Effort): Promise<void> {
  let count = 0;
  for (let turn = 0; turn < WARM_UP_TURNS && count < WARM_UP; turn += 1) {
    count += (await pairings(server.goal, seconds, BUSY_LANES)).count;
  }
}

const measurePairing: Measure = (effort, progress) =>
  withServers(async (servers) => {
    for (const name of names) await warmUp(servers[name], effort);
    const { cpu = {}, rate = {} } = await alternate(names, effort, progress, (name) =>
      pairing(servers[name], effort.seconds),
    );
    return {
      pairingCpu: { title: 'Server CPU per pairing', unit: 'µs', samples: cpu },
      pairingRate: { title: 'Pairings a second', unit: '/s', samples: rate },
    };
  });

/** As behind a proxy, every device at an address of its own; beside a bare relay that reads the same header. */
const measureStrangers: Measure = async (effort, progress) => {
  const pair = ['relay', 'bare'] as const;
  const servers = await Promise.all(
    pair.map((name) => startServer(contestants[name], { strangers: true })),
  );
  try {
    for (const server of servers) await warmUp(server, effort);
    const { cpu = {} } = await alternate(pair, effort, progress, async (name) => ({
      cpu: (await pairing(servers[pair.indexOf(name)] as RunningServer, effort.seconds)).cpu,
    }));
    return {
      strangersCpu: {
        title: 'Server CPU per pairing behind a proxy, every client a stranger',
        unit: 'µs',
        samples: cpu,
      },
    };
  } finally {
    await Promise.all(servers.map((server) => server.stop()));
  }
};

const measureFrame: Measure = (effort, progress) =>
  withServers(async (servers) => {
    const cost = async (server: RunningServer, burst: number) => {
      const open = await sessions(server.goal, SESSIONS);
      const before = server.cpu;
      const frames = await pingPong(server.goal, open, effort.seconds, burst);
      const used = server.cpu - before;
      await endSessions(open);
      return (used / frames) * 1e6;
    };
    const { single = {}, burst = {} } = await alternate(names, effort, progress, async (name) => ({
      single: await cost(servers[name], 1),
      burst: await cost(servers[name], BURST),
    }));
    return {
      frameCpu: { title: 'Server CPU per frame of 1 KiB', unit: 'µs', samples: single },
      burstCpu: {
        title: `Server CPU per frame of 1 KiB, ${BURST} at a time`,
        unit: 'µs',
        samples: burst,
      },
    };
  });

const measureLatency: Measure = (effort, progress) =>
  withServers(async (servers) => {
    const { p50 = {}, p99 = {} } = await alternate(names, effort, progress, async (name) => {
      const { latencies } = await pairings(servers[name].goal, effort.seconds, CALM_LANES);
      return { p50: quantile(latencies, 0.5), p99: quantile(latencies, 0.99) };
    });
    return {
      p50: { title: 'From listen to verdict, p50', unit: 'ms', samples: p50 },
      p99: { title: 'From listen to verdict, p99', unit: 'ms', samples: p99 },
    };
  });

/** A new process each time: what a process has once held, it does not give back. */
const measureMemory: Measure = async (effort, progress) => {
  const { bytes = {} } = await alternate(names, effort, progress, async (name) => {
    const server = await startServer(contestants[name]);
    try {
      await pairings(server.goal, 0.1, CALM_LANES);
      const before = server.rss;
      await waiters(server.goal, effort.crowd);
      await Bun.sleep(KEEP_STILL_MS);
      return { bytes: (server.rss - before) / effort.crowd / 1024 };
    } finally {
      await server.stop();
    }
  });
  return { waitingRss: { title: 'RSS per waiting session', unit: 'KiB', samples: bytes } };
};

/** One server at a time, since only the cost beside its own with nobody waiting counts. */
const measureWaiting: Measure = async (effort, progress) => {
  const levels = [0, 100, 1000, 10_000].filter((level) => level <= effort.crowd);
  const results: Record<string, Measured> = {};
  for (const name of names) {
    progress(`  ${contestants[name].label}`);
    const server = await startServer(contestants[name]);
    try {
      const samples: Record<string, number[]> = {};
      for (let round = 1; round <= effort.rounds; round++) {
        // Does not count: it warms up, and clears away what the round before has left.
        await pairing(server, effort.seconds);
        const crowd = [];
        for (const level of levels) {
          crowd.push(...(await waiters(server.goal, level - crowd.length)));
          (samples[level] ??= []).push((await pairing(server, effort.seconds)).cpu);
        }
        await leaveAll(crowd);
        progress(`  round ${round} of ${effort.rounds}: ${summary({ cpu: samples })}`);
      }
      results[`waiting.${name}`] = {
        title: `Server CPU per pairing while others wait, ${contestants[name].label}`,
        unit: 'µs',
        samples,
      };
    } finally {
      await server.stop();
    }
  }
  return results;
};

/** From the start of the process to its first answer on `/health`. */
const measureStart: Measure = async (effort, progress) => {
  const directory = mkdtempSync(join(tmpdir(), 'amesh-bench-'));
  try {
    await bundle(directory);
    const { relay, bare, ws, peerjs } = contestants;
    // Each of those that are compared comes after another start of Bun, which leaves the machine as it would be found.
    const started: Record<string, Contestant> = {
      ws,
      peerjs,
      'relay, from source': relay,
      bare,
      relay: { ...relay, command: [process.execPath, join(directory, 'cli.js')] },
    };
    const { ms = {} } = await alternate(Object.keys(started), effort, progress, async (name) => {
      const start = performance.now();
      const server = await startServer(started[name] as Contestant, { isAsShipped: true });
      try {
        const response = await fetch(`http://127.0.0.1:${server.goal.port}/health`);
        await response.text();
        return { ms: performance.now() - start };
      } finally {
        await server.stop();
      }
    });
    return { start: { title: 'From exec to the first /health', unit: 'ms', samples: ms } };
  } finally {
    rmSync(directory, { recursive: true });
  }
};

/** The relay as its image has it. */
async function bundle(directory: string): Promise<void> {
  const tool = join(import.meta.dir, '..', 'tools', 'bundle.ts');
  const build = Bun.spawn([process.execPath, tool, directory], { stderr: 'inherit' });
  if ((await build.exited) !== 0) throw new Error('the relay could not be bundled');
}

/** Each measure with its effort in a whole run and in a quick one, which is to show that things work. */
export const measures: Record<string, { run: Measure; whole: Effort; quick: Effort }> = {
  pairing: {
    run: measurePairing,
    whole: { rounds: 11, seconds: 1, crowd: 0 },
    quick: { rounds: 5, seconds: 0.3, crowd: 0 },
  },
  strangers: {
    run: measureStrangers,
    whole: { rounds: 11, seconds: 1, crowd: 0 },
    quick: { rounds: 5, seconds: 0.3, crowd: 0 },
  },
  frame: {
    run: measureFrame,
    whole: { rounds: 11, seconds: 0.5, crowd: 0 },
    quick: { rounds: 5, seconds: 0.2, crowd: 0 },
  },
  latency: {
    run: measureLatency,
    whole: { rounds: 5, seconds: 1, crowd: 0 },
    quick: { rounds: 5, seconds: 0.2, crowd: 0 },
  },
  memory: {
    run: measureMemory,
    whole: { rounds: 5, seconds: 0, crowd: 10_000 },
    quick: { rounds: 2, seconds: 0, crowd: 1000 },
  },
  waiting: {
    run: measureWaiting,
    whole: { rounds: 5, seconds: 0.8, crowd: 10_000 },
    quick: { rounds: 2, seconds: 0.3, crowd: 1000 },
  },
  start: {
    run: measureStart,
    whole: { rounds: 15, seconds: 0, crowd: 0 },
    quick: { rounds: 5, seconds: 0, crowd: 0 },
  },
};
