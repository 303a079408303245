import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { ADMIN_ON, adminOf, type Admin } from '../support/admin.js';
import { sharedRabbit } from '../support/broker.js';
import { sharedPostgres } from '../support/database.js';
import { startFaultProxy, type FaultPoint, type FaultProxy } from '../support/fault-proxy.js';
import { killRelays, type RelayProcess } from '../support/relay.js';
import { relayScene, type RelayScene } from '../support/relay-scene.js';
import { startRabbit } from '../support/servers/rabbit.js';
import { until } from '../support/waiting.js';

const STALE_AFTER_MS = 1_000;
const QUICK = { ...ADMIN_ON, WAYBILL_ADMIN_STALE_AFTER: `${STALE_AFTER_MS}ms` };

/** The statement of a connection, by a part of its text; this one connection stands still there. */
const statement =
  (part: string): FaultPoint =>
  (unit) =>
    unit.from === 'client' && unit.body.includes(part);

describe('F121 readiness cannot lie', () => {
  let scene: RelayScene;
  let postgres: FaultProxy;
  let rabbit: FaultProxy;
  let relay: RelayProcess;
  let admin: Admin;

  beforeAll(async () => {
    [postgres, rabbit] = await Promise.all([
      startFaultProxy({ targetPort: Number(new URL(sharedPostgres().url()).port) }),
      startFaultProxy({ targetPort: sharedRabbit().port }),
    ]);
  });
  afterAll(async () => {
    await Promise.all([postgres.close(), rabbit.close()]);
  });
  beforeEach(async () => {
    scene = await relayScene();
  });
  afterEach(async () => {
    await killRelays();
    for (const proxy of [postgres, rabbit]) {
      proxy.cut();
      proxy.resume();
    }
    await scene.drop();
  });

  async function start(env: Record<string, string> = {}): Promise<void> {
    const urls = { databaseUrl: postgres.url(scene.database.url), brokerUrl: rabbit.url(scene.vhost.url) };
    relay = scene.start({ ...urls, env: { ...QUICK, ...env } });
    admin = await adminOf(relay);
  }

  /** Waits until it works, and says so. */
  async function ready(): Promise<void> {
    await relay.waitForPhase('streaming');
    await until(async () => (await admin.ready()).ready, { withinMs: 20_000, what: 'a ready relay' });
  }

  /** Waits for unreadiness and gives its reason. */
  async function unready(): Promise<string> {
    const { parts } = await until(async () => ((each) => !each.ready && each)(await admin.ready()), {
      withinMs: 20_000,
      what: 'an unready relay',
    });
    return parts[0]?.reason ?? '';
  }

  it('a settle that PostgreSQL never answers: unready while it hangs, though nothing failed', async () => {
    await start();
    await ready();
    const stalled = postgres.at(statement('delete from only "waybill".outbox'), 1, 'stall-before');
    await scene.publish(5);
    await stalled;
    expect(await unready()).toContain('has not stored');
    expect(relay.phase()).toBe('streaming');
    expect(await admin.metric('waybill_relay_ready')).toBe(0);
    postgres.resume();
    await ready();
    await scene.settled();
  });

  it('a read of the table that PostgreSQL never answers', async () => {
    await start();
    await ready();
    await postgres.at(statement("state = 'scheduled' and next_attempt_at"), 1, 'stall-before');
    expect(await unready()).toContain('a read of the table');
    postgres.resume();
    await ready();
  });

  it('a replication stream that is silent', async () => {
    await start();
    await ready();
    await postgres.at('pg.server.keepalive', 1, 'stall-before');
    expect(await unready()).toContain('silent');
    postgres.resume();
    await ready();
  });

  it('a pump that is dead: rows arrive and none is handled', async () => {
    await start();
    await ready();
    const unsettled = postgres.at(statement('delete from only "waybill".outbox'), 1, 'stall-before');
    await scene.publish(5);
    await unsettled;
    await relay.kill9();
    postgres.cut();
    postgres.resume();
    // The next one looks rows of the replay zone up before it sends them, and gets no answer.
    const stalled = postgres.at(statement('as i (seq, id) on i.id = o.id'), 1, 'stall-before');
    await start();
    await stalled;
    expect(await unready()).toContain('none was handled');
    postgres.resume();
    await ready();
    await scene.settled();
  });

  it('a broker that answers nothing', async () => {
    await start();
    await ready();
    const stalled = rabbit.at('amqp.server.basic.ack', 1, 'stall-before');
    await scene.publish(5);
    await stalled;
    expect(await unready()).toContain('RabbitMQ has answered nothing');
    rabbit.resume();
    await ready();
    await scene.settled();
  });

  it('a broker that is not there', async () => {
    rabbit.refuse(true);
    await start();
    await relay.waitForLog(({ msg }) => msg.includes('before it had begun to work'), 'the first attempt');
    expect(await unready()).toMatch(/^it cannot work: RabbitMQ cannot be reached/);
    // Whoever may ask is not told addresses.
    expect((await admin.get('/readyz')).body).not.toContain('127.0.0.1');
    rabbit.refuse(false);
    await ready();
  });

  it('source: table, and the table is not read any more', async () => {
    await start({ WAYBILL_RELAY_SOURCE: 'table' });
    await ready();
    await postgres.at(statement("state = 'ready' and hold_no is null and seq >"), 1, 'stall-before');
    expect(await unready()).toMatch(/a read of the table|not polled/);
    postgres.resume();
    await ready();
  });

  /** What readiness says until three more of these have passed, and for long enough that a hang would be told. */
  async function answersDuring(unit: string): Promise<boolean[]> {
    const answers: boolean[] = [];
    const before = postgres.count(unit);
    const endMs = performance.now() + 4 * STALE_AFTER_MS;
    await until(
      async () => {
        answers.push((await admin.ready()).ready);
        return postgres.count(unit) >= before + 3 && performance.now() > endMs;
      },
      { withinMs: 30_000, everyMs: 100, what: `three ${unit}` },
    );
    return answers;
  }

  it('stays ready while it rests', async () => {
    await start();
    await ready();
    expect(new Set(await answersDuring('pg.client.standby_status'))).toEqual(new Set([true]));
  });

  it('stays ready beside a row that somebody keeps locked: the others go on', async () => {
    await start();
    await ready();
    const stalled = rabbit.at('amqp.server.basic.ack', 1, 'stall-before');
    const [id] = await scene.publish(1);
    await stalled;
    const client = await scene.database.connect();
    await client.query('begin');
    await client.query('select from waybill.outbox where id = $1 for update', [id]);
    rabbit.resume();
    const answers = await answersDuring('pg.server.keepalive');
    expect((await scene.database.query('select from waybill.outbox')).length).toBe(1);
    expect(new Set(answers)).toEqual(new Set([true]));
    await client.query('rollback');
    await client.end();
    await scene.settled();
  });

  it('F117 a standby is ready, and active when it has taken over', async () => {
    const first = scene.start({ env: ADMIN_ON });
    await first.waitForPhase('streaming');
    await start();
    await relay.waitForPhase('standby');
    expect(await admin.ready()).toMatchObject({ ready: true, parts: [{ detail: { phase: 'standby' } }] });
    expect(await admin.metric('waybill_relay_active')).toBe(0);
    await first.stop();
    await relay.waitForPhase('streaming');
    await ready();
    expect(await admin.metric('waybill_relay_active')).toBe(1);
  });

  it('F71 a broker that blocks: unready at once, ready again without a restart', async () => {
    const own = await startRabbit({ own: true });
    try {
      const vhost = 'blocked';
      await own.addVhost(vhost);
      relay = scene.start({ brokerUrl: own.url(vhost), env: { ...ADMIN_ON, WAYBILL_RELAY_STALL_TIMEOUT: '5m' } });
      admin = await adminOf(relay);
      await ready();
      await own.alarm(true);
      await scene.publish(5);
      expect(await unready()).toContain('blocks publishing');
      expect(await admin.metric('waybill_broker_blocked')).toBe(1);
      await own.alarm(false);
      await ready();
      expect(await admin.metric('waybill_broker_blocked')).toBe(0);
    } finally {
      await killRelays();
      await own.close();
    }
  });
});
