import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as amqp from 'amqplib';
import { freshVhost, type FreshVhost } from './broker.js';
import type { FreshDatabase } from './database.js';
import { migratedDatabase } from './migrated-database.js';
import { startRelay, type RelayProcess } from './relay.js';
import type { PostgresServer } from './servers/postgres-server.js';
import type { RabbitServer } from './servers/rabbit-server.js';
import { until } from './waiting.js';

/** One message to be sent to a queue or exchange. */
export interface Sent {
  messageId?: string;
  body?: string | Buffer;
  type?: string;
  key?: string;
  headers?: Record<string, unknown>;
  options?: amqp.Options.Publish;
}

/** A database with the Waybill schema, a virtual host, and a way to run consumers on them as an operator would. */
export interface ReceiverScene {
  readonly database: FreshDatabase;
  readonly vhost: FreshVhost;
  /** Starts `waybill run` with these consumers (YAML beneath `consumers:`); killed by `killRelays` at the latest. */
  start(
    consumers: string,
    options?: { databaseUrl?: string; brokerUrl?: string; env?: Record<string, string>; relay?: boolean },
  ): RelayProcess;
  /** Sends to a queue by the default exchange, or to an exchange, and waits for the confirms. */
  send(to: string | { exchange: string; routingKey: string }, messages: readonly Sent[]): Promise<void>;
  /** Sends frames made for a channel, as no client makes them, and waits until RabbitMQ has read them. */
  sendFrames(make: (channel: number) => Buffer): Promise<void>;
  /** Does something on a channel of its own, with a connection of its own. */
  broker<T>(use: (channel: amqp.Channel) => Promise<T>): Promise<T>;
  /**
   * Messages of a queue that nobody has, by asking RabbitMQ; undefined while there is no such queue. Those that a consumer
   * has and has not acknowledged are back once it has stopped.
   */
  depth(queue: string): Promise<number | undefined>;
  rows(where?: string): Promise<InboxRow[]>;
  /** Waits until so many rows of the inbox have a status. */
  waitForRows(count: number, where: string, withinMs?: number): Promise<InboxRow[]>;
  drop(): Promise<void>;
}

export interface InboxRow {
  seq: string;
  consumer: string;
  message_id: string;
  original_id: string | null;
  type: string | null;
  key: string | null;
  body: Buffer | null;
  status: string;
  failures: number;
  abandoned: number;
  dead_reason: string | null;
  last_error: string | null;
}

/** Makes a scene on the shared servers, or on given ones. */
export async function receiverScene(
  options: { postgres?: PostgresServer; rabbit?: RabbitServer } = {},
): Promise<ReceiverScene> {
  const [database, vhost] = await Promise.all([
    migratedDatabase(options.postgres ? { server: options.postgres } : {}),
    freshVhost(options.rabbit),
  ]);
  const folder = mkdtempSync(join(tmpdir(), 'waybill-receiver-'));
  let files = 0;
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
  const rows = (where = 'true'): Promise<InboxRow[]> =>
    database.query<InboxRow>(`select *, seq::text from waybill.inbox where ${where} order by inbox.seq`);
  return {
    database,
    vhost,
    broker,
    rows,
    start(consumers, { databaseUrl = database.url, brokerUrl = vhost.url, env = {}, relay = false } = {}) {
      const file = join(folder, `waybill-${files++}.yaml`);
      const indented = consumers.replaceAll(/^/gm, '  ');
      writeFileSync(file, `${relay ? '' : 'relay: false\n'}consumers:\n${indented}\n`);
      return startRelay({ databaseUrl, brokerUrl, env: { WAYBILL_CONFIG: file, ...env } });
    },
    async send(to, messages) {
      const { exchange, routingKey } = typeof to === 'string' ? { exchange: '', routingKey: to } : to;
      const connection = await amqp.connect(vhost.url);
      const channel = await connection.createConfirmChannel();
      // What the broker refuses fails the confirms; an unheard error would end the run.
      channel.on('error', () => undefined);
      for (const message of messages) {
        const body = Buffer.isBuffer(message.body) ? message.body : Buffer.from(message.body ?? '{}');
        channel.publish(exchange, routingKey, body, {
          persistent: true,
          contentType: 'application/json',
          ...(message.messageId === undefined ? {} : { messageId: message.messageId }),
          type: message.type ?? 'order.paid',
          headers: { ...(message.key === undefined ? {} : { 'x-waybill-key': message.key }), ...message.headers },
          ...message.options,
        });
      }
      await channel.waitForConfirms();
      await connection.close();
    },
    sendFrames: (make) =>
      broker(async (channel) => {
        const { ch, connection } = channel as unknown as { ch: number; connection: { stream: Socket } };
        connection.stream.write(make(ch));
        // What is asked afterwards on the same channel is answered afterwards.
        await channel.prefetch(1);
      }),
    async depth(queue) {
      try {
        return await broker(async (channel) => (await channel.checkQueue(queue)).messageCount);
      } catch {
        return undefined;
      }
    },
    async waitForRows(count, where, withinMs = 20_000) {
      let seen: InboxRow[] = [];
      try {
        await until(
          async () => {
            seen = await rows(where);
            return seen.length === count;
          },
          { withinMs, everyMs: 25, what: `${count} rows with ${where}` },
        );
      } catch (error) {
        const all = await database.query(
          'select status, dead_reason, last_error, failures, count(*)::int as n from waybill.inbox group by 1, 2, 3, 4',
        );
        throw new Error(`${String(error)}; there are ${seen.length} of ${JSON.stringify(all)}`, { cause: error });
      }
      return seen;
    },
    async drop() {
      rmSync(folder, { recursive: true, force: true });
      await Promise.all([database.drop(), vhost.drop()]);
    },
  };
}
