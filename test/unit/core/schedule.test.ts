import fc from 'fast-check';
import { expect, test } from 'vitest';
import { backoffMs, NACK_BACKOFF, RECONNECT_BACKOFF, unroutableDelayMs } from '../../../src/core/schedule.js';

const random = fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true });

test('backoff grows, stays bounded for any number of attempts, and jitter only lengthens', () => {
  for (const backoff of [NACK_BACKOFF, RECONNECT_BACKOFF]) {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 1_000_000 }), random, (attempt, chance) => {
        const plain = backoffMs(backoff, attempt, 0);
        expect(plain).toBeGreaterThanOrEqual(backoff.firstMs);
        expect(plain).toBeLessThanOrEqual(backoff.maxMs);
        expect(backoffMs(backoff, attempt + 1, 0)).toBeGreaterThanOrEqual(plain);
        expect(backoffMs(backoff, attempt, chance)).toBeGreaterThanOrEqual(plain);
        expect(backoffMs(backoff, attempt, chance)).toBeLessThanOrEqual(backoff.maxMs * (1 + backoff.jitter));
      }),
    );
  }
});

test('F73: the delays of an unroutable row add up to retryFor exactly, then it is given up for good', () => {
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 3_600_000 }), (retryForMs) => {
      let spanMs = 0;
      let attempt = 1;
      for (; attempt < 1_000; attempt += 1) {
        const delayMs = unroutableDelayMs(attempt, retryForMs);
        if (delayMs === 'give-up') break;
        expect(delayMs).toBeGreaterThan(0);
        expect(delayMs).toBeLessThanOrEqual(60_000);
        spanMs += delayMs;
      }
      expect(spanMs).toBe(retryForMs);
      expect(unroutableDelayMs(attempt + 1, retryForMs)).toBe('give-up');
      expect(unroutableDelayMs(attempt + 1_000_000, retryForMs)).toBe('give-up');
    }),
    { examples: [[0], [1], [999], [1_000], [600_000]] },
  );
});
