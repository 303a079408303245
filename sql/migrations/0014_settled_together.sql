-- oldest-binary: 1
--
-- The rows of a batch that failed, or that are done, are settled by one statement: one statement for each row takes ten
-- times as long, because each reads the constraints of the table anew. Looks at rows that wait find those that are due by
-- their index, however many wait. Programs built for earlier versions of the schema run on it unchanged.

begin;

set local lock_timeout = '5s';
set local search_path = pg_catalog, pg_temp;

create function waybill.put_back_rows(
  settings waybill.consumer, seqs bigint[], verdicts text[], errors text[], retry_ins interval[]
) returns table (
  seq bigint, verdict text, status text, attempt int, next_attempt_at timestamptz, dead_reason text, error text,
  released bigint
)
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
-- The rows are found by their numbers, whatever the statistics say of a table that was empty a moment ago.
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
-- Why: a plan for these very numbers takes longer to make than to run.
set plan_cache_mode = force_generic_plan
as $$
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
$$;

comment on function waybill.put_back_rows(waybill.consumer, bigint[], text[], text[], interval[]) is
  'Settles rows after an attempt that did not apply them, each by its own verdict: it waits, is pending again, or is dead. Each row is named once; the caller has them, and the locks of their keys.';

create or replace function waybill.put_back(
  settings waybill.consumer, seq bigint, verdict text, error text, retry_in interval,
  out status text, out attempt int, out next_attempt_at timestamptz, out dead_reason text, out released bigint
)
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
as $$
begin
  select p.status, p.attempt, p.next_attempt_at, p.dead_reason, p.released
  into status, attempt, next_attempt_at, dead_reason, released
  from waybill.put_back_rows(settings, array[seq], array[verdict], array[error], array[retry_in]) as p;
end
$$;

create function waybill.finish_rows(settings waybill.consumer, seqs bigint[], results text[])
returns table (seq bigint, released bigint)
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set plan_cache_mode = force_generic_plan
as $$
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
$$;

comment on function waybill.finish_rows(waybill.consumer, bigint[], text[]) is
  'Makes running rows done, and says which rows that releases. Each row is named once; the caller has them, and the locks of their keys.';

create or replace function waybill.take_rows(
  settings waybill.consumer, seqs bigint[], lease interval
) returns setof waybill.claimed_message
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $$
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
$$;

create or replace function waybill.lock_keys(settings waybill.consumer, seqs bigint[]) returns void
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
as $$
begin
  if settings.ordering = 'key' then
    perform pg_advisory_xact_lock(l.lock) from (
      select distinct waybill.key_lock(settings.name, i.key) as lock
      from waybill.inbox i where i.seq = any (lock_keys.seqs) and i.key is not null order by 1
    ) as l;
  end if;
end
$$;

create or replace function waybill.inbox_apply(
  consumer text, seqs bigint[], token uuid
) returns table (
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
  done bigint[] := '{}';
  results pg_catalog.text[] := '{}';
  failed bigint[] := '{}';
  verdicts pg_catalog.text[] := '{}';
  errors pg_catalog.text[] := '{}';
begin
  if cardinality(seqs) > most_applied then
    raise exception 'at most % messages are applied in one transaction', most_applied using errcode = '22023';
  end if;
  perform waybill.lock_keys(settings, seqs);
  for seq in select distinct s.seq from unnest(seqs) as s (seq) order by s.seq loop
    select * into claimed from waybill.inbox i
    where i.seq = inbox_apply.seq and i.consumer = settings.name and i.status = 'running' and i.claim_token = token
    for update;
    if not found then
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
$$;

create or replace function waybill.inbox_receive(
  consumer text, messages json, bodies bytea, apply boolean default true
) returns table (
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
$$;

create or replace function waybill.inbox_settle(
  consumer text, token uuid, results json
) returns table (
  seq bigint, status text, verdict text, attempt int, next_attempt_at timestamptz, dead_reason text,
  released bigint
)
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
as $$
#variable_conflict use_column
declare
  settings constant waybill.consumer := waybill.consumer_settings(inbox_settle.consumer);
  answer record;
  done bigint[] := '{}';
  texts text[] := '{}';
  failed bigint[] := '{}';
  verdicts text[] := '{}';
  errors text[] := '{}';
  delays interval[] := '{}';
begin
  perform waybill.lock_keys(settings, array(select (r.value ->> 'seq')::bigint from json_array_elements(results) as r));
  for answer in
    select * from rows from (
      json_to_recordset(results) as (seq bigint, verdict text, error text, retry_in interval, result text)
    ) with ordinality as r order by r.seq, r.ordinality
  loop
    seq := answer.seq;
    perform from waybill.inbox i
    where i.seq = answer.seq and i.consumer = settings.name and i.status = 'running'
      and i.claim_token = inbox_settle.token for update;
    if not found or seq = any (done) or seq = any (failed) then
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
$$;

create or replace function waybill.inbox_claim_rows(
  consumer text, seqs bigint[], attempts int[] default null, lease interval default '1 minute'
) returns setof waybill.claimed_message
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
set enable_seqscan = off
as $$
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
$$;

create or replace function waybill.inbox_claim(
  consumer text, max int default 10, lease interval default '1 minute'
) returns setof waybill.claimed_message
language plpgsql
security definer
set search_path = pg_catalog, waybill, pg_temp
set enable_seqscan = off
as $$
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
$$;

create or replace function waybill.inbox_due(
  consumer text, within interval default '0', max_rows int default 500
) returns table (seq bigint, attempt int, status text, next_attempt_at timestamptz, alone boolean)
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
set enable_seqscan = off
as $$
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
$$;

-- Whoever may put one row back may do it with many: an upgrade needs no roles.sql.
do $$
declare
  grantee text;
begin
  for grantee in
    select case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end
    from pg_catalog.pg_proc p, aclexplode(p.proacl) as a
    where p.oid = 'waybill.put_back(waybill.consumer, bigint, text, text, interval)'::regprocedure
      and a.grantee <> p.proowner and a.privilege_type = 'EXECUTE'
  loop
    execute format('grant execute on function waybill.put_back_rows, waybill.finish_rows to %s', grantee);
  end loop;
end
$$;

revoke all on function waybill.put_back_rows, waybill.finish_rows from public;

drop function waybill.finish_row(waybill.consumer, bigint, text, text);

insert into waybill.migration (version, name, oldest_binary) values (14, 'settled_together', 1);

commit;
