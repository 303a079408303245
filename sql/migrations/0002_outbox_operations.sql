-- oldest-binary: 1
--
-- What operators do to rows of the outbox that could not be published: try them again, or give them up. Adds a log of
-- these acts. Programs built for version 1 of the schema run on it unchanged.

begin;

set local lock_timeout = '5s';
set local search_path = pg_catalog, pg_temp;

create table waybill.action_log (
  seq bigint generated always as identity primary key,
  at timestamptz not null default clock_timestamp(),
  actor text not null default session_user,
  action text not null,
  target text not null,
  reason text,
  details jsonb not null default '{}',
  constraint action_log_details_are_an_object check (jsonb_typeof(details) = 'object')
);

create index action_log_target on waybill.action_log (target, seq);

comment on table waybill.action_log is
  'What operators changed: one row for each row that was changed. Written by the functions, in the same transaction; nothing removes rows.';
comment on column waybill.action_log.seq is 'Position in the log.';
comment on column waybill.action_log.at is 'When it was done.';
comment on column waybill.action_log.actor is 'The role that had logged in (session_user).';
comment on column waybill.action_log.action is 'outbox.retry or outbox.discard.';
comment on column waybill.action_log.target is 'The id of the message.';
comment on column waybill.action_log.reason is 'Why, in the operator''s words.';
comment on column waybill.action_log.details is
  'What the row was before: state, type, attempts and error. Never the body.';
comment on index waybill.action_log_target is 'What was done to one message, in order.';

create function waybill.retry(id uuid, reason text default null) returns text
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
declare
  held record;
begin
  select o.seq, o.state, o.type, o.attempts, o.last_error, o.deliver_at into held
  from waybill.outbox o where o.id = retry.id for update;
  if not found then
    return coalesce(
      (select 'already ' || h.outcome from waybill.outbox_history h
       where h.id = retry.id order by h.settled_at desc limit 1),
      'unknown');
  elsif held.state not in ('parked', 'scheduled', 'blocked') then
    return 'not held: ' || held.state;
  elsif held.state = 'blocked' then
    return 'blocked';
  elsif held.state = 'scheduled' and held.deliver_at > clock_timestamp() then
    return 'not due yet';
  end if;
  update waybill.outbox o
  set state = 'scheduled', attempts = 0, hold_no = null,
    next_attempt_at = greatest(clock_timestamp(), held.deliver_at)
  where o.seq = held.seq;
  insert into waybill.action_log (action, target, reason, details)
  values ('outbox.retry', retry.id::text, retry.reason, jsonb_build_object(
    'state', held.state, 'type', held.type, 'attempts', held.attempts, 'error', held.last_error));
  return 'scheduled';
end
$$;

comment on function waybill.retry(uuid, text) is
  'Has the relay publish a parked row, or one that waits for its next attempt, at once and with its attempts counted anew; the error stays until it is published. Answers: scheduled; or, with nothing changed: blocked (a parked row of its key goes first), not due yet (it waits for its deliver_at), not held: ready (or cancelled, discarded), already published (or another outcome of the history), unknown. What it changes is written to the action_log.';

create function waybill.discard(id uuid, reason text default null) returns text
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
declare
  held record;
begin
  select o.seq, o.state, o.type, o.attempts, o.last_error into held
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
  insert into waybill.action_log (action, target, reason, details)
  values ('outbox.discard', discard.id::text, discard.reason, jsonb_build_object(
    'state', held.state, 'type', held.type, 'attempts', held.attempts, 'error', held.last_error));
  return 'discarded';
end
$$;

comment on function waybill.discard(uuid, text) is
  'Gives a parked, blocked or scheduled row up: it will never be published, and the relay moves it to the history. Answers: discarded; or, with nothing changed: not held: ready (or cancelled, discarded), already published (or another outcome of the history), unknown. What it changes is written to the action_log.';

revoke all on waybill.action_log from public;
revoke all on sequence waybill.action_log_seq_seq from public;
revoke all on function waybill.retry(uuid, text), waybill.discard(uuid, text) from public;

insert into waybill.migration (version, name, oldest_binary) values (2, 'outbox_operations', 1);

commit;
