import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { sharedRabbit } from '../support/broker.js';
import { sharedPostgres } from '../support/database.js';
import { startFaultProxy, type FaultProxy } from '../support/fault-proxy.js';
import { LEDGER } from '../support/ledger.js';
import { receiverScene, type ReceiverScene } from '../support/receiver-scene.js';
import { killRelays, type RelayProcess } from '../support/relay.js';
import { until, within } from '../support/waiting.js';
import type { WireUnit } from '../support/wire/units.js';

const CONSUMER = `
billing:
  handler: { kind: sql, function: billing.on_event, timeout: 5s }
  retry: { delays: [1s, 2s], maxAttempts: 3 }
`;
const MESSAGES = Array.from({ length: 120 }, (_, n) => ({ messageId: `m-${n}`, body: `{"amount": ${n}}` }));

/** A statement of the receiver, told by its text. */
const statement =
  (text: string) =>
  (unit: WireUnit): boolean =>
    unit.names.includes('pg.client.parse') && unit.body.includes(text);

/** The end of the statement with this text: when it has passed, the server carries the statement out. */
function endOf(text: string): (unit: WireUnit) => boolean {
  let begun = false;
  return (unit) => {
    if (statement(text)(unit)) begun = true;
    return begun && unit.names.includes('pg.client.sync');
  };
}

/** A published message that names this exchange. */
const publishTo =
  (exchange: string) =>
  (unit: WireUnit): boolean =>
    unit.names.includes('amqp.client.basic.publish') && unit.body.includes(exchange);

describe('kill -9 of a consumer', () => {
  let scene: ReceiverScene;
  let postgres: FaultProxy;
  let broker: FaultProxy;
  let first: RelayProcess;

  beforeAll(async () => {
    [postgres, broker] = await Promise.all([
      startFaultProxy({ targetPort: sharedPostgres().port }),
      startFaultProxy({ targetPort: sharedRabbit().port }),
    ]);
  });
  afterAll(async () => {
    await Promise.all([postgres.close(), broker.close()]);
  });
  beforeEach(async () => {
    scene = await receiverScene();
    await scene.database.query(LEDGER);
    first = scene.start(CONSUMER, {
      databaseUrl: postgres.url(scene.database.url),
      brokerUrl: broker.url(scene.vhost.url),
    });
    await first.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
  });
  afterEach(async () => {
    await killRelays();
    postgres.resume();
    broker.resume();
    await scene.drop();
  });

  async function killAtThePoint(): Promise<void> {
    await first.kill9();
    for (const proxy of [postgres, broker]) {
      proxy.cut();
      proxy.resume();
    }
  }

  /** Every message has its effect exactly once, and is nowhere else any more. */
  async function expectOnce(count: number): Promise<void> {
    await scene.waitForRows(count, "status = 'done'", 30_000);
    await until(async () => (await scene.depth('billing')) === 0, { what: 'the queue to be empty' });
    const booked = await scene.database.query<{ message_id: string; n: number }>(
      'select message_id, count(*)::int as n from billing.ledger group by 1',
    );
    expect(booked.filter(({ n }) => n !== 1)).toEqual([]);
    expect(booked.length).toBe(count);
    // What came again was found, and is neither a conflict nor anything else.
    expect((await scene.rows()).length).toBe(count);
  }

  it.each([
    [
      'F11 after the delivery, before its transaction',
      () => postgres.at(statement('inbox_receive('), 1, 'stall-before'),
    ],
    [
      'F13 after the statement was sent, before its answer',
      () => postgres.at(endOf('inbox_receive('), 1, 'stall-after'),
    ],
    ['F14 after the commit, before the acknowledgement', () => broker.at('amqp.client.basic.ack', 1, 'stall-before')],
    ['F14 after some acknowledgements', () => broker.at('amqp.client.basic.ack', 2, 'stall-after')],
  ])('%s: every effect once', async (_, at) => {
    const sprung = at();
    await scene.send('billing', MESSAGES);
    await within(sprung, 30_000, 'the point of the crash');
    await killAtThePoint();
    const second = scene.start(CONSUMER);
    await expectOnce(MESSAGES.length);
    // The first one may have done it all, and a process that has only just begun knows no signals yet.
    await second.waitForLog(({ msg }) => msg === 'consuming', 'the second consumer');
    expect(await second.stop()).toBe(0);
    expect(second.noise).toEqual([]);
    // What was not acknowledged would be back in the queue.
    expect(await scene.depth('billing')).toBe(0);
  });

  it('F12 consumer crash in the middle of processing: data reconciles', async () => {
    await scene.send('billing', [...MESSAGES.slice(0, 30), { messageId: 'slow', body: '{"amount": 1, "sleep": 1.5}' }]);
    await until(
      async () =>
        (
          await scene.database.query(
            "select from pg_stat_activity where query like '%inbox_receive%' and wait_event = 'PgSleep'",
          )
        ).length > 0,
      { what: 'the handler to be at work' },
    );
    await killAtThePoint();
    const second = scene.start(CONSUMER);
    await expectOnce(31);
    expect(await second.stop()).toBe(0);
    expect(await scene.depth('billing')).toBe(0);
  });

  it('F15 after a row was left waiting, before its timer was sent: the sweep of the next consumer finds it', async () => {
    const sprung = broker.at(publishTo('waybill.delay.'), 1, 'stall-before');
    await scene.send('billing', [{ messageId: 'once', body: '{"amount": 1, "fails": 1}' }]);
    await within(sprung, 30_000, 'the timer');
    await killAtThePoint();
    await scene.waitForRows(1, "status = 'waiting' and failures = 1");
    await until(async () => (await scene.rows('next_attempt_at <= clock_timestamp()')).length === 1, {
      what: 'the row to be due',
    });
    const second = scene.start(CONSUMER);
    await expectOnce(1);
    expect(await second.stop()).toBe(0);
    expect(await scene.depth('billing')).toBe(0);
  });

  it('F17 after the death, before its copy went out: the table has it, and the copy goes out later', async () => {
    await scene.broker(async (channel) => {
      await channel.assertQueue('graves');
      await channel.bindQueue('graves', 'waybill.dlx', 'dead.*');
    });
    const sprung = broker.at(publishTo('waybill.dlx'), 1, 'stall-before');
    await scene.send('billing', [{ messageId: 'bad', body: '{"never": true}' }]);
    await within(sprung, 30_000, 'the copy');
    await killAtThePoint();
    await scene.waitForRows(1, "status = 'dead' and dead_reason = 'never'");
    expect(await scene.depth('graves')).toBe(0);
    // The lease of whoever had it in hand is over.
    await scene.database.query('update waybill.inbox_uncopied set claimed_until = clock_timestamp()');
    const second = scene.start(CONSUMER);
    await until(async () => (await scene.depth('graves')) === 1, { what: 'the copy' });
    expect(await second.stop()).toBe(0);
  });
});

