import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Gathering } from '../../../src/core/gathering.js';

describe('gathering of batches', () => {
  it('keeps order and loses nothing, within rows and bytes; one larger item goes alone', () => {
    fc.assert(
      fc.property(
        fc.array(fc.integer({ min: 0, max: 50 }), { maxLength: 60 }),
        fc.integer({ min: 1, max: 9 }),
        fc.integer({ min: 1, max: 60 }),
        (sizes, rows, bytes) => {
          const gathering = new Gathering<{ index: number; size: number }>({ rows, bytes, waitMs: 10 });
          sizes.forEach((size, index) => gathering.add({ index, size }, size, index));
          const out: number[] = [];
          while (gathering.size > 0) {
            const batch = gathering.take();
            expect(batch.length).toBeGreaterThan(0);
            expect(batch.length).toBeLessThanOrEqual(rows);
            const total = batch.reduce((sum, each) => sum + each.size, 0);
            if (batch.length > 1) expect(total).toBeLessThanOrEqual(bytes);
            out.push(...batch.map((each) => each.index));
          }
          expect(out).toEqual(sizes.map((_, index) => index));
          expect(gathering.take()).toEqual([]);
        },
      ),
    );
  });

  it('is due when it is full, or when its first item has waited', () => {
    const gathering = new Gathering<string>({ rows: 2, bytes: 100, waitMs: 10 });
    expect(gathering.dueAtMs()).toBeUndefined();
    gathering.add('a', 1, 5);
    expect(gathering.dueAtMs()).toBe(15);
    gathering.add('b', 1, 6);
    expect(gathering.dueAtMs()).toBe(5);
    gathering.take();
    gathering.add('c', 100, 7);
    expect(gathering.dueAtMs()).toBe(7);
  });
});
