import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { outboxStage, tally, type OutboxStage } from '../support/outbox-stage.js';
import { killRelays, startRelay } from '../support/relay.js';
import { until } from '../support/waiting.js';

describe('SIGTERM', () => {
  let stage: OutboxStage;

  beforeEach(async () => {
    stage = await outboxStage();
  });
  afterEach(async () => {
    await killRelays();
    await stage.drop();
  });

  const published = async (): Promise<number> =>
    (await stage.database.query<{ n: number }>('select count(*)::int as n from waybill.outbox_history'))[0]?.n ?? 0;

  it('F112 under load, six times over: drains, exit code 0, and the next one begins without a duplicate', async () => {
    const load = stage.write(9_000);
    for (let round = 0; round < 6; round += 1) {
      const relay = startRelay({
        databaseUrl: stage.database.url,
        brokerUrl: stage.vhost.url,
        env: { WAYBILL_RELAY_MAX_IN_FLIGHT: '100' },
      });
      await relay.waitForPhase('streaming');
      const before = await published();
      await until(async () => (await published()) > before, { what: 'the relay to work', withinMs: 20_000 });
      expect(await relay.stop()).toBe(0);
      expect(relay.noise).toEqual([]);
    }
    const written = await load;
    const last = startRelay({ databaseUrl: stage.database.url, brokerUrl: stage.vhost.url });
    await last.waitForPhase('streaming');
    await stage.emptied();
    expect(await last.stop()).toBe(0);
    expect(tally(written, await stage.taken())).toEqual({
      lost: 0,
      phantom: 0,
      differing: [],
      duplicates: 0,
      inOrder: true,
    });
  });
});
