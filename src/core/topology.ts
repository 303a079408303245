/** An exchange as it is declared; all are durable. */
export interface ExchangeDeclaration {
  name: string;
  type: string;
  arguments?: Readonly<Record<string, string>>;
}

/** A queue as it is declared; all are durable. */
export interface QueueDeclaration {
  name: string;
  arguments: Readonly<Record<string, string | number | boolean>>;
}

export interface BindingDeclaration {
  exchange: string;
  queue: string;
  routingKey: string;
}

/** Everything on the broker that belongs to one configuration, apart from the lock queue, which lives with its holder. */
export interface Topology {
  exchanges: ExchangeDeclaration[];
  queues: QueueDeclaration[];
  bindings: BindingDeclaration[];
}

/** What the relay needs: its exchange, unless that is the broker's own. */
export function relayTopology({ exchange, exchangeType }: { exchange: string; exchangeType: string }): Topology {
  const exchanges = isBuiltIn(exchange) ? [] : [{ name: exchange, type: exchangeType }];
  return { exchanges, queues: [], bindings: [] };
}

/** The part of a consumer's configuration that decides what is declared for it. */
export interface ConsumerDeclaration {
  name: string;
  queue: string;
  queueType: 'quorum' | 'classic';
  bindings: readonly { exchange: string; routingKey: string }[];
  order: 'none' | 'key';
  delay: 'ttl-queues' | 'x-delayed-message';
  retry: { delaysMs: readonly number[] };
  deadLetterQueue: string | null;
}

/** Where dead letters go: our copies as `dead.<consumer>`, deaths that the broker decides as `broker.<queue>`. */
export const DEAD_LETTER_EXCHANGE = 'waybill.dlx';

/**
 * Of every quorum queue. Large and positive, because -1 loses messages on RabbitMQ 3.10, and without one RabbitMQ 4 drops
 * what came 20 times, also by a mere look into it (facts 39, 64, 65).
 */
const DELIVERY_LIMIT = 1_000_000;
const DEAD_LETTERS_KEPT = 100_000;
/** A timer that waits longer than this for somebody to take it is worth nothing: the sweep has seen to its row. */
const TIMER_LIFE_MS = 300_000;
const MOST_TIMERS = 100_000;

/** Deaths that the broker decides (limit, expiry) go there and are drained into the inbox. */
export function brokerDeathsQueue(queue: string): string {
  return `${queue}.dlq`;
}

/** The queue that a consumer's timers come back to. */
export function retryQueue(consumer: string): string {
  return `waybill.retry.${consumer}`;
}

/** The exchange of one delay, and its queue. The time is in the name, because arguments cannot be changed (fact 43). */
export function delayExchange(delayMs: number): string {
  return `waybill.delay.${delayMs}ms`;
}

/**
 * Whether it is an exchange or queue of one delay, which every installation on the virtual host shares. Nothing that AMQP
 * tells shows who uses it: nobody consumes from it, and its own binding is the only one.
 */
export function isSharedDelay(name: string): boolean {
  return /^waybill\.delay\.\d+ms$/.test(name);
}

/** The exchange of any delay, where the delayed-message plugin of the broker brings timers back. */
export const PLUGIN_EXCHANGE = 'waybill.delay';
/** The type that the plugin adds to the broker. */
export const PLUGIN_EXCHANGE_TYPE = 'x-delayed-message';
const PLUGIN_EXCHANGE_ARGUMENTS = { 'x-delayed-type': 'direct' };

/** Whether something of it can only be declared where the delayed-message plugin is. */
export function needsDelayPlugin({ exchanges }: Topology): boolean {
  return exchanges.some(({ type }) => type === PLUGIN_EXCHANGE_TYPE);
}

/** What can be declared also where the plugin is not: without it, RabbitMQ 3 closes the connection that asks (fact 44). */
export function withoutDelayPlugin({ exchanges, queues, bindings }: Topology): Topology {
  const plugins = new Set(exchanges.filter(({ type }) => type === PLUGIN_EXCHANGE_TYPE).map(({ name }) => name));
  return {
    exchanges: exchanges.filter(({ name }) => !plugins.has(name)),
    queues,
    bindings: bindings.filter(({ exchange }) => !plugins.has(exchange)),
  };
}

