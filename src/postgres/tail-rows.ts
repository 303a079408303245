import type { Client } from 'pg';
import { select } from './inspect.js';
import { quoteSchema } from './schema-name.js';

/** One thing that happened to a message, as whoever follows sees it. */
export interface TailEvent {
  at: Date;
  direction: 'out' | 'in';
  /** published, accepted, cancelled, discarded, expired, parked; received, applied, dead, discarded. */
  event: string;
  id: string;
  type: string | null;
  key: string | null;
  consumer: string | null;
  exchange: string | null;
  routingKey: string | null;
  error: string | null;
  size: number | null;
}

/** How far whoever follows has come. Times are the database's, as text, so that no microsecond is lost. */
export interface TailPosition {
  settledAt: string;
  processedAt: string;
  holdNo: string;
  inboxSeq: string;
}

/** An event with what tells it from others. */
export type MarkedEvent = TailEvent & { mark: string };

/** What happened since, with the position to go on from. */
export interface TailPage {
  events: MarkedEvent[];
  next: TailPosition;
  /** There was more than one look takes. */
  isFull: boolean;
}

/** Rows of one look; when there are more, they come with the next ones. */
const PAGE = 10_000;
/** A transaction that began earlier may commit later: so far is looked back, and what was seen is left out by its mark. */
const OVERLAP = `interval '5 s'`;
const OVERLAP_ROWS = 2_000;

type Timed = MarkedEvent & { time: string; ahead: boolean };

/** Where to begin: now. */
export async function startOfTail(
  client: Client,
  schema: string,
  inbox: boolean,
): Promise<{ position: TailPosition; at: Date }> {
  const own = quoteSchema(schema);
  const rows = await select<{ at: Date; time: string; holdNo: string; inboxSeq: string }>(
    client,
    `select n.at, n.at::text as time,
       (select coalesce(max(hold_no), 0)::text from ${own}.outbox where state in ('parked', 'blocked')) as "holdNo",
       ${inbox ? `(select coalesce(max(seq), 0)::text from ${own}.inbox)` : `'0'`} as "inboxSeq"
     from (select clock_timestamp() as at) n`,
  );
  const [{ at, time, holdNo, inboxSeq }] = rows as [(typeof rows)[number]];
  return { at, position: { settledAt: time, processedAt: time, holdNo, inboxSeq } };
}

/** What left the outbox, or was held, since. By the history's time index and the index of held rows. */
export async function tailOutbox(client: Client, schema: string, from: TailPosition): Promise<TailPage> {
  const own = quoteSchema(schema);
  const left = `select h.settled_at as at, 'out' as direction, h.outcome as event, h.id::text as id, h.type, h.key,
      h.exchange, h.routing_key as "routingKey", null::text as consumer, null::text as error, h.size,
      'h' || h.id || extract(epoch from h.settled_at) as mark, h.settled_at::text as time
    from ${own}.outbox_history h`;
  const out = await select<Timed>(client, aheadAndBack(left, 'h.settled_at'), [from.settledAt]);
  const held = await select<MarkedEvent & { holdNo: string }>(
    client,
    `select clock_timestamp() as at, 'out' as direction, o.state as event, o.id::text as id, o.type, o.key,
       o.exchange, o.routing_key as "routingKey", null::text as consumer, o.last_error as error,
       null::int as size, 'o' || o.hold_no as mark, o.hold_no::text as "holdNo"
     from ${own}.outbox o
     where o.state in ('parked', 'blocked') and o.hold_no > $1::bigint order by o.hold_no limit ${PAGE}`,
    [from.holdNo],
  );
  return {
    events: [...out, ...held],
    next: { ...from, settledAt: furthest(out) ?? from.settledAt, holdNo: held.at(-1)?.holdNo ?? from.holdNo },
    isFull: isFull(out),
  };
}

/** What was received, and what was applied or died, since. By primary key and the indexes of processed rows. */
export async function tailInbox(client: Client, schema: string, from: TailPosition): Promise<TailPage> {
  const own = quoteSchema(schema);
  const columns = `'in' as direction, i.message_id as id, i.type, i.key, i.consumer, i.exchange,
    i.routing_key as "routingKey", i.last_error as error, octet_length(i.body) as size`;
  const received = await select<MarkedEvent & { seq: string }>(
    client,
    `select i.received_at as at, ${columns}, 'received' as event, 'r' || i.seq as mark, i.seq::text as seq
     from ${own}.inbox i where i.seq > $1::bigint - ${OVERLAP_ROWS} order by i.seq limit ${PAGE + OVERLAP_ROWS}`,
    [from.inboxSeq],
  );
  const ended = (statuses: string): string =>
    aheadAndBack(
      `select i.processed_at as at, ${columns}, case i.status when 'done' then 'applied' else i.status end as event,
         'e' || i.seq || extract(epoch from i.processed_at) as mark, i.processed_at::text as time
       from ${own}.consumer c join ${own}.inbox i on i.consumer = c.name and i.status ${statuses}`,
      'i.processed_at',
    );
  const done = await select<Timed>(client, ended("in ('done', 'discarded')"), [from.processedAt]);
  const dead = await select<Timed>(client, ended("= 'dead'"), [from.processedAt]);
  // What is cut short ends the look for both.
  const cuts = [done, dead].filter(isFull).flatMap((rows) => furthest(rows) ?? []);
  return {
    events: [...received, ...done, ...dead],
    next: {
      ...from,
      inboxSeq: received.at(-1)?.seq ?? from.inboxSeq,
      processedAt: cuts.sort()[0] ?? furthest([...done, ...dead]) ?? from.processedAt,
    },
    isFull: isFull(done) || isFull(dead) || received.length === PAGE + OVERLAP_ROWS,
  };
}

/** The next rows by time after $1, and those shortly before it, which may have been committed late. */
function aheadAndBack(rows: string, time: string): string {
  return `select * from (
      (select a.*, true as ahead from (${rows} where ${time} > $1::timestamptz order by ${time} limit ${PAGE}) a)
      union all
      (select b.*, false from (
        ${rows} where ${time} <= $1::timestamptz and ${time} > $1::timestamptz - ${OVERLAP}
        order by ${time} desc limit ${PAGE}) b)
    ) e order by at`;
}

function furthest(rows: readonly Timed[]): string | undefined {
  let last: Timed | undefined;
  for (const row of rows) if (row.ahead && (!last || row.at >= last.at)) last = row;
  return last?.time;
}

function isFull(rows: readonly Timed[]): boolean {
  return rows.filter(({ ahead }) => ahead).length === PAGE;
}
