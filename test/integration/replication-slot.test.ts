import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import pg from 'pg';
import { startRelayService } from '../../src/app/relay-service.js';
import { loadConfig } from '../../src/config/load.js';
import { slotName } from '../../src/core/identity.js';
import { ReplicationStream } from '../../src/postgres/stream.js';
import { systemClock } from '../../src/runtime/clock.js';
import { createLogger } from '../../src/telemetry/log.js';
import type { FreshDatabase } from '../support/database.js';
import { ManualClock } from '../support/manual-clock.js';
import { killRelays, type LogLine } from '../support/relay.js';
import { relayScene, type RelayScene } from '../support/relay-scene.js';
import { until } from '../support/waiting.js';

const rebuilt = (line: LogLine): boolean => line.msg === 'table pass published the backlog';
const madeSlot = (line: LogLine): boolean => line.msg === 'made the replication slot';
const errorCode = (line: LogLine): unknown => (line['err'] as { code?: string } | undefined)?.code;

describe('the slot and the publication, lost, moved or in use', () => {
  let scene: RelayScene;

  beforeAll(async () => {
    scene = await relayScene();
  });
  beforeEach(() => scene.probe.clear());
  afterEach(async () => {
    await killRelays();
    await scene.slotReleased();
  });
  afterAll(() => scene.drop());

  async function streaming() {
    const relay = scene.start();
    await relay.waitForPhase('streaming');
    return relay;
  }

  async function dropSlot(): Promise<void> {
    await scene.slotReleased();
    await scene.database.query('select pg_drop_replication_slot($1)', [(await scene.slot())?.name]);
  }

  it('dropped while the relay was away: a new one, a table pass, nothing lost or doubled (F23, F26)', async () => {
    expect(await (await streaming()).stop()).toBe(0);
    await dropSlot();
    const ids = await scene.publish(50);
    const relay = scene.start();
    await scene.probe.waitFor(50);
    await relay.waitForPhase('streaming');
    ids.push(...(await scene.publish(3)));
    await scene.probe.waitFor(53);
    await scene.settled();
    expect(scene.probe.ids()).toEqual(ids);
    expect(relay.log.some(rebuilt)).toBe(true);
    expect(await relay.stop()).toBe(0);
  });

  it('dropped under a running relay by ending its walsender (F26, F20)', async () => {
    const relay = await streaming();
    const ids = await scene.publish(5);
    await scene.probe.waitFor(5);
    const { database } = scene;
    const slot = await scene.slot();
    // The relay comes back within moments, so terminate and drop belong into one statement.
    await until(
      async () => {
        await database.query(
          `do $$ begin
             perform pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = '${slot?.name}';
             for n in 1..200 loop
               exit when (select active_pid from pg_replication_slots where slot_name = '${slot?.name}') is null;
               perform pg_sleep(0.002);
             end loop;
             perform pg_drop_replication_slot('${slot?.name}');
           end $$`,
        );
        return true;
      },
      { what: 'the slot to be dropped under the relay' },
    );
    ids.push(...(await scene.publish(20)));
    await relay.waitForLog(madeSlot, 'a new slot');
    await scene.probe.waitForDistinct(25);
    await scene.settled();
    ids.push(...(await scene.publish(2)));
    await scene.probe.waitForDistinct(27);
    expect(new Set(scene.probe.ids())).toEqual(new Set(ids));
    await relay.waitForPhase('streaming');
    expect(await relay.stop()).toBe(0);
  });

  it('advanced by hand past pending rows, or made anew: the sweep publishes them (F28)', async () => {
    expect(await (await streaming()).stop()).toBe(0);
    await scene.slotReleased();
    const name = (await scene.slot())?.name;
    const ids = await scene.publish(30);
    await scene.database.query('select pg_replication_slot_advance($1, pg_current_wal_lsn())', [name]);
    const relay = scene.start();
    await scene.probe.waitFor(30);
    await scene.settled();
    expect(relay.log.some((line) => line.msg.startsWith('the sweep published'))).toBe(true);
    expect(await relay.stop()).toBe(0);
    await dropSlot();
    ids.push(...(await scene.publish(10)));
    await scene.database.query("select pg_create_logical_replication_slot($1, 'pgoutput')", [name]);
    ids.push(...(await scene.publish(10)));
    const next = scene.start();
    await scene.probe.waitFor(50);
    await scene.settled();
    expect(await next.stop()).toBe(0);
    expect(new Set(scene.probe.ids())).toEqual(new Set(ids));
    expect(scene.probe.messages.length).toBe(50);
  });

  it('ahead of the server: not trusted, made anew (fact 12, F23)', async () => {
    expect(await (await streaming()).stop()).toBe(0);
    await scene.slotReleased();
    const slot = await scene.slot();
    const other = await holdSlot(scene.database, slot?.name);
    // The server believes a position that it has not written yet.
    const beyond = (slot?.confirmed ?? 0n) + 1_000_000_000n;
    other.report(beyond, beyond);
    await until(async () => (await scene.slot())?.confirmed === beyond, { what: 'the slot to be ahead of the server' });
    await other.abort();
    const ids = await scene.publish(4);
    const relay = scene.start();
    await relay.waitForLog((line) => String(line['reason']).includes('ahead of the server'), 'word of the slot');
    await relay.waitForPhase('streaming');
    ids.push(...(await scene.publish(2)));
    await scene.probe.waitFor(6);
    expect(scene.probe.ids()).toEqual(ids);
    expect(await relay.stop()).toBe(0);
  });

  it('in use by somebody else: the relay stands by, without a crash loop, and takes it when it is free (F29)', async () => {
    expect(await (await streaming()).stop()).toBe(0);
    await scene.slotReleased();
    const other = await holdSlot(scene.database, (await scene.slot())?.name);
    const relay = scene.start();
    await relay.waitForPhase('standby');
    const waiting = await relay.waitForLog((line) => line.msg.startsWith('the slot is in use'), 'word of the holder');
    expect(waiting['pid']).toBe((await scene.slot())?.pid);
    const ids = await scene.publish(3);
    expect(scene.probe.messages).toEqual([]);
    await other.abort();
    await scene.probe.waitFor(3);
    expect(scene.probe.ids()).toEqual(ids);
    expect(relay.log.filter((line) => line.level === 'error' || line.level === 'warn')).toEqual([]);
    expect(await relay.stop()).toBe(0);
  });

  it.each([
    [0, 60_000],
    [0.8, 72_000],
  ])(
    '3.7: in use for longer than wal_sender_timeout: the lock is given back, by chance %d after %d ms, to a relay that waits for it',
    async (chance, afterMs) => {
      expect(await (await streaming()).stop()).toBe(0);
      await scene.slotReleased();
      const other = await holdSlot(scene.database, (await scene.slot())?.name);
      const clock = new ManualClock(chance);
      const environment = { WAYBILL_DATABASE_URL: scene.database.url, WAYBILL_BROKER_URL: scene.vhost.url };
      const lines: string[] = [];
      const log = createLogger({
        level: 'debug',
        format: 'json',
        write: (line) => lines.push(line),
        isTerminal: false,
      });
      const said = (text: string): boolean => lines.some((line) => line.includes(text));
      const relay = startRelayService(loadConfig({ environment, readFile: () => '' }), log, { clock });
      try {
        await until(() => said('the slot is in use'), { what: 'the relay to wait for the slot' });
        const second = scene.start();
        await second.waitForPhase('standby');
        // A look at the slot has been when the next one is to come.
        const looked = () => until(() => clock.pending > 0, { what: 'a look at the slot' });
        await looked();
        clock.advance(afterMs);
        await looked();
        expect(said('WAYBILL_SLOT_BUSY')).toBe(false);
        expect(second.log.filter((line) => line.msg.startsWith('the slot is in use'))).toEqual([]);
        clock.advance(500);
        await until(() => said('WAYBILL_SLOT_BUSY'), { what: 'the relay to give up' });
        // Whoever waits for the slot has the lock.
        await second.waitForLog((line) => line.msg.startsWith('the slot is in use'), 'the other one to have the lock');
        expect(await second.stop()).toBe(0);
      } finally {
        await relay.stop();
        await other.abort();
      }
    },
  );

  it('of another database under the name we want: an error that says so, and hands off (F131, fact 51)', async () => {
    const { database } = scene;
    expect(await (await streaming()).stop()).toBe(0);
    await dropSlot();
    const ours = slotName(database.name, 'waybill', 'default');
    const admin = new pg.Client({ connectionString: database.server.url() });
    await admin.connect();
    try {
      await admin.query("select pg_create_logical_replication_slot($1, 'pgoutput')", [ours]);
      const ids = await scene.publish(2);
      const relay = scene.start();
      const line = await relay.waitForLog((each) => errorCode(each) === 'WAYBILL_SLOT_TAKEN', 'the error');
      expect(JSON.stringify(line)).toContain('belongs to database postgres');
      expect(scene.probe.messages).toEqual([]);
      const left = await admin.query('select database, plugin from pg_replication_slots where slot_name = $1', [ours]);
      expect(left.rows).toEqual([{ database: 'postgres', plugin: 'pgoutput' }]);
      await admin.query('select pg_drop_replication_slot($1)', [ours]);
      await relay.kill9();
      const next = scene.start();
      await scene.probe.waitFor(2);
      expect(scene.probe.ids()).toEqual(ids);
      expect(await next.stop()).toBe(0);
    } finally {
      await admin.query(
        'select pg_drop_replication_slot($1) from pg_replication_slots where slot_name = $1 and database = $2',
        [ours, 'postgres'],
      );
      await admin.end();
    }
  });

  it('two databases of one server with default names work side by side (F131)', async () => {
    const other = await relayScene();
    try {
      const relays = [scene.start(), other.start()];
      await Promise.all(relays.map((relay) => relay.waitForPhase('streaming')));
      const [ours, theirs] = await Promise.all([scene.publish(20), other.publish(20)]);
      await Promise.all([scene.probe.waitFor(20), other.probe.waitFor(20)]);
      expect(scene.probe.ids()).toEqual(ours);
      expect(other.probe.ids()).toEqual(theirs);
      expect(await Promise.all(relays.map((relay) => relay.stop()))).toEqual([0, 0]);
    } finally {
      await killRelays();
      await other.drop();
    }
  });

  it('the publication dropped before the start and under a running relay: made anew with its slot, then a table pass (F33, F34, fact 15)', async () => {
    const { database } = scene;
    await database.query('drop publication if exists waybill_outbox');
    const ids = await scene.publish(10);
    const relay = scene.start();
    await scene.probe.waitFor(10);
    await relay.waitForPhase('streaming');
    await database.query('drop publication waybill_outbox');
    ids.push(...(await scene.publish(10)));
    await scene.probe.waitForDistinct(20, 30_000);
    await relay.waitForPhase('streaming');
    ids.push(...(await scene.publish(1)));
    await scene.probe.waitForDistinct(21);
    await scene.settled();
    expect(scene.probe.firstIds().toSorted()).toEqual(ids.toSorted());
    await database.query('alter publication waybill_outbox drop table waybill.outbox');
    ids.push(...(await scene.publish(5)));
    expect(await relay.stop()).toBe(0);
    const next = scene.start();
    await scene.probe.waitForDistinct(26);
    expect(scene.probe.firstIds().toSorted()).toEqual(ids.toSorted());
    // At once and in order, not after a stream that fails, nor by the sweep behind one that skips them.
    expect(next.log.find((line) => line.level === 'error')?.['reason']).toContain('its publication was missing');
    expect(next.log.some((line) => line.msg.includes('session ended'))).toBe(false);
    expect(await next.stop()).toBe(0);
  });
});

/** As pg_recvlogical would: streams from the slot and acknowledges nothing by itself. */
function holdSlot(database: FreshDatabase, slot: string | undefined): Promise<ReplicationStream> {
  return ReplicationStream.open({
    endpoint: { url: database.url },
    applicationName: 'somebody else',
    schema: 'waybill',
    slot: slot ?? '',
    publication: 'waybill_outbox',
    startLsn: 0n,
    walSenderTimeoutMs: 60_000,
    clock: systemClock,
    onEvent: () => undefined,
    onEnd: () => undefined,
  });
}
