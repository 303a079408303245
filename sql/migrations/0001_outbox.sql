-- oldest-binary: 1
--
-- The outbox half of Waybill: the table that applications write to, the history of what went out, the relay's own
-- state, and the functions that are the public API. Runs with psql as it stands; the program does the same with the
-- configured schema in the place of the schema's name. Runs on PostgreSQL 14 and later.

begin;

set local lock_timeout = '5s';
-- Whoever may create in a schema of the session's search path has nothing of his run by what follows.
set local search_path = pg_catalog, pg_temp;

do $$
begin
  -- Why: "create schema if not exists" asks for CREATE on the database even when the schema is there already.
  if to_regnamespace('waybill') is null then
    create schema waybill;
  end if;
end
$$;

comment on schema waybill is 'Waybill: transactional outbox relayed to RabbitMQ.';

-- Bookkeeping ---------------------------------------------------------------------------------------------------------

create table waybill.migration (
  version int primary key,
  name text not null,
  oldest_binary int not null,
  applied_at timestamptz not null default now(),
  constraint migration_version_is_positive check (version >= 1),
  constraint migration_oldest_binary_is_not_newer check (oldest_binary between 1 and version)
);

comment on table waybill.migration is 'The migrations that were applied, one row each.';
comment on column waybill.migration.version is 'Number of the migration; the highest one is the version of the schema.';
comment on column waybill.migration.name is 'Name of the migration, as in its file.';
comment on column waybill.migration.oldest_binary is
  'Lowest schema version that a program may have been built for and still work on this one.';
comment on column waybill.migration.applied_at is 'When it was applied.';

create table waybill.installation (
  only_row boolean primary key default true,
  id uuid not null default gen_random_uuid(),
  created_at timestamptz not null default now(),
  constraint installation_has_one_row check (only_row)
);

comment on table waybill.installation is
  'One row: the identity of this installation. Every copy of the database keeps it, so that a copy cannot publish beside the original.';
comment on column waybill.installation.only_row is 'Always true; keeps the table at one row.';
comment on column waybill.installation.id is 'Part of the name of the lock queue on the broker.';
comment on column waybill.installation.created_at is 'When the schema was installed.';

insert into waybill.installation default values;

create table waybill.relay (
  name text primary key,
  slot text,
  source text not null default 'wal',
  epoch bigint not null default 0,
  holder text,
  holder_since timestamptz,
  checkpoint_lsn pg_lsn,
  checkpoint_at timestamptz,
  system_identifier bigint,
  timeline int,
  broker_cluster text,
  broker_vhost text,
  pass_after_seq bigint,
  pass_upto_seq bigint,
  insert_then_delete_seen boolean not null default false,
  created_at timestamptz not null default now(),
  constraint relay_source_is_wal_or_table check (source in ('wal', 'table'))
);

comment on table waybill.relay is 'The state of the relay, one row; written by the relay under its epoch.';
comment on column waybill.relay.name is 'Name of the relay in its configuration.';
comment on column waybill.relay.slot is 'Name of its replication slot.';
comment on column waybill.relay.source is 'wal: reads the replication slot. table: polls the table.';
comment on column waybill.relay.epoch is 'Grows by one with each takeover; a settle that carries an older one changes nothing.';
comment on column waybill.relay.holder is 'host:pid of the process that took the epoch last.';
comment on column waybill.relay.holder_since is 'When it took the epoch.';
comment on column waybill.relay.checkpoint_lsn is
  'Everything committed before it is settled. Null: a pass over the table is due before the stream.';
comment on column waybill.relay.checkpoint_at is 'When the checkpoint was written last.';
comment on column waybill.relay.system_identifier is 'PostgreSQL cluster that the relay works with.';
comment on column waybill.relay.timeline is 'Timeline of that cluster; another one means a failover.';
comment on column waybill.relay.broker_cluster is 'RabbitMQ cluster that the relay works with.';
comment on column waybill.relay.broker_vhost is 'Virtual host on that cluster.';
comment on column waybill.relay.pass_after_seq is 'A table pass under way has handled the rows up to this one.';
comment on column waybill.relay.pass_upto_seq is 'A table pass under way ends with this row.';
comment on column waybill.relay.insert_then_delete_seen is
  'A row was deleted by its own writer before it was published; only the replication slot can see such rows.';
