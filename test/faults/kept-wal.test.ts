import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { startBrokerProbe } from '../support/broker-probe.js';
import { freshVhost, type FreshVhost } from '../support/broker.js';
import type { FreshDatabase } from '../support/database.js';
import { startFaultProxy, type FaultProxy } from '../support/fault-proxy.js';
import { migratedDatabase } from '../support/migrated-database.js';
import { killRelays, startRelay } from '../support/relay.js';
import { until } from '../support/waiting.js';

describe('maxKeptWal', () => {
  let database: FreshDatabase;
  let vhost: FreshVhost;
  let proxy: FaultProxy;

  beforeAll(async () => {
    [database, vhost] = await Promise.all([migratedDatabase(), freshVhost()]);
    const url = new URL(vhost.url);
    proxy = await startFaultProxy({ targetHost: url.hostname, targetPort: Number(url.port) });
  });
  afterEach(killRelays);
  afterAll(async () => {
    await proxy.close();
    await Promise.all([database.drop(), vhost.drop()]);
  });

  it('gives up the slot in a broker outage rather than fill the disk, and loses nothing (3.4, F41)', async () => {
    const relay = startRelay({
      databaseUrl: database.url,
      brokerUrl: proxy.url(vhost.url),
      env: { WAYBILL_RELAY_MAX_KEPT_WAL: '64MiB' },
    });
    await relay.waitForPhase('streaming');
    const probe = await startBrokerProbe({ url: vhost.url, exchange: 'waybill.events', queue: 'all' });
    const slot = (): Promise<unknown[]> =>
      database.query('select from pg_replication_slots where database = current_database()');
    proxy.refuse(true);
    proxy.cut();
    const rows = await database.query<{ id: string }>(
      "select waybill.publish('t', json_build_object('n', n)) as id from generate_series(1, 1000) n",
    );
    await database.query(
      "select pg_logical_emit_message(false, 'filler', repeat('x', 1000000)) is null from generate_series(1, 80)",
    );
    expect((await slot()).length).toBe(1);
    await until(async () => (await slot()).length === 0, { withinMs: 60_000, what: 'the slot to be given up' });
    await relay.waitForLog((line) => line.msg.includes('maxKeptWal'), 'a loud line about it');
    proxy.refuse(false);
    await probe.waitForDistinct(1000, 60_000);
    expect(new Set(probe.ids())).toEqual(new Set(rows.map((row) => row.id)));
    expect((await slot()).length).toBe(1);
    await probe.close();
    expect(await relay.stop()).toBe(0);
  });
});
