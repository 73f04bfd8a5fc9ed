/**
 * Every setting of the relay, in one schema. Its types, defaults, ranges, error messages, `--help` and the tables in
 * docs/settings.md and the README are all made from it. Times are seconds in the environment, and milliseconds as
 * options (`…Ms`).
 */
// The small build of zod. With the normal one, the schema below would take half of the relay's start time.
import * as z from 'zod/mini';
import { AccessToken, TOKEN_FORM } from './admission/access-token.ts';
import {
  AddressRanges,
  parseProxyRule,
  PROXY_RULE_FORMS,
  RANGES_FORM,
} from './admission/client-address.ts';
import { ORIGIN_FORM, parseAllowed } from './admission/origins.ts';
import { REDIS_URL_FORM, RedisUrl } from './cluster/redis-url.ts';
import { LOG_LEVELS } from './observe/log.ts';

/** Facts about a setting that its schema does not contain. */
interface About {
  /** One line for the help and the tables, with Markdown; links are written for the root of the repository. */
  help: string;
  /** What is accepted, for error messages: "expected …". */
  accepts: string;
  /** The same for an option, if it differs from the environment variable. */
  optionAccepts?: string;
  /** The default as written in the environment, if there is one. */
  shownDefault?: string;
  /** The least and the most in the environment, for numbers. */
  range?: string;
  /** Converts the text of the environment into the option's value. Default: the text itself. */
  fromText?: (text: string) => unknown;
  /** Set if the value must never be printed, not even in an error message to the user who set it. */
  isSecret?: true;
}

const about = z.registry<About>();

const KIB = 1024;
const MIB = 1024 * KIB;
const GIB = 1024 * MIB;

/** A number; NaN, which the schema refuses, if the text is none. */
const wholeNumber = (text: string): number => (/^\d{1,15}$/.test(text) ? Number(text) : NaN);

/** A whole number in a range. With `z.int()` and two checks, thirty of these would add a millisecond to the start. */
const whole = (min: number, max: number) =>
  z.custom<number>(
    (value) => Number.isInteger(value) && Number(value) >= min && Number(value) <= max,
  );

function integer(normal: number, min: number, max: number, help: string) {
  return z._default(whole(min, max), normal).register(about, {
    help,
    accepts: `a whole number from ${min} to ${max}`,
    shownDefault: String(normal),
    range: `${min} to ${max}`,
    fromText: wholeNumber,
  });
}

/** All numbers here are seconds; the option is in milliseconds. */
function seconds(normal: number, min: number, max: number, help: string) {
  return z._default(whole(min * 1000, max * 1000), normal * 1000).register(about, {
    help: `${help} Seconds.`,
    accepts: `whole seconds from ${min} to ${max}`,
    optionAccepts: `whole milliseconds from ${min * 1000} to ${max * 1000}`,
    shownDefault: String(normal),
    range: `${min} to ${max}`,
    fromText: (text) => wholeNumber(text) * 1000,
  });
}

/** A boolean; or the text itself if it is not one, which the schema then refuses. */
const fromFlag = (text: string): unknown =>
  /^(?:1|true|yes)$/i.test(text) ? true : /^(?:0|false|no)$/i.test(text) ? false : text;

/** A schema for what `make` makes of a value. It throws if it does not accept the value; users get the message. */
function made<In extends z.ZodMiniType, Out>(from: In, make: (value: z.output<In>) => Out) {
  const transform = z.transform((value: z.output<In>, { issues }): Out => {
    try {
      return make(value);
    } catch (error) {
      issues.push({ code: 'custom', params: { says: (error as Error).message }, input: value });
      return z.NEVER;
    }
  });
  return z.pipe(from, transform);
}

function file(help: string) {
  return z
    .optional(z.string().check(z.minLength(1)))
    .register(about, { help, accepts: 'the path of a file' });
}

/** Splits a list with commas or blanks into an array, which is the form of a list as an option. */
const entries = (text: string): string[] => text.split(/[\s,]+/).filter(Boolean);

/** Zod's own patterns. A schema for each and their union would take 2 % longer to start. */
const { hostname, ipv4, ipv6 } = z.core.regexes;
const ENDS_IN_NUMBER = /(?:^|\.)\d+\.?$/;

/** A name, or an address without a zone, which Bun does not accept. A name must not end in a number, like `10.1`. */
const isHost = (text: string): boolean =>
  ipv4.test(text) || ipv6.test(text) || (hostname.test(text) && !ENDS_IN_NUMBER.test(text));
const host = z.string().check(z.refine(isHost));
const HOST_FORMS = 'an IP address or a host name of this machine';

