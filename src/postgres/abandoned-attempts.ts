import type { Client } from 'pg';
import { select } from './inspect.js';
import { quoteSchema } from './schema-name.js';

/** Attempts of the last minutes are counted anew each time: the claim that found one abandoned may commit later. */
const OPEN_MINUTES = 10;

/**
 * Counts the attempts whose lease expired, by consumer, from a moment on, whoever had begun them and whoever found out.
 * The table is asked because an application's claim ends leases as well as ours do. What is older than ten minutes is
 * counted once and for all, so a look costs as much as was abandoned of late.
 */
export class AbandonedAttempts {
  readonly #totals = new Map<string, number>();
  readonly #settled = new Map<string, number>();
  /** As the server writes it. Everything up to then is in `settled`. */
  #settledUpTo: string | undefined;

  /** The totals by consumer; `elapsedMs` is how long ago the counting is to have begun, at the first call. */
  async count(client: Client, schema: string, elapsedMs: number): Promise<ReadonlyMap<string, number>> {
    const prefix = quoteSchema(schema);
    const [moments] = await select<{ since: string; until: string }>(
      client,
      `select m.since::text, greatest(m.since, clock_timestamp() - interval '${OPEN_MINUTES} minutes')::text as until
       from (select coalesce($1::timestamptz, clock_timestamp() - $2::interval) as since) m`,
      [this.#settledUpTo ?? null, `${Math.ceil(elapsedMs)} ms`],
    );
    if (!moments) return this.#totals;
    const { since, until } = moments;
    const rows = await select<{ consumer: string; older: number; recent: number }>(
      client,
      `select i.consumer, count(*) filter (where a.at <= $2)::int as older, count(*) filter (where a.at > $2)::int as recent
       from ${prefix}.inbox_attempt a join ${prefix}.inbox i on i.seq = a.inbox_seq
       where a.verdict = 'abandoned' and a.at > $1 group by 1`,
      [since, until],
    );
    for (const { consumer, older, recent } of rows) {
      const settled = (this.#settled.get(consumer) ?? 0) + older;
      this.#settled.set(consumer, settled);
      // A row that was removed meanwhile takes its attempts along; a counter must not go back for that.
      this.#totals.set(consumer, Math.max(this.#totals.get(consumer) ?? 0, settled + recent));
    }
    this.#settledUpTo = until;
    return this.#totals;
  }
}
