import { expect, test } from 'vitest';
import { retryAfterMs } from '../../../src/core/retry-after.js';

const capMs = 3_600_000;
const unixMs = Date.UTC(2026, 0, 1, 12);
const of = (header: string | undefined, date?: string) => retryAfterMs(header, { date, unixMs, capMs });

test('Retry-After in seconds, capped', () => {
  expect(of('7')).toBe(7_000);
  expect(of(' 120 ')).toBe(120_000);
  expect(of('99999999999999999999')).toBe(capMs);
});

test('F118: Retry-After as a date is compared with the Date of the answer, whatever our clock says', () => {
  expect(of('Sun, 06 Nov 1994 08:49:37 GMT', 'Sun, 06 Nov 1994 08:49:07 GMT')).toBe(30_000);
  expect(of('Sunday, 06-Nov-94 08:49:37 GMT', 'Sun, 06 Nov 1994 08:49:07 GMT')).toBe(30_000);
  expect(of('Sun Nov  6 08:49:37 1994', 'Sun, 06 Nov 1994 08:49:07 GMT')).toBe(30_000);
  expect(of('Thu, 01 Jan 2026 12:00:05 GMT')).toBe(5_000);
  expect(of('Fri, 02 Jan 2026 12:00:05 GMT')).toBe(capMs);
});

test('what is over, or makes no sense, asks for nothing', () => {
  for (const header of [undefined, '', '0', '-5', '1.5', 'soon', '2026-01-01T13:00:00Z', 'Thu, 01 Jan 2026']) {
    expect(of(header)).toBeUndefined();
  }
  expect(of('Thu, 01 Jan 2026 11:59:59 GMT')).toBeUndefined();
});
