import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { receiverScene, type ReceiverScene } from '../support/receiver-scene.js';
import { killRelays } from '../support/relay.js';
import { plantStrangers, strangersRan, STRANGERS_PATH } from '../support/strangers.js';
import { until } from '../support/waiting.js';

describe('settings of a database under a consumer', () => {
  let scene: ReceiverScene;

  beforeEach(async () => {
    scene = await receiverScene();
  });
  afterEach(async () => {
    await killRelays();
    await scene.drop();
  });

  it('order: key under default_transaction_isolation = repeatable read: who waited for the lock of a key sees the row before it', async () => {
    await scene.database.query(
      `alter database ${scene.database.name} set default_transaction_isolation = 'repeatable read'`,
    );
    const consumer = scene.start('billing: { order: key, handler: { kind: store } }');
    await consumer.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    const other = await scene.database.connect();
    await other.query('begin isolation level read committed');
    await other.query(
      `select from waybill.inbox_receive('billing', '[{"message_id":"first","size":0,"key":"k","exchange":"","routing_key":""}]', '')`,
    );
    await scene.send('billing', [{ messageId: 'second', key: 'k' }]);
    await until(
      async () =>
        (
          await scene.database.query(
            "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' and wait_event = 'advisory'",
          )
        ).length === 1,
      { what: 'the consumer to wait for the lock of the key' },
    );
    await other.query('commit');
    await other.end();
    const rows = await scene.waitForRows(2, 'true');
    expect(rows.map(({ message_id, status }) => [message_id, status])).toEqual([
      ['first', 'pending'],
      ['second', 'blocked'],
    ]);
    expect(await consumer.stop()).toBe(0);
  });

  it('whoever may create in public has none of his functions run, while handlers find theirs on the path of the role', async () => {
    const { database } = scene;
    await database.query(`create schema app; create function app.found() returns text language sql return 'on the path';
      create function app.h(m waybill.inbox_message) returns text language plpgsql as $$ begin
        if m.message_id operator(pg_catalog.=) 'fails' then raise 'no'; end if;
        return pg_catalog.concat(found(), ', ', pg_catalog.current_setting('search_path')); end $$`);
    await plantStrangers(await database.connect());
    await database.query(`alter database ${database.name} set search_path = app, ${STRANGERS_PATH}`);
    const consumer = scene.start(
      `billing: { retry: { delays: [1h] }, handler: { kind: sql, function: app.h, timeout: 5s } }
kept: { order: key, bindings: [{ exchange: waybill.events, routingKey: "#" }], retry: { delays: [1h] } }`,
      { relay: true },
    );
    await consumer.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    await consumer.waitForPhase('streaming');
    await database.query("select waybill.consumer_pause('billing', 'x')");
    await scene.send('billing', [{ messageId: 'a' }, { messageId: 'fails' }, { messageId: 'b' }]);
    await scene.waitForRows(3, "status = 'pending'");
    await database.query("select waybill.consumer_resume('billing', 'x')");
    await scene.waitForRows(2, `status = 'done' and result = 'on the path, app, ${STRANGERS_PATH}'`);
    await scene.send('billing', [{ messageId: 'c' }, { messageId: 'd' }]);
    await scene.waitForRows(4, `status = 'done' and result = 'on the path, app, ${STRANGERS_PATH}'`);
    await scene.waitForRows(1, "status = 'waiting' and last_error like '%no%'");
    await scene.send('kept', [{ messageId: 'e', key: 'k' }]);
    await scene.waitForRows(1, "status = 'pending' and consumer = 'kept'");
    await database.query(`select waybill.publish('t', '{}', key => 'l', headers => '{"a": 1}')`);
    await scene.waitForRows(2, "status = 'pending' and consumer = 'kept'");
    expect(await consumer.stop()).toBe(0);
    expect(await strangersRan(database)).toBe(0);
  });
});
