import type { Ledger } from '../core/ledger.js';
import type { Lsn } from '../core/lsn.js';
import { maxLsn } from '../core/lsn.js';
import { Condition } from '../runtime/signal.js';
import type { Clock } from '../runtime/clock.js';
import { Doubtful, type OutOfReach } from './doubtful.js';
import { byPlace, firstPlaces, isBehind, laneOf } from './hold-order.js';
import type { Hold, NotStored, Placing, RelayCounters, RelayLog, Settlement, Store } from './ports.js';
import { refusedBy } from './halves.js';
import { isLockConflict, refusalOf, type Refusal } from './refusal.js';
import { StoppedStatements } from './stopped-statements.js';
import type { Work, Works } from './work.js';

/** A hold as the pipeline asks for it; the row and its transaction are added here. */
export type HoldReason = Omit<Hold, 'row' | 'xid' | 'holdNo' | 'lane'>;

interface Settling {
  work: Work;
  settlement: Settlement;
}

interface Holding {
  work: Work;
  hold: Hold;
}

interface Replacing {
  work: Work;
  placing: Placing;
}

/** What a flush does not wait for. */
type Left = 'nothing' | 'refused' | 'out of reach';

const MAX_HOLDS_AT_ONCE = 500;
/** A constraint of the user's own refuses each at its own price; the others wait for the next interval. */
const MAX_WRITE_BACKS_AT_ONCE = 200;
/** So many rows that the table refuses are found in one cycle; the others wait for the next. */
const MAX_REFUSED_AT_ONCE = 200;
const MAX_ROWS_AT_ONCE = 10_000;
/** When a statement is tried again that the table refuses whatever its rows, milliseconds: nothing gets on before. */
const STOPPED_RETRY_MS = 5_000;
const SETTLE = 'removing rows that are published';
const PLACE = 'giving held rows their places';
const RECORD = 'recording rows that are gone';
/** So many confirmed rows are settled at once instead of at the next interval. */
const EAGER_ROWS = 1_000;

/**
 * Makes the broker's word durable in the database, and only then reports it (O3, O6).
 *
 *   confirmed ─┐                                 ┌─ found ──────▶ settled ─▶ ledger ─▶ report
 *   held ──────┼─▶ one statement every interval ─┤
 *   placed ────┘   (holds first, on their own)   └─ not found ──▶ doubtful ─▶ present | undecided | gone
 *
 * | crash after             | what happens                                                                  |
 * |-------------------------|-------------------------------------------------------------------------------|
 * | confirm, before settle  | the row is still there: published again under the same id                     |
 * | hold, before its report | the row comes again from the log, is found held, and is left alone; with      |
 * |                         | strict order it gets a new place among those that come with it                |
 * | settle, before report   | the checkpoint is stored; START_REPLICATION asks for it                       |
 * | report                  | nothing to repeat                                                             |
 *
 * One cycle runs at a time. Rows that the delete does not find keep their position back until it is known why. One that
 * was published, that is in the table and that somebody has locked, or that the table does not let go, keeps it no longer:
 * if the relay dies before it is deleted, the sweep finds it and sends it again.
 */
export class Settler {
  readonly #store: Store;
  #ledger: Ledger;
  readonly #works: Works;
  readonly #clock: Clock;
  readonly #counters: RelayCounters;
  readonly #log: RelayLog;
  readonly #intervalMs: number;
  readonly #logsAll: boolean;
  readonly #report: (checkpoint: Lsn) => void;
  readonly #onSettled: () => void;
  readonly #onStored: (work: Work) => void;
  readonly #onProgress: () => void;
  readonly #onFailed: (error: Error) => void;
  readonly #changed = new Condition();
  readonly #confirmed: Settling[] = [];
  #held: Holding[] = [];
  readonly #placed: Replacing[] = [];
  /** Rows that a statement did not find; looked at again each cycle. */
  readonly #doubtful: Doubtful<Settling | Holding | Replacing>;
  readonly #statements: StoppedStatements;
  /** The position that the database has stored; never reported before it is stored. Null: none may be stored. */
  #checkpointLsn: Lsn | null;
  #cancelTimer: (() => void) | undefined;
  #cycle: Promise<void> | undefined;
  #stopped = false;
  #heldBytes = 0;
  /** The last cycle could not get a lock. */
  #lockedOut = false;
  /** All that is to be held waits for doubtful rows: the next look at these is soon enough. */
  #heldUp = false;
  #cycles = 0;
  #insertThenDeleteNoted = false;
  /** A statement that holds rows is under way. */
  #holding = false;
  /** Rows that wait in the table to be held keep their position no longer either. */
  #letsHeldPass = false;

