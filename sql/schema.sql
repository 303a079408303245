-- The schema as the migrations make it. Generated; do not edit: npm run generate.
-- Left out: grants (roles.sql), rows, and the partitions of outbox_history for single days.

set check_function_bodies = off;

create schema waybill;

create type waybill.claimed_message as (
  seq bigint,
  claim_token uuid,
  attempt integer,
  lease_until timestamp with time zone,
  consumer text,
  message_id text,
  original_id text,
  type text,
  key text,
  schema_version integer,
  body bytea,
  content_type text,
  content_encoding text,
  headers jsonb,
  exchange text,
  routing_key text,
  correlation_id text,
  causation_id text,
  reply_to text,
  app_id text,
  priority smallint,
  occurred_at timestamp with time zone,
  traceparent text,
  tracestate text,
  received_at timestamp with time zone
);

create type waybill.inbox_message as (
  seq bigint,
  attempt integer,
  consumer text,
  message_id text,
  original_id text,
  type text,
  key text,
  schema_version integer,
  body bytea,
  content_type text,
  content_encoding text,
  headers jsonb,
  exchange text,
  routing_key text,
  correlation_id text,
  causation_id text,
  reply_to text,
  app_id text,
  priority smallint,
  occurred_at timestamp with time zone,
  traceparent text,
  tracestate text,
  received_at timestamp with time zone
);

CREATE OR REPLACE FUNCTION waybill.adopt_relay(relay text, reason text DEFAULT NULL::text)
 RETURNS boolean
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
declare
  old waybill.relay;
begin
  select r.* into old from waybill.relay r where r.name = adopt_relay.relay for update;
  if old.name is null then
    return false;
  end if;
  update waybill.relay r
  set system_identifier = null, timeline = null, broker_cluster = null, broker_vhost = null,
    checkpoint_lsn = null, checkpoint_at = null, epoch = r.epoch + 1
  where r.name = old.name;
  insert into waybill.action_log (action, target, reason, details)
  values ('relay.adopt', old.name, adopt_relay.reason, jsonb_strip_nulls(jsonb_build_object(
    'slot', old.slot, 'system_identifier', old.system_identifier::text, 'timeline', old.timeline,
    'broker_cluster', old.broker_cluster, 'broker_vhost', old.broker_vhost,
    'checkpoint_lsn', old.checkpoint_lsn::text, 'holder', old.holder)));
  return true;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.arrivals(messages json, bodies bytea)
 RETURNS TABLE(ordinal integer, message_id text, original_id text, type text, key text, schema_version integer, content_type text, content_encoding text, headers jsonb, exchange text, routing_key text, correlation_id text, causation_id text, reply_to text, app_id text, priority smallint, occurred_at timestamp with time zone, traceparent text, tracestate text, dead_reason text, error text, raw_properties text, failed text, hold boolean, size integer, body bytea)
 LANGUAGE sql
 STABLE
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
  select
    r.ordinal::int, r.message_id, r.original_id, r.type, r.key, r.schema_version, r.content_type, r.content_encoding,
    r.headers, r.exchange, r.routing_key, r.correlation_id, r.causation_id, r.reply_to, r.app_id, r.priority,
    r.occurred_at, r.traceparent, r.tracestate, r.dead_reason, r.error, r.raw_properties, r.failed,
    coalesce(r.hold, false), coalesce(r.size, 0),
    substring(bodies
      from 1 + coalesce(sum(r.size) over (order by r.ordinal rows between unbounded preceding and 1 preceding), 0)::int
      for coalesce(r.size, 0))
  from rows from (json_to_recordset(messages) as (
    message_id text, size int, original_id text, type text, key text, schema_version int, content_type text,
    content_encoding text, headers jsonb, exchange text, routing_key text, correlation_id text, causation_id text,
    reply_to text, app_id text, priority smallint, occurred_at timestamptz, traceparent text, tracestate text,
    dead_reason text, error text, raw_properties text, failed text, hold boolean
  )) with ordinality as r (
    message_id, size, original_id, type, key, schema_version, content_type, content_encoding, headers, exchange,
    routing_key, correlation_id, causation_id, reply_to, app_id, priority, occurred_at, traceparent, tracestate,
    dead_reason, error, raw_properties, failed, hold, ordinal
  )
$function$;

CREATE OR REPLACE FUNCTION waybill.call_handler(calling text, message waybill.inbox_message, deferred text, OUT verdict text, OUT error text, OUT result text)
 RETURNS record
 LANGUAGE plpgsql
AS $function$
declare
  durable constant pg_catalog.text := pg_catalog.current_setting('synchronous_commit');
  -- Whoever has a lock that one message needs may have others that the batch needs: locks are waited for once, not sixty
  -- times.
  is_hasty constant boolean := pg_catalog.current_setting('waybill_message.found_lock', true) operator(pg_catalog.=) 'yes';
  usual_timeout constant pg_catalog.text := pg_catalog.current_setting('lock_timeout');
begin
  perform waybill.set_handling(message);
  if is_hasty then
    perform pg_catalog.set_config('lock_timeout', '20ms', true);
  end if;
  begin
    execute calling into result using message;
    -- A broken deferred constraint is this message's, not that of the whole batch at its commit.
    set constraints all immediate;
    verdict := 'done';
    result := pg_catalog.left(result, 4000);
    if result operator(pg_catalog.=) '' then
      result := null;
    end if;
  exception
    when serialization_failure or deadlock_detected or read_only_sql_transaction then
      raise;
    -- Why assert_failure by name: "others" leaves it out. It leaves query_canceled out too, and that is wanted.
    when assert_failure or others then
      -- The server is short of something: no message's fault.
      if sqlstate operator(pg_catalog.~) '^(53|57|58)' then
        raise;
      end if;
      error := pg_catalog.concat(sqlstate, ': ', sqlerrm);
      result := null;
      verdict := case
        when sqlstate operator(pg_catalog.=) 'WB001' or sqlstate operator(pg_catalog.=) '55P03' then 'not-yet'
        when sqlstate operator(pg_catalog.=) 'WB002' then 'never'
        when sqlstate operator(pg_catalog.~) '^(42|3F)' then 'broken'
        else 'retry'
      end;
      if sqlstate operator(pg_catalog.=) '55P03' then
        perform pg_catalog.set_config('waybill_message.found_lock', 'yes', true);
      end if;
  end;
  -- Also what the handler has set, lest Waybill's own locks, and other messages, wait by it.
  if pg_catalog.current_setting('lock_timeout') operator(pg_catalog.<>) usual_timeout then
    perform pg_catalog.set_config('lock_timeout', usual_timeout, true);
  end if;
  -- What is committed is acknowledged to the broker, so it must be on the disk. Also where a call before this one has set
  -- the session.
  if durable operator(pg_catalog.=) 'off' then
    perform pg_catalog.set_config('synchronous_commit', 'on', true);
  elsif pg_catalog.current_setting('synchronous_commit') operator(pg_catalog.<>) durable then
    perform pg_catalog.set_config('synchronous_commit', durable, true);
  end if;
  if deferred is not null then
    execute pg_catalog.concat('set constraints ', deferred, ' deferred');
  end if;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.cancel(id uuid)
 RETURNS boolean
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
declare
  row_key text;
begin
  perform waybill.lock_outbox_row(cancel.id);
  update waybill.outbox o
  set state = 'cancelled', next_attempt_at = null, hold_no = null
  where o.id = cancel.id
    and (o.state = 'scheduled' or o.state = 'ready' and o.hold_no is null and o.deliver_at > clock_timestamp())
  returning o.key into row_key;
  if not found then
    return false;
  end if;
  perform waybill.release_outbox_key(row_key);
  return true;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.check_claim(max integer, lease interval)
 RETURNS void
 LANGUAGE plpgsql
 IMMUTABLE
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
begin
  if max is null or max not between 1 and 1000 then
    raise exception 'max must be 1 to 1000' using errcode = '22023';
  elsif lease is null or lease not between interval '1 second' and interval '1 day' then
    raise exception 'a lease must be 1 second to 1 day' using errcode = '22023';
  end if;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.check_scope(scope text)
 RETURNS void
 LANGUAGE plpgsql
 STABLE
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
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
$function$;

CREATE OR REPLACE FUNCTION waybill.clean_actions(older_than interval DEFAULT '365 days'::interval, max_rows integer DEFAULT 5000)
 RETURNS TABLE(removed bigint, remaining bigint)
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
 SET enable_seqscan TO 'off'
AS $function$
#variable_conflict use_column
declare
  before timestamptz;
begin
  -- Whoever may call this may not wipe out what was done a moment ago.
  if older_than is null or older_than < interval '30 days' then
    raise exception 'older_than must be at least 30 days' using errcode = '22023';
  end if;
  -- A row that an operator had tried again is as old as that act, for as long as its age counts.
  select clock_timestamp() - greatest(older_than, max(greatest(c.max_age, c.not_yet_for))) into before from waybill.consumer c;
  -- Why by seq: it grows with the time, and has an index.
  delete from waybill.action_log where seq = any (array(
    select l.seq from (select a.seq, a.at from waybill.action_log a order by a.seq limit max_rows) as l where l.at < before
  ));
  get diagnostics removed = row_count;
  select count(*) into remaining
  from (select a.at from waybill.action_log a order by a.seq limit max_rows) as l where l.at < before;
  return next;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.clean_freshness(before timestamp with time zone, from_scope text DEFAULT ''::text, from_key text DEFAULT ''::text, max_rows integer DEFAULT 5000)
 RETURNS TABLE(removed bigint, next_scope text, next_key text)
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
 SET enable_seqscan TO 'off'
AS $function$
#variable_conflict use_column
declare
  last_seen record;
begin
  if max_rows is null or max_rows < 2 then
    raise exception 'max_rows must be at least 2' using errcode = '22023';
  elsif before is null or before > clock_timestamp() - (
    select coalesce(max(c.retain_ids + greatest(c.max_age, c.not_yet_for)), '0') from waybill.consumer c
  ) then
    raise exception 'before must not be later than freshness_limit() says' using errcode = '22023';
  end if;
  -- Why a walk by the key and no index by time: newer moves the time of a row at each version, and would have to move it
  -- in that index as well.
  select p.scope, p.key, count(*) over () as rows into last_seen from (
    select f.scope, f.key from waybill.freshness f
    where (f.scope, f.key) >= (from_scope, from_key) order by f.scope, f.key limit max_rows
  ) as p order by p.scope desc, p.key desc limit 1;
  delete from waybill.freshness where ctid = any (array(
    select f.ctid from waybill.freshness f
    where (f.scope, f.key) >= (from_scope, from_key) and (f.scope, f.key) <= (last_seen.scope, last_seen.key)
      and f.at < before
    for update skip locked
  ));
  get diagnostics removed = row_count;
  if last_seen.rows = max_rows then
    next_scope := last_seen.scope;
    next_key := last_seen.key;
  end if;
  return next;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.clean_idempotency(older_than interval DEFAULT '30 days'::interval, max_rows integer DEFAULT 10000)
 RETURNS TABLE(removed bigint, remaining bigint)
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
declare
  most_counted constant int := 100000;
  before constant timestamptz := clock_timestamp() - older_than;
begin
  if older_than is null or older_than < interval '0' then
    raise exception 'older_than must not be negative' using errcode = '22023';
  end if;
  delete from waybill.idempotency where ctid = any (array(
    select d.ctid from waybill.idempotency d where d.first_at < before order by d.first_at limit max_rows
    for update skip locked
  ));
  get diagnostics removed = row_count;
  select count(*) into remaining from (
    select from waybill.idempotency d where d.first_at < before limit most_counted
  ) as left_over;
  return next;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.consumer_break(consumer text, reason text)
 RETURNS boolean
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
declare
  -- It is said again several times in this time, as long as it is so.
  counts_for constant interval := '2 minutes';
  moment constant timestamptz := clock_timestamp();
  before record;
begin
  select c.paused_by = 'operator' as by_operator, c.paused_by = 'breaker' and c.paused_until > moment as is_known
  into before from waybill.consumer c where c.name = consumer_break.consumer for update;
  if not found or before.by_operator then
    return false;
  end if;
  update waybill.consumer c
  set paused_at = case when before.is_known then c.paused_at else moment end, paused_by = 'breaker',
    paused_reason = left(reason, 4000), paused_until = moment + counts_for
  where c.name = consumer_break.consumer;
  return before.is_known is not true;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.consumer_mend(consumer text)
 RETURNS boolean
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
begin
  update waybill.consumer c set paused_at = null, paused_by = null, paused_reason = null, paused_until = null
  where c.name = consumer_mend.consumer and c.paused_by = 'breaker';
  return found;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.consumer_pause(consumer text, reason text)
 RETURNS text
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
declare
  before record;
begin
  select c.paused_by, c.paused_reason into before from waybill.consumer c
  where c.name = consumer_pause.consumer for update;
  if not found then
    return 'unknown';
  elsif before.paused_by = 'operator' then
    return 'already paused';
  end if;
  update waybill.consumer c
  set paused_at = clock_timestamp(), paused_by = 'operator', paused_reason = left(consumer_pause.reason, 4000),
    paused_until = null
  where c.name = consumer_pause.consumer;
  insert into waybill.action_log (action, target, reason) values ('consumer.pause', consumer, reason);
  perform pg_notify('waybill_inbox', consumer);
  return 'paused';
end
$function$;

CREATE OR REPLACE FUNCTION waybill.consumer_resume(consumer text, reason text DEFAULT NULL::text)
 RETURNS text
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
declare
  before record;
begin
  select c.paused_by, c.paused_at, c.paused_reason into before from waybill.consumer c
  where c.name = consumer_resume.consumer for update;
  if not found then
    return 'unknown';
  elsif before.paused_by is distinct from 'operator' then
    return 'not paused';
  end if;
  update waybill.consumer c set paused_at = null, paused_by = null, paused_reason = null, paused_until = null
  where c.name = consumer_resume.consumer;
  insert into waybill.action_log (action, target, reason, details)
  values ('consumer.resume', consumer, consumer_resume.reason, jsonb_strip_nulls(jsonb_build_object(
    'paused_by', before.paused_by, 'paused_at', before.paused_at, 'paused_reason', before.paused_reason)));
  perform pg_notify('waybill_inbox', consumer);
  return 'resumed';
end
$function$;

CREATE OR REPLACE FUNCTION waybill.deferred_constraints()
 RETURNS text
 LANGUAGE sql
 STABLE
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
  select string_agg(format('%I.%I', n.nspname, c.conname), ', ')
  from pg_constraint c join pg_namespace n on n.oid = c.connamespace
  where c.condeferred and has_schema_privilege(n.oid, 'usage')
$function$;

CREATE OR REPLACE FUNCTION waybill.discard(id uuid, reason text DEFAULT NULL::text)
 RETURNS text
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
declare
  held record;
begin
  perform waybill.lock_outbox_row(discard.id);
  select o.seq, o.key, o.state, o.type, o.attempts, o.last_error into held
  from waybill.outbox o where o.id = discard.id for update;
  if not found then
    return coalesce(
      (select 'already ' || h.outcome from waybill.outbox_history h
       where h.id = discard.id order by h.settled_at desc limit 1),
      'unknown');
  elsif held.state not in ('parked', 'blocked', 'scheduled') then
    return 'not held: ' || held.state;
  end if;
  update waybill.outbox o
  set state = 'discarded', next_attempt_at = null, hold_no = null
  where o.seq = held.seq;
  perform waybill.release_outbox_key(held.key);
  insert into waybill.action_log (action, target, reason, details)
  values ('outbox.discard', discard.id::text, discard.reason, jsonb_build_object(
    'state', held.state, 'type', held.type, 'attempts', held.attempts, 'error', held.last_error));
  return 'discarded';
end
$function$;

CREATE OR REPLACE FUNCTION waybill.drop_relay(relay text, reason text DEFAULT NULL::text)
 RETURNS boolean
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
declare
  old waybill.relay;
begin
  delete from waybill.relay r where r.name = drop_relay.relay returning r.* into old;
  if old.name is null then
    return false;
  end if;
  insert into waybill.action_log (action, target, reason, details)
  values ('relay.drop', old.name, drop_relay.reason, jsonb_strip_nulls(jsonb_build_object(
    'slot', old.slot, 'system_identifier', old.system_identifier::text,
    'broker_cluster', old.broker_cluster, 'broker_vhost', old.broker_vhost,
    'checkpoint_lsn', old.checkpoint_lsn::text, 'holder', old.holder)));
  return true;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.ensure_publication()
 RETURNS text
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
declare
  schema_name text;
  publication_name text;
begin
  select n.nspname into schema_name
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
  where c.oid = 'waybill.outbox'::regclass;
  publication_name := schema_name || '_outbox';
  if exists (
    select from pg_publication_tables t
    where t.pubname = publication_name and t.schemaname = schema_name and t.tablename = 'outbox'
  ) then
    return 'exists';
  end if;
  if exists (select from pg_publication p where p.pubname = publication_name) then
    -- It outlived an earlier table of that name.
    execute format('alter publication %I add table waybill.outbox', publication_name);
  else
    execute format('create publication %I for table waybill.outbox with (publish = %L)', publication_name, 'insert');
  end if;
  return 'created';
exception
  when duplicate_object or unique_violation then
    return 'exists';
  when insufficient_privilege then
    raise exception 'cannot create publication %: %', publication_name, sqlerrm
      using errcode = '42501', hint = format(
        'A publication needs CREATE on the database: grant create on database %I to %I;', current_database(),
        current_user);
end
$function$;

CREATE OR REPLACE FUNCTION waybill.first_result(scope text, key text)
 RETURNS text
 LANGUAGE plpgsql
 STABLE SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
begin
  perform waybill.check_scope(scope);
  return (select d.result from waybill.idempotency d where d.scope = first_result.scope and d.key = first_result.key);
end
$function$;

CREATE OR REPLACE FUNCTION waybill.first_time(scope text, key text, result text DEFAULT NULL::text)
 RETURNS boolean
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
begin
  perform waybill.check_scope(scope);
  insert into waybill.idempotency as d (scope, key, result)
  values (first_time.scope, first_time.key, first_time.result)
  on conflict on constraint idempotency_pkey do nothing;
  return found;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.forget_consumer(name text, reason text DEFAULT NULL::text, force boolean DEFAULT false)
 RETURNS text
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
declare
  most_rows constant int := 50000;
  unfinished bigint;
begin
  perform waybill.refuse_half_renamed(forget_consumer.name);
  select coalesce(sum(b.count), 0) into unfinished from waybill.inbox_backlog b where b.consumer = forget_consumer.name;
  if unfinished > 0 and not coalesce(force, false) then
    return 'unfinished rows: ' || unfinished;
  end if;
  delete from waybill.inbox where ctid = any (array(
    select i.ctid from waybill.inbox i where i.consumer = forget_consumer.name limit most_rows));
  if exists (select from waybill.inbox i where i.consumer = forget_consumer.name) then
    return 'more';
  end if;
  delete from waybill.inbox_uncopied u where u.consumer = forget_consumer.name;
  delete from waybill.consumer_grant g where g.consumer = forget_consumer.name;
  delete from waybill.consumer c where c.name = forget_consumer.name;
  if not found then
    return 'unknown';
  end if;
  insert into waybill.action_log (action, target, reason, details)
  values ('consumer.forget', name, forget_consumer.reason, jsonb_build_object('unfinished', unfinished));
  return 'forgotten';
end
$function$;

CREATE OR REPLACE FUNCTION waybill.freshness_limit(older_than interval DEFAULT '90 days'::interval)
 RETURNS timestamp with time zone
 LANGUAGE plpgsql
 STABLE SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
 SET enable_seqscan TO 'off'
AS $function$
declare
  span interval;
  oldest timestamptz;
begin
  if older_than is null or older_than < interval '0' then
    raise exception 'older_than must not be negative' using errcode = '22023';
  elsif not exists (select from waybill.freshness) then
    return null;
  end if;
  -- A copy that comes while its id is known never asks; one that waits in the inbox may ask at any time.
  select greatest(older_than, max(c.retain_ids + greatest(c.max_age, c.not_yet_for))) into span from waybill.consumer c;
  select least(clock_timestamp(), min(u.received_at)) into oldest
  from waybill.consumer c cross join lateral (
    (select i.received_at from waybill.inbox i
     where i.consumer = c.name and i.status = 'pending' order by i.seq + 0 limit 1)
    union all
    select min(i.received_at) from waybill.inbox i where i.consumer = c.name and i.status = 'running'
    union all
    select min(i.received_at) from waybill.inbox i where i.consumer = c.name and i.status = 'waiting'
    union all
    select min(i.received_at) from waybill.inbox i where i.consumer = c.name and i.status = 'blocked'
    union all
    select min(i.received_at) from waybill.inbox i where i.consumer = c.name and i.status = 'dead'
  ) as u;
  return oldest - span;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.grant_consumer(consumer text, role text)
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
begin
  if not exists (select from pg_roles r where r.rolname = grant_consumer.role) then
    raise exception 'no role %', to_json(role) using errcode = '42704';
  end if;
  insert into waybill.consumer_grant as g (consumer, role_name)
  values (grant_consumer.consumer, grant_consumer.role) on conflict do nothing;
  if found then
    insert into waybill.action_log (action, target, details)
    values ('consumer.grant', grant_consumer.consumer, jsonb_build_object('role', grant_consumer.role));
  end if;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.headers_are_publishable(headers jsonb)
 RETURNS boolean
 LANGUAGE plpgsql
 IMMUTABLE PARALLEL SAFE
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
declare
  header record;
  header_count int := 0;
begin
  if headers is null or jsonb_typeof(headers) <> 'object' then
    return headers is null;
  end if;
  for header in select h.key as name, h.value from jsonb_each(headers) as h loop
    header_count := header_count + 1;
    if header_count > 256
      or octet_length(header.name) not between 1 and 255
      or upper(header.name collate "C") in ('CC', 'BCC', 'USER_ID', 'USER-ID')
      or upper(header.name collate "C") ~ '^X-(DEATH|DELAY|MATCH|RECEIVED-FROM|DELIVERY-COUNT|STREAM-OFFSET)$'
      or upper(header.name collate "C") ~ '^X-(FIRST-DEATH|LAST-DEATH|WAYBILL-)'
    then
      return false;
    end if;
    case jsonb_typeof(header.value)
      when 'string', 'boolean' then
        null;
      when 'number' then
        -- Why: 1e131071 is ten bytes here and 131 kB as text; nothing outside a double is worth that. Raised here,
        -- because the server's own message of a broken rule would write the text of the whole row first.
        if abs((header.value)::numeric) > 1.7976931348623157e308 or scale((header.value)::numeric) > 400 then
          raise exception 'header % is a number out of the range of a double', to_json(header.name)
            using errcode = '23514', constraint = 'outbox_headers_are_publishable';
        end if;
      else
        return false;
    end case;
  end loop;
  return true;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.inbox_age(seq bigint, message_id text, received_at timestamp with time zone)
 RETURNS interval
 LANGUAGE sql
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
  select clock_timestamp() - coalesce(
    (select max(a.at) from waybill.action_log a
     where a.target = inbox_age.message_id and a.action in ('inbox.retry', 'inbox.replay')
       and a.details ->> 'seq' = inbox_age.seq::text),
    inbox_age.received_at)
$function$;

CREATE OR REPLACE FUNCTION waybill.inbox_apply(consumer text, seqs bigint[], token uuid)
 RETURNS TABLE(seq bigint, status text, verdict text, attempt integer, next_attempt_at timestamp with time zone, dead_reason text, error text, released bigint)
 LANGUAGE plpgsql
AS $function$
#variable_conflict use_column
declare
  -- Until this line, and in types, nothing may be found by its bare name: whoever may create in a schema of the caller's
  -- search path could offer a function that fits better than the one that is meant.
  path constant pg_catalog.text := pg_catalog.current_setting('search_path');
  fixed constant pg_catalog.text := pg_catalog.set_config('search_path', 'pg_catalog, waybill, pg_temp', true);
  most_applied constant int := 60;
  settings constant waybill.consumer := waybill.consumer_settings(inbox_apply.consumer);
  calling constant pg_catalog.text := waybill.handler_call(settings);
  deferred constant pg_catalog.text := waybill.deferred_constraints();
  claimed waybill.inbox;
  message waybill.inbox_message;
  called record;
  done bigint[] := '{}';
  results pg_catalog.text[] := '{}';
  failed bigint[] := '{}';
  verdicts pg_catalog.text[] := '{}';
  errors pg_catalog.text[] := '{}';
