import { execFile } from 'node:child_process';
import { readFile, writeFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import pg from 'pg';
import { rolesSql } from '../../src/postgres/roles.js';
import { Daemon } from '../../test/support/servers/daemon.js';
import { withClient, type PostgresServer } from '../../test/support/servers/postgres-server.js';
import { startPostgres } from '../../test/support/servers/postgres.js';
import type { RabbitServer } from '../../test/support/servers/rabbit-server.js';
import { startRabbit } from '../../test/support/servers/rabbit.js';
import { Scratch } from '../../test/support/servers/scratch.js';
import { until } from '../../test/support/waiting.js';

const run = promisify(execFile);
const MAIN = fileURLToPath(new URL('../../dist/main.js', import.meta.url));
const DATABASE = 'shop';

/** The demo's own servers and relay, and what can be done to them. All of it goes when this process ends. */
export class Stage {
  #relay: Daemon | undefined;

  private constructor(
    readonly postgres: PostgresServer,
    readonly rabbit: RabbitServer,
    private readonly scratch: Scratch,
  ) {}

  /** Starts PostgreSQL and RabbitMQ on free ports, in scratch folders. */
  static async open(): Promise<Stage> {
    const [postgres, rabbit, scratch] = await Promise.all([
      startPostgres({ own: true, durable: true, settings: { max_slot_wal_keep_size: '1GB' } }),
      startRabbit({ own: true }),
      Scratch.open(),
    ]);
    return new Stage(postgres, rabbit, scratch);
  }

  /** The database as the order application sees it: it may write orders and messages, no more. */
  get applicationUrl(): string {
    return this.postgres.url(DATABASE, 'waybill_app');
  }

  /** The database as the relay sees it. */
  get relayUrl(): string {
    return this.postgres.url(DATABASE, 'waybill_relay');
  }

  get logFile(): string {
    return this.scratch.path('relay.log');
  }

  /** A file with the two settings of the relay, for a shell to read. */
  get settingsFile(): string {
    return this.scratch.path('env');
  }

  /** Makes the database: Waybill's tables by its own command, its roles, and the table of the order application. */
  async prepare(): Promise<void> {
    await this.postgres.createDatabase(DATABASE);
    await run(process.execPath, [MAIN, 'migrate', 'up'], {
      env: this.#environment(this.postgres.url(DATABASE)),
    });
    await this.#asAdmin(async (client) => {
      await client.query(rolesSql());
      for (const role of ['waybill_app', 'waybill_relay']) {
        await client.query(`alter role ${role} password ${pg.escapeLiteral(this.postgres.password)}`);
      }
      await client.query(`
        create table orders (
          number bigint generated always as identity primary key,
          message_id uuid not null unique,
          customer text not null,
          total numeric not null,
          placed_at timestamptz not null default now());
        grant select, insert on orders to waybill_app;
        grant usage on sequence orders_number_seq to waybill_app`);
    });
    const settings = { WAYBILL_DATABASE_URL: this.relayUrl, WAYBILL_BROKER_URL: this.rabbit.url() };
    const lines = Object.entries(settings).map(([name, value]) => `export ${name}='${value}'\n`);
    await writeFile(this.settingsFile, lines.join(''), { mode: 0o600 });
  }

  async startRelay(): Promise<void> {
    this.#relay = await Daemon.start(this.scratch, {
      command: process.execPath,
      args: [MAIN, 'run'],
      env: this.#environment(this.relayUrl),
      logFile: this.logFile,
    });
  }

  /** SIGKILL: it can finish nothing. */
  async killRelay(): Promise<void> {
    this.#relay?.signal('SIGKILL');
    await this.#relay?.gone(5_000, 'the end of the killed relay');
  }

  /** Waits until the relay reads PostgreSQL's log. */
  async relayReads(): Promise<void> {
    const reads = "select from pg_replication_slots where slot_name like 'waybill%' and active";
    await this.#asAdmin((client) =>
      until(async () => this.relayEnding ?? (await client.query(reads)).rowCount === 1, {
        withinMs: 60_000,
        what: 'the relay to read the log of PostgreSQL',
      }),
    );
    if (this.relayEnding) throw new Error(`the relay ended by itself: ${this.relayEnding}`);
  }

  /** Drops the relay's replication slot; the relay must have ended, else PostgreSQL refuses. */
  async dropSlot(): Promise<void> {
    await this.#asAdmin(async (client) => {
      const unused = async () =>
        (await client.query("select from pg_replication_slots where slot_name like 'waybill%' and not active"))
          .rowCount === 1;
      await until(unused, { what: 'the replication slot to be unused' });
      await client.query(
        "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name like 'waybill%'",
      );
    });
  }

  /** Rows that are still in the outbox. */
  async rowsInOutbox(): Promise<number> {
    return this.#asAdmin(async (client) => {
      const { rows } = await client.query<{ count: number }>('select count(*)::int as count from waybill.outbox');
      return rows[0]!.count;
    });
  }

  /** How the relay ended, if it should run and does not. */
  get relayEnding(): string | undefined {
    return this.#relay?.ending;
  }

  /** The relay's last log lines, for a failure. */
  async relayLog(lines: number): Promise<string> {
    const log = await readFile(this.logFile, 'utf8').catch(() => '');
    return log.trimEnd().split('\n').slice(-lines).join('\n');
  }

  #environment(databaseUrl: string): NodeJS.ProcessEnv {
    return {
      PATH: process.env.PATH,
      WAYBILL_DATABASE_URL: databaseUrl,
      WAYBILL_BROKER_URL: this.rabbit.url(),
      WAYBILL_LOG_FORMAT: 'json',
      WAYBILL_ADMIN_LISTEN: '127.0.0.1:0',
    };
  }

  #asAdmin<T>(work: (client: pg.Client) => Promise<T>): Promise<T> {
    return withClient(this.postgres.url(DATABASE), work);
  }
}
