-- oldest-binary: 1
--
-- What operators do to the inbox: retry, replay, discard and postpone messages of one consumer, pause, rename and forget
-- consumers, and remove a person's data everywhere. Each act is in the action_log.

begin;

set local lock_timeout = '5s';
set local search_path = pg_catalog, pg_temp;

create function waybill.row_for_operator(
  consumer text, message_id text, out settings waybill.consumer, out target waybill.inbox
)
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
as $$
begin
  -- Rows of a consumer that is not registered any more can be seen to as well.
  select * into settings from waybill.consumer c where c.name = row_for_operator.consumer;
  perform pg_advisory_xact_lock(waybill.key_lock(i.consumer, i.key)) from waybill.inbox i
  where i.consumer = row_for_operator.consumer and i.message_id = row_for_operator.message_id
    and settings.ordering = 'key' and i.key is not null;
  select * into target from waybill.inbox i
  where i.consumer = row_for_operator.consumer and i.message_id = row_for_operator.message_id for update;
end
$$;

comment on function waybill.row_for_operator(text, text) is
  'Locks the row of a message, and its key if the consumer is ordered by key. All null if there is no such row.';

create function waybill.log_inbox_action(action text, target waybill.inbox, reason text, answer text) returns text
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
as $$
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
$$;

comment on function waybill.log_inbox_action(text, waybill.inbox, text, text) is
  'Writes an operator''s act to the action_log, with the row as it was before, and wakes whoever waits for rows. Returns the answer.';

create function waybill.inbox_retry(consumer text, message_id text, reason text default null) returns text
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
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
$$;

comment on function waybill.inbox_retry(text, text, text) is
  'Has a message that failed tried again by this one consumer, at once, under its id, its attempts counted anew. Answers: pending (so it is, or was already), blocked (an earlier one of its key goes first); or, with nothing changed: already applied, running, discarded (inbox_replay brings it back), body is gone, unknown.';

create function waybill.inbox_replay(
  consumer text, message_id text, reason text default null, force boolean default false
) returns text
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
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
$$;

comment on function waybill.inbox_replay(text, text, text, boolean) is
  'Has this one consumer handle a message again that it is through with, under its id. What was applied is applied a second time only with force: the effect is doubled unless the handler knows better. Answers: pending, blocked; or, with nothing changed: already applied, running, body is gone, unknown (never received, or longer ago than ids are kept).';

create function waybill.inbox_discard(consumer text, message_id text, reason text default null) returns text
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
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
$$;

comment on function waybill.inbox_discard(text, text, text) is
  'Gives a message up for this one consumer: it is not applied, and does not hold its key any more; its id is remembered. Answers: discarded; or, with nothing changed: already applied, already discarded, running, unknown.';

create function waybill.inbox_postpone(consumer text, message_id text, delay interval, reason text default null)
returns text
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
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
$$;

comment on function waybill.inbox_postpone(text, text, interval, text) is
  'Lets a message wait that long from now before it is tried; its attempts stay as they are. Answers: waiting; or, with nothing changed: already applied, running, blocked, dead, discarded, unknown.';

-- Consumers -----------------------------------------------------------------------------------------------------------

create function waybill.consumer_pause(consumer text, reason text) returns text
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
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
  set paused_at = clock_timestamp(), paused_by = 'operator', paused_reason = left(consumer_pause.reason, 4000)
  where c.name = consumer_pause.consumer;
  insert into waybill.action_log (action, target, reason) values ('consumer.pause', consumer, reason);
  perform pg_notify('waybill_inbox', consumer);
  return 'paused';
end
$$;

comment on function waybill.consumer_pause(text, text) is
  'From now on no row of the consumer is handed out; what is being handled ends. Answers: paused; or, with nothing changed: already paused, unknown.';

create function waybill.consumer_resume(consumer text, reason text default null) returns text
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
declare
  before record;