begin
  if cardinality(seqs) > most_applied then
    raise exception 'at most % messages are applied in one transaction', most_applied using errcode = '22023';
  end if;
  perform waybill.lock_keys_soon(settings, seqs);
  for seq in select distinct s.seq from unnest(seqs) as s (seq) order by s.seq loop
    claimed := waybill.lock_claimed_soon(settings, seq, token);
    if claimed.seq is null then
      verdict := 'lost';
      return next;
      continue;
    end if;
    message := waybill.message_of(claimed);
    perform set_config('search_path', path, true);
    select * into called from waybill.call_handler(calling, message, deferred);
    perform pg_catalog.set_config('search_path', fixed, true);
    if called.verdict = 'done' then
      done := done || claimed.seq;
      results := array_append(results, called.result);
    else
      failed := failed || claimed.seq;
      verdicts := verdicts || called.verdict;
      errors := array_append(errors, called.error);
    end if;
  end loop;
  if cardinality(done) > 0 then
    return query
    select f.seq, 'done', 'done', null::int, null::timestamptz, null, null, f.released
    from waybill.finish_rows(settings, done, results) as f;
  end if;
  if cardinality(failed) > 0 then
    return query
    select p.seq, p.status, p.verdict, p.attempt, p.next_attempt_at, p.dead_reason, p.error, p.released
    from waybill.put_back_rows(settings, failed, verdicts, errors, '{}') as p;
  end if;
  perform set_config('search_path', path, true);
end
$function$;

CREATE OR REPLACE FUNCTION waybill.inbox_claim(consumer text, max integer DEFAULT 10, lease interval DEFAULT '00:01:00'::interval)
 RETURNS SETOF waybill.claimed_message
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
 SET enable_seqscan TO 'off'
AS $function$
declare
  settings constant waybill.consumer := waybill.consumer_for_caller(inbox_claim.consumer);
  moment timestamptz;
  taken bigint[];
begin
  perform waybill.check_claim(max, lease);
  -- Why not for a breaker: it speaks of one process, and another one's handler may work.
  if settings.paused_by = 'operator' then
    return;
  end if;
  perform waybill.end_expired_leases(settings);
  -- Why not in the conditions: a function that may answer anew for each row is no condition of an index.
  moment := clock_timestamp();

  -- One whose workers vanished twice goes alone: if it takes the next one down as well, it takes nothing else with it.
  taken := array(
    select i.seq from waybill.inbox i
    where i.consumer = settings.name and i.abandoned >= 2 and i.status in ('pending', 'waiting')
      and (i.next_attempt_at is null or i.next_attempt_at <= moment)
    order by i.seq + 0 limit 1 for update skip locked
  );
  if cardinality(taken) = 0 then
    taken := array(
      select i.seq from waybill.inbox i
      where i.consumer = settings.name and i.status = 'waiting' and i.next_attempt_at <= moment
        and i.abandoned < 2
      order by i.next_attempt_at limit inbox_claim.max for update skip locked
    );
    if cardinality(taken) < inbox_claim.max then
      taken := taken || array(
        select i.seq from waybill.inbox i
        where i.consumer = settings.name and i.status = 'pending' and i.abandoned < 2
        order by i.seq + 0 limit inbox_claim.max - cardinality(taken) for update skip locked
      );
    end if;
  end if;
  if cardinality(taken) > 0 then
    return query select * from waybill.take_rows(settings, taken, lease);
  end if;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.inbox_claim_rows(consumer text, seqs bigint[], attempts integer[] DEFAULT NULL::integer[], lease interval DEFAULT '00:01:00'::interval)
 RETURNS SETOF waybill.claimed_message
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
 SET enable_seqscan TO 'off'
AS $function$
declare
  early constant interval := '100 milliseconds';
  soon constant timestamptz := clock_timestamp() + early;
  settings constant waybill.consumer := waybill.consumer_settings(inbox_claim_rows.consumer);
  taken bigint[];
begin
  perform waybill.check_claim(greatest(cardinality(seqs), 1), lease);
  -- Not so with a pause of the program's own: it is by these rows that it probes.
  if settings.paused_by = 'operator' then
    return;
  end if;
  taken := array(
    select i.seq from waybill.inbox i
    where i.seq = any (inbox_claim_rows.seqs)
      -- In this form, lest all rows that wait are read to find these.
      and case
        when i.consumer <> settings.name then false
        when i.status = 'waiting' then i.next_attempt_at <= soon
        else i.status = 'pending'
      end
      and (attempts is null
        or i.failures + i.abandoned + 1 = attempts[array_position(inbox_claim_rows.seqs, i.seq)])
      and (i.abandoned < 2 or cardinality(inbox_claim_rows.seqs) = 1)
    order by i.seq for update skip locked
  );
  if cardinality(taken) > 0 then
    return query select * from waybill.take_rows(settings, taken, lease);
  end if;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.inbox_clean(consumer text, max_rows integer DEFAULT 5000)
 RETURNS TABLE(what text, removed bigint, remaining bigint)
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
 SET enable_seqscan TO 'off'
AS $function$
#variable_conflict use_column
declare
  most_counted constant int := 100000;
  -- Why: each takes a lock, of which the server has some thousands for everybody.
  most_keys constant int := 500;
  settings constant waybill.consumer := waybill.consumer_settings(inbox_clean.consumer);
  moment constant timestamptz := clock_timestamp();
  holding constant boolean := settings.ordering = 'key' and settings.on_dead = 'block';
  seqs bigint[];
  forgotten bigint;
begin
  what := 'ids';
  delete from waybill.inbox where seq = any (array(
    select i.seq from waybill.inbox i
    where i.consumer = settings.name and i.status in ('done', 'discarded') and i.processed_at < moment - settings.retain_ids
    order by i.processed_at limit max_rows for update skip locked
  ));
  get diagnostics removed = row_count;
  select count(*) into remaining from (
    select from waybill.inbox i
    where i.consumer = settings.name and i.status in ('done', 'discarded') and i.processed_at < moment - settings.retain_ids
    limit most_counted
  ) as left_over;
  return next;

  what := 'bodies';
  update waybill.inbox set body = null, raw_properties = null where seq = any (array(
    select i.seq from waybill.inbox i
    where i.consumer = settings.name and i.body is not null and i.status in ('done', 'discarded')
      and i.processed_at < moment - settings.retain_bodies
    order by i.processed_at limit max_rows for update skip locked
  ));
  get diagnostics removed = row_count;
  select count(*) into remaining from (
    select from waybill.inbox i
    where i.consumer = settings.name and i.body is not null and i.status in ('done', 'discarded')
      and i.processed_at < moment - settings.retain_bodies
    limit most_counted
  ) as left_over;
  return next;

  -- A dead row that holds others stays, however old it is: somebody has to decide. Its key is locked before the look that
  -- counts, else a row that arrives meanwhile would wait behind nothing; a key that somebody has waits for the next call.
  what := 'dead';
  seqs := array(
    select i.seq from waybill.inbox i
    where i.consumer = settings.name and i.status = 'dead' and i.processed_at < moment - settings.retain_dead
      and not (holding and i.key is not null and exists (
        select from waybill.inbox b where b.consumer = settings.name and b.key = i.key and b.status = 'blocked' offset 0))
    order by i.processed_at limit case when holding then least(max_rows, most_keys) else max_rows end
  );
  if holding then
    seqs := array(
      select i.seq from waybill.inbox i
      where i.seq = any (seqs)
        and (i.key is null or pg_try_advisory_xact_lock(waybill.key_lock(settings.name, i.key)))
    );
  end if;
  seqs := array(
    select i.seq from waybill.inbox i
    where i.seq = any (seqs) and i.status = 'dead' and i.processed_at < moment - settings.retain_dead
      and not (holding and i.key is not null and exists (
        select from waybill.inbox b where b.consumer = settings.name and b.key = i.key and b.status = 'blocked' offset 0))
    order by i.seq for update skip locked
  );
  delete from waybill.inbox i where i.seq = any (seqs) and i.processed_at < moment - settings.retain_ids;
  get diagnostics removed = row_count;
  -- Given up, without its content: the id alone is needed for longer, so that a copy is no new message.
  update waybill.inbox i set status = 'discarded', dead_reason = null, body = null, raw_properties = null
  where i.seq = any (seqs) and i.processed_at >= moment - settings.retain_ids;
  get diagnostics forgotten = row_count;
  removed := removed + forgotten;
  select count(*) into remaining from (
    select from waybill.inbox i
    where i.consumer = settings.name and i.status = 'dead' and i.processed_at < moment - settings.retain_dead
    limit most_counted
  ) as left_over;
  return next;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.inbox_complete(seq bigint, token uuid, result text DEFAULT NULL::text)
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
declare
  claimed record;
begin
  select * into claimed from waybill.claimed_row(seq, token);
  update waybill.inbox i
  set status = 'done', processed_at = clock_timestamp(), result = left(inbox_complete.result, 4000), last_error = null,
    body = case when (claimed.settings).retain_bodies > interval '0' then i.body end,
    claim_token = null, lease_until = null, locked_by = null
  where i.seq = inbox_complete.seq;
  if claimed.keyed is not null then
    perform waybill.release_key(claimed.settings, claimed.keyed);
  end if;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.inbox_deaths_claim(consumer text, max_rows integer, max_bytes bigint, lease interval)
 RETURNS TABLE(seq bigint, died_at timestamp with time zone, refused integer)
 LANGUAGE plpgsql
 SECURITY DEFINER ROWS 100
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
 SET enable_seqscan TO 'off'
AS $function$
#variable_conflict use_column
declare
  settings constant waybill.consumer := waybill.consumer_settings(inbox_deaths_claim.consumer);
  taken bigint[];
begin
  perform waybill.check_claim(max_rows, lease);
  taken := waybill.uncopied_deaths(settings.name, max_rows);
  return query
  with measured as (
    select u.inbox_seq,
      sum(octet_length(i.body) + octet_length(i.headers::text)) over (order by u.died_at, u.inbox_seq) as bytes,
      row_number() over (order by u.died_at, u.inbox_seq) as place
    from waybill.inbox_uncopied u join waybill.inbox i on i.seq = u.inbox_seq
    where u.inbox_seq = any (taken)
  )
  update waybill.inbox_uncopied u set claimed_until = clock_timestamp() + inbox_deaths_claim.lease
  from measured m
  where u.inbox_seq = m.inbox_seq and (m.place = 1 or m.bytes <= max_bytes)
  returning u.inbox_seq, u.died_at, u.refused;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.inbox_deaths_copied(consumer text, died_at timestamp with time zone, seq bigint)
 RETURNS void
 LANGUAGE sql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
  delete from waybill.inbox_uncopied u
  where u.consumer = inbox_deaths_copied.consumer and u.claimed_until = '-infinity'
    and (u.died_at, u.inbox_seq) <= (inbox_deaths_copied.died_at, inbox_deaths_copied.seq)
$function$;

CREATE OR REPLACE FUNCTION waybill.inbox_deaths_done(consumer text, seqs bigint[], died_ats timestamp with time zone[])
 RETURNS integer
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
 SET enable_seqscan TO 'off'
AS $function$
declare
  copied int;
begin
  -- Why skip locked: whoever has the row notes another death of it.
  delete from waybill.inbox_uncopied u where u.inbox_seq = any (array(
    select e.inbox_seq from waybill.inbox_uncopied e join unnest(seqs, died_ats) as d (seq, died_at)
      on d.seq = e.inbox_seq and d.died_at = e.died_at
    where e.consumer = inbox_deaths_done.consumer for update of e skip locked));
  get diagnostics copied = row_count;
  return copied;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.inbox_deaths_keep(consumer text, seqs bigint[], died_ats timestamp with time zone[], delay interval DEFAULT NULL::interval, was_refused boolean DEFAULT false)
 RETURNS integer
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
 SET enable_seqscan TO 'off'
AS $function$
declare
  kept int;
begin
  update waybill.inbox_uncopied u
  set claimed_until = clock_timestamp() + delay, refused = u.refused + was_refused::int
  where u.inbox_seq = any (array(
    select e.inbox_seq from waybill.inbox_uncopied e join unnest(seqs, died_ats) as d (seq, died_at)
      on d.seq = e.inbox_seq and d.died_at = e.died_at
    where e.consumer = inbox_deaths_keep.consumer for update of e skip locked));
  get diagnostics kept = row_count;
  return kept;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.inbox_defer(seq bigint, token uuid, delay interval DEFAULT NULL::interval, error text DEFAULT NULL::text)
 RETURNS text
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
declare
  claimed record;
begin
  select * into claimed from waybill.claimed_row(seq, token);
  return (waybill.put_back(claimed.settings, seq, 'not-yet', error, delay)).status;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.inbox_discard(consumer text, message_id text, reason text DEFAULT NULL::text)
 RETURNS text
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
declare
  found_row record;
begin
  select * into found_row from waybill.row_for_operator(consumer, message_id);
  case (found_row.target).status
    when 'pending', 'waiting', 'blocked', 'dead' then
      update waybill.inbox i
      set status = 'discarded', processed_at = clock_timestamp(), next_attempt_at = null, dead_reason = null
      where i.seq = (found_row.target).seq;
      if (found_row.settings).ordering = 'key' and (found_row.target).key is not null then
        perform waybill.release_key(found_row.settings, (found_row.target).key);
      end if;
      return waybill.log_inbox_action('inbox.discard', found_row.target, reason, 'discarded');
    when 'done' then
      return 'already applied';
    when 'running' then
      return 'running';
    when 'discarded' then
      return 'already discarded';
    else
      return 'unknown';
  end case;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.inbox_due(consumer text, within interval DEFAULT '00:00:00'::interval, max_rows integer DEFAULT 500)
 RETURNS TABLE(seq bigint, attempt integer, status text, next_attempt_at timestamp with time zone, alone boolean)
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
 SET enable_seqscan TO 'off'
AS $function$
#variable_conflict use_column
declare
  until constant timestamptz := clock_timestamp() + inbox_due.within;
begin
  if exists (select from waybill.consumer c where c.name = inbox_due.consumer and c.paused_by = 'operator') then
    return;
  end if;
  return query
  select d.seq, d.failures + d.abandoned + 1, d.status, d.next_attempt_at, d.abandoned >= 2
  from (
    (select i.* from waybill.inbox i
     where i.consumer = inbox_due.consumer and i.status = 'waiting'
       and i.next_attempt_at <= until
     order by i.next_attempt_at limit inbox_due.max_rows)
    union all
    (select i.* from waybill.inbox i
     where i.consumer = inbox_due.consumer and i.status = 'pending'
     order by i.seq + 0 limit inbox_due.max_rows)
  ) as d
  limit inbox_due.max_rows;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.inbox_extend(seq bigint, token uuid, lease interval DEFAULT '00:01:00'::interval)
 RETURNS timestamp with time zone
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
declare
  until timestamptz;
begin
  perform waybill.check_claim(1, lease);
  perform waybill.consumer_for_caller(i.consumer) from waybill.inbox i where i.seq = inbox_extend.seq;
  update waybill.inbox i set lease_until = clock_timestamp() + inbox_extend.lease
  where i.seq = inbox_extend.seq and i.status = 'running' and i.claim_token = inbox_extend.token
  returning i.lease_until into until;
  if until is null then
    raise exception 'lease lost: row %', seq using errcode = 'WB003',
      hint = 'The lease expired and the row was given to another worker, or it is settled already. Roll back.';
  end if;
  return until;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.inbox_extend_rows(consumer text, seqs bigint[], token uuid, lease interval)
 RETURNS integer
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
declare
  settings constant waybill.consumer := waybill.consumer_settings(inbox_extend_rows.consumer);
  extended int;
begin
  perform waybill.check_claim(1, lease);
  update waybill.inbox i set lease_until = clock_timestamp() + inbox_extend_rows.lease
  where i.seq = any (seqs) and i.consumer = settings.name and i.status = 'running'
    and i.claim_token = inbox_extend_rows.token;
  get diagnostics extended = row_count;
  return extended;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.inbox_fail(seq bigint, token uuid, error text, retry_in interval DEFAULT NULL::interval, never boolean DEFAULT false)
 RETURNS text
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
declare
  claimed record;
begin
  select * into claimed from waybill.claimed_row(seq, token);
  return (waybill.put_back(claimed.settings, seq, case when never then 'never' else 'retry' end, error, retry_in)).status;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.inbox_give_back(consumer text, seqs bigint[], attempts integer[], call bigint DEFAULT NULL::bigint)
 RETURNS integer
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
 SET lock_timeout TO '1s'
AS $function$
declare
  settings constant waybill.consumer := waybill.consumer_settings(inbox_give_back.consumer);
  moment constant timestamptz := clock_timestamp();
  owed record;
  given record;
  rows_given int := 0;
begin
  perform waybill.lock_keys(settings, seqs);
  for owed in
    select i.seq, i.status, i.dead_reason, o.attempts
    from unnest(seqs, attempts) as o (seq, attempts)
    join waybill.inbox i on i.seq = o.seq and i.consumer = settings.name
    order by i.seq for update of i
  loop
    -- Asked again, because the answer was lost: the attempts before those must not be given back as well.
    continue when exists (
      select from waybill.inbox_attempt a where a.inbox_seq = owed.seq and a.given_back_by = inbox_give_back.call);
    with refunded as (
      update waybill.inbox_attempt a set verdict = 'refunded', given_back_by = inbox_give_back.call
      where a.inbox_seq = owed.seq and a.number = any (array(
        select b.number from waybill.inbox_attempt b
        where b.inbox_seq = owed.seq and b.verdict = 'broken' order by b.number desc limit owed.attempts))
      returning a.number
    )
    select count(*)::int as n, coalesce(max(r.number), 0) as newest into given from refunded r;
    continue when given.n = 0;
    rows_given := rows_given + 1;
    -- It waits, or is dead, because of that attempt if none came after it.
    select given.newest = max(a.number) as is_last, given.n, given.newest into given
    from waybill.inbox_attempt a where a.inbox_seq = owed.seq;
    update waybill.inbox i
    set failures = greatest(i.failures - given.n, 0),
      next_attempt_at = case when i.status = 'waiting' and given.is_last then moment else i.next_attempt_at end
    where i.seq = owed.seq;
    if owed.status = 'dead' and owed.dead_reason in ('attempts', 'age') and given.is_last then
      perform waybill.revive_row(settings, owed.seq, moment, false);
    end if;
  end loop;
  return rows_given;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.inbox_handling(seq bigint, token uuid)
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
declare
  handled waybill.inbox;
begin
  select * into handled from waybill.inbox i
  where i.seq = inbox_handling.seq and i.status = 'running' and i.claim_token = inbox_handling.token;
  if not found then
    raise exception 'lease lost: row %', seq using errcode = 'WB003';
  end if;
  perform waybill.consumer_for_caller(handled.consumer);
  perform waybill.set_handling(waybill.message_of(handled));
end
$function$;

CREATE OR REPLACE FUNCTION waybill.inbox_postpone(consumer text, message_id text, delay interval, reason text DEFAULT NULL::text)
 RETURNS text
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
declare
  found_row record;
begin
  if delay is null or delay not between interval '0' and interval '365 days' then
    raise exception 'a delay must be 0 to 365 days' using errcode = '22023';
  end if;
  select * into found_row from waybill.row_for_operator(consumer, message_id);
  case (found_row.target).status
    when 'pending', 'waiting' then
      update waybill.inbox i set status = 'waiting', next_attempt_at = clock_timestamp() + delay
      where i.seq = (found_row.target).seq;
      return waybill.log_inbox_action('inbox.defer', found_row.target, reason, 'waiting');
    when 'done' then
      return 'already applied';
    when 'running', 'blocked', 'dead', 'discarded' then
      return (found_row.target).status;
    else
      return 'unknown';
  end case;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.inbox_receive(consumer text, messages json, bodies bytea, apply boolean DEFAULT true)
 RETURNS TABLE(ordinal integer, outcome text, seq bigint, status text, verdict text, attempt integer, next_attempt_at timestamp with time zone, dead_reason text, error text)
 LANGUAGE plpgsql
AS $function$
#variable_conflict use_column
declare
  -- As in inbox_apply.
  path constant pg_catalog.text := pg_catalog.current_setting('search_path');
  fixed constant pg_catalog.text := pg_catalog.set_config('search_path', 'pg_catalog, waybill, pg_temp', true);
  -- Why: over 64 open subtransactions slow every snapshot of the server.
  most_applied constant int := 60;
  settings constant waybill.consumer := waybill.consumer_settings(inbox_receive.consumer);
  applying constant boolean := settings.handler = 'sql' and inbox_receive.apply
    and settings.paused_by is distinct from 'operator';
  calling constant pg_catalog.text := case when applying then waybill.handler_call(settings) end;
  deferred constant pg_catalog.text := case when applying then waybill.deferred_constraints() end;
  stuck pg_catalog.text[] := '{}';
  stored record;
  called record;
  settled record;
  failed bigint[] := '{}';
  ordinals int[] := '{}';
  verdicts pg_catalog.text[] := '{}';
  errors pg_catalog.text[] := '{}';
begin
  if applying and json_array_length(messages) > most_applied then
    raise exception 'at most % messages are applied in one transaction', most_applied using errcode = '22023';
  end if;
  for stored in
    select * from waybill.store_arrivals(settings, messages, bodies, applying) as s order by s.ordinal
  loop
    ordinal := stored.ordinal;
    outcome := stored.outcome;
    seq := stored.seq;
    status := stored.status;
    verdict := null;
    attempt := stored.attempt;
    next_attempt_at := null;
    dead_reason := stored.dead_reason;
    error := coalesce(stored.error, stored.failed);
    if outcome = 'inserted' and status = 'pending' and stored.failed is not null then
      verdict := 'retry';
    elsif outcome = 'inserted' and status = 'done' and stored.key = any (stuck) then
      update waybill.inbox i set status = 'blocked', body = (stored.message).body, processed_at = null
      where i.seq = stored.seq;
      status := 'blocked';
    elsif outcome = 'inserted' and status = 'done' then
      perform set_config('search_path', path, true);
      select * into called from waybill.call_handler(calling, stored.message, deferred);
      perform pg_catalog.set_config('search_path', fixed, true);
      verdict := called.verdict;
      error := called.error;
      if verdict <> 'done' and settings.retain_bodies = interval '0' then
        update waybill.inbox i set body = (stored.message).body where i.seq = stored.seq;
      elsif called.result is not null then
        update waybill.inbox i set result = called.result where i.seq = stored.seq;
      end if;
    end if;
    if verdict <> 'done' and stored.key is null then
      failed := failed || seq;
      ordinals := ordinals || ordinal;
      verdicts := verdicts || verdict;
      errors := array_append(errors, error);
      continue;
    elsif verdict <> 'done' then
      -- What becomes of it decides whether others of its key go on.
      select * into settled from waybill.put_back(settings, stored.seq, verdict, error, null);
      status := settled.status;
      attempt := settled.attempt;
      next_attempt_at := settled.next_attempt_at;
      dead_reason := settled.dead_reason;
    end if;
    -- Those of its key that come later in this very batch wait behind it.
    if stored.key is not null and outcome = 'inserted'
      and (status <> 'done' and status <> 'dead' or status = 'dead' and settings.on_dead = 'block')
    then
      stuck := stuck || stored.key;
    end if;
    return next;
  end loop;
  if cardinality(failed) > 0 then
    return query
    select f.ordinal, 'inserted', p.seq, p.status, p.verdict, p.attempt, p.next_attempt_at, p.dead_reason, p.error
    from waybill.put_back_rows(settings, failed, verdicts, errors, '{}') as p
    join unnest(failed, ordinals) as f (seq, ordinal) on f.seq = p.seq;
  end if;
  perform set_config('search_path', path, true);
end
$function$;

CREATE OR REPLACE FUNCTION waybill.inbox_refund(consumer text, seqs bigint[], since timestamp with time zone)
 RETURNS integer
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
declare
  settings constant waybill.consumer := waybill.consumer_settings(inbox_refund.consumer);
  refunded record;
  given_back int := 0;
