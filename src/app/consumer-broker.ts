import type { ConsumerConfig } from '../config/consumers.js';
import { WaybillError } from '../core/errors.js';
import type { Message } from '../core/message.js';
import {
  brokerDeathsQueue,
  consumerTopology,
  deadLetterTopology,
  DEAD_LETTER_EXCHANGE,
  retryQueue,
  withoutDelayPlugin,
  type Topology,
} from '../core/topology.js';
import type {
  ConsumeChannelEvents,
  ConsumerBroker,
  CopiesSent,
  CopyPublisher,
  OpenTimers,
  Timer,
} from '../inbox/ports.js';
import { isMissing, isRefusedMessage } from '../rabbitmq/errors.js';
import { publishConfirmed } from '../rabbitmq/confirmed-publisher.js';
import { ConsumeChannel } from '../rabbitmq/consume-channel.js';
import { checkTopology, declareTopology, queueExists } from '../rabbitmq/consumer-topology.js';
import { DelayExchange, readTimer } from '../rabbitmq/delay-exchange.js';
import { requireDelayPlugin } from '../rabbitmq/delay-plugin.js';
import type { Clock } from '../runtime/clock.js';
import type { BrokerLink } from './broker-link.js';

const TIMERS_PREFETCH = 500;
const DEATHS_PREFETCH = 50;
const COPY_LIMIT_MS = 30_000;

/** What one consumer wants of RabbitMQ, over two connections that it shares: an alarm blocks only the one that publishes. */
export class ConfiguredConsumerBroker implements ConsumerBroker {
  readonly #consumer: ConsumerConfig;
  readonly #consuming: BrokerLink;
  readonly #publishing: BrokerLink;
  readonly #clock: Clock;
  readonly #installation: string;

  /** `installation`: the uuid of the schema's. */
  constructor(
    consumer: ConsumerConfig,
    links: { consuming: BrokerLink; publishing: BrokerLink },
    clock: Clock,
    installation: string,
  ) {
    this.#consumer = consumer;
    this.#installation = installation;
    this.#consuming = links.consuming;
    this.#publishing = links.publishing;
    this.#clock = clock;
  }

  /** Without the plugin's exchange: a missing plugin holds up the timers alone. */
  prepare(): Promise<void> {
    return this.#declare(withoutDelayPlugin(consumerTopology(this.#consumer)));
  }

  /** F105: what RabbitMQ itself gives up tells nobody that the exchange is missing. */
  keepDeadLetters(): Promise<void> {
    return this.#declare(deadLetterTopology(this.#consumer));
  }

  async #declare(wanted: Topology): Promise<void> {
    const { name, queue, order, topology } = this.#consumer;
    if (topology === 'none') return;
    if (topology === 'check') {
      await checkTopology(await this.#consuming.get(), wanted, name);
      return;
    }
    // Of an ordered consumer: without one active consumer at a time its order would break silently.
    const exact = new Set(order === 'key' ? [queue] : []);
    await declareTopology(await this.#consuming.get(), wanted, { exact });
  }

  async consume(events: ConsumeChannelEvents, prefetch = this.#consumer.prefetch): Promise<ConsumeChannel> {
    const { queue } = this.#consumer;
    return ConsumeChannel.open(await this.#consuming.get(), queue, prefetch, events, this.#clock);
  }

  async waiting(): Promise<number> {
    const connection = await this.#consuming.get();
    return (await connection.throwaway((channel) => channel.checkQueue(this.#consumer.queue))).messageCount;
  }

  async hasDeaths(): Promise<boolean> {
    await this.prepare();
    return queueExists(await this.#consuming.get(), brokerDeathsQueue(this.#consumer.queue));
  }

  async consumeDeaths(events: ConsumeChannelEvents): Promise<ConsumeChannel> {
    const queue = brokerDeathsQueue(this.#consumer.queue);
    return ConsumeChannel.open(await this.#consuming.get(), queue, DEATHS_PREFETCH, events, this.#clock);
  }

  async openTimers(
    onTimer: (timer: Timer | 'foreign' | undefined) => void,
    onClosed: (error: Error) => void,
  ): Promise<OpenTimers> {
    const { name, retry, delay } = this.#consumer;
    const usesPlugin = delay === 'x-delayed-message';
    if (usesPlugin) await requireDelayPlugin(this.#publishing.endpoints(), [name], this.#clock);
    await this.#declare(consumerTopology(this.#consumer));
    let told = false;
    const closed = (error: Error): void => {
      if (told) return;
      told = true;
      onClosed(error);
    };
    const exchange = await DelayExchange.open(
      await this.#publishing.get(),
      { tiersMs: usesPlugin ? null : [...new Set(retry.delaysMs)], installation: this.#installation },
      closed,
      this.#clock,
    );
    const channel = await ConsumeChannel.open(
      await this.#consuming.get(),
      retryQueue(name),
      TIMERS_PREFETCH,
      {
        onDelivery: ({ body, deliveryTag }, receiving) => {
          onTimer(readTimer(body, this.#installation));
          // At once: a timer is a hint, and the sweep covers what a crash forgets.
          receiving.ackUpTo(deliveryTag);
        },
        onClosed: closed,
      },
      this.#clock,
    ).catch(async (error: unknown) => {
      await exchange.close();
      throw error;
    });
    return {
      exchange,
      close: async () => {
        await channel.close();
        await exchange.close();
      },
    };
  }

  get copies(): CopyPublisher {
    return { queue: this.#consumer.deadLetterQueue, publish: (messages) => this.#publishCopies(messages) };
  }

  /** What was deleted since the start is declared again, so that copies are not lost with it (F105). */
  async #publishCopies(messages: readonly Message[], isSecond = false): Promise<CopiesSent> {
    const again = async (): Promise<CopiesSent> => {
      await this.prepare();
      return this.#publishCopies(messages, true);
    };
    const connection = await this.#publishing.get();
    let unroutable;
    try {
      unroutable = await publishConfirmed(connection, messages, this.#clock, COPY_LIMIT_MS);
    } catch (error) {
      if (isRefusedMessage(error)) return { kind: 'refused', error };
      if (!isMissing(error)) throw error;
      if (!isSecond && this.#consumer.topology === 'assert') return again();
      throw new WaybillError('WAYBILL_TOPOLOGY_MISMATCH', `exchange ${DEAD_LETTER_EXCHANGE} does not exist`, {
        hint: 'Declare it (waybill topology apply); the copies wait for that in the database.',
        cause: error,
      });
    }
    const isWanted = unroutable.size > 0 && this.#consumer.deadLetterQueue !== null;
    if (isWanted && !isSecond && this.#consumer.topology === 'assert') return again();
    return { kind: 'taken', unroutable };
  }
}
