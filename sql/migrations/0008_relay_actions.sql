-- oldest-binary: 1
--
-- What operators do to a relay's record, with the log of it: adopt it on other servers, or drop it. Programs built for
-- earlier versions of the schema run on it unchanged.

begin;

set local lock_timeout = '5s';
set local search_path = pg_catalog, pg_temp;

create function waybill.adopt_relay(relay text, reason text default null) returns boolean
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
declare
  old waybill.relay;
begin
  select r.* into old from waybill.relay r where r.name = adopt_relay.relay for update;
  if old.name is null then
    return false;
  end if;
  update waybill.relay r
  set system_identifier = null, timeline = null, broker_cluster = null, broker_vhost = null,
    checkpoint_lsn = null, checkpoint_at = null, epoch = r.epoch + 1
  where r.name = old.name;
  insert into waybill.action_log (action, target, reason, details)
  values ('relay.adopt', old.name, adopt_relay.reason, jsonb_strip_nulls(jsonb_build_object(
    'slot', old.slot, 'system_identifier', old.system_identifier::text, 'timeline', old.timeline,
    'broker_cluster', old.broker_cluster, 'broker_vhost', old.broker_vhost,
    'checkpoint_lsn', old.checkpoint_lsn::text, 'holder', old.holder)));
  return true;
end
$$;

comment on function waybill.adopt_relay(text, text) is
  'Forgets which servers a stopped relay worked with, and its position, so that its next start records the servers anew and reads the table before the stream. False when no such relay is recorded. Written to the action_log.';

create function waybill.drop_relay(relay text, reason text default null) returns boolean
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
declare
  old waybill.relay;
begin
  delete from waybill.relay r where r.name = drop_relay.relay returning r.* into old;
  if old.name is null then
    return false;
  end if;
  insert into waybill.action_log (action, target, reason, details)
  values ('relay.drop', old.name, drop_relay.reason, jsonb_strip_nulls(jsonb_build_object(
    'slot', old.slot, 'system_identifier', old.system_identifier::text,
    'broker_cluster', old.broker_cluster, 'broker_vhost', old.broker_vhost,
    'checkpoint_lsn', old.checkpoint_lsn::text, 'holder', old.holder)));
  return true;
end
$$;

comment on function waybill.drop_relay(text, text) is
  'Deletes the record of a stopped relay; its slot is dropped by whoever calls it, rows of the outbox stay. False when no such relay is recorded. Written to the action_log.';

comment on column waybill.action_log.action is
  'outbox.retry, outbox.discard, outbox.replay; inbox.retry and the like; consumer.pause and the like; redact; relay.adopt or relay.drop.';
comment on column waybill.action_log.target is 'The id of the message, or the name of the consumer or of the relay.';

revoke all on function waybill.adopt_relay(text, text), waybill.drop_relay(text, text) from public;

insert into waybill.migration (version, name, oldest_binary) values (8, 'relay_actions', 1);

commit;
