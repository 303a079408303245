import type pg from 'pg';
import { quoteIdentifier } from '../core/identity.js';
import { parseLsn, type Lsn } from '../core/lsn.js';
import type { OutboxRow } from '../core/message.js';
import { pause, type Clock } from '../runtime/clock.js';
import { Turns } from '../runtime/turns.js';
import { toDatabaseError } from './errors.js';
import { OUTBOX_COLUMNS, rowFromColumns, type OutboxColumn } from './outbox-row.js';
import type { RelayStore } from './relay-store.js';
import { dueRowsSql, headOfSql, placedRowsSql } from './settle-sql.js';

/** A row's place and the octets of its body. */
interface SeqAndSize {
  seq: string;
  bytes: number;
}

interface ReadyRow extends SeqAndSize {
  key: string | null;
}

interface PlacedRow {
  row: OutboxRow;
  holdNo: string | null;
  isDue: boolean;
}

interface WaitingRow {
  seq: string;
  id: string;
  key: string | null;
  type: string;
}

const FENCE_POLL_MS = 10;
const FENCE_REPORT_MS = 2_000;

/**
 * Reads the outbox itself: for the table pass, the sweep and rows that are due. Always by primary key or by a partial
 * index, in batches bounded by the caller; never a scan that a large backlog makes long.
 */
export class TableReader {
  readonly #client: pg.Client;
  readonly #schema: string;
  readonly #table: string;
  readonly #store: RelayStore;
  readonly #clock: Clock;
  readonly #turns = new Turns();
  #asked = 0;
  #answered = 0;

  constructor(client: pg.Client, schema: string, store: RelayStore, clock: Clock) {
    this.#client = client;
    this.#schema = quoteIdentifier(schema);
    this.#table = `${this.#schema}.outbox`;
    this.#store = store;
    this.#clock = clock;
  }

  /** The highest seq that anybody has drawn or written. Also covers a seq given explicitly by COPY. */
  async highestSeq(): Promise<bigint> {
    return (await this.seqs()).highest;
  }

  /** The last seq that the sequence gave, and the highest that anybody has drawn or written. */
  async seqs(): Promise<{ drawn: bigint; highest: bigint }> {
    const result = await this.#query<{ drawn: string | null; highest: string | null }>(
      'reading the highest seq',
      `select drawn::text, greatest(drawn, (select max(seq) from only ${this.#table}))::text as highest
       from pg_sequence_last_value(pg_get_serial_sequence($1, 'seq')::regclass) as drawn`,
      [this.#table],
    );
    return { drawn: BigInt(result[0]?.drawn ?? 0), highest: BigInt(result[0]?.highest ?? 0) };
  }

