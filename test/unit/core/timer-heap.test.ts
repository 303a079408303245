import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { TimerHeap } from '../../../src/core/timer-heap.js';

describe('items by the time at which they are due', () => {
  it('come out when they are due and not before, earliest first; too many cost the latest (I5)', () => {
    fc.assert(
      fc.property(
        fc.array(fc.integer({ min: 0, max: 50 }), { maxLength: 40 }),
        fc.integer({ min: 1, max: 20 }),
        fc.integer({ min: 0, max: 60 }),
        (times, limit, nowMs) => {
          const heap = new TimerHeap<number>(limit);
          let kept: number[] = [];
          for (const atMs of times) {
            const fits = heap.add(atMs, atMs);
            expect(fits).toBe(kept.length < limit);
            kept = [...kept, atMs].sort((a, b) => a - b).slice(0, limit);
          }
          expect(heap.size).toBe(kept.length);
          expect(heap.nextAtMs).toBe(kept[0]);
          expect(heap.takeDue(nowMs)).toEqual(kept.filter((atMs) => atMs <= nowMs));
          expect(heap.nextAtMs).toBe(kept.find((atMs) => atMs > nowMs));
        },
      ),
    );
  });
});
