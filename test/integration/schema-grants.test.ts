import { randomBytes } from 'node:crypto';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { printMigrations } from '../../src/app/migrate.js';
import { loadMigrations, migrateUp, SCHEMA_VERSION, type Migration } from '../../src/postgres/migrations.js';
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

/** A consumer with one message, which the relay received. */
async function received(consumer: string): Promise<void> {
  await as('relay', `select * from waybill.register_consumers('[{"name": "${consumer}", "queue": "${consumer}"}]')`);
  await as('relay', `select * from waybill.inbox_receive('${consumer}', '[{"message_id": "a", "size": 2}]', '{}')`);
}

describe('the inbox', () => {
  const claimAndComplete = (consumer: string): string =>
    `select waybill.inbox_complete(seq, claim_token) from waybill.inbox_claim('${consumer}')`;

  test('the application claims rows of the consumers that it was granted, and of no others: WB007', async () => {
    await received('granted');
    await received('foreign');
    await expect(as('app', claimAndComplete('granted'))).rejects.toMatchObject({
      code: 'WB007',
      hint: expect.stringContaining(`waybill.grant_consumer('granted', '${names.app}')`) as string,
    });
    await client.query('select waybill.grant_consumer($1, $2)', ['granted', names.app]);
    expect((await as('app', claimAndComplete('granted'))).rowCount).toBe(1);
    await expect(as('app', claimAndComplete('foreign'))).rejects.toMatchObject({ code: 'WB007' });
    const { rows } = await client.query<{ seq: string; claim_token: string }>(
      `select * from waybill.inbox_claim('foreign')`,
    );
    for (const call of ['inbox_complete', 'inbox_defer', 'inbox_release', 'inbox_extend', 'inbox_handling']) {
      const stolen = as('app', `select waybill.${call}(${rows[0]?.seq}, '${rows[0]?.claim_token}')`);
      await expect(stolen).rejects.toMatchObject({ code: 'WB007' });
    }
    await client.query('select waybill.revoke_consumer($1, $2)', ['granted', names.app]);
    await expect(as('app', claimAndComplete('granted'))).rejects.toMatchObject({ code: 'WB007' });
  });

  test('members of a granted role claim too; a role that does not exist cannot be granted', async () => {
    await received('grouped');
    await client.query('select waybill.grant_consumer($1, $2)', ['grouped', names.appDelete]);
    await expect(as('app', claimAndComplete('grouped'))).rejects.toMatchObject({ code: 'WB007' });
    await client.query(`grant "${names.appDelete.replaceAll('"', '""')}" to "${names.app.replaceAll('"', '""')}"`);
    expect((await as('app', claimAndComplete('grouped'))).rowCount).toBe(1);
    await client.query(`revoke "${names.appDelete.replaceAll('"', '""')}" from "${names.app.replaceAll('"', '""')}"`);
    await expect(client.query(`select waybill.grant_consumer('x', 'nobody at all')`)).rejects.toMatchObject({
      code: '42704',
    });
  });

  test.each([
    `select waybill.first_time('SCOPE', 'k')`,
    `select waybill.first_result('SCOPE', 'k')`,
    `select waybill.newer('SCOPE', 'k', 1)`,
  ])('a scope that was granted is for the granted roles and the program, any other for everybody: %s', async (sql) => {
    await received('scoped');
    await as('app', sql.replace('SCOPE', 'scoped'));
    for (const scope of ['scoped', 'charge-card']) {
      const using = sql.replace('SCOPE', scope);
      await client.query('select waybill.grant_consumer($1, $2)', [scope, names.appDelete]);
      await expect(as('app', using)).rejects.toMatchObject({
        code: 'WB007',
        hint: expect.stringContaining(`waybill.grant_consumer('${scope}', '${names.app}')`) as string,
      });
      await as('relay', using);
      await client.query(using);
      await client.query('select waybill.grant_consumer($1, $2)', [scope, names.app]);
      await as('app', using);
      for (const role of [names.app, names.appDelete]) {
        await client.query('select waybill.revoke_consumer($1, $2)', [scope, role]);
      }
      await as('app', using);
    }
  });

  test('an sql handler runs as the relay, so it needs EXECUTE; without it the consumer is broken: WB006', async () => {
    await client.query(`
      create schema shop;
      create function shop.on_event(waybill.inbox_message) returns text language sql as 'select current_user::text';
      revoke all on function shop.on_event from public`);
    await as(
      'relay',
      `select * from waybill.register_consumers('[{"name": "shop", "queue": "shop", "handler": "sql", "function": "shop.on_event"}]')`,
    );
    const relay = `"${names.relay.replaceAll('"', '""')}"`;
    const receiving = (id: string) =>
      as<{ status: string }>(
        'relay',
        `select status from waybill.inbox_receive('shop', '[{"message_id": "${id}", "size": 2}]', '{}')`,
      );
    await expect(receiving('a')).rejects.toMatchObject({
      code: 'WB006',
      hint: expect.stringContaining('grant usage on schema shop') as string,
    });
    await client.query(`grant usage on schema shop to ${relay}`);
    await expect(receiving('a')).rejects.toMatchObject({
      code: 'WB006',
      hint: expect.stringContaining('grant execute on function') as string,
    });
    await client.query(`grant execute on function shop.on_event to ${relay}`);
    expect((await receiving('a')).rows).toEqual([{ status: 'done' }]);
    expect((await client.query(`select result from waybill.inbox where consumer = 'shop'`)).rows).toEqual([
      { result: names.relay },
    ]);
  });

  test.each([`select waybill.first_time('s', 'k', 'r'), waybill.first_result('s', 'k'), waybill.newer('s', 'k', 1)`])(
    'the application may: %s',
    async (sql) => {
      await as('app', sql);
    },
  );

  test.each([
    'select * from waybill.inbox',
    'select * from waybill.inbox_attempt',
    'select * from waybill.consumer',
    'select * from waybill.idempotency',
    'select * from waybill.inbox_backlog',
    `insert into waybill.consumer_grant (consumer, role_name) values ('foreign', 'x')`,
    `select waybill.grant_consumer('foreign', 'x')`,
    `select waybill.register_consumers('[]')`,
    `select waybill.inbox_receive('foreign', '[]', '')`,
    `select waybill.inbox_claim_rows('foreign', '{1}')`,
    `select waybill.inbox_settle('foreign', gen_random_uuid(), '[]')`,
    `select waybill.inbox_deaths_done('foreign', '{}', '{}')`,
    `select * from waybill.inbox_uncopied`,
    `select waybill.inbox_retry('foreign', 'a')`,
    `select waybill.consumer_pause('foreign', 'x')`,
    `select waybill.redact(key => 'k')`,
    `select waybill.clean_idempotency()`,
    `select waybill.clean_freshness('2000-01-01')`,
    `select waybill.clean_actions()`,
    `select waybill.rename_begin('foreign', 'x')`,
    `select * from waybill.redact_count(key => 'k')`,
  ])('the application may not: %s', async (sql) => {
    await expect(as('app', sql)).rejects.toThrow(REFUSED);
  });

  test.each([
    'select * from waybill.inbox_backlog',
    `select * from waybill.inbox_due('foreign')`,
    `select * from waybill.inbox_sweep('foreign')`,
    `select * from waybill.inbox_deaths('foreign')`,
    `select waybill.inbox_deaths_copied('foreign', now(), 1)`,
    `select * from waybill.inbox_deaths_claim('foreign', 1, 1, '1 minute')`,
    `select waybill.inbox_deaths_done('foreign', '{}', '{}'), waybill.inbox_deaths_keep('foreign', '{}', '{}')`,
    `select * from waybill.inbox_clean('foreign')`,
    `select * from waybill.clean_idempotency()`,
    `select waybill.freshness_limit()`,
    `select * from waybill.clean_freshness('2000-01-01')`,
    `select * from waybill.clean_actions()`,
    `select waybill.inbox_wake('foreign')`,
    `select waybill.consumer_break('foreign', 'x'), waybill.consumer_mend('foreign')`,
    `select waybill.inbox_refund('foreign', '{1}', now())`,
    `select waybill.inbox_give_back('foreign', '{1}', '{1}')`,
    `select waybill.inbox_extend_rows('foreign', '{1}', gen_random_uuid(), '1 minute')`,
    `select * from waybill.inbox_settle('foreign', gen_random_uuid(), '[{"seq": 1, "verdict": "done"}]')`,
    `select waybill.inbox_fail(seq, claim_token, 'x') from waybill.inbox_claim('foreign')`,
    `select waybill.inbox_retry('foreign', 'a'), waybill.inbox_replay('foreign', 'a'), waybill.inbox_discard('foreign', 'a')`,
    `select waybill.inbox_postpone('foreign', 'a', '1 s'), waybill.consumer_pause('foreign', 'x'), waybill.consumer_resume('foreign')`,
    `select * from waybill.redact(key => 'nobody')`,
  ])('the relay may: %s', async (sql) => {
    await as('relay', sql);
  });

  test.each([
    `insert into waybill.consumer_grant (consumer, role_name) values ('foreign', 'x')`,
    `select waybill.grant_consumer('foreign', 'x')`,
    `insert into waybill.idempotency (scope, key) values ('s', 'k')`,
    'delete from waybill.idempotency',
    'delete from waybill.freshness',
    'truncate waybill.inbox',
    'delete from waybill.inbox_uncopied',
  ])('the relay may not: %s', async (sql) => {
    await expect(as('relay', sql)).rejects.toThrow(REFUSED);
  });

  test.each([
    'select * from waybill.inbox, waybill.inbox_attempt, waybill.consumer, waybill.consumer_grant, waybill.inbox_backlog',
    `select waybill.payload(i) from waybill.inbox i`,
    `select waybill.inbox_retry('foreign', 'a'), waybill.inbox_replay('foreign', 'a'), waybill.inbox_discard('foreign', 'a')`,
    `select waybill.inbox_postpone('foreign', 'a', '1 s'), waybill.consumer_pause('foreign', 'x'), waybill.consumer_resume('foreign')`,
    `select waybill.rename_consumer('foreign', 'foreign2'), waybill.forget_consumer('foreign2', force => true)`,
    `select * from waybill.redact(key => 'nobody')`,
    `select * from waybill.redact_count(key => 'nobody')`,
    `select waybill.rename_wait()`,
  ])('the operator may: %s', async (sql) => {
    await as('operator', sql);
  });

  test.each([
    `update waybill.inbox set status = 'done'`,
    `delete from waybill.inbox`,
    `select waybill.inbox_claim('granted')`,
    `select waybill.grant_consumer('granted', 'x')`,
    `select waybill.inbox_clean('granted')`,
    `select waybill.clean_idempotency()`,
    `select waybill.clean_freshness('2000-01-01')`,
    `select waybill.clean_actions()`,
  ])('the operator may not: %s', async (sql) => {
    await expect(as('operator', sql)).rejects.toThrow(REFUSED);
  });

  test.each([
    'select * from waybill.inbox',
    `select waybill.inbox_retry('granted', 'a')`,
    `select waybill.inbox_claim('granted')`,
  ])('the observer may not: %s', async (sql) => {
    await expect(as('observer', sql)).rejects.toThrow(REFUSED);
  });
});