const schema = z.strictObject({
  port: integer(3001, 0, 65_535, 'TCP port to listen on; 0 takes a free one.'),
  host: z._default(host, '0.0.0.0').register(about, {
    help: 'Address to listen on; :: takes IPv6 too.',
    accepts: HOST_FORMS,
    shownDefault: '0.0.0.0',
  }),
  tlsCertFile: file('PEM file of the certificate chain, for TLS without a proxy.'),
  tlsKeyFile: file('PEM file of its private key; both or neither.'),
  trustProxy: made(z._default(z.union([z.string(), z.boolean()]), '0'), (value) =>
    parseProxyRule(String(value)),
  ).register(about, {
    help: 'Where a client’s address comes from: `0`, `1`, `hops:N` or `header:NAME`.',
    accepts: PROXY_RULE_FORMS,
    shownDefault: '0',
  }),
  trustedProxies: z
    .optional(made(z.array(z.string()).check(z.minLength(1)), (list) => new AddressRanges(list)))
    .register(about, {
      help: 'The only proxies whose headers count: addresses and ranges. Unset: all.',
      accepts: RANGES_FORM,
      optionAccepts: 'an array of addresses and ranges, such as ["10.0.0.0/8", "2001:db8::1"]',
      fromText: entries,
    }),
  accessToken: z.optional(made(z.string(), (text) => new AccessToken(text))).register(about, {
    help: 'Makes the relay [private](docs/private-relay.md): whoever uses it must bring this token.',
    accepts: TOKEN_FORM,
    isSecret: true,
  }),
  accessTokensFile: file('The same with a file of tokens, one a line.'),
  allowedOrigins: made(z._default(z.array(z.string()), []), (list) =>
    list.map(parseAllowed),
  ).register(about, {
    help: 'Origins of other web pages that may use the relay, or `*`.',
    accepts: ORIGIN_FORM,
    optionAccepts: 'an array of origins, such as ["https://app.example.com"], or ["*"]',
    fromText: entries,
  }),
  sessionTtlMs: seconds(
    30,
    5,
    300,
    'How long a code waits, and then a pairing for its next frame.',
  ),
  drainMs: seconds(60, 0, 3600, 'How long a drain waits for pairings under way.'),
  idleMs: seconds(30, 1, 3600, 'How long a socket may do nothing (close code 4002).'),
  maxFailedCodes: integer(5, 1, 1000, 'Failed code attempts per client in any 60 s.'),
  maxListens: integer(60, 1, 1_000_000, 'Accepted `listen` per client and minute.'),
  maxFailedPerCode: integer(5, 1, 1000, 'Failed attempts on one code in any 60 s, by all clients.'),
  maxWatches: integer(10, 1, 10_000, '`bootstrap_watch` per client in any 60 s.'),
  maxRefusedInits: integer(10, 1, 10_000, 'Refused `bootstrap_init` per client in any 60 s.'),
  maxConnections: integer(10_000, 1, 1_000_000, 'Sockets open at once.'),
  maxConnectionsPerClient: integer(256, 1, 1_000_000, 'Sockets open at once for one client.'),
  maxSessions: integer(50_000, 1, 1_000_000, 'Sessions held at once.'),
  maxBurnt: integer(1_000_000, 1, 10_000_000, 'Used token ids remembered, for 25 hours each.'),
  maxMalformed: integer(10, 1, 1000, 'Malformed frames until a socket is closed.'),
  maxControlFrames: integer(1000, 10, 1_000_000, 'Frames of a socket in 10 s, except data.'),
  maxFrameBytes: integer(64 * KIB, KIB, 16 * MIB, 'Bytes of one frame.'),
  maxSessionBytes: integer(5 * MIB, KIB, GIB, 'Payload bytes of a session, both ways together.'),
  maxBytesPerSecond: integer(
    MIB,
    KIB,
    GIB,
    'Payload bytes of a client each second, after one session’s worth at once.',
  ),
  maxSessionFrames: integer(50_000, 100, 1e9, 'Frames of a session, both ways together.'),
  maxBacklogBytes: integer(MIB, KIB, GIB, 'Bytes that may wait for a socket that does not read.'),
  redisUrl: z.optional(made(z.string(), (text) => new RedisUrl(text))).register(about, {
    help: 'Redis or Valkey that instances share: [docs/scaling.md](docs/scaling.md).',
    accepts: REDIS_URL_FORM,
    isSecret: true,
  }),
  redisUrlFile: file('A file with that URL, which may hold a password.'),
  redisPrefix: z
    ._default(z.string().check(z.regex(/^[\w:.{}/-]{1,64}$/)), 'amesh:')
    .register(about, {
      help: 'What every name in Redis begins with.',
      accepts: '1 to 64 letters, digits or : . _ - / { }',
      shownDefault: 'amesh:',
    }),
  logLevel: z._default(z.enum(LOG_LEVELS), 'info').register(about, {
    help: '`debug`, `info`, `warn`, `error` or `silent`.',
    accepts: LOG_LEVELS.join(', '),
    shownDefault: 'info',
    fromText: (text) => text.toLowerCase(),
  }),
  logClients: z._default(z.union([z.boolean(), z.literal('pseudonym')]), false).register(about, {
    help: '`1` logs each client’s address and what it was refused; `pseudonym` a name that changes daily.',
    accepts: '1, true, yes or 0, false, no or pseudonym',
    optionAccepts: 'true, false or "pseudonym"',
    shownDefault: '0',
    fromText: (text) => (/^pseudonym$/i.test(text) ? 'pseudonym' : fromFlag(text)),
  }),
  page: z._default(z.boolean(), true).register(about, {
    help: '`0` turns the page at `/` off.',
    accepts: '1, true, yes or 0, false, no',
    optionAccepts: 'true or false',
    shownDefault: '1',
    fromText: fromFlag,
  }),
  metricsPort: z.optional(whole(0, 65_535)).register(about, {
    help: 'Port for Prometheus (`/metrics`).',
    accepts: 'a whole number from 0 to 65535, or nothing for no metrics',
    fromText: wholeNumber,
  }),
  metricsHost: z.optional(host).register(about, {
    help: 'Address for Prometheus; unset, `HOST`.',
    accepts: HOST_FORMS,
  }),
});

