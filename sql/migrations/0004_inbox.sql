-- oldest-binary: 1
--
-- The inbox half of Waybill: the table that inbound messages land in under a unique constraint, the registry of
-- consumers, and the functions that applications call in their own transactions. Programs built for the versions before
-- run on it unchanged.

begin;

set local lock_timeout = '5s';
set local search_path = pg_catalog, pg_temp;

-- What a handler gets -------------------------------------------------------------------------------------------------

create type waybill.inbox_message as (
  seq bigint,
  attempt int,
  consumer text,
  message_id text,
  original_id text,
  type text,
  key text,
  schema_version int,
  body bytea,
  content_type text,
  content_encoding text,
  headers jsonb,
  exchange text,
  routing_key text,
  correlation_id text,
  causation_id text,
  reply_to text,
  app_id text,
  priority smallint,
  occurred_at timestamptz,
  traceparent text,
  tracestate text,
  received_at timestamptz
);

comment on type waybill.inbox_message is
  'One message as a handler gets it. Attributes are only ever added, at the end. The body as JSON: waybill.payload(message).';
comment on column waybill.inbox_message.seq is 'The row of the inbox.';
comment on column waybill.inbox_message.attempt is 'Number of this attempt, from 1.';
comment on column waybill.inbox_message.consumer is 'As in the inbox; so are those below.';

create type waybill.claimed_message as (
  seq bigint,
  claim_token uuid,
  attempt int,
  lease_until timestamptz,
  consumer text,
  message_id text,
  original_id text,
  type text,
  key text,
  schema_version int,
  body bytea,
  content_type text,
  content_encoding text,
  headers jsonb,
  exchange text,
  routing_key text,
  correlation_id text,
  causation_id text,
  reply_to text,
  app_id text,
  priority smallint,
  occurred_at timestamptz,
  traceparent text,
  tracestate text,
  received_at timestamptz
);

comment on type waybill.claimed_message is
  'One message as a worker claims it. Attributes are only ever added, at the end. The body as JSON: waybill.payload(message).';
comment on column waybill.claimed_message.seq is 'The row of the inbox: the first argument of inbox_complete and its like.';
comment on column waybill.claimed_message.claim_token is 'Proof of the claim: their second argument.';
comment on column waybill.claimed_message.attempt is 'Number of this attempt, from 1.';
comment on column waybill.claimed_message.lease_until is 'From then on another worker may claim the row.';
comment on column waybill.claimed_message.consumer is 'As in the inbox; so are those below.';

-- Consumers -----------------------------------------------------------------------------------------------------------

create table waybill.consumer (
  name text primary key,
  owner text,
  queue text not null,
  identify text not null default 'message-id',
  accept text[],
  handler text not null default 'store',
  function text,
  ordering text not null default 'none',
  on_dead text not null default 'block',
  retry_delays interval[] not null default '{1s,5s,30s,2m,10m,1h}',
  max_attempts int not null default 8,
  max_age interval not null default '7 days',
  not_yet_for interval not null default '24 hours',
  max_abandoned int not null default 5,
  retain_ids interval not null default '14 days',
  retain_bodies interval not null default '1 day',
  retain_dead interval not null default '30 days',
  paused_at timestamptz,
  paused_by text,
  paused_reason text,
  copied_died_at timestamptz not null default clock_timestamp(),
  copied_seq bigint not null default 0,
  created_at timestamptz not null default clock_timestamp(),
  registered_at timestamptz not null default clock_timestamp(),
  constraint consumer_name_is_1_to_255_bytes check (octet_length(name) between 1 and 255),
  constraint consumer_queue_is_1_to_255_bytes check (octet_length(queue) between 1 and 255),
  constraint consumer_handler_is_known check (handler in ('store', 'sql', 'http')),
  constraint consumer_sql_handlers_have_a_function check ((handler = 'sql') = (function is not null)),
  constraint consumer_function_is_schema_and_name
    check (function ~ '^[A-Za-z_][A-Za-z0-9_$]*\.[A-Za-z_][A-Za-z0-9_$]*$'),
  constraint consumer_ordering_is_known check (ordering in ('none', 'key')),
  constraint consumer_on_dead_is_known check (on_dead in ('block', 'skip')),
  constraint consumer_retry_delays_are_1_to_32 check (cardinality(retry_delays) between 1 and 32),
  constraint consumer_retry_delays_are_positive check (interval '0' < all (retry_delays)),
  constraint consumer_max_attempts_is_at_least_1 check (max_attempts >= 1),
  constraint consumer_max_abandoned_is_at_least_1 check (max_abandoned >= 1),
  constraint consumer_ages_are_positive check (max_age > interval '0' and not_yet_for > interval '0'),
  constraint consumer_retentions_are_not_negative
    check (retain_ids > interval '0' and retain_bodies >= interval '0' and retain_dead > interval '0'),
  constraint consumer_pauses_say_by_whom check ((paused_at is null) = (paused_by is null)),
  constraint consumer_paused_by_is_known check (paused_by in ('operator', 'breaker'))
);

create index consumer_queue on waybill.consumer (queue);

comment on table waybill.consumer is
  'The consumers: one row each, written from the configuration when the program starts. A consumer is the scope in which a message id counts once.';
comment on column waybill.consumer.name is 'Name in the configuration.';
comment on column waybill.consumer.owner is 'Whom to ask.';
comment on column waybill.consumer.queue is 'Queue that it receives from.';
comment on column waybill.consumer.identify is 'How the message id is found: message-id, cloudevents, header:NAME, hash or a template.';
comment on column waybill.consumer.accept is 'Types and versions that are accepted; null: all.';
comment on column waybill.consumer.handler is
  'store: the application claims the rows. sql: a function is called in the transaction that writes the row. http: a request to the application.';
