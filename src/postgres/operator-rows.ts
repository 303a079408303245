import type { Client } from 'pg';
import { select } from './inspect.js';
import { conditionOf, type RowFilter } from './row-filter.js';
import { quoteSchema } from './schema-name.js';

/** One row of a list. */
export interface OutboxEntry {
  id: string;
  seq: string;
  state: string;
  type: string;
  key: string | null;
  attempts: number;
  error: string | null;
  createdAt: Date;
  ageMs: number;
  nextAttemptAt: Date | null;
  /** Until the next attempt; negative when it is overdue. */
  dueInMs: number | null;
}

/** A body as it can be shown and serialised: text where it is text, else base64. */
export interface Body {
  encoding: 'text' | 'base64';
  data: string;
}

/** All of one row, in the outbox or in the history; what its place does not keep is null. */
export interface MessageRow {
  id: string;
  seq: string | null;
  /** The state of a row of the outbox, the outcome of one of the history. */
  state: string;
  type: string;
  key: string | null;
  schemaVersion: number | null;
  exchange: string | null;
  routingKey: string | null;
  attempts: number | null;
  error: string | null;
  createdAt: Date | null;
  occurredAt: Date | null;
  deliverAt: Date | null;
  expiresAt: Date | null;
  nextAttemptAt: Date | null;
  publishedAt: Date | null;
  settledAt: Date | null;
  priority: number | null;
  contentType: string | null;
  contentEncoding: string | null;
  correlationId: string | null;
  causationId: string | null;
  replyTo: string | null;
  traceparent: string | null;
  tracestate: string | null;
  headers: unknown;
  size: number | null;
  sha256: string | null;
  /** Undefined unless it was asked for; null where none is kept. */
  body?: Body | null;
}

/** One act of an operator, from the action_log. */
export interface ActionEntry {
  at: Date;
  actor: string;
  action: string;
  reason: string | null;
  details: unknown;
}

/** The rows that are meant at one moment: how many of each kind, and the ids in the order of the table. */
export interface RowSnapshot {
  kinds: { state: string; type: string; count: number }[];
  ids: string[];
}

/** What a function answered for one row. */
export interface Answer {
  id: string;
  answer: string;
}

/** The first rows that are meant, in the order of the table. */
export function listEntries(client: Client, schema: string, filter: RowFilter, limit: number): Promise<OutboxEntry[]> {
  const { sql, values } = conditionOf(filter);
  return select<OutboxEntry>(
    client,
    `select o.id::text as id, o.seq::text as seq, o.state, o.type, o.key, o.attempts, o.last_error as error,
       o.created_at as "createdAt",
       (extract(epoch from statement_timestamp() - o.created_at) * 1000)::float8 as "ageMs",
       o.next_attempt_at as "nextAttemptAt",
       (extract(epoch from o.next_attempt_at - statement_timestamp()) * 1000)::float8 as "dueInMs"
     from ${quoteSchema(schema)}.outbox o where ${sql} order by o.seq limit ${limit}`,
    values,
  );
}

const SHARED_COLUMNS = `m.id::text as id, m.seq::text as seq, m.type, m.key, m.schema_version as "schemaVersion",
  m.exchange, m.routing_key as "routingKey", m.attempts, m.created_at as "createdAt", m.occurred_at as "occurredAt",
  m.deliver_at as "deliverAt", m.expires_at as "expiresAt", m.priority, m.content_type as "contentType",
  m.content_encoding as "contentEncoding", m.correlation_id as "correlationId", m.causation_id as "causationId",
  m.reply_to as "replyTo", m.traceparent, m.tracestate, m.headers`;

const BODY_COLUMNS = `, m.payload::text as "bodyText", m.payload_bytes as "bodyBytes"`;

type Raw = Omit<MessageRow, 'body'> & { bodyText?: string | null; bodyBytes?: Buffer | null };

/** The row of this id in the outbox. */
export async function readOutboxRow(
  client: Client,
  schema: string,
  id: string,
  withBody: boolean,
): Promise<MessageRow | undefined> {
  const rows = await select<Raw>(
    client,
    `select ${SHARED_COLUMNS}, m.state, m.last_error as error, m.next_attempt_at as "nextAttemptAt",
       null as "publishedAt", null as "settledAt", null as sha256,
       coalesce(octet_length(m.payload::text), octet_length(m.payload_bytes), 0) as size${withBody ? BODY_COLUMNS : ''}
     from ${quoteSchema(schema)}.outbox m where m.id = $1`,
    [id],
  );
  return rows.map((row) => finish(row, withBody))[0];
}

