import type { Client } from 'pg';
import { BUDGET_MS, soon, type StateCount } from './backlog.js';
import { select } from './inspect.js';
import { IS_PAUSED } from './pause.js';
import { quoteSchema } from './schema-name.js';

/** One consumer that was registered, with what waits for it. */
export interface ConsumerBacklog {
  name: string;
  owner: string | null;
  queue: string;
  pausedAt: Date | null;
  /** A breaker's word counts for a time; it stops nobody but its own process. */
  pausedBy: 'operator' | 'breaker' | null;
  pausedReason: string | null;
  /** A rename was begun and is not through: until then nothing is received or handed out under either name. */
  renamingTo: string | null;
  /** By status, without those that are done; null when counting took too long. */
  states: StateCount[] | null;
}

/** Most rows of one status and consumer that are counted, and how many if that takes too long. */
const COUNTED_ROWS: readonly number[] = [1_000, 100];
const SHARE_OF_BUDGET = 2 / 3;
const LEAST_LIMIT_MS = 2;
const STATUSES = ['pending', 'running', 'waiting', 'blocked', 'dead'] as const;

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
  const consumers = await select<Omit<ConsumerBacklog, 'states'>>(
    client,
    `select c.name, c.owner, c.queue, p.paused_at as "pausedAt", p.paused_by as "pausedBy",
       p.paused_reason as "pausedReason", c.renaming_to as "renamingTo"
     from ${prefix}.consumer c left join ${prefix}.consumer p on p.name = c.name and ${IS_PAUSED} order by c.name`,
  );
  if (consumers.length === 0) return [];
  const counts = await countStatuses(client, prefix, performance.now() + budgetMs, bounds);
  return consumers.map((consumer) => ({
    ...consumer,
    states:
      counts
        ?.filter(({ name }) => name === consumer.name)
        .map(({ state, count, accuracy, oldestAgeMs }) => ({ state, count, accuracy, oldestAgeMs })) ?? null,
  }));
}

/** With the first of the bounds that can be kept until `endMs`; undefined: with none of them. */
async function countStatuses(
  client: Client,
  prefix: string,
  endMs: number,
  bounds: readonly number[],
): Promise<(StateCount & { name: string })[] | undefined> {
  for (const [n, bound] of bounds.entries()) {
    const limitMs = (endMs - performance.now()) * (n + 1 < bounds.length ? SHARE_OF_BUDGET : 1);
    if (limitMs < LEAST_LIMIT_MS) return undefined;
    // Why a text for each status: an index on some of the rows is found by the text of its condition.
    const each = STATUSES.map(
      (status) =>
        `select '${status}' as state, count(*)::int as count, min(received_at) as oldest
         from (select received_at from ${prefix}.inbox i
               where i.consumer = c.name and i.status = '${status}' limit ${bound + 1}) ${status}_rows`,
    );
    const counts = await soon<{ name: string; state: string; count: number; oldestAgeMs: number }>(
      client,
      `select c.name, n.state, n.count, (extract(epoch from clock_timestamp() - n.oldest) * 1000)::float8 as "oldestAgeMs"
       from ${prefix}.consumer c, lateral (${each.join(' union all ')}) n where n.count > 0`,
      limitMs,
    );
    if (counts) {
      return counts.map((row) => ({
        ...row,
        count: Math.min(row.count, bound),
        accuracy: row.count > bound ? 'at-least' : 'exact',
      }));
    }
  }
  return undefined;
}
