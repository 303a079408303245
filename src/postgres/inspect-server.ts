import type { Client } from 'pg';
import { select } from './inspect.js';
import { quoteSchema } from './schema-name.js';

/** What doctor wants to know of the server and of the role that asks. */
export interface ServerInspection {
  /** As server_version_num: 150018. */
  version: number;
  versionText: string;
  database: string;
  role: string;
  inRecovery: boolean;
  walLevel: string;
  maxReplicationSlots: number;
  usedReplicationSlots: number;
  maxWalSenders: number;
  usedWalSenders: number;
  /** Megabytes; -1 is unlimited. */
  maxSlotWalKeepMb: number;
  walSenderTimeoutMs: number;
  /** Seconds; 0 is off. Null before PostgreSQL 18. */
  idleSlotTimeoutS: number | null;
  synchronousStandbyNames: string;
  /** Null before PostgreSQL 17. */
  synchronizedStandbySlots: string | null;
  physicalStandbys: number;
  /** Null before the versions that have it. */
  outputPluginLibraries: string | null;
  mayReplicate: boolean;
  seesAllActivity: boolean;
  /** The server's clock, read at once with the question. */
  clock: Date;
}

/** Transactions and prepared transactions of this database that hold WAL or a slot's creation up. */
export interface OldTransactions {
  sessions: { pid: number; application: string; state: string; ageMs: number }[];
  prepared: { gid: string; ageMs: number }[];
}

/** The outbox table as doctor needs to see it. */
export interface TableInspection {
  /** Columns that Waybill did not make. */
  foreignColumns: string[];
  rowSecurity: boolean;
  /** Row security applies to the role that asks. */
  rowSecurityActive: boolean;
  children: string[];
  /** What the relay needs and this role lacks, each as a person would grant it. */
  missingGrants: string[];
}

/** Settings, budgets and the role, in one statement. */
export async function inspectServer(client: Client): Promise<ServerInspection> {
  const [row] = await select<ServerInspection>(
    client,
    `select current_setting('server_version_num')::int as version, current_setting('server_version') as "versionText",
       current_database() as database, current_user as role, pg_is_in_recovery() as "inRecovery",
       current_setting('wal_level') as "walLevel",
       current_setting('max_replication_slots')::int as "maxReplicationSlots",
       (select count(*)::int from pg_replication_slots) as "usedReplicationSlots",
       current_setting('max_wal_senders')::int as "maxWalSenders",
       (select count(*)::int from pg_stat_replication) as "usedWalSenders",
       (select setting::float8 from pg_settings where name = 'max_slot_wal_keep_size') as "maxSlotWalKeepMb",
       (select setting::float8 from pg_settings where name = 'wal_sender_timeout') as "walSenderTimeoutMs",
       (select setting::float8 from pg_settings where name = 'idle_replication_slot_timeout') as "idleSlotTimeoutS",
       current_setting('synchronous_standby_names') as "synchronousStandbyNames",
       current_setting('synchronized_standby_slots', true) as "synchronizedStandbySlots",
       (select count(*)::int from pg_replication_slots where slot_type = 'physical' and active) as "physicalStandbys",
       current_setting('output_plugin_libraries', true) as "outputPluginLibraries",
       (r.rolsuper or r.rolreplication or exists (
         select from pg_roles m
         where m.rolname = 'rds_replication' and pg_has_role(current_user, m.oid, 'usage')
       )) as "mayReplicate",
       (r.rolsuper or pg_has_role(current_user, 'pg_read_all_stats', 'usage')) as "seesAllActivity",
       clock_timestamp() as clock
     from pg_roles r where r.rolname = current_user`,
  );
  if (!row) throw new Error('the settings gave no row');
  return row;
}

