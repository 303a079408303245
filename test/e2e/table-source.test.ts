import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { runProgram } from '../integration/built-program.js';
import { startBrokerProbe, type BrokerProbe } from '../support/broker-probe.js';
import { freshVhost, type FreshVhost } from '../support/broker.js';
import type { FreshDatabase } from '../support/database.js';
import { migratedDatabase } from '../support/migrated-database.js';
import { killRelays, startRelay, type RelayProcess } from '../support/relay.js';
import { until } from '../support/waiting.js';

describe('source: table, and switching', () => {
  let database: FreshDatabase;
  let vhost: FreshVhost;
  let probe: BrokerProbe;

  const start = async (source: 'wal' | 'table'): Promise<RelayProcess> => {
    const relay = startRelay({
      databaseUrl: database.url,
      brokerUrl: vhost.url,
      env: { WAYBILL_RELAY_SOURCE: source },
    });
    await relay.waitForPhase('streaming');
    return relay;
  };
  const publish = async (rows: number): Promise<string[]> =>
    (
      await database.query<{ id: string }>(
        "select waybill.publish('t', json_build_object('n', n)) as id from generate_series(1, $1::int) n",
        [rows],
      )
    ).map((row) => row.id);
  const slots = (): Promise<{ slot_name: string }[]> =>
    database.query('select slot_name from pg_replication_slots where database = current_database()');
  const emptied = (): Promise<boolean> =>
    until(async () => (await database.query('select from waybill.outbox')).length === 0, { what: 'an empty outbox' });

  beforeAll(async () => {
    [database, vhost] = await Promise.all([migratedDatabase(), freshVhost()]);
    const relay = await start('wal');
    probe = await startBrokerProbe({ url: vhost.url, exchange: 'waybill.events', queue: 'all' });
    await relay.stop();
  });
  afterEach(killRelays);
  afterAll(async () => {
    await probe.close();
    await Promise.all([database.drop(), vhost.drop()]);
  });

  it('polls rows in seq order without a slot, settles them, and goes back to the log; nothing is lost (3.4)', async () => {
    probe.clear();
    const before = await publish(300);
    const polling = await start('table');
    expect(await slots()).toEqual([]);
    const during = await publish(300);
    await probe.waitForDistinct(600);
    expect(probe.ids()).toEqual([...before, ...during]);
    await emptied();
    expect(await database.query('select outcome, count(*)::int from waybill.outbox_history group by 1')).toContainEqual(
      {
        outcome: 'published',
        count: 600,
      },
    );
    const late = await publish(50);
    await polling.kill9();
    const between = await publish(50);
    const streaming = await start('wal');
    expect((await slots()).length).toBe(1);
    const after = await publish(50);
    await probe.waitForDistinct(750);
    expect(new Set(probe.ids())).toEqual(new Set([...before, ...during, ...late, ...between, ...after]));
    await emptied();
    expect(await streaming.stop()).toBe(0);
  });

  it('publishes a row of a transaction that commits late with a low seq, and rows of a sequence that begins anew (F57)', async () => {
    probe.clear();
    const relay = await start('table');
    const slow = await database.connect();
    await slow.query('begin');
    const [first] = (await slow.query<{ id: string }>("select waybill.publish('slow') as id")).rows;
    // So many that the polls would go on behind them.
    const others = await publish(1_500);
    await probe.waitForDistinct(1_500);
    await emptied();
    await slow.query('commit');
    await probe.waitForDistinct(1_501);
    await emptied();
    await database.query('truncate waybill.outbox restart identity');
    const anew = await publish(5);
    await probe.waitForDistinct(1_506);
    expect(probe.ids()).toEqual([...others, first?.id, ...anew]);
    expect(await relay.stop()).toBe(0);
  });

  it('is seen at work by its lock queue alone, and is neither adopted nor dropped then (3.7)', async () => {
    const relay = await start('table');
    expect(await slots()).toEqual([]);
    const environment = { WAYBILL_DATABASE_URL: database.url, WAYBILL_BROKER_URL: vhost.url };
    for (const command of ['relay adopt --yes', 'relay drop default --yes']) {
      const { code, err } = await runProgram(command.split(' '), environment);
      expect({ command, code }).toEqual({ command, code: 1 });
      expect(err).toContain('WAYBILL_LOCK_TAKEN');
    }
    const [id] = await publish(1);
    await until(() => probe.ids().includes(id), { what: 'the relay at work, as before' });
    expect(await relay.stop()).toBe(0);
  });

  it('refuses to leave the log when applications delete their rows themselves', async () => {
    probe.clear();
    const relay = await start('wal');
    const client = await database.connect();
    await client.query(
      "begin; insert into waybill.outbox (type) values ('debezium'); delete from waybill.outbox where type = 'debezium'; commit",
    );
    await until(
      async () => (await database.query('select from waybill.relay where insert_then_delete_seen')).length === 1,
      { what: 'the relay to note the deleted row' },
    );
    expect(probe.messages.filter((message) => message.type === 'debezium').length).toBe(1);
    await relay.stop();
    const polling = startRelay({
      databaseUrl: database.url,
      brokerUrl: vhost.url,
      env: { WAYBILL_RELAY_SOURCE: 'table' },
    });
    const line = await polling.waitForLog((each) => each.level === 'error', 'a refusal');
    expect(JSON.stringify(line)).toContain('WAYBILL_ROWS_ONLY_IN_LOG');
    expect((await slots()).length).toBe(1);
    await database.query('update waybill.relay set insert_then_delete_seen = false');
  });

  it('fact 16: refuses it also when the rows were deleted while no relay was running, and one has read them since', async () => {
    probe.clear();
    const deleted = (n: number): Promise<unknown[]> =>
      database.query(`do $$ begin insert into waybill.outbox (type) select 'deleted' from generate_series(1, ${n});
        delete from waybill.outbox where type = 'deleted'; end $$`);
    const first = await start('wal');
    await publish(5);
    await probe.waitForDistinct(5);
    await emptied();
    await first.kill9();
    // Rows that a relay has settled say nothing, although they are gone when the log brings them again.
    const second = await start('wal');
    await publish(1);
    await probe.waitForDistinct(6);
    await emptied();
    expect(await database.query('select from waybill.relay where insert_then_delete_seen')).toEqual([]);
    expect(await second.stop()).toBe(0);
    await deleted(10);
    const third = await start('wal');
    await probe.waitForDistinct(16);
    await until(
      async () => (await database.query('select from waybill.relay where insert_then_delete_seen')).length === 1,
      { what: 'the relay to note the deleted rows' },
    );
    expect(await third.stop()).toBe(0);
    await deleted(10);
    const polling = startRelay({
      databaseUrl: database.url,
      brokerUrl: vhost.url,
      env: { WAYBILL_RELAY_SOURCE: 'table' },
    });
    const line = await polling.waitForLog((each) => each.level === 'error', 'a refusal');
    expect(JSON.stringify(line)).toContain('WAYBILL_ROWS_ONLY_IN_LOG');
    await polling.kill9();
    const again = await start('wal');
    await probe.waitForDistinct(26);
    expect(await again.stop()).toBe(0);
    await database.query('update waybill.relay set insert_then_delete_seen = false');
  });

  it('fact 16: refuses it also when all of the rows that were deleted had to be held, and then loses none', async () => {
    probe.clear();
    const relay = await start('wal');
    const deleted = (what: string): Promise<unknown[]> =>
      database.query(`do $$ begin ${what}; delete from waybill.outbox where type = 'deleted'; end $$`);
    await deleted(`insert into waybill.outbox (type, exchange) values ('deleted', 'nowhere');
      insert into waybill.outbox (type, deliver_at) values ('deleted', now() + interval '1 day')`);
    const held = "select from waybill.outbox where type = 'deleted' and state in ('parked', 'scheduled')";
    await until(async () => (await database.query(held)).length === 2, { what: 'the rows to be written back' });
    expect(await relay.stop()).toBe(0);
    await deleted("insert into waybill.outbox (type) select 'deleted' from generate_series(1, 100)");
    const polling = startRelay({
      databaseUrl: database.url,
      brokerUrl: vhost.url,
      env: { WAYBILL_RELAY_SOURCE: 'table' },
    });
    const line = await polling.waitForLog((each) => each.level === 'error', 'a refusal');
    expect(JSON.stringify(line)).toContain('WAYBILL_ROWS_ONLY_IN_LOG');
    await polling.kill9();
    const again = await start('wal');
    await probe.waitForDistinct(100);
    expect(await again.stop()).toBe(0);
    await database.query('update waybill.relay set insert_then_delete_seen = false');
    await database.query("delete from waybill.outbox where state in ('parked', 'scheduled')");
  });

  it.each(['wal', 'table'] as const)('holds rows until they are due, expires and cancels them (%s)', async (source) => {
    probe.clear();
    const relay = await start(source);
    const [ids] = await database.query<Record<string, string>>(
      `select waybill.publish('due', deliver_at => now() + interval '1500 ms') as due,
         waybill.publish('far', deliver_at => now() + interval '1 day') as far,
         waybill.publish('late', expires_at => now() - interval '1 second') as late,
         waybill.publish('cancelled', deliver_at => now() + interval '1 hour') as cancelled,
         waybill.publish('now') as now`,
    );
    await probe.waitFor(1);
    expect(probe.ids()).toEqual([ids?.['now']]);
    await until(
      async () => (await database.query("select from waybill.outbox where state = 'scheduled'")).length === 3,
      {
        what: 'three scheduled rows',
      },
    );
    expect(await database.query('select waybill.cancel($1::uuid) as done', [ids?.['cancelled']])).toEqual([
      { done: true },
    ]);
    await probe.waitFor(2);
    expect(probe.ids()).toEqual([ids?.['now'], ids?.['due']]);
    await until(
      async () =>
        (await database.query('select waybill.publication_status($1::uuid) as s', [ids?.['late']]))[0]?.['s'] ===
        'expired',
      { what: 'the late row to be expired' },
    );
    expect(await relay.stop()).toBe(0);
    // The next start sweeps the cancelled row into the history; the far one stays.
    const again = await start(source);
    await until(
      async () =>
        (
          await database.query("select from waybill.outbox_history where id = $1::uuid and outcome = 'cancelled'", [
            ids?.['cancelled'],
          ])
        ).length === 1,
      { what: 'the cancelled row in the history' },
    );
    expect(await database.query('select type, state from waybill.outbox')).toEqual([
      { type: 'far', state: 'scheduled' },
    ]);
    await database.query('select waybill.cancel($1::uuid)', [ids?.['far']]);
    expect(await again.stop()).toBe(0);
    expect(probe.messages.length).toBe(2);
  });
});
