import { isWaybillError } from '../core/errors.js';
import type { Ledger, LedgerEntry } from '../core/ledger.js';
import { LSN_ZERO, maxLsn, type Lsn } from '../core/lsn.js';
import type { OutboxRow } from '../core/message.js';
import { Condition, Wakeup } from '../runtime/signal.js';
import type { Admission } from './admission.js';
import type { RelayCounters, RowState, Store, Stream } from './ports.js';
import type { Settler } from './settler.js';
import type { Work, Works } from './work.js';

/** A row as it was written, also in which state, and with which place in its key. */
export interface WalRow {
  kind: 'row';
  row: OutboxRow;
  state: string;
  holdNo: string | null;
}

/** What the stream brings, in order of arrival; keepalives among the rows. */
export type WalEvent =
  | { kind: 'begin'; commitLsn: Lsn; committedAtMs: number; xid: number }
  | WalRow
  | { kind: 'commit'; endLsn: Lsn }
  | { kind: 'keepalive'; walEnd: Lsn; replyRequested: boolean };

/** The socket rests while this much is queued here. */
const PAUSE_AT_EVENTS = 512;
const PAUSE_AT_BYTES = 4 * 1024 * 1024;
/** So much of an open transaction is handled after the session was told to stop. */
const MAX_EVENTS_AFTER_STOP = 2_000;
/** Rows of the replay zone that are looked up at once. */
const LOOKUP_ROWS = 200;
const EMPTY = Buffer.alloc(0);

/**
 * Carries the stream's events to admission, one at a time and in order.
 *
 *   socket ─▶ queue ─▶ ledger ─▶ admission ─▶ (confirm, settle elsewhere)
 *     ▲ pause / resume
 *
 * Keepalives wait in the same queue as rows: idle means that every event that arrived is handled. O2: what is reported
 * as received has been handled here.
 */
export class Pump {
  readonly #ledger: Ledger;
  readonly #works: Works;
  readonly #admission: Admission;
  readonly #settler: Settler;
  readonly #store: Store;
  readonly #counters: RelayCounters;
  readonly #replayEnd: Lsn;
  readonly #historyRetentionMs: number;
  readonly #databaseNow: () => number;
  readonly #check: () => void;
  readonly #queue: WalEvent[] = [];
  #head = 0;
  #queuedBytes = 0;
  #taken = 0;
  /** One event waits for room, or for the database. */
  #handling = false;
  readonly #arrived = new Wakeup();
  readonly #progress = new Condition();
  #stream: Stream | undefined;
  #handledLsn: Lsn;
  #reportedLsn: Lsn = LSN_ZERO;
  /** Of the open transaction. */
  #xid = 0;
  #committedAtMs = 0;
  #replayed = false;
  /** What the table says about rows of the replay zone that were looked up ahead. */
  #looked = new Map<string, RowState | 'settled' | undefined>();
  /** There is a history, and it was looked at. */
  #historyTells = false;
  /** Ids that the table pass has published and the stream may still bring, until `#passFence` is passed. */
  #passIds: Set<string>;
  readonly #passFence: Lsn;

  constructor(options: {
    ledger: Ledger;
    works: Works;
    admission: Admission;
    settler: Settler;
    store: Store;
    counters: RelayCounters;
    startLsn: Lsn;
    /** Transactions that committed before this position may have been published by an earlier session. */
    replayEnd: Lsn;
    /** How long the history is kept, milliseconds. */
    historyRetentionMs: number;
    /** The database's clock in milliseconds since 1970. */
    databaseNow: () => number;
    passIds: Set<string>;
    passFence: Lsn;
    check: () => void;
  }) {
    this.#ledger = options.ledger;
    this.#works = options.works;
    this.#admission = options.admission;
    this.#settler = options.settler;
    this.#store = options.store;
    this.#counters = options.counters;
    this.#handledLsn = options.startLsn;
    this.#replayEnd = options.replayEnd;
    this.#historyRetentionMs = options.historyRetentionMs;
    this.#databaseNow = options.databaseNow;
    this.#passIds = options.passIds;
    this.#passFence = options.passFence;
    this.#check = options.check;
  }

  attach(stream: Stream): void {
    this.#stream = stream;
  }

