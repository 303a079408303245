/**
 * How fast consumers take messages in: `store`, `sql` clean, and `sql` with a tenth of poison, from a full quorum queue to
 * an empty one. Every good message must be applied once and every poison one be dead, for its attempts, of which there are
 * three; poison may halve the throughput and no more. Ends with an exit code of 1 where that is not so.
 * Usage: npx tsx test/bench/receiver.ts [messages]
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
const LONG = { withinMs: 900_000, everyMs: 100 };
const EFFECTS = `select count(*)::int as n from billing.ledger where message_id like $1 || '-%'`;
/** One message in so many fails at every attempt. */
const POISON = 10;
const ATTEMPTS = 3;
const LEAST_SHARE = 0.5;

const [postgres, rabbit] = await Promise.all([startPostgres({ durable: true }), startRabbit()]);
const folder = mkdtempSync(join(tmpdir(), 'waybill-bench-'));
try {
  const client = new pg.Client({ connectionString: postgres.url() });
  client.on('error', () => undefined);
  await client.connect();
  await migrateUp(client);
  await client.query(LEDGER);
  const numbers = async (text: string, values: unknown[]): Promise<Record<string, number>> =>
    (await client.query<Record<string, number>>(text, values)).rows[0] ?? {};

  function expectEqual(what: string, found: unknown, expected: unknown): void {
    if (JSON.stringify(found) === JSON.stringify(expected)) return;
    console.error(`WRONG: ${what}: ${JSON.stringify(found)} instead of ${JSON.stringify(expected)}`);
    process.exitCode = 1;
  }

  /** Everything that was sent is in the table once, as it should be, and nowhere else. */
  async function check(name: string, kind: 'store' | 'sql', poison: number): Promise<void> {
    const good = MESSAGES - poison;
    expectEqual(
      `rows of ${name}`,
      await numbers(
        `select count(*)::int as rows, count(distinct message_id)::int as ids,
           count(*) filter (where status = 'pending')::int as pending, count(*) filter (where status = 'done')::int as done,
           count(*) filter (where status = 'dead' and dead_reason = 'attempts' and failures = ${ATTEMPTS}
             and abandoned = 0 and last_error like '%not this time%')::int as dead
         from waybill.inbox where consumer = $1`,
        [name],
      ),
      {
        rows: MESSAGES,
        ids: MESSAGES,
        pending: kind === 'store' ? MESSAGES : 0,
        done: kind === 'sql' ? good : 0,
        dead: poison,
      },
    );
    expectEqual(
      `attempts of ${name}`,
      await numbers(
        `select count(*)::int as messages, coalesce(sum(n), 0)::int as attempts, count(*) filter (where fits)::int as fit
         from (select count(*) as n, array_agg(a.number order by a.number) = array[1, 2, 3]
                 and bool_and(a.verdict = 'retry' and a.error like '%not this time%' and i.status = 'dead') as fits
               from waybill.inbox_attempt a join waybill.inbox i on i.seq = a.inbox_seq where i.consumer = $1
               group by i.seq) each`,
        [name],
      ),
      { messages: poison, attempts: poison * ATTEMPTS, fit: poison },
    );
    const goodSum = Array.from({ length: MESSAGES }, (_, n) => (poison > 0 && n % POISON === 0 ? 0 : n)).reduce(
      (sum, n) => sum + n,
      0,
    );
    expectEqual(
      `effects of ${name}`,
      await numbers(
        `select count(*)::int as effects, count(distinct message_id)::int as ids, coalesce(sum(amount), 0)::float8 as sum
         from billing.ledger where message_id like $1 || '-%'`,
        [name],
      ),
      kind === 'sql' ? { effects: good, ids: good, sum: goodSum } : { effects: 0, ids: 0, sum: 0 },
    );
  }

  /** Fills the queue while nobody consumes, then takes everything in; good messages a second. */
  async function measure(what: string, name: string, kind: 'store' | 'sql', withPoison: boolean): Promise<number> {
    const file = join(folder, `${name}.yaml`);
    const handler = kind === 'sql' ? '{ kind: sql, function: billing.on_event }' : '{ kind: store }';
    writeFileSync(
      file,
      `relay: false\nconsumers:\n  ${name}:\n    handler: ${handler}\n    retry: { delays: [1s, 2s], maxAttempts: ${ATTEMPTS} }\n`,
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
      const bad = withPoison && n % POISON === 0;
      const body = Buffer.from(`{"amount": ${n}, ${bad ? '"fails": 9, ' : ''}"pad": "${'x'.repeat(200)}"}`);
      channel.sendToQueue(name, body, { persistent: true, messageId: `${name}-${n}`, type: 'bench' });
      if (n % 2_000 === 1_999) await channel.waitForConfirms();
    }
    await channel.waitForConfirms();
    const poison = withPoison ? Math.ceil(MESSAGES / POISON) : 0;
    const good = MESSAGES - poison;
    const began = performance.now();
    const sinceBegan = (): number => (performance.now() - began) / 1000;
    const consumer = startRelay(options);
    const count = async (where: string): Promise<number> =>
      (await numbers(`select count(*)::int as n from waybill.inbox where consumer = $1 and ${where}`, [name]))['n'] ??
      0;
    // Why the ledger: it is narrow, and the count must not cost what is measured.
    const taken = async (): Promise<number> =>
      kind === 'store' ? count("status = 'pending'") : ((await numbers(EFFECTS, [name]))['n'] ?? 0);
    await until(async () => (await taken()) >= good, { ...LONG, what: 'all good ones' });
    const perSecond = good / sinceBegan();
    console.log(`${what}: ${Math.round(perSecond)} good messages/s`);
    if (poison > 0) {
      await until(async () => (await count("status = 'dead'")) >= poison, { ...LONG, what: 'every poison one dead' });
      console.log(`  ${poison} poison ones dead after ${sinceBegan().toFixed(1)} s`);
    }
    expectEqual(`the end of ${name}`, await consumer.stop(), 0);
    expectEqual(`the queue of ${name}`, (await channel.checkQueue(name)).messageCount, 0);
    await broker.close();
    await check(name, kind, poison);
    return perSecond;
  }

  await measure('store', 'stored', 'store', false);
  // Clean before and after: the machine may have something else to do.
  const before = await measure('sql', 'clean', 'sql', false);
  const mixed = await measure('sql with a tenth of poison', 'mixed', 'sql', true);
  const after = await measure('sql again', 'clean2', 'sql', false);
  const share = mixed / ((before + after) / 2);
  console.log(
    `with poison at ${share.toFixed(2)} of clean (${(mixed / before).toFixed(2)}, ${(mixed / after).toFixed(2)})`,
  );
  if (share < LEAST_SHARE) {
    console.error(`WRONG: poison costs more than it may: ${share.toFixed(2)} instead of at least ${LEAST_SHARE}`);
    process.exitCode = 1;
  }
  await client.end();
} finally {
  await killRelays();
  rmSync(folder, { recursive: true, force: true });
  await Promise.all([postgres.close(), rabbit.close()]);
}
