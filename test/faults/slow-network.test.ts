import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { startFaultProxy, type FaultProxy } from '../support/fault-proxy.js';
import { outboxStage, tally, type OutboxStage } from '../support/outbox-stage.js';
import { killRelays, startRelay, type RelayProcess } from '../support/relay.js';

const WINDOW = 500;

let stage: OutboxStage;
let [database, broker] = [] as unknown as [FaultProxy, FaultProxy];
let relay: RelayProcess;

beforeEach(async () => {
  stage = await outboxStage();
  const { server } = stage.database;
  database = await startFaultProxy({ targetPort: server.port, targetHost: server.host });
  broker = await startFaultProxy({ targetPort: stage.vhost.server.port, targetHost: stage.vhost.server.host });
});
afterEach(async () => {
  await killRelays();
  await Promise.all([database.close(), broker.close()]);
  await stage.drop();
});

function start(): void {
  relay = startRelay({
    databaseUrl: database.url(stage.database.url),
    brokerUrl: broker.url(stage.vhost.url),
    env: { WAYBILL_RELAY_MAX_IN_FLIGHT: String(WINDOW) },
  });
}

describe('a network that is slow, or hands on its bytes strangely', () => {
  it('O4 O5 50 ms of latency on both sides: the window is used and kept, nothing is lost or sent twice', async () => {
    start();
    await relay.waitForPhase('streaming');
    database.delay(50);
    broker.delay(50);
    let [inFlight, most] = [0, 0];
    broker.tap((unit) => {
      if (unit.names.includes('amqp.client.basic.publish')) most = Math.max(most, (inFlight += 1));
    });
    let lastTag = 0n;
    broker.tap((unit) => {
      if (!unit.names.includes('amqp.server.basic.ack')) return;
      const tag = unit.body.readBigUInt64BE(4);
      const multiple = unit.body.readUInt8(12) === 1;
      inFlight -= multiple ? Number(tag - lastTag) : 1;
      if (multiple) lastTag = tag;
      else lastTag += 1n;
    });
    const began = performance.now();
    const rows = await stage.write(3_000, { together: true });
    await stage.emptied();
    // One at a time, each with its way there and back, they would take 300 s.
    expect(performance.now() - began).toBeLessThan(60_000);
    expect(most).toBeGreaterThan(WINDOW / 5);
    expect(most).toBeLessThanOrEqual(WINDOW);
    expect(await relay.stop()).toBe(0);
    expect(tally(rows, await stage.taken())).toEqual({
      ...{ lost: 0, phantom: 0, differing: [], duplicates: 0 },
      inOrder: true,
    });
  });

  it.each(['dribble', 'burst'] as const)(
    'F87 frames of both protocols that come as a %s are put together',
    async (flow) => {
      const early = await stage.write(50, { padding: 300 });
      database.flood(flow);
      broker.flood(flow);
      start();
      await relay.waitForPhase('streaming', 60_000);
      early.push(...(await stage.write(150, { padding: 100 })));
      await stage.emptied(90_000);
      expect(await relay.stop()).toBe(0);
      expect(relay.log.filter((line) => line.level === 'error' || line.level === 'warn')).toEqual([]);
      expect(tally(early, await stage.taken())).toEqual({
        ...{ lost: 0, phantom: 0, differing: [], duplicates: 0 },
        inOrder: true,
      });
    },
  );

  it('F48 a log that cannot be decoded, told in one chunk with the start of the stream: a new slot and the table heal it', async () => {
    start();
    await relay.waitForPhase('streaming');
    expect(await relay.stop()).toBe(0);
    await stage.database.query('alter table waybill.outbox drop column tracestate');
    const [bare] = await stage.database.query<{ id: string; body: string }>(
      `insert into waybill.outbox (type, payload) values ('order.paid', '1') returning id, payload::text as body`,
    );
    await stage.database.query('alter table waybill.outbox add column tracestate text');
    const rows = [...(bare ? [bare] : []), ...(await stage.write(5))];
    database.flood('burst');
    start();
    await stage.emptied(50_000);
    expect(await relay.stop()).toBe(0);
    expect(tally(rows, await stage.taken())).toMatchObject({ lost: 0, phantom: 0, differing: [], inOrder: true });
  });
});
