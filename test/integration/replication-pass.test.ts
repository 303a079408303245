import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { startFaultProxy } from '../support/fault-proxy.js';
import { killRelays, type LogLine } from '../support/relay.js';
import { relayScene, type RelayScene } from '../support/relay-scene.js';
import { until } from '../support/waiting.js';

const BACKLOG = 20_000;
/** A sweep that finds something would hide a pass that left something out. */
const swept = (line: LogLine): boolean => line.msg.startsWith('the sweep published');

describe('the first start and the table pass', () => {
  let scene: RelayScene;

  beforeAll(async () => {
    scene = await relayScene();
  });
  beforeEach(() => scene.probe.clear());
  afterEach(killRelays);
  afterAll(() => scene.drop());

  /** Several writers commit small transactions, roll back some and overlap with each other, until told to stop. */
  function writers(): { stop(): Promise<string[]> } {
    let writing = true;
    const committed: string[] = [];
    const running = [1, 2, 3].map(async (writer) => {
      const client = await scene.database.connect();
      for (let n = 0; writing; n += 1) {
        await client.query('begin');
        const ids = await scene.publish(1 + (n % 3), { client, type: `writer.${writer}` });
        const fate = n % 5 === 4 ? 'rollback' : 'commit';
        await client.query(fate);
        if (fate === 'commit') committed.push(...ids);
      }
      await client.end();
    });
    return {
      async stop() {
        writing = false;
        await Promise.all(running);
        return committed;
      },
    };
  }

  it('loses nothing when it is killed in the middle, twice, while writers go on (F8, F10, F23, F1-F3, facts 52, 53)', async () => {
    // A slot that was lost: there is a checkpoint, and it must not count any more.
    const earlier = scene.start();
    await earlier.waitForPhase('streaming');
    const backlog = await scene.publish(1);
    await scene.settled();
    expect(await earlier.stop()).toBe(0);
    await scene.slotReleased();
    await scene.database.query('select pg_drop_replication_slot($1)', [(await scene.slot())?.name]);
    backlog.push(...(await scene.publish(BACKLOG)));
    const writing = writers();
    const proxy = await startFaultProxy({ targetPort: Number(new URL(scene.vhost.url).port) });
    let begun: object | undefined;
    const anything: unknown = expect.any(String);
    for (const publishes of [1_000, 7_000]) {
      // Some of the pass is settled, or nothing yet, some is on its way, and most is still in the table.
      const stalled = proxy.at('amqp.client.basic.publish', publishes, 'stall-before');
      const relay = scene.start({ brokerUrl: proxy.url(scene.vhost.url) });
      await relay.waitForPhase('table-pass');
      await stalled;
      await relay.kill9();
      proxy.resume();
      const [pass] = await scene.database.query<Record<'checkpoint' | 'after' | 'upto', string | null>>(
        `select checkpoint_lsn as checkpoint, pass_after_seq::text as after, pass_upto_seq::text as upto from waybill.relay`,
      );
      // The next one reads as far as the first would have read; what came later comes from the slot.
      expect(pass).toEqual(begun ?? { checkpoint: null, after: anything, upto: anything });
      begun ??= pass;
      await scene.slotReleased();
    }
    await proxy.close();
    const relay = scene.start();
    await relay.waitForPhase('streaming', 60_000);
    const committed = [...backlog, ...(await writing.stop())];
    await scene.settled(60_000);
    await scene.probe.waitForDistinct(committed.length, 30_000);
    // What was rolled back never appears; each kill repeats at most what was unsettled, five windows.
    scene.expectIds(committed, { copies: 2 * 10_000 });
    expect(relay.log.filter(swept)).toEqual([]);
    expect(await relay.stop()).toBe(0);
    expect(relay.noise).toEqual([]);
  }, 120_000);

  it('sends every row once when nothing disturbs it, though the slot brings many rows of the pass again (F8, design 3.4)', async () => {
    await scene.slotReleased();
    await scene.database.query('select pg_drop_replication_slot($1)', [(await scene.slot())?.name]);
    const backlog = await scene.publish(2_000);
    const writing = writers();
    const relay = scene.start();
    await relay.waitForPhase('streaming', 30_000);
    await scene.probe.waitFor(2_100);
    const committed = [...backlog, ...(await writing.stop())];
    await scene.probe.waitFor(committed.length);
    await scene.settled();
    scene.expectIds(committed);
    expect(relay.log.filter(swept)).toEqual([]);
    expect(await relay.stop()).toBe(0);
  });

  /** A transaction that stays open, under a name by which it can be recognised. */
  async function openTransaction(name: string) {
    const client = await scene.database.connect();
    await client.query(`set application_name = '${name}'`);
    await client.query('begin');
    return client;
  }

  it('waits for transactions that are open, says for which, and misses none of their rows (F8, F132, facts 25, 28)', async () => {
    await scene.slotReleased();
    await scene.database.query('select pg_drop_replication_slot($1)', [(await scene.slot())?.name]);
    const open = await openTransaction('a forgetful batch');
    const late = await scene.publish(2, { client: open });
    const relay = scene.start();
    const line = await relay.waitForLog((each) => each.msg.startsWith('the table pass waits'), 'word of the wait');
    expect(line['waitingFor']).toContain('a forgetful batch');
    // What it has drawn is before the slot, which is not even begun.
    expect(await scene.slot()).toBeUndefined();
    const early = await scene.publish(2);
    await open.query('commit');
    await scene.probe.waitFor(4);
    await scene.settled();
    // Beside a running relay an old transaction holds nobody up.
    await open.query('begin');
    late.push(...(await scene.publish(1, { client: open })));
    early.push(...(await scene.publish(300)));
    await scene.probe.waitFor(304);
    await scene.settled();
    const before = (await scene.slot())?.confirmed ?? 0n;
    early.push(...(await scene.publish(1)));
    await scene.probe.waitFor(305);
    await until(async () => ((await scene.slot())?.confirmed ?? 0n) > before, { what: 'the slot to move on' });
    await open.query('commit');
    await scene.probe.waitFor(306);
    await scene.settled();
    scene.expectIds([...late, ...early]);
    expect(await relay.stop()).toBe(0);
  });

  it('waits again behind its slot: what was drawn until then is in the table for all to see, and goes out once (F8)', async () => {
    await scene.slotReleased();
    await scene.database.query('select pg_drop_replication_slot($1)', [(await scene.slot())?.name]);
    const ids = await scene.publish(5);
    const { server } = scene.database;
    const proxy = await startFaultProxy({ targetPort: server.port, targetHost: server.host });
    const made = proxy.at(
      // The answer to its creation: its name and its position as one value.
      ({ names, bytes }) => names.includes('pg.server.data_row') && bytes.includes('(waybill_'),
      1,
      'stall-before',
    );
    const relay = scene.start({ databaseUrl: proxy.url(scene.database.url) });
    await made;
    const open = await openTransaction('an order in between');
    const between = await scene.publish(1, { client: open });
    proxy.resume();
    const line = await relay.waitForLog((each) => each.msg.startsWith('the table pass waits'), 'word of the wait');
    expect(line['waitingFor']).toContain('an order in between');
    expect(scene.probe.messages).toEqual([]);
    await open.query('commit');
    await relay.waitForPhase('streaming');
    await scene.probe.waitFor(6);
    await scene.settled();
    expect(scene.probe.ids()).toEqual([...ids, ...between]);
    expect(await relay.stop()).toBe(0);
    await proxy.close();
  });

  it('a second relay during the pass stands by and takes over when the first is killed (fact 52, O8)', async () => {
    await scene.slotReleased();
    await scene.database.query('select pg_drop_replication_slot($1)', [(await scene.slot())?.name]);
    const ids = await scene.publish(3_000);
    const proxy = await startFaultProxy({ targetPort: Number(new URL(scene.vhost.url).port) });
    const first = scene.start({ brokerUrl: proxy.url(scene.vhost.url) });
    const stall = proxy.at('amqp.client.basic.publish', 1_000, 'stall-before');
    await first.waitForPhase('table-pass');
    await stall;
    // The slot exists and nobody streams from it: only the lock keeps the second one out.
    expect((await scene.slot())?.active).toBe(false);
    const second = scene.start();
    await second.waitForPhase('standby');
    await first.kill9();
    await proxy.close();
    await second.waitForPhase('streaming', 30_000);
    await scene.probe.waitForDistinct(3_000);
    await scene.settled();
    scene.expectIds(ids, { copies: 2_000 });
    expect(await second.stop()).toBe(0);
  });

  it('a slot without a record, and a record without a slot, are first starts, too (F10)', async () => {
    await scene.slotReleased();
    await scene.database.query('delete from waybill.relay');
    const ids = await scene.publish(5);
    const first = scene.start();
    await scene.probe.waitFor(5);
    await first.waitForPhase('streaming');
    await scene.settled();
    expect(await first.stop()).toBe(0);
    await until(async () => (await scene.slot())?.active === false, { what: 'the slot to be free' });
    await scene.database.query('select pg_drop_replication_slot($1)', [(await scene.slot())?.name]);
    await scene.database.query('drop publication waybill_outbox');
    ids.push(...(await scene.publish(5)));
    const second = scene.start();
    await scene.probe.waitFor(10);
    await second.waitForPhase('streaming');
    expect(scene.probe.ids()).toEqual(ids);
    expect(await second.stop()).toBe(0);
  });
});
