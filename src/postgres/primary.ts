import type pg from 'pg';
import { firstUsable, hostName, type Unusable } from '../core/usable-host.js';
import {
  closeQuietly,
  connectSql,
  POSTGRES_PORT,
  type ConnectionLimits,
  type DatabaseEndpoint,
  type OnConnectionError,
} from './connect.js';
import { notWritable, toDatabaseError } from './errors.js';
import { identifySystem, type ReplicationIdentity } from './identify.js';

/** Servers of which one is the primary, in the order in which they are tried. */
export type DatabaseEndpoints = readonly [DatabaseEndpoint, ...DatabaseEndpoint[]];

/** The one of these that is the same server as `found`. */
export function sameServer(servers: DatabaseEndpoints, found: DatabaseEndpoint): DatabaseEndpoint | undefined {
  const name = hostName(found.url, POSTGRES_PORT);
  return servers.find(({ url }) => hostName(url, POSTGRES_PORT) === name);
}

/** What connectToPrimary takes beside the servers. */
export interface PrimaryOptions {
  applicationName: string;
  onError: OnConnectionError;
  limits?: ConnectionLimits;
  /** Told of each server that is passed over before one is found. */
  onUnusable?: (unusable: Unusable) => void;
}

/** Why refused before unavailable: a password that is wrong on one host is wrong on all, and time does not mend it. */
const GRAVEST = ['WAYBILL_DATABASE_REFUSED', 'WAYBILL_DATABASE_UNAVAILABLE', 'WAYBILL_DATABASE_UNSUITABLE'] as const;

/**
 * An SQL connection to the first server that can be reached and takes writes, and which one that is, so that further
 * connections go to the same. A server that stands alone is not asked whether it takes writes: that is the caller's.
 */
export async function connectToPrimary(
  servers: DatabaseEndpoints,
  { applicationName, onError, limits, onUnusable }: PrimaryOptions,
): Promise<{ client: pg.Client; server: DatabaseEndpoint }> {
  return firstUsable({
    hosts: servers,
    defaultPort: POSTGRES_PORT,
    gravest: GRAVEST,
    onUnusable,
    open: async (server) => {
      const client = await connectSql(server, applicationName, onError, limits);
      try {
        if (servers.length > 1) await assertWritable(client);
        return { client, server };
      } catch (error) {
        closeQuietly(client);
        throw error;
      }
    },
  });
}

/**
 * The same for a replication connection: identifies the first server that can be reached and is a primary. The
 * connection is closed again.
 */
export async function identifyPrimary(
  servers: DatabaseEndpoints,
  applicationName: string,
): Promise<{ identity: ReplicationIdentity; server: DatabaseEndpoint }> {
  return firstUsable({
    hosts: servers,
    defaultPort: POSTGRES_PORT,
    gravest: GRAVEST,
    open: async (server) => ({ identity: await identifySystem(server, applicationName, servers.length > 1), server }),
  });
}

/** Throws WAYBILL_DATABASE_UNSUITABLE for a standby and for a primary that has been made read-only. */
async function assertWritable(client: pg.Client): Promise<void> {
  let state: { standby: boolean; readOnly: boolean } | undefined;
  try {
    const { rows } = await client.query<{ standby: boolean; readOnly: boolean }>(
      `select pg_catalog.pg_is_in_recovery() as standby,
         pg_catalog.current_setting('transaction_read_only') operator(pg_catalog.=) 'on' as "readOnly"`,
    );
    state = rows[0];
  } catch (error) {
    throw toDatabaseError(error, 'asking whether the server takes writes');
  }
  if (state?.standby) throw notWritable('it is a standby');
  if (state?.readOnly) throw notWritable('it takes no writes (default_transaction_read_only)');
}