describe('the observer', () => {
  test('reads the views', async () => {
    await as('observer', 'select * from waybill.outbox_backlog');
    await as('observer', 'select * from waybill.inbox_backlog');
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

// 6 is the last version without functions that call others of Waybill's as the owner.
describe.each([
  ['migrate up', (schema: string, on: pg.Client) => migrateUp(on, { schema })],
  ['the printed SQL', (schema: string, on: pg.Client) => on.query(printMigrations(schema, 7))],
])('F123: migrations by another role than the owner: %s', (_, migrate) => {
  const schema = `later_${randomBytes(4).toString('hex')}`;

  test('what they make is the owner’s, and applications go on before the roles are applied again', async () => {
    await migrateUp(client, { schema, migrations: loadMigrations().slice(0, 6) });
    await client.query(rolesOfThen(schema));
    await migrate(schema, client);
    expect(await notOfItsOwner(schema)).toEqual([]);
    const due = `deliver_at => now() + interval '1 hour'`;
    const [row] = (await client.query<{ id: string }>(`select ${schema}.publish('t', key => 'k', ${due}) as id`)).rows;
    const answer = await as('app', `select ${schema}.cancel('${row?.id}') as answer`);
    expect(answer.rows).toEqual([{ answer: true }]);
    const [other] = (await client.query<{ id: string }>(`select ${schema}.publish('t', key => 'k', ${due}) as id`))
      .rows;
    const discarded = await as('operator', `select ${schema}.discard('${other?.id}', 'test') as answer`);
    expect(discarded.rows).toEqual([{ answer: 'not held: ready' }]);
  });

  test('things of others in the schema keep their owner', async () => {
    await client.query(
      `create table ${schema}.mine (id int); create function ${schema}.my_function() returns int return 1`,
    );
    await migrateUp(client, { schema, migrations: [...loadMigrations(), oneMore()] });
    expect(await notOfItsOwner(schema)).toEqual(['mine', 'my_function']);
  });
});

test('F123: whoever copied dead messages may go on before the roles are applied again, and nobody else may', async () => {
  const schema = `copying_${randomBytes(4).toString('hex')}`;
  const version = loadMigrations().find(({ name }) => name === 'dead_copies')!.version;
  await migrateUp(client, { schema, migrations: loadMigrations().slice(0, version - 1) });
  await client.query(rolesOfThen(schema));
  const relay = `"${names.relay.replaceAll('"', '""')}"`;
  await client.query(`grant execute on function ${schema}.inbox_deaths, ${schema}.register_consumers to ${relay}`);
  await migrateUp(client, { schema });
  await as(
    'relay',
    `select ${schema}.inbox_deaths_done('none', '{}', '{}'), ${schema}.inbox_deaths_keep('none', '{}', '{}')`,
  );
  await expect(
    as('relay', `select * from ${schema}.inbox_deaths_claim('none', 1, 1, '1 minute')`),
  ).rejects.toMatchObject({ code: 'WB004' });
  await expect(as('app', `select ${schema}.inbox_deaths_done('none', '{}', '{}')`)).rejects.toThrow(REFUSED);
});

/** Owner and the few grants that this test needs; the rest of roles.sql speaks of functions that version 6 has not. */
function rolesOfThen(schema: string): string {
  const [upToGrants = ''] = rolesSql({ schema, ...names }).split('revoke all on schema');
  const to = (role: string) => `to "${role.replaceAll('"', '""')}";`;
  return `${upToGrants}
    grant usage on schema ${schema} ${to(names.app)}
    grant usage on schema ${schema} ${to(names.operator)}
    grant usage on schema ${schema} ${to(names.relay)}
    grant execute on function ${schema}.cancel ${to(names.app)}
    grant execute on function ${schema}.discard ${to(names.operator)}
    commit;`;
}

/** A migration that makes one thing of each kind. */
function oneMore(): Migration {
  const version = SCHEMA_VERSION + 1;
  const sql = `-- oldest-binary: 1
begin;
create table waybill.more (id bigint generated always as identity, n serial, primary key (id));
create table waybill.more_by_day (day date) partition by range (day);
create sequence waybill.more_numbers;
create view waybill.more_seen as select id from waybill.more;
create type waybill.more_kind as (a int, b text);
create function waybill.more_of(kind waybill.more_kind) returns int language sql return 1;
create procedure waybill.more_done() language sql as 'select 1';
insert into waybill.migration (version, name, oldest_binary) values (${version}, 'more', 1);
commit;
`;
  return { version, name: 'more', file: 'more.sql', oldestBinary: 1, sql };
}

async function notOfItsOwner(schema: string): Promise<string[]> {
  const { rows } = await client.query<{ name: string }>(
    `select relname::text as name from pg_class join pg_namespace n on n.oid = relnamespace
     where nspname = $1 and relowner <> nspowner
     union all select proname from pg_proc join pg_namespace n on n.oid = pronamespace
     where nspname = $1 and proowner <> nspowner
     union all select typname from pg_type join pg_namespace n on n.oid = typnamespace
     where nspname = $1 and typowner <> nspowner and typtype <> 'c' and typelem = 0
     order by 1`,
    [schema],
  );
  return rows.map(({ name }) => name);
}

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