comment on column waybill.consumer.function is 'Function of an sql handler, with its schema.';
comment on column waybill.consumer.ordering is 'none; or key: rows of a key are processed one after the other.';
comment on column waybill.consumer.on_dead is 'With ordering key: a dead row blocks its key, or is skipped.';
comment on column waybill.consumer.retry_delays is
  'Least time to wait after the first failure, the second, and so on; the last one counts for all that follow. Up to twice as long is waited.';
comment on column waybill.consumer.max_attempts is 'With this many failures a row is dead.';
comment on column waybill.consumer.max_age is 'A failure of a row that was received (or retried by an operator) longer ago is its last.';
comment on column waybill.consumer.not_yet_for is 'A row whose data is still not there after this time is dead.';
comment on column waybill.consumer.max_abandoned is 'With this many expired leases a row is dead: suspect.';
comment on column waybill.consumer.retain_ids is 'How long a processed row stays: the time in which a duplicate is recognised.';
comment on column waybill.consumer.retain_bodies is 'How long the body of a processed row stays; 0: it goes at once.';
comment on column waybill.consumer.retain_dead is 'How long a dead row stays.';
comment on column waybill.consumer.paused_at is 'Since when nothing is handed out; null: it is not paused.';
comment on column waybill.consumer.paused_by is 'operator, until consumer_resume; or breaker: the program saw that the handler is broken, and probes.';
comment on column waybill.consumer.paused_reason is 'Why.';
comment on column waybill.consumer.copied_died_at is 'Deaths up to this time are copied to the dead-letter exchange.';
comment on column waybill.consumer.copied_seq is 'And of that time, rows up to this one.';
comment on column waybill.consumer.created_at is 'When the consumer was seen first.';
comment on column waybill.consumer.registered_at is 'When a program wrote this row last.';
comment on index waybill.consumer_queue is 'The consumers of a queue: a renamed one is recognised by it.';

create table waybill.consumer_grant (
  consumer text not null,
  role_name text not null,
  granted_at timestamptz not null default clock_timestamp(),
  granted_by text not null default session_user,
  primary key (consumer, role_name)
);

comment on table waybill.consumer_grant is 'Which roles may claim rows of which consumers; written by grant_consumer and revoke_consumer.';
comment on column waybill.consumer_grant.consumer is 'Name of the consumer; it need not be registered yet.';
comment on column waybill.consumer_grant.role_name is 'The role; its members may claim too.';
comment on column waybill.consumer_grant.granted_at is 'When.';
comment on column waybill.consumer_grant.granted_by is 'The role that had logged in.';

-- Inbox ---------------------------------------------------------------------------------------------------------------

create table waybill.inbox (
  seq bigint generated always as identity primary key,
  consumer text not null,
  message_id text not null,
  original_id text,
  type text,
  key text,
  schema_version int,
  body bytea,
  content_type text,
  content_encoding text,
  headers jsonb not null default '{}',
  exchange text,
  routing_key text,
  correlation_id text,
  causation_id text,
  reply_to text,
  app_id text,
  priority smallint,
  occurred_at timestamptz,
  traceparent text,
  tracestate text,
  body_hash bytea,
  status text not null default 'pending',
  failures int not null default 0,
  abandoned int not null default 0,
  next_attempt_at timestamptz,
  lease_until timestamptz,
  claim_token uuid,
  locked_by text,
  last_error text,
  dead_reason text,
  result text,
  raw_properties bytea,
  received_at timestamptz not null default clock_timestamp(),
  processed_at timestamptz,
  redacted_at timestamptz,
  constraint inbox_message_id_is_unique_per_consumer unique (consumer, message_id),
  constraint inbox_message_id_is_1_to_1024_bytes check (octet_length(message_id) between 1 and 1024),
  constraint inbox_key_at_most_1024_bytes check (octet_length(key) <= 1024),
  constraint inbox_type_at_most_1024_bytes check (octet_length(type) <= 1024),
  constraint inbox_headers_are_an_object check (jsonb_typeof(headers) = 'object'),
  constraint inbox_body_hash_is_32_bytes check (octet_length(body_hash) = 32),
  constraint inbox_only_redacted_rows_have_no_body_hash check (body_hash is not null or redacted_at is not null),
  constraint inbox_status_is_known
    check (status in ('pending', 'running', 'waiting', 'blocked', 'done', 'dead', 'discarded')),
  constraint inbox_counters_are_not_negative check (failures >= 0 and abandoned >= 0),
  constraint inbox_running_rows_are_claimed check (
    (status = 'running') = (claim_token is not null) and (status = 'running') = (lease_until is not null)
  ),
  constraint inbox_waiting_rows_have_a_next_attempt check ((status = 'waiting') = (next_attempt_at is not null)),
  constraint inbox_blocked_rows_have_a_key check (status <> 'blocked' or key is not null),
  constraint inbox_processed_rows_say_when
    check ((status in ('done', 'dead', 'discarded')) = (processed_at is not null)),
  constraint inbox_dead_rows_say_why check ((status = 'dead') = (dead_reason is not null)),
  constraint inbox_dead_reason_is_a_word check (dead_reason ~ '^[a-z-]{1,40}$'),
  constraint inbox_results_are_of_done_rows check (result is null or status = 'done'),
  constraint inbox_unprocessed_rows_have_a_body check (body is not null or processed_at is not null)
)
-- Why: as with the outbox, vacuum goes by row counts, and never takes an exclusive lock to give the file's end back.
with (
  autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
  autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000,
  autovacuum_analyze_scale_factor = 0.02, autovacuum_analyze_threshold = 5000,
  vacuum_truncate = false, toast.vacuum_truncate = false
);

-- One small index for each thing that is looked for, so that nothing ever walks over followers or processed rows.
-- Why "seq + 0": asked for rows by seq, the planner may think that it meets them soon on a walk along the primary key.
create index inbox_pending on waybill.inbox (consumer, (seq + 0)) where status = 'pending';
create index inbox_waiting on waybill.inbox (consumer, next_attempt_at) where status = 'waiting';
create index inbox_running on waybill.inbox (consumer, lease_until) where status = 'running';
create index inbox_blocked on waybill.inbox (consumer, key, (seq + 0)) where status = 'blocked';
create index inbox_holding on waybill.inbox (consumer, key, seq)
  where key is not null and status in ('pending', 'running', 'waiting', 'dead');
