/** One line an event on stdout: JSON, or for a person at a terminal plain words. */

export const LOG_LEVELS = ['debug', 'info', 'warn', 'error', 'silent'] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];
export type Fields = Record<string, unknown>;

export type Log = Record<Exclude<LogLevel, 'silent'>, (message: string, fields?: Fields) => void>;

export interface LogSink {
  isTTY?: boolean;
  write(line: string): unknown;
}

// process.stdout, without what loading it costs a start (several milliseconds) where nobody could read colours either.
const stdout: LogSink = {
  get isTTY() {
    return Bun.enableANSIColors && process.stdout.isTTY;
  },
  write: (line) => console.log(line.slice(0, -1)),
};

/**
 * @param level Events below it are dropped; `silent` drops all.
 * @param sink Where the lines go. Default: stdout.
 */
export function createLog(level: LogLevel, sink: LogSink = stdout): Log {
  const format = sink.isTTY ? humanLine : jsonLine;
  const at = (name: Exclude<LogLevel, 'silent'>) => {
    if (LOG_LEVELS.indexOf(name) < LOG_LEVELS.indexOf(level)) return () => {};
    return (message: string, fields: Fields = {}) => {
      sink.write(format(name, message, fields));
    };
  };
  return { debug: at('debug'), info: at('info'), warn: at('warn'), error: at('error') };
}

function jsonLine(level: string, msg: string, fields: Fields): string {
  return `${JSON.stringify({ time: new Date().toISOString(), level, msg, ...fields })}\n`;
}

function humanLine(level: string, message: string, fields: Fields): string {
  const time = new Date().toTimeString().slice(0, 8);
  const rest = Object.entries(fields).map(
    ([name, value]) => `  ${name}=${typeof value === 'string' ? value : JSON.stringify(value)}`,
  );
  return `${time} ${level.padEnd(5)} ${message}${rest.join('')}\n`;
}
