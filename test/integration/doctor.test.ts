import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as amqp from 'amqplib';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { examine as examineBy } from '../../src/app/doctor.js';
import type { Finding } from '../../src/app/doctor-findings.js';
import { OLD } from '../../src/app/doctor-server.js';
import { loadConfig } from '../../src/config/load.js';
import { freshVhost, type FreshVhost } from '../support/broker.js';
import { freshDatabase, type FreshDatabase } from '../support/database.js';
import { migratedDatabase } from '../support/migrated-database.js';
import { startPostgres } from '../support/servers/postgres.js';
import type { PostgresServer } from '../support/servers/postgres-server.js';
import { until } from '../support/waiting.js';
import { migrateUp } from '../../src/postgres/migrations.js';
import { rolesSql } from '../../src/postgres/roles.js';
import { buildProgram, runProgram, startProgram } from './built-program.js';

let dir: string;
let database: FreshDatabase;
let vhost: FreshVhost;

const HANDLER = `create schema mine; create function mine.on_event(m waybill.inbox_message) returns void language sql as 'select null::void'`;

beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), 'waybill-doctor-'));
  writeFileSync(
    join(dir, 'waybill.yaml'),
    `admin: { listen: off }
consumers:
  billing: { queue: billing, handler: { kind: sql, function: mine.on_event }, retry: { delays: [1s] } }
  mail: { queue: mail, retry: { delays: [1s] } }
`,
  );
  [database, vhost] = await Promise.all([migratedDatabase(), freshVhost(), buildProgram()]);
  await database.query(HANDLER);
  await database.query(`select waybill.grant_consumer('mail', current_user)`);
});
afterAll(async () => {
  rmSync(dir, { recursive: true, force: true });
  await Promise.all([database.drop(), vhost.drop()]);
});

const servers = (url = database.url) => ({ WAYBILL_DATABASE_URL: url, WAYBILL_BROKER_URL: vhost.url });

async function examine(url = database.url, environment: Record<string, string> = {}): Promise<Finding[]> {
  const { out } = await runProgram(['--config', join(dir, 'waybill.yaml'), 'doctor', '--json'], {
    ...servers(url),
    ...environment,
  });
  return (JSON.parse(out) as { findings: Finding[] }).findings;
}

const bad = (findings: readonly Finding[]) => findings.filter(({ severity }) => severity !== 'ok');
const ids = (findings: readonly Finding[]) => bad(findings).map(({ id, severity }) => `${severity} ${id}`);

/** What the shared server of the tests has by itself: it is made for speed. */
const OF_THE_SERVER = [
  'warn durability',
  'fail slot-keep-size',
  'warn slot-keep-size',
  'warn standbys',
  'warn foreign-slots',
  // Tests ask as the superuser.
  'warn least-privilege',
];

async function broker(work: (channel: amqp.Channel) => Promise<unknown>): Promise<void> {
  const connection = await amqp.connect(vhost.url);
  await work(await connection.createChannel());
  await connection.close();
}

interface Plant {
  what: string;
  /** Severity and id of the finding, and a part of its text or mend. */
  finds: string;
  text: RegExp;
  plant: string | (() => Promise<unknown>);
  undo: string | (() => Promise<unknown>);
}

