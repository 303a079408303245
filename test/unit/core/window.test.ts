import fc from 'fast-check';
import { expect, test } from 'vitest';
import { Window } from '../../../src/core/window.js';

const sizes = fc.nat({ max: 60 });
const steps = fc.array(
  fc.oneof(
    { weight: 4, arbitrary: fc.record({ kind: fc.constant('take' as const), bytes: sizes }) },
    { weight: 3, arbitrary: fc.record({ kind: fc.constant('give' as const), which: fc.nat() }) },
    { weight: 1, arbitrary: fc.record({ kind: fc.constantFrom('narrow' as const, 'widen' as const) }) },
  ),
  { maxLength: 60, size: 'max' },
);

test('O4: a caller that asks first never exceeds messages or bytes, but for one large message alone', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 5 }),
      fc.integer({ min: 1, max: 100 }),
      steps,
      (maxMessages, maxBytes, all) => {
        const window = new Window(maxMessages, maxBytes);
        const taken: number[] = [];
        let narrow = false;
        const sum = (): number => taken.reduce((a, b) => a + b, 0);
        for (const step of all) {
          if (step.kind === 'take') {
            const fits = !narrow && taken.length < maxMessages && sum() + step.bytes <= maxBytes;
            expect(window.hasRoomFor(step.bytes)).toBe(taken.length === 0 || fits);
            if (!window.hasRoomFor(step.bytes)) continue;
            window.take(step.bytes);
            taken.push(step.bytes);
            if (narrow) expect(taken).toHaveLength(1);
          } else if (step.kind === 'give') {
            const [bytes] = taken.splice(step.which % Math.max(1, taken.length), 1);
            if (bytes !== undefined) window.give(bytes);
          } else {
            narrow = step.kind === 'narrow';
            window[step.kind]();
          }
          expect([window.messages, window.bytes, window.isNarrow]).toEqual([taken.length, sum(), narrow]);
          expect(taken.length).toBeLessThanOrEqual(maxMessages);
          if (taken.length > 1) expect(sum()).toBeLessThanOrEqual(maxBytes);
        }
      },
    ),
  );
});

test('more given back than taken is a programmer error', () => {
  const window = new Window(2, 10);
  expect(() => window.give(0)).toThrow('window');
  window.take(3);
  expect(() => window.give(4)).toThrow('window');
});
