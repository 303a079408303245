import type pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { FreshDatabase } from '../support/database.js';
import { migratedDatabase } from '../support/migrated-database.js';

let database: FreshDatabase;
let client: pg.Client;

beforeAll(async () => {
  database = await migratedDatabase();
  client = await database.connect();
});
afterAll(() => database.drop());

const HASH = Buffer.alloc(32);
const TOKEN = '00000000-0000-4000-8000-000000000000';
const NOW = '2026-01-01';

/** Inserts one row in a transaction that is rolled back; resolves with the broken constraint, or undefined. */
async function brokenRule(row: Record<string, unknown>): Promise<string | undefined> {
  const all = { consumer: 'c', message_id: 'a', body: '', body_hash: HASH, ...row };
  const columns = Object.keys(all);
  await client.query('begin');
  try {
    await client.query(
      `insert into waybill.inbox (${columns.join()}) values (${columns.map((_, n) => `$${n + 1}`).join()})`,
      Object.values(all),
    );
    return undefined;
  } catch (error) {
    return (error as pg.DatabaseError).constraint ?? (error as Error).message;
  } finally {
    await client.query('rollback');
  }
}

test.each<[rule: string, row: Record<string, unknown>]>([
  ['inbox_status_is_known', { status: 'lost' }],
  ['inbox_message_id_is_1_to_1024_bytes', { message_id: '' }],
  ['inbox_message_id_is_1_to_1024_bytes', { message_id: 'x'.repeat(1025) }],
  ['inbox_key_at_most_1024_bytes', { key: 'é'.repeat(513) }],
  ['inbox_type_at_most_1024_bytes', { type: 'x'.repeat(1025) }],
  ['inbox_headers_are_an_object', { headers: '[]' }],
  ['inbox_body_hash_is_32_bytes', { body_hash: Buffer.alloc(31) }],
  ['inbox_only_redacted_rows_have_no_body_hash', { body_hash: null }],
  ['inbox_counters_are_not_negative', { failures: -1 }],
  ['inbox_counters_are_not_negative', { abandoned: -1 }],
  ['inbox_running_rows_are_claimed', { status: 'running' }],
  ['inbox_running_rows_are_claimed', { status: 'running', claim_token: TOKEN }],
  ['inbox_running_rows_are_claimed', { claim_token: TOKEN, lease_until: NOW }],
  ['inbox_waiting_rows_have_a_next_attempt', { status: 'waiting' }],
  ['inbox_waiting_rows_have_a_next_attempt', { next_attempt_at: NOW }],
  ['inbox_blocked_rows_have_a_key', { status: 'blocked' }],
  ['inbox_processed_rows_say_when', { status: 'done' }],
  ['inbox_processed_rows_say_when', { status: 'discarded' }],
  ['inbox_processed_rows_say_when', { processed_at: NOW }],
  ['inbox_dead_rows_say_why', { status: 'dead', processed_at: NOW }],
  ['inbox_dead_rows_say_why', { dead_reason: 'never' }],
  ['inbox_dead_reason_is_a_word', { status: 'dead', processed_at: NOW, dead_reason: 'No reason!' }],
  ['inbox_results_are_of_done_rows', { result: 'x' }],
  ['inbox_unprocessed_rows_have_a_body', { body: null }],
])('%s', async (rule, row) => {
  expect(await brokenRule(row)).toBe(rule);
});

test.each<[status: string, row: Record<string, unknown>]>([
  ['pending', {}],
  ['running', { claim_token: TOKEN, lease_until: NOW }],
  ['waiting', { next_attempt_at: NOW }],
  ['blocked', { key: 'k' }],
  ['done', { processed_at: NOW, result: 'x', body: null }],
  ['dead', { processed_at: NOW, dead_reason: 'not-yet' }],
  ['discarded', { processed_at: NOW, body: null, body_hash: null, redacted_at: NOW }],
])('a row can be %s', async (status, row) => {
  expect(await brokenRule({ status, ...row })).toBeUndefined();
});

test('I3: a message id is there once per consumer', async () => {
  const insert = (consumer: string) =>
    client.query('insert into waybill.inbox (consumer, message_id, body, body_hash) values ($1, $2, $3, $4)', [
      consumer,
      'a',
      '',
      HASH,
    ]);
  await insert('one');
  await insert('two');
  await expect(insert('one')).rejects.toMatchObject({ constraint: 'inbox_message_id_is_unique_per_consumer' });
});