begin
  perform waybill.lock_keys(settings, seqs);
  for refunded in
    select i.seq, i.status, i.dead_reason, i.processed_at from waybill.inbox i
    where i.seq = any (seqs) and i.consumer = settings.name order by i.seq for update
  loop
    with given as (
      update waybill.inbox_attempt a set verdict = 'refunded'
      where a.inbox_seq = refunded.seq and a.at >= inbox_refund.since and a.verdict in ('retry', 'broken')
      returning 1
    ), counted as (
      select count(*)::int as n from given
    )
    update waybill.inbox i set failures = greatest(i.failures - c.n, 0)
    from counted c where i.seq = refunded.seq and c.n > 0;
    continue when not found;
    given_back := given_back + 1;
    if refunded.status = 'dead' and refunded.dead_reason in ('attempts', 'age')
      and refunded.processed_at >= inbox_refund.since
    then
      perform waybill.revive_row(settings, refunded.seq, clock_timestamp() + settings.retry_delays[1], false);
    end if;
  end loop;
  return given_back;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.inbox_release(seq bigint, token uuid, delay interval DEFAULT NULL::interval, error text DEFAULT NULL::text)
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
declare
  claimed record;
begin
  select * into claimed from waybill.claimed_row(seq, token);
  perform waybill.put_back(claimed.settings, seq, 'release', error, delay);
end
$function$;

CREATE OR REPLACE FUNCTION waybill.inbox_replay(consumer text, message_id text, reason text DEFAULT NULL::text, force boolean DEFAULT false)
 RETURNS text
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
declare
  found_row record;
begin
  select * into found_row from waybill.row_for_operator(consumer, message_id);
  case (found_row.target).status
    when 'done', 'discarded', 'dead', 'waiting' then
      if (found_row.target).status = 'done' and not coalesce(force, false) then
        return 'already applied';
      elsif (found_row.target).body is null then
        return 'body is gone';
      end if;
      return waybill.log_inbox_action('inbox.replay', found_row.target, reason,
        waybill.revive_row(found_row.settings, (found_row.target).seq, null, true));
    when 'pending', 'running', 'blocked' then
      return (found_row.target).status;
    else
      return 'unknown';
  end case;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.inbox_retry(consumer text, message_id text, reason text DEFAULT NULL::text)
 RETURNS text
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
declare
  found_row record;
begin
  select * into found_row from waybill.row_for_operator(consumer, message_id);
  case (found_row.target).status
    when 'dead', 'waiting' then
      if (found_row.target).body is null then
        return 'body is gone';
      end if;
      return waybill.log_inbox_action('inbox.retry', found_row.target, reason,
        waybill.revive_row(found_row.settings, (found_row.target).seq, null, true));
    when 'done' then
      return 'already applied';
    when 'pending', 'running', 'blocked', 'discarded' then
      return (found_row.target).status;
    else
      return 'unknown';
  end case;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.inbox_settle(consumer text, token uuid, results json)
 RETURNS TABLE(seq bigint, status text, verdict text, attempt integer, next_attempt_at timestamp with time zone, dead_reason text, released bigint)
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
 SET lock_timeout TO '1s'
AS $function$
#variable_conflict use_column
declare
  settings constant waybill.consumer := waybill.consumer_settings(inbox_settle.consumer);
  answer record;
  is_claimed boolean;
  done bigint[] := '{}';
  texts text[] := '{}';
  failed bigint[] := '{}';
  verdicts text[] := '{}';
  errors text[] := '{}';
  delays interval[] := '{}';
begin
  perform waybill.lock_keys_soon(settings, array(select (r.value ->> 'seq')::bigint from json_array_elements(results) as r));
  for answer in
    select * from rows from (
      json_to_recordset(results) as (seq bigint, verdict text, error text, retry_in interval, result text)
    ) with ordinality as r order by r.seq, r.ordinality
  loop
    seq := answer.seq;
    if answer.verdict = 'release' then
      -- One that somebody has locked goes back by the end of its lease, lest the others wait with it.
      is_claimed := (waybill.lock_claimed_soon(settings, seq, token)).seq is not null;
    else
      perform from waybill.inbox i
      where i.seq = answer.seq and i.consumer = settings.name and i.status = 'running'
        and i.claim_token = inbox_settle.token for update;
      is_claimed := found;
    end if;
    if not is_claimed or seq = any (done) or seq = any (failed) then
      verdict := 'lost';
      return next;
    elsif answer.verdict = 'done' then
      done := done || seq;
      texts := array_append(texts, answer.result);
    else
      failed := failed || seq;
      verdicts := array_append(verdicts, answer.verdict);
      errors := array_append(errors, answer.error);
      delays := array_append(delays, answer.retry_in);
    end if;
  end loop;
  if cardinality(done) > 0 then
    return query
    select f.seq, 'done', 'done', null::int, null::timestamptz, null, f.released
    from waybill.finish_rows(settings, done, texts) as f;
  end if;
  if cardinality(failed) > 0 then
    return query
    select p.seq, p.status, p.verdict, p.attempt, p.next_attempt_at, p.dead_reason, p.released
    from waybill.put_back_rows(settings, failed, verdicts, errors, delays) as p;
  end if;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.inbox_sweep(consumer text, after_key text DEFAULT NULL::text, max_keys integer DEFAULT 500)
 RETURNS TABLE(released integer, next_key text)
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
 SET enable_seqscan TO 'off'
AS $function$
#variable_conflict use_column
declare
  -- Why: each takes a lock, of which the server has some thousands for everybody.
  most_released constant int := 500;
  settings constant waybill.consumer := waybill.consumer_settings(inbox_sweep.consumer);
  first_key text;
  seen record;
begin
  released := 0;
  -- Why two statements: with "or" in one, the index is walked from its beginning.
  if after_key is null then
    select i.key into first_key from waybill.inbox i
    where i.consumer = settings.name and i.status = 'blocked' order by i.consumer, i.key limit 1;
  else
    select i.key into first_key from waybill.inbox i
    where i.consumer = settings.name and i.status = 'blocked' and i.key > after_key order by i.consumer, i.key limit 1;
  end if;
  -- One look by an index for each key, and one more for what holds it; only orphans are locked and looked at again.
  for seen in
    with recursive keys (key, n) as (
      select first_key, 1
      union all
      select (
        select i.key from waybill.inbox i
        where i.consumer = settings.name and i.status = 'blocked' and i.key > k.key
        order by i.consumer, i.key limit 1
      ), k.n + 1
      from keys k where k.key is not null and k.n < max_keys
    )
    select k.key, k.n, not exists (
      select from waybill.inbox h
      where h.consumer = settings.name and h.key = k.key and h.status in ('pending', 'running', 'waiting', 'dead')
        and (h.status <> 'dead' or settings.on_dead = 'block' and h.dead_reason <> 'conflict' and h.seq < (
          select b.seq from waybill.inbox b
          where b.consumer = settings.name and b.key = k.key and b.status = 'blocked' order by b.seq + 0 limit 1))
      offset 0
    ) as is_orphan
    from keys k where k.key is not null
  loop
    next_key := case when seen.n = max_keys then seen.key end;
    -- A key that somebody has the lock of is looked at again the next time.
    if seen.is_orphan and pg_try_advisory_xact_lock(waybill.key_lock(settings.name, seen.key))
      and waybill.release_key(settings, seen.key) is not null
    then
      released := released + 1;
      if released = most_released then
        next_key := seen.key;
        exit;
      end if;
    end if;
  end loop;
  return next;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.inbox_wake(consumer text)
 RETURNS void
 LANGUAGE sql
AS $function$ select pg_catalog.pg_notify('waybill_inbox', consumer) $function$;

CREATE OR REPLACE FUNCTION waybill.json_of_body(message_id text, body bytea, content_encoding text)
 RETURNS json
 LANGUAGE plpgsql
 STABLE
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
declare
  body_text text;
begin
  if body is null then
    raise exception 'the body of message % is gone', to_json(message_id) using errcode = 'WB002',
      hint = 'It was redacted, or its retention (retention.bodies of the consumer) is over.';
  elsif lower(content_encoding) not in ('', 'identity', 'utf-8', 'utf8', 'us-ascii', 'ascii') then
    raise exception 'the body of message % is encoded: %', to_json(message_id), to_json(content_encoding)
      using errcode = 'WB002', hint = 'Take the bytes of the column body and decode them in the application.';
  end if;
  begin
    body_text := convert_from(case when substring(body for 3) = '\xefbbbf' then substring(body from 4) else body end, 'UTF8');
  exception
    when character_not_in_repertoire or untranslatable_character then
      raise exception 'the body of message % is not UTF-8 text', to_json(message_id) using errcode = 'WB002',
        hint = 'Take the bytes of the column body.';
  end;
  return body_text::json;
exception
  when invalid_text_representation or statement_too_complex then
    raise exception 'the body of message % is not JSON: %', to_json(message_id), sqlerrm using errcode = 'WB002',
      hint = 'Take the bytes of the column body.';
end
$function$;

CREATE OR REPLACE FUNCTION waybill.keep_history(days_ahead integer DEFAULT 3, retention interval DEFAULT '7 days'::interval)
 RETURNS TABLE(partition text, action text)
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
 SET lock_timeout TO '200ms'
AS $function$
declare
  most_rows_moved constant int := 10000;
  most_rows_trimmed constant int := 50000;
  most_partitions_dropped constant int := 10;
  today constant date := (clock_timestamp() at time zone 'UTC')::date;
  keep_from timestamptz;
  starts_at timestamptz;
  ends_at timestamptz;
  row_count bigint;
  day date;
begin
  if days_ahead is null or days_ahead not between 0 and 366 then
    raise exception 'days_ahead must be 0 to 366' using errcode = '22023';
  end if;
  if retention is null or retention < interval '0' then
    raise exception 'retention must not be negative' using errcode = '22023';
  end if;
  keep_from := clock_timestamp() - retention;

  if not pg_try_advisory_xact_lock('waybill.outbox_history'::regclass::oid::bigint) then
    partition := 'outbox_history';
    action := 'later';
    return next;
    return;
  end if;

  for offset_days in 0..days_ahead loop
    day := today + offset_days;
    partition := 'outbox_history_' || to_char(day, 'YYYYMMDD');
    continue when exists (
      select from pg_inherits i join pg_class c on c.oid = i.inhrelid
      where i.inhparent = 'waybill.outbox_history'::regclass and c.relname = partition
    );
    starts_at := day::timestamp at time zone 'UTC';
    ends_at := (day + 1)::timestamp at time zone 'UTC';
    begin
      -- Why: CREATE ... PARTITION OF would wait behind every reader of the parent; ATTACH does not. The default
      -- partition is locked first, because rows written to it between the move and the attach would make it fail.
      lock table waybill.outbox_history_default in access exclusive mode;
      select count(*) into row_count from (
        select from waybill.outbox_history_default d
        where d.settled_at >= starts_at and d.settled_at < ends_at limit most_rows_moved + 1
      ) as rows_of_the_day;
      if row_count > most_rows_moved then
        action := 'left in default';
      else
        execute format('create table waybill.%I (like waybill.outbox_history including all)', partition);
        if row_count > 0 then
          execute format(
            'with moved as (delete from waybill.outbox_history_default
               where settled_at >= $1 and settled_at < $2 returning *)
             insert into waybill.%I select * from moved', partition) using starts_at, ends_at;
        end if;
        execute format(
          'alter table waybill.outbox_history attach partition waybill.%I for values from (%L) to (%L)',
          partition, to_char(day, 'YYYY-MM-DD') || ' 00:00:00+00', to_char(day + 1, 'YYYY-MM-DD') || ' 00:00:00+00');
        action := 'created';
      end if;
    exception
      when lock_not_available or deadlock_detected then
        action := 'later';
    end;
    return next;
  end loop;

  for partition, day in
    select c.relname, to_date(right(c.relname, 8), 'YYYYMMDD')
    from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'waybill.outbox_history'::regclass
      and c.relname ~ '^outbox_history_[0-9]{8}$'
      and (to_date(right(c.relname, 8), 'YYYYMMDD') + 1)::timestamp at time zone 'UTC' <= keep_from
    order by c.relname
    limit most_partitions_dropped
  loop
    begin
      execute format('drop table waybill.%I', partition);
      action := 'dropped';
    exception
      when lock_not_available or deadlock_detected then
        action := 'later';
    end;
    return next;
  end loop;

  partition := 'outbox_history_default';
  begin
    delete from waybill.outbox_history_default where ctid = any (array(
      select d.ctid from waybill.outbox_history_default d where d.settled_at < keep_from limit most_rows_trimmed
    ));
    get diagnostics row_count = row_count;
    if row_count > 0 then
      action := 'trimmed';
      return next;
    end if;
  exception
    when lock_not_available or deadlock_detected then
      action := 'later';
      return next;
  end;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.key_lock(consumer text, key text)
 RETURNS bigint
 LANGUAGE sql
 IMMUTABLE
AS $function$
  select pg_catalog.hashtextextended('waybill.inbox ' operator(pg_catalog.||) consumer
    operator(pg_catalog.||) pg_catalog.chr(31) operator(pg_catalog.||) key, 0::bigint)
$function$;

CREATE OR REPLACE FUNCTION waybill.lock_outbox_row(id uuid)
 RETURNS void
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
declare
  row_key text;
begin
  select o.key into row_key from waybill.outbox o where o.id = lock_outbox_row.id;
  -- Without strict order no row waits for another, and applications that cancel rows need not wait for each other.
  if row_key is not null and exists (select from waybill.relay r where r.ordering = 'strict') then
    perform pg_advisory_xact_lock(waybill.outbox_key_lock(row_key));
  end if;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.newer(scope text, key text, version bigint)
 RETURNS boolean
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
begin
  perform waybill.check_scope(scope);
  insert into waybill.freshness as f (scope, key, version)
  values (newer.scope, newer.key, newer.version)
  on conflict on constraint freshness_pkey do update
  set version = excluded.version, at = excluded.at
  where f.version < excluded.version;
  return found;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.note_death()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
begin
  insert into waybill.inbox_uncopied (inbox_seq, consumer, died_at)
  values (new.seq, new.consumer, new.processed_at)
  on conflict on constraint inbox_uncopied_pkey do update
  set consumer = excluded.consumer, died_at = excluded.died_at, claimed_until = null, refused = 0;
  return null;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.outbox_key_lock(key text)
 RETURNS bigint
 LANGUAGE sql
 STABLE PARALLEL SAFE
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
  select hashint8extended(
    hashtextextended(outbox_key_lock.key, 0) & 1023, 'waybill.outbox'::regclass::oid::bigint)
$function$;

CREATE OR REPLACE FUNCTION waybill.payload(message waybill.claimed_message)
 RETURNS json
 LANGUAGE sql
 STABLE
AS $function$ select waybill.json_of_body(message.message_id, message.body, message.content_encoding) $function$;

CREATE OR REPLACE FUNCTION waybill.payload(message waybill.inbox_message)
 RETURNS json
 LANGUAGE sql
 STABLE
AS $function$ select waybill.json_of_body(message.message_id, message.body, message.content_encoding) $function$;

CREATE OR REPLACE FUNCTION waybill.publication_status(id uuid)
 RETURNS text
 LANGUAGE sql
 STABLE SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
  select coalesce(
    (select case o.state when 'ready' then 'pending' else o.state end
     from waybill.outbox o where o.id = publication_status.id),
    (select h.outcome from waybill.outbox_history h where h.id = publication_status.id order by h.settled_at desc limit 1)
  )
$function$;

CREATE OR REPLACE FUNCTION waybill.publish(type text, payload json DEFAULT NULL::json, key text DEFAULT NULL::text, payload_bytes bytea DEFAULT NULL::bytea, headers jsonb DEFAULT '{}'::jsonb, id uuid DEFAULT NULL::uuid, schema_version integer DEFAULT 1, content_type text DEFAULT NULL::text, content_encoding text DEFAULT NULL::text, exchange text DEFAULT NULL::text, routing_key text DEFAULT NULL::text, correlation_id text DEFAULT NULL::text, causation_id text DEFAULT NULL::text, reply_to text DEFAULT NULL::text, traceparent text DEFAULT NULL::text, tracestate text DEFAULT NULL::text, priority integer DEFAULT NULL::integer, expires_at timestamp with time zone DEFAULT NULL::timestamp with time zone, deliver_at timestamp with time zone DEFAULT NULL::timestamp with time zone, occurred_at timestamp with time zone DEFAULT now())
 RETURNS uuid
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
declare
  message_id uuid := coalesce(publish.id, gen_random_uuid());
begin
  insert into waybill.outbox (
    id, type, key, schema_version, payload, payload_bytes, content_type, content_encoding, headers, exchange,
    routing_key, correlation_id, causation_id, reply_to, traceparent, tracestate, priority, expires_at, deliver_at,
    occurred_at
  ) values (
    message_id, publish.type, publish.key, coalesce(publish.schema_version, 1), publish.payload, publish.payload_bytes,
    publish.content_type, publish.content_encoding, coalesce(publish.headers, '{}'), publish.exchange,
    publish.routing_key,
    coalesce(publish.correlation_id, nullif(current_setting('waybill_message.correlation_id', true), '')),
    coalesce(publish.causation_id, nullif(current_setting('waybill_message.id', true), '')),
    publish.reply_to,
    coalesce(publish.traceparent, nullif(current_setting('waybill_message.traceparent', true), '')),
    coalesce(publish.tracestate, nullif(current_setting('waybill_message.tracestate', true), '')),
    publish.priority, publish.expires_at, publish.deliver_at, coalesce(publish.occurred_at, now())
  );
  return message_id;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.publish_many(messages json)
 RETURNS SETOF uuid
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
declare
  known constant text[] := array[
    'type', 'payload', 'key', 'payload_bytes', 'headers', 'id', 'schema_version', 'content_type', 'content_encoding',
    'exchange', 'routing_key', 'correlation_id', 'causation_id', 'reply_to', 'traceparent', 'tracestate', 'priority',
    'expires_at', 'deliver_at', 'occurred_at'
  ];
  position_of_fault bigint;
  unknown_name text;
begin
  if messages is null then
    return;
  end if;
  if json_typeof(messages) <> 'array' then
    raise exception 'messages must be an array of objects' using errcode = '22023';
  end if;

  select e.position into position_of_fault
  from json_array_elements(messages) with ordinality as e (message, position)
  where json_typeof(e.message) <> 'object'
  order by e.position limit 1;
  if found then
    raise exception 'message % is not an object', position_of_fault using errcode = '22023';
  end if;

  select e.position, n.name into position_of_fault, unknown_name
  from json_array_elements(messages) with ordinality as e (message, position)
  cross join lateral json_object_keys(e.message) as n (name)
  where n.name <> all (known)
  order by e.position limit 1;
  if found then
    raise exception 'message % has an unknown name: %', position_of_fault, to_json(unknown_name)
      using errcode = '22023', hint = 'Known names: ' || array_to_string(known, ', ') || '.';
  end if;

  select e.position into position_of_fault
  from json_array_elements(messages) with ordinality as e (message, position)
  where e.message ->> 'type' is null
  order by e.position limit 1;
  if found then
    raise exception 'message % has no type', position_of_fault using errcode = '22023';
  end if;

  -- Why: the payload is taken by ->, which gives the text as it was written; json_to_record would write strings anew.
  return query
  insert into waybill.outbox as o (
    id, type, key, schema_version, payload, payload_bytes, content_type, content_encoding, headers, exchange,
    routing_key, correlation_id, causation_id, reply_to, traceparent, tracestate, priority, expires_at, deliver_at,
    occurred_at
  )
  select
    coalesce(r.id, gen_random_uuid()), r.type, r.key, coalesce(r.schema_version, 1),
    case when json_typeof(e.message -> 'payload') <> 'null' then e.message -> 'payload' end,
    decode(r.payload_bytes, 'base64'), r.content_type, r.content_encoding, coalesce(r.headers, '{}'), r.exchange,
    r.routing_key,
    coalesce(r.correlation_id, nullif(current_setting('waybill_message.correlation_id', true), '')),
    coalesce(r.causation_id, nullif(current_setting('waybill_message.id', true), '')),
    r.reply_to,
    coalesce(r.traceparent, nullif(current_setting('waybill_message.traceparent', true), '')),
    coalesce(r.tracestate, nullif(current_setting('waybill_message.tracestate', true), '')),
    r.priority, r.expires_at, r.deliver_at, coalesce(r.occurred_at, now())
  from json_array_elements(messages) with ordinality as e (message, position)
  cross join lateral json_to_record(e.message) as r (
    id uuid, type text, key text, schema_version int, payload_bytes text, content_type text, content_encoding text,
    headers jsonb, exchange text, routing_key text, correlation_id text, causation_id text, reply_to text,
    traceparent text, tracestate text, priority smallint, expires_at timestamptz, deliver_at timestamptz,
    occurred_at timestamptz
  )
  order by e.position
  returning o.id;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.redact(key text DEFAULT NULL::text, id text DEFAULT NULL::text, reason text DEFAULT NULL::text)
 RETURNS TABLE(place text, rows bigint)
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
#variable_conflict use_column
declare
  -- Numbers that were drawn, and not committed yet, when the table was read.
  most_open constant int := 10000;
  moment constant timestamptz := clock_timestamp();
  wanted_key constant text := redact.key;
  wanted_id constant text := redact.id;
  highest bigint;
  seqs bigint[];
  ids uuid[];
  held record;
  counted bigint;
  counts jsonb := '{}';
begin
  if num_nonnulls(wanted_key, wanted_id) <> 1 then
    raise exception 'one of key and id says what to redact' using errcode = '22023';
  end if;

  -- What takes long goes first and locks nothing: a receiver waits for the changes alone, not for the search.
  highest := (select max(i.seq) from waybill.inbox i);
  seqs := waybill.redacted_seqs(wanted_key, wanted_id);
  ids := waybill.redacted_ids(wanted_key, wanted_id);

  -- Outbox. Held rows are given up; what is ready is on its way to the broker, and stays as it is.
  perform waybill.discard(o.id, 'redacted') from waybill.outbox o
  where o.id = any (ids) and o.state in ('parked', 'blocked', 'scheduled');
  update waybill.outbox o
  set payload = null, payload_bytes = null, headers = '{}', key = null, routing_key = null, correlation_id = null,
    causation_id = null, reply_to = null, traceparent = null, tracestate = null, last_error = null
  where o.id = any (ids) and o.state in ('discarded', 'cancelled');
  get diagnostics counted = row_count;
  counts := counts || jsonb_build_object('outbox', counted);
  select count(*) into counted from waybill.outbox o
  where o.id = any (ids) and o.state not in ('discarded', 'cancelled');
  counts := counts || jsonb_build_object('outbox_pending', counted);
  -- After the outbox: what is settled meanwhile has come here.
  update waybill.outbox_history h
  set payload = null, payload_bytes = null, headers = null, key = null, sha256 = null, routing_key = null,
    correlation_id = null, causation_id = null, reply_to = null, traceparent = null, tracestate = null
  where h.id = any (ids);
  get diagnostics counted = row_count;
  counts := counts || jsonb_build_object('outbox_history', counted);

  -- Inbox. What is not finished cannot be finished any more; keys are locked before their rows are looked at, and what
  -- has come since the search is looked for again.
  perform pg_advisory_xact_lock(l.lock) from (
    select waybill.key_lock(c.name, wanted_key) as lock from waybill.consumer c
    where c.ordering = 'key' and wanted_key is not null
    union
    select waybill.key_lock(i.consumer, i.key) from waybill.inbox i
    join waybill.consumer c on c.name = i.consumer and c.ordering = 'key'
    where i.seq = any (seqs) and i.key is not null
    order by 1
  ) as l;
  seqs := seqs || waybill.redacted_seqs(wanted_key, wanted_id, coalesce(highest, 0) - most_open);
  seqs := array(
    select i.seq from waybill.inbox i
    where i.seq = any (seqs) and (i.key = wanted_key or i.message_id = wanted_id or i.original_id = wanted_id)
    order by i.seq for update
  );
  for held in
    select i.consumer, i.key from waybill.inbox i where i.seq = any (seqs) and i.key is not null
    group by i.consumer, i.key
  loop
    update waybill.inbox i
    set status = case i.status when 'done' then 'done' else 'discarded' end,
      processed_at = coalesce(i.processed_at, moment), next_attempt_at = null, claim_token = null, lease_until = null,
      locked_by = null, dead_reason = null
    where i.seq = any (seqs) and i.consumer = held.consumer and i.key = held.key and i.status not in ('done', 'discarded');
    perform waybill.release_key(c, held.key) from waybill.consumer c
    where c.name = held.consumer and c.ordering = 'key';
  end loop;
  update waybill.inbox i
  set status = case i.status when 'done' then 'done' else 'discarded' end,
    processed_at = coalesce(i.processed_at, moment), next_attempt_at = null, claim_token = null, lease_until = null,
    locked_by = null, dead_reason = null, redacted_at = moment, body = null, body_hash = null, headers = '{}', key = null,
    original_id = null, routing_key = null, correlation_id = null, causation_id = null, reply_to = null,
    traceparent = null, tracestate = null, last_error = null, result = null, raw_properties = null
  where i.seq = any (seqs);
  get diagnostics counted = row_count;
  counts := counts || jsonb_build_object('inbox', counted);

  update waybill.inbox_attempt a set error = null where a.inbox_seq = any (seqs) and a.error is not null;
  get diagnostics counted = row_count;
  counts := counts || jsonb_build_object('inbox_attempt', counted);

  update waybill.action_log a set details = a.details - 'error'
  where a.details ? 'error' and a.target = any (array(
    select i.message_id from waybill.inbox i where i.seq = any (seqs) union select u.id::text from unnest(ids) as u (id)));
  get diagnostics counted = row_count;
  counts := counts || jsonb_build_object('action_log', counted);

  insert into waybill.action_log (action, target, reason, details)
  values ('redact', coalesce(wanted_id, 'key sha256:' || encode(sha256(convert_to(wanted_key, 'UTF8')), 'hex')),
    redact.reason, counts);
  return query
  select p.name, (counts ->> p.name)::bigint
  from unnest('{inbox,inbox_attempt,outbox,outbox_pending,outbox_history,action_log}'::text[]) with ordinality as p (name, n)
  order by p.n;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.redact_count(key text DEFAULT NULL::text, id text DEFAULT NULL::text)
 RETURNS TABLE(place text, rows bigint)
 LANGUAGE plpgsql
 STABLE SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
