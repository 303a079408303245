import { expect, test } from 'vitest';
import { conditionOf } from '../../../src/postgres/operator-rows.js';

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
    sinceMs: 60_000,
    olderMs: 1_000,
  });
  expect(sql.split(' and ')).toEqual([
    'o.state = any($1::text[])',
    'o.type = $2',
    'o.key = $3',
    'strpos(lower(o.last_error), lower($4)) > 0',
    "o.created_at >= statement_timestamp() - $5::float8 * interval '1 millisecond'",
    "o.created_at < statement_timestamp() - $6::float8 * interval '1 millisecond'",
  ]);
  expect(values).toEqual([['parked'], hostile, hostile, hostile, 60_000, 1_000]);
});

test('an empty text and an age of nothing are filters, too', () => {
  expect(conditionOf({ key: '', sinceMs: 0 }).values).toEqual(['', 0]);
});
