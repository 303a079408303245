import type { Channel, ConsumeMessage } from 'amqplib';
import { WaybillError } from '../core/errors.js';
import type { Delivery } from '../core/delivery.js';
import type { Clock } from '../runtime/clock.js';
import { handshake } from './closing.js';
import type { BrokerConnection } from './connection.js';
import { replyCode, toBrokerError } from './errors.js';

export interface ConsumeChannelEvents {
  /** May be called before `open` has given the channel. */
  onDelivery(delivery: Delivery, channel: ConsumeChannel): void;
  /** Once, when the channel has ended for any reason but `close`, or the broker has cancelled the consumer. */
  onClosed(error: WaybillError): void;
}

/**
 * A channel that consumes one queue. Delivery tags are its own: an acknowledgement after its end is dropped here, because
 * on another channel it would close that one (F19, fact 38). Never nacks: what is not acknowledged comes back when the
 * channel closes (F95).
 */
export class ConsumeChannel {
  readonly #channel: Channel;
  readonly #clock: Clock;
  readonly #events: ConsumeChannelEvents;
  #consumerTag = '';
  #ended = false;
  #lastError: Error | undefined;

  private constructor(channel: Channel, events: ConsumeChannelEvents, clock: Clock) {
    this.#channel = channel;
    this.#events = events;
    this.#clock = clock;
  }

  /** Rejects when the queue is not there or may not be read. */
  static async open(
    connection: BrokerConnection,
    queue: string,
    prefetch: number,
    events: ConsumeChannelEvents,
    clock: Clock,
  ): Promise<ConsumeChannel> {
    try {
      const channel = await connection.plainChannel();
      const consuming = new ConsumeChannel(channel, events, clock);
      channel.on('error', (error: Error) => (consuming.#lastError = error));
      channel.on('close', () => consuming.#end(consuming.#lastError ?? new Error('the channel closed')));
      await channel.prefetch(prefetch);
      const { consumerTag } = await channel.consume(queue, (message) => consuming.#receive(queue, message));
      consuming.#consumerTag = consumerTag;
      return consuming;
    } catch (error) {
      if (replyCode(error) === 404) {
        throw new WaybillError('WAYBILL_TOPOLOGY_MISMATCH', `consuming ${queue}: the queue does not exist`, {
          hint: 'Declare it, or set topology: assert and let the start do that.',
          cause: error,
        });
      }
      throw toBrokerError(error, `consuming ${queue}`);
    }
  }

  #receive(queue: string, message: ConsumeMessage | null): void {
    if (this.#ended) return;
    if (message) {
      this.#events.onDelivery(toDelivery(message), this);
      return;
    }
    const error = new WaybillError('WAYBILL_CONSUMER_CANCELLED', `RabbitMQ cancelled the consumer of ${queue}`, {
      hint: 'The queue was deleted or its leader moved; it is declared and consumed again.',
    });
    this.#end(error);
    this.#channel.close().catch(() => undefined);
  }

  #end(error: Error): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#events.onClosed(toBrokerError(error, 'consuming'));
  }

  get isOpen(): boolean {
    return !this.#ended;
  }

  ackUpTo(deliveryTag: number): void {
    if (!this.#ended) this.#channel.ack({ fields: { deliveryTag } } as ConsumeMessage, true);
  }

  async cancel(): Promise<void> {
    if (this.#ended) return;
    await handshake(this.#channel.cancel(this.#consumerTag), this.#clock);
  }

  /** What was not acknowledged goes back to the queue. */
  async close(): Promise<void> {
    if (this.#ended) return;
    this.#ended = true;
    await handshake(this.#channel.close(), this.#clock);
  }
}

function toDelivery({ fields, properties, content }: ConsumeMessage): Delivery {
  return {
    deliveryTag: fields.deliveryTag,
    redelivered: fields.redelivered,
    exchange: fields.exchange,
    routingKey: fields.routingKey,
    properties: properties,
    body: content,
  };
}
