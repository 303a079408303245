-- oldest-binary: 1
--
-- What the program itself calls for the inbox: register the consumers, store a batch of deliveries and, for sql handlers,
-- apply it in the same transaction, settle attempts, find what is due, remove what is old. They do not work on behalf of
-- their owner: an sql handler must run with the rights and the search path of the role that the program logs in as.

begin;

set local lock_timeout = '5s';
set local search_path = pg_catalog, pg_temp;

-- Consumers -----------------------------------------------------------------------------------------------------------

create function waybill.register_consumers(consumers json, accept_new boolean default false)
returns table (name text, action text)
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
as $$
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
$$;

comment on function waybill.register_consumers(json, boolean) is
  'Writes all consumers of one configuration; what is left out of an object has its default. Returns created or updated for each. A change of the order blocks or releases the rows that are there. Error WB005 if a new name has the queue of a registered consumer that is not in the array: a rename would forget what was applied; accept_new takes it as another consumer.';

create function waybill.consumer_break(consumer text, reason text) returns boolean
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
as $$
begin
  update waybill.consumer c set paused_at = clock_timestamp(), paused_by = 'breaker', paused_reason = left(reason, 4000)
  where c.name = consumer_break.consumer and c.paused_at is null;
  return found;
end
$$;

comment on function waybill.consumer_break(text, text) is
  'Notes that the handler of a consumer is broken; false if it is paused already.';

create function waybill.consumer_mend(consumer text) returns boolean
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
as $$
begin
  update waybill.consumer c set paused_at = null, paused_by = null, paused_reason = null
  where c.name = consumer_mend.consumer and c.paused_by = 'breaker';
  return found;
end
$$;

comment on function waybill.consumer_mend(text) is
  'Notes that the handler works again; an operator''s pause stays. False if there was nothing to mend.';

create function waybill.inbox_wake(consumer text) returns void
language sql
as $$ select pg_catalog.pg_notify('waybill_inbox', consumer) $$;

comment on function waybill.inbox_wake(text) is
  'Wakes workers that listen to waybill_inbox, with the name of the consumer. In a transaction of its own: notifying transactions commit one at a time.';

-- Receiving -----------------------------------------------------------------------------------------------------------

create function waybill.arrivals(messages json, bodies bytea)
returns table (
  ordinal int, message_id text, original_id text, type text, key text, schema_version int, content_type text,
  content_encoding text, headers jsonb, exchange text, routing_key text, correlation_id text, causation_id text,
  reply_to text, app_id text, priority smallint, occurred_at timestamptz, traceparent text, tracestate text,
  dead_reason text, error text, raw_properties text, failed text, hold boolean, size int, body bytea
)
language sql stable
set search_path = pg_catalog, waybill, pg_temp
as $$
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
$$;

comment on function waybill.arrivals(json, bytea) is
  'A batch of deliveries as rows: the objects of the array, each with its share (size, in bytes) of the bodies.';

create function waybill.store_arrivals(settings waybill.consumer, messages json, bodies bytea, applying boolean)
returns table (
  ordinal int, outcome text, seq bigint, status text, attempt int, dead_reason text, error text, key text, failed text,
  message waybill.inbox_message
)
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
  by_key constant boolean := settings.ordering = 'key';
  arrival record;
  existing record;
  twins int[] := '{}';
  conflict_id text;
  bytes bigint := 0;