export type SettingName = keyof typeof schema.shape;

/** What {@link createRelayServer} takes. docs/settings.md says what each option is, and its default. */
export type RelayOptions = z.input<typeof schema>;

/** The value of every setting. */
export type Config = Readonly<z.output<typeof schema>>;

/** What the help, the tables and the error messages say about a setting. */
export interface Setting extends About {
  /** Its environment variable. */
  env: string;
  /** Empty if there is no default. */
  shownDefault: string;
}

/** Settings whose environment variables have common names. All other variables begin with `AMESH_`. */
const COMMON_NAMES = /^(?:port|host|tls\w+|redisUrl\w*|logLevel|metrics\w+)$/;

function environmentName(option: string): string {
  if (option === 'sessionTtlMs') return 'AMESH_SESSION_TTL';
  const name = option.replace(/Ms$/, 'Seconds').replaceAll(/[A-Z]/g, '_$&').toUpperCase();
  return COMMON_NAMES.test(option) ? name : `AMESH_${name}`;
}

const names = Object.keys(schema.shape) as SettingName[];

/** What is said about each setting, by the name of its option. */
export const settings = Object.fromEntries(
  names.map((name) => [
    name,
    { env: environmentName(name), shownDefault: '', ...about.get(schema.shape[name]) },
  ]),
) as Record<SettingName, Setting>;

/** A value that a setting does not accept. The message names the setting, the value and what is accepted. */
export class ConfigError extends Error {
  override name = 'ConfigError';
  /** For programs that tell errors apart. */
  readonly code = 'ERR_RELAY_CONFIG';
}

/** A setting as the user wrote it. */
interface Given {
  /** The name of the environment variable, the flag or the option. */
  label: string;
  /** What it was set to; undefined if it is not set. */
  text?: string | undefined;
}

/** The variables of an environment, as `process.env` has them. */
type Environment = Record<string, string | undefined>;

/** Flags of the command line, by the name of the option. */
export type Flags = Partial<Record<SettingName, Given>>;

/**
 * Reads `--port` and `--host`.
 * @throws {TypeError} From `parseArgs`, for any other argument.
 */
export async function readFlags(args: string[]): Promise<Flags> {
  if (args.length === 0) return {};
  // It takes a while to load, so a start without flags does without it.
  const { parseArgs } = await import('node:util');
  const { values } = parseArgs({
    args,
    options: { port: { type: 'string', short: 'p' }, host: { type: 'string', short: 'H' } },
  });
  const flags = Object.entries(values).map(([name, text]) => [name, { label: `--${name}`, text }]);
  return Object.fromEntries(flags) as Flags;
}

/**
 * Checks options and fills in the defaults.
 * @throws {ConfigError} For a value that is not accepted, or an option that does not exist.
 */
export function readOptions(options: RelayOptions): Config {
  return check(options, (name) => ({ label: name }));
}

/**
 * Reads the flags and the environment; flags win. An empty value counts as not set.
 * @throws {ConfigError} For a value that is not accepted.
 */
