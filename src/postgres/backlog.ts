import type { Client } from 'pg';
import { sqlState } from './errors.js';
import { select } from './inspect.js';
import { quoteSchema } from './schema-name.js';

/**
 * `exact`: counted. `at-least`: counted up to a bound, and there are more. `about`: PostgreSQL's own estimate, because
 * counting would have taken too long.
 */
type Accuracy = 'exact' | 'at-least' | 'about';

/** How many rows are in one state. */
export interface StateCount {
  state: string;
  count: number;
  accuracy: Accuracy;
  /** Of the rows that were counted; null where none was. */
  oldestAgeMs: number | null;
}

/** The outbox by state. Looking at it never loads a struggling database, whatever its size. */
export interface Backlog {
  states: StateCount[];
  tableBytes: number;
  /** Of what is kept of settled rows, estimated. */
  history: { rows: number; bytes: number; partitions: number };
}

/** One error text of parked rows. */
export interface ParkedError {
  error: string;
  count: number;
  exampleId: string;
  exampleType: string;
}

/** Most rows of one kind that are counted one by one. */
const COUNTED_ROWS = 5_000;
/** What all counts of one look may take together, and one of them. Dead rows can make also a short one long. */
export const BUDGET_MS = 30;
const SHARE_OF_BUDGET = 1 / 3;
const LEAST_LIMIT_MS = 2;
/** Pages of the table that a sample reads. */
const SAMPLED_PAGES = 300;

const HELD_STATES = ['scheduled', 'parked', 'blocked', 'cancelled', 'discarded'] as const;

interface Sizes {
  tableBytes: number;
  pages: number;
  /** Rows as the server's statistics count them; right within moments, lost in a crash. */
  liveRows: number;
  historyRows: number;
  historyBytes: number;
  partitions: number;
}

interface Counted {
  state: string;
  count: number;
  oldestAgeMs: number | null;
}

/**
 * The backlog by state. Exact for a short one; behind more than COUNTED_ROWS rows, held states are counted by their
 * partial indexes, and how many are ready is estimated from a sample of pages. No statement scans more than it counts,
 * and all together end within the budget (milliseconds): what could not be counted by then is an estimate.
 */
export async function readBacklog(client: Client, schema: string, budgetMs: number = BUDGET_MS): Promise<Backlog> {
  const sizes = await readSizes(client, schema);
  return {
    states: await new Count(client, `${quoteSchema(schema)}.outbox`, budgetMs).states(sizes),
    tableBytes: sizes.tableBytes,
    history: { rows: sizes.historyRows, bytes: sizes.historyBytes, partitions: sizes.partitions },
  };
}

/** The commonest errors of parked rows, each with one example; empty when that takes too long. */
export async function readParkedErrors(client: Client, schema: string): Promise<ParkedError[]> {
  const errors = await soon<ParkedError>(
    client,
    `select coalesce(left(last_error, 300), 'no error is recorded') as error, count(*)::int as count,
       min(id::text) as "exampleId", min(type) as "exampleType"
     from (select last_error, id, type from ${quoteSchema(schema)}.outbox
           where state = 'parked' and hold_no is not null order by key, hold_no limit ${COUNTED_ROWS}) p
     group by 1 order by 2 desc, 1 limit 5`,
    BUDGET_MS * SHARE_OF_BUDGET,
  );
  return errors ?? [];
}

async function readSizes(client: Client, schema: string): Promise<Sizes> {
  const [sizes] = await select<Sizes>(
    client,
    `select pg_total_relation_size(o.oid)::float8 as "tableBytes",
       (pg_relation_size(o.oid) / current_setting('block_size')::int)::float8 as pages, pg_stat_get_live_tuples(o.oid)::float8 as "liveRows",
       h.rows as "historyRows", h.bytes as "historyBytes", h.partitions
     from pg_class o,
       lateral (
         select coalesce(sum(greatest(pg_stat_get_live_tuples(p.oid), p.reltuples, 0)), 0)::float8 as rows,
           coalesce(sum(pg_total_relation_size(p.oid)), 0)::float8 as bytes, count(*)::int as partitions
         from pg_inherits i join pg_class p on p.oid = i.inhrelid
         where i.inhparent = $2::regclass
       ) h
     where o.oid = $1::regclass`,
    [`${quoteSchema(schema)}.outbox`, `${quoteSchema(schema)}.outbox_history`],
  );
  if (!sizes) throw new Error('the outbox is not in pg_class');
  return sizes;
}

/** One look at the states of a table, within its budget of time. */
class Count {
  readonly #client: Client;
  readonly #outbox: string;
  readonly #limitMs: number;
  readonly #endMs: number;

  constructor(client: Client, outbox: string, budgetMs: number) {
    this.#limitMs = budgetMs * SHARE_OF_BUDGET;
    this.#endMs = performance.now() + budgetMs;
    this.#client = client;
    this.#outbox = outbox;
  }

