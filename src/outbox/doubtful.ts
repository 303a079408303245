import type { Clock } from '../runtime/clock.js';
import type { RelayLog, Store } from './ports.js';
import type { Work } from './work.js';

const COMPLAIN_AFTER_MS = 5_000;
const COMPLAIN_EVERY_MS = 60_000;

/**
 * Rows that a statement did not find. They are locked by somebody, or their transaction is decoded but not visible yet
 * (it waits for a synchronous standby), or they are gone: deleted by their own application, or settled by an earlier
 * session. Until it is known which, they hold their position back.
 */
export class Doubtful<T extends { readonly work: Work }> {
  readonly #store: Store;
  readonly #clock: Clock;
  readonly #log: RelayLog;
  #rows: T[] = [];
  #outOfReachSinceMs: number | undefined;
  #nextComplaintAtMs = 0;

  constructor(store: Store, clock: Clock, log: RelayLog) {
    this.#store = store;
    this.#clock = clock;
    this.#log = log;
  }

  add(...rows: T[]): void {
    this.#rows.push(...rows);
  }

  get rows(): readonly T[] {
    return this.#rows;
  }

  get isEmpty(): boolean {
    return this.#rows.length === 0;
  }

  /** Asks where the rows are. Those that are undecided stay; the others are handed over. */
  async resolve(): Promise<{ present: T[]; gone: T[] }> {
    const rows = this.#rows;
    const present: T[] = [];
    const gone: T[] = [];
    if (rows.length > 0) {
      const found = await this.#store.whereabouts(
        rows.map(({ work }) => ({ seq: work.row.seq, id: work.row.id, xid: work.xid })),
      );
      this.#rows = [];
      for (const each of rows) {
        const where = found.get(each.work.row.seq) ?? 'gone';
        if (where === 'undecided') this.#rows.push(each);
        else if (where === 'gone') gone.push(each);
        else present.push(each);
      }
    }
    this.#complain([...this.#rows, ...present]);
    return { present, gone };
  }

  /** Rows that stay out of reach hold the position back, and WAL with it: after a while somebody should know. */
  #complain(outOfReach: readonly T[]): void {
    const now = this.#clock.now();
    const first = outOfReach[0];
    if (!first) {
      this.#outOfReachSinceMs = undefined;
      return;
    }
    this.#outOfReachSinceMs ??= now;
    if (now - this.#outOfReachSinceMs < COMPLAIN_AFTER_MS || now < this.#nextComplaintAtMs) return;
    this.#nextComplaintAtMs = now + COMPLAIN_EVERY_MS;
    this.#log.warn(
      { rows: outOfReach.length, messageId: first.work.row.id, seq: first.work.row.seq },
      'rows cannot be removed or held: somebody else has locked them, or their transaction waits for a synchronous standby; until then PostgreSQL keeps its log, and a restart sends later messages again',
    );
  }
}