  /** Transactions that may have drawn a seq and not ended yet, under names that are never used twice. */
  async writers(): Promise<ReadonlySet<string>> {
    return new Set((await this.#writers()).map(({ transaction }) => transaction));
  }

  /**
   * Waits until every transaction that drew a seq up to now has ended and is visible, also one that waits for a
   * synchronous standby (it is decoded before it is visible). An insert takes its table lock before it draws its seq.
   */
  async fence(log: (waitingFor: string) => void, signal: AbortSignal): Promise<{ uptoSeq: bigint; lsn: Lsn }> {
    const uptoSeq = await this.highestSeq();
    let writers = await this.#writers();
    let reportAtMs = this.#clock.now() + FENCE_REPORT_MS;
    while (writers.length > 0 && !signal.aborted) {
      await pause(this.#clock, FENCE_POLL_MS, signal);
      const still = new Set((await this.#writers()).map((writer) => writer.transaction));
      writers = writers.filter((writer) => still.has(writer.transaction));
      if (writers.length > 0 && this.#clock.now() >= reportAtMs) {
        log(writers.map((writer) => writer.description).join('; '));
        reportAtMs = this.#clock.now() + FENCE_REPORT_MS * 5;
      }
    }
    // In this order: after an asynchronous commit only the insert position is past it; our commit then flushes it.
    const lsn = await this.#insertLsn();
    await this.#store.flush();
    return { uptoSeq, lsn };
  }

  /** A position past everything that is visible now, flushed. */
  async position(): Promise<Lsn> {
    const lsn = await this.#insertLsn();
    await this.#store.flush();
    return lsn;
  }

  /** Rows that are `ready`, but for those that hold their place in a key: these go when their key asks for them. */
  async readyRows(afterSeq: bigint, uptoSeq: bigint, limit: number): Promise<ReadyRow[]> {
    // Why outbox.seq: a bare seq is the text of the result, and sorts as text.
    return this.#query<ReadyRow>(
      'reading the backlog',
      `select seq::text as seq, key, coalesce(octet_length(payload::text), octet_length(payload_bytes), 0) as bytes
       from only ${this.#table} where state = 'ready' and hold_no is null and seq > $1 and seq <= $2
       order by outbox.seq limit $3`,
      [String(afterSeq), String(uptoSeq), limit],
    );
  }

  /** Whole rows that are still `ready`, in seq order, with their places. Those that were due keep the time of it. */
  async readRows(seqs: readonly string[]): Promise<PlacedRow[]> {
    const columns = OUTBOX_COLUMNS.map((name) => `${name}::text as ${name}`).join(', ');
    const rows = await this.#query<Record<OutboxColumn, string | null> & { holdNo: string | null; isDue: boolean }>(
      'reading rows',
      `select ${columns}, hold_no::text as "holdNo", next_attempt_at is not null as "isDue"
       from only ${this.#table} where seq = any($1::bigint[]) and state = 'ready' order by outbox.seq`,
      [seqs],
    );
    return rows.map(({ holdNo, isDue, ...values }) => ({ row: toRow(values), holdNo, isDue }));
  }

  /** Rows that were cancelled or discarded, without their bodies, in seq order. */
  async withdrawnRows(
    afterSeq: bigint,
    limit: number,
  ): Promise<{ row: OutboxRow; state: 'cancelled' | 'discarded' }[]> {
    const columns = OUTBOX_COLUMNS.map((name) =>
      name.startsWith('payload') ? `null as ${name}` : `${name}::text as ${name}`,
    ).join(', ');
    const rows = await this.#query<Record<OutboxColumn, string | null> & { state: 'cancelled' | 'discarded' }>(
      'reading withdrawn rows',
      `select ${columns}, state from only ${this.#table}
       where state in ('cancelled', 'discarded') and seq > $1 order by outbox.seq limit $2`,
      [String(afterSeq), limit],
    );
    return rows.map((row) => ({ row: toRow(row), state: row.state }));
  }

  /** Lets scheduled rows go whose time has come, durably, so that a cancel comes first or is told "too late". */
  async makeDue(which: Parameters<RelayStore['makeDue']>[0]): ReturnType<RelayStore['makeDue']> {
    if (!('only' in which)) {
      const due = await this.#query('looking for due rows', dueRowsSql(this.#schema, '1'), [1, which.without]);
      if (due.length === 0) return { rows: [], placed: [], kept: [] };
    }
    return this.#store.makeDue(which);
  }

  /** The rows that are due, oldest first, without these. */
  dueRows(limit: number, without: readonly string[]): Promise<WaitingRow[]> {
    return this.#query('looking for due rows', dueRowsSql(this.#schema), [limit, without]);
  }

  /** Rows in these states that have a place in their key, in the order of their places, without some. */
  placedRows(states: readonly string[], limit: number | null, without: readonly string[]): Promise<WaitingRow[]> {
    return this.#query('looking for rows with a place', placedRowsSql(this.#schema), [states, limit, without]);
  }

  /** The row of this key that a release would let go first. */
  async headOf({ key, after }: { key: string; after: bigint }, upto: bigint | null): Promise<WaitingRow | undefined> {
    const values = [key, String(after), upto === null ? null : String(upto)];
    return (await this.#query<WaitingRow>('looking for the head of a key', headOfSql(this.#schema), values))[0];
  }

  /** Whether an answer is awaited. */
  get isBusy(): boolean {
    return this.#asked > this.#answered;
  }

  /** Grows with each answer. */
  get answered(): number {
    return this.#answered;
  }

  /** Lets held rows of keys go, durably, from the head of each key (strict order). */
  release(...question: Parameters<RelayStore['release']>): ReturnType<RelayStore['release']> {
    return this.#store.release(...question);
  }

  /** Puts rows that an earlier session had released back behind others of their key. */
  reblock(only?: readonly string[]): Promise<void> {
    return this.#store.reblock(only);
  }

  lastHoldNo(): Promise<bigint> {
    return this.#store.lastHoldNo();
  }

  /** Frees rows that strict order held, when it is not in force any more. */
  unblock(...which: Parameters<RelayStore['unblock']>): ReturnType<RelayStore['unblock']> {
    return this.#store.unblock(...which);
  }

  /** Lends the connection for one piece of work, between the reads. */
  use<T>(work: (client: pg.Client) => Promise<T>): Promise<T> {
    return this.#take(() => work(this.#client));
  }

  /** The database's clock, milliseconds since 1970. */
  async databaseNowMs(): Promise<number> {
    const rows = await this.#query<{ ms: string }>(
      'reading the clock',
      'select floor(extract(epoch from clock_timestamp()) * 1000)::bigint::text as ms',
      [],
    );
    return Number(rows[0]?.ms ?? 0);
  }

  /** Creates the history partitions of the coming days and drops those past retention; never waits long for a lock. */
  async keepHistory(retentionMs: number): Promise<{ partition: string; action: string }[]> {
    return this.#query(
      'keeping history partitions',
      `select partition, action from ${this.#schema}.keep_history(3, $1)`,
      [`${Math.round(retentionMs / 1000)} seconds`],
    );
  }

  async #insertLsn(): Promise<Lsn> {
    const rows = await this.#query<{ lsn: string }>(
      'reading the log position',
      'select pg_current_wal_insert_lsn()::text as lsn',
      [],
    );
    return parseLsn(rows[0]?.lsn ?? '0/0');
  }

  /** Transactions that may have drawn a seq: those with a writer's lock on the table, prepared ones included. */
  async #writers(): Promise<{ transaction: string; description: string }[]> {
    return this.#query(
      'looking for writers',
      `select l.virtualtransaction as transaction,
         coalesce('pid ' || l.pid || ' (' || coalesce(nullif(a.application_name, ''), a.usename, 'unknown') || ', '
           || coalesce(a.state, 'state unknown') || ', transaction open for '
           || coalesce(round(extract(epoch from clock_timestamp() - a.xact_start))::text || ' s', 'unknown') || ')',
           'a prepared transaction') as description
       from pg_locks l left join pg_stat_activity a on a.pid = l.pid
       where l.relation = to_regclass($1) and l.mode = 'RowExclusiveLock' and l.granted
         and l.pid is distinct from pg_backend_pid()
         and l.database = (select oid from pg_database where datname = current_database())`,
      [this.#table],
    );
  }

  async #take<T>(work: () => Promise<T>): Promise<T> {
    this.#asked += 1;
    try {
      return await this.#turns.take(work);
    } finally {
      this.#answered += 1;
    }
  }

  async #query<T extends object>(doing: string, text: string, values: readonly unknown[]): Promise<T[]> {
    try {
      return (await this.#take(() => this.#client.query<T & pg.QueryResultRow>(text, [...values]))).rows;
    } catch (error) {
      throw toDatabaseError(error, doing);
    }
  }
}

function toRow(values: Record<OutboxColumn, string | null>): OutboxRow {
  const text = (slot: number): string | null => values[OUTBOX_COLUMNS[slot] as OutboxColumn];
  const bytes = (slot: number): Buffer | null => {
    const value = text(slot);
    return value === null ? null : Buffer.from(value, 'utf8');
  };
  return rowFromColumns({ text, bytes });
}
