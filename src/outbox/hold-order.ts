import type { Hold } from './ports.js';
import type { Work } from './work.js';

/** A row that waits for a statement; with a `hold` if it is to be held. */
interface Waiting {
  work: Work;
  hold?: Pick<Hold, 'holdNo' | 'lane'>;
}

/**
 * With strict order: the key of a row that must not be held before one that came earlier; null for any other row.
 *
 * After a crash between the two holds the later one is in the table, and the earlier one is read again. One from the log
 * comes before everything that came after it, and all of it gets new numbers, so these may be held in any order. One that
 * the table released has its number there. What remains are rows that are read from the table in seq order: the later
 * one would not be read again, and the earlier one would come behind it. Rows that were due or swept are not among them:
 * they have their place from when they are found.
 */
export function laneOf({ row, order, origin, entries }: Work): string | null {
  return order !== null && entries.length === 0 && (origin === 'pass' || origin === 'poll') ? row.key : null;
}

/** The first place of each of these keys among rows that are to be held. */
export function firstPlaces(rows: readonly Waiting[]): Map<string, bigint> {
  const first = new Map<string, bigint>();
  for (const { hold } of rows) {
    if (!hold || hold.lane === null || hold.holdNo === null) continue;
    const known = first.get(hold.lane);
    if (known === undefined || hold.holdNo < known) first.set(hold.lane, hold.holdNo);
  }
  return first;
}

/** True when a row of the same key goes first. */
export function isBehind({ hold }: Waiting, first: ReadonlyMap<string, bigint>): boolean {
  if (!hold || hold.lane === null || hold.holdNo === null) return false;
  const earliest = first.get(hold.lane);
  return earliest !== undefined && earliest < hold.holdNo;
}

/** In the order of their places; the sort is stable, and those without one come first. */
export function byPlace<T extends Waiting>(rows: readonly T[]): T[] {
  const place = ({ hold }: Waiting): number => Number(hold?.holdNo ?? 0);
  return [...rows].sort((a, b) => place(a) - place(b));
}