declare
  seqs bigint[];
  ids uuid[];
begin
  if num_nonnulls(redact_count.key, redact_count.id) <> 1 then
    raise exception 'one of key and id says what to redact' using errcode = '22023';
  end if;
  seqs := waybill.redacted_seqs(redact_count.key, redact_count.id);
  ids := waybill.redacted_ids(redact_count.key, redact_count.id);
  return query
  select 'inbox', cardinality(seqs)::bigint
  union all
  select 'inbox_attempt', count(*) from waybill.inbox_attempt a where a.inbox_seq = any (seqs) and a.error is not null
  union all
  select 'outbox', count(*) from waybill.outbox o where o.id = any (ids) and o.state <> 'ready'
  union all
  select 'outbox_pending', count(*) from waybill.outbox o where o.id = any (ids) and o.state = 'ready'
  union all
  select 'outbox_history', count(*) from waybill.outbox_history h where h.id = any (ids)
  union all
  -- Those of rows that it would give up are not written yet.
  select 'action_log', (
    select count(*) from waybill.action_log a
    where a.details ? 'error' and a.target = any (array(
      select i.message_id from waybill.inbox i where i.seq = any (seqs) union select u.id::text from unnest(ids) as u (id)))
  ) + (
    select count(*) from waybill.outbox o where o.id = any (ids) and o.state in ('parked', 'blocked', 'scheduled'));
end
$function$;

CREATE OR REPLACE FUNCTION waybill.redacted_ids(wanted_key text, wanted_id text)
 RETURNS uuid[]
 LANGUAGE plpgsql
 STABLE
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
declare
  wanted_uuid uuid;
begin
  if wanted_key is not null then
    return array(
      select o.id from waybill.outbox o where o.key = wanted_key
      union
      select h.id from waybill.outbox_history h where h.key = wanted_key);
  elsif wanted_id ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then
    wanted_uuid := wanted_id;
    return array(
      select o.id from waybill.outbox o where o.id = wanted_uuid
      union
      select h.id from waybill.outbox_history h where h.id = wanted_uuid);
  end if;
  return '{}';
end
$function$;

CREATE OR REPLACE FUNCTION waybill.redacted_seqs(wanted_key text, wanted_id text, above bigint DEFAULT 0)
 RETURNS bigint[]
 LANGUAGE plpgsql
 STABLE
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
begin
  if wanted_key is not null then
    -- There is no index of all keys: it would cost each message more than the few that are ever asked for this way.
    return array(select i.seq from waybill.inbox i where i.key = wanted_key and i.seq > above order by i.seq);
  end if;
  -- By the names that the index begins with, of consumers that are registered and of those that are not.
  return array(
    with recursive names (name) as (
      (select i.consumer from waybill.inbox i order by i.consumer limit 1)
      union all
      select (select i.consumer from waybill.inbox i where i.consumer > n.name order by i.consumer limit 1)
      from names n where n.name is not null
    )
    select f.seq from (
      select (select i.seq from waybill.inbox i where i.consumer = n.name and i.message_id = wanted_id) as seq
      from names n where n.name is not null
      union
      select i.seq from waybill.inbox i where i.original_id = wanted_id
    ) as f where f.seq > above order by f.seq
  );
end
$function$;

CREATE OR REPLACE FUNCTION waybill.refuse_half_renamed(name text)
 RETURNS void
 LANGUAGE plpgsql
 STABLE
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
declare
  half record;
begin
  select c.name, c.renaming_to into half from waybill.consumer c
  where c.renaming_to is not null and refuse_half_renamed.name in (c.name, c.renaming_to);
  if found then
    raise exception 'consumer % is being renamed to %', to_json(half.name), to_json(half.renaming_to)
      using errcode = 'WB005', hint = format(
        'Until all its rows have the new name, a copy of an applied message could be taken for a new one. To finish, the command: consumer rename %s %s',
        half.name, half.renaming_to);
  end if;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.register_consumers(consumers json, accept_new boolean DEFAULT false)
 RETURNS TABLE(name text, action text)
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
#variable_conflict use_column
declare
  wanted record;
  renamed text;
  before text;
begin
  if json_typeof(consumers) is distinct from 'array' then
    raise exception 'consumers must be an array of objects' using errcode = '22023';
  end if;
  lock table waybill.consumer in share row exclusive mode;
  for wanted in
    select * from json_to_recordset(consumers) as r (
      name text, owner text, queue text, identify text, accept text[], handler text, function text, "order" text,
      on_dead text, retry_delays interval[], max_attempts int, max_age interval, not_yet_for interval,
      max_abandoned int, retain_ids interval, retain_bodies interval, retain_dead interval
    ) order by r.name
  loop
    perform waybill.refuse_half_renamed(wanted.name);
    select c.ordering into before from waybill.consumer c where c.name = wanted.name;
    if not found then
      select c.name into renamed from waybill.consumer c
      where c.queue = wanted.queue
        and c.name not in (select e.value ->> 'name' from json_array_elements(consumers) as e)
      order by c.registered_at desc limit 1;
      if found and not accept_new then
        raise exception 'consumer % has the queue of consumer %, which is not configured any more: was it renamed?',
          to_json(wanted.name), to_json(renamed)
          using errcode = 'WB005', hint = format(
            'A new name forgets which messages were applied. To keep that: select waybill.rename_consumer(%L, %L); if it is another consumer: select waybill.forget_consumer(%L);',
            renamed, wanted.name, renamed);
      end if;
      action := 'created';
    else
      action := 'updated';
    end if;
    insert into waybill.consumer as c (
      name, owner, queue, identify, accept, handler, function, ordering, on_dead, retry_delays, max_attempts, max_age,
      not_yet_for, max_abandoned, retain_ids, retain_bodies, retain_dead
    ) values (
      wanted.name, wanted.owner, wanted.queue, coalesce(wanted.identify, 'message-id'), wanted.accept,
      coalesce(wanted.handler, 'store'), wanted.function, coalesce(wanted."order", 'none'),
      coalesce(wanted.on_dead, 'block'), coalesce(wanted.retry_delays, '{1s,5s,30s,2m,10m,1h}'),
      coalesce(wanted.max_attempts, 8), coalesce(wanted.max_age, '7 days'), coalesce(wanted.not_yet_for, '24 hours'),
      coalesce(wanted.max_abandoned, 5), coalesce(wanted.retain_ids, '14 days'),
      coalesce(wanted.retain_bodies, '1 day'), coalesce(wanted.retain_dead, '30 days')
    )
    on conflict on constraint consumer_pkey do update set
      owner = excluded.owner, queue = excluded.queue, identify = excluded.identify, accept = excluded.accept,
      handler = excluded.handler, function = excluded.function, ordering = excluded.ordering,
      on_dead = excluded.on_dead, retry_delays = excluded.retry_delays, max_attempts = excluded.max_attempts,
      max_age = excluded.max_age, not_yet_for = excluded.not_yet_for, max_abandoned = excluded.max_abandoned,
      retain_ids = excluded.retain_ids, retain_bodies = excluded.retain_bodies, retain_dead = excluded.retain_dead,
      registered_at = excluded.registered_at;
    -- Where the order was changed, its rows change with it; what several programs do meanwhile, the sweep puts right.
    if before = 'key' and wanted."order" is distinct from 'key' then
      update waybill.inbox i set status = 'pending' where i.consumer = wanted.name and i.status = 'blocked';
    elsif before = 'none' and wanted."order" = 'key' then
      update waybill.inbox i set status = 'blocked'
      where i.consumer = wanted.name and i.status = 'pending' and i.key is not null and exists (
        select from waybill.inbox h
        where h.consumer = i.consumer and h.key = i.key and h.seq < i.seq
          and h.status in ('pending', 'running', 'waiting', 'dead')
          and (h.status <> 'dead' or coalesce(wanted.on_dead, 'block') = 'block' and h.dead_reason <> 'conflict')
        offset 0);
    end if;
    name := wanted.name;
    return next;
  end loop;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.release_outbox_key(key text)
 RETURNS void
 LANGUAGE sql
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
  -- Due now: the relay looks for due rows every second.
  update waybill.outbox o
  set state = 'scheduled', next_attempt_at = clock_timestamp()
  where o.state = 'blocked' and o.seq = (
    select h.seq from waybill.outbox h
    where h.key = release_outbox_key.key and h.hold_no is not null
    order by h.key, h.hold_no limit 1)
$function$;

CREATE OR REPLACE FUNCTION waybill.rename_begin(old_name text, new_name text)
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
declare
  half text;
begin
  select c.renaming_to into half from waybill.consumer c where c.name = old_name for update;
  if half = new_name then
    return;
  end if;
  perform waybill.consumer_settings(old_name);
  perform waybill.refuse_half_renamed(new_name);
  if new_name = old_name then
    raise exception 'consumer % has that name already', to_json(old_name) using errcode = '22023';
  elsif exists (select from waybill.consumer c where c.name = new_name) then
    raise exception 'consumer % is registered', to_json(new_name) using errcode = '22023',
      hint = 'Two consumers cannot become one: each knows what it has applied. To give the other one up, the command: consumer forget';
  elsif exists (select from waybill.inbox i where i.consumer = new_name) then
    raise exception 'consumer % has messages of its own', to_json(new_name) using errcode = '22023',
      hint = 'Two consumers cannot become one: each knows what it has applied.';
  end if;
  update waybill.consumer c set renaming_to = new_name where c.name = old_name;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.rename_cancel(old_name text, new_name text)
 RETURNS boolean
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
begin
  update waybill.consumer c set renaming_to = null
  where c.name = old_name and c.renaming_to = new_name
    and not exists (select from waybill.inbox i where i.consumer = new_name);
  return found;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.rename_consumer(old_name text, new_name text, reason text DEFAULT NULL::text)
 RETURNS bigint
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
declare
  moved bigint;
begin
  lock table waybill.consumer in share row exclusive mode;
  perform waybill.consumer_settings(old_name);
  if new_name = old_name then
    raise exception 'consumer % has that name already', to_json(old_name) using errcode = '22023';
  elsif exists (select from waybill.inbox i where i.consumer = new_name) then
    raise exception 'consumer % has messages of its own', to_json(new_name) using errcode = '22023',
      hint = 'Two consumers cannot become one: each knows what it has applied.';
  end if;
  delete from waybill.consumer c where c.name = new_name;
  update waybill.consumer c set renaming_to = new_name where c.name = old_name;
  update waybill.inbox i set consumer = new_name where i.consumer = old_name;
  get diagnostics moved = row_count;
  perform waybill.rename_finish(old_name, new_name, reason, moved);
  return moved;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.rename_finish(old_name text, new_name text, reason text DEFAULT NULL::text, moved bigint DEFAULT NULL::bigint)
 RETURNS boolean
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
begin
  perform from waybill.consumer c where c.name = old_name and c.renaming_to = new_name for update;
  if not found then
    raise exception 'consumer % is not being renamed to %', to_json(old_name), to_json(new_name) using errcode = '55000';
  elsif exists (select from waybill.inbox i where i.consumer = old_name) then
    return false;
  end if;
  update waybill.consumer c set name = new_name, renaming_to = null where c.name = old_name;
  update waybill.inbox_uncopied u set consumer = new_name where u.consumer = old_name;
  update waybill.consumer_grant g set consumer = new_name where g.consumer = old_name
    and not exists (
      select from waybill.consumer_grant o where o.consumer = new_name and o.role_name = g.role_name);
  delete from waybill.consumer_grant g where g.consumer = old_name;
  insert into waybill.action_log (action, target, reason, details)
  values ('consumer.rename', new_name, rename_finish.reason,
    jsonb_strip_nulls(jsonb_build_object('from', old_name, 'rows', moved)));
  return true;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.rename_rows(old_name text, new_name text, after_seq bigint DEFAULT 0, max_rows integer DEFAULT 20000)
 RETURNS TABLE(moved bigint, next_seq bigint)
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
 SET enable_seqscan TO 'off'
AS $function$
#variable_conflict use_column
begin
  perform from waybill.consumer c where c.name = old_name and c.renaming_to = new_name for share;
  if not found then
    raise exception 'consumer % is not being renamed to %', to_json(old_name), to_json(new_name) using errcode = '55000';
  end if;
  -- Why in the order in which they lie, among those of others: by message id it took six times as long.
  select i.seq into next_seq from waybill.inbox i where i.seq > after_seq order by i.seq offset max_rows - 1 limit 1;
  update waybill.inbox i set consumer = new_name
  where i.seq > after_seq and i.seq <= coalesce(next_seq, 9223372036854775807) and i.consumer = old_name;
  get diagnostics moved = row_count;
  return next;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.rename_wait(patience interval DEFAULT '00:00:10'::interval)
 RETURNS integer[]
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
declare
  began constant timestamptz := clock_timestamp();
  -- Whoever has read the settings of any consumer has this lock until its transaction ends.
  readers constant text[] := array(
    select l.virtualtransaction from pg_locks l
    where l.locktype = 'relation' and l.relation = 'waybill.consumer'::regclass and l.pid is distinct from pg_backend_pid()
      and l.database = (select d.oid from pg_database d where d.datname = current_database()));
  left_over int[];
begin
  loop
    left_over := array(
      select coalesce(l.pid, 0) from pg_locks l
      where l.locktype = 'relation' and l.relation = 'waybill.consumer'::regclass and l.virtualtransaction = any (readers)
        and l.database = (select d.oid from pg_database d where d.datname = current_database()));
    exit when cardinality(left_over) = 0 or clock_timestamp() >= began + patience;
    perform pg_sleep(0.05);
  end loop;
  return left_over;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.replay(id uuid, reason text DEFAULT NULL::text, as_new boolean DEFAULT false)
 RETURNS text
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
declare
  kept record;
  waiting text;
  new_id uuid;
begin
  select h.* into kept from waybill.outbox_history h where h.id = replay.id order by h.settled_at desc limit 1;
  select o.state into waiting from waybill.outbox o where o.id = replay.id;
  if waiting is not null and not (coalesce(as_new, false) and kept.id is not null) then
    return 'in the outbox: ' || waiting;
  elsif kept.id is null then
    return 'unknown';
  elsif kept.outcome not in ('published', 'accepted') then
    return 'not published: ' || kept.outcome;
  elsif kept.headers is null then
    return 'body not kept';
  end if;
  new_id := case when as_new then gen_random_uuid() else replay.id end;
  insert into waybill.outbox (
    id, type, key, schema_version, payload, payload_bytes, content_type, content_encoding, headers, exchange,
    routing_key, correlation_id, causation_id, reply_to, traceparent, tracestate, priority, occurred_at
  ) values (
    new_id, kept.type, kept.key, kept.schema_version, kept.payload, kept.payload_bytes, kept.content_type,
    kept.content_encoding, kept.headers, kept.exchange, kept.routing_key, kept.correlation_id, kept.causation_id,
    kept.reply_to, kept.traceparent, kept.tracestate, kept.priority, kept.occurred_at
  )
  -- Somebody else replays it at this moment.
  on conflict on constraint outbox_id_is_unique do nothing;
  if not found then
    return 'in the outbox: ready';
  end if;
  insert into waybill.action_log (action, target, reason, details)
  values ('outbox.replay', replay.id::text, replay.reason, jsonb_strip_nulls(jsonb_build_object(
    'type', kept.type, 'published_at', kept.published_at, 'new_id', case when as_new then new_id end)));
  if as_new then
    insert into waybill.action_log (action, target, reason, details)
    values ('outbox.replay', new_id::text, replay.reason, jsonb_build_object('type', kept.type, 'copy_of', replay.id));
    return 'replayed as ' || new_id;
  end if;
  return 'replayed';
end
$function$;

CREATE OR REPLACE FUNCTION waybill.retry(id uuid, reason text DEFAULT NULL::text)
 RETURNS text
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
declare
  held record;
  is_strict constant boolean := exists (select from waybill.relay r where r.ordering = 'strict');
begin
  perform waybill.lock_outbox_row(retry.id);
  select o.seq, o.key, o.hold_no, o.state, o.type, o.attempts, o.last_error, o.deliver_at into held
  from waybill.outbox o where o.id = retry.id for update;
  if not found then
    return coalesce(
      (select 'already ' || h.outcome from waybill.outbox_history h
       where h.id = retry.id order by h.settled_at desc limit 1),
      'unknown');
  elsif held.state not in ('parked', 'scheduled', 'blocked') then
    return 'not held: ' || held.state;
  elsif held.state = 'blocked' or is_strict and exists (
    select from waybill.outbox o where o.key = held.key and o.hold_no < held.hold_no
  ) then
    return 'blocked';
  elsif held.state = 'scheduled' and held.deliver_at > clock_timestamp() then
    return 'not due yet';
  end if;
  update waybill.outbox o
  set state = 'scheduled', attempts = 0,
    hold_no = case when is_strict and held.key is not null then held.hold_no end,
    next_attempt_at = greatest(clock_timestamp(), held.deliver_at)
  where o.seq = held.seq;
  insert into waybill.action_log (action, target, reason, details)
  values ('outbox.retry', retry.id::text, retry.reason, jsonb_build_object(
    'state', held.state, 'type', held.type, 'attempts', held.attempts, 'error', held.last_error));
  return 'scheduled';
end
$function$;

CREATE OR REPLACE FUNCTION waybill.revoke_consumer(consumer text, role text)
 RETURNS boolean
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
begin
  delete from waybill.consumer_grant g
  where g.consumer = revoke_consumer.consumer and g.role_name = revoke_consumer.role;
  if not found then
    return false;
  end if;
  insert into waybill.action_log (action, target, details)
  values ('consumer.revoke', revoke_consumer.consumer, jsonb_build_object('role', revoke_consumer.role));
  return true;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.set_handling(message waybill.inbox_message)
 RETURNS void
 LANGUAGE plpgsql
AS $function$
declare
  -- Why assignments: this runs for every message, and each is an expression without a query around it.
  set_to pg_catalog.text;
  id constant pg_catalog.text := case
    when pg_catalog.octet_length(message.message_id) operator(pg_catalog.<=) 255 then message.message_id else '' end;
begin
  set_to := pg_catalog.set_config('waybill_message.id', id, true);
  set_to := pg_catalog.set_config('waybill_message.correlation_id',
    coalesce(case when pg_catalog.octet_length(message.correlation_id) operator(pg_catalog.<=) 255
      then message.correlation_id end, id), true);
  set_to := pg_catalog.set_config('waybill_message.traceparent',
    case when pg_catalog.octet_length(message.traceparent) operator(pg_catalog.<=) 255
      then message.traceparent else '' end, true);
  set_to := pg_catalog.set_config('waybill_message.tracestate',
    case when pg_catalog.octet_length(message.tracestate) operator(pg_catalog.<=) 512
      then message.tracestate else '' end, true);
end
$function$;

CREATE OR REPLACE FUNCTION waybill.uncopied_deaths(consumer text, max_rows integer)
 RETURNS bigint[]
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
 SET enable_seqscan TO 'off'
AS $function$
declare
  most_rounds constant int := 1000;
  moment constant timestamptz := clock_timestamp();
  taken bigint[];
  kept bigint[];
begin
  for round in 1..most_rounds loop
    taken := array(
      select u.inbox_seq from waybill.inbox_uncopied u
      where u.consumer = uncopied_deaths.consumer and (u.claimed_until is null or u.claimed_until <= moment)
        -- The breaker of a program may open a moment later and give the attempt back.
        and not (u.died_at > moment - interval '30 seconds' and exists (
          select from waybill.inbox i
          where i.seq = u.inbox_seq and i.status = 'dead' and i.dead_reason in ('attempts', 'age')
            and i.processed_at > moment - interval '30 seconds'
            and 'broken' = (
              select a.verdict from waybill.inbox_attempt a where a.inbox_seq = i.seq order by a.number desc limit 1)))
      order by u.consumer, u.died_at, u.inbox_seq limit max_rows for update skip locked
    );
    -- Why a statement of its own: with the lock, no death of these rows can be noted any more that this one does not see.
    kept := array(
      select i.seq from waybill.inbox i where i.seq = any (taken) and i.status = 'dead' and i.body is not null);
    delete from waybill.inbox_uncopied u where u.inbox_seq = any (taken) and u.inbox_seq <> all (kept);
    if cardinality(kept) > 0 or cardinality(taken) < max_rows then
      return kept;
    end if;
  end loop;
  return kept;
end
$function$;

create sequence waybill.outbox_hold_no;

create table waybill.action_log (
  seq bigint generated always as identity not null,
  at timestamp with time zone default clock_timestamp() not null,
  actor text default ((SESSION_USER)::text || COALESCE(((' ('::text || "left"(NULLIF(current_setting('waybill_cli.operator'::text, true), ''::text), 200)) || ')'::text), ''::text)) not null,
  action text not null,
  target text not null,
  reason text,
  details jsonb default '{}'::jsonb not null,
  constraint action_log_pkey PRIMARY KEY (seq),
  constraint action_log_details_are_an_object CHECK ((jsonb_typeof(details) = 'object'::text))
);

