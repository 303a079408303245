import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { startFaultProxy } from '../support/fault-proxy.js';
import { outboxStage, tally, type OutboxStage, type WrittenRow } from '../support/outbox-stage.js';
import { killRelays, startRelay, type RelayProcess } from '../support/relay.js';
import type { RabbitServer } from '../support/servers/rabbit-server.js';
import { startRabbit } from '../support/servers/rabbit.js';
import { until } from '../support/waiting.js';
import { connectionClose } from '../support/wire/amqp-frames.js';

/** A routing key of the direct reply-to that names a process nobody can decode: RabbitMQ's channel process crashes. */
const CRASHING = { exchange: '', routing_key: 'amq.rabbitmq.reply-to.g2dkABByZXBseUA.x==' };

let stage: OutboxStage;

async function parkedReasons(): Promise<Map<string, string>> {
  const rows = await stage.database.query<{ id: string; last_error: string }>(
    `select id, last_error from waybill.outbox where state = 'parked'`,
  );
  return new Map(rows.map((row) => [row.id, row.last_error]));
}

/** Waits until these and no others are left, parked for having closed the connection with this reply code. */
async function onlyParked(bad: readonly WrittenRow[], code: number): Promise<void> {
  const isDone = async (): Promise<boolean> =>
    (await stage.pending()) === bad.length && (await stage.pending('parked')) === bad.length;
  await until(isDone, { what: 'only the bad rows to stay', withinMs: 60_000 });
  const parked = await parkedReasons();
  expect([...parked.keys()].sort()).toEqual(bad.map(({ id }) => id).sort());
  for (const reason of parked.values()) {
    expect(reason).toContain('refused_by_broker: RabbitMQ closed the connection 3 times');
    expect(reason).toContain(String(code));
  }
}

/** How many sessions a close of the connection has ended. */
function closes(relay: RelayProcess): number {
  return relay.log.filter(
    (line) => (line['err'] as { code?: string } | undefined)?.code === 'WAYBILL_CONNECTION_CLOSED',
  ).length;
}

describe('messages over which the broker closes the whole connection', () => {
  beforeEach(async () => {
    stage = await outboxStage();
  });
  afterEach(async () => {
    await killRelays();
    await stage.drop();
  });

  it('F72 F78 a message that crashes the channel (541) is parked alone; in a window of others, from the log and the table', async () => {
    const early = await stage.write(300);
    const bad = await stage.write(1, { columns: CRASHING });
    early.push(...(await stage.write(300)));
    // The first start reads the table.
    const relay = startRelay({ databaseUrl: stage.database.url, brokerUrl: stage.vhost.url });
    await onlyParked(bad, 541);
    expect(closes(relay)).toBeLessThanOrEqual(4);
    const before = closes(relay);
    const late = await stage.write(200, { together: true });
    bad.push(...(await stage.write(1, { columns: CRASHING })));
    late.push(...(await stage.write(200, { together: true })));
    await onlyParked(bad, 541);
    expect(closes(relay) - before).toBeLessThanOrEqual(4);
    expect(await relay.stop()).toBe(0);
    expect(tally([...early, ...late], await stage.taken())).toMatchObject({
      lost: 0,
      phantom: 0,
      differing: [],
      inOrder: true,
    });
  });

  it('F72 F78 two that do it at once are both found, and nobody else is parked', async () => {
    const relay = startRelay({ databaseUrl: stage.database.url, brokerUrl: stage.vhost.url });
    await relay.waitForPhase('streaming');
    const good = await stage.write(100, { together: true });
    const bad = await stage.write(1, { columns: CRASHING });
    good.push(...(await stage.write(100, { together: true })));
    bad.push(...(await stage.write(1, { columns: CRASHING })));
    good.push(...(await stage.write(100, { together: true })));
    await onlyParked(bad, 541);
    expect(closes(relay)).toBeLessThanOrEqual(8);
    expect(await relay.stop()).toBe(0);
    expect(tally(good, await stage.taken())).toMatchObject({ lost: 0, phantom: 0, differing: [], inOrder: true });
  });

  it.each([501, 505, 541])(
    'F72 F78 a broker that closes the connection with %i over one message: it is parked, the rest goes on',
    async (code) => {
      const proxy = await startFaultProxy({ targetPort: stage.vhost.server.port, targetHost: stage.vhost.server.host });
      const rows = await stage.write(60);
      const [bad] = rows.splice(30, 1);
      const id = bad?.id ?? '';
      const end = proxy.every((unit) => unit.names.includes('amqp.client.header') && unit.bytes.includes(id), {
        answer: connectionClose(code, 'POISON'),
      });
      const relay = startRelay({ databaseUrl: stage.database.url, brokerUrl: proxy.url(stage.vhost.url) });
      await onlyParked(bad ? [bad] : [], code);
      expect(closes(relay)).toBeLessThanOrEqual(4);
      end();
      expect(await relay.stop()).toBe(0);
      expect(tally(rows, await stage.taken())).toMatchObject({ lost: 0, phantom: 0, differing: [], inOrder: true });
      await proxy.close();
    },
  );

  it('F92 an operator who closes connections (320) makes nobody a suspect', async () => {
    const relay = startRelay({ databaseUrl: stage.database.url, brokerUrl: stage.vhost.url });
    await relay.waitForPhase('streaming');
    const rows: WrittenRow[] = [];
    for (let round = 0; round < 5; round += 1) {
      const writing = stage.write(300);
      await stage.vhost.server.ctl('close_all_connections', '--vhost', stage.vhost.name, 'maintenance');
      rows.push(...(await writing));
    }
    await stage.emptied();
    expect(closes(relay)).toBe(0);
    expect(await relay.stop()).toBe(0);
    expect(tally(rows, await stage.taken())).toMatchObject({ lost: 0, phantom: 0, differing: [] });
  });
});

