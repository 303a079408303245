import type { Config } from '../config/load.js';
import { connectSql } from '../postgres/connect.js';
import {
  loadMigrations,
  migrateUp,
  migrationStatus,
  renderMigration,
  type Migration,
  type MigrationStatus,
} from '../postgres/migrations.js';
import { rolesSql } from '../postgres/roles.js';
import { databaseEndpoint } from './endpoints.js';

type Database = Config['database'];

/** A connection as the adapter gives it. */
export type SqlClient = Awaited<ReturnType<typeof connectSql>>;

/** Applies the migrations that are missing; the result says which, empty when there were none. */
export function applyMigrations(database: Database, log: (line: string) => void): Promise<Migration[]> {
  // Why no statement limit: building an index may take as long as it takes; locks are bounded by the migrations.
  return withClient(database, { statementTimeoutMs: 0 }, (client) =>
    migrateUp(client, { schema: database.schema, log }),
  );
}

/** What is installed and what is missing. */
export function readMigrationStatus(database: Database): Promise<MigrationStatus> {
  return withClient(database, {}, (client) => migrationStatus(client, { schema: database.schema }));
}

/** The SQL of the migrations from number `from` on, for psql; with the roles when asked for. Connects to nothing. */
export function migrationSql(schema: string, from: number, withRoles: boolean): string {
  const parts = loadMigrations()
    .filter(({ version }) => version >= from)
    .map((migration) => `-- ${migration.file}\n${renderMigration(migration, schema)}`);
  if (withRoles) parts.push(`-- roles.sql\n${rolesSql({ schema })}`);
  return parts.map((part) => (part.endsWith('\n') ? part : `${part}\n`)).join('\n');
}

/** Connects, does the work and closes, whatever the work does. */
export async function withClient<T>(
  database: Database,
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