comment on column waybill.relay.created_at is 'When the relay was seen first.';

-- Outbox --------------------------------------------------------------------------------------------------------------

-- Reserved names are compared in capitals.
create function waybill.headers_are_publishable(headers jsonb) returns boolean
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
  header record;
  header_count int := 0;
begin
  if headers is null or jsonb_typeof(headers) <> 'object' then
    return headers is null;
  end if;
  for header in select h.key as name, h.value from jsonb_each(headers) as h loop
    header_count := header_count + 1;
    if header_count > 256
      or octet_length(header.name) not between 1 and 255
      or upper(header.name collate "C") in ('CC', 'BCC', 'USER_ID', 'USER-ID')
      or upper(header.name collate "C") ~ '^X-(DEATH|DELAY|MATCH|RECEIVED-FROM|DELIVERY-COUNT|STREAM-OFFSET)$'
      or upper(header.name collate "C") ~ '^X-(FIRST-DEATH|LAST-DEATH|WAYBILL-)'
    then
      return false;
    end if;
    case jsonb_typeof(header.value)
      when 'string', 'boolean' then
        null;
      when 'number' then
        -- Why: 1e131071 is ten bytes here and 131 kB as text; nothing outside a double is worth that. Raised here,
        -- because the server's own message of a broken rule would write the text of the whole row first.
        if abs((header.value)::numeric) > 1.7976931348623157e308 or scale((header.value)::numeric) > 400 then
          raise exception 'header % is a number out of the range of a double', to_json(header.name)
            using errcode = '23514', constraint = 'outbox_headers_are_publishable';
        end if;
      else
        return false;
    end case;
  end loop;
  return true;
end
$$;

comment on function waybill.headers_are_publishable(jsonb) is
  'True if these can be the headers of a message: an object of at most 256 strings, numbers (within a double) and booleans, names of 1 to 255 bytes, none reserved (CC, BCC, user_id, x-death, x-delay, x-match, x-first-death..., x-last-death..., x-received-from, x-delivery-count, x-stream-offset, X-Waybill-..., in any case). A number out of that range raises 23514.';

