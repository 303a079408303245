import { sqlState } from './queryable.js';

interface Delay {
  /** Not before so many milliseconds; without it the schedule of the consumer holds. */
  retryInMs?: number | undefined;
  cause?: unknown;
}

/** Thrown by a handler: what the message needs is not there yet. Spends no attempt; bounded by the consumer's `notYetFor`. */
export class NotYet extends Error {
  override readonly name = 'NotYet';
  readonly retryInMs: number | undefined;

  constructor(message: string, { retryInMs, cause }: Delay = {}) {
    super(message, cause === undefined ? undefined : { cause });
    this.retryInMs = retryInMs;
  }
}

/** Thrown by a handler: this message can never be applied. It is dead at once. */
export class Never extends Error {
  override readonly name = 'Never';
}

/** Thrown by a handler: try again, after a delay of its own. Any other error means the same by the consumer's schedule. */
export class TryAgain extends Error {
  override readonly name = 'TryAgain';
  readonly retryInMs: number | undefined;

  constructor(message: string, { retryInMs, cause }: Delay = {}) {
    super(message, cause === undefined ? undefined : { cause });
    this.retryInMs = retryInMs;
  }
}

/** What is written of an attempt that did not succeed. `release` spends nothing: not the message failed. */
export interface Settlement {
  verdict: 'retry' | 'not-yet' | 'never' | 'release';
  error: string;
  retryInMs: number | undefined;
}

/** After an outage; the consumer's schedule is for messages. */
const OUTAGE_DELAY_MS = 1_000;
const MAX_ERROR_CHARACTERS = 2_000;
const LEASE_LOST = 'WB003';
const NOT_YET = 'WB001';
const NEVER = 'WB002';

/** The claim is another's by now, so there is nothing to settle. */
export function isLeaseLost(error: unknown): boolean {
  return sqlState(error) === LEASE_LOST;
}

/** Transactions that met each other: the same again may succeed at once, and neither is at fault. */
export function isConflict(error: unknown): boolean {
  return ['40P01', '40001'].includes(sqlState(error) ?? '');
}

/** The server cannot work for anybody: out of something, shutting down, no longer the primary. */
function isOutage(error: unknown): boolean {
  return /^(08|53|57P|25006|58)/.test(sqlState(error) ?? '');
}

/** What an error of a handler says of its message, where the connection of the transaction is still there. */
export function settlementOf(error: unknown): Settlement {
  const text = textOf(error);
  const retryInMs = error instanceof NotYet || error instanceof TryAgain ? error.retryInMs : undefined;
  const state = sqlState(error);
  if (error instanceof NotYet || state === NOT_YET) return { verdict: 'not-yet', error: text, retryInMs };
  if (error instanceof Never || state === NEVER) return { verdict: 'never', error: text, retryInMs: undefined };
  if (isOutage(error)) return released(text);
  return { verdict: 'retry', error: text, retryInMs };
}

/** The message goes back as it came, a moment later. */
export function released(error: string, retryInMs = OUTAGE_DELAY_MS): Settlement {
  return { verdict: 'release', error, retryInMs };
}

/** PostgreSQL keeps no NUL; the stack stays with the application. */
export function textOf(error: unknown): string {
  const text = error instanceof Error ? `${error.name}: ${error.message}` : String(error);
  return Buffer.from(text.slice(0, MAX_ERROR_CHARACTERS)).toString().replaceAll('\0', ' ');
}
