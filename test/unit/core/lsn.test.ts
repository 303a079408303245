import fc from 'fast-check';
import { expect, test } from 'vitest';
import { formatLsn, maxLsn, parseLsn } from '../../../src/core/lsn.js';

const lsns = fc.bigInt({ min: 0n, max: 0xffffffffffffffffn });

test('fact 10: a position survives its text form, and PostgreSQL would read it', () => {
  fc.assert(
    fc.property(lsns, (lsn) => {
      const text = formatLsn(lsn);
      expect(text).toMatch(/^[0-9A-F]{1,8}\/[0-9A-F]{1,8}$/);
      expect(parseLsn(text)).toBe(lsn);
      expect(parseLsn(text.toLowerCase())).toBe(lsn);
    }),
  );
});

test('fact 10: positions order as numbers, where their texts do not', () => {
  expect(parseLsn('9/0') < parseLsn('10/0')).toBe(true);
  expect(parseLsn('0/9') < parseLsn('0/10')).toBe(true);
  fc.assert(
    fc.property(lsns, lsns, (a, b) => {
      expect(maxLsn(a, b)).toBe(a > b ? a : b);
    }),
  );
});

test('what is not a position is refused', () => {
  for (const text of ['', '/', '0', '0/', '/0', '0/123456789', '123456789/0', ' 0/0', '0/0 ', '0/0\n', 'g/0', '-1/0']) {
    expect(() => parseLsn(text), text).toThrow(RangeError);
  }
});
