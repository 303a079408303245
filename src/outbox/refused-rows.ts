import type { Clock } from '../runtime/clock.js';
import type { RelayLog, WaitingRow } from './ports.js';
import { mendOf, type Refusal } from './refusal.js';
import { StoppedStatements } from './stopped-statements.js';

/** When a row is tried again that the table has refused, milliseconds: a person must change something first. */
export const REFUSED_RETRY_MS = 30_000;
const COMPLAIN_EVERY_MS = 60_000;
/** So many are remembered; what is refused beyond is found again, and again. */
const MAX_REMEMBERED = 10_000;
/** One that may be tried again, and of which so long nothing was heard, is not there any more, milliseconds. */
const FORGOTTEN_AFTER_MS = 120_000;

/** What is to become of a row: its time has come, or it has a place in its key and its turn has. */
export type Use = 'due' | 'placed';

interface Refused {
  row: WaitingRow;
  use: Use;
  refusal: Refusal;
  retryAtMs: number;
}

/**
 * Rows that wait in the table, and that it refuses to let go. Each is told once, left out of what is done with the
 * others, and tried again after a while. One of these lives as long as the session.
 */
export class RefusedRows {
  /** What is refused whatever the rows. */
  readonly statements: StoppedStatements;
  readonly #clock: Clock;
  readonly #log: RelayLog;
  /** By seq, in the order of their next tries. */
  readonly #rows = new Map<string, Refused>();
  #nextWordAtMs = 0;

  constructor(clock: Clock, log: RelayLog) {
    this.#clock = clock;
    this.#log = log;
    this.statements = new StoppedStatements({
      clock,
      log,
      retryInMs: REFUSED_RETRY_MS,
      soLong: 'these rows stay in the table, and all others go on',
    });
  }

  /** True when the row is remembered and was not before. */
  refuse(use: Use, row: WaitingRow, refusal: Refusal, error?: unknown): boolean {
    const now = this.#clock.now();
    const isNew = !this.#rows.delete(row.seq);
    const isRemembered = this.#rows.size < MAX_REMEMBERED;
    if (isRemembered) this.#rows.set(row.seq, { row, use, refusal, retryAtMs: now + REFUSED_RETRY_MS });
    // Each row once; after that, and past those that are remembered, one of them from time to time.
    if ((!isNew || !isRemembered) && now < this.#nextWordAtMs) return isNew && isRemembered;
    this.#nextWordAtMs = now + COMPLAIN_EVERY_MS;
    const { id: messageId, key, type, seq } = row;
    const refusedRows = this.#rows.size;
    this.#log.error(
      {
        messageId,
        key,
        type,
        seq,
        ...refusal,
        refusedRows,
        retryInMs: REFUSED_RETRY_MS,
        ...(error ? { err: error } : {}),
      },
      `${use === 'due' ? 'a message is due' : 'the turn of a message has come'}, and the outbox does not let its row go: ${mendOf(refusal)}; until then it waits in the table${use === 'due' ? '' : ' and holds its key'}, and the others go on`,
    );
    return isNew && isRemembered;
  }

  /** Those that are known, and left out of what is done with the others. */
  known(use: Use): string[] {
    return this.#those((each) => each.use === use).map(({ row }) => row.seq);
  }

  /** Those of these keys (of all) that have a place and are not to be tried yet. */
  resting(keys?: ReadonlySet<string | null>): string[] {
    const now = this.#clock.now();
    return this.#those(
      ({ use, retryAtMs, row }) => use === 'placed' && retryAtMs > now && keys?.has(row.key) !== false,
    ).map(({ row }) => row.seq);
  }

  /** Those that may be tried again, the longest known first. */
  ripe(use: Use, max = Infinity): WaitingRow[] {
    const now = this.#clock.now();
    for (const [seq, each] of this.#rows) {
      if (each.use === 'placed' && now - each.retryAtMs > FORGOTTEN_AFTER_MS) this.#rows.delete(seq);
    }
    return this.#those((each) => each.use === use && each.retryAtMs <= now)
      .slice(0, max)
      .map(({ row }) => row);
  }

  /** They went, or are not there any more. */
  forget(rows: readonly { seq: string }[]): void {
    for (const { seq } of rows) this.#rows.delete(seq);
  }

  /** The table has done what it was asked with these keys (all): what was tried again was not refused. */
  went(keys?: ReadonlySet<string | null>): void {
    this.forget(this.ripe('placed').filter(({ key }) => keys?.has(key) !== false));
  }

  /** Keys of which a row is refused: nothing behind it goes. */
  get heldKeys(): Set<string | null> {
    return new Set(this.#those(({ use }) => use === 'placed').map(({ row }) => row.key));
  }

  get size(): number {
    return this.#rows.size;
  }

  /** The first row that is refused, and by what. */
  get example(): (Refusal & { messageId: string; seq: string }) | null {
    const [first] = this.#rows.values();
    return first ? { messageId: first.row.id, seq: first.row.seq, ...first.refusal } : null;
  }

  #those(which: (each: Refused) => boolean): Refused[] {
    return [...this.#rows.values()].filter(which);
  }
}
