import type pg from 'pg';
import type { FreshDatabase } from './database.js';

/** The search path of a role, or of a person at psql, on which a stranger's names come before PostgreSQL's own. */
export const STRANGERS_PATH = 'public, pg_catalog';

/** What each of the stranger's functions says when it is run. */
export const STRANGER_RAN = /a stranger's .* was run/;

/**
 * Makes in `public` what a stranger who may create there could offer: a twin of every function and operator of PostgreSQL
 * that plpgsql can write, those of format and concat that fit better, and a twin of the common types. Each says that it
 * was run. On STRANGERS_PATH every name without its schema leads to one of them, and so does none that is exact.
 */
export async function plantStrangers(client: pg.ClientBase): Promise<void> {
  await client.query(
    `begin; set local search_path = pg_catalog; create sequence public.strangers_ran; ${FUNCTIONS}; ${OPERATORS}; ${TYPES}; commit`,
  );
}

/** How often one of them was run since this was asked last, whatever became of it. */
export async function strangersRan(database: FreshDatabase): Promise<number> {
  const [ran] = await database.query<{ n: number }>(
    `select (case when is_called then last_value else 0 end)::int as n, setval('public.strangers_ran', 1, false)
     from public.strangers_ran`,
  );
  return ran?.n ?? 0;
}

/** Why a sequence too: what is rolled back, or caught by somebody, does not take it back. */
const RAN = (what: string): string =>
  `format('begin perform pg_catalog.nextval(''public.strangers_ran''); raise exception using message = %L; end',
     'a stranger''s ' || ${what} || ' was run')`;

/** Pseudo-types that plpgsql takes. */
const WRITABLE = `array(select t.oid from pg_type t where t.typtype <> 'p'
  or t.typname in ('anyelement', 'anyarray', 'anynonarray', 'anyenum', 'anyrange', 'anycompatible', 'anycompatiblearray'))`;

const FUNCTIONS = `do $plant$
declare
  writable constant oid[] := ${WRITABLE};
  twin record;
begin
  for twin in
    select p.proname as name, oidvectortypes(p.proargtypes) as takes,
      case when p.proretset then 'setof ' else '' end || format_type(p.prorettype, null) as gives
    from pg_proc p
    where p.pronamespace = 'pg_catalog'::regnamespace and p.prokind = 'f' and p.proargtypes::oid[] <@ writable
      and p.prorettype = any (writable || array['void', 'record']::regtype[]::oid[])
      -- A polymorphic result needs an argument that says what it is.
      and (format_type(p.prorettype, null) !~ '^any' or oidvectortypes(p.proargtypes) ~ 'any')
    union all
    select f.name, array_to_string(array_fill('text'::text, array[n]), ', '), 'text'
    from unnest(array['format', 'concat']) f (name), generate_series(1, 6) n
  loop
    begin
      execute format('create function public.%I(%s) returns %s language plpgsql as %L', twin.name, twin.takes, twin.gives,
        ${RAN("'function ' || twin.name || '(' || twin.takes || ')'")});
    exception
      -- It is a twin of two.
      when duplicate_function or invalid_function_definition then null;
    end;
  end loop;
end $plant$`;

const OPERATORS = `do $plant$
declare
  writable constant oid[] := ${WRITABLE};
  twin record;
  made int := 0;
begin
  for twin in
    select o.oprname as name, nullif(o.oprleft, 0) as l, o.oprright as r, format_type(o.oprresult, null) as gives
    from pg_operator o
    where o.oprnamespace = 'pg_catalog'::regnamespace and o.oprright = any (writable)
      and (o.oprleft = 0 or o.oprleft = any (writable)) and o.oprresult = any (writable)
  loop
    made := made + 1;
    execute format('create function public.operator_%s(%s) returns %s language plpgsql as %L', made,
      concat_ws(', ', format_type(twin.l, null), format_type(twin.r, null)), twin.gives,
      ${RAN("'operator ' || twin.name")});
    execute format('create operator public.%s (%s rightarg = %s, function = public.operator_%s)', twin.name,
      case when twin.l is not null then format('leftarg = %s, ', format_type(twin.l, null)) end,
      format_type(twin.r, null), made);
  end loop;
end $plant$`;

const TYPES = `do $plant$
declare
  twin text;
begin
  foreach twin in array array['text', 'json', 'jsonb', 'uuid', 'bytea', 'oid', 'name', 'float8', 'timestamptz', 'regclass',
    'regnamespace', 'regprocedure', 'regproc', 'regtype', 'regrole', 'xid', 'xid8', 'pg_lsn', 'inet']
  loop
    execute format('create function public.says_%s(pg_catalog.%s) returns boolean language plpgsql as %L', twin, twin,
      ${RAN("'type ' || twin")});
    execute format('create domain public.%s as pg_catalog.%s check (public.says_%s(value))', twin, twin, twin);
  end loop;
end $plant$`;