create index inbox_shunned on waybill.inbox (consumer, (seq + 0)) where abandoned >= 2 and status in ('pending', 'waiting');
create index inbox_dead on waybill.inbox (consumer, processed_at, seq) where status = 'dead';
create index inbox_processed on waybill.inbox (consumer, processed_at) where status in ('done', 'discarded');
create index inbox_bodies on waybill.inbox (consumer, processed_at)
  where body is not null and status in ('done', 'discarded');
create index inbox_original_id on waybill.inbox (original_id) where original_id is not null;

comment on table waybill.inbox is
  'Inbound messages: one row for each consumer and message id, from its arrival until its id need not be known any more.';
comment on column waybill.inbox.seq is 'Position, in the order of delivery to one receiver.';
comment on column waybill.inbox.consumer is 'The consumer that received it.';
comment on column waybill.inbox.message_id is
  'What makes a message the same: once per consumer. A synthetic one where the message has none, or the id is taken by another body.';
comment on column waybill.inbox.original_id is 'The id that came with the message, where message_id is another one.';
comment on column waybill.inbox.type is 'Type of the event.';
comment on column waybill.inbox.key is 'Key of the entity: the unit of ordering.';
comment on column waybill.inbox.schema_version is 'Version of the schema of the body.';
comment on column waybill.inbox.body is 'The body as it was received, byte for byte. Null: redacted, or its retention is over.';
comment on column waybill.inbox.content_type is 'AMQP content type.';
comment on column waybill.inbox.content_encoding is 'AMQP content encoding; the body is kept encoded.';
comment on column waybill.inbox.headers is 'AMQP headers.';
comment on column waybill.inbox.exchange is 'Exchange it was published to.';
comment on column waybill.inbox.routing_key is 'Routing key it was published with.';
comment on column waybill.inbox.correlation_id is 'AMQP correlation id.';
comment on column waybill.inbox.causation_id is 'Id of the message that caused this one.';
comment on column waybill.inbox.reply_to is 'AMQP reply-to.';
comment on column waybill.inbox.app_id is 'AMQP app id.';
comment on column waybill.inbox.priority is 'AMQP priority.';
comment on column waybill.inbox.occurred_at is 'AMQP timestamp: business time of the event, by the sender''s clock.';
comment on column waybill.inbox.traceparent is 'W3C trace context.';
comment on column waybill.inbox.tracestate is 'W3C trace state.';
comment on column waybill.inbox.body_hash is 'SHA-256 of the body: another body under the same id is a conflict. Null once it is redacted.';
comment on column waybill.inbox.status is
  'pending (to be claimed); running (claimed); waiting (for next_attempt_at); blocked (behind an earlier row of its key); done; dead; discarded.';
comment on column waybill.inbox.failures is 'Failed attempts since it was received or retried by an operator.';
comment on column waybill.inbox.abandoned is 'Attempts whose lease expired, since then.';
comment on column waybill.inbox.next_attempt_at is 'When a waiting row is due.';
comment on column waybill.inbox.lease_until is 'Until when a running row belongs to its worker.';
comment on column waybill.inbox.claim_token is 'Proof of that claim.';
comment on column waybill.inbox.locked_by is 'Who claimed it.';
comment on column waybill.inbox.last_error is 'Error of the last attempt that did not succeed.';
comment on column waybill.inbox.dead_reason is
  'Why a row is dead: never, attempts, age, not-yet, suspect, conflict, malformed, no-id, not-accepted, broker and such words.';
comment on column waybill.inbox.result is 'What the handler answered, cut.';
comment on column waybill.inbox.raw_properties is 'The properties of a message that cannot be text columns, as bytes.';
comment on column waybill.inbox.received_at is 'When the row was written.';
comment on column waybill.inbox.processed_at is 'When it became done, dead or discarded.';
comment on column waybill.inbox.redacted_at is 'When its content was removed.';
comment on constraint inbox_message_id_is_unique_per_consumer on waybill.inbox is 'A message takes effect once per consumer.';
comment on index waybill.inbox_pending is 'Rows to claim, in order.';
comment on index waybill.inbox_waiting is 'Rows by the time they are due.';
comment on index waybill.inbox_running is 'Claims by the end of their lease.';
comment on index waybill.inbox_blocked is 'Followers of a key, in order.';
comment on index waybill.inbox_holding is 'Rows that may hold their key.';
comment on index waybill.inbox_shunned is 'Rows whose workers vanished more than once: claimed one at a time.';
comment on index waybill.inbox_dead is 'Dead rows by the time of death.';
comment on index waybill.inbox_processed is 'Rows whose retention runs.';
comment on index waybill.inbox_bodies is 'Bodies whose retention runs.';
comment on index waybill.inbox_original_id is 'Conflicts and the like of one message.';

create table waybill.inbox_attempt (
  inbox_seq bigint not null references waybill.inbox (seq) on delete cascade,
  number int not null,
  at timestamptz not null default clock_timestamp(),
  verdict text not null,
  error text,
  worker text,
  primary key (inbox_seq, number),
  constraint inbox_attempt_number_is_at_least_1 check (number >= 1),
  constraint inbox_attempt_verdict_is_known
    check (verdict in ('retry', 'not-yet', 'never', 'broken', 'abandoned', 'refunded'))
);

create index inbox_attempt_abandoned on waybill.inbox_attempt (at) where verdict = 'abandoned';

