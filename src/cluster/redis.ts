/** The two connections to Redis: one for scripts, one that hears what other instances say. */
import { Redis as Client } from 'ioredis';
import type { RedisUrl } from './redis-url.ts';
import { type Script, sources, TIMELESS } from './scripts.ts';

/** How long a command may take, in milliseconds; then Redis counts as out of reach. */
const COMMAND_TIMEOUT_MS = 1000;
const CONNECT_TIMEOUT_MS = 2000;
const RETRY_MS = 250;

/** What the cluster needs of Redis, so that the simulation of the tests can stand in for it. */
export interface Redis {
  /** Runs a script. Rejects where no answer came in time; Redis does not run it later either. */
  run(script: Script, keys: string[], values: (string | number)[]): Promise<unknown>;
  /** Resolves when the connection that hears messages has answered. */
  ping(): Promise<unknown>;
  /** Opens both connections anew. */
  reconnect(): void;
  close(): void;
  /** Both connections are open, for the first time or again. */
  onReady: () => void;
  onMessage: (text: string) => void;
  /** Redis is out of reach, or refuses to work, with the reason in one line. What was said meanwhile may be lost. */
  onLost: (reason: string) => void;
}

/** Messages of the library that say only that something went wrong before. */
const FOLLOWS = /^(?:Connection is closed|Stream isn't|Command timed out)/;

export class RedisConnections implements Redis {
  onReady: () => void = () => {};
  onMessage: (text: string) => void = () => {};
  onLost: (reason: string) => void = () => {};
  readonly #commands: Client;
  readonly #subscriber: Client;
  /** Redis' clock minus this process', in milliseconds, known from the last beat. */
  #clockOffset: number | undefined;
  #isSelected = false;
  /** What Redis, or the way to it, last complained of, until a command works again. */
  #complaint: string | undefined;

  /**
   * @param inboxes What the name of every instance's inbox begins with.
   * @param id This instance, whose inbox is listened to.
   */
  constructor(
    private readonly url: RedisUrl,
    private readonly inboxes: string,
    id: string,
  ) {
    const options = {
      host: url.host,
      port: url.port,
      db: url.database,
      ...(url.username && { username: url.username }),
      ...(url.password && { password: url.password }),
      ...(url.tls && { tls: url.tls }),
      protocol: 2 as const,
      disableClientInfo: true,
      // A command that could not be sent at once is not sent at all.
      enableOfflineQueue: false,
      autoResendUnfulfilledCommands: false,
      maxRetriesPerRequest: 0,
      commandTimeout: COMMAND_TIMEOUT_MS,
      connectTimeout: CONNECT_TIMEOUT_MS,
      retryStrategy: () => RETRY_MS,
      // A primary that became a replica: its name may lead to another one by now.
      reconnectOnError: ({ message }: Error) => message.startsWith('READONLY'),
    };
    this.#commands = new Client({ ...options, connectionName: 'amesh-relay' });
    this.#subscriber = new Client({ ...options, connectionName: 'amesh-relay-inbox' });
    for (const [name, lua] of sources) this.#commands.defineCommand(name, { lua });
    for (const connection of [this.#commands, this.#subscriber]) {
      connection.on('error', (error: Error) => this.#lost(error));
      connection.on('close', () => {
        this.#isSelected = false;
        this.#lost(new Error('Connection is closed.'));
      });
    }
    this.#commands.on('ready', () => this.#opened());
    this.#subscriber.on('message', (_channel: string, text: string) => this.onMessage(text));
    this.#subscriber.on('ready', () => {
      this.#subscriber.subscribe(inboxes + id).then(
        () => this.#opened(),
        (error: Error) => this.#lost(error),
      );
    });
  }

  #opened(): void {
    if (this.#commands.status === 'ready' && this.#subscriber.status === 'ready') this.onReady();
  }

  async run(script: Script, keys: string[], values: (string | number)[]): Promise<unknown> {
    const isTimeless = TIMELESS.has(script) || this.#clockOffset === undefined;
    const deadline = isTimeless
      ? Number.MAX_SAFE_INTEGER
      : Math.floor(performance.now() + (this.#clockOffset as number) + COMMAND_TIMEOUT_MS);
    const command = (this.#commands as unknown as Record<Script, (...args: unknown[]) => unknown>)[
      script
    ];
    try {
      // The library goes on with database 0 where the one asked for does not exist.
      if (!this.#isSelected) await this.#commands.select(this.url.database);
      this.#isSelected = true;
      const args = [keys.length, ...keys, deadline, this.inboxes, ...values];
      const answer = await command.apply(this.#commands, args);
      // The answer took its time, so the true offset is a little more, and a deadline a little early.
      if (script === 'beat') this.#clockOffset = (answer as number[])[0]! - performance.now();
      this.#complaint = undefined;
      return answer;
    } catch (error) {
      throw this.#lost(error as Error);
    }
  }

  async ping(): Promise<void> {
    try {
      await this.#subscriber.ping();
    } catch (error) {
      throw this.#lost(error as Error);
    }
  }

  /** Redis' limit of memory in bytes, 0 for none, and what it does at the limit. */
  async memory(): Promise<{ limit: number; policy: string }> {
    const info = await this.#commands.info('memory');
    const field = (name: string): string =>
      new RegExp(`^${name}:(.*)\\r?$`, 'm').exec(info)?.[1] ?? '';
    return { limit: Number(field('maxmemory')), policy: field('maxmemory_policy').trim() };
  }

  reconnect(): void {
    this.#commands.disconnect(true);
    this.#subscriber.disconnect(true);
  }

  close(): void {
    this.#commands.disconnect();
    this.#subscriber.disconnect();
  }

  /** Tells that something went wrong, with what Redis itself said of it where it said anything. */
  #lost({ message }: Error): Error {
    const [line = ''] = message.split(/\n|, with args/);
    if (!this.#complaint || !FOLLOWS.test(line)) {
      const secrets = [this.url.password, this.url.username].filter((secret) => secret !== '');
      this.#complaint = secrets
        .reduce((said, secret) => said.replaceAll(secret, '***'), line)
        // Redis quotes what it refuses. What looks like a pairing code is not repeated.
        .replaceAll(/\d{6,}/g, '…')
        .slice(0, 200);
    }
    this.onLost(this.#complaint);
    return new Error(this.#complaint);
  }
}
