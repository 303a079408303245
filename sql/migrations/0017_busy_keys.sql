-- oldest-binary: 1
--
-- A transaction that is left open on one key of an ordered consumer holds up the rows of that key, and no longer whatever
-- arrives with them. Programs built for earlier versions of the schema run on it unchanged.

begin;

set local lock_timeout = '5s';
set local search_path = pg_catalog, pg_temp;

create or replace function waybill.store_arrivals(settings waybill.consumer, messages json, bodies bytea, applying boolean)
returns table (
  ordinal int, outcome text, seq bigint, status text, attempt int, dead_reason text, error text, key text, failed text,
  message waybill.inbox_message
)
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
  by_key constant boolean := settings.ordering = 'key';
  began timestamptz;
  usual_timeout constant text := current_setting('lock_timeout');
  patience_ms int;
  wanted record;
  busy text[] := '{}';
  arrival record;
  existing record;
  twins int[] := '{}';
  conflict_id text;
  bytes bigint := 0;
begin
  -- One intake at a time: without the lock of a key its rows are seen, in the order of seq, by whoever brings the next ones.
  -- A lock that somebody keeps holds up the rows of its key alone: they wait as blocked, and the sweep releases them. Why
  -- wait at all: most end at once, and whoever ends then sees the rows and releases them.
  if by_key then
    perform pg_advisory_xact_lock(hashtextextended('waybill.intake ' || settings.name, 0));
    began := clock_timestamp();
    for wanted in
      select k.key, waybill.key_lock(settings.name, k.key) as lock
      from (select distinct m.key from json_to_recordset(messages) as m (key text)) as k
      where k.key is not null order by 2
    loop
      continue when pg_try_advisory_xact_lock(wanted.lock);
      patience_ms := extract(epoch from began + interval '1 second' - clock_timestamp()) * 1000;
      -- Not again for a key that is held for long.
      if patience_ms > 0 and (
        select h.received_at from waybill.inbox h
        where h.consumer = settings.name and h.key = wanted.key and h.status = 'blocked' order by h.seq + 0 limit 1
      ) < began - interval '1 second' is not true then
        begin
          perform set_config('lock_timeout', patience_ms::text, true);
          perform pg_advisory_xact_lock(wanted.lock);
          perform set_config('lock_timeout', usual_timeout, true);
          continue;
        exception when lock_not_available then
          -- The setting is back, too.
        end;
      end if;
      busy := busy || wanted.key;
    end loop;
  end if;

  -- seq is drawn in the order of delivery, then rows go in by message id: two batches never wait for each other.
  -- "offset 0" keeps the looks at a key looks at a key; else all keys of the consumer may be read first and hashed.
  for arrival in
    with arrivals as materialized (
      select r.*,
        row_number() over (partition by r.message_id order by r.ordinal) = 1 as first,
        coalesce(bool_or(r.dead_reason is null or settings.on_dead = 'block' and r.dead_reason <> 'conflict') over (
          partition by r.key order by r.ordinal rows between unbounded preceding and 1 preceding), false) as follows
      from waybill.arrivals(messages, bodies) as r
    ), inserted as (
      insert into waybill.inbox as i (
        seq, consumer, message_id, original_id, type, key, schema_version, body, content_type, content_encoding, headers,
        exchange, routing_key, correlation_id, causation_id, reply_to, app_id, priority, occurred_at, traceparent,
        tracestate, body_hash, status, abandoned, last_error, dead_reason, raw_properties, processed_at
      ) overriding system value
      select
        d.seq, settings.name, d.message_id, d.original_id, d.type, d.key, d.schema_version,
        case when d.status <> 'done' or settings.retain_bodies > interval '0' then d.body end, d.content_type,
        d.content_encoding, coalesce(d.headers, '{}'), d.exchange, d.routing_key, d.correlation_id, d.causation_id,
        d.reply_to, d.app_id, d.priority, d.occurred_at, d.traceparent, d.tracestate, sha256(d.body), d.status,
        case when d.hold then 2 else 0 end, left(d.error, 4000), d.dead_reason, decode(d.raw_properties, 'base64'),
        case when d.status in ('done', 'dead') then clock_timestamp() end
      from (
        select f.*, nextval('waybill.inbox_seq_seq'::regclass) as seq,
          case
            when f.dead_reason is not null then 'dead'
            when by_key and f.key is not null and (f.follows and not applying or f.key = any (busy) or exists (
              select from waybill.inbox h
              where h.consumer = settings.name and h.key = f.key
                and h.status in ('pending', 'running', 'waiting', 'dead')
                and (h.status <> 'dead' or settings.on_dead = 'block' and h.dead_reason <> 'conflict')
              offset 0
            ) or exists (
              select from waybill.inbox h
              where h.consumer = settings.name and h.key = f.key and h.status = 'blocked' offset 0
            )) then 'blocked'
            when applying and not f.hold and f.failed is null then 'done'
            else 'pending'
          end as status
        from (select * from arrivals where first order by ordinal) as f
      ) as d
      order by d.message_id collate "C"
      on conflict on constraint inbox_message_id_is_unique_per_consumer do nothing
      returning i.seq, i.message_id, i.status
    )
    select a.*, i.seq, i.status as stored_as
    from arrivals a left join inserted i on i.message_id = a.message_id and a.first
    order by a.ordinal
  loop
    bytes := bytes + arrival.size;
    if arrival.seq is null then
      twins := twins || arrival.ordinal;
      continue;
    end if;
    ordinal := arrival.ordinal;
    outcome := 'inserted';
    seq := arrival.seq;
    status := arrival.stored_as;
    attempt := case when arrival.hold then 3 else 1 end;
    dead_reason := arrival.dead_reason;
    error := arrival.error;
    key := case when by_key then arrival.key end;
    failed := arrival.failed;
    message := case when status = 'done' then row(
      arrival.seq, 1, settings.name, arrival.message_id, arrival.original_id, arrival.type, arrival.key,
      arrival.schema_version, arrival.body, arrival.content_type, arrival.content_encoding,
      coalesce(arrival.headers, '{}'), arrival.exchange, arrival.routing_key, arrival.correlation_id,
      arrival.causation_id, arrival.reply_to, arrival.app_id, arrival.priority, arrival.occurred_at,
      arrival.traceparent, arrival.tracestate, clock_timestamp()
    )::waybill.inbox_message end;
    return next;
  end loop;

  if bytes <> octet_length(bodies) then
    raise exception 'the sizes of the messages say % bytes, the bodies are %', bytes, octet_length(bodies)
      using errcode = '22023';
  end if;

  -- A second statement, because a winner that committed meanwhile is invisible to the first.
  attempt := null;
  key := null;
  failed := null;
  message := null;
  for arrival in
    select r.*, sha256(r.body) as body_hash
    from waybill.arrivals(messages, bodies) as r
    where cardinality(twins) > 0 and r.ordinal = any (twins) order by r.message_id collate "C", r.ordinal
  loop
    select i.seq, i.status, i.body_hash into existing from waybill.inbox i
    where i.consumer = settings.name and i.message_id = arrival.message_id;
    if not found then
      raise exception 'a row that stood in the way was removed meanwhile' using errcode = '40001';
    end if;
    ordinal := arrival.ordinal;
    outcome := 'duplicate';
    seq := existing.seq;
    status := existing.status;
    dead_reason := null;
    error := null;
    if existing.body_hash <> arrival.body_hash and arrival.dead_reason is distinct from 'broker' then
      outcome := 'conflict';
      dead_reason := 'conflict';
      error := format('another body came under this id before: row %s', existing.seq);
      conflict_id := 'conflict:' || encode(sha256(convert_to(arrival.message_id, 'UTF8') || '\x00' || arrival.body), 'hex');
      insert into waybill.inbox as i (
        consumer, message_id, original_id, type, key, schema_version, body, content_type, content_encoding, headers,
        exchange, routing_key, correlation_id, causation_id, reply_to, app_id, priority, occurred_at, traceparent,
        tracestate, body_hash, status, last_error, dead_reason, processed_at
      ) values (
        settings.name, conflict_id, arrival.message_id, arrival.type, arrival.key, arrival.schema_version, arrival.body,
        arrival.content_type, arrival.content_encoding, coalesce(arrival.headers, '{}'), arrival.exchange,
        arrival.routing_key, arrival.correlation_id, arrival.causation_id, arrival.reply_to, arrival.app_id,
        arrival.priority, arrival.occurred_at, arrival.traceparent, arrival.tracestate, arrival.body_hash, 'dead',
        error, dead_reason, clock_timestamp()
      )
      on conflict on constraint inbox_message_id_is_unique_per_consumer do nothing
      returning i.seq into seq;
      seq := coalesce(seq, (
        select i.seq from waybill.inbox i where i.consumer = settings.name and i.message_id = conflict_id));
      status := 'dead';
    end if;
    return next;
  end loop;

  -- A row was stored as blocked behind one of the same batch that turned out to be a duplicate. Not without the lock.
  if by_key and cardinality(twins) > 0 then
    perform waybill.release_key(settings, k.key) from (
      select distinct m.key from json_to_recordset(messages) as m (key text)
      where m.key is not null and m.key <> all (busy)
    ) as k;
  end if;
end
$$;

insert into waybill.migration (version, name, oldest_binary) values (17, 'busy_keys', 1);

commit;
