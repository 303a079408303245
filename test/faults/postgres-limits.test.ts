import pg from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { startFaultProxy } from '../support/fault-proxy.js';
import { killRelays, type LogLine, type RelayProcess } from '../support/relay.js';
import { relayScene, type RelayScene } from '../support/relay-scene.js';
import type { PostgresServer } from '../support/servers/postgres-server.js';
import { startPostgres } from '../support/servers/postgres.js';
import { until } from '../support/waiting.js';

/** An error of a person's making, by its code and hint. */
function unsuitable(hint: RegExp): (line: LogLine) => boolean {
  return ({ level, err }) => {
    const { code, hint: told = '' } = (err ?? {}) as { code?: string; hint?: string };
    return level === 'error' && code === 'WAYBILL_DATABASE_UNSUITABLE' && hint.test(told);
  };
}

describe('a PostgreSQL at its limits', () => {
  let server: PostgresServer;
  let scene: RelayScene;

  beforeAll(async () => {
    server = await startPostgres({
      own: true,
      settings: { max_connections: 25, max_wal_senders: 2, max_replication_slots: 1, wal_sender_timeout: '3s' },
    });
    scene = await relayScene({ server });
  });
  afterEach(killRelays);
  afterAll(async () => {
    await scene.drop().catch(() => undefined);
    await server.close();
  });

  /** As many errors as a person can read. */
  function expectCalm(relay: RelayProcess): void {
    expect(relay.log.filter((line) => line.level === 'error' || line.level === 'warn').length).toBeLessThan(15);
  }

  it('F32: without a WAL sender, then without a slot, it says which is missing, and goes on when it is there', async () => {
    const senders = [1, 2].map(
      () => new pg.Client({ connectionString: scene.database.url, replication: 'database' } as pg.ClientConfig),
    );
    await Promise.all(senders.map((sender) => sender.connect()));
    await scene.database.query(`select pg_create_physical_replication_slot('somebodys')`);
    const ids = await scene.publish(10);
    const relay = scene.start();
    await relay.waitForLog(unsuitable(/max_wal_senders/), 'word of the WAL senders');
    await Promise.all(senders.map((sender) => sender.end()));
    await relay.waitForLog(unsuitable(/max_replication_slots/), 'word of the slots', 40_000);
    await scene.database.query(`select pg_drop_replication_slot('somebodys')`);
    await relay.waitForPhase('streaming', 40_000);
    await scene.probe.waitFor(10);
    await scene.settled();
    scene.expectIds(ids);
    expectCalm(relay);
    expect(await relay.stop()).toBe(0);
  });

  it('F63: all connections in use: it waits, says so, and goes on when there is one', async () => {
    scene.probe.clear();
    const relay = scene.start();
    await relay.waitForPhase('streaming');
    const watcher = await scene.database.connect();
    await watcher.query(
      `select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'waybill default%'`,
    );
    const hogs: pg.Client[] = [];
    // Whoever is faster: the relay that comes back, or we.
    await until(
      async () => {
        const hog = new pg.Client({ connectionString: scene.database.url });
        hog.on('error', () => undefined);
        try {
          await hog.connect();
          hogs.push(hog);
        } catch {
          await watcher.query(
            `select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'waybill%'`,
          );
        }
        return relay.log.some(unsuitable(/max_connections/));
      },
      { withinMs: 30_000, what: 'the relay to find no connection' },
    );
    const { rows } = await watcher.query<{ id: string }>(
      `select waybill.publish('order.paid', '{"n": 1}') as id from generate_series(1, 10)`,
    );
    await Promise.all(hogs.map((hog) => hog.end()));
    await relay.waitForPhase('streaming', 40_000);
    await scene.probe.waitFor(10);
    await scene.settled();
    scene.expectIds(rows.map(({ id }) => id));
    await watcher.end();
    expect(await relay.stop()).toBe(0);
  });

  it('killed while its slot is being made, which an old transaction holds up: the next one makes it (F10, F132)', async () => {
    await scene.slotReleased();
    await scene.database.query('select pg_drop_replication_slot($1)', [(await scene.slot())?.name]);
    const ids = await scene.publish(5);
    scene.probe.clear();
    const old = await scene.database.connect();
    await old.query(`set application_name = 'a report'`);
    // It writes nothing to the outbox, so that only the slot waits for it.
    await old.query('begin; select pg_current_xact_id()');
    const relays = [scene.start(), scene.start()];
    const waits = (line: LogLine): boolean =>
      line.msg.startsWith('making the replication slot waits') && String(line['waitingFor']).includes('a report');
    const first = await until(() => relays.find(({ log }) => log.some(waits)), {
      withinMs: 20_000,
      what: 'word of the wait',
    });
    await first.kill9();
    const next = relays.find((relay) => relay !== first);
    await next?.waitForLog(waits, 'word of the wait of the next', 40_000);
    await old.query('commit');
    await next?.waitForPhase('streaming');
    await scene.probe.waitFor(5);
    await scene.settled();
    expect(scene.probe.ids()).toEqual(ids);
    expect(await next?.stop()).toBe(0);
  });

  it('F30: a slot that a half-open client holds is waited for, with its holder named, until wal_sender_timeout', async () => {
    scene.probe.clear();
    const proxy = await startFaultProxy({ targetPort: server.port, targetHost: server.host });
    const first = scene.start({ databaseUrl: proxy.url(scene.database.url) });
    await first.waitForPhase('streaming');
    // Longer than the other one needs to come to the slot.
    await scene.database.query(`alter system set wal_sender_timeout = '15s'`);
    await scene.database.query('select pg_reload_conf()');
    const holder = (await scene.slot())?.pid;
    proxy.stall();
    const ids = await scene.publish(20);
    await first.kill9();
    const second = scene.start();
    const line = await second.waitForLog((each) => JSON.stringify(each).includes(String(holder)), 'the holder', 30_000);
    expect(line.level).not.toBe('error');
    expect((await scene.slot())?.pid).toBe(holder);
    await second.waitForPhase('streaming', 60_000);
    await scene.probe.waitForDistinct(20, 30_000);
    await scene.settled();
    // Nobody was terminated: the server found out for itself.
    expect((await scene.slot())?.pid).not.toBe(holder);
    scene.expectIds(ids, { copies: 20 });
    expectCalm(second);
    expect(await second.stop()).toBe(0);
    await proxy.close();
  });
});

