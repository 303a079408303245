-- oldest-binary: 1
--
-- What looks at, or writes, very many rows of the inbox does it in bounded steps: the sweep of blocked keys, the rename of
-- a consumer, the removal of a person's data. Programs built for earlier versions of the schema run on it unchanged.

begin;

set local lock_timeout = '5s';
set local search_path = pg_catalog, pg_temp;

-- The sweep -------------------------------------------------------------------------------------------------------------

create or replace function waybill.inbox_sweep(consumer text, after_key text default null, max_keys int default 500)
returns table (released int, next_key text)
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
set enable_seqscan = off
as $$
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
$$;

comment on function waybill.inbox_sweep(text, text, int) is
  'Releases blocked rows whose key nothing holds any more, of up to max_keys keys after that one, at most 500 of them. next_key is where to go on, null at the end.';

-- Renaming a consumer ---------------------------------------------------------------------------------------------------

alter table waybill.consumer add column renaming_to text,
  add constraint consumer_renaming_to_is_1_to_255_bytes check (octet_length(renaming_to) between 1 and 255);

comment on column waybill.consumer.renaming_to is
  'The name that its rows are being given; null: none. Until that is finished nothing is received or handed out under either name.';

create function waybill.refuse_half_renamed(name text) returns void
language plpgsql stable
set search_path = pg_catalog, waybill, pg_temp
as $$
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
$$;

comment on function waybill.refuse_half_renamed(text) is
  'Raises WB005 if this is the old or the new name of a consumer that is being renamed.';

create or replace function waybill.consumer_settings(name text) returns waybill.consumer
language plpgsql stable
set search_path = pg_catalog, waybill, pg_temp
as $$
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
$$;

comment on function waybill.consumer_settings(text) is
  'The registered consumer of that name, or error WB004; WB005 while it is being renamed.';

create or replace function waybill.row_for_operator(
  consumer text, message_id text, out settings waybill.consumer, out target waybill.inbox
)
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
as $$
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
$$;

create or replace function waybill.forget_consumer(name text, reason text default null, force boolean default false) returns text
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
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
  delete from waybill.consumer_grant g where g.consumer = forget_consumer.name;
  delete from waybill.consumer c where c.name = forget_consumer.name;
  if not found then
    return 'unknown';
  end if;
  insert into waybill.action_log (action, target, reason, details)
  values ('consumer.forget', name, forget_consumer.reason, jsonb_build_object('unfinished', unfinished));
  return 'forgotten';
end
$$;

create or replace function waybill.register_consumers(consumers json, accept_new boolean default false)
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
$$;

create or replace function waybill.rename_consumer(old_name text, new_name text, reason text default null) returns bigint
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
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
$$;

comment on function waybill.rename_consumer(text, text, text) is
  'Gives a consumer, its rows and its grants another name, so that it still knows what it has applied, all in one transaction; returns the number of rows. Stop the programs that run it first. With millions of rows that takes minutes, in which no consumer can be registered, paused or resumed, nor copies of dead messages be noted; the command "consumer rename" does it in steps. Errors: WB004, or 22023 if the new name has rows.';

create function waybill.rename_begin(old_name text, new_name text) returns void
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
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
$$;

comment on function waybill.rename_begin(text, text) is
  'First step of a rename: from its commit on nothing is received or handed out under either name (WB005), so that no copy misses a row that is under the other one. Once begun it is to be finished: rename_wait, rename_rows until there are none, rename_finish, each in a transaction of its own; or taken back by rename_cancel. It may be called again. Errors: WB004; 22023 if the new name is taken.';

create function waybill.rename_wait(patience interval default '10 seconds') returns int[]
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
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
$$;

comment on function waybill.rename_wait(interval) is
  'Second step of a rename: waits until every transaction has ended that may have begun to write under the old name before the first step. Returns the process ids of those that have not within that time (0: a prepared transaction; a backup is one too): then call it again.';

create function waybill.rename_cancel(old_name text, new_name text) returns boolean
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
begin
  update waybill.consumer c set renaming_to = null
  where c.name = old_name and c.renaming_to = new_name
    and not exists (select from waybill.inbox i where i.consumer = new_name);
  return found;
end
$$;