create table waybill.outbox (
  seq bigint generated always as identity primary key,
  id uuid not null default gen_random_uuid(),
  type text not null,
  key text,
  schema_version int not null default 1,
  payload json,
  payload_bytes bytea,
  content_type text,
  content_encoding text,
  headers jsonb not null default '{}',
  exchange text,
  routing_key text,
  correlation_id text,
  causation_id text,
  reply_to text,
  traceparent text,
  tracestate text,
  priority smallint,
  expires_at timestamptz,
  deliver_at timestamptz,
  occurred_at timestamptz not null default now(),
  created_at timestamptz not null default now(),
  state text not null default 'ready',
  attempts int not null default 0,
  last_error text,
  next_attempt_at timestamptz,
  hold_no bigint,
  constraint outbox_id_is_unique unique (id),
  constraint outbox_type_is_not_empty check (type <> ''),
  constraint outbox_type_at_most_255_bytes check (octet_length(type) <= 255),
  constraint outbox_key_at_most_1024_bytes check (octet_length(key) <= 1024),
  constraint outbox_schema_version_is_at_least_1 check (schema_version >= 1),
  constraint outbox_one_payload check (num_nonnulls(payload, payload_bytes) <= 1),
  constraint "outbox_payload_at_most_15_MiB" check (
    octet_length(payload::text) <= 15728640 and octet_length(payload_bytes) <= 15728640
  ),
  constraint outbox_content_type_at_most_255_bytes check (octet_length(content_type) <= 255),
  constraint outbox_content_encoding_at_most_255_bytes check (octet_length(content_encoding) <= 255),
  constraint outbox_headers_are_an_object check (jsonb_typeof(headers) = 'object'),
  constraint outbox_headers_are_publishable check (headers = '{}' or waybill.headers_are_publishable(headers)),
  constraint "outbox_headers_at_most_48_KiB" check (headers = '{}' or octet_length(headers::text) <= 49152),
  constraint outbox_exchange_at_most_255_bytes check (octet_length(exchange) <= 255),
  constraint outbox_routing_key_at_most_255_bytes check (octet_length(routing_key) <= 255),
  constraint outbox_correlation_id_at_most_255_bytes check (octet_length(correlation_id) <= 255),
  constraint outbox_causation_id_at_most_255_bytes check (octet_length(causation_id) <= 255),
  constraint outbox_reply_to_at_most_255_bytes check (octet_length(reply_to) <= 255),
  constraint outbox_traceparent_at_most_255_bytes check (octet_length(traceparent) <= 255),
  constraint outbox_tracestate_at_most_512_bytes check (octet_length(tracestate) <= 512),
  constraint outbox_priority_is_0_to_255 check (priority between 0 and 255),
  constraint outbox_expires_at_is_finite check (isfinite(expires_at)),
  constraint outbox_deliver_at_is_finite check (isfinite(deliver_at)),
  constraint outbox_occurred_at_is_between_1970_and_9999
    check (occurred_at between '1970-01-01 00:00:00+00' and '9999-12-31 23:59:59+00'),
  constraint outbox_state_is_known
    check (state in ('ready', 'scheduled', 'parked', 'blocked', 'cancelled', 'discarded')),
  constraint outbox_scheduled_rows_have_a_next_attempt check (state <> 'scheduled' or next_attempt_at is not null),
  constraint outbox_held_rows_have_a_hold_number check (state not in ('parked', 'blocked') or hold_no is not null),
  constraint outbox_blocked_rows_have_a_key check (state <> 'blocked' or key is not null)
)
-- Why: a queue table is small or turns over wholly, so vacuum goes by row counts, not by a share of the table;
-- truncating the end of the file would take an exclusive lock away from writers.
with (
  autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
  autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 50000,
  autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 20000,
  toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 5000,
  vacuum_truncate = false, toast.vacuum_truncate = false
);

create sequence waybill.outbox_hold_no owned by waybill.outbox.hold_no;
create index outbox_due on waybill.outbox (next_attempt_at) where state = 'scheduled';
create index outbox_held on waybill.outbox (key, hold_no) where state in ('parked', 'blocked');
create index outbox_withdrawn on waybill.outbox (seq) where state in ('cancelled', 'discarded');

comment on table waybill.outbox is
  'The backlog: a row is here until it is published. Applications insert, in their own transaction; only the relay removes rows.';
comment on column waybill.outbox.seq is 'Position in the table; no promise of order.';
comment on column waybill.outbox.id is 'The AMQP message_id of every copy of the message. May be given (UUID version 7 is welcome).';
comment on column waybill.outbox.type is 'Type of the event, such as order.paid: the AMQP type and the default routing key.';
comment on column waybill.outbox.key is 'Key of the entity, such as an order number: the unit of ordering. Null: unordered.';
comment on column waybill.outbox.schema_version is 'Version of the schema of the payload.';
comment on column waybill.outbox.payload is 'Body as JSON, published byte for byte as written. At most one of payload and payload_bytes.';
comment on column waybill.outbox.payload_bytes is 'Body as bytes. Neither payload nor payload_bytes: an empty body.';
comment on column waybill.outbox.content_type is
  'AMQP content type. Null: application/json, or application/octet-stream when the body is payload_bytes.';
