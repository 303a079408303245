-- Roles and grants of a Waybill schema. Run after the migrations, and again after each new one: it may be repeated.
-- Every name can be another one, for example
--   psql -v schema=orders_events -v app=orders -v relay=orders_relay -f sql/roles.sql
-- Roles that exist are kept as they are, but for the grants. Those that are made here have no password; give the ones
-- that log in theirs by "alter role ... password" or a rule in pg_hba.conf. With -v app_delete=NAME there is one
-- more role, for applications that insert and delete a row in one transaction; with -v operator=NAME another one, for
-- people who look at rows that could not be published, and retry, discard or replay them.
--
-- Run it as a superuser, or as a role that owns the database and the schema and may create roles.

\if :{?schema}
\else
\set schema waybill
\endif
\if :{?owner}
\else
\set owner waybill_owner
\endif
\if :{?app}
\else
\set app waybill_app
\endif
\if :{?relay}
\else
\set relay waybill_relay
\endif
\if :{?observer}
\else
\set observer waybill_observer
\endif
\if :{?app_delete}
\else
\set app_delete ''
\endif
\if :{?operator}
\else
\set operator ''
\endif

begin;

set local lock_timeout = '5s';
-- Whoever may create in a schema of the session's search path has nothing of his run by what follows.
set local search_path = pg_catalog, pg_temp;
-- Blocks between dollar signs do not see psql's variables; settings carry them there.
set local waybill_roles.schema = :'schema';
set local waybill_roles.owner = :'owner';
set local waybill_roles.app = :'app';
set local waybill_roles.relay = :'relay';
set local waybill_roles.observer = :'observer';
set local waybill_roles.app_delete = :'app_delete';
set local waybill_roles.operator = :'operator';

-- The roles.
do $$
declare
  wanted record;
  relay_role constant text := current_setting('waybill_roles.relay');
begin
  for wanted in
    select * from (values
      (current_setting('waybill_roles.owner'), 'nologin'),
      (current_setting('waybill_roles.app'), 'login'),
      (relay_role, 'login'),
      (current_setting('waybill_roles.observer'), 'login'),
      (current_setting('waybill_roles.app_delete'), 'nologin'),
      (current_setting('waybill_roles.operator'), 'login')
    ) as w (name, login)
    where w.name <> '' and not exists (select from pg_roles r where r.rolname = w.name)
  loop
    execute format('create role %I %s', wanted.name, wanted.login);
  end loop;

  -- Managed servers give replication by membership; elsewhere it is an attribute, and it is not inherited.
  if exists (select from pg_roles where rolname = 'rds_replication') then
    execute format('grant rds_replication to %I', relay_role);
  elsif not (select rolreplication or rolsuper from pg_roles where rolname = relay_role) then
    begin
      execute format('alter role %I replication', relay_role);
    exception
      when insufficient_privilege then
        raise warning 'role % has no REPLICATION yet: %', relay_role, sqlerrm
          using hint = format('As a superuser: alter role %I replication;', relay_role);
    end;
  end if;
end
$$;

-- The owner: everything in the schema, and the publication. Its functions work on behalf of the others.
do $$
declare
  schema_name constant text := current_setting('waybill_roles.schema');
  owner_role constant text := current_setting('waybill_roles.owner');
  owner_oid constant oid := (select oid from pg_roles where rolname = owner_role);
  command text;
begin
  -- To give a thing away one must be able to become its new owner.
  if owner_role <> current_user and not (select rolsuper from pg_roles where rolname = current_user) then
    begin
      execute format('grant %I to current_user', owner_role);
    exception
      when insufficient_privilege then
        if not pg_has_role(current_user, owner_oid, 'member') then
          raise;
        end if;
    end;
  end if;
  if not has_database_privilege(owner_role, current_database(), 'create') then
    -- A publication is an object of the database.
    execute format('grant create on database %I to %I', current_database(), owner_role);
  end if;
  for command in
    select format('alter schema %I owner to %I', n.nspname, owner_role)
    from pg_namespace n where n.nspname = schema_name and n.nspowner <> owner_oid
    union all
    select format(
      'alter %s %I.%I owner to %I',
      case c.relkind when 'v' then 'view' when 'S' then 'sequence' else 'table' end, schema_name, c.relname, owner_role)
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = schema_name and c.relowner <> owner_oid and c.relkind in ('r', 'p', 'v', 'S')
      and not exists (
        select from pg_depend d
        where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype in ('a', 'i') and c.relkind = 'S'
          and d.refclassid = 'pg_class'::regclass
      )
    union all
    select format(
      'alter function %I.%I(%s) owner to %I', schema_name, p.proname, pg_get_function_identity_arguments(p.oid), owner_role)
    from pg_proc p join pg_namespace n on n.oid = p.pronamespace
    where n.nspname = schema_name and p.proowner <> owner_oid
    union all
    select format('alter type %I.%I owner to %I', schema_name, c.relname, owner_role)
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = schema_name and c.relowner <> owner_oid and c.relkind = 'c'
    union all
    select format('alter publication %I owner to %I', b.pubname, owner_role)
    from pg_publication b where b.pubname = schema_name || '_outbox' and b.pubowner <> owner_oid
  loop
    execute command;
  end loop;
