/**
 * Every setting once: its name as an option and in the environment, its default, and what it accepts. Times are seconds
 * in the environment and milliseconds (`…Ms`) as options. Without zod, which takes as long to load as all the rest.
 */
import { parseProxyRule, PROXY_RULE_FORMS } from './admission/client-address.ts';
import { LOG_LEVELS, type LogLevel } from './observe/log.ts';
import { RedisUrl } from './cluster/redis-url.ts';

export interface Setting {
  env: string;
  /** What an option that is left out counts as. */
  default: unknown;
  /** What the relay then works with, where that is something else. */
  inForce?: unknown;
  /** What the relay works with, from an option's value; undefined where it is not accepted. */
  take: (value: unknown) => unknown;
  /** Turns the environment's text into an option's value; what it can't turn, `take` refuses. */
  fromText: (text: string) => unknown;
  /** What is accepted, as an error says it: after "expected". */
  accepts: string;
  /** The same of an option, where that differs from the environment. */
  optionAccepts?: string;
  /** One line for the help and the README. */
  help: string;
  /** The default as a person would write it into the environment. */
  shownDefault: string;
  /** The least and the most of a number in the environment. */
  range?: string;
  /** Set where a value must not be repeated, not even to whom it came from. */
  isSecret?: true;
}

/** A value that a setting does not accept. The message names the setting, what came and what is accepted. */
export class ConfigError extends Error {
  override name = 'ConfigError';
  /** For programs that tell errors apart. */
  readonly code = 'ERR_RELAY_CONFIG';
}

const within =
  (min: number, max: number) =>
  (value: unknown): number | undefined =>
    Number.isInteger(value) && (value as number) >= min && (value as number) <= max
      ? (value as number)
      : undefined;

const wholeNumber = (text: string): unknown => (/^\d{1,15}$/.test(text) ? Number(text) : text);

function integer(env: string, normal: number, min: number, max: number, help: string) {
  return {
    env,
    default: normal,
    take: within(min, max),
    fromText: wholeNumber,
    accepts: `a whole number from ${min} to ${max}`,
    help,
    shownDefault: String(normal),
    range: `${min} to ${max}`,
  } satisfies Setting;
}

/** `min` and `max` are seconds; the option is in milliseconds. */
function seconds(env: string, normal: number, min: number, max: number, help: string) {
  return {
    env,
    default: normal * 1000,
    take: within(min * 1000, max * 1000),
    fromText: (text) => {
      const value = wholeNumber(text);
      return typeof value === 'number' ? value * 1000 : value;
    },
    accepts: `whole seconds from ${min} to ${max}`,
    optionAccepts: `whole milliseconds from ${min * 1000} to ${max * 1000}`,
    help: `${help} Seconds.`,
    shownDefault: String(normal),
    range: `${min} to ${max}`,
  } satisfies Setting;
}

const YES = ['1', 'true', 'yes'];
const NO = ['0', 'false', 'no'];

function flag(env: string, normal: boolean, help: string) {
  return {
    env,
    default: normal,
    take: (value: unknown) => (typeof value === 'boolean' ? value : undefined),
    fromText: (text) =>
      YES.includes(text.toLowerCase()) ? true : NO.includes(text.toLowerCase()) ? false : text,
    accepts: `${YES.join(', ')} or ${NO.join(', ')}`,
    optionAccepts: 'true or false',
    help,
    shownDefault: normal ? '1' : '0',
  } satisfies Setting;
}

function file(env: string, help: string) {
  return {
    env,
    default: undefined as string | undefined,
    take: (value: unknown) => (typeof value === 'string' && value ? value : undefined),
    fromText: (text) => text,
    accepts: 'the path of a file',
    help,
    shownDefault: '',
  } satisfies Setting;
}

const IPV4 = /^(?:(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)(?:\.(?!$)|$)){4}$/;

/** As `node:net` has it, which costs a start several milliseconds; a URL can hold any IPv6 address, and knows which are. */
function isIP(host: string): boolean {
  if (!host.includes(':')) return IPV4.test(host);
  return /^[\da-f:.]+$/i.test(host) && URL.canParse(`http://[${host}]`);
}

const LABEL = /^(?!-)[a-z0-9_-]{1,63}(?<!-)$/i;

/** A name that a host could have: a last label of digits alone is a mistyped address. */
function isName(host: string): boolean {
  const labels = host.split('.');
  return (
    host.length <= 253 &&
    labels.every((label) => LABEL.test(label)) &&
    !/^\d+$/.test(labels.at(-1) as string)
  );
}

