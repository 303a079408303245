import { expect, test } from 'vitest';
import { readTimer, writeTimer } from '../../../src/rabbitmq/delay-exchange.js';

const timer = { consumer: 'emails', seq: '7', attempt: 2, restMs: 0 };
const OURS = 'ae2b9a0c';
const read = (changed: object) => readTimer(Buffer.from(JSON.stringify({ ...timer, ...changed })), OURS);

test('a timer is read back as it was sent, up to the greatest numbers', () => {
  const greatest = { ...timer, seq: '9223372036854775807', attempt: 2_147_483_647, restMs: 2_592_000_000 };
  expect(read({})).toEqual(timer);
  expect(read(greatest)).toEqual(greatest);
});

test('whose a timer is is written into it; programs before did not, and theirs are taken', () => {
  expect(readTimer(writeTimer(timer, OURS), OURS)).toEqual(timer);
  expect(readTimer(writeTimer(timer, 'another'), OURS)).toBe('foreign');
  expect(read({})).toEqual(timer);
});

test.each([
  ['a seq over 2^63', { seq: '9223372036854775808' }],
  ['a seq of nineteen nines', { seq: '9999999999999999999' }],
  ['a negative seq', { seq: '-1' }],
  ['a seq that is a number', { seq: 7 }],
  ['half an attempt', { attempt: 1.5 }],
  ['attempt 0', { attempt: 0 }],
  ['an attempt over 2^31', { attempt: 2_147_483_648 }],
  ['an attempt that is a text', { attempt: '2' }],
  ['a negative rest', { restMs: -1 }],
  ['a rest of thousands of years', { restMs: 1e300 }],
  ['no consumer', { consumer: undefined }],
])('F16: %s is no timer', (_, changed) => {
  expect(read(changed)).toBeUndefined();
});

test('F16: what is not JSON, or no object, is no timer', () => {
  for (const body of ['', '{', 'null', '[]', '"7"']) expect(readTimer(Buffer.from(body), OURS)).toBeUndefined();
});
