/** The log: one line for each event, on stdout. JSON for machines, plain words at a terminal. */

export const LOG_LEVELS = ['debug', 'info', 'warn', 'error', 'silent'] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];
type EventLevel = Exclude<LogLevel, 'silent'>;
type Fields = Record<string, unknown>;

export type Log = Record<EventLevel, (message: string, fields?: Fields) => void>;

/** Takes the events of a log. */
export type LogFunction = (level: EventLevel, message: string, fields: Fields) => void;

/**
 * @param level Events below it are dropped; `silent` drops all.
 * @param take Where the events go. Default: stdout.
 */
export function createLog(level: LogLevel, take: LogFunction = standardOutput()): Log {
  const at = (name: EventLevel) => {
    if (LOG_LEVELS.indexOf(name) < LOG_LEVELS.indexOf(level)) return () => {};
    return (message: string, fields: Fields = {}) => take(name, message, fields);
  };
  return { debug: at('debug'), info: at('info'), warn: at('warn'), error: at('error') };
}

/** Whether a person reads stdout. `node:fs` costs a start ten milliseconds, so it is used only if that is likely. */
export const isTerminal = (): boolean =>
  (Bun.enableANSIColors || Boolean(process.env.NO_COLOR)) &&
  process.getBuiltinModule('node:fs').fstatSync(1).isCharacterDevice();

/**
 * Writes events to stdout. A reader that is slow or gone neither stalls the relay nor ends it: lines that it does not
 * take are dropped, and their number is logged later. (`process.stdout` blocks, and takes half of a start to load.)
 */
function standardOutput(): LogFunction {
  const format = isTerminal() ? humanLine : jsonLine;
  const writer = Bun.stdout.writer();
  let isTaken = true;
  let dropped = 0;
  const write = (line: string): void => {
    try {
      void writer.write(line);
      const flushed = writer.flush();
      if (!(flushed instanceof Promise)) return;
      isTaken = false;
      const go = (): void => {
        isTaken = true;
      };
      flushed.then(go, go);
    } catch {
      dropped += 1;
    }
  };
  return (level, message, fields) => {
    if (!isTaken) {
      dropped += 1;
      return;
    }
    if (dropped > 0) write(format('warn', 'log lines were dropped', { lines: dropped }));
    dropped = 0;
    write(format(level, message, fields));
  };
}

export function jsonLine(level: EventLevel, msg: string, fields: Fields): string {
  return `${JSON.stringify({ time: new Date().toISOString(), level, msg, ...fields })}\n`;
}

const COLOURS = { debug: '2', info: '', warn: '33', error: '31' } satisfies Record<
  EventLevel,
  string
>;

/** What people are shown of these events. The rest only says the same again, for machines. */
const FOR_PEOPLE: Record<string, string[]> = { listening: ['websocket', 'families', 'version'] };

/** A line for people: the time, the level if it is not `info`, the message and its fields; in colour if wanted. */
export function humanLine(
  level: EventLevel,
  message: string,
  fields: Fields,
  inColour: boolean = Bun.enableANSIColors,
): string {
  const paint = (code: string, text: string): string =>
    inColour && code && text ? `\u001b[${code}m${text}\u001b[0m` : text;
  const time = new Date().toTimeString().slice(0, 8);
  const told = Object.entries(fields)
    .filter(([name, value]) => value !== undefined && (FOR_PEOPLE[message]?.includes(name) ?? true))
    .map(([name, value]) => `  ${name}=${inWords(value)}`);
  const label = level === 'info' ? '' : `${level}: `;
  return `${paint('2', time)} ${paint(COLOURS[level], label + message)}${paint('2', told.join(''))}\n`;
}

function inWords(value: unknown): string {
  if (typeof value === 'string') return value;
  const isList = Array.isArray(value) && value.every((entry) => typeof entry === 'string');
  return isList ? value.join(' and ') : JSON.stringify(value);
}
