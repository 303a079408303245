import fc from 'fast-check';
import { expect, test } from 'vitest';
import { TokenBucket } from '../../../src/core/token-bucket.js';

test('in no span of time more than the rate and one burst, in the order of asking, and nothing is wasted', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 500 }),
      fc.constantFrom(1_000, 60_000),
      fc.array(fc.integer({ min: 0, max: 300 }), { minLength: 1, maxLength: 100 }),
      (count, perMs, gaps) => {
        const bucket = new TokenBucket({ count, perMs });
        const intervalMs = perMs / count;
        const burst = Math.max(1, 100 / intervalMs);
        const times: number[] = [];
        let nowMs = 0;
        for (const gap of gaps) {
          nowMs += gap;
          times.push(nowMs + bucket.take(nowMs));
        }
        for (const [first, from] of times.entries()) {
          if (first > 0) expect(from).toBeGreaterThanOrEqual(times[first - 1]!);
          for (let last = first; last < times.length; last += 1) {
            const most = (times[last]! - from) / intervalMs + burst;
            expect(last - first + 1).toBeLessThanOrEqual(most + 1e-6);
          }
        }
        // All at once: the n-th waits for n intervals, less the burst.
        const fresh = new TokenBucket({ count, perMs });
        const waits = gaps.map(() => fresh.take(5));
        for (const [index, wait] of waits.entries()) {
          expect(wait).toBeCloseTo(Math.max(0, (index + 1 - burst) * intervalMs), 6);
        }
      },
    ),
  );
});

test('a token that is given back is there for the next', () => {
  const bucket = new TokenBucket({ count: 1, perMs: 1_000 });
  expect([bucket.take(0), bucket.take(0)]).toEqual([0, 1_000]);
  bucket.giveBack();
  expect(bucket.take(0)).toBe(1_000);
});
