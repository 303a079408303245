import { describe, expect, it } from 'vitest';
import type { Delivery, IntakeRules } from '../../../src/core/delivery.js';
import { fromBrokerDeath } from '../../../src/inbox/dead-letters.js';

const rules: IntakeRules = {
  identification: { kind: 'hash' },
  idNamespace: 'none',
  accept: [],
  maxBodyBytes: 1_000,
};
const dead = (deaths: unknown): Delivery => ({
  deliveryTag: 1,
  redelivered: false,
  exchange: 'waybill.dlx',
  routingKey: 'broker.billing',
  properties: { headers: { 'x-death': deaths } },
  body: Buffer.from('{}'),
});
const death = (queue: string, reason: string, exchange: string, routingKey: string) => ({
  queue,
  reason,
  exchange,
  'routing-keys': [routingKey],
  count: 1,
});

describe('a death that the broker decided', () => {
  it('has the route that it had when it came to our queue, not that of a life before (F105)', () => {
    const { row } = fromBrokerDeath(
      dead([
        death('billing', 'delivery_limit', 'shop.dlx', 'again'),
        death('shop.outgoing', 'expired', 'shop.events', 'order.paid'),
      ]),
      'billing',
      rules,
    );
    expect(row).toMatchObject({
      exchange: 'shop.dlx',
      routingKey: 'again',
      dead: { reason: 'broker', text: 'RabbitMQ gave it up: delivery_limit in queue billing' },
    });
  });

  it.each([undefined, 'text', [], [null], [7]])('may say nothing of itself: %j', (deaths) => {
    const { row } = fromBrokerDeath(dead(deaths), 'billing', rules);
    expect(row.dead?.text).toBe('RabbitMQ gave it up, for a reason it does not say');
  });
});
