import { randomUUID } from 'node:crypto';
import * as amqp from 'amqplib';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { outboxStage, type OutboxStage } from '../support/outbox-stage.js';
import { killRelays, startRelay } from '../support/relay.js';
import { until } from '../support/waiting.js';

const ROWS = 300;
const EVERY_MS = 10;

describe('latency', () => {
  let stage: OutboxStage;

  beforeEach(async () => {
    stage = await outboxStage();
  });
  afterEach(async () => {
    await killRelays();
    await stage.drop();
  });

  it('at 100 rows a second the median from commit to consumer is a few milliseconds: no timer stands in the way', async () => {
    const relay = startRelay({ databaseUrl: stage.database.url, brokerUrl: stage.vhost.url });
    await relay.waitForPhase('streaming');
    const committed = new Map<string, number>();
    const arrived = new Map<string, number>();
    const connection = await amqp.connect(stage.vhost.url);
    try {
      const channel = await connection.createChannel();
      await channel.consume(
        stage.queue,
        (message) => void arrived.set(String(message?.properties.messageId), performance.now()),
        { noAck: true },
      );
      const client = await stage.database.connect();
      const began = performance.now();
      for (let n = 0; n < ROWS; n += 1) {
        await until(() => performance.now() >= began + n * EVERY_MS, { everyMs: 1, what: 'the time of the next row' });
        const id = randomUUID();
        await client.query("insert into waybill.outbox (id, type, payload) values ($1, 'tick', '{}')", [id]);
        committed.set(id, performance.now());
      }
      await until(() => arrived.size >= ROWS, { what: 'all rows to arrive' });
    } finally {
      await connection.close();
    }
    const latencies = [...committed].map(([id, at]) => (arrived.get(id) ?? Infinity) - at).sort((a, b) => a - b);
    const median = latencies[ROWS / 2] ?? Infinity;
    // A poll or a batch timer of 200 ms would give 100; other work shares this machine.
    expect(median).toBeLessThan(25);
    expect(await relay.stop()).toBe(0);
  });
});
