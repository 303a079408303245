import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { startFaultProxy } from '../support/fault-proxy.js';
import { killRelays, type LogLine } from '../support/relay.js';
import { relayScene, type RelayScene } from '../support/relay-scene.js';
import type { PostgresServer } from '../support/servers/postgres-server.js';
import { startPostgres } from '../support/servers/postgres.js';
import { until } from '../support/waiting.js';

const rebuilt = (line: LogLine): boolean => line.msg === 'table pass published the backlog';

describe('settings of the server that make trouble', () => {
  let server: PostgresServer;
  let scene: RelayScene;

  beforeAll(async () => {
    server = await startPostgres({ own: true });
    scene = await relayScene({ server });
    await scene.database.query('create table public.busy (n int, filler text)');
  });
  beforeEach(() => scene.probe.clear());
  afterEach(async () => {
    await killRelays();
    await scene.database.query('alter system reset all');
    await scene.database.query('select pg_reload_conf()');
    await scene.slotReleased();
  });
  afterAll(async () => {
    await scene.drop().catch(() => undefined);
    await server.close();
  });

  async function set(name: string, value: string): Promise<void> {
    await scene.database.query(`alter system set ${name} = '${value}'`);
    await scene.database.query('select pg_reload_conf()');
    const client = await scene.database.connect();
    await until(
      async () => (await client.query<{ v: string }>(`select current_setting('${name}') as v`)).rows[0]?.v === value,
      { what: `${name} to be ${value}` },
    );
    await client.end();
  }

  async function streaming(options?: Parameters<RelayScene['start']>[0]) {
    const relay = scene.start(options);
    await relay.waitForPhase('streaming');
    return relay;
  }

  it('wal_sender_timeout 2s: the connection stays, idle and with a broker that answers nothing (F65, fact 4)', async () => {
    await set('wal_sender_timeout', '2s');
    const proxy = await startFaultProxy({ targetPort: Number(new URL(scene.vhost.url).port) });
    const relay = await streaming({ brokerUrl: proxy.url(scene.vhost.url) });
    const sender = (await scene.slot())?.pid;
    const [began] = await scene.database.query<{ at: string }>('select clock_timestamp()::text as at');
    const later = (seconds: number) =>
      until(
        async () =>
          (
            await scene.database.query(`select where clock_timestamp() > $1::timestamptz + $2 * interval '1 second'`, [
              began?.at,
              seconds,
            ])
          ).length > 0,
        { withinMs: 20_000, everyMs: 100, what: `${seconds} seconds of the server's clock` },
      );
    await later(5);
    expect((await scene.slot())?.pid).toBe(sender);
    // More than the window and the queues take, so that the socket itself is paused.
    const stall = proxy.at('amqp.server.basic.ack', 1, 'stall-before', { scope: 'all' });
    const ids = await scene.publish(20_000);
    await stall;
    await later(11);
    expect((await scene.slot())?.pid).toBe(sender);
    proxy.resume();
    await scene.probe.waitFor(20_000, 60_000);
    scene.expectIds(ids);
    expect(await relay.stop()).toBe(0);
    await proxy.close();
  });

  it('an idle outbox beside busy tables keeps no WAL (F42, F22, fact 18, O1)', async () => {
    const relay = await streaming();
    for (let round = 0; round < 3; round += 1) {
      await scene.database.query(
        "insert into public.busy select n, repeat('x', 1000) from generate_series(1, 10000) n",
      );
      await until(async () => ((await scene.slot())?.behind ?? 99_999_999n) < 100_000n, {
        what: 'the slot to follow the WAL of other tables',
      });
    }
    // The idle rule writes no table: the stored checkpoint stays behind, and that is no reason to send anything again.
    const ids = await scene.publish(2);
    await scene.probe.waitFor(2);
    await scene.settled();
    expect(await relay.stop()).toBe(0);
    const next = await streaming();
    ids.push(...(await scene.publish(1)));
    await scene.probe.waitFor(3);
    scene.expectIds(ids);
    expect(await next.stop()).toBe(0);
  });

  it.each([
    ['was published: the slot follows all the same', 'order.paid', null],
    ['cannot go out: the slot waits for it, and for nothing else', 'stranded', 'nowhere'],
  ])('a row that somebody keeps locked while others write, and that %s (F42, O1, O3)', async (_, type, exchange) => {
    expect(await (await streaming()).stop()).toBe(0);
    const [row] = await scene.database.query<{ id: string }>(
      'insert into waybill.outbox (type, exchange) values ($1, $2) returning id',
      [type, exchange],
    );
    const lock = await scene.database.connect();
    try {
      await lock.query('begin');
      await lock.query('select from waybill.outbox where id = $1 for update', [row?.id]);
      const relay = await streaming();
      const before = (await scene.slot())?.confirmed ?? 0n;
      const busy = (): Promise<unknown> =>
        scene.database.query("insert into public.busy select n, repeat('x', 1000) from generate_series(1, 5000) n");
      await busy();
      const ids = await scene.publish(20);
      await scene.probe.waitForDistinct(exchange === null ? 21 : 20);
      await until(async () => (await scene.database.query('select from waybill.outbox')).length === 1, {
        what: 'everything but the locked row to be settled',
      });
      const follows = (): Promise<unknown> =>
        until(async () => ((await scene.slot())?.behind ?? 99_999_999n) < 100_000n, { what: 'the slot to follow' });
      if (exchange === null) {
        // Also while nothing is written to the outbox.
        await busy();
        await follows();
      } else {
        const during = await scene.slot();
        expect((during?.confirmed ?? 0n) - before).toBeLessThan(100_000n);
        expect(during?.behind).toBeGreaterThan(4_000_000n);
      }
      await lock.query('rollback');
      await scene.settled();
      await follows();
      scene.expectIds(exchange === null ? [row?.id ?? '', ...ids] : ids);
      expect(await relay.stop()).toBe(0);
      await scene.database.query('delete from waybill.outbox');
    } finally {
      await lock.end();
    }
  });

  it('max_slot_wal_keep_size: a slot that lost its WAL is made anew, and the table read (F27, fact 22)', async () => {
    expect(await (await streaming()).stop()).toBe(0);
    await set('max_slot_wal_keep_size', '1MB');
    const ids = await scene.publish(10);
    await until(
      async () => {
        await scene.database.query(
          "select pg_switch_wal() from (select pg_logical_emit_message(false, 'x', repeat('x', 100))) m",
        );
        await scene.database.query('checkpoint');
        return (await scene.slot())?.status === 'lost';
      },
      { withinMs: 30_000, what: 'the slot to be lost' },
    );
    const relay = scene.start();
    await scene.probe.waitFor(10);
    await relay.waitForPhase('streaming');
    ids.push(...(await scene.publish(1)));
    await scene.probe.waitFor(11);
    scene.expectIds(ids);
    expect(relay.log.some(rebuilt)).toBe(true);
    expect((await scene.slot())?.status).not.toBe('lost');
    expect(await relay.stop()).toBe(0);
  });

  it('a synchronous standby that is not there: rows are decoded before they are visible, and neither lost nor settled too soon (facts 53, 75)', async () => {
    const relay = await streaming();
    await set('synchronous_standby_names', 'nobody');
    const waiting = await scene.database.connect();
    const [{ pid } = { pid: 0 }] = (await waiting.query<{ pid: number }>('select pg_backend_pid() as pid')).rows;
    const committing = scene.publish(3, { client: waiting });
    await until(
      async () =>
        (await scene.database.query("select from pg_stat_activity where pid = $1 and wait_event = 'SyncRep'", [pid]))
          .length > 0,
      { what: 'the commit to wait' },
    );
    await scene.probe.waitFor(3);
    const after = await scene.database.connect();
    await after.query('set synchronous_commit = local');
    // Later transactions settle beside it, and their positions do not pass it.
    const others = await scene.publish(5, { client: after });
    await scene.probe.waitFor(8);
    await scene.settled();
    expect(
      await scene.database.query("select from waybill.outbox_history where type = 'order.paid' and id = any($1)", [
        others,
      ]),
    ).toHaveLength(5);
    // Nobody has decided yet that the waiting rows are gone.
    const seen = scene.probe.messages.slice(0, 3).map((message) => message.id);
    others.push(...(await scene.publish(2, { client: after })));
    await scene.probe.waitFor(10);
    await scene.settled();
    expect(await scene.database.query('select id from waybill.outbox_history where id = any($1)', [seen])).toEqual([]);
    // Killed now, the next relay gets the row again, because its position was not passed.
    await relay.kill9();
    await scene.slotReleased();
    const next = await streaming();
    await until(() => seen.every((id) => scene.probe.ids().filter((each) => each === id).length === 2), {
      what: 'second copies of the waiting rows',
    });
    await scene.database.query('select pg_cancel_backend($1)', [pid]);
    const ids = await committing;
    await until(
      async () =>
        (await scene.database.query('select from waybill.outbox_history where id = any($1)', [ids])).length === 3,
      { what: 'the rows to be settled once they are visible' },
    );
    await scene.settled();
    scene.expectIds([...ids, ...others], { copies: 3 + 7 });
    expect(await scene.database.query('select insert_then_delete_seen as seen from waybill.relay')).toEqual([
      { seen: false },
    ]);
    await set('synchronous_standby_names', '');
    expect(await next.stop()).toBe(0);
  });

  it('a first start while a commit waits for its standby: the table pass waits for it (fact 53)', async () => {
    await scene.database.query('select pg_drop_replication_slot($1)', [(await scene.slot())?.name]);
    await set('synchronous_standby_names', 'nobody');
    const waiting = await scene.database.connect();
    const [{ pid } = { pid: 0 }] = (await waiting.query<{ pid: number }>('select pg_backend_pid() as pid')).rows;
    const committing = scene.publish(3, { client: waiting });
    await until(
      async () =>
        (await scene.database.query("select from pg_stat_activity where pid = $1 and wait_event = 'SyncRep'", [pid]))
          .length > 0,
      { what: 'the commit to wait' },
    );
    const relay = scene.start();
    await relay.waitForLog((line) => line.msg.includes('waits for transactions'), 'word of the wait');
    await set('synchronous_standby_names', '');
    const ids = await committing;
    await scene.probe.waitFor(3, 30_000);
    await relay.waitForPhase('streaming', 30_000);
    await scene.settled();
    scene.expectIds(ids);
    expect(await relay.stop()).toBe(0);
  });
});

