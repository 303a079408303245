import type pg from 'pg';
import { WaybillError } from '../core/errors.js';
import { parseLsn, type Lsn } from '../core/lsn.js';
import { pause, type Clock } from '../runtime/clock.js';
import { closeQuietly, connectSql, type DatabaseEndpoint } from './connect.js';
import { sqlState, toDatabaseError } from './errors.js';

/** A row of pg_replication_slots, with what the server's version can tell. */
export interface SlotState {
  database: string | null;
  plugin: string | null;
  active: boolean;
  activePid: number | null;
  walStatus: string | null;
  confirmedFlushLsn: Lsn | null;
  /** Null where the version does not know it, or the slot is fine. */
  invalidationReason: string | null;
  /** True for a slot that follows a failover (PostgreSQL 17 and later). */
  failover: boolean;
}

/**
 * The relay's replication slot. What is done about a slot is decided from pg_replication_slots, never from an SQLSTATE
 * alone: another database's slot of the same name gives the same codes, and must never be dropped.
 */
export class Slot {
  constructor(
    readonly name: string,
    private readonly client: pg.Client,
  ) {}

  async inspect(): Promise<SlotState | undefined> {
    const rows = await this.#query<Record<string, unknown>>(
      'looking at the replication slot',
      'select to_jsonb(s) as slot, s.confirmed_flush_lsn::text as confirmed from pg_replication_slots s where slot_name = $1',
      [this.name],
    );
    const row = rows[0] as { slot: Record<string, unknown>; confirmed: string | null } | undefined;
    if (!row) return undefined;
    const text = (name: string): string | null => (typeof row.slot[name] === 'string' ? row.slot[name] : null);
    return {
      database: text('database'),
      plugin: text('plugin'),
      active: row.slot['active'] === true,
      activePid: typeof row.slot['active_pid'] === 'number' ? row.slot['active_pid'] : null,
      walStatus: text('wal_status'),
      confirmedFlushLsn: row.confirmed === null ? null : parseLsn(row.confirmed),
      invalidationReason: text('invalidation_reason') ?? (row.slot['conflicting'] === true ? 'conflicting' : null),
      failover: row.slot['failover'] === true,
    };
  }

  /** How far the server has written. A slot beyond that is ahead of the server. */
  async insertLsn(): Promise<Lsn> {
    const rows = await this.#query<{ lsn: string }>(
      'reading the log position',
      'select pg_current_wal_insert_lsn()::text as lsn',
      [],
    );
    return parseLsn(rows[0]?.lsn ?? '0/0');
  }

  /** Throws WAYBILL_SLOT_TAKEN when the name is not ours to use. */
  assertOurs(slot: SlotState, database: string): void {
    if (slot.database === database && slot.plugin === 'pgoutput') return;
    throw new WaybillError(
      'WAYBILL_SLOT_TAKEN',
      `replication slot ${this.name} belongs to database ${slot.database ?? '(none)'}, plugin ${slot.plugin ?? '(physical)'}`,
      {
        hint: 'Slot names are server-wide. Give this relay another name (relay.name), or drop that slot by hand if nobody needs it.',
      },
    );
  }

  /** Drops the slot; call only for one that `assertOurs` accepted and that is not active. */
  async drop(): Promise<void> {
    try {
      await this.client.query('select pg_drop_replication_slot($1)', [this.name]);
    } catch (error) {
      if (sqlState(error) === '42704') return;
      throw toDatabaseError(error, `dropping replication slot ${this.name}`);
    }
  }

  /**
   * Creates the slot, which waits for every transaction that runs now. It does so on a connection of its own without a
   * lock timeout, while this one says what it waits for. An abort cancels the wait.
   */
  async create(
    endpoint: DatabaseEndpoint,
    options: { serverVersion: number; clock: Clock; signal: AbortSignal; log: (waitingFor: string) => void },
  ): Promise<void> {
    const creator = await connectSql(endpoint, 'waybill slot creation', () => undefined, {
      lockTimeoutMs: 0,
      statementTimeoutMs: 0,
    });
    const done = new AbortController();
    try {
      const pid = (await creator.query<{ pid: number }>('select pg_backend_pid() as pid')).rows[0]?.pid ?? 0;
      const failover = options.serverVersion >= 170000 ? ', failover => true' : '';
      const creating = creator
        .query(`select pg_create_logical_replication_slot($1, 'pgoutput'${failover})`, [this.name])
        .finally(() => done.abort());
      await Promise.all([creating, this.#watch(pid, options, done.signal)]);
    } catch (error) {
      throw toDatabaseError(error, `creating replication slot ${this.name}`);
    } finally {
      closeQuietly(creator);
    }
  }

  async #watch(
    pid: number,
    options: { clock: Clock; signal: AbortSignal; log: (waitingFor: string) => void },
    done: AbortSignal,
  ): Promise<void> {
    let waitMs = 2_000;
    const created = (): boolean => done.aborted;
    while (!created()) {
      await pause(options.clock, waitMs, AbortSignal.any([done, options.signal]));
      if (created()) return;
      if (options.signal.aborted) {
        await this.#query('cancelling slot creation', 'select pg_cancel_backend($1)', [pid]);
        return;
      }
      const blockers = await this.#query<{ description: string }>(
        'looking for what slot creation waits for',
        `select 'pid ' || pid || ' (' || coalesce(nullif(application_name, ''), usename, 'unknown') || ', '
           || coalesce(state, 'state unknown') || ', transaction open for '
           || coalesce(round(extract(epoch from clock_timestamp() - xact_start))::text || ' s', 'unknown') || ')' as description
         from pg_stat_activity where pid = any(pg_blocking_pids($1))`,
        [pid],
      );
      options.log(blockers.map((blocker) => blocker.description).join('; ') || 'transactions that were running');
      waitMs = 10_000;
    }
  }

  async #query<T extends object>(doing: string, text: string, values: readonly unknown[]): Promise<T[]> {
    try {
      return (await this.client.query<T & pg.QueryResultRow>(text, [...values])).rows;
    } catch (error) {
      throw toDatabaseError(error, doing);
    }
  }
}
