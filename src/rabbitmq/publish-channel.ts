import type { Channel, ChannelModel, ConfirmChannel, Options } from 'amqplib';
import type { Message } from '../core/message.js';
import type { Clock } from '../runtime/clock.js';
import { handshake } from './closing.js';

export interface PublishChannelEvents {
  onAck(deliveryTag: number, multiple: boolean): void;
  onNack(deliveryTag: number, multiple: boolean): void;
  onReturn(messageId: string, reason: { replyCode: number; replyText: string }): void;
  /** Once, when the channel has ended for any reason but `close`; nothing else is called afterwards. */
  onClosed(error: Error): void;
}

/** A channel in confirm mode: mandatory, persistent publishes; acks, nacks and returns as they come. */
export class PublishChannel {
  readonly #channel: ConfirmChannel;
  readonly #clock: Clock;
  readonly #publish: Channel['publish'];
  #ended = false;

  private constructor(channel: ConfirmChannel, clock: Clock) {
    this.#channel = channel;
    this.#clock = clock;
    // Why: the client's own list of unconfirmed publishes loses count after out-of-order acks and then grows for ever.
    // Its listeners go, and publishing goes past the list; ConfirmTracker keeps the books.
    channel.removeAllListeners('ack');
    channel.removeAllListeners('nack');
    const plain = Object.getPrototypeOf(Object.getPrototypeOf(channel)) as Channel;
    this.#publish = plain.publish.bind(channel);
  }

  static async open(model: ChannelModel, events: PublishChannelEvents, clock: Clock): Promise<PublishChannel> {
    const channel = await model.createConfirmChannel();
    const publishing = new PublishChannel(channel, clock);
    publishing.#listen(events);
    return publishing;
  }

  #listen(events: PublishChannelEvents): void {
    let lastError: Error | undefined;
    const live =
      <T>(handle: (event: T) => void) =>
      (event: T): void => {
        if (!this.#ended) handle(event);
      };
    interface Confirmation {
      deliveryTag: number;
      multiple: boolean;
    }
    this.#channel.on(
      'ack',
      live((fields: Confirmation) => events.onAck(fields.deliveryTag, fields.multiple)),
    );
    this.#channel.on(
      'nack',
      live((fields: Confirmation) => events.onNack(fields.deliveryTag, fields.multiple)),
    );
    this.#channel.on(
      'return',
      live((message: { fields: object; properties: { messageId?: unknown } }) => {
        const fields = message.fields as { replyCode?: number; replyText?: string };
        events.onReturn(String(message.properties.messageId), {
          replyCode: fields.replyCode ?? 0,
          replyText: fields.replyText ?? '',
        });
      }),
    );
    this.#channel.on('error', (error: Error) => (lastError = error));
    this.#channel.on(
      'close',
      live(() => {
        this.#ended = true;
        events.onClosed(lastError ?? new Error('the channel closed'));
      }),
    );
  }

  /** Hands a message to the socket. Throws when the client refuses it; then nothing was sent and no tag is used. */
  publish(message: Message): void {
    const options: Options.Publish = {
      mandatory: true,
      persistent: true,
      messageId: message.messageId,
      type: message.type,
      contentType: message.contentType,
      headers: message.headers,
      ...(message.contentEncoding === null ? {} : { contentEncoding: message.contentEncoding }),
      ...(message.correlationId === null ? {} : { correlationId: message.correlationId }),
      ...(message.replyTo === null ? {} : { replyTo: message.replyTo }),
      ...(message.priority === null ? {} : { priority: message.priority }),
      ...(message.timestamp === null ? {} : { timestamp: message.timestamp }),
    };
    this.#publish(message.exchange, message.routingKey, message.body, options);
  }

  get isOpen(): boolean {
    return !this.#ended;
  }

  async close(): Promise<void> {
    if (this.#ended) return;
    this.#ended = true;
    await handshake(this.#channel.close(), this.#clock);
  }
}