describe('F27: PostgreSQL 18 and a slot that nobody read for too long', () => {
  it('says why the slot is lost, makes a new one and reads the table', async () => {
    const server = await startPostgres({ version: 'embedded', own: true });
    try {
      const scene = await relayScene({ server });
      const first = scene.start();
      await first.waitForPhase('streaming');
      expect(await first.stop()).toBe(0);
      await scene.slotReleased();
      const ids = await scene.publish(10);
      await scene.database.query(`alter system set idle_replication_slot_timeout = '1s'`);
      await scene.database.query('select pg_reload_conf()');
      await until(
        async () => {
          await scene.database.query('checkpoint');
          return (await scene.slot())?.status === 'lost';
        },
        { withinMs: 30_000, everyMs: 200, what: 'the slot to be lost' },
      );
      await scene.database.query('alter system reset all');
      await scene.database.query('select pg_reload_conf()');
      const relay = scene.start();
      const line = await relay.waitForLog((each) => each.level === 'error', 'word of the slot');
      expect(line['reason']).toBe('PostgreSQL invalidated it: idle_timeout');
      await scene.probe.waitFor(10);
      await relay.waitForPhase('streaming');
      scene.expectIds(ids);
      expect(await relay.stop()).toBe(0);
      await scene.drop();
    } finally {
      await killRelays();
      await server.close();
    }
  });
});