create table waybill.consumer (
  name text not null,
  owner text,
  queue text not null,
  identify text default 'message-id'::text not null,
  accept text[],
  handler text default 'store'::text not null,
  function text,
  ordering text default 'none'::text not null,
  on_dead text default 'block'::text not null,
  retry_delays interval[] default '{00:00:01,00:00:05,00:00:30,00:02:00,00:10:00,01:00:00}'::interval[] not null,
  max_attempts integer default 8 not null,
  max_age interval default '7 days'::interval not null,
  not_yet_for interval default '24:00:00'::interval not null,
  max_abandoned integer default 5 not null,
  retain_ids interval default '14 days'::interval not null,
  retain_bodies interval default '1 day'::interval not null,
  retain_dead interval default '30 days'::interval not null,
  paused_at timestamp with time zone,
  paused_by text,
  paused_reason text,
  copied_died_at timestamp with time zone default clock_timestamp() not null,
  copied_seq bigint default 0 not null,
  created_at timestamp with time zone default clock_timestamp() not null,
  registered_at timestamp with time zone default clock_timestamp() not null,
  renaming_to text,
  paused_until timestamp with time zone,
  constraint consumer_pkey PRIMARY KEY (name),
  constraint consumer_ages_are_positive CHECK (((max_age > '00:00:00'::interval) AND (not_yet_for > '00:00:00'::interval))),
  constraint consumer_function_is_schema_and_name CHECK ((function ~ '^[A-Za-z_][A-Za-z0-9_$]*\.[A-Za-z_][A-Za-z0-9_$]*$'::text)),
  constraint consumer_handler_is_known CHECK ((handler = ANY (ARRAY['store'::text, 'sql'::text, 'http'::text]))),
  constraint consumer_max_abandoned_is_at_least_1 CHECK ((max_abandoned >= 1)),
  constraint consumer_max_attempts_is_at_least_1 CHECK ((max_attempts >= 1)),
  constraint consumer_name_is_1_to_255_bytes CHECK (((octet_length(name) >= 1) AND (octet_length(name) <= 255))),
  constraint consumer_on_dead_is_known CHECK ((on_dead = ANY (ARRAY['block'::text, 'skip'::text]))),
  constraint consumer_ordering_is_known CHECK ((ordering = ANY (ARRAY['none'::text, 'key'::text]))),
  constraint consumer_paused_by_is_known CHECK ((paused_by = ANY (ARRAY['operator'::text, 'breaker'::text]))),
  constraint consumer_pauses_say_by_whom CHECK (((paused_at IS NULL) = (paused_by IS NULL))),
  constraint consumer_queue_is_1_to_255_bytes CHECK (((octet_length(queue) >= 1) AND (octet_length(queue) <= 255))),
  constraint consumer_renaming_to_is_1_to_255_bytes CHECK (((octet_length(renaming_to) >= 1) AND (octet_length(renaming_to) <= 255))),
  constraint consumer_retentions_are_not_negative CHECK (((retain_ids > '00:00:00'::interval) AND (retain_bodies >= '00:00:00'::interval) AND (retain_dead > '00:00:00'::interval))),
  constraint consumer_retry_delays_are_1_to_32 CHECK (((cardinality(retry_delays) >= 1) AND (cardinality(retry_delays) <= 32))),
  constraint consumer_retry_delays_are_positive CHECK (('00:00:00'::interval < ALL (retry_delays))),
  constraint consumer_sql_handlers_have_a_function CHECK (((handler = 'sql'::text) = (function IS NOT NULL)))
);

create table waybill.consumer_grant (
  consumer text not null,
  role_name text not null,
  granted_at timestamp with time zone default clock_timestamp() not null,
  granted_by text default SESSION_USER not null,
  constraint consumer_grant_pkey PRIMARY KEY (consumer, role_name)
);

create table waybill.freshness (
  scope text not null,
  key text not null,
  version bigint not null,
  at timestamp with time zone default clock_timestamp() not null,
  constraint freshness_pkey PRIMARY KEY (scope, key),
  constraint freshness_scope_and_key_at_most_2048_bytes CHECK (((octet_length(scope) + octet_length(key)) <= 2048))
);

create table waybill.idempotency (
  scope text not null,
  key text not null,
  first_at timestamp with time zone default clock_timestamp() not null,
  result text,
  constraint idempotency_pkey PRIMARY KEY (scope, key),
  constraint idempotency_scope_and_key_at_most_2048_bytes CHECK (((octet_length(scope) + octet_length(key)) <= 2048))
);

create table waybill.inbox (
  seq bigint generated always as identity not null,
  consumer text not null,
  message_id text not null,
  original_id text,
  type text,
  key text,
  schema_version integer,
  body bytea,
  content_type text,
  content_encoding text,
  headers jsonb default '{}'::jsonb not null,
  exchange text,
  routing_key text,
  correlation_id text,
  causation_id text,
  reply_to text,
  app_id text,
  priority smallint,
  occurred_at timestamp with time zone,
  traceparent text,
  tracestate text,
  body_hash bytea,
  status text default 'pending'::text not null,
  failures integer default 0 not null,
  abandoned integer default 0 not null,
  next_attempt_at timestamp with time zone,
  lease_until timestamp with time zone,
  claim_token uuid,
  locked_by text,
  last_error text,
  dead_reason text,
  result text,
  raw_properties bytea,
  received_at timestamp with time zone default clock_timestamp() not null,
  processed_at timestamp with time zone,
  redacted_at timestamp with time zone,
  constraint inbox_message_id_is_unique_per_consumer UNIQUE (consumer, message_id),
  constraint inbox_pkey PRIMARY KEY (seq),
  constraint inbox_blocked_rows_have_a_key CHECK (((status <> 'blocked'::text) OR (key IS NOT NULL))),
  constraint inbox_body_hash_is_32_bytes CHECK ((octet_length(body_hash) = 32)),
  constraint inbox_counters_are_not_negative CHECK (((failures >= 0) AND (abandoned >= 0))),
  constraint inbox_dead_reason_is_a_word CHECK ((dead_reason ~ '^[a-z-]{1,40}$'::text)),
  constraint inbox_dead_rows_say_why CHECK (((status = 'dead'::text) = (dead_reason IS NOT NULL))),
  constraint inbox_headers_are_an_object CHECK ((jsonb_typeof(headers) = 'object'::text)),
  constraint inbox_key_at_most_1024_bytes CHECK ((octet_length(key) <= 1024)),
  constraint inbox_message_id_is_1_to_1024_bytes CHECK (((octet_length(message_id) >= 1) AND (octet_length(message_id) <= 1024))),
  constraint inbox_only_redacted_rows_have_no_body_hash CHECK (((body_hash IS NOT NULL) OR (redacted_at IS NOT NULL))),
  constraint inbox_processed_rows_say_when CHECK (((status = ANY (ARRAY['done'::text, 'dead'::text, 'discarded'::text])) = (processed_at IS NOT NULL))),
  constraint inbox_results_are_of_done_rows CHECK (((result IS NULL) OR (status = 'done'::text))),
  constraint inbox_running_rows_are_claimed CHECK ((((status = 'running'::text) = (claim_token IS NOT NULL)) AND ((status = 'running'::text) = (lease_until IS NOT NULL)))),
  constraint inbox_status_is_known CHECK ((status = ANY (ARRAY['pending'::text, 'running'::text, 'waiting'::text, 'blocked'::text, 'done'::text, 'dead'::text, 'discarded'::text]))),
  constraint inbox_type_at_most_1024_bytes CHECK ((octet_length(type) <= 1024)),
  constraint inbox_unprocessed_rows_have_a_body CHECK (((body IS NOT NULL) OR (processed_at IS NOT NULL))),
  constraint inbox_waiting_rows_have_a_next_attempt CHECK (((status = 'waiting'::text) = (next_attempt_at IS NOT NULL)))
) with (
  autovacuum_analyze_scale_factor=0.02,
  autovacuum_analyze_threshold=5000,
  autovacuum_vacuum_insert_scale_factor=0,
  autovacuum_vacuum_insert_threshold=100000,
  autovacuum_vacuum_scale_factor=0,
  autovacuum_vacuum_threshold=20000,
  toast.vacuum_truncate=false,
  vacuum_truncate=false
);

create table waybill.inbox_attempt (
  inbox_seq bigint not null,
  number integer not null,
  at timestamp with time zone default clock_timestamp() not null,
  verdict text not null,
  error text,
  worker text,
  given_back_by bigint,
  constraint inbox_attempt_pkey PRIMARY KEY (inbox_seq, number),
  constraint inbox_attempt_inbox_seq_fkey FOREIGN KEY (inbox_seq) REFERENCES waybill.inbox(seq) ON DELETE CASCADE,
  constraint inbox_attempt_number_is_at_least_1 CHECK ((number >= 1)),
  constraint inbox_attempt_verdict_is_known CHECK ((verdict = ANY (ARRAY['retry'::text, 'not-yet'::text, 'never'::text, 'broken'::text, 'abandoned'::text, 'refunded'::text])))
);

create table waybill.inbox_uncopied (
  inbox_seq bigint not null,
  consumer text not null,
  died_at timestamp with time zone not null,
  claimed_until timestamp with time zone,
  refused integer default 0 not null,
  constraint inbox_uncopied_pkey PRIMARY KEY (inbox_seq),
  constraint inbox_uncopied_refused_is_not_negative CHECK ((refused >= 0))
);

create table waybill.installation (
  only_row boolean default true not null,
  id uuid default gen_random_uuid() not null,
  created_at timestamp with time zone default now() not null,
  constraint installation_pkey PRIMARY KEY (only_row),
  constraint installation_has_one_row CHECK (only_row)
);

create table waybill.migration (
  version integer not null,
  name text not null,
  oldest_binary integer not null,
  applied_at timestamp with time zone default now() not null,
  constraint migration_pkey PRIMARY KEY (version),
  constraint migration_oldest_binary_is_not_newer CHECK (((oldest_binary >= 1) AND (oldest_binary <= version))),
  constraint migration_version_is_positive CHECK ((version >= 1))
);

create table waybill.outbox (
  seq bigint generated always as identity not null,
  id uuid default gen_random_uuid() not null,
  type text not null,
  key text,
  schema_version integer default 1 not null,
  payload json,
  payload_bytes bytea,
  content_type text,
  content_encoding text,
  headers jsonb default '{}'::jsonb not null,
  exchange text,
  routing_key text,
  correlation_id text default NULLIF(current_setting('waybill_message.correlation_id'::text, true), ''::text),
  causation_id text default NULLIF(current_setting('waybill_message.id'::text, true), ''::text),
  reply_to text,
  traceparent text default NULLIF(current_setting('waybill_message.traceparent'::text, true), ''::text),
  tracestate text default NULLIF(current_setting('waybill_message.tracestate'::text, true), ''::text),
  priority smallint,
  expires_at timestamp with time zone,
  deliver_at timestamp with time zone,
  occurred_at timestamp with time zone default now() not null,
  created_at timestamp with time zone default now() not null,
  state text default 'ready'::text not null,
  attempts integer default 0 not null,
  last_error text,
  next_attempt_at timestamp with time zone,
  hold_no bigint,
  constraint outbox_id_is_unique UNIQUE (id),
  constraint outbox_pkey PRIMARY KEY (seq),
  constraint outbox_blocked_rows_have_a_key CHECK (((state <> 'blocked'::text) OR (key IS NOT NULL))),
  constraint outbox_causation_id_at_most_255_bytes CHECK ((octet_length(causation_id) <= 255)),
  constraint outbox_content_encoding_at_most_255_bytes CHECK ((octet_length(content_encoding) <= 255)),
  constraint outbox_content_type_at_most_255_bytes CHECK ((octet_length(content_type) <= 255)),
  constraint outbox_correlation_id_at_most_255_bytes CHECK ((octet_length(correlation_id) <= 255)),
  constraint outbox_deliver_at_is_finite CHECK (isfinite(deliver_at)),
  constraint outbox_exchange_at_most_255_bytes CHECK ((octet_length(exchange) <= 255)),
  constraint outbox_expires_at_is_finite CHECK (isfinite(expires_at)),
  constraint outbox_headers_are_an_object CHECK ((jsonb_typeof(headers) = 'object'::text)),
  constraint outbox_headers_are_publishable CHECK (((headers = '{}'::jsonb) OR waybill.headers_are_publishable(headers))),
  constraint "outbox_headers_at_most_48_KiB" CHECK (((headers = '{}'::jsonb) OR (octet_length((headers)::text) <= 49152))),
  constraint outbox_held_rows_have_a_hold_number CHECK (((state <> ALL (ARRAY['parked'::text, 'blocked'::text])) OR (hold_no IS NOT NULL))),
  constraint outbox_key_at_most_1024_bytes CHECK ((octet_length(key) <= 1024)),
  constraint outbox_occurred_at_is_between_1970_and_9999 CHECK (((occurred_at >= '1970-01-01 00:00:00+00'::timestamp with time zone) AND (occurred_at <= '9999-12-31 23:59:59+00'::timestamp with time zone))),
  constraint outbox_one_payload CHECK ((num_nonnulls(payload, payload_bytes) <= 1)),
  constraint "outbox_payload_at_most_15_MiB" CHECK (((octet_length((payload)::text) <= 15728640) AND (octet_length(payload_bytes) <= 15728640))),
  constraint outbox_priority_is_0_to_255 CHECK (((priority >= 0) AND (priority <= 255))),
  constraint outbox_reply_to_at_most_255_bytes CHECK ((octet_length(reply_to) <= 255)),
  constraint outbox_routing_key_at_most_255_bytes CHECK ((octet_length(routing_key) <= 255)),
  constraint outbox_scheduled_rows_have_a_next_attempt CHECK (((state <> 'scheduled'::text) OR (next_attempt_at IS NOT NULL))),
  constraint outbox_schema_version_is_at_least_1 CHECK ((schema_version >= 1)),
  constraint outbox_state_is_known CHECK ((state = ANY (ARRAY['ready'::text, 'scheduled'::text, 'parked'::text, 'blocked'::text, 'cancelled'::text, 'discarded'::text]))),
  constraint outbox_traceparent_at_most_255_bytes CHECK ((octet_length(traceparent) <= 255)),
  constraint outbox_tracestate_at_most_512_bytes CHECK ((octet_length(tracestate) <= 512)),
  constraint outbox_type_at_most_255_bytes CHECK ((octet_length(type) <= 255)),
  constraint outbox_type_is_not_empty CHECK ((type <> ''::text))
) with (
  autovacuum_analyze_scale_factor=0,
  autovacuum_analyze_threshold=20000,
  autovacuum_vacuum_insert_scale_factor=0,
  autovacuum_vacuum_insert_threshold=50000,
  autovacuum_vacuum_scale_factor=0,
  autovacuum_vacuum_threshold=5000,
  toast.autovacuum_vacuum_scale_factor=0,
  toast.autovacuum_vacuum_threshold=5000,
  toast.vacuum_truncate=false,
  vacuum_truncate=false
);

create table waybill.outbox_history (
  settled_at timestamp with time zone default clock_timestamp() not null,
  outcome text not null,
  id uuid not null,
  seq bigint,
  type text not null,
  key text,
  schema_version integer,
  exchange text,
  routing_key text,
  attempts integer,
  created_at timestamp with time zone,
  occurred_at timestamp with time zone,
  published_at timestamp with time zone,
  size integer,
  sha256 bytea,
  payload json,
  payload_bytes bytea,
  content_type text,
  content_encoding text,
  headers jsonb,
  correlation_id text,
  causation_id text,
  reply_to text,
  traceparent text,
  tracestate text,
  priority smallint,
  expires_at timestamp with time zone,
  deliver_at timestamp with time zone,
  constraint outbox_history_outcome_is_known CHECK ((outcome = ANY (ARRAY['published'::text, 'accepted'::text, 'cancelled'::text, 'discarded'::text, 'expired'::text])))
) partition by RANGE (settled_at);

create table waybill.relay (
  name text not null,
  slot text,
  source text default 'wal'::text not null,
  epoch bigint default 0 not null,
  holder text,
  holder_since timestamp with time zone,
  checkpoint_lsn pg_lsn,
  checkpoint_at timestamp with time zone,
  system_identifier bigint,
  timeline integer,
  broker_cluster text,
  broker_vhost text,
  pass_after_seq bigint,
  pass_upto_seq bigint,
  insert_then_delete_seen boolean default false not null,
  created_at timestamp with time zone default now() not null,
  ordering text default 'pipelined'::text not null,
  constraint relay_pkey PRIMARY KEY (name),
  constraint relay_ordering_is_pipelined_or_strict CHECK ((ordering = ANY (ARRAY['pipelined'::text, 'strict'::text]))),
  constraint relay_source_is_wal_or_table CHECK ((source = ANY (ARRAY['wal'::text, 'table'::text])))
);

CREATE OR REPLACE FUNCTION waybill.claimed_row(seq bigint, token uuid, OUT settings waybill.consumer, OUT keyed text)
 RETURNS record
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
declare
  found_row record;
begin
  select i.consumer, i.key, i.status, i.claim_token into found_row
  from waybill.inbox i where i.seq = claimed_row.seq;
  if not found then
    raise exception 'lease lost: no row % in the inbox', seq using errcode = 'WB003';
  end if;
  settings := waybill.consumer_for_caller(found_row.consumer);
  if settings.ordering = 'key' and found_row.key is not null then
    keyed := found_row.key;
    perform pg_advisory_xact_lock(waybill.key_lock(settings.name, keyed));
  end if;
  -- Why after the lock: what was read before it is old.
  perform from waybill.inbox i
  where i.seq = claimed_row.seq and i.status = 'running' and i.claim_token = claimed_row.token for update;
  if not found then
    raise exception 'lease lost: row % of consumer %', seq, to_json(found_row.consumer) using errcode = 'WB003',
      detail = format('The row is %s.', (select i.status from waybill.inbox i where i.seq = claimed_row.seq)),
      hint = 'The lease expired and the row was given to another worker, or it is settled already. Roll back.';
  end if;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.consumer_for_caller(name text)
 RETURNS waybill.consumer
 LANGUAGE plpgsql
 STABLE
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
declare
  -- Why not current_user: this runs for functions that work on behalf of their owner.
  caller constant name := case current_setting('role') when 'none' then session_user else current_setting('role') end;
begin
  if not has_table_privilege(caller, 'waybill.inbox'::regclass, 'update') and not exists (
    select from waybill.consumer_grant g join pg_roles r on r.rolname = g.role_name
    where g.consumer = consumer_for_caller.name and pg_has_role(caller, r.oid, 'usage')
  ) then
    raise exception 'role % may not claim rows of consumer %', caller, to_json(name) using errcode = 'WB007',
      hint = format('As the owner of the schema: select waybill.grant_consumer(%L, %L);', name, caller);
  end if;
  return waybill.consumer_settings(name);
end
$function$;

CREATE OR REPLACE FUNCTION waybill.consumer_settings(name text)
 RETURNS waybill.consumer
 LANGUAGE plpgsql
 STABLE
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
declare
  settings waybill.consumer;
begin
  select * into settings from waybill.consumer c where c.name = consumer_settings.name;
  if settings.name is null or settings.renaming_to is not null then
    perform waybill.refuse_half_renamed(name);
    raise exception 'no consumer % is registered', to_json(name) using errcode = 'WB004',
      hint = 'A consumer is registered when Waybill starts with it in its configuration.';
  end if;
  return settings;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.end_expired_leases(settings waybill.consumer)
 RETURNS integer
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
 SET enable_seqscan TO 'off'
AS $function$
declare
  most_rows constant int := 100;
  moment constant timestamptz := clock_timestamp();
  row_of record;
  suspect boolean;
  ended int := 0;
begin
  for row_of in
    select i.seq, i.key, i.abandoned + 1 as abandoned, i.locked_by from waybill.inbox i
    where i.consumer = settings.name and i.status = 'running' and i.lease_until <= moment
    order by i.lease_until limit most_rows for update skip locked
  loop
    suspect := row_of.abandoned >= settings.max_abandoned;
    -- Why not wait for the lock: whoever has it may wait for this row. Another claim comes.
    continue when suspect and settings.ordering = 'key' and row_of.key is not null
      and not pg_try_advisory_xact_lock(waybill.key_lock(settings.name, row_of.key));
    update waybill.inbox i
    set status = case when suspect then 'dead' else 'waiting' end,
      next_attempt_at = case when not suspect then moment end,
      dead_reason = case when suspect then 'suspect' end,
      processed_at = case when suspect then moment end,
      abandoned = row_of.abandoned, last_error = 'lease expired: its worker vanished, or took too long',
      claim_token = null, lease_until = null, locked_by = null
    where i.seq = row_of.seq;
    insert into waybill.inbox_attempt (inbox_seq, number, at, verdict, error, worker)
    select row_of.seq, coalesce(max(a.number), 0) + 1, moment, 'abandoned', 'lease expired', row_of.locked_by
    from waybill.inbox_attempt a where a.inbox_seq = row_of.seq;
    if suspect and settings.ordering = 'key' and row_of.key is not null then
      perform waybill.release_key(settings, row_of.key);
    end if;
    ended := ended + 1;
  end loop;
  return ended;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.finish_rows(settings waybill.consumer, seqs bigint[], results text[])
 RETURNS TABLE(seq bigint, released bigint)
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
 SET enable_seqscan TO 'off'
 SET enable_hashjoin TO 'off'
 SET enable_mergejoin TO 'off'
 SET plan_cache_mode TO 'force_generic_plan'
AS $function$
#variable_conflict use_column
declare
  settled record;
begin
  for settled in
    with changed as (
      update waybill.inbox i
      set status = 'done', processed_at = clock_timestamp(), result = left(g.result, 4000), last_error = null,
        body = case when settings.retain_bodies > interval '0' then i.body end,
        claim_token = null, lease_until = null, locked_by = null
      from unnest(seqs, results) as g (seq, result) where i.seq = g.seq
      returning i.seq, i.key
    )
    select c.seq, c.key from changed c order by c.seq
  loop
    seq := settled.seq;
    released := null;
    if settings.ordering = 'key' and settled.key is not null then
      released := waybill.release_key(settings, settled.key);
    end if;
    return next;
  end loop;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.handler_call(settings waybill.consumer)
 RETURNS text
 LANGUAGE plpgsql
 STABLE
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
declare
  parts constant text[] := string_to_array(settings.function, '.');
  handler oid;
  kind "char";
begin
  begin
    handler := to_regprocedure(format('%I.%I(waybill.inbox_message)', parts[1], parts[2]));
  exception
    when insufficient_privilege then
      raise exception 'the handler of consumer % cannot be called: %', to_json(settings.name), sqlerrm
        using errcode = 'WB006', hint = format('grant usage on schema %I to %I;', parts[1], current_user);
  end;
  select p.prokind into kind from pg_catalog.pg_proc p where p.oid = handler;
  if kind is distinct from 'f' then
    raise exception 'the handler of consumer % is missing: no function %(waybill.inbox_message)', to_json(settings.name),
      settings.function using errcode = 'WB006',
      hint = 'Create it, or correct the handler in the configuration of the consumer.';
  elsif not has_function_privilege(handler, 'execute') then
    raise exception 'the handler of consumer % cannot be called: permission denied for function %', to_json(settings.name),
      settings.function using errcode = 'WB006',
      hint = format('grant execute on function %s to %I;', handler::regprocedure, current_user);
  end if;
  return format('select %I.%I($1)', parts[1], parts[2]);
end
$function$;

CREATE OR REPLACE FUNCTION waybill.inbox_deaths(consumer text, max_rows integer DEFAULT 100)
 RETURNS SETOF waybill.inbox
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
declare
  shown bigint[];
begin
  shown := waybill.uncopied_deaths(inbox_deaths.consumer, max_rows);
  update waybill.inbox_uncopied u set claimed_until = '-infinity' where u.inbox_seq = any (shown);
  return query
  select i.* from waybill.inbox i where i.seq = any (shown) order by i.processed_at, i.seq;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.lock_claimed_soon(settings waybill.consumer, seq bigint, token uuid)
 RETURNS waybill.inbox
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
 SET lock_timeout TO '1s'
AS $function$
declare
  target waybill.inbox;
begin
  select * into target from waybill.inbox i
  where i.seq = lock_claimed_soon.seq and i.consumer = settings.name and i.status = 'running'
    and i.claim_token = token for update skip locked;
  -- Why two: a row for which nobody waits takes no subtransaction.
  if not found then
    begin
      select * into target from waybill.inbox i
      where i.seq = lock_claimed_soon.seq and i.consumer = settings.name and i.status = 'running'
        and i.claim_token = token for update;
    exception when lock_not_available then
      return null;
    end;
  end if;
  return target;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.lock_keys(settings waybill.consumer, seqs bigint[])
 RETURNS void
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
begin
  if settings.ordering = 'key' then
    perform pg_advisory_xact_lock(l.lock) from (
      select distinct waybill.key_lock(settings.name, i.key) as lock
      from waybill.inbox i where i.seq = any (lock_keys.seqs) and i.key is not null order by 1
    ) as l;
  end if;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.lock_keys_soon(settings waybill.consumer, seqs bigint[])
 RETURNS void
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
 SET lock_timeout TO '1s'