describe('F64: a network that swallows everything, and no word from anybody', () => {
  // Both run at the same time.
  afterAll(killRelays);

  // Each connection has a watch of its own; here the other one is sound, so that it cannot stand in.
  it.concurrent.each([
    { connection: 'the stream', variable: 'WAYBILL_DATABASE_REPLICATION_URL', notices: /no word from the server/ },
    { connection: 'SQL', variable: 'WAYBILL_DATABASE_URL', notices: /settling.*timeout/i },
  ])(
    'on the connection for $connection it is noticed, and nothing is lost',
    async ({ variable, notices }) => {
      const scene = await relayScene();
      const { server, name } = scene.database;
      // The watch of the stream is never shorter than a minute, nor than this.
      await scene.database.query(`alter database ${name} set wal_sender_timeout = '15s'`);
      const proxy = await startFaultProxy({ targetPort: server.port, targetHost: server.host });
      const relay = scene.start({
        env: {
          WAYBILL_DATABASE_REPLICATION_URL: scene.database.url,
          [variable]: proxy.url(scene.database.url),
        },
      });
      await relay.waitForPhase('streaming');
      await scene.publish(1);
      await scene.settled();
      proxy.stall();
      const ids = await scene.publish(20);
      const line = await relay.waitForLog((each) => each.msg.includes('session ended'), 'the session to end', 110_000);
      expect(JSON.stringify(line)).toMatch(notices);
      proxy.cut();
      proxy.resume();
      await relay.waitForPhase('streaming', 60_000);
      await scene.probe.waitForDistinct(21, 30_000);
      await scene.settled();
      expect(scene.probe.firstIds().slice(1)).toEqual(ids);
      expect(await relay.stop()).toBe(0);
      await proxy.close();
      await scene.drop();
    },
    240_000,
  );
});

describe('a PostgreSQL without logical decoding', () => {
  it('F31: wal_level is asked for and taken up after a restart; with the slot there, the server refuses to go back', async () => {
    const server = await startPostgres({ own: true, settings: { wal_level: 'replica' } });
    try {
      const scene = await relayScene({ server });
      const ids = await scene.publish(5);
      const relay = scene.start();
      await relay.waitForLog(unsuitable(/wal_level = logical.*source: table/), 'word of wal_level');
      expect(await scene.slot()).toBeUndefined();
      await scene.database.query('alter system set wal_level = logical');
      await server.stop('fast');
      await server.start();
      await relay.waitForPhase('streaming', 60_000);
      await scene.probe.waitFor(5);
      await scene.settled();
      scene.expectIds(ids);
      expect(await relay.stop()).toBe(0);
      // The runbook's warning: this way back is closed by PostgreSQL itself.
      await scene.database.query('alter system set wal_level = replica');
      await server.stop('fast');
      await expect(server.start()).rejects.toThrow(/wal_level/);
    } finally {
      await killRelays();
      await server.close();
    }
  });
});