comment on function waybill.rename_cancel(text, text) is
  'Takes the first step of a rename back, and messages are received again; false if rows have the new name already: then it is to be finished.';

create function waybill.rename_rows(
  old_name text, new_name text, after_seq bigint default 0, max_rows int default 20000
) returns table (moved bigint, next_seq bigint)
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
set enable_seqscan = off
as $$
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
$$;

comment on function waybill.rename_rows(text, text, bigint, int) is
  'Third step of a rename: gives the new name to those of the max_rows rows of the inbox after after_seq that have the old one. next_seq is where to go on, null at the end.';

create function waybill.rename_finish(
  old_name text, new_name text, reason text default null, moved bigint default null
) returns boolean
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
begin
  perform from waybill.consumer c where c.name = old_name and c.renaming_to = new_name for update;
  if not found then
    raise exception 'consumer % is not being renamed to %', to_json(old_name), to_json(new_name) using errcode = '55000';
  elsif exists (select from waybill.inbox i where i.consumer = old_name) then
    return false;
  end if;
  update waybill.consumer c set name = new_name, renaming_to = null where c.name = old_name;
  update waybill.consumer_grant g set consumer = new_name where g.consumer = old_name
    and not exists (
      select from waybill.consumer_grant o where o.consumer = new_name and o.role_name = g.role_name);
  delete from waybill.consumer_grant g where g.consumer = old_name;
  insert into waybill.action_log (action, target, reason, details)
  values ('consumer.rename', new_name, rename_finish.reason,
    jsonb_strip_nulls(jsonb_build_object('from', old_name, 'rows', moved)));
  return true;
end
$$;

comment on function waybill.rename_finish(text, text, text, bigint) is
  'Last step of a rename: the consumer and its grants have the new name, and messages are received again; moved, the number of rows, is for the log. False, with nothing changed: some rows still have the old one.';

-- Personal data ---------------------------------------------------------------------------------------------------------

create function waybill.redacted_seqs(wanted_key text, wanted_id text, above bigint default 0) returns bigint[]
language plpgsql stable
set search_path = pg_catalog, waybill, pg_temp
as $$
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
$$;

comment on function waybill.redacted_seqs(text, text, bigint) is
  'The rows of the inbox of a key, or of a message id with its conflicts, above a row. By key it reads the whole inbox, and locks nothing.';

create function waybill.redacted_ids(wanted_key text, wanted_id text) returns uuid[]
language plpgsql stable
set search_path = pg_catalog, waybill, pg_temp
as $$
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
$$;

comment on function waybill.redacted_ids(text, text) is
  'The ids in the outbox and its history of a key, or that id if it is there. Locks nothing.';

create function waybill.redact_count(key text default null, id text default null) returns table (place text, rows bigint)
language plpgsql stable security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
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
$$;

comment on function waybill.redact_count(text, text) is
  'How many rows of each table redact would change, and changes and locks nothing; outbox_pending are rows that it would leave.';

create or replace function waybill.redact(key text default null, id text default null, reason text default null)
returns table (place text, rows bigint)
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
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
$$;

comment on function waybill.redact(text, text, text) is
  'Removes the content of all messages of a key, or of one message id, from the inbox, its attempts, the outbox, the history and the log: bodies, headers, keys, routes, traces, errors, results. Ids stay, so that a duplicate is still recognised; unfinished rows are discarded. Says how many rows of each table; outbox_pending are rows that are about to be published, and were left: call it again once they are out. By key it reads the whole inbox first, and locks nothing meanwhile. Queues, WAL, backups, and what first_time and newer were told are not reached. The log of it has a hash in the place of the key.';

-- End -------------------------------------------------------------------------------------------------------------------

revoke all on function
  waybill.refuse_half_renamed(text), waybill.rename_begin(text, text), waybill.rename_wait(interval),
  waybill.rename_cancel(text, text),
  waybill.rename_rows(text, text, bigint, int), waybill.rename_finish(text, text, text, bigint),
  waybill.redacted_seqs(text, text, bigint), waybill.redacted_ids(text, text), waybill.redact_count(text, text)
  from public;

insert into waybill.migration (version, name, oldest_binary) values (11, 'bounded_steps', 1);

commit;