AS $function$
declare
  began constant timestamptz := clock_timestamp();
  wanted bigint;
begin
  if settings.ordering <> 'key' then
    return;
  end if;
  for wanted in
    select distinct waybill.key_lock(settings.name, i.key)
    from waybill.inbox i where i.seq = any (lock_keys_soon.seqs) and i.key is not null order by 1
  loop
    continue when pg_try_advisory_xact_lock(wanted) or clock_timestamp() > began + interval '1 second';
    begin
      perform pg_advisory_xact_lock(wanted);
    exception when lock_not_available then
      -- The rows of that key are settled without it.
    end;
  end loop;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.log_inbox_action(action text, target waybill.inbox, reason text, answer text)
 RETURNS text
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
begin
  insert into waybill.action_log (action, target, reason, details)
  values (log_inbox_action.action, target.message_id, log_inbox_action.reason, jsonb_strip_nulls(jsonb_build_object(
    'consumer', target.consumer, 'seq', target.seq, 'status', target.status, 'type', target.type,
    'failures', target.failures, 'abandoned', target.abandoned, 'dead_reason', target.dead_reason,
    'error', target.last_error, 'answer', answer)));
  -- Workers and the program look at once; heard when this is committed.
  if answer in ('pending', 'waiting', 'discarded') then
    perform pg_notify('waybill_inbox', target.consumer);
  end if;
  return answer;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.message_of(i waybill.inbox)
 RETURNS waybill.inbox_message
 LANGUAGE sql
 STABLE
AS $function$
  select row(
    i.seq, i.failures operator(pg_catalog.+) i.abandoned operator(pg_catalog.+) 1, i.consumer, i.message_id,
    i.original_id, i.type, i.key, i.schema_version, i.body, i.content_type, i.content_encoding, i.headers, i.exchange,
    i.routing_key, i.correlation_id, i.causation_id, i.reply_to, i.app_id, i.priority, i.occurred_at, i.traceparent,
    i.tracestate, i.received_at
  )::waybill.inbox_message
$function$;

CREATE OR REPLACE FUNCTION waybill.payload(i waybill.inbox)
 RETURNS json
 LANGUAGE sql
 STABLE
AS $function$ select waybill.json_of_body(i.message_id, i.body, i.content_encoding) $function$;

CREATE OR REPLACE FUNCTION waybill.put_back(settings waybill.consumer, seq bigint, verdict text, error text, retry_in interval, OUT status text, OUT attempt integer, OUT next_attempt_at timestamp with time zone, OUT dead_reason text, OUT released bigint)
 RETURNS record
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
begin
  select p.status, p.attempt, p.next_attempt_at, p.dead_reason, p.released
  into status, attempt, next_attempt_at, dead_reason, released
  from waybill.put_back_rows(settings, array[seq], array[verdict], array[error], array[retry_in]) as p;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.put_back_rows(settings waybill.consumer, seqs bigint[], verdicts text[], errors text[], retry_ins interval[])
 RETURNS TABLE(seq bigint, verdict text, status text, attempt integer, next_attempt_at timestamp with time zone, dead_reason text, error text, released bigint)
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
 SET enable_seqscan TO 'off'
 SET enable_hashjoin TO 'off'
 SET enable_mergejoin TO 'off'
 SET plan_cache_mode TO 'force_generic_plan'
AS $function$
#variable_conflict use_column
declare
  longest_delay constant interval := '30 days';
  moment constant timestamptz := clock_timestamp();
  wrong text;
  settled record;
begin
  select to_json(g.verdict) into wrong from unnest(verdicts) as g (verdict)
  where g.verdict is null or g.verdict not in ('retry', 'not-yet', 'never', 'broken', 'release') limit 1;
  if found then
    raise exception 'unknown verdict: %', wrong using errcode = '22023';
  elsif exists (select from unnest(retry_ins) as g (retry_in) where g.retry_in < interval '0') then
    raise exception 'a delay must not be negative' using errcode = '22023';
  end if;

  for settled in
    with given as materialized (
      select g.seq, g.verdict, left(g.error, 4000) as error, g.retry_in,
        case when g.verdict in ('retry', 'broken', 'never') then 1 else 0 end as failed
      from unnest(seqs, verdicts, errors, retry_ins) as g (seq, verdict, error, retry_in)
    ), before as materialized (
      select g.*, i.message_id, i.key, i.failures + g.failed as failures, i.abandoned, i.received_at, i.locked_by
      from given g join waybill.inbox i on i.seq = g.seq
    ), judged as materialized (
      select b.*,
        case
          when b.verdict = 'never' then 'never'
          when b.verdict in ('retry', 'broken') and b.failures >= settings.max_attempts then 'attempts'
          when b.verdict in ('retry', 'broken') and moment - b.received_at > settings.max_age
            and waybill.inbox_age(b.seq, b.message_id, b.received_at) > settings.max_age then 'age'
          when b.verdict = 'not-yet' and moment - b.received_at > settings.not_yet_for
            and waybill.inbox_age(b.seq, b.message_id, b.received_at) > settings.not_yet_for then 'not-yet'
        end as dead_reason
      from before b
    ), decided as materialized (
      select j.*, j.failures + j.abandoned + 1 as attempt,
        case
          when j.dead_reason is not null then 'dead'
          when j.verdict = 'release' and j.retry_in is null then 'pending'
          else 'waiting'
        end as status,
        -- Jitter only lengthens: a message never comes back sooner than it was told.
        case when j.dead_reason is null and not (j.verdict = 'release' and j.retry_in is null) then
          moment + least(longest_delay, coalesce(j.retry_in, case j.verdict
            when 'not-yet' then
              least(greatest(settings.retry_delays[1], (moment - j.received_at) / 2), interval '10 minutes')
            else settings.retry_delays[least(greatest(j.failures, 1), cardinality(settings.retry_delays))]
          end * (1 + random())))
        end as next_attempt_at
      from judged j
    ), changed as (
      update waybill.inbox i
      set status = d.status, next_attempt_at = d.next_attempt_at, dead_reason = d.dead_reason,
        processed_at = case d.status when 'dead' then moment end, failures = d.failures,
        last_error = coalesce(d.error, i.last_error), claim_token = null, lease_until = null, locked_by = null
      from decided d where i.seq = d.seq
    ), noted as (
      -- What only waits for its data, or was not begun, is no failure.
      insert into waybill.inbox_attempt (inbox_seq, number, at, verdict, error, worker)
      select d.seq, 1 + coalesce((select max(a.number) from waybill.inbox_attempt a where a.inbox_seq = d.seq), 0),
        moment, d.verdict, d.error, d.locked_by
      from decided d where d.failed = 1 or d.status = 'dead'
    )
    select * from decided d order by d.seq
  loop
    seq := settled.seq;
    verdict := settled.verdict;
    status := settled.status;
    attempt := settled.attempt;
    next_attempt_at := settled.next_attempt_at;
    dead_reason := settled.dead_reason;
    error := settled.error;
    released := null;
    if status = 'dead' and settings.ordering = 'key' and settled.key is not null then
      released := waybill.release_key(settings, settled.key);
    end if;
    return next;
  end loop;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.release_key(settings waybill.consumer, key text)
 RETURNS bigint
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
 SET enable_seqscan TO 'off'
AS $function$
declare
  released bigint;
begin
  if not pg_try_advisory_xact_lock(waybill.key_lock(settings.name, release_key.key)) then
    return null;
  end if;
  select i.seq into released from waybill.inbox i
  where i.consumer = settings.name and i.key = release_key.key and i.status = 'blocked'
  order by i.seq + 0 limit 1;
  -- A dead row holds those behind it; any other one holds the key.
  if released is null or exists (
    select from waybill.inbox i
    where i.consumer = settings.name and i.key = release_key.key
      and i.status in ('pending', 'running', 'waiting', 'dead')
      and (i.status <> 'dead' or settings.on_dead = 'block' and i.dead_reason <> 'conflict' and i.seq < released)
  ) then
    return null;
  end if;
  update waybill.inbox i set status = 'pending' where i.seq = released;
  return released;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.revive_row(settings waybill.consumer, seq bigint, due_at timestamp with time zone, fresh boolean)
 RETURNS text
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
 SET enable_seqscan TO 'off'
AS $function$
declare
  new_status text;
begin
  select case
    when settings.ordering = 'key' and i.key is not null and (
      exists (
        select from waybill.inbox o
        where o.consumer = settings.name and o.key = i.key and o.seq <> i.seq
          and o.status in ('pending', 'running', 'waiting', 'dead')
          and (o.status <> 'dead' or settings.on_dead = 'block' and o.dead_reason <> 'conflict' and o.seq < i.seq))
      or exists (
        select from waybill.inbox o
        where o.consumer = settings.name and o.key = i.key and o.status = 'blocked' and o.seq + 0 < i.seq)
    ) then 'blocked'
    when due_at is null then 'pending'
    else 'waiting'
  end into new_status
  from waybill.inbox i where i.seq = revive_row.seq;
  update waybill.inbox i
  set status = new_status, next_attempt_at = case new_status when 'waiting' then due_at end, processed_at = null,
    dead_reason = null, result = null, failures = case when fresh then 0 else i.failures end,
    abandoned = case when fresh then 0 else i.abandoned end
  where i.seq = revive_row.seq;
  return new_status;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.row_for_operator(consumer text, message_id text, OUT settings waybill.consumer, OUT target waybill.inbox)
 RETURNS record
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
AS $function$
begin
  -- Rows of a consumer that is not registered any more can be seen to as well.
  perform waybill.refuse_half_renamed(row_for_operator.consumer);
  select * into settings from waybill.consumer c where c.name = row_for_operator.consumer;
  perform pg_advisory_xact_lock(waybill.key_lock(i.consumer, i.key)) from waybill.inbox i
  where i.consumer = row_for_operator.consumer and i.message_id = row_for_operator.message_id
    and settings.ordering = 'key' and i.key is not null;
  select * into target from waybill.inbox i
  where i.consumer = row_for_operator.consumer and i.message_id = row_for_operator.message_id for update;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.store_arrivals(settings waybill.consumer, messages json, bodies bytea, applying boolean)
 RETURNS TABLE(ordinal integer, outcome text, seq bigint, status text, attempt integer, dead_reason text, error text, key text, failed text, message waybill.inbox_message)
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
 SET enable_seqscan TO 'off'
AS $function$
#variable_conflict use_column
declare
  by_key constant boolean := settings.ordering = 'key';
  began timestamptz;
  usual_timeout constant text := current_setting('lock_timeout');
  patience_ms int;
  wanted record;
  busy text[] := '{}';
  arrival record;
  existing record;
  twins int[] := '{}';
  conflict_id text;
  bytes bigint := 0;
begin
  -- One intake at a time: without the lock of a key its rows are seen, in the order of seq, by whoever brings the next ones.
  -- A lock that somebody keeps holds up the rows of its key alone: they wait as blocked, and the sweep releases them. Why
  -- wait at all: most end at once, and whoever ends then sees the rows and releases them.
  if by_key then
    perform pg_advisory_xact_lock(hashtextextended('waybill.intake ' || settings.name, 0));
    began := clock_timestamp();
    for wanted in
      select k.key, waybill.key_lock(settings.name, k.key) as lock
      from (select distinct m.key from json_to_recordset(messages) as m (key text)) as k
      where k.key is not null order by 2
    loop
      continue when pg_try_advisory_xact_lock(wanted.lock);
      patience_ms := extract(epoch from began + interval '1 second' - clock_timestamp()) * 1000;
      -- Not again for a key that is held for long.
      if patience_ms > 0 and (
        select h.received_at from waybill.inbox h
        where h.consumer = settings.name and h.key = wanted.key and h.status = 'blocked' order by h.seq + 0 limit 1
      ) < began - interval '1 second' is not true then
        begin
          perform set_config('lock_timeout', patience_ms::text, true);
          perform pg_advisory_xact_lock(wanted.lock);
          perform set_config('lock_timeout', usual_timeout, true);
          continue;
        exception when lock_not_available then
          -- The setting is back, too.
        end;
      end if;
      busy := busy || wanted.key;
    end loop;
  end if;

  -- seq is drawn in the order of delivery, then rows go in by message id: two batches never wait for each other.
  -- "offset 0" keeps the looks at a key looks at a key; else all keys of the consumer may be read first and hashed.
  for arrival in
    with arrivals as materialized (
      select r.*,
        row_number() over (partition by r.message_id order by r.ordinal) = 1 as first,
        coalesce(bool_or(r.dead_reason is null or settings.on_dead = 'block' and r.dead_reason <> 'conflict') over (
          partition by r.key order by r.ordinal rows between unbounded preceding and 1 preceding), false) as follows
      from waybill.arrivals(messages, bodies) as r
    ), inserted as (
      insert into waybill.inbox as i (
        seq, consumer, message_id, original_id, type, key, schema_version, body, content_type, content_encoding, headers,
        exchange, routing_key, correlation_id, causation_id, reply_to, app_id, priority, occurred_at, traceparent,
        tracestate, body_hash, status, abandoned, last_error, dead_reason, raw_properties, processed_at
      ) overriding system value
      select
        d.seq, settings.name, d.message_id, d.original_id, d.type, d.key, d.schema_version,
        case when d.status <> 'done' or settings.retain_bodies > interval '0' then d.body end, d.content_type,
        d.content_encoding, coalesce(d.headers, '{}'), d.exchange, d.routing_key, d.correlation_id, d.causation_id,
        d.reply_to, d.app_id, d.priority, d.occurred_at, d.traceparent, d.tracestate, sha256(d.body), d.status,
        case when d.hold then 2 else 0 end, left(d.error, 4000), d.dead_reason, decode(d.raw_properties, 'base64'),
        case when d.status in ('done', 'dead') then clock_timestamp() end
      from (
        select f.*, nextval('waybill.inbox_seq_seq'::regclass) as seq,
          case
            when f.dead_reason is not null then 'dead'
            when by_key and f.key is not null and (f.follows and not applying or f.key = any (busy) or exists (
              select from waybill.inbox h
              where h.consumer = settings.name and h.key = f.key
                and h.status in ('pending', 'running', 'waiting', 'dead')
                and (h.status <> 'dead' or settings.on_dead = 'block' and h.dead_reason <> 'conflict')
              offset 0
            ) or exists (
              select from waybill.inbox h
              where h.consumer = settings.name and h.key = f.key and h.status = 'blocked' offset 0
            )) then 'blocked'
            when applying and not f.hold and f.failed is null then 'done'
            else 'pending'
          end as status
        from (select * from arrivals where first order by ordinal) as f
      ) as d
      order by d.message_id collate "C"
      on conflict on constraint inbox_message_id_is_unique_per_consumer do nothing
      returning i.seq, i.message_id, i.status
    )
    select a.*, i.seq, i.status as stored_as
    from arrivals a left join inserted i on i.message_id = a.message_id and a.first
    order by a.ordinal
  loop
    bytes := bytes + arrival.size;
    if arrival.seq is null then
      twins := twins || arrival.ordinal;
      continue;
    end if;
    ordinal := arrival.ordinal;
    outcome := 'inserted';
    seq := arrival.seq;
    status := arrival.stored_as;
    attempt := case when arrival.hold then 3 else 1 end;
    dead_reason := arrival.dead_reason;
    error := arrival.error;
    key := case when by_key then arrival.key end;
    failed := arrival.failed;
    message := case when status = 'done' then row(
      arrival.seq, 1, settings.name, arrival.message_id, arrival.original_id, arrival.type, arrival.key,
      arrival.schema_version, arrival.body, arrival.content_type, arrival.content_encoding,
      coalesce(arrival.headers, '{}'), arrival.exchange, arrival.routing_key, arrival.correlation_id,
      arrival.causation_id, arrival.reply_to, arrival.app_id, arrival.priority, arrival.occurred_at,
      arrival.traceparent, arrival.tracestate, clock_timestamp()
    )::waybill.inbox_message end;
    return next;
  end loop;

  if bytes <> octet_length(bodies) then
    raise exception 'the sizes of the messages say % bytes, the bodies are %', bytes, octet_length(bodies)
      using errcode = '22023';
  end if;

  -- A second statement, because a winner that committed meanwhile is invisible to the first.
  attempt := null;
  key := null;
  failed := null;
  message := null;
  for arrival in
    select r.*, sha256(r.body) as body_hash
    from waybill.arrivals(messages, bodies) as r
    where cardinality(twins) > 0 and r.ordinal = any (twins) order by r.message_id collate "C", r.ordinal
  loop
    select i.seq, i.status, i.body_hash into existing from waybill.inbox i
    where i.consumer = settings.name and i.message_id = arrival.message_id;
    if not found then
      raise exception 'a row that stood in the way was removed meanwhile' using errcode = '40001';
    end if;
    ordinal := arrival.ordinal;
    outcome := 'duplicate';
    seq := existing.seq;
    status := existing.status;
    dead_reason := null;
    error := null;
    if existing.body_hash <> arrival.body_hash and arrival.dead_reason is distinct from 'broker' then
      outcome := 'conflict';
      dead_reason := 'conflict';
      error := format('another body came under this id before: row %s', existing.seq);
      conflict_id := 'conflict:' || encode(sha256(convert_to(arrival.message_id, 'UTF8') || '\x00' || arrival.body), 'hex');
      insert into waybill.inbox as i (
        consumer, message_id, original_id, type, key, schema_version, body, content_type, content_encoding, headers,
        exchange, routing_key, correlation_id, causation_id, reply_to, app_id, priority, occurred_at, traceparent,
        tracestate, body_hash, status, last_error, dead_reason, processed_at
      ) values (
        settings.name, conflict_id, arrival.message_id, arrival.type, arrival.key, arrival.schema_version, arrival.body,
        arrival.content_type, arrival.content_encoding, coalesce(arrival.headers, '{}'), arrival.exchange,
        arrival.routing_key, arrival.correlation_id, arrival.causation_id, arrival.reply_to, arrival.app_id,
        arrival.priority, arrival.occurred_at, arrival.traceparent, arrival.tracestate, arrival.body_hash, 'dead',
        error, dead_reason, clock_timestamp()
      )
      on conflict on constraint inbox_message_id_is_unique_per_consumer do nothing
      returning i.seq into seq;
      seq := coalesce(seq, (
        select i.seq from waybill.inbox i where i.consumer = settings.name and i.message_id = conflict_id));
      status := 'dead';
    end if;
    return next;
  end loop;

  -- A row was stored as blocked behind one of the same batch that turned out to be a duplicate. Not without the lock.
  if by_key and cardinality(twins) > 0 then
    perform waybill.release_key(settings, k.key) from (
      select distinct m.key from json_to_recordset(messages) as m (key text)
      where m.key is not null and m.key <> all (busy)
    ) as k;
  end if;
end
$function$;

CREATE OR REPLACE FUNCTION waybill.take_rows(settings waybill.consumer, seqs bigint[], lease interval)
 RETURNS SETOF waybill.claimed_message
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'waybill', 'pg_temp'
 SET enable_seqscan TO 'off'
 SET plan_cache_mode TO 'force_generic_plan'
AS $function$
#variable_conflict use_column
begin
  return query
  with taken as (
    update waybill.inbox i
    set status = 'running', claim_token = t.token, lease_until = clock_timestamp() + take_rows.lease, next_attempt_at = null,
      locked_by = left(coalesce(nullif(current_setting('application_name'), ''), session_user), 200)
        || ' (pid ' || pg_backend_pid() || ')'
    from (select gen_random_uuid() as token offset 0) t
    where i.seq = any (take_rows.seqs)
    returning i.*
  )
  select
    c.seq, c.claim_token, c.failures + c.abandoned + 1, c.lease_until, c.consumer, c.message_id, c.original_id, c.type,
    c.key, c.schema_version, c.body, c.content_type, c.content_encoding, c.headers, c.exchange, c.routing_key,
    c.correlation_id, c.causation_id, c.reply_to, c.app_id, c.priority, c.occurred_at, c.traceparent, c.tracestate,
    c.received_at
  from taken c order by c.seq;
end
$function$;

create table waybill.outbox_history_default partition of waybill.outbox_history default;

alter sequence waybill.outbox_hold_no owned by waybill.outbox.hold_no;

CREATE INDEX action_log_target ON waybill.action_log USING btree (target, seq);

CREATE INDEX consumer_queue ON waybill.consumer USING btree (queue);

CREATE INDEX idempotency_first_at ON waybill.idempotency USING btree (first_at);

CREATE INDEX inbox_attempt_abandoned ON waybill.inbox_attempt USING btree (at) WHERE (verdict = 'abandoned'::text);

CREATE INDEX inbox_blocked ON waybill.inbox USING btree (consumer, key, ((seq + 0))) WHERE (status = 'blocked'::text);

CREATE INDEX inbox_bodies ON waybill.inbox USING btree (consumer, processed_at) WHERE ((body IS NOT NULL) AND (status = ANY (ARRAY['done'::text, 'discarded'::text])));

CREATE INDEX inbox_dead ON waybill.inbox USING btree (consumer, processed_at, seq) WHERE (status = 'dead'::text);

CREATE INDEX inbox_held_since ON waybill.inbox USING btree (consumer, status, received_at) WHERE (status = ANY (ARRAY['waiting'::text, 'blocked'::text]));

CREATE INDEX inbox_holding ON waybill.inbox USING btree (consumer, key, seq) WHERE ((key IS NOT NULL) AND (status = ANY (ARRAY['pending'::text, 'running'::text, 'waiting'::text, 'dead'::text])));

CREATE INDEX inbox_original_id ON waybill.inbox USING btree (original_id) WHERE (original_id IS NOT NULL);

CREATE INDEX inbox_pending ON waybill.inbox USING btree (consumer, ((seq + 0))) WHERE (status = 'pending'::text);

CREATE INDEX inbox_processed ON waybill.inbox USING btree (consumer, processed_at) WHERE (status = ANY (ARRAY['done'::text, 'discarded'::text]));

CREATE INDEX inbox_running ON waybill.inbox USING btree (consumer, lease_until) WHERE (status = 'running'::text);

CREATE INDEX inbox_shunned ON waybill.inbox USING btree (consumer, ((seq + 0))) WHERE ((abandoned >= 2) AND (status = ANY (ARRAY['pending'::text, 'waiting'::text])));

CREATE INDEX inbox_uncopied_order ON waybill.inbox_uncopied USING btree (consumer, died_at, inbox_seq);

CREATE INDEX inbox_waiting ON waybill.inbox USING btree (consumer, next_attempt_at) WHERE (status = 'waiting'::text);

CREATE INDEX outbox_due ON waybill.outbox USING btree (next_attempt_at) WHERE (state = 'scheduled'::text);

CREATE INDEX outbox_history_id ON waybill.outbox_history USING btree (id);

CREATE INDEX outbox_history_key ON waybill.outbox_history USING btree (key, settled_at);

CREATE INDEX outbox_history_settled ON waybill.outbox_history USING brin (settled_at);

CREATE INDEX outbox_key_order ON waybill.outbox USING btree (key, hold_no) WHERE (hold_no IS NOT NULL);

CREATE INDEX outbox_withdrawn ON waybill.outbox USING btree (seq) WHERE (state = ANY (ARRAY['cancelled'::text, 'discarded'::text]));

CREATE TRIGGER inbox_dead_on_arrival AFTER INSERT ON waybill.inbox FOR EACH ROW WHEN ((new.status = 'dead'::text)) EXECUTE FUNCTION waybill.note_death();

CREATE TRIGGER inbox_died AFTER UPDATE OF status ON waybill.inbox FOR EACH ROW WHEN (((new.status = 'dead'::text) AND (old.status <> 'dead'::text))) EXECUTE FUNCTION waybill.note_death();

