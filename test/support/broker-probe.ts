import * as amqp from 'amqplib';
import { until } from './waiting.js';

/** One message as it arrived, in arrival order. */
export interface ProbedMessage {
  id: string | undefined;
  type: string | undefined;
  exchange: string;
  routingKey: string;
  redelivered: boolean;
  headers: Record<string, unknown>;
  properties: amqp.MessageProperties;
  body: Buffer;
}

/** What a probe listens to. */
export interface BrokerProbeOptions {
  url: string;
  /** An exchange that exists; without it the probe only consumes its queue. */
  exchange?: string;
  /** Binding key (default "#"). */
  routingKey?: string;
  /** Name of a durable queue that outlives the probe; default a queue that goes away with it. */
  queue?: string;
  /** Arguments of the queue, for example { 'x-queue-type': 'quorum' }. */
  arguments?: Record<string, unknown>;
}

/** A consumer that collects every message of a queue bound to an exchange. */
export interface BrokerProbe {
  readonly queue: string;
  /** All copies in arrival order; grows while the probe lives. */
  readonly messages: readonly ProbedMessage[];
  /** Message ids in arrival order, copies included. */
  ids(): (string | undefined)[];
  /** Message ids in the order of their first copies. */
  firstIds(): (string | undefined)[];
  /** Waits until at least n messages have arrived and resolves with all of them. */
  waitFor(n: number, withinMs?: number): Promise<readonly ProbedMessage[]>;
  /** Waits until at least n different message ids have arrived. */
  waitForDistinct(n: number, withinMs?: number): Promise<readonly ProbedMessage[]>;
  /** Forgets what has arrived so far. */
  clear(): void;
  close(): Promise<void>;
}

/** Declares the queue, binds it and starts consuming; resolves when the broker has accepted all that. */
export async function startBrokerProbe(options: BrokerProbeOptions): Promise<BrokerProbe> {
  const connection = await amqp.connect(options.url);
  connection.on('error', () => undefined);
  const channel = await connection.createChannel();
  channel.on('error', () => undefined);
  const durable = options.queue !== undefined;
  const { queue } = await channel.assertQueue(options.queue ?? '', {
    durable,
    exclusive: !durable,
    ...(options.arguments ? { arguments: options.arguments } : {}),
  });
  if (options.exchange !== undefined) await channel.bindQueue(queue, options.exchange, options.routingKey ?? '#');
  const messages: ProbedMessage[] = [];
  await channel.prefetch(1000);
  await channel.consume(queue, (message) => {
    if (!message) return;
    messages.push(probed(message));
    channel.ack(message);
  });
  const ids = () => messages.map((message) => message.id);
  const distinct = () => [...new Set(ids())];
  return {
    queue,
    messages,
    ids,
    firstIds: distinct,
    async waitFor(n, withinMs = 10_000) {
      await until(() => messages.length >= n, {
        withinMs,
        get what() {
          return `${n} messages in ${queue} (${messages.length} came)`;
        },
      });
      return messages;
    },
    async waitForDistinct(n, withinMs = 10_000) {
      await until(() => distinct().length >= n, {
        withinMs,
        get what() {
          return `${n} different messages in ${queue} (${distinct().length} came)`;
        },
      });
      return messages;
    },
    clear: () => void messages.splice(0),
    async close() {
      // A connection that the broker has already ended cannot be closed again.
      await connection.close().catch(() => undefined);
    },
  };
}

function probed(message: amqp.ConsumeMessage): ProbedMessage {
  const { fields, properties, content } = message;
  return {
    id: properties.messageId as string | undefined,
    type: properties.type as string | undefined,
    exchange: fields.exchange,
    routingKey: fields.routingKey,
    redelivered: fields.redelivered,
    headers: properties.headers ?? {},
    properties,
    body: content,
  };
}
