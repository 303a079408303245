import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { migrateUp } from '../../src/postgres/migrations.js';
import { rolesSql } from '../../src/postgres/roles.js';
import type { FreshDatabase } from '../support/database.js';
import { migratedDatabase } from '../support/migrated-database.js';

const REFUSED = /permission denied/;

let database: FreshDatabase;
let client: pg.Client;
const rolesMade: string[] = [];
let names: { owner: string; app: string; relay: string; observer: string; appDelete: string; operator: string };

// Roles belong to the server, so each run of this file has its own.
beforeAll(async () => {
  database = await migratedDatabase();
  const suffix = database.name.slice(-10);
  const name = (role: string) => `wb "${role}" ${suffix}`;
  names = {
    owner: name('owner'),
    app: name('app'),
    relay: name('relay'),
    observer: name('observer'),
    appDelete: name('delete'),
    operator: name('operator'),
  };
  rolesMade.push(...Object.values(names));
  client = await database.connect();
  await client.query(rolesSql(names));
});
afterAll(async () => {
  await database.drop();
  const admin = new pg.Client({ connectionString: database.server.url() });
  await admin.connect();
  for (const role of rolesMade) await admin.query(`drop role if exists "${role.replaceAll('"', '""')}"`);
  await admin.end();
});

async function as<R extends pg.QueryResultRow>(role: keyof typeof names, sql: string): Promise<pg.QueryResult<R>> {
  await client.query(`set role "${names[role].replaceAll('"', '""')}"`);
  try {
    return await client.query<R>(sql);
  } finally {
    await client.query('reset role');
  }
}

describe('the application', () => {
  test('inserts with every column of its own, has RETURNING and ON CONFLICT, publishes and cancels', async () => {
    const { rows } = await as(
      'app',
      `insert into waybill.outbox (
         id, type, key, schema_version, payload, content_type, content_encoding, headers, exchange, routing_key,
         correlation_id, causation_id, reply_to, traceparent, tracestate, priority, expires_at, deliver_at, occurred_at)
       values (gen_random_uuid(), 't', 'k', 1, '{}', 'a', 'b', '{"h":1}', 'e', 'r', 'c', 'c', 'r', 't', 't', 1, now(),
         now() + interval '1 hour', now())
       on conflict (id) do nothing returning id, seq`,
    );
    expect(rows).toHaveLength(1);
    await as('app', `insert into waybill.outbox (type, payload_bytes) values ('t', '\\x00') returning id`);
    await as('app', `select waybill.publish('t', '{}', headers => '{"a":1}'), waybill.publish_many('[{"type":"t"}]')`);
    const own = `'${String(rows[0]!.id)}'`;
    expect((await as('app', `select waybill.cancel(${own}) as answer`)).rows).toEqual([{ answer: true }]);
    const status = await as('app', `select waybill.publication_status(${own}) as answer`);
    expect(status.rows).toEqual([{ answer: 'cancelled' }]);
  });

  test.each([
    `insert into waybill.outbox (type, state) values ('t', 'discarded')`,
    `insert into waybill.outbox (type, attempts) values ('t', 1)`,
    `insert into waybill.outbox (type, created_at) values ('t', now())`,
    `insert into waybill.outbox (seq, type) overriding system value values (1, 't')`,
    `update waybill.outbox set state = 'cancelled'`,
    `update waybill.outbox set payload = null`,
    `delete from waybill.outbox`,
    `truncate waybill.outbox`,
    `select payload from waybill.outbox`,
    `select type from waybill.outbox`,
    `select * from waybill.outbox_history`,
    `select * from waybill.outbox_backlog`,
    `select * from waybill.relay`,
    `select * from waybill.installation`,
    `select waybill.keep_history(retention => '0')`,
    `select waybill.ensure_publication()`,
    `select waybill.retry(gen_random_uuid())`,
    `select waybill.discard(gen_random_uuid())`,
    `select waybill.replay(gen_random_uuid())`,
    `select * from waybill.action_log`,
    `insert into waybill.action_log (action, target) values ('a', 't')`,
    `create table waybill.mine ()`,
  ])('may not: %s', async (sql) => {
    await expect(as('app', sql)).rejects.toThrow(REFUSED);
  });
});