comment on column waybill.outbox.content_encoding is 'AMQP content encoding.';
comment on column waybill.outbox.headers is 'AMQP headers: an object of strings, numbers and booleans; reserved names are refused.';
comment on column waybill.outbox.exchange is 'Exchange to publish to. Null: the relay''s default.';
comment on column waybill.outbox.routing_key is 'Routing key. Null: the relay''s default, the type.';
comment on column waybill.outbox.correlation_id is 'AMQP correlation id.';
comment on column waybill.outbox.causation_id is 'Id of the message that caused this one; carried as a header.';
comment on column waybill.outbox.reply_to is 'AMQP reply-to.';
comment on column waybill.outbox.traceparent is 'W3C trace context; carried as a header.';
comment on column waybill.outbox.tracestate is 'W3C trace state; carried as a header.';
comment on column waybill.outbox.priority is 'AMQP priority, 0 to 255.';
comment on column waybill.outbox.expires_at is 'Not published after this time; it goes to the history as expired.';
comment on column waybill.outbox.deliver_at is 'Not published before this time.';
comment on column waybill.outbox.occurred_at is 'Business time of the event: the AMQP timestamp.';
comment on column waybill.outbox.created_at is 'Start of the transaction that wrote the row.';
comment on column waybill.outbox.state is
  'ready; scheduled (waits for deliver_at or a retry); parked (cannot be published); blocked (behind a parked row of its key); cancelled; discarded.';
comment on column waybill.outbox.attempts is 'Failed attempts to publish; 0 while ready.';
comment on column waybill.outbox.last_error is 'Why the row is held.';
comment on column waybill.outbox.next_attempt_at is 'When a scheduled row is due.';
comment on column waybill.outbox.hold_no is 'Order in which rows of a key were held, from the sequence outbox_hold_no.';
comment on sequence waybill.outbox_hold_no is 'Numbers for outbox.hold_no.';
comment on constraint outbox_id_is_unique on waybill.outbox is
  'Lets a writer drop its own duplicates while they are pending, by "on conflict (id) do nothing".';
comment on constraint outbox_one_payload on waybill.outbox is 'A body is JSON or bytes, not both; neither is an empty body.';
comment on constraint "outbox_payload_at_most_15_MiB" on waybill.outbox is
  'RabbitMQ 4 takes 16 MiB; and a row of hundreds of megabytes could be written, but never be decoded.';
comment on constraint outbox_headers_are_publishable on waybill.outbox is
  'At most 256 headers; strings, numbers and booleans only; names of 1 to 255 bytes, none reserved for the broker or for Waybill.';
comment on constraint "outbox_headers_at_most_48_KiB" on waybill.outbox is
  'The client library sends at most 64 KiB of headers; the rest is for those that Waybill adds.';
comment on constraint outbox_occurred_at_is_between_1970_and_9999 on waybill.outbox is
  'The AMQP timestamp counts seconds from 1970.';
comment on index waybill.outbox_due is 'Scheduled rows by the time they are due.';
comment on index waybill.outbox_held is 'Parked and blocked rows by key, in the order they were held.';
comment on index waybill.outbox_withdrawn is 'Cancelled and discarded rows, which the relay moves to the history.';

create view waybill.outbox_backlog as
select
  state,
  type,
  count(*) as count,
  min(created_at) as oldest_at,
  clock_timestamp() - min(created_at) as oldest_age,
  sum(coalesce(octet_length(payload_bytes), octet_length(payload::text), 0))::bigint as bytes
from waybill.outbox
group by state, type;

comment on view waybill.outbox_backlog is 'What is in the outbox, by state and type. Reads the whole table.';
comment on column waybill.outbox_backlog.state is 'State of the rows.';
comment on column waybill.outbox_backlog.type is 'Type of the events.';
comment on column waybill.outbox_backlog.count is 'Number of rows.';
comment on column waybill.outbox_backlog.oldest_at is 'When the oldest one was written.';
comment on column waybill.outbox_backlog.oldest_age is 'How long ago that is.';
comment on column waybill.outbox_backlog.bytes is 'Bytes of their bodies.';

-- History -------------------------------------------------------------------------------------------------------------

