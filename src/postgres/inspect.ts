import type { Client, QueryResultRow } from 'pg';
import { quoteSchema } from './schema-name.js';

/** One row of the relay table. Ages are by the database's clock. */
export interface RelayEntry {
  name: string;
  slot: string | null;
  source: string;
  epoch: string;
  holder: string | null;
  holderSince: Date | null;
  checkpointLsn: string | null;
  checkpointAt: Date | null;
  checkpointAgeMs: number | null;
  systemIdentifier: string | null;
  timeline: number | null;
  brokerCluster: string | null;
  brokerVhost: string | null;
  passUptoSeq: string | null;
  insertThenDeleteSeen: boolean;
}

/** A replication slot as pg_replication_slots shows it, whichever database owns it. */
export interface SlotEntry {
  name: string;
  plugin: string | null;
  database: string | null;
  active: boolean;
  activePid: number | null;
  walStatus: string | null;
  restartLsn: string | null;
  confirmedFlushLsn: string | null;
  /** WAL that the server keeps for it. */
  keptWalBytes: number | null;
  /** WAL that its reader has not confirmed. */
  lagBytes: number | null;
  /** WAL that may still be written before the slot is lost; null where there is no limit. */
  safeWalBytes: number | null;
  invalidationReason: string | null;
  /** Null before PostgreSQL 17. */
  failover: boolean | null;
}

/** Every relay that is recorded for the schema. */
export async function readRelays(client: Client, schema: string): Promise<RelayEntry[]> {
  return select<RelayEntry>(
    client,
    `select name, slot, source, epoch::text as epoch, holder, holder_since as "holderSince",
       checkpoint_lsn::text as "checkpointLsn", checkpoint_at as "checkpointAt",
       (extract(epoch from clock_timestamp() - checkpoint_at) * 1000)::float8 as "checkpointAgeMs",
       system_identifier::text as "systemIdentifier", timeline, broker_cluster as "brokerCluster",
       broker_vhost as "brokerVhost", pass_upto_seq::text as "passUptoSeq",
       insert_then_delete_seen as "insertThenDeleteSeen"
     from ${quoteSchema(schema)}.relay order by name`,
  );
}

/** The installation's uuid, a part of the lock queue's name. */
export async function readInstallation(client: Client, schema: string): Promise<string | undefined> {
  const rows = await select<{ id: string }>(client, `select id::text as id from ${quoteSchema(schema)}.installation`);
  return rows[0]?.id;
}

/** The slot of this name, also when another database owns it; undefined if there is none. */
export async function readSlot(client: Client, name: string): Promise<SlotEntry | undefined> {
  const rows = await select<SlotEntry>(
    client,
    `select s.slot_name as name, s.plugin, s.database, s.active, s.active_pid as "activePid",
       s.wal_status as "walStatus", s.restart_lsn::text as "restartLsn",
       s.confirmed_flush_lsn::text as "confirmedFlushLsn",
       pg_wal_lsn_diff(here.lsn, s.restart_lsn)::float8 as "keptWalBytes",
       greatest(0, pg_wal_lsn_diff(here.lsn, s.confirmed_flush_lsn))::float8 as "lagBytes",
       s.safe_wal_size::float8 as "safeWalBytes",
       to_jsonb(s) ->> 'invalidation_reason' as "invalidationReason",
       (to_jsonb(s) ->> 'failover')::boolean as failover
     from pg_replication_slots s,
       (select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end as lsn) here
     where s.slot_name = $1`,
    [name],
  );
  return rows[0];
}

/** Rows of a query, as the type that the query was written for. */
export async function select<T extends object>(client: Client, sql: string, values: unknown[] = []): Promise<T[]> {
  const { rows } = await client.query<T & QueryResultRow>(sql, values);
  return rows;
}
