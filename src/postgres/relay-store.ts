import type pg from 'pg';
import { WaybillError } from '../core/errors.js';
import { quoteIdentifier } from '../core/identity.js';
import { formatLsn, parseLsn, type Lsn } from '../core/lsn.js';
import type { OutboxRow } from '../core/message.js';
import { Turns } from '../runtime/turns.js';
import { sqlState, toDatabaseError } from './errors.js';
import { foreignFunctions, silencersSql, triggersOfSql, type TriggerEvent } from './own-triggers.js';
import {
  awaiting,
  heldKeysSql,
  holdSql,
  lastHoldNoSql,
  lockHoldersSql,
  makeDueSql,
  placeSql,
  reblockSql,
  recordGoneSql,
  releaseSql,
  settleSql,
  unblockSql,
  writeBackSql,
  writeBackValues,
  type Choice,
  type HistoryMode,
} from './settle-sql.js';

interface RowId {
  seq: string;
  id: string;
}

interface FoundRow {
  seq: string;
  state: string;
  isPlaced: boolean;
  isDue: boolean;
}

interface SettlementRow {
  row: RowId;
  exchange: string;
  routingKey: string;
  outcome: string;
  floorLsn: Lsn | null;
}

interface HoldRow {
  row: OutboxRow;
  state: string;
  attempts: number;
  error: string | null;
  delayMs: number | null;
  holdNo: bigint | null;
  lane: string | null;
}

/** A row that was due or released, and the octets of its body. */
interface DueRow {
  seq: string;
  bytes: number;
}

interface WaitingRow {
  seq: string;
  id: string;
  key: string | null;
  type: string;
}

/** A row that is as it was, although its statement went well. */
interface Kept {
  row: WaitingRow;
  refusal: Silence;
}

/** What is known when a row is as it was: which triggers may have returned NULL. */
interface Silence {
  sqlState: null;
  table: string;
  trigger?: string;
}

/** Rows that a statement has left as they are, by seq: not found or locked, or found and there all the same. */
interface NotStored {
  missing: Set<string>;
  kept: Map<string, Silence>;
}

/** The same as it comes from the server. */
interface Left {
  fenced: boolean;
  missing: string[] | null;
  kept: string[] | null;
}

/** The first rows without some, or only these. */
type WhichRows = { limit: number; without: readonly string[] } | { only: readonly string[] };

/** A transaction that has locked rows: of a session, or a prepared one. */
interface LockHolder {
  pid: number | null;
  user: string | null;
  application: string | null;
  prepared: string | null;
}

/**
 * The relay's writes, each fenced by the epoch: settle, hold, checkpoint, table pass marks. One connection, one piece of
 * work at a time. The session's synchronous_commit is off: losing the delete of a confirmed row in a crash repeats the row,
 * because it comes back with its checkpoint. Everything else commits durably, because there a lost commit loses a row
 * that the slot has already passed. O6: nothing is reported before the statement here has returned.
 */
export class RelayStore {
  readonly #client: pg.Client;
  readonly #schema: string;
  readonly #relay: string;
  readonly #epoch: string;
  readonly #history: HistoryMode;
  readonly #strict: boolean;
  readonly #turns = new Turns();
  #mayNotLookBack = false;

  constructor(
    client: pg.Client,
    options: { schema: string; relay: string; epoch: string; history: HistoryMode; ordering: 'pipelined' | 'strict' },
  ) {
    this.#client = client;
    this.#schema = quoteIdentifier(options.schema);
    this.#relay = options.relay;
    this.#epoch = options.epoch;
    this.#history = options.history;
    this.#strict = options.ordering === 'strict';
  }

  async settle(
    rows: readonly SettlementRow[],
    candidateLsn: Lsn | null,
    durable: boolean,
  ): Promise<{ checkpointLsn: Lsn | null } & NotStored> {
    const values = [
      this.#relay,
      this.#epoch,
      rows.map((each) => each.row.seq),
      rows.map((each) => each.row.id),
      rows.map((each) => (each.floorLsn === null ? null : formatLsn(each.floorLsn))),
      rows.map((each) => each.exchange),
      rows.map((each) => each.routingKey),
      rows.map((each) => each.outcome),
      candidateLsn === null ? null : formatLsn(candidateLsn),
    ];
    const result = await this.#run('settling rows', () =>
      this.#client.query<Left & { checkpoint: string | null }>(
        settleSql(this.#schema, this.#history, durable ? 'on' : 'off'),
        values,
      ),
    );
    const answer = this.#fenced(result.rows[0]);
    return {
      checkpointLsn: answer.checkpoint === null ? null : parseLsn(answer.checkpoint),
      ...(await this.#notStored(answer, 'delete')),
    };
  }

