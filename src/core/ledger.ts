import { LSN_ZERO, type Lsn } from './lsn.js';

/**
 * The ledger: which positions of the log may be given back to the server.
 *
 *   begin ── row, row ── commit ──▶ FIFO of transactions ──▶ safe LSN
 *                                   each with two counts
 *
 * A row is `pending` until the broker decided, `decided` until the database has settled it (deleted or held durably),
 * then `settled`. Two positions follow from the counts, both ends of a prefix of the FIFO:
 *   decidedLsn  what a settle transaction may write as its checkpoint if every decided row settles,
 *   settledLsn  what may be reported to the server.
 *
 * O1: settledLsn never passes a transaction with an unsettled row. O2: neither position decreases.
 * O4: a transaction without rows adds nothing; memory is one object a transaction with unsettled rows, and now and then
 * those that are settled behind one that is not become part of it.
 *
 * Pure: no I/O, no clock. One ledger lives as long as one replication session.
 */
export class Ledger {
  /** Written by commit and idle; where the next transaction's floor comes from. */
  #tailLsn: Lsn;
  #decidedLsn: Lsn;
  #settledLsn: Lsn;
  #decidedRowsLsn: Lsn;
  #open: LedgerTransaction | undefined;
  #inTransaction = false;
  #decidedHead: LedgerTransaction | undefined;
  #settledHead: LedgerTransaction | undefined;
  #last: LedgerTransaction | undefined;
  #unsettledRows = 0;
  #madeSinceMerge = 0;
  readonly #mergeEvery: number;

  /** `mergeEvery`: after so many transactions settled ones are looked for. */
  constructor(startLsn: Lsn = LSN_ZERO, mergeEvery = 1024) {
    this.#mergeEvery = mergeEvery;
    this.#tailLsn = this.#decidedLsn = this.#settledLsn = this.#decidedRowsLsn = startLsn;
  }