end
$$;

revoke all on schema :"schema" from public;
revoke all on all tables in schema :"schema" from public;
revoke all on all sequences in schema :"schema" from public;
revoke all on all functions in schema :"schema" from public;

grant usage on schema :"schema" to :"app", :"relay", :"observer";

-- The application: writes rows, and sees no more of them than RETURNING and ON CONFLICT need.
grant insert (
  id, type, key, schema_version, payload, payload_bytes, content_type, content_encoding, headers, exchange, routing_key,
  correlation_id, causation_id, reply_to, traceparent, tracestate, priority, expires_at, deliver_at, occurred_at
) on :"schema".outbox to :"app";
grant select (seq, id) on :"schema".outbox to :"app";
grant execute on function
  :"schema".publish, :"schema".publish_many, :"schema".cancel, :"schema".publication_status,
  :"schema".headers_are_publishable to :"app";
-- Its inbox: only rows of consumers that the owner gave it by grant_consumer.
grant execute on function
  :"schema".first_time, :"schema".first_result, :"schema".newer, :"schema".json_of_body,
  :"schema".payload(:"schema".inbox_message), :"schema".payload(:"schema".claimed_message),
  :"schema".inbox_claim, :"schema".inbox_complete, :"schema".inbox_fail, :"schema".inbox_defer, :"schema".inbox_release,
  :"schema".inbox_extend, :"schema".inbox_handling to :"app";

-- The relay: no DDL; partitions and the publication are kept by the owner's functions.
grant select, insert, update, delete on :"schema".outbox to :"relay";
grant insert, select (id, seq) on :"schema".outbox_history to :"relay";
grant select, insert, update, delete on :"schema".relay to :"relay";
grant select on :"schema".installation, :"schema".migration, :"schema".outbox_backlog to :"relay";
grant select on sequence :"schema".outbox_seq_seq to :"relay";
grant usage, select on sequence :"schema".outbox_hold_no to :"relay";
grant execute on function
  :"schema".keep_history, :"schema".ensure_publication, :"schema".headers_are_publishable,
  :"schema".outbox_key_lock to :"relay";
-- For an operator who uses the relay's configuration: `waybill outbox retry`, `discard` and `replay` by id.
grant execute on function :"schema".retry, :"schema".discard, :"schema".replay to :"relay";
-- And for `waybill relay adopt` and `drop`.
grant execute on function :"schema".adopt_relay, :"schema".drop_relay to :"relay";


-- The receiver of the inbox is the same program; its sql handlers run as this role, without the owner's rights.
grant select, insert, update, delete on
  :"schema".inbox, :"schema".inbox_attempt, :"schema".consumer to :"relay";
