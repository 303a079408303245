import { randomUUID } from 'node:crypto';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { startFaultProxy } from '../support/fault-proxy.js';
import { killRelays } from '../support/relay.js';
import { relayScene, type RelayScene } from '../support/relay-scene.js';
import { until } from '../support/waiting.js';

describe('transactions and the relay', () => {
  let scene: RelayScene;

  beforeAll(async () => {
    scene = await relayScene();
  });
  beforeEach(() => scene.probe.clear());
  afterEach(async () => {
    await killRelays();
    await scene.slotReleased();
  });
  afterAll(() => scene.drop());

  it('brings a transaction whose commit record begins where the acknowledged one ended (facts 2, 12, O1)', async () => {
    await scene.topology(async (channel) => {
      await channel.assertExchange('narrow', 'topic');
      await channel.assertQueue('full', { arguments: { 'x-max-length': 0, 'x-overflow': 'reject-publish' } });
      await channel.bindQueue('full', 'narrow', '#');
    });
    const relay = scene.start();
    await relay.waitForPhase('streaming');
    const [one, two] = [await scene.database.connect(), await scene.database.connect()];
    await one.query('begin');
    await two.query('begin');
    const first = await scene.publish(1, { client: one });
    // Deleted at once: neither a table pass nor a sweep could bring it back, were the log to skip it.
    const second = randomUUID();
    await two.query("insert into waybill.outbox (id, type, exchange) values ($1, 'adjacent', 'narrow')", [second]);
    await two.query('delete from waybill.outbox where id = $1', [second]);
    const [before] = await scene.database.query<{ lsn: string }>(
      "select (pg_current_wal_insert_lsn() - '0/0')::text as lsn",
    );
    await one.query('commit');
    await two.query('commit');
    await until(async () => ((await scene.slot())?.confirmed ?? 0n) > BigInt(before?.lsn ?? 0), {
      what: 'the first transaction to be acknowledged while the second is nacked',
    });
    await relay.kill9();
    expect(scene.probe.ids()).toEqual(first);
    await scene.topology(async (channel) => {
      await channel.deleteQueue('full');
      await channel.bindQueue(scene.probe.queue, 'narrow', '#');
    });
    await scene.slotReleased();
    const next = scene.start();
    await scene.probe.waitFor(2);
    expect(await next.stop()).toBe(0);
    expect(scene.probe.ids()).toEqual([...first, second]);
  });

  it('skips and repeats nothing at graceful restarts (facts 3, 10, 11)', async () => {
    const all: string[] = [];
    for (let round = 0; round < 4; round += 1) {
      const relay = scene.start();
      await relay.waitForPhase('streaming');
      all.push(...(await scene.publish(1)));
      await scene.probe.waitFor(all.length);
      expect(await relay.stop()).toBe(0);
      await scene.slotReleased();
      const client = await scene.database.connect();
      await client.query('begin');
      const one = await scene.publish(1, { client });
      await client.query('commit');
      await client.query('begin');
      const two = await scene.publish(2, { client });
      await client.query('commit');
      await client.end();
      all.push(...one, ...two);
    }
    const relay = scene.start();
    await scene.probe.waitFor(all.length);
    await scene.settled();
    expect(await relay.stop()).toBe(0);
    expect(scene.probe.ids()).toEqual(all);
  });

  it('publishes neither what was rolled back nor what a savepoint took back (F52, fact 17)', async () => {
    const relay = scene.start();
    await relay.waitForPhase('streaming');
    const client = await scene.database.connect();
    await client.query('begin');
    const kept = await scene.publish(2, { client });
    await client.query('savepoint s');
    await scene.publish(3, { client });
    await client.query('rollback to savepoint s');
    await client.query('savepoint t');
    kept.push(...(await scene.publish(1, { client })));
    await client.query('release savepoint t');
    await client.query('commit');
    await client.query('begin');
    await scene.publish(5, { client });
    await client.query('rollback');
    kept.push(...(await scene.publish(1, { client })));
    await scene.probe.waitFor(kept.length);
    await scene.settled();
    expect(scene.probe.ids()).toEqual(kept);
  });

  it('publishes a prepared transaction when it is committed, across a restart, and not one rolled back (F53, fact 17)', async () => {
    const client = await scene.database.connect();
    const first = scene.start();
    await first.waitForPhase('streaming');
    await client.query('begin');
    const prepared = await scene.publish(3, { client });
    await client.query(`prepare transaction '${scene.database.name}_a'`);
    await client.query('begin');
    await scene.publish(3, { client });
    await client.query(`prepare transaction '${scene.database.name}_b'`);
    const after = await scene.publish(1);
    await scene.probe.waitFor(1);
    expect(await first.stop()).toBe(0);
    const second = scene.start();
    await second.waitForPhase('streaming');
    expect(scene.probe.ids()).toEqual(after);
    await client.query(`commit prepared '${scene.database.name}_a'`);
    await client.query(`rollback prepared '${scene.database.name}_b'`);
    await scene.probe.waitFor(4);
    await scene.settled();
    expect(scene.probe.ids()).toEqual([...after, ...prepared]);
  });

  it('publishes interleaved transactions in the order of their commits (F54, F55, O5, fact 27)', async () => {
    const relay = scene.start();
    await relay.waitForPhase('streaming');
    const [early, late] = [await scene.database.connect(), await scene.database.connect()];
    await early.query('begin');
    await late.query('begin');
    const ofEarly = await scene.publish(2, { client: early });
    const ofLate = await scene.publish(2, { client: late });
    ofEarly.push(...(await scene.publish(2, { client: early })));
    ofLate.push(...(await scene.publish(2, { client: late })));
    await late.query('commit');
    await early.query('commit');
    await scene.probe.waitFor(8);
    await scene.settled();
    expect(scene.probe.ids()).toEqual([...ofLate, ...ofEarly]);
  });

  it('publishes once what is inserted and deleted in one transaction, keeps its history, and writes back what it must hold (fact 16)', async () => {
    const relay = scene.start();
    await relay.waitForPhase('streaming');
    const client = await scene.database.connect();
    await client.query('begin');
    const [gone = ''] = await scene.publish(1, { client });
    await client.query('delete from waybill.outbox');
    await client.query('commit');
    const unroutable = randomUUID();
    await client.query('begin');
    await client.query(
      `insert into waybill.outbox (id, type, payload, exchange, headers, key)
       values ($1, 'a.type', '{"kept":  1.10}', 'no.such.exchange', '{"h": 1}', 'k')`,
      [unroutable],
    );
    await client.query('delete from waybill.outbox');
    await client.query('commit');
    await scene.probe.waitFor(1);
    const held = await until(
      async () =>
        (
          await scene.database.query(
            `select state, attempts, payload::text as payload, headers, key, last_error from waybill.outbox where id = $1`,
            [unroutable],
          )
        )[0],
      { what: 'the held row to be written back' },
    );
    expect(held).toMatchObject({
      state: 'parked',
      attempts: 1,
      payload: '{"kept":  1.10}',
      headers: { h: 1 },
      key: 'k',
    });
    const history = await until(
      async () => {
        const rows = await scene.database.query('select outcome, type from waybill.outbox_history where id = $1', [
          gone,
        ]);
        return rows.length > 0 && rows;
      },
      { what: 'the history of the row' },
    );
    expect(history).toEqual([{ outcome: 'published', type: 'order.paid' }]);
    expect(await scene.database.query('select insert_then_delete_seen as seen from waybill.relay')).toEqual([
      { seen: true },
    ]);
    expect(await relay.stop()).toBe(0);
    // What came back by the write-back is not taken for a new row, and what is gone does not come again.
    const again = scene.start();
    await again.waitForPhase('streaming');
    const [marker] = await scene.publish(1);
    await scene.probe.waitFor(2);
    await scene.settled();
    expect(scene.probe.ids()).toEqual([gone, marker]);
    expect(await scene.database.query('select state from waybill.outbox')).toEqual([{ state: 'parked' }]);
    await scene.database.query('delete from waybill.outbox');
  });

  it('takes no notice of updates, deletes and truncates, also from a publication that sends them (F51, fact 16)', async () => {
    const relay = scene.start();
    await relay.waitForPhase('streaming');
    const { database } = scene;
    await database.query("alter publication waybill_outbox set (publish = 'insert, update, delete, truncate')");
    const client = await database.connect();
    await client.query('begin');
    const ids = await scene.publish(3, { client });
    await client.query("update waybill.outbox set deliver_at = '2000-01-01' where id = $1", [ids[0]]);
    await client.query('delete from waybill.outbox where id = $1', [ids[1]]);
    await client.query('commit');
    await scene.probe.waitFor(3);
    await scene.settled();
    await client.query('truncate waybill.outbox');
    ids.push(...(await scene.publish(2)));
    await scene.probe.waitFor(5);
    await scene.settled();
    expect(scene.probe.ids()).toEqual(ids);
    await database.query("alter publication waybill_outbox set (publish = 'insert')");
  });

  it('carries 100,000 rows of one transaction through its window, in order, and again after a kill -9 (F45, F5, O4, fact 21)', async () => {
    const proxy = await startFaultProxy({ targetPort: Number(new URL(scene.vhost.url).port) });
    const env = { WAYBILL_RELAY_MAX_IN_FLIGHT: '500' };
    const relay = scene.start({ brokerUrl: proxy.url(scene.vhost.url), env });
    await relay.waitForPhase('streaming');
    // Nothing is confirmed for now: at most one window may go out, however long the transaction is.
    const before = proxy.count('amqp.client.basic.publish');
    const stall = proxy.at('amqp.server.basic.ack', 1, 'stall-before');
    // Time enough to send more, before the first word of the broker arrives.
    proxy.delay(1_000);
    const ids = await scene.publish(100_000);
    await stall;
    expect(proxy.count('amqp.client.basic.publish') - before).toBeLessThanOrEqual(500);
    await relay.kill9();
    await proxy.close();
    await scene.slotReleased();
    const next = scene.start({ env });
    // Counting copies is cheap, telling them apart is not: last, and once.
    await scene.probe.waitFor(ids.length, 120_000);
    await scene.probe.waitForDistinct(ids.length, 30_000);
    await scene.settled(60_000);
    expect(scene.probe.firstIds().every((id, n) => id === ids[n])).toBe(true);
    expect(scene.probe.messages.length).toBeLessThanOrEqual(ids.length + 500);
    await until(async () => ((await scene.slot())?.behind ?? 99_999_999n) < 1_000_000n, {
      withinMs: 20_000,
      what: 'the slot to have passed the transaction',
    });
    expect(await next.stop()).toBe(0);
  }, 180_000);
});