create table waybill.outbox_history (
  settled_at timestamptz not null default clock_timestamp(),
  outcome text not null,
  id uuid not null,
  seq bigint,
  type text not null,
  key text,
  schema_version int,
  exchange text,
  routing_key text,
  attempts int,
  created_at timestamptz,
  occurred_at timestamptz,
  published_at timestamptz,
  size int,
  sha256 bytea,
  payload json,
  payload_bytes bytea,
  content_type text,
  content_encoding text,
  headers jsonb,
  correlation_id text,
  causation_id text,
  reply_to text,
  traceparent text,
  tracestate text,
  priority smallint,
  expires_at timestamptz,
  deliver_at timestamptz,
  constraint outbox_history_outcome_is_known
    check (outcome in ('published', 'accepted', 'cancelled', 'discarded', 'expired'))
) partition by range (settled_at);

create table waybill.outbox_history_default partition of waybill.outbox_history default;
create index outbox_history_id on waybill.outbox_history (id);
create index outbox_history_key on waybill.outbox_history (key, settled_at);

comment on table waybill.outbox_history is
  'What left the outbox, and how; one partition for each day (UTC), dropped after the retention.';
comment on table waybill.outbox_history_default is
  'Takes the rows of a day that has no partition, so that a missing one never stalls the relay.';
comment on column waybill.outbox_history.settled_at is 'When the row left the outbox.';
comment on column waybill.outbox_history.outcome is
  'published (confirmed by the broker); accepted (no queue was bound, and the relay is told to take that); cancelled; discarded; expired.';
comment on column waybill.outbox_history.id is 'The message_id. Occurs again if the message is replayed.';
comment on column waybill.outbox_history.seq is 'Position it had in the outbox.';
comment on column waybill.outbox_history.type is 'Type of the event.';
comment on column waybill.outbox_history.key is 'Key of the entity.';
comment on column waybill.outbox_history.schema_version is 'Version of the schema of the payload.';
comment on column waybill.outbox_history.exchange is 'Exchange it was published to.';
comment on column waybill.outbox_history.routing_key is 'Routing key it was published with.';
comment on column waybill.outbox_history.attempts is 'Attempts it took.';
comment on column waybill.outbox_history.created_at is 'When it was written to the outbox.';
comment on column waybill.outbox_history.occurred_at is 'Business time of the event.';
comment on column waybill.outbox_history.published_at is 'When the broker confirmed it; null if it was never published.';
comment on column waybill.outbox_history.size is 'Bytes of the body.';
comment on column waybill.outbox_history.sha256 is 'SHA-256 of the body.';
comment on column waybill.outbox_history.payload is 'Body as JSON; this and the following columns only with history: full.';
comment on column waybill.outbox_history.payload_bytes is 'Body as bytes.';
comment on column waybill.outbox_history.content_type is 'As in the outbox.';
comment on column waybill.outbox_history.content_encoding is 'As in the outbox.';
comment on column waybill.outbox_history.headers is 'As in the outbox.';
comment on column waybill.outbox_history.correlation_id is 'As in the outbox.';
comment on column waybill.outbox_history.causation_id is 'As in the outbox.';
comment on column waybill.outbox_history.reply_to is 'As in the outbox.';
comment on column waybill.outbox_history.traceparent is 'As in the outbox.';
comment on column waybill.outbox_history.tracestate is 'As in the outbox.';
comment on column waybill.outbox_history.priority is 'As in the outbox.';
comment on column waybill.outbox_history.expires_at is 'As in the outbox.';
comment on column waybill.outbox_history.deliver_at is 'As in the outbox.';
comment on index waybill.outbox_history_id is 'One message by its id.';
comment on index waybill.outbox_history_key is 'The messages of a key, by time.';

create function waybill.keep_history(days_ahead int default 3, retention interval default '7 days')
returns table (partition text, action text)
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
set lock_timeout = '200ms'
as $$
declare
  most_rows_moved constant int := 10000;
  most_rows_trimmed constant int := 50000;
  most_partitions_dropped constant int := 10;
  today constant date := (clock_timestamp() at time zone 'UTC')::date;
  keep_from timestamptz;
  starts_at timestamptz;
  ends_at timestamptz;
  row_count bigint;
  day date;