/** An address, but for a zone, which Bun does not take, or a name. */
const host = (value: unknown): string | undefined =>
  typeof value === 'string' && (isIP(value) || isName(value)) ? value : undefined;

/** The host as another program on this machine can reach it. */
export function connectable(host: string): string {
  if (host === '0.0.0.0') return '127.0.0.1';
  if (host === '::') return '[::1]';
  return host.includes(':') ? `[${host}]` : host;
}

export const settings = {
  /** TCP port to listen on; 0 takes a free one. Default 3001. */
  port: integer('PORT', 3001, 0, 65_535, 'TCP port to listen on; 0 takes a free one.'),

  /** Address or host name to listen on. Default 0.0.0.0, every IPv4 interface; `::` takes IPv6 too. */
  host: {
    env: 'HOST',
    default: '0.0.0.0',
    take: host,
    fromText: (text) => text,
    accepts: 'an IP address or a host name of this machine',
    help: 'Address to listen on; :: takes IPv6 too.',
    shownDefault: '0.0.0.0',
  } satisfies Setting,

  /** File with the certificate chain in PEM, the server's own first; with `tlsKeyFile`. Default: no TLS. */
  tlsCertFile: file('TLS_CERT_FILE', 'PEM file of the certificate chain, for TLS without a proxy.'),

  /** File with the certificate's private key in PEM, without a passphrase; with `tlsCertFile`. Default: no TLS. */
  tlsKeyFile: file('TLS_KEY_FILE', 'PEM file of its private key; both or neither.'),

  /** Which address counts as the client's: see the README. Default: the TCP peer's, proxy headers ignored. */
  trustProxy: {
    env: 'AMESH_TRUST_PROXY',
    default: '0' as string | boolean,
    inForce: { by: 'peer' },
    take: (value: unknown) =>
      typeof value === 'string' || typeof value === 'boolean'
        ? parseProxyRule(String(value))
        : undefined,
    fromText: (text) => text,
    accepts: PROXY_RULE_FORMS,
    help: 'Where a client’s address comes from: `0`, `1`, `hops:N` or `header:NAME`.',
    shownDefault: '0',
  } satisfies Setting,

  /** How long each stage of a session (waiting, paired) may last, in milliseconds: 5,000 to 300,000. Default 30,000. */
  sessionTtlMs: seconds(
    'AMESH_SESSION_TTL',
    30,
    5,
    300,
    'How long a code waits, and how long a pairing may take then.',
  ),

  /** How long a drain waits for pairings under way, in milliseconds. Default 60,000: two stages of a session. */
  drainMs: seconds(
    'AMESH_DRAIN_SECONDS',
    60,
    0,
    3600,
    'How long a drain waits for pairings under way.',
  ),

  /** How long a socket may hold no session, watch or unanswered init, in milliseconds. Default 30,000. */
  idleMs: seconds(
    'AMESH_IDLE_SECONDS',
    30,
    1,
    3600,
    'How long a socket may do nothing (close code 4002).',
  ),

  /** Failed `listen` and `connect` attempts that a client has in any 60 s. Default 5. */
  maxFailedCodes: integer(
    'AMESH_MAX_FAILED_CODES',
    5,
    1,
    1000,
    'Failed code attempts per client in any 60 s.',
  ),

  /** Accepted `listen`s of a client in a minute. Default 60. */
  maxListens: integer(
    'AMESH_MAX_LISTENS',
    60,
    1,
    1_000_000,
    'Accepted `listen` per client and minute.',
  ),

  /** Failed attempts on one code, from all clients, in any 60 s, until it is burned. Default 5. */
  maxFailedPerCode: integer(
    'AMESH_MAX_FAILED_PER_CODE',
    5,
    1,
    1000,
    'Failed attempts on one code in any 60 s, from all clients together.',
  ),

  /** `bootstrap_watch` frames that a client has in any 60 s. Default 10. */
  maxWatches: integer(
    'AMESH_MAX_WATCHES',
    10,
    1,
    10_000,
    '`bootstrap_watch` per client in any 60 s.',
  ),

  /** Refused `bootstrap_init` frames that a client has in any 60 s. Default 10. */
  maxRefusedInits: integer(
    'AMESH_MAX_REFUSED_INITS',
    10,
    1,
    10_000,
    'Refused `bootstrap_init` per client in any 60 s.',
  ),

  /** Sockets open at once (close code 1013). Default 10,000. */
  maxConnections: integer('AMESH_MAX_CONNECTIONS', 10_000, 1, 1_000_000, 'Sockets open at once.'),

  /** Sockets open at once for one client (close code 1013). Default 256. */
  maxConnectionsPerClient: integer(
    'AMESH_MAX_CONNECTIONS_PER_CLIENT',
    256,
    1,
    1_000_000,
    'Sockets open at once for one client.',
  ),

  /** Sessions held at once (`relay_capacity`). Default 50,000. */
  maxSessions: integer('AMESH_MAX_SESSIONS', 50_000, 1, 1_000_000, 'Sessions held at once.'),

  /** Token ids remembered as used, for 25 hours each (`relay_overloaded`). Default 1,000,000. */
  maxBurnt: integer(
    'AMESH_MAX_BURNT',
    1_000_000,
    1,
    10_000_000,
    'Used token ids remembered, for 25 hours each.',
  ),

  /** Malformed frames until a socket is closed with 1008. Default 10. */
  maxMalformed: integer(
    'AMESH_MAX_MALFORMED',
    10,
    1,
    1000,
    'Malformed frames until a socket is closed.',
  ),

  /** Frames other than forwarded data that a socket may send in 10 s (close code 1008). Default 1,000. */
  maxControlFrames: integer(
    'AMESH_MAX_CONTROL_FRAMES',
    1000,
    10,
    1_000_000,
    'Frames of a socket in 10 s, forwarded data aside.',
  ),

  /** Bytes of one frame (close code 1009). Default 65,536. */
  maxFrameBytes: integer('AMESH_MAX_FRAME_BYTES', 65_536, 1024, 16_777_216, 'Bytes of one frame.'),

  /** Payload bytes that a session may carry, both directions together (close code 4003). Default 5 MiB. */
  maxSessionBytes: integer(
    'AMESH_MAX_SESSION_BYTES',
    5_242_880,
    1024,
    1_073_741_824,
    'Payload bytes a session may carry, both directions together.',
  ),

  /** Payload bytes that a client may forward each second, after one session's worth at once (4003). Default 1 MiB. */
  maxBytesPerSecond: integer(
    'AMESH_MAX_BYTES_PER_SECOND',
    1_048_576,
    1024,
    1_073_741_824,
    'Payload bytes a client may forward each second, after one session’s worth at once.',
  ),

  /** Frames that a session may carry, both directions together (close code 4003). Default 50,000. */
  maxSessionFrames: integer(
    'AMESH_MAX_SESSION_FRAMES',
    50_000,
    100,
    1_000_000_000,
    'Frames a session may carry, both directions together.',
  ),

  /** Bytes that may wait for a socket that does not read (close code 4004). Default 1 MiB. */
  maxBacklogBytes: integer(
    'AMESH_MAX_BACKLOG_BYTES',
    1_048_576,
    1024,
    1_073_741_824,
    'Bytes that may wait for a socket that does not read.',
  ),

  /** Redis or Valkey through which instances act as one relay: see docs/scaling.md. Default: one instance. */
  redisUrl: {
    env: 'REDIS_URL',
    default: undefined as string | undefined,
    take: (value: unknown) => (typeof value === 'string' ? RedisUrl.parse(value) : undefined),
    fromText: (text: string) => text,
    accepts: 'redis://[user:password@]host[:port][/database], or rediss:// for TLS',
    help: 'Redis or Valkey that instances share: [docs/scaling.md](docs/scaling.md).',
    shownDefault: '',
    isSecret: true,
  } satisfies Setting,

  /** What the name of every key and channel in Redis begins with. Default `amesh:`. */
  redisPrefix: {
    env: 'AMESH_REDIS_PREFIX',
    default: 'amesh:',
    take: (value: unknown) =>
      typeof value === 'string' && /^[\w:.{}/-]{1,64}$/.test(value) ? value : undefined,
    fromText: (text) => text,
    accepts: '1 to 64 letters, digits or : . _ - / { }',
    help: 'What every name in Redis begins with.',
    shownDefault: 'amesh:',
  } satisfies Setting,

  /** `debug`, `info`, `warn`, `error` or `silent`. Default `info`. */
  logLevel: {
    env: 'LOG_LEVEL',
    default: 'info' as LogLevel,
    take: (value: unknown) => LOG_LEVELS.find((level) => level === value),
    fromText: (text) => text.toLowerCase(),
    accepts: LOG_LEVELS.join(', '),
    help: '`debug`, `info`, `warn`, `error` or `silent`.',
    shownDefault: 'info',
  } satisfies Setting,

  /** Whether the log names clients' addresses. Default false. */
  logClients: flag(
    'AMESH_LOG_CLIENTS',
    false,
    '`1` logs each client’s address and what it was refused.',
  ),

  /** Whether `GET /` answers, a browser with a page and anyone else with JSON. Default true. */
  page: flag('AMESH_PAGE', true, '`0` turns the page at `/` off.'),

  /** Port for Prometheus at `/metrics`; 0 takes a free one. Default: no metrics. */
  metricsPort: {
    env: 'METRICS_PORT',
    default: undefined as number | undefined,
    take: within(0, 65_535),
    fromText: wholeNumber,
    accepts: 'a whole number from 0 to 65535, or nothing for no metrics',
    help: 'Port for Prometheus (`/metrics`).',
    shownDefault: '',
  } satisfies Setting,

  /** Address for Prometheus. Default: `host`. */
  metricsHost: {
    env: 'METRICS_HOST',
    default: undefined as string | undefined,
    take: host,
    fromText: (text) => text,
    accepts: 'an IP address or a host name of this machine',
    help: 'Address for Prometheus; unset, `HOST`.',
    shownDefault: '',
  } satisfies Setting,
};

