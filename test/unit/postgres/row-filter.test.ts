import { expect, test } from 'vitest';
import { conditionOf } from '../../../src/postgres/row-filter.js';

test('without a filter every row is meant', () => {
  expect(conditionOf({})).toEqual({ sql: 'true', values: [] });
});

test('each filter narrows, and no value becomes a part of the statement', () => {
  const hostile = `'; drop table waybill.outbox; --`;
  const { sql, values } = conditionOf({
    states: ['parked'],
    type: hostile,
    key: hostile,
    error: hostile,
    since: { agoMs: 60_000 },
    until: { agoMs: 1_000 },
  });
  expect(sql.split(' and ')).toEqual([
    'o.state = any($1::text[])',
    'o.type = $2',
    'o.key = $3',
    'strpos(lower(o.last_error), lower($4)) > 0',
    "o.created_at >= (statement_timestamp() - $5::float8 * interval '1 millisecond')",
    "o.created_at < (statement_timestamp() - $6::float8 * interval '1 millisecond')",
  ]);
  expect(values).toEqual([['parked'], hostile, hostile, hostile, 60_000, 1_000]);
});

test('an empty text and an age of nothing are filters, too', () => {
  expect(conditionOf({ key: '', since: { agoMs: 0 } }).values).toEqual(['', 0]);
});

test('a date is a moment, too; a table without errors is not narrowed by one', () => {
  const at = new Date('2026-01-02T00:00:00Z');
  const columns = { state: 'o.outcome', error: null, time: 'o.settled_at' };
  expect(conditionOf({ ids: ['x'], error: 'e', since: { at } }, columns)).toEqual({
    sql: 'o.id = any($1::uuid[]) and o.settled_at >= $2::timestamptz',
    values: [['x'], at],
    since: '$2::timestamptz',
  });
});
