/**
 * Instances, their Redis and their clients in one process, on a clock of their own: the relay's real rules and its real
 * cluster, with everything between them (sockets, Redis, the network, crashes) played from a seed. The same seed plays
 * the same story.
 */
import { Cluster } from '../src/cluster/cluster.ts';
import { BEAT_MS } from '../src/cluster/links.ts';
import { ALL, type Redis, SILENCE_MS } from '../src/cluster/redis.ts';
import { type Config, readOptions } from '../src/config.ts';
import { Connection } from '../src/connection.ts';
import type { Script } from '../src/cluster/scripts.ts';
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

type Entry = { value: string; times: number[]; members: Map<string, number>; until: number };

/** What the scripts do, said again in another language. A test holds the two against each other. */
export class ModelRedis {
  readonly entries = new Map<string, Entry>();
  /** Whether an instance's inbox has a subscriber. */
  readonly listens: (instance: string) => boolean;
  readonly publish: (instance: string, text: string) => number;

  constructor(
    listens: (instance: string) => boolean,
    publish: (instance: string, text: string) => number,
  ) {
    this.listens = listens;
    this.publish = publish;
  }

  get(key: string, now: number): Entry | undefined {
    const entry = this.entries.get(key);
    return entry && entry.until > now ? entry : undefined;
  }

