import type { Client } from 'pg';
import { BUDGET_MS, soon, type StateCount } from './backlog.js';
import { sqlState } from './errors.js';
import { select } from './inspect.js';
import { IS_PAUSED } from './pause.js';
import { quoteSchema } from './schema-name.js';

/** One consumer that was registered, with what waits for it. */
export interface ConsumerBacklog {
  name: string;
  owner: string | null;
  queue: string;
  /** store, sql or http. */
  handler: string;
  pausedAt: Date | null;
  /** A breaker's word counts for a time; it stops nobody but its own process. */
  pausedBy: 'operator' | 'breaker' | null;
  pausedReason: string | null;
  /** A rename was begun and is not through: until then nothing is received or handed out under either name. */
  renamingTo: string | null;
  /** By status, without those that are done; null when counting took too long. */
  states: StateCount[] | null;
  /** What has been due for longer than LATE_MS and was not taken up, of what was counted; null: nothing, or not counted. */
  late: Omit<StateCount, 'state'> | null;
  /** Of dead messages whose copies have not gone to the dead-letter exchange; null: that may not be read. */
  uncopied: Uncopied | null;
}

/** How many copies wait, how many of these RabbitMQ has refused, and how long ago the first of the messages died. */
export interface Uncopied extends Omit<StateCount, 'state'> {
  refused: number;
}

/** A sweep is every 30 s: what has been due for this long (milliseconds), nobody takes up, or somebody who cannot keep up. */
export const LATE_MS = 5 * 60_000;

/** Most rows of one status and consumer that are counted, and how many if that takes too long. */
const COUNTED_ROWS: readonly number[] = [1_000, 100];
/** Most copies of one consumer that are counted. */
const COUNTED_COPIES = 1_000;
const NO_COPIES: Uncopied = { count: 0, refused: 0, accuracy: 'exact', oldestAgeMs: null };
const SHARE_OF_BUDGET = 2 / 3;
const LEAST_LIMIT_MS = 2;
/** The statuses that are counted, each with the time since which a row of it is due, if it can be. */
const DUE_SINCE = {
  pending: 'received_at',
  running: 'lease_until',
  waiting: 'next_attempt_at',
  blocked: 'null::timestamptz',
  dead: 'null::timestamptz',
} as const;

/** Those whose index has not first what came first: the oldest is asked of an index of its own, of however many there are. */
const HELD = ['waiting', 'blocked'];

interface Counted {
  name: string;
  state: string;
  count: number;
  accuracy: 'exact' | 'at-least';
  oldestAgeMs: number | null;
  late: number;
  lateAgeMs: number | null;
}

/**
 * The consumers of the schema and what is in their inbox. Each status has a partial index, so rows that are done cost
 * nothing; the counts are bounded, and all of them together end within the budget (milliseconds).
 */
export async function readConsumers(
  client: Client,
  schema: string,
  budgetMs: number = BUDGET_MS,
  bounds: readonly number[] = COUNTED_ROWS,
): Promise<ConsumerBacklog[]> {
  const prefix = quoteSchema(schema);
  const consumers = await select<Omit<ConsumerBacklog, 'states' | 'late' | 'uncopied'>>(
    client,
    `select c.name, c.owner, c.queue, c.handler, p.paused_at as "pausedAt", p.paused_by as "pausedBy",
       p.paused_reason as "pausedReason", c.renaming_to as "renamingTo"
     from ${prefix}.consumer c left join ${prefix}.consumer p on p.name = c.name and ${IS_PAUSED} order by c.name`,
  );
  if (consumers.length === 0) return [];
  const uncopied = await countUncopied(client, prefix);
  const counts = await countStatuses(client, prefix, performance.now() + budgetMs, bounds);
  return consumers.map((consumer) => {
    const own = counts?.filter(({ name }) => name === consumer.name);
    const states = own?.map(({ state, count, accuracy, oldestAgeMs }) => ({ state, count, accuracy, oldestAgeMs }));
    const copies = uncopied && (uncopied.get(consumer.name) ?? NO_COPIES);
    return { ...consumer, states: states ?? null, late: lateOf(own ?? []), uncopied: copies ?? null };
  });
}