comment on table waybill.inbox_attempt is 'Every attempt at a message that failed or was abandoned.';
comment on column waybill.inbox_attempt.inbox_seq is 'The row of the inbox.';
comment on column waybill.inbox_attempt.number is 'From 1, in order; an operator''s retry does not start anew.';
comment on column waybill.inbox_attempt.at is 'When the attempt ended.';
comment on column waybill.inbox_attempt.verdict is
  'retry; not-yet (its data never came); never; broken (the handler, not the message); abandoned (the lease expired); refunded (broken, and given back).';
comment on column waybill.inbox_attempt.error is 'The error.';
comment on column waybill.inbox_attempt.worker is 'Who had claimed the row.';
comment on index waybill.inbox_attempt_abandoned is 'Abandoned attempts by when they were found, to be counted.';

create view waybill.inbox_backlog as
select
  b.consumer,
  b.status,
  count(*) as count,
  min(b.since) as oldest_at,
  clock_timestamp() - min(b.since) as oldest_age,
  coalesce(sum(b.size), 0)::bigint as bytes
from (
  select consumer, status, received_at as since, octet_length(body) as size from waybill.inbox where status = 'pending'
  union all
  select consumer, status, received_at, octet_length(body) from waybill.inbox where status = 'running'
  union all
  select consumer, status, received_at, octet_length(body) from waybill.inbox where status = 'waiting'
  union all
  select consumer, status, received_at, octet_length(body) from waybill.inbox where status = 'blocked'
  union all
  select consumer, status, processed_at, octet_length(body) from waybill.inbox where status = 'dead'
) as b
group by b.consumer, b.status;

comment on view waybill.inbox_backlog is
  'What is not finished in the inbox, by consumer and status; done and discarded rows are not looked at.';
comment on column waybill.inbox_backlog.consumer is 'The consumer.';
comment on column waybill.inbox_backlog.status is 'pending, running, waiting, blocked or dead.';
comment on column waybill.inbox_backlog.count is 'Number of rows.';
comment on column waybill.inbox_backlog.oldest_at is 'When the oldest one was received; of dead rows, when it died.';
comment on column waybill.inbox_backlog.oldest_age is 'How long ago that is.';
comment on column waybill.inbox_backlog.bytes is 'Bytes of their bodies.';

-- Idempotency ---------------------------------------------------------------------------------------------------------

create table waybill.idempotency (
  scope text not null,
  key text not null,
  first_at timestamptz not null default clock_timestamp(),
  result text,
  primary key (scope, key),
  constraint idempotency_scope_and_key_at_most_2048_bytes check (octet_length(scope) + octet_length(key) <= 2048)
);

create index idempotency_first_at on waybill.idempotency (first_at);

comment on table waybill.idempotency is 'What was done already: written by first_time.';
comment on column waybill.idempotency.scope is 'Name of what is done once, such as charge-card.';
comment on column waybill.idempotency.key is 'For what it is done once, such as the number of an order.';
comment on column waybill.idempotency.first_at is 'When.';
comment on column waybill.idempotency.result is 'What came of it, if the caller said so.';
comment on index waybill.idempotency_first_at is 'Rows whose retention runs.';

create table waybill.freshness (
  scope text not null,
  key text not null,
  version bigint not null,
  at timestamptz not null default clock_timestamp(),
  primary key (scope, key),
  constraint freshness_scope_and_key_at_most_2048_bytes check (octet_length(scope) + octet_length(key) <= 2048)
);

comment on table waybill.freshness is 'The newest version that was seen: written by newer.';
comment on column waybill.freshness.scope is 'Name of the projection or of the consumer.';
comment on column waybill.freshness.key is 'The entity.';
comment on column waybill.freshness.version is 'Its newest version.';
comment on column waybill.freshness.at is 'When that was seen.';

create function waybill.first_time(scope text, key text, result text default null) returns boolean
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
begin
  insert into waybill.idempotency as d (scope, key, result)
  values (first_time.scope, first_time.key, first_time.result)
  on conflict on constraint idempotency_pkey do nothing;
  return found;
end
$$;

comment on function waybill.first_time(text, text, text) is
  'True once for each scope and key among all committed transactions, within the retention (clean_idempotency). Do the thing in the same transaction if it is true. Waits for a transaction that has said it first: if that one rolls back, this is the first time.';

create function waybill.first_result(scope text, key text) returns text
language sql stable security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
  select d.result from waybill.idempotency d where d.scope = first_result.scope and d.key = first_result.key
$$;

comment on function waybill.first_result(text, text) is 'The result that the first time was told; null if none, or it never was.';

create function waybill.newer(scope text, key text, version bigint) returns boolean
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
begin
  insert into waybill.freshness as f (scope, key, version)
  values (newer.scope, newer.key, newer.version)
  on conflict on constraint freshness_pkey do update
  set version = excluded.version, at = excluded.at
  where f.version < excluded.version;
  return found;
end
$$;

comment on function waybill.newer(text, text, bigint) is
  'True if this version of the entity is newer than every one that was asked about before; then it is the newest. Apply the event only if it is true, in the same transaction.';

-- Bodies --------------------------------------------------------------------------------------------------------------

create function waybill.json_of_body(message_id text, body bytea, content_encoding text) returns json
language plpgsql stable
set search_path = pg_catalog, waybill, pg_temp
as $$
declare
  body_text text;
begin
  if body is null then
    raise exception 'the body of message % is gone', to_json(message_id) using errcode = 'WB002',
      hint = 'It was redacted, or its retention (retention.bodies of the consumer) is over.';
  elsif lower(content_encoding) not in ('', 'identity', 'utf-8', 'utf8', 'us-ascii', 'ascii') then
    raise exception 'the body of message % is encoded: %', to_json(message_id), to_json(content_encoding)
      using errcode = 'WB002', hint = 'Take the bytes of the column body and decode them in the application.';
  end if;
  begin
    body_text := convert_from(case when substring(body for 3) = '\xefbbbf' then substring(body from 4) else body end, 'UTF8');
  exception
    when character_not_in_repertoire or untranslatable_character then
      raise exception 'the body of message % is not UTF-8 text', to_json(message_id) using errcode = 'WB002',
        hint = 'Take the bytes of the column body.';
  end;
  return body_text::json;
