import { WaybillError } from '../../../src/core/errors.js';
import type { Lsn } from '../../../src/core/lsn.js';
import { timestampMs, type OutboxRow } from '../../../src/core/message.js';
import type { WalRow } from '../../../src/outbox/pump.js';
import type {
  Due,
  Hold,
  NotStored,
  PlacedRow,
  Placing,
  ReadyRow,
  Released,
  RowState,
  SeqAndSize,
  SettleResult,
  Settlement,
  Store,
  Table,
  TableFence,
  Whereabouts,
  WaitingRow,
  WaitingTable,
  WhichRows,
} from '../../../src/outbox/ports.js';
import { pause } from '../../../src/runtime/clock.js';
import type { ManualClock } from '../../support/manual-clock.js';
import type { Calls } from './model-calls.js';

export interface WalTransaction {
  xid: number;
  /** Where the commit record begins; a slot that has passed it will not send the transaction again. */
  commitLsn: Lsn;
  endLsn: Lsn;
  rows: WalRow[];
}

export const STATES = ['ready', 'scheduled', 'parked', 'blocked', 'cancelled', 'discarded'] as const;
export type State = (typeof STATES)[number];

interface TableRow {
  row: OutboxRow;
  state: State;
  attempts: number;
  dueAtMs: number;
  /** Ready because it was due. */
  isDue: boolean;
  xid: number;
  holdNo: bigint | null;
}

/** A row as its writer inserts it. */
export interface Insert {
  row: OutboxRow;
  /** Deleted in the same transaction. */
  deleted: boolean;
  state: State;
}

/** A row as it is read: the pipeline may change its copy. */
const waiting = ({ seq, id, key, type }: OutboxRow): WaitingRow => ({ seq, id, key, type });
const copyOf = (row: OutboxRow): OutboxRow => ({ ...row, body: Buffer.from(row.body) });

/**
 * What the relay sees of PostgreSQL, for the property tests only: the outbox, the relay's row, the log and the slot.
 * Asynchronous commits are lost in a crash unless something was flushed after them.
 */
