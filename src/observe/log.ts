/** One line an event on stdout: JSON, or for a person at a terminal plain words. */

export const LOG_LEVELS = ['debug', 'info', 'warn', 'error', 'silent'] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];
type Fields = Record<string, unknown>;

export type Log = Record<Exclude<LogLevel, 'silent'>, (message: string, fields?: Fields) => void>;

interface LogSink {
  isTTY: boolean;
  write(line: string): void;
}

/**
 * Stdout for a process that lives long: a reader that is slow or gone neither stalls the relay nor ends it. What it
 * does not take is dropped, and counted. Not `process.stdout`, which blocks, and takes half of a start to load.
 */
function standardOutput(): LogSink {
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
  return {
    // node:fs costs a start ten milliseconds: it is asked only where there may be a terminal.
    isTTY:
      Bun.enableANSIColors && process.getBuiltinModule('node:fs').fstatSync(1).isCharacterDevice(),
    write(line) {
      if (!isTaken) {
        dropped += 1;
        return;
      }
      if (dropped > 0) write(jsonLine('warn', 'log lines were dropped', { lines: dropped }));
      dropped = 0;
      write(line);
    },
  };
}

/**
 * @param level Events below it are dropped; `silent` drops all.
 * @param sink Where the lines go. Default: stdout.
 */
export function createLog(level: LogLevel, sink: LogSink = standardOutput()): Log {
  const format = sink.isTTY ? humanLine : jsonLine;
  const at = (name: Exclude<LogLevel, 'silent'>) => {
    if (LOG_LEVELS.indexOf(name) < LOG_LEVELS.indexOf(level)) return () => {};
    return (message: string, fields: Fields = {}) => sink.write(format(name, message, fields));
  };
  return { debug: at('debug'), info: at('info'), warn: at('warn'), error: at('error') };
}

function jsonLine(level: string, msg: string, fields: Fields): string {
  return `${JSON.stringify({ time: new Date().toISOString(), level, msg, ...fields })}\n`;
}

function humanLine(level: string, message: string, fields: Fields): string {
  const time = new Date().toTimeString().slice(0, 8);
  const rest = Object.entries(fields)
    .filter(([, value]) => value !== undefined)
    .map(
      ([name, value]) => `  ${name}=${typeof value === 'string' ? value : JSON.stringify(value)}`,
    );
  return `${time} ${level.padEnd(5)} ${message}${rest.join('')}\n`;
}
