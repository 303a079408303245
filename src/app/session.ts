import type { Config } from '../config/load.js';
import { connectSql } from '../postgres/connect.js';
import { databaseEndpoint } from './endpoints.js';

/** A connection as the adapter gives it. */
export type SqlClient = Awaited<ReturnType<typeof connectSql>>;

/** Connects for one short piece of work and closes again, whatever the work does. */
export async function withDatabase<T>(
  database: Config['database'],
  limits: { lockTimeoutMs?: number; statementTimeoutMs?: number },
  work: (client: SqlClient) => Promise<T>,
): Promise<T> {
  // A connection that dies fails the statement that waits for it; there is nobody else to tell.
  const client = await connectSql(databaseEndpoint(database), 'waybill', () => undefined, limits);
  try {
    return await work(client);
  } finally {
    await client.end().catch(() => undefined);
  }
}
