import type pg from 'pg';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { startFaultProxy, type FaultProxy } from '../support/fault-proxy.js';
import { killRelays, type RelayProcess } from '../support/relay.js';
import { relayScene, type RelayScene } from '../support/relay-scene.js';
import { until } from '../support/waiting.js';

const SWEEP = { WAYBILL_RELAY_SWEEP_INTERVAL: '10s' };

describe('a table pass that finds rows which cannot be settled', () => {
  let scene: RelayScene;
  const proxies: FaultProxy[] = [];

  beforeEach(async () => {
    scene = await relayScene();
  });
  afterEach(async () => {
    await killRelays();
    for (const proxy of proxies.splice(0)) await proxy.close();
    await scene.drop();
  });

  /** Somebody has locked the row, or does not let it go, until the returned function is called. */
  async function keep(id: string, how: 'locked' | 'refused'): Promise<() => Promise<unknown>> {
    if (how === 'locked') {
      const client: pg.Client = await scene.database.connect();
      await client.query('begin');
      await client.query('select from waybill.outbox where id = $1 for update', [id]);
      return () => client.end();
    }
    await scene.database.query(`
      create function public.keep() returns trigger language plpgsql as
        $$ begin if old.id = '${id}' then raise exception 'kept'; end if; return old; end $$;
      create trigger keep before delete on waybill.outbox for each row execute function public.keep()`);
    return () => scene.database.query('drop trigger keep on waybill.outbox');
  }

  /**
   * Starts a relay that makes its slot, and keeps the row once its table pass has begun: a transaction that was open
   * before would keep the slot from being made.
   */
  async function startAndKeep(
    id: string,
    how: 'locked' | 'refused',
    env: Record<string, string>,
  ): Promise<{ relay: RelayProcess; letGo: () => Promise<unknown> }> {
    const proxy = await startFaultProxy({ targetPort: Number(new URL(scene.vhost.url).port) });
    proxies.push(proxy);
    // The first one asks whether the broker takes anything.
    const begun = proxy.at('amqp.client.basic.publish', 2, 'stall-before');
    const relay = scene.start({ env, brokerUrl: proxy.url(scene.vhost.url) });
    await begun;
    const letGo = await keep(id, how);
    proxy.resume();
    return { relay, letGo };
  }

  const left = async (): Promise<string[]> =>
    (await scene.database.query<{ id: string }>('select id from waybill.outbox order by seq')).map(({ id }) => id);

  const onlyLeft = (id: string): Promise<unknown> =>
    until(async () => (await left()).join() === id, { what: 'all but one row to be settled', withinMs: 30_000 });

  /** Rows of one key in the order of their first copies. */
  function expectOrder(ids: readonly string[]): void {
    const first = scene.probe.firstIds();
    for (let key = 0; key < 7; key += 1) {
      const mine = ids.filter((_, n) => n % 7 === key);
      expect(first.filter((id) => mine.includes(id ?? ''))).toEqual(mine);
    }
  }

  async function loseSlot(env: Record<string, string>): Promise<void> {
    const earlier = scene.start({ env });
    await earlier.waitForPhase('streaming');
    expect(await earlier.stop()).toBe(0);
    await scene.slotReleased();
    await scene.database.query('select pg_drop_replication_slot($1)', [(await scene.slot())?.name]);
  }

  const position = async (): Promise<bigint> => {
    const sql = "select (pg_current_wal_insert_lsn() - '0/0')::text as lsn";
    return BigInt((await scene.database.query<{ lsn: string }>(sql))[0]?.lsn ?? 0);
  };

  /** Waits until the slot will not bring what was written before the position. */
  const passed = (lsn: bigint): Promise<unknown> =>
    until(async () => ((await scene.slot())?.confirmed ?? 0n) >= lsn, {
      what: 'the slot to pass what was written',
      withinMs: 30_000,
    });

  it.each([
    { start: 'the first start', how: 'locked', ordering: 'pipelined' },
    { start: 'the first start', how: 'refused', ordering: 'strict' },
    { start: 'a lost slot', how: 'locked', ordering: 'strict' },
    { start: 'a lost slot', how: 'refused', ordering: 'pipelined' },
  ] as const)(
    '3.4 F23: $start with a $how row ($ordering): the stream begins, later rows go out; it is sent once, and settled when it can be',
    async ({ start, how, ordering }) => {
      const env = { ...SWEEP, WAYBILL_RELAY_ORDERING: ordering };
      if (start === 'a lost slot') await loseSlot(env);
      // Seven keys; the first row of all is the one.
      const ids = await scene.publish(70);
      const [kept = ''] = ids;
      const { relay, letGo } = await startAndKeep(kept, how, env);
      await relay.waitForPhase('streaming');
      ids.push(...(await scene.publish(700)));
      const lsn = await position();
      await scene.probe.waitForDistinct(770);
      await onlyLeft(kept);
      await passed(lsn);
      // The table brings this one alone: a later sweep has looked at every row when it arrives.
      const [strayed] = await scene.database.query<{ id: string }>(
        "insert into waybill.outbox (type, state, last_error, hold_no) values ('strayed', 'parked', 'x', nextval('waybill.outbox_hold_no')) returning id",
      );
      await passed(await position());
      await scene.database.query(
        "update waybill.outbox set state = 'ready', last_error = null, hold_no = null where type = 'strayed'",
      );
      await scene.probe.waitForDistinct(771);
      await onlyLeft(kept);
      scene.expectIds([...ids, strayed?.id ?? '']);
      expectOrder(ids);
      await letGo();
      // What was refused is tried again after half a minute.
      await scene.settled(45_000);
      scene.expectIds([...ids, strayed?.id ?? '']);
      expect(relay.log.filter(({ msg }) => msg.includes('session ended'))).toEqual([]);
      expect(await relay.stop()).toBe(0);
    },
    90_000,
  );

  it.each([
    { how: 'locked', ordering: 'strict' },
    { how: 'refused', ordering: 'pipelined' },
  ] as const)(
    '3.4 F1: killed when a $how row is left of the pass ($ordering): that row alone goes out again, once a start',
    async ({ how, ordering }) => {
      const env = { WAYBILL_RELAY_ORDERING: ordering, WAYBILL_RELAY_HISTORY: 'off' };
      const ids = await scene.publish(70);
      const [kept = ''] = ids;
      const started = await startAndKeep(kept, how, env);
      let { relay } = started;
      ids.push(...(await scene.publish(70)));
      for (let starts = 1; starts <= 3; starts += 1) {
        await relay.waitForPhase('streaming');
        await scene.probe.waitFor(ids.length + starts - 1);
        ids.push(...(await scene.publish(70)));
        const lsn = await position();
        await scene.probe.waitFor(ids.length + starts - 1);
        await onlyLeft(kept);
        await passed(lsn);
        await relay.kill9();
        await scene.slotReleased();
        relay = scene.start({ env });
      }
      await scene.probe.waitFor(ids.length + 3);
      await started.letGo();
      await scene.settled(45_000);
      scene.expectIds(ids, { copies: 3 });
      expect(scene.probe.ids().filter((id) => id === kept)).toHaveLength(4);
      expectOrder(ids);
      expect(await relay.stop()).toBe(0);
    },
    90_000,
  );

  it('3.4: also a row that cannot go out and that somebody has locked does not keep the pass from its end', async () => {
    const ids = await scene.publish(10);
    const [bad] = await scene.database.query<{ id: string }>(
      "insert into waybill.outbox (type, exchange) values ('bad', 'nowhere') returning id",
    );
    // A good one goes out before it.
    const { relay, letGo } = await startAndKeep(bad?.id ?? '', 'locked', {});
    await relay.waitForPhase('streaming');
    ids.push(...(await scene.publish(10)));
    const lsn = await position();
    await scene.probe.waitForDistinct(20);
    await onlyLeft(bad?.id ?? '');
    // It is in the table, so the log need not keep it.
    await passed(lsn);
    await letGo();
    const isParked = async (): Promise<boolean> =>
      (await scene.database.query("select from waybill.outbox where state = 'parked'")).length === 1;
    await until(isParked, { what: 'the bad row to be parked' });
    scene.expectIds(ids);
    expect(await relay.stop()).toBe(0);
  });
});
