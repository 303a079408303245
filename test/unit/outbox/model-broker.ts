import type { Fault } from '../../../src/core/fault.js';
import type { Message } from '../../../src/core/message.js';
import type { PublishChannel, PublishChannelEvents, PublishConnection } from '../../../src/outbox/ports.js';
import type { Calls } from './model-calls.js';

/** A message on a channel, in the order of its delivery tag. */
interface Arrival {
  message: Message;
  /** What the broker decided and has not told yet; `told` afterwards. */
  word: 'none' | 'ack' | 'nack' | 'told';
  returned: boolean;
}

/**
 * What the relay sees of RabbitMQ, for the property tests only. The fate of a message stands in its type: `unroutable`,
 * `nack` (both until `healed`) and `poison` (closes the channel); everything else is put into the queue.
 */
export class ModelBroker {
  readonly queue: Message[] = [];
  /** Ids whose confirm was sent, without a return before it. */
  readonly confirmed = new Set<string>();
  readonly exchanges = new Set(['events', 'sometimes']);
  healed = false;

  deliver(message: Message): void {
    this.queue.push(message);
  }
}

export class ModelConnection implements PublishConnection {
  readonly #broker: ModelBroker;
  readonly #calls: Calls;
  readonly #onPublish: (message: Message) => void;
  channel: ModelChannel | undefined;
  isBlocked = false;

  constructor(broker: ModelBroker, calls: Calls, onPublish: (message: Message) => void) {
    this.#broker = broker;
    this.#calls = calls;
    this.#onPublish = onPublish;
  }

  openChannel(events: PublishChannelEvents): Promise<PublishChannel> {
    return this.#calls.make(() => (this.channel = new ModelChannel(this.#broker, events, this.#onPublish)));
  }

  checkExchange(name: string): Promise<Fault | undefined> {
    return this.#calls.make(() =>
      this.#broker.exchanges.has(name) ? undefined : { fault: 'exchange_missing', text: `no exchange ${name}` },
    );
  }
}

class ModelChannel implements PublishChannel {
  readonly #broker: ModelBroker;
  readonly #events: PublishChannelEvents;
  readonly #onPublish: (message: Message) => void;
  readonly #arrivals: Arrival[] = [];
  #processed = 0;
  isOpen = true;

  constructor(broker: ModelBroker, events: PublishChannelEvents, onPublish: (message: Message) => void) {
    this.#broker = broker;
    this.#events = events;
    this.#onPublish = onPublish;
  }

  publish(message: Message): void {
    if (!this.isOpen) throw Object.assign(new Error('Channel closed'), { name: 'IllegalOperationError' });
    this.#onPublish(message);
    this.#arrivals.push({ message, word: 'none', returned: false });
  }

  close(): Promise<void> {
    this.isOpen = false;
    return Promise.resolve();
  }

  /** What was published and not answered. */
  get unanswered(): Message[] {
    return this.#arrivals.filter(({ word }) => word !== 'told').map(({ message }) => message);
  }

  /** The broker reads the next `count` messages. */
  process(count: number): void {
    for (let n = 0; n < count && this.isOpen; n += 1) {
      const arrival = this.#arrivals[this.#processed];
      if (!arrival) return;
      this.#processed += 1;
      const { message } = arrival;
      const { healed, exchanges } = this.#broker;
      if (!exchanges.has(message.exchange)) this.die(404);
      else if (message.type === 'poison') this.die(406);
      else if (message.type === 'nack' && !healed) arrival.word = 'nack';
      else if (message.type === 'unroutable' && !healed) {
        arrival.returned = true;
        arrival.word = 'ack';
        this.#events.onReturn(message.messageId, { replyCode: 312, replyText: 'NO_ROUTE' });
      } else {
        arrival.word = 'ack';
        this.#broker.deliver(message);
      }
    }
  }

  /** Tells one word that is due, in any order; `multiple` where the protocol allows it. */
  confirm(which: number, multiple: boolean): void {
    if (!this.isOpen) return;
    const due = this.#arrivals.flatMap(({ word }, n) => (word === 'ack' || word === 'nack' ? [n] : []));
    const at = due[which % due.length];
    if (at === undefined) return;
    const { word } = this.#arrivals[at]!;
    const before = this.#arrivals.slice(0, at + 1).filter((each) => each.word !== 'told');
    const all = multiple && before.every((each) => each.word === word);
    for (const each of all ? before : [this.#arrivals[at]!]) {
      each.word = 'told';
      if (word === 'ack' && !each.returned) this.#broker.confirmed.add(each.message.messageId);
    }
    if (word === 'ack') this.#events.onAck(at + 1, all);
    else this.#events.onNack(at + 1, all);
  }

  /** The channel closes, with a reply code when the broker did not like a message. */
  die(code?: number): void {
    if (!this.isOpen) return;
    this.isOpen = false;
    this.#events.onClosed(Object.assign(new Error(`closed ${code ?? 'with the connection'}`), code ? { code } : {}));
  }
}