  constructor(options: {
    store: Store;
    ledger: Ledger;
    works: Works;
    clock: Clock;
    counters: RelayCounters;
    log: RelayLog;
    intervalMs: number;
    /** Whether every settled message gets a log line, not only those with a problem. */
    logsAll: boolean;
    /** What is stored; null while a table pass runs, when no position may be stored. */
    checkpointLsn: Lsn | null;
    /** Called with each stored checkpoint. */
    report: (checkpoint: Lsn) => void;
    /** Called when rows were settled, or refused: there is room again. */
    onSettled: () => void;
    /** Called when a held row is in the table. */
    onStored?: (work: Work) => void;
    /** Called when rows have left the window for good: deleted as settled, or parked. */
    onProgress?: () => void;
    onFailed: (error: Error) => void;
  }) {
    this.#store = options.store;
    this.#ledger = options.ledger;
    this.#works = options.works;
    this.#clock = options.clock;
    this.#doubtful = new Doubtful(options.store, options.clock, options.log);
    this.#statements = new StoppedStatements({
      clock: options.clock,
      log: options.log,
      retryInMs: STOPPED_RETRY_MS,
      soLong: 'no such row is settled, past two windows of them nothing goes out, and a restart sends these again',
    });
    this.#counters = options.counters;
    this.#log = options.log;
    this.#intervalMs = options.intervalMs;
    this.#logsAll = options.logsAll;
    this.#checkpointLsn = options.checkpointLsn;
    this.#report = options.report;
    this.#onSettled = options.onSettled;
    this.#onStored = options.onStored ?? (() => undefined);
    this.#onProgress = options.onProgress ?? (() => undefined);
    this.#onFailed = options.onFailed;
  }

  /**
   * The stream begins, at a position that is stored; until then there was none. What is left of the rows that the table
   * brought has no entries, and goes on as before.
   */
  streamFrom(ledger: Ledger, startLsn: Lsn): void {
    this.#ledger = ledger;
    this.#checkpointLsn = startLsn;
  }

  /** The broker has the message, or its loss was accepted, or its time is over. */
  settle(work: Work, outcome: Settlement['outcome']): void {
    work.phase = 'confirmed';
    for (const entry of work.entries) if (entry.state === 'pending') this.#ledger.decide(entry);
    this.#confirmed.push({
      work,
      settlement: {
        row: work.row,
        exchange: work.message?.exchange ?? work.row.exchange ?? '',
        routingKey: work.message?.routingKey ?? work.row.routingKey ?? '',
        outcome,
        floorLsn: null,
      },
    });
    // The window counts what the broker has not answered; a body is not needed any more.
    work.message = undefined;
    work.row.body = EMPTY;
    this.#schedule(this.#confirmed.length >= EAGER_ROWS);
  }

  /** The row cannot go out now; it stays in the table with its reason. Held rows are settled at once, not at the interval. */
  hold(work: Work, reason: HoldReason): void {
    work.phase = 'held';
    this.#heldBytes += work.row.body.length;
    this.#held.push({
      work,
      hold: { ...reason, row: work.row, xid: work.xid, holdNo: work.order, lane: laneOf(work) },
    });
    this.#schedule(true);
  }

  /** The table holds the row already, and it gets a new place there. */
  place(work: Work): void {
    if (work.order === null) throw new Error('settler: a row without a place');
    work.phase = 'held';
    this.#placed.push({ work, placing: { row: work.row, holdNo: work.order } });
    this.#schedule(true);
  }

  /**
   * Keys whose rows must stay in the table, because one before them is to be held and somebody has locked it. Resolves
   * when the table was asked for all that is to be held so far, so that no more than what comes meanwhile waits in memory.
   */
  async heldUpKeys(): Promise<ReadonlyMap<string, unknown>> {
    for (;;) {
      const first = firstPlaces(this.#doubtful.rows);
      const isTried = !this.#holding && !this.#held.some((each) => each.hold.lane !== null && !isBehind(each, first));
      if (isTried || this.#stopped) return first;
      await this.#changed.wait();
    }
  }

  /** A Commit arrived: rows that were settled before it may now move the checkpoint. */
  committed(): void {
    // Otherwise the cycle that is due looks at it.
    if (!this.#cancelTimer && !this.#cycle && this.#checkpointIsDue()) this.#schedule(false);
  }

  /**
   * The lowest seq of rows, visible at `lsn` and handled since, that the log may bring again once the next rows are
   * settled: that statement stores a position past all lower ones. Undefined when there are none; nothing streams, perhaps.
   */
  lowestSeqAhead(lsn: Lsn): bigint | undefined {
    if (this.#checkpointLsn === null || this.#ledger.settledLsn >= lsn) return undefined;
    return this.#ledger.lowestSeq;
  }

  /** Rows to be held that keep their position back, because they are out of reach or only the log has them. */
  get keepingPosition(): number {
    return this.#doubtful.rows.filter(({ work }) => floorOf(work) !== null).length;
  }

  /** Whether rows that are to be held, are in the table and out of reach let the position pass as well. */
  letHeldPass(lets: boolean): void {
    this.#letsHeldPass = lets;
  }

  /** Octets of the bodies of held rows, which are kept until the database has them. */
  get heldBytes(): number {
    return this.#heldBytes;
  }

  /** Rows that the table refuses to let go, to change or to take back, until somebody sees to it. */
  get refusedRows(): number {
    return this.#doubtful.refusedRows;
  }

  /** True when nothing waits to be settled and nothing is being settled. */
  get isIdle(): boolean {
    return (
      this.#confirmed.length === 0 &&
      this.#held.length === 0 &&
      this.#placed.length === 0 &&
      this.#doubtful.isEmpty &&
      this.#cycle === undefined
    );
  }

  /** Grows with each cycle that got through, whatever it found to do. */
  get cycles(): number {
    return this.#cycles;
  }

  get checkpointLsn(): Lsn | null {
    return this.#checkpointLsn;
  }

  /** Rows that hold the position back until somebody lets them go. */
  get outOfReach(): OutOfReach {
    return { ...this.#doubtful.outOfReach, stopped: this.#statements.first };
  }

  /**
   * Settles what is there without waiting for the interval, and again until nothing is left or `until` aborts. `leave`:
   * what is not waited for: rows that the table refuses, or all that are in the table and out of reach. A row that holds
   * its key's others back is never left.
   */
  async flush(until: AbortSignal, leave: Left = 'nothing'): Promise<void> {
    const wake = (): void => this.#changed.notify();
    until.addEventListener('abort', wake, { once: true });
    try {
      while (!this.#isFlushed(leave) && !this.#stopped && !until.aborted) {
        this.#schedule(this.#doubtful.isEmpty && !this.#isResting);
        await this.#changed.wait();
      }
    } finally {
      until.removeEventListener('abort', wake);
    }
  }

  /** What is to be settled is refused altogether, and not to be tried yet. */
  get #isResting(): boolean {
    return [SETTLE, PLACE].some((doing) => this.#statements.restMs(doing) > 0);
  }

  #isFlushed(leave: Left): boolean {
    if (leave === 'refused' && this.#isResting && !this.#cycle) return true;
    if (this.#checkpointIsDue()) return false;
    if (this.#confirmed.length + this.#held.length + this.#placed.length > 0 || this.#cycle) return false;
    if (leave === 'refused') return this.#doubtful.isResting;
    if (leave === 'out of reach') return this.#doubtful.isOutOfReach && firstPlaces(this.#doubtful.rows).size === 0;
    return this.#doubtful.isEmpty;
  }

  /** Ends the timer and waits for the statement under way. */
  async stop(): Promise<void> {
    this.#stopped = true;
    this.#cancelTimer?.();
    this.#changed.notify();
    await this.#cycle;
  }

  #schedule(now: boolean): void {
    if (this.#stopped || this.#cycle) return;
    if (now) {
      this.#cancelTimer?.();
      this.#cancelTimer = undefined;
      this.#start();
    } else
      this.#cancelTimer ??= this.#clock.after(this.#intervalMs, () => {
        this.#cancelTimer = undefined;
        this.#start();
      });
  }

  #start(): void {
    if (this.#stopped || this.#cycle) return;
    this.#cycle = this.#run()
      .then(() => {
        if (!this.#lockedOut) this.#cycles += 1;
      })
      .catch((error: unknown) => {
        this.#stopped = true;
        this.#onFailed(error as Error);
      })
      .finally(() => {
        this.#cycle = undefined;
        this.#changed.notify();
        const toHold = (this.#held.length > 0 && !this.#heldUp) || this.#placed.length > 0;
        const isMuch = toHold || this.#confirmed.length >= EAGER_ROWS;
        if (isMuch && !this.#lockedOut) this.#schedule(true);
        else if (!this.isIdle || this.#checkpointIsDue()) this.#schedule(false);
      });
  }

  /** Transactions with rows are done, and the stored checkpoint does not say so yet. */
  #checkpointIsDue(): boolean {
    if (this.#checkpointLsn === null || this.#ledger.decidedRowsLsn <= this.#checkpointLsn) return false;
    const candidate = this.#candidate();
    return candidate !== null && candidate > this.#checkpointLsn;
  }

  async #run(): Promise<void> {
    this.#lockedOut = this.#heldUp = false;
    await this.#resolveDoubtful();
    if (this.#held.length > 0) await this.#holdSome(this.#nextHolds());
    if (this.#placed.length > 0) await this.#placeSome();
    if (this.#confirmed.length > 0 || this.#checkpointIsDue()) await this.#settleSome();
  }

  /** No row of a lane is held before one that came earlier and was not found yet. */
  #nextHolds(): Holding[] {
    const first = firstPlaces(this.#doubtful.rows);
    if (first.size === 0) return this.#held.splice(0, MAX_HOLDS_AT_ONCE);
    const next: Holding[] = [];
    const later: Holding[] = [];
    for (const each of this.#held) {
      (next.length < MAX_HOLDS_AT_ONCE && !isBehind(each, first) ? next : later).push(each);
    }
    this.#held = later;
    this.#heldUp = next.length < MAX_HOLDS_AT_ONCE && later.length > 0;
    return next;
  }

  async #holdSome(holdings: Holding[]): Promise<void> {
    if (holdings.length === 0) return;
    this.#holding = true;
    try {
      const left = await this.#attempt(() => this.#store.hold(holdings.map((each) => each.hold)));
      if (!left) {
        this.#held.unshift(...holdings);
        return;
      }
      for (const each of holdings) if (!this.#isLeft(each, left)) this.#kept(each);
    } catch (error) {
      if (!refusalOf(error)) throw error;
      await this.#oneByOne(holdings, async (hold) => {
        const { missing, kept } = await this.#store.hold([hold]);
        return kept.get(hold.row.seq) ?? !missing.has(hold.row.seq);
      });
    } finally {
      this.#holding = false;
    }
  }

  #placeSome(): Promise<void> {
    return this.#inParts(PLACE, this.#placed, MAX_HOLDS_AT_ONCE, async (batch) => {
      const missing = await this.#store.place(batch.map((each) => each.placing));
      for (const each of batch) {
        if (missing.has(each.work.row.seq)) this.#doubtful.add(each);
        else this.#stored(each.work);
      }
    });
  }

  #settled({ work, settlement }: Settling): void {
    if (settlement.outcome === 'accepted') this.#counters.accepted += 1;
    if (settlement.outcome === 'expired') this.#counters.expired += 1;
    const { outcome } = settlement;
    // A message that nobody got is told always, those that were withdrawn on purpose are not.
    const isFailure = outcome === 'accepted' || outcome === 'expired';
    if (isFailure || this.#logsAll) {
      const { row } = work;
      const fields = { messageId: row.id, key: row.key, type: row.type, attempt: row.attempts + 1, result: outcome };
      if (outcome === 'accepted') this.#log.warn(fields, 'no queue took it, and relay.onUnroutable.then is accept');
      else if (outcome === 'expired') this.#log.warn(fields, 'it was not published before its expires_at');
      else this.#log.info(fields, 'message');
    }
    this.#forget(work);
  }

  #kept(each: Holding): void {
    this.#counters[each.hold.state] += 1;
    if (each.hold.state === 'parked') this.#onProgress();
    if (each.hold.error !== null) {
      const { row } = each.work;
      const fields = { messageId: row.id, key: row.key, type: row.type, attempt: each.hold.attempts, seq: row.seq };
      if (each.hold.state === 'parked') this.#log.error({ ...fields, result: 'parked' }, each.hold.error);
      else this.#log.warn({ ...fields, result: 'retry', delayMs: each.hold.delayMs }, each.hold.error);
    }
    this.#stored(each.work);
  }

  #stored(work: Work): void {
    this.#forget(work);
    this.#onStored(work);
  }

  #settleSome(): Promise<void> {
    return this.#inParts(SETTLE, this.#confirmed, MAX_ROWS_AT_ONCE, async (batch) => {
      for (const each of batch) each.settlement.floorLsn = floorOf(each.work);
      const candidate = this.#candidate();
      const durable = batch.some((each) => each.settlement.outcome === 'expired');
      const rows = batch.map((each) => each.settlement);
      const result = await this.#store.settle(rows, candidate, durable);
      for (const each of batch) if (!this.#isLeft(each, result)) this.#settled(each);
      // Why not each statement: one that finds nothing is no sign that the others get through.
      if (result.missing.size + result.kept.size < batch.length) this.#onProgress();
      if (result.checkpointLsn !== null && this.#checkpointLsn !== null) {
        this.#checkpointLsn = maxLsn(this.#checkpointLsn, result.checkpointLsn);
        this.#report(this.#checkpointLsn);
      }
    });
  }

  /**
   * Takes the first rows of the queue and does the statement with all of them. When the table refuses that, with each
   * half of them, and so on: the row that it refuses keeps its position, and the others get through. What is not tried
   * stays in the queue. A statement that is refused without any row is nobody's fault: all stays in the queue, and it
   * rests for a while.
   */
  async #inParts<T extends Settling | Replacing>(
    doing: string,
    queue: T[],
    max: number,
    statement: (part: T[]) => Promise<void>,
  ): Promise<void> {
    if (this.#statements.restMs(doing) > 0) {
      this.#lockedOut = true;
      return;
    }
    const sizes = [Math.min(queue.length, max)];
    let refused = 0;
    for (let size = sizes.pop(); size !== undefined; size = sizes.pop()) {
      // Out of the queue, because a position must not wait for those that the statement settles; it waits for the rest.
      const part = queue.splice(0, size);
      try {
        const done = await this.#attempt(async () => (await statement(part), true));
        if (done) {
          this.#statements.works(doing);
          continue;
        }
        queue.unshift(...part);
        return;
      } catch (error) {
        const refusal = refusalOf(error);
        if (!refusal) throw error;
        // In the queue again, so that no position passes it meanwhile.
        queue.unshift(...part);
        if (size > 1) {
          sizes.push(size - (size >> 1), size >> 1);
          continue;
        }
        const anyway = size === 0 || (refused === 0 && (await this.#attempt(() => isRefused(() => statement([])))));
        if (anyway === undefined) return;
        if (anyway) {
          this.#statements.stop(doing, refusal, error);
          this.#lockedOut = true;
          return;
        }
        const row = queue.shift();
        if (!row) return;
        this.#refuse(row, refusal, error);
        if (++refused >= MAX_REFUSED_AT_ONCE) return;
      }
    }
  }

  /** What the checkpoint may become if the batch settles: nothing that is decided but not in the batch is passed. */
  #candidate(): Lsn | null {
    if (this.#checkpointLsn === null) return null;
    let candidate = this.#ledger.decidedLsn;
    for (const list of [this.#confirmed, this.#doubtful.rows]) {
      for (const each of list) {
        const floor = floorOf(each.work);
        if (floor !== null && floor < candidate) candidate = floor;
      }
    }
    return candidate;
  }

  async #resolveDoubtful(): Promise<void> {
    const { present, gone } = await this.#doubtful.resolve();
    for (const each of present) if ('settlement' in each || this.#letsHeldPass) this.#letPass(each.work);
    const back = present.filter((each): each is Holding => 'hold' in each);
    // In order: a statement holds the rows of a lane up to the first that it does not find.
    if (back.length > 0) this.#held = byPlace([...back, ...this.#held]);
    this.#confirmed.push(...present.filter((each): each is Settling => 'settlement' in each));
    this.#placed.push(...present.filter((each): each is Replacing => 'placing' in each));
    // Why not among themselves: they are written back one after the other, in their order.
    const first = firstPlaces([...this.#doubtful.rows, ...this.#held]);
    this.#doubtful.add(...gone.filter((each) => isBehind(each, first)));
    const ripe = byPlace(gone.filter((each) => !isBehind(each, first)));
    const holdings = ripe.filter((each): each is Holding => 'hold' in each);
    this.#doubtful.add(...holdings.slice(MAX_WRITE_BACKS_AT_ONCE));
    const written = holdings.slice(0, MAX_WRITE_BACKS_AT_ONCE);
    // Before: once the row is in the table, nothing is left that tells.
    if (!(await this.#attempt(() => this.#noteDeleted(written)))) this.#doubtful.add(...written);
    else
      await this.#oneByOne(written, async (hold) => {
        // Before: the log may bring it before the answer comes.
        this.#works.writesBack(hold.row.id);
        let written: boolean | Refusal = false;
        try {
          written = await this.#store.writeBack(hold);
        } finally {
          if (written !== true) this.#works.takeWrittenBack(hold.row.id);
        }
        return written || true;
      });
    const others = ripe.filter((each): each is Settling | Replacing => !('hold' in each));
    if (others.length === 0) return;
    await this.#inParts(RECORD, others, others.length, (part) => this.#settleGone(part));
    this.#doubtful.add(...others);
  }

  /**
   * Stores rows each with a statement of its own, which says whether it found the row. One that the table refuses keeps
   * its position back, and no other row but those behind it in its lane.
   */
  async #oneByOne(holdings: readonly Holding[], store: (hold: Hold) => Promise<boolean | Refusal>): Promise<void> {
    const stuck = new Set<string>();
    for (const each of holdings) {
      const { lane } = each.hold;
      if (lane !== null && stuck.has(lane)) {
        this.#doubtful.add(each);
        continue;
      }
      if (await this.#isStored(each, store)) this.#kept(each);
      else if (lane !== null) stuck.add(lane);
    }
  }

  /** False: the row is among the doubtful. */
  async #isStored(each: Holding, store: (hold: Hold) => Promise<boolean | Refusal>): Promise<boolean> {
    try {
      const stored = await this.#attempt(() => store(each.hold));
      if (stored === true) return true;
      if (stored) this.#refuse(each, stored);
      else this.#doubtful.add(each);
    } catch (error) {
      const refusal = refusalOf(error);
      if (!refusal) throw error;
      this.#refuse(each, refusal, error);
    }
    return false;
  }

  /** Whether the statement has left the row as it was; then it is among the doubtful. */
  #isLeft(row: Settling | Holding, { missing, kept }: NotStored): boolean {
    const { seq } = row.work.row;
    const refusal = kept.get(seq);
    if (refusal) this.#refuse(row, refusal);
    else if (missing.has(seq)) this.#doubtful.add(row);
    else return false;
    return true;
  }

  #refuse(row: Settling | Holding | Replacing, refusal: Refusal, error?: unknown): void {
    this.#doubtful.refuse(row, refusal, error);
    if ('settlement' in row) this.#letPass(row.work);
    // It does not count among those for which others wait.
    this.#onSettled();
  }

  /** The row is in the table, where the sweep of a later session finds it: the log need not bring it again. */
  #letPass({ entries }: Work): void {
    for (const entry of entries) if (entry.state !== 'settled') this.#ledger.settle(entry);
  }

  /** The application deleted the row itself, or an earlier session has settled it: there is nothing to delete. */
  async #settleGone(gone: (Settling | Replacing)[]): Promise<void> {
    const settled = gone.filter((each): each is Settling => 'settlement' in each);
    await this.#noteDeleted(settled);
    const own = settled.filter((each) => each.work.origin === 'stream');
    await this.#store.recordGone(own.map((each) => each.settlement));
    this.#counters.gone += settled.length;
    for (const each of settled) this.#settled(each);
    for (const each of gone) if ('placing' in each) this.#stored(each.work);
  }

  /** Whether an application deletes its rows itself, as far as these tell. */
  async #noteDeleted(gone: readonly { readonly work: Work }[]): Promise<true> {
    // In the replay zone it may be that the history alone is gone, so such a row proves nothing.
    const mayProve = gone.some(({ work }) => work.origin === 'stream' && !work.replayed);
    if (mayProve && !this.#insertThenDeleteNoted) {
      await this.#store.noteInsertThenDelete();
      this.#insertThenDeleteNoted = true;
    }
    return true;
  }

  #forget(work: Work): void {
    this.#works.remove(work);
    this.#doubtful.forget(work);
    if (work.phase === 'held') this.#heldBytes -= work.row.body.length;
    for (const entry of work.entries) if (entry.state !== 'settled') this.#ledger.settle(entry);
    this.#counters.settled += 1;
    this.#onSettled();
  }

  /** A statement that only could not get a lock is tried again at the next interval; everything else ends the session. */
  async #attempt<T>(statement: () => Promise<T>): Promise<T | undefined> {
    try {
      return await statement();
    } catch (error) {
      if (!isLockConflict(error)) throw error;
      this.#lockedOut = true;
      this.#log.warn({ error: String(error) }, 'settling waits for a lock that somebody else holds');
      return undefined;
    }
  }
}

const EMPTY = Buffer.alloc(0);

async function isRefused(statement: () => Promise<void>): Promise<boolean> {
  return (await refusedBy(statement)) !== undefined;
}

/** The earliest position that the row holds back. */
function floorOf(work: Work): Lsn | null {
  let floor: Lsn | null = null;
  for (const entry of work.entries) {
    if (entry.state !== 'settled' && (floor === null || entry.floorLsn < floor)) floor = entry.floorLsn;
  }
  return floor;
}
