import { migrateUp } from '../../src/postgres/migrations.js';
import { freshDatabase, type FreshDatabase, type FreshDatabaseOptions } from './database.js';

/** A database of one's own with the schema `waybill` as the migrations make it. */
export function migratedDatabase(options: Pick<FreshDatabaseOptions, 'server'> = {}): Promise<FreshDatabase> {
  return freshDatabase({ ...options, template: 'migrated', prepare: (client) => migrateUp(client) });
}
