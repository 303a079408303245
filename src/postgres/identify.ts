import pg from 'pg';
import { WaybillError } from '../core/errors.js';
import { clientConfig, closeQuietly, type DatabaseEndpoint } from './connect.js';
import { notWritable, sqlState, toDatabaseError } from './errors.js';

export interface SystemIdentity {
  /** 64 bits as text; a copy by pg_basebackup keeps it, pg_upgrade changes it. */
  systemIdentifier: string;
  /** Grows at each promotion of a standby. */
  timeline: number;
}

export interface ReplicationIdentity extends SystemIdentity {
  /** The database that the replication connection leads to. */
  database: string;
}

/**
 * IDENTIFY_SYSTEM over a replication connection: also proves, before anything is touched, that this role may replicate
 * and that no pooler stands between. With `primaryOnly` a standby is refused.
 */
export async function identifySystem(
  endpoint: DatabaseEndpoint,
  applicationName: string,
  primaryOnly = false,
): Promise<ReplicationIdentity> {
  const config: pg.ClientConfig & { replication: string } = {
    ...(await clientConfig(endpoint, applicationName, true)),
    replication: 'database',
  };
  const client = new pg.Client(config);
  client.on('error', () => undefined);
  try {
    await client.connect();
    if (primaryOnly) {
      const { rows } = await client.query<{ standby: boolean }>('select pg_is_in_recovery() as standby');
      if (rows[0]?.standby) throw notWritable('it is a standby');
    }
    const result = await client.query<{ systemid: string; timeline: number | string; dbname: string | null }>(
      'IDENTIFY_SYSTEM',
    );
    const row = result.rows[0];
    if (!row) throw new Error('IDENTIFY_SYSTEM gave no row');
    return { systemIdentifier: row.systemid, timeline: Number(row.timeline), database: row.dbname ?? '' };
  } catch (error) {
    if (sqlState(error) === '42501') {
      throw new WaybillError('WAYBILL_DATABASE_REFUSED', `the role may not replicate: ${(error as Error).message}`, {
        hint: 'alter role <role> replication; (on Amazon RDS: grant rds_replication to <role>;)',
        cause: error,
      });
    }
    if (sqlState(error) === '08P01' || sqlState(error) === '42601') {
      throw new WaybillError('WAYBILL_DATABASE_UNSUITABLE', 'what answers does not speak the replication protocol', {
        hint: 'A pooler seems to stand between: set database.replicationUrl to the server itself.',
        cause: error,
      });
    }
    throw toDatabaseError(error, 'opening a replication connection');
  } finally {
    closeQuietly(client);
  }
}

/** The same by SQL, for a relay that does not replicate. */
export async function identifySystemBySql(client: pg.Client): Promise<SystemIdentity> {
  try {
    const result = await client.query<{ system: string; timeline: number }>(
      `select (select system_identifier::text from pg_control_system()) as system,
         (select timeline_id from pg_control_checkpoint()) as timeline`,
    );
    const row = result.rows[0];
    return { systemIdentifier: row?.system ?? '', timeline: row?.timeline ?? 0 };
  } catch (error) {
    throw toDatabaseError(error, 'identifying the server');
  }
}
