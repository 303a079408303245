import type { Client } from 'pg';
import { select } from './inspect.js';
import type { Answer, RowSnapshot } from './operator-rows.js';
import { conditionOf, type RowFilter } from './row-filter.js';
import { quoteSchema } from './schema-name.js';

const HISTORY = { state: 'o.outcome', error: null, time: 'o.settled_at' };

/**
 * The published messages of the history that are meant now, each once, at most `limit`, in the order in which they went
 * out. Times are those at which they left the outbox.
 */
export async function takeHistorySnapshot(
  client: Client,
  schema: string,
  filter: RowFilter,
  limit: number,
): Promise<RowSnapshot> {
  const { sql, values } = conditionOf({ states: ['published', 'accepted'], ...filter }, HISTORY);
  const rows = await select<{ id: string; state: string; type: string }>(
    client,
    `select l.id::text as id, l.type, case when l.kept then l.outcome else 'body not kept' end as state
     from (
       select distinct on (o.id) o.id, o.type, o.outcome, o.headers is not null as kept, o.settled_at, o.seq
       from ${quoteSchema(schema)}.outbox_history o where ${sql} order by o.id, o.settled_at desc
     ) l order by l.settled_at, l.seq limit ${limit}`,
    values,
  );
  const kinds = new Map<string, RowSnapshot['kinds'][number]>();
  for (const { state, type } of rows) {
    const name = JSON.stringify([state, type]);
    const kind = kinds.get(name);
    if (kind) kind.count += 1;
    else kinds.set(name, { state, type, count: 1 });
  }
  return { kinds: [...kinds.values()].sort((a, b) => b.count - a.count), ids: rows.map(({ id }) => id) };
}

/** Calls the function that replays for each id, in the order given, all in one transaction. */
export function replayRows(
  client: Client,
  schema: string,
  ids: readonly string[],
  reason: string | null,
  asNew: boolean,
): Promise<Answer[]> {
  const own = quoteSchema(schema);
  return select<Answer>(
    client,
    `select w.id::text as id, ${own}.replay(w.id, $2, $3) as answer
     from (select u.id from unnest($1::uuid[]) with ordinality u (id, place) order by u.place) w`,
    [ids, reason, asNew],
  );
}

/** What a replay of these ids would meet, without doing it. */
export function readReplayable(client: Client, schema: string, ids: readonly string[]): Promise<Answer[]> {
  const own = quoteSchema(schema);
  return select<Answer>(
    client,
    `select w.id::text as id, coalesce(
       (select 'in the outbox: ' || o.state from ${own}.outbox o where o.id = w.id),
       (select h.outcome || case when h.headers is null then ', body not kept' else ', body kept' end
        from ${own}.outbox_history h where h.id = w.id order by h.settled_at desc limit 1),
       'unknown') as answer
     from unnest($1::uuid[]) with ordinality w (id, place) order by w.place`,
    [ids],
  );
}
