-- oldest-binary: 1
--
-- A breaker speaks of the handler of one process: what it notes here stops nobody, and is forgotten unless it is said
-- again. Attempts are given back by their number and not by the clock, and the copies of deaths wait until that is
-- decided. Programs built for earlier versions of the schema run on it unchanged.

begin;

set local lock_timeout = '5s';
set local search_path = pg_catalog, pg_temp;

alter table waybill.consumer add column paused_until timestamptz;

comment on column waybill.consumer.paused_at is 'Since when that is so; null: neither an operator nor a breaker has said anything.';
comment on column waybill.consumer.paused_by is
  'operator: nothing is handed out until consumer_resume. breaker: a program says that its handler is broken; it pauses and probes, and nobody else is stopped.';
comment on column waybill.consumer.paused_until is 'What a breaker says counts until then; null: until consumer_resume.';

create or replace function waybill.consumer_break(consumer text, reason text) returns boolean
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
as $$
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
$$;

comment on function waybill.consumer_break(text, text) is
  'Notes, for two minutes, that the handler of a consumer is broken, for whoever looks; it stops nobody. False if that is known already, or an operator has paused the consumer.';

create or replace function waybill.consumer_mend(consumer text) returns boolean
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
as $$
begin
  update waybill.consumer c set paused_at = null, paused_by = null, paused_reason = null, paused_until = null
  where c.name = consumer_mend.consumer and c.paused_by = 'breaker';
  return found;
end
$$;

create or replace function waybill.consumer_pause(consumer text, reason text) returns text
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
  set paused_at = clock_timestamp(), paused_by = 'operator', paused_reason = left(consumer_pause.reason, 4000),
    paused_until = null
  where c.name = consumer_pause.consumer;
  insert into waybill.action_log (action, target, reason) values ('consumer.pause', consumer, reason);
  perform pg_notify('waybill_inbox', consumer);
  return 'paused';
end
$$;

create or replace function waybill.consumer_resume(consumer text, reason text default null) returns text
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
$$;

comment on function waybill.consumer_resume(text, text) is
  'Ends an operator''s pause. What a breaker notes ends by itself when the handler answers. Answers: resumed; or, with nothing changed: not paused, unknown.';

create or replace function waybill.inbox_claim(consumer text, max int default 10, lease interval default '1 minute')
returns setof waybill.claimed_message
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
set enable_seqscan = off
as $$
declare
  settings constant waybill.consumer := waybill.consumer_for_caller(inbox_claim.consumer);
  taken bigint[];
begin
  perform waybill.check_claim(max, lease);
  -- Why not for a breaker: it speaks of one process, and another one's handler may work.
  if settings.paused_by = 'operator' then
    return;
  end if;
  perform waybill.end_expired_leases(settings);

  -- One whose workers vanished twice goes alone: if it takes the next one down as well, it takes nothing else with it.
  taken := array(
    select i.seq from waybill.inbox i
    where i.consumer = settings.name and i.abandoned >= 2 and i.status in ('pending', 'waiting')
      and (i.next_attempt_at is null or i.next_attempt_at <= clock_timestamp())
    order by i.seq + 0 limit 1 for update skip locked
  );
  if cardinality(taken) = 0 then
    taken := array(
      select i.seq from waybill.inbox i
      where i.consumer = settings.name and i.status = 'waiting' and i.next_attempt_at <= clock_timestamp()
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
$$;

comment on function waybill.inbox_claim(text, int, interval) is
  'Gives up to max rows of a consumer to the caller, until the lease is over: rows that are due again first, then new ones in order. Each row comes with a claim_token, the proof that the other functions ask for. Call it in a transaction of its own. Expired leases count as abandoned; a row that was abandoned twice comes alone. No rows while an operator has paused the consumer. Errors: WB004 (no such consumer), WB007 (not granted).';

create or replace function waybill.inbox_receive(consumer text, messages json, bodies bytea, apply boolean default true)
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
  applying constant boolean := settings.handler = 'sql' and inbox_receive.apply
    and settings.paused_by is distinct from 'operator';
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
  'Stores a batch of deliveries in the order of the array; bodies are all bodies one after the other, size says how many bytes are whose. For sql handlers also applies them, at most 60, in this transaction, unless an operator has paused the consumer: then they are pending. Says of each delivery, by its place from 1: inserted, duplicate or conflict; the row''s status; what the handler came to; the number of the next attempt and when it is due. All of them may be acknowledged once this is committed. Errors: WB004, WB006 (the handler is missing: nothing is written).';

create function waybill.inbox_extend_rows(consumer text, seqs bigint[], token uuid, lease interval) returns int
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
as $$
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
$$;

comment on function waybill.inbox_extend_rows(text, bigint[], uuid, interval) is
  'Prolongs the leases of rows that were claimed with the token, from now, and returns how many still are.';

create function waybill.inbox_give_back(consumer text, seqs bigint[], attempts int[]) returns int
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
as $$
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
    with refunded as (
      update waybill.inbox_attempt a set verdict = 'refunded'
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
$$;

comment on function waybill.inbox_give_back(text, bigint[], int[]) is
  'The handler was broken, not these messages: of each row, so many of its newest attempts with that verdict do not count; it is due at once if it waits, or died, because of them. Returns how many rows.';

create or replace function waybill.inbox_deaths(consumer text, max_rows int default 100) returns setof waybill.inbox
language sql stable
set search_path = pg_catalog, waybill, pg_temp
as $$
  with undecided as materialized (
    -- The breaker of a program may open a moment later and give the attempt back.
    select i.processed_at, i.seq from waybill.inbox i join waybill.consumer c on c.name = i.consumer
    where i.consumer = inbox_deaths.consumer and i.status = 'dead' and i.dead_reason in ('attempts', 'age')
      and (i.processed_at, i.seq) > (c.copied_died_at, c.copied_seq)
      and i.processed_at > statement_timestamp() - interval '30 seconds'
      and 'broken' = (
        select a.verdict from waybill.inbox_attempt a where a.inbox_seq = i.seq order by a.number desc limit 1)
    order by i.consumer, i.processed_at, i.seq limit 1
  )
  select i.* from waybill.inbox i join waybill.consumer c on c.name = i.consumer
  where i.consumer = inbox_deaths.consumer and i.status = 'dead'
    and (i.processed_at, i.seq) > (c.copied_died_at, c.copied_seq)
    and not exists (select from undecided u where (i.processed_at, i.seq) >= (u.processed_at, u.seq))
  order by i.consumer, i.processed_at, i.seq limit inbox_deaths.max_rows
$$;

comment on function waybill.inbox_deaths(text, int) is
  'Dead rows that were not copied to the dead-letter exchange yet, in order of their deaths, up to one that died of a broken handler within the last 30 seconds: a breaker may give it back.';

revoke all on function waybill.inbox_extend_rows, waybill.inbox_give_back from public;

insert into waybill.migration (version, name, oldest_binary) values (12, 'inbox_breaker', 1);

commit;
