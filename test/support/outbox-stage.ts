import { randomUUID } from 'node:crypto';
import * as amqp from 'amqplib';
import type pg from 'pg';
import { startBrokerProbe, type ProbedMessage } from './broker-probe.js';
import { freshVhost, type FreshVhost } from './broker.js';
import type { FreshDatabase } from './database.js';
import { migratedDatabase } from './migrated-database.js';
import type { PostgresServer } from './servers/postgres-server.js';
import type { RabbitServer } from './servers/rabbit-server.js';
import { until } from './waiting.js';

/** A row as the test wrote it. */
export interface WrittenRow {
  id: string;
  body: string;
}

/** What is different about a batch of rows. */
export interface WriteOptions {
  type?: string;
  /** Octets of padding in each body. */
  padding?: number;
  /** All rows in one transaction, instead of one each. */
  together?: boolean;
  /** Further columns with their values, the same for every row. */
  columns?: Record<string, unknown>;
}

/** Servers, queues and settings of a stage. */
export interface StageOptions {
  postgres?: PostgresServer;
  rabbit?: RabbitServer;
  /** Arguments of the queue, for example { 'x-queue-type': 'quorum' }. */
  queueArguments?: Record<string, unknown>;
}

/** A migrated database and a virtual host with the default exchange, and a durable queue that takes everything. */
export interface OutboxStage {
  database: FreshDatabase;
  vhost: FreshVhost;
  queue: string;
  /** Commits n rows and gives them in commit order. */
  write(n: number, options?: WriteOptions): Promise<WrittenRow[]>;
  /** Rows in the outbox, in any state or in the given one. */
  pending(state?: string): Promise<number>;
  /** Waits until the outbox is empty. */
  emptied(withinMs?: number): Promise<void>;
  /** Does something on a channel of its own, with a connection of its own. */
  broker<T>(use: (channel: amqp.Channel) => Promise<T>): Promise<T>;
  /** Takes everything out of the queue, in order. */
  taken(): Promise<readonly ProbedMessage[]>;
  drop(): Promise<void>;
}

export const EXCHANGE = 'waybill.events';
const QUEUE = 'everything';

/** Makes a stage, with the exchange and the queue there before any relay. */
export async function outboxStage(options: StageOptions = {}): Promise<OutboxStage> {
  const { postgres, rabbit, queueArguments } = options;
  const [database, vhost] = await Promise.all([
    migratedDatabase(postgres ? { server: postgres } : {}),
    freshVhost(rabbit),
  ]);
  const broker = async <T>(use: (channel: amqp.Channel) => Promise<T>): Promise<T> => {
    const connection = await amqp.connect(vhost.url);
    connection.on('error', () => undefined);
    try {
      const channel = await connection.createChannel();
      channel.on('error', () => undefined);
      return await use(channel);
    } finally {
      await connection.close().catch(() => undefined);
    }
  };
  await broker(async (channel) => {
    await channel.assertExchange(EXCHANGE, 'topic', { durable: true });
    await channel.assertQueue(QUEUE, { durable: true, ...(queueArguments ? { arguments: queueArguments } : {}) });
    await channel.bindQueue(QUEUE, EXCHANGE, '#');
  });
  let writer: Promise<pg.Client> | undefined;
  return {
    database,
    vhost,
    queue: QUEUE,
    broker,
    async write(n, options = {}) {
      const client = await (writer ??= database.connect());
      return writeRows(client, n, options);
    },
    async pending(state) {
      const rows = await database.query<{ n: number }>(
        'select count(*)::int as n from waybill.outbox where $1::text is null or state = $1',
        [state ?? null],
      );
      return rows[0]?.n ?? -1;
    },
    async emptied(withinMs = 60_000) {
      const isEmpty = async (): Promise<boolean> =>
        (await database.query('select from waybill.outbox limit 1')).length === 0;
      try {
        await until(isEmpty, { withinMs, everyMs: 50, what: 'the outbox to be empty' });
      } catch (error) {
        const left = await database.query(
          'select state, last_error, count(*)::int as n from waybill.outbox group by 1, 2 order by 3 desc limit 5',
        );
        throw new Error(`${String(error)}; left: ${JSON.stringify(left)}`, { cause: error });
      }
    },
    async taken() {
      const { messageCount } = await broker((channel) => channel.checkQueue(QUEUE));
      const probe = await startBrokerProbe({
        url: vhost.url,
        queue: QUEUE,
        ...(queueArguments ? { arguments: queueArguments } : {}),
      });
      const messages = await probe.waitFor(messageCount, 30_000);
      await probe.close();
      return messages;
    },
    async drop() {
      await Promise.all([database.drop(), vhost.drop()]);
    },
  };
}

async function writeRows(client: pg.Client, n: number, options: WriteOptions): Promise<WrittenRow[]> {
  const { type = 'order.paid', padding = 0, together = false, columns = {} } = options;
  const rows = Array.from({ length: n }, (_, index) => ({
    id: randomUUID(),
    // Odd on purpose: a body that somebody parses and prints again would not look like this.
    body: `{"n" : ${index}, "amount": 1.10, "big": 12345678901234567890, "pad": "${'x'.repeat(padding)}"}`,
  }));
  const names = ['id', 'type', 'payload', ...Object.keys(columns)];
  const statement = `insert into waybill.outbox (${names.join(', ')}) values (${names.map((_, i) => `$${i + 1}`).join(', ')})`;
  if (together) await client.query('begin');
  for (const row of rows) await client.query(statement, [row.id, type, row.body, ...Object.values(columns)]);
  if (together) await client.query('commit');
  return rows;
}

/** What became of the rows: every number that matters after a fault. */
export interface Tally {
  /** Rows that never arrived. */
  lost: number;
  /** Arrivals that nobody wrote. */
  phantom: number;
  /** Rows of which a copy differs from what was written, or from another copy. */
  differing: string[];
  /** Copies beyond the first. */
  duplicates: number;
  /** Whether the first copies came in the order of the rows. */
  inOrder: boolean;
}

/** Compares what arrived with what was written. */
export function tally(rows: readonly WrittenRow[], messages: readonly ProbedMessage[]): Tally {
  const written = new Map(rows.map((row) => [row.id, row.body]));
  const first = new Map<string, ProbedMessage>();
  const differing = new Set<string>();
  let phantom = 0;
  for (const message of messages) {
    const id = message.id ?? '';
    const earlier = first.get(id);
    if (!written.has(id)) phantom += 1;
    else if (message.body.toString() !== written.get(id)) differing.add(id);
    if (!earlier) first.set(id, message);
    else if (wireOf(earlier) !== wireOf(message)) differing.add(id);
  }
  const order = rows.filter((row) => first.has(row.id)).map((row) => row.id);
  return {
    lost: rows.length - order.length,
    phantom,
    differing: [...differing],
    duplicates: messages.length - first.size,
    inOrder: order.join() === [...first.keys()].filter((id) => written.has(id)).join(),
  };
}

/** Everything about a message that must be the same in every copy. */
function wireOf({ type, exchange, routingKey, properties, body }: ProbedMessage): string {
  return JSON.stringify([type, exchange, routingKey, properties, body.toString('base64')]);
}