exception
  when invalid_text_representation or statement_too_complex then
    raise exception 'the body of message % is not JSON: %', to_json(message_id), sqlerrm using errcode = 'WB002',
      hint = 'Take the bytes of the column body.';
end
$$;

comment on function waybill.json_of_body(text, bytea, text) is
  'A body as JSON, byte for byte as it was sent. Raises WB002 (never: no further attempt can help) with a hint if it is gone, encoded, not UTF-8 or not JSON.';

create function waybill.payload(message waybill.inbox_message) returns json
language sql stable
as $$ select waybill.json_of_body(message.message_id, message.body, message.content_encoding) $$;

comment on function waybill.payload(waybill.inbox_message) is 'The body as JSON; errors as of json_of_body.';

create function waybill.payload(message waybill.claimed_message) returns json
language sql stable
as $$ select waybill.json_of_body(message.message_id, message.body, message.content_encoding) $$;

comment on function waybill.payload(waybill.claimed_message) is 'The body as JSON; errors as of json_of_body.';

create function waybill.payload(i waybill.inbox) returns json
language sql stable
as $$ select waybill.json_of_body(i.message_id, i.body, i.content_encoding) $$;

comment on function waybill.payload(waybill.inbox) is 'The body as JSON; errors as of json_of_body.';

create function waybill.message_of(i waybill.inbox) returns waybill.inbox_message
language sql stable
as $$
  select row(
    i.seq, i.failures + i.abandoned + 1, i.consumer, i.message_id, i.original_id, i.type, i.key, i.schema_version, i.body,
    i.content_type, i.content_encoding, i.headers, i.exchange, i.routing_key, i.correlation_id, i.causation_id,
    i.reply_to, i.app_id, i.priority, i.occurred_at, i.traceparent, i.tracestate, i.received_at
  )::waybill.inbox_message
$$;

comment on function waybill.message_of(waybill.inbox) is 'A row of the inbox as a handler gets it.';

-- What a handler publishes ---------------------------------------------------------------------------------------------

-- Why no function of ours in the defaults: writers that were granted INSERT before would need one more grant.
alter table waybill.outbox
  alter column causation_id set default nullif(current_setting('waybill_message.id', true), ''),
  alter column correlation_id set default nullif(current_setting('waybill_message.correlation_id', true), ''),
  alter column traceparent set default nullif(current_setting('waybill_message.traceparent', true), ''),
  alter column tracestate set default nullif(current_setting('waybill_message.tracestate', true), '');

create function waybill.set_handling(message waybill.inbox_message) returns void
language plpgsql
as $$
declare
  -- Why assignments: this runs for every message, and each is an expression without a query around it.
  set_to text;
  id constant text := case when octet_length(message.message_id) <= 255 then message.message_id else '' end;
begin
  set_to := set_config('waybill_message.id', id, true);
  set_to := set_config('waybill_message.correlation_id',
    coalesce(case when octet_length(message.correlation_id) <= 255 then message.correlation_id end, id), true);
  set_to := set_config('waybill_message.traceparent',
    case when octet_length(message.traceparent) <= 255 then message.traceparent else '' end, true);
  set_to := set_config('waybill_message.tracestate',
    case when octet_length(message.tracestate) <= 512 then message.tracestate else '' end, true);
end
$$;

comment on function waybill.set_handling(waybill.inbox_message) is
  'What this transaction publishes from now on defaults to being caused by the message: causation_id, correlation_id, traceparent, tracestate. A null message ends that.';

create or replace function waybill.publish(
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
    publish.routing_key,
    coalesce(publish.correlation_id, nullif(current_setting('waybill_message.correlation_id', true), '')),
    coalesce(publish.causation_id, nullif(current_setting('waybill_message.id', true), '')),
    publish.reply_to,
    coalesce(publish.traceparent, nullif(current_setting('waybill_message.traceparent', true), '')),
    coalesce(publish.tracestate, nullif(current_setting('waybill_message.tracestate', true), '')),
    publish.priority, publish.expires_at, publish.deliver_at, coalesce(publish.occurred_at, now())
  );
  return message_id;
end
$$;

create or replace function waybill.publish_many(messages json) returns setof uuid
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
    r.routing_key,
    coalesce(r.correlation_id, nullif(current_setting('waybill_message.correlation_id', true), '')),
    coalesce(r.causation_id, nullif(current_setting('waybill_message.id', true), '')),
    r.reply_to,
    coalesce(r.traceparent, nullif(current_setting('waybill_message.traceparent', true), '')),
    coalesce(r.tracestate, nullif(current_setting('waybill_message.tracestate', true), '')),
    r.priority, r.expires_at, r.deliver_at, coalesce(r.occurred_at, now())
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

-- The steps of a row ---------------------------------------------------------------------------------------------------

create function waybill.consumer_settings(name text) returns waybill.consumer
language plpgsql stable
set search_path = pg_catalog, waybill, pg_temp
as $$
declare
  settings waybill.consumer;
begin
  select * into settings from waybill.consumer c where c.name = consumer_settings.name;
  if not found then
    raise exception 'no consumer % is registered', to_json(name) using errcode = 'WB004',
      hint = 'A consumer is registered when Waybill starts with it in its configuration.';
  end if;
  return settings;
end
$$;

comment on function waybill.consumer_settings(text) is 'The registered consumer of that name, or error WB004.';

create function waybill.consumer_for_caller(name text) returns waybill.consumer
language plpgsql stable
set search_path = pg_catalog, waybill, pg_temp
as $$
declare
  -- Why not current_user: this runs for functions that work on behalf of their owner.
  caller constant name := case current_setting('role') when 'none' then session_user else current_setting('role') end;
