import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { sharedRabbit } from '../support/broker.js';
import { startFaultProxy, type FaultProxy } from '../support/fault-proxy.js';
import { outboxStage, tally, type OutboxStage } from '../support/outbox-stage.js';
import { killRelays, startRelay, type RelayProcess } from '../support/relay.js';
import { until, within } from '../support/waiting.js';

const WINDOW = 60;
const noLoss = { lost: 0, phantom: 0, differing: [] };

describe('the way to the broker', () => {
  let proxy: FaultProxy;
  let stage: OutboxStage;
  let relay: RelayProcess;

  beforeAll(async () => {
    proxy = await startFaultProxy({ targetPort: sharedRabbit().port });
  });
  afterAll(() => proxy.close());
  beforeEach(async () => {
    stage = await outboxStage();
  });
  afterEach(async () => {
    await killRelays();
    proxy.cut();
    proxy.resume();
    await stage.drop();
  });

  async function start(env: Record<string, string> = {}): Promise<void> {
    relay = startRelay({
      databaseUrl: stage.database.url,
      brokerUrl: proxy.url(stage.vhost.url),
      env: { WAYBILL_RELAY_MAX_IN_FLIGHT: String(WINDOW), WAYBILL_BROKER_CONNECT_TIMEOUT: '2s', ...env },
    });
    await relay.waitForPhase('streaming');
  }
  const sessionsEnded = () => relay.log.filter((line) => line.msg.startsWith('the relay session ended'));

  it('F88 F89 fact 31 cut at an ack under load, again and again: unknown is sent again, nothing is lost', async () => {
    await start();
    const load = stage.write(4_000);
    const cuts = [
      [1, 'cut-before'],
      [3, 'cut-after'],
      [9, 'cut-before'],
      [20, 'cut-after'],
    ] as const;
    for (const [nth, action] of cuts) {
      await within(proxy.at('amqp.server.basic.ack', nth, action), 30_000, `ack ${nth}`);
      await until(() => relay.phase() !== 'streaming', { what: 'the session to end', withinMs: 20_000 });
      await relay.waitForPhase('streaming');
    }
    const written = await load;
    await stage.emptied();
    expect(await relay.stop()).toBe(0);
    const result = tally(written, await stage.taken());
    expect(result).toMatchObject(noLoss);
    expect(result.duplicates).toBeGreaterThan(0);
    expect(result.duplicates).toBeLessThanOrEqual(cuts.length * 5 * WINDOW);
    expect(sessionsEnded()).toHaveLength(cuts.length);
  });

  it('F87 a cut in the middle of a body: the broker drops the half, the relay sends it whole', async () => {
    await start();
    const sprung = proxy.at('amqp.client.body', 10, 'cut-before');
    const written = await stage.write(40, { padding: 300_000 });
    await sprung;
    await stage.emptied();
    expect(await relay.stop()).toBe(0);
    expect(tally(written, await stage.taken())).toMatchObject(noLoss);
  });

  it('F70 F87 confirms that stop coming: after the confirm timeout the connection is given up and all is sent again', async () => {
    await start({ WAYBILL_RELAY_CONFIRM_TIMEOUT: '1s', WAYBILL_BROKER_HEARTBEAT: '3s' });
    const sprung = proxy.at('amqp.server.basic.ack', 2, 'stall-before');
    const written = await stage.write(500);
    await sprung;
    const line = await relay.waitForLog((each) => each.msg.startsWith('the relay session ended'), 'the end', 30_000);
    expect(line['err']).toMatchObject({ code: 'WAYBILL_BROKER_STALLED' });
    // The black hole still holds the lock queue, until the broker misses its heartbeats (3 s).
    await stage.emptied();
    expect(await relay.stop()).toBe(0);
    const result = tally(written, await stage.taken());
    expect(result).toMatchObject(noLoss);
    expect(result.duplicates).toBeLessThanOrEqual(5 * WINDOW);
  });

  it('F86 F87 fact 34 a black hole is noticed by heartbeats, and again while connecting; then it goes on', async () => {
    await start({ WAYBILL_BROKER_HEARTBEAT: '1s' });
    const sprung = proxy.at('amqp.server.basic.ack', 2, 'stall-before', { scope: 'all' });
    const written = await stage.write(500);
    await sprung;
    // The second one: a connection attempt into the hole has timed out.
    await until(() => sessionsEnded().length >= 2, { what: 'two sessions to end', withinMs: 40_000 });
    for (const line of sessionsEnded()) expect(line['err']).toMatchObject({ code: 'WAYBILL_BROKER_UNAVAILABLE' });
    proxy.cut();
    proxy.resume();
    await stage.emptied();
    expect(await relay.stop()).toBe(0);
    expect(relay.noise).toEqual([]);
    expect(tally(written, await stage.taken())).toMatchObject(noLoss);
  });

  it('F92 connections closed by an operator: back at once, nothing lost', async () => {
    await start();
    const load = stage.write(2_000);
    await until(() => proxy.count('amqp.server.basic.ack') > 0, { what: 'traffic' });
    await stage.vhost.server.ctl('close_all_connections', '-p', stage.vhost.name, 'maintenance');
    const line = await relay.waitForLog((each) => each.msg.startsWith('the relay session ended'), 'the end');
    expect(line['err']).toMatchObject({ message: expect.stringContaining('maintenance') as unknown });
    const written = await load;
    await stage.emptied();
    expect(await relay.stop()).toBe(0);
    expect(tally(written, await stage.taken())).toMatchObject(noLoss);
  });

  it('F68 F69 a broker that refuses connections for a while is tried again with growing delays', async () => {
    await start();
    proxy.refuse(true);
    proxy.cut();
    await until(() => sessionsEnded().length >= 4, { what: 'four attempts', withinMs: 30_000 });
    const delays = sessionsEnded().map((line) => Number(line['retryInMs']));
    expect(delays[3]).toBeGreaterThan(delays[0] ?? Infinity);
    const written = await stage.write(100);
    proxy.refuse(false);
    await stage.emptied();
    expect(await relay.stop()).toBe(0);
    expect(tally(written, await stage.taken())).toEqual({ ...noLoss, duplicates: 0, inOrder: true });
  });
});
