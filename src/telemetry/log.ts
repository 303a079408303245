import { pino } from 'pino';
import { prettyFactory } from 'pino-pretty';
import { isWaybillError } from '../core/errors.js';
import { createRedactor, type Secrets } from './redact.js';
import { escaped, printableJson } from './visible.js';

/** Facts of a log line. `err` may hold an error; bodies of messages never belong here. */
type LogFields = Readonly<Record<string, unknown>>;

/** What every room logs through: facts first, then one plain sentence. */
export interface Logger {
  debug(fields: LogFields, message: string): void;
  info(fields: LogFields, message: string): void;
  warn(fields: LogFields, message: string): void;
  error(fields: LogFields, message: string): void;
}

/** A logger whose least level can be changed while it is used. */
export interface AdjustableLogger extends Logger {
  setLevel(level: LogLevel): void;
}

export type LogLevel = 'debug' | 'info' | 'warn' | 'error';

export interface LogOptions {
  level: LogLevel;
  format: 'auto' | 'json' | 'pretty';
  /** Texts that must never be written; without it, all that the process knows. */
  secrets?: Secrets;
  /** Takes one whole line with its line end. The only way out. */
  write: (line: string) => void;
  isTerminal: boolean;
}

/** The one log sink: JSON lines, or readable ones for a terminal; secrets are taken out by value before they leave. */
export function createLogger({ level, format, secrets, write, isTerminal }: LogOptions): AdjustableLogger {
  const redact = createRedactor(secrets);
  const pretty = format === 'pretty' || (format === 'auto' && isTerminal);
  const readable = prettyFactory({ colorize: isTerminal, ignore: 'pid,hostname', translateTime: 'SYS:HH:MM:ss.l' });
  const show = pretty ? (line: string) => readable(printableJson(line)) : escaped;
  const sink = { write: (line: string) => write(show(redact(line))) };
  const out = pino(
    {
      level,
      base: null,
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
      serializers: { err: describeError },
    },
    sink,
  );
  return {
    debug: (fields, message) => out.debug(fields, message),
    info: (fields, message) => out.info(fields, message),
    warn: (fields, message) => out.warn(fields, message),
    error: (fields, message) => out.error(fields, message),
    setLevel: (least) => (out.level = least),
  };
}

/** A logger that writes nothing. */
export const silentLogger: AdjustableLogger = {
  debug: nothing,
  info: nothing,
  warn: nothing,
  error: nothing,
  setLevel: nothing,
};

interface DescribedError {
  name?: string;
  code?: string;
  message: string;
  hint?: string;
  stack?: string;
  cause?: DescribedError;
}

/**
 * What is logged of an error: name, code, message, hint and the same of its causes. Why not more: PostgreSQL's `detail`
 * and `where` quote rows. The stack is kept only of errors that nobody expected.
 */
function describeError(error: unknown, depth = 0): DescribedError {
  if (!(error instanceof Error))
    return { message: typeof error === 'string' ? error : `not an error: ${typeof error}` };
  const code: unknown = 'code' in error ? error.code : undefined;
  const known = isWaybillError(error);
  return {
    name: error.name,
    ...(typeof code === 'string' || typeof code === 'number' ? { code: String(code) } : {}),
    message: error.message,
    ...(known && error.hint !== undefined ? { hint: error.hint } : {}),
    ...(!known && depth === 0 && error.stack !== undefined ? { stack: error.stack } : {}),
    ...(error.cause !== undefined && depth < 4 ? { cause: describeError(error.cause, depth + 1) } : {}),
  };
}

function nothing(): void {
  return undefined;
}
