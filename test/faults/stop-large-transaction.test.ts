import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { outboxStage, type OutboxStage } from '../support/outbox-stage.js';
import { killRelays, startRelay } from '../support/relay.js';
import { until } from '../support/waiting.js';

const ROWS = 150_000;

describe('a stop in the middle of a large transaction', () => {
  let stage: OutboxStage;

  beforeEach(async () => {
    stage = await outboxStage();
  });
  afterEach(async () => {
    await killRelays();
    await stage.drop();
  });

  const arrived = async (): Promise<number> =>
    (await stage.broker((channel) => channel.checkQueue(stage.queue))).messageCount;

  it('F112 F45 F5: SIGTERM takes no more in, settles what is published and ends with 0; the next relay sends the rest once', async () => {
    const relay = startRelay({ databaseUrl: stage.database.url, brokerUrl: stage.vhost.url });
    await relay.waitForPhase('streaming');
    await stage.database.query(
      `insert into waybill.outbox (type, key, payload)
       select 'bulk', 'k' || n % 100, json_build_object('n', n) from generate_series(1, $1::int) n`,
      [ROWS],
    );
    await until(async () => (await arrived()) > 20_000, { what: 'a part to be published', withinMs: 60_000 });
    const began = performance.now();
    expect(await relay.stop()).toBe(0);
    expect(performance.now() - began).toBeLessThan(20_000);
    expect(relay.log.some((line) => line.msg === 'Stopped; nothing was left in flight.')).toBe(true);
    // What was published is settled, although the position cannot move before the transaction's end.
    const published = await arrived();
    expect(published).toBeLessThan(ROWS);
    expect(await stage.pending()).toBe(ROWS - published);
    const next = startRelay({ databaseUrl: stage.database.url, brokerUrl: stage.vhost.url });
    await stage.emptied(120_000);
    expect(await arrived()).toBe(ROWS);
    expect(await next.stop()).toBe(0);
  }, 300_000);
});