create view waybill.inbox_backlog as
 SELECT consumer,
    status,
    count(*) AS count,
    min(since) AS oldest_at,
    (clock_timestamp() - min(since)) AS oldest_age,
    COALESCE(sum(size), (0)::bigint) AS bytes
   FROM ( SELECT consumer,
            status,
            received_at AS since,
            octet_length(body) AS size
           FROM waybill.inbox
          WHERE (status = 'pending'::text)
        UNION ALL
         SELECT consumer,
            status,
            received_at,
            octet_length(body) AS octet_length
           FROM waybill.inbox
          WHERE (status = 'running'::text)
        UNION ALL
         SELECT consumer,
            status,
            received_at,
            octet_length(body) AS octet_length
           FROM waybill.inbox
          WHERE (status = 'waiting'::text)
        UNION ALL
         SELECT consumer,
            status,
            received_at,
            octet_length(body) AS octet_length
           FROM waybill.inbox
          WHERE (status = 'blocked'::text)
        UNION ALL
         SELECT consumer,
            status,
            processed_at,
            octet_length(body) AS octet_length
           FROM waybill.inbox
          WHERE (status = 'dead'::text)) b
  GROUP BY consumer, status;

create view waybill.outbox_backlog as
 SELECT state,
    type,
    count(*) AS count,
    min(created_at) AS oldest_at,
    (clock_timestamp() - min(created_at)) AS oldest_age,
    sum(COALESCE(octet_length(payload_bytes), octet_length((payload)::text), 0)) AS bytes
   FROM waybill.outbox
  GROUP BY state, type;

create publication waybill_outbox for table waybill.outbox with (publish = 'insert');

comment on schema waybill is 'Waybill: transactional outbox relayed to RabbitMQ.';

comment on table waybill.action_log is 'What operators changed: one row for each row that was changed. Written by the functions, in the same transaction; nothing removes rows.';

comment on column waybill.action_log.seq is 'Position in the log.';

comment on column waybill.action_log.at is 'When it was done.';

comment on column waybill.action_log.actor is 'The role that had logged in (session_user), and in brackets who that was by the word of the program: the user of the operating system and the host, or WAYBILL_OPERATOR.';

comment on column waybill.action_log.action is 'outbox.retry, outbox.discard, outbox.replay; inbox.retry and the like; consumer.pause and the like; redact; relay.adopt or relay.drop.';

comment on column waybill.action_log.target is 'The id of the message, or the name of the consumer or of the relay.';

comment on column waybill.action_log.reason is 'Why, in the operator''s words.';

comment on column waybill.action_log.details is 'What the row was before: state, type, attempts and error. Never the body.';

comment on index waybill.action_log_target is 'What was done to one message, in order.';

comment on type waybill.claimed_message is 'One message as a worker claims it. Attributes are only ever added, at the end. The body as JSON: waybill.payload(message).';

comment on column waybill.claimed_message.seq is 'The row of the inbox: the first argument of inbox_complete and its like.';

comment on column waybill.claimed_message.claim_token is 'Proof of the claim: their second argument.';

comment on column waybill.claimed_message.attempt is 'Number of this attempt, from 1.';

comment on column waybill.claimed_message.lease_until is 'From then on another worker may claim the row.';

comment on column waybill.claimed_message.consumer is 'As in the inbox; so are those below.';

comment on table waybill.consumer is 'The consumers: one row each, written from the configuration when the program starts. A consumer is the scope in which a message id counts once.';

comment on column waybill.consumer.name is 'Name in the configuration.';

comment on column waybill.consumer.owner is 'Whom to ask.';

comment on column waybill.consumer.queue is 'Queue that it receives from.';

comment on column waybill.consumer.identify is 'How the message id is found: message-id, cloudevents, header:NAME, hash or a template.';

comment on column waybill.consumer.accept is 'Types and versions that are accepted; null: all.';

comment on column waybill.consumer.handler is 'store: the application claims the rows. sql: a function is called in the transaction that writes the row. http: a request to the application.';

comment on column waybill.consumer.function is 'Function of an sql handler, with its schema.';

comment on column waybill.consumer.ordering is 'none; or key: rows of a key are processed one after the other.';

comment on column waybill.consumer.on_dead is 'With ordering key: a dead row blocks its key, or is skipped.';

comment on column waybill.consumer.retry_delays is 'Least time to wait after the first failure, the second, and so on; the last one counts for all that follow. Up to twice as long is waited.';

comment on column waybill.consumer.max_attempts is 'With this many failures a row is dead.';

comment on column waybill.consumer.max_age is 'A failure of a row that was received (or retried by an operator) longer ago is its last.';

comment on column waybill.consumer.not_yet_for is 'A row whose data is still not there after this time is dead.';

comment on column waybill.consumer.max_abandoned is 'With this many expired leases a row is dead: suspect.';

comment on column waybill.consumer.retain_ids is 'How long a processed row stays: the time in which a duplicate is recognised.';

comment on column waybill.consumer.retain_bodies is 'How long the body of a processed row stays; 0: it goes at once.';

comment on column waybill.consumer.retain_dead is 'How long a dead row stays.';

comment on column waybill.consumer.paused_at is 'Since when that is so; null: neither an operator nor a breaker has said anything.';

comment on column waybill.consumer.paused_by is 'operator: nothing is handed out until consumer_resume. breaker: a program says that its handler is broken; it pauses and probes, and nobody else is stopped.';

comment on column waybill.consumer.paused_reason is 'Why.';

comment on column waybill.consumer.copied_died_at is 'Not used any more: see inbox_uncopied.';

comment on column waybill.consumer.copied_seq is 'Not used any more.';

comment on column waybill.consumer.created_at is 'When the consumer was seen first.';

comment on column waybill.consumer.registered_at is 'When a program wrote this row last.';

comment on column waybill.consumer.renaming_to is 'The name that its rows are being given; null: none. Until that is finished nothing is received or handed out under either name.';

comment on column waybill.consumer.paused_until is 'What a breaker says counts until then; null: until consumer_resume.';

comment on table waybill.consumer_grant is 'Which roles may claim rows of which consumers; written by grant_consumer and revoke_consumer.';

comment on column waybill.consumer_grant.consumer is 'Name of the consumer; it need not be registered yet.';

comment on column waybill.consumer_grant.role_name is 'The role; its members may claim too.';

comment on column waybill.consumer_grant.granted_at is 'When.';

comment on column waybill.consumer_grant.granted_by is 'The role that had logged in.';

comment on index waybill.consumer_queue is 'The consumers of a queue: a renamed one is recognised by it.';

comment on table waybill.freshness is 'The newest version that was seen: written by newer.';

comment on column waybill.freshness.scope is 'Name of the projection or of the consumer.';

comment on column waybill.freshness.key is 'The entity.';

comment on column waybill.freshness.version is 'Its newest version.';

comment on column waybill.freshness.at is 'When that was seen.';

comment on table waybill.idempotency is 'What was done already: written by first_time.';

comment on column waybill.idempotency.scope is 'Name of what is done once, such as charge-card.';

comment on column waybill.idempotency.key is 'For what it is done once, such as the number of an order.';

comment on column waybill.idempotency.first_at is 'When.';

comment on column waybill.idempotency.result is 'What came of it, if the caller said so.';

comment on index waybill.idempotency_first_at is 'Rows whose retention runs.';

comment on table waybill.inbox is 'Inbound messages: one row for each consumer and message id, from its arrival until its id need not be known any more.';

comment on column waybill.inbox.seq is 'Position, in the order of delivery to one receiver.';

comment on column waybill.inbox.consumer is 'The consumer that received it.';

comment on column waybill.inbox.message_id is 'What makes a message the same: once per consumer. A synthetic one where the message has none, or the id is taken by another body.';

comment on column waybill.inbox.original_id is 'The id that came with the message, where message_id is another one.';

comment on column waybill.inbox.type is 'Type of the event.';

comment on column waybill.inbox.key is 'Key of the entity: the unit of ordering.';

comment on column waybill.inbox.schema_version is 'Version of the schema of the body.';

comment on column waybill.inbox.body is 'The body as it was received, byte for byte. Null: redacted, or its retention is over.';

comment on column waybill.inbox.content_type is 'AMQP content type.';

comment on column waybill.inbox.content_encoding is 'AMQP content encoding; the body is kept encoded.';

comment on column waybill.inbox.headers is 'AMQP headers.';

comment on column waybill.inbox.exchange is 'Exchange it was published to.';

comment on column waybill.inbox.routing_key is 'Routing key it was published with.';

comment on column waybill.inbox.correlation_id is 'AMQP correlation id.';

comment on column waybill.inbox.causation_id is 'Id of the message that caused this one.';

comment on column waybill.inbox.reply_to is 'AMQP reply-to.';

comment on column waybill.inbox.app_id is 'AMQP app id.';

comment on column waybill.inbox.priority is 'AMQP priority.';

comment on column waybill.inbox.occurred_at is 'AMQP timestamp: business time of the event, by the sender''s clock.';

comment on column waybill.inbox.traceparent is 'W3C trace context.';

comment on column waybill.inbox.tracestate is 'W3C trace state.';

comment on column waybill.inbox.body_hash is 'SHA-256 of the body: another body under the same id is a conflict. Null once it is redacted.';

comment on column waybill.inbox.status is 'pending (to be claimed); running (claimed); waiting (for next_attempt_at); blocked (behind an earlier row of its key); done; dead; discarded.';

comment on column waybill.inbox.failures is 'Failed attempts since it was received or retried by an operator.';

comment on column waybill.inbox.abandoned is 'Attempts whose lease expired, since then.';

comment on column waybill.inbox.next_attempt_at is 'When a waiting row is due.';

comment on column waybill.inbox.lease_until is 'Until when a running row belongs to its worker.';

comment on column waybill.inbox.claim_token is 'Proof of that claim.';

comment on column waybill.inbox.locked_by is 'Who claimed it.';

comment on column waybill.inbox.last_error is 'Error of the last attempt that did not succeed.';

comment on column waybill.inbox.dead_reason is 'Why a row is dead: never, attempts, age, not-yet, suspect, conflict, malformed, no-id, not-accepted, broker and such words.';

comment on column waybill.inbox.result is 'What the handler answered, cut.';

comment on column waybill.inbox.raw_properties is 'The properties of a message that cannot be text columns, as bytes.';

comment on column waybill.inbox.received_at is 'When the row was written.';

comment on column waybill.inbox.processed_at is 'When it became done, dead or discarded.';

comment on column waybill.inbox.redacted_at is 'When its content was removed.';

comment on table waybill.inbox_attempt is 'Every attempt at a message that failed or was abandoned.';

comment on column waybill.inbox_attempt.inbox_seq is 'The row of the inbox.';

comment on column waybill.inbox_attempt.number is 'From 1, in order; an operator''s retry does not start anew.';

comment on column waybill.inbox_attempt.at is 'When the attempt ended.';

comment on column waybill.inbox_attempt.verdict is 'retry; not-yet (its data never came); never; broken (the handler, not the message); abandoned (the lease expired); refunded (broken, and given back).';

comment on column waybill.inbox_attempt.error is 'The error.';

comment on column waybill.inbox_attempt.worker is 'Who had claimed the row.';

comment on column waybill.inbox_attempt.given_back_by is 'Which call of inbox_give_back has given it back.';

comment on index waybill.inbox_attempt_abandoned is 'Abandoned attempts by when they were found, to be counted.';

comment on view waybill.inbox_backlog is 'What is not finished in the inbox, by consumer and status; done and discarded rows are not looked at.';

comment on column waybill.inbox_backlog.consumer is 'The consumer.';

comment on column waybill.inbox_backlog.status is 'pending, running, waiting, blocked or dead.';

comment on column waybill.inbox_backlog.count is 'Number of rows.';

comment on column waybill.inbox_backlog.oldest_at is 'When the oldest one was received; of dead rows, when it died.';

comment on column waybill.inbox_backlog.oldest_age is 'How long ago that is.';

comment on column waybill.inbox_backlog.bytes is 'Bytes of their bodies.';

comment on index waybill.inbox_blocked is 'Followers of a key, in order.';

comment on index waybill.inbox_bodies is 'Bodies whose retention runs.';

comment on index waybill.inbox_dead is 'Dead rows by the time of death.';

comment on index waybill.inbox_held_since is 'The oldest message of a consumer that waits for its next attempt, or behind another one.';

comment on index waybill.inbox_holding is 'Rows that may hold their key.';

comment on type waybill.inbox_message is 'One message as a handler gets it. Attributes are only ever added, at the end. The body as JSON: waybill.payload(message).';

comment on column waybill.inbox_message.seq is 'The row of the inbox.';

comment on column waybill.inbox_message.attempt is 'Number of this attempt, from 1.';

comment on column waybill.inbox_message.consumer is 'As in the inbox; so are those below.';

comment on index waybill.inbox_original_id is 'Conflicts and the like of one message.';

comment on index waybill.inbox_pending is 'Rows to claim, in order.';

comment on index waybill.inbox_processed is 'Rows whose retention runs.';

comment on index waybill.inbox_running is 'Claims by the end of their lease.';

comment on index waybill.inbox_shunned is 'Rows whose workers vanished more than once: claimed one at a time.';

comment on table waybill.inbox_uncopied is 'Dead rows of the inbox whose copy has not gone to the dead-letter exchange yet. A row of it whose message is dead no more is removed when it is looked at.';

comment on column waybill.inbox_uncopied.inbox_seq is 'The row of the inbox.';

comment on column waybill.inbox_uncopied.consumer is 'Its consumer.';

comment on column waybill.inbox_uncopied.died_at is 'Which of its deaths: a row that is retried may die again.';

comment on column waybill.inbox_uncopied.claimed_until is 'Until then a program copies it, or it was put off; -infinity: a program for version 14 or before was shown it. Null: it is to be copied.';

comment on column waybill.inbox_uncopied.refused is 'How often RabbitMQ refused this copy, when it was sent alone.';

comment on index waybill.inbox_uncopied_order is 'Deaths of a consumer, in order.';

comment on index waybill.inbox_waiting is 'Rows by the time they are due.';

comment on table waybill.installation is 'One row: the identity of this installation. Every copy of the database keeps it, so that a copy cannot publish beside the original.';

comment on column waybill.installation.only_row is 'Always true; keeps the table at one row.';

comment on column waybill.installation.id is 'Part of the name of the lock queue on the broker.';

comment on column waybill.installation.created_at is 'When the schema was installed.';

comment on table waybill.migration is 'The migrations that were applied, one row each.';

comment on column waybill.migration.version is 'Number of the migration; the highest one is the version of the schema.';

comment on column waybill.migration.name is 'Name of the migration, as in its file.';

comment on column waybill.migration.oldest_binary is 'Lowest schema version that a program may have been built for and still work on this one.';

comment on column waybill.migration.applied_at is 'When it was applied.';

comment on table waybill.outbox is 'The backlog: a row is here until it is published. Applications insert, in their own transaction; only the relay removes rows.';

comment on column waybill.outbox.seq is 'Position in the table; no promise of order.';

comment on column waybill.outbox.id is 'The AMQP message_id of every copy of the message. May be given (UUID version 7 is welcome).';

comment on column waybill.outbox.type is 'Type of the event, such as order.paid: the AMQP type and the default routing key.';

comment on column waybill.outbox.key is 'Key of the entity, such as an order number: the unit of ordering. Null: unordered.';

comment on column waybill.outbox.schema_version is 'Version of the schema of the payload.';

comment on column waybill.outbox.payload is 'Body as JSON, published byte for byte as written. At most one of payload and payload_bytes.';

comment on column waybill.outbox.payload_bytes is 'Body as bytes. Neither payload nor payload_bytes: an empty body.';

comment on column waybill.outbox.content_type is 'AMQP content type. Null: application/json, or application/octet-stream when the body is payload_bytes.';

comment on column waybill.outbox.content_encoding is 'AMQP content encoding.';

comment on column waybill.outbox.headers is 'AMQP headers: an object of strings, numbers and booleans; reserved names are refused.';

comment on column waybill.outbox.exchange is 'Exchange to publish to. Null: the relay''s default.';

comment on column waybill.outbox.routing_key is 'Routing key. Null: the relay''s default, the type.';

comment on column waybill.outbox.correlation_id is 'AMQP correlation id.';

comment on column waybill.outbox.causation_id is 'Id of the message that caused this one; carried as a header.';

comment on column waybill.outbox.reply_to is 'AMQP reply-to.';

comment on column waybill.outbox.traceparent is 'W3C trace context; carried as a header.';

comment on column waybill.outbox.tracestate is 'W3C trace state; carried as a header.';

comment on column waybill.outbox.priority is 'AMQP priority, 0 to 255.';

comment on column waybill.outbox.expires_at is 'Not published after this time; it goes to the history as expired.';

comment on column waybill.outbox.deliver_at is 'Not published before this time.';

comment on column waybill.outbox.occurred_at is 'Business time of the event: the AMQP timestamp.';

comment on column waybill.outbox.created_at is 'Start of the transaction that wrote the row.';

comment on column waybill.outbox.state is 'ready; scheduled (waits for deliver_at or a retry); parked (cannot be published); blocked (behind a parked row of its key); cancelled; discarded.';

comment on column waybill.outbox.attempts is 'Failed attempts to publish; 0 while ready.';

comment on column waybill.outbox.last_error is 'Why the row is held.';

comment on column waybill.outbox.next_attempt_at is 'When a scheduled row is due.';

comment on column waybill.outbox.hold_no is 'Place of a held row in its key; the lowest goes first. With strict order the row keeps it until it is published.';

comment on view waybill.outbox_backlog is 'What is in the outbox, by state and type. Reads the whole table.';

comment on column waybill.outbox_backlog.state is 'State of the rows.';

comment on column waybill.outbox_backlog.type is 'Type of the events.';

comment on column waybill.outbox_backlog.count is 'Number of rows.';

comment on column waybill.outbox_backlog.oldest_at is 'When the oldest one was written.';

comment on column waybill.outbox_backlog.oldest_age is 'How long ago that is.';

comment on column waybill.outbox_backlog.bytes is 'Bytes of their bodies.';

comment on index waybill.outbox_due is 'Scheduled rows by the time they are due.';

comment on table waybill.outbox_history is 'What left the outbox, and how; one partition for each day (UTC), dropped after the retention.';

comment on column waybill.outbox_history.settled_at is 'When the row left the outbox.';

comment on column waybill.outbox_history.outcome is 'published (confirmed by the broker); accepted (no queue was bound, and the relay is told to take that); cancelled; discarded; expired.';

comment on column waybill.outbox_history.id is 'The message_id. Occurs again if the message is replayed.';

comment on column waybill.outbox_history.seq is 'Position it had in the outbox.';

comment on column waybill.outbox_history.type is 'Type of the event.';

comment on column waybill.outbox_history.key is 'Key of the entity.';

comment on column waybill.outbox_history.schema_version is 'Version of the schema of the payload.';

comment on column waybill.outbox_history.exchange is 'Exchange it was published to.';

comment on column waybill.outbox_history.routing_key is 'Routing key it was published with.';

comment on column waybill.outbox_history.attempts is 'Attempts it took.';

comment on column waybill.outbox_history.created_at is 'When it was written to the outbox.';

comment on column waybill.outbox_history.occurred_at is 'Business time of the event.';

comment on column waybill.outbox_history.published_at is 'When the broker confirmed it; null if it was never published.';

comment on column waybill.outbox_history.size is 'Bytes of the body.';

comment on column waybill.outbox_history.sha256 is 'SHA-256 of the body.';

comment on column waybill.outbox_history.payload is 'Body as JSON; this and the following columns only with history: full.';

comment on column waybill.outbox_history.payload_bytes is 'Body as bytes.';

comment on column waybill.outbox_history.content_type is 'As in the outbox.';

comment on column waybill.outbox_history.content_encoding is 'As in the outbox.';

comment on column waybill.outbox_history.headers is 'As in the outbox.';

comment on column waybill.outbox_history.correlation_id is 'As in the outbox.';

comment on column waybill.outbox_history.causation_id is 'As in the outbox.';

comment on column waybill.outbox_history.reply_to is 'As in the outbox.';

comment on column waybill.outbox_history.traceparent is 'As in the outbox.';

comment on column waybill.outbox_history.tracestate is 'As in the outbox.';

comment on column waybill.outbox_history.priority is 'As in the outbox.';

comment on column waybill.outbox_history.expires_at is 'As in the outbox.';

comment on column waybill.outbox_history.deliver_at is 'As in the outbox.';

comment on table waybill.outbox_history_default is 'Takes the rows of a day that has no partition, so that a missing one never stalls the relay.';

comment on index waybill.outbox_history_id is 'One message by its id.';

comment on index waybill.outbox_history_key is 'The messages of a key, by time.';

comment on index waybill.outbox_history_settled is 'What left the outbox in a span of time; for whoever follows it.';

comment on sequence waybill.outbox_hold_no is 'Numbers for outbox.hold_no.';

comment on index waybill.outbox_key_order is 'The held rows of a key in their order.';

comment on index waybill.outbox_withdrawn is 'Cancelled and discarded rows, which the relay moves to the history.';

comment on table waybill.relay is 'The state of the relay, one row; written by the relay under its epoch.';

comment on column waybill.relay.name is 'Name of the relay in its configuration.';

comment on column waybill.relay.slot is 'Name of its replication slot.';

comment on column waybill.relay.source is 'wal: reads the replication slot. table: polls the table.';

comment on column waybill.relay.epoch is 'Grows by one with each takeover; a settle that carries an older one changes nothing.';

comment on column waybill.relay.holder is 'host:pid of the process that took the epoch last.';

comment on column waybill.relay.holder_since is 'When it took the epoch.';

comment on column waybill.relay.checkpoint_lsn is 'Everything committed before it is settled. Null: a pass over the table is due before the stream.';

comment on column waybill.relay.checkpoint_at is 'When the checkpoint was written last.';

comment on column waybill.relay.system_identifier is 'PostgreSQL cluster that the relay works with.';

comment on column waybill.relay.timeline is 'Timeline of that cluster; another one means a failover.';

comment on column waybill.relay.broker_cluster is 'RabbitMQ cluster that the relay works with.';

comment on column waybill.relay.broker_vhost is 'Virtual host on that cluster.';

comment on column waybill.relay.pass_after_seq is 'A table pass under way has handled the rows up to this one.';

comment on column waybill.relay.pass_upto_seq is 'A table pass under way ends with this row.';

comment on column waybill.relay.insert_then_delete_seen is 'A row was deleted by its own writer before it was published; only the replication slot can see such rows.';

comment on column waybill.relay.created_at is 'When the relay was seen first.';

comment on column waybill.relay.ordering is 'pipelined, or strict: a row that waits holds the rows of its key that came after it.';

comment on constraint inbox_message_id_is_unique_per_consumer on waybill.inbox is 'A message takes effect once per consumer.';

comment on constraint outbox_headers_are_publishable on waybill.outbox is 'At most 256 headers; strings, numbers and booleans only; names of 1 to 255 bytes, none reserved for the broker or for Waybill.';

comment on constraint "outbox_headers_at_most_48_KiB" on waybill.outbox is 'The client library sends at most 64 KiB of headers; the rest is for those that Waybill adds.';

comment on constraint outbox_id_is_unique on waybill.outbox is 'Lets a writer drop its own duplicates while they are pending, by "on conflict (id) do nothing".';

comment on constraint outbox_occurred_at_is_between_1970_and_9999 on waybill.outbox is 'The AMQP timestamp counts seconds from 1970.';

comment on constraint outbox_one_payload on waybill.outbox is 'A body is JSON or bytes, not both; neither is an empty body.';

comment on constraint "outbox_payload_at_most_15_MiB" on waybill.outbox is 'RabbitMQ 4 takes 16 MiB; and a row of hundreds of megabytes could be written, but never be decoded.';

comment on function waybill.adopt_relay(relay text, reason text) is 'Forgets which servers a stopped relay worked with, and its position, so that its next start records the servers anew and reads the table before the stream. False when no such relay is recorded. Written to the action_log.';

comment on function waybill.arrivals(messages json, bodies bytea) is 'A batch of deliveries as rows: the objects of the array, each with its share (size, in bytes) of the bodies.';

comment on function waybill.call_handler(calling text, message waybill.inbox_message, deferred text, OUT verdict text, OUT error text, OUT result text) is 'Calls an sql handler in a subtransaction, its deferred constraints checked, and says done, retry, not-yet (WB001; 55P03: a lock that somebody else has; what is called after it in the transaction waits for locks 20 ms only), never (WB002) or broken (class 42: something that it uses is missing or not allowed). Deadlocks, serialization failures, a cancelled statement and a server in need end the whole transaction. synchronous_commit is as before, and never off.';