  /** An event arrived. Called by the stream, synchronously. */
  push(event: WalEvent): void {
    this.#queue.push(event);
    if (event.kind === 'row') this.#queuedBytes += event.row.body.length;
    if (this.#queue.length - this.#head >= PAUSE_AT_EVENTS || this.#queuedBytes >= PAUSE_AT_BYTES)
      this.#stream?.pause();
    this.#arrived.wake();
  }

  /** Wakes the pump so that it looks at `check` again. */
  wake(): void {
    this.#arrived.wake();
    this.#progress.notify();
  }

  /**
   * Handles events until `check` throws. When the session is only to stop, a transaction that is open is finished first,
   * unless it is long: as long as its commit is not handled its rows would come again, settled as they are (F112).
   */
  async run(): Promise<never> {
    for (let afterStop = 0; ;) {
      try {
        this.#check();
      } catch (error) {
        if (!isWaybillError(error, 'WAYBILL_STOPPED') || !this.#ledger.inTransaction) throw error;
        if ((afterStop += 1) > MAX_EVENTS_AFTER_STOP) throw error;
      }
      const event = this.#next();
      if (!event) {
        await this.#arrived.wait();
        continue;
      }
      const wait = this.#handle(event);
      if (!wait) continue;
      this.#handling = true;
      await wait;
      this.#handling = false;
    }
  }

  /** Whether an event waits here or is being handled. */
  get isBusy(): boolean {
    return this.#handling || this.#head < this.#queue.length;
  }

  /** Grows with each event that is taken up. */
  get taken(): number {
    return this.#taken;
  }

  /** What the stream has brought and the pump has handled. */
  get handledLsn(): Lsn {
    return this.#handledLsn;
  }

  /** True while the log may still bring what an earlier session has handled. */
  get isReplaying(): boolean {
    return this.#handledLsn < this.#replayEnd;
  }

  /** Settled positions come from here too, so that what goes to the server never decreases. */
  report(settled: Lsn, ping = false): void {
    this.#reportedLsn = maxLsn(this.#reportedLsn, settled);
    this.#stream?.report(this.#handledLsn, this.#reportedLsn, ping);
  }

  /** Resolves when everything up to `lsn` has been handled; asks the server to say where it is. */
  async passed(lsn: Lsn): Promise<void> {
    while (this.#handledLsn < lsn) {
      this.#check();
      await this.#progress.wait();
    }
  }

  #next(): WalEvent | undefined {
    const event = this.#queue[this.#head];
    if (!event) {
      this.#queue.length = 0;
      this.#head = 0;
      this.#stream?.resume();
      return undefined;
    }
    this.#head += 1;
    this.#taken += 1;
    if (event.kind === 'row') this.#queuedBytes -= event.row.body.length;
    if (this.#head >= 1024) {
      this.#queue.splice(0, this.#head);
      this.#head = 0;
    }
    return event;
  }

  #handle(event: WalEvent): Promise<void> | undefined {
    switch (event.kind) {
      case 'begin':
        this.#ledger.begin();
        this.#xid = event.xid;
        this.#committedAtMs = event.committedAtMs;
        this.#replayed = event.commitLsn <= this.#replayEnd;
        return undefined;
      case 'row':
        if (event.state !== 'ready') return this.#keep(event);
        return this.#replayed ? this.#replay(event.row) : this.#row(event.row);
      case 'commit':
        this.#ledger.commit(event.endLsn);
        this.#handled(event.endLsn);
        this.#settler.committed();
        return undefined;
      case 'keepalive':
        this.#keepalive(event.walEnd);
        return undefined;
    }
  }