/** By consumer, without those that have none; undefined: the role may not look. Of an index, as far as is counted. */
async function countUncopied(client: Client, prefix: string): Promise<Map<string, Uncopied> | undefined> {
  try {
    const rows = await select<Omit<Uncopied, 'accuracy'> & { name: string }>(
      client,
      `select c.name, u.count, u.refused,
         (extract(epoch from clock_timestamp() - u.oldest) * 1000)::float8 as "oldestAgeMs"
       from ${prefix}.consumer c, lateral (
         select count(*)::int as count, (count(*) filter (where d.refused > 0))::int as refused, min(d.died_at) as oldest
         from (select refused, died_at from ${prefix}.inbox_uncopied i where i.consumer = c.name
               order by i.consumer, i.died_at, i.inbox_seq limit ${COUNTED_COPIES + 1}) d
       ) u where u.count > 0`,
    );
    return new Map(
      rows.map(({ name, count, refused, oldestAgeMs }) => [
        name,
        {
          count: Math.min(count, COUNTED_COPIES),
          refused: Math.min(refused, COUNTED_COPIES),
          accuracy: count > COUNTED_COPIES ? ('at-least' as const) : ('exact' as const),
          oldestAgeMs,
        },
      ]),
    );
  } catch (error) {
    if (sqlState(error) !== '42501') throw error;
    return undefined;
  }
}

/** Of all statuses together. */
function lateOf(counts: readonly Counted[]): ConsumerBacklog['late'] {
  const late = counts.filter((each) => each.late > 0);
  if (late.length === 0) return null;
  return {
    count: late.reduce((sum, each) => sum + each.late, 0),
    accuracy: late.some(({ accuracy }) => accuracy === 'at-least') ? 'at-least' : 'exact',
    oldestAgeMs: Math.max(...late.map(({ lateAgeMs }) => lateAgeMs ?? 0)),
  };
}

/** With the first of the bounds that can be kept until `endMs`; undefined: with none of them. */
async function countStatuses(
  client: Client,
  prefix: string,
  endMs: number,
  bounds: readonly number[],
): Promise<Counted[] | undefined> {
  for (const [n, bound] of bounds.entries()) {
    const limitMs = (endMs - performance.now()) * (n + 1 < bounds.length ? SHARE_OF_BUDGET : 1);
    if (limitMs < LEAST_LIMIT_MS) return undefined;
    // Why a text for each status: an index on some of the rows is found by the text of its condition. Each index has first
    // what is due first.
    const oldest = (status: string): string =>
      `(select o.received_at from ${prefix}.inbox o where o.consumer = c.name and o.status = '${status}'
        order by o.received_at limit 1)`;
    const each = Object.entries(DUE_SINCE).map(
      ([status, due]) =>
        `select '${status}' as state, count(*)::int as count, ${HELD.includes(status) ? oldest(status) : 'min(received_at)'} as oldest,
           (count(*) filter (where is_late))::int as late, min(received_at) filter (where is_late) as oldest_late
         from (select received_at, ${due} < now() - interval '${LATE_MS} ms' as is_late from ${prefix}.inbox i
               where i.consumer = c.name and i.status = '${status}' limit ${bound + 1}) ${status}_rows`,
    );
    const counts = await soon<Omit<Counted, 'accuracy'>>(
      client,
      `select c.name, n.state, n.count, (extract(epoch from clock_timestamp() - n.oldest) * 1000)::float8 as "oldestAgeMs",
         n.late, (extract(epoch from clock_timestamp() - n.oldest_late) * 1000)::float8 as "lateAgeMs"
       from ${prefix}.consumer c, lateral (${each.join(' union all ')}) n where n.count > 0`,
      limitMs,
    );
    if (counts) {
      return counts.map((row) => ({
        ...row,
        count: Math.min(row.count, bound),
        late: Math.min(row.late, bound),
        accuracy: row.count > bound ? 'at-least' : 'exact',
      }));
    }
  }
  return undefined;
}