  async hold(holds: readonly HoldRow[]): Promise<NotStored> {
    const result = await this.#run('holding rows', () =>
      this.#client.query<Left>(holdSql(this.#schema), [
        this.#relay,
        this.#epoch,
        holds.map((each) => each.row.seq),
        holds.map((each) => each.row.id),
        holds.map((each) => each.state),
        holds.map((each) => each.attempts),
        holds.map((each) => each.error),
        holds.map((each) => each.delayMs),
        holds.map((each) => (each.holdNo === null ? null : String(each.holdNo))),
        holds.map((each) => each.lane),
      ]),
    );
    return this.#notStored(this.#fenced(result.rows[0]), 'update');
  }

  /** Gives held rows new places; see placeSql. */
  async place(rows: readonly { row: RowId; holdNo: bigint }[]): Promise<Set<string>> {
    const result = await this.#run('giving held rows their places', () =>
      this.#client.query<{ fenced: boolean; missing: string[] | null }>(placeSql(this.#schema), [
        this.#relay,
        this.#epoch,
        rows.map((each) => each.row.seq),
        rows.map((each) => each.row.id),
        rows.map((each) => String(each.holdNo)),
      ]),
    );
    return new Set(this.#fenced(result.rows[0]).missing ?? []);
  }

  /** False: its id is in the table already. A silence: it is not there, although nothing was said against it. */
  async writeBack(hold: HoldRow): Promise<boolean | Silence> {
    const result = await this.#run('writing a row back', () =>
      this.#client.query<{ fenced: boolean; written: boolean; present: boolean }>(writeBackSql(this.#schema), [
        this.#relay,
        this.#epoch,
        ...writeBackValues(hold),
      ]),
    );
    const { written, present } = this.#fenced(result.rows[0]);
    return written || present ? written : this.#silence('insert');
  }

  async whereabouts(
    rows: readonly { seq: string; id: string; xid: number | null }[],
  ): Promise<Map<string, 'present' | 'undecided' | 'gone'>> {
    // Two statements in this order: a transaction seen as committed by the first is visible to the second.
    const running = await this.#run('looking up transactions', async () => {
      const xids = [...new Set(rows.flatMap((row) => (row.xid === null ? [] : [String(row.xid)])))];
      const result = await this.#client.query<{ xid: string }>(
        // The log carries 32 bits of a transaction id; the rest comes from the newest one.
        `with newest as (select pg_snapshot_xmax(pg_current_snapshot())::text::numeric as xmax),
         full_xid as (
           select x.xid, (xmax - mod(xmax, 4294967296) + x.xid
             - case when mod(xmax, 4294967296) < x.xid then 4294967296 else 0 end) as xid8
           from unnest($1::bigint[]) as x (xid), newest)
         select xid::text from full_xid
         where xid8 > 0 and pg_xact_status(xid8::text::xid8) = 'in progress'`,
        [xids],
      );
      return new Set(result.rows.map((row) => row.xid));
    });
    const present = await this.#present(rows);
    return new Map(
      rows.map((row) => [
        row.seq,
        present.has(row.seq) ? 'present' : running.has(String(row.xid)) ? 'undecided' : 'gone',
      ]),
    );
  }

  /** By the seq asked for. By id: a row that was written back has another seq, and is there all the same. */
  async states(rows: readonly RowId[]): Promise<Map<string, FoundRow>> {
    const result = await this.#run('looking up rows', () =>
      this.#client.query<FoundRow & { asked: string }>(
        `select i.seq::text as asked, o.seq::text as seq, o.state, o.hold_no is not null as "isPlaced",
           o.state = 'ready' and o.next_attempt_at is not null as "isDue"
         from only ${this.#schema}.outbox o
         join unnest($1::bigint[], $2::uuid[]) as i (seq, id) on i.id = o.id
         where o.id = any($2::uuid[])`,
        [rows.map((row) => row.seq), rows.map((row) => row.id)],
      ),
    );
    return new Map(result.rows.map(({ asked, ...found }) => [asked, found]));
  }

  /**
   * The seqs of rows that the history has under the same seq and id: an earlier session has settled them. Undefined without
   * a history, and where the role may not look (sql/roles.sql was not applied again after an upgrade).
   */
  async settledBefore(rows: readonly RowId[]): Promise<Set<string> | undefined> {
    if (this.#history === 'off' || this.#mayNotLookBack) return undefined;
    if (rows.length === 0) return new Set();
    try {
      const result = await this.#turns.take(() =>
        this.#client.query<{ seq: string }>(
          `select h.seq::text as seq from ${this.#schema}.outbox_history h
           join unnest($1::bigint[], $2::uuid[]) as i (seq, id) on i.id = h.id and i.seq = h.seq
           where h.id = any($2::uuid[])`,
          [rows.map((row) => row.seq), rows.map((row) => row.id)],
        ),
      );
      return new Set(result.rows.map((row) => row.seq));
    } catch (error) {
      if (sqlState(error) !== '42501') throw toDatabaseError(error, 'looking up the history');
      this.#mayNotLookBack = true;
      return undefined;
    }
  }

  /** The seqs of rows that are there under the same seq and id, where a delete would find them. */
  async #present(rows: readonly RowId[]): Promise<Set<string>> {
    const result = await this.#run('looking up rows', () =>
      this.#client.query<{ seq: string }>(
        `select o.seq::text as seq from only ${this.#schema}.outbox o
         join unnest($1::bigint[], $2::uuid[]) as i (seq, id) on i.seq = o.seq and i.id = o.id
         where o.seq = any($1::bigint[])`,
        [rows.map((row) => row.seq), rows.map((row) => row.id)],
      ),
    );
    return new Set(result.rows.map((row) => row.seq));
  }

  /**
   * Who has locked these rows. A row names its locker; where it names several at once (shared locks), everybody is
   * given who has locked rows of the table. Empty where the role may not look.
   */
  async lockHolders(rows: readonly { seq: string }[]): Promise<LockHolder[]> {
    try {
      const result = await this.#turns.take(() =>
        this.#client.query<LockHolder & { exact: boolean }>(lockHoldersSql(this.#schema), [rows.map(({ seq }) => seq)]),
      );
      const isKnown = result.rows.some(({ exact }) => exact);
      return result.rows.flatMap(({ exact, ...holder }) => (exact || !isKnown ? holder : []));
    } catch (error) {
      if (sqlState(error) !== '42501') throw toDatabaseError(error, 'looking for whoever has locked rows');
      return [];
    }
  }

  async noteInsertThenDelete(): Promise<void> {
    await this.#update('noting insert-then-delete', 'insert_then_delete_seen = true', []);
  }

  /** A table pass is due: nothing up to `afterSeq` can come from the slot that is about to be created. */
  async beginPass(afterSeq: bigint): Promise<void> {
    await this.#update(
      'noting the table pass',
      'checkpoint_lsn = null, checkpoint_at = null, pass_after_seq = $3, pass_upto_seq = null',
      [String(afterSeq)],
    );
  }

  async limitPass(uptoSeq: bigint): Promise<void> {
    await this.#update('noting the table pass', 'pass_upto_seq = $3', [String(uptoSeq)]);
  }

  async endPass(checkpointLsn: Lsn): Promise<void> {
    await this.#update(
      'ending the table pass',
      'checkpoint_lsn = $3, checkpoint_at = clock_timestamp(), pass_after_seq = null, pass_upto_seq = null',
      [formatLsn(checkpointLsn)],
    );
  }

  /** The slot works on this timeline: a later change of it means another failover. */
  async noteTimeline(timeline: number): Promise<void> {
    await this.#update('noting the timeline', 'timeline = $3', [String(timeline)]);
  }

  /**
   * Commits with a local flush, so that everything before it in the log is on disk, also on an idle server. No standby
   * is waited for: the stream does not wait for one either, and one that is missing must not stop the settling.
   */
  async flush(): Promise<void> {
    await this.#update('flushing the log', 'holder = holder', [], 'local');
  }

  /** Lets scheduled rows go whose time has come, oldest first; see makeDueSql. */
  async makeDue(which: WhichRows): Promise<{ rows: DueRow[]; placed: { key: string; order: bigint }[]; kept: Kept[] }> {
    const { choice, limit, list } = chosen(which);
    const result = await this.#run('making rows due', () =>
      this.#client.query<WaitingRow & { bytes: number; order: string | null; kept: boolean }>(
        makeDueSql(this.#schema, choice),
        [this.#relay, this.#epoch, limit, this.#strict, ...list],
      ),
    );
    const rows: DueRow[] = [];
    const placed: { key: string; order: bigint }[] = [];
    for (const { seq, bytes, key, order, kept } of result.rows) {
      if (kept) continue;
      if (key !== null && order !== null) placed.push({ key, order: BigInt(order) });
      else rows.push({ seq, bytes });
    }
    return { rows, placed, kept: await this.#silenced(result.rows.filter(({ kept }) => kept)) };
  }

  /** Lets held rows go, from the head of each key; see releaseSql. */
  async release(
    keys: readonly { key: string; after: bigint }[],
    upto: bigint | null,
    rowsPerKey: number,
    without: readonly string[],
  ): Promise<Map<string, { rows: DueRow[]; remains: boolean; isLocked: boolean; kept: Kept | null }>> {
    const result = await this.#run('releasing held rows', () =>
      this.#client.query<{
        fenced: boolean;
        key: string | null;
        seq: string | null;
        id: string;
        type: string;
        bytes: number;
        kept: boolean;
        remains: boolean;
        locked: boolean;
      }>(releaseSql(this.#schema), [
        this.#relay,
        this.#epoch,
        keys.map((each) => each.key),
        keys.map((each) => String(each.after)),
        rowsPerKey,
        upto === null ? null : String(upto),
        without,
      ]),
    );
    this.#fenced(result.rows[0]);
    const answers = new Map<string, { rows: DueRow[]; remains: boolean; isLocked: boolean; kept: Kept | null }>();
    for (const { key, seq, id, type, bytes, kept, remains, locked } of result.rows) {
      if (key === null) continue;
      const answer = answers.get(key) ?? { rows: [], remains, isLocked: locked, kept: null };
      answers.set(key, answer);
      // What is behind one that is as it was stays where it is, whatever the statement has made of it.
      if (seq === null || answer.kept) continue;
      if (kept) {
        const [row] = await this.#silenced([{ seq, id, key, type }]);
        Object.assign(answer, { remains: true, isLocked: true, kept: row ?? null });
      } else answer.rows.push({ seq, bytes });
    }
    return answers;
  }

  /**
   * At the start of a session with strict order: what an earlier session had let go is `blocked` again, because nothing
   * is in flight yet. All such rows, or only these.
   */
  async reblock(only: readonly string[] | null = null): Promise<void> {
    if (only === null && !(await this.#placed('ready'))) return;
    const back = await this.#run('putting released rows back', () =>
      this.#client.query<{ fenced: boolean }>(reblockSql(this.#schema), [this.#relay, this.#epoch, only]),
    );
    this.#fenced(back.rows[0]);
  }

  /** The highest number that a held row has. */
  async lastHoldNo(): Promise<bigint> {
    const result = await this.#run('reading the places of held rows', () =>
      this.#client.query<{ last: string }>(lastHoldNoSql(this.#schema)),
    );
    return BigInt(result.rows[0]?.last ?? 0);
  }

  /** The keys that the table holds, after `after` in the order of the database; fewer than `limit` are the last. */
  async heldKeys(after: string | null, limit: number): Promise<string[]> {
    const result = await this.#run('reading the held keys', () =>
      this.#client.query<{ key: string }>(heldKeysSql(this.#schema), [after, limit]),
    );
    return result.rows.map(({ key }) => key);
  }

  /** Frees rows that strict order held, when it is not in force any more. Gives how many, and those that stay. */
  async unblock(which: WhichRows): Promise<{ rows: number; kept: Kept[] }> {
    const { choice, limit, list } = chosen(which);
    if (choice !== 'only' && !(await this.#placed('ready', 'blocked'))) return { rows: 0, kept: [] };
    const result = await this.#run('freeing blocked rows', () =>
      this.#client.query<{ fenced: boolean; rows: number; kept: WaitingRow[] | null }>(
        unblockSql(this.#schema, choice),
        [this.#relay, this.#epoch, limit, ...list],
      ),
    );
    const { rows, kept } = this.#fenced(result.rows[0]);
    return { rows, kept: await this.#silenced(kept ?? []) };
  }

  /**
   * Whether there is a row with a place in its key in one of these states. Why first: a statement under the epoch takes
   * part in the log, and its commit waits for a synchronous standby that may be away (fact 53).
   */
  async #placed(...states: string[]): Promise<boolean> {
    const result = await this.#run('looking for rows with a place', () =>
      this.#client.query(
        `select from only ${this.#schema}.outbox where hold_no is not null and state = any($1) limit 1`,
        [states],
      ),
    );
    return result.rows.length > 0;
  }

  /** Keeps the trace of published rows that their own application had deleted; their bodies are not known any more. */
  async recordGone(rows: readonly (SettlementRow & { row: OutboxRow })[]): Promise<void> {
    if (this.#history === 'off' || rows.length === 0) return;
    const result = await this.#run('recording rows that are gone', () =>
      this.#client.query<{ fenced: boolean }>(recordGoneSql(this.#schema), [
        this.#relay,
        this.#epoch,
        rows.map((each) => each.outcome),
        rows.map((each) => each.row.id),
        rows.map((each) => each.row.seq),
        rows.map((each) => each.row.type),
        rows.map((each) => each.row.key),
        rows.map((each) => each.row.schemaVersion),
        rows.map((each) => each.exchange),
        rows.map((each) => each.routingKey),
        rows.map((each) => each.row.attempts),
        rows.map((each) => each.row.createdAt),
        rows.map((each) => each.row.occurredAt),
      ]),
    );
    this.#fenced(result.rows[0]);
  }

  async #update(
    doing: string,
    assignments: string,
    values: readonly string[],
    durability: 'on' | 'local' = 'on',
  ): Promise<void> {
    const result = await this.#run(doing, () =>
      this.#client.query(
        `update ${this.#schema}.relay set ${assignments} where name = $1 and epoch = $2 and ${awaiting(durability)}`,
        [this.#relay, this.#epoch, ...values],
      ),
    );
    this.#fenced(result.rowCount === 1 ? { fenced: true } : undefined);
  }

  #fenced<T extends { fenced: boolean }>(answer: T | undefined): T {
    if (answer?.fenced) return answer;
    throw new WaybillError('WAYBILL_EPOCH_LOST', `another process has taken over relay ${this.#relay}`, {
      hint: 'Nothing to do: this process goes back to standing by. `waybill status` shows the holder.',
    });
  }

  /** Rows that are as they were, although they were locked and the statement went well. */
  async #silenced(rows: readonly WaitingRow[]): Promise<Kept[]> {
    if (rows.length === 0) return [];
    const refusal = await this.#silence('update');
    return rows.map(({ seq, id, key, type }) => ({ row: { seq, id, key, type }, refusal }));
  }

  async #notStored({ missing, kept }: Left, event: 'update' | 'delete'): Promise<NotStored> {
    const refusal = kept === null ? null : await this.#silence(event);
    return { missing: new Set(missing ?? []), kept: new Map((kept ?? []).map((seq) => [seq, refusal as Silence])) };
  }

  async #silence(event: TriggerEvent): Promise<Silence> {
    const trigger = await this.#triggers(silencersSql(this.#schema, event), []);
    return { sqlState: null, table: 'outbox', ...(trigger === undefined ? {} : { trigger }) };
  }

  /** Names of triggers; undefined when there are none, or none can be seen. */
  async #triggers(sql: string, values: unknown[]): Promise<string | undefined> {
    try {
      const result = await this.#turns.take(() => this.#client.query<{ names: string | null }>(sql, values));
      return result.rows[0]?.names ?? undefined;
    } catch {
      // Why quietly: it would only have said more about another failure; one of the connection is told by the next.
      return undefined;
    }
  }

  async #run<T>(doing: string, statement: () => Promise<T>): Promise<T> {
    // Why in turns: several parts of the relay write here, and the client takes one statement at a time.
    try {
      return await this.#turns.take(statement);
    } catch (error) {
      const functions = foreignFunctions(error);
      const trigger = functions.length > 0 ? await this.#triggers(triggersOfSql(this.#schema), [functions]) : undefined;
      // On the server's own error, where whoever asks what refused a row finds it beside the constraint.
      if (trigger !== undefined && typeof error === 'object') Object.assign(error as object, { trigger });
      throw toDatabaseError(error, doing);
    }
  }
}

/** How a statement that takes the first rows without some, or only these, is asked for; `list` are its last parameters. */
function chosen(which: WhichRows): { choice: Choice; limit: number | null; list: (readonly string[])[] } {
  if ('only' in which) return { choice: 'only', limit: null, list: [which.only] };
  const { limit, without } = which;
  return without.length === 0 ? { choice: 'any', limit, list: [] } : { choice: 'without', limit, list: [without] };
}