describe('a broker with small limits', () => {
  let rabbit: RabbitServer;
  beforeAll(async () => {
    rabbit = await startRabbit({ own: true, settings: { frame_max: 8192, max_message_size: 100_000 } });
    stage = await outboxStage({ rabbit });
  });
  afterAll(async () => {
    await killRelays();
    await stage.drop();
    await rabbit.close();
  });

  it('F79 headers that fit no frame (501 FRAME_ERROR) are parked; their neighbours and large bodies arrive', async () => {
    const rows = await stage.write(50);
    const headers = JSON.stringify({ long: 'x'.repeat(9_000) });
    const bad = await stage.write(1, { columns: { headers } });
    rows.push(...(await stage.write(50, { padding: 20_000 })));
    const relay = startRelay({ databaseUrl: stage.database.url, brokerUrl: stage.vhost.url });
    await onlyParked(bad, 501);
    expect(closes(relay)).toBeLessThanOrEqual(4);
    expect(await relay.stop()).toBe(0);
    expect(tally(rows, await stage.taken())).toMatchObject({ lost: 0, phantom: 0, differing: [], inOrder: true });
  });

  it('F47 F78 a body that the broker does not take (406), though we would, is parked; its neighbours arrive', async () => {
    await stage.database.query('delete from waybill.outbox');
    const before = await stage.taken();
    const rows = await stage.write(20);
    const large = await stage.write(2, { padding: 200_000 });
    rows.push(...(await stage.write(20)));
    const relay = startRelay({ databaseUrl: stage.database.url, brokerUrl: stage.vhost.url });
    const isDone = async (): Promise<boolean> => (await stage.pending()) === 2 && (await stage.pending('parked')) === 2;
    await until(isDone, { what: 'the large rows alone to stay', withinMs: 60_000 });
    const parked = await parkedReasons();
    expect([...parked.keys()].sort()).toEqual(large.map(({ id }) => id).sort());
    for (const reason of parked.values()) expect(reason).toMatch(/406.*larger than configured max size/);
    expect(closes(relay)).toBe(0);
    expect(await relay.stop()).toBe(0);
    const known = new Set(before.map((message) => message.id));
    const messages = (await stage.taken()).filter((message) => !known.has(message.id));
    expect(tally(rows, messages)).toMatchObject({ lost: 0, phantom: 0, differing: [], inOrder: true });
  });
});