begin
  if days_ahead is null or days_ahead not between 0 and 366 then
    raise exception 'days_ahead must be 0 to 366' using errcode = '22023';
  end if;
  if retention is null or retention < interval '0' then
    raise exception 'retention must not be negative' using errcode = '22023';
  end if;
  keep_from := clock_timestamp() - retention;

  if not pg_try_advisory_xact_lock('waybill.outbox_history'::regclass::oid::bigint) then
    partition := 'outbox_history';
    action := 'later';
    return next;
    return;
  end if;

  for offset_days in 0..days_ahead loop
    day := today + offset_days;
    partition := 'outbox_history_' || to_char(day, 'YYYYMMDD');
    continue when exists (
      select from pg_inherits i join pg_class c on c.oid = i.inhrelid
      where i.inhparent = 'waybill.outbox_history'::regclass and c.relname = partition
    );
    starts_at := day::timestamp at time zone 'UTC';
    ends_at := (day + 1)::timestamp at time zone 'UTC';
    begin
      -- Why: CREATE ... PARTITION OF would wait behind every reader of the parent; ATTACH does not. The default
      -- partition is locked first, because rows written to it between the move and the attach would make it fail.
      lock table waybill.outbox_history_default in access exclusive mode;
      select count(*) into row_count from (
        select from waybill.outbox_history_default d
        where d.settled_at >= starts_at and d.settled_at < ends_at limit most_rows_moved + 1
      ) as rows_of_the_day;
      if row_count > most_rows_moved then
        action := 'left in default';
      else
        execute format('create table waybill.%I (like waybill.outbox_history including all)', partition);
        if row_count > 0 then
          execute format(
            'with moved as (delete from waybill.outbox_history_default
               where settled_at >= $1 and settled_at < $2 returning *)
             insert into waybill.%I select * from moved', partition) using starts_at, ends_at;
        end if;
        execute format(
          'alter table waybill.outbox_history attach partition waybill.%I for values from (%L) to (%L)',
          partition, to_char(day, 'YYYY-MM-DD') || ' 00:00:00+00', to_char(day + 1, 'YYYY-MM-DD') || ' 00:00:00+00');
        action := 'created';
      end if;
    exception
      when lock_not_available or deadlock_detected then
        action := 'later';
    end;
    return next;
  end loop;

  for partition, day in
    select c.relname, to_date(right(c.relname, 8), 'YYYYMMDD')
    from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'waybill.outbox_history'::regclass
      and c.relname ~ '^outbox_history_[0-9]{8}$'
      and (to_date(right(c.relname, 8), 'YYYYMMDD') + 1)::timestamp at time zone 'UTC' <= keep_from
    order by c.relname
    limit most_partitions_dropped
  loop
    begin
      execute format('drop table waybill.%I', partition);
      action := 'dropped';
    exception
      when lock_not_available or deadlock_detected then
        action := 'later';
    end;
    return next;
  end loop;

  partition := 'outbox_history_default';
  begin
    delete from waybill.outbox_history_default where ctid = any (array(
      select d.ctid from waybill.outbox_history_default d where d.settled_at < keep_from limit most_rows_trimmed
    ));
    get diagnostics row_count = row_count;
    if row_count > 0 then
      action := 'trimmed';
      return next;
    end if;
  exception
    when lock_not_available or deadlock_detected then
      action := 'later';
      return next;
  end;
end
$$;

comment on function waybill.keep_history(int, interval) is
  'Creates the missing partitions of outbox_history from today to days_ahead, drops those that are wholly older than the retention (at most 10 a call) and trims old rows from the default partition. Waits at most 200 ms for each lock. Returns what it did: created, dropped, trimmed, "later" (a lock was not to be had; call again), "left in default" (over 10,000 rows of that day are in the default partition; they stay there until they are trimmed).';