begin
  select c.paused_by, c.paused_at, c.paused_reason into before from waybill.consumer c
  where c.name = consumer_resume.consumer for update;
  if not found then
    return 'unknown';
  elsif before.paused_by is null then
    return 'not paused';
  end if;
  update waybill.consumer c set paused_at = null, paused_by = null, paused_reason = null
  where c.name = consumer_resume.consumer;
  insert into waybill.action_log (action, target, reason, details)
  values ('consumer.resume', consumer, consumer_resume.reason, jsonb_strip_nulls(jsonb_build_object(
    'paused_by', before.paused_by, 'paused_at', before.paused_at, 'paused_reason', before.paused_reason)));
  perform pg_notify('waybill_inbox', consumer);
  return 'resumed';
end
$$;

comment on function waybill.consumer_resume(text, text) is
  'Ends a pause, an operator''s or the program''s own. Answers: resumed; or, with nothing changed: not paused, unknown.';

create function waybill.rename_consumer(old_name text, new_name text, reason text default null) returns bigint
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
declare
  moved bigint;
begin
  lock table waybill.consumer in share row exclusive mode;
  perform waybill.consumer_settings(old_name);
  if exists (select from waybill.inbox i where i.consumer = new_name) then
    raise exception 'consumer % has messages of its own', to_json(new_name) using errcode = '22023',
      hint = 'Two consumers cannot become one: each knows what it has applied.';
  end if;
  delete from waybill.consumer c where c.name = new_name and new_name <> old_name;
  update waybill.consumer c set name = new_name where c.name = old_name;
  update waybill.consumer_grant g set consumer = new_name where g.consumer = old_name
    and not exists (
      select from waybill.consumer_grant o where o.consumer = new_name and o.role_name = g.role_name);
  delete from waybill.consumer_grant g where g.consumer = old_name and new_name <> old_name;
  update waybill.inbox i set consumer = new_name where i.consumer = old_name;
  get diagnostics moved = row_count;
  insert into waybill.action_log (action, target, reason, details)
  values ('consumer.rename', new_name, rename_consumer.reason, jsonb_build_object('from', old_name, 'rows', moved));
  return moved;
end
$$;

comment on function waybill.rename_consumer(text, text, text) is
  'Gives a consumer, its rows and its grants another name, so that it still knows what it has applied; returns the number of rows. Stop the programs that run it first. Writes every row of the consumer anew: with millions of them that takes minutes. Errors: WB004, or 22023 if the new name has rows.';

create function waybill.forget_consumer(name text, reason text default null, force boolean default false) returns text
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
declare
  most_rows constant int := 50000;
  unfinished bigint;
begin
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

comment on function waybill.forget_consumer(text, text, boolean) is
  'Removes a consumer that is not configured any more, with its rows: it no longer knows what it has applied. At most 50,000 rows a call. Answers: forgotten; more (call again, each time in a transaction of its own); unfinished rows: N (nothing was changed; force removes them too); unknown.';

-- Personal data -------------------------------------------------------------------------------------------------------

create function waybill.redact(key text default null, id text default null, reason text default null)
returns table (place text, rows bigint)
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
#variable_conflict use_column
declare
  moment constant timestamptz := clock_timestamp();
  wanted_key constant text := redact.key;
  wanted_id constant text := redact.id;
  wanted_uuid constant uuid :=
    case when redact.id ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then redact.id::uuid end;
  seqs bigint[];
  targets text[];
  held record;
  counts jsonb := '{}';
