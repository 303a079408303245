-- oldest-binary: 1
--
-- Retention of everything that grows: what newer was told, the log of operators' acts, and dead rows whose id must be
-- remembered for longer than they are kept. Programs built for earlier versions of the schema run on it unchanged.

begin;

set local lock_timeout = '5s';
set local search_path = pg_catalog, pg_temp;

create or replace function waybill.inbox_clean(consumer text, max_rows int default 5000)
returns table (what text, removed bigint, remaining bigint)
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
set enable_seqscan = off
as $$
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
$$;

comment on function waybill.inbox_clean(text, int) is
  'Removes what the retention of a consumer is over for: processed rows (ids), bodies of processed rows, dead rows; at most max_rows of each, and waits for nobody. A dead row whose id must be remembered for longer is discarded, and its body removed. remaining says how many are left, counted up to 100,000; dead rows that block others are left.';

-- What newer was told ---------------------------------------------------------------------------------------------------

create function waybill.freshness_limit(older_than interval default '90 days') returns timestamptz
language plpgsql stable security definer
set search_path = pg_catalog, waybill, pg_temp
set enable_seqscan = off
as $$
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
$$;

comment on function waybill.freshness_limit(interval) is
  'Until when versions may be forgotten that newer was told: that long before now, or before the oldest message of the inbox that is not finished was received; never less than any consumer remembers ids, and retries a message. Null: there are none.';

create function waybill.clean_freshness(
  before timestamptz, from_scope text default '', from_key text default '', max_rows int default 5000
) returns table (removed bigint, next_scope text, next_key text)
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
set enable_seqscan = off
as $$
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
$$;

comment on function waybill.clean_freshness(timestamptz, text, text, int) is
  'Forgets which version was the newest of entities of which newer was told none since before, among the max_rows from from_scope and from_key on; next_scope and next_key are where to go on, null at the end. From then on any version of such an entity is newer, an old event that comes that late too. Error 22023 if before is later than consumers remember ids and retry messages; freshness_limit() gives a time that is safe.';

comment on function waybill.newer(text, text, bigint) is
  'True if this version of the entity is newer than every one that was asked about before, within the retention (clean_freshness); then it is the newest. Apply the event only if it is true, in the same transaction.';

-- The log of operators' acts --------------------------------------------------------------------------------------------

create function waybill.clean_actions(older_than interval default '365 days', max_rows int default 5000)
returns table (removed bigint, remaining bigint)
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
set enable_seqscan = off
as $$
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
$$;

comment on function waybill.clean_actions(interval, int) is
  'Removes operators'' acts that were done longer ago than that (at least 30 days), the oldest first, at most max_rows, and none that the age of a retried row is counted from; remaining says how many of the next max_rows are left.';

revoke all on function
  waybill.freshness_limit(interval), waybill.clean_freshness(timestamptz, text, text, int),
  waybill.clean_actions(interval, int)
  from public;

insert into waybill.migration (version, name, oldest_binary) values (10, 'retention', 1);

commit;
