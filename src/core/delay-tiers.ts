/**
 * The delay queue for a timer that is to come back in `remainingMs`: the largest tier that is not longer, so that a timer
 * comes early or right and is sent again for the rest; undefined when even the smallest is too long, and the timer is
 * better kept in memory.
 */
export function tierFor(remainingMs: number, tiersMs: readonly number[]): number | undefined {
  let best: number | undefined;
  for (const tier of tiersMs) {
    if (tier <= remainingMs && (best === undefined || tier > best)) best = tier;
  }
  return best;
}
