/**
 * How fast the relay is, as ratios measured in one run on one machine: against a raw publisher with confirms (the
 * broker's ceiling) and against a raw reader of the replication stream (the server's). Also the memory of the relay
 * while one transaction of a million rows passes. Usage: npm run bench [rows]
 */
import { readFileSync } from 'node:fs';
import * as amqp from 'amqplib';
import pg from 'pg';
import { migrateUp } from '../../src/postgres/migrations.js';
import { ReplicationStream } from '../../src/postgres/stream.js';
import { systemClock } from '../../src/runtime/clock.js';
import { startPostgres } from '../support/servers/postgres.js';
import { startRabbit } from '../support/servers/rabbit.js';
import { killRelays, startRelay } from '../support/relay.js';
import { until } from '../support/waiting.js';

const ROWS = Number(process.argv[2] ?? 200_000);
const BODY_BYTES = 256;
const LONG = { withinMs: 600_000, everyMs: 20 };

const [postgres, rabbit] = await Promise.all([startPostgres({ durable: true }), startRabbit()]);
try {
  const broker = await amqp.connect(rabbit.url());
  broker.on('error', () => undefined);
  const channel = await broker.createConfirmChannel();
  await channel.assertExchange('waybill.events', 'topic', { durable: true });
  await channel.assertQueue('bench', { durable: true, arguments: { 'x-queue-type': 'quorum' } });
  await channel.bindQueue('bench', 'waybill.events', '#');
  const client = new pg.Client({ connectionString: postgres.url() });
  client.on('error', () => undefined);
  await client.connect();
  await migrateUp(client);
  const fill = async (rows: number, keys = 1_000): Promise<void> => {
    await client.query(
      `insert into waybill.outbox (type, key, payload)
       select 'bench', 'k' || n % $2::int, json_build_object('n', n, 'pad', repeat('x', ${BODY_BYTES - 30})) from generate_series(1, $1::int) n`,
      [rows, keys],
    );
  };

  const raw = await rawPublisher(channel, ROWS);
  await channel.purgeQueue('bench');
  report('raw publisher with confirms, window 2000, quorum queue', raw);

  /** One relay from its start to an empty outbox. */
  async function measureRelay(ordering: 'pipelined' | 'strict', keys: number): Promise<void> {
    const relay = startRelay({
      databaseUrl: postgres.url(),
      brokerUrl: rabbit.url(),
      env: {
        WAYBILL_LOG_LEVEL: 'info',
        WAYBILL_RELAY_ORDERING: ordering,
        ...(process.env['NODE_OPTIONS_RELAY'] ? { NODE_OPTIONS: process.env['NODE_OPTIONS_RELAY'] } : {}),
      },
    });
    await relay.waitForLog((line) => line.msg === 'streaming', 'streaming');
    const filling = performance.now();
    await fill(ROWS, keys);
    const committed = performance.now();
    const inserted = Math.round(ROWS / ((committed - filling) / 1000));
    console.log(`${ordering}, ${keys} keys: insert of ${ROWS} rows in one transaction: ${inserted} rows/s`);
    let peakRss = 0;
    await until(
      async () => {
        peakRss = Math.max(peakRss, rssMiB(relay.pid));
        return (await channel.checkQueue('bench')).messageCount >= ROWS;
      },
      { ...LONG, what: 'all messages' },
    );
    const published = performance.now();
    const relayRate = ROWS / ((published - committed) / 1000);
    report(`the relay, ${ordering}, ${keys} keys, from commit to the last message`, relayRate, raw);
    await until(
      async () => {
        peakRss = Math.max(peakRss, rssMiB(relay.pid));
        return (await client.query('select from waybill.outbox limit 1')).rowCount === 0;
      },
      { ...LONG, what: 'the outbox to be empty' },
    );
    console.log(
      `settled ${Math.round(performance.now() - published)} ms after the last message; peak RSS ${peakRss} MiB`,
    );
    await channel.purgeQueue('bench');
    await relay.stop();
    if (process.env['NODE_OPTIONS_RELAY']) console.log(relay.noise.join('\n'));
  }

  await measureRelay('pipelined', 1_000);
  await measureRelay('strict', 1_000);
  // Many of its rows wait for each other, in memory and in the table.
  await measureRelay('strict', 20);

  await broker.close();
  report('raw reader of the replication stream, decoding only', await rawReader(client, postgres.url(), fill));
} finally {
  await killRelays();
  await Promise.all([postgres.close(), rabbit.close()]);
}
process.exit(0);

async function rawPublisher(channel: amqp.ConfirmChannel, rows: number): Promise<number> {
  const body = Buffer.alloc(BODY_BYTES, 'x');
  const start = performance.now();
  await new Promise<void>((resolve) => {
    let sent = 0;
    let confirmed = 0;
    const send = (): void => {
      while (sent < rows && sent - confirmed < 2000) {
        sent += 1;
        channel.publish(
          'waybill.events',
          'bench',
          body,
          { persistent: true, mandatory: true, messageId: String(sent) },
          () => {
            confirmed += 1;
            if (confirmed === rows) resolve();
            else if (sent - confirmed < 1500) send();
          },
        );
      }
    };
    send();
  });
  return rows / ((performance.now() - start) / 1000);
}

async function rawReader(client: pg.Client, url: string, fill: (rows: number) => Promise<void>): Promise<number> {
  await client.query("select pg_create_logical_replication_slot('raw', 'pgoutput')");
  await fill(ROWS);
  let rows = 0;
  let start = 0;
  const done = new Promise<void>((resolve, reject) => {
    void ReplicationStream.open({
      endpoint: { url },
      applicationName: 'raw',
      schema: 'waybill',
      slot: 'raw',
      publication: 'waybill_outbox',
      startLsn: 0n,
      walSenderTimeoutMs: 60_000,
      clock: systemClock,
      onEvent: (event) => {
        if (event.kind !== 'row') return;
        if (rows === 0) start = performance.now();
        rows += 1;
        if (rows === ROWS) resolve();
      },
      onEnd: reject,
    }).catch(reject);
  });
  await done;
  return ROWS / ((performance.now() - start) / 1000);
}

function rssMiB(pid: number): number {
  return Math.round(Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0) / 1024);
}

function report(what: string, rate: number, base?: number): void {
  const ratio = base === undefined ? '' : `  ratio ${(rate / base).toFixed(2)}`;
  console.log(`${what}: ${Math.round(rate)} /s${ratio}`);
}
