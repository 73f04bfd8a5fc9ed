/** The cluster's Redis: its two connections, and the beat. Loaded only where REDIS_URL is set. */
import { Redis } from 'ioredis';
import type { Bus } from './bus.ts';
import { Cluster } from './cluster.ts';
import type { Config } from '../config.ts';
import type { Clock } from '../connection.ts';
import type { Log } from '../observe/log.ts';
import { BEAT_MS } from './reach.ts';
import { RedisError, type RedisUrl } from './redis-url.ts';
import { type Script, sources, TIMELESS } from './scripts.ts';
import type { Sockets } from '../socket.ts';

/** How long a start waits for Redis, in milliseconds. */
const START_WAIT_MS = 5000;
/** How long a command may take, in milliseconds; then Redis counts as out of reach. */
const COMMAND_TIMEOUT_MS = 1000;
const CONNECT_TIMEOUT_MS = 2000;
const RETRY_MS = 250;

type Run = (keys: number, ...rest: (string | number)[]) => Promise<unknown>;

export class RedisBus implements Bus {
  onReady: () => void = () => {};
  onMessage: (text: string) => void = () => {};
  onLost: (reason: unknown) => void = () => {};
  readonly #url: RedisUrl;
  readonly #alive: string;
  readonly #commands: Redis;
  readonly #subscriber: Redis;
  /** Redis' clock less this process', in milliseconds; at most that, since an answer takes its time. */
  #offset: number | undefined;
  #isSelected = false;
  /** What went wrong since Redis last answered. */
  #problem: string | undefined;

  constructor(url: RedisUrl, prefix: string, channel: string) {
    this.#url = url;
    this.#alive = `${prefix}alive:`;
    const options = {
      host: url.host,
      port: url.port,
      db: url.database,
      ...(url.username && { username: url.username }),
      ...(url.password && { password: url.password }),
      ...(url.isTls && { tls: { servername: url.host } }),
      protocol: 2 as const,
      disableClientInfo: true,
      // What could not be said at once is not said at all.
      enableOfflineQueue: false,
      autoResendUnfulfilledCommands: false,
      maxRetriesPerRequest: 0,
      commandTimeout: COMMAND_TIMEOUT_MS,
      connectTimeout: CONNECT_TIMEOUT_MS,
      retryStrategy: () => RETRY_MS,
      // A primary that became a replica: its name may lead to another one by now.
      reconnectOnError: ({ message }: Error) => message.startsWith('READONLY'),
    };
    this.#commands = new Redis({ ...options, connectionName: 'amesh-relay' });
    this.#subscriber = new Redis({ ...options, connectionName: 'amesh-relay-sub' });
    for (const [name, lua] of sources) this.#commands.defineCommand(name, { lua });
    for (const connection of [this.#commands, this.#subscriber]) {
      connection.on('error', (error: Error) => this.onLost(this.#clean(error)));
      connection.on('close', () => {
        this.#isSelected = false;
        this.onLost(this.#clean(new Error('Connection is closed.')));
      });
    }
    this.#commands.on('ready', () => this.#ready());
    this.#subscriber.on('message', (_channel: string, text: string) => this.onMessage(text));
    this.#subscriber.on('ready', () => {
      this.#subscriber
        .subscribe(channel)
        .then(() => this.#ready())
        .catch((error: unknown) => this.onLost(this.#clean(error)));
    });
  }

  #ready(): void {
    if (this.#commands.status === 'ready' && this.#subscriber.status === 'ready') this.onReady();
  }

  async run(script: Script, keys: string[], values: (string | number)[]): Promise<unknown> {
    const run = (this.#commands as unknown as Record<Script, Run>)[script];
    const deadline =
      this.#offset === undefined
        ? Number.MAX_SAFE_INTEGER
        : Math.floor(performance.now() + this.#offset + COMMAND_TIMEOUT_MS);
    try {
      // The library goes on with database 0 where there is no such database.
      if (!this.#isSelected) await this.#commands.select(this.#url.database);
      this.#isSelected = true;
      const answer = await run.call(
        this.#commands,
        keys.length,
        ...keys,
        this.#alive,
        TIMELESS.has(script) ? Number.MAX_SAFE_INTEGER : deadline,
        ...values,
      );
      if (script !== 'beat') return answer;
      const [isKnown, now, ...dead] = answer as [number, number, ...string[]];
      this.#offset = now - performance.now();
      this.#problem = undefined;
      return [isKnown, ...dead];
    } catch (error) {
      throw this.#clean(error);
    }
  }

  async publish(channel: string, text: string): Promise<number> {
    try {
      return await this.#commands.publish(channel, text);
    } catch (error) {
      throw this.#clean(error);
    }
  }

  reconnect(): void {
    this.#commands.disconnect(true);
    this.#subscriber.disconnect(true);
  }

  close(): void {
    this.#commands.disconnect();
    this.#subscriber.disconnect();
  }

  /** What went wrong in one line, without anything that we said to Redis: it quotes commands that it refuses. */
  #clean(error: unknown): Error {
    const { message } = error as Error;
    const [line = ''] = message.split(/\n|, with args/);
    // These say only that it went wrong before.
    if (this.#problem && /^(?:Connection is closed|Stream isn't|Command timed out)/.test(line)) {
      return new Error(this.#problem);
    }
    this.#problem = [this.#url.password, this.#url.username]
      .filter((secret) => secret !== '')
      .reduce((text, secret) => text.replaceAll(secret, '***'), line)
      // What looks like a pairing code is none of ours to repeat.
      .replaceAll(/\d{6,}/g, '…')
      .slice(0, 200);
    return new Error(this.#problem);
  }
}

/**
 * Makes a relay one of many.
 * @throws {RedisError} When Redis does not answer as it must within 5 s.
 */
export async function joinCluster(
  config: Config,
  sockets: Sockets,
  log: Log,
  now: Clock,
): Promise<{ leave: () => Promise<void> }> {
  const id = Buffer.from(crypto.getRandomValues(new Uint8Array(9))).toString('base64url');
  const url = config.redisUrl as RedisUrl;
  const bus = new RedisBus(url, config.redisPrefix, `${config.redisPrefix}to:${id}`);
  const cluster = new Cluster({ id, config, sockets, bus, log, now });
  const up = Promise.withResolvers<boolean>();
  cluster.onUp = () => up.resolve(true);
  const timer = setInterval(() => void cluster.beat(), BEAT_MS);
  const deadline = setTimeout(() => up.resolve(false), START_WAIT_MS);
  const leave = async (): Promise<void> => {
    clearInterval(timer);
    await cluster.resign();
    bus.close();
  };
  log.info('waiting for Redis', { redis: url, atMostMs: START_WAIT_MS });
  const isUp = await up.promise;
  clearTimeout(deadline);
  if (!isUp) {
    await leave();
    throw new RedisError(`REDIS_URL: ${url.toString()} can’t be used: ${cluster.lastProblem}`);
  }
  sockets.join(cluster);
  return { leave };
}
