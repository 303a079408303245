import type { LedgerEntry } from '../core/ledger.js';
import type { Message, OutboxRow } from '../core/message.js';

/** Where a row came from: the log, or one of the reads of the table. */
export type Origin = 'stream' | 'pass' | 'sweep' | 'due' | 'poll' | 'released';

/**
 * One row between its arrival and its settling. `phase` is written by the settler and by admission only:
 *
 *   admitted ──publish──▶ confirmed ──settle──▶ (forgotten)
 *       └──────────────▶ held ───────hold────▶ (forgotten)
 */
export interface Work {
  readonly row: OutboxRow;
  readonly origin: Origin;
  /** 32 bits from the Begin message; null for a row from the table. */
  readonly xid: number | null;
  /** When it was committed, milliseconds since 1970 by the database's clock; null for a row from the table. */
  readonly committedAtMs: number | null;
  /** The table has let it go: what its writer put off is looked at there first, under a lock. */
  readonly isDue: boolean;
  /** In the replay zone: may have been published and settled by an earlier session, as far as the history tells. */
  readonly replayed: boolean;
  /** Receipts of the ledger; more than one when the log brings a row that the table brought before. */
  readonly entries: LedgerEntry[];
  phase: 'admitted' | 'confirmed' | 'held';
  message: Message | undefined;
  /** Octets that the window counts for it. */
  bytes: number;
  nacks: number;
  /** Its number in the lane of its key; null when it is in none. */
  order: bigint | null;
}

/** The work for a row that was read from the table. */
export function tableWork(row: OutboxRow, origin: Exclude<Origin, 'stream'>, isDue = false): Work {
  return {
    row,
    origin,
    isDue,
    xid: null,
    committedAtMs: null,
    replayed: false,
    entries: [],
    phase: 'admitted',
    message: undefined,
    bytes: 0,
    nacks: 0,
    order: null,
  };
}

/** Everything unsettled, by seq. Shared by pump, table reads and settler; one relay session has one. */
export class Works {
  readonly #bySeq = new Map<string, Work>();
  /** Ids of rows that went back into the table, until the log brings them from there. */
  readonly #writtenBack = new Set<string>();
  readonly #isStreamed: boolean;
  readonly #watched = new Set<{ seqs: ReadonlySet<string>; removed: Set<string> }>();

  /** `isStreamed`: false with `source: table`, where no log brings what was written. */
  constructor(isStreamed = true) {
    this.#isStreamed = isStreamed;
  }

  /** Ids of rows that were written back and that the log has not brought yet. */
  get writtenBack(): number {
    return this.#writtenBack.size;
  }

  /** The unsettled work for this very row, if any. */
  find(row: { seq: string; id: string }): Work | undefined {
    const work = this.#bySeq.get(row.seq);
    return work && work.row.id === row.id ? work : undefined;
  }

  has(seq: string): boolean {
    return this.#bySeq.has(seq);
  }

  add(work: Work): void {
    this.#bySeq.set(work.row.seq, work);
  }

  remove(work: Work): void {
    if (this.#bySeq.get(work.row.seq) === work) this.#bySeq.delete(work.row.seq);
    for (const { seqs, removed } of this.#watched) if (seqs.has(work.row.seq)) removed.add(work.row.seq);
  }

  /**
   * Notes which of these are settled until `end`: an answer that was read before and comes after must not bring them
   * back.
   */
  watch(seqs: ReadonlySet<string>): { readonly removed: ReadonlySet<string>; end(): void } {
    const watch = { seqs, removed: new Set<string>() };
    this.#watched.add(watch);
    return { removed: watch.removed, end: () => void this.#watched.delete(watch) };
  }

  /** The row is about to be written into the table again. */
  writesBack(id: string): void {
    if (this.#isStreamed) this.#writtenBack.add(id);
  }

  /** Whether it was this session that wrote the row, which the log brings now. */
  takeWrittenBack(id: string): boolean {
    return this.#writtenBack.delete(id);
  }

  get size(): number {
    return this.#bySeq.size;
  }
}