/** Sessions with a transaction older than `olderThanMs`, and every prepared transaction. */
export async function inspectOldTransactions(client: Client, olderThanMs: number): Promise<OldTransactions> {
  return {
    sessions: await select(
      client,
      `select pid, coalesce(nullif(application_name, ''), usename, 'unknown') as application,
         coalesce(state, 'unknown') as state,
         (extract(epoch from clock_timestamp() - xact_start) * 1000)::float8 as "ageMs"
       from pg_stat_activity
       where backend_type = 'client backend' and pid <> pg_backend_pid()
         and xact_start < clock_timestamp() - $1 * interval '1 millisecond'
       order by xact_start limit 5`,
      [olderThanMs],
    ),
    prepared: await select(
      client,
      `select gid, (extract(epoch from clock_timestamp() - prepared) * 1000)::float8 as "ageMs"
       from pg_prepared_xacts order by prepared limit 5`,
    ),
  };
}

/** The relay's statements, as privileges: see "The relay" in sql/roles.sql. */
const NEEDED_TABLE_GRANTS: readonly (readonly [table: string, privileges: readonly string[]])[] = [
  ['outbox', ['select', 'insert', 'update', 'delete']],
  ['outbox_history', ['insert']],
  ['relay', ['select', 'insert', 'update', 'delete']],
  ['installation', ['select']],
  ['migration', ['select']],
];
const NEEDED_FUNCTIONS = ['keep_history', 'ensure_publication', 'headers_are_publishable'];

/** Columns, row security, children and grants of the outbox; `ownColumns` are those of the installed schema. */
export async function inspectTable(
  client: Client,
  schema: string,
  ownColumns: readonly string[],
): Promise<TableInspection> {
  const outbox = `${quoteSchema(schema)}.outbox`;
  const [row] = await select<Omit<TableInspection, 'missingGrants'>>(
    client,
    `select c.relrowsecurity as "rowSecurity", row_security_active(c.oid) as "rowSecurityActive",
       array(select a.attname::text from pg_attribute a
             where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and not a.attname = any($2)
             order by a.attnum) as "foreignColumns",
       array(select i.inhrelid::regclass::text from pg_inherits i where i.inhparent = c.oid) as children
     from pg_class c where c.oid = $1::regclass`,
    [outbox, ownColumns],
  );
  if (!row) throw new Error('the outbox table is not in pg_class');
  return { ...row, missingGrants: await missingGrants(client, schema) };
}

async function missingGrants(client: Client, schema: string): Promise<string[]> {
  const tables = NEEDED_TABLE_GRANTS.flatMap(([table, privileges]) =>
    privileges.map((privilege) => ({ name: table, privilege })),
  );
  const rows = await select<{ grant: string }>(
    client,
    `select privilege || ' on ' || name as grant
     from json_to_recordset($2) as needed (name text, privilege text)
     where not has_table_privilege(format('%I.%I', $1::text, name), privilege)
     union all
     select 'usage on sequence outbox_hold_no'
     where not has_sequence_privilege(format('%I.outbox_hold_no', $1::text), 'usage')
     union all
     select 'select on sequence outbox_seq_seq'
     where not has_sequence_privilege(format('%I.outbox_seq_seq', $1::text), 'select')
     union all
     select 'execute on function ' || p.proname
     from pg_proc p join pg_namespace n on n.oid = p.pronamespace
     where n.nspname = $1 and p.proname = any($3) and not has_function_privilege(p.oid, 'execute')`,
    [schema, JSON.stringify(tables), NEEDED_FUNCTIONS],
  );
  return rows.map(({ grant }) => grant);
}

/** Which PostgreSQL cluster this is; a copy by pg_basebackup keeps it. */
export async function readSystemIdentifier(client: Client): Promise<string | null> {
  const [row] = await select<{ identifier: string }>(
    client,
    'select system_identifier::text as identifier from pg_control_system()',
  );
  return row?.identifier ?? null;
}

/** The database of this connection, by its own name (a pooler may call it otherwise). */
export async function readDatabaseName(client: Client): Promise<string> {
  const [row] = await select<{ name: string }>(client, 'select current_database() as name');
  return row?.name ?? '';
}
