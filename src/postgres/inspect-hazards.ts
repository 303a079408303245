import type { Client } from 'pg';
import { select } from './inspect.js';
import { constraintNames } from './migrations.js';
import { OUTBOX_COLUMNS, STATE_COLUMNS } from './outbox-row.js';
import { IS_PAUSED } from './pause.js';
import { quoteSchema } from './schema-name.js';

/** Settings and objects that let Waybill start and hurt it later. */
export interface Hazards {
  encoding: string;
  /** Transactions of this role begin read-only. */
  readsOnly: boolean;
  fsync: boolean;
  fullPageWrites: boolean;
  autovacuum: boolean;
  /** Slots that nobody reads and that are not ours, with the WAL that is kept for them. */
  idleSlots: IdleSlot[];
  /** Tables of Waybill that are not logged, so that no insert can be decoded. */
  unlogged: string[];
  /** Tables of Waybill but the outbox with row level security that applies to this role. */
  rowSecurity: string[];
  /** Triggers and rules on our tables that Waybill did not make. */
  triggers: string[];
  /** What else of the user's own may refuse what the relay does with a row of the outbox: constraints, columns, keys. */
  constraints: string[];
  /** Schemas in which everybody may create: ours, and those of the search path that this role logs in with; quoted. */
  openSchemas: { name: string; isOurs: boolean }[];
  /** Rows of days that had no partition; null: this role may not look. */
  rowsInDefaultPartition: boolean | null;
}

export interface IdleSlot {
  name: string;
  keptBytes: number;
  /** Null: a physical slot. */
  database: string | null;
  /** Whether that is the database that was looked at. */
  isHere: boolean;
}

/** How many dead messages of a consumer are counted: 40,000 took 200 ms. */
export const DEAD_COUNTED = 1_000;

/** A configured consumer as the database sees it. */
export interface ConsumerInspection {
  name: string;
  /** Of an sql handler: whether its function is there, and this role may call it. */
  handler: 'fits' | 'missing' | 'refused' | 'none';
  pausedBy: string | null;
  pausedReason: string | null;
  /** Roles that may claim its rows. */
  grants: number;
  /** At most DEAD_COUNTED. */
  dead: number;
}

/**
 * Looks at settings of the server and of the database; needs no rights on our tables. `ownSlots`: those that are recorded in
 * this schema, or configured.
 */
export async function inspectHazards(client: Client, schema: string, ownSlots: readonly string[]): Promise<Hazards> {
  const [settings] = await select<
    Omit<Hazards, 'idleSlots' | 'rowsInDefaultPartition' | 'constraints' | 'openSchemas'>
  >(
    client,
    `select pg_encoding_to_char(d.encoding)::text as encoding,
       current_setting('default_transaction_read_only') = 'on' as "readsOnly",
       current_setting('fsync') = 'on' as fsync, current_setting('full_page_writes') = 'on' as "fullPageWrites",
       current_setting('autovacuum') = 'on' as autovacuum,
       array(select c.relname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
         where n.nspname = $1 and c.relkind = 'r' and c.relpersistence = 'u' order by 1) as unlogged,
       array(select c.relname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
         where n.nspname = $1 and c.relkind in ('r', 'p') and c.relname <> 'outbox'
           and row_security_active(c.oid) order by 1) as "rowSecurity",
       array(select c.relname || '.' || t.tgname from pg_trigger t join pg_class c on c.oid = t.tgrelid
         join pg_namespace n on n.oid = c.relnamespace
         where n.nspname = $1 and not t.tgisinternal and t.tgenabled <> 'D' and not exists (
          select from pg_proc p where p.oid = t.tgfoid and p.pronamespace = n.oid and p.proname = 'note_death')
         union all
         select c.relname || '.' || r.rulename from pg_rewrite r join pg_class c on c.oid = r.ev_class
         join pg_namespace n on n.oid = c.relnamespace
         where n.nspname = $1 and r.rulename <> '_RETURN' order by 1) as triggers
     from pg_database d where d.datname = current_database()`,
    [schema],
  );
  if (!settings) throw new Error('the database is not in pg_database');
  const idleSlots = await select<IdleSlot>(
    client,
    `select s.slot_name::text as name, s.database::text as database,
       s.database is not distinct from current_database() as "isHere", pg_wal_lsn_diff(here.lsn, s.restart_lsn)::float8 as "keptBytes"
     from pg_replication_slots s,
       (select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end as lsn) here
     where not s.active and s.restart_lsn is not null and s.slot_name::text <> all ($1::text[])
     order by "keptBytes" desc limit 10`,
    [ownSlots],
  );
  const constraints = await inspectConstraints(client, schema);
  const openSchemas = await inspectSearchPath(client, schema);
  return {
    ...settings,
    idleSlots,
    constraints,
    openSchemas,
    rowsInDefaultPartition: await hasDefaultRows(client, schema),
  };
}

