-- oldest-binary: 1
--
-- What first_time and newer were told belongs to roles where the owner of the schema says so: a scope that has the name
-- of a consumer to which roles were granted, or was granted by that name alone, is for these roles. Another role could
-- use up the keys of a consumer, so that its messages look as if they were applied, or read their results. Scopes to
-- which nobody was granted stay as they were, for everybody. Programs built for earlier versions of the schema run on it
-- unchanged.

begin;

set local lock_timeout = '5s';
set local search_path = pg_catalog, pg_temp;

create function waybill.check_scope(scope text) returns void
language plpgsql stable
set search_path = pg_catalog, waybill, pg_temp
as $$
declare
  -- Why not current_user: this runs for functions that work on behalf of their owner.
  caller constant name := case current_setting('role') when 'none' then session_user else current_setting('role') end;
begin
  if exists (select from waybill.consumer_grant g where g.consumer = check_scope.scope)
    and not has_table_privilege(caller, 'waybill.inbox'::regclass, 'update')
    and not exists (
      select from waybill.consumer_grant g join pg_roles r on r.rolname = g.role_name
      where g.consumer = check_scope.scope and pg_has_role(caller, r.oid, 'usage')
    )
  then
    raise exception 'role % may not use scope %: it was granted to others', caller, to_json(scope) using errcode = 'WB007',
      hint = format('Use another scope, or as the owner of the schema: select waybill.grant_consumer(%L, %L);', scope, caller);
  end if;
end
$$;

comment on function waybill.check_scope(text) is
  'WB007 if the scope was granted to roles by grant_consumer, and the caller is none of them, nor the role of the program.';

create or replace function waybill.first_time(scope text, key text, result text default null) returns boolean
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
begin
  perform waybill.check_scope(scope);
  insert into waybill.idempotency as d (scope, key, result)
  values (first_time.scope, first_time.key, first_time.result)
  on conflict on constraint idempotency_pkey do nothing;
  return found;
end
$$;

comment on function waybill.first_time(text, text, text) is
  'True once for each scope and key among all committed transactions, within the retention (clean_idempotency). Do the thing in the same transaction if it is true. Waits for a transaction that has said it first: if that one rolls back, this is the first time. Errors: WB007 (the scope was granted to other roles).';

create or replace function waybill.first_result(scope text, key text) returns text
language plpgsql stable security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
begin
  perform waybill.check_scope(scope);
  return (select d.result from waybill.idempotency d where d.scope = first_result.scope and d.key = first_result.key);
end
$$;

comment on function waybill.first_result(text, text) is
  'The result that the first time was told; null if none, or it never was. Errors: WB007 (the scope was granted to other roles).';

create or replace function waybill.newer(scope text, key text, version bigint) returns boolean
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
begin
  perform waybill.check_scope(scope);
  insert into waybill.freshness as f (scope, key, version)
  values (newer.scope, newer.key, newer.version)
  on conflict on constraint freshness_pkey do update
  set version = excluded.version, at = excluded.at
  where f.version < excluded.version;
  return found;
end
$$;

comment on function waybill.newer(text, text, bigint) is
  'True if this version of the entity is newer than every one that was asked about before, within the retention (clean_freshness); then it is the newest. Apply the event only if it is true, in the same transaction. Errors: WB007 (the scope was granted to other roles).';

comment on function waybill.grant_consumer(text, text) is
  'A role, with its members, may claim and settle messages of the consumer, and use the scope of that name in first_time, first_result and newer, which roles without the grant may not any more. A name that is no consumer''s is a scope alone, or a consumer that is registered later. For the owner of the schema.';

revoke all on function waybill.check_scope from public;

insert into waybill.migration (version, name, oldest_binary) values (16, 'scopes_of_roles', 1);

commit;
