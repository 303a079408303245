/**
 * How fast consumers take messages in: `store`, `sql` clean, and `sql` with a tenth of poison, from a full quorum queue to
 * an empty one. Usage: npx tsx test/bench/receiver.ts [messages]
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as amqp from 'amqplib';
import pg from 'pg';
import { migrateUp } from '../../src/postgres/migrations.js';
import { LEDGER } from '../support/ledger.js';
import { killRelays, startRelay } from '../support/relay.js';
import { startPostgres } from '../support/servers/postgres.js';
import { startRabbit } from '../support/servers/rabbit.js';
import { until } from '../support/waiting.js';

const MESSAGES = Number(process.argv[2] ?? 100_000);
const LONG = { withinMs: 900_000, everyMs: 50 };

const [postgres, rabbit] = await Promise.all([startPostgres({ durable: true }), startRabbit()]);
const folder = mkdtempSync(join(tmpdir(), 'waybill-bench-'));
try {
  const client = new pg.Client({ connectionString: postgres.url() });
  client.on('error', () => undefined);
  await client.connect();
  await migrateUp(client);
  await client.query(LEDGER);

  /** Fills the queue while nobody consumes, then takes everything in. */
  async function measure(what: string, name: string, handler: string, poison: number): Promise<number> {
    const file = join(folder, `${name}.yaml`);
    writeFileSync(
      file,
      `relay: false\nconsumers:\n  ${name}:\n    handler: ${handler}\n    retry: { delays: [1s, 2s], maxAttempts: 3 }\n`,
    );
    const options = {
      databaseUrl: postgres.url(),
      brokerUrl: rabbit.url(),
      env: { WAYBILL_CONFIG: file, WAYBILL_LOG_LEVEL: 'error' },
    };
    const declaring = startRelay({ ...options, env: { ...options.env, WAYBILL_LOG_LEVEL: 'info' } });
    await declaring.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    await declaring.stop();
    const broker = await amqp.connect(rabbit.url());
    const channel = await broker.createConfirmChannel();
    for (let n = 0; n < MESSAGES; n += 1) {
      const bad = poison > 0 && n % poison === 0;
      const body = Buffer.from(`{"amount": ${n}, ${bad ? '"fails": 9, ' : ''}"pad": "${'x'.repeat(200)}"}`);
      channel.sendToQueue(name, body, { persistent: true, messageId: `${name}-${n}`, type: 'bench' });
      if (n % 2_000 === 1_999) await channel.waitForConfirms();
    }
    await channel.waitForConfirms();
    const began = performance.now();
    const consumer = startRelay(options);
    const count = async (where: string): Promise<number> => {
      const { rows } = await client.query<{ n: number }>(
        `select count(*)::int as n from waybill.inbox where consumer = $1 and ${where}`,
        [name],
      );
      return rows[0]?.n ?? 0;
    };
    const good = poison > 0 ? MESSAGES - Math.ceil(MESSAGES / poison) : MESSAGES;
    await until(async () => (await count("status in ('done', 'pending')")) >= good, { ...LONG, what: 'all good ones' });
    const seconds = (performance.now() - began) / 1000;
    console.log(`${what}: ${Math.round(good / seconds)} good messages/s`);
    if (poison > 0) {
      const bad = MESSAGES - good;
      await until(async () => (await count("status = 'dead' and dead_reason = 'attempts' and failures = 3")) === bad, {
        ...LONG,
        what: 'every poison one dead with three attempts',
      });
      const { rows } = await client.query<{ n: number }>(
        `select count(*)::int as n from waybill.inbox_attempt a join waybill.inbox i on i.seq = a.inbox_seq where i.consumer = $1`,
        [name],
      );
      console.log(
        `  ${bad} poison ones dead after ${((performance.now() - began) / 1000).toFixed(1)} s, ${rows[0]?.n ?? 0} attempts kept`,
      );
    }
    await consumer.stop();
    await broker.close();
    return good / seconds;
  }

  await measure('store', 'stored', '{ kind: store }', 0);
  const clean = await measure('sql', 'clean', '{ kind: sql, function: billing.on_event }', 0);
  const mixed = await measure('sql with a tenth of poison', 'mixed', '{ kind: sql, function: billing.on_event }', 10);
  console.log(`with poison at ${(mixed / clean).toFixed(2)} of clean`);
  await client.end();
} finally {
  await killRelays();
  rmSync(folder, { recursive: true, force: true });
  await Promise.all([postgres.close(), rabbit.close()]);
}
