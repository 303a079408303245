import type { Channel } from 'amqplib';
import { WaybillError } from '../core/errors.js';
import type { BrokerConnection } from './connection.js';
import { replyCode, toBrokerError } from './errors.js';

/** Where dead letters go: our copies as `dead.<consumer>`, deaths that the broker decides as `broker.<queue>`. */
export const DEAD_LETTER_EXCHANGE = 'waybill.dlx';

/** What a consumer needs at the broker. */
export interface ConsumerTopology {
  consumer: string;
  queue: string;
  queueType: 'quorum' | 'classic';
  /** One consumer at a time gets messages; the others wait to take over. */
  singleActiveConsumer: boolean;
  bindings: readonly { exchange: string; routingKey: string }[];
  /** A queue for copies of dead messages. */
  deadLetterQueue: string | null;
}

/** The queue for deaths that the broker decides (delivery limit, expiry), which are drained into the table. */
export function brokerDeathsQueue(queue: string): string {
  return `${queue}.dlq`;
}

/** Deliveries of one message before the broker gives it up. Why so many: each channel close counts one (fact 65). */
const DELIVERY_LIMIT = 100_000;
const COPIES_KEPT = 100_000;

/**
 * The arguments of a consumer's queue. At-least-once dead-lettering needs all four: quorum, the strategy, reject-publish
 * and an exchange (fact 40). A classic queue dead-letters at most once, which is what it can.
 */
function queueArguments(topology: ConsumerTopology): Record<string, unknown> {
  return {
    'x-queue-type': topology.queueType,
    'x-dead-letter-exchange': DEAD_LETTER_EXCHANGE,
    'x-dead-letter-routing-key': `broker.${topology.queue}`,
    ...(topology.queueType === 'quorum'
      ? {
          'x-dead-letter-strategy': 'at-least-once',
          'x-overflow': 'reject-publish',
          'x-delivery-limit': DELIVERY_LIMIT,
        }
      : {}),
    ...(topology.singleActiveConsumer ? { 'x-single-active-consumer': true } : {}),
  };
}

/**
 * Declares what a consumer needs. A queue that is there is left as it is, whatever its arguments, unless the consumer
 * relies on one of them. Each declaration has a channel of its own, because a refusal closes it (fact 43).
 */
export async function declareConsumer(connection: BrokerConnection, topology: ConsumerTopology): Promise<void> {
  const { queue, queueType, bindings, deadLetterQueue } = topology;
  const declare = (doing: string, work: (channel: Channel) => Promise<unknown>): Promise<void> =>
    attempt(connection, doing, work);
  await declare(`declaring exchange ${DEAD_LETTER_EXCHANGE}`, (channel) =>
    channel.assertExchange(DEAD_LETTER_EXCHANGE, 'topic', { durable: true }),
  );
  // Why before the queue itself: what dies in it must not go nowhere (F105).
  const deaths = brokerDeathsQueue(queue);
  await declareQueue(connection, deaths, { 'x-queue-type': queueType });
  await declare(`binding ${deaths}`, (channel) => channel.bindQueue(deaths, DEAD_LETTER_EXCHANGE, `broker.${queue}`));
  if (deadLetterQueue !== null) {
    await declareQueue(connection, deadLetterQueue, {
      'x-queue-type': queueType,
      'x-max-length': COPIES_KEPT,
      'x-overflow': 'drop-head',
    });
    await declare(`binding ${deadLetterQueue}`, (channel) =>
      channel.bindQueue(deadLetterQueue, DEAD_LETTER_EXCHANGE, `dead.${topology.consumer}`),
    );
  }
  if (topology.singleActiveConsumer) {
    await declare(`declaring queue ${queue} with one active consumer, for order: key`, (channel) =>
      channel.assertQueue(queue, { durable: true, arguments: queueArguments(topology) }),
    );
  } else await declareQueue(connection, queue, queueArguments(topology));
  for (const { exchange, routingKey } of bindings) {
    await declare(`binding ${queue} to exchange ${exchange}`, (channel) =>
      channel.bindQueue(queue, exchange, routingKey),
    );
  }
}

/** Whether a queue is there; on a channel of its own, because the answer no closes it. */
export async function queueExists(connection: BrokerConnection, queue: string): Promise<boolean> {
  try {
    await connection.throwaway((channel) => channel.checkQueue(queue));
    return true;
  } catch (error) {
    if (replyCode(error) === 404) return false;
    throw toBrokerError(error, `looking for queue ${queue}`);
  }
}

async function declareQueue(connection: BrokerConnection, queue: string, args: Record<string, unknown>): Promise<void> {
  if (await queueExists(connection, queue)) return;
  await attempt(connection, `declaring queue ${queue}`, (channel) =>
    channel.assertQueue(queue, { durable: true, arguments: args }),
  );
}

async function attempt(
  connection: BrokerConnection,
  doing: string,
  work: (channel: Channel) => Promise<unknown>,
): Promise<void> {
  try {
    await connection.throwaway(work);
  } catch (error) {
    const code = replyCode(error);
    if (code !== 404 && code !== 406 && code !== 403) throw toBrokerError(error, doing);
    throw new WaybillError('WAYBILL_TOPOLOGY_MISMATCH', `${doing}: ${String(error)}`, {
      hint:
        code === 404
          ? 'Declare what is missing first (an exchange is declared by whoever publishes to it).'
          : code === 406
            ? 'It is there with other arguments, which cannot be changed: delete it when it is empty, or use another name.'
            : 'Give the user the permissions, or declare it yourself and set topology: check.',
      cause: error,
    });
  }
}
