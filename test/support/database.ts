import { randomBytes } from 'node:crypto';
import pg from 'pg';
import { inject } from 'vitest';
import { borrowPostgres } from './servers/postgres.js';
import type { PostgresServer } from './servers/postgres-server.js';

/** How a fresh database is made. */
export interface FreshDatabaseOptions {
  /** The server; default the one that the run shares. */
  server?: PostgresServer;
  /** Prepares the template, once per run and server; without it the database is empty. */
  prepare?: ((client: pg.Client) => Promise<unknown>) | undefined;
  /** Tells templates with different `prepare` apart (default "prepared"). */
  template?: string;
}

/** A database that belongs to one test file. */
export interface FreshDatabase {
  name: string;
  url: string;
  server: PostgresServer;
  /** A new connection; `drop` ends those that are still open. */
  connect(): Promise<pg.Client>;
  /** Runs one statement on a connection of its own that stays open, for looks and set-up. */
  query<Row extends pg.QueryResultRow>(sql: string, values?: unknown[]): Promise<Row[]>;
  /** Ends the connections and drops the database with its replication slots. */
  drop(): Promise<void>;
}

/** The PostgreSQL that the run shares: for databases of one's own, never for faults. */
export function sharedPostgres(): PostgresServer {
  return borrowPostgres(inject('servers').postgresUrl);
}

/**
 * Makes a database for one test file, copied from a template that is prepared once per run.
 *
 *     const database = await freshDatabase({ prepare: (client) => migrateUp(client, { schema: 'waybill' }) });
 */
export async function freshDatabase(options: FreshDatabaseOptions = {}): Promise<FreshDatabase> {
  const server = options.server ?? sharedPostgres();
  const prefix = `waybill_test_${inject('servers').runId}_`;
  const name = `${prefix}${randomBytes(5).toString('hex')}`;
  const template = options.prepare && `${prefix}template_${options.template ?? 'prepared'}`;
  if (template && options.prepare) await ensureTemplate(server, template, options.prepare);
  await server.createDatabase(name, template);
  return new Database(name, server);
}

class Database implements FreshDatabase {
  readonly url: string;
  readonly #clients: pg.Client[] = [];
  #looker: Promise<pg.Client> | undefined;

  constructor(
    readonly name: string,
    readonly server: PostgresServer,
  ) {
    this.url = server.url(name);
  }

  async connect(): Promise<pg.Client> {
    const client = new pg.Client({ connectionString: this.url });
    // Why: a server that is killed under a test ends its connections, and an unheard error ends the process.
    client.on('error', () => undefined);
    await client.connect();
    this.#clients.push(client);
    return client;
  }

  async query<Row extends pg.QueryResultRow>(sql: string, values?: unknown[]): Promise<Row[]> {
    try {
      this.#looker ??= this.#look();
      return (await (await this.#looker).query<Row>(sql, values)).rows;
    } catch (error) {
      // A connection that was lost with its server is made anew by the next call.
      if (!(error instanceof pg.DatabaseError) || error.severity === 'FATAL') this.#looker = undefined;
      throw error;
    }
  }

  /** One that ends, as with a server that is stopped, is forgotten at once. */
  async #look(): Promise<pg.Client> {
    const client = await this.connect();
    client.once('end', () => (this.#looker = undefined));
    return client;
  }

  async drop(): Promise<void> {
    await Promise.allSettled(this.#clients.map((client) => client.end()));
    await this.server.dropDatabase(this.name);
  }
}

async function ensureTemplate(
  server: PostgresServer,
  template: string,
  prepare: (client: pg.Client) => Promise<unknown>,
): Promise<void> {
  const guard = new pg.Client({ connectionString: server.url() });
  await guard.connect();
  try {
    // Files run side by side: the first makes the template, the others wait for it here.
    await guard.query('select pg_advisory_lock(hashtext($1))', [template]);
    const existing = await guard.query('select from pg_database where datname = $1', [template]);
    if (existing.rowCount) return;
    const draft = `${template}_draft`;
    await server.dropDatabase(draft);
    await server.createDatabase(draft);
    const client = new pg.Client({ connectionString: server.url(draft) });
    await client.connect();
    try {
      await prepare(client);
    } finally {
      await client.end();
    }
    await guard.query(`alter database ${pg.escapeIdentifier(draft)} rename to ${pg.escapeIdentifier(template)}`);
  } finally {
    await guard.end();
  }
}
