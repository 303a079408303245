import type { Config } from '../config/load.js';
import { WaybillError } from '../core/errors.js';
import { quoteIdentifier } from '../core/identity.js';
import { pause, type Clock } from '../runtime/clock.js';
import type { Logger } from '../telemetry/log.js';
import { ConsumerDatabase } from './consumer-database.js';

/** The cleaner of a process. */
export interface Cleaner {
  /** Resolves when it has ended after stop(); never rejects. */
  stopped: Promise<void>;
  /** Gives up what it is at: it is repeated another time. Idempotent. */
  stop(): Promise<'drained'>;
}

const BATCH_ROWS = 5_000;
/** Between two batches, so that cleaning is never what the database is busy with. */
const BREATH_MS = 100;
/** Batches of the walk over what `newer` was told, which has no end of its own; the next round goes on. */
const WALKED_BATCHES = 4;
const STATEMENT_TIMEOUT_MS = 30_000;
/** Between two rounds; over a shorter one the connection is kept. */
const LONG_PAUSE_MS = 1_000;

/**
 * Removes what its retention is over for (design 4.8), in small batches on a connection of its own: messages of every
 * registered consumer, what `first_time` and `newer` were told, the log of operators' acts. Of several processes one does
 * it at a time: the others find the advisory lock taken and look again later. No failure ends it, and none of one kind of
 * rows keeps it from the others.
 */
export function startCleaner(
  config: Config,
  log: Logger,
  { settings, clock }: { settings: () => Config['database']; clock: Clock },
): Cleaner {
  const stopping = new AbortController();
  const database = new ConsumerDatabase({
    settings,
    name: 'waybill cleaner',
    statementTimeoutMs: STATEMENT_TIMEOUT_MS,
  });
  const rounds = new Rounds(database, config, log, clock, stopping.signal);
  const stopped = rounds.run();
  return {
    stopped,
    async stop() {
      stopping.abort();
      database.close();
      await stopped;
      return 'drained';
    },
  };
}

/** One call of a function: how many rows went, and whether it is to be called again. */
interface Batch {
  removed: number;
  more: boolean;
}

class Rounds {
  readonly #database: ConsumerDatabase;
  readonly #schemaName: string;
  readonly #schema: string;
  readonly #retention: Config['retention'];
  readonly #log: Logger;
  readonly #clock: Clock;
  readonly #stopping: AbortSignal;
  /** What could not be done, and was said. */
  readonly #complaints = new Map<string, string>();
  /** Where the walk over what `newer` was told goes on; undefined: it starts anew. */
  #walk: { before: string; scope: string; key: string } | undefined;

  constructor(database: ConsumerDatabase, config: Config, log: Logger, clock: Clock, stopping: AbortSignal) {
    this.#database = database;
    this.#schemaName = config.database.schema;
    this.#schema = quoteIdentifier(config.database.schema);
    this.#retention = config.retention;
    this.#log = log;
    this.#clock = clock;
    this.#stopping = stopping;
  }

  async run(): Promise<void> {
    for (;;) {
      await pause(this.#clock, this.#retention.intervalMs * (0.5 + this.#clock.random()), this.#stopping);
      if (this.#stopping.aborted) return;
      for (const consumer of await this.#consumers()) {
        await this.#try(`messages of consumer ${consumer}`, () => this.#cleanInbox(consumer));
      }
      await this.#try('what first_time was told', () => this.#cleanIdempotency());
      await this.#try('what newer was told', () => this.#walkFreshness(), WALKED_BATCHES);
      await this.#try("operators' acts", () => this.#cleanActions());
      // Nobody has a connection for nothing, and a server that shuts down does not wait for this one.
      if (this.#retention.intervalMs >= LONG_PAUSE_MS) await this.#database.rest();
    }
  }

  /** Batch after batch, until there is no more, or something is wrong: then the next round tries again. */
  async #try(what: string, batch: () => Promise<Batch>, most = Infinity): Promise<void> {
    let removed = 0;
    try {
      for (let n = 1; !this.#stopping.aborted; n += 1) {
        const done = await batch();
        removed += done.removed;
        if (!done.more || n >= most) break;
        await pause(this.#clock, BREATH_MS, this.#stopping);
      }
      this.#complaints.delete(what);
    } catch (error) {
      this.#complain(what, error);
    }
    if (removed > 0) this.#log.debug({ what, removed }, 'removed what its retention is over for');
  }

  #complain(what: string, error: unknown): void {
    if (this.#stopping.aborted) return;
    const complaint = error instanceof WaybillError ? error.code : String(error);
    // Told once: while PostgreSQL is away, those whose work it stops say so at each attempt.
    if (this.#complaints.get(what) !== complaint) {
      this.#log.warn({ err: error, what }, 'what its retention is over for cannot be removed; trying again later');
    }
    this.#complaints.set(what, complaint);
  }

  /** All that are registered, those of other processes and those that nobody runs any more too. */
  async #consumers(): Promise<string[]> {
    const what = 'messages';
    try {
      const names = await this.#database.use('looking for consumers', async (client) => {
        const { rows } = await client.query<{ name: string }>(
          `select name from ${this.#schema}.consumer where renaming_to is null order by name`,
        );
        return rows.map(({ name }) => name);
      });
      this.#complaints.delete(what);
      return names;
    } catch (error) {
      this.#complain(what, error);
      return [];
    }
  }

