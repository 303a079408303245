/** What a series of memory readings says, in the unit of the readings (MiB). */
export interface MemoryVerdict {
  isFlat: boolean;
  middle: number;
  last: number;
  /** Most that the last third may be. */
  allowed: number;
}

const FACTOR = 1.15;
const ALLOWANCE_MIB = 20;
/** Fewer give no medians to compare. */
const FEWEST = 9;

/**
 * Compares the median of the last third with that of the middle third; the first third is warming up. It may be higher by
 * 15 % or 20 MiB, whichever is more: a heap breathes by that. Undefined when there are too few readings to tell, or the
 * process was not there for one of them.
 */
export function judgeMemory(readings: readonly number[]): MemoryVerdict | undefined {
  if (readings.length < FEWEST || readings.some((reading) => reading <= 0)) return undefined;
  const third = Math.floor(readings.length / 3);
  const last = median(readings.slice(-third));
  const middle = median(readings.slice(-2 * third, -third));
  const allowed = Math.max(middle * FACTOR, middle + ALLOWANCE_MIB);
  return { isFlat: last <= allowed, middle, last, allowed: Math.round(allowed) };
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((one, other) => one - other);
  const half = sorted.length / 2;
  return (sorted[Math.floor(half)]! + sorted[Math.ceil(half) - 1]!) / 2;
}
