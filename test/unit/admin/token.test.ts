import * as crypto from 'node:crypto';
import fc from 'fast-check';
import { beforeEach, expect, it, vi } from 'vitest';
import { carriesToken } from '../../../src/admin/guard.js';

vi.mock('node:crypto', async (original) => {
  const real = await original<typeof crypto>();
  return { ...real, timingSafeEqual: vi.fn(real.timingSafeEqual) };
});
const compare = vi.mocked(crypto.timingSafeEqual);

beforeEach(() => {
  compare.mockClear();
});

const token = fc.stringMatching(/^[\x21-\x7e]{1,80}$/);
const header = fc.oneof(
  token.map((text) => `Bearer ${text}`),
  fc.string(),
  fc.constant(undefined),
);

it('the token is compared once, in constant time over hashes, whatever came: nothing tells its length or its beginning', () => {
  fc.assert(
    fc.property(token, header, (known, authorization) => {
      compare.mockClear();
      const carries = carriesToken({ headers: { authorization } }, known);
      expect(carries).toBe(
        authorization?.toLowerCase().startsWith('bearer ') === true && authorization.slice(7) === known,
      );
      expect(compare).toHaveBeenCalledTimes(1);
      const [given, wanted] = compare.mock.calls[0] ?? [];
      expect([given?.byteLength, wanted?.byteLength]).toEqual([32, 32]);
    }),
  );
});

it('the right token is taken, with any case of the scheme; its beginning and what is longer are not', () => {
  fc.assert(
    fc.property(token, (known) => {
      const taken = (authorization: string): boolean => carriesToken({ headers: { authorization } }, known);
      expect([taken(`Bearer ${known}`), taken(`bearer ${known}`)]).toEqual([true, true]);
      expect([taken(`Bearer ${known.slice(0, -1)}`), taken(`Bearer ${known}x`), taken(known)]).toEqual([
        false,
        false,
        false,
      ]);
    }),
  );
});
