import type { Client } from 'pg';
import { quoteIdentifier } from '../core/identity.js';
import { select } from './inspect.js';
import { quoteSchema } from './schema-name.js';

/** What is in the schema and hangs on it. */
export interface SchemaContents {
  owner: string;
  /** Whether this role may drop schema and publication. */
  mayDrop: boolean;
  bytes: number;
  /** Tables and views in the schema that Waybill did not make. */
  foreign: string[];
  /** Functions and views elsewhere that use its types or tables, and go with it. */
  dependents: string[];
  /** Sessions that use its tables at this moment, other than ours. */
  users: string[];
}

/** A slot of this database with the replication plugin of relays. */
export interface OwnSlot {
  name: string;
  active: boolean;
}

/** Relations of the schema but these (and partitions of the history) are somebody else's. */
const OWN_RELATIONS = [
  'migration',
  'installation',
  'relay',
  'outbox',
  'outbox_backlog',
  'outbox_history',
  'outbox_history_default',
  'action_log',
  'consumer',
  'consumer_grant',
  'inbox',
  'inbox_attempt',
  'inbox_uncopied',
  'inbox_backlog',
  'idempotency',
  'freshness',
];

/** What would go with the schema; undefined if there is none of that name. */
export async function readContents(client: Client, schema: string): Promise<SchemaContents | undefined> {
  const rows = await select<Omit<SchemaContents, 'dependents' | 'users'>>(
    client,
    `select pg_get_userbyid(n.nspowner)::text as owner,
       pg_has_role(n.nspowner, 'usage') and coalesce((select pg_has_role(p.pubowner, 'usage') from pg_publication p
         where p.pubname = n.nspname || '_outbox'), true) as "mayDrop",
       coalesce((select sum(pg_total_relation_size(c.oid))::float8 from pg_class c
         where c.relnamespace = n.oid and c.relkind = 'r'), 0) as bytes,
       array(select c.relname::text from pg_class c
         where c.relnamespace = n.oid and c.relkind in ('r', 'p', 'v', 'm', 'f')
           and c.relname <> all ($2::text[]) and c.relname !~ '^outbox_history_[0-9]{8}$' order by 1) as foreign
     from pg_namespace n where n.nspname = $1`,
    [schema, OWN_RELATIONS],
  );
  const [contents] = rows;
  if (!contents) return undefined;
  const dependents = await select<{ name: string }>(
    client,
    `select distinct 'function ' || p.oid::regprocedure::text as name
     from pg_proc p join pg_depend d on d.classid = 'pg_proc'::regclass and d.objid = p.oid
     left join pg_type t on d.refclassid = 'pg_type'::regclass and t.oid = d.refobjid
     left join pg_class c on d.refclassid = 'pg_class'::regclass and c.oid = d.refobjid
     where coalesce(t.typnamespace, c.relnamespace) = $1::regnamespace and p.pronamespace <> $1::regnamespace
     union
     select distinct 'view ' || v.oid::regclass::text
     from pg_rewrite r join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
     join pg_class v on v.oid = r.ev_class
     left join pg_class c on d.refclassid = 'pg_class'::regclass and c.oid = d.refobjid
     left join pg_proc f on d.refclassid = 'pg_proc'::regclass and f.oid = d.refobjid
     where coalesce(c.relnamespace, f.pronamespace) = $1::regnamespace and v.relnamespace <> $1::regnamespace
     order by 1`,
    [quoteSchema(schema)],
  );
  const users = await select<{ name: string }>(
    client,
    `select distinct coalesce(nullif(a.application_name, ''), a.usename::text) || ' (process ' || a.pid || ')' as name
     from pg_locks l join pg_class c on c.oid = l.relation and c.relnamespace = $1::regnamespace
     join pg_stat_activity a on a.pid = l.pid
     where l.database = (select oid from pg_database where datname = current_database()) and a.pid <> pg_backend_pid()
     order by 1 limit 20`,
    [quoteSchema(schema)],
  );
  return { ...contents, dependents: dependents.map(({ name }) => name), users: users.map(({ name }) => name) };
}

/** Those of these slots that belong to this database and to pgoutput; others are never touched (fact 51). */
export async function readOwnSlots(client: Client, names: readonly string[]): Promise<OwnSlot[]> {
  return select<OwnSlot>(
    client,
    `select slot_name::text as name, active from pg_replication_slots
     where slot_name = any($1::text[]) and database = current_database() and plugin = 'pgoutput' order by 1`,
    [names],
  );
}

/** Whether the publication exists. */
export async function hasPublication(client: Client, name: string): Promise<boolean> {
  const rows = await select<{ is: boolean }>(client, 'select true as is from pg_publication where pubname = $1', [
    name,
  ]);
  return rows.length > 0;
}

/** How many rows are unfinished: in the outbox, and in the inbox if there is one. Counted up to the limit. */
export async function countUnfinished(
  client: Client,
  schema: string,
  limit: number,
): Promise<{ outbox: number; inbox: number }> {
  const own = quoteSchema(schema);
  const count = async (table: string, condition: string): Promise<number> => {
    const there = await select<{ is: boolean }>(client, 'select to_regclass($1) is not null as is', [
      `${own}.${table}`,
    ]);
    if (there[0]?.is !== true) return 0;
    const rows = await select<{ n: number }>(
      client,
      `select count(*)::int as n from (select from ${own}.${table} where ${condition} limit ${limit}) c`,
    );
    return rows[0]?.n ?? 0;
  };
  return {
    outbox: await count('outbox', `state not in ('cancelled', 'discarded')`),
    inbox: await count('inbox', `status in ('pending', 'running', 'waiting', 'blocked')`),
  };
}

/** Drops the publication, if it is there. */
export async function dropPublication(client: Client, name: string): Promise<void> {
  await client.query(`drop publication if exists ${quoteIdentifier(name)}`);
}

/** Drops the schema with everything in it and whatever uses its types. Waits for locks as long as lock_timeout says. */
export async function dropSchema(client: Client, schema: string): Promise<void> {
  await client.query(`drop schema if exists ${quoteSchema(schema)} cascade`);
}
