import { closeQuietly, type connectSql } from '../postgres/connect.js';
import { loadMigrations, migrateUp, migrationStatus, renderMigration } from '../postgres/migrations.js';
import type { Migration, MigrationStatus } from '../postgres/migrations.js';
import { connectToPrimary, type DatabaseEndpoints } from '../postgres/primary.js';
import { rolesSql, type RoleNames } from '../postgres/roles.js';

/** Which database and which schema in it. */
export interface MigrateTarget {
  readonly servers: DatabaseEndpoints;
  readonly schema: string;
}

/** One migration by its number and name. */
export type AppliedMigration = Pick<Migration, 'version' | 'name'>;

/** Applies the missing migrations and returns them in order; each step is told to `log`. */
export async function applyMigrations(target: MigrateTarget, log: (line: string) => void): Promise<AppliedMigration[]> {
  return withClient(target, async (client) => {
    const applied = await migrateUp(client, { schema: target.schema, log });
    return applied.map(({ version, name }) => ({ version, name }));
  });
}

/** What is installed, and which migrations of this program are not. */
export async function readMigrationStatus(target: MigrateTarget): Promise<MigrationStatus> {
  return withClient(target, (client) => migrationStatus(client, { schema: target.schema }));
}

/** The SQL of the migrations numbered `from` (default 1) and up, ready for psql; needs no connection. */
export function printMigrations(schema: string, from = 1): string {
  return loadMigrations()
    .filter(({ version }) => version >= from)
    .map((migration) => renderMigration(migration, schema))
    .join('\n');
}

/** The SQL of roles and grants, ready for psql; needs no connection. */
export function printRoles(names: RoleNames): string {
  return rolesSql(names);
}

async function withClient<T>(
  target: MigrateTarget,
  work: (client: Awaited<ReturnType<typeof connectSql>>) => Promise<T>,
): Promise<T> {
  const { client } = await connectToPrimary(target.servers, {
    applicationName: 'waybill migrate',
    // An error outside a statement makes the next statement fail, which says it.
    onError: () => undefined,
  });
  try {
    return await work(client);
  } finally {
    closeQuietly(client);
  }
}
