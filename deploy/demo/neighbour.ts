import { randomUUID } from 'node:crypto';
import * as amqp from 'amqplib';
import type { Arrival } from './consumer.js';

const EXCHANGE = 'waybill.events';

/** What the neighbour has sent. */
export interface Mischief {
  duplicates: number;
  conflicts: number;
  poison: number;
  /** Seen to wait for their orders. */
  early: number;
}

/** Another service on the same broker, which sends what no sender should: it knows RabbitMQ only. */
export class Neighbour {
  readonly #url: string;

  constructor(url: string) {
    this.#url = url;
  }

  /** Old messages once more, one of them changed, and orders whose price is no number. */
  async misbehave(known: ReadonlyMap<string, Arrival>): Promise<Omit<Mischief, 'early'>> {
    const old = [...known].slice(0, 21);
    await this.#send(async (publish) => {
      for (const [id, { body }] of old.slice(1)) await publish('order.placed', id, body);
      const [id, { body }] = old[0]!;
      await publish('order.placed', id, body.replace('"total": ', '"total": 1'));
      for (let n = 0; n < 3; n += 1) await publish('order.placed', randomUUID(), '{"order": 1, "total": "free!"}');
    });
    return { duplicates: old.length - 1, conflicts: 1, poison: 3 };
  }

  /** Payments for these orders, which do not exist yet. */
  async payEarly(orders: readonly string[]): Promise<void> {
    await this.#send(async (publish) => {
      for (const order of orders) await publish('order.paid', randomUUID(), `{"order": ${order}}`);
    });
  }

  async #send(work: (publish: (type: string, id: string, body: string) => Promise<void>) => Promise<void>) {
    const connection = await amqp.connect(this.#url);
    connection.on('error', () => undefined);
    const channel = await connection.createConfirmChannel();
    await work(async (type, messageId, body) => {
      const headers = { 'x-waybill-schema-version': 1 };
      channel.publish(EXCHANGE, type, Buffer.from(body), {
        type,
        messageId,
        headers,
        contentType: 'application/json',
        persistent: true,
        timestamp: Math.floor(Date.now() / 1000),
      });
      await channel.waitForConfirms();
    });
    await connection.close();
  }
}
