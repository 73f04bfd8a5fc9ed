/**
 * Instances, their Redis and their clients in one process, on a clock of their own: the relay's real rules and its real
 * cluster, with everything between them (sockets, Redis, the network, crashes) played from a seed. The same seed plays
 * the same story.
 */
import type { Bus } from '../src/cluster/bus.ts';
import { Cluster } from '../src/cluster/cluster.ts';
import { BEAT_MS } from '../src/cluster/reach.ts';
import { type Config, readOptions } from '../src/config.ts';
import { Connection } from '../src/connection.ts';
import { type Script, TIMELESS } from '../src/cluster/scripts.ts';
import { Sockets } from '../src/socket.ts';
import { type Frame, memoryLog } from './support.ts';
import { seeded } from './random.ts';

const COMMAND_TIMEOUT_MS = 1000;
const SWEEP_MS = 1000;

/** Time, and what happens at which. */
class World {
  now = 1_000_000;
  readonly random: () => number;
  readonly #events: { at: number; happen: () => void }[] = [];

  constructor(seed: number) {
    this.random = seeded(seed);
  }

  below(n: number): number {
    return Math.floor(this.random() * n);
  }

  pick<T>(from: readonly T[]): T {
    return from[this.below(from.length)] as T;
  }

  after(milliseconds: number, happen: () => void): void {
    const event = { at: this.now + milliseconds, happen };
    let i = this.#events.length;
    while ((this.#events[i - 1]?.at ?? -1) > event.at) i -= 1;
    this.#events.splice(i, 0, event);
  }

  /** Plays all that happens within a time; what an event sets off by promises is through before the next. */
  async play(milliseconds: number): Promise<void> {
    const end = this.now + milliseconds;
    for (;;) {
      // Twice, since what an event sets off may itself wait for the loop's turn to end.
      for (let turn = 0; turn < 2; turn += 1) {
        await new Promise((resolve) => setImmediate(resolve));
      }
      const [event] = this.#events;
      if (!event || event.at > end) break;
      this.#events.shift();
      this.now = event.at;
      event.happen();
    }
    this.now = end;
  }
}

type Entry = { value: string; times: number[]; until: number };

/** What the scripts do, said again in another language; a test holds the two against each other. */
export class ModelRedis {
  readonly entries = new Map<string, Entry>();
  readonly alivePrefix: string;

  constructor(prefix: string) {
    this.alivePrefix = `${prefix}alive:`;
  }

  get(key: string, now: number): Entry | undefined {
    const entry = this.entries.get(key);
    return entry && entry.until > now ? entry : undefined;
  }

  #set(key: string, value: string, ttl: number, now: number): void {
    this.entries.set(key, { value, times: [], until: now + ttl });
  }

  #spent(key: string, max: number, now: number): boolean {
    const times = this.get(key, now)?.times ?? [];
    return times.length >= max && now - (times.at(-max) as number) < 60_000;
  }

