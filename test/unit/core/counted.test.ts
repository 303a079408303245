import { expect, test } from 'vitest';
import { counted } from '../../../src/core/counted.js';

test.each([
  [0, '0 rows'],
  [1, '1 row'],
  [2, '2 rows'],
  [1_234, '1,234 rows'],
])('%s', (count, text) => {
  expect(counted(count, 'row')).toBe(text);
});

test('words whose plural is not made by an s', () => {
  expect([0, 1, 2].map((count) => counted(count, 'message is', 'messages are'))).toEqual([
    '0 messages are',
    '1 message is',
    '2 messages are',
  ]);
});
