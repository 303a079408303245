import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { receiverScene, type ReceiverScene } from '../support/receiver-scene.js';
import { killRelays } from '../support/relay.js';
import { until } from '../support/waiting.js';

/** Each fits a call that PostgreSQL's own function fits less exactly: name, arguments, result, what it does then. */
const INTRUDERS = [
  ['unnest', 'bigint[]', 'setof bigint', 'return query select pg_catalog.unnest($1)'],
  ['unnest', 'text[]', 'setof text', 'return query select pg_catalog.unnest($1)'],
  ['cardinality', 'bigint[]', 'int', 'return pg_catalog.cardinality($1)'],
  ['format', 'text, text, text', 'text', 'return pg_catalog.format($1, $2, $3)'],
  ['string_to_array', 'text, varchar', 'text[]', 'return pg_catalog.string_to_array($1, $2::text)'],
  ['hashtextextended', 'text, int', 'bigint', 'return pg_catalog.hashtextextended($1, $2)'],
] as const;

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
    const stranger = `wb_stranger_${database.name.slice(-8)}`;
    await database.query(`create role ${stranger}; grant create on schema public to ${stranger}`);
    const intruder = await database.connect();
    await intruder.query(`set role ${stranger}`);
    await intruder.query('create table public.loot (via text, who text); grant insert on public.loot to public');
    for (const [name, takes, gives, calls] of INTRUDERS) {
      await intruder.query(`create function public.${name}(${takes}) returns ${gives} language plpgsql as $$ begin
        insert into public.loot values ('${name}', current_user); ${calls}; end $$`);
    }
    await intruder.query(
      `create function public.times(float8, int) returns float8 language plpgsql as $$ begin
         insert into public.loot values ('*', current_user); return $1 * $2::float8; end $$;
       create operator public.* (leftarg = float8, rightarg = int, function = public.times)`,
    );
    await intruder.end();
    await database.query(`create schema app; create function app.found() returns text language sql return 'on the path';
      create function app.h(m waybill.inbox_message) returns text language plpgsql as $$ begin
        if m.message_id = 'fails' then raise 'no'; end if;
        return found() || ', ' || current_setting('search_path'); end $$`);
    await database.query(`alter database ${database.name} set search_path = app, public`);
    const consumer = scene.start(
      'billing: { retry: { delays: [1h] }, handler: { kind: sql, function: app.h, timeout: 5s } }',
      { relay: true },
    );
    await consumer.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    await consumer.waitForPhase('streaming');
    await database.query("select waybill.consumer_pause('billing', 'x')");
    await scene.send('billing', [{ messageId: 'a' }, { messageId: 'fails' }, { messageId: 'b' }]);
    await scene.waitForRows(3, "status = 'pending'");
    await database.query("select waybill.consumer_resume('billing', 'x')");
    await scene.waitForRows(2, "status = 'done' and result = 'on the path, app, public'");
    await scene.send('billing', [{ messageId: 'c' }, { messageId: 'd' }]);
    await scene.waitForRows(4, "status = 'done' and result = 'on the path, app, public'");
    await scene.waitForRows(1, "status = 'waiting' and last_error like '%no%'");
    expect(await consumer.stop()).toBe(0);
    expect(await database.query('select distinct * from public.loot')).toEqual([]);
    await database.query(`drop owned by ${stranger} cascade; drop role ${stranger}`);
  });
});