  /** A Begin message arrived. */
  begin(): void {
    if (this.#inTransaction) throw new Error('ledger: begin inside a transaction');
    this.#inTransaction = true;
    this.#open = undefined;
  }

  /** A row of the open transaction arrived; the entry is its receipt. Of a seq that is not told nothing is known. */
  row(seq = 0n): LedgerEntry {
    if (!this.#inTransaction) throw new Error('ledger: row outside a transaction');
    if (!this.#open) {
      if ((this.#madeSinceMerge += 1) >= this.#mergeEvery) this.#merge();
      const transaction = new LedgerTransaction(this.#tailLsn);
      if (this.#last) this.#last.next = transaction;
      this.#last = this.#open = transaction;
      this.#decidedHead ??= transaction;
      this.#settledHead ??= transaction;
    }
    if (this.#open.lowestSeq === undefined || seq < this.#open.lowestSeq) this.#open.lowestSeq = seq;
    this.#open.pending += 1;
    this.#open.unsettled += 1;
    this.#unsettledRows += 1;
    return new LedgerEntry(this.#open);
  }

  /** A Commit message arrived; `endLsn` is its end LSN, not its commit LSN. */
  commit(endLsn: Lsn): void {
    if (!this.#inTransaction) throw new Error('ledger: commit outside a transaction');
    this.#inTransaction = false;
    if (endLsn < this.#tailLsn) throw new Error('ledger: commits go backwards');
    this.#tailLsn = endLsn;
    const transaction = this.#open;
    this.#open = undefined;
    if (transaction) transaction.endLsn = transaction.rowsEndLsn = endLsn;
    // A transaction without rows is settled as soon as what stands before it is: it lengthens its predecessor.
    else if (this.#last?.endLsn !== undefined) this.#last.endLsn = endLsn;
    this.#advance();
  }

  /** The broker has decided about the row (confirmed, or a hold is needed); the database has not yet. */
  decide(entry: LedgerEntry): void {
    if (entry.state !== 'pending') throw new Error(`ledger: decide on a ${entry.state} row`);
    entry.state = 'decided';
    entry.transaction.pending -= 1;
    this.#advance();
  }

  /** The row's fate is durable in the database. A pending row may settle directly. */
  settle(entry: LedgerEntry): void {
    if (entry.state === 'settled') throw new Error('ledger: row settled twice');
    if (entry.state === 'pending') entry.transaction.pending -= 1;
    entry.state = 'settled';
    entry.transaction.unsettled -= 1;
    this.#unsettledRows -= 1;
    this.#advance();
  }

  /** True when nothing is owed: no row unsettled, no transaction open. Then, and only then, may `idle` be called. */
  get isIdle(): boolean {
    return !this.#inTransaction && this.#settledHead === undefined;
  }

  /** The idle rule: a keepalive said that the server has sent everything up to `walEnd`, and nothing is owed. */
  idle(walEnd: Lsn): void {
    if (!this.isIdle) throw new Error('ledger: idle while rows are unsettled');
    if (walEnd <= this.#tailLsn) return;
    this.#tailLsn = this.#decidedLsn = this.#settledLsn = walEnd;
  }

  get inTransaction(): boolean {
    return this.#inTransaction;
  }

  /** End LSN of the longest prefix in which every row is decided or settled. */
  get decidedLsn(): Lsn {
    return this.#decidedLsn;
  }

  /** End LSN of the last transaction with rows in that prefix: the part of it that is worth storing. */
  get decidedRowsLsn(): Lsn {
    return this.#decidedRowsLsn;
  }

  /** End LSN of the longest prefix in which every row is settled. */
  get settledLsn(): Lsn {
    return this.#settledLsn;
  }

  /**
   * The lowest seq of all rows past `settledLsn` that have arrived, settled ones among them; undefined when there are
   * none. A row that has arrived, or had before the session, and has a lower one cannot come from the log again.
   */
  get lowestSeq(): bigint | undefined {
    let lowest: bigint | undefined;
    for (let each = this.#settledHead; each; each = each.next) lowest = lower(lowest, each.lowestSeq);
    return lowest;
  }

  get unsettledRows(): number {
    return this.#unsettledRows;
  }

  /** Transactions in memory. */
  get keptTransactions(): number {
    let kept = 0;
    for (let each = this.#settledHead; each; each = each.next) kept += 1;
    return kept;
  }

  /** Why: one row that somebody keeps locked would keep every transaction after it in memory. */
  #merge(): void {
    this.#madeSinceMerge = 0;
    for (let each = this.#settledHead; each; each = each.next) {
      for (let next = each.next; next?.endLsn !== undefined && next.unsettled === 0; next = each.next) {
        each.endLsn = next.endLsn;
        each.rowsEndLsn = next.rowsEndLsn;
        each.lowestSeq = lower(each.lowestSeq, next.lowestSeq);
        each.next = next.next;
        if (this.#last === next) this.#last = each;
      }
    }
  }

  #advance(): void {
    while (this.#decidedHead?.endLsn !== undefined && this.#decidedHead.pending === 0) {
      this.#decidedLsn = this.#decidedHead.endLsn;
      this.#decidedRowsLsn = this.#decidedHead.rowsEndLsn;
      this.#decidedHead = this.#decidedHead.next;
    }
    while (this.#settledHead?.endLsn !== undefined && this.#settledHead.unsettled === 0) {
      this.#settledLsn = this.#settledHead.endLsn;
      this.#settledHead = this.#settledHead.next;
    }
    if (this.#decidedHead === undefined) this.#decidedLsn = this.#closedTail(this.#decidedLsn);
    if (this.#settledHead === undefined) {
      this.#settledLsn = this.#closedTail(this.#settledLsn);
      this.#last = undefined;
    }
  }

  /** With no transaction left in front, everything up to the last commit is done. */
  #closedTail(otherwise: Lsn): Lsn {
    return this.#tailLsn > otherwise ? this.#tailLsn : otherwise;
  }
}

class LedgerTransaction {
  /** Undefined until its Commit arrived. */
  endLsn: Lsn | undefined;
  /** The same, and not lengthened by empty transactions behind it. */
  rowsEndLsn = LSN_ZERO;
  lowestSeq: bigint | undefined;
  pending = 0;
  unsettled = 0;
  next: LedgerTransaction | undefined;

  constructor(readonly floorLsn: Lsn) {}
}

/** The receipt of one row. Only the ledger writes its state. */
export class LedgerEntry {
  state: 'pending' | 'decided' | 'settled' = 'pending';

  constructor(readonly transaction: LedgerTransaction) {}

  /** The position that may be reported while this row is unsettled: the end of the transaction before its own. */
  get floorLsn(): Lsn {
    return this.transaction.floorLsn;
  }
}

function lower(a: bigint | undefined, b: bigint | undefined): bigint | undefined {
  if (a === undefined || b === undefined) return a ?? b;
  return a < b ? a : b;
}
