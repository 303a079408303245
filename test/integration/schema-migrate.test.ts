import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import type pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { applyMigrations, printMigrations, printRoles, readMigrationStatus } from '../../src/app/migrate.js';
import {
  checkSchema,
  loadMigrations,
  migrateUp,
  migrationStatus,
  SCHEMA_VERSION,
  type Migration,
} from '../../src/postgres/migrations.js';
import { freshDatabase, type FreshDatabase } from '../support/database.js';

let database: FreshDatabase;
let client: pg.Client;

beforeAll(async () => {
  database = await freshDatabase();
  client = await database.connect();
});
afterAll(() => database.drop());

const NEXT = SCHEMA_VERSION + 1;
const FILE = `${String(NEXT).padStart(4, '0')}_x.sql`;
const FILES = loadMigrations().map(({ file }) => file);

function migration(version: number, body: string, oldestBinary = 1): Migration {
  const insert = `insert into waybill.migration (version, name, oldest_binary) values (${version}, 'x', ${oldestBinary});`;
  const sql = `-- oldest-binary: ${oldestBinary}\nbegin;\nset local lock_timeout = '200ms';\n${body}\n${insert}\ncommit;\n`;
  return { version, name: 'x', file: `${String(version).padStart(4, '0')}_x.sql`, oldestBinary, sql };
}

describe('migrateUp', () => {
  test('applies once, then finds nothing to do', async () => {
    const lines: string[] = [];
    const options = { schema: 'twice', log: (line: string) => lines.push(line) };
    expect(await migrateUp(client, options)).toHaveLength(SCHEMA_VERSION);
    expect(await migrateUp(client, options)).toEqual([]);
    expect(lines).toEqual(FILES.map((file) => `applied ${file}`));
  });

  // Why many rounds: a stale answer about what is installed came in one of twenty.
  test('two at once: each migration is applied by one of them, the other waits and finds it done', async () => {
    const pair = [client, await database.connect()];
    for (let round = 1; round <= 15; round += 1) {
      const both = await Promise.all(pair.map((one) => migrateUp(one, { schema: `at_once_${round}` })));
      const versions = both.flatMap((applied) => applied.map(({ version }) => version));
      expect(versions.sort((a, b) => a - b)).toEqual(loadMigrations().map(({ version }) => version));
    }
  });

  test('schemas stand side by side in one database', async () => {
    await migrateUp(client);
    await migrateUp(client, { schema: 'orders_events' });
    await client.query(`select orders_events.publish('t', '{}', headers => '{"a": 1}'), orders_events.publish('t')`);
    await client.query(`select waybill.publish('t')`);
    const counts = await client.query(
      `select (select count(*)::int from waybill.outbox) as ours, (select count(*)::int from orders_events.outbox) as theirs,
        (select array_agg(tablename::text || ' ' || pubname order by pubname) from pg_publication_tables
         where pubname in ('waybill_outbox', 'orders_events_outbox') and schemaname || '_outbox' = pubname) as publications`,
    );
    expect(counts.rows[0]).toEqual({
      ours: 1,
      theirs: 2,
      publications: ['outbox orders_events_outbox', 'outbox waybill_outbox'],
    });
    expect((await client.query(`select * from orders_events.keep_history(4)`)).rowCount).toBe(1);
  });

  test('another schema takes nothing from the default one: every function names its own', async () => {
    const { rows } = await client.query<{ body: string }>(
      `select pg_get_functiondef(oid) as body from pg_proc where pronamespace = 'orders_events'::regnamespace`,
    );
    expect(rows.length).toBeGreaterThan(5);
    expect(rows.filter(({ body }) => /\bwaybill\b/.test(body))).toEqual([]);
  });

  test('a fresh schema gives nothing to everybody', async () => {
    const { rows } = await client.query(
      `select proname::text as name from pg_proc
       where pronamespace = 'waybill'::regnamespace and has_function_privilege('public', oid, 'execute')
       union all select relname from pg_class
       where relnamespace = 'waybill'::regnamespace and has_table_privilege('public', oid, 'select')
       union all select 'schema' where has_schema_privilege('public', 'waybill', 'usage')`,
    );
    expect(rows).toEqual([]);
  });

  test('a failure names file and line and leaves nothing', async () => {
    const broken = migration(NEXT, 'create table waybill.left_over ();\n\nselect 1,\n  nosuch;');
    await expect(migrateUp(client, { migrations: [...loadMigrations(), broken] })).rejects.toMatchObject({
      code: 'WAYBILL_MIGRATION_FAILED',
      message: `${FILE}:7: column "nosuch" does not exist`,
    });
    const left = await client.query(
      `select to_regclass('waybill.left_over') as left_over, txid_current_if_assigned() as tx`,
    );
    expect(left.rows[0]).toEqual({ left_over: null, tx: null });
  });

  test('a lock that is held is asked for again', async () => {
    await migrateUp(client, { schema: 'locked' });
    const holder = await database.connect();
    await holder.query('begin; lock table locked.outbox in access exclusive mode');
    const lines: string[] = [];
    let released: Promise<unknown> | undefined;
    await migrateUp(client, {
      schema: 'locked',
      migrations: [...loadMigrations(), migration(NEXT, 'alter table waybill.outbox add column more int;')],
      log: (line) => {
        lines.push(line);
        released ??= holder.query('rollback');
      },
    });
    expect(lines).toEqual([
      `${FILE}: a lock was not to be had within its time, trying again (1 of 5)`,
      `applied ${FILE}`,
    ]);
    await released;
    expect((await client.query('select more from locked.outbox')).rowCount).toBe(0);
  });

  test.each(['Upper', 'pg_own', 'a-b', '', '9a', 'x'.repeat(42), 'a"b', 'information_schema'])(
    'the schema name %j is refused',
    async (schema) => {
      await expect(migrateUp(client, { schema })).rejects.toMatchObject({ code: 'WAYBILL_CONFIG_INVALID' });
    },
  );

  test('the installation has one row and keeps its id', async () => {
    const { rows } = await client.query<{ id: string }>('select id from waybill.installation');
    expect(rows).toHaveLength(1);
    await expect(client.query('insert into waybill.installation default values')).rejects.toThrow('installation_pkey');
    await expect(client.query('insert into waybill.installation (only_row) values (false)')).rejects.toThrow(
      'installation_has_one_row',
    );
  });
});

