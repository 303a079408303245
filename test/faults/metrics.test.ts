import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { METRICS, type MetricDefinition, type MetricName } from '../../src/telemetry/metrics.js';
import { ADMIN_ON, adminOf, type Admin } from '../support/admin.js';
import { startFaultProxy, type FaultProxy } from '../support/fault-proxy.js';
import { MetricChanges } from '../support/metric-changes.js';
import { killRelays, type RelayProcess } from '../support/relay.js';
import { relayScene, type RelayScene } from '../support/relay-scene.js';
import { startPostgres } from '../support/servers/postgres.js';
import type { PostgresServer } from '../support/servers/postgres-server.js';
import { startRabbit } from '../support/servers/rabbit.js';
import type { RabbitServer } from '../support/servers/rabbit-server.js';
import { until } from '../support/waiting.js';

const CONSTANT: readonly MetricName[] = ['waybill_build_info', 'process_start_time_seconds'];

describe('every metric of the relay changes when what it stands for happens', () => {
  const changes = new MetricChanges();
  let server: PostgresServer;
  let rabbit: RabbitServer;
  let proxy: FaultProxy;
  let scene: RelayScene;
  let relay: RelayProcess;
  let admin: Admin;

  beforeAll(async () => {
    [server, rabbit] = await Promise.all([
      startPostgres({ own: true, settings: { max_slot_wal_keep_size: '1GB' } }),
      startRabbit({ own: true }),
    ]);
    scene = await relayScene({ server, rabbit });
    proxy = await startFaultProxy({ targetPort: rabbit.port });
  });
  afterEach(() => proxy.resume());
  afterAll(async () => {
    await killRelays();
    await scene.drop();
    await proxy.close();
    await Promise.all([server.close(), rabbit.close()]);
  });

  async function start(env: Record<string, string> = {}): Promise<void> {
    relay = scene.start({
      brokerUrl: proxy.url(scene.vhost.url),
      env: {
        ...ADMIN_ON,
        WAYBILL_ADMIN_COLLECT_INTERVAL: '1s',
        WAYBILL_RELAY_SWEEP_INTERVAL: '10s',
        WAYBILL_RELAY_STALL_TIMEOUT: '5m',
        WAYBILL_RELAY_CONFIRM_TIMEOUT: '5m',
        ...env,
      },
    });
    admin = await adminOf(relay);
    await changes.look(admin);
  }

  /** Waits until this metric has changed, looking all the while. */
  async function moved(...names: MetricName[]): Promise<void> {
    await until(
      async () => {
        await changes.look(admin);
        return names.every((name) => changes.changed.has(name));
      },
      {
        withinMs: 30_000,
        everyMs: 50,
        get what() {
          return `${names.filter((name) => !changes.changed.has(name)).join(', ')} to change`;
        },
      },
    );
  }

  const metric = async (name: MetricName, labels: Record<string, string> = {}): Promise<number> =>
    (await admin.metric(name, labels)) ?? 0;

  it('published, confirmed, settled; the pass of the first start; the connections and the phase', async () => {
    await scene.publish(3);
    await start();
    await relay.waitForPhase('streaming');
    await scene.settled();
    await scene.publish(5);
    await moved(
      'waybill_outbox_published_total',
      'waybill_outbox_confirmed_total',
      'waybill_outbox_settled_total',
      'waybill_outbox_commit_to_confirm_seconds',
      'waybill_outbox_rebuilt_total',
      'waybill_relay_active',
      'waybill_relay_ready',
      'waybill_relay_phase',
      'waybill_connection_up',
    );
    expect(await metric('waybill_outbox_rebuilt_total')).toBe(3);
    expect(await metric('waybill_outbox_commit_to_confirm_seconds')).toBe(5);
  });

  it('what is held, expired, gone', async () => {
    await scene.topology(async (channel) => {
      await channel.assertExchange('nowhere', 'fanout');
      await channel.assertQueue('full', { arguments: { 'x-max-length': 1, 'x-overflow': 'reject-publish' } });
      await channel.assertExchange('narrow', 'fanout');
      await channel.bindQueue('full', 'narrow', '');
    });
    const into = (exchange: string) =>
      scene.database.query("select waybill.publish('t', '{}', exchange => $1)", [exchange]);
    await into('nowhere');
    await moved('waybill_outbox_returned_total', 'waybill_outbox_scheduled_total', 'waybill_outbox_held');
    await into('missing');
    await moved('waybill_outbox_parked_total');
    await into('narrow');
    await into('narrow');
    await into('narrow');
    await moved('waybill_outbox_nacked_total', 'waybill_outbox_resent_total');
    await scene.topology((channel) => channel.deleteQueue('full'));
    await scene.database.query("select waybill.publish('t', '{}', expires_at => now() - interval '1 second')");
    await moved('waybill_outbox_expired_total');
    const client = await scene.database.connect();
    await client.query(
      "begin; insert into waybill.outbox (type) values ('gone'); delete from waybill.outbox where type = 'gone'; commit",
    );
    await client.end();
    await moved('waybill_outbox_gone_total');
  });

  it('what waits for the broker, and what PostgreSQL keeps meanwhile', async () => {
    proxy.at('amqp.server.basic.ack', 1, 'stall-before').catch(() => undefined);
    await scene.publish(12_000);
    await moved(
      'waybill_outbox_in_flight',
      'waybill_outbox_in_flight_bytes',
      'waybill_outbox_unsettled',
      'waybill_outbox_pending',
      'waybill_outbox_pending_is_estimate',
      'waybill_outbox_oldest_pending_seconds',
      'waybill_outbox_table_bytes',
      'waybill_slot_lag_bytes',
      'waybill_slot_kept_wal_bytes',
      'waybill_slot_safe_wal_bytes',
      'waybill_checkpoint_age_seconds',
      'waybill_collected_timestamp_seconds',
    );
    expect(await metric('waybill_outbox_in_flight')).toBeLessThanOrEqual(
      await metric('waybill_outbox_in_flight_limit'),
    );
    proxy.resume();
    await scene.settled(60_000);
  });

  it('rows that the stream has missed, and a broker that blocks', async () => {
    const client = await scene.database.connect();
    await client.query('alter publication waybill_outbox drop table waybill.outbox');
    await scene.publish(1);
    await client.query('alter publication waybill_outbox add table waybill.outbox');
    await client.end();
    await moved('waybill_outbox_swept_total');
    await rabbit.alarm(true);
    await scene.publish(1);
    await moved('waybill_broker_blocked');
    await rabbit.alarm(false);
    await scene.settled();
  });

  it('another session; and what an earlier one had held is skipped', async () => {
    // A row that cannot go out, and cannot be set aside, keeps the position back: what comes after it is read again.
    await scene.topology((channel) => channel.assertExchange('lonely', 'topic'));
    const stalled = proxy.at('amqp.server.basic.ack', 1, 'stall-before');
    const [row] = await scene.database.query<{ id: string }>(
      "select waybill.publish('stays', '{}', exchange => 'lonely') as id",
    );
    await stalled;
    const client = await scene.database.connect();
    await client.query('begin');
    await client.query('select from waybill.outbox where id = $1 for update', [row?.id]);
    proxy.resume();
    await scene.database.query("select waybill.publish('skipped', '{}', exchange => 'missing')");
    await until(
      async () =>
        (await scene.database.query("select from waybill.outbox where type = 'skipped' and state = 'parked'"))
          .length === 1,
      { what: 'the row to be parked' },
    );
    await moved('waybill_outbox_locked');
    proxy.cut();
    await moved('waybill_relay_sessions_total', 'waybill_outbox_skipped_total');
    await client.query('rollback');
    await client.end();
    await relay.stop();
  });

  it('rows given up, a smaller window, rows behind a parked one of their key', async () => {
    await start({
      WAYBILL_RELAY_ON_UNROUTABLE_RETRY_FOR: '0s',
      WAYBILL_RELAY_ON_UNROUTABLE_THEN: 'accept',
      WAYBILL_RELAY_MAX_IN_FLIGHT: '10',
      WAYBILL_RELAY_ORDERING: 'strict',
    });
    await relay.waitForPhase('streaming');
    await scene.database.query("select waybill.publish('t', '{}', exchange => 'nowhere')");
    await scene.database.query("select waybill.publish('t', '{}', key => 'k', exchange => 'missing')");
    await scene.database.query("select waybill.publish('t', '{}', key => 'k')");
    await moved('waybill_outbox_accepted_total', 'waybill_outbox_blocked_total', 'waybill_outbox_in_flight_limit');
    await scene.database.query(
      `create function waybill.stuck() returns trigger language plpgsql as 'begin raise exception ''stuck''; end';
       create trigger stuck before update on waybill.outbox for each row when (new.type = 'stuck') execute function waybill.stuck()`,
    );
    await scene.database.query("select waybill.publish('stuck', '{}', exchange => 'missing')");
    await moved('waybill_outbox_refused');
    await scene.database.query('drop function waybill.stuck cascade');
  });

  it('what the database knows is absent while it cannot be read', async () => {
    await until(async () => (await admin.metric('waybill_outbox_pending')) !== undefined, { what: 'a reading' });
    await server.stop('immediate');
    await until(async () => (await admin.metric('waybill_outbox_pending')) === undefined, {
      withinMs: 20_000,
      what: 'the metric to be absent',
    });
    expect(await admin.metric('waybill_outbox_published_total')).toBeGreaterThan(0);
    await server.start();
    await until(async () => (await admin.metric('waybill_outbox_pending')) !== undefined, {
      withinMs: 30_000,
      what: 'the metric to be back',
    });
  });

  it('no metric of the table was left out', () => {
    const expected = Object.entries<MetricDefinition>(METRICS)
      .filter(([name, { of }]) => of !== 'consumers' && !CONSTANT.includes(name as MetricName))
      .map(([name]) => name);
    expect(expected.filter((name) => !changes.changed.has(name))).toEqual([]);
  });
});