export function readEnvironment(environment: Environment, flags: Flags = {}): Config {
  const given = (name: SettingName) => givenValue(name, environment, flags);
  const options = names.flatMap((name) => {
    const { text } = given(name);
    const { fromText } = settings[name];
    return text === undefined ? [] : [[name, fromText ? fromText(text) : text]];
  });
  return check(Object.fromEntries(options) as RelayOptions, given);
}

/** The settings that differ from their defaults, as the user wrote them: `{ '--port': '80' }`. Secrets are hidden. */
export function changedSettings(
  environment: Environment,
  flags: Flags = {},
): Record<string, string> {
  const changed: Record<string, string> = {};
  for (const name of names) {
    const { label, text } = givenValue(name, environment, flags);
    const { shownDefault, isSecret } = settings[name];
    if (text === undefined || text === shownDefault) continue;
    const withoutSecret = name === 'redisUrl' ? String(new RedisUrl(text)) : '(secret)';
    changed[label] = isSecret ? withoutSecret : text;
  }
  return changed;
}

/** Environment variables that look like settings of the relay but are not: most likely misspelt. */
export function unknownSettings(environment: Environment): string[] {
  const known = new Set(names.map((name) => settings[name].env));
  // These belong to the amesh command line.
  known.add('AMESH_RELAY_URL').add('AMESH_BOOTSTRAP_TOKEN');
  return Object.keys(environment).filter((name) => name.startsWith('AMESH_') && !known.has(name));
}

/** The host for a URL with which a program on this machine reaches the relay. `::` accepts IPv4 even without IPv6. */
export function connectable(host: string): string {
  if (host === '0.0.0.0' || host === '::') return '127.0.0.1';
  return host.includes(':') ? `[${host}]` : host;
}

function givenValue(name: SettingName, environment: Environment, flags: Flags): Given {
  const { env } = settings[name];
  return flags[name] ?? { label: env, text: environment[env]?.trim() || undefined };
}

/** @throws {ConfigError} For settings that do not fit together. */
function checkTogether(config: Config, labelOf: (name: SettingName) => string): void {
  const refuse = (name: SettingName, says: string): never => {
    throw new ConfigError(`${labelOf(name)}: ${says}`);
  };
  const { tlsCertFile, tlsKeyFile, port, metricsPort, host, metricsHost = host } = config;
  const { maxFrameBytes, maxBacklogBytes } = config;
  if (tlsCertFile !== undefined && tlsKeyFile === undefined) {
    refuse('tlsKeyFile', `not set, but ${labelOf('tlsCertFile')} is; expected both or neither`);
  }
  if (tlsKeyFile !== undefined && tlsCertFile === undefined) {
    refuse('tlsCertFile', `not set, but ${labelOf('tlsKeyFile')} is; expected both or neither`);
  }
  if (config.redisUrl && config.redisUrlFile !== undefined) {
    refuse('redisUrlFile', `set, and ${labelOf('redisUrl')} too; expected one of them`);
  }
  if (config.trustedProxies && config.trustProxy.by === 'peer') {
    refuse(
      'trustedProxies',
      `set, but ${labelOf('trustProxy')} is not, so their headers would be ignored; expected both or neither`,
    );
  }
  if (metricsPort === port && metricsHost === host && port !== 0) {
    refuse('metricsPort', `got ${port}, expected another port than ${labelOf('port')} has`);
  }
  if (maxFrameBytes > maxBacklogBytes) {
    refuse(
      'maxFrameBytes',
      `${maxFrameBytes} is more than ${labelOf('maxBacklogBytes')} (${maxBacklogBytes}), so such a frame could never be delivered; raise the second, or lower the first`,
    );
  }
}

function check(options: RelayOptions, given: (name: SettingName) => Given): Config {
  const { success, data, error } = schema.safeParse(options, { jitless: true });
  if (success) {
    checkTogether(data, (name) => given(name).label);
    return Object.freeze(data);
  }
  const [issue] = error.issues as [z.core.$ZodIssue];
  if (issue.code === 'unrecognized_keys') {
    throw new ConfigError(
      `${issue.keys[0]}: there is no such option; expected one of ${names.join(', ')}`,
    );
  }
  const name = issue.path[0] as SettingName;
  const { label, text } = given(name);
  // What reads the value may have its own message.
  const says = issue.code === 'custom' ? (issue.params?.says as string | undefined) : undefined;
  if (says !== undefined) throw new ConfigError(`${label}: ${says}`);
  const { isSecret, accepts, optionAccepts = accepts } = settings[name];
  const got = isSecret ? 'not accepted' : `got ${JSON.stringify(text ?? options[name])}`;
  throw new ConfigError(
    `${label}: ${got}, expected ${text === undefined ? optionAccepts : accepts}`,
  );
}
