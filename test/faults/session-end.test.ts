import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { startFaultProxy, type FaultProxy } from '../support/fault-proxy.js';
import { killRelays, startRelay } from '../support/relay.js';
import { relayScene, type RelayScene } from '../support/relay-scene.js';
import { startPostgres } from '../support/servers/postgres.js';
import type { PostgresServer } from '../support/servers/postgres-server.js';
import { until } from '../support/waiting.js';

/** A proxy before the server of this URL. */
function proxyTo(url: string): Promise<FaultProxy> {
  const { hostname, port } = new URL(url);
  return startFaultProxy({ targetHost: hostname, targetPort: Number(port) });
}

describe('the end of a session', () => {
  let scene: RelayScene;
  let database: FaultProxy;
  let broker: FaultProxy;

  beforeAll(async () => {
    scene = await relayScene();
    [database, broker] = await Promise.all([proxyTo(scene.database.url), proxyTo(scene.vhost.url)]);
  });
  afterEach(async () => {
    database.resume();
    broker.resume();
    broker.refuse(false);
    await killRelays();
  });
  afterAll(async () => {
    await Promise.all([database.close(), broker.close()]);
    await scene.drop();
  });

  it('3.7: a stream that opens after its session has failed is closed, and the next session works', async () => {
    const starting = database.at(
      (unit) => unit.names.includes('pg.client.query') && unit.bytes.includes('START_REPLICATION'),
      1,
      'stall-before',
    );
    const relay = scene.start({
      databaseUrl: database.url(scene.database.url),
      brokerUrl: broker.url(scene.vhost.url),
    });
    await starting;
    broker.cut();
    await relay.waitForLog((line) => line.msg.includes('session ended'), 'the session to end');
    database.resume();
    await relay.waitForPhase('streaming', 30_000);
    const ids = await scene.publish(20);
    await scene.probe.waitForDistinct(20);
    scene.expectIds(ids);
    expect(await relay.stop()).toBe(0);
  });

  it('F9, F112: a broker that dies during the drain leaves messages in flight, and exit code 1 says so', async () => {
    const relay = scene.start({ brokerUrl: broker.url(scene.vhost.url) });
    await relay.waitForPhase('streaming');
    const published = broker.at('amqp.client.body', 100, 'stall-before');
    const ids = await scene.publish(300);
    await published;
    relay.signal('SIGTERM');
    await relay.waitForPhase('draining');
    broker.refuse(true);
    broker.cut();
    expect(await relay.exited).toBe(1);
    expect(relay.log.some((line) => line.msg.includes('nothing was left'))).toBe(false);
    const next = scene.start();
    await scene.probe.waitForDistinct(20 + ids.length);
    await scene.settled();
    expect(await next.stop()).toBe(0);
  });

  it('O3: what was cancelled is never delivered, whatever holds the position back and however often we die', async () => {
    const locker = await scene.database.connect();
    const hold = async (): Promise<void> => {
      await locker.query('begin');
      await locker.query("select from waybill.outbox where type = 'held' for update");
    };
    const first = scene.start();
    await first.waitForPhase('streaming');
    await scene.publish(1, { type: 'seen' });
    await scene.settled();
    await first.kill9();
    await scene.publish(1, { type: 'held' });
    await hold();
    const second = scene.start();
    await second.waitForPhase('streaming');
    const [row] = await scene.database.query<{ id: string }>(
      "select waybill.publish('withdrawn', deliver_at => now() + interval '3 seconds') as id",
    );
    const state = async (): Promise<unknown> =>
      (await scene.database.query('select waybill.publication_status($1::uuid) as s', [row?.id]))[0]?.['s'];
    await until(async () => (await state()) === 'scheduled', { what: 'the row to be scheduled' });
    expect(await scene.database.query('select waybill.cancel($1::uuid) as done', [row?.id])).toEqual([{ done: true }]);
    for (let death = 0; death < 3; death += 1) {
      const relay = scene.start();
      await until(() => relay.phase() === 'standby' || relay.phase() === 'streaming', { what: 'a relay' });
      if (death === 0) await second.kill9();
      await relay.waitForPhase('streaming');
      await until(async () => (await scene.slot())?.active, { what: 'the stream' });
      await scene.publish(1, { type: `after ${death}` });
      // Settled as well, and with it what the start of this relay has found to remove.
      await until(
        async () => (await scene.database.query("select from waybill.outbox where type like 'after%'")).length === 0,
        { what: 'the new row to be settled' },
      );
      await relay.kill9();
      await scene.slotReleased();
    }
    await locker.query('commit');
    const last = scene.start();
    await last.waitForPhase('streaming');
    await until(async () => (await scene.database.query('select from waybill.outbox')).length === 0, {
      withinMs: 30_000,
      what: 'the outbox to be empty',
    });
    expect(await state()).toBe('cancelled');
    expect(scene.probe.messages.filter((message) => message.type === 'withdrawn')).toEqual([]);
    expect(await last.stop()).toBe(0);
  });
});

describe('F33, F34: a publication dropped under a running relay, on PostgreSQL 18, which tells its reader nothing', () => {
  let server: PostgresServer;
  let scene: RelayScene;

  beforeAll(async () => {
    server = await startPostgres({ version: 'embedded' });
    scene = await relayScene({ server });
  });
  afterEach(killRelays);
  afterAll(async () => {
    await scene.drop();
    await server.close();
  });

  it('is found within a minute, made anew, and every row arrives', async () => {
    const relay = startRelay({ databaseUrl: scene.database.url, brokerUrl: scene.vhost.url });
    await relay.waitForPhase('streaming');
    const before = await scene.publish(5);
    await scene.probe.waitForDistinct(5);
    await scene.database.query('drop publication waybill_outbox');
    const after = await scene.publish(5);
    await scene.probe.waitForDistinct(10, 60_000);
    scene.expectIds([...before, ...after]);
    const later = await scene.publish(5);
    await scene.probe.waitForDistinct(15);
    scene.expectIds([...before, ...after, ...later]);
    // F34: the same for a publication from which only the table is gone; no version tells its reader of that.
    await scene.database.query('alter publication waybill_outbox drop table waybill.outbox');
    const unseen = await scene.publish(5);
    await scene.probe.waitForDistinct(20, 60_000);
    // The sweep of a session that ends over it may have sent them already.
    scene.expectIds([...before, ...after, ...later, ...unseen], { copies: unseen.length });
    expect(await relay.stop()).toBe(0);
  }, 180_000);
});
