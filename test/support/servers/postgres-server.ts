import pg from 'pg';

/** The three shutdown modes of PostgreSQL, as pg_ctl names them. */
export type ShutdownMode = 'smart' | 'fast' | 'immediate';

/** A PostgreSQL server for tests, private or borrowed. The faults need a private one. */
export interface PostgresServer {
  /** True when this process started the server and may do anything to it. */
  readonly private: boolean;
  /** For example "15.18"; "borrowed" when it is not ours. */
  readonly version: string;
  readonly host: string;
  readonly port: number;
  /** Password of the superuser; roles that a test makes may use it, too, because `url` fills it in. */
  readonly password: string;
  /** A connection URL; database and user default to the administrative ones. */
  url(database?: string, user?: string, password?: string): string;
  createDatabase(name: string, template?: string): Promise<void>;
  /** Drops a database with its sessions and its replication slots; one that does not exist is fine. */
  dropDatabase(name: string): Promise<void>;
  /** Starts again on the same data and port after `stop` or `kill9`. */
  start(): Promise<void>;
  /** Stops the server (default fast) and resolves with the milliseconds that took. */
  stop(mode?: ShutdownMode): Promise<number>;
  /** SIGKILL to the postmaster and all its children. */
  kill9(): Promise<void>;
  /** SIGSTOP to all its processes: connections stay open and nothing answers. */
  pause(): Promise<void>;
  resume(): Promise<void>;
  /** Stops the server at once and removes its folder. */
  close(): Promise<void>;
}

/** The part of a server handle that needs nothing but its URL. */
export class PostgresUrls {
  readonly host: string;
  readonly port: number;
  readonly password: string;

  constructor(private readonly admin: URL) {
    this.host = admin.hostname;
    this.port = Number(admin.port || 5432);
    this.password = decodeURIComponent(admin.password);
  }

  url(database?: string, user?: string, password?: string): string {
    const url = new URL(this.admin);
    if (database !== undefined) url.pathname = `/${encodeURIComponent(database)}`;
    if (user !== undefined) url.username = encodeURIComponent(user);
    if (password !== undefined) url.password = encodeURIComponent(password);
    return url.href;
  }

  async createDatabase(name: string, template?: string): Promise<void> {
    const from = template === undefined ? '' : ` template ${quoted(template)}`;
    await this.asAdmin((client) => client.query(`create database ${quoted(name)}${from}`));
  }

  async dropDatabase(name: string): Promise<void> {
    await this.asAdmin(async (client) => {
      await client.query('select pg_terminate_backend(active_pid) from pg_replication_slots where database = $1', [
        name,
      ]);
      // The walsender releases its slot a moment after it was told to end; 5 s is the server's own limit below.
      await client.query(
        `do $$ declare s name; begin
           for attempt in 1..100 loop
             exit when not exists (select from pg_replication_slots where database = ${literal(name)} and active);
             perform pg_sleep(0.05);
           end loop;
           for s in select slot_name from pg_replication_slots where database = ${literal(name)} loop
             perform pg_drop_replication_slot(s);
           end loop;
         end $$`,
      );
      await client.query(`drop database if exists ${quoted(name)} with (force)`);
    });
  }

  private asAdmin<T>(work: (client: pg.Client) => Promise<T>): Promise<T> {
    return withClient(this.url(), work);
  }
}

/** Works on a connection of its own and ends it, whatever happens. */
export async function withClient<T>(url: string, work: (client: pg.Client) => Promise<T>): Promise<T> {
  const client = new pg.Client({ connectionString: url });
  client.on('error', () => undefined);
  await client.connect();
  try {
    return await work(client);
  } finally {
    await client.end();
  }
}

function quoted(name: string): string {
  return pg.escapeIdentifier(name);
}

function literal(text: string): string {
  return pg.escapeLiteral(text);
}
