import { readdirSync, readFileSync } from 'node:fs';
import type { ClientBase } from 'pg';
import { WaybillError } from '../core/errors.js';
import { sqlState, toDatabaseError } from './errors.js';
import { withOwner } from './owners.js';
import { DEFAULT_SCHEMA, quoteSchema } from './schema-name.js';
import { lineAt, splitStatements, type SqlStatement } from './sql-text.js';

/** The newest migration that this program was built for. */
export const SCHEMA_VERSION = 22;

/** One file of sql/migrations. `oldestBinary` is the lowest SCHEMA_VERSION of a program that still works after it. */
export interface Migration {
  readonly version: number;
  readonly name: string;
  readonly file: string;
  readonly oldestBinary: number;
  readonly sql: string;
}

/** One row of the migration table. */
export interface InstalledMigration {
  readonly version: number;
  readonly name: string;
  readonly oldestBinary: number;
  readonly appliedAt: Date;
}

/** What is installed and what is not. `version` is 0 where nothing is installed. */
export interface MigrationStatus {
  readonly schema: string;
  readonly version: number;
  readonly oldestBinary: number;
  readonly programVersion: number;
  readonly applied: readonly InstalledMigration[];
  readonly pending: readonly Migration[];
}

export interface SchemaOptions {
  /** Defaults to `waybill`. */
  readonly schema?: string;
}

export interface MigrateOptions extends SchemaOptions {
  /** Told what happens, a line for each step. */
  readonly log?: (line: string) => void;
  /** For tests: other migrations than the package's own. */
  readonly migrations?: readonly Migration[];
}

const LOCK_NOT_AVAILABLE = '55P03';
const ATTEMPTS = 5;

/** The migrations of the package in order; the same from src and from dist. Throws if a file's name or head is wrong. */
export function loadMigrations(directory = new URL('../../sql/migrations/', import.meta.url)): Migration[] {
  const files = readdirSync(directory).filter((file) => file.endsWith('.sql'));
  return files.sort().map((file, index) => {
    const sql = readFileSync(new URL(file, directory), 'utf8');
    const name = /^(\d{4})_([a-z0-9_]+)\.sql$/.exec(file);
    const head = /^-- oldest-binary: (\d+)\n/.exec(sql);
    if (Number(name?.[1]) !== index + 1 || head === null) {
      throw new WaybillError('WAYBILL_MIGRATION_FAILED', `${file} is out of sequence or has no oldest-binary line`);
    }
    return { version: index + 1, name: name?.[2] ?? '', file, oldestBinary: Number(head[1]), sql };
  });
}

/** Every name that a migration of the package gives to a constraint. */
export function constraintNames(): string[] {
  return loadMigrations().flatMap(({ sql }) =>
    [...sql.matchAll(/\bconstraint "?(\w+)/g)].map(([, name]) => name ?? ''),
  );
}

/**
 * The migration for a schema, and what it makes belongs to the owner of the schema. In our files the lower-case word
 * stands for the schema and for nothing else.
 */
export function renderMigration(migration: Migration, schema = DEFAULT_SCHEMA): string {
  const { sql } = migration;
  const rendered = schema === DEFAULT_SCHEMA ? sql : sql.replace(/\bwaybill\b/g, () => quoteSchema(schema));
  return withOwner(rendered, schema);
}

/**
 * Applies what is missing, each migration in the transaction that its file opens, and returns what it applied. Two runs
 * at once are safe: each migration is applied by one of them, while the other waits. Throws WAYBILL_MIGRATION_FAILED with file and line;
 * nothing of the failed migration stays.
 */
export async function migrateUp(client: ClientBase, options: MigrateOptions = {}): Promise<Migration[]> {
  const schema = options.schema ?? DEFAULT_SCHEMA;
  quoteSchema(schema);
  const log = options.log ?? (() => undefined);
  const applied: Migration[] = [];
  for (const migration of options.migrations ?? loadMigrations()) {
    if (await isInstalled(client, schema, migration.version)) continue;
    if (await applyWithRetry(client, schema, migration, log)) {
      applied.push(migration);
      log(`applied ${migration.file}`);
    }
  }
  return applied;
}

/** Compares the database with the package's migrations. */
export async function migrationStatus(client: ClientBase, options: MigrateOptions = {}): Promise<MigrationStatus> {
  const schema = options.schema ?? DEFAULT_SCHEMA;
  const applied = await readInstalled(client, schema);
  const installed = new Set(applied.map(({ version }) => version));
  return {
    schema,
    version: Math.max(0, ...installed),
    oldestBinary: Math.max(0, ...applied.map(({ oldestBinary }) => oldestBinary)),
    programVersion: SCHEMA_VERSION,
    applied,
    pending: (options.migrations ?? loadMigrations()).filter(({ version }) => !installed.has(version)),
  };
}

/**
 * Returns if this program can work with the installed schema: as new as the program or newer, as long as the newer one
 * still admits it. Else throws WAYBILL_SCHEMA_MISSING, WAYBILL_SCHEMA_TOO_OLD or WAYBILL_SCHEMA_TOO_NEW.
 */
export async function checkSchema(
  client: ClientBase,
  options: SchemaOptions & { readonly programVersion?: number } = {},
): Promise<void> {
  const schema = options.schema ?? DEFAULT_SCHEMA;
  const programVersion = options.programVersion ?? SCHEMA_VERSION;
  const applied = await readInstalled(client, schema);
  const version = Math.max(0, ...applied.map((row) => row.version));
  const oldestBinary = Math.max(0, ...applied.map((row) => row.oldestBinary));
  if (applied.length === 0) {
    throw new WaybillError('WAYBILL_SCHEMA_MISSING', `schema ${schema} of this database has no Waybill tables`, {
      hint: 'Run `waybill migrate up`, or check database.url and database.schema.',
    });
  }
  if (version < programVersion) {
    throw new WaybillError(
      'WAYBILL_SCHEMA_TOO_OLD',
      `schema version ${version}; this program needs ${programVersion}`,
      {
        hint: 'Run `waybill migrate up`; programs of the version before keep working on it.',
      },
    );
  }
  if (oldestBinary > programVersion) {
    throw new WaybillError(
      'WAYBILL_SCHEMA_TOO_NEW',
      `schema version ${version} needs a program for version ${oldestBinary} or later; this one is for ${programVersion}`,
      { hint: 'Install a newer Waybill; a schema is never migrated down.' },
    );
  }
}

async function applyWithRetry(
  client: ClientBase,
  schema: string,
  migration: Migration,
  log: (line: string) => void,
): Promise<boolean> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await apply(client, schema, migration);
    } catch (error) {
      await client.query('rollback').catch(() => undefined);
      if (attempt === ATTEMPTS || sqlState(error) !== LOCK_NOT_AVAILABLE) throw error;
      log(`${migration.file}: a lock was not to be had within its time, trying again (${attempt} of ${ATTEMPTS})`);
      // Why: those who queued up behind our lock request get their turn before the next one.
      await client.query('select pg_sleep(1)');
    }
  }
}

