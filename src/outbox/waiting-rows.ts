import type { LaneQuestion } from '../core/key-lanes.js';
import { inHalves, refusedBy } from './halves.js';
import type { Due, RelayLog, Released, WaitingRow, WaitingTable } from './ports.js';
import { isLockConflict } from './refusal.js';
import type { RefusedRows, Use } from './refused-rows.js';
import type { StoppedStatements } from './stopped-statements.js';

/** So many rows that the table refuses are found in one go; the others are found in the next. */
const MAX_FOUND_AT_ONCE = 200;
/** So many of those that were refused before are refused again in one go: each costs about two statements. */
const MAX_RETRIED_AT_ONCE = 100;
const UNBLOCK_ROWS = 10_000;
/** After how long a lock of somebody else's is tried again, milliseconds. */
const LOCKED_RETRY_MS = 1_000;

const DUE = 'letting rows go that are due';
const RELEASE = 'letting rows go that were held behind others of their key';
const REBLOCK = 'putting rows back behind others of their key';
const UNBLOCK = 'letting rows go that strict order has held';

/**
 * Changes rows that wait in the table: what is due, what is released, what a session finds when it begins. A row that a
 * constraint or trigger of the user's own refuses is found by halves and left alone, and the others go on.
 */
export class WaitingRows {
  readonly #table: WaitingTable;
  readonly #refused: RefusedRows;
  readonly #statements: StoppedStatements;
  readonly #log: RelayLog;

  constructor(table: WaitingTable, refused: RefusedRows, log: RelayLog) {
    this.#table = table;
    this.#refused = refused;
    this.#statements = refused.statements;
    this.#log = log;
  }