test('the optional deleter may delete by id what it may not read', async () => {
  await as('appDelete', `delete from waybill.outbox where id = gen_random_uuid()`);
  await as('appDelete', `delete from waybill.outbox where seq = -1`);
  await expect(as('appDelete', `select payload from waybill.outbox`)).rejects.toThrow(REFUSED);
  await expect(as('appDelete', `insert into waybill.outbox (type) values ('t')`)).rejects.toThrow(REFUSED);
});

describe('the relay', () => {
  test.each([
    `select * from waybill.outbox`,
    `update waybill.outbox set state = 'parked', attempts = attempts + 1, last_error = 'x', hold_no = nextval('waybill.outbox_hold_no')`,
    `insert into waybill.outbox (seq, id, type, headers, state, hold_no, last_error)
       overriding system value values (-5, gen_random_uuid(), 't', '{"h": 1}', 'parked', 1, 'e')`,
    `with gone as (delete from waybill.outbox where seq = any ('{-5}') returning seq, id, type)
       insert into waybill.outbox_history (outcome, seq, id, type) select 'published', * from gone`,
    `insert into waybill.relay (name) values ('default') on conflict (name) do update set epoch = relay.epoch + 1 returning epoch`,
    `update waybill.relay set checkpoint_lsn = '0/1' where name = 'default'`,
    `select id from waybill.installation`,
    `select * from waybill.migration`,
    `select * from waybill.outbox_backlog`,
    `select last_value from waybill.outbox_seq_seq`,
    `select * from waybill.keep_history()`,
    `select waybill.ensure_publication()`,
    `select waybill.retry(gen_random_uuid()), waybill.discard(gen_random_uuid(), reason => 'none')`,
    `select waybill.replay(gen_random_uuid(), as_new => true)`,
    `select waybill.adopt_relay('none'), waybill.drop_relay('none')`,
    `select id, seq from waybill.outbox_history`,
    `select system_identifier from pg_control_system()`,
    `select timeline_id from pg_control_checkpoint()`,
    `select pg_current_wal_insert_lsn()`,
    `select * from pg_replication_slots`,
    `select pg_create_logical_replication_slot('wb_grants_' || pg_backend_pid(), 'pgoutput', true)`,
    `select pg_drop_replication_slot('wb_grants_' || pg_backend_pid())`,
  ])('may: %s', async (sql) => {
    await as('relay', sql);
  });

  test.each([
    `truncate waybill.outbox`,
    `delete from waybill.outbox_history`,
    `select type from waybill.outbox_history`,
    `alter table waybill.outbox drop column payload`,
    `drop table waybill.outbox_history_default`,
    `insert into waybill.migration values (9, 'x', 1)`,
    `update waybill.installation set id = gen_random_uuid()`,
    `insert into waybill.action_log (action, target) values ('a', 't')`,
    `delete from waybill.action_log`,
    `create table waybill.mine ()`,
    `drop publication waybill_outbox`,
  ])('may not: %s', async (sql) => {
    await expect(as('relay', sql)).rejects.toThrow(/permission denied|must be owner/);
  });
});

describe('the observer', () => {
  test('reads the view', async () => {
    await as('observer', 'select * from waybill.outbox_backlog');
  });
  test.each([
    'select seq from waybill.outbox',
    'select * from waybill.outbox_history',
    'select * from waybill.relay',
    `select waybill.publish('t')`,
    `select waybill.cancel(gen_random_uuid())`,
    `select waybill.retry(gen_random_uuid())`,
    `select waybill.discard(gen_random_uuid())`,
    `select waybill.replay(gen_random_uuid())`,
    'select * from waybill.action_log',
  ])('may not: %s', async (sql) => {
    await expect(as('observer', sql)).rejects.toThrow(REFUSED);
  });
});

