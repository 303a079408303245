import type { Lsn } from '../core/lsn.js';
import type { OutboxRow } from '../core/message.js';
import type { Turns } from '../runtime/turns.js';
import type { Admission } from './admission.js';
import type { Settler } from './settler.js';
import type { LaneTraffic } from './lane-traffic.js';
import type { PlacedRow, ReadyRow, RelayCounters, RelayLog, SeqAndSize, Table } from './ports.js';
import type { WaitingRows } from './waiting-rows.js';
import { tableWork, type Origin, type Works } from './work.js';

/** Rows looked at in one query. */
const LIST_ROWS = 500;
/** Bodies read in one query, octets; one larger body goes alone. */
const READ_BYTES = 4 * 1024 * 1024;
/** Keys asked about in one statement, and rows of each that it may give back. */
const KEYS_AT_ONCE = 50;
/** The poll asks who writes only when it would walk over so many seqs. */
const SPARED_ROWS = 1_000n;
/** Before every seq: one that COPY or an administrator has given may be negative. */
const BEFORE_ALL = -(2n ** 63n);
/** Ids of a table pass that are remembered; beyond it a row may go out twice, under the same id. */
const MAX_REMEMBERED_IDS = 200_000;

/**
 * Publishes rows from the table: the table pass (first start, lost slot), the sweep and due rows. The table is the
 * truth; the stream is the way to learn of it early. Everything goes through the same admission and the same settler as
 * the stream's rows, so that every copy of a message is the same (O7).
 */
export class TableFeed {
  readonly #table: Table;
  readonly #waiting: WaitingRows;
  readonly #works: Works;
  readonly #admission: Admission;
  readonly #counters: RelayCounters;
  readonly #log: RelayLog;
  readonly #turns: Turns;
  readonly #check: () => void;
  readonly #lanes: LaneTraffic | undefined;
  readonly #rowsPerKey: number;
  readonly #listRows: number;
  /** `source: table`: the poll has nothing more to find up to this seq; 0: it looks at every row. */
  #polledSeq = 0n;
  #pollStarts = 0;
  /** Where the poll may start next, once these transactions have ended. */
  #ahead: { seq: bigint; writers: readonly string[] } | undefined;

  constructor(options: {
    table: Table;
    waiting: WaitingRows;
    works: Works;
    admission: Admission;
    counters: RelayCounters;
    log: RelayLog;
    /** Shared by all feeds of a session. */
    turns: Turns;
    check: () => void;
    /** With `ordering: strict`. */
    lanes: LaneTraffic | undefined;
    /** Rows of one key that are released at once. */
    rowsPerKey: number;
    /** Rows of a pass or a poll that are taken up at once: of these so many may wait in memory for a locked one. */
    listRows: number;
  }) {
    this.#table = options.table;
    this.#waiting = options.waiting;
    this.#works = options.works;
    this.#admission = options.admission;
    this.#counters = options.counters;
    this.#log = options.log;
    this.#turns = options.turns;
    this.#check = options.check;
    this.#lanes = options.lanes;
    this.#rowsPerKey = options.rowsPerKey;
    this.#listRows = Math.min(LIST_ROWS, options.listRows);
  }

  /**
   * The table pass: every ready row up to `uptoSeq`, in seq order. Adds the ids of those past `afterSeq`, which the slot
   * may bring as well. The caller has fenced both ends, and waits for the rows to settle, but for those that are out of
   * reach: they are in the table. False when rows had to stay behind one of their key that somebody has locked: then the
   * pass is repeated.
   */
  async pass(afterSeq: bigint, uptoSeq: bigint, ids: Set<string>): Promise<boolean> {
    const left = new Set<string>();
    let rows = 0;
    for (let from = BEFORE_ALL; ;) {
      const batch = await this.#table.readyRows(from, uptoSeq, this.#listRows);
      const last = batch.at(-1);
      if (!last) break;
      from = BigInt(last.seq);
      // Of an earlier round of the pass some may be left that somebody has locked.
      const fresh = batch.filter((each) => !this.#works.has(each.seq));
      const next = await this.#inTurn(fresh, left);
      await this.#publish(next, 'pass', (row) => {
        if (BigInt(row.seq) > afterSeq && ids.size < MAX_REMEMBERED_IDS) ids.add(row.id);
      });
      rows += next.length;
      this.#counters.rebuilt += next.length;
      if (next.length > 0 && rows % (this.#listRows * 100) === 0) this.#log.info({ rows }, 'table pass under way');
    }
    if (rows > 0) this.#log.info({ rows }, 'table pass published the backlog');
    if (ids.size === MAX_REMEMBERED_IDS) {
      this.#log.warn(
        { remembered: ids.size },
        'more rows came during the table pass than are remembered; some go out twice, under the same id',
      );
    }
    return left.size === 0;
  }