async function apply(client: ClientBase, schema: string, migration: Migration): Promise<boolean> {
  const [begin, ...statements] = splitStatements(renderMigration(migration, schema));
  if (begin?.text !== 'begin' || statements.at(-1)?.text !== 'commit') {
    throw new WaybillError('WAYBILL_MIGRATION_FAILED', `${migration.file} is not one transaction`);
  }
  await runStatement(client, migration, begin);
  await waitForOthers(client, schema);
  if (await isInstalled(client, schema, migration.version)) {
    await client.query('rollback');
    return false;
  }
  for (const statement of statements) await runStatement(client, migration, statement);
  return true;
}

/** One migration at a time in a schema; and the session's own limits, meant for the relay, do not cut it short. */
async function waitForOthers(client: ClientBase, schema: string): Promise<void> {
  await client.query("set local statement_timeout = 0; set local lock_timeout = '60s'");
  try {
    await client.query("select pg_advisory_xact_lock(hashtextextended('waybill migrate ' || $1, 0))", [schema]);
  } catch (error) {
    throw new WaybillError('WAYBILL_MIGRATION_FAILED', `another migration of schema ${schema} is running`, {
      hint: 'Wait for it, then run `waybill migrate status`.',
      cause: error,
    });
  }
}

async function runStatement(client: ClientBase, migration: Migration, statement: SqlStatement): Promise<void> {
  try {
    await client.query(statement.text);
  } catch (error) {
    const { message, position, hint } = error as { message: string; position?: string; hint?: string };
    const line = statement.line + (position === undefined ? 0 : lineAt(statement.text, Number(position) - 1) - 1);
    throw new WaybillError('WAYBILL_MIGRATION_FAILED', `${migration.file}:${line}: ${message}`, {
      hint: hint ?? 'Nothing of this migration stays; mend the cause and run `waybill migrate up` again.',
      cause: error,
    });
  }
}

async function isInstalled(client: ClientBase, schema: string, version: number): Promise<boolean> {
  return (await readInstalled(client, schema)).some((row) => row.version === version);
}

async function readInstalled(client: ClientBase, schema: string): Promise<InstalledMigration[]> {
  const table = `${quoteSchema(schema)}.migration`;
  try {
    // Why not to_regclass: inside a transaction it may answer from a cache that has not heard of the other's commit yet.
    const found = await client.query(
      `select from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
       where n.nspname = $1 and c.relname = 'migration'`,
      [schema],
    );
    if (found.rowCount === 0) return [];
    const { rows } = await client.query<InstalledMigration>(
      `select version, name, oldest_binary as "oldestBinary", applied_at as "appliedAt" from ${table} order by version`,
    );
    return rows;
  } catch (error) {
    throw toDatabaseError(error, 'reading the schema version');
  }
}
