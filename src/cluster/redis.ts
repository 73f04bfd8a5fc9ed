/** The connection to Redis, which runs scripts and receives the messages of other instances. */
import { Redis as Client } from 'ioredis';
import type { RedisUrl } from './redis-url.ts';
import { type Script, sources } from './scripts.ts';

/** How long a command may take, in milliseconds; then Redis counts as out of reach. */
const COMMAND_TIMEOUT_MS = 1000;
/** How long Redis may leave a command unanswered, in milliseconds, until the connection is opened anew. */
export const SILENCE_MS = 3000;
const CONNECT_TIMEOUT_MS = 2000;
const RETRY_MS = 250;

/** In the place of an instance's id: the message goes to every instance. */
export const ALL = 'all';

/** What the cluster needs of Redis, so that the simulation of the tests can stand in for it. */
export type Redis = Pick<RedisConnection, 'run' | 'onReady' | 'onMessage' | 'onLost'>;

/** Errors of the library that only follow from an earlier one. */
const FOLLOWS = /^(?:Connection is closed|Stream isn't|Command timed out|Socket timeout)/;

export class RedisConnection {
  /** The connection is open, for the first time or again. */
  onReady: () => void = () => {};
  onMessage: (text: string) => void = () => {};
  /** Redis is out of reach, or refuses to work, with the reason in one line. Messages sent meanwhile may be lost. */
  onLost: (reason: string) => void = () => {};
  readonly #client: Client;
  /** It is in its database, and has its subscriptions. */
  #isOpen = false;
  /** Redis' clock minus this process', in milliseconds: a guess until the first beat. */
  #clockOffset = performance.timeOrigin;
  /** What Redis, or the way to it, last complained of, until a command works again. */
  #complaint: string | undefined;

  /**
   * @param prefix What the name of every key and inbox begins with.
   * @param id This instance, whose inbox is listened to.
   */
  constructor(
    private readonly url: RedisUrl,
    private readonly prefix: string,
    private readonly id: string,
  ) {
    this.#client = new Client(url.href, {
      keyPrefix: prefix,
      connectionName: 'amesh-relay',
      disableClientInfo: true,
      scripts: sources,
      // With this version of the protocol a connection can have subscriptions and run commands.
      protocol: 3,
      autoResubscribe: false,
      // A command that could not be sent at once is not sent at all.
      enableOfflineQueue: false,
      autoResendUnfulfilledCommands: false,
      maxRetriesPerRequest: 0,
      commandTimeout: COMMAND_TIMEOUT_MS,
      socketTimeout: SILENCE_MS,
      connectTimeout: CONNECT_TIMEOUT_MS,
      retryStrategy: () => RETRY_MS,
      // The primary became a replica. Its name may lead to the new primary by now.
      reconnectOnError: ({ message }) => message.startsWith('READONLY'),
    });
    this.#client.on('message', (_channel: string, text: string) => this.onMessage(text));
    this.#client.on('ready', () => void this.#begin());
    this.#client.on('error', (error: Error) => this.#lost(error));
    this.#client.on('close', () => {
      this.#isOpen = false;
      this.#lost(new Error('Connection is closed.'));
    });
  }

  async #begin(): Promise<void> {
    try {
      // Without it the library goes on with version 2, and fails at the first command after the subscription.
      await this.#client.hello(3);
      // The library goes on with database 0 where the one asked for does not exist.
      await this.#client.select(this.url.database);
      const inbox = `${this.prefix}inbox:`;
      await this.#client.subscribe(inbox + this.id, inbox + ALL);
      this.#isOpen = true;
      this.onReady();
    } catch (error) {
      this.#lost(error as Error);
      this.#client.disconnect(true);
    }
  }

  /** Runs a script. Rejects if no answer came in time; Redis does not run it later either. */
  async run(script: Script, keys: string[], values: (string | number)[]): Promise<unknown> {
    // A beat needs no deadline, since it changes nothing. It returns the time of Redis.
    const deadline =
      script === 'beat'
        ? Number.MAX_SAFE_INTEGER
        : Math.floor(performance.now() + this.#clockOffset + COMMAND_TIMEOUT_MS);
    const scripts = this.#client as unknown as Record<Script, (...args: unknown[]) => unknown>;
    try {
      if (!this.#isOpen) throw new Error('Connection is closed.');
      const answer = await scripts[script](keys.length, ...keys, deadline, this.prefix, ...values);
      // Redis read its clock before the answer came, so the offset is a little small, and a deadline a little early.
      if (script === 'beat') this.#clockOffset = (answer as number[])[0]! - performance.now();
      this.#complaint = undefined;
      return answer;
    } catch (error) {
      throw this.#lost(error as Error);
    }
  }

  /** What Redis says of its memory. */
  async memory(): Promise<string> {
    return this.#client.info('memory');
  }

  close(): void {
    this.onLost = () => {};
    this.#client.disconnect();
  }

  /** Reports a failure, with the last error of Redis itself if there was one. */
  #lost({ message }: Error): Error {
    const [line = ''] = message.split(/\n|, with args/);
    if (!this.#complaint || !FOLLOWS.test(line)) {
      // Redis quotes what it refuses. What looks like a pairing code is not repeated.
      this.#complaint = this.url
        .redact(line)
        .replaceAll(/\d{6,}/g, '…')
        .slice(0, 200);
    }
    this.onLost(this.#complaint);
    return new Error(this.#complaint);
  }
}
