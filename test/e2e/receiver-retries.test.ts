import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { startBrokerProbe } from '../support/broker-probe.js';
import { LEDGER } from '../support/ledger.js';
import { receiverScene, type ReceiverScene } from '../support/receiver-scene.js';
import { killRelays } from '../support/relay.js';
import { noteRetryTimes, quantile, retryTimes } from '../support/retry-times.js';
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
    // As another consumer of ours would have it that does not run at the moment.
    const others = await startBrokerProbe({ url: scene.vhost.url, queue: 'waybill.retry.shipping' });
    await scene.send(
      { exchange: 'events', routingKey: 'order.paid' },
      Array.from({ length: 30 }, (_, n) => ({ messageId: `m-${n}`, body: `{"amount": ${n}, "fails": ${n % 4}}` })),
    );
    await scene.waitForRows(30, "status = 'done'", 30_000);
    expect(probe.messages.length).toBe(30);
    expect(others.messages.length).toBe(0);
    await others.close();
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

  it('retries of three delays at once begin within a tenth of their delay after they are due (facts 41, 70, F106, F107)', async () => {
    await noteRetryTimes(scene.database);
    // The same three exchanges for all, in another order for each: at any moment there are timers in all of them.
    const consumers = { billing: '1s, 5s, 15s', shipping: '15s, 1s, 5s', mailing: '5s, 15s, 1s' };
    const consumer = scene.start(
      Object.entries(consumers)
        .map(
          ([name, delays]) =>
            `${name}:\n  handler: { kind: sql, function: billing.on_event }\n  retry: { delays: [${delays}], maxAttempts: 4 }`,
        )
        .join('\n'),
    );
    await until(() => consumer.log.filter(({ msg }) => msg === 'consuming').length === 3, { what: 'all consumers' });
    const names = Object.keys(consumers);
    for (const name of names) {
      const messages = Array.from({ length: 20 }, (_, n) => ({ messageId: `${name}-${n}`, body: '{"fails": 3}' }));
      await scene.send(name, messages);
    }
    await scene.waitForRows(60, "status = 'done' and failures = 3", 90_000);
    const times = await retryTimes(scene.database);
    expect(times.length).toBe(180);
    const tiers = [1_000, 5_000, 15_000].map((tierMs) => {
      // Jitter makes a delay up to twice as long.
      const waits = times.filter(({ delayMs }) => delayMs >= tierMs * 0.99 && delayMs <= tierMs * 2.01);
      const shares = waits.map(({ lateMs, delayMs }) => lateMs / delayMs);
      return { tierMs, waits, shares };
    });
    for (const { tierMs, waits, shares } of tiers) {
      const lateMs = waits.map((wait) => Math.round(wait.lateMs));
      const shown = `${tierMs} ms: late by ${lateMs.join(' ')} ms`;
      expect([shown, waits.length]).toEqual([shown, 60]);
      // Never early by more than what a claim allows; nine of ten within a tenth, which no sweep would give.
      expect([shown, Math.min(...lateMs) >= -100]).toEqual([shown, true]);
      expect([shown, quantile(shares, 0.9) < 0.1]).toEqual([shown, true]);
      const ended = waits.map(({ endedLateMs, delayMs }) => endedLateMs / delayMs);
      expect([shown, quantile(ended, 0.9) < 0.1]).toEqual([shown, true]);
    }
    // Each saw its own messages and no other's, and each of them four times.
    const attempts = await scene.database.query<{ fits: boolean; n: number }>(
      `select i.consumer = split_part(i.message_id, '-', 1) as fits, count(*)::int as n
       from waybill.inbox_attempt a join waybill.inbox i on i.seq = a.inbox_seq group by 1`,
    );
    expect(attempts).toEqual([{ fits: true, n: 180 }]);
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

  it('F108 a row that waits goes on when the queue, the bindings and the delays of its consumer have changed', async () => {
    const first = scene.start(CONSUMER.replace('[500ms, 1s, 2s]', '[1s]'));
    await first.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    await scene.send(
      'billing',
      Array.from({ length: 5 }, (_, n) => ({ messageId: `m-${n}`, body: '{"fails": 2}' })),
    );
    await scene.waitForRows(5, "status = 'waiting' and failures = 1");
    expect(await first.stop()).toBe(0);
    const second = scene.start(
      CONSUMER.replace('bindings', 'queue: invoices\n  bindings')
        .replace('order.*', 'invoice.*')
        .replace('500ms', '300ms'),
    );
    await second.waitForLog(({ msg }) => msg === 'consuming', 'the consumer with its new queue');
    await scene.waitForRows(5, "status = 'done' and failures = 2");
    // Timers of the old delays came back to the same queue as those of the new ones, and both have been taken.
    await until(async () => (await scene.depth('waybill.retry.billing')) === 0, { what: 'the timers to be taken' });
    await scene.send({ exchange: 'events', routingKey: 'invoice.sent' }, [{ messageId: 'new' }]);
    await scene.waitForRows(6, "status = 'done'");
    expect((await scene.database.query('select from billing.ledger')).length).toBe(6);
    expect(await second.stop()).toBe(0);
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
    // Many more than are held back at once where dead letters must arrive.
    await scene.broker((channel) => {
      for (let n = 0; n < 200; n += 1) {
        channel.publish('waybill.delay.500ms', 'waybill.retry.gone', Buffer.from('{}'), { persistent: false });
      }
      return channel.checkQueue('waybill.delay.500ms');
    });
    await noteRetryTimes(scene.database);
    const second = scene.start(CONSUMER);
    await second.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    await scene.send(
      'billing',
      Array.from({ length: 20 }, (_, n) => ({ messageId: `n-${n}`, body: '{"fails": 1}' })),
    );
    await scene.waitForRows(20, "message_id like 'n-%' and status = 'done'");
    // By their timers: a look at the table every five seconds would find half of them seconds late.
    const late = (await retryTimes(scene.database)).map(({ lateMs }) => Math.round(lateMs));
    expect(late.length).toBe(20);
    expect([late.join(' '), quantile(late, 0.9) < 500]).toEqual([late.join(' '), true]);
    await scene.broker((channel) => channel.deleteExchange('waybill.delay.500ms'));
    await scene.send('billing', [
      { messageId: 'm-2', body: '{"fails": 1}' },
      { messageId: 'm-3', body: '{"fails": 2}' },
    ]);
    await second.waitForLog(({ msg }) => msg.startsWith('the delay exchange: '), 'the loss of the exchange');
    // The timer that was lost with the exchange is left to the sweep.
    await scene.waitForRows(22, "consumer = 'billing' and status = 'done'", 45_000);
    expect(await second.stop()).toBe(0);
  });
});
