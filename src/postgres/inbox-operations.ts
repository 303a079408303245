import type { Client } from 'pg';
import type { StateCount } from './backlog.js';
import { readConsumers } from './inbox-backlog.js';
import { INBOX_COLUMNS, pausingActor, type InboxRow } from './inbox-rows.js';
import { select } from './inspect.js';
import { mayRead, type Answer, type RowSnapshot } from './operator-rows.js';
import { conditionOf, type FilterColumns, type RowFilter } from './row-filter.js';
import { IS_PAUSED } from './pause.js';
import { quoteSchema } from './schema-name.js';

/** What an operator can do to messages of one consumer. */
export type InboxAct = 'retry' | 'replay' | 'discard' | 'defer';

/** Dead rows of one kind. */
export interface DeadGroup {
  consumer: string;
  reason: string | null;
  /** The error, the type or the id that they have in common. */
  common: string | null;
  count: number;
  firstAt: Date;
  lastAt: Date;
  exampleId: string;
  /** Only the latest GROUPED_ROWS of a consumer were looked at; there are more. */
  isCut: boolean;
}

/** One consumer with its backlog. */
export interface ConsumerEntry {
  name: string;
  owner: string | null;
  queue: string;
  handler: string;
  ordering: string;
  pausedAt: Date | null;
  pausedBy: string | null;
  /** Who paused it; null where this role may not read the action_log, or a breaker did it. */
  pausedActor: string | null;
  pausedReason: string | null;
  /** A rename was begun and is not through. */
  renamingTo: string | null;
  registeredAt: Date;
  /** By status, without those that are done; null: counting took too long. */
  states: StateCount[] | null;
}

/** Rows of one place that a redaction changed. */
export interface RedactedPlace {
  place: string;
  rows: number;
}

const RECEIVED: FilterColumns = {
  state: 'o.status',
  error: 'o.last_error',
  time: 'o.received_at',
  textId: 'o.message_id',
};
/** Dead rows are looked for by the time of death, for which there is an index. */
const DIED: FilterColumns = { ...RECEIVED, time: 'o.processed_at' };
const REDACTING_MINUTES = 30;
/** Most rows of a consumer that are grouped, the latest. */
export const GROUPED_ROWS = 10_000;

/** Of rows in one status alone, by consumer: the order of the index on them, which is the order of their turn. */
const ORDERS: Readonly<Record<string, string>> = {
  pending: 'o.consumer, (o.seq + 0)',
  running: 'o.consumer, o.lease_until, o.seq',
  waiting: 'o.consumer, o.next_attempt_at, o.seq',
  blocked: 'o.consumer, o.key, (o.seq + 0)',
  dead: 'o.consumer, o.processed_at, o.seq',
};

/**
 * Rows of the inbox that are meant, in the order in which they came; those of one status by consumer, in the order in
 * which it is their turn, the dead in that of their deaths.
 */
export function listInboxRows(client: Client, schema: string, filter: RowFilter, limit: number): Promise<InboxRow[]> {
  const { sql, values, since } = conditionOf(filter, isDead(filter) ? DIED : RECEIVED);
  const own = quoteSchema(schema);
  const [status, ...others] = filter.states ?? [];
  const order = (status !== undefined && others.length === 0 && ORDERS[status]) || 'o.seq';
  // Why: ids are looked up by consumer and id together.
  const everywhere = filter.ids && filter.consumer === undefined;
  const known = everywhere ? ` and o.consumer in (select c.name from ${own}.consumer c)` : '';
  const late = order === 'o.seq' && since !== undefined ? ` and o.seq >= coalesce((${firstSince(own, since)}), 0)` : '';
  return select<InboxRow>(
    client,
    `select ${INBOX_COLUMNS} from (
       select * from ${own}.inbox o where ${sql}${known}${late} order by ${order} limit ${limit}) i`,
    values,
  );
}

/**
 * How long before a row's time rows with a higher number may have theirs, in minutes: the time is that at which their
 * transaction began, and one that applies what it receives takes up to ten.
 */
const DISORDER_MINUTES = 15;

/**
 * The number before which every row was received earlier than that time: found by halving, because numbers are drawn as
 * messages come. Without it a list since a while ago would walk over everything that is older.
 */
function firstSince(own: string, since: string): string {
  return `with recursive search (low, high) as (
      select (select min(seq) from ${own}.inbox), (select max(seq) from ${own}.inbox)
      union all
      select case when p.is_old then p.seq + 1 else s.low end, case when p.is_old then s.high else m.middle end
      from search s, lateral (select s.low + (s.high - s.low) / 2 as middle) m,
        lateral (select b.seq, b.received_at < ${since} - interval '${DISORDER_MINUTES} min' as is_old
                 from ${own}.inbox b where b.seq >= m.middle order by b.seq limit 1) p
      where s.low < s.high)
    select max(low) from search`;
}

