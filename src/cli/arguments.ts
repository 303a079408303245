import { InvalidArgumentError } from 'commander';
import type { Moment } from '../app/outbox-admin.js';
import { parseDuration } from '../config/quantities.js';
import { printable } from './text.js';

/** The id of a message. */
export function messageId(raw: string): string {
  if (/^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(raw)) return raw.toLowerCase();
  throw new InvalidArgumentError(`"${printable(raw.slice(0, 60))}" is not the id of a message (a UUID).`);
}

/** One more id of a message. */
export function messageIds(raw: string, before: readonly string[] = []): string[] {
  return [...before, messageId(raw)];
}

/** `2h` (so long ago), or a date such as 2026-01-31, 2026-01-31T12:00 (both UTC) or 2026-01-31T12:00+01:00. */
export function moment(raw: string): Moment {
  if (/^\d{4}-\d\d-\d\d/.test(raw)) {
    const text = raw.trim().replace(' ', 'T');
    const zoned = /T.*(Z|[+-]\d\d:?\d\d)$/.test(text);
    const at = new Date(zoned ? text : `${text}${text.includes('T') ? 'Z' : ''}`);
    if (Number.isFinite(at.getTime())) return { at };
    throw new InvalidArgumentError('It is no date: write 2026-01-31 or 2026-01-31T12:00:00Z.');
  }
  const parsed = parseDuration(raw);
  if ('value' in parsed) return { agoMs: parsed.value };
  throw new InvalidArgumentError(`It ${parsed.problem}: ${parsed.mend}; or give a date, 2026-01-31T12:00Z.`);
}

/** `2s`: how often, in milliseconds, from half a second to an hour. */
export function interval(raw: string): number {
  const parsed = parseDuration(raw);
  if ('problem' in parsed) throw new InvalidArgumentError(`It ${parsed.problem}: ${parsed.mend}.`);
  if (parsed.value >= 500 && parsed.value <= 3_600_000) return parsed.value;
  throw new InvalidArgumentError('It is from 500ms to 1h.');
}

/** A whole number of rows from 1. */
export function rowCount(raw: string): number {
  if (/^[1-9]\d{0,5}$/.test(raw)) return Number(raw);
  throw new InvalidArgumentError('It is a whole number from 1 to 999999.');
}

/** Rows a second: `100` or `100/s`. */
export function rate(raw: string): number {
  return rowCount(raw.replace(/\/s$/, ''));
}

/** `30m`, in milliseconds. */
export function duration(raw: string): number {
  const parsed = parseDuration(raw);
  if ('value' in parsed) return parsed.value;
  throw new InvalidArgumentError(`It ${parsed.problem}: ${parsed.mend}.`);
}

/** One more id of an inbound message, which may be any text. */
export function anyIds(raw: string, before: readonly string[] | undefined): string[] {
  return [...(before ?? []), raw];
}
