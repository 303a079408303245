import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { startBrokerProbe } from '../support/broker-probe.js';
import { startFaultProxy } from '../support/fault-proxy.js';
import { EXCHANGE, outboxStage, tally, type OutboxStage } from '../support/outbox-stage.js';
import { sharedRabbit } from '../support/broker.js';
import { killRelays, startRelay, type RelayProcess } from '../support/relay.js';
import { until } from '../support/waiting.js';

const noLoss = { lost: 0, phantom: 0, differing: [] };

describe('rows that no queue takes, or not now', () => {
  let stage: OutboxStage;
  let relay: RelayProcess;

  beforeEach(async () => {
    stage = await outboxStage();
  });
  afterEach(async () => {
    await killRelays();
    await stage.drop();
  });

  async function start(env: Record<string, string> = {}, brokerUrl = stage.vhost.url): Promise<void> {
    relay = startRelay({ databaseUrl: stage.database.url, brokerUrl, env });
    await relay.waitForPhase('streaming');
  }
  const unbind = (): Promise<unknown> => stage.broker((channel) => channel.unbindQueue(stage.queue, EXCHANGE, '#'));
  const bind = (): Promise<unknown> => stage.broker((channel) => channel.bindQueue(stage.queue, EXCHANGE, '#'));
  const rows = (): Promise<Record<string, unknown>[]> =>
    stage.database.query(
      `select id, state, attempts, last_error, next_attempt_at - clock_timestamp() < interval '61 s' as soon
       from waybill.outbox order by seq`,
    );
  const outcomes = (): Promise<Record<string, unknown>[]> =>
    stage.database.query('select outcome, count(*)::int as n from waybill.outbox_history group by outcome');

  it('F73 F91 O3 fact 30 the return comes before the ack: kept with a backoff, delivered once a queue is bound', async () => {
    const proxy = await startFaultProxy({ targetPort: sharedRabbit().port });
    const frames: string[] = [];
    await unbind();
    await start({}, proxy.url(stage.vhost.url));
    proxy.tap(({ names: [name = ''] }) => {
      if (name === 'amqp.server.basic.return' || name === 'amqp.server.basic.ack') frames.push(name.slice(18));
    });
    const written = await stage.write(20, { type: 'nobody.listens' });
    await until(async () => (await stage.pending('scheduled')) === 20, { what: 'the rows to wait', withinMs: 20_000 });
    expect(frames.indexOf('return')).toBeLessThan(frames.indexOf('ack'));
    expect(frames.indexOf('return')).toBeGreaterThanOrEqual(0);
    const [first] = await rows();
    expect(first).toMatchObject({ state: 'scheduled', soon: true });
    expect(first?.['last_error']).toMatch(/^unroutable: .*312 NO_ROUTE.*waybill\.events.*nobody\.listens/);
    // A second failure at least: the backoff spends attempts.
    const again = async (): Promise<boolean> => (await rows()).every((row) => Number(row['attempts']) >= 2);
    await until(again, { what: 'a second attempt', withinMs: 20_000 });
    await bind();
    await stage.emptied();
    expect(await relay.stop()).toBe(0);
    expect(tally(written, await stage.taken())).toMatchObject({ ...noLoss, duplicates: 0 });
    expect(await outcomes()).toEqual([{ outcome: 'published', n: 20 }]);
    await proxy.close();
  });

  it('F73 an unroutable row is parked when its time is over, and never counts as published', async () => {
    await unbind();
    await start({ WAYBILL_RELAY_ON_UNROUTABLE_RETRY_FOR: '1s' });
    const [row] = await stage.write(1);
    await until(async () => (await stage.pending('parked')) === 1, { what: 'the row to be parked', withinMs: 30_000 });
    expect(await rows()).toMatchObject([
      { id: row?.id, state: 'parked', attempts: 2, last_error: expect.stringContaining('unroutable') as unknown },
    ]);
    await bind();
    const [later] = await stage.write(1);
    await until(async () => (await stage.pending()) === 1, { what: 'a later row to go out', withinMs: 20_000 });
    expect(await relay.stop()).toBe(0);
    expect((await stage.taken()).map((each) => each.id)).toEqual([later?.id]);
    expect(await outcomes()).toEqual([{ outcome: 'published', n: 1 }]);
  });

  it('F73 with `then: accept` an unroutable row leaves the outbox as accepted', async () => {
    await unbind();
    await start({ WAYBILL_RELAY_ON_UNROUTABLE_RETRY_FOR: '0s', WAYBILL_RELAY_ON_UNROUTABLE_THEN: 'accept' });
    await stage.write(10);
    await stage.emptied();
    expect(await outcomes()).toEqual([{ outcome: 'accepted', n: 10 }]);
    expect(await relay.stop()).toBe(0);
  });

  it('F75 F76 nacks of a full queue are back-pressure: no attempt spent, all delivered once there is room', async () => {
    await stage.broker(async (channel) => {
      await channel.unbindQueue(stage.queue, EXCHANGE, '#');
      await channel.assertQueue('narrow', { arguments: { 'x-max-length': 5, 'x-overflow': 'reject-publish' } });
      await channel.bindQueue('narrow', EXCHANGE, '#');
    });
    const proxy = await startFaultProxy({ targetPort: sharedRabbit().port });
    await start({}, proxy.url(stage.vhost.url));
    const written = await stage.write(40);
    await until(() => proxy.count('amqp.server.basic.nack') > 3, { what: 'nacks', withinMs: 20_000 });
    await until(async () => (await stage.pending('scheduled')) > 0, {
      what: 'rows to wait in the table',
      withinMs: 60_000,
    });
    const waiting = await rows();
    expect(waiting.find((row) => row['state'] === 'scheduled')).toMatchObject({
      attempts: 0,
      last_error: expect.stringContaining('reject-publish') as unknown,
    });
    expect(await stage.pending('parked')).toBe(0);
    // A consumer comes: the queue moves again.

    const probe = await startBrokerProbe({
      url: stage.vhost.url,
      queue: 'narrow',
      arguments: { 'x-max-length': 5, 'x-overflow': 'reject-publish' },
    });
    await stage.emptied(60_000);
    await probe.waitForDistinct(40, 10_000);
    expect(await relay.stop()).toBe(0);
    expect(tally(written, probe.messages)).toMatchObject({ ...noLoss, duplicates: 0 });
    await probe.close();
    await proxy.close();
  });
});
