-- oldest-binary: 1
--
-- What a transaction that is left open has locked, a key or a row, holds up that key or row alone, also where a program
-- applies and settles several at once; and attempts are given back once, however often that is asked for. Programs built
-- for earlier versions of the schema run on it unchanged.

begin;

set local lock_timeout = '5s';
set local search_path = pg_catalog, pg_temp;

create function waybill.lock_keys_soon(settings waybill.consumer, seqs bigint[]) returns void
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
set lock_timeout = '1s'
as $$
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
$$;

comment on function waybill.lock_keys_soon(waybill.consumer, bigint[]) is
  'Takes the locks of the keys of these rows, in order, as far as they are to be had within about a second. A row that is the caller''s may be settled without: it holds its key as long as it is not, and what release_key does not release then is left to the sweep.';

create function waybill.lock_claimed_soon(settings waybill.consumer, seq bigint, token uuid) returns waybill.inbox
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
set lock_timeout = '1s'
as $$
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
$$;

comment on function waybill.lock_claimed_soon(waybill.consumer, bigint, uuid) is
  'Locks a row that is claimed with the token; null if the claim is lost, or somebody has had the row locked for a second.';

create or replace function waybill.release_key(settings waybill.consumer, key text) returns bigint
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
set enable_seqscan = off
as $$
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
$$;

comment on function waybill.release_key(waybill.consumer, text) is
  'Makes the first blocked row of the key pending if nothing holds the key any more, and returns it, else null. If somebody else has the lock of the key it does nothing: the sweep will.';

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
$$;

create or replace function waybill.inbox_settle(
  consumer text, token uuid, results json
) returns table (
  seq bigint, status text, verdict text, attempt int, next_attempt_at timestamptz, dead_reason text,
  released bigint
)
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
set lock_timeout = '1s'
as $$
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
$$;

comment on function waybill.inbox_settle(text, uuid, json) is
  'Settles attempts at rows that were claimed with the token: an array of {seq, verdict, error, retry_in, result}; verdicts as of put_back, and done. Verdict lost in the answer: the claim is, and nothing was done; or the row was to be released, and somebody keeps it locked: its lease runs out. Error 55P03 if somebody keeps another row locked for a second: nothing was settled.';

alter table waybill.inbox_attempt add column given_back_by bigint;

comment on column waybill.inbox_attempt.given_back_by is 'Which call of inbox_give_back has given it back.';

create function waybill.inbox_give_back(
  consumer text, seqs bigint[], attempts int[], call bigint default null
) returns int
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
$$;

comment on function waybill.inbox_give_back(text, bigint[], int[], bigint) is
  'The handler was broken, not these messages: of each row, so many of its newest attempts with that verdict do not count; it is due at once if it waits, or died, because of them. Returns how many rows. A call that was made before under the same number changes nothing.';

-- Whoever settled rows and gave attempts back goes on before the roles are applied again.
do $$
declare
  grantee text;
begin
  for grantee in
    select case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end
    from pg_catalog.pg_proc p, aclexplode(p.proacl) as a
    where p.oid = 'waybill.inbox_give_back(text, bigint[], int[])'::regprocedure
      and a.grantee <> p.proowner and a.privilege_type = 'EXECUTE'
  loop
    execute format(
      'grant execute on function waybill.lock_keys_soon, waybill.lock_claimed_soon,
        waybill.inbox_give_back(text, bigint[], int[], bigint) to %s', grantee);
    -- Which copies of dead messages wait is shown.
    execute format('grant select on waybill.inbox_uncopied to %s', grantee);
  end loop;
end
$$;

revoke all on function waybill.lock_keys_soon, waybill.lock_claimed_soon,
  waybill.inbox_give_back(text, bigint[], int[], bigint) from public;

drop function waybill.inbox_give_back(text, bigint[], int[]);

insert into waybill.migration (version, name, oldest_binary) values (18, 'busy_rows', 1);

commit;
