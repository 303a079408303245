import { describe, expect, it } from 'vitest';
import { judgeMemory } from '../soak/flat-memory.js';

/** MiB at each reading of `n`, with a heap that breathes by 12 MiB. */
const series = (n: number, at: (share: number) => number): number[] =>
  Array.from({ length: n }, (_, index) => Math.round(at(index / n) + 6 * Math.sin(index)));

describe('the judgement of the soak', () => {
  it.each<[string, number[], boolean]>([
    ['flat', series(40, () => 95), true],
    ['warming up in the first third', series(40, (share) => Math.min(95, 50 + share * 140)), true],
    ['falling after a peak', series(40, (share) => (share < 0.5 ? 190 : 110)), true],
    ['one reading far out', [...series(39, () => 95), 400], true],
    ['a growth that is within the allowance', series(40, (share) => 90 + 40 * share), true],
    ['a leak that doubles a small process', series(40, (share) => 90 + 90 * share), false],
    ['a leak of a third in a large one', series(40, (share) => 400 + 400 * share), false],
    ['a step in the last third', series(40, (share) => (share < 0.66 ? 95 : 125)), false],
    ['the same leak in few readings', series(9, (share) => 90 + 90 * share), false],
  ])('%s', (_, readings, isFlat) => {
    expect(judgeMemory(readings)?.isFlat).toBe(isFlat);
  });

  it('says by how much', () => {
    expect(judgeMemory([1, 1, 1, 90, 100, 110, 118, 130, 121])).toEqual({
      isFlat: false,
      middle: 100,
      last: 121,
      allowed: 120,
    });
  });

  it('is none of too few readings, or of a process that was not there', () => {
    expect(judgeMemory(series(8, () => 95))).toBeUndefined();
    expect(judgeMemory([...series(20, () => 95), 0])).toBeUndefined();
  });
});