  #set(key: string, now: number, ttl: number, fields: Partial<Entry>): void {
    const empty = { value: '', times: [], members: new Map<string, number>() };
    this.entries.set(key, { ...empty, ...fields, until: now + ttl });
  }

  #spent(key: string, max: number, now: number): boolean {
    const at = this.get(key, now)?.times.at(-max);
    return at !== undefined && now - at < 60_000;
  }

  #count(key: string, max: number, now: number): void {
    const times = [...(this.get(key, now)?.times ?? []), now];
    this.#set(key, now, 60_000, { times: times.slice(-max) });
  }

  #isAnySpent(keys: string[], max: number, now: number): boolean {
    return keys.some((key, i) => this.#spent(key, i === 0 ? max : max * 8, now));
  }

  #countAll(keys: string[], max: number, now: number): void {
    for (const [i, key] of keys.entries()) this.#count(key, i === 0 ? max : max * 8, now);
  }

  #failed(code: string, clients: string[], maxClient: number, maxCode: number, now: number) {
    this.#countAll(clients, maxClient, now);
    if (this.#spent(code, maxCode, now)) return 'burned';
    this.#count(code, maxCode, now);
    return 'counted';
  }

  #held(key: string, now: number): string | undefined {
    const claim = this.get(key, now)?.value;
    return claim && this.listens(claim.split('.')[0] as string) ? claim : undefined;
  }

  run(
    script: Script,
    keys: string[],
    values: (string | number)[],
    now: number,
    deadline: number,
  ): unknown {
    if (now > deadline) return 'late';
    const [one, two] = keys as [string, string];
    const [a, b, c, d, e] = values as [string, number, number, number, number];
    switch (script) {
      case 'claimCode': {
        const half = 2 + (keys.length - 2) / 2;
        const [clients, listens] = [keys.slice(2, half), keys.slice(half)];
        const listened = (key: string): number => Number(this.get(key, now)?.value ?? 0);
        if (
          this.#isAnySpent(clients, c, now) ||
          listens.some((key, i) => listened(key) >= (i === 0 ? e : e * 8))
        ) {
          return 'rate_limited';
        }
        const other = this.#held(one, now);
        if (this.#spent(two, d, now) || (other && other !== a)) {
          this.#failed(two, clients, c, d, now);
          return 'otc_in_use';
        }
        for (const key of listens) {
          const entry = this.get(key, now);
          if (entry) entry.value = String(Number(entry.value) + 1);
          else this.#set(key, now, 60_000, { value: '1' });
        }
        this.#set(one, now, b, { value: a });
        return 'ok';
      }
      case 'findCode': {
        const clients = keys.slice(2);
        if (this.#isAnySpent(clients, Number(a), now)) return 'rate_limited';
        const claim = this.#held(one, now);
        if (!claim) this.#failed(two, clients, Number(a), b, now);
        return claim ?? 'otc_not_found';
      }
      case 'failCode':
        return this.#failed(two, keys.slice(2), Number(a), b, now);
      case 'claimWatch': {
        const clients = keys.slice(1);
        if (this.#isAnySpent(clients, c, now)) return 'rate_limited';
        this.#countAll(clients, c, now);
        const other = this.#held(one, now);
        if (other && other !== a) return 'jti_already_watched';
        this.#set(one, now, b, { value: a });
        return 'ok';
      }
      case 'burn': {
        const clients = keys.slice(2);
        const refuse = (why: string): string => {
          this.#countAll(clients, c, now);
          return why;
        };
        if (this.#isAnySpent(clients, c, now)) return 'rate_limited';
        const used = this.get(two, now)?.members ?? new Map<string, number>();
        for (const [id, till] of used) if (till <= now) used.delete(id);
        if (used.has(a)) return refuse('token_already_used');
        const claim = this.#held(one, now);
        if (!claim) return refuse('no_watcher');
        if (used.size >= d) return refuse('relay_overloaded');
        this.#set(two, now, b, { members: used.set(a, now + b) });
        return claim;
      }
      case 'hold': {
        const other = this.#held(one, now);
        if (other && other !== a) return 0;
        this.#set(one, now, b, { value: a });
        return 1;
      }
      case 'release':
        if (this.get(one, now)?.value === a) this.entries.delete(one);
        return 1;
      case 'publish':
        return this.publish(a, String(b));
      case 'beat':
        return [
          now,
          this.get(two, now)?.members.size ?? 0,
          ...values.filter((instance) => !this.listens(String(instance))),
        ];
    }
  }
}

/**
 * Redis with its network: commands and messages take their time, in order; it stalls, forgets, and cuts connections. A
 * message is lost only together with the connection of whoever was to hear it, as TCP and Redis have it.
 */
class Network {
  readonly world: World;
  readonly redis: ModelRedis;
  readonly inboxes = new Map<string, SimulatedRedis>();
  stalledUntil = 0;

  constructor(world: World) {
    this.world = world;
    this.redis = new ModelRedis(
      (instance) => this.inboxes.get(instance)?.isSubscribed === true,
      (instance, text) => this.publish(instance, text),
    );
  }

  /** When something sent now is dealt with at the other end of a connection, behind what was sent before. */
  arrival(line: { last: number }): number {
    const { now, random } = this.world;
    line.last = Math.max(line.last, this.stalledUntil, now + random() * 4);
    return line.last - now;
  }

  publish(instance: string, text: string): number {
    const inboxes = instance === ALL ? [...this.inboxes.values()] : [this.inboxes.get(instance)];
    const heard = inboxes.filter((inbox) => inbox?.isSubscribed);
    for (const inbox of heard) inbox?.deliver(text);
    return heard.length;
  }
}

class SimulatedRedis implements Redis {
  onReady = (): void => {};
  onMessage: (text: string) => void = () => {};
  onLost: (reason: string) => void = () => {};
  isSubscribed = false;
  isDead = false;
  readonly #network: Network;
  readonly #toRedis = { last: 0 };
  readonly #fromRedis = { last: 0 };
  readonly #messages = { last: 0 };
  readonly #pending = new Set<(reason: Error) => void>();
  /** Counts the lives of the connection: what belongs to an earlier one arrives nowhere. */
  #life = 0;
  /** Lives of which a command was lost, so that no later one can have got through. */
  readonly #ended = new Set<number>();

  constructor(network: Network, id: string) {
    this.#network = network;
    network.inboxes.set(id, this);
    this.connect();
  }

  connect(): void {
    const { world } = this.#network;
    const life = this.#life;
    world.after(1 + world.below(20), () => {
      if (this.isDead || life !== this.#life) return;
      if (world.now < this.#network.stalledUntil) return this.connect();
      this.isSubscribed = true;
      this.onReady();
    });
  }

  /** The connection is cut: what is under way may have been dealt with or not, and nobody knows. */
  cut(): void {
    this.#life += 1;
    this.isSubscribed = false;
    for (const reject of this.#pending) reject(new Error('connection lost'));
    if (this.isDead) return;
    this.onLost('connection lost');
    this.connect();
  }

  async run(script: Script, keys: string[], values: (string | number)[]): Promise<unknown> {
    const { world, redis } = this.#network;
    const deadline = script === 'beat' ? Infinity : world.now + COMMAND_TIMEOUT_MS;
    return this.#send(() => redis.run(script, keys, values, world.now, deadline));
  }

  async #send<T>(command: () => T): Promise<T> {
    const { world } = this.#network;
    if (!this.isSubscribed) throw this.#lost('not connected');
    return new Promise<T>((resolve, reject) => {
      const settle = (): boolean => this.#pending.delete(fail);
      const fail = (reason: Error): void => {
        if (settle()) reject(reason);
      };
      this.#pending.add(fail);
      const life = this.#life;
      let isAnswered = false;
      world.after(this.#network.arrival(this.#toRedis), () => {
        // Commands on a connection that was cut may still have got through, up to one of them.
        if (life !== this.#life && (this.#ended.has(life) || world.random() < 0.5)) {
          this.#ended.add(life);
          return;
        }
        const answer = command();
        world.after(this.#network.arrival(this.#fromRedis), () => {
          isAnswered = true;
          if (life === this.#life && !this.isDead && settle()) resolve(answer);
        });
      });
      world.after(SILENCE_MS, () => {
        if (!isAnswered && life === this.#life) this.cut();
      });
      world.after(COMMAND_TIMEOUT_MS, () => {
        if (this.#pending.has(fail)) fail(this.#lost('Command timed out'));
      });
    });
  }

  #lost(reason: string): Error {
    if (!this.isDead) this.onLost(reason);
    return new Error(reason);
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
  readonly #redis: SimulatedRedis;
  readonly #world: World;
  isDead = false;

  constructor(network: Network, id: string, config: Config) {
    const { world } = network;
    const now = (): number => world.now;
    this.id = id;
    this.sockets = new Sockets(config, this.log, now);
    this.#redis = new SimulatedRedis(network, id);
    this.cluster = new Cluster(id, this.sockets, this.#redis, this.log);
    this.sockets.cluster = this.cluster;
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
    this.#redis.cut();
  }

  /** As by SIGKILL: no word to anyone; only its sockets' other ends notice. */
  crash(): void {
    this.isDead = true;
    this.#redis.isDead = true;
    this.#redis.cut();
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
    maxListens: 100_000,
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