begin
  if not has_table_privilege(caller, 'waybill.inbox'::regclass, 'update') and not exists (
    select from waybill.consumer_grant g join pg_roles r on r.rolname = g.role_name
    where g.consumer = consumer_for_caller.name and pg_has_role(caller, r.oid, 'usage')
  ) then
    raise exception 'role % may not claim rows of consumer %', caller, to_json(name) using errcode = 'WB007',
      hint = format('As the owner of the schema: select waybill.grant_consumer(%L, %L);', name, caller);
  end if;
  return waybill.consumer_settings(name);
end
$$;

comment on function waybill.consumer_for_caller(text) is
  'The registered consumer of that name, if the role that logged in (or that it has set) may claim its rows: it or a role of which it is a member was granted the consumer, or it may change the inbox itself, as the program''s role may. Else error WB007.';

create function waybill.key_lock(consumer text, key text) returns bigint
language sql immutable
as $$ select hashtextextended('waybill.inbox ' || consumer || chr(31) || key, 0) $$;

comment on function waybill.key_lock(text, text) is
  'Number of the advisory transaction lock on one key of a consumer. Several are taken in ascending order, before the statement that reads rows of the key.';

create function waybill.release_key(settings waybill.consumer, key text) returns bigint
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
set enable_seqscan = off
as $$
declare
  released bigint;
begin
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
  'Makes the first blocked row of the key pending if nothing holds the key any more, and returns it, else null. The caller has the lock of the key.';

create function waybill.inbox_age(seq bigint, message_id text, received_at timestamptz) returns interval
language sql volatile
set search_path = pg_catalog, waybill, pg_temp
as $$
  select clock_timestamp() - coalesce(
    (select max(a.at) from waybill.action_log a
     where a.target = inbox_age.message_id and a.action in ('inbox.retry', 'inbox.replay')
       and a.details ->> 'seq' = inbox_age.seq::text),
    inbox_age.received_at)
$$;

comment on function waybill.inbox_age(bigint, text, timestamptz) is
  'For how long a row has been tried: since it was received, or retried or replayed by an operator.';

create function waybill.put_back(
  settings waybill.consumer, seq bigint, verdict text, error text, retry_in interval,
  out status text, out attempt int, out next_attempt_at timestamptz, out dead_reason text, out released bigint
)
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
as $$
declare
  longest_delay constant interval := '30 days';
  moment constant timestamptz := clock_timestamp();
  before record;
  failed constant int := case when verdict in ('retry', 'broken', 'never') then 1 else 0 end;
  delay interval;
begin
  if verdict is null or verdict not in ('retry', 'not-yet', 'never', 'broken', 'release') then
    raise exception 'unknown verdict: %', to_json(verdict) using errcode = '22023';
  elsif retry_in < interval '0' then
    raise exception 'a delay must not be negative' using errcode = '22023';
  end if;
  select i.message_id, i.key, i.failures + failed as failures, i.abandoned, i.received_at, i.locked_by into before
  from waybill.inbox i where i.seq = put_back.seq;
  attempt := before.failures + before.abandoned + 1;
  error := left(error, 4000);

  if verdict = 'never' then
    dead_reason := 'never';
  elsif verdict in ('retry', 'broken') and before.failures >= settings.max_attempts then
    dead_reason := 'attempts';
  elsif verdict in ('retry', 'broken') and moment - before.received_at > settings.max_age
    and waybill.inbox_age(seq, before.message_id, before.received_at) > settings.max_age
  then
    dead_reason := 'age';
  elsif verdict = 'not-yet' and moment - before.received_at > settings.not_yet_for
    and waybill.inbox_age(seq, before.message_id, before.received_at) > settings.not_yet_for
  then
    dead_reason := 'not-yet';
  end if;

  if dead_reason is not null then
    status := 'dead';
  elsif verdict = 'release' and retry_in is null then
    status := 'pending';
  else
    status := 'waiting';
    -- Jitter only lengthens: a message never comes back sooner than it was told.
    delay := case verdict
      when 'not-yet' then least(greatest(settings.retry_delays[1], (moment - before.received_at) / 2), interval '10 minutes')
      else settings.retry_delays[least(greatest(before.failures, 1), cardinality(settings.retry_delays))]
    end * (1 + random());
    next_attempt_at := moment + least(coalesce(retry_in, delay), longest_delay);
  end if;

  update waybill.inbox i
  set status = put_back.status, next_attempt_at = put_back.next_attempt_at, dead_reason = put_back.dead_reason,
    processed_at = case put_back.status when 'dead' then moment end, failures = before.failures,
    last_error = coalesce(put_back.error, i.last_error), claim_token = null, lease_until = null, locked_by = null
  where i.seq = put_back.seq;

  -- What only waits for its data, or was not begun, is no failure.
  if failed = 1 or status = 'dead' then
    insert into waybill.inbox_attempt (inbox_seq, number, at, verdict, error, worker)
    select put_back.seq, coalesce(max(a.number), 0) + 1, moment, put_back.verdict, put_back.error, before.locked_by
    from waybill.inbox_attempt a where a.inbox_seq = put_back.seq;
  end if;
  if status = 'dead' and settings.ordering = 'key' and before.key is not null then
    released := waybill.release_key(settings, before.key);
  end if;
end
$$;

comment on function waybill.put_back(waybill.consumer, bigint, text, text, interval) is
  'After an attempt that did not succeed: the row waits for its next one, or is dead. Verdicts: retry and broken spend an attempt, not-yet is bounded by age, never is the end, release spends nothing. The caller has the row, and the lock of its key if the consumer is ordered by key.';

create function waybill.end_expired_leases(settings waybill.consumer) returns int
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
set enable_seqscan = off
as $$
declare
  most_rows constant int := 100;
  moment constant timestamptz := clock_timestamp();
  row_of record;
  suspect boolean;
  ended int := 0;
