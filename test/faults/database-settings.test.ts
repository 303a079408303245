import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { receiverScene, type ReceiverScene } from '../support/receiver-scene.js';
import { killRelays } from '../support/relay.js';
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
});
