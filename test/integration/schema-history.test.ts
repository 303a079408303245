import type pg from 'pg';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import type { FreshDatabase } from '../support/database.js';
import { migratedDatabase } from '../support/migrated-database.js';

let database: FreshDatabase;
let client: pg.Client;
let other: pg.Client;

beforeAll(async () => {
  database = await migratedDatabase();
  client = await database.connect();
  other = await database.connect();
});
afterAll(() => database.drop());

beforeEach(async () => {
  await client.query('truncate waybill.outbox_history');
  await dropDays();
  await keep(3, '7 days');
});

interface Act {
  partition: string;
  action: string;
}

async function keep(daysAhead: number, retention: string): Promise<Act[]> {
  return (await client.query<Act>('select * from waybill.keep_history($1, $2)', [daysAhead, retention])).rows;
}

/** The name of the partition of a day, counted from today (UTC). */
function day(offset: number): string {
  return `outbox_history_${new Date(Date.now() + offset * 86_400_000).toISOString().slice(0, 10).replaceAll('-', '')}`;
}

async function days(): Promise<string[]> {
  const { rows } = await client.query<{ name: string }>(
    `select c.relname::text as name from pg_inherits i join pg_class c on c.oid = i.inhrelid
     where i.inhparent = 'waybill.outbox_history'::regclass and c.relname <> 'outbox_history_default' order by 1`,
  );
  return rows.map(({ name }) => name);
}

async function dropDays(): Promise<void> {
  for (const name of await days()) await client.query(`drop table waybill.${name}`);
}

/** Attaches the partition of a past day, as a call on that day would have. */
async function pastDay(offset: number): Promise<void> {
  const from = new Date(Date.now() + offset * 86_400_000).toISOString().slice(0, 10);
  const to = new Date(Date.now() + (offset + 1) * 86_400_000).toISOString().slice(0, 10);
  await client.query(
    `create table waybill.${day(offset)} partition of waybill.outbox_history for values from ('${from} 00:00+00') to ('${to} 00:00+00')`,
  );
}

async function settle(at: string, count = 1): Promise<string> {
  const { rows } = await client.query<{ name: string }>(
    `with written as (
       insert into waybill.outbox_history (settled_at, outcome, id, type)
       select $1, 'published', gen_random_uuid(), 't' from generate_series(1, $2) returning tableoid)
     select distinct tableoid::regclass::text as name from written`,
    [at, count],
  );
  return rows.map(({ name }) => name.replace('waybill.', '')).join();
}

test('partitions are there for today and three days ahead, and rows go to their day', async () => {
  expect(await days()).toEqual([day(0), day(1), day(2), day(3)]);
  expect(await settle('now')).toBe(day(0));
  expect(await keep(3, '7 days')).toEqual([]);
});

test('days are days of UTC whatever the session says', async () => {
  await dropDays();
  await client.query(`set timezone = 'Pacific/Kiritimati'; set datestyle = 'SQL, DMY'`);
  expect((await keep(1, '7 days')).map(({ partition }) => partition)).toEqual([day(0), day(1)]);
  await client.query('reset timezone; reset datestyle');
  const { rows } = await client.query<{ bound: string }>(
    `select pg_get_expr(relpartbound, oid) as bound from pg_class where relname = $1`,
    [day(0)],
  );
  const today = new Date().toISOString().slice(0, 10);
  expect(rows[0]?.bound).toContain(`FROM ('${today} 00:00:00+00')`);
});

test('a new partition has the indexes and rules of the table', async () => {
  const { rows } = await client.query<{ count: number }>(
    `select count(*)::int as count from pg_index where indrelid = $1::regclass`,
    [`waybill.${day(3)}`],
  );
  expect(rows[0]?.count).toBe(3);
  await expect(
    client.query(`insert into waybill.outbox_history (outcome, id, type) values ('lost', gen_random_uuid(), 't')`),
  ).rejects.toThrow('outbox_history_outcome_is_known');
});

