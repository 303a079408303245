import { describe, expect, it } from 'vitest';
import { duration, interval, moment } from '../../../src/cli/arguments.js';

describe('what is wrong with an argument reads as a sentence', () => {
  it.each([
    ['10', 'It has no unit (10): write a duration with its unit, such as "200ms", "30s", "10m", "1h" or "7d"'],
    ['10x', 'It has the unknown unit "x": the units are ms, s, m, h, d'],
    ['soon', 'It is not a duration: write it like "200ms", "30s", "10m", "1h" or "7d"'],
  ])('%s', (raw, text) => {
    for (const read of [duration, interval]) expect(() => read(raw)).toThrow(`${text}.`);
    expect(() => moment(raw)).toThrow(`${text}; or give a date`);
  });
});