type Settings = typeof settings;
export type SettingName = keyof Settings;

/** What {@link createRelayServer} takes; whatever is left out has its default. */
export type RelayOptions = { [K in SettingName]?: Settings[K]['default'] };

/** Every setting with its value in force. */
export type Config = Readonly<{
  [K in SettingName]:
    | NonNullable<ReturnType<Settings[K]['take']>>
    | (undefined extends Settings[K]['default'] ? undefined : never);
}>;

/**
 * Checks options and fills in the defaults.
 * @throws {ConfigError} For a value that is not accepted, or an option that does not exist.
 */
export function readOptions(options: RelayOptions): Config {
  for (const name of Object.keys(options)) {
    if (!Object.hasOwn(settings, name)) {
      throw new ConfigError(
        `${name}: there is no such option; expected one of ${Object.keys(settings).join(', ')}`,
      );
    }
  }
  return read((name) => ({ label: name, value: options[name] }));
}

/**
 * Reads the environment; `overrides` (from the command line) come first, as text, with the flag as their label.
 * An empty value counts as none.
 * @throws {ConfigError} For a value that is not accepted.
 */
export function readEnvironment(
  environment: Record<string, string | undefined>,
  overrides: Partial<Record<SettingName, { label: string; text: string }>> = {},
): Config {
  return read((name) => {
    const { env, fromText } = settings[name];
    const label = overrides[name]?.label ?? env;
    const text = overrides[name]?.text ?? (environment[env]?.trim() || undefined);
    return { label, value: text === undefined ? undefined : fromText(text), text };
  });
}

