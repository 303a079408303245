import { randomBytes } from 'node:crypto';
import * as amqp from 'amqplib';
import type pg from 'pg';
import { freshVhost, type FreshVhost } from './broker.js';
import { startBrokerProbe, type BrokerProbe } from './broker-probe.js';
import type { FreshDatabase } from './database.js';
import { migratedDatabase } from './migrated-database.js';
import { startRelay, type RelayProcess } from './relay.js';
import type { PostgresServer } from './servers/postgres-server.js';
import type { RabbitServer } from './servers/rabbit-server.js';
import { until } from './waiting.js';

/** What PostgreSQL says of the relay's slot, positions in bytes from zero. */
export interface SlotFacts {
  name: string;
  active: boolean;
  pid: number | null;
  status: string | null;
  confirmed: bigint;
  /** Bytes of WAL between the confirmed position and the newest. */
  behind: bigint;
}

/** A database with the Waybill schema, a virtual host with the exchange, and a probe that is bound to it. */
export interface RelayScene {
  readonly database: FreshDatabase;
  readonly vhost: FreshVhost;
  readonly probe: BrokerProbe;
  /** Starts a relay on this pair; it is killed by `killRelays` at the latest. */
  start(options?: { databaseUrl?: string; brokerUrl?: string; env?: Record<string, string> }): RelayProcess;
  /** Commits n rows in one transaction and gives their ids in that order. */
  publish(n: number, options?: { type?: string; client?: pg.Client }): Promise<string[]>;
  /** Waits until no row is left to be published. */
  settled(withinMs?: number): Promise<void>;
  /** Changes exchanges and queues on a channel of its own. */
  topology(work: (channel: amqp.Channel) => Promise<unknown>): Promise<void>;
  /** The relay's slot, or undefined when there is none. */
  slot(): Promise<SlotFacts | undefined>;
  /** Fails unless exactly these ids have arrived, with at most so many further copies (default 0). */
  expectIds(committed: readonly string[], options?: { copies?: number }): void;
  /** Waits until nobody streams from the slot. */
  slotReleased(): Promise<void>;
  drop(): Promise<void>;
}

const EXCHANGE = 'waybill.events';

/** Makes a scene on the shared servers, or with the database on a server of one's own, or around a given database. */
export async function relayScene(
  options: { server?: PostgresServer; database?: FreshDatabase; rabbit?: RabbitServer } = {},
): Promise<RelayScene> {
  const [database, vhost] = await Promise.all([
    options.database ?? migratedDatabase(options.server ? { server: options.server } : {}),
    freshVhost(options.rabbit),
  ]);
  const topology = async (work: (channel: amqp.Channel) => Promise<unknown>): Promise<void> => {
    const connection = await amqp.connect(vhost.url);
    await work(await connection.createChannel());
    await connection.close();
  };
  // Why here: what is published before the first relay has declared the exchange must be seen, too.
  await topology((channel) => channel.assertExchange(EXCHANGE, 'topic', { durable: true }));
  const probe = await startBrokerProbe({
    url: vhost.url,
    exchange: EXCHANGE,
    queue: `probe-${randomBytes(4).toString('hex')}`,
  });
  const slot = async (): Promise<SlotFacts | undefined> => {
    const [row] = await database.query<
      Record<'name' | 'status' | 'confirmed' | 'behind', string | null> & { active: boolean; pid: number | null }
    >(
      `select slot_name as name, active, active_pid as pid, wal_status as status,
         (confirmed_flush_lsn - '0/0')::text as confirmed, (pg_current_wal_lsn() - confirmed_flush_lsn)::text as behind
       from pg_replication_slots where slot_name like 'waybill\\_%' and database = current_database()`,
    );
    if (!row) return undefined;
    return {
      name: row.name ?? '',
      active: row.active,
      pid: row.pid,
      status: row.status,
      confirmed: BigInt(row.confirmed ?? 0),
      behind: BigInt(row.behind ?? 0),
    };
  };
  return {
    database,
    vhost,
    probe,
    slot,
    topology,
    start: ({ databaseUrl = database.url, brokerUrl = vhost.url, env = {} } = {}) =>
      startRelay({ databaseUrl, brokerUrl, env }),
    async publish(n, { type = 'order.paid', client } = {}) {
      const sql = `select waybill.publish($1, json_build_object('n', n), key => 'k' || n % 7) as id from generate_series(1, $2) n`;
      const rows = client
        ? (await client.query<{ id: string }>(sql, [type, n])).rows
        : await database.query<{ id: string }>(sql, [type, n]);
      return rows.map((row) => row.id);
    },
    async settled(withinMs = 20_000) {
      await until(
        async () => (await database.query("select from waybill.outbox where state = 'ready' limit 1")).length === 0,
        {
          withinMs,
          what: 'the outbox to be empty',
        },
      );
    },
    expectIds(committed, { copies = 0 } = {}) {
      const arrived = new Set(probe.ids());
      const due = new Set(committed);
      const lost = committed.filter((id) => !arrived.has(id));
      const phantoms = [...arrived].filter((id) => id === undefined || !due.has(id));
      const extra = probe.messages.length - arrived.size;
      if (lost.length + phantoms.length === 0 && extra <= copies) return;
      throw new Error(
        `of ${committed.length} committed rows ${lost.length} did not arrive (${lost.slice(0, 3).join(', ')}); ` +
          `${phantoms.length} arrived that were not committed (${phantoms.slice(0, 3).join(', ')}); ${extra} copies, at most ${copies} allowed`,
      );
    },
    async slotReleased() {
      await until(async () => (await slot())?.active !== true, { withinMs: 20_000, what: 'the slot to be free' });
    },
    async drop() {
      await probe.close();
      await Promise.all([database.drop(), vhost.drop()]);
    },
  };
}