begin
  if by_key then
    perform pg_advisory_xact_lock(l.lock) from (
      select distinct waybill.key_lock(settings.name, m.key) as lock
      from json_to_recordset(messages) as m (key text) where m.key is not null order by 1
    ) as l;
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
            when by_key and f.key is not null and (f.follows and not applying or exists (
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

  -- A row was stored as blocked behind one of the same batch that turned out to be a duplicate.
  if by_key and cardinality(twins) > 0 then
    perform waybill.release_key(settings, k.key) from (
      select distinct m.key from json_to_recordset(messages) as m (key text) where m.key is not null
    ) as k;
  end if;
end
$$;

comment on function waybill.store_arrivals(waybill.consumer, json, bytea, boolean) is
  'Inserts a batch of deliveries, each message id once. Says of each, by its place in the batch from 1: inserted, duplicate, or conflict (another body under that id; kept dead beside the first). With applying, rows that a handler is to be called for are stored as done beforehand, and come with their message.';

create function waybill.handler_call(settings waybill.consumer) returns text
language plpgsql stable
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

comment on function waybill.handler_call(waybill.consumer) is
  'The statement that calls the sql handler of a consumer. Error WB006 if there is no such function, or the caller may not execute it: the consumer is broken, not a message.';

create function waybill.deferred_constraints() returns text
language sql stable
set search_path = pg_catalog, waybill, pg_temp
as $$
  select string_agg(format('%I.%I', n.nspname, c.conname), ', ')
  from pg_constraint c join pg_namespace n on n.oid = c.connamespace
  where c.condeferred and has_schema_privilege(n.oid, 'usage')
$$;

comment on function waybill.deferred_constraints() is
  'The constraints that are checked at the end of a transaction unless told otherwise, as SET CONSTRAINTS takes them.';

-- Why no SET clause here, nor in those that call it: the handler has the caller's search path.
create function waybill.call_handler(
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
    result := nullif(left(result, 4000), '');
  exception
    when serialization_failure or deadlock_detected or read_only_sql_transaction then
      raise;
    -- Why assert_failure by name: "others" leaves it out. It leaves query_canceled out too, and that is wanted.
    when assert_failure or others then
      -- The server is short of something: no message's fault.
      if sqlstate ~ '^(53|57|58)' then
        raise;
      end if;
      error := sqlstate || ': ' || sqlerrm;
      result := null;
      verdict := case
        when sqlstate = 'WB001' then 'not-yet'
        when sqlstate = 'WB002' then 'never'
        when sqlstate ~ '^(42|3F)' then 'broken'
        else 'retry'
      end;
  end;
  if deferred is not null then
    execute 'set constraints ' || deferred || ' deferred';
  end if;
end
$$;

comment on function waybill.call_handler(text, waybill.inbox_message, text) is
  'Calls an sql handler in a subtransaction, its deferred constraints checked, and says done, retry, not-yet (WB001), never (WB002) or broken (class 42: something that it uses is missing or not allowed). Deadlocks, serialization failures, a cancelled statement and a server in need end the whole transaction.';

create function waybill.inbox_receive(consumer text, messages json, bodies bytea, apply boolean default true)
returns table (
  ordinal int, outcome text, seq bigint, status text, verdict text, attempt int, next_attempt_at timestamptz,
  dead_reason text, error text
)
language plpgsql
as $$
#variable_conflict use_column
declare
  -- Why: over 64 open subtransactions slow every snapshot of the server.
  most_applied constant int := 60;
  settings constant waybill.consumer := waybill.consumer_settings(inbox_receive.consumer);
  applying constant boolean := settings.handler = 'sql' and inbox_receive.apply and settings.paused_at is null;
  calling constant text := case when applying then waybill.handler_call(settings) end;
  deferred constant text := case when applying then waybill.deferred_constraints() end;
  stuck text[] := '{}';
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
      select * into called from waybill.call_handler(calling, stored.message, deferred);
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
end
$$;

comment on function waybill.inbox_receive(text, json, bytea, boolean) is
  'Stores a batch of deliveries in the order of the array; bodies are all bodies one after the other, size says how many bytes are whose. For sql handlers also applies them, at most 60, in this transaction, unless the consumer is paused: then they are pending. Says of each delivery, by its place from 1: inserted, duplicate or conflict; the row''s status; what the handler came to; the number of the next attempt and when it is due. All of them may be acknowledged once this is committed. Errors: WB004, WB006 (the handler is missing: nothing is written).';

-- Rows from the table ---------------------------------------------------------------------------------------------------

create function waybill.inbox_claim_rows(
  consumer text, seqs bigint[], attempts int[] default null, lease interval default '1 minute'
) returns setof waybill.claimed_message
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
as $$
declare
  early constant interval := '100 milliseconds';
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
    where i.seq = any (inbox_claim_rows.seqs) and i.consumer = settings.name
      and (i.status = 'pending' or i.status = 'waiting' and i.next_attempt_at <= clock_timestamp() + early)
      and (attempts is null
        or i.failures + i.abandoned + 1 = attempts[array_position(inbox_claim_rows.seqs, i.seq)])
      and (i.abandoned < 2 or cardinality(inbox_claim_rows.seqs) = 1)
    order by i.seq for update skip locked
  );
  if cardinality(taken) > 0 then
    return query select * from waybill.take_rows(settings, taken, lease);
  end if;
end
$$;

comment on function waybill.inbox_claim_rows(text, bigint[], int[], interval) is
  'Claims exactly these rows, as far as each is pending, or waiting and due, at the attempt that stands at the same place in attempts, and nobody else has it: so a timer that is lost, late or doubled does no harm. A row that was abandoned twice is claimed only alone. None while an operator has paused the consumer.';

create function waybill.lock_keys(settings waybill.consumer, seqs bigint[]) returns void
language sql
set search_path = pg_catalog, waybill, pg_temp
as $$
  select pg_advisory_xact_lock(l.lock) from (
    select distinct waybill.key_lock(settings.name, i.key) as lock
    from waybill.inbox i
    where settings.ordering = 'key' and i.seq = any (lock_keys.seqs) and i.key is not null order by 1
  ) as l
$$;

comment on function waybill.lock_keys(waybill.consumer, bigint[]) is
  'Takes the locks of the keys of these rows, in order, if the consumer is ordered by key.';

create function waybill.finish_row(settings waybill.consumer, seq bigint, key text, result text) returns bigint
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
as $$
begin
  update waybill.inbox i
  set status = 'done', processed_at = clock_timestamp(), result = left(finish_row.result, 4000), last_error = null,
    body = case when settings.retain_bodies > interval '0' then i.body end,
    claim_token = null, lease_until = null, locked_by = null
  where i.seq = finish_row.seq;
  if settings.ordering = 'key' and key is not null then
    return waybill.release_key(settings, key);
  end if;
  return null;
end
$$;

comment on function waybill.finish_row(waybill.consumer, bigint, text, text) is
  'Makes a running row done and returns the row that this releases, if any. The caller has the row and the lock of its key.';

create function waybill.inbox_apply(consumer text, seqs bigint[], token uuid)
returns table (
  seq bigint, status text, verdict text, attempt int, next_attempt_at timestamptz, dead_reason text, error text,
  released bigint
)
language plpgsql
as $$
#variable_conflict use_column
declare
  most_applied constant int := 60;
  settings constant waybill.consumer := waybill.consumer_settings(inbox_apply.consumer);
  calling constant text := waybill.handler_call(settings);
  deferred constant text := waybill.deferred_constraints();
  claimed waybill.inbox;
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
    select * into called from waybill.call_handler(calling, waybill.message_of(claimed), deferred);
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
end
$$;

comment on function waybill.inbox_apply(text, bigint[], uuid) is
  'Calls the sql handler for rows that were claimed with the token, at most 60, each in a subtransaction, all in this transaction, and settles them. Verdict lost: the claim is, and nothing was done. released is the row of the same key that may go next. Errors as of inbox_receive.';

create function waybill.inbox_settle(consumer text, token uuid, results json)
returns table (
  seq bigint, status text, verdict text, attempt int, next_attempt_at timestamptz, dead_reason text, released bigint
)
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
as $$
#variable_conflict use_column
declare
  settings constant waybill.consumer := waybill.consumer_settings(inbox_settle.consumer);
  answer record;
  claimed record;
begin
  perform waybill.lock_keys(settings, array(select (r.value ->> 'seq')::bigint from json_array_elements(results) as r));
  for answer in
    select * from json_to_recordset(results)
      as r (seq bigint, verdict text, error text, retry_in interval, result text) order by r.seq
  loop
    select i.key into claimed from waybill.inbox i
    where i.seq = answer.seq and i.consumer = settings.name and i.status = 'running'
      and i.claim_token = inbox_settle.token for update;
    seq := answer.seq;
    status := null;
    verdict := answer.verdict;
    attempt := null;
    next_attempt_at := null;
    dead_reason := null;
    released := null;
    if not found then
      verdict := 'lost';
    elsif verdict = 'done' then
      released := waybill.finish_row(settings, seq, claimed.key, answer.result);
      status := 'done';
    else
      select p.status, p.attempt, p.next_attempt_at, p.dead_reason, p.released
      into status, attempt, next_attempt_at, dead_reason, released
      from waybill.put_back(settings, answer.seq, answer.verdict, answer.error, answer.retry_in) as p;
    end if;
    return next;
  end loop;
end
$$;

comment on function waybill.inbox_settle(text, uuid, json) is
  'Settles attempts at rows that were claimed with the token: an array of {seq, verdict, error, retry_in, result}; verdicts as of put_back, and done. Verdict lost in the answer: the claim is, and nothing was done.';

create function waybill.revive_row(settings waybill.consumer, seq bigint, due_at timestamptz, fresh boolean) returns text
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
set enable_seqscan = off
as $$
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
$$;

comment on function waybill.revive_row(waybill.consumer, bigint, timestamptz, boolean) is
  'Lets a row be tried again: pending, waiting until due_at, or blocked if its key is held; fresh counts its attempts anew. The caller has the row and the lock of its key.';

create function waybill.inbox_refund(consumer text, seqs bigint[], since timestamptz) returns int
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
as $$
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
$$;

comment on function waybill.inbox_refund(text, bigint[], timestamptz) is
  'The handler was broken, not these messages: failures since then do not count, and rows that died of them wait again. Returns how many rows.';

create function waybill.inbox_due(consumer text, within interval default '0', max_rows int default 500)
returns table (seq bigint, attempt int, status text, next_attempt_at timestamptz, alone boolean)
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
set enable_seqscan = off
as $$
#variable_conflict use_column
begin
  if exists (select from waybill.consumer c where c.name = inbox_due.consumer and c.paused_by = 'operator') then
    return;
  end if;
  return query
  select d.seq, d.failures + d.abandoned + 1, d.status, d.next_attempt_at, d.abandoned >= 2
  from (
    (select i.* from waybill.inbox i
     where i.consumer = inbox_due.consumer and i.status = 'waiting'
       and i.next_attempt_at <= clock_timestamp() + inbox_due.within
     order by i.next_attempt_at limit inbox_due.max_rows)
    union all
    (select i.* from waybill.inbox i
     where i.consumer = inbox_due.consumer and i.status = 'pending'
     order by i.seq + 0 limit inbox_due.max_rows)
  ) as d
  limit inbox_due.max_rows;
end
$$;

comment on function waybill.inbox_due(text, interval, int) is
  'Rows that wait and are due within that time, the earliest first, then pending ones; alone: only to be claimed by itself. None while an operator has paused the consumer. Expired leases are ended by inbox_claim.';

create function waybill.inbox_sweep(consumer text, after_key text default null, max_keys int default 500)
returns table (released int, next_key text)
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
  settings constant waybill.consumer := waybill.consumer_settings(inbox_sweep.consumer);
begin
  released := 0;
  next_key := after_key;
  for n in 1..max_keys loop
    select i.key into next_key from waybill.inbox i
    where i.consumer = settings.name and i.status = 'blocked' and (next_key is null or i.key > next_key)
    order by i.consumer, i.key limit 1;
    exit when next_key is null;
    -- A key that somebody has the lock of is being seen to.
    if pg_try_advisory_xact_lock(waybill.key_lock(settings.name, next_key))
      and waybill.release_key(settings, next_key) is not null
    then
      released := released + 1;
    end if;
  end loop;
  return next;
end
$$;

comment on function waybill.inbox_sweep(text, text, int) is
  'Releases blocked rows whose key nothing holds any more, of up to max_keys keys after that one. next_key is where to go on, null at the end.';

-- Dead letters ----------------------------------------------------------------------------------------------------------

create function waybill.inbox_deaths(consumer text, max_rows int default 100) returns setof waybill.inbox
language sql stable
set search_path = pg_catalog, waybill, pg_temp
as $$
  select i.* from waybill.inbox i join waybill.consumer c on c.name = i.consumer
  where i.consumer = inbox_deaths.consumer and i.status = 'dead'
    and (i.processed_at, i.seq) > (c.copied_died_at, c.copied_seq)
  order by i.consumer, i.processed_at, i.seq limit inbox_deaths.max_rows
$$;

comment on function waybill.inbox_deaths(text, int) is
  'Dead rows that were not copied to the dead-letter exchange yet, in order of their deaths.';

create function waybill.inbox_deaths_copied(consumer text, died_at timestamptz, seq bigint) returns void
language sql
set search_path = pg_catalog, waybill, pg_temp
as $$
  update waybill.consumer c set copied_died_at = died_at, copied_seq = inbox_deaths_copied.seq
  where c.name = inbox_deaths_copied.consumer
    and (c.copied_died_at, c.copied_seq) < (died_at, inbox_deaths_copied.seq)
$$;

comment on function waybill.inbox_deaths_copied(text, timestamptz, bigint) is
  'All deaths up to this one (processed_at and seq of the row) are copied.';

-- Retention -------------------------------------------------------------------------------------------------------------

create function waybill.inbox_clean(consumer text, max_rows int default 5000)
returns table (what text, removed bigint, remaining bigint)
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
  most_counted constant int := 100000;
  settings constant waybill.consumer := waybill.consumer_settings(inbox_clean.consumer);
  moment constant timestamptz := clock_timestamp();
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

  -- A dead row that holds others stays, however old it is: somebody has to decide.
  what := 'dead';
  delete from waybill.inbox where seq = any (array(
    select i.seq from waybill.inbox i
    where i.consumer = settings.name and i.status = 'dead' and i.processed_at < moment - settings.retain_dead
      and not (settings.ordering = 'key' and settings.on_dead = 'block' and i.key is not null and exists (
        select from waybill.inbox b where b.consumer = settings.name and b.key = i.key and b.status = 'blocked' offset 0))
    order by i.processed_at limit max_rows for update skip locked
  ));
  get diagnostics removed = row_count;
  select count(*) into remaining from (
    select from waybill.inbox i
    where i.consumer = settings.name and i.status = 'dead' and i.processed_at < moment - settings.retain_dead
    limit most_counted
  ) as left_over;
  return next;
end
$$;

comment on function waybill.inbox_clean(text, int) is
  'Removes what the retention of a consumer is over for: processed rows (ids), bodies of processed rows, dead rows; at most max_rows of each. remaining says how many are left, counted up to 100,000; dead rows that block others are left.';

create function waybill.clean_idempotency(older_than interval default '30 days', max_rows int default 10000)
returns table (removed bigint, remaining bigint)
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
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
$$;

comment on function waybill.clean_idempotency(interval, int) is
  'Forgets what first_time was told longer ago than that, at most max_rows; remaining says how many are left, counted up to 100,000.';

-- End -----------------------------------------------------------------------------------------------------------------

revoke all on all functions in schema waybill from public;

insert into waybill.migration (version, name, oldest_binary) values (5, 'inbox_receiver', 1);

commit;