-- Public functions ----------------------------------------------------------------------------------------------------

create function waybill.publish(
  type text,
  payload json default null,
  key text default null,
  payload_bytes bytea default null,
  headers jsonb default '{}',
  id uuid default null,
  schema_version int default 1,
  content_type text default null,
  content_encoding text default null,
  exchange text default null,
  routing_key text default null,
  correlation_id text default null,
  causation_id text default null,
  reply_to text default null,
  traceparent text default null,
  tracestate text default null,
  priority int default null,
  expires_at timestamptz default null,
  deliver_at timestamptz default null,
  occurred_at timestamptz default now()
) returns uuid
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
as $$
declare
  message_id uuid := coalesce(publish.id, gen_random_uuid());
begin
  insert into waybill.outbox (
    id, type, key, schema_version, payload, payload_bytes, content_type, content_encoding, headers, exchange,
    routing_key, correlation_id, causation_id, reply_to, traceparent, tracestate, priority, expires_at, deliver_at,
    occurred_at
  ) values (
    message_id, publish.type, publish.key, coalesce(publish.schema_version, 1), publish.payload, publish.payload_bytes,
    publish.content_type, publish.content_encoding, coalesce(publish.headers, '{}'), publish.exchange,
    publish.routing_key, publish.correlation_id, publish.causation_id, publish.reply_to, publish.traceparent,
    publish.tracestate, publish.priority, publish.expires_at, publish.deliver_at, coalesce(publish.occurred_at, now())
  );
  return message_id;
end
$$;

comment on function waybill.publish(
  text, json, text, bytea, jsonb, uuid, int, text, text, text, text, text, text, text, text, text, int, timestamptz,
  timestamptz, timestamptz
) is
  'Writes one row to the outbox and returns its id, the message_id. The same as a plain INSERT. The parameters are the columns of the outbox.';

create function waybill.publish_many(messages json) returns setof uuid
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
as $$
declare
  known constant text[] := array[
    'type', 'payload', 'key', 'payload_bytes', 'headers', 'id', 'schema_version', 'content_type', 'content_encoding',
    'exchange', 'routing_key', 'correlation_id', 'causation_id', 'reply_to', 'traceparent', 'tracestate', 'priority',
    'expires_at', 'deliver_at', 'occurred_at'
  ];
  position_of_fault bigint;
  unknown_name text;
begin
  if messages is null then
    return;
  end if;
  if json_typeof(messages) <> 'array' then
    raise exception 'messages must be an array of objects' using errcode = '22023';
  end if;

  select e.position into position_of_fault
  from json_array_elements(messages) with ordinality as e (message, position)
  where json_typeof(e.message) <> 'object'
  order by e.position limit 1;
  if found then
    raise exception 'message % is not an object', position_of_fault using errcode = '22023';
  end if;

  select e.position, n.name into position_of_fault, unknown_name
  from json_array_elements(messages) with ordinality as e (message, position)
  cross join lateral json_object_keys(e.message) as n (name)
  where n.name <> all (known)
  order by e.position limit 1;
  if found then
    raise exception 'message % has an unknown name: %', position_of_fault, to_json(unknown_name)
      using errcode = '22023', hint = 'Known names: ' || array_to_string(known, ', ') || '.';
  end if;

  select e.position into position_of_fault
  from json_array_elements(messages) with ordinality as e (message, position)
  where e.message ->> 'type' is null
  order by e.position limit 1;
  if found then
    raise exception 'message % has no type', position_of_fault using errcode = '22023';
  end if;

  -- Why: the payload is taken by ->, which gives the text as it was written; json_to_record would write strings anew.
  return query
  insert into waybill.outbox as o (
    id, type, key, schema_version, payload, payload_bytes, content_type, content_encoding, headers, exchange,
    routing_key, correlation_id, causation_id, reply_to, traceparent, tracestate, priority, expires_at, deliver_at,
    occurred_at
  )
  select
    coalesce(r.id, gen_random_uuid()), r.type, r.key, coalesce(r.schema_version, 1),
    case when json_typeof(e.message -> 'payload') <> 'null' then e.message -> 'payload' end,
    decode(r.payload_bytes, 'base64'), r.content_type, r.content_encoding, coalesce(r.headers, '{}'), r.exchange,
    r.routing_key, r.correlation_id, r.causation_id, r.reply_to, r.traceparent, r.tracestate, r.priority, r.expires_at,
    r.deliver_at, coalesce(r.occurred_at, now())
  from json_array_elements(messages) with ordinality as e (message, position)
  cross join lateral json_to_record(e.message) as r (
    id uuid, type text, key text, schema_version int, payload_bytes text, content_type text, content_encoding text,
    headers jsonb, exchange text, routing_key text, correlation_id text, causation_id text, reply_to text,
    traceparent text, tracestate text, priority smallint, expires_at timestamptz, deliver_at timestamptz,
    occurred_at timestamptz
  )
  order by e.position
  returning o.id;