comment on function waybill.cancel(id uuid) is 'Withdraws a row that is not due yet: true, and it will never be published. False: too late, or unknown; nothing is changed.';

comment on function waybill.check_claim(max integer, lease interval) is 'Raises 22023 if a claim asks for too much or too little.';

comment on function waybill.check_scope(scope text) is 'WB007 if the scope was granted to roles by grant_consumer, and the caller is none of them, nor the role of the program.';

comment on function waybill.claimed_row(seq bigint, token uuid, OUT settings waybill.consumer, OUT keyed text) is 'Locks a row that the caller has claimed, and the key if its consumer is ordered by key (keyed is null otherwise). Error WB003 if the token is not the current one.';

comment on function waybill.clean_actions(older_than interval, max_rows integer) is 'Removes operators'' acts that were done longer ago than that (at least 30 days), the oldest first, at most max_rows, and none that the age of a retried row is counted from; remaining says how many of the next max_rows are left.';

comment on function waybill.clean_freshness(before timestamp with time zone, from_scope text, from_key text, max_rows integer) is 'Forgets which version was the newest of entities of which newer was told none since before, among the max_rows from from_scope and from_key on; next_scope and next_key are where to go on, null at the end. From then on any version of such an entity is newer, an old event that comes that late too. Error 22023 if before is later than consumers remember ids and retry messages; freshness_limit() gives a time that is safe.';

comment on function waybill.clean_idempotency(older_than interval, max_rows integer) is 'Forgets what first_time was told longer ago than that, at most max_rows; remaining says how many are left, counted up to 100,000.';

comment on function waybill.consumer_break(consumer text, reason text) is 'Notes, for two minutes, that the handler of a consumer is broken, for whoever looks; it stops nobody. False if that is known already, or an operator has paused the consumer.';

comment on function waybill.consumer_for_caller(name text) is 'The registered consumer of that name, if the role that logged in (or that it has set) may claim its rows: it or a role of which it is a member was granted the consumer, or it may change the inbox itself, as the program''s role may. Else error WB007.';

comment on function waybill.consumer_mend(consumer text) is 'Notes that the handler works again; an operator''s pause stays. False if there was nothing to mend.';

comment on function waybill.consumer_pause(consumer text, reason text) is 'From now on no row of the consumer is handed out; what is being handled ends. Answers: paused; or, with nothing changed: already paused, unknown.';

comment on function waybill.consumer_resume(consumer text, reason text) is 'Ends an operator''s pause. What a breaker notes ends by itself when the handler answers. Answers: resumed; or, with nothing changed: not paused, unknown.';

comment on function waybill.consumer_settings(name text) is 'The registered consumer of that name, or error WB004; WB005 while it is being renamed.';

comment on function waybill.deferred_constraints() is 'The constraints that are checked at the end of a transaction unless told otherwise, as SET CONSTRAINTS takes them.';

comment on function waybill.discard(id uuid, reason text) is 'Gives a parked, blocked or scheduled row up: it will never be published, and the relay moves it to the history. With strict order the rows that it held go on. Answers: discarded; or, with nothing changed: not held: ready (or cancelled, discarded), already published (or another outcome of the history), unknown. What it changes is written to the action_log.';

comment on function waybill.drop_relay(relay text, reason text) is 'Deletes the record of a stopped relay; its slot is dropped by whoever calls it, rows of the outbox stay. False when no such relay is recorded. Written to the action_log.';

comment on function waybill.end_expired_leases(settings waybill.consumer) is 'Counts claims whose lease is over as abandoned: the row is due at once, or dead (suspect) when that happened max_abandoned times. At most 100 rows a call; returns how many.';

comment on function waybill.ensure_publication() is 'Creates the publication of inserts into the outbox, named after the schema, if it is missing, and adds the table if that is: created, or exists.';

comment on function waybill.finish_rows(settings waybill.consumer, seqs bigint[], results text[]) is 'Makes running rows done, and says which rows that releases. Each row is named once; the caller has them, and the locks of their keys.';

comment on function waybill.first_result(scope text, key text) is 'The result that the first time was told; null if none, or it never was. Errors: WB007 (the scope was granted to other roles).';

comment on function waybill.first_time(scope text, key text, result text) is 'True once for each scope and key among all committed transactions, within the retention (clean_idempotency). Do the thing in the same transaction if it is true. Waits for a transaction that has said it first: if that one rolls back, this is the first time. Errors: WB007 (the scope was granted to other roles).';

comment on function waybill.forget_consumer(name text, reason text, force boolean) is 'Removes a consumer that is not configured any more, with its rows: it no longer knows what it has applied. At most 50,000 rows a call. Answers: forgotten; more (call again, each time in a transaction of its own); unfinished rows: N (nothing was changed; force removes them too); unknown.';

comment on function waybill.freshness_limit(older_than interval) is 'Until when versions may be forgotten that newer was told: that long before now, or before the oldest message of the inbox that is not finished was received; never less than any consumer remembers ids, and retries a message. Null: there are none.';

comment on function waybill.grant_consumer(consumer text, role text) is 'A role, with its members, may claim and settle messages of the consumer, and use the scope of that name in first_time, first_result and newer, which roles without the grant may not any more. A name that is no consumer''s is a scope alone, or a consumer that is registered later. For the owner of the schema.';

comment on function waybill.handler_call(settings waybill.consumer) is 'The statement that calls the sql handler of a consumer. Error WB006 if there is no such function, or the caller may not execute it: the consumer is broken, not a message.';

comment on function waybill.headers_are_publishable(headers jsonb) is 'True if these can be the headers of a message: an object of at most 256 strings, numbers (within a double) and booleans, names of 1 to 255 bytes, none reserved (CC, BCC, user_id, x-death, x-delay, x-match, x-first-death..., x-last-death..., x-received-from, x-delivery-count, x-stream-offset, X-Waybill-..., in any case). A number out of that range raises 23514.';

comment on function waybill.inbox_age(seq bigint, message_id text, received_at timestamp with time zone) is 'For how long a row has been tried: since it was received, or retried or replayed by an operator.';

comment on function waybill.inbox_apply(consumer text, seqs bigint[], token uuid) is 'Calls the sql handler for rows that were claimed with the token, at most 60, each in a subtransaction, all in this transaction, and settles them. Verdict lost: the claim is, and nothing was done. released is the row of the same key that may go next. Errors as of inbox_receive.';

comment on function waybill.inbox_claim(consumer text, max integer, lease interval) is 'Gives up to max rows of a consumer to the caller, until the lease is over: rows that are due again first, then new ones in order. Each row comes with a claim_token, the proof that the other functions ask for. Call it in a transaction of its own. Expired leases count as abandoned; a row that was abandoned twice comes alone. No rows while an operator has paused the consumer. Errors: WB004 (no such consumer), WB007 (not granted).';

comment on function waybill.inbox_claim_rows(consumer text, seqs bigint[], attempts integer[], lease interval) is 'Claims exactly these rows, as far as each is pending, or waiting and due, at the attempt that stands at the same place in attempts, and nobody else has it: so a timer that is lost, late or doubled does no harm. A row that was abandoned twice is claimed only alone. None while an operator has paused the consumer.';

comment on function waybill.inbox_clean(consumer text, max_rows integer) is 'Removes what the retention of a consumer is over for: processed rows (ids), bodies of processed rows, dead rows; at most max_rows of each, and waits for nobody. A dead row whose id must be remembered for longer is discarded, and its body removed. remaining says how many are left, counted up to 100,000; dead rows that block others are left.';

comment on function waybill.inbox_complete(seq bigint, token uuid, result text) is 'The message is done. Call it in the transaction that has the effect: then the effect is there once. Raises WB003 if the claim is lost, so that the transaction of a worker that was too slow rolls back.';

comment on function waybill.inbox_deaths(consumer text, max_rows integer) is 'For programs of version 14 and before: dead rows that were not copied to the dead-letter exchange yet, in order of their deaths.';

comment on function waybill.inbox_deaths_claim(consumer text, max_rows integer, max_bytes bigint, lease interval) is 'Dead rows whose copy is to go to the dead-letter exchange, for the caller alone until the lease is over: the oldest deaths first, bodies and headers together at most max_bytes, but at least one row. Say afterwards what became of them, by inbox_deaths_done or inbox_deaths_keep. Errors: WB004, WB005.';

comment on function waybill.inbox_deaths_copied(consumer text, died_at timestamp with time zone, seq bigint) is 'For programs of version 14 and before: all deaths that inbox_deaths has shown, up to this one, are copied.';

comment on function waybill.inbox_deaths_done(consumer text, seqs bigint[], died_ats timestamp with time zone[]) is 'These deaths are copied, or nobody wants their copies. Another death of the same row is not meant.';

comment on function waybill.inbox_deaths_keep(consumer text, seqs bigint[], died_ats timestamp with time zone[], delay interval, was_refused boolean) is 'These deaths are still to be copied: at once, or after the delay.';

comment on function waybill.inbox_defer(seq bigint, token uuid, delay interval, error text) is 'What the message needs is not there yet: the row waits, and no attempt is spent; it is dead if that lasts longer than not_yet_for of its consumer. Returns waiting or dead. WB003 if the claim is lost.';

comment on function waybill.inbox_discard(consumer text, message_id text, reason text) is 'Gives a message up for this one consumer: it is not applied, and does not hold its key any more; its id is remembered. Answers: discarded; or, with nothing changed: already applied, already discarded, running, unknown.';

comment on function waybill.inbox_due(consumer text, within interval, max_rows integer) is 'Rows that wait and are due within that time, the earliest first, then pending ones; alone: only to be claimed by itself. None while an operator has paused the consumer. Expired leases are ended by inbox_claim.';

comment on function waybill.inbox_extend(seq bigint, token uuid, lease interval) is 'Prolongs the lease, from now, and returns its new end. Call it in a transaction of its own. WB003 if the claim is lost.';

comment on function waybill.inbox_extend_rows(consumer text, seqs bigint[], token uuid, lease interval) is 'Prolongs the leases of rows that were claimed with the token, from now, and returns how many still are.';

comment on function waybill.inbox_fail(seq bigint, token uuid, error text, retry_in interval, never boolean) is 'The attempt failed: the row waits for retry_in, or by the schedule of its consumer, or is dead after its last attempt, or at once if it can never succeed. Returns waiting or dead. Roll the effect back first, then call it in another transaction. WB003 if the claim is lost.';

comment on function waybill.inbox_give_back(consumer text, seqs bigint[], attempts integer[], call bigint) is 'The handler was broken, not these messages: of each row, so many of its newest attempts with that verdict do not count; it is due at once if it waits, or died, because of them. Returns how many rows. A call that was made before under the same number changes nothing.';

comment on function waybill.inbox_handling(seq bigint, token uuid) is 'This transaction handles that message: what it publishes has the message as its cause, and its correlation and trace, unless told otherwise. WB003 if the claim is lost.';

comment on function waybill.inbox_postpone(consumer text, message_id text, delay interval, reason text) is 'Lets a message wait that long from now before it is tried; its attempts stay as they are. Answers: waiting; or, with nothing changed: already applied, running, blocked, dead, discarded, unknown.';

comment on function waybill.inbox_receive(consumer text, messages json, bodies bytea, apply boolean) is 'Stores a batch of deliveries in the order of the array; bodies are all bodies one after the other, size says how many bytes are whose. For sql handlers also applies them, at most 60, in this transaction, unless an operator has paused the consumer: then they are pending. Says of each delivery, by its place from 1: inserted, duplicate or conflict; the row''s status; what the handler came to; the number of the next attempt and when it is due. All of them may be acknowledged once this is committed. Errors: WB004, WB006 (the handler is missing: nothing is written).';

comment on function waybill.inbox_refund(consumer text, seqs bigint[], since timestamp with time zone) is 'The handler was broken, not these messages: failures since then do not count, and rows that died of them wait again. Returns how many rows.';

comment on function waybill.inbox_release(seq bigint, token uuid, delay interval, error text) is 'Gives a claimed row back, at once or after a delay, as if it had not been claimed: for a worker that stops, or that lost its database in the middle. WB003 if the claim is lost.';

comment on function waybill.inbox_replay(consumer text, message_id text, reason text, force boolean) is 'Has this one consumer handle a message again that it is through with, under its id. What was applied is applied a second time only with force: the effect is doubled unless the handler knows better. Answers: pending, blocked; or, with nothing changed: already applied, running, body is gone, unknown (never received, or longer ago than ids are kept).';

comment on function waybill.inbox_retry(consumer text, message_id text, reason text) is 'Has a message that failed tried again by this one consumer, at once, under its id, its attempts counted anew. Answers: pending (so it is, or was already), blocked (an earlier one of its key goes first); or, with nothing changed: already applied, running, discarded (inbox_replay brings it back), body is gone, unknown.';

comment on function waybill.inbox_settle(consumer text, token uuid, results json) is 'Settles attempts at rows that were claimed with the token: an array of {seq, verdict, error, retry_in, result}; verdicts as of put_back, and done. Verdict lost in the answer: the claim is, and nothing was done; or the row was to be released, and somebody keeps it locked: its lease runs out. Error 55P03 if somebody keeps another row locked for a second: nothing was settled.';

comment on function waybill.inbox_sweep(consumer text, after_key text, max_keys integer) is 'Releases blocked rows whose key nothing holds any more, of up to max_keys keys after that one, at most 500 of them. next_key is where to go on, null at the end.';

comment on function waybill.inbox_wake(consumer text) is 'Wakes workers that listen to waybill_inbox, with the name of the consumer. In a transaction of its own: notifying transactions commit one at a time.';

comment on function waybill.json_of_body(message_id text, body bytea, content_encoding text) is 'A body as JSON, byte for byte as it was sent. Raises WB002 (never: no further attempt can help) with a hint if it is gone, encoded, not UTF-8 or not JSON.';

comment on function waybill.keep_history(days_ahead integer, retention interval) is 'Creates the missing partitions of outbox_history from today to days_ahead, drops those that are wholly older than the retention (at most 10 a call) and trims old rows from the default partition. Waits at most 200 ms for each lock. Returns what it did: created, dropped, trimmed, "later" (a lock was not to be had; call again), "left in default" (over 10,000 rows of that day are in the default partition; they stay there until they are trimmed).';

comment on function waybill.key_lock(consumer text, key text) is 'Number of the advisory transaction lock on one key of a consumer. Several are taken in ascending order, before the statement that reads rows of the key.';

comment on function waybill.lock_claimed_soon(settings waybill.consumer, seq bigint, token uuid) is 'Locks a row that is claimed with the token; null if the claim is lost, or somebody has had the row locked for a second.';

comment on function waybill.lock_keys(settings waybill.consumer, seqs bigint[]) is 'Takes the locks of the keys of these rows, in order, if the consumer is ordered by key.';

comment on function waybill.lock_keys_soon(settings waybill.consumer, seqs bigint[]) is 'Takes the locks of the keys of these rows, in order, as far as they are to be had within about a second. A row that is the caller''s may be settled without: it holds its key as long as it is not, and what release_key does not release then is left to the sweep.';

comment on function waybill.lock_outbox_row(id uuid) is 'With strict order: takes the lock of the key of a row until the end of the transaction. Inside of retry, discard and cancel.';

comment on function waybill.log_inbox_action(action text, target waybill.inbox, reason text, answer text) is 'Writes an operator''s act to the action_log, with the row as it was before, and wakes whoever waits for rows. Returns the answer.';

comment on function waybill.message_of(i waybill.inbox) is 'A row of the inbox as a handler gets it.';

comment on function waybill.newer(scope text, key text, version bigint) is 'True if this version of the entity is newer than every one that was asked about before, within the retention (clean_freshness); then it is the newest. Apply the event only if it is true, in the same transaction. Errors: WB007 (the scope was granted to other roles).';

comment on function waybill.note_death() is 'Of the inbox: notes that the copy of a death is still to go out.';

comment on function waybill.outbox_key_lock(key text) is 'Number of the advisory transaction lock that an operator''s act on a row of this key takes, and the relay before it lets rows of the key go. One of 1024; keys may share one.';

comment on function waybill.payload(i waybill.inbox) is 'The body as JSON; errors as of json_of_body.';

comment on function waybill.payload(message waybill.claimed_message) is 'The body as JSON; errors as of json_of_body.';

comment on function waybill.payload(message waybill.inbox_message) is 'The body as JSON; errors as of json_of_body.';

comment on function waybill.publication_status(id uuid) is 'Where a message is: pending, scheduled, parked, blocked, cancelled, discarded; or from the history published, accepted, expired. Null: unknown, or longer ago than the history goes back.';

comment on function waybill.publish(type text, payload json, key text, payload_bytes bytea, headers jsonb, id uuid, schema_version integer, content_type text, content_encoding text, exchange text, routing_key text, correlation_id text, causation_id text, reply_to text, traceparent text, tracestate text, priority integer, expires_at timestamp with time zone, deliver_at timestamp with time zone, occurred_at timestamp with time zone) is 'Writes one row to the outbox and returns its id, the message_id. The same as a plain INSERT. The parameters are the columns of the outbox.';

comment on function waybill.publish_many(messages json) is 'Writes one row for each object of the array and returns their ids in the same order. The names are those of publish; null means the default, also for payload; payload_bytes is base64; a payload is kept as written, byte for byte. An unknown name is an error that says where, and nothing is written.';

comment on function waybill.put_back(settings waybill.consumer, seq bigint, verdict text, error text, retry_in interval, OUT status text, OUT attempt integer, OUT next_attempt_at timestamp with time zone, OUT dead_reason text, OUT released bigint) is 'After an attempt that did not succeed: the row waits for its next one, or is dead. Verdicts: retry and broken spend an attempt, not-yet is bounded by age, never is the end, release spends nothing. The caller has the row, and the lock of its key if the consumer is ordered by key.';

comment on function waybill.put_back_rows(settings waybill.consumer, seqs bigint[], verdicts text[], errors text[], retry_ins interval[]) is 'Settles rows after an attempt that did not apply them, each by its own verdict: it waits, is pending again, or is dead. Each row is named once; the caller has them, and the locks of their keys.';

comment on function waybill.redact(key text, id text, reason text) is 'Removes the content of all messages of a key, or of one message id, from the inbox, its attempts, the outbox, the history and the log: bodies, headers, keys, routes, traces, errors, results. Ids stay, so that a duplicate is still recognised; unfinished rows are discarded. Says how many rows of each table; outbox_pending are rows that are about to be published, and were left: call it again once they are out. By key it reads the whole inbox first, and locks nothing meanwhile. Queues, WAL, backups, and what first_time and newer were told are not reached. The log of it has a hash in the place of the key.';

comment on function waybill.redact_count(key text, id text) is 'How many rows of each table redact would change, and changes and locks nothing; outbox_pending are rows that it would leave.';

comment on function waybill.redacted_ids(wanted_key text, wanted_id text) is 'The ids in the outbox and its history of a key, or that id if it is there. Locks nothing.';

comment on function waybill.redacted_seqs(wanted_key text, wanted_id text, above bigint) is 'The rows of the inbox of a key, or of a message id with its conflicts, above a row. By key it reads the whole inbox, and locks nothing.';

comment on function waybill.refuse_half_renamed(name text) is 'Raises WB005 if this is the old or the new name of a consumer that is being renamed.';

comment on function waybill.register_consumers(consumers json, accept_new boolean) is 'Writes all consumers of one configuration; what is left out of an object has its default. Returns created or updated for each. A change of the order blocks or releases the rows that are there. Error WB005 if a new name has the queue of a registered consumer that is not in the array: a rename would forget what was applied; accept_new takes it as another consumer.';

comment on function waybill.release_key(settings waybill.consumer, key text) is 'Makes the first blocked row of the key pending if nothing holds the key any more, and returns it, else null. If somebody else has the lock of the key it does nothing: the sweep will.';

comment on function waybill.release_outbox_key(key text) is 'Lets the first held row of a key go if it only waited for one that is gone. Inside of discard and cancel, under the lock of the key.';

comment on function waybill.rename_begin(old_name text, new_name text) is 'First step of a rename: from its commit on nothing is received or handed out under either name (WB005), so that no copy misses a row that is under the other one. Once begun it is to be finished: rename_wait, rename_rows until there are none, rename_finish, each in a transaction of its own; or taken back by rename_cancel. It may be called again. Errors: WB004; 22023 if the new name is taken.';

comment on function waybill.rename_cancel(old_name text, new_name text) is 'Takes the first step of a rename back, and messages are received again; false if rows have the new name already: then it is to be finished.';

comment on function waybill.rename_consumer(old_name text, new_name text, reason text) is 'Gives a consumer, its rows and its grants another name, so that it still knows what it has applied, all in one transaction; returns the number of rows. Stop the programs that run it first. With millions of rows that takes minutes, in which no consumer can be registered, paused or resumed, nor copies of dead messages be noted; the command "consumer rename" does it in steps. Errors: WB004, or 22023 if the new name has rows.';

comment on function waybill.rename_finish(old_name text, new_name text, reason text, moved bigint) is 'Last step of a rename: the consumer and its grants have the new name, and messages are received again; moved, the number of rows, is for the log. False, with nothing changed: some rows still have the old one.';

comment on function waybill.rename_rows(old_name text, new_name text, after_seq bigint, max_rows integer) is 'Third step of a rename: gives the new name to those of the max_rows rows of the inbox after after_seq that have the old one. next_seq is where to go on, null at the end.';

comment on function waybill.rename_wait(patience interval) is 'Second step of a rename: waits until every transaction has ended that may have begun to write under the old name before the first step. Returns the process ids of those that have not within that time (0: a prepared transaction; a backup is one too): then call it again.';

comment on function waybill.replay(id uuid, reason text, as_new boolean) is 'Publishes a message of the history once more, with the id, type, key, route, headers and body that it had, so that a consumer that had it ignores it; its not-before and not-after times are left out. With as_new the copy has an id of its own, and every consumer takes it for another message. Answers: replayed; replayed as ID; or, with nothing changed: in the outbox: ready (or another state; it goes out from there), not published: discarded (or another outcome), body not kept (relay.history was not full), unknown (or longer ago than the history goes back). What it does is written to the action_log.';

comment on function waybill.retry(id uuid, reason text) is 'Has the relay publish a parked row, or one that waits for its next attempt, at once and with its attempts counted anew; the error stays until it is published. With strict order it keeps its place, and the rows behind it follow. Answers: scheduled; or, with nothing changed: blocked (another row of its key goes first), not due yet (it waits for its deliver_at), not held: ready (or cancelled, discarded), already published (or another outcome of the history), unknown. What it changes is written to the action_log.';

comment on function waybill.revive_row(settings waybill.consumer, seq bigint, due_at timestamp with time zone, fresh boolean) is 'Lets a row be tried again: pending, waiting until due_at, or blocked if its key is held; fresh counts its attempts anew. The caller has the row and the lock of its key.';

comment on function waybill.revoke_consumer(consumer text, role text) is 'Takes that back: true, or false if it was not granted. For the owner of the schema.';

comment on function waybill.row_for_operator(consumer text, message_id text, OUT settings waybill.consumer, OUT target waybill.inbox) is 'Locks the row of a message, and its key if the consumer is ordered by key. All null if there is no such row.';

comment on function waybill.set_handling(message waybill.inbox_message) is 'What this transaction publishes from now on defaults to being caused by the message: causation_id, correlation_id, traceparent, tracestate. A null message ends that.';

comment on function waybill.store_arrivals(settings waybill.consumer, messages json, bodies bytea, applying boolean) is 'Inserts a batch of deliveries, each message id once. Says of each, by its place in the batch from 1: inserted, duplicate, or conflict (another body under that id; kept dead beside the first). With applying, rows that a handler is to be called for are stored as done beforehand, and come with their message.';

comment on function waybill.take_rows(settings waybill.consumer, seqs bigint[], lease interval) is 'Makes rows that the caller has locked its own, under one new token, until the lease is over.';

comment on function waybill.uncopied_deaths(consumer text, max_rows integer) is 'Locks dead rows whose copy is to go out, the oldest deaths first, and removes from the list those that are dead no more, or whose body is gone; not those that died of a broken handler within the last 30 seconds: a breaker may give them back.';