  #count(key: string, max: number, now: number): void {
    const times = [...(this.get(key, now)?.times ?? []), now];
    this.entries.set(key, { value: '', times: times.slice(-max), until: now + 60_000 });
  }

  #failed(keys: string[], maxClient: number, maxCode: number, now: number): string {
    const [client, code] = keys as [string, string];
    this.#count(client, maxClient, now);
    if (this.#spent(code, maxCode, now)) return 'burned';
    this.#count(code, maxCode, now);
    return 'counted';
  }

  #held(key: string, now: number): string | undefined {
    const claim = this.get(key, now)?.value;
    return claim && this.get(this.alivePrefix + claim.split('.')[0], now) ? claim : undefined;
  }

  run(
    script: Script,
    keys: string[],
    values: (string | number)[],
    now: number,
    deadline: number,
  ): unknown {
    if (now > deadline) return 'late';
    const [one, two, three, four] = keys as [string, string, string, string];
    const [a, b, c, d, e] = values as [string, number, number, number, number];
    switch (script) {
      case 'claimCode':
        if (this.#spent(one, c, now) || this.#spent(four, e, now)) return 'rate_limited';
        if (this.#spent(two, d, now) || this.#held(three, now)) {
          this.#failed(keys, c, d, now);
          return 'otc_in_use';
        }
        this.#set(three, a, b, now);
        this.#count(four, e, now);
        return 'ok';
      case 'findCode': {
        if (this.#spent(one, Number(a), now)) return 'rate_limited';
        const claim = this.#held(three, now);
        if (!claim) this.#failed(keys, Number(a), b, now);
        return claim ?? 'otc_not_found';
      }
      case 'fail':
        return this.#failed(keys, Number(a), b, now);
      case 'claimWatch': {
        if (this.#spent(one, c, now)) return 'rate_limited';
        this.#count(one, c, now);
        const other = this.#held(two, now);
        if (other && other !== String(d)) return 'jti_already_watched';
        this.#set(two, a, b, now);
        return 'ok';
      }
      case 'init': {
        const refuse = (why: string): string => {
          this.#count(one, c, now);
          return why;
        };
        if (this.#spent(one, c, now)) return 'rate_limited';
        if (this.get(two, now)) return refuse('token_already_used');
        const claim = this.#held(three, now);
        if (!claim) return refuse('no_watcher');
        if (claim.split('.')[0] !== a) return claim;
        if (d === 1) return refuse('relay_overloaded');
        this.#set(two, '', b, now);
        return claim;
      }
      case 'hold': {
        const other = this.#held(one, now);
        if (other && other !== a) return 0;
        this.#set(one, a, b, now);
        return 1;
      }
      case 'release':
        if (this.get(one, now)?.value === a) this.entries.delete(one);
        return 1;
      case 'beat': {
        const isKnown = Number(this.get(one, now) !== undefined);
        this.#set(one, '', Number(a), now);
        const dead = values.slice(3).filter((id) => !this.get(this.alivePrefix + id, now));
        return [isKnown, ...dead];
      }
      case 'resign':
        this.entries.delete(one);
        return 1;
    }
  }
}

/** Redis with its network: commands and messages take their time, in order; it stalls, forgets, and cuts lines. */
class Network {
  readonly world: World;
  readonly redis = new ModelRedis('amesh:');
  readonly buses = new Map<string, SimulatedBus>();
  stalledUntil = 0;
  /** Messages between instances that are to vanish without a word. */
  vanishing = 0;

  constructor(world: World) {
    this.world = world;
  }

  /** When something sent now is dealt with at the other end of a line, behind what was sent before. */
  arrival(line: { last: number }): number {
    const { now, random } = this.world;
    line.last = Math.max(line.last, this.stalledUntil, now + random() * 4);
    return line.last - now;
  }

  publish(channel: string, text: string): number {
    const bus = this.buses.get(channel);
    if (!bus?.isSubscribed) return 0;
    if (this.vanishing > 0 && text.startsWith('[')) this.vanishing -= 1;
    else bus.deliver(text);
    return 1;
  }
}

class SimulatedBus implements Bus {
  onReady = (): void => {};
  onMessage: (text: string) => void = () => {};
  onLost: (reason: unknown) => void = () => {};
  isSubscribed = false;
  isDead = false;
  readonly #network: Network;
  readonly #channel: string;
  readonly #toRedis = { last: 0 };
  readonly #fromRedis = { last: 0 };
  readonly #messages = { last: 0 };
  readonly #pending = new Set<(reason: Error) => void>();
  /** Counts the lives of the two connections: what belongs to an earlier one arrives nowhere. */
  #life = 0;

  constructor(network: Network, id: string) {
    this.#network = network;
    this.#channel = `amesh:to:${id}`;
    network.buses.set(this.#channel, this);
    this.connect();
  }

  connect(): void {
    const { world } = this.#network;
    world.after(1 + world.below(20), () => {
      if (this.isDead || world.now < this.#network.stalledUntil) {
        if (!this.isDead) this.connect();
        return;
      }
      this.isSubscribed = true;
      this.onReady();
    });
  }

  /** Both lines are cut: what is under way may have been dealt with or not, and nobody knows. */
  cut(): void {
    this.#life += 1;
    this.isSubscribed = false;
    for (const reject of this.#pending) reject(new Error('connection lost'));
    if (this.isDead) return;
    this.onLost(new Error('connection lost'));
    this.connect();
  }

  reconnect(): void {
    this.cut();
  }

  async run(script: Script, keys: string[], values: (string | number)[]): Promise<unknown> {
    const { world, redis } = this.#network;
    const deadline = TIMELESS.has(script) ? Infinity : world.now + COMMAND_TIMEOUT_MS;
    return this.#send(() => {
      const answer = redis.run(script, keys, values, world.now, deadline);
      if (script === 'beat') this.#network.publish(String(values[1]), String(values[2]));
      return answer;
    });
  }

  async publish(channel: string, text: string): Promise<number> {
    return this.#send(() => this.#network.publish(channel, text));
  }

  async #send<T>(command: () => T): Promise<T> {
    const { world } = this.#network;
    if (!this.isSubscribed) throw new Error('not connected');
    return new Promise<T>((resolve, reject) => {
      const settle = (): boolean => this.#pending.delete(fail);
      const fail = (reason: Error): void => {
        if (settle()) reject(reason);
      };
      this.#pending.add(fail);
      const life = this.#life;
      world.after(this.#network.arrival(this.#toRedis), () => {
        // A command on a line that was cut may still have got through.
        if (life !== this.#life && world.random() < 0.5) return;
        const answer = command();
        world.after(this.#network.arrival(this.#fromRedis), () => {
          if (life === this.#life && !this.isDead && settle()) resolve(answer);
        });
      });
      world.after(COMMAND_TIMEOUT_MS, () => fail(new Error('Command timed out')));
    });
  }

  deliver(text: string): void {
    const life = this.#life;
    this.#network.world.after(this.#network.arrival(this.#messages), () => {
      if (life === this.#life && !this.isDead) this.onMessage(text);
    });
  }
}

/** A WebSocket without a network: both ends see at once what the other does. */
export class SimulatedSocket {
  readonly instance: Instance;
  readonly data: Connection;
  readonly topics = new Set<string>();
  isOpen = true;
  onFrame: (frame: Frame) => void = () => {};
  onClose: (code: number) => void = () => {};

  constructor(instance: Instance, client: string) {
    this.instance = instance;
    this.data = new Connection(client);
    instance.open.add(this);
    void instance.handlers.open?.(this as never);
  }

  send(frame: Frame): void {
    if (this.isOpen) void this.instance.handlers.message?.(this as never, JSON.stringify(frame));
  }

  sendText(frame: string): number {
    if (!this.isOpen) return 0;
    this.onFrame(JSON.parse(frame) as Frame);
    return frame.length;
  }

  subscribe(topic: string): void {
    this.topics.add(topic);
  }

  unsubscribe(topic: string): void {
    this.topics.delete(topic);
  }

  publishText(topic: string, frame: string): number {
    let sent = 0;
    for (const other of this.instance.open) {
      if (other !== this && other.topics.has(topic)) sent += other.sendText(frame);
    }
    return sent;
  }

  /** From either side. */
  close(code = 1000): void {
    if (!this.isOpen) return;
    this.isOpen = false;
    this.onClose(code);
    void this.instance.handlers.close?.(this as never, code, '');
    this.instance.open.delete(this);
  }
}

export class Instance {
  readonly id: string;
  readonly log = memoryLog();
  readonly sockets: Sockets;
  readonly cluster: Cluster;
  readonly handlers: Sockets['handlers'];
  readonly open = new Set<SimulatedSocket>();
  readonly #bus: SimulatedBus;
  readonly #world: World;
  isDead = false;

  constructor(network: Network, id: string, config: Config) {
    const { world } = network;
    const now = (): number => world.now;
    this.id = id;
    this.sockets = new Sockets(config, this.log, now);
    this.#bus = new SimulatedBus(network, id);
    this.cluster = new Cluster({
      id,
      config,
      sockets: this.sockets,
      bus: this.#bus,
      log: this.log,
      now,
    });
    this.sockets.join(this.cluster);
    this.handlers = this.sockets.handlers;
    this.#world = world;
  }

  /** Sets the timers going, each with a phase of its own. */
  begin(): void {
    const timers = [
      [BEAT_MS, () => void this.cluster.beat()],
      [SWEEP_MS, () => void this.sockets.sweep()],
    ] as const;
    for (const [milliseconds, step] of timers) {
      const tick = (): void => {
        if (this.isDead) return;
        step();
        this.#world.after(milliseconds, tick);
      };
      this.#world.after(this.#world.below(milliseconds), tick);
    }
  }

  cutOff(): void {
    this.#bus.cut();
  }

  /** As by SIGKILL: no word to anyone; only its sockets' other ends notice. */
  crash(): void {
    this.isDead = true;
    this.#bus.isDead = true;
    this.#bus.cut();
    for (const socket of this.open) {
      socket.isOpen = false;
      socket.onClose(1006);
    }
    this.open.clear();
  }
}

export class Simulation {
  readonly world: World;
  readonly network: Network;
  readonly config = readOptions({
    redisUrl: 'redis://simulated',
    sessionTtlMs: 5000,
    maxFailedCodes: 1000,
    maxFailedPerCode: 1000,
    maxWatches: 1000,
    maxRefusedInits: 1000,
    maxConnectionsPerClient: 10_000,
  });
  instances: Instance[] = [];
  #names = 0;

  constructor(seed: number, instances: number) {
    this.world = new World(seed);
    this.network = new Network(this.world);
    for (let i = 0; i < instances; i += 1) this.addInstance();
  }

  addInstance(): void {
    const instance = new Instance(this.network, `i${(this.#names += 1)}`, this.config);
    instance.begin();
    this.instances.push(instance);
  }

  crash(instance: Instance): void {
    instance.crash();
    this.instances = this.instances.filter((other) => other !== instance);
  }

  stall(milliseconds: number): void {
    this.network.stalledUntil = Math.max(this.network.stalledUntil, this.world.now + milliseconds);
  }

  /** Redis starts anew, and remembers nothing. */
  wipe(): void {
    this.network.redis.entries.clear();
    for (const instance of this.instances) instance.cutOff();
  }
}
