import { describe, expect, it } from 'vitest';
import { standbyPauseMs } from '../../../src/core/standby.js';

describe('F117 a relay that stands by', () => {
  it.each([0, 0.5, 0.999])('asks soon at first, then every few seconds, by chance %d', (chance) => {
    const pauses = Array.from({ length: 2_000 }, (_, index) => standbyPauseMs(index + 1, chance));
    expect(pauses[0]).toBeLessThanOrEqual(500);
    expect(Math.max(...pauses)).toBeLessThanOrEqual(5_000);
    expect(Math.min(...pauses.slice(4))).toBeGreaterThanOrEqual(2_500);
  });

  it('is refused at most thirty times in its first minute, and 24 times in each later one', () => {
    let atMs = 0;
    const refusedAt: number[] = [];
    for (let refusals = 1; atMs < 120_000; refusals += 1) {
      refusedAt.push(atMs);
      atMs += standbyPauseMs(refusals, 0);
    }
    expect(refusedAt.filter((at) => at < 60_000).length).toBeLessThanOrEqual(30);
    expect(refusedAt.filter((at) => at >= 60_000).length).toBeLessThanOrEqual(24);
  });
});
