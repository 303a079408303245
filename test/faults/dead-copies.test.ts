import { readFileSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { readConsumers } from '../../src/postgres/inbox-backlog.js';
import { ADMIN_ON, adminOf } from '../support/admin.js';
import { startBrokerProbe, type BrokerProbe } from '../support/broker-probe.js';
import { LEDGER } from '../support/ledger.js';
import { receiverScene, type ReceiverScene } from '../support/receiver-scene.js';
import { killRelays } from '../support/relay.js';
import { startRabbit } from '../support/servers/rabbit.js';
import { until } from '../support/waiting.js';

const BILLING = `
billing:
  handler: { kind: sql, function: billing.on_event }
  retry: { delays: [200ms], maxAttempts: 1 }
  deadLetterQueue: billing.dead
`;
const FAILS = '{"fails": 9}';
/** Of the advisory lock that holds up what a test wants to hold up. */
const GATE = 4711;

describe('copies of dead messages', () => {
  let scene: ReceiverScene;
  let probe: BrokerProbe | undefined;

  beforeEach(async () => {
    scene = await receiverScene();
    await scene.database.query(LEDGER);
  });
  afterEach(async () => {
    await killRelays();
    await probe?.close();
    probe = undefined;
    await scene.drop();
  });

  const listen = async (): Promise<BrokerProbe> =>
    (probe = await startBrokerProbe({
      url: scene.vhost.url,
      queue: 'billing.dead',
      arguments: { 'x-queue-type': 'quorum', 'x-delivery-limit': 1_000_000, 'x-max-length': 100_000 },
    }));
  const uncopied = () =>
    scene.database.query<{ id: string; refused: number }>(
      `select i.message_id as id, u.refused from waybill.inbox_uncopied u join waybill.inbox i on i.seq = u.inbox_seq order by 1`,
    );
  const allCopied = () => until(async () => (await uncopied()).length === 0, { what: 'the copies to be noted' });
  const started = async (consumers = BILLING) => {
    const consumer = scene.start(consumers);
    await consumer.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    return consumer;
  };
  /** Rows that are dead, as if they had died long ago, of a consumer that is registered. */
  const dead = (ids: string[], body: string, headers = '{}') =>
    scene.database.query(
      `insert into waybill.inbox (consumer, message_id, body, body_hash, headers, status, dead_reason, processed_at)
       select 'billing', id, convert_to(${body}, 'utf8'), sha256(''), '${headers}', 'dead', 'never', clock_timestamp()
       from unnest($1::text[]) as id`,
      [ids],
    );
  /** Whatever does this to a row of the table waits until the gate is opened. */
  const gate = async (when: string): Promise<{ open(): Promise<void>; held(): Promise<void> }> => {
    await scene.database.query(
      `create function billing.gate() returns trigger language plpgsql set lock_timeout = 0 as $$ begin
         perform pg_advisory_xact_lock_shared(${GATE});
         return coalesce(new, old);
       end $$`,
    );
    await scene.database.query(`create trigger gate ${when} execute function billing.gate()`);
    await scene.database.query(`select pg_advisory_lock(${GATE})`);
    return {
      open: async () => {
        await scene.database.query(`select pg_advisory_unlock(${GATE})`);
      },
      held: async () => {
        const waiting = `select from pg_locks where locktype = 'advisory' and objid = ${GATE} and not granted`;
        await until(async () => (await scene.database.query(waiting)).length > 0, { what: 'somebody at the gate' });
      },
    };
  };

  it('F17 an older death whose transaction commits after a later one was copied by another daemon', async () => {
    const held = await gate(
      `after update on waybill.inbox for each row when (new.message_id = 'older' and new.status = 'dead')`,
    );
    const consumers = `${BILLING}  prefetch: 1\n`;
    const first = await started(consumers);
    await listen();
    await scene.send('billing', [{ messageId: 'older', body: FAILS }]);
    await held.held();
    const second = await started(consumers);
    await scene.send('billing', [{ messageId: 'later', body: FAILS }]);
    await probe?.waitFor(1);
    await allCopied();
    expect(probe?.ids()).toEqual(['later']);
    await held.open();
    await probe?.waitFor(2);
    const rows = await scene.database.query('select message_id from waybill.inbox order by processed_at');
    expect(rows).toEqual([{ message_id: 'older' }, { message_id: 'later' }]);
    await allCopied();
    expect(probe?.ids()).toEqual(['later', 'older']);
    expect([await first.stop(), await second.stop()]).toEqual([0, 0]);
  });

  it('F17 two daemons, one killed between the confirm and its note: nothing is copied at the same time, and again after the lease', async () => {
    const held = await gate('before delete on waybill.inbox_uncopied for each row');
    const first = await started();
    await listen();
    await scene.send('billing', [{ messageId: 'a', body: FAILS }]);
    await held.held();
    await probe?.waitFor(1);
    const second = await started();
    await first.kill9();
    // What it had sent to PostgreSQL would be done also after its death.
    await scene.database.query(
      `select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and objid = ${GATE} and not granted`,
    );
    await held.open();
    await scene.send('billing', [{ messageId: 'b', body: FAILS }]);
    await probe?.waitFor(2);
    await until(async () => (await uncopied()).length === 1, { what: 'the second copy to be noted' });
    expect(probe?.ids()).toEqual(['a', 'b']);
    await scene.database.query('update waybill.inbox_uncopied set claimed_until = clock_timestamp()');
    await scene.send('billing', [{ messageId: 'c', body: FAILS }]);
    await probe?.waitForDistinct(3);
    await allCopied();
    expect(probe?.ids().toSorted()).toEqual(['a', 'a', 'b', 'c']);
    expect(await second.stop()).toBe(0);
  });

  it('F110 F114 sixty bodies of 4 MiB that wait for their copies do not fill the memory', async () => {
    const first = await started();
    expect(await first.stop()).toBe(0);
    const ids = Array.from({ length: 60 }, (_, n) => `large-${n}`);
    await dead(ids, `repeat('x', 4 * 1024 * 1024)`);
    const consumer = scene.start(BILLING);
    await until(async () => (await uncopied()).length === 0, { what: 'all copies to go out', withinMs: 60_000 });
    const peakKb = Number(/VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${consumer.pid}/status`, 'utf8'))?.[1]);
    expect(peakKb).toBeLessThan(350 * 1024);
    expect(await consumer.stop()).toBe(0);
    expect(await scene.depth('billing.dead')).toBe(60);
  });

  it('F105 the dead-letter exchange is deleted while it runs: it is there again, with its queue', async () => {
    const consumer = await started();
    await scene.broker((channel) => channel.deleteExchange('waybill.dlx'));
    await scene.send('billing', [{ messageId: 'a', body: FAILS }]);
    await until(async () => (await scene.depth('billing.dead')) === 1, { what: 'the copy' });
    await allCopied();
    await scene.broker((channel) => channel.unbindQueue('billing.dead', 'waybill.dlx', 'dead.billing'));
    await scene.send('billing', [{ messageId: 'b', body: FAILS }]);
    await until(async () => (await scene.depth('billing.dead')) === 2, { what: 'the second copy' });
    expect(await consumer.stop()).toBe(0);
  });

  it('F105 what deaths go through is deleted while only RabbitMQ gives messages up: it is declared anew', async () => {
    const consumer = await started();
    await scene.broker((channel) => channel.deleteExchange('waybill.dlx'));
    const isBound = (queue: string, key: string) =>
      scene.broker(async (channel) => {
        const before = (await channel.checkQueue(queue)).messageCount;
        channel.publish('waybill.dlx', key, Buffer.from('?'), { messageId: 'probe' });
        const { messageCount } = await channel.checkQueue(queue);
        return messageCount > before;
      });
    await until(() => isBound('billing.dead', 'dead.billing').catch(() => false), {
      what: 'the exchange and the binding of billing.dead',
      withinMs: 45_000,
      everyMs: 500,
    });
    expect(await consumer.stop()).toBe(0);
    const before = await scene.depth('billing.dlq');
    await scene.send('billing', [{ messageId: 'late', body: '{}', options: { expiration: '50' } }]);
    await until(async () => (await scene.depth('billing.dlq')) === (before ?? 0) + 1, {
      what: 'the death by RabbitMQ',
    });
  });

  it('F105 the exchange is deleted where others declare it: the log and readiness say so', async () => {
    await (await started()).stop();
    const consumer = scene.start(`${BILLING}  topology: check\n`, { env: ADMIN_ON });
    await consumer.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    const admin = await adminOf(consumer);
    await scene.broker((channel) => channel.deleteExchange('waybill.dlx'));
    const line = await consumer.waitForLog(
      ({ msg }) => msg === 'the dead-letter exchange: cannot go on until this is mended',
      'the reason',
      45_000,
    );
    expect(JSON.stringify(line['err'])).toContain('exchange waybill.dlx does not exist');
    expect((await admin.get('/readyz')).body).toContain('the dead-letter exchange: ');
    expect(await consumer.stop()).toBe(0);
  });

  it('F105 a dead-letter queue that somebody else is to bind: the copies wait for it, and it says so', async () => {
    await scene.broker(async (channel) => {
      await channel.assertExchange('waybill.dlx', 'topic');
      await channel.assertQueue('billing');
      await channel.assertQueue('waybill.retry.billing', { durable: true });
      await channel.assertQueue('billing.dead');
    });
    const consumer = await started(`${BILLING}  topology: none\n`);
    await scene.send('billing', [{ messageId: 'a', body: FAILS }]);
    const line = await consumer.waitForLog(
      ({ msg }) => msg === 'copies of dead messages: cannot go on until this is mended',
      'the reason',
    );
    expect(JSON.stringify(line['err'])).toContain('queue billing.dead does not get the copies');
    expect(await uncopied()).toEqual([{ id: 'a', refused: 0 }]);
    await scene.broker((channel) => channel.bindQueue('billing.dead', 'waybill.dlx', 'dead.billing'));
    await until(async () => (await scene.depth('billing.dead')) === 1, { what: 'the copy', withinMs: 40_000 });
    await allCopied();
    expect(await consumer.stop()).toBe(0);
  });

  it('F105 without a queue for them nobody waits for anything, and it is said once', async () => {
    const consumer = await started(BILLING.replace(/  deadLetterQueue.*\n/, ''));
    for (const messageId of ['a', 'b']) {
      await scene.send('billing', [{ messageId, body: FAILS }]);
      await scene.waitForRows(1, `status = 'dead' and message_id = '${messageId}'`);
      await allCopied();
    }
    expect(consumer.log.filter(({ msg }) => msg.startsWith('no queue is bound for copies'))).toHaveLength(1);
    expect(await consumer.stop()).toBe(0);
  });

  it('F47 F78 F105 a broker with small limits: copies that it refuses hold up no others, and the reason is told', async () => {
    const rabbit = await startRabbit({ own: true, settings: { frame_max: 8192, max_message_size: 100_000 } });
    await scene.drop();
    scene = await receiverScene({ rabbit });
    try {
      await scene.database.query(LEDGER);
      const first = await started();
      expect(await first.stop()).toBe(0);
      const good = Array.from({ length: 5 }, (_, n) => `good-${n}`);
      await dead(['large'], `repeat('x', 200000)`);
      // No frame takes these headers: RabbitMQ closes the connection over it.
      const headers = Object.fromEntries(Array.from({ length: 9 }, (_, n) => [`h${n}`, 'x'.repeat(1_000)]));
      await dead(['heavy'], `'{}'`, JSON.stringify(headers));
      await dead(good, `'{}'`);
      const consumer = scene.start(BILLING);
      await listen();
      const copies = await probe!.waitForDistinct(6, 60_000);
      expect(new Set(copies.map(({ id }) => id))).toEqual(new Set(['heavy', ...good]));
      const heavy = copies.find(({ id }) => id === 'heavy');
      expect(heavy?.headers).toMatchObject({ 'x-waybill-dead-reason': 'never' });
      expect(heavy?.headers).not.toHaveProperty('h0');
      const line = await consumer.waitForLog(
        ({ level, msg }) => level === 'error' && msg.startsWith('the copy of a dead message is refused'),
        'the reason',
      );
      expect(line).toMatchObject({ messageId: 'large', retryInMs: 60_000 });
      expect(JSON.stringify(line['err'])).toMatch(/larger than configured max size/);
      await until(async () => (await uncopied()).length === 1, { what: 'the others to be noted' });
      expect(await uncopied()).toEqual([{ id: 'large', refused: 2 }]);
      const client = await scene.database.connect();
      expect((await readConsumers(client, 'waybill'))[0]?.uncopied).toMatchObject({ count: 1, refused: 1 });
      await client.end();
      expect(await scene.rows("status = 'dead'")).toHaveLength(7);
      expect(await consumer.stop()).toBe(0);
    } finally {
      await killRelays();
      await probe?.close();
      probe = undefined;
      await scene.drop();
      await rabbit.close();
      scene = await receiverScene();
    }
  });
});
