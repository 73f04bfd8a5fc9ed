/** The cluster's Redis: its scripts, its two connections, and the beat. Loaded only where REDIS_URL is set. */
import { Redis } from 'ioredis';
import type { Bus, Script } from './bus.ts';
import { BEAT_MS, Cluster } from './cluster.ts';
import type { Config } from './config.ts';
import type { Log } from './log.ts';
import { RedisError, type RedisUrl } from './redis-url.ts';
import type { Clock, Sockets } from './socket.ts';
import { WINDOW_MS } from './limits.ts';

/** How long a start waits for Redis, in milliseconds. */
const START_WAIT_MS = 5000;
/** How long a command may take, in milliseconds; then Redis counts as out of reach. */
const COMMAND_TIMEOUT_MS = 1000;
const CONNECT_TIMEOUT_MS = 2000;
const RETRY_MS = 250;

// Names are built in two scripts, so Redis Cluster is not for these; a primary with replicas is.
const PRELUDE = `
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- Its sender has given up by now, and must not be surprised by what it did.
if now > tonumber(ARGV[2]) then return 'late' end
local function spent(key, max)
  return redis.call('LLEN', key) >= tonumber(max)
    and now - redis.call('LINDEX', key, -tonumber(max)) < ${WINDOW_MS}
end
local function count(key, max)
  if redis.call('RPUSH', key, now) > tonumber(max) then redis.call('LPOP', key) end
  redis.call('PEXPIRE', key, ${WINDOW_MS})
end
local function failed(client, maxClient, code, maxCode)
  count(client, maxClient)
  if spent(code, maxCode) then return 'burned' end
  count(code, maxCode)
  return 'counted'
end
-- A claim whose owner is dead is none.
local function held(key)
  local claim = redis.call('GET', key)
  if claim and redis.call('EXISTS', ARGV[1] .. string.match(claim, '^[^.]+')) == 1 then return claim end
end
`;

// ARGV[1] and ARGV[2] are the prelude's.
const SCRIPTS: Record<Script, string> = {
  claimCode: `
    local claim, ttl, maxClient, maxCode = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
    if spent(KEYS[1], maxClient) then return 'rate_limited' end
    if spent(KEYS[2], maxCode) or held(KEYS[3]) then
      failed(KEYS[1], maxClient, KEYS[2], maxCode)
      return 'otc_in_use'
    end
    redis.call('SET', KEYS[3], claim, 'PX', ttl)
    return 'ok'`,
  findCode: `
    local maxClient, maxCode = ARGV[3], ARGV[4]
    if spent(KEYS[1], maxClient) then return 'rate_limited' end
    local claim = held(KEYS[3])
    if claim then return claim end
    failed(KEYS[1], maxClient, KEYS[2], maxCode)
    return 'otc_not_found'`,
  fail: `return failed(KEYS[1], ARGV[3], KEYS[2], ARGV[4])`,
  claimWatch: `
    local claim, ttl, max, own = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
    if spent(KEYS[1], max) then return 'rate_limited' end
    count(KEYS[1], max)
    local other = held(KEYS[2])
    if other and other ~= own then return 'jti_already_watched' end
    redis.call('SET', KEYS[2], claim, 'PX', ttl)
    return 'ok'`,
  init: `
    local me, ttl, max, isFull = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
    local function refuse(why) count(KEYS[1], max) return why end
    if spent(KEYS[1], max) then return 'rate_limited' end
    if redis.call('EXISTS', KEYS[2]) == 1 then return refuse('token_already_used') end
    local claim = held(KEYS[3])
    if not claim then return refuse('no_watcher') end
    if string.match(claim, '^[^.]+') == me then
      if isFull == '1' then return refuse('relay_overloaded') end
      redis.call('SET', KEYS[2], '', 'PX', ttl)
    end
    return claim`,
  hold: `
    local claim, ttl = ARGV[3], ARGV[4]
    local other = held(KEYS[1])
    if other and other ~= claim then return 0 end
    redis.call('SET', KEYS[1], claim, 'PX', ttl)
    return 1`,
  release: `if redis.call('GET', KEYS[1]) == ARGV[3] then redis.call('DEL', KEYS[1]) end return 1`,
  beat: `
    local ttl, channel, beat = ARGV[3], ARGV[4], ARGV[5]
    local answer = { redis.call('EXISTS', KEYS[1]), now }
    redis.call('SET', KEYS[1], '', 'PX', ttl)
    redis.call('PUBLISH', channel, beat)
    for i = 6, #ARGV do
      if redis.call('EXISTS', ARGV[1] .. ARGV[i]) == 0 then table.insert(answer, ARGV[i]) end
    end
    return answer`,
  resign: `redis.call('DEL', KEYS[1]) return 1`,
};

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
    for (const [name, body] of Object.entries(SCRIPTS)) {
      this.#commands.defineCommand(name, { lua: PRELUDE + body });
    }
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
        script === 'beat' || script === 'release' || script === 'resign'
          ? Number.MAX_SAFE_INTEGER
          : deadline,
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
  sockets.cluster = cluster;
  return { leave };
}