describe('F123: versions of schema and program', () => {
  const check = (schema: string, programVersion = SCHEMA_VERSION) => checkSchema(client, { schema, programVersion });

  test('nothing installed', async () => {
    await expect(check('nothing_here')).rejects.toMatchObject({ code: 'WAYBILL_SCHEMA_MISSING' });
    expect(await migrationStatus(client, { schema: 'nothing_here' })).toMatchObject({ version: 0, applied: [] });
  });

  test('an older schema is refused, a newer one only when it says so', async () => {
    await migrateUp(client, { schema: 'versions' });
    await check('versions');
    await expect(check('versions', SCHEMA_VERSION + 1)).rejects.toMatchObject({ code: 'WAYBILL_SCHEMA_TOO_OLD' });
    const next = migration(SCHEMA_VERSION + 1, '', SCHEMA_VERSION);
    await migrateUp(client, { schema: 'versions', migrations: [...loadMigrations(), next] });
    await check('versions');
    const contracted = migration(SCHEMA_VERSION + 2, '', SCHEMA_VERSION + 1);
    await migrateUp(client, { schema: 'versions', migrations: [...loadMigrations(), next, contracted] });
    await expect(check('versions')).rejects.toMatchObject({ code: 'WAYBILL_SCHEMA_TOO_NEW' });
    await check('versions', SCHEMA_VERSION + 1);
  });

  test('N-1: a program built for version 1 runs on the newest version', async () => {
    await migrateUp(client, { schema: 'one_newer' });
    expect(await migrationStatus(client, { schema: 'one_newer' })).toMatchObject({
      version: SCHEMA_VERSION,
      oldestBinary: 1,
    });
    await check('one_newer', 1);
  });

  test('a program built for version 2 asks for the migration on version 1', async () => {
    await migrateUp(client, { schema: 'one_older', migrations: loadMigrations().slice(0, 1) });
    await check('one_older', 1);
    await expect(check('one_older', 2)).rejects.toMatchObject({ code: 'WAYBILL_SCHEMA_TOO_OLD' });
    expect(await migrateUp(client, { schema: 'one_older' })).toHaveLength(SCHEMA_VERSION - 1);
    await check('one_older', 2);
  });

  test('a role without rights on the schema is told about grants', async () => {
    const role = `wb_stranger_${database.name.slice(-10)}`;
    await client.query(`create role ${role}; set role ${role}`);
    try {
      await expect(check('versions')).rejects.toMatchObject({ code: 'WAYBILL_DATABASE_REFUSED' });
    } finally {
      await client.query(`reset role; drop role ${role}`);
    }
  });
});

describe('the migrate command', () => {
  test('applies and reports', async () => {
    const target = { servers: [{ url: database.url }], schema: 'by_command' } as const;
    expect(await readMigrationStatus(target)).toMatchObject({ version: 0, pending: loadMigrations() });
    expect(await applyMigrations(target, () => undefined)).toEqual(
      loadMigrations().map(({ version, name }) => ({ version, name })),
    );
    expect(await readMigrationStatus(target)).toMatchObject({
      version: SCHEMA_VERSION,
      pending: [],
      applied: loadMigrations().map(({ name }) => ({ name })),
    });
  });

  // psql is what many people apply reviewed SQL with, so it is a promise of its own.
  test('prints SQL that psql runs, roles included', async () => {
    const suffix = database.name.slice(-10);
    const names = { owner: `o_${suffix}`, app: `a_${suffix}`, relay: `r_${suffix}`, observer: `v_${suffix}` };
    try {
      await psql(printMigrations('by_psql'));
      await psql(printRoles({ schema: 'by_psql', ...names }));
      await psqlFile(new URL('../../sql/roles.sql', import.meta.url), { schema: 'by_psql', ...names });
      await checkSchema(client, { schema: 'by_psql' });
      expect(await migrateUp(client, { schema: 'by_psql' })).toEqual([]);
    } finally {
      await client.query(`drop publication by_psql_outbox; drop schema by_psql cascade`);
      for (const role of Object.values(names)) await client.query(`drop owned by ${role}; drop role ${role}`);
    }
  });

  test('prints from a number on', () => {
    expect(printMigrations('waybill', SCHEMA_VERSION + 1)).toBe('');
    expect(printMigrations('waybill')).toContain('create table waybill.outbox (');
    expect(printMigrations('other')).toContain('create table "other".outbox (');
  });
});

const run = promisify(execFile);

function psql(sql: string): Promise<unknown> {
  const running = run('psql', ['-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', database.url, '-f', '-']);
  running.child.stdin?.end(sql);
  return running;
}

function psqlFile(file: URL, variables: Record<string, string>): Promise<unknown> {
  const settings = Object.entries(variables).flatMap(([name, value]) => ['-v', `${name}=${value}`]);
  return run('psql', ['-X', '-q', '-v', 'ON_ERROR_STOP=1', ...settings, '-d', database.url, '-f', file.pathname]);
}
