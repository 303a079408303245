import type pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { FreshDatabase } from '../support/database.js';
import { migratedDatabase } from '../support/migrated-database.js';

let database: FreshDatabase;
let client: pg.Client;

beforeAll(async () => {
  database = await migratedDatabase();
  client = await database.connect();
});
afterAll(() => database.drop());

/** Inserts one row in a transaction that is rolled back; resolves with the broken constraint, or undefined. */
async function brokenRule(row: Record<string, unknown>): Promise<string | undefined> {
  const columns = Object.keys(row);
  const places = columns.map((_, index) => `$${index + 1}`);
  await client.query('begin');
  try {
    await client.query(`insert into waybill.outbox (${columns.join()}) values (${places.join()})`, Object.values(row));
    return undefined;
  } catch (error) {
    const { constraint, message } = error as pg.DatabaseError;
    return constraint ?? message;
  } finally {
    await client.query('rollback');
  }
}

const header = (name: string, value: unknown = 'x'): { headers: string } => ({
  headers: JSON.stringify({ [name]: value }),
});

describe('a row is refused by the rule that it breaks', () => {
  const names = ['content_type', 'content_encoding', 'exchange', 'routing_key', 'correlation_id', 'causation_id'];
  const cases: [rule: string, row: Record<string, unknown>][] = [
    ['outbox_type_is_not_empty', { type: '' }],
    ['outbox_type_at_most_255_bytes', { type: 'é'.repeat(128) }],
    ['outbox_key_at_most_1024_bytes', { key: 'k'.repeat(1025) }],
    ['outbox_schema_version_is_at_least_1', { schema_version: 0 }],
    ['outbox_one_payload', { payload: '{}', payload_bytes: Buffer.from('x') }],
    ['outbox_payload_at_most_15_MiB', { payload: `"${'x'.repeat(15 * 1024 * 1024 - 1)}"` }],
    ['outbox_payload_at_most_15_MiB', { payload_bytes: Buffer.alloc(15 * 1024 * 1024 + 1) }],
    ...[...names, 'reply_to', 'traceparent'].map((column): [string, Record<string, unknown>] => [
      `outbox_${column}_at_most_255_bytes`,
      { [column]: 'x'.repeat(256) },
    ]),
    ['outbox_tracestate_at_most_512_bytes', { tracestate: 'x'.repeat(513) }],
    ['outbox_priority_is_0_to_255', { priority: -1 }],
    ['outbox_priority_is_0_to_255', { priority: 256 }],
    ['outbox_expires_at_is_finite', { expires_at: 'infinity' }],
    ['outbox_deliver_at_is_finite', { deliver_at: '-infinity' }],
    ['outbox_occurred_at_is_between_1970_and_9999', { occurred_at: '1969-12-31 23:59:59Z' }],
    ['outbox_occurred_at_is_between_1970_and_9999', { occurred_at: 'infinity' }],
    ['outbox_state_is_known', { state: 'sent' }],
    ['outbox_scheduled_rows_have_a_next_attempt', { state: 'scheduled' }],
    ['outbox_held_rows_have_a_hold_number', { state: 'parked' }],
    ['outbox_blocked_rows_have_a_key', { state: 'blocked', hold_no: 1 }],
    ['outbox_headers_are_an_object', { headers: '[]' }],
    ['outbox_headers_are_an_object', { headers: '"x"' }],
    ['outbox_headers_at_most_48_KiB', header('note', 'x'.repeat(48 * 1024))],
    ['outbox_headers_are_publishable', header('')],
    ['outbox_headers_are_publishable', header('é'.repeat(128))],
    ['outbox_headers_are_publishable', header('nested', { a: 1 })],
    ['outbox_headers_are_publishable', header('list', [1])],
    ['outbox_headers_are_publishable', header('nothing', null)],
    [
      'outbox_headers_are_publishable',
      { headers: JSON.stringify(Object.fromEntries(Array.from({ length: 257 }, (_, index) => [`h${index}`, 1]))) },
    ],
  ];
  test.each(cases)('%s', async (rule, row) => {
    expect(await brokenRule({ type: 't', ...row })).toBe(rule);
  });

  test('an id twice', async () => {
    const id = '018f2a3c-0000-7000-8000-000000000001';
    await client.query(`insert into waybill.outbox (id, type) values ($1, 't')`, [id]);
    expect(await brokenRule({ type: 't', id })).toBe('outbox_id_is_unique');
    const again = await client.query(
      `insert into waybill.outbox (id, type) values ($1, 't') on conflict (id) do nothing`,
      [id],
    );
    expect(again.rowCount).toBe(0);
  });
});

describe('reserved headers are refused in any case', () => {
  const reserved = ['CC', 'bcc', 'Bcc', 'user_id', 'User-Id', 'x-death', 'X-Delay', 'x-match', 'x-first-death-queue'];
  const more = ['x-last-death-reason', 'x-received-from', 'x-delivery-count', 'x-stream-offset', 'X-Waybill-Key'];
  test.each([...reserved, ...more, 'x-waybill-'])('%s', async (name) => {
    expect(await brokenRule({ type: 't', ...header(name) })).toBe('outbox_headers_are_publishable');
  });
  test.each(['cca', 'x-deaths', 'x-tenant', 'waybill', 'x-delayed', '__proto__', 'é'])(
    'but %s is free',
    async (name) => {
      expect(await brokenRule({ type: 't', headers: `{${JSON.stringify(name)}: "x"}` })).toBeUndefined();
    },
  );
});

describe('numbers in headers', () => {
  test.each(['1e131071', '-1e309', '1e-16000'])('%s is refused', async (number) => {
    expect(await brokenRule({ type: 't', headers: `{"n": ${number}}` })).toBe('outbox_headers_are_publishable');
  });
  test.each(['0', '-1.50', '9223372036854775807', '1e308', '5e-324'])('%s is accepted', async (number) => {
    expect(await brokenRule({ type: 't', headers: `{"n": ${number}, "b": true}` })).toBeUndefined();
  });
  // The text of these 5,000 numbers would be 655 MB: the rule must answer without writing it.
  test('a bomb of short numbers is refused without being spelled out', async () => {
    const bomb = `{${Array.from({ length: 5000 }, (_, index) => `"h${index}": 1e131071`).join()}}`;
    await client.query(`set statement_timeout = '2s'`);
    expect(await brokenRule({ type: 't', headers: bomb })).toBe('outbox_headers_are_publishable');
    await client.query('set statement_timeout = 0');
  });
});

test('the limits themselves are allowed', async () => {
  const row = {
    type: 'é'.repeat(127),
    key: 'k'.repeat(1024),
    payload: `"${'x'.repeat(15 * 1024 * 1024 - 2)}"`,
    priority: 255,
    headers: JSON.stringify({ ['h'.repeat(255)]: 'x'.repeat(48_000) }),
    routing_key: '',
    exchange: '',
    occurred_at: '1970-01-01 00:00:00Z',
  };
  expect(await brokenRule(row)).toBeUndefined();
});
