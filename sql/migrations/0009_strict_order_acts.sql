-- oldest-binary: 1
--
-- Strict order: an act on many rows in one statement takes a bounded number of locks, and a row is not retried past one
-- of its key that is in flight. Programs built for earlier versions of the schema run on it unchanged.

begin;

set local lock_timeout = '5s';
set local search_path = pg_catalog, pg_temp;

-- Why 1024 and not one for each key: a transaction that acts on rows of every key would fill the server's table of locks,
-- and then nobody else gets one.
create or replace function waybill.outbox_key_lock(key text) returns bigint
language sql stable parallel safe
set search_path = pg_catalog, waybill, pg_temp
as $$
  select hashint8extended(
    hashtextextended(outbox_key_lock.key, 0) & 1023, 'waybill.outbox'::regclass::oid::bigint)
$$;

comment on function waybill.outbox_key_lock(text) is
  'Number of the advisory transaction lock that an operator''s act on a row of this key takes, and the relay before it lets rows of the key go. One of 1024; keys may share one.';

create or replace function waybill.lock_outbox_row(id uuid) returns void
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
as $$
declare
  row_key text;
begin
  select o.key into row_key from waybill.outbox o where o.id = lock_outbox_row.id;
  -- Without strict order no row waits for another, and applications that cancel rows need not wait for each other.
  if row_key is not null and exists (select from waybill.relay r where r.ordering = 'strict') then
    perform pg_advisory_xact_lock(waybill.outbox_key_lock(row_key));
  end if;
end
$$;

comment on function waybill.lock_outbox_row(uuid) is
  'With strict order: takes the lock of the key of a row until the end of the transaction. Inside of retry, discard and cancel.';

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
$$;

insert into waybill.migration (version, name, oldest_binary) values (9, 'strict_order_acts', 1);

commit;
