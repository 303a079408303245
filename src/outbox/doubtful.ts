import type { Clock } from '../runtime/clock.js';
import type { LockHolder, RelayLog, Store } from './ports.js';
import { mendOf, type Refusal } from './refusal.js';
import { REFUSED_RETRY_MS } from './refused-rows.js';
import type { Stopped } from './stopped-statements.js';
import type { Work } from './work.js';

const COMPLAIN_AFTER_MS = 5_000;
const COMPLAIN_EVERY_MS = 60_000;
/** Who has locked rows is asked again after so long, milliseconds. */
const ASK_HOLDERS_EVERY_MS = 10_000;
/** Of so many rows; whoever has locked more has locked these. */
const ASKED_ROWS = 100;

interface Refused {
  refusal: Refusal;
  retryAtMs: number;
}

/** Rows whose fate cannot be stored, for a person to see to. */
export interface OutOfReach {
  /** Rows that somebody has locked for longer than some seconds (or whose transaction waits for a standby so long). */
  locked: number;
  lockedForMs: number;
  /** Who; empty when it could not be seen. */
  holders: readonly LockHolder[];
  /** Rows that a constraint or trigger of the user's own keeps from being removed, changed or written back. */
  refused: number;
  /** Those among them that wait in the table, and do not hold the position in the log back. */
  waiting: number;
  /** The first of these. */
  refusal: (Refusal & { messageId: string; seq: string }) | null;
  /** What the table refuses altogether, whatever the rows. */
  stopped: Stopped | null;
}

/**
 * Rows that a statement did not find. They are locked by somebody, or their transaction is decoded but not visible yet
 * (it waits for a synchronous standby), or they are gone: deleted by their own application, or settled by an earlier
 * session. Until it is known which, they hold their position back. So do rows that the table refused to take (back);
 * those that it refused to let go were published, and do not. They rest here until they are tried again.
 */
export class Doubtful<T extends { readonly work: Work }> {
  readonly #store: Store;
  readonly #clock: Clock;
  readonly #log: RelayLog;
  #rows: T[] = [];
  /** Rows that could not be reached when they were looked at last, and since when. */
  #sinceMs = new Map<Work, number>();
  #holders: readonly LockHolder[] = [];
  #holdersAskedAtMs: number | undefined;
  #nextComplaintAtMs = 0;
  readonly #refused = new Map<Work, Refused>();
  #nextRefusalToldAtMs = 0;

  constructor(store: Store, clock: Clock, log: RelayLog) {
    this.#store = store;
    this.#clock = clock;
    this.#log = log;
  }

  add(...rows: T[]): void {
    this.#rows.push(...rows);
  }

  /** The table does not let the row go, or does not take it (back): it is told, and rests for a while. */
  refuse(row: T, refusal: Refusal, error?: unknown): void {
    const { work } = row;
    const now = this.#clock.now();
    const isNew = !this.#refused.has(work);
    this.#refused.set(work, { refusal, retryAtMs: now + REFUSED_RETRY_MS });
    this.#rows.push(row);
    // Each row once; after that one of them from time to time.
    if (!isNew && now < this.#nextRefusalToldAtMs) return;
    this.#nextRefusalToldAtMs = now + COMPLAIN_EVERY_MS;
    const { id: messageId, key, type, seq } = work.row;
    const isSilent = refusal.sqlState === null;
    const mend = mendOf(refusal);
    const what =
      work.phase === 'confirmed'
        ? `a row is to be removed, and ${isSilent ? 'stays: it is there, and nobody has locked it' : 'that is refused'}`
        : 'a message cannot go out, and the outbox does not take its row (back)';
    this.#log.error(
      {
        messageId,
        key,
        type,
        seq,
        ...refusal,
        refusedRows: this.#refused.size,
        retryInMs: REFUSED_RETRY_MS,
        ...(error === undefined ? {} : { err: error }),
      },
      `${what}: ${mend}; until then ${work.phase === 'confirmed' ? 'a restart sends this message again' : 'PostgreSQL keeps its log, and a restart sends later messages again'}`,
    );
  }

  /** The row's fate is stored. */
  forget(work: Work): void {
    this.#refused.delete(work);
    this.#sinceMs.delete(work);
  }

