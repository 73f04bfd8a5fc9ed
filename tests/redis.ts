/** A real redis-server for a test, and the instances that share it. */
import type { RelayOptions } from '../src/config.ts';
import { afterThisTest, freePort, TestRelay, until } from './support.ts';

/** Where redis-server is; tests that need it are skipped without, and say so. */
export const redisServer = Bun.which('redis-server');
if (!redisServer) {
  console.warn('SKIPPED: no redis-server on the path, so nothing about many instances is tested');
}

export class TestRedis {
  readonly port: number;
  readonly #args: string[];
  #child: Bun.Subprocess | undefined;

  constructor(port: number, args: string[]) {
    this.port = port;
    this.#args = args;
  }

  get url(): string {
    return `redis://127.0.0.1:${this.port}`;
  }

  async start(): Promise<void> {
    const base = [
      '--port',
      `${this.port}`,
      '--save',
      '',
      '--appendonly',
      'no',
      '--bind',
      '127.0.0.1',
    ];
    const child = Bun.spawn([redisServer as string, ...base, ...this.#args], { stdout: 'pipe' });
    this.#child = child;
    let said = '';
    for await (const chunk of child.stdout) {
      said += new TextDecoder().decode(chunk);
      if (said.includes('Ready to accept connections')) return;
    }
    throw new Error(`redis-server did not start: ${said}`);
  }

  signal(signal: 'SIGSTOP' | 'SIGCONT'): void {
    this.#child?.kill(signal);
  }

  async kill(): Promise<void> {
    this.#child?.kill('SIGCONT');
    this.#child?.kill('SIGKILL');
    await this.#child?.exited;
    this.#child = undefined;
  }

  /** Runs a command, as an operator would. */
  async command(...command: string[]): Promise<string> {
    const cli = Bun.spawn(['redis-cli', '-p', `${this.port}`, ...command], { stdout: 'pipe' });
    return (await new Response(cli.stdout).text()).trim();
  }
}

/** A redis-server that ends with the test. */
export async function startRedis(args: string[] = []): Promise<TestRedis> {
  const redis = new TestRedis(freePort(), args);
  await redis.start();
  afterThisTest(() => redis.kill());
  return redis;
}

/** Instances that share a Redis, and stop with the test. */
export async function startInstances(
  redis: TestRedis,
  count: number,
  options: RelayOptions = {},
): Promise<TestRelay[]> {
  return Promise.all(
    Array.from({ length: count }, async () => {
      const relay = new TestRelay({ redisUrl: redis.url, ...options });
      ({ port: relay.port } = await relay.server.start());
      afterThisTest(() => relay.server.stop());
      return relay;
    }),
  );
}

/** Until every instance is in reach of Redis, or none is. */
export async function untilReach(relays: TestRelay[], isUp: boolean): Promise<void> {
  await until(
    () => relays.every(({ sockets }) => sockets.cluster?.isUp === isUp),
    isUp ? 'Redis is in reach' : 'Redis is out of reach',
  );
}
