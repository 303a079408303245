import type pg from 'pg';
import { WaybillError } from '../core/errors.js';
import { quoteIdentifier } from '../core/identity.js';
import { parseLsn, type Lsn } from '../core/lsn.js';
import { toDatabaseError } from './errors.js';
import { STREAM_COLUMNS } from './outbox-row.js';

/** The row of waybill.relay, and what the start of a session needs to know of the server. */
export interface RelayRecord {
  name: string;
  slot: string | null;
  source: string;
  epoch: string;
  holder: string | null;
  checkpointLsn: Lsn | null;
  systemIdentifier: string | null;
  timeline: number | null;
  brokerCluster: string | null;
  brokerVhost: string | null;
  passAfterSeq: bigint | null;
  passUptoSeq: bigint | null;
  insertThenDeleteSeen: boolean;
}

export interface ServerFacts {
  database: string;
  /** As server_version_num: 150018. */
  version: number;
  walLevel: string;
  inRecovery: boolean;
  walSenderTimeoutMs: number;
}

export async function serverFacts(client: pg.Client): Promise<ServerFacts> {
  const row = await one<Record<string, string | boolean | null>>(
    client,
    'reading server settings',
    `select current_database() as database, current_setting('server_version_num') as version,
       current_setting('wal_level') as wal_level, pg_is_in_recovery() as in_recovery,
       (select setting from pg_settings where name = 'wal_sender_timeout') as wal_sender_timeout`,
    [],
  );
  return {
    database: String(row?.['database']),
    version: Number(row?.['version']),
    walLevel: String(row?.['wal_level']),
    inRecovery: row?.['in_recovery'] === true,
    walSenderTimeoutMs: Number(row?.['wal_sender_timeout'] ?? 60_000),
  };
}

export async function installationId(client: pg.Client, schema: string): Promise<string> {
  const row = await one<{ id: string }>(
    client,
    'reading the installation',
    `select id::text as id from ${quoteIdentifier(schema)}.installation`,
    [],
  );
  return row?.id ?? '';
}

export async function loadRelays(client: pg.Client, schema: string): Promise<RelayRecord[]> {
  try {
    const result = await client.query<Record<string, unknown>>(
      `select name, slot, source, epoch::text as epoch, holder, checkpoint_lsn::text as checkpoint_lsn,
         system_identifier::text as system_identifier, timeline, broker_cluster, broker_vhost,
         pass_after_seq::text as pass_after_seq, pass_upto_seq::text as pass_upto_seq, insert_then_delete_seen
       from ${quoteIdentifier(schema)}.relay order by name`,
    );
    return result.rows.map((row) => {
      const text = (name: string): string | null => (typeof row[name] === 'string' ? row[name] : null);
      const lsn = text('checkpoint_lsn');
      const after = text('pass_after_seq');
      const upto = text('pass_upto_seq');
      return {
        name: String(row['name']),
        slot: text('slot'),
        source: text('source') ?? 'wal',
        epoch: text('epoch') ?? '0',
        holder: text('holder'),
        checkpointLsn: lsn === null ? null : parseLsn(lsn),
        systemIdentifier: text('system_identifier'),
        timeline: typeof row['timeline'] === 'number' ? row['timeline'] : null,
        brokerCluster: text('broker_cluster'),
        brokerVhost: text('broker_vhost'),
        passAfterSeq: after === null ? null : BigInt(after),
        passUptoSeq: upto === null ? null : BigInt(upto),
        insertThenDeleteSeen: row['insert_then_delete_seen'] === true,
      };
    });
  } catch (error) {
    throw toDatabaseError(error, 'reading the relay state');
  }
}

/**
 * Takes the relay over: the epoch grows, so that whoever held it settles nothing more. Stores who holds it and which
 * servers it works with; another timeline is stored only when the slot has followed it. Without
 * replication there is no position to keep. Gives the new epoch, or undefined
 * when another process has recorded other servers meanwhile.
 */