test('F7: days wholly older than the retention go, younger ones stay', async () => {
  await pastDay(-9);
  await pastDay(-7);
  await pastDay(-6);
  expect(await keep(3, '7 days')).toEqual([{ partition: day(-9), action: 'dropped' }]);
  expect(await days()).toEqual([day(-7), day(-6), day(0), day(1), day(2), day(3)]);
});

test('at most ten days go in one call', async () => {
  for (let offset = -31; offset <= -20; offset += 1) await pastDay(offset);
  expect(await keep(3, '7 days')).toHaveLength(10);
  expect(await keep(3, '7 days')).toHaveLength(2);
});

test('a missing partition is no error: rows fall to the default one and move when the day gets its own', async () => {
  await dropDays();
  expect(await settle('now', 3)).toBe('outbox_history_default');
  expect(await keep(0, '7 days')).toEqual([{ partition: day(0), action: 'created' }]);
  const { rows } = await client.query(
    `select tableoid::regclass::text as place, count(*)::int from waybill.outbox_history group by 1`,
  );
  expect(rows).toEqual([{ place: `waybill.${day(0)}`, count: 3 }]);
});

test('more rows than can be moved quickly stay in the default partition until they are trimmed', async () => {
  await dropDays();
  await settle('now', 10_001);
  expect(await keep(0, '7 days')).toEqual([{ partition: day(0), action: 'left in default' }]);
  expect(await keep(0, '0')).toEqual([
    { partition: day(0), action: 'left in default' },
    { partition: 'outbox_history_default', action: 'trimmed' },
  ]);
  expect((await client.query('select from waybill.outbox_history')).rowCount).toBe(0);
});

test('F7: a reader of the whole history makes it "later", soon and without an error', async () => {
  await pastDay(-20);
  await other.query('begin; select count(*) from waybill.outbox_history');
  const started = performance.now();
  expect(await keep(4, '7 days')).toEqual([
    { partition: day(4), action: 'later' },
    { partition: day(-20), action: 'later' },
  ]);
  expect(performance.now() - started).toBeLessThan(1_500);
  expect(await settle('now')).toBe(day(0));
  await other.query('commit');
  expect(await keep(4, '7 days')).toEqual([
    { partition: day(4), action: 'created' },
    { partition: day(-20), action: 'dropped' },
  ]);
});

test('a writer of today does not stop tomorrow from being made', async () => {
  await other.query(
    `begin; insert into waybill.outbox_history (outcome, id, type) values ('published', gen_random_uuid(), 't')`,
  );
  expect(await keep(4, '7 days')).toEqual([{ partition: day(4), action: 'created' }]);
  await other.query('commit');
});

test('two callers at once: one works, the other is told to come later', async () => {
  await other.query('begin; select * from waybill.keep_history(5)');
  expect(await keep(6, '7 days')).toEqual([{ partition: 'outbox_history', action: 'later' }]);
  await other.query('commit');
  expect(await keep(6, '7 days')).toEqual([{ partition: day(6), action: 'created' }]);
});

test.each([
  ['-1', '7 days', 'days_ahead must be 0 to 366'],
  ['3', '-1 day', 'retention must not be negative'],
])('days_ahead %s and retention %s are refused', async (daysAhead, retention, refusal) => {
  await expect(keep(Number(daysAhead), retention)).rejects.toThrow(refusal);
});

test('the publication is made once, again if it is gone, and mended if it lost the table', async () => {
  const ensure = async () => (await client.query<{ p: string }>('select waybill.ensure_publication() as p')).rows[0]?.p;
  expect(await ensure()).toBe('exists');
  await client.query('drop publication waybill_outbox');
  expect(await ensure()).toBe('created');
  await client.query('alter publication waybill_outbox drop table waybill.outbox');
  expect(await ensure()).toBe('created');
  const { rows } = await client.query(
    `select pubinsert, pubupdate, pubdelete, pubtruncate, tablename::text
     from pg_publication p join pg_publication_tables t using (pubname) where pubname = 'waybill_outbox'`,
  );
  expect(rows).toEqual([
    { pubinsert: true, pubupdate: false, pubdelete: false, pubtruncate: false, tablename: 'outbox' },
  ]);
});