describe('the operator', () => {
  test.each([
    'select * from waybill.outbox',
    'select * from waybill.outbox_history',
    'select * from waybill.outbox_backlog',
    'select * from waybill.action_log',
    'select * from waybill.migration',
    `select waybill.retry(gen_random_uuid()), waybill.discard(gen_random_uuid(), reason => 'none')`,
    `select waybill.replay(gen_random_uuid(), as_new => true)`,
    `select waybill.publication_status(gen_random_uuid())`,
  ])('may: %s', async (sql) => {
    await as('operator', sql);
  });

  test.each([
    `update waybill.outbox set state = 'discarded'`,
    'delete from waybill.outbox',
    `insert into waybill.outbox (type) values ('t')`,
    `insert into waybill.action_log (action, target) values ('a', 't')`,
    'delete from waybill.action_log',
    'select * from waybill.relay',
    `select waybill.publish('t')`,
    `select waybill.keep_history()`,
  ])('may not: %s', async (sql) => {
    await expect(as('operator', sql)).rejects.toThrow(REFUSED);
  });
});

describe('the owner', () => {
  test('owns everything and cannot log in', async () => {
    const { rows } = await client.query<{ owner: number }>(
      `select 'schema' as what, nspname::text as name, nspowner as owner from pg_namespace where nspname = 'waybill'
       union all select relkind::text, relname, relowner from pg_class where relnamespace = 'waybill'::regnamespace
       union all select 'f', proname, proowner from pg_proc where pronamespace = 'waybill'::regnamespace
       union all select 'p', pubname, pubowner from pg_publication where pubname = 'waybill_outbox'`,
    );
    const owner = await client.query<{ oid: number; rolcanlogin: boolean }>(
      'select oid, rolcanlogin from pg_roles where rolname = $1',
      [names.owner],
    );
    expect(owner.rows[0]?.rolcanlogin).toBe(false);
    expect(rows.filter((row) => row.owner !== owner.rows[0]?.oid)).toEqual([]);
    expect(rows.length).toBeGreaterThan(30);
  });

  test('every SECURITY DEFINER function has a fixed search path, and nothing is granted to public', async () => {
    const { rows } = await client.query<{ name: string }>(
      `select oid::regprocedure::text as name from pg_proc
       where pronamespace = 'waybill'::regnamespace
         and (has_function_privilege('public', oid, 'execute')
           or prosecdef and not exists (
             select from unnest(proconfig) c where c = 'search_path=pg_catalog, waybill, pg_temp'))`,
    );
    expect(rows).toEqual([]);
  });
});

test('the roles may be applied again, and migrations still run afterwards', async () => {
  await client.query(rolesSql(names));
  expect(await migrateUp(client)).toEqual([]);
});

test('a role without superuser that may create roles can install, give away and repeat', async () => {
  const admin = `wb_admin_${database.name.slice(-10)}`;
  const roles = { owner: `${admin}_owner`, app: `${admin}_app`, relay: names.relay, observer: `${admin}_observer` };
  rolesMade.push(roles.owner, roles.app, roles.observer, admin);
  await client.query(`create role ${admin} login createrole`);
  await client.query(`grant create on database "${database.name}" to ${admin} with grant option`);
  const second = await database.connect();
  await second.query(`set session authorization ${admin}`);
  await migrateUp(second, { schema: 'second' });
  await second.query(rolesSql({ schema: 'second', ...roles }));
  await second.query(rolesSql({ schema: 'second', ...roles }));
  await second.query(`select * from second.keep_history(5)`);
  expect((await second.query(`select second.ensure_publication() as p`)).rows).toEqual([{ p: 'exists' }]);
  const owners = await second.query(`select distinct relowner::regrole::text as owner from pg_class
    where relnamespace = 'second'::regnamespace`);
  expect(owners.rows).toEqual([{ owner: roles.owner }]);
});

test('without CREATE on the database, making the publication says what to grant', async () => {
  const poor = `wb_poor_${database.name.slice(-10)}`;
  rolesMade.push(poor);
  await client.query(`create role ${poor}; create schema third authorization ${poor}; set role ${poor}`);
  const refused = migrateUp(client, { schema: 'third' });
  await expect(refused).rejects.toMatchObject({
    code: 'WAYBILL_MIGRATION_FAILED',
    hint: `A publication needs CREATE on the database: grant create on database ${database.name} to ${poor};`,
  });
  await client.query('reset role');
});
