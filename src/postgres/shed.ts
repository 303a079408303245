import type pg from 'pg';
import { quoteIdentifier } from '../core/identity.js';
import { toDatabaseError } from './errors.js';

/** What a slot that nobody reads keeps, and whether it may be given up. */
export interface IdleSlot {
  /** WAL that the server keeps for it. */
  keptBytes: number;
  epoch: string;
  /** Changes whenever a relay settles, also in a table pass. */
  settledAt: string | null;
  insertThenDeleteSeen: boolean;
}

/** The relay's slot if nobody reads it, else undefined. */
export async function inspectIdleSlot(client: pg.Client, schema: string, relay: string): Promise<IdleSlot | undefined> {
  try {
    const result = await client.query<{ kept: string; epoch: string; settled: string | null; seen: boolean }>(
      `select coalesce(pg_wal_lsn_diff(pg_current_wal_insert_lsn(), s.restart_lsn), 0)::text as kept,
         r.epoch::text as epoch, r.checkpoint_at::text as settled, r.insert_then_delete_seen as seen
       from ${quoteIdentifier(schema)}.relay r
       join pg_replication_slots s on s.slot_name = r.slot and s.database = current_database() and s.plugin = 'pgoutput'
       where r.name = $1 and r.source = 'wal' and not s.active`,
      [relay],
    );
    const row = result.rows[0];
    return (
      row && { keptBytes: Number(row.kept), epoch: row.epoch, settledAt: row.settled, insertThenDeleteSeen: row.seen }
    );
  } catch (error) {
    throw toDatabaseError(error, 'looking at the WAL that the slot keeps');
  }
}

/** WAL that the server keeps for the relay's slot, bytes; 0 when there is none. */
export async function keptWalBytes(client: pg.Client, slot: string): Promise<number> {
  try {
    const result = await client.query<{ kept: string }>(
      `select coalesce(pg_wal_lsn_diff(pg_current_wal_insert_lsn(), restart_lsn), 0)::text as kept
       from pg_replication_slots where slot_name = $1`,
      [slot],
    );
    return Number(result.rows[0]?.kept ?? 0);
  } catch (error) {
    throw toDatabaseError(error, 'looking at the WAL that the slot keeps');
  }
}

/**
 * Gives the slot up, so that the server can remove its WAL: notes first, durably, that a table pass is due, then drops
 * it. Only under the epoch that was seen: false when somebody has taken the relay over meanwhile. A relay that is just
 * starting loses its epoch by this and starts again.
 */
export async function shedSlot(client: pg.Client, schema: string, relay: string, epoch: string): Promise<boolean> {
  try {
    const result = await client.query<{ slot: string }>(
      `update ${quoteIdentifier(schema)}.relay
       set epoch = epoch + 1, checkpoint_lsn = null, checkpoint_at = null, pass_after_seq = null, pass_upto_seq = null
       where name = $1 and epoch = $2 returning slot`,
      [relay, epoch],
    );
    const slot = result.rows[0]?.slot;
    if (slot === undefined) return false;
    await client.query('select pg_drop_replication_slot($1)', [slot]);
    return true;
  } catch (error) {
    throw toDatabaseError(error, 'giving up the replication slot');
  }
}
