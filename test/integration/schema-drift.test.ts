import { readFileSync, writeFileSync } from 'node:fs';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { readContents } from '../../src/postgres/uninstall.js';
import { freshDatabase, type FreshDatabase } from '../support/database.js';
import { migratedDatabase } from '../support/migrated-database.js';
import { dumpSchema } from '../support/schema-dump.js';

const FILE = new URL('../../sql/schema.sql', import.meta.url);
const MEND = 'sql/schema.sql is not what the migrations make. Mend it with: npm run generate';

let migrated: FreshDatabase;
let empty: FreshDatabase;

beforeAll(async () => {
  migrated = await migratedDatabase();
  empty = await freshDatabase();
});
afterAll(() => Promise.all([migrated.drop(), empty.drop()]));

test('schema.sql is what the migrations make', async () => {
  const made = await dumpSchema(await migrated.connect());
  if (process.env.WAYBILL_GENERATE === '1') writeFileSync(FILE, made);
  expect(readFileSync(FILE, 'utf8'), MEND).toBe(made);
});

test('schema.sql is SQL, and makes the same schema', async () => {
  const client = await empty.connect();
  const file = readFileSync(FILE, 'utf8');
  await client.query(file);
  expect(await dumpSchema(client)).toBe(file);
});

test('everything in the schema carries a comment', async () => {
  const rows = await migrated.query<{ name: string }>(
    `select 'relation ' || c.relname as name, obj_description(c.oid, 'pg_class') as text from pg_class c
     where c.relnamespace = 'waybill'::regnamespace and c.relkind in ('r', 'p', 'v')
       and c.relname !~ '^outbox_history_[0-9]{8}$'
     union all
     select 'column ' || c.relname || '.' || a.attname, col_description(c.oid, a.attnum) from pg_class c
     join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
     where c.relnamespace = 'waybill'::regnamespace and c.relkind in ('r', 'p', 'v') and not c.relispartition
     union all
     select 'function ' || p.proname, obj_description(p.oid, 'pg_proc') from pg_proc p
     where p.pronamespace = 'waybill'::regnamespace`,
  );
  expect(rows.length).toBeGreaterThan(80);
  expect(rows.filter((row) => !('text' in row) || !row.text)).toEqual([]);
});

test('uninstall knows every relation as ours', async () => {
  expect((await readContents(await migrated.connect(), 'waybill'))?.foreign).toEqual([]);
});
