import { readFile } from 'node:fs/promises';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { outboxStage, tally, type OutboxStage } from '../support/outbox-stage.js';
import { killRelays, startRelay, type RelayProcess } from '../support/relay.js';
import { startRabbit } from '../support/servers/rabbit.js';
import type { RabbitServer } from '../support/servers/rabbit-server.js';
import { until } from '../support/waiting.js';

const WINDOW = 200;
const noLoss = { lost: 0, phantom: 0, differing: [] };

describe('a broker that dies, freezes or blocks', () => {
  let rabbit: RabbitServer;
  let stage: OutboxStage;
  let relay: RelayProcess;

  beforeAll(async () => {
    rabbit = await startRabbit({ own: true });
  });
  afterAll(async () => {
    await rabbit.close();
  });
  afterEach(async () => {
    await killRelays();
    await stage.drop();
  });

  async function begin(env: Record<string, string> = {}, queueArguments?: Record<string, unknown>): Promise<void> {
    stage = await outboxStage({ rabbit, ...(queueArguments ? { queueArguments } : {}) });
    relay = startRelay({
      databaseUrl: stage.database.url,
      brokerUrl: stage.vhost.url,
      env: { WAYBILL_RELAY_MAX_IN_FLIGHT: String(WINDOW), ...env },
    });
    await relay.waitForPhase('streaming');
  }
  const published = async (): Promise<number> =>
    (await stage.database.query<{ n: number }>('select count(*)::int as n from waybill.outbox_history'))[0]?.n ?? 0;

  const quorum = { 'x-queue-type': 'quorum' };

  it.each([
    ['quorum', quorum],
    ['classic durable', undefined],
  ])(
    'F68 F69 fact 45 kill -9 and start of the broker under load, %s queue: nothing lost',
    async (_, queueArguments) => {
      await begin({}, queueArguments);
      await rabbit.flushDeclarations();
      const load = stage.write(6_000);
      await until(async () => (await published()) > 1_000, { what: 'the load to run', withinMs: 30_000 });
      await rabbit.kill9();
      await relay.waitForLog((line) => line.msg.startsWith('the relay session ended'), 'the end of the session');
      await rabbit.start();
      const written = await load;
      await stage.emptied();
      expect(await relay.stop()).toBe(0);
      expect(relay.noise).toEqual([]);
      const result = tally(written, await stage.taken());
      expect(result).toMatchObject(noLoss);
      expect(result.duplicates).toBeLessThanOrEqual(5 * WINDOW);
    },
  );

  it('F70 F21 a quorum queue without a leader confirms nothing: the relay lets go of PostgreSQL, and all arrives when it answers', async () => {
    await begin({ WAYBILL_RELAY_STALL_TIMEOUT: '1s' }, quorum);
    const leader = `whereis('${new URL(stage.vhost.url).pathname.slice(1)}_${stage.queue}')`;
    await rabbit.ctl('eval', `ok = sys:suspend(${leader}).`);
    const written = await stage.write(300);
    const line = await relay.waitForLog((each) => each.msg.startsWith('the relay session ended'), 'the end', 30_000);
    expect(line['err']).toMatchObject({ code: 'WAYBILL_BROKER_STALLED' });
    expect(String((line['err'] as { hint?: string }).hint)).toContain('quorum_status');
    await rabbit.ctl('eval', `ok = sys:resume(${leader}).`);
    await stage.emptied();
    expect(await relay.stop()).toBe(0);
    const result = tally(written, await stage.taken());
    expect(result).toMatchObject(noLoss);
    expect(result.duplicates).toBeLessThanOrEqual(5 * WINDOW);
  });

  it('F86 fact 35 a frozen broker is noticed by its heartbeats, and the relay goes on when it is back', async () => {
    await begin({ WAYBILL_BROKER_HEARTBEAT: '1s', WAYBILL_BROKER_CONNECT_TIMEOUT: '1s' });
    const before = await stage.write(500);
    await rabbit.pause();
    const during = await stage.write(500);
    const line = await relay.waitForLog((each) => each.msg.startsWith('the relay session ended'), 'the end', 30_000);
    expect(line['err']).toMatchObject({ code: 'WAYBILL_BROKER_UNAVAILABLE' });
    // Nobody streams while there is no broker to publish to.
    await until(
      async () =>
        (
          await stage.database.query(
            'select from pg_replication_slots where database = current_database() and not active',
          )
        ).length === 1,
      { what: 'the slot to be let go', withinMs: 20_000 },
    );
    await rabbit.resume();
    await stage.emptied();
    expect(await relay.stop()).toBe(0);
    const result = tally([...before, ...during], await stage.taken());
    expect(result).toMatchObject(noLoss);
    expect(result.duplicates).toBeLessThanOrEqual(5 * WINDOW);
  });

  it('F71 fact 33 under a memory alarm 50,000 rows wait without filling the relay; then all arrive', async () => {
    await begin({ WAYBILL_RELAY_MAX_IN_FLIGHT: '2000' });
    await stage.write(2_000);
    await stage.emptied();
    const residentMiB = async (): Promise<number> => {
      const status = await readFile(`/proc/${relay.pid}/status`, 'utf8');
      return Number(/VmRSS:\s+(\d+) kB/.exec(status)?.[1]) / 1024;
    };
    await rabbit.alarm(true);
    await stage.write(1);
    await relay.waitForLog((line) => line.msg.startsWith('RabbitMQ blocks publishing'), 'the alarm');
    const before = await residentMiB();
    await stage.database.query(
      `insert into waybill.outbox (type, payload)
       select 'order.paid', ('"' || n || ':' || repeat('x', 2000) || '"')::json from generate_series(1, 50000) n`,
    );
    let most = 0;
    let looksAtRest = 0;
    // What waits must not be read either: the server's send buffer fills, and then nothing grows any more.
    await until(
      async () => {
        const now = await residentMiB();
        looksAtRest = now > most + 1 ? 0 : looksAtRest + 1;
        most = Math.max(most, now);
        return looksAtRest >= 4;
      },
      { what: 'the memory of the relay to come to rest', withinMs: 40_000, everyMs: 1_500 },
    );
    // 100 MB wait; 4 MB are in the window and 4 MB in the queue before it.
    expect(most - before).toBeLessThan(70);
    expect(relay.log.filter((line) => line.msg.startsWith('RabbitMQ blocks'))).toHaveLength(1);
    await rabbit.alarm(false);
    await relay.waitForLog((line) => line.msg.startsWith('RabbitMQ takes messages again'), 'the end of the alarm');
    await stage.emptied();
    expect(await relay.stop()).toBe(0);
    const { messageCount } = await stage.broker((channel) => channel.checkQueue(stage.queue));
    expect(messageCount).toBe(52_001);
    expect(await published()).toBe(52_001);
  });

  it('F71 F21 F130 a long alarm: the relay lets go of PostgreSQL, waits for the broker and comes back', async () => {
    await begin({ WAYBILL_RELAY_STALL_TIMEOUT: '1s' });
    await rabbit.alarm(true);
    const written = await stage.write(300);
    await relay.waitForPhase('waiting-for-broker', 30_000);
    const slots = await stage.database.query<{ active: boolean }>(
      'select active from pg_replication_slots where database = current_database()',
    );
    expect(slots).toEqual([{ active: false }]);
    await rabbit.alarm(false);
    await relay.waitForPhase('streaming');
    await stage.emptied();
    expect(await relay.stop()).toBe(0);
    const result = tally(written, await stage.taken());
    expect(result).toMatchObject(noLoss);
    expect(result.duplicates).toBeLessThanOrEqual(WINDOW);
  });

  describe('SIGTERM while the broker is blocked', () => {
    beforeEach(async () => {
      await begin({ WAYBILL_RELAY_DRAIN_TIMEOUT: '2s' });
      await rabbit.alarm(true);
      // More than the window holds.
      await stage.write(300);
      await relay.waitForLog((line) => line.msg.startsWith('RabbitMQ blocks publishing'), 'the alarm');
    });
    afterEach(() => rabbit.alarm(false));

    const said = (): string => [...relay.log.map((line) => JSON.stringify(line)), ...relay.noise].join('\n');

    it('F9 F112 at the deadline it ends with exit code 1 and says what was left; the next relay sends it', async () => {
      expect(await relay.stop()).toBe(1);
      expect(said()).toMatch(/messages unconfirmed: the drain timeout passed/);
      expect(said()).toMatch(/Nothing is lost/);
      await rabbit.alarm(false);
      const next = startRelay({ databaseUrl: stage.database.url, brokerUrl: stage.vhost.url });
      await next.waitForPhase('streaming');
      await stage.emptied();
      expect(await next.stop()).toBe(0);
      expect(new Set((await stage.taken()).map((each) => each.id)).size).toBe(300);
    });

    it('F112 a second SIGTERM ends it at once, with exit code 1', async () => {
      relay.signal('SIGTERM');
      await relay.waitForPhase('draining');
      relay.signal('SIGTERM');
      expect(await relay.exited).toBe(1);
      expect(said()).toMatch(/a second signal came/);
    });
  });
});