begin
  for row_of in
    select i.seq, i.key, i.abandoned + 1 as abandoned, i.locked_by from waybill.inbox i
    where i.consumer = settings.name and i.status = 'running' and i.lease_until <= moment
    order by i.lease_until limit most_rows for update skip locked
  loop
    suspect := row_of.abandoned >= settings.max_abandoned;
    -- Why not wait for the lock: whoever has it may wait for this row. Another claim comes.
    continue when suspect and settings.ordering = 'key' and row_of.key is not null
      and not pg_try_advisory_xact_lock(waybill.key_lock(settings.name, row_of.key));
    update waybill.inbox i
    set status = case when suspect then 'dead' else 'waiting' end,
      next_attempt_at = case when not suspect then moment end,
      dead_reason = case when suspect then 'suspect' end,
      processed_at = case when suspect then moment end,
      abandoned = row_of.abandoned, last_error = 'lease expired: its worker vanished, or took too long',
      claim_token = null, lease_until = null, locked_by = null
    where i.seq = row_of.seq;
    insert into waybill.inbox_attempt (inbox_seq, number, at, verdict, error, worker)
    select row_of.seq, coalesce(max(a.number), 0) + 1, moment, 'abandoned', 'lease expired', row_of.locked_by
    from waybill.inbox_attempt a where a.inbox_seq = row_of.seq;
    if suspect and settings.ordering = 'key' and row_of.key is not null then
      perform waybill.release_key(settings, row_of.key);
    end if;
    ended := ended + 1;
  end loop;
  return ended;
end
$$;

comment on function waybill.end_expired_leases(waybill.consumer) is
  'Counts claims whose lease is over as abandoned: the row is due at once, or dead (suspect) when that happened max_abandoned times. At most 100 rows a call; returns how many.';

create function waybill.take_rows(settings waybill.consumer, seqs bigint[], lease interval)
returns setof waybill.claimed_message
language sql
set search_path = pg_catalog, waybill, pg_temp
as $$
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
  from taken c order by c.seq
$$;

comment on function waybill.take_rows(waybill.consumer, bigint[], interval) is
  'Makes rows that the caller has locked its own, under one new token, until the lease is over.';

create function waybill.check_claim(max int, lease interval) returns void
language plpgsql immutable
set search_path = pg_catalog, waybill, pg_temp
as $$
begin
  if max is null or max not between 1 and 1000 then
    raise exception 'max must be 1 to 1000' using errcode = '22023';
  elsif lease is null or lease not between interval '1 second' and interval '1 day' then
    raise exception 'a lease must be 1 second to 1 day' using errcode = '22023';
  end if;
end
$$;

comment on function waybill.check_claim(int, interval) is 'Raises 22023 if a claim asks for too much or too little.';

-- Public functions -----------------------------------------------------------------------------------------------------

create function waybill.inbox_claim(consumer text, max int default 10, lease interval default '1 minute')
returns setof waybill.claimed_message
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
set enable_seqscan = off
as $$
declare
  settings constant waybill.consumer := waybill.consumer_for_caller(inbox_claim.consumer);
  taken bigint[];
