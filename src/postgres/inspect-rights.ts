import type { Client } from 'pg';
import { select } from './inspect.js';

/** What this role has of what a daemon never needs. */
export interface Rights {
  role: string;
  isSuperuser: boolean;
  /** Of the schema: an owner, as which this role may act; null without one, or where there is no schema. */
  owner: string | null;
  /** Tables of the schema that this role owns, or may act as the owner of. */
  ownTables: string[];
}

/** A place from which sessions that may use the schema get another synchronous_commit than `on`. */
export interface CommitSetting {
  value: string;
  /** As a person would say it: "database shop". */
  where: string;
  /** The statement that ends it. */
  reset: string;
}

export async function inspectRights(client: Client, schema: string): Promise<Rights> {
  const [row] = await select<Rights>(
    client,
    `select r.rolname::text as role, r.rolsuper as "isSuperuser",
       (select pg_get_userbyid(n.nspowner)::text from pg_namespace n
        where n.nspname = $1 and pg_has_role(r.oid, n.nspowner, 'member')) as owner,
       array(select c.relname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
         where n.nspname = $1 and c.relkind in ('r', 'p') and not c.relispartition
           and pg_has_role(r.oid, c.relowner, 'member') order by 1) as "ownTables"
     from pg_roles r where r.rolname = current_user`,
    [schema],
  );
  if (!row) throw new Error('the role of this session is not in pg_roles');
  return row;
}

/** Settings of the server, this database and of roles that may use the schema, each in front of `on`; needs no rights on it. */
export async function inspectCommits(client: Client, schema: string): Promise<CommitSetting[]> {
  return select<CommitSetting>(
    client,
    `with given as (
       select s.setdatabase, s.setrole, lower(split_part(entry, '=', 2)) as value, d.datname, r.rolname
       from pg_db_role_setting s
       cross join lateral unnest(s.setconfig) as entry
       left join pg_database d on d.oid = s.setdatabase
       left join pg_roles r on r.oid = s.setrole
       where entry like 'synchronous_commit=%' and (s.setdatabase = 0 or d.datname = current_database())
         and (s.setrole = 0 or coalesce(
           (select has_schema_privilege(s.setrole, n.oid, 'usage') from pg_namespace n where n.nspname = $1), true))
     )
     select value, 'the server' as where, 'alter system set synchronous_commit = on; select pg_reload_conf();' as reset
     from (select reset_val as value from pg_settings
       -- One of the role or the database stands before the server's, which cannot be seen from here then.
       where name = 'synchronous_commit' and not exists (select from given where setrole = 0 or rolname = current_user)) server
     where value <> 'on'
     union all
     select value,
       concat_ws(' in ', case when setrole <> 0 then 'role ' || rolname end,
         case when setdatabase <> 0 then 'database ' || datname when setrole = 0 then 'all databases' end),
       case when setrole = 0 and setdatabase <> 0 then format('alter database %I reset synchronous_commit;', datname)
         else format('alter role %s%s reset synchronous_commit;', coalesce(quote_ident(rolname), 'all'),
           case when setdatabase <> 0 then format(' in database %I', datname) else '' end) end
     from given where value <> 'on'
     order by 2`,
    [schema],
  );
}