/** The rows of this id in the history, the latest first; several after a replay. */
export async function readHistoryRows(
  client: Client,
  schema: string,
  id: string,
  withBody: boolean,
): Promise<MessageRow[]> {
  const rows = await select<Raw>(
    client,
    `select ${SHARED_COLUMNS}, m.outcome as state, null as error, null as "nextAttemptAt",
       m.published_at as "publishedAt", m.settled_at as "settledAt", encode(m.sha256, 'hex') as sha256,
       m.size${withBody ? BODY_COLUMNS : ''}
     from ${quoteSchema(schema)}.outbox_history m where m.id = $1 order by m.settled_at desc limit 20`,
    [id],
  );
  return rows.map((row) => finish(row, withBody));
}

function finish({ bodyText, bodyBytes, ...row }: Raw, withBody: boolean): MessageRow {
  if (!withBody) return row;
  if (bodyText != null) return { ...row, body: { encoding: 'text', data: bodyText } };
  return { ...row, body: bodyBytes == null ? null : { encoding: 'base64', data: bodyBytes.toString('base64') } };
}

/** What operators did to this message, in order. */
export function readActions(client: Client, schema: string, id: string): Promise<ActionEntry[]> {
  return select<ActionEntry>(
    client,
    `select at, actor, action, reason, details from ${quoteSchema(schema)}.action_log
     where target = $1 order by seq limit 100`,
    [id],
  );
}

/** Whether this role may read the table; the relay's own may read neither the history nor the action_log. */
export async function mayRead(client: Client, schema: string, table: string): Promise<boolean> {
  const rows = await select<{ may: boolean }>(client, "select has_table_privilege($1, 'select') as may", [
    `${quoteSchema(schema)}.${table}`,
  ]);
  return rows[0]?.may ?? false;
}

/** The rows that are meant now, at most `limit`: counted and by id, both as of one moment. */
export async function takeSnapshot(
  client: Client,
  schema: string,
  filter: RowFilter,
  limit: number,
): Promise<RowSnapshot> {
  const { sql, values } = conditionOf(filter);
  const picked = (columns: string): string =>
    `select ${columns} from ${quoteSchema(schema)}.outbox o where ${sql} order by o.seq limit ${limit}`;
  await client.query('begin isolation level repeatable read read only');
  const kinds = await select<RowSnapshot['kinds'][number]>(
    client,
    `select state, type, count(*)::int as count from (${picked('o.state, o.type')}) p
     group by state, type order by count(*) desc, state, type`,
    values,
  );
  const ids = await select<{ id: string }>(client, picked('o.id::text as id'), values);
  await client.query('commit');
  return { kinds, ids: ids.map(({ id }) => id) };
}

/** The states of these rows, without touching them. */
export function readStates(client: Client, schema: string, ids: readonly string[]): Promise<Answer[]> {
  return select<Answer>(
    client,
    `select w.id::text as id, coalesce(o.state, 'not in the outbox') as answer
     from unnest($1::uuid[]) with ordinality w (id, place)
     left join ${quoteSchema(schema)}.outbox o using (id) order by w.place`,
    [ids],
  );
}

/**
 * Calls the function for each id, in the order given, all in one transaction. With `states`, a row that has another one
 * by now is left as it is, because it is not what the operator saw.
 */
export function callForRows(
  client: Client,
  schema: string,
  call: 'retry' | 'discard',
  ids: readonly string[],
  reason: string | null,
  states: readonly string[] | null,
): Promise<Answer[]> {
  const own = quoteSchema(schema);
  return select<Answer>(
    client,
    `select w.id::text as id,
       case when $3::text[] is null or coalesce(
           (select o.state = any($3::text[]) from ${own}.outbox o where o.id = w.id), false)
         then ${own}.${call}(w.id, $2) else 'changed meanwhile' end as answer
     from (select u.id from unnest($1::uuid[]) with ordinality u (id, place) order by u.place) w`,
    [ids, reason, states],
  );
}
