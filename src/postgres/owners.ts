import { quoteLiteral } from '../core/identity.js';
import { quoteSchema } from './schema-name.js';

/**
 * The SQL of a migration, with one more statement before its commit: what the migration made anew gets the owner of the
 * schema. Why: a function that runs as that owner may call only what he may, and a role that migrates for him (a
 * superuser, a member) would leave him without the right to call what is new. Does nothing where the migrating role is
 * the owner, or is no member of him.
 */
export function withOwner(sql: string, schema: string): string {
  quoteSchema(schema);
  return sql.replace(/^commit;\n$/m, () => `${ownerSql(quoteLiteral(schema))}\ncommit;\n`);
}

function ownerSql(schema: string): string {
  return `do $$
declare
  command text;
begin
  for command in
    -- Only what this transaction has written; a sequence of a column follows its table.
    with home as (
      select n.oid, n.nspname as name, n.nspowner as owner from pg_catalog.pg_namespace n
      where n.nspname = ${schema} and pg_catalog.pg_has_role(n.nspowner, 'member')
    ), made as (
      select case c.relkind when 'v' then 'view' when 'S' then 'sequence' when 'c' then 'type' else 'table' end as kind,
        format('%I.%I', h.name, c.relname) as thing, h.owner
      from home h join pg_catalog.pg_class c on c.relnamespace = h.oid and c.relowner <> h.owner
      where c.relkind in ('r', 'p', 'v', 'S', 'c') and c.xmin = pg_current_xact_id()::xid
        and not (c.relkind = 'S' and exists (
          select from pg_catalog.pg_depend d
          where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype in ('a', 'i')
            and d.refclassid = 'pg_class'::regclass))
      union all
      select 'routine', format('%I.%I(%s)', h.name, p.proname, pg_get_function_identity_arguments(p.oid)), h.owner
      from home h join pg_catalog.pg_proc p on p.pronamespace = h.oid and p.proowner <> h.owner
      where p.xmin = pg_current_xact_id()::xid
    )
    select format('alter %s %s owner to %I', m.kind, m.thing, r.rolname)
    from made m join pg_catalog.pg_roles r on r.oid = m.owner
  loop
    execute command;
  end loop;
end
$$;
`;
}
