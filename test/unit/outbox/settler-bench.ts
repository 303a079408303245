import { Ledger, type LedgerEntry } from '../../../src/core/ledger.js';
import type { Lsn } from '../../../src/core/lsn.js';
import type { LockHolder, NotStored, Settlement, SettleResult, Store, Whereabouts } from '../../../src/outbox/ports.js';
import type { Refusal } from '../../../src/outbox/refusal.js';
import { Settler } from '../../../src/outbox/settler.js';
import { Works, type Work } from '../../../src/outbox/work.js';
import { ManualClock, turn } from '../../support/manual-clock.js';
import { outboxRow } from '../../support/outbox-rows.js';
import { Calls } from './model-calls.js';
import { noCounts } from './model-relay.js';

export const INTERVAL_MS = 200;

/** The real Settler and Ledger over a store that answers when the test says so. */
export class SettlerBench {
  readonly clock = new ManualClock();
  readonly calls = new Calls();
  readonly works = new Works();
  readonly counters = noCounts();
  readonly ledger = new Ledger(100n);
  /** What the store was asked, in order. */
  readonly asked: { what: string; seqs: string[]; candidate?: Lsn | null; durable?: boolean }[] = [];
  readonly reported: Lsn[] = [];
  readonly warnings: string[] = [];
  readonly errors: object[] = [];
  /** How often it said that it got on. */
  progress = 0;
  failure: Error | undefined;
  /** Seqs that settle and hold do not find. */
  missing = new Set<string>();
  whereabouts: Whereabouts = 'present';
  /** What is to be written back is in the table already. */
  alreadyThere = false;
  /** Seqs that the table does not take (back), each with the error. */
  readonly refused = new Map<string, Error>();
  /** Seqs that settle, hold and write back leave as they are, without an error. */
  readonly silent = new Map<string, Refusal>();
  /** Whoever has locked rows. */
  holders: LockHolder[] = [];
  /** Thrown by every settle, whatever its rows. */
  refusesAll: Error | undefined;
  /** Thrown by the next settle or hold. */
  throwNext: Error | undefined;
  #seq = 0;
  #storedLsn: Lsn = 100n;
  readonly settler: Settler;