grant select on :"schema".consumer_grant, :"schema".inbox_uncopied, :"schema".inbox_backlog, :"schema".action_log to :"relay";
grant usage, select on sequence :"schema".inbox_seq_seq to :"relay";
grant execute on function
  :"schema".json_of_body, :"schema".payload(:"schema".inbox_message), :"schema".payload(:"schema".claimed_message),
  :"schema".payload(:"schema".inbox), :"schema".message_of, :"schema".set_handling, :"schema".consumer_settings,
  :"schema".consumer_for_caller, :"schema".key_lock, :"schema".release_key, :"schema".inbox_age, :"schema".put_back,
  :"schema".end_expired_leases, :"schema".take_rows, :"schema".check_claim, :"schema".claimed_row, :"schema".refuse_half_renamed,
  :"schema".inbox_claim, :"schema".inbox_complete, :"schema".inbox_fail, :"schema".inbox_defer, :"schema".inbox_release,
  :"schema".inbox_extend, :"schema".inbox_handling, :"schema".first_time, :"schema".first_result, :"schema".newer,
  :"schema".register_consumers, :"schema".consumer_break, :"schema".consumer_mend, :"schema".inbox_wake,
  :"schema".arrivals, :"schema".store_arrivals, :"schema".handler_call, :"schema".deferred_constraints,
  :"schema".call_handler, :"schema".inbox_receive, :"schema".inbox_claim_rows, :"schema".lock_keys,
  :"schema".lock_keys_soon, :"schema".lock_claimed_soon, :"schema".finish_rows, :"schema".put_back_rows, :"schema".inbox_apply, :"schema".inbox_settle, :"schema".revive_row,
  :"schema".inbox_refund, :"schema".inbox_give_back, :"schema".inbox_extend_rows,
  :"schema".inbox_due, :"schema".inbox_sweep, :"schema".inbox_deaths, :"schema".inbox_deaths_copied,
  :"schema".inbox_deaths_claim, :"schema".inbox_deaths_done, :"schema".inbox_deaths_keep,
  :"schema".inbox_clean to :"relay";
-- What the program removes when its retention is over, consumers or not.
grant execute on function
  :"schema".clean_idempotency, :"schema".freshness_limit, :"schema".clean_freshness, :"schema".clean_actions to :"relay";
-- For an operator who uses the relay's configuration: `waybill inbox`, `consumer` and `redact`.
grant execute on function
  :"schema".inbox_retry, :"schema".inbox_replay, :"schema".inbox_discard, :"schema".inbox_postpone,
  :"schema".consumer_pause, :"schema".consumer_resume, :"schema".rename_consumer, :"schema".rename_begin,
  :"schema".rename_wait, :"schema".rename_cancel, :"schema".rename_rows, :"schema".rename_finish, :"schema".forget_consumer, :"schema".redact,
  :"schema".redact_count to :"relay";

-- Whoever watches.
grant select on :"schema".outbox_backlog, :"schema".inbox_backlog to :"observer";

-- Insert-then-delete: its writers are members of this role and of the application's.
do $$
declare
  delete_role constant text := current_setting('waybill_roles.app_delete');
begin
  if delete_role <> '' then
    execute format('grant usage on schema %I to %I', current_setting('waybill_roles.schema'), delete_role);
    execute format(
      'grant select (seq, id), delete on %I.outbox to %I', current_setting('waybill_roles.schema'), delete_role);
  end if;
end
$$;

-- Whoever mends: reads rows, bodies included, and changes them by the functions alone, which keep the log of it.
do $$
declare
  schema_name constant text := current_setting('waybill_roles.schema');
  operator_role constant text := current_setting('waybill_roles.operator');
begin
  if operator_role <> '' then
    execute format('grant usage on schema %I to %I', schema_name, operator_role);
    execute format(
      'grant select on %1$I.outbox, %1$I.outbox_history, %1$I.outbox_backlog, %1$I.action_log, %1$I.migration to %2$I',
      schema_name, operator_role);
    execute format(
      'grant select on %1$I.inbox, %1$I.inbox_attempt, %1$I.inbox_backlog, %1$I.consumer, %1$I.consumer_grant to %2$I',
      schema_name, operator_role);
    execute format(
      'grant execute on function %1$I.inbox_retry, %1$I.inbox_replay, %1$I.inbox_discard, %1$I.inbox_postpone,
         %1$I.consumer_pause, %1$I.consumer_resume, %1$I.rename_consumer, %1$I.rename_begin, %1$I.rename_wait,
         %1$I.rename_cancel, %1$I.rename_rows, %1$I.rename_finish, %1$I.forget_consumer, %1$I.redact, %1$I.redact_count,
         %1$I.json_of_body, %1$I.payload(%1$I.inbox) to %2$I',
      schema_name, operator_role);
    execute format(
      'grant execute on function %1$I.retry, %1$I.discard, %1$I.replay, %1$I.publication_status to %2$I',
      schema_name, operator_role);
  end if;
end
$$;

commit;