export class ModelDatabase {
  readonly wal: WalTransaction[] = [];
  readonly #clock: ManualClock;
  #table = new Map<string, TableRow>();
  /** Null until a table pass is done. */
  checkpointLsn: Lsn | null;
  /** How far a table pass goes that is under way. */
  pass: { after: bigint | null; upto: bigint | null } = { after: null, upto: null };
  insertLsn: Lsn;
  /** Null when there is no slot. */
  slotLsn: Lsn | null;
  epoch = 0;
  /** Seq and id of what was settled, also of rows that their application had deleted. */
  #history = new Set<string>();
  #durable: {
    table: Map<string, TableRow>;
    history: Set<string>;
    checkpointLsn: Lsn | null;
    pass: { after: bigint | null; upto: bigint | null };
  };
  #nextSeq = 1;
  /** Drawn by transactions that commit after later ones. */
  readonly #drawnEarly: number[] = [];
  /** Transactions that are decoded and not yet visible: they wait for a synchronous standby. */
  readonly waitingForStandby = new Set<number>();
  readonly locked = new Set<string>();
  /** A constraint of the user's own refuses to hold, remove or take back every so manieth row; 0: none. */
  refusesEvery = 0;
  /** The next statement that takes row locks fails with a lock timeout. */
  lockTimeoutNext = false;
  /** Ids that could not be deleted when they should have been: locked, refused, or not visible yet. */
  readonly stuck = new Set<string>();
  /** Ids that were durably held at some time. */
  readonly held = new Set<string>();
  readonly expired = new Set<string>();
  readonly cancelled = new Set<string>();
  /** Whether the broker has confirmed the id without returning it; asked when a row is deleted. */
  isConfirmed: (id: string) => boolean = () => false;
  /** Whether the id has arrived; asked when a row is cancelled. */
  isDelivered: (id: string) => boolean = () => false;
  readonly violations: string[] = [];
  /** Some application has deleted a row itself. */
  hasDeleted = false;
  /** Whether the order is strict. */
  strict = false;
  /** An operator has locked every key: the next release answers nothing. */
  keysLockedNext = false;
  readonly discarded = new Set<string>();
  /** Ids of parked rows that an operator has sent again. */
  readonly retried = new Set<string>();
  /** Seqs of rows that open transactions have cancelled, each when it was not due yet. */
  readonly #cancelling = new Set<string>();
  /** Of parked and blocked rows that somebody else inserts, and in no other's way. */
  #holdNo = 0n;

  constructor(clock: ManualClock, startLsn: Lsn) {
    this.#clock = clock;
    this.checkpointLsn = this.insertLsn = this.slotLsn = startLsn;
    this.#durable = { table: new Map(), history: new Set(), checkpointLsn: startLsn, pass: this.pass };
  }

  /** A writer commits. With `gap` 0 the commit record begins where the one before it ended (fact 2). */
  commit(rows: Insert[], gap: number, standby: boolean): void {
    const xid = this.wal.length + 100;
    const commitLsn = this.insertLsn + BigInt(gap);
    this.insertLsn = commitLsn + 8n;
    const own = rows.map(({ row, state }): WalRow & { state: State } => {
      const holdNo = state === 'parked' || state === 'blocked' ? String((this.#holdNo += 1_000_000n)) : null;
      return { kind: 'row', row: { ...row, seq: String(this.#drawSeq()) }, state, holdNo };
    });
    // Another writer draws one and commits later (F54).
    if (gap === 2) this.#drawnEarly.push(this.#nextSeq++);
    this.wal.push({ xid, commitLsn, endLsn: this.insertLsn, rows: own });
    for (const [n, { row, state, holdNo }] of own.entries()) {
      if (rows[n]?.deleted) {
        this.hasDeleted = true;
        continue;
      }
      const dueAtMs = row.deliverAt === null ? this.#clock.now() + 500 : timestampMs(row.deliverAt);
      const kept = { attempts: 0, dueAtMs, isDue: false, xid };
      this.#table.set(row.seq, { ...kept, row, state, holdNo: holdNo === null ? null : BigInt(holdNo) });
      if (state !== 'ready') this.held.add(row.id);
      if (state === 'cancelled') this.cancelled.add(row.id);
      if (state === 'discarded') this.discarded.add(row.id);
    }
    if (standby) this.waitingForStandby.add(xid);
    this.#flush();
  }

  /**
   * Power fails: what was not flushed is lost, locks are gone unless prepared transactions have them, and the slot may be
   * back where it was.
   */
  crash(slotLsn: Lsn | null, keepsLocks: boolean): void {
    this.#table = new Map([...this.#durable.table].map(([seq, each]) => [seq, { ...each }]));
    this.#history = new Set(this.#durable.history);
    this.checkpointLsn = this.#durable.checkpointLsn;
    this.pass = this.#durable.pass;
    this.waitingForStandby.clear();
    if (!keepsLocks) {
      this.locked.clear();
      this.#cancelling.clear();
    }
    this.slotLsn = slotLsn;
  }

  /** All transactions that are open end; those that drew a seq roll back. */
  endWriters(): void {
    this.waitingForStandby.clear();
    this.#drawnEarly.length = 0;
  }

  /** Somebody cancels a row that is not due yet, in a transaction that stays open until `unlock` if `slowly`. */
  cancel(which: number, slowly: boolean): void {
    const rows = this.rows.filter((each) => this.#cancellable(each) && this.#lockable(each.row.seq, each.row.id));
    const found = rows[which % rows.length];
    if (!found) return;
    if (slowly) {
      this.locked.add(found.row.seq);
      this.#cancelling.add(found.row.seq);
    } else this.#cancelled(found);
  }

  #cancellable({ state, holdNo, row }: TableRow): boolean {
    if (state === 'scheduled') return true;
    return state === 'ready' && holdNo === null && timestampMs(row.deliverAt ?? '') > this.#clock.now();
  }

  #cancelled(found: TableRow): void {
    const { row, holdNo, xid } = found;
    // Others may have arrived before their channel died, and been returned since; or been written back a second time.
    if (row.deliverAt !== null && holdNo === null && xid !== 0 && this.isDelivered(row.id)) {
      this.violations.push(`O3: row ${row.seq} is cancelled, and was delivered`);
    }
    found.state = 'cancelled';
    found.holdNo = null;
    this.cancelled.add(found.row.id);
    this.held.add(found.row.id);
    this.#releaseNext(found.row.key);
    this.#flush();
  }

  /** All who hold rows locked commit. */
  unlock(): void {
    this.locked.clear();
    for (const seq of this.#cancelling) {
      const found = this.#table.get(seq);
      if (found) this.#cancelled(found);
      else this.violations.push(`O3: row ${seq} was locked, and is gone`);
    }
    this.#cancelling.clear();
  }

  /** An operator retries a parked row; behind another one of its key nothing happens. */
  retry(which: number): void {
    const parked = this.rows.filter(({ state, row }) => state === 'parked' && this.#lockable(row.seq, row.id));
    const found = parked[which % parked.length];
    if (!found) return;
    const isPlaced = this.strict && found.row.key !== null;
    if (isPlaced && this.#held(found.row.key)[0] !== found) return;
    Object.assign(found, { state: 'scheduled', attempts: 0, dueAtMs: this.#clock.now() });
    if (!isPlaced) found.holdNo = null;
    this.retried.add(found.row.id);
    this.#flush();
  }

  /** Without strict order: rows that it would hold go on. */
  unblock(): void {
    for (const each of this.rows) {
      if (each.state !== 'blocked' || !this.#lockable(each.row.seq, each.row.id)) continue;
      Object.assign(each, { state: 'scheduled', holdNo: null, dueAtMs: this.#clock.now() });
    }
    this.#flush();
  }

  /** An operator gives a held row up; what it held goes on. */
  discard(which: number): void {
    const states = ['parked', 'blocked', 'scheduled'];
    const rows = this.rows.filter(({ state, row }) => states.includes(state) && this.#lockable(row.seq, row.id));
    const found = rows[which % rows.length];
    if (found) this.#discard(found);
  }

  discardParked(): void {
    for (const each of this.rows) if (each.state === 'parked') this.#discard(each);
  }

  #discard(found: TableRow): void {
    found.state = 'discarded';
    found.holdNo = null;
    this.discarded.add(found.row.id);
    this.#releaseNext(found.row.key);
    this.#flush();
  }

  #releaseNext(key: string | null): void {
    const next = this.#held(key)[0];
    if (next?.state === 'blocked') Object.assign(next, { state: 'scheduled', dueAtMs: this.#clock.now() });
  }

  /** The rows that hold their place in a key, in order; those in flight are passed over by operators. */
  #held(key: string | null): TableRow[] {
    return this.rows
      .filter(({ row, holdNo }) => row.key === key && holdNo !== null)
      .sort((a, b) => Number((a.holdNo ?? 0n) - (b.holdNo ?? 0n)));
  }

  /** A session with strict order begins. */
  reblock(): void {
    for (const each of this.rows) {
      if (each.state !== 'ready' || each.holdNo === null || each.row.key === null) continue;
      if (this.#lockable(each.row.seq, each.row.id)) each.state = 'blocked';
    }
    this.#flush();
  }

  get heldKeys(): string[] {
    const visible = this.rows.filter(({ row }) => this.#visible(row.seq, row.id));
    return [...new Set(visible.flatMap(({ row, holdNo }) => (holdNo !== null && row.key !== null ? [row.key] : [])))];
  }

  get lastHoldNo(): bigint {
    const visible = this.rows.filter(({ row }) => this.#visible(row.seq, row.id));
    return visible.reduce((last, { holdNo }) => (holdNo !== null && holdNo > last ? holdNo : last), 0n);
  }

  find(id: string): TableRow | undefined {
    return [...this.#table.values()].find((each) => each.row.id === id);
  }

  get rows(): TableRow[] {
    return [...this.#table.values()];
  }

  /** The replication slot, as a session asks for it. */
  slot(calls: Calls): { create(): Promise<void>; inspect(): Promise<unknown>; insertLsn(): Promise<Lsn> } {
    return {
      create: () => calls.make(() => void (this.slotLsn = this.insertLsn)),
      inspect: () => calls.make(() => ({ confirmedFlushLsn: this.slotLsn })),
      insertLsn: () => calls.make(() => this.insertLsn),
    };
  }

  connect(
    calls: Calls,
    epoch: number,
  ): Store & Table & WaitingTable & { noteTimeline(timeline: number): Promise<void> } {
    const fenced = <T>(work: () => T): Promise<T> =>
      calls.make(() => {
        if (epoch !== this.epoch) throw new WaybillError('WAYBILL_EPOCH_LOST', 'another epoch');
        return work();
      });
    const read = <T>(work: () => T): Promise<T> => calls.make(work);
    const nothing = (): Promise<void> => fenced(() => undefined);
    const noted = (change: () => void): Promise<void> =>
      fenced(() => {
        change();
        this.#flush();
      });
    const fence = async (_log: unknown, signal: AbortSignal): Promise<TableFence> => {
      const [uptoSeq, writers] = await read(() => [BigInt(this.#nextSeq - 1), this.#writers()] as const);
      for (let still = writers; still.size > 0 && !signal.aborted;) {
        await pause(this.#clock, 10, signal);
        const now = await read(() => this.#writers());
        still = new Set([...writers].filter((each) => now.has(each)));
      }
      return { uptoSeq, lsn: await read(() => this.#position()) };
    };
    return {
      settle: (rows, candidate, durable) => fenced(() => this.#settle(rows, candidate, durable)),
      hold: (holds) => fenced(() => this.#hold(holds)),
      place: (rows) => fenced(() => this.#place(rows)),
      writeBack: (hold) => fenced(() => this.#writeBack(hold)),
      whereabouts: (rows) => read(() => this.#whereabouts(rows)),
      lockHolders: () => read(() => []),
      states: (rows) => read(() => this.#states(rows)),
      makeDue: (which) => fenced(() => this.#makeDue(which)),
      dueRows: (limit, without) => read(() => this.#due({ limit, without }).map(({ row }) => waiting(row))),
      headOf: ({ key, after }, upto) =>
        read(() => {
          const head = this.#held(key).find(
            ({ holdNo }) => (holdNo ?? 0n) > after && (upto === null || (holdNo ?? 0n) <= upto),
          );
          return head && waiting(head.row);
        }),
      placedRows: () => Promise.reject(new Error('done by the relay of the model')),
      reblock: () => Promise.reject(new Error('done by the relay of the model')),
      unblock: () => Promise.reject(new Error('done by the relay of the model')),
      lastHoldNo: () => Promise.reject(new Error('done by the relay of the model')),
      release: (...asked) => fenced(() => this.#release(...asked)),
      highestSeq: () => read(() => BigInt(this.#nextSeq - 1)),
      seqs: () => read(() => ({ drawn: BigInt(this.#nextSeq - 1), highest: BigInt(this.#nextSeq - 1) })),
      writers: () => read(() => this.#writers()),
      position: () => read(() => this.#position()),
      readyRows: (after, upto) => read(() => this.#readyRows(after, upto)),
      readRows: (seqs) => read(() => this.#readRows(seqs)),
      withdrawnRows: (after) => read(() => this.#withdrawnRows(after)),
      fence,
      recordGone: (rows) => fenced(() => rows.forEach(({ row }) => this.#history.add(`${row.seq} ${row.id}`))),
      settledBefore: (rows) =>
        read(() => new Set(rows.filter(({ seq, id }) => this.#history.has(`${seq} ${id}`)).map(({ seq }) => seq))),
      noteInsertThenDelete: () =>
        fenced(() => {
          if (!this.hasDeleted) this.violations.push('fact 16: deleted rows are noted, and there were none');
        }),
      noteTimeline: nothing,
      beginPass: (after) => noted(() => ((this.checkpointLsn = null), (this.pass = { after, upto: null }))),
      limitPass: (upto) => noted(() => (this.pass = { ...this.pass, upto })),
      endPass: (lsn) => noted(() => ((this.checkpointLsn = lsn), (this.pass = { after: null, upto: null }))),
    };
  }

  /** Transactions that are open, or wait for a standby. */
  #writers(): Set<string> {
    const early = this.#drawnEarly.map((seq) => `early ${seq}`);
    return new Set([...early, ...[...this.waitingForStandby].map((xid) => `xid ${xid}`)]);
  }

  #drawSeq(): number {
    return this.#drawnEarly.shift() ?? this.#nextSeq++;
  }

  #flush(): void {
    const table = new Map([...this.#table].map(([seq, each]) => [seq, { ...each }]));
    this.#durable = { table, history: new Set(this.#history), checkpointLsn: this.checkpointLsn, pass: this.pass };
  }

  #visible(seq: string, id: string): TableRow | undefined {
    const found = this.#table.get(seq);
    return found?.row.id === id && !this.waitingForStandby.has(found.xid) ? found : undefined;
  }

  #visibleById(id: string): TableRow | undefined {
    const found = this.find(id);
    return found && this.#visible(found.row.seq, id);
  }

  #lockable(seq: string, id: string): TableRow | undefined {
    return this.locked.has(seq) ? undefined : this.#visible(seq, id);
  }

  #assertLocks(): void {
    if (!this.lockTimeoutNext) return;
    this.lockTimeoutNext = false;
    throw Object.assign(new Error('canceling statement due to lock timeout'), { code: '55P03' });
  }

  #settle(rows: readonly Settlement[], candidate: Lsn | null, durable: boolean): SettleResult {
    this.#assertLocks();
    this.#assertTaken(rows.filter(({ row }) => this.#lockable(row.seq, row.id)));
    const missing = new Set<string>();
    let mark = candidate;
    for (const { row, outcome, floorLsn } of rows) {
      if (!this.#lockable(row.seq, row.id)) {
        missing.add(row.seq);
        this.stuck.add(row.id);
        if (floorLsn !== null && mark !== null && floorLsn < mark) mark = floorLsn;
        continue;
      }
      if (outcome === 'expired') this.expired.add(row.id);
      else if (outcome === 'cancelled') this.#assertCancelled(row.id);
      else if (outcome === 'discarded') {
        if (!this.discarded.has(row.id)) this.violations.push(`O3: row ${row.seq} is not discarded`);
      } else if (!this.isConfirmed(row.id)) this.violations.push(`O3: row ${row.seq} deleted without a confirm`);
      this.#table.delete(row.seq);
      this.#history.add(`${row.seq} ${row.id}`);
    }
    if (mark !== null && (this.checkpointLsn === null || mark > this.checkpointLsn)) this.checkpointLsn = mark;
    if (durable) this.#flush();
    return { checkpointLsn: this.checkpointLsn, missing, kept: new Map() };
  }

  /** One row fails the whole statement. */
  #assertTaken(holds: readonly { row: OutboxRow }[]): void {
    if (this.refusesEvery === 0) return;
    const refused = holds.filter(({ row }) => BigInt(row.seq) % BigInt(this.refusesEvery) === 0n);
    if (refused.length === 0) return;
    for (const { row } of refused) this.stuck.add(row.id);
    throw Object.assign(new Error('violates check constraint'), { code: '23514', constraint: 'mine' });
  }

  #hold(holds: readonly Hold[]): NotStored {
    this.#assertLocks();
    this.#assertTaken(holds.filter(({ row }) => this.#lockable(row.seq, row.id)?.state === 'ready'));
    const missing = new Set<string>();
    const gaps = new Set<string>();
    for (const hold of holds) {
      const found = this.#lockable(hold.row.seq, hold.row.id);
      if (hold.lane !== null && !found) gaps.add(hold.lane);
      if (!found || (hold.lane !== null && gaps.has(hold.lane))) missing.add(hold.row.seq);
      else if (found.state === 'ready') this.#keep(found, hold);
    }
    this.#flush();
    return { missing, kept: new Map() };
  }

  #place(rows: readonly Placing[]): Set<string> {
    this.#assertLocks();
    const missing = new Set<string>();
    for (const { row, holdNo } of rows) {
      const found = this.#lockable(row.seq, row.id);
      if (!found) missing.add(row.seq);
      else if (found.holdNo !== null) found.holdNo = holdNo;
    }
    this.#flush();
    return missing;
  }

  #keep(found: TableRow, { state, attempts, delayMs, row, holdNo }: Hold): void {
    Object.assign(found, { state, attempts, holdNo, isDue: false });
    found.dueAtMs = delayMs === null ? timestampMs(row.deliverAt ?? '') || 0 : this.#clock.now() + delayMs;
    this.held.add(row.id);
  }

  #writeBack(hold: Hold): boolean {
    if (this.find(hold.row.id)) return false;
    this.#assertTaken([hold]);
    const seq = String(this.#nextSeq++);
    const row = { ...copyOf(hold.row), seq };
    const kept: TableRow = { row, state: 'ready', attempts: 0, dueAtMs: 0, isDue: false, xid: 0, holdNo: null };
    this.#table.set(seq, kept);
    this.#keep(kept, hold);
    // It is in the log like any other.
    const holdNo = hold.holdNo ?? (hold.state === 'scheduled' ? null : (this.#holdNo += 1_000_000n));
    kept.holdNo = holdNo;
    const commitLsn = this.insertLsn;
    this.insertLsn += 8n;
    const written: WalRow = { kind: 'row', row, state: hold.state, holdNo: holdNo === null ? null : String(holdNo) };
    this.wal.push({ xid: 0, commitLsn, endLsn: this.insertLsn, rows: [written] });
    this.#flush();
    return true;
  }

  #assertCancelled(id: string): void {
    if (!this.cancelled.has(id)) this.violations.push(`O3: row ${id} is deleted as cancelled, and is not`);
  }

  #withdrawnRows(after: bigint): { row: OutboxRow; state: 'cancelled' | 'discarded' }[] {
    return this.rows.flatMap(({ row, state }) =>
      (state === 'cancelled' || state === 'discarded') && BigInt(row.seq) > after ? [{ row: copyOf(row), state }] : [],
    );
  }

  #states(rows: readonly { seq: string; id: string }[]): Map<string, RowState> {
    const states = new Map<string, RowState>();
    for (const { seq, id } of rows) {
      const found = this.#visibleById(id);
      if (found)
        states.set(seq, {
          seq: found.row.seq,
          state: found.state,
          isPlaced: found.holdNo !== null,
          isDue: found.state === 'ready' && found.isDue,
        });
    }
    return states;
  }

  #whereabouts(rows: readonly { seq: string; id: string; xid: number | null }[]): Map<string, Whereabouts> {
    return new Map(
      rows.map(({ seq, id, xid }) => [
        seq,
        this.#visible(seq, id) ? 'present' : this.waitingForStandby.has(xid ?? 0) ? 'undecided' : 'gone',
      ]),
    );
  }

  #due(which: WhichRows): TableRow[] {
    const isMeant = ({ row }: TableRow): boolean =>
      'only' in which ? which.only.includes(row.seq) : !which.without.includes(row.seq);
    return this.rows.filter(
      (each) =>
        each.state === 'scheduled' &&
        each.dueAtMs <= this.#clock.now() &&
        isMeant(each) &&
        this.#lockable(each.row.seq, each.row.id),
    );
  }

  #makeDue(which: WhichRows): Due {
    const due = this.#due(which);
    this.#assertTaken(due);
    const rows: SeqAndSize[] = [];
    const placed: Due['placed'] = [];
    for (const each of due) {
      if (!this.strict) each.holdNo = null;
      const { key } = each.row;
      each.state = each.holdNo !== null && key !== null ? 'blocked' : 'ready';
      each.isDue = each.state === 'ready';
      if (each.holdNo !== null && key !== null) placed.push({ key, order: each.holdNo });
      else rows.push(this.#sizeOf(each));
    }
    this.#flush();
    return { rows, placed, kept: [] };
  }

  #sizeOf({ row }: TableRow): ReadyRow {
    return { seq: row.seq, bytes: row.body.length, key: row.key };
  }

  #release(...[keys, upto, rowsPerKey, without]: Parameters<WaitingTable['release']>): Map<string, Released> {
    const locked = this.keysLockedNext;
    this.keysLockedNext = false;
    if (locked) return new Map();
    const answers = new Map<string, Released>();
    const released: TableRow[] = [];
    for (const { key, after } of keys) {
      const held = this.#held(key).filter(
        ({ holdNo, row }) =>
          (holdNo ?? 0n) > after && (upto === null || (holdNo ?? 0n) <= upto) && this.#visible(row.seq, row.id),
      );
      const end = held.findIndex(
        ({ state, row }) =>
          (state !== 'ready' && state !== 'blocked') || !this.#lockable(row.seq, row.id) || without.includes(row.seq),
      );
      const run = held.slice(0, Math.min(end < 0 ? held.length : end, rowsPerKey));
      released.push(...run);
      const next = run.length < rowsPerKey ? held[run.length]?.state : undefined;
      answers.set(key, {
        rows: run.map((each) => this.#sizeOf(each)),
        remains: run.length < held.length,
        isLocked: next === 'ready' || next === 'blocked',
        kept: null,
      });
    }
    this.#assertTaken(released);
    for (const each of released) Object.assign(each, { state: 'ready', isDue: false });
    this.#flush();
    return answers;
  }

  #position(): Lsn {
    this.#flush();
    return this.insertLsn;
  }

  #readyRows(after: bigint, upto: bigint): ReadyRow[] {
    return this.rows
      .filter(({ row, state, holdNo }) => state === 'ready' && holdNo === null && this.#visible(row.seq, row.id))
      .filter(({ row }) => BigInt(row.seq) > after && BigInt(row.seq) <= upto)
      .sort((a, b) => Number(a.row.seq) - Number(b.row.seq))
      .map((each) => this.#sizeOf(each));
  }

  /** In seq order, as the server gives them. */
  #readRows(seqs: readonly string[]): PlacedRow[] {
    return [...seqs]
      .sort((a, b) => Number(a) - Number(b))
      .flatMap((seq) => {
        const found = this.#table.get(seq);
        if (found?.state !== 'ready' || !this.#visible(seq, found.row.id)) return [];
        const { row, attempts, holdNo, isDue } = found;
        return [{ row: { ...copyOf(row), attempts }, holdNo: holdNo === null ? null : String(holdNo), isDue }];
      });
  }
}
