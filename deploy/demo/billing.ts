import { execFile } from 'node:child_process';
import { readFile, writeFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import type pg from 'pg';
import { rolesSql } from '../../src/postgres/roles.js';
import { Daemon } from '../../test/support/servers/daemon.js';
import { withClient, type PostgresServer } from '../../test/support/servers/postgres-server.js';
import type { RabbitServer } from '../../test/support/servers/rabbit-server.js';
import { Scratch } from '../../test/support/servers/scratch.js';
import { until } from '../../test/support/waiting.js';

const run = promisify(execFile);
const MAIN = fileURLToPath(new URL('../../dist/main.js', import.meta.url));
const DATABASE = 'billing';

/** What the inbox of the billing service says at the end. */
export interface Ledger {
  invoices: number;
  /** Of all invoices, with two decimals. */
  total: string;
  /** Message ids, once for each invoice. */
  invoiced: string[];
  paid: number;
  /** Messages that failed at least once. */
  retried: number;
  /** Messages that wait for their data. */
  putOff: number;
  dead: { reason: string; count: number }[];
  unfinished: number;
}

const CONFIGURATION = `# The Waybill beside the billing service: it only receives.
relay: false
admin: { listen: "127.0.0.1:0" }
consumers:
  billing:
    owner: team-billing
    queue: billing
    bindings: [{ exchange: waybill.events, routingKey: "order.*" }]
    accept: [order.placed@1, order.paid@1]
    handler: { kind: sql, function: billing.on_event }
    retry: { delays: [1s, 2s], maxAttempts: 3, notYetFor: 10m }
`;

/**
 * A billing service with a database of its own: it has one SQL function, and a Waybill beside it that calls the function
 * once for each message. The invoices have no unique key on purpose: whatever took effect twice would show in the sum.
 */
export class Billing {
  #daemon: Daemon | undefined;
  /** Duplicates that processes counted which are gone. */
  #duplicatesBefore = 0;

  private constructor(
    private readonly postgres: PostgresServer,
    private readonly rabbit: RabbitServer,
    private readonly scratch: Scratch,
  ) {}

  /** Makes the database with Waybill's tables, the service's own table and its function. */
  static async prepare(postgres: PostgresServer, rabbit: RabbitServer): Promise<Billing> {
    const billing = new Billing(postgres, rabbit, await Scratch.open());
    await postgres.createDatabase(DATABASE);
    await run(process.execPath, [MAIN, 'migrate', 'up'], { env: billing.#environment(postgres.url(DATABASE)) });
    await billing.#asAdmin(async (client) => {
      await client.query(rolesSql());
      await client.query(`
        create schema billing;
        create table billing.invoice (
          order_number bigint not null, message_id text not null, total numeric not null, paid_at timestamptz);
        create index on billing.invoice (order_number);
        create function billing.on_event(event waybill.inbox_message) returns void language plpgsql as $$
        declare
          body constant json := waybill.payload(event);
        begin
          if event.type = 'order.placed' then
            insert into billing.invoice (order_number, message_id, total)
            values ((body ->> 'order')::bigint, event.message_id, (body ->> 'total')::numeric);
          else
            update billing.invoice set paid_at = coalesce(event.occurred_at, now()) where order_number = (body ->> 'order')::bigint;
            if not found then
              raise exception 'there is no order % yet', body ->> 'order' using errcode = 'WB001';
            end if;
          end if;
        end
        $$;
        grant usage on schema billing to waybill_relay;
        grant select, insert, update on billing.invoice to waybill_relay`);
    });
    await writeFile(billing.configFile, CONFIGURATION);
    return billing;
  }

  get configFile(): string {
    return this.scratch.path('waybill.yaml');
  }

  get logFile(): string {
    return this.scratch.path('billing.log');
  }

  get databaseUrl(): string {
    return this.postgres.url(DATABASE, 'waybill_relay');
  }

  async start(): Promise<void> {
    this.#daemon = await Daemon.start(this.scratch, {
      command: process.execPath,
      args: [MAIN, 'run', '--config', this.configFile],
      env: this.#environment(this.databaseUrl),
      logFile: this.logFile,
    });
  }

  /** SIGKILL: it can finish nothing. */
  async kill(): Promise<void> {
    this.#duplicatesBefore += await this.#duplicatesNow();
    this.#daemon?.signal('SIGKILL');
    await this.#daemon?.gone(5_000, 'the end of the killed consumer');
  }

  get ending(): string | undefined {
    return this.#daemon?.ending;
  }

  /** Waits until its queue exists and is consumed. */
  async consumes(): Promise<void> {
    const ready = async () => this.ending ?? (await this.#log()).some((line) => line.includes('"consuming"'));
    const found = await until(ready, { withinMs: 60_000, what: 'the consumer to consume' });
    if (typeof found === 'string') throw new Error(`the consumer ended by itself: ${found}`);
  }

  /** Deliveries that were known already, since the start of the demo. */
  async duplicates(): Promise<number> {
    return this.#duplicatesBefore + (await this.#duplicatesNow());
  }

  async invoices(): Promise<number> {
    return this.#asAdmin(async (client) => {
      const { rows } = await client.query<{ n: number }>('select count(*)::int as n from billing.invoice');
      return rows[0]!.n;
    });
  }

  async ledger(): Promise<Ledger> {
    return this.#asAdmin(async (client) => {
      const { rows } = await client.query<Ledger>(`
        select count(*)::int as invoices, coalesce(sum(total), 0)::numeric(20, 2)::text as total,
          coalesce(array_agg(message_id), '{}') as invoiced, count(paid_at)::int as paid,
          (select count(distinct inbox_seq)::int from waybill.inbox_attempt where verdict in ('retry', 'broken')) as retried,
          (select count(*)::int from waybill.inbox
           where status in ('waiting', 'running') and last_error like 'WB001%') as "putOff",
          (select coalesce(json_agg(d), '[]') from (
             select dead_reason as reason, count(*)::int as count from waybill.inbox where status = 'dead' group by 1) d) as dead,
          (select count(*)::int from waybill.inbox where status not in ('done', 'dead')) as unfinished
        from billing.invoice`);
      return rows[0]!;
    });
  }

  async #duplicatesNow(): Promise<number> {
    if (!this.#daemon || this.ending !== undefined) return 0;
    const address = (await this.#log())
      .filter((line) => line.includes('admin HTTP listens'))
      .map((line) => JSON.parse(line) as { address: string; port: number })
      .at(-1);
    if (address === undefined) return 0;
    const text = await (await fetch(`http://${address.address}:${address.port}/metrics`)).text();
    return Number(/^waybill_inbox_duplicate_total\{[^}]*\} (\d+)/m.exec(text)?.[1] ?? 0);
  }

  async #log(): Promise<string[]> {
    return (await readFile(this.logFile, 'utf8').catch(() => '')).trimEnd().split('\n');
  }

  #environment(databaseUrl: string): NodeJS.ProcessEnv {
    return {
      PATH: process.env.PATH,
      WAYBILL_DATABASE_URL: databaseUrl,
      WAYBILL_BROKER_URL: this.rabbit.url(),
      WAYBILL_LOG_FORMAT: 'json',
    };
  }

  #asAdmin<T>(work: (client: pg.Client) => Promise<T>): Promise<T> {
    return withClient(this.postgres.url(DATABASE), work);
  }
}