/** The messages of one consumer that are meant now, at most `limit`: counted and by id. */
export async function takeInboxSnapshot(
  client: Client,
  schema: string,
  filter: RowFilter,
  limit: number,
): Promise<RowSnapshot> {
  const { sql, values } = conditionOf(filter, isDead(filter) ? DIED : RECEIVED);
  const rows = await select<{ id: string; state: string; type: string | null }>(
    client,
    `select o.message_id as id, o.status as state, o.type from ${quoteSchema(schema)}.inbox o
     where ${sql} order by o.seq limit ${limit}`,
    values,
  );
  const kinds = new Map<string, RowSnapshot['kinds'][number]>();
  for (const { state, type } of rows) {
    const kind = kinds.get(`${state} ${type ?? ''}`);
    if (kind) kind.count += 1;
    else kinds.set(`${state} ${type ?? ''}`, { state, type: type ?? '(no type)', count: 1 });
  }
  return { kinds: [...kinds.values()].sort((a, b) => b.count - a.count), ids: rows.map(({ id }) => id) };
}

/** The statuses of these messages of a consumer, without touching them. */
export function readStatuses(
  client: Client,
  schema: string,
  consumer: string,
  ids: readonly string[],
): Promise<Answer[]> {
  return select<Answer>(
    client,
    `select w.id, coalesce(i.status || coalesce(' (' || i.dead_reason || ')', ''), 'unknown') as answer
     from unnest($2::text[]) with ordinality w (id, place)
     left join ${quoteSchema(schema)}.inbox i on i.consumer = $1 and i.message_id = w.id order by w.place`,
    [consumer, ids],
  );
}

/**
 * Calls the function of the act for each message, in the order given, all in one transaction. With `statuses`, a row
 * that has another one by now is left as it is, because it is not what the operator saw.
 */
export function callForMessages(
  client: Client,
  schema: string,
  act: InboxAct,
  order: {
    consumer: string;
    ids: readonly string[];
    reason: string | null;
    statuses: readonly string[] | null;
    force: boolean;
    delayMs: number;
  },
): Promise<Answer[]> {
  const own = quoteSchema(schema);
  // Why all six in each: a statement's parameters must all be used.
  const call = {
    retry: `${own}.inbox_retry($1, w.id, $3)`,
    discard: `${own}.inbox_discard($1, w.id, $3)`,
    replay: `${own}.inbox_replay($1, w.id, $3, $5::boolean)`,
    defer: `${own}.inbox_postpone($1, w.id, $6::float8 * interval '1 millisecond', $3)`,
  }[act];
  return select<Answer>(
    client,
    `select w.id, case
         when $5::boolean is null or $6::float8 is null then null
         when $4::text[] is null or coalesce(
           (select i.status = any($4::text[]) from ${own}.inbox i where i.consumer = $1 and i.message_id = w.id), false)
         then ${call} else 'changed meanwhile' end as answer
     from (select u.id from unnest($2::text[]) with ordinality u (id, place) order by u.place) w`,
    [order.consumer, order.ids, order.reason, order.statuses, order.force, order.delayMs],
  );
}

/** The dead by what they have in common, the commonest first. */
export function groupDead(
  client: Client,
  schema: string,
  filter: RowFilter,
  by: 'error' | 'type' | 'id',
  limit: number,
  most = GROUPED_ROWS,
): Promise<DeadGroup[]> {
  const { sql, values } = conditionOf({ ...filter, states: ['dead'] }, DIED);
  const common = {
    error: 'left(d.last_error, 300)',
    type: 'd.type',
    id: 'coalesce(d.original_id, d.message_id)',
  }[by];
  const consumer = by === 'id' ? `string_agg(distinct d.consumer, ', ')` : 'd.consumer';
  const inbox = `${quoteSchema(schema)}.inbox`;
  const next = (after: string): string =>
    `(select o.consumer from ${inbox} o where o.status = 'dead'${after} order by o.consumer limit 1)`;
  return select<DeadGroup>(
    client,
    // The latest of each consumer by its part of the index, and of these only what is shown: bodies are not read.
    `with recursive dead (consumer) as (
       select ${next('')} union all
       select ${next(' and o.consumer > n.consumer')} from dead n where n.consumer is not null)
     select ${consumer} as consumer, ${by === 'id' ? 'min(d.dead_reason)' : 'd.dead_reason'} as reason, ${common} as common,
       count(*)::int as count, min(d.processed_at) as "firstAt", max(d.processed_at) as "lastAt",
       (array_agg(d.message_id order by d.processed_at desc))[1] as "exampleId",
       sum(count(*)) over (${by === 'id' ? '' : 'partition by d.consumer'}) >= ${most} as "isCut"
     from dead n, lateral (
       select o.consumer, o.dead_reason, o.last_error, o.type, o.message_id, o.original_id, o.processed_at
       from ${inbox} o where o.consumer = n.consumer and ${sql}
       order by o.processed_at desc limit ${most}) d
     group by ${by === 'id' ? '' : 'd.consumer, d.dead_reason, '}${common}
     order by count(*) desc, max(d.processed_at) desc limit ${limit}`,
    values,
  );
}

