import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { AckPrefix } from '../../../src/core/ack-prefix.js';

describe('the prefix of deliveries that may be acknowledged (I1, I2, F19)', () => {
  it('never covers an open delivery and, at the end, covers them all', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 60 }).chain((n) =>
          fc.record({
            order: fc.shuffledSubarray(
              Array.from({ length: n }, (_, index) => index + 1),
              { minLength: n, maxLength: n },
            ),
            chunk: fc.integer({ min: 1, max: 7 }),
          }),
        ),
        ({ order, chunk }) => {
          const prefix = new AckPrefix();
          for (let tag = 1; tag <= order.length; tag += 1) prefix.deliver(tag);
          const settled = new Set<number>();
          let acked = 0;
          for (let at = 0; at < order.length; at += chunk) {
            const tags = order.slice(at, at + chunk);
            for (const tag of tags) settled.add(tag);
            const upto = prefix.settle(tags);
            if (upto !== undefined) {
              expect(upto).toBeGreaterThan(acked);
              acked = upto;
            }
            for (let tag = 1; tag <= acked; tag += 1) expect(settled.has(tag)).toBe(true);
            expect(settled.has(acked + 1)).toBe(false);
            expect(prefix.open).toBe(order.length - acked);
          }
          expect(acked).toBe(order.length);
        },
      ),
    );
  });

  it('refuses to settle twice, or what was never delivered (F19: a second ack would close the channel)', () => {
    const prefix = new AckPrefix();
    prefix.deliver(1);
    prefix.deliver(2);
    expect(prefix.settle([2])).toBeUndefined();
    expect(() => prefix.settle([2])).toThrow(/I2/);
    expect(prefix.settle([1])).toBe(2);
    expect(() => prefix.settle([1])).toThrow(/I2/);
    expect(() => prefix.settle([3])).toThrow(/I2/);
    expect(() => prefix.deliver(4)).toThrow(/after 2/);
  });
});
