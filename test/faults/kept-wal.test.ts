import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { startBrokerProbe } from '../support/broker-probe.js';
import { freshVhost, type FreshVhost } from '../support/broker.js';
import type { FreshDatabase } from '../support/database.js';
import { startFaultProxy, type FaultProxy } from '../support/fault-proxy.js';
import { migratedDatabase } from '../support/migrated-database.js';
import { killRelays, startRelay, type LogLine, type RelayProcess } from '../support/relay.js';
import { relayScene } from '../support/relay-scene.js';
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

  it('lets the position pass a row that the table does not let the relay set aside; it is kept, and nothing is sent again (3.4)', async () => {
    const scene = await relayScene();
    try {
      await scene.database.query(`
        create function public.immutable() returns trigger language plpgsql as
          $$ begin if new.type = 'bad' then raise exception 'rows are immutable'; end if; return new; end $$;
        create trigger immutable before update on waybill.outbox for each row execute function public.immutable()`);
      const start = (): RelayProcess => scene.start({ env: { WAYBILL_RELAY_MAX_KEPT_WAL: '64MiB' } });
      const first = start();
      await first.waitForPhase('streaming');
      await scene.database.query(
        "insert into waybill.outbox (type, payload, exchange) values ('bad', '{}', 'nowhere')",
      );
      const told = (line: LogLine): boolean => line['sqlState'] === 'P0001';
      await first.waitForLog(told, 'word of the trigger');
      const before = (await scene.slot())?.confirmed ?? 0n;
      const ids = await scene.publish(100);
      const onlyBad = async (): Promise<boolean> =>
        (await scene.database.query<{ type: string }>('select type from waybill.outbox'))
          .map(({ type }) => type)
          .join() === 'bad';
      await until(onlyBad, { what: 'the others to be settled' });
      expect((await scene.slot())?.confirmed).toBe(before);
      await scene.database.query(
        "select pg_logical_emit_message(false, 'filler', repeat('x', 1000000)) is null from generate_series(1, 80)",
      );
      await first.waitForLog((line) => line.msg.includes('cannot be set aside'), 'a loud line about it', 30_000);
      await until(async () => ((await scene.slot())?.confirmed ?? 0n) > before + 80_000_000n, {
        what: 'the slot to pass it',
        withinMs: 60_000,
      });
      expect(await onlyBad()).toBe(true);
      // After a restart it is found in the table, and nothing else goes out again.
      await first.kill9();
      await scene.slotReleased();
      const second = start();
      await second.waitForLog(told, 'word of the trigger');
      expect(await scene.database.query("select from waybill.outbox where state = 'parked'")).toEqual([]);
      await scene.database.query('drop trigger immutable on waybill.outbox');
      await until(
        async () => (await scene.database.query("select from waybill.outbox where state = 'parked'")).length === 1,
        { what: 'the bad row to be parked', withinMs: 40_000 },
      );
      scene.expectIds(ids);
      const made = [...first.log, ...second.log].filter(({ msg }) => msg === 'made the replication slot');
      expect(made).toHaveLength(1);
      expect(await second.stop()).toBe(0);
    } finally {
      await scene.drop();
    }
  }, 150_000);
});
