import type { Client } from 'pg';
import { BUDGET_MS, soon, type StateCount } from './backlog.js';
import { select } from './inspect.js';
import { quoteSchema } from './schema-name.js';

/** One consumer that was registered, with what waits for it. */
export interface ConsumerBacklog {
  name: string;
  owner: string | null;
  queue: string;
  pausedAt: Date | null;
  pausedReason: string | null;
  /** By status, without those that are done; null when counting took too long. */
  states: StateCount[] | null;
}

/** Most rows of one status and consumer that are counted. */
const COUNTED_ROWS = 5_000;
const STATUSES = ['pending', 'running', 'waiting', 'blocked', 'dead'] as const;

/**
 * The consumers of the schema and what is in their inbox. Each status has a partial index, so rows that are done cost
 * nothing; the counts are bounded, and all of them together end within the budget (milliseconds).
 */
export async function readConsumers(
  client: Client,
  schema: string,
  budgetMs: number = BUDGET_MS,
): Promise<ConsumerBacklog[]> {
  const prefix = quoteSchema(schema);
  const consumers = await select<Omit<ConsumerBacklog, 'states'>>(
    client,
    `select name, owner, queue, paused_at as "pausedAt", paused_reason as "pausedReason"
     from ${prefix}.consumer order by name`,
  );
  if (consumers.length === 0) return [];
  // Why a text for each status: an index on some of the rows is found by the text of its condition.
  const each = STATUSES.map(
    (status) =>
      `select '${status}' as state, count(*)::int as count, min(received_at) as oldest
       from (select received_at from ${prefix}.inbox i
             where i.consumer = c.name and i.status = '${status}' limit ${COUNTED_ROWS + 1}) ${status}_rows`,
  );
  const counts = await soon<{ name: string; state: string; count: number; oldestAgeMs: number }>(
    client,
    `select c.name, n.state, n.count, (extract(epoch from clock_timestamp() - n.oldest) * 1000)::float8 as "oldestAgeMs"
     from ${prefix}.consumer c, lateral (${each.join(' union all ')}) n where n.count > 0`,
    budgetMs,
  );
  return consumers.map((consumer) => ({
    ...consumer,
    states:
      counts
        ?.filter(({ name }) => name === consumer.name)
        .map(({ state, count, oldestAgeMs }) => ({
          state,
          count: Math.min(count, COUNTED_ROWS),
          accuracy: count > COUNTED_ROWS ? 'at-least' : 'exact',
          oldestAgeMs,
        })) ?? null,
  }));
}
