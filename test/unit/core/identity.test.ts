import fc from 'fast-check';
import { expect, test } from 'vitest';
import { quoteIdentifier, quoteLiteral, slotName } from '../../../src/core/identity.js';

/** Short names over few letters, so that clashes would come up, and any others. */
const names = fc.oneof(
  fc.string({ unit: fc.constantFrom('a', 'b', '_', 'A', '-', 'é'), minLength: 1, maxLength: 5 }),
  fc.string({ minLength: 1, maxLength: 63 }),
  fc.string({ unit: 'binary', minLength: 1, maxLength: 30 }),
);
const triples = fc.tuple(names, names, names);

test('F131: a slot name is one that PostgreSQL takes', () => {
  fc.assert(
    fc.property(triples, (triple) => {
      expect(slotName(...triple)).toMatch(/^waybill_[a-z0-9_]{1,55}$/);
      expect(slotName(...triple)).toBe(slotName(...triple));
    }),
  );
});

test('F131: two relays never share a slot name', () => {
  fc.assert(
    fc.property(fc.uniqueArray(triples, { selector: (triple) => JSON.stringify(triple), maxLength: 60 }), (all) => {
      expect(new Set(all.map((triple) => slotName(...triple))).size).toBe(all.length);
    }),
    { numRuns: 300 },
  );
});

test('F131: names that would read the same are told apart; plain ones stay readable', () => {
  expect(slotName('shop', 'waybill', 'default')).toBe('waybill_shop_waybill_default');
  const long = 'x'.repeat(63);
  const alike: [string, string, string][] = [
    ['a', 'b_c', 'd'],
    ['a_b', 'c', 'd'],
    ['a', 'b', 'c_d'],
    ['a', 'B', 'c'],
    ['a', 'b', 'c'],
    ['a', 'b', 'c-'],
    ['a', 'b', 'c_'],
    [long, 'b', 'c'],
    [`${long}y`, 'b', 'c'],
  ];
  expect(new Set(alike.map((triple) => slotName(...triple))).size).toBe(alike.length);
});

test('quoted text cannot leave its quotes', () => {
  fc.assert(
    fc.property(fc.string(), (text) => {
      const identifier = quoteIdentifier(text);
      expect(identifier.slice(1, -1).replaceAll('""', '')).not.toContain('"');
      expect(identifier.slice(1, -1).replaceAll('""', '"')).toBe(text);
      const literal = quoteLiteral(text).trimStart();
      const escaped = literal.startsWith('E');
      const inside = literal.slice(escaped ? 2 : 1, -1);
      expect(inside.replaceAll("''", '')).not.toContain("'");
      expect(inside.replaceAll("''", "'").replaceAll('\\\\', '\\')).toBe(
        escaped ? text : text.replaceAll('\\\\', '\\'),
      );
    }),
  );
  expect(quoteLiteral(`it's`)).toBe(`'it''s'`);
  expect(quoteLiteral('a\\b')).toBe(` E'a\\\\b'`);
});