/** A message as it was received, with everything that is kept of it. */
export interface InboxContent {
  seq: string;
  contentType: string | null;
  contentEncoding: string | null;
  headers: unknown;
  exchange: string | null;
  routingKey: string | null;
  correlationId: string | null;
  causationId: string | null;
  replyTo: string | null;
  appId: string | null;
  occurredAt: Date | null;
  traceparent: string | null;
  result: string | null;
  redactedAt: Date | null;
  body: Buffer | null;
}

/** What these rows hold beside their state; bodies only if asked for. */
export function readContents(
  client: Client,
  schema: string,
  seqs: readonly string[],
  withBody: boolean,
): Promise<InboxContent[]> {
  return select<InboxContent>(
    client,
    `select i.seq::text as seq, i.content_type as "contentType", i.content_encoding as "contentEncoding", i.headers,
       i.exchange, i.routing_key as "routingKey", i.correlation_id as "correlationId", i.causation_id as "causationId",
       i.reply_to as "replyTo", i.app_id as "appId", i.occurred_at as "occurredAt", i.traceparent, i.result,
       i.redacted_at as "redactedAt", ${withBody ? 'i.body' : 'null::bytea as body'}
     from ${quoteSchema(schema)}.inbox i where i.seq = any($1::bigint[]) order by i.seq`,
    [seqs],
  );
}

/** An operator waits for one list: more is counted than for what is shown all the time. */
const LIST_BUDGET_MS = 1_000;
const LIST_BOUNDS = [10_000, 1_000, 100];

/** Every registered consumer with what is unfinished. */
export async function listConsumerRows(client: Client, schema: string): Promise<ConsumerEntry[]> {
  const own = quoteSchema(schema);
  const actor = (await mayRead(client, schema, 'action_log')) ? pausingActor(own) : 'null';
  const consumers = await select<Omit<ConsumerEntry, 'states'>>(
    client,
    `select c.name, c.owner, c.queue, c.handler, c.ordering, p.paused_at as "pausedAt", p.paused_by as "pausedBy",
       ${actor} as "pausedActor",
       p.paused_reason as "pausedReason", c.renaming_to as "renamingTo", c.registered_at as "registeredAt"
     from ${own}.consumer c left join ${own}.consumer p on p.name = c.name and ${IS_PAUSED} order by c.name`,
  );
  const counted = await readConsumers(client, schema, LIST_BUDGET_MS, LIST_BOUNDS);
  return consumers.map((consumer) => ({
    ...consumer,
    states: counted.find(({ name }) => name === consumer.name)?.states ?? null,
  }));
}

/** The names of the registered consumers, and whether messages have this one, or are about to, registered or not. */
export async function readConsumerNames(
  client: Client,
  schema: string,
  consumer: string,
): Promise<{ registered: string[]; hasMessages: boolean }> {
  const own = quoteSchema(schema);
  const rows = await select<{ registered: string[]; hasMessages: boolean }>(
    client,
    `select array(select c.name from ${own}.consumer c order by c.name) as registered,
       exists (select from ${own}.inbox i where i.consumer = $1)
         or exists (select from ${own}.consumer c where c.renaming_to = $1) as "hasMessages"`,
    [consumer],
  );
  return rows[0] ?? { registered: [], hasMessages: false };
}

/** Pauses or resumes a consumer; gives the function's answer. */
export async function callForConsumer(
  client: Client,
  schema: string,
  act: 'pause' | 'resume',
  consumer: string,
  reason: string | null,
): Promise<string> {
  const rows = await select<{ answer: string }>(
    client,
    `select ${quoteSchema(schema)}.consumer_${act}($1, $2) as answer`,
    [consumer, reason],
  );
  return rows[0]?.answer ?? 'unknown';
}

/** About how many rows the consumer has, by the planner's statistics. */
export async function estimateRows(client: Client, schema: string, consumer: string): Promise<number> {
  const rows = await select<{ 'QUERY PLAN': { Plan: { 'Plan Rows': number } }[] }>(
    client,
    `explain (format json) select from ${quoteSchema(schema)}.inbox where consumer = $1`,
    [consumer],
  );
  return rows[0]?.['QUERY PLAN'][0]?.Plan['Plan Rows'] ?? 0;
}

/**
 * First steps of a rename: from here on nothing is received or handed out under either name. Gives the processes whose
 * transactions may still write under the old name; when there are none, the rows can be renamed. May be called again.
 */