end
$$;

comment on function waybill.publish_many(json) is
  'Writes one row for each object of the array and returns their ids in the same order. The names are those of publish; null means the default, also for payload; payload_bytes is base64; a payload is kept as written, byte for byte. An unknown name is an error that says where, and nothing is written.';

create function waybill.cancel(id uuid) returns boolean
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
begin
  update waybill.outbox o
  set state = 'cancelled', next_attempt_at = null
  where o.id = cancel.id
    and (o.state = 'scheduled' or o.state = 'ready' and o.deliver_at > clock_timestamp());
  return found;
end
$$;

comment on function waybill.cancel(uuid) is
  'Withdraws a row that is not due yet: true, and it will never be published. False: too late, or unknown; nothing is changed.';

create function waybill.publication_status(id uuid) returns text
language sql stable security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
  select coalesce(
    (select case o.state when 'ready' then 'pending' else o.state end
     from waybill.outbox o where o.id = publication_status.id),
    (select h.outcome from waybill.outbox_history h where h.id = publication_status.id order by h.settled_at desc limit 1)
  )
$$;

comment on function waybill.publication_status(uuid) is
  'Where a message is: pending, scheduled, parked, blocked, cancelled, discarded; or from the history published, accepted, expired. Null: unknown, or longer ago than the history goes back.';

create function waybill.ensure_publication() returns text
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
declare
  schema_name text;
  publication_name text;
begin
  select n.nspname into schema_name
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
  where c.oid = 'waybill.outbox'::regclass;
  publication_name := schema_name || '_outbox';
  if exists (
    select from pg_publication_tables t
    where t.pubname = publication_name and t.schemaname = schema_name and t.tablename = 'outbox'
  ) then
    return 'exists';
  end if;
  if exists (select from pg_publication p where p.pubname = publication_name) then
    -- It outlived an earlier table of that name.
    execute format('alter publication %I add table waybill.outbox', publication_name);
  else
    execute format('create publication %I for table waybill.outbox with (publish = %L)', publication_name, 'insert');
  end if;
  return 'created';
exception
  when duplicate_object or unique_violation then
    return 'exists';
  when insufficient_privilege then
    raise exception 'cannot create publication %: %', publication_name, sqlerrm
      using errcode = '42501', hint = format(
        'A publication needs CREATE on the database: grant create on database %I to %I;', current_database(),
        current_user);
end
$$;

comment on function waybill.ensure_publication() is
  'Creates the publication of inserts into the outbox, named after the schema, if it is missing, and adds the table if that is: created, or exists.';

-- End -----------------------------------------------------------------------------------------------------------------

revoke all on schema waybill from public;
revoke all on all tables in schema waybill from public;
revoke all on all sequences in schema waybill from public;
revoke all on all functions in schema waybill from public;

do $$
begin
  perform waybill.ensure_publication();
  perform waybill.keep_history();
end
$$;

insert into waybill.migration (version, name, oldest_binary) values (1, 'outbox', 1);

commit;