/** Names that look like the relay's and are not: misspelt, most likely. The amesh command line has some of its own. */
export function unknownSettings(environment: Record<string, string | undefined>): string[] {
  const names = Object.keys(environment).filter((name) => name.startsWith('AMESH_'));
  if (names.length === 0) return names;
  const known = new Set(Object.values(settings).map(({ env }) => env));
  const clients = ['AMESH_RELAY_URL', 'AMESH_BOOTSTRAP_TOKEN'];
  return names.filter((name) => !known.has(name) && !clients.includes(name));
}

function read(
  get: (name: SettingName) => { label: string; value: unknown; text?: string | undefined },
): Config {
  const config: Record<string, unknown> = {};
  for (const name of Object.keys(settings) as SettingName[]) {
    const setting: Setting = settings[name];
    const { label, value, text } = get(name);
    // A default needs no look: a start has enough to do.
    const taken = value === undefined ? (setting.inForce ?? setting.default) : setting.take(value);
    if (value !== undefined && taken === undefined) {
      const got = setting.isSecret ? 'not accepted' : `got ${JSON.stringify(text ?? value)}`;
      const accepts = (text === undefined && setting.optionAccepts) || setting.accepts;
      throw new ConfigError(`${label}: ${got}, expected ${accepts}`);
    }
    config[name] = taken;
  }
  for (const [one, other] of [
    ['tlsCertFile', 'tlsKeyFile'],
    ['tlsKeyFile', 'tlsCertFile'],
  ] as const) {
    if (config[one] !== undefined && config[other] === undefined) {
      throw new ConfigError(
        `${get(other).label}: not set, but ${get(one).label} is; expected both or neither`,
      );
    }
  }
  const { port, metricsPort, host, metricsHost = host } = config as Config;
  if (metricsPort === port && metricsHost === host && port !== 0) {
    throw new ConfigError(
      `${get('metricsPort').label}: got ${port}, expected another port than ${get('port').label} has`,
    );
  }
  return Object.freeze(config) as Config;
}
