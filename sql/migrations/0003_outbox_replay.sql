-- oldest-binary: 1
--
-- Publishes again what had been published: waybill.replay. Adds an index by which the history is followed while it
-- grows. Programs built for earlier versions of the schema run on it unchanged.

begin;

set local lock_timeout = '5s';
set local search_path = pg_catalog, pg_temp;

-- Why BRIN: rows come in this order, so it is a few pages for a day, and the relay pays next to nothing for it.
create index outbox_history_settled on waybill.outbox_history using brin (settled_at);

comment on index waybill.outbox_history_settled is 'What left the outbox in a span of time; for whoever follows it.';

create function waybill.replay(id uuid, reason text default null, as_new boolean default false) returns text
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
declare
  kept record;
  waiting text;
  new_id uuid;
begin
  select h.* into kept from waybill.outbox_history h where h.id = replay.id order by h.settled_at desc limit 1;
  select o.state into waiting from waybill.outbox o where o.id = replay.id;
  if waiting is not null and not (coalesce(as_new, false) and kept.id is not null) then
    return 'in the outbox: ' || waiting;
  elsif kept.id is null then
    return 'unknown';
  elsif kept.outcome not in ('published', 'accepted') then
    return 'not published: ' || kept.outcome;
  elsif kept.headers is null then
    return 'body not kept';
  end if;
  new_id := case when as_new then gen_random_uuid() else replay.id end;
  insert into waybill.outbox (
    id, type, key, schema_version, payload, payload_bytes, content_type, content_encoding, headers, exchange,
    routing_key, correlation_id, causation_id, reply_to, traceparent, tracestate, priority, occurred_at
  ) values (
    new_id, kept.type, kept.key, kept.schema_version, kept.payload, kept.payload_bytes, kept.content_type,
    kept.content_encoding, kept.headers, kept.exchange, kept.routing_key, kept.correlation_id, kept.causation_id,
    kept.reply_to, kept.traceparent, kept.tracestate, kept.priority, kept.occurred_at
  )
  -- Somebody else replays it at this moment.
  on conflict on constraint outbox_id_is_unique do nothing;
  if not found then
    return 'in the outbox: ready';
  end if;
  insert into waybill.action_log (action, target, reason, details)
  values ('outbox.replay', replay.id::text, replay.reason, jsonb_strip_nulls(jsonb_build_object(
    'type', kept.type, 'published_at', kept.published_at, 'new_id', case when as_new then new_id end)));
  if as_new then
    insert into waybill.action_log (action, target, reason, details)
    values ('outbox.replay', new_id::text, replay.reason, jsonb_build_object('type', kept.type, 'copy_of', replay.id));
    return 'replayed as ' || new_id;
  end if;
  return 'replayed';
end
$$;

comment on function waybill.replay(uuid, text, boolean) is
  'Publishes a message of the history once more, with the id, type, key, route, headers and body that it had, so that a consumer that had it ignores it; its not-before and not-after times are left out. With as_new the copy has an id of its own, and every consumer takes it for another message. Answers: replayed; replayed as ID; or, with nothing changed: in the outbox: ready (or another state; it goes out from there), not published: discarded (or another outcome), body not kept (relay.history was not full), unknown (or longer ago than the history goes back). What it does is written to the action_log.';

comment on column waybill.action_log.action is 'outbox.retry, outbox.discard or outbox.replay.';

revoke all on function waybill.replay(uuid, text, boolean) from public;

insert into waybill.migration (version, name, oldest_binary) values (3, 'outbox_replay', 1);

commit;
