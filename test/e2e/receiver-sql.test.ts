import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { LEDGER } from '../support/ledger.js';
import { receiverScene, type ReceiverScene } from '../support/receiver-scene.js';
import { killRelays } from '../support/relay.js';
import { until } from '../support/waiting.js';

const CONSUMER = `
billing:
  handler: { kind: sql, function: billing.on_event, timeout: 2s }
  retry: { delays: [300ms, 1s], maxAttempts: 3 }
`;

describe('a consumer that applies by a function', () => {
  let scene: ReceiverScene;

  beforeEach(async () => {
    scene = await receiverScene();
    await scene.database.query(LEDGER);
  });
  afterEach(async () => {
    await killRelays();
    await scene.drop();
  });

  const ledger = () =>
    scene.database.query<{ message_id: string; n: number }>(
      'select message_id, count(*)::int as n from billing.ledger group by 1 order by 1',
    );

  it('redelivery: copies of a message have their effect once', async () => {
    const consumer = scene.start(CONSUMER);
    await consumer.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    const messages = Array.from({ length: 300 }, (_, n) => ({
      messageId: `m-${n % 100}`,
      body: `{"amount": ${n % 100}}`,
    }));
    await scene.send('billing', messages);
    await scene.waitForRows(100, "status = 'done'");
    await until(async () => (await scene.depth('billing')) === 0, { what: 'the queue to be empty' });
    await scene.send('billing', messages);
    await until(async () => (await scene.depth('billing')) === 0, { what: 'the queue to be empty again' });
    expect(await consumer.stop()).toBe(0);
    const booked = await ledger();
    expect(booked.length).toBe(100);
    expect(booked.every(({ n }) => n === 1)).toBe(true);
    expect(await scene.depth('billing')).toBe(0);
  });

  it('tries again by the schedule, and gives up with every attempt kept (F104)', async () => {
    const consumer = scene.start(CONSUMER);
    await consumer.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    await scene.send('billing', [
      { messageId: 'fine', body: '{"amount": 1}' },
      { messageId: 'twice', body: '{"amount": 2, "fails": 2}' },
      { messageId: 'poison', body: '{"amount": 3, "fails": 99}' },
      { messageId: 'never', body: '{"never": true}' },
      { messageId: 'broken-json', body: '{' },
    ]);
    await scene.waitForRows(2, "status = 'done'");
    const dead = await scene.waitForRows(3, "status = 'dead'");
    expect(dead.map((row) => [row.message_id, row.dead_reason, row.failures])).toEqual([
      ['poison', 'attempts', 3],
      ['never', 'never', 1],
      ['broken-json', 'never', 1],
    ]);
    expect((await ledger()).map(({ message_id: id, n }) => [id, n])).toEqual([
      ['fine', 1],
      ['twice', 1],
    ]);
    const attempts = await scene.database.query<{ number: number; error: string }>(
      `select a.number, a.error from waybill.inbox_attempt a join waybill.inbox i on i.seq = a.inbox_seq
       where i.message_id = 'poison' order by a.number`,
    );
    expect(attempts.map(({ number }) => number)).toEqual([1, 2, 3]);
    expect(attempts.every(({ error }) => error.includes('not this time'))).toBe(true);
    expect(await consumer.stop()).toBe(0);
    const lines = consumer.log.filter(({ msg }) => /message is (dead|tried again)/.test(msg));
    expect(lines.map(({ messageId, result }) => `${String(messageId)} ${String(result)}`).sort()).toEqual([
      'broken-json dead',
      'never dead',
      'poison dead',
      'poison retry',
      'poison retry',
      'twice retry',
      'twice retry',
    ]);
  });

  it('three hundred poison messages among three thousand: the others are applied once, each of these is dead after its attempts (F104)', async () => {
    const consumer = scene.start(CONSUMER);
    await consumer.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    const isPoison = (n: number): boolean => n % 10 === 3;
    const messages = Array.from({ length: 3_000 }, (_, n) => ({
      messageId: `m-${n}`,
      body: isPoison(n) ? '{"fails": 99}' : `{"amount": ${n}}`,
    }));
    await scene.send('billing', messages);
    await scene.waitForRows(300, "status = 'dead'", 60_000);
    await scene.waitForRows(2_700, "status = 'done'", 60_000);
    const good = messages.flatMap(({ messageId }, n) => (isPoison(n) ? [] : [messageId]));
    expect(await ledger()).toEqual(good.sort().map((message_id) => ({ message_id, n: 1 })));
    const attempts = await scene.database.query(
      `select dead_reason, failures, abandoned, numbers, verdicts, count(*)::int as messages
       from waybill.inbox i, lateral (
         select array_agg(number order by number) as numbers, array_agg(verdict order by number) as verdicts
         from waybill.inbox_attempt where inbox_seq = i.seq) a
       where status = 'dead' and last_error like '%not this time%' group by 1, 2, 3, 4, 5`,
    );
    expect(attempts).toEqual([
      {
        dead_reason: 'attempts',
        failures: 3,
        abandoned: 0,
        numbers: [1, 2, 3],
        verdicts: ['retry', 'retry', 'retry'],
        messages: 300,
      },
    ]);
    expect(await consumer.stop()).toBe(0);
  });

  it('an event delayed by minutes: it waits for what it is about, spends no attempt, and is applied when that is there', async () => {
    const consumer = scene.start(CONSUMER);
    await consumer.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    await scene.send('billing', [{ messageId: 'early', body: '{"amount": 5, "order": "o-1"}' }]);
    await consumer.waitForLog(
      ({ messageId, result }) => messageId === 'early' && result === 'deferred',
      'the deferral',
    );
    await until(
      async () =>
        (await scene.rows("status = 'waiting'")).length === 1 &&
        consumer.log.filter(({ messageId }) => messageId === 'early').length >= 4,
      { what: 'several deferrals' },
    );
    const [row] = await scene.rows();
    expect(row).toMatchObject({ failures: 0, message_id: 'early' });
    // Minutes pass: by the row's own clock.
    await scene.database.query("update waybill.inbox set received_at = received_at - interval '40 minutes'");
    await scene.database.query("insert into billing.orders values ('o-1')");
    await scene.waitForRows(1, "status = 'done'");
    expect(await ledger()).toEqual([{ message_id: 'early', n: 1 }]);
    expect(await consumer.stop()).toBe(0);
  });

  it('handles messages one by one when a batch takes too long (fact 67)', async () => {
    const consumer = scene.start(CONSUMER);
    await consumer.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    await scene.send('billing', [
      { messageId: 'a', body: '{"amount": 1}' },
      { messageId: 'slow', body: '{"amount": 2, "sleep": 30}' },
      { messageId: 'b', body: '{"amount": 3}' },
    ]);
    await scene.waitForRows(2, "status = 'done'");
    const [slow] = await scene.waitForRows(1, "status = 'waiting'");
    expect(slow).toMatchObject({ message_id: 'slow', failures: 1, last_error: 'the handler took longer than 2000 ms' });
  });

  it('takes in everything, whatever is wrong with it: bad rows alone are set aside (F60, F98, F99, F100)', async () => {
    const consumer = scene.start(CONSUMER.replace('retry:', 'accept: [order.paid, "order.sent@2"]\n  retry:'));
    await consumer.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    const good = Array.from({ length: 50 }, (_, n) => ({ messageId: `g-${n}`, body: `{"amount": ${n}}` }));
    await scene.send('billing', [
      ...good.slice(0, 25),
      { messageId: 'nul', headers: { bad: 'a\0b' } },
      { body: '{"no": "id"}' },
      { messageId: 'g-3', body: '{"amount": 999}' },
      { messageId: 'lost', type: 'order.lost' },
      { messageId: 'old', type: 'order.sent', headers: { 'x-waybill-schema-version': 1 } },
      { messageId: 'binary', body: Buffer.from([0xff, 0xfe, 0]) },
      ...good.slice(25),
    ]);
    await scene.waitForRows(50, "status = 'done'");
    const dead = await scene.waitForRows(6, "status = 'dead'");
    expect(dead.map((row) => [row.dead_reason, row.original_id ?? row.message_id.replace(/:.*/, '')]).sort()).toEqual([
      ['conflict', 'g-3'],
      ['malformed', 'nul'],
      ['never', 'binary'],
      ['no-id', 'no-id'],
      ['not-accepted', 'lost'],
      ['not-accepted', 'old'],
    ]);
    expect(dead.find((row) => row.message_id === 'binary')?.body).toEqual(Buffer.from([0xff, 0xfe, 0]));
    await until(async () => (await scene.depth('billing')) === 0, { what: 'the queue to be empty' });
    expect(await ledger()).toHaveLength(50);
  });

  it('what a breaker left behind is forgotten by whoever comes next, and stops no other that runs (F126)', async () => {
    const gone = 'alter function billing.on_event(waybill.inbox_message) rename to gone';
    const back = 'alter function billing.gone(waybill.inbox_message) rename to on_event';
    const pausedBy = async (): Promise<string | null | undefined> =>
      (await scene.database.query<{ paused_by: string | null }>('select paused_by from waybill.consumer'))[0]
        ?.paused_by;
    await scene.database.query(gone);
    const first = scene.start(CONSUMER);
    await first.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    await scene.send('billing', [{ messageId: 'm-1', body: '{"amount": 1}' }]);
    await until(async () => (await pausedBy()) === 'breaker', { what: 'the pause' });
    await first.kill9();
    // As it goes: the deployment is mended, and the new process knows nothing of the breaker of the old one.
    await scene.database.query(back);
    const second = scene.start(CONSUMER);
    await scene.waitForRows(1, "status = 'done' and failures = 0");
    await until(async () => (await pausedBy()) === null, { what: 'the end of the pause' });
    await scene.send('billing', [{ messageId: 'm-2', body: '{"amount": 2}' }]);
    await scene.waitForRows(2, "status = 'done' and failures = 0");
    // What another one sees of its own handler is no word on this one's.
    await scene.database.query("select waybill.consumer_break('billing', 'seen by somebody else')");
    await scene.send('billing', [{ messageId: 'm-3', body: '{"amount": 3}' }]);
    await scene.waitForRows(3, "status = 'done' and failures = 0");
    expect((await ledger()).every(({ n }) => n === 1)).toBe(true);
    // An operator's pause is nobody's to end but the operator's.
    await scene.database.query("select waybill.consumer_pause('billing', 'a test')");
    await scene.send('billing', [{ messageId: 'm-4', body: '{"amount": 4}' }]);
    await scene.waitForRows(1, "status = 'pending'");
    expect(second.log.filter(({ msg }) => msg.startsWith('the handler is broken'))).toEqual([]);
    expect(await pausedBy()).toBe('operator');
    expect(await second.stop()).toBe(0);
    expect((await scene.rows("status = 'pending'")).length).toBe(1);
  });

  it('pauses when the handler is not there, spends nothing, and goes on when it is (F126)', async () => {
    await scene.database.query('alter function billing.on_event(waybill.inbox_message) rename to gone');
    const consumer = scene.start(CONSUMER);
    await consumer.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    await scene.send(
      'billing',
      Array.from({ length: 30 }, (_, n) => ({ messageId: `m-${n}`, body: `{"amount": ${n}}` })),
    );
    await consumer.waitForLog(({ msg }) => msg.startsWith('the handler is broken'), 'the breaker');
    await consumer.waitForLog(({ msg }) => msg === 'not consuming', 'the end of the intake');
    const [paused] = await until(
      async () => {
        const found = await scene.database.query<{ paused_by: string }>('select paused_by from waybill.consumer');
        return found[0]?.paused_by === 'breaker' && found;
      },
      { what: 'the pause in the table' },
    );
    expect(paused?.paused_by).toBe('breaker');
    const spent = await scene.rows("failures > 0 or status not in ('pending', 'waiting', 'running')");
    expect(spent).toEqual([]);
    expect((await scene.depth('billing'))! + (await scene.rows()).length).toBe(30);
    await scene.database.query('alter function billing.gone(waybill.inbox_message) rename to on_event');
    await scene.waitForRows(30, "status = 'done' and failures = 0");
    await consumer.waitForLog(({ msg }) => msg === 'the handler answers again', 'the end of the pause');
    await scene.send('billing', [{ messageId: 'after' }]);
    await scene.waitForRows(31, "status = 'done'");
    expect((await ledger()).every(({ n }) => n === 1)).toBe(true);
  });
});
