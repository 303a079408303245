import type { Hold } from './ports.js';
import type { Work } from './work.js';

/** A row that waits for a statement; with a `hold` if it is to be held. */
interface Waiting {
  work: Work;
  hold?: Pick<Hold, 'holdNo'>;
}

/**
 * With strict order: the first place of each key among rows that are to be held. No row may be held before one that came
 * earlier: a crash between the two would find it in the table, and its predecessor would come again behind it.
 */
export function firstPlaces(rows: readonly Waiting[]): Map<string | null, bigint> {
  const first = new Map<string | null, bigint>();
  for (const { work, hold } of rows) {
    const place = hold?.holdNo ?? null;
    if (place === null) continue;
    const known = first.get(work.row.key);
    if (known === undefined || place < known) first.set(work.row.key, place);
  }
  return first;
}

/** True when a row of the same key goes first. */
export function isBehind({ work, hold }: Waiting, first: ReadonlyMap<string | null, bigint>): boolean {
  const place = hold?.holdNo ?? null;
  const earliest = first.get(work.row.key);
  return place !== null && earliest !== undefined && earliest < place;
}

/** In the order of their places; the sort is stable, and those without one come first. */
export function byPlace<T extends Waiting>(rows: readonly T[]): T[] {
  const place = ({ hold }: Waiting): number => Number(hold?.holdNo ?? 0);
  return [...rows].sort((a, b) => place(a) - place(b));
}
