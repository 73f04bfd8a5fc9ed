/** The log: one line for each event, on stdout. JSON for machines, plain text at a terminal. */

export const LOG_LEVELS = ['debug', 'info', 'warn', 'error', 'silent'] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];
type EventLevel = Exclude<LogLevel, 'silent'>;
type Fields = Record<string, unknown>;

export type Log = Record<EventLevel, (message: string, fields?: Fields) => void>;

/** Receives the events of a log. */
export type LogFunction = (level: EventLevel, message: string, fields: Fields) => void;

/**
 * @param level Events below this level are dropped; `silent` drops all.
 * @param write Receives the other events. Default: writes them to stdout.
 */
export function createLog(level: LogLevel, write: LogFunction = standardOutput()): Log {
  const at = (name: EventLevel) => {
    if (LOG_LEVELS.indexOf(name) < LOG_LEVELS.indexOf(level)) return () => {};
    return (message: string, fields: Fields = {}) => write(name, message, fields);
  };
  return { debug: at('debug'), info: at('info'), warn: at('warn'), error: at('error') };
}

/** Whether stdout is a terminal. `node:fs` takes ten milliseconds to load, so it is used only if that is likely. */
export const isTerminal = (): boolean =>
  (Bun.enableANSIColors || Boolean(process.env.NO_COLOR)) &&
  process.getBuiltinModule('node:fs').fstatSync(1).isCharacterDevice();

/**
 * Writes events to stdout. If the reader of stdout is slow or gone, the relay neither blocks nor ends: lines are
 * dropped, and their number is logged later. (`process.stdout` would block, and loading it takes half of a start.)
 */
function standardOutput(): LogFunction {
  const format = isTerminal() ? humanLine : jsonLine;
  const writer = Bun.stdout.writer();
  let isFlushed = true;
  let dropped = 0;
  const write = (line: string): void => {
    try {
      void writer.write(line);
      const flushed = writer.flush();
      if (!(flushed instanceof Promise)) return;
      isFlushed = false;
      void Promise.allSettled([flushed]).then(() => (isFlushed = true));
    } catch {
      dropped += 1;
    }
  };
  return (level, message, fields) => {
    if (!isFlushed) {
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

const COLOURS: Record<EventLevel, string> = { debug: '2', info: '', warn: '33', error: '31' };

/** The only fields of these events that are shown at a terminal. Their other fields repeat the same for machines. */
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
  const shown = Object.entries(fields)
    .filter(([name, value]) => value !== undefined && (FOR_PEOPLE[message]?.includes(name) ?? true))
    .map(([name, value]) => `  ${name}=${inWords(value)}`);
  const label = level === 'info' ? '' : `${level}: `;
  return `${paint('2', time)} ${paint(COLOURS[level], label + message)}${paint('2', shown.join(''))}\n`;
}

function inWords(value: unknown): string {
  if (typeof value === 'string') return value;
  return Array.isArray(value) ? value.join(' and ') : JSON.stringify(value);
}