  async states({ liveRows, pages }: Sizes): Promise<StateCount[]> {
    const front = await this.#count(
      `select state, created_at from ${this.#outbox} order by seq limit ${COUNTED_ROWS + 1}`,
    );
    if (front && total(front) <= COUNTED_ROWS) return front.map((each) => ({ ...each, accuracy: 'exact' }));
    // First what matters most, should time run out.
    const oldestAgeMs = ofState(front, 'ready')?.oldestAgeMs ?? (await this.#oldestReady());
    const sample = await this.#sample(pages);
    const sampled = sample?.rows ?? [];
    const whole = liveRows > COUNTED_ROWS ? liveRows : total(sampled) * (sample?.scale ?? 0);
    const about = (state: string): number =>
      Math.round((whole * (ofState(sampled, state)?.count ?? 0)) / Math.max(1, total(sampled)));
    const counts: StateCount[] = [];
    for (const state of HELD_STATES) {
      const held = await this.#held(state);
      if (held && held.count > 0) counts.push(held);
      else if (!held && about(state) > 0) {
        counts.push({ state, count: about(state), accuracy: 'about', oldestAgeMs: null });
      }
    }
    const ready = Math.max(about('ready'), ofState(front, 'ready')?.count ?? 0, oldestAgeMs === null ? 0 : 1);
    // Also when it seems to be none: not counted is not the same as empty. Without a sample only those seen are known.
    counts.push({ state: 'ready', count: ready, accuracy: sample ? 'about' : 'at-least', oldestAgeMs });
    return counts.sort((a, b) => (a.state < b.state ? -1 : 1));
  }

  /** By the partial index that has the rows of this state in this order, so that others are not even looked at. */
  async #held(state: (typeof HELD_STATES)[number]): Promise<StateCount | undefined> {
    const isKept = state === 'parked' || state === 'blocked';
    const order = isKept ? 'key, hold_no' : state === 'scheduled' ? 'next_attempt_at' : 'seq';
    // Why both: an index on some of the rows is used only where its own condition stands in the query.
    const condition = `state = '${state}'${isKept ? ' and hold_no is not null' : ''}`;
    const counted = await this.#count(
      `select state, created_at from ${this.#outbox} where ${condition} order by ${order} limit ${COUNTED_ROWS + 1}`,
    );
    if (!counted) return undefined;
    const [found = { state, count: 0, oldestAgeMs: null }] = counted;
    if (found.count <= COUNTED_ROWS) return { ...found, accuracy: 'exact' };
    return { ...found, count: COUNTED_ROWS, accuracy: 'at-least' };
  }

  async #oldestReady(): Promise<number | null> {
    const rows = `select state, created_at from ${this.#outbox} where state = 'ready' order by seq limit 1`;
    return (await this.#count(rows))?.[0]?.oldestAgeMs ?? null;
  }

  /** Rows of some pages at random; each stands for `scale` rows. Undefined when there was no time. */
  async #sample(pages: number): Promise<{ rows: Counted[]; scale: number } | undefined> {
    const percent = Math.min(100, (100 * SAMPLED_PAGES) / Math.max(1, pages));
    const rows = await this.#count(`select state, created_at from ${this.#outbox} tablesample system (${percent})`);
    return rows && { rows, scale: 100 / percent };
  }

  async #count(rows: string): Promise<Counted[] | undefined> {
    const limitMs = Math.min(this.#limitMs, this.#endMs - performance.now());
    if (limitMs < LEAST_LIMIT_MS) return undefined;
    return soon<Counted>(
      this.#client,
      `select state, count(*)::int as count,
         (extract(epoch from clock_timestamp() - min(created_at)) * 1000)::float8 as "oldestAgeMs"
       from (${rows}) counted group by state order by state`,
      limitMs,
    );
  }
}

function total(counted: readonly Counted[]): number {
  return counted.reduce((sum, { count }) => sum + count, 0);
}

function ofState(counted: readonly Counted[] | undefined, state: string): Counted | undefined {
  return counted?.find((each) => each.state === state);
}

/**
 * The rows of a query, or undefined if it has not come to its end in `limitMs`. Indexes are read as far as is needed, where
 * a bitmap would be made of all their rows first.
 */
export async function soon<T extends object>(client: Client, sql: string, limitMs: number): Promise<T[] | undefined> {
  await client.query(
    `begin read only; set local statement_timeout = ${Math.floor(limitMs)}; set local jit = off;
     set local enable_seqscan = off; set local enable_bitmapscan = off`,
  );
  try {
    return await select<T>(client, sql);
  } catch (error) {
    if (sqlState(error) !== '57014') throw error;
    return undefined;
  } finally {
    // Why twice: the limit holds for the first one too, and ends with the error that it raises.
    await client.query('rollback').catch(() => client.query('rollback'));
  }
}