export async function beginRename(
  client: Client,
  schema: string,
  { from, to }: { from: string; to: string },
): Promise<number[]> {
  const own = quoteSchema(schema);
  await select(client, `select ${own}.rename_begin($1, $2)`, [from, to]);
  const rows = await select<{ pids: number[] }>(client, `select ${own}.rename_wait() as pids`);
  return rows[0]?.pids ?? [];
}

/** Takes the first steps back; false if rows have the new name already: then it is to be finished. */
export async function cancelRename(
  client: Client,
  schema: string,
  { from, to }: { from: string; to: string },
): Promise<boolean> {
  const rows = await select<{ done: boolean }>(client, `select ${quoteSchema(schema)}.rename_cancel($1, $2) as done`, [
    from,
    to,
  ]);
  return rows[0]?.done === true;
}

/** Rows that were given a new name. */
export interface RenameStep {
  moved: number;
  /** Row after which to go on; null at the end. */
  next: string | null;
}

/** Gives the next rows after that one the new name. */
export async function renameRows(
  client: Client,
  schema: string,
  { from, to }: { from: string; to: string },
  after: string,
): Promise<RenameStep> {
  const rows = await select<RenameStep>(
    client,
    `select moved::float8 as moved, next_seq::text as next from ${quoteSchema(schema)}.rename_rows($1, $2, $3)`,
    [from, to, after],
  );
  return rows[0] ?? { moved: 0, next: null };
}

/** The consumer has the new name; false if some rows have the old one. */
export async function finishRename(
  client: Client,
  schema: string,
  { from, to }: { from: string; to: string },
  reason: string | null,
  moved: number,
): Promise<boolean> {
  const rows = await select<{ done: boolean }>(
    client,
    `select ${quoteSchema(schema)}.rename_finish($1, $2, $3, $4) as done`,
    [from, to, reason, moved],
  );
  return rows[0]?.done === true;
}

/** Removes a part of a consumer that is gone for good; gives the function's answer, `more` while there is more. */
export async function forgetConsumer(
  client: Client,
  schema: string,
  consumer: string,
  reason: string | null,
  force: boolean,
): Promise<string> {
  const rows = await select<{ answer: string }>(
    client,
    `select ${quoteSchema(schema)}.forget_consumer($1, $2, $3) as answer`,
    [consumer, reason, force],
  );
  return rows[0]?.answer ?? 'unknown';
}

/** How many rows of the consumer are being handled. */
export async function countRunning(client: Client, schema: string, consumer: string): Promise<number> {
  const rows = await select<{ n: number }>(
    client,
    `select count(*)::int as n from ${quoteSchema(schema)}.inbox
     where consumer = $1 and status = 'running' and lease_until > clock_timestamp()`,
    [consumer],
  );
  return rows[0]?.n ?? 0;
}

/** What is to be redacted: all of a key, or one id. */
export interface RedactedMessages {
  key: string | null;
  id: string | null;
}

/** About how many rows the inbox has. */
export async function estimateInbox(client: Client, schema: string): Promise<number> {
  const rows = await select<{ n: number }>(
    client,
    'select greatest(c.reltuples, 0)::float8 as n from pg_class c where c.oid = to_regclass($1)',
    [`${quoteSchema(schema)}.inbox`],
  );
  return rows[0]?.n ?? 0;
}

/** How many rows of each place a redaction would change. Nothing is locked. */
export async function countRedacted(client: Client, schema: string, what: RedactedMessages): Promise<RedactedPlace[]> {
  return patiently(client, `select r.place, r.rows::int as rows from ${quoteSchema(schema)}.redact_count($1, $2) r`, [
    what.key,
    what.id,
  ]);
}

/** Removes the content of messages of a key or an id. */
export async function redactRows(
  client: Client,
  schema: string,
  what: RedactedMessages & { reason: string | null },
): Promise<RedactedPlace[]> {
  return patiently(client, `select r.place, r.rows::int as rows from ${quoteSchema(schema)}.redact($1, $2, $3) r`, [
    what.key,
    what.id,
    what.reason,
  ]);
}

/** In a transaction of its own: the search for a key reads the whole inbox, and that may take its time. */
async function patiently(client: Client, sql: string, values: unknown[]): Promise<RedactedPlace[]> {
  await client.query(`begin; set local statement_timeout = '${REDACTING_MINUTES}min'`);
  try {
    const rows = await select<RedactedPlace>(client, sql, values);
    await client.query('commit');
    return rows;
  } catch (error) {
    // The error that is told is the first one.
    await client.query('rollback').catch(() => undefined);
    throw error;
  }
}

function isDead({ states }: RowFilter): boolean {
  return states?.length === 1 && states[0] === 'dead';
}