describe('connections of a consumer', () => {
  let scene: ReceiverScene;
  let postgres: FaultProxy;
  let broker: FaultProxy;
  let consumer: RelayProcess;

  beforeAll(async () => {
    [postgres, broker] = await Promise.all([
      startFaultProxy({ targetPort: sharedPostgres().port }),
      startFaultProxy({ targetPort: sharedRabbit().port }),
    ]);
  });
  afterAll(async () => {
    await Promise.all([postgres.close(), broker.close()]);
  });
  beforeEach(async () => {
    scene = await receiverScene();
    await scene.database.query(LEDGER);
    consumer = scene.start(CONSUMER, {
      databaseUrl: postgres.url(scene.database.url),
      brokerUrl: broker.url(scene.vhost.url),
    });
    await consumer.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
  });
  afterEach(async () => {
    await killRelays();
    postgres.refuse(false);
    postgres.resume();
    broker.resume();
    await scene.drop();
  });

  const ledger = () =>
    scene.database.query<{ message_id: string; n: number }>(
      'select message_id, count(*)::int as n from billing.ledger group by 1',
    );

  it('F13 I3 the database connection is cut after the statement was sent: it is repeated, and found to be done', async () => {
    const sprung = postgres.at(endOf('inbox_receive('), 1, 'cut-after');
    await scene.send('billing', MESSAGES);
    await within(sprung, 30_000, 'the cut');
    await scene.waitForRows(MESSAGES.length, "status = 'done'", 30_000);
    const booked = await ledger();
    expect(booked.filter(({ n }) => n !== 1)).toEqual([]);
    expect((await scene.rows()).length).toBe(MESSAGES.length);
    await until(async () => (await scene.depth('billing')) === 0, { what: 'the queue to be empty' });
    expect(await consumer.stop()).toBe(0);
    expect(await scene.depth('billing')).toBe(0);
  });

  it('F19 F111 the broker connection is cut while a batch is being written: its late acknowledgement is dropped', async () => {
    await scene.send('billing', [{ messageId: 'slow', body: '{"amount": 1, "sleep": 1}' }, ...MESSAGES.slice(0, 20)]);
    await until(
      async () =>
        (
          await scene.database.query(
            "select from pg_stat_activity where query like '%inbox_receive%' and wait_event = 'PgSleep'",
          )
        ).length > 0,
      { what: 'the handler to be at work' },
    );
    broker.cut();
    await scene.waitForRows(21, "status = 'done'", 30_000);
    await until(async () => (await scene.depth('billing')) === 0, { what: 'the queue to be empty' });
    expect((await ledger()).filter(({ n }) => n !== 1)).toEqual([]);
    expect(consumer.log.filter(({ msg }) => msg === 'consuming').length).toBe(2);
    expect(consumer.log.some((line) => JSON.stringify(line).includes('PRECONDITION'))).toBe(false);
    expect(await consumer.stop()).toBe(0);
    expect(await scene.depth('billing')).toBe(0);
  });

  it('F16 the timers come back after the broker connection was cut', async () => {
    const listeners = () =>
      scene.broker(async (channel) => (await channel.checkQueue('waybill.retry.billing')).consumerCount);
    await until(async () => (await listeners()) === 1, { what: 'the timers' });
    broker.cut();
    await until(() => consumer.log.filter(({ msg }) => msg === 'consuming').length === 2, { what: 'to consume again' });
    await until(async () => (await listeners()) === 1, { what: 'the timers to be listened to again' });
    await scene.send('billing', [{ messageId: 'once', body: '{"amount": 1, "fails": 1}' }]);
    // Not kept in memory, which a restart would forget: it waits in the delay queue.
    await until(async () => (await scene.depth('waybill.delay.1000ms')) === 1, { what: 'the timer to be sent' });
    await scene.waitForRows(1, "status = 'done' and failures = 1");
    expect((await ledger()).filter(({ n }) => n !== 1)).toEqual([]);
    expect(await consumer.stop()).toBe(0);
  });

  it('F109 I4 the database is away: the batch is held, no attempt is spent, and it goes on', async () => {
    postgres.refuse(true);
    postgres.cut();
    await scene.send('billing', MESSAGES);
    await consumer.waitForLog(({ msg }) => msg === 'a batch is held until the database answers', 'the hold');
    expect(await scene.rows()).toEqual([]);
    postgres.refuse(false);
    await scene.waitForRows(MESSAGES.length, "status = 'done' and failures = 0 and abandoned = 0", 30_000);
    expect((await ledger()).filter(({ n }) => n !== 1)).toEqual([]);
    // The channel was kept: nothing was delivered twice.
    expect(consumer.log.filter(({ msg }) => msg === 'consuming').length).toBe(1);
    expect(await consumer.stop()).toBe(0);
    expect(await scene.depth('billing')).toBe(0);
  });

  it('F94 the queue is deleted: it is declared again and consumed again', async () => {
    await scene.broker((channel) => channel.deleteQueue('billing'));
    await until(() => consumer.log.filter(({ msg }) => msg === 'consuming').length === 2, { what: 'to consume again' });
    await scene.send('billing', MESSAGES.slice(0, 5));
    await scene.waitForRows(5, "status = 'done'");
    expect(await consumer.stop()).toBe(0);
  });

  it('F95 poison is delivered once: what fails waits in the table, and nothing is ever given back to the queue', async () => {
    const names = ['amqp.client.basic.nack', 'amqp.client.basic.reject', 'amqp.client.basic.recover'] as const;
    const givenBack = () => names.map((name) => broker.count(name));
    const before = { givenBack: givenBack(), delivered: broker.count('amqp.server.basic.deliver') };
    await scene.send('billing', [
      { messageId: 'poison', body: '{"amount": 1, "fails": 99}' },
      ...MESSAGES.slice(0, 10),
      { messageId: 'never', body: '{"never": true}' },
      { messageId: 'm-3', body: '{"another": "body"}' },
    ]);
    await scene.waitForRows(3, "status = 'dead'");
    await scene.waitForRows(10, "status = 'done'");
    expect(await consumer.stop()).toBe(0);
    expect(await scene.depth('billing')).toBe(0);
    expect(givenBack()).toEqual(before.givenBack);
    // Thirteen messages; and the timers of the poison one, up to three for each of its two waits.
    const delivered = broker.count('amqp.server.basic.deliver') - before.delivered;
    expect(delivered).toBeGreaterThanOrEqual(14);
    expect(delivered).toBeLessThanOrEqual(19);
  });

  it('F112 SIGTERM under load: everything taken is finished, the rest stays in the queue', async () => {
    const many = Array.from({ length: 3_000 }, (_, n) => ({ messageId: `x-${n}`, body: `{"amount": ${n}}` }));
    await scene.send('billing', many);
    await until(async () => (await scene.rows()).length > 100, { what: 'some rows' });
    expect(await consumer.stop()).toBe(0);
    const done = await scene.rows("status = 'done'");
    expect((await scene.rows()).length).toBe(done.length);
    const left = await until(() => scene.depth('billing'), { what: 'messages that are left' });
    expect(left + done.length).toBe(many.length);
  });
});
