import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { startBrokerProbe } from '../support/broker-probe.js';
import { startFaultProxy } from '../support/fault-proxy.js';
import { LEDGER } from '../support/ledger.js';
import { receiverScene, type ReceiverScene } from '../support/receiver-scene.js';
import { killRelays } from '../support/relay.js';
import { startRabbit } from '../support/servers/rabbit.js';
import { until } from '../support/waiting.js';
import { nestedHeader, publishFrames, textHeader } from '../support/wire/content-headers.js';

const BILLING = `
billing:
  handler: { kind: sql, function: billing.on_event }
  retry: { delays: [200ms], maxAttempts: 1 }
  deadLetterQueue: billing.dead
`;

describe('one message that would stop a consumer', () => {
  let scene: ReceiverScene;

  beforeEach(async () => {
    scene = await receiverScene();
    await scene.database.query(LEDGER);
  });
  afterEach(async () => {
    await killRelays();
    await scene.drop();
  });

  const good = Array.from({ length: 5 }, (_, n) => ({ messageId: `good-${n}`, body: '{"amount": 1}' }));

  it('F60 F110 a key that no row can have, a body above maxBodyBytes: kept dead with their bodies, the others go on', async () => {
    const consumer = scene.start(`${BILLING}  maxBodyBytes: 1KiB\n`);
    await consumer.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    const large = JSON.stringify({ amount: 1, filling: 'x'.repeat(2_000) });
    await scene.send('billing', [
      { messageId: 'long', key: 'k'.repeat(1_025), body: '{"amount": 1}' },
      // Each NUL is written as a sign of three bytes.
      { messageId: 'nuls', key: '\0'.repeat(1_000), body: '{"amount": 1}' },
      { messageId: 'large', body: large },
      ...good,
    ]);
    await scene.waitForRows(5, "status = 'done'");
    const dead = await scene.waitForRows(3, "status = 'dead'");
    expect(dead.map((row) => [row.original_id, row.dead_reason, row.last_error])).toEqual([
      ['long', 'malformed', 'its key has more than 1024 bytes'],
      ['nuls', 'malformed', 'key, headers cannot be text in PostgreSQL (a NUL or half a character)'],
      ['large', 'malformed', `its body has ${large.length} bytes, and maxBodyBytes is 1024`],
    ]);
    expect(dead.map((row) => row.body?.toString())).toEqual(['{"amount": 1}', '{"amount": 1}', large]);
    await until(async () => (await scene.depth('billing')) === 0, { what: 'the queue to be empty' });
    expect(await consumer.stop()).toBe(0);
  });

  it.each(['classic', 'quorum'])(
    'F125 a message that ends its database connection, from a %s queue: the others go on, it is dead as suspect',
    async (queueType) => {
      await scene.database.query(
        `create function billing.crash(message waybill.inbox_message) returns text language plpgsql as $$ begin
           if message.message_id = 'killer' then
             perform pg_terminate_backend(pg_backend_pid());
             perform pg_sleep(60);
           end if;
           return 'booked';
         end $$`,
      );
      const consumer = scene.start(
        `billing:\n  queueType: ${queueType}\n  handler: { kind: sql, function: billing.crash, timeout: 60s }\n`,
      );
      await consumer.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
      await scene.send('billing', [{ messageId: 'killer' }, ...good]);
      await scene.waitForRows(5, "status = 'done'", 30_000);
      await until(
        async () => {
          // Leases are not waited for.
          await scene.database.query(
            "update waybill.inbox set lease_until = clock_timestamp() where status = 'running'",
          );
          return (await scene.rows("status = 'dead'")).length === 1;
        },
        { withinMs: 60_000, everyMs: 500, what: 'the message to be dead' },
      );
      const [dead] = await scene.rows("status = 'dead'");
      expect(dead).toMatchObject({ message_id: 'killer', dead_reason: 'suspect' });
      expect(await consumer.stop()).toBe(0);
    },
  );

  it('F125 a message whose handler asks for the transaction again for ever: the others go on at once, it is dead as suspect', async () => {
    await scene.database.query(
      `create function billing.conflict(message waybill.inbox_message) returns text language plpgsql as $$ begin
         if message.message_id = 'conflict' then
           raise exception 'once more' using errcode = 'serialization_failure';
         end if;
         return 'booked';
       end $$`,
    );
    const consumer = scene.start('billing: { handler: { kind: sql, function: billing.conflict } }');
    await consumer.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    const many = Array.from({ length: 200 }, (_, n) => ({ messageId: `m-${n}` }));
    await scene.send('billing', [...many.slice(0, 30), { messageId: 'conflict' }, ...many.slice(30)]);
    await scene.waitForRows(200, "status = 'done'", 15_000);
    const [dead] = await scene.waitForRows(1, "status = 'dead'", 60_000);
    expect(dead).toMatchObject({ message_id: 'conflict', dead_reason: 'suspect', failures: 0 });
    expect(await scene.rows("status = 'done' and abandoned + failures > 0")).toEqual([]);
    expect(await consumer.stop()).toBe(0);
  });

  it('F61 a transaction that a stranger left open on one row of the application costs its own messages time, not the others', async () => {
    await scene.database.query(
      `create table billing.account (id int primary key, amount int not null default 0);
       insert into billing.account select generate_series(0, 9);
       create function billing.book(message waybill.inbox_message) returns void language plpgsql as $$ begin
         update billing.account set amount = amount + 1 where id = (waybill.payload(message) ->> 'account')::int;
       end $$`,
    );
    const stranger = await scene.database.connect();
    await stranger.query('begin; update billing.account set amount = 0 where id = 3');
    const consumer = scene.start(
      'billing: { handler: { kind: sql, function: billing.book }, retry: { delays: [1s], maxAttempts: 2 } }',
    );
    await consumer.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    const messages = Array.from({ length: 400 }, (_, n) => ({ messageId: `m-${n}`, body: `{"account": ${n % 10}}` }));
    await scene.send('billing', messages);
    await scene.waitForRows(360, "status = 'done'", 60_000);
    expect(await scene.rows("status = 'dead' or failures > 0")).toEqual([]);
    await stranger.query('rollback');
    await stranger.end();
    await scene.waitForRows(400, "status = 'done'", 60_000);
    expect(await scene.database.query('select distinct amount from billing.account')).toEqual([{ amount: 40 }]);
    expect(await consumer.stop()).toBe(0);
  });

  it('F105 headers that are too much for one frame: the copy of the dead message goes out without some of them', async () => {
    const consumer = scene.start(BILLING);
    await consumer.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    // Just what one frame of the client takes: with the reason and the like it would be too much.
    const headers = Object.fromEntries(Array.from({ length: 64 }, (_, n) => [`h-${n}`, 'ü'.repeat(506)]));
    await scene.send('billing', [
      { messageId: 'heavy', body: '{"fails": 9}', headers },
      { messageId: 'light', body: '{"fails": 9}' },
    ]);
    await scene.waitForRows(2, "status = 'dead'");
    const probe = await startBrokerProbe({
      url: scene.vhost.url,
      queue: 'billing.dead',
      arguments: { 'x-queue-type': 'quorum', 'x-delivery-limit': 1_000_000, 'x-max-length': 100_000 },
    });
    const copies = await probe.waitFor(2);
    expect(copies.map(({ id }) => id).sort()).toEqual(['heavy', 'light']);
    const heavy = copies.find(({ id }) => id === 'heavy');
    expect(heavy?.headers).toMatchObject({ 'h-0': 'ü'.repeat(506), 'x-waybill-dead-reason': 'attempts' });
    await probe.close();
    expect(await consumer.stop()).toBe(0);
  });

  it.each(['classic', 'quorum'])(
    'headers nested so deep that the client could not decode them, from a %s queue: kept dead with their bytes, and nobody is hindered',
    async (queueType) => {
      const consumer = scene.start(
        `${BILLING}  queueType: ${queueType}\nemails:\n  handler: { kind: store }\n  queueType: ${queueType}\n`,
      );
      const consuming = (name: string) =>
        consumer.waitForLog(({ msg, consumer: whose }) => msg === 'consuming' && whose === name, `${name} to consume`);
      await Promise.all([consuming('billing'), consuming('emails')]);
      const fields = [textHeader('x-waybill-key', 'k-1'), nestedHeader('x-arrays', 20_000), nestedHeader('x-few', 17)];
      await scene.sendFrames((channel) =>
        Buffer.concat([
          publishFrames(channel, 'billing', { fields, messageId: 'deep', body: '{"amount": 7}' }),
          publishFrames(channel, 'billing', {
            fields: [nestedHeader('x-tables', 15_000, 'F')],
            messageId: 'tables',
            body: '{"amount": 8}',
          }),
          publishFrames(channel, 'billing', {
            fields: [nestedHeader('x-most', 15)],
            messageId: 'most',
            body: '{"amount": 1}',
          }),
        ]),
      );
      await scene.send('billing', good);
      await scene.send('emails', [{ messageId: 'mail' }]);
      const done = await scene.waitForRows(6, "consumer = 'billing' and status = 'done'");
      expect(done.map(({ message_id }) => message_id)).toContain('most');
      await scene.waitForRows(1, "consumer = 'emails' and status = 'pending'");
      const dead = await scene.waitForRows(2, "status = 'dead'");
      expect(dead.map((row) => [row.original_id, row.key, row.dead_reason, row.body?.toString()])).toEqual([
        ['deep', 'k-1', 'malformed', '{"amount": 7}'],
        ['tables', null, 'malformed', '{"amount": 8}'],
      ]);
      expect(dead.map((row) => row.last_error)).toEqual([
        '2 of its headers, "x-arrays" first, are nested more than 16 levels deep or cannot be decoded; raw_properties has the bytes',
        'its header "x-tables" is nested more than 16 levels deep or cannot be decoded; raw_properties has the bytes',
      ]);
      const [raw] = await scene.database.query<{ text: string }>(
        "select convert_from(raw_properties, 'UTF8') as text from waybill.inbox where original_id = 'deep'",
      );
      const kept = JSON.parse(raw!.text) as { unreadableHeaders: { name: string; field: { base64: string } }[] };
      expect(kept.unreadableHeaders.map(({ name, field }) => [name, field.base64])).toEqual([
        ['x-arrays', nestedHeader('x-arrays', 20_000).subarray(9).toString('base64')],
        ['x-few', nestedHeader('x-few', 17).subarray(6).toString('base64')],
      ]);
      await until(async () => (await scene.depth('billing')) === 0, { what: 'the queue to be empty' });
      await until(async () => (await scene.depth('billing.dead')) === 2, { what: 'the copies' });
      expect(consumer.log.filter(({ msg }) => msg.includes('connection'))).toEqual([]);
      expect(await consumer.stop()).toBe(0);
      expect(await scene.depth('billing')).toBe(0);
    },
  );

  it('F16 a timer that waits at the start does not hinder the delay exchange', async () => {
    const consumer = scene.start(BILLING);
    await consumer.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    expect(await consumer.stop()).toBe(0);
    const timer = { consumer: 'billing', seq: '1', attempt: 1, restMs: 0 };
    await scene.send(
      'waybill.retry.billing',
      Array.from({ length: 300 }, () => ({ body: JSON.stringify(timer) })),
    );
    const second = scene.start(BILLING);
    await second.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    await until(async () => (await scene.depth('waybill.retry.billing')) === 0, { what: 'the timers to be taken' });
    expect(second.log.filter(({ level }) => level === 'error' || level === 'warn')).toEqual([]);
    expect(await second.stop()).toBe(0);
  });

  it('F71 timers wait here while RabbitMQ takes nothing, and the retries go on', async () => {
    const rabbit = await startRabbit();
    const alarmed = await receiverScene({ rabbit });
    const proxy = await startFaultProxy({ targetPort: rabbit.port });
    const published = (): number => proxy.count('amqp.client.basic.publish');
    try {
      await alarmed.database.query(LEDGER);
      const handler =
        '  handler: { kind: sql, function: billing.on_event }\n  retry: { delays: [100ms], maxAttempts: 4 }\n';
      const consumer = alarmed.start(`billing:\n${handler}emails:\n${handler}`, {
        brokerUrl: proxy.url(alarmed.vhost.url),
      });
      for (const name of ['billing', 'emails']) {
        await consumer.waitForLog(({ msg, consumer: whose }) => msg === 'consuming' && whose === name, name);
        await alarmed.database.query('select waybill.consumer_pause($1, $2)', [name, 'test']);
      }
      const failing = Array.from({ length: 200 }, (_, n) => ({ messageId: `m-${n}`, body: '{"fails": 3}' }));
      await alarmed.send('billing', failing);
      await alarmed.send('emails', [{ messageId: 'first', body: '{"fails": 1}' }]);
      await alarmed.waitForRows(201, "status = 'pending'");
      await rabbit.alarm(true);
      // RabbitMQ says that it takes nothing when something was sent: this one's timer.
      await alarmed.database.query("select waybill.consumer_resume('emails', 'test')");
      await consumer.waitForLog(({ msg }) => msg.startsWith('RabbitMQ blocks publishing'), 'the alarm');
      expect(published()).toBe(1);
      await alarmed.database.query("select waybill.consumer_resume('billing', 'test')");
      await alarmed.waitForRows(201, "status = 'done'", 60_000);
      expect(published()).toBe(1);
      await rabbit.alarm(false);
      await consumer.waitForLog(({ msg }) => msg === 'RabbitMQ takes messages again', 'the end of the alarm');
      await alarmed.send('billing', [{ messageId: 'after', body: '{"fails": 1}' }]);
      await alarmed.waitForRows(202, "status = 'done'");
      expect(published()).toBe(2);
      expect(await consumer.stop()).toBe(0);
    } finally {
      await killRelays();
      await proxy.close();
      await alarmed.drop();
      await rabbit.close();
    }
  });

  it('F112 SIGTERM while RabbitMQ takes nothing and a copy waits: the end comes soon, and the copy at the next start', async () => {
    const rabbit = await startRabbit();
    const alarmed = await receiverScene({ rabbit });
    try {
      await alarmed.database.query(LEDGER);
      const consumer = alarmed.start(BILLING);
      await consumer.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
      await alarmed.database.query("select waybill.consumer_pause('billing', 'test')");
      await alarmed.send('billing', [{ messageId: 'bad', body: '{"fails": 9}' }]);
      await alarmed.waitForRows(1, "status = 'pending'");
      await rabbit.alarm(true);
      await alarmed.database.query("select waybill.consumer_resume('billing', 'test')");
      await alarmed.waitForRows(1, "status = 'dead'");
      await consumer.waitForLog(({ msg }) => msg.startsWith('RabbitMQ blocks publishing'), 'the copy to wait');
      const beganAt = performance.now();
      expect(await consumer.stop()).toBe(0);
      expect(performance.now() - beganAt).toBeLessThan(15_000);
      // Nobody waits for the end of a lease.
      const left = await alarmed.database.query('select claimed_until from waybill.inbox_uncopied');
      expect(left).toEqual([{ claimed_until: null }]);
      await rabbit.alarm(false);
      const second = alarmed.start(BILLING);
      await second.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
      // What was sent before may arrive, too, when the alarm ends.
      await until(async () => ((await alarmed.depth('billing.dead')) ?? 0) >= 1, { what: 'the copy' });
      expect(await second.stop()).toBe(0);
    } finally {
      await killRelays();
      await alarmed.drop();
      await rabbit.close();
    }
  });
});
