import fc from 'fast-check';
import { expect, test } from 'vitest';
import { isReservedHeader, readHeaders } from '../../../src/core/headers.js';

/** What jsonb can hold: any text but NUL. */
const text = fc.string({ unit: 'grapheme' }).map((each) => each.replaceAll('\u0000', ''));
const name = text.filter((each) => each.length > 0 && Buffer.byteLength(each) <= 255 && !isReservedHeader(each));
const scalar = fc.oneof(text, fc.boolean(), fc.constant(null), fc.maxSafeInteger());
const dictionary = (values: fc.Arbitrary<unknown>): fc.Arbitrary<Record<string, unknown>> =>
  fc.dictionary(name, values, { maxKeys: 8 });

function headersOf(json: string): Record<string, string | number | boolean> {
  const read = readHeaders(json);
  if ('fault' in read) throw new Error(`unexpected fault: ${read.text}`);
  return read.headers;
}

function faultOf(json: string): string | undefined {
  const read = readHeaders(json);
  return 'headers' in read ? undefined : read.fault;
}

test('O7: strings, booleans and exact numbers come out as they went in; null is left out', () => {
  fc.assert(
    fc.property(dictionary(scalar), (wanted) => {
      const expected = Object.entries(wanted).filter(([, value]) => value !== null);
      expect(Object.entries(headersOf(JSON.stringify(wanted)))).toEqual(
        expected.map(([key, value]) => [key, Object.is(value, -0) ? 0 : value]),
      );
      // jsonb is printed with spaces.
      expect(Object.entries(headersOf(JSON.stringify(wanted, undefined, 1)))).toHaveLength(expected.length);
    }),
  );
});

const digits = fc.string({ unit: fc.constantFrom(...Array.from('0123456789')), minLength: 1, maxLength: 40 });
/** As jsonb prints a numeric: no exponent, no leading zeros, trailing zeros of the fraction kept. */
const numeric = fc
  .tuple(fc.boolean(), digits, fc.option(digits))
  .map(
    ([minus, whole, fraction]) =>
      `${minus ? '-' : ''}${whole.replace(/^0+(?=.)/, '')}${fraction ? `.${fraction}` : ''}`,
  );

test('F103, fact 69: a number that a double carries exactly goes as a number, any other as its very text', () => {
  fc.assert(
    fc.property(numeric, (number) => {
      const value = headersOf(`{"n": ${number}, "s": "${number}"}`)['n'];
      expect(String(value)).toBe(number);
      if (typeof value === 'number') expect(Number.isSafeInteger(value) || !Number.isInteger(value)).toBe(true);
      expect(headersOf(`{"n": ${number}, "s": "${number}"}`)['s']).toBe(number);
    }),
    { examples: [['0'], ['1.10'], ['9007199254740993'], ['12345678901234567890'], ['0.1'], ['-0']] },
  );
  expect(headersOf('{"a": 1, "b": 1.5, "c": 9007199254740991, "d": 9007199254740992}')).toEqual(
    Object.assign(Object.create(null) as object, { a: 1, b: 1.5, c: 9007199254740991, d: '9007199254740992' }),
  );
});

test('F80, fact 42: a reserved name is refused in any case, wherever it stands', () => {
  const reserved = fc.constantFrom(
    'BCC',
    'CC',
    'user_id',
    'x-death',
    'x-delay',
    'x-match',
    'x-waybill-key',
    'X-First-Death-Q',
  );
  const cased = fc.tuple(reserved, fc.infiniteStream(fc.boolean())).map(([word, upper]) =>
    Array.from(word)
      .map((letter) => (upper.next().value ? letter.toUpperCase() : letter.toLowerCase()))
      .join(''),
  );
  fc.assert(
    fc.property(cased, dictionary(scalar), (bad, others) => {
      expect(isReservedHeader(bad)).toBe(true);
      expect(faultOf(JSON.stringify({ ...others, [bad]: 'x' }))).toBe('reserved_header');
    }),
  );
});

test('F79: what AMQP headers cannot carry is a fault of the row, not a throw', () => {
  expect(faultOf('[]')).toBe('bad_header');
  expect(faultOf('"x"')).toBe('bad_header');
  expect(faultOf('1')).toBe('bad_header');
  expect(faultOf('null')).toBe('bad_header');
  expect(faultOf('{"a": {}}')).toBe('bad_header');
  expect(faultOf('{"a": [1]}')).toBe('bad_header');
  expect(faultOf('{"": 1}')).toBe('bad_header');
  expect(faultOf(JSON.stringify({ ['é'.repeat(128)]: 1 }))).toBe('bad_header');
  expect(faultOf(JSON.stringify({ ['é'.repeat(127)]: 1 }))).toBeUndefined();
  expect(faultOf(JSON.stringify({ a: 'x'.repeat(61_440) }))).toBe('bad_header');
  // fact 56: a numeric bomb is refused by the length of its text, before anything is parsed.
  expect(faultOf(`{"a": ${'9'.repeat(200_000)}}`)).toBe('bad_header');
});

test('F79: long strings full of quotes and backslashes are read whole', () => {
  for (const unit of ['"', '\\', '\\"', 'x', '1', '-1.5e3 ', '😀']) {
    const value = unit.repeat(Math.floor(20_000 / unit.length));
    expect(headersOf(JSON.stringify({ a: value, b: 7 }))).toMatchObject({ a: value, b: 7 });
  }
});

test('security: __proto__ is a name like any other', () => {
  const headers = headersOf('{"__proto__": "x", "constructor": "y"}');
  expect(Object.keys(headers)).toEqual(['__proto__', 'constructor']);
  expect(Object.getPrototypeOf(headers)).toBeNull();
});
