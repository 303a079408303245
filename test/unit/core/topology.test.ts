import { describe, expect, test } from 'vitest';
import {
  consumerTopology,
  mergeTopologies,
  needsDelayPlugin,
  permissionsFor,
  relayTopology,
  withoutDelayPlugin,
  type ConsumerDeclaration,
} from '../../../src/core/topology.js';

const consumer = (given: Partial<ConsumerDeclaration> = {}): ConsumerDeclaration => ({
  name: 'billing',
  queue: 'billing.in',
  queueType: 'quorum',
  bindings: [{ exchange: 'events', routingKey: 'order.*' }],
  order: 'none',
  delay: 'ttl-queues',
  retry: { delaysMs: [1_000, 5_000, 1_000] },
  deadLetterQueue: null,
  ...given,
});

describe('a consumer', () => {
  test('facts 39, 40, 65: its queue dead-letters at least once, to an exchange that is declared, with a large limit', () => {
    const { queues, exchanges, bindings } = consumerTopology(consumer());
    expect(queues.find(({ name }) => name === 'billing.in')).toEqual({
      name: 'billing.in',
      arguments: {
        'x-queue-type': 'quorum',
        'x-dead-letter-exchange': 'waybill.dlx',
        'x-dead-letter-routing-key': 'broker.billing.in',
        'x-dead-letter-strategy': 'at-least-once',
        'x-overflow': 'reject-publish',
        'x-delivery-limit': 1_000_000,
      },
    });
    expect(exchanges[0]).toEqual({ name: 'waybill.dlx', type: 'topic' });
    expect(queues.find(({ name }) => name === 'billing.in.dlq')?.arguments).toEqual({
      'x-queue-type': 'quorum',
      'x-delivery-limit': 1_000_000,
    });
    expect(bindings).toContainEqual({
      exchange: 'waybill.dlx',
      queue: 'billing.in.dlq',
      routingKey: 'broker.billing.in',
    });
  });

  test('facts 41, 43, 63, 70: a queue for each delay, its time in its name, back through the default exchange', () => {
    const { queues, exchanges, bindings } = consumerTopology(consumer());
    const delays = queues.filter(({ name }) => name.startsWith('waybill.delay.'));
    expect(delays).toEqual([
      {
        name: 'waybill.delay.1000ms',
        arguments: { 'x-queue-type': 'classic', 'x-message-ttl': 1_000, 'x-dead-letter-exchange': '' },
      },
      {
        name: 'waybill.delay.5000ms',
        arguments: { 'x-queue-type': 'classic', 'x-message-ttl': 5_000, 'x-dead-letter-exchange': '' },
      },
    ]);
    expect(exchanges).toContainEqual({ name: 'waybill.delay.1000ms', type: 'fanout' });
    expect(bindings).toContainEqual({
      exchange: 'waybill.delay.1000ms',
      queue: 'waybill.delay.1000ms',
      routingKey: '',
    });
    expect(queues.map(({ name }) => name)).toContain('waybill.retry.billing');
  });

  test('fact 44: with the plugin one exchange for any delay, apart from what every broker can declare', () => {
    const wanted = consumerTopology(consumer({ delay: 'x-delayed-message' }));
    expect(wanted.queues.some(({ name }) => name.startsWith('waybill.delay.'))).toBe(false);
    expect(wanted.exchanges).toContainEqual({
      name: 'waybill.delay',
      type: 'x-delayed-message',
      arguments: { 'x-delayed-type': 'direct' },
    });
    const back = { exchange: 'waybill.delay', queue: 'waybill.retry.billing', routingKey: 'waybill.retry.billing' };
    expect(wanted.bindings).toContainEqual(back);
    const needs = { locks: false, declares: false, publishes: [], consumes: [] };
    expect('waybill.delay').toMatch(new RegExp(permissionsFor(wanted, needs).write));
    const plain = withoutDelayPlugin(wanted);
    expect([needsDelayPlugin(wanted), needsDelayPlugin(plain)]).toEqual([true, false]);
    expect(plain.bindings).not.toContainEqual(back);
    expect(plain.queues).toEqual(wanted.queues);
    const usual = consumerTopology(consumer());
    expect(withoutDelayPlugin(usual)).toEqual(usual);
  });

  test('order: key has one active consumer; a dead-letter queue is bounded and gets this consumer alone', () => {
    const { queues, bindings } = consumerTopology(consumer({ order: 'key', deadLetterQueue: 'ops.dead' }));
    expect(queues[1]?.arguments).toMatchObject({ 'x-single-active-consumer': true });
    expect(queues.find(({ name }) => name === 'ops.dead')?.arguments).toEqual({
      'x-queue-type': 'quorum',
      'x-max-length': 100_000,
      'x-delivery-limit': 1_000_000,
    });
    expect(bindings).toContainEqual({ exchange: 'waybill.dlx', queue: 'ops.dead', routingKey: 'dead.billing' });
  });

  test('a classic queue has none of the arguments that only quorum queues know', () => {
    const [, queue] = consumerTopology(consumer({ queueType: 'classic' })).queues;
    expect(Object.keys(queue?.arguments ?? {})).toEqual([
      'x-queue-type',
      'x-dead-letter-exchange',
      'x-dead-letter-routing-key',
    ]);
  });
});

test("the broker's own exchanges are not declared; what two consumers share is declared once", () => {
  expect(relayTopology({ exchange: '', exchangeType: 'direct' }).exchanges).toEqual([]);
  expect(relayTopology({ exchange: 'amq.topic', exchangeType: 'topic' }).exchanges).toEqual([]);
  const both = mergeTopologies([
    consumerTopology(consumer()),
    consumerTopology(consumer({ name: 'mail', queue: 'mail' })),
  ]);
  expect(both.exchanges.filter(({ name }) => name === 'waybill.dlx')).toHaveLength(1);
  expect(both.queues.filter(({ name }) => name === 'waybill.delay.1000ms')).toHaveLength(1);
});

test('permissions match the names and nothing beside them', () => {
  const topology = relayTopology({ exchange: 'shop.events', exchangeType: 'topic' });
  const needs = { locks: true, declares: true, publishes: ['shop.events'], consumes: [] };
  const { configure, write, read } = permissionsFor(topology, needs);
  expect('shop.events').toMatch(new RegExp(configure));
  expect('shopXevents').not.toMatch(new RegExp(configure));
  expect('waybill.lock.0.default').toMatch(new RegExp(read));
  expect('amq.default').toMatch(new RegExp(write));
  expect('billing').not.toMatch(new RegExp(`${configure}|${write}|${read}`));
  expect(permissionsFor(topology, { ...needs, locks: false, declares: false }).configure).toBe('^$');
});