const PLANTS: Plant[] = [
  {
    what: 'F133: row level security on the history',
    finds: 'fail row-security',
    text: /outbox_history from this role/,
    plant: `alter table waybill.outbox_history enable row level security; alter table waybill.outbox_history force row level security;
      create role wb_plain_DATABASE login password 'secret'; grant usage on schema waybill to wb_plain_DATABASE;
      grant select, insert, update, delete on all tables in schema waybill to wb_plain_DATABASE`,
    undo: `drop owned by wb_plain_DATABASE; drop role wb_plain_DATABASE; alter table waybill.outbox_history disable row level security;
      alter table waybill.outbox_history no force row level security`,
  },
  {
    what: 'an unlogged outbox, of which nothing can be decoded',
    finds: 'fail unlogged',
    text: /set logged/,
    plant: 'drop publication waybill_outbox; alter table waybill.outbox set unlogged',
    undo: 'alter table waybill.outbox set logged; select waybill.ensure_publication()',
  },
  {
    what: 'a trigger on the outbox',
    finds: 'warn triggers',
    text: /outbox\.mine/,
    plant: `create function mine.nothing() returns trigger language plpgsql as 'begin return null; end';
      create trigger mine before insert on waybill.outbox for each row execute function mine.nothing()`,
    undo: 'drop function mine.nothing cascade',
  },
  {
    what: 'fact 16: a check, a column and an index of the own table, and a table that refers to the outbox',
    finds: 'warn constraints',
    text: /column tenant: not null without a default; mine\.copy: foreign key copy_id_fkey to the outbox; outbox_tenant_check: CHECK.*unique index waybill\.mine_tenant.*write one back without your columns/s,
    plant: `alter table waybill.outbox add column tenant text not null check (tenant <> '');
      create unique index mine_tenant on waybill.outbox (tenant, id);
      create table mine.copy (id uuid references waybill.outbox (id), seq bigint references waybill.outbox on delete cascade)`,
    undo: 'drop table mine.copy; alter table waybill.outbox drop column tenant',
  },
  {
    what: 'everybody may create in a schema on the search path of the role',
    finds: 'warn search-path',
    text: /^(?!.*schema mine).*create in schema public, .* \| revoke create on schema public from public;$/s,
    plant: 'grant create on schema public to public; grant create on schema mine to public',
    undo: 'revoke create on schema public from public; revoke create on schema mine from public',
  },
  {
    what: 'the same where a setting of the database, and our own functions, have the schema on their path',
    finds: 'warn search-path',
    text: /^(?!.*public, which)(?=.*on schema "Odd, one" from public;)(?=.*on schema waybill from public;)/s,
    plant: `create schema "Odd, one"; grant create on schema "Odd, one", waybill, public to public;
      alter database DATABASE set search_path = "Odd, one", pg_catalog, missing`,
    undo: `alter database DATABASE reset search_path; revoke create on schema waybill, public from public; drop schema "Odd, one"`,
  },
  {
    what: 'a role whose transactions are read-only',
    finds: 'fail read-only',
    text: /default_transaction_read_only/,
    plant: 'alter database DATABASE set default_transaction_read_only = on',
    undo: 'alter database DATABASE reset default_transaction_read_only',
  },
  {
    what: 'F24: commits of this database that are answered before they are on disk',
    finds: 'warn synchronous-commit',
    text: /^synchronous_commit is off of database \S+: after a crash .* \| alter database waybill_test_\S+ reset synchronous_commit;$/s,
    plant: 'alter database DATABASE set synchronous_commit = off',
    undo: 'alter database DATABASE reset synchronous_commit',
  },
  {
    what: 'F24: the same of a role that may use the schema, and of no other role',
    finds: 'warn synchronous-commit',
    text: /^synchronous_commit is off of role wb_app_\S+ in database \S+: .* \| alter role wb_app_\S+ in database \S+ reset synchronous_commit;$/,
    plant: `create role wb_app_DATABASE; create role wb_other_DATABASE; grant usage on schema waybill to wb_app_DATABASE;
      alter role wb_app_DATABASE in database DATABASE set synchronous_commit = off; alter role wb_other_DATABASE set synchronous_commit = off`,
    undo: `drop owned by wb_app_DATABASE; drop role wb_app_DATABASE, wb_other_DATABASE`,
  },
  {
    what: 'F7: history rows without a partition of their day',
    finds: 'warn history-partitions',
    text: /keep_history/,
    plant: `insert into waybill.outbox_history (outcome, id, type, settled_at) values ('published', gen_random_uuid(), 't', now() - interval '3 years')`,
    undo: 'truncate waybill.outbox_history',
  },
  {
    what: 'F126: the function of a consumer is missing',
    finds: 'fail consumer-billing',
    text: /mine\.on_event\(waybill\.inbox_message\) of consumer billing does not exist/,
    plant: 'drop schema mine cascade',
    undo: HANDLER,
  },
  {
    what: 'a store consumer that no role may claim from',
    finds: 'warn consumer-mail',
    text: /grant_consumer\('mail'/,
    plant: 'delete from waybill.consumer_grant',
    undo: `select waybill.grant_consumer('mail', current_user)`,
  },
  {
    what: 'a paused consumer, with dead messages',
    finds: 'warn consumer-mail',
    text: /paused by operator: partner down/,
    plant: `insert into waybill.consumer (name, queue) values ('mail', 'mail') on conflict do nothing; select waybill.consumer_pause('mail', 'partner down')`,
    undo: 'delete from waybill.consumer',
  },
  {
    what: 'F128: a consumer that was renamed',
    finds: 'fail consumer-renamed',
    text: /waybill consumer rename post mail/,
    plant: `insert into waybill.consumer (name, queue) values ('post', 'mail')`,
    undo: 'delete from waybill.consumer',
  },
  {
    what: 'facts 39, 40: a queue with other limits and dead-lettering',
    finds: 'fail topology',
    text: /queue billing is there with other properties than .*delivery-limit/,
    plant: () => broker((channel) => channel.assertQueue('billing', { durable: true })),
    undo: () => broker((channel) => channel.deleteQueue('billing')),
  },
  {
    what: 'F35: a publication that sends more than inserts, and has a filter',
    finds: 'fail publication',
    text: /row filter/,
    plant: `drop publication waybill_outbox; create publication waybill_outbox for table waybill.outbox where (type <> 'x') with (publish = 'insert')`,
    undo: 'drop publication waybill_outbox; select waybill.ensure_publication()',
  },
  {
    what: 'F41, fact 51: a slot that a dropped schema of this database left behind',
    finds: 'warn left-slots',
    text: /slot waybill_\S+_gone_default, which keeps \d+ MiB of WAL; .* schema waybill does not know it.*select pg_drop_replication_slot\('waybill_\S+_gone_default'\)/,
    plant: `select pg_create_logical_replication_slot('waybill_DATABASE_gone_default', 'pgoutput');
      select pg_logical_emit_message(false, 'wb', 'x'), pg_switch_wal() from generate_series(1, 6)`,
    undo: `select pg_drop_replication_slot('waybill_DATABASE_gone_default')`,
  },
  {
    what: 'fact 51: the name of the slot belongs to another plugin',
    finds: 'fail slot',
    text: /do not drop that slot/,
    plant: `select pg_create_logical_replication_slot('waybill_' || current_database() || '_waybill_default', 'test_decoding')`,
    undo: `select pg_drop_replication_slot('waybill_' || current_database() || '_waybill_default')`,
  },
];

const named = (sql: string): string => sql.replaceAll('DATABASE', database.name);

async function run(step: Plant['plant']): Promise<void> {
  if (typeof step === 'string') await database.query(named(step));
  else await step();
}

describe('one misconfiguration at a time', () => {
  test('a sound installation has none of these findings', async () => {
    const found = ids(await examine()).filter((id) => !OF_THE_SERVER.includes(id));
    expect(found).toEqual([]);
  });

  test.each(PLANTS)('$what', async ({ plant, undo, finds, text }) => {
    await run(plant);
    const url = new URL(database.url);
    if (typeof plant === 'string' && plant.includes('wb_plain')) {
      url.username = named('wb_plain_DATABASE');
      url.password = 'secret';
    }
    try {
      const findings = bad(await examine(url.href)).filter(({ id, severity }) => `${severity} ${id}` === finds);
      expect(findings.map(({ finding, mend }) => `${finding} | ${mend ?? ''}`).join('\n')).toMatch(text);
    } finally {
      await run(undo);
    }
  });
});

test('F41: the own slot is not left over, however much it keeps while the relay is stopped', async () => {
  await run(`select pg_create_logical_replication_slot('waybill_DATABASE_waybill_default', 'pgoutput');
    select pg_logical_emit_message(false, 'wb', 'x'), pg_switch_wal() from generate_series(1, 6)`);
  try {
    expect(ids(await examine())).not.toContain('warn left-slots');
  } finally {
    await run(`select pg_drop_replication_slot('waybill_DATABASE_waybill_default')`);
  }
});

test('F118: a clock of this machine that is ten seconds off', async () => {
  const ahead = `const now = Date.now; Date.now = () => now() + 10_000;`;
  const findings = await examine(database.url, {
    NODE_OPTIONS: `--import "data:text/javascript,${encodeURIComponent(ahead)}"`,
  });
  expect(bad(findings).filter(({ id }) => id === 'clock')).toMatchObject([
    { severity: 'warn', finding: "the clock here is 10 s ahead of the database's" },
  ]);
});

test('F128: a consumer of a daemon with another configuration is named, with what forgets it', async () => {
  const other = join(dir, 'elsewhere.yaml');
  writeFileSync(other, 'admin: { listen: off }\nrelay: false\nconsumers: { elsewhere: { queue: elsewhere } }\n');
  const daemon = startProgram(['run', '--config', other], servers());
  try {
    await until(
      async () => (await database.query(`select from waybill.consumer where name = 'elsewhere'`)).length > 0,
      {
        what: 'the other daemon to register its consumer',
      },
    );
    const findings = (await examine()).filter(({ id }) => id === 'consumers-elsewhere');
    expect(findings).toMatchObject([
      {
        severity: 'ok',
        finding:
          'consumer elsewhere is registered and not configured here (if it is gone for good: waybill consumer forget elsewhere)',
      },
    ]);
  } finally {
    daemon.child.kill('SIGTERM');
    expect((await daemon.finished).code).toBe(0);
    await database.query('delete from waybill.consumer');
  }
});

test('the role of a daemon: as sql/roles.sql makes it, as a member of the owner, and as a superuser', async () => {
  const guarded = await migratedDatabase();
  const role = (name: string): string => `wb_${name}_${guarded.name.slice(-10)}`;
  const names = { owner: role('owner'), app: role('app'), relay: role('relay'), observer: role('observer') };
  try {
    await guarded.query(rolesSql(names));
    await guarded.query(`alter role ${names.relay} login password 'secret'`);
    const url = new URL(guarded.url);
    url.username = names.relay;
    url.password = 'secret';
    const told = async (as: string) =>
      (await examine(as))
        .filter(({ id }) => id === 'least-privilege')
        .map(({ severity, finding }) => [severity, finding]);
    expect(await told(url.href)).toEqual([
      ['ok', `role ${names.relay} is no superuser, and owns nothing of schema waybill`],
    ]);
    await guarded.query(`grant ${names.owner} to ${names.relay}`);
    expect(await told(url.href)).toEqual([
      [
        'warn',
        expect.stringMatching(/owns tables of schema waybill \(\w+, \w+, \w+ and \d+ more\), as a member of wb_owner/),
      ],
    ]);
    expect(await told(guarded.url)).toEqual([['warn', expect.stringContaining('is a superuser: ')]]);
  } finally {
    await guarded.drop();
    for (const name of Object.values(names)) await database.query(`drop role if exists ${name}`);
  }
});

test('F60: a database that is not encoded in UTF8', async () => {
  const latin = await freshDatabase();
  const name = `${latin.name}_l`;
  await latin.query(`create database ${name} encoding 'LATIN1' lc_collate 'C' lc_ctype 'C' template template0`);
  try {
    const url = new URL(latin.url);
    url.pathname = `/${name}`;
    expect(ids(await examine(url.href))).toContain('fail encoding');
  } finally {
    await latin.query(`drop database ${name} with (force)`);
    await latin.drop();
  }
});

describe('a server that is set up wrongly throughout', () => {
  let server: PostgresServer;
  let wrong: FreshDatabase;
  beforeAll(async () => {
    server = await startPostgres({
      own: true,
      settings: {
        wal_level: 'replica',
        wal_sender_timeout: 0,
        autovacuum: 'off',
        max_replication_slots: 1,
        max_slot_wal_keep_size: -1,
        synchronous_standby_names: '',
      },
    });
    wrong = await freshDatabase({ server });
    await migrateUp(await wrong.connect());
    await wrong.query(`select pg_create_physical_replication_slot('standby', true)`);
  });
  afterAll(async () => {
    await wrong.query(`select pg_drop_replication_slot('standby')`);
    await wrong.drop();
    await server.close();
  });

  test('F31, F32, F41, fact 28: each setting is told, with its mend', async () => {
    const findings = await examine(wrong.url);
    expect(ids(findings)).toEqual(
      expect.arrayContaining([
        'fail wal-level',
        'fail replication-slots',
        'fail slot-keep-size',
        'warn wal-sender-timeout',
        'warn autovacuum',
        'warn durability',
      ]),
    );
    for (const { severity, mend } of findings) expect(severity === 'ok' || mend !== null).toBe(true);
  });
});

describe('what hurts on a server of its own', () => {
  let server: PostgresServer;
  let aside: FreshDatabase;
  beforeAll(async () => {
    server = await startPostgres({
      own: true,
      settings: {
        max_prepared_transactions: 10,
        synchronous_commit: 'local',
        synchronous_standby_names: 'gone',
        wal_init_zero: 'off',
        max_slot_wal_keep_size: '8GB',
        max_wal_size: '4GB',
      },
    });
    aside = await migratedDatabase({ server });
  });
  afterAll(async () => {
    await aside.drop();
    await server.close();
  });

  /** What is found under an id when everything of `ages` counts as old. */
  async function find(id: string, ages = OLD): Promise<Finding[]> {
    const file = { name: 'f', text: 'relay: { maxKeptWal: 64MiB }' };
    const config = loadConfig({ file, environment: servers(aside.url), readFile: () => '' });
    return (await examineBy(config, ages)).filter((finding) => finding.id === id);
  }

  test('F24: commits of the whole server that do not wait for the synchronous standby', async () => {
    expect(await find('synchronous-commit')).toMatchObject([
      {
        severity: 'warn',
        finding: expect.stringMatching(/^synchronous_commit is local of the server: .* messages may be out/) as string,
        mend: 'alter system set synchronous_commit = on; select pg_reload_conf();',
      },
    ]);
  });

  test('F53: a prepared transaction that nobody ends, by its name', async () => {
    const id = 'prepared-transactions';
    expect(await find(id)).toMatchObject([{ severity: 'ok', finding: 'no prepared transactions' }]);
    await aside.query(`begin; select waybill.publish('t', '1'); prepare transaction 'left behind'`);
    expect(await find(id)).toMatchObject([
      { severity: 'ok', finding: expect.stringContaining('come and go') as string },
    ]);
    expect(await find(id, { ...OLD, preparedMs: 0 })).toMatchObject([
      {
        severity: 'warn',
        finding: expect.stringMatching(
          /^prepared transaction "left behind" is \d+ min old; its rows are not/,
        ) as string,
        mend: `commit prepared 'left behind'; or rollback prepared 'left behind';`,
      },
    ]);
    await aside.query(`rollback prepared 'left behind'`);
  });

  test('F132: a transaction that somebody left open, by its process', async () => {
    const client = await aside.connect();
    const { rows } = await client
      .query<{ pid: number }>(
        `set application_name = 'somebody'; begin; select pg_current_xact_id(); select pg_backend_pid() as pid`,
      )
      .then((results) => (results as unknown as { rows: { pid: number }[] }[]).at(-1)!);
    expect(await find('old-transactions')).toMatchObject([{ severity: 'ok' }]);
    expect(await find('old-transactions', { ...OLD, transactionMs: 0 })).toMatchObject([
      {
        severity: 'warn',
        finding: expect.stringMatching(
          new RegExp(`^process ${rows[0]!.pid} \\(somebody, idle in transaction\\)`),
        ) as string,
        mend: expect.stringContaining(`select pg_terminate_backend(${rows[0]!.pid});`) as string,
      },
    ]);
    await client.query('rollback');
    expect(await find('old-transactions', { ...OLD, transactionMs: 0 })).toMatchObject([{ severity: 'ok' }]);
  });

  test('F41: a slot of somebody else that nobody reads', async () => {
    const write = `select pg_logical_emit_message(false, 'wb', 'x'), pg_switch_wal() from generate_series(1, 66)`;
    await aside.query(`select pg_create_physical_replication_slot('debezium', true)`);
    try {
      expect(await find('foreign-slots')).toEqual([]);
      await aside.query(write);
      expect(await find('foreign-slots')).toMatchObject([
        {
          severity: 'warn',
          finding: expect.stringMatching(
            /^nobody reads replication slot debezium, which keeps 1\.\d GiB of WAL$/,
          ) as string,
          mend: expect.stringContaining(`select pg_drop_replication_slot('debezium');`) as string,
        },
      ]);
    } finally {
      await aside.query(`select pg_drop_replication_slot('debezium')`);
    }
  });
});

test('F27: PostgreSQL 18, and a slot that is lost when nobody reads it for a while', async () => {
  const server = await startPostgres({ version: 'embedded', own: true });
  try {
    const aside = await migratedDatabase({ server });
    const timeout = async (value: string): Promise<string[]> => {
      await aside.query(`alter system set idle_replication_slot_timeout = '${value}'`);
      await aside.query('select pg_reload_conf()');
      const seen =
        "select from pg_settings where name = 'idle_replication_slot_timeout' and setting::int = extract(epoch from $1::interval)";
      await until(async () => (await aside.query(seen, [value])).length > 0, { what: 'the setting to be taken up' });
      const found = (await examine(aside.url)).filter(({ id }) => id === 'slot-idle-timeout');
      return found.map(({ severity, finding }) => `${severity}: ${finding}`);
    };
    expect(await timeout('0')).toEqual(['ok: idle_replication_slot_timeout is off']);
    expect(await timeout('2d')).toEqual(['ok: idle_replication_slot_timeout is 48 h 0 min']);
    expect(await timeout('30min')).toEqual([
      'warn: idle_replication_slot_timeout is 30 min: the slot of a relay that is stopped, or waits for the broker, is lost after it: the table is read then, which costs time, not messages',
    ]);
    await aside.drop();
  } finally {
    await server.close();
  }
});