  async #cleanInbox(consumer: string): Promise<Batch> {
    const rows = await this.#locked<{ removed: string; remaining: string }>('inbox_clean($2, mine.rows)', [consumer]);
    return {
      removed: rows.reduce((sum, { removed }) => sum + Number(removed), 0),
      more: rows.some(({ removed, remaining }) => Number(removed) > 0 && Number(remaining) > 0),
    };
  }

  async #cleanIdempotency(): Promise<Batch> {
    return this.#cleanOlderThan('clean_idempotency', this.#retention.firstTimeMs);
  }

  async #cleanActions(): Promise<Batch> {
    return this.#cleanOlderThan('clean_actions', this.#retention.actionsMs);
  }

  async #cleanOlderThan(name: string, ms: number): Promise<Batch> {
    const [row] = await this.#locked<{ removed: string; remaining: string }>(`${name}($2::interval, mine.rows)`, [
      `${ms} ms`,
    ]);
    const removed = Number(row?.removed ?? 0);
    return { removed, more: removed > 0 && Number(row?.remaining) > 0 };
  }

  async #walkFreshness(): Promise<Batch> {
    this.#walk ??= await this.#newWalk();
    if (this.#walk === undefined) return { removed: 0, more: false };
    const { before, scope, key } = this.#walk;
    const [row] = await this.#locked<{ removed: string; next_scope: string | null; next_key: string | null }>(
      'clean_freshness($2::timestamptz, $3, $4, mine.rows)',
      [before, scope, key],
    );
    if (!row) return { removed: 0, more: false };
    const { next_scope: nextScope, next_key: nextKey } = row;
    this.#walk = nextScope === null || nextKey === null ? undefined : { before, scope: nextScope, key: nextKey };
    return { removed: Number(row.removed), more: this.#walk !== undefined };
  }

  /** Undefined while `newer` was told nothing. */
  async #newWalk(): Promise<{ before: string; scope: string; key: string } | undefined> {
    const before = await this.#database.use('cleaning', async (client) => {
      const { rows } = await client.query<{ before: string | null }>(
        `select ${this.#schema}.freshness_limit($1::interval)::text as before`,
        [`${this.#retention.newerMs} ms`],
      );
      return rows[0]?.before ?? null;
    });
    return before === null ? undefined : { before, scope: '', key: '' };
  }

  /** Calls a function while nobody else cleans; no rows if somebody does. */
  async #locked<Row extends object>(call: string, values: unknown[]): Promise<Row[]> {
    return this.#database.use('cleaning', async (client) => {
      // Why the number of rows comes out of the lock: so the function can only be called after it.
      const { rows } = await client.query<Row>(
        `select c.* from (
           select case when pg_try_advisory_xact_lock(hashtextextended($1 || '.inbox_clean', 0)) then ${BATCH_ROWS} end as rows
           offset 0
         ) mine cross join lateral ${this.#schema}.${call} c where mine.rows is not null`,
        [this.#schemaName, ...values],
      );
      return rows;
    });
  }
}