/** What one consumer needs: its queue with its bindings, its dead letters, its timers. Exchanges of others are not declared. */
export function consumerTopology(consumer: ConsumerDeclaration): Topology {
  const { name, queue, queueType, bindings, order, delay, retry, deadLetterQueue } = consumer;
  const deaths = brokerDeathsQueue(queue);
  const limit = queueType === 'quorum' ? { 'x-delivery-limit': DELIVERY_LIMIT } : {};
  const topology: Topology = {
    exchanges: [{ name: DEAD_LETTER_EXCHANGE, type: 'topic' }],
    queues: [
      // Before the queue itself: what dies in it must not go nowhere (F105).
      { name: deaths, arguments: { 'x-queue-type': queueType, ...limit } },
      {
        name: queue,
        arguments: {
          'x-queue-type': queueType,
          'x-dead-letter-exchange': DEAD_LETTER_EXCHANGE,
          'x-dead-letter-routing-key': `broker.${queue}`,
          // At-least-once dead lettering needs all three (fact 40).
          ...(queueType === 'quorum'
            ? {
                'x-dead-letter-strategy': 'at-least-once',
                'x-overflow': 'reject-publish',
              }
            : {}),
          ...limit,
          ...(order === 'key' ? { 'x-single-active-consumer': true } : {}),
        },
      },
      {
        name: retryQueue(name),
        arguments: { 'x-queue-type': 'classic', 'x-message-ttl': TIMER_LIFE_MS, 'x-max-length': MOST_TIMERS },
      },
    ],
    bindings: [
      { exchange: DEAD_LETTER_EXCHANGE, queue: deaths, routingKey: `broker.${queue}` },
      ...bindings.map(({ exchange, routingKey }) => ({ exchange, queue, routingKey })),
    ],
  };
  if (deadLetterQueue !== null) {
    const kept = { 'x-queue-type': queueType, 'x-max-length': DEAD_LETTERS_KEPT, ...limit };
    topology.queues.push({ name: deadLetterQueue, arguments: kept });
    topology.bindings.push({ exchange: DEAD_LETTER_EXCHANGE, queue: deadLetterQueue, routingKey: `dead.${name}` });
  }
  if (delay === 'x-delayed-message') {
    topology.exchanges.push({
      name: PLUGIN_EXCHANGE,
      type: PLUGIN_EXCHANGE_TYPE,
      arguments: PLUGIN_EXCHANGE_ARGUMENTS,
    });
    topology.bindings.push({ exchange: PLUGIN_EXCHANGE, queue: retryQueue(name), routingKey: retryQueue(name) });
    return topology;
  }
  for (const delayMs of new Set(retry.delaysMs)) {
    const exchange = delayExchange(delayMs);
    topology.exchanges.push({ name: exchange, type: 'fanout' });
    topology.queues.push({
      name: exchange,
      arguments: { 'x-queue-type': 'classic', 'x-message-ttl': delayMs, 'x-dead-letter-exchange': '' },
    });
    topology.bindings.push({ exchange, queue: exchange, routingKey: '' });
  }
  return topology;
}

/** Of that, what deaths go through. */
export function deadLetterTopology(consumer: ConsumerDeclaration): Topology {
  const { exchanges, queues, bindings } = consumerTopology(consumer);
  const own = bindings.filter(({ exchange }) => exchange === DEAD_LETTER_EXCHANGE);
  return {
    exchanges: exchanges.filter(({ name }) => name === DEAD_LETTER_EXCHANGE),
    queues: queues.filter(({ name }) => own.some(({ queue }) => queue === name)),
    bindings: own,
  };
}

/** Several topologies as one; what they share is declared once. */
export function mergeTopologies(all: readonly Topology[]): Topology {
  const once = <T>(items: readonly T[], key: (item: T) => string): T[] => [
    ...new Map(items.map((item) => [key(item), item])).values(),
  ];
  return {
    exchanges: once(
      all.flatMap(({ exchanges }) => exchanges),
      ({ name }) => name,
    ),
    queues: once(
      all.flatMap(({ queues }) => queues),
      ({ name }) => name,
    ),
    bindings: once(
      all.flatMap(({ bindings }) => bindings),
      ({ exchange, queue, routingKey }) => JSON.stringify([exchange, queue, routingKey]),
    ),
  };
}

/** The default exchange, and those that every broker has. */
export function isBuiltIn(exchange: string): boolean {
  return exchange === '' || exchange.startsWith('amq.');
}

/** Regular expressions of what the broker's user must be allowed to configure, write and read. */
export interface Permissions {
  configure: string;
  write: string;
  read: string;
}

/**
 * The least that the broker's user needs. `locks`: the relay takes a lock queue; `declares`: it declares the topology
 * itself, else others do; `publishes`: exchanges that it publishes to.
 */
export function permissionsFor(
  topology: Topology,
  needs: { locks: boolean; declares: boolean; publishes: readonly string[]; consumes: readonly string[] },
): Permissions {
  const lock = needs.locks ? ['waybill\\.lock\\..*'] : [];
  const exchanges = topology.exchanges.map(({ name }) => escaped(name));
  const queues = topology.queues.map(({ name }) => escaped(name));
  const bound = topology.bindings.map(({ exchange }) => escaped(exchange));
  const deadLetters = topology.exchanges.some(({ name }) => name === DEAD_LETTER_EXCHANGE);
  return {
    configure: pattern([...lock, ...(needs.declares ? [...exchanges, ...queues] : [])]),
    write: pattern([
      ...needs.publishes.map((name) => (name === '' ? 'amq\\.default' : escaped(name))),
      // A probe goes to the lock queue through the default exchange; timers come back through it.
      'amq\\.default',
      ...(deadLetters ? [escaped(DEAD_LETTER_EXCHANGE)] : []),
      ...exchanges.filter((name) => name.startsWith('waybill\\.delay')),
      // To bind, one writes to the queue and reads from the exchange.
      ...(needs.declares ? queues : []),
    ]),
    read: pattern([...lock, ...needs.consumes.map(escaped), ...(needs.declares ? [...bound, ...queues] : [])]),
  };
}

function pattern(alternatives: readonly string[]): string {
  const once = [...new Set(alternatives)].sort();
  return once.length === 0 ? '^$' : `^(${once.join('|')})$`;
}

function escaped(name: string): string {
  return name.replaceAll(/[.*+?^${}()|[\]\\]/g, '\\$&');
}
