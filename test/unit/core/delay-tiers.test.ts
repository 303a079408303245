import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { tierFor } from '../../../src/core/delay-tiers.js';

describe('the delay queue of a timer', () => {
  it('is the largest that is not longer than what remains, so that hops add up to it and no more', () => {
    fc.assert(
      fc.property(
        fc.uniqueArray(fc.integer({ min: 1, max: 5_000 }), { minLength: 1, maxLength: 8 }),
        fc.integer({ min: 0, max: 20_000 }),
        (tiers, totalMs) => {
          let remaining = totalMs;
          for (let tier = tierFor(remaining, tiers); tier !== undefined; tier = tierFor(remaining, tiers)) {
            expect(tiers.every((other) => other <= tier || other > remaining)).toBe(true);
            remaining -= tier;
            expect(remaining).toBeGreaterThanOrEqual(0);
          }
          expect(remaining).toBeLessThan(Math.min(...tiers));
        },
      ),
    );
  });
});