export async function takeEpoch(
  client: pg.Client,
  schema: string,
  relay: {
    name: string;
    slot: string;
    source: 'wal' | 'table';
    ordering: 'pipelined' | 'strict';
    holder: string;
    systemIdentifier: string;
    timeline: number;
    brokerCluster: string;
    brokerVhost: string;
  },
): Promise<string | undefined> {
  const row = await one<{ epoch: string }>(
    client,
    'taking over the relay',
    `insert into ${quoteIdentifier(schema)}.relay as r
       (name, slot, epoch, holder, holder_since, system_identifier, timeline, broker_cluster, broker_vhost, source,
        ordering)
     values ($1, $2, 1, $3, clock_timestamp(), $4, $5, $6, $7, $8, $9)
     on conflict (name) do update set slot = excluded.slot, epoch = r.epoch + 1, source = excluded.source,
       ordering = excluded.ordering,
       checkpoint_lsn = case when excluded.source = 'wal' then r.checkpoint_lsn end, holder = excluded.holder,
       holder_since = excluded.holder_since, system_identifier = excluded.system_identifier,
       timeline = coalesce(r.timeline, excluded.timeline), broker_cluster = excluded.broker_cluster,
       broker_vhost = excluded.broker_vhost
     where (r.system_identifier is null or r.system_identifier = excluded.system_identifier)
       and (r.broker_cluster is null or r.broker_cluster = excluded.broker_cluster)
       and (r.broker_vhost is null or r.broker_vhost = excluded.broker_vhost)
     returning epoch::text as epoch`,
    [
      relay.name,
      relay.slot,
      relay.holder,
      relay.systemIdentifier,
      relay.timeline,
      relay.brokerCluster,
      relay.brokerVhost,
      relay.source,
      relay.ordering,
    ],
  );
  return row?.epoch;
}

/** What the publication sends, or undefined when there is none. */
export interface PublicationState {
  sendsInserts: boolean;
  hasOutbox: boolean;
  rowFilter: string | null;
  /** Columns that the relay needs and that are not sent: left out by a column list, or not in the table at all. */
  missingColumns: string[];
}

export async function inspectPublication(
  client: pg.Client,
  schema: string,
  publication: string,
): Promise<PublicationState | undefined> {
  const row = await one<Record<string, unknown>>(
    client,
    'looking at the publication',
    `select to_jsonb(p) as publication, to_jsonb(t) as published,
       (select jsonb_agg(a.attname) from pg_attribute a
        where a.attrelid = to_regclass(format('%I.outbox', $2::text)) and a.attnum > 0 and not a.attisdropped) as columns
     from pg_publication p
     left join pg_publication_tables t on t.pubname = p.pubname and t.schemaname = $2 and t.tablename = 'outbox'
     where p.pubname = $1`,
    [publication, schema],
  );
  if (!row) return undefined;
  const found = row['publication'] as Record<string, unknown>;
  const table = row['published'] as Record<string, unknown> | null;
  const inTable = (row['columns'] ?? []) as string[];
  // Before version 15 there are no column lists, and no such field.
  const sent = (table?.['attnames'] ?? inTable) as string[];
  return {
    sendsInserts: found['pubinsert'] === true,
    hasOutbox: table !== null,
    rowFilter: typeof table?.['rowfilter'] === 'string' ? table['rowfilter'] : null,
    missingColumns: STREAM_COLUMNS.filter((name) => !sent.includes(name)),
  };
}

/**
 * Throws when the outbox is partitioned (F50): its partitions would be sent under their own names, and a place in one is
 * not a place in another.
 */
export async function assertOrdinaryTable(client: pg.Client, schema: string): Promise<void> {
  const row = await one<{ partitioned: boolean }>(
    client,
    'looking at the outbox',
    `select relkind = 'p' as partitioned from pg_class where oid = to_regclass(format('%I.outbox', $1::text))`,
    [schema],
  );
  if (row?.partitioned !== true) return;
  throw new WaybillError('WAYBILL_DATABASE_UNSUITABLE', `${schema}.outbox is partitioned, which is not supported`, {
    hint: 'Make it an ordinary table, as the migrations do; it holds nothing but rows that wait, so it stays small.',
  });
}

/** Creates the publication through the owner's function when it is missing. */
export async function ensurePublication(client: pg.Client, schema: string): Promise<string> {
  const row = await one<{ result: string }>(
    client,
    'making the publication',
    `select ${quoteIdentifier(schema)}.ensure_publication() as result`,
    [],
  );
  return row?.result ?? '';
}

async function one<T extends object>(
  client: pg.Client,
  doing: string,
  text: string,
  values: readonly unknown[],
): Promise<T | undefined> {
  try {
    return (await client.query<T & pg.QueryResultRow>(text, [...values])).rows[0];
  } catch (error) {
    throw toDatabaseError(error, doing);
  }
}
