import { setTimeout as delay } from 'node:timers/promises';
import * as amqp from 'amqplib';

const EXCHANGE = 'waybill.events';
const QUEUE = 'orders';

/** The first copy of a message as it arrived. */
export interface Arrival {
  atMs: number;
  body: string;
}

/** A service that listens to orders: it notes each message and acknowledges it. It knows RabbitMQ only. */
export class Consumer {
  readonly arrivals = new Map<string, Arrival>();
  /** Copies after the first of the same id. */
  duplicates = 0;
  readonly #url: string;
  #connection: amqp.ChannelModel | undefined;
  #open = true;
  #loop: Promise<void> = Promise.resolve();

  constructor(url: string) {
    this.#url = url;
  }

  /** Declares its durable queue and consumes, over new connections when one is lost; resolves when the first is up. */
  async start(): Promise<void> {
    const first = await this.#connect();
    this.#loop = this.#keepConnected(first);
  }

  /** How many messages wait in the queue; only while the broker is up. */
  async waitingInQueue(): Promise<number> {
    const channel = await this.#connection!.createChannel();
    const { messageCount } = await channel.checkQueue(QUEUE);
    await channel.close();
    return messageCount;
  }

  async close(): Promise<void> {
    this.#open = false;
    await this.#connection?.close().catch(() => undefined);
    await this.#loop;
  }

  async #keepConnected(first: Promise<unknown>[]): Promise<void> {
    let lost = first;
    while (this.#open) {
      await Promise.race(lost);
      // Does nothing when the connection is lost already; a channel can be lost alone.
      this.#connection?.close().catch(() => undefined);
      while (this.#open) {
        await delay(100);
        try {
          lost = await this.#connect();
          break;
        } catch {
          // The broker is not back yet.
        }
      }
    }
  }

  /** Gives promises that resolve when the connection is lost. */
  async #connect(): Promise<Promise<unknown>[]> {
    const connection = await amqp.connect(this.#url, { timeout: 2000 });
    const lost = new Promise((resolve) => connection.on('close', resolve));
    connection.on('error', () => undefined);
    this.#connection = connection;
    const channel = await connection.createChannel();
    const channelLost = new Promise((resolve) => channel.on('close', resolve));
    channel.on('error', () => undefined);
    await channel.assertExchange(EXCHANGE, 'topic', { durable: true });
    await channel.assertQueue(QUEUE, { durable: true, arguments: { 'x-queue-type': 'quorum' } });
    await channel.bindQueue(QUEUE, EXCHANGE, 'order.*');
    await channel.prefetch(500);
    await channel.consume(QUEUE, (message) => {
      if (!message) {
        connection.close().catch(() => undefined);
        return;
      }
      this.#note(message);
      channel.ack(message);
    });
    return [lost, channelLost];
  }

  #note(message: amqp.ConsumeMessage): void {
    // What a neighbour sends does not count.
    if (message.properties.headers?.['x-waybill-key'] === undefined) return;
    const id = String(message.properties.messageId);
    if (this.arrivals.has(id)) this.duplicates++;
    else this.arrivals.set(id, { atMs: performance.now(), body: message.content.toString('utf8') });
  }
}
