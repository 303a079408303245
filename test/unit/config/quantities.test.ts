import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { formatDuration, formatSize, parseDuration, parseSize } from '../../../src/config/quantities.js';

describe('parseDuration', () => {
  it.each([
    ['200ms', 200],
    ['30s', 30_000],
    ['10m', 600_000],
    ['1h', 3_600_000],
    ['7d', 604_800_000],
    ['1.5s', 1_500],
    [' 5 s ', 5_000],
    ['0s', 0],
  ])('reads %s', (text, ms) => expect(parseDuration(text)).toEqual({ value: ms }));

  it.each([30, '30', '1.5', 0])('refuses %s, because it has no unit', (raw) => {
    expect(parseDuration(raw)).toEqual({
      problem: `has no unit (${raw})`,
      mend: expect.stringContaining('"30s"') as string,
    });
  });

  it.each(['5min', '5S', '1w', '5constructor'])('refuses the unknown unit of %s', (raw) => {
    expect(parseDuration(raw)).toMatchObject({ mend: 'the units are ms, s, m, h, d' });
  });

  it.each(['', 's', '-5s', '5s5s', 'soon', null, true, [], {}, '0.0001ms', '99999999999999d'])('refuses %j', (raw) => {
    expect(parseDuration(raw)).toHaveProperty('problem');
  });
});

describe('parseSize', () => {
  it.each([
    ['512B', 512],
    ['64MiB', 67_108_864],
    ['4GiB', 4_294_967_296],
    ['15MB', 15_000_000],
    ['1.5KiB', 1536],
  ])('reads %s', (text, bytes) => expect(parseSize(text)).toEqual({ value: bytes }));

  it.each([64, '64', '64M', '64mib', '4GIB', '1toString'])('refuses %s', (raw) => {
    expect(parseSize(raw)).toHaveProperty('problem');
  });
});

describe('format', () => {
  it('writes what it reads, for every duration and size', () => {
    const whole = fc.integer({ min: 0, max: Number.MAX_SAFE_INTEGER });
    fc.assert(
      fc.property(whole, (amount) => {
        expect(parseDuration(formatDuration(amount))).toEqual({ value: amount });
        expect(parseSize(formatSize(amount))).toEqual({ value: amount });
      }),
    );
  });
});
