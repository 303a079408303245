import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { METRICS, type MetricDefinition, type MetricName } from '../../src/telemetry/metrics.js';
import { ADMIN_ON, adminOf, type Admin } from '../support/admin.js';
import { sharedRabbit } from '../support/broker.js';
import { sharedPostgres } from '../support/database.js';
import { startFaultProxy, type FaultProxy } from '../support/fault-proxy.js';
import { LEDGER } from '../support/ledger.js';
import { MetricChanges } from '../support/metric-changes.js';
import { receiverScene, type ReceiverScene } from '../support/receiver-scene.js';
import { killRelays, type RelayProcess } from '../support/relay.js';
import { until } from '../support/waiting.js';

const CONSUMER = `
billing:
  handler: { kind: sql, function: billing.on_event, timeout: 30s }
  prefetch: 2
  retry: { delays: [1s], maxAttempts: 3 }
`;

describe('every metric of a consumer changes when what it stands for happens', () => {
  const changes = new MetricChanges();
  let scene: ReceiverScene;
  let postgres: FaultProxy;
  let broker: FaultProxy;
  let consumer: RelayProcess;
  let admin: Admin;

  beforeAll(async () => {
    [postgres, broker] = await Promise.all([
      startFaultProxy({ targetPort: sharedPostgres().port }),
      startFaultProxy({ targetPort: sharedRabbit().port }),
    ]);
    scene = await receiverScene();
    await scene.database.query(LEDGER);
    consumer = scene.start(CONSUMER, {
      databaseUrl: postgres.url(scene.database.url),
      brokerUrl: broker.url(scene.vhost.url),
      env: { ...ADMIN_ON, WAYBILL_ADMIN_COLLECT_INTERVAL: '1s' },
    });
    admin = await adminOf(consumer);
    await changes.look(admin);
  });
  afterEach(() => {
    postgres.refuse(false);
    broker.refuse(false);
  });
  afterAll(async () => {
    await killRelays();
    await scene.drop();
    await Promise.all([postgres.close(), broker.close()]);
  });

  const metric = (name: MetricName, labels: Record<string, string> = {}): Promise<number | undefined> =>
    admin.metric(name, { consumer: 'billing', ...labels });

  /** Waits until metrics have these values, looking all the while; undefined: absent. */
  async function shows(expected: [MetricName, number | undefined, Record<string, string>?][]): Promise<void> {
    let seen: unknown[] = [];
    await until(
      async () => {
        await changes.look(admin);
        seen = await Promise.all(expected.map(async ([name, , labels]) => [name, await metric(name, labels), labels]));
        return expected.every(([, value], index) => (seen[index] as unknown[])[1] === value);
      },
      {
        withinMs: 30_000,
        everyMs: 50,
        get what() {
          return `${JSON.stringify(expected)}; it is ${JSON.stringify(seen)}`;
        },
      },
    );
  }

  it('what becomes of messages, and how long it took', async () => {
    await shows([
      ['waybill_consumer_consuming', 1],
      ['waybill_consumer_paused', 0],
      ['waybill_inbox_abandoned_total', 0],
      ['waybill_consumer_connection_up', 1, { connection: 'database' }],
      ['waybill_consumer_connection_up', 1, { connection: 'broker' }],
      ['waybill_consumer_connection_up', 1, { connection: 'publishing' }],
    ]);
    await scene.send('billing', [
      { messageId: 'a', body: '{"amount": 1}' },
      { messageId: 'a', body: '{"amount": 1}' },
      { messageId: 'a', body: '{"amount": 2}' },
      { messageId: 'again', body: '{"amount": 1, "fails": 1}' },
      { messageId: 'never', body: '{"never": true}' },
      { messageId: 'early', body: '{"amount": 1, "order": "o-1"}' },
    ]);
    await shows([
      ['waybill_inbox_received_total', 6],
      ['waybill_inbox_applied_total', 2],
      ['waybill_inbox_duplicate_total', 1],
      ['waybill_inbox_conflict_total', 1],
      ['waybill_inbox_retried_total', 1],
      ['waybill_inbox_dead_total', 2],
      ['waybill_inbox_rows', 2, { status: 'dead' }],
      ['waybill_inbox_rows', 1, { status: 'waiting' }],
    ]);
    expect(await metric('waybill_inbox_deferred_total')).toBeGreaterThan(0);
    expect(await metric('waybill_inbox_oldest_pending_seconds')).toBeGreaterThan(0);
    // Transactions, not messages: at most one for each delivery and each attempt after that, and at least three.
    expect(await admin.metric('waybill_inbox_handler_seconds')).toBeGreaterThanOrEqual(3);
    await scene.database.query("insert into billing.orders values ('o-1')");
    await scene.waitForRows(3, "status = 'done'");
  });

  it('dead messages whose copies wait, and those that were refused', async () => {
    await shows([
      ['waybill_inbox_copies_waiting', 0],
      ['waybill_inbox_copies_refused', 0],
    ]);
    // As they are noted when RabbitMQ refuses them.
    await scene.database.query(
      `insert into waybill.inbox_uncopied (inbox_seq, consumer, died_at, claimed_until, refused)
       select -n, 'billing', now(), now() + interval '1 hour', n - 1 from generate_series(1, 3) n`,
    );
    await shows([
      ['waybill_inbox_copies_waiting', 3],
      ['waybill_inbox_copies_refused', 2],
    ]);
    await scene.database.query('delete from waybill.inbox_uncopied where inbox_seq < 0');
    await shows([['waybill_inbox_copies_waiting', 0]]);
  });

  it('what is no timer of ours in the retry queue', async () => {
    await shows([['waybill_inbox_timers_refused_total', 0]]);
    await scene.send('waybill.retry.billing', [{ body: 'no timer' }, { body: '{"consumer": 7}' }]);
    await shows([['waybill_inbox_timers_refused_total', 2]]);
  });

  it('an sql handler is measured from the call to the commit', async () => {
    const sum = async (): Promise<number> => {
      const line = (await admin.get('/metrics')).body.match(/^waybill_inbox_handler_seconds_sum\{.*\} (\S+)$/m);
      return Number(line?.[1]);
    };
    const before = await sum();
    await scene.send('billing', [{ messageId: 'slow', body: '{"amount": 1, "sleep": 1}' }]);
    await scene.waitForRows(4, "status = 'done'");
    await until(async () => (await sum()) > before, { what: 'the slow one to be measured' });
    expect((await sum()) - before).toBeGreaterThanOrEqual(1);
    expect((await sum()) - before).toBeLessThan(10);
  });

  it('abandoned attempts, whoever had begun them and whoever finds out', async () => {
    await scene.database.query("select waybill.consumer_pause('billing', 'a test')");
    await scene.send('billing', [
      { messageId: 'mine', body: '{"amount": 1}' },
      { messageId: 'yours', body: '{"amount": 1}' },
    ]);
    await scene.waitForRows(2, "status = 'pending'");
    await scene.database.query(
      `update waybill.inbox set status = 'running', claim_token = gen_random_uuid(), lease_until = clock_timestamp()
       where status = 'pending'`,
    );
    // As the claim of an application would: the process that is measured has no part in it.
    await scene.database.query("select waybill.end_expired_leases(c) from waybill.consumer c where c.name = 'billing'");
    await shows([['waybill_inbox_abandoned_total', 2]]);
    await scene.database.query("select waybill.consumer_resume('billing')");
    await scene.waitForRows(2, "status = 'done' and abandoned = 1");
    // Gone with their rows; what was counted stays counted.
    await scene.database.query("delete from waybill.inbox where message_id = 'mine'");
    await scene.send('billing', [{ messageId: 'theirs', body: '{"amount": 1}' }]);
    await scene.waitForRows(1, "message_id = 'theirs' and status = 'done'");
    await shows([['waybill_inbox_abandoned_total', 2]]);
  });

  it('paused is said of pauses alone: by an operator', async () => {
    await scene.database.query("select waybill.consumer_pause('billing', 'a test')");
    await shows([
      ['waybill_consumer_paused', 1],
      ['waybill_consumer_breaker_open', 0],
      ['waybill_consumer_consuming', 1],
    ]);
    await scene.database.query("select waybill.consumer_resume('billing')");
    await shows([['waybill_consumer_paused', 0]]);
  });

  it('paused is said of pauses alone: by the breaker', async () => {
    await scene.database.query('alter function billing.on_event(waybill.inbox_message) rename to gone');
    await scene.send('billing', [{ messageId: 'probe', body: '{"amount": 1}' }]);
    await shows([
      ['waybill_consumer_paused', 1],
      ['waybill_consumer_breaker_open', 1],
      ['waybill_consumer_consuming', 0],
    ]);
    await scene.database.query('alter function billing.gone(waybill.inbox_message) rename to on_event');
    await shows([
      ['waybill_consumer_paused', 0],
      ['waybill_consumer_breaker_open', 0],
      ['waybill_consumer_consuming', 1],
    ]);
  });

  it('a broker that is away is no pause, and neither is a database', async () => {
    broker.refuse(true);
    broker.cut();
    await shows([
      ['waybill_consumer_consuming', 0],
      ['waybill_consumer_paused', 0],
      ['waybill_consumer_breaker_open', 0],
      ['waybill_consumer_connection_up', 0, { connection: 'broker' }],
      ['waybill_consumer_connection_up', 0, { connection: 'publishing' }],
      ['waybill_consumer_connection_up', 1, { connection: 'database' }],
    ]);
    broker.refuse(false);
    await shows([
      ['waybill_consumer_consuming', 1],
      ['waybill_consumer_connection_up', 1, { connection: 'broker' }],
      ['waybill_consumer_connection_up', 1, { connection: 'publishing' }],
    ]);
    postgres.refuse(true);
    postgres.cut();
    await shows([
      ['waybill_consumer_connection_up', 0, { connection: 'database' }],
      // What only the database knows is absent.
      ['waybill_consumer_paused', undefined],
      ['waybill_inbox_abandoned_total', 2],
    ]);
    // The last look at the database has a time that does not go on.
    const readAt = await metric('waybill_consumer_collected_timestamp_seconds');
    expect(readAt).toBeGreaterThan(Date.now() / 1000 - 600);
    postgres.refuse(false);
    await shows([
      ['waybill_consumer_connection_up', 1, { connection: 'database' }],
      ['waybill_consumer_paused', 0],
    ]);
    expect(await metric('waybill_consumer_collected_timestamp_seconds')).toBeGreaterThan(readAt ?? 0);
  });

  it('what waits in the queue', async () => {
    await scene.send('billing', [
      { messageId: 'long', body: '{"amount": 1, "sleep": 7}' },
      ...Array.from({ length: 10 }, (_, n) => ({ messageId: `w-${n}`, body: '{"amount": 1}' })),
    ]);
    await until(
      async () => {
        await changes.look(admin);
        return ((await metric('waybill_consumer_lag_messages')) ?? 0) > 0;
      },
      { withinMs: 20_000, what: 'messages to wait' },
    );
    await scene.waitForRows(10, "message_id like 'w-%' and status = 'done'");
    await shows([['waybill_consumer_lag_messages', 0]]);
  });

  it('no metric of the table was left out', () => {
    const expected = Object.entries<MetricDefinition>(METRICS)
      .filter(([, { of }]) => of === 'consumers')
      .map(([name]) => name);
    expect(expected.filter((name) => !changes.changed.has(name))).toEqual([]);
  });
});
