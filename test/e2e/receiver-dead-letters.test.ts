import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { startBrokerProbe } from '../support/broker-probe.js';
import { LEDGER } from '../support/ledger.js';
import { receiverScene, type ReceiverScene } from '../support/receiver-scene.js';
import { killRelays } from '../support/relay.js';
import { until } from '../support/waiting.js';

describe('dead letters', () => {
  let scene: ReceiverScene;

  beforeEach(async () => {
    scene = await receiverScene();
    await scene.database.query(LEDGER);
  });
  afterEach(async () => {
    await killRelays();
    await scene.drop();
  });

  const CONSUMER = `
billing:
  handler: { kind: sql, function: billing.on_event }
  retry: { delays: [200ms], maxAttempts: 2 }
  deadLetterQueue: billing.dead
`;

  it('stay in the table, and a copy with the reason goes to the dead-letter exchange (F105)', async () => {
    const consumer = scene.start(CONSUMER);
    await consumer.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    const body = '{"fails" : 99, "amount": 1.10}';
    await scene.send('billing', [
      { messageId: 'bad', body, key: 'k', headers: { color: 'red', 'x-delay': 5, big: { nested: true } } },
    ]);
    const [row] = await scene.waitForRows(1, "status = 'dead'");
    expect(row).toMatchObject({ dead_reason: 'attempts', failures: 2 });
    const probe = await startBrokerProbe({
      url: scene.vhost.url,
      queue: 'billing.dead',
      arguments: { 'x-queue-type': 'quorum', 'x-max-length': 100_000, 'x-delivery-limit': 1_000_000 },
    });
    const [copy] = await probe.waitFor(1);
    expect(copy).toMatchObject({ id: 'bad', exchange: 'waybill.dlx', routingKey: 'dead.billing', type: 'order.paid' });
    expect(copy?.body.toString()).toBe(body);
    expect(copy?.headers).toMatchObject({
      color: 'red',
      'x-waybill-dead-consumer': 'billing',
      'x-waybill-dead-reason': 'attempts',
      'x-waybill-dead-attempts': 2,
    });
    expect(copy?.headers).not.toHaveProperty('x-delay');
    await probe.close();
    expect(await consumer.stop()).toBe(0);
  });

  it('that the broker decides are drained into the table, insert only (facts 40, 64)', async () => {
    const consumer = scene.start(CONSUMER);
    await consumer.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    await scene.send('billing', [{ messageId: 'applied', body: '{"amount": 1}' }]);
    await scene.waitForRows(1, "status = 'done'");
    expect(await consumer.stop()).toBe(0);
    // While nobody consumes, two messages expire in the queue; one of them was applied long ago.
    await scene.send('billing', [
      { messageId: 'late', body: '{"amount": 2}', options: { expiration: '50' } },
      { messageId: 'applied', body: '{"amount": 1}', options: { expiration: '50' } },
    ]);
    await until(async () => (await scene.depth('billing.dlq')) === 2, { what: 'both to expire' });
    const second = scene.start(CONSUMER);
    const [dead] = await scene.waitForRows(1, "status = 'dead'");
    expect(dead).toMatchObject({ message_id: 'late', dead_reason: 'broker' });
    expect(dead?.last_error).toContain('expired in queue billing');
    await until(async () => (await scene.depth('billing.dlq')) === 0, { what: 'the queue of deaths to be empty' });
    expect((await scene.rows("status = 'done'")).length).toBe(1);
    expect((await scene.rows()).length).toBe(2);
    expect(await second.stop()).toBe(0);
    expect(await scene.depth('billing.dlq')).toBe(0);
  });

  it('a consumer queue of ours dead-letters at least once and has a large delivery limit (facts 40, 65)', async () => {
    const consumer = scene.start(CONSUMER);
    await consumer.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    // The same arguments are taken, others are refused: so these are what it has.
    const declare = (limit: number) =>
      scene.broker((channel) =>
        channel.assertQueue('billing', {
          durable: true,
          arguments: {
            'x-queue-type': 'quorum',
            'x-dead-letter-exchange': 'waybill.dlx',
            'x-dead-letter-routing-key': 'broker.billing',
            'x-dead-letter-strategy': 'at-least-once',
            'x-overflow': 'reject-publish',
            'x-delivery-limit': limit,
          },
        }),
      );
    await declare(1_000_000);
    await expect(declare(20)).rejects.toThrow(/PRECONDITION/);
    const deaths = (limit: object) =>
      scene.broker((channel) =>
        channel.assertQueue('billing.dlq', { durable: true, arguments: { 'x-queue-type': 'quorum', ...limit } }),
      );
    await deaths({ 'x-delivery-limit': 1_000_000 });
    await expect(deaths({})).rejects.toThrow(/PRECONDITION/);
    expect(await consumer.stop()).toBe(0);
  });
});