  /**
   * A row that was not written as `ready`: by an administrator, by a dump that is restored, or by the relay, which had to
   * write it back. It is a matter of the table from the start: what waits there goes when its time or its turn comes.
   */
  #keep({ row, holdNo }: WalRow): Promise<void> | undefined {
    const isOurs = this.#works.takeWrittenBack(row.id);
    // With strict order somebody else's row holds its key from here on, whatever its number was when it was written.
    if (!isOurs && holdNo !== null && this.#admission.placesWritten(row, BigInt(holdNo), this.#replayed)) {
      return this.#again(row);
    }
    this.#ledger.settle(this.#entry(row));
    return undefined;
  }

  #entry({ seq }: { seq: string }): LedgerEntry {
    return this.#ledger.row(BigInt(seq));
  }

  #row(row: OutboxRow, isDue = false, replayed = this.#replayed): Promise<void> | undefined {
    const entry = this.#entry(row);
    const known = this.#works.find(row);
    if (known) {
      // The table brought it first; both are settled together.
      known.entries.push(entry);
      if (known.phase === 'confirmed') this.#ledger.decide(entry);
      this.#counters.duplicatesSkipped += 1;
      return undefined;
    }
    if (this.#passIds.has(row.id)) {
      this.#ledger.settle(entry);
      this.#counters.duplicatesSkipped += 1;
      return undefined;
    }
    const work = this.#work(row, entry, isDue, replayed);
    this.#works.add(work);
    return this.#admission.admit(work);
  }

  #work(row: OutboxRow, entry: LedgerEntry, isDue: boolean, replayed: boolean): Work {
    return {
      row,
      origin: 'stream',
      isDue,
      xid: this.#xid,
      committedAtMs: this.#committedAtMs,
      replayed,
      entries: [entry],
      phase: 'admitted',
      message: undefined,
      bytes: 0,
      nacks: 0,
      order: null,
    };
  }

  /**
   * A row that an earlier session may have handled: one that is there in another state is left alone, but for its place
   * with strict order. A missing one is sent unless the history has it, because an application that inserts and deletes
   * in one transaction looks the same.
   */
  async #replay(row: OutboxRow): Promise<void> {
    if (!this.#looked.has(row.seq)) await this.#lookAhead(row);
    const found = this.#looked.get(row.seq);
    this.#looked.delete(row.seq);
    if (found === undefined) return this.#row(row, false, !this.#isUnsettled());
    const isPlaced = found !== 'settled' && found.isPlaced;
    if (found !== 'settled' && found.state === 'ready' && !isPlaced) return this.#row(row, found.isDue);
    this.#counters.duplicatesSkipped += 1;
    if (isPlaced && this.#admission.placesAgain(row)) return this.#again({ ...row, seq: found.seq });
    this.#ledger.settle(this.#entry(row));
  }

  /** Whether a row of the open transaction that neither table nor history has was never settled: the history goes back. */
  #isUnsettled(): boolean {
    return this.#historyTells && this.#committedAtMs > this.#databaseNow() - this.#historyRetentionMs;
  }

  /** What came before it may have a new number; its own must be higher again. Its body is not needed. */
  #again(row: OutboxRow): Promise<void> | undefined {
    const entry = this.#entry(row);
    const known = this.#works.find(row);
    if (known) {
      known.entries.push(entry);
      return undefined;
    }
    const work = this.#work({ ...row, body: EMPTY }, entry, false, this.#replayed);
    this.#works.add(work);
    return this.#admission.admitAgain(work);
  }

  async #lookAhead(first: OutboxRow): Promise<void> {
    const rows = [first];
    for (let n = this.#head; n < this.#queue.length && rows.length < LOOKUP_ROWS; n += 1) {
      const event = this.#queue[n];
      if (event?.kind === 'row' && event.state === 'ready') rows.push(event.row);
    }
    const states = await this.#store.states(rows);
    // Many are missing when a row that somebody had locked for long kept the position back.
    const settled = await this.#store.settledBefore(rows.filter((row) => !states.has(row.seq)));
    this.#historyTells = settled !== undefined;
    this.#looked = new Map(rows.map(({ seq }) => [seq, settled?.has(seq) ? 'settled' : states.get(seq)]));
  }

  #keepalive(walEnd: Lsn): void {
    this.#handled(walEnd);
    // The idle rule: nothing of the log in flight or unsettled, no transaction open, every event handled. What came from
    // the table is there, and holds no position.
    if (this.#ledger.isIdle && walEnd > this.#reportedLsn) {
      this.#ledger.idle(walEnd);
      this.report(walEnd);
    }
  }

  #handled(lsn: Lsn): void {
    this.#handledLsn = maxLsn(this.#handledLsn, lsn);
    if (this.#passIds.size > 0 && this.#handledLsn >= this.#passFence) this.#passIds = new Set();
    this.#progress.notify();
  }
}