begin
  if num_nonnulls(wanted_key, wanted_id) <> 1 then
    raise exception 'one of key and id says what to redact' using errcode = '22023';
  end if;

  -- Inbox. What is not finished cannot be finished any more; keys are locked before their rows are looked at.
  perform pg_advisory_xact_lock(l.lock) from (
    select distinct waybill.key_lock(i.consumer, i.key) as lock
    from waybill.inbox i join waybill.consumer c on c.name = i.consumer and c.ordering = 'key'
    where i.key is not null and (i.key = wanted_key or i.message_id = wanted_id or i.original_id = wanted_id) order by 1
  ) as l;
  seqs := array(
    select i.seq from waybill.inbox i
    where (i.key = wanted_key or i.message_id = wanted_id or i.original_id = wanted_id)
    order by i.seq for update
  );
  targets := array(select i.message_id from waybill.inbox i where i.seq = any (seqs));
  for held in
    select i.consumer, i.key from waybill.inbox i where i.seq = any (seqs) and i.key is not null
    group by i.consumer, i.key
  loop
    update waybill.inbox i
    set status = case i.status when 'done' then 'done' else 'discarded' end,
      processed_at = coalesce(i.processed_at, moment), next_attempt_at = null, claim_token = null, lease_until = null,
      locked_by = null, dead_reason = null
    where i.seq = any (seqs) and i.consumer = held.consumer and i.key = held.key;
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
  get diagnostics rows = row_count;
  place := 'inbox';
  counts := counts || jsonb_build_object(place, rows);
  return next;

  update waybill.inbox_attempt a set error = null where a.inbox_seq = any (seqs) and a.error is not null;
  get diagnostics rows = row_count;
  place := 'inbox_attempt';
  counts := counts || jsonb_build_object(place, rows);
  return next;

  -- Outbox. Held rows are given up; what is ready is on its way to the broker, and stays as it is.
  targets := targets || array(
    select o.id::text from waybill.outbox o where o.key = wanted_key or o.id = wanted_uuid
    union
    select h.id::text from waybill.outbox_history h where h.key = wanted_key or h.id = wanted_uuid
  );
  perform waybill.discard(o.id, 'redacted') from waybill.outbox o
  where (o.key = wanted_key or o.id = wanted_uuid) and o.state in ('parked', 'blocked', 'scheduled');
  update waybill.outbox o
  set payload = null, payload_bytes = null, headers = '{}', key = null, routing_key = null, correlation_id = null,
    causation_id = null, reply_to = null, traceparent = null, tracestate = null, last_error = null
  where (o.key = wanted_key or o.id = wanted_uuid) and o.state in ('discarded', 'cancelled');
  get diagnostics rows = row_count;
  place := 'outbox';
  counts := counts || jsonb_build_object(place, rows);
  return next;

  select count(*) into rows from waybill.outbox o
  where (o.key = wanted_key or o.id = wanted_uuid) and o.state not in ('discarded', 'cancelled');
  place := 'outbox_pending';
  counts := counts || jsonb_build_object(place, rows);
  return next;

  update waybill.outbox_history h
  set payload = null, payload_bytes = null, headers = null, key = null, sha256 = null, routing_key = null,
    correlation_id = null, causation_id = null, reply_to = null, traceparent = null, tracestate = null
  where h.key = wanted_key or h.id = wanted_uuid;
  get diagnostics rows = row_count;
  place := 'outbox_history';
  counts := counts || jsonb_build_object(place, rows);
  return next;

  update waybill.action_log a set details = a.details - 'error'
  where a.target = any (targets) and a.details ? 'error';
  get diagnostics rows = row_count;
  place := 'action_log';
  counts := counts || jsonb_build_object(place, rows);
  return next;

  insert into waybill.action_log (action, target, reason, details)
  values ('redact', coalesce(wanted_id, 'key sha256:' || encode(sha256(convert_to(wanted_key, 'UTF8')), 'hex')),
    redact.reason, counts);
end
$$;

comment on function waybill.redact(text, text, text) is
  'Removes the content of all messages of a key, or of one message id, from the inbox, its attempts, the outbox, the history and the log: bodies, headers, keys, routes, traces, errors, results. Ids stay, so that a duplicate is still recognised; unfinished rows are discarded. Says how many rows of each table; outbox_pending are rows that are about to be published, and were left: call it again once they are out. Queues, WAL, backups, and what first_time and newer were told are not reached. The log of it has a hash in the place of the key.';

-- End -----------------------------------------------------------------------------------------------------------------

revoke all on all functions in schema waybill from public;

insert into waybill.migration (version, name, oldest_binary) values (6, 'inbox_operations', 1);

commit;