  /** Rows that were refused, and are not stored yet. */
  get refusedRows(): number {
    return this.#refused.size;
  }

  get rows(): readonly T[] {
    return this.#rows;
  }

  get isEmpty(): boolean {
    return this.#rows.length === 0;
  }

  /** Nothing is left but rows that were refused, and whose next try is not due. */
  get isResting(): boolean {
    const now = this.#clock.now();
    return this.#rows.every(({ work }) => this.#isResting(work, now));
  }

  /** Each was looked at, and is refused, or locked by somebody, or not visible yet. */
  get isOutOfReach(): boolean {
    return this.#rows.every(({ work }) => this.#refused.has(work) || this.#sinceMs.has(work));
  }

  get outOfReach(): Omit<OutOfReach, 'stopped'> {
    const now = this.#clock.now();
    // Only when it is known by whom.
    const locked = this.#holdersAskedAtMs === undefined ? [] : this.#locked(now);
    const [refused] = this.#refused;
    return {
      locked: locked.length,
      lockedForMs: Math.max(0, ...locked.slice(0, 1).map((work) => now - (this.#sinceMs.get(work) ?? now))),
      holders: locked.length > 0 ? this.#holders : [],
      refused: this.#refused.size,
      waiting: 0,
      refusal: refused ? exampleOf(...refused) : null,
    };
  }

  /** Asks where the rows are. Those that are undecided or rest stay; the others are handed over. */
  async resolve(): Promise<{ present: T[]; gone: T[] }> {
    const now = this.#clock.now();
    const asked = this.#rows.filter(({ work }) => !this.#isResting(work, now));
    const undecided: T[] = [];
    const present: T[] = [];
    const gone: T[] = [];
    if (asked.length > 0) {
      const found = await this.#store.whereabouts(
        asked.map(({ work }) => ({ seq: work.row.seq, id: work.row.id, xid: work.xid })),
      );
      this.#rows = this.#rows.filter(({ work }) => this.#isResting(work, now));
      for (const each of asked) {
        const where = found.get(each.work.row.seq) ?? 'gone';
        if (where === 'undecided') undecided.push(each);
        else if (where === 'gone') gone.push(each);
        else present.push(each);
      }
      this.#rows.push(...undecided);
    }
    await this.#complain([...undecided, ...present.filter(({ work }) => !this.#refused.has(work))]);
    return { present, gone };
  }

  #isResting(work: Work, now: number): boolean {
    return (this.#refused.get(work)?.retryAtMs ?? 0) > now;
  }

  /** Rows that stay out of reach hold the position back, and WAL with it: after a while somebody should know. */
  async #complain(outOfReach: readonly T[]): Promise<void> {
    const now = this.#clock.now();
    this.#sinceMs = new Map(outOfReach.map(({ work }) => [work, this.#sinceMs.get(work) ?? now]));
    const locked = this.#locked(now);
    const [first] = locked;
    if (!first) {
      this.#holdersAskedAtMs = undefined;
      return;
    }
    if (this.#holdersAskedAtMs === undefined || now - this.#holdersAskedAtMs >= ASK_HOLDERS_EVERY_MS) {
      this.#holders = await this.#store.lockHolders(locked.slice(0, ASKED_ROWS).map(({ row }) => row));
      this.#holdersAskedAtMs = now;
    }
    if (now < this.#nextComplaintAtMs) return;
    this.#nextComplaintAtMs = now + COMPLAIN_EVERY_MS;
    const { id: messageId, seq } = first.row;
    this.#log.warn(
      { rows: locked.length, messageId, seq, holders: this.#holders },
      'rows cannot be removed or held: somebody else has locked them (holders), or their transaction waits for a synchronous standby; until then PostgreSQL keeps its log, and a restart sends these messages again. See whose it is; to end it: select pg_terminate_backend(pid), or rollback prepared',
    );
  }

  /** Those that have been out of reach for so long that somebody should know. */
  #locked(now: number): Work[] {
    return [...this.#sinceMs].flatMap(([work, sinceMs]) => (now - sinceMs < COMPLAIN_AFTER_MS ? [] : work));
  }
}

function exampleOf({ row }: Work, { refusal }: Refused): OutOfReach['refusal'] {
  return { messageId: row.id, seq: row.seq, ...refusal };
}