  constructor() {
    const nothing = (what: string) => (): Promise<void> =>
      this.calls.make(() => void this.asked.push({ what, seqs: [] }));
    const store: Store = {
      settle: (rows, candidate, durable) => this.calls.make(() => this.#settle(rows, candidate, durable)),
      hold: (holds) => this.calls.make(() => this.#hold(holds)),
      place: (rows) => this.calls.make(() => (this.#refuse(rows), this.#find('place', rows))),
      writeBack: (hold) => this.calls.make(() => this.#writeBack(hold)),
      recordGone: (rows) => this.calls.make(() => (this.#refuse(rows), this.#find('gone', rows), undefined)),
      whereabouts: (rows) => this.calls.make(() => new Map(rows.map(({ seq }) => [seq, this.whereabouts]))),
      lockHolders: (rows) =>
        this.calls.make(
          () => (this.asked.push({ what: 'holders', seqs: seqsOf(rows.map((row) => ({ row }))) }), this.holders),
        ),
      states: () => Promise.resolve(new Map()),
      settledBefore: () => Promise.resolve(new Set()),
      noteInsertThenDelete: nothing('note'),
      beginPass: nothing('begin pass'),
      limitPass: nothing('limit pass'),
      endPass: nothing('end pass'),
    };
    const warn = (_fields: object, text: string): void => void this.warnings.push(text);
    const error = (fields: object, text: string): void => {
      this.errors.push(fields);
      warn(fields, text);
    };
    this.settler = new Settler({
      store,
      ledger: this.ledger,
      works: this.works,
      clock: this.clock,
      counters: this.counters,
      log: { debug: warn, info: warn, warn, error },
      logsAll: false,
      intervalMs: INTERVAL_MS,
      checkpointLsn: this.#storedLsn,
      report: (lsn) => this.reported.push(lsn),
      onSettled: () => undefined,
      onProgress: () => (this.progress += 1),
      onFailed: (error) => (this.failure = error),
    });
  }

  /** A row arrives from the stream; the transaction must be open. */
  row(bytes = 3): Work {
    return this.#work('stream', [this.ledger.row()], bytes);
  }

  /** The next row of a key, with strict order. */
  keyedRow(key: string, order: bigint): Work {
    const work = this.row();
    work.row.key = key;
    work.order = order;
    return work;
  }

  tableRow(): Work {
    return this.#work('sweep', [], 3);
  }

  /** The next row of a key that `source: table` reads, with strict order. */
  polledRow(key: string, order: bigint): Work {
    const work = this.#work('poll', [], 3);
    work.row.key = key;
    work.order = order;
    return work;
  }

  /** A whole transaction that ends at `endLsn`. */
  transaction(endLsn: Lsn, rows: number): Work[] {
    this.ledger.begin();
    const works = Array.from({ length: rows }, () => this.row());
    this.ledger.commit(endLsn);
    this.settler.committed();
    return works;
  }

  /** Lets the interval pass and answers everything. */
  async cycle(): Promise<void> {
    this.clock.advance(INTERVAL_MS);
    await this.answer();
  }

  async answer(): Promise<void> {
    for (let n = 0; n < 20; n += 1) {
      this.calls.step();
      await turn();
    }
  }

  get settles(): { seqs: string[]; candidate?: Lsn | null; durable?: boolean }[] {
    return this.asked.filter(({ what }) => what === 'settle');
  }

  #work(origin: 'stream' | 'sweep' | 'poll', entries: LedgerEntry[], bytes: number): Work {
    this.#seq += 1;
    const row = outboxRow({ seq: String(this.#seq), id: `id-${this.#seq}`, body: Buffer.alloc(bytes) });
    const xid = origin === 'stream' ? 7 : null;
    const rest = { committedAtMs: null, message: undefined, bytes: 0, nacks: 0, order: null };
    const work: Work = { row, origin, xid, isDue: false, replayed: false, entries, phase: 'admitted', ...rest };
    this.works.add(work);
    return work;
  }

  #writeBack(hold: { row: { seq: string } }): boolean | Refusal {
    this.asked.push({ what: 'write back', seqs: seqsOf([hold]) });
    this.#refuse([hold]);
    return this.silent.get(hold.row.seq) ?? !this.alreadyThere;
  }

  #hold(holds: readonly { row: { seq: string } }[]): NotStored {
    this.#refuse(holds.filter(({ row }) => !this.missing.has(row.seq)));
    return { missing: this.#find('hold', holds), kept: this.#kept(holds) };
  }

  #kept(rows: readonly { row: { seq: string } }[]): Map<string, Refusal> {
    return new Map([...this.silent].filter(([seq]) => !this.missing.has(seq) && seqsOf(rows).includes(seq)));
  }

  #refuse(holds: readonly { row: { seq: string } }[]): void {
    for (const seq of seqsOf(holds)) {
      const error = this.refused.get(seq);
      if (error) throw error;
    }
  }

  #take(): void {
    const error = this.throwNext;
    this.throwNext = undefined;
    if (error) throw error;
  }

  #settle(rows: readonly Settlement[], candidate: Lsn | null, durable: boolean): SettleResult {
    this.asked.push({ what: 'settle', seqs: seqsOf(rows), candidate, durable });
    this.#take();
    if (this.refusesAll) throw this.refusesAll;
    this.#refuse(rows.filter(({ row }) => !this.missing.has(row.seq)));
    let mark = candidate ?? this.#storedLsn;
    const kept = this.#kept(rows);
    const missing = rows.filter(({ row }) => this.missing.has(row.seq));
    const left = rows.filter(({ row }) => this.missing.has(row.seq) || kept.has(row.seq));
    for (const { floorLsn } of left) if (floorLsn !== null && floorLsn < mark) mark = floorLsn;
    if (mark > this.#storedLsn) this.#storedLsn = mark;
    return { checkpointLsn: this.#storedLsn, missing: new Set(seqsOf(missing)), kept };
  }

  #find(what: string, rows: readonly { row: { seq: string } }[]): Set<string> {
    this.asked.push({ what, seqs: seqsOf(rows) });
    this.#take();
    return new Set(seqsOf(rows).filter((seq) => this.missing.has(seq)));
  }
}

const seqsOf = (each: readonly { row: { seq: string } }[]): string[] => each.map(({ row }) => row.seq);
