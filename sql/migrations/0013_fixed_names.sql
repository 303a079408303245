-- oldest-binary: 1
--
-- Functions that call a handler under the search path of their caller look for nothing of their own on it: whoever may
-- create in a schema of that path, as everybody may in public up to PostgreSQL 14, could have code run as the program's
-- role. Programs built for earlier versions of the schema run on it unchanged.

begin;

set local lock_timeout = '5s';
set local search_path = pg_catalog, pg_temp;

create or replace function waybill.key_lock(consumer text, key text) returns bigint
language sql immutable
as $$
  select pg_catalog.hashtextextended('waybill.inbox ' operator(pg_catalog.||) consumer
    operator(pg_catalog.||) pg_catalog.chr(31) operator(pg_catalog.||) key, 0::bigint)
$$;

create or replace function waybill.message_of(i waybill.inbox) returns waybill.inbox_message
language sql stable
as $$
  select row(
    i.seq, i.failures operator(pg_catalog.+) i.abandoned operator(pg_catalog.+) 1, i.consumer, i.message_id,
    i.original_id, i.type, i.key, i.schema_version, i.body, i.content_type, i.content_encoding, i.headers, i.exchange,
    i.routing_key, i.correlation_id, i.causation_id, i.reply_to, i.app_id, i.priority, i.occurred_at, i.traceparent,
    i.tracestate, i.received_at
  )::waybill.inbox_message
$$;

create or replace function waybill.set_handling(message waybill.inbox_message) returns void
language plpgsql
as $$
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
$$;

create or replace function waybill.handler_call(settings waybill.consumer) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
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
$$;

-- Why no SET clause: the handler has the caller's search path, and so it is in force here.
create or replace function waybill.call_handler(
  calling text, message waybill.inbox_message, deferred text, out verdict text, out error text, out result text
)
language plpgsql
as $$
begin
  perform waybill.set_handling(message);
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
        when sqlstate operator(pg_catalog.=) 'WB001' then 'not-yet'
        when sqlstate operator(pg_catalog.=) 'WB002' then 'never'
        when sqlstate operator(pg_catalog.~) '^(42|3F)' then 'broken'
        else 'retry'
      end;
  end;
  if deferred is not null then
    execute pg_catalog.concat('set constraints ', deferred, ' deferred');
  end if;
end
$$;

-- Why no SET clause here and in inbox_receive: it would hide the caller's search path, which is put back for the handler.
create or replace function waybill.inbox_apply(consumer text, seqs bigint[], token uuid)
returns table (
  seq bigint, status text, verdict text, attempt int, next_attempt_at timestamptz, dead_reason text, error text,
  released bigint
)
language plpgsql
as $$
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
begin
  if cardinality(seqs) > most_applied then
    raise exception 'at most % messages are applied in one transaction', most_applied using errcode = '22023';
  end if;
  perform waybill.lock_keys(settings, seqs);
  for seq in select distinct s.seq from unnest(seqs) as s (seq) order by s.seq loop
    select * into claimed from waybill.inbox i
    where i.seq = inbox_apply.seq and i.consumer = settings.name and i.status = 'running' and i.claim_token = token
    for update;
    status := null;
    attempt := null;
    next_attempt_at := null;
    dead_reason := null;
    error := null;
    released := null;
    if not found then
      verdict := 'lost';
      return next;
      continue;
    end if;
    message := waybill.message_of(claimed);
    perform set_config('search_path', path, true);
    select * into called from waybill.call_handler(calling, message, deferred);
    perform pg_catalog.set_config('search_path', fixed, true);
    verdict := called.verdict;
    error := called.error;
    if verdict = 'done' then
      released := waybill.finish_row(settings, claimed.seq, claimed.key, called.result);
      status := 'done';
    else
      select p.status, p.attempt, p.next_attempt_at, p.dead_reason, p.released
      into status, attempt, next_attempt_at, dead_reason, released
      from waybill.put_back(settings, claimed.seq, verdict, error, null) as p;
    end if;
    return next;
  end loop;
  perform set_config('search_path', path, true);
end
$$;

create or replace function waybill.inbox_receive(consumer text, messages json, bodies bytea, apply boolean default true)
returns table (
  ordinal int, outcome text, seq bigint, status text, verdict text, attempt int, next_attempt_at timestamptz,
  dead_reason text, error text
)
language plpgsql
as $$
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
    if verdict <> 'done' then
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
  perform set_config('search_path', path, true);
end
$$;

insert into waybill.migration (version, name, oldest_binary) values (13, 'fixed_names', 1);

commit;
