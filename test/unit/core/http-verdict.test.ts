import { expect, test } from 'vitest';
import { printable, verdictOfAnswer, verdictOfFailure } from '../../../src/core/http-verdict.js';

const kindOf = (status: number) => verdictOfAnswer({ status, text: '', retryInMs: undefined }).kind;
const range = (from: number, upto: number): number[] => Array.from({ length: upto - from + 1 }, (_, n) => from + n);

test('F104, F126: the verdict of each status', () => {
  const expected = new Map<string, number[]>([
    ['done', range(200, 299)],
    ['retry', [408, 409, 429, ...range(500, 599)]],
    ['not-yet', [425]],
    ['broken', [101, ...range(300, 399), 401, 403, 404, 405, 407, 421, 426, 600]],
    ['never', [400, 402, 406, 410, 411, 412, 413, 415, 418, 422, 423, 424, 428, 431, 451, 499]],
  ]);
  for (const [kind, statuses] of expected) {
    for (const status of statuses) expect([status, kindOf(status)]).toEqual([status, kind]);
  }
});

test('F126: what was never sent is the consumer, what broke off is an attempt', () => {
  const error = 'x';
  expect(verdictOfFailure({ kind: 'unreachable', error })).toEqual({ kind: 'broken', error });
  expect(verdictOfFailure({ kind: 'not-http', error })).toEqual({ kind: 'broken', error });
  expect(verdictOfFailure({ kind: 'interrupted', error })).toEqual({ kind: 'retry', error });
  expect(verdictOfFailure({ kind: 'timeout', error })).toEqual({ kind: 'retry', error });
});

test('the text is the result or the error, and a delay is passed on where one is asked for', () => {
  expect(verdictOfAnswer({ status: 201, text: 'ok', retryInMs: 5 })).toEqual({ kind: 'done', result: 'ok' });
  expect(verdictOfAnswer({ status: 204, text: '', retryInMs: undefined })).toEqual({ kind: 'done' });
  expect(verdictOfAnswer({ status: 503, text: 'busy', retryInMs: 5 })).toEqual({
    kind: 'retry',
    error: 'HTTP 503: busy',
    retryInMs: 5,
  });
  expect(verdictOfAnswer({ status: 425, text: '', retryInMs: 9 })).toEqual({
    kind: 'not-yet',
    error: 'HTTP 425',
    retryInMs: 9,
  });
  expect(verdictOfAnswer({ status: 422, text: '', retryInMs: 9 })).toEqual({ kind: 'never', error: 'HTTP 422' });
});

test('text from elsewhere becomes one bounded line without control characters', () => {
  expect(printable(Buffer.from('a\0b\u001b[31mred\r\n\tx\u202Ey\u0085z '), 100)).toBe('a b [31mred x y z');
  expect(printable(Buffer.from([0xff, 0x41, 0xc3]), 100)).toBe('\uFFFDA\uFFFD');
  expect(printable(Buffer.from('x'.repeat(50)), 10)).toBe(`${'x'.repeat(9)}…`);
  expect(printable(Buffer.from('😀'.repeat(50)), 10)).toBe(`${'😀'.repeat(9)}…`);
  expect(printable(Buffer.from('😀'.repeat(10)), 10)).toBe('😀'.repeat(10));
});