  /** Lets rows go whose time has come. `more`: there may be others that can go now. */
  async due(limit: number): Promise<Due & { more: boolean }> {
    const due: Due = { rows: [], placed: [], kept: [] };
    if (this.#statements.restMs(DUE) > 0) return { ...due, more: false };
    let found = 0;
    const take = ({ rows, placed, kept }: Due): void => {
      due.rows.push(...rows);
      due.placed.push(...placed);
      for (const { row, refusal } of kept) if (this.#refused.refuse('due', row, refusal)) found += 1;
    };
    await this.#patiently(async () => {
      const without = this.#refused.known('due');
      if (await refusedBy(async () => take(await this.#table.makeDue({ limit, without })))) {
        const rows = await this.#table.dueRows(limit, without);
        await this.#sift(DUE, rows, MAX_FOUND_AT_ONCE, async (only) => take(await this.#table.makeDue({ only })), {
          onRefused: (_, isNew) => (found += Number(isNew)),
        });
      } else this.#statements.works(DUE);
      const ripe = this.#refused.ripe('due', limit);
      if (ripe.length === 0 || this.#statements.restMs(DUE) > 0) return;
      await this.#sift(DUE, ripe, MAX_RETRIED_AT_ONCE, async (only, rows) => {
        const answer = await this.#table.makeDue({ only });
        const kept = new Set(answer.kept.map(({ row }) => row.seq));
        this.#refused.forget(rows.filter(({ seq }) => !kept.has(seq)));
        take(answer);
      });
    });
    return { ...due, more: due.rows.length + due.placed.length + found > 0 };
  }

  /**
   * Strict order: asks which rows of these keys may go. A refused one stops its key, as one that somebody has locked.
   * `again`: the keys that are to be asked again, after `restMs` at the earliest.
   */
  async release(
    questions: readonly LaneQuestion[],
    upto: bigint | null,
    rowsPerKey: number,
  ): Promise<{ answers: Map<string, Released>; again: string[]; restMs: number }> {
    const answers = new Map<string, Released>();
    const isDone =
      this.#statements.restMs(RELEASE) === 0 &&
      (await this.#patiently(() => this.#releaseParts(questions, upto, rowsPerKey, answers)));
    const held = this.#refused.heldKeys;
    // A key of which a row is refused is asked again when that row is to be tried again.
    const again = questions.flatMap(({ key }) => (answers.get(key)?.isLocked === false || held.has(key) ? [] : [key]));
    return { answers, again, restMs: Math.max(this.#statements.restMs(RELEASE), isDone ? 0 : LOCKED_RETRY_MS) };
  }

  /** Keys that are to be asked again, because a row of theirs that was refused is to be tried again. */
  get ripeKeys(): string[] {
    return [...new Set(this.#refused.ripe('placed').flatMap(({ key }) => key ?? []))];
  }

  /** Whether rows that were refused when they were to be freed may be tried again. */
  get mayUnblock(): boolean {
    return this.#statements.isRipe(UNBLOCK) || this.#refused.ripe('placed', 1).length > 0;
  }

  /** At the start of a session with strict order; see Table.reblock. Those that are refused stay as they are. */
  async reblock(): Promise<bigint> {
    if (await refusedBy(() => this.#table.reblock())) {
      const rows = await this.#table.placedRows(['ready'], null, []);
      await this.#sift(REBLOCK, rows, Infinity, (only) => this.#table.reblock(only), { use: 'placed' });
      // Told, and over: what stays as it is, is released like the others.
      this.#statements.works(REBLOCK);
    }
    return this.#table.lastHoldNo();
  }

  /** Frees rows that strict order held, when it is not in force any more. Gives how many. */
  async unblock(): Promise<number> {
    if (this.#statements.restMs(UNBLOCK) > 0) return 0;
    const without = new Set(this.#refused.resting());
    let freed = 0;
    for (let n = 1; n > 0; freed += n) {
      n = 0;
      const take = ({ rows, kept }: Awaited<ReturnType<WaitingTable['unblock']>>): void => {
        n += rows;
        for (const { row, refusal } of kept) {
          without.add(row.seq);
          this.#refused.refuse('placed', row, refusal);
        }
      };
      const some = { limit: UNBLOCK_ROWS, without: [...without] };
      if (!(await refusedBy(async () => take(await this.#table.unblock(some))))) {
        this.#statements.works(UNBLOCK);
        continue;
      }
      const rows = await this.#table.placedRows(['blocked', 'ready'], UNBLOCK_ROWS, some.without);
      await this.#sift(UNBLOCK, rows, Infinity, async (only) => take(await this.#table.unblock({ only })), {
        use: 'placed',
        onRefused: ({ seq }) => without.add(seq),
      });
    }
    this.#refused.went();
    return freed;
  }

  async #releaseParts(
    questions: readonly LaneQuestion[],
    upto: bigint | null,
    rowsPerKey: number,
    answers: Map<string, Released>,
  ): Promise<void> {
    const parts: { asked: readonly LaneQuestion[]; rows: number }[] = [{ asked: questions, rows: rowsPerKey }];
    for (let part = parts.pop(); part; part = parts.pop()) {
      const { asked, rows } = part;
      const failed = await refusedBy(() => this.#releaseSome(asked, upto, rows, answers));
      if (!failed) continue;
      const [question] = asked;
      const half = asked.length >> 1;
      if (half > 0) parts.push({ asked: asked.slice(half), rows }, { asked: asked.slice(0, half), rows });
      else if (rows > 1 && question) parts.push({ asked, rows: rows >> 1 });
      else {
        const anyway = await refusedBy(() => this.#table.release([], upto, 1, []));
        if (anyway) {
          this.#statements.stop(RELEASE, anyway.refusal, anyway.error);
          return;
        }
        const row = question && (await this.#table.headOf(question, upto));
        if (row) this.#refused.refuse('placed', row, failed.refusal, failed.error);
      }
    }
  }

  async #releaseSome(
    questions: readonly LaneQuestion[],
    upto: bigint | null,
    rowsPerKey: number,
    answers: Map<string, Released>,
  ): Promise<void> {
    const keys = new Set(questions.map(({ key }) => key));
    const some = await this.#table.release(questions, upto, rowsPerKey, this.#refused.resting(keys));
    this.#statements.works(RELEASE);
    this.#refused.went(new Set(some.keys()));
    for (const [key, answer] of some) {
      answers.set(key, answer);
      if (answer.kept) this.#refused.refuse('placed', answer.kept.row, answer.kept.refusal);
    }
  }

  /** Does the statement with these rows, but for those that it refuses. */
  async #sift(
    doing: string,
    rows: readonly WaitingRow[],
    most: number,
    statement: (only: readonly string[], part: readonly WaitingRow[]) => Promise<void>,
    {
      use = 'due',
      onRefused = () => undefined,
    }: { use?: Use; onRefused?: (row: WaitingRow, isNew: boolean) => unknown } = {},
  ): Promise<void> {
    const stopped = await inHalves(
      rows,
      most,
      (part) =>
        statement(
          part.map(({ seq }) => seq),
          part,
        ),
      (row, refusal, error) => void onRefused(row, this.#refused.refuse(use, row, refusal, error)),
    );
    if (stopped) this.#statements.stop(doing, stopped.refusal, stopped.error);
    else this.#statements.works(doing);
  }

  /** False when a lock that somebody else holds has ended it; it is tried again later. */
  async #patiently(work: () => Promise<void>): Promise<boolean> {
    try {
      await work();
      return true;
    } catch (error) {
      if (!isLockConflict(error)) throw error;
      this.#log.warn({ error: String(error) }, 'rows that wait in the table wait for a lock that somebody else holds');
      return false;
    }
  }
}
