import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { startBrokerProbe } from '../support/broker-probe.js';
import { LEDGER } from '../support/ledger.js';
import { receiverScene, type ReceiverScene } from '../support/receiver-scene.js';
import { killRelays } from '../support/relay.js';
import { until } from '../support/waiting.js';

const CONSUMER = `
billing:
  bindings: [{ exchange: events, routingKey: "order.*" }]
  handler: { kind: sql, function: billing.on_event }
  retry: { delays: [500ms, 1s, 2s], maxAttempts: 4 }
`;

describe('retries through the delay exchange', () => {
  let scene: ReceiverScene;

  beforeEach(async () => {
    scene = await receiverScene();
    await scene.database.query(LEDGER);
    await scene.broker((channel) => channel.assertExchange('events', 'topic'));
  });
  afterEach(async () => {
    await killRelays();
    await scene.drop();
  });

  it('a second consumer on the same exchange never sees them, and their timing is right (facts 41, 70, F106, F107)', async () => {
    const consumer = scene.start(CONSUMER);
    await consumer.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    const probe = await startBrokerProbe({ url: scene.vhost.url, exchange: 'events', queue: 'other' });
    await scene.send(
      { exchange: 'events', routingKey: 'order.paid' },
      Array.from({ length: 30 }, (_, n) => ({ messageId: `m-${n}`, body: `{"amount": ${n}, "fails": ${n % 4}}` })),
    );
    await scene.waitForRows(30, "status = 'done'", 30_000);
    expect(probe.messages.length).toBe(30);
    // From the moment that a row was due to the moment its attempt was over.
    const late = await scene.database.query<{ ms: number }>(
      `select extract(epoch from i.processed_at - i.received_at)::float8 * 1000 as ms from waybill.inbox i where failures = 3`,
    );
    expect(late.length).toBe(7);
    // 0.5 + 1 + 2 s, each up to twice as long, and what the way takes.
    for (const { ms } of late) {
      expect(ms).toBeGreaterThanOrEqual(3_500);
      expect(ms).toBeLessThan(7_000 * 1.1);
    }
    await probe.close();
    expect(await consumer.stop()).toBe(0);
    expect(consumer.noise).toEqual([]);
  });

  it('a timer that is lost, doubled or early does nothing wrong: the row decides (F16)', async () => {
    const consumer = scene.start(CONSUMER);
    await consumer.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    await scene.send('billing', [{ messageId: 'waits', body: '{"amount": 1, "order": "o"}' }]);
    const [row] = await scene.waitForRows(1, "status = 'waiting'");
    await scene.database.query("update waybill.inbox set next_attempt_at = clock_timestamp() + interval '1 hour'");
    await scene.database.query("insert into billing.orders values ('o')");
    const timer = (seq: string, attempt: number) => ({
      body: JSON.stringify({ consumer: 'billing', seq, attempt, restMs: 0 }),
    });
    await scene.send('waybill.retry.billing', [
      timer(row!.seq, 1),
      timer(row!.seq, 1),
      timer(row!.seq, 7),
      timer('123456', 1),
      { body: 'nonsense' },
      { body: '{"consumer":"billing","seq":"x","attempt":1,"restMs":0}' },
    ]);
    await until(async () => (await scene.depth('waybill.retry.billing')) === 0, { what: 'the timers to be taken' });
    await scene.send('billing', [{ messageId: 'after', body: '{"amount": 2}' }]);
    await scene.waitForRows(1, "status = 'done'");
    expect((await scene.rows("status = 'waiting'")).map((each) => each.message_id)).toEqual(['waits']);
    // Due now, and two timers for it: one effect.
    await scene.database.query("update waybill.inbox set next_attempt_at = clock_timestamp() where status = 'waiting'");
    await scene.send('waybill.retry.billing', [timer(row!.seq, 1), timer(row!.seq, 1)]);
    await scene.waitForRows(2, "status = 'done'");
    const booked = await scene.database.query("select from billing.ledger where message_id = 'waits'");
    expect(booked.length).toBe(1);
    expect(await consumer.stop()).toBe(0);
  });

  it('a vanished consumer stalls nobody (fact 63), and the exchanges may go away', async () => {
    const consumer = scene.start(
      `${CONSUMER}\ngone:\n  handler: { kind: sql, function: billing.on_event }\n  retry: { delays: [500ms] }\n`.replaceAll(
        '\n\n',
        '\n',
      ),
    );
    await until(() => consumer.log.filter(({ msg }) => msg === 'consuming').length === 2, { what: 'both consumers' });
    await scene.send(
      'gone',
      Array.from({ length: 100 }, (_, n) => ({ messageId: `g-${n}`, body: '{"fails": 9}' })),
    );
    await scene.waitForRows(100, "consumer = 'gone' and failures > 0");
    expect(await consumer.stop()).toBe(0);
    await scene.broker((channel) => channel.deleteQueue('waybill.retry.gone'));
    const second = scene.start(CONSUMER);
    await second.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    await scene.send('billing', [{ messageId: 'm-1', body: '{"fails": 1}' }]);
    await scene.waitForRows(1, "message_id = 'm-1' and status = 'done'", 5_000);
    await scene.broker((channel) => channel.deleteExchange('waybill.delay.500ms'));
    await scene.send('billing', [
      { messageId: 'm-2', body: '{"fails": 1}' },
      { messageId: 'm-3', body: '{"fails": 2}' },
    ]);
    await second.waitForLog(({ msg }) => msg.startsWith('the delay exchange: '), 'the loss of the exchange');
    // The timer that was lost with the exchange is left to the sweep.
    await scene.waitForRows(3, "consumer = 'billing' and status = 'done'", 45_000);
    expect(await second.stop()).toBe(0);
  });
});
