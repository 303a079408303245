import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { outboxStage, tally, type OutboxStage } from '../support/outbox-stage.js';
import { receiverScene, type ReceiverScene } from '../support/receiver-scene.js';
import { killRelays, startRelay, type RelayProcess } from '../support/relay.js';
import { migrateUp } from '../../src/postgres/migrations.js';
import { withClient } from '../support/servers/postgres-server.js';
import { startPostgres } from '../support/servers/postgres.js';
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

describe('settings of a database under the relay', () => {
  let stage: OutboxStage | undefined;

  afterEach(async () => {
    await killRelays();
    await stage?.drop();
  });

  /** A relay on a stage of its own, under these settings of the database. */
  async function under(
    settings: string[],
    options: Parameters<typeof outboxStage>[0] = {},
    env: Record<string, string> = {},
  ) {
    const made = (stage = await outboxStage(options));
    for (const setting of settings) await made.database.query(`alter database ${made.database.name} set ${setting}`);
    const relay = startRelay({ databaseUrl: made.database.url, brokerUrl: made.vhost.url, env });
    await relay.waitForPhase('streaming');
    return { made, relay };
  }
  const ends = ({ log }: RelayProcess): unknown[] =>
    log.filter(({ msg }) => msg.startsWith('the relay session ended')).map(({ err }) => err);

  it('idle_session_timeout: a relay without work keeps its connections', async () => {
    const { made, relay } = await under(["idle_session_timeout = '500ms'"]);
    await until(
      async () =>
        (
          await made.database.query(
            `select from pg_stat_activity where datname = current_database() and application_name like 'waybill % settle'
               and state = 'idle' and clock_timestamp() - state_change > interval '2 s'`,
          )
        ).length === 1,
      { what: 'a connection that has been idle for longer', withinMs: 20_000 },
    );
    expect(ends(relay)).toEqual([]);
    expect(await relay.stop()).toBe(0);
  });

  it('fact 21: transaction_timeout (18): a transaction that takes longer to be published is sent once', async () => {
    const server = await startPostgres({ version: 'embedded' });
    try {
      const { made, relay } = await under(
        ["transaction_timeout = '500ms'"],
        { postgres: server },
        { WAYBILL_RELAY_MAX_IN_FLIGHT: '1' },
      );
      // Several times what fits between the two in buffers.
      await made.database.query(
        `begin; set local transaction_timeout = 0;
         insert into waybill.outbox (type, payload) select 't', to_json(repeat(n::text || 'x', 30000)) from generate_series(1, 300) n;
         commit`,
      );
      await made.emptied(90_000);
      expect(ends(relay)).toEqual([]);
      expect(await relay.stop()).toBe(0);
      const ids = (await made.taken()).map(({ id }) => id);
      expect([ids.length, new Set(ids).size]).toEqual([300, 300]);
    } finally {
      await killRelays();
      await stage?.drop();
      stage = undefined;
      await server.close();
    }
  });

  it.each([
    ['SQL_ASCII', 'é', '22021'],
    ['WIN1252', 'é', '22P05'],
  ])(
    'F60: a database in %s: bytes that are no text are refused when they are written, all else arrives',
    async (encoding, text, code) => {
      stage = await outboxStage();
      const { server } = stage.database;
      const name = `${stage.database.name}_${encoding.toLowerCase()}`;
      await stage.database.query(
        `create database ${name} template template0 encoding '${encoding}' lc_collate 'C' lc_ctype 'C'`,
      );
      try {
        await withClient(server.url(name), async (client) => {
          await migrateUp(client);
          const relay = startRelay({ databaseUrl: server.url(name), brokerUrl: stage?.vhost.url ?? '' });
          await relay.waitForPhase('streaming');
          const write = (type: string, payload: string): Promise<unknown> =>
            client.query('insert into waybill.outbox (type, payload, key) values ($1, $2, null)', [type, payload]);
          await write(text, `"${text}"`);
          await client.query(`set client_encoding = '${encoding}'`);
          const bad = `insert into waybill.outbox (type, payload, key)`;
          // \\x81 is no character of WIN1252, and none of UTF-8.
          for (const values of [`('t', E'"\\x81"'::json, null)`, `(E't\\x81', '1', null)`, `('t', '1', E'\\x81')`]) {
            await expect(client.query(`${bad} values ${values}`)).rejects.toMatchObject({ code });
          }
          await client.query("set client_encoding = 'UTF8'");
          await write('last', '2');
          await until(async () => (await client.query('select from waybill.outbox')).rowCount === 0, {
            what: 'the outbox to be empty',
          });
          expect(await relay.stop()).toBe(0);
          const messages = (await stage?.taken()) ?? [];
          expect(messages.map(({ type, body }) => [type, body.toString()])).toEqual([
            [text, `"${text}"`],
            ['last', '2'],
          ]);
        });
      } finally {
        await killRelays();
        await server.dropDatabase(name);
      }
    },
  );

  it('array_nulls and what else changes how values are read: rows are held as they should, and nothing is refused', async () => {
    const { made, relay } = await under([
      'array_nulls = off',
      'transform_null_equals = on',
      'standard_conforming_strings = off',
      'row_security = off',
      'enable_tidscan = off',
      "statement_timeout = '1s'",
      'plan_cache_mode = force_generic_plan',
    ]);
    const good = await made.write(20);
    const [bad] = await made.write(1, { columns: { exchange: 'nowhere' } });
    await until(async () => (await made.pending('parked')) === 1 && (await made.pending()) === 1, {
      what: 'the bad row to stay alone',
    });
    const [row] = await made.database.query('select id, next_attempt_at, last_error from waybill.outbox');
    expect(row).toMatchObject({ id: bad?.id, next_attempt_at: null });
    expect(ends(relay)).toEqual([]);
    expect(await relay.stop()).toBe(0);
    expect(tally(good, await made.taken())).toMatchObject({ lost: 0, duplicates: 0, inOrder: true });
  });
});
