-- oldest-binary: 1
--
-- `ordering: strict`: a row that waits holds the rows of its key that came after it. Programs built for version 1 to 6 of
-- the schema run on it unchanged; they do not know strict order, and leave rows that are blocked alone.

begin;

set local lock_timeout = '5s';
set local search_path = pg_catalog, pg_temp;

alter table waybill.relay add column ordering text not null default 'pipelined',
  add constraint relay_ordering_is_pipelined_or_strict check (ordering in ('pipelined', 'strict'));

comment on column waybill.relay.ordering is
  'pipelined, or strict: a row that waits holds the rows of its key that came after it.';

create index outbox_key_order on waybill.outbox (key, hold_no) where hold_no is not null;
drop index waybill.outbox_held;

comment on index waybill.outbox_key_order is 'The held rows of a key in their order.';
comment on column waybill.outbox.hold_no is
  'Place of a held row in its key; the lowest goes first. With strict order the row keeps it until it is published.';

create function waybill.outbox_key_lock(key text) returns bigint
language sql stable parallel safe
set search_path = pg_catalog, waybill, pg_temp
as $$
  select hashtextextended(outbox_key_lock.key, 'waybill.outbox'::regclass::oid::bigint)
$$;

comment on function waybill.outbox_key_lock(text) is
  'Number of the advisory transaction lock that an operator''s act on a row of this key takes, and the relay before it lets rows of the key go.';

create function waybill.lock_outbox_row(id uuid) returns void
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
as $$
declare
  row_key text;
begin
  select o.key into row_key from waybill.outbox o where o.id = lock_outbox_row.id;
  if row_key is not null then
    perform pg_advisory_xact_lock(waybill.outbox_key_lock(row_key));
  end if;
end
$$;

comment on function waybill.lock_outbox_row(uuid) is
  'Takes the lock of the key of a row until the end of the transaction. Inside of retry, discard and cancel.';

create function waybill.release_outbox_key(key text) returns void
language sql
set search_path = pg_catalog, waybill, pg_temp
as $$
  -- Due now: the relay looks for due rows every second.
  update waybill.outbox o
  set state = 'scheduled', next_attempt_at = clock_timestamp()
  where o.state = 'blocked' and o.seq = (
    select h.seq from waybill.outbox h
    where h.key = release_outbox_key.key and h.hold_no is not null
    order by h.key, h.hold_no limit 1)
$$;

comment on function waybill.release_outbox_key(text) is
  'Lets the first held row of a key go if it only waited for one that is gone. Inside of discard and cancel, under the lock of the key.';

create or replace function waybill.retry(id uuid, reason text default null) returns text
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
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
    select from waybill.outbox o
    where o.key = held.key and o.hold_no < held.hold_no and o.state in ('parked', 'scheduled', 'blocked')
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
$$;

comment on function waybill.retry(uuid, text) is
  'Has the relay publish a parked row, or one that waits for its next attempt, at once and with its attempts counted anew; the error stays until it is published. With strict order it keeps its place, and the rows behind it follow. Answers: scheduled; or, with nothing changed: blocked (another row of its key goes first), not due yet (it waits for its deliver_at), not held: ready (or cancelled, discarded), already published (or another outcome of the history), unknown. What it changes is written to the action_log.';

create or replace function waybill.discard(id uuid, reason text default null) returns text
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
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
$$;

comment on function waybill.discard(uuid, text) is
  'Gives a parked, blocked or scheduled row up: it will never be published, and the relay moves it to the history. With strict order the rows that it held go on. Answers: discarded; or, with nothing changed: not held: ready (or cancelled, discarded), already published (or another outcome of the history), unknown. What it changes is written to the action_log.';

create or replace function waybill.cancel(id uuid) returns boolean
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
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
$$;

revoke all on function
  waybill.outbox_key_lock(text), waybill.lock_outbox_row(uuid), waybill.release_outbox_key(text) from public;

insert into waybill.migration (version, name, oldest_binary) values (7, 'strict_order', 1);

commit;