begin
  perform waybill.check_claim(max, lease);
  if settings.paused_at is not null then
    return;
  end if;
  perform waybill.end_expired_leases(settings);

  -- One whose workers vanished twice goes alone: if it takes the next one down as well, it takes nothing else with it.
  taken := array(
    select i.seq from waybill.inbox i
    where i.consumer = settings.name and i.abandoned >= 2 and i.status in ('pending', 'waiting')
      and (i.next_attempt_at is null or i.next_attempt_at <= clock_timestamp())
    order by i.seq + 0 limit 1 for update skip locked
  );
  if cardinality(taken) = 0 then
    taken := array(
      select i.seq from waybill.inbox i
      where i.consumer = settings.name and i.status = 'waiting' and i.next_attempt_at <= clock_timestamp()
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

comment on function waybill.inbox_claim(text, int, interval) is
  'Gives up to max rows of a consumer to the caller, until the lease is over: rows that are due again first, then new ones in order. Each row comes with a claim_token, the proof that the other functions ask for. Call it in a transaction of its own. Expired leases count as abandoned; a row that was abandoned twice comes alone. No rows while the consumer is paused. Errors: WB004 (no such consumer), WB007 (not granted).';

create function waybill.claimed_row(
  seq bigint, token uuid, out settings waybill.consumer, out keyed text
)
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
as $$
declare
  found_row record;
begin
  select i.consumer, i.key, i.status, i.claim_token into found_row
  from waybill.inbox i where i.seq = claimed_row.seq;
  if not found then
    raise exception 'lease lost: no row % in the inbox', seq using errcode = 'WB003';
  end if;
  settings := waybill.consumer_for_caller(found_row.consumer);
  if settings.ordering = 'key' and found_row.key is not null then
    keyed := found_row.key;
    perform pg_advisory_xact_lock(waybill.key_lock(settings.name, keyed));
  end if;
  -- Why after the lock: what was read before it is old.
  perform from waybill.inbox i
  where i.seq = claimed_row.seq and i.status = 'running' and i.claim_token = claimed_row.token for update;
  if not found then
    raise exception 'lease lost: row % of consumer %', seq, to_json(found_row.consumer) using errcode = 'WB003',
      detail = format('The row is %s.', (select i.status from waybill.inbox i where i.seq = claimed_row.seq)),
      hint = 'The lease expired and the row was given to another worker, or it is settled already. Roll back.';
  end if;
end
$$;

comment on function waybill.claimed_row(bigint, uuid) is
  'Locks a row that the caller has claimed, and the key if its consumer is ordered by key (keyed is null otherwise). Error WB003 if the token is not the current one.';

create function waybill.inbox_complete(seq bigint, token uuid, result text default null) returns void
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
declare
  claimed record;
begin
  select * into claimed from waybill.claimed_row(seq, token);
  update waybill.inbox i
  set status = 'done', processed_at = clock_timestamp(), result = left(inbox_complete.result, 4000), last_error = null,
    body = case when (claimed.settings).retain_bodies > interval '0' then i.body end,
    claim_token = null, lease_until = null, locked_by = null
  where i.seq = inbox_complete.seq;
  if claimed.keyed is not null then
    perform waybill.release_key(claimed.settings, claimed.keyed);
  end if;
end
$$;

comment on function waybill.inbox_complete(bigint, uuid, text) is
  'The message is done. Call it in the transaction that has the effect: then the effect is there once. Raises WB003 if the claim is lost, so that the transaction of a worker that was too slow rolls back.';

create function waybill.inbox_fail(
  seq bigint, token uuid, error text, retry_in interval default null, never boolean default false
) returns text
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
declare
  claimed record;
begin
  select * into claimed from waybill.claimed_row(seq, token);
  return (waybill.put_back(claimed.settings, seq, case when never then 'never' else 'retry' end, error, retry_in)).status;
end
$$;

comment on function waybill.inbox_fail(bigint, uuid, text, interval, boolean) is
  'The attempt failed: the row waits for retry_in, or by the schedule of its consumer, or is dead after its last attempt, or at once if it can never succeed. Returns waiting or dead. Roll the effect back first, then call it in another transaction. WB003 if the claim is lost.';

create function waybill.inbox_defer(seq bigint, token uuid, delay interval default null, error text default null)
returns text
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
declare
  claimed record;
begin
  select * into claimed from waybill.claimed_row(seq, token);
  return (waybill.put_back(claimed.settings, seq, 'not-yet', error, delay)).status;
end
$$;

comment on function waybill.inbox_defer(bigint, uuid, interval, text) is
  'What the message needs is not there yet: the row waits, and no attempt is spent; it is dead if that lasts longer than not_yet_for of its consumer. Returns waiting or dead. WB003 if the claim is lost.';

create function waybill.inbox_release(seq bigint, token uuid, delay interval default null, error text default null)
returns void
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
declare
  claimed record;
begin
  select * into claimed from waybill.claimed_row(seq, token);
  perform waybill.put_back(claimed.settings, seq, 'release', error, delay);
end
$$;

comment on function waybill.inbox_release(bigint, uuid, interval, text) is
  'Gives a claimed row back, at once or after a delay, as if it had not been claimed: for a worker that stops, or that lost its database in the middle. WB003 if the claim is lost.';

create function waybill.inbox_extend(seq bigint, token uuid, lease interval default '1 minute') returns timestamptz
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
declare
  until timestamptz;
begin
  perform waybill.check_claim(1, lease);
  perform waybill.consumer_for_caller(i.consumer) from waybill.inbox i where i.seq = inbox_extend.seq;
  update waybill.inbox i set lease_until = clock_timestamp() + inbox_extend.lease
  where i.seq = inbox_extend.seq and i.status = 'running' and i.claim_token = inbox_extend.token
  returning i.lease_until into until;
  if until is null then
    raise exception 'lease lost: row %', seq using errcode = 'WB003',
      hint = 'The lease expired and the row was given to another worker, or it is settled already. Roll back.';
  end if;
  return until;
end
$$;

comment on function waybill.inbox_extend(bigint, uuid, interval) is
  'Prolongs the lease, from now, and returns its new end. Call it in a transaction of its own. WB003 if the claim is lost.';

create function waybill.inbox_handling(seq bigint, token uuid) returns void
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
declare
  handled waybill.inbox;
begin
  select * into handled from waybill.inbox i
  where i.seq = inbox_handling.seq and i.status = 'running' and i.claim_token = inbox_handling.token;
  if not found then
    raise exception 'lease lost: row %', seq using errcode = 'WB003';
  end if;
  perform waybill.consumer_for_caller(handled.consumer);
  perform waybill.set_handling(waybill.message_of(handled));
end
$$;

comment on function waybill.inbox_handling(bigint, uuid) is
  'This transaction handles that message: what it publishes has the message as its cause, and its correlation and trace, unless told otherwise. WB003 if the claim is lost.';

create function waybill.grant_consumer(consumer text, role text) returns void
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
begin
  if not exists (select from pg_roles r where r.rolname = grant_consumer.role) then
    raise exception 'no role %', to_json(role) using errcode = '42704';
  end if;
  insert into waybill.consumer_grant as g (consumer, role_name)
  values (grant_consumer.consumer, grant_consumer.role) on conflict do nothing;
  if found then
    insert into waybill.action_log (action, target, details)
    values ('consumer.grant', grant_consumer.consumer, jsonb_build_object('role', grant_consumer.role));
  end if;
end
$$;

comment on function waybill.grant_consumer(text, text) is
  'Lets a role and its members claim rows of a consumer, which need not be registered yet. For the owner of the schema.';

create function waybill.revoke_consumer(consumer text, role text) returns boolean
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
begin
  delete from waybill.consumer_grant g
  where g.consumer = revoke_consumer.consumer and g.role_name = revoke_consumer.role;
  if not found then
    return false;
  end if;
  insert into waybill.action_log (action, target, details)
  values ('consumer.revoke', revoke_consumer.consumer, jsonb_build_object('role', revoke_consumer.role));
  return true;
end
$$;

comment on function waybill.revoke_consumer(text, text) is
  'Takes that back: true, or false if it was not granted. For the owner of the schema.';

-- End -----------------------------------------------------------------------------------------------------------------

comment on column waybill.action_log.action is
  'outbox.retry, outbox.discard, outbox.replay; inbox.retry and the like; consumer.pause and the like; redact.';
comment on column waybill.action_log.target is 'The id of the message, or the name of the consumer.';

revoke all on all tables in schema waybill from public;
revoke all on all sequences in schema waybill from public;
revoke all on all functions in schema waybill from public;

insert into waybill.migration (version, name, oldest_binary) values (4, 'inbox', 1);

commit;
