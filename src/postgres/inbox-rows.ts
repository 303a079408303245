import type { Client } from 'pg';
import { select } from './inspect.js';
import { IS_PAUSED } from './pause.js';
import { quoteSchema } from './schema-name.js';

/** One message as one consumer has it. */
export interface InboxRow {
  seq: string;
  consumer: string;
  messageId: string;
  /** The id that the sender gave, where it could not be kept as message_id (a conflict). */
  originalId: string | null;
  type: string | null;
  key: string | null;
  schemaVersion: number | null;
  status: string;
  deadReason: string | null;
  failures: number;
  abandoned: number;
  error: string | null;
  receivedAt: Date;
  processedAt: Date | null;
  nextAttemptAt: Date | null;
  leaseUntil: Date | null;
  lockedBy: string | null;
  size: number | null;
}

/** One failed, abandoned or deferred attempt. */
export interface InboxAttempt {
  number: number;
  at: Date;
  verdict: string | null;
  error: string | null;
}

/** How other messages of the same type fared at the same consumer, close to one of them. */
export interface Neighbours {
  applied: number;
  failing: number;
}

/** What keeps a message from being taken up that itself is sound. */
export interface Hindrance {
  /** Its consumer is paused; `actor` is null where this role may not read the action_log, or a breaker did it. */
  pause: { at: Date; by: 'operator' | 'breaker'; reason: string | null; actor: string | null } | null;
  /** The first message of its key, if it waits behind it. */
  ahead: { messageId: string; status: string } | null;
}

/** How far from a message its neighbours are looked for, in rows of the inbox. */
const NEIGHBOURHOOD = 2_000;

/** Whether the inbox half is installed, and this role may read it. */
export async function mayReadInbox(client: Client, schema: string): Promise<'yes' | 'absent' | 'refused'> {
  const own = quoteSchema(schema);
  const rows = await select<{ is: boolean; may: boolean | null }>(
    client,
    `select to_regclass($1) is not null as is,
       has_table_privilege(to_regclass($1), 'select') and has_table_privilege(to_regclass($2), 'select') as may`,
    [`${own}.inbox`, `${own}.inbox_attempt`],
  );
  if (rows[0]?.is !== true) return 'absent';
  return rows[0].may === true ? 'yes' : 'refused';
}

export const INBOX_COLUMNS = `i.seq::text as seq, i.consumer, i.message_id as "messageId", i.original_id as "originalId",
  i.type, i.key, i.schema_version as "schemaVersion", i.status, i.dead_reason as "deadReason", i.failures, i.abandoned,
  i.last_error as error, i.received_at as "receivedAt", i.processed_at as "processedAt",
  i.next_attempt_at as "nextAttemptAt", i.lease_until as "leaseUntil", i.locked_by as "lockedBy",
  octet_length(i.body) as size`;

/** The rows of this message id, one for each consumer, conflicts under it included. */
export function readInboxRows(client: Client, schema: string, id: string): Promise<InboxRow[]> {
  return select<InboxRow>(
    client,
    `select ${INBOX_COLUMNS} from ${quoteSchema(schema)}.inbox i
     where i.message_id = $1 and i.consumer in (select c.name from ${quoteSchema(schema)}.consumer c)
     union all
     select ${INBOX_COLUMNS} from ${quoteSchema(schema)}.inbox i
     where i.original_id = $1 and i.message_id <> $1 and i.status = 'dead'
     order by consumer, "receivedAt" limit 200`,
    [id],
  );
}

/** The failed attempts of a row, in order. */
export function readAttempts(client: Client, schema: string, seq: string): Promise<InboxAttempt[]> {
  return select<InboxAttempt>(
    client,
    `select number, at, verdict, error from ${quoteSchema(schema)}.inbox_attempt
     where inbox_seq = $1 order by at, number limit 200`,
    [seq],
  );
}

/** What became of the messages of the same type at the same consumer that came shortly before and after. */
export async function readNeighbours(client: Client, schema: string, row: InboxRow): Promise<Neighbours> {
  const rows = await select<Neighbours>(
    client,
    `select count(*) filter (where i.status = 'done')::int as applied,
       count(*) filter (where i.status in ('waiting', 'dead') and i.failures + i.abandoned > 0)::int as failing
     from ${quoteSchema(schema)}.inbox i
     where i.seq between $1::bigint - ${NEIGHBOURHOOD} and $1::bigint + ${NEIGHBOURHOOD} and i.seq <> $1::bigint
       and i.consumer = $2 and i.type is not distinct from $3`,
    [row.seq, row.consumer, row.type],
  );
  return rows[0] ?? { applied: 0, failing: 0 };
}

/** Who has paused the consumer `p`, as SQL; null where it was a breaker. */
export function pausingActor(own: string): string {
  return `(select a.actor from ${own}.action_log a where a.target = p.name and a.action = 'consumer.pause' and p.paused_by = 'operator'
    order by a.seq desc limit 1)`;
}

/** Why a row is not taken up, beyond its own state. */
export async function readHindrance(
  client: Client,
  schema: string,
  row: InboxRow,
  mayReadActions: boolean,
): Promise<Hindrance> {
  const own = quoteSchema(schema);
  const actor = mayReadActions ? pausingActor(own) : 'null';
  const [pause] = await select<NonNullable<Hindrance['pause']>>(
    client,
    `select p.paused_at as at, p.paused_by as by, p.paused_reason as reason, ${actor} as actor
     from ${own}.consumer p where p.name = $1 and ${IS_PAUSED}`,
    [row.consumer],
  );
  if (row.status !== 'blocked') return { pause: pause ?? null, ahead: null };
  // As release_key sees it: what a dead row holds depends on the consumer.
  const [ahead] = await select<NonNullable<Hindrance['ahead']>>(
    client,
    `select i.message_id as "messageId", i.status from ${own}.inbox i join ${own}.consumer c on c.name = i.consumer
     where i.consumer = $1 and i.key = $2 and i.status in ('pending', 'running', 'waiting', 'dead')
       and (i.status <> 'dead' or c.on_dead = 'block' and i.dead_reason <> 'conflict' and i.seq < $3::bigint)
     order by i.seq limit 1`,
    [row.consumer, row.key, row.seq],
  );
  return { pause: pause ?? null, ahead: ahead ?? null };
}
