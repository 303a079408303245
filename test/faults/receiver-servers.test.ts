import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { LEDGER } from '../support/ledger.js';
import { receiverScene, type ReceiverScene } from '../support/receiver-scene.js';
import { killRelays } from '../support/relay.js';
import { startPostgres } from '../support/servers/postgres.js';
import type { PostgresServer } from '../support/servers/postgres-server.js';
import { startRabbit } from '../support/servers/rabbit.js';
import type { RabbitServer } from '../support/servers/rabbit-server.js';
import { until } from '../support/waiting.js';

const CONSUMER = `
billing:
  handler: { kind: sql, function: billing.on_event, timeout: 5s }
  retry: { delays: [200ms], maxAttempts: 3 }
`;

describe('servers that go away under a consumer', () => {
  let postgres: PostgresServer;
  let rabbit: RabbitServer;
  let scene: ReceiverScene;

  beforeAll(async () => {
    // The log is written rarely, unless a commit asks for it.
    const settings = { wal_writer_delay: '10s' };
    [postgres, rabbit] = await Promise.all([startPostgres({ own: true, settings }), startRabbit({ own: true })]);
  });
  afterAll(async () => {
    await Promise.all([postgres.close(), rabbit.close()]);
  });
  beforeEach(async () => {
    scene = await receiverScene({ postgres, rabbit });
    await scene.database.query(LEDGER);
  });
  afterEach(async () => {
    await killRelays();
    await scene.drop();
  });

  const messages = (from: number, n: number) =>
    Array.from({ length: n }, (_, index) => ({ messageId: `m-${from + index}`, body: `{"amount": ${index}}` }));

  async function expectOnce(count: number): Promise<void> {
    await scene.waitForRows(count, "status = 'done' and failures = 0 and abandoned = 0", 60_000);
    await until(async () => (await scene.depth('billing')) === 0, { withinMs: 20_000, what: 'the queue to be empty' });
    const twice = await scene.database.query('select from billing.ledger group by message_id having count(*) > 1');
    expect(twice).toEqual([]);
  }

  it('F20 F68 F109 I4 PostgreSQL and RabbitMQ are killed under load, one after the other: every effect once', async () => {
    const consumer = scene.start(CONSUMER);
    await consumer.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    await scene.send('billing', messages(0, 2_000));
    await until(async () => (await scene.rows("status = 'done'")).length > 100, { what: 'some effects' });
    await postgres.kill9();
    await postgres.start();
    await until(async () => (await scene.rows("status = 'done'")).length > 600, {
      withinMs: 60_000,
      what: 'more effects',
    });
    await rabbit.flushDeclarations();
    await rabbit.kill9();
    await rabbit.start();
    await scene.send('billing', messages(2_000, 100));
    await expectOnce(2_100);
    expect(await consumer.stop()).toBe(0);
    // What was not acknowledged would be back in the queue.
    expect(await scene.depth('billing')).toBe(0);
  });

  it('I1 F20 nothing is acknowledged before it is on the disk, also where the database says synchronous_commit = off', async () => {
    await scene.database.query(`alter database ${scene.database.name} set synchronous_commit = off`);
    const consumer = scene.start('emails: {}');
    await consumer.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    await scene.send('emails', [{ messageId: 'm-1' }]);
    await scene.waitForRows(1, "status = 'pending'");
    // What was acknowledged at this moment is nowhere else.
    expect(await consumer.stop()).toBe(0);
    expect(await scene.depth('emails')).toBe(0);
    await postgres.kill9();
    await postgres.start();
    expect((await scene.waitForRows(1, "status = 'pending'")).map((row) => row.message_id)).toEqual(['m-1']);
  });

  it('I1 F20 also where the handler says synchronous_commit = off', async () => {
    await scene.database.query(
      `create function billing.hasty(message waybill.inbox_message) returns void language plpgsql as $$ begin
         set local synchronous_commit = off;
         insert into billing.ledger (message_id, attempt) values (message.message_id, message.attempt);
       end $$`,
    );
    const consumer = scene.start('billing: { handler: { kind: sql, function: billing.hasty } }');
    await consumer.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    await scene.send('billing', [{ messageId: 'm-1' }]);
    await scene.waitForRows(1, "status = 'done'");
    await postgres.kill9();
    expect(await consumer.stop()).toBe(0);
    const left = await scene.depth('billing');
    await postgres.start();
    // In the queue, or in the table.
    const rows = await scene.rows("status = 'done'");
    expect((left ?? 0) + rows.length).toBeGreaterThanOrEqual(1);
    expect(await scene.database.query('select message_id from billing.ledger')).toEqual(
      rows.map(({ message_id }) => ({ message_id })),
    );
  });

  it('F93 the broker ends the channel because an acknowledgement took too long: the effect is there once', async () => {
    await rabbit.ctl(
      'eval',
      'application:set_env(rabbit, channel_tick_interval, 500), application:set_env(rabbit, consumer_timeout, 1000).',
    );
    try {
      const consumer = scene.start(CONSUMER);
      await consumer.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
      await scene.send('billing', [{ messageId: 'slow', body: '{"amount": 1, "sleep": 3}' }, ...messages(0, 10)]);
      await consumer.waitForLog(
        (line) => JSON.stringify(line).includes('delivery acknowledgement on channel'),
        'the end of the channel',
      );
      await expectOnce(11);
      expect(consumer.log.filter(({ msg }) => msg === 'consuming').length).toBeGreaterThan(1);
      expect(await consumer.stop()).toBe(0);
      expect(await scene.depth('billing')).toBe(0);
    } finally {
      await rabbit.ctl(
        'eval',
        'application:set_env(rabbit, channel_tick_interval, 60000), application:set_env(rabbit, consumer_timeout, 1800000).',
      );
    }
  });
});
