import type { Lsn } from '../../../src/core/lsn.js';

export type ModelState = 'pending' | 'decided' | 'settled';

interface ModelTransaction {
  rows: ModelState[];
  seqs: bigint[];
  endLsn: Lsn | undefined;
}

/** The ledger as a plain list that is searched from the start for every question. */
export class LedgerModel {
  readonly #startLsn: Lsn;
  readonly #transactions: ModelTransaction[] = [];
  /** Positions reached by the idle rule, with the number of transactions before them. */
  readonly #idles: { after: number; walEnd: Lsn }[] = [];

  constructor(startLsn: Lsn) {
    this.#startLsn = startLsn;
  }

  begin(): void {
    this.#transactions.push({ rows: [], seqs: [], endLsn: undefined });
  }

  /** Gives the place of the row. */
  row(seq: bigint): [transaction: number, row: number] {
    const transaction = this.#transactions.length - 1;
    this.#transactions[transaction]!.seqs.push(seq);
    return [transaction, this.#transactions[transaction]!.rows.push('pending') - 1];
  }

  commit(endLsn: Lsn): void {
    this.#transactions.at(-1)!.endLsn = endLsn;
  }

  set([transaction, row]: [number, number], state: ModelState): void {
    this.#transactions[transaction]!.rows[row] = state;
  }

  idle(walEnd: Lsn): void {
    this.#idles.push({ after: this.#transactions.length, walEnd });
  }

  /** End of the longest prefix of which every row is in one of `states`. */
  prefixEnd(...states: ModelState[]): Lsn {
    const done = this.#transactions.findIndex(
      ({ rows, endLsn }) => endLsn === undefined || !rows.every((state) => states.includes(state)),
    );
    return this.#endBefore(done < 0 ? this.#transactions.length : done);
  }

  /** End of the newest prefix whose last transaction has rows, all in one of `states`. */
  rowsEnd(...states: ModelState[]): Lsn | undefined {
    const end = this.prefixEnd(...states);
    return this.#transactions.findLast(
      ({ rows, endLsn }) =>
        rows.length > 0 && endLsn !== undefined && endLsn <= end && rows.every((s) => states.includes(s)),
    )?.endLsn;
  }

  /** What may be reported while the transaction is not settled. */
  floor(transaction: number): Lsn {
    return this.#endBefore(transaction);
  }

  /** Of all rows from the first transaction on that is not settled. */
  get lowestSeq(): bigint | undefined {
    const first = this.#transactions.findIndex(
      ({ rows, endLsn }) => endLsn === undefined || rows.some((state) => state !== 'settled'),
    );
    const seqs = first < 0 ? [] : this.#transactions.slice(first).flatMap((each) => each.seqs);
    return seqs.length === 0 ? undefined : seqs.reduce((a, b) => (a < b ? a : b));
  }

  get isIdle(): boolean {
    return this.#transactions.every(
      ({ rows, endLsn }) => endLsn !== undefined && rows.every((state) => state === 'settled'),
    );
  }

  get unsettledRows(): number {
    return this.#transactions.flatMap(({ rows }) => rows).filter((state) => state !== 'settled').length;
  }

  #endBefore(count: number): Lsn {
    const ends = this.#transactions.slice(0, count).map(({ endLsn }) => endLsn ?? 0n);
    const idles = this.#idles.filter(({ after }) => after <= count).map(({ walEnd }) => walEnd);
    return [this.#startLsn, ...ends, ...idles].reduce((a, b) => (a > b ? a : b));
  }
}
