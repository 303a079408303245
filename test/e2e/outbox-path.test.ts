import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { startBrokerProbe } from '../support/broker-probe.js';
import { freshVhost, type FreshVhost } from '../support/broker.js';
import type { FreshDatabase } from '../support/database.js';
import { migratedDatabase } from '../support/migrated-database.js';
import { killRelays, startRelay } from '../support/relay.js';
import { until } from '../support/waiting.js';

describe('the outbox path', () => {
  let database: FreshDatabase;
  let vhost: FreshVhost;

  beforeAll(async () => {
    [database, vhost] = await Promise.all([migratedDatabase(), freshVhost()]);
  });
  afterEach(killRelays);
  afterAll(async () => {
    await Promise.all([database.drop(), vhost.drop()]);
  });

  it('publishes committed rows, and only those, removes them, and drains on SIGTERM', async () => {
    await database.query("select waybill.publish('before.start', '{\"n\": 1}', key => 'k')");
    const relay = startRelay({ databaseUrl: database.url, brokerUrl: vhost.url });
    await relay.waitForPhase('streaming');
    const probe = await startBrokerProbe({ url: vhost.url, exchange: 'waybill.events' });
    const ids = (
      await database.query<{ id: string }>(
        "select waybill.publish('order.paid', json_build_object('n', n), key => 'order-' || n) as id from generate_series(1, 500) n",
      )
    ).map((row) => row.id);
    const client = await database.connect();
    await client.query('begin');
    await client.query("select waybill.publish('order.paid', '{\"never\": true}')");
    await client.query('rollback');
    // The row from before the start found no queue; it is tried again about now that there is one, in no fixed place.
    await probe.waitForDistinct(501);
    expect(probe.messages.filter((each) => each.type === 'before.start').map((each) => each.body.toString())).toEqual([
      '{"n": 1}',
    ]);
    const messages = probe.messages.filter((each) => each.type !== 'before.start');
    expect(messages.map((each) => each.id)).toEqual(ids);
    expect(messages[0]).toMatchObject({ type: 'order.paid', routingKey: 'order.paid', exchange: 'waybill.events' });
    await until(async () => (await database.query("select from waybill.outbox where state = 'ready'")).length === 0, {
      what: 'the outbox to be empty',
    });
    expect(await relay.stop()).toBe(0);
    expect(relay.noise).toEqual([]);
    expect(probe.messages.length).toBe(501);
    const slots = await database.query<{ held: string }>(
      "select (pg_current_wal_lsn() - confirmed_flush_lsn)::text as held from pg_replication_slots where slot_name like 'waybill_%' and database = current_database()",
    );
    expect(slots.length).toBe(1);
    await probe.close();
  });
});