  /**
   * The sweep: rows that are still ready although the stream has passed them (a slot advanced by hand, a publication
   * added late, a crash between due and published). Candidates first, then a position, and only when the stream has
   * passed it the second look.
   */
  async sweep(passed: (lsn: Lsn) => Promise<void>): Promise<number> {
    await passed(await this.#table.position());
    const uptoSeq = await this.#table.highestSeq();
    let swept = 0;
    for (let from = BEFORE_ALL; ;) {
      this.#check();
      const batch = await this.#table.readyRows(from, uptoSeq, LIST_ROWS);
      const last = batch.at(-1);
      if (!last) break;
      from = BigInt(last.seq);
      const candidates = batch.filter((each) => !this.#works.has(each.seq));
      if (candidates.length === 0) continue;
      await passed(await this.#table.position());
      swept += await this.#publish(candidates, 'sweep');
    }
    this.#counters.swept += swept;
    if (swept > 0)
      this.#log.warn(
        { rows: swept },
        'the sweep published rows that were ready and not under way: the stream had missed them, a crash had brought them back, or they could not be removed before a restart',
      );
    return swept;
  }

  /**
   * Moves cancelled and discarded rows to the history. Not before the position of their insert is settled: a row that
   * vanishes while the checkpoint is behind it would come again and look new. Those stay until a later round.
   */
  async removeWithdrawn(settler: Settler, passed: (lsn: Lsn) => Promise<void>): Promise<void> {
    for (let from = BEFORE_ALL; ;) {
      this.#check();
      const batch = await this.#table.withdrawnRows(from, LIST_ROWS);
      const last = batch.at(-1);
      if (!last) return;
      from = BigInt(last.row.seq);
      // The relay may have looked at the key just before an operator's act was committed, and not since.
      this.#lanes?.ask(batch.flatMap(({ row }) => row.key ?? []));
      const position = await this.#table.position();
      await passed(position);
      const ahead = settler.lowestSeqAhead(position);
      for (const { row, state } of batch) {
        if (ahead !== undefined && BigInt(row.seq) >= ahead) return;
        if (this.#works.has(row.seq)) continue;
        const work = tableWork(row, 'sweep');
        this.#works.add(work);
        settler.settle(work, state);
      }
    }
  }

  /**
   * `source: table`: publishes the ready rows that are not in flight, in seq order. Gives how many there were. Starts
   * where nothing can come any more, because held rows may be many, and each poll would walk over all of them.
   */
  async poll(): Promise<number> {
    const { drawn, highest } = await this.#table.seqs();
    // F57: a sequence that was set back gives seqs that are behind us.
    if (drawn < this.#polledSeq) this.pollFromStart();
    const starts = this.#pollStarts;
    const complete = await this.#completeSeq(drawn);
    const left = new Set<string>();
    let published = 0;
    for (let from = this.#polledSeq === 0n ? BEFORE_ALL : this.#polledSeq; ;) {
      this.#check();
      const batch = await this.#table.readyRows(from, highest, this.#listRows);
      const last = batch.at(-1);
      if (!last) break;
      from = BigInt(last.seq);
      const others = batch.filter((each) => !this.#works.has(each.seq));
      const rows = await this.#inTurn(others, left);
      if (rows.length === 0) continue;
      // F59: what a crash of the server could still take back must not be published.
      await this.#table.position();
      published += await this.#publish(rows, 'poll');
    }
    const isDone = left.size === 0 && starts === this.#pollStarts;
    if (complete !== undefined && isDone) this.#polledSeq = complete;
    return published;
  }

  /** The next poll looks at every row: some may be ready again that were held, or have a seq that somebody gave them. */
  pollFromStart(): void {
    this.#pollStarts += 1;
    this.#polledSeq = 0n;
    this.#ahead = undefined;
  }

  /**
   * A seq up to which the poll that begins now sees every row that there will be: all who wrote when it was the last one
   * have ended (design 3.4, the fence). Undefined when there is none, or when it would spare too little.
   */
  async #completeSeq(drawn: bigint): Promise<bigint | undefined> {
    if (drawn - this.#polledSeq < SPARED_ROWS) return undefined;
    const writers = await this.#table.writers();
    this.#ahead ??= { seq: drawn, writers: [...writers] };
    const still = this.#ahead.writers.filter((each) => writers.has(each));
    const { seq } = this.#ahead;
    this.#ahead = still.length > 0 ? { seq, writers: still } : undefined;
    return this.#ahead ? undefined : seq;
  }

  /**
   * Without the rows whose key is held up, and those that come after such a row: they stay in the table, where another
   * round finds them in their order, and fill no memory meanwhile.
   */
  async #inTurn(rows: readonly ReadyRow[], left: Set<string>): Promise<readonly ReadyRow[]> {
    if (!this.#lanes) return rows;
    const heldUp = await this.#admission.heldUpKeys();
    if (heldUp.size === 0 && left.size === 0) return rows;
    return rows.filter(({ key }) => {
      if (key === null || !(heldUp.has(key) || left.has(key))) return true;
      left.add(key);
      return false;
    });
  }

  /** Lets rows go whose time has come. Whether there may be more of them. */
  async due(): Promise<boolean> {
    const { rows, placed, more } = await this.#waiting.due(LIST_ROWS);
    if (rows.length + placed.length > 0) this.#admission.tryAgain();
    // They go when their keys are asked: one before them may be on its way into the table.
    this.#lanes?.due(placed);
    this.#lanes?.ask(this.#waiting.ripeKeys);
    await this.#publish(rows, 'due');
    return more;
  }

  /**
   * `ordering: strict`: asks the table which held rows may go, and publishes them. Gives the keys that are to be asked
   * again, after `restMs`, because somebody has locked them or a row of theirs. `fresh`: only for keys that the table did not hold when the session began.
   */
  release(fresh = false): Promise<{ again: string[]; restMs: number }> {
    const lanes = this.#lanes;
    if (!lanes) return Promise.resolve({ again: [], restMs: 0 });
    return this.#turns.take(async () => {
      const questions = lanes.questions(KEYS_AT_ONCE, fresh);
      if (questions.length === 0) return { again: [], restMs: 0 };
      const { answers, again, restMs } = await this.#waiting.release(questions, lanes.lastOrder, this.#rowsPerKey);
      const rows = [...answers.values()].flatMap((answer) => answer.rows).filter((each) => !this.#works.has(each.seq));
      await this.#publishBatch(rows, 'released');
      for (const [key, { remains }] of answers) lanes.answered(key, remains);
      return { again, restMs };
    });
  }

  /**
   * One batch at a time: between the reading of a row and its turn to be published another part could otherwise publish
   * and settle it, and it would go out again.
   */
  #publish(
    batch: readonly SeqAndSize[],
    origin: Exclude<Origin, 'stream'>,
    onRow?: (row: OutboxRow) => void,
  ): Promise<number> {
    return this.#turns.take(() => this.#publishBatch(batch, origin, onRow));
  }

  async #publishBatch(
    batch: readonly SeqAndSize[],
    origin: Exclude<Origin, 'stream'>,
    onRow?: (row: OutboxRow) => void,
  ): Promise<number> {
    let published = 0;
    for (let start = 0; start < batch.length;) {
      this.#check();
      const seqs: string[] = [];
      for (let bytes = 0; start < batch.length; start += 1) {
        const each = batch[start];
        if (!each || (seqs.length > 0 && bytes + each.bytes > READ_BYTES)) break;
        seqs.push(each.seq);
        bytes += each.bytes;
      }
      const settled = this.#works.watch(new Set(seqs));
      try {
        for (const { row, holdNo, isDue } of byPlace(await this.#table.readRows(seqs))) {
          // The stream may have brought it since the list was made, and it may even be settled since it was read.
          if (this.#works.has(row.seq) || settled.removed.has(row.seq)) continue;
          onRow?.(row);
          const work = tableWork(row, origin, isDue || origin === 'due');
          work.order = holdNo === null || row.key === null ? null : BigInt(holdNo);
          this.#works.add(work);
          published += 1;
          const wait = this.#admission.admit(work);
          if (wait) await wait;
        }
      } finally {
        settled.end();
      }
    }
    return published;
  }
}

/** Those that have a place in their key in the order of their places: a lower seq may have committed later (F54). */
function byPlace(rows: readonly PlacedRow[]): PlacedRow[] {
  const place = ({ holdNo }: PlacedRow): number => Number(holdNo ?? 0);
  return [...rows].sort((a, b) => place(a) - place(b));
}