/** Puts the path that the session began with in force, for this one statement: the connection has one of its own. */
async function inspectSearchPath(client: Client, schema: string): Promise<Hazards['openSchemas']> {
  return select(
    client,
    `select distinct format('%I', n.nspname) as name, n.nspname = $1 as "isOurs"
     from (select set_config('search_path', s.reset_val, true) as path from pg_settings s where s.name = 'search_path') r
     -- Why so roundabout: the names are looked up once the path is in force.
     cross join lateral unnest(current_schemas(r.path is null) || array[$1::name]) as p (name)
     join pg_namespace n on n.nspname = p.name
     where has_schema_privilege('public', n.oid, 'create') order by 1`,
    [schema],
  );
}

/** Why not without a look at the columns: the relay knows its own alone, and writes no other. */
async function inspectConstraints(client: Client, schema: string): Promise<string[]> {
  const found = await select<{ what: string }>(
    client,
    `with outbox as (select to_regclass($1) as oid)
     select c.conname || ': ' || pg_get_constraintdef(c.oid) as what from pg_constraint c join outbox o on c.conrelid = o.oid
     where c.contype in ('c', 'u', 'x', 'f') and c.conname <> all ($2::text[])
     union all
     select 'unique index ' || i.indexrelid::regclass from pg_index i join outbox o on i.indrelid = o.oid
     where i.indisunique and not exists (select from pg_constraint c where c.conindid = i.indexrelid)
     union all
     select 'column ' || a.attname || ': not null without a default' from pg_attribute a join outbox o on a.attrelid = o.oid
     where a.attnum > 0 and not a.attisdropped and a.attnotnull and not a.atthasdef and a.attidentity = ''
       and a.attname <> all ($3::text[])
     union all
     select c.conrelid::regclass || ': foreign key ' || c.conname || ' to the outbox'
     from pg_constraint c join outbox o on c.confrelid = o.oid
     where c.contype = 'f' and c.confdeltype in ('a', 'r') and c.conparentid = 0
     order by 1`,
    [`${quoteSchema(schema)}.outbox`, constraintNames(), [...OUTBOX_COLUMNS, ...STATE_COLUMNS]],
  );
  return found.map(({ what }) => what);
}

async function hasDefaultRows(client: Client, schema: string): Promise<boolean | null> {
  const table = `${quoteSchema(schema)}.outbox_history_default`;
  const [may] = await select<{ may: boolean | null }>(
    client,
    `select has_table_privilege(to_regclass($1), 'select') as may`,
    [table],
  );
  if (may?.may !== true) return null;
  return (await select(client, `select from ${table} limit 1`)).length > 0;
}

/** The configured consumers, in their order. Needs the inbox tables. */
export async function inspectConsumers(
  client: Client,
  schema: string,
  consumers: readonly { name: string; function: string | null }[],
): Promise<ConsumerInspection[]> {
  const own = quoteSchema(schema);
  return select<ConsumerInspection>(
    client,
    `select w.name, p.paused_by as "pausedBy", p.paused_reason as "pausedReason",
       (select count(*)::int from ${own}.consumer_grant g where g.consumer = w.name) as grants,
       (select count(*)::int from (select from ${own}.inbox i
         where i.consumer = w.name and i.status = 'dead' limit ${DEAD_COUNTED}) d) as dead,
       case when w.function is null then 'none'
         when f.oid is null then 'missing'
         when has_function_privilege(f.oid, 'execute')
           and has_schema_privilege((select p.pronamespace from pg_proc p where p.oid = f.oid), 'usage') then 'fits'
         else 'refused' end as handler
     from rows from (json_to_recordset($1) as (name text, function text)) with ordinality w (name, function, place)
     left join ${own}.consumer p on p.name = w.name and ${IS_PAUSED}
     left join lateral (select p.oid from pg_proc p join pg_namespace n on n.oid = p.pronamespace
       where n.nspname = split_part(w.function, '.', 1) and p.proname = split_part(w.function, '.', 2)
         and p.pronargs = 1 and p.proargtypes[0] = $2::regtype::oid) f on true
     order by w.place`,
    [JSON.stringify(consumers), `${own}.inbox_message`],
  );
}

/** Consumers that are registered, of which the configuration knows nothing. */
export async function registeredConsumers(client: Client, schema: string): Promise<{ name: string; queue: string }[]> {
  return select(client, `select name, queue from ${quoteSchema(schema)}.consumer order by name`);
}
