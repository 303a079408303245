import { readFileSync } from 'node:fs';
import * as amqp from 'amqplib';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { freshVhost, type FreshVhost } from '../support/broker.js';
import type { FreshDatabase } from '../support/database.js';
import { migratedDatabase } from '../support/migrated-database.js';
import { killRelays, startRelay } from '../support/relay.js';
import { until } from '../support/waiting.js';

const ROWS = 1_000_000;

/** The most resident memory that the process ever had, in MiB. */
function peakRssMiB(pid: number): number {
  return Number(/VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) / 1024;
}

describe('a transaction of a million rows', () => {
  let database: FreshDatabase;
  let vhost: FreshVhost;

  beforeAll(async () => {
    [database, vhost] = await Promise.all([migratedDatabase(), freshVhost()]);
  });
  afterEach(killRelays);
  afterAll(async () => {
    await Promise.all([database.drop(), vhost.drop()]);
  });

  it('F45: streams in order within a bounded window, RSS under 150 MB, and moves the position only at its end', async () => {
    const relay = startRelay({ databaseUrl: database.url, brokerUrl: vhost.url });
    await relay.waitForPhase('streaming');
    const broker = await amqp.connect(vhost.url);
    broker.on('error', () => undefined);
    const channel = await broker.createChannel();
    const { queue } = await channel.assertQueue('', { exclusive: true });
    await channel.bindQueue(queue, 'waybill.events', '#');
    let received = 0;
    let outOfOrder = 0;
    await channel.consume(
      queue,
      (message) => {
        received += 1;
        if (message?.content.toString() !== `{"n" : ${received}}`) outOfOrder += 1;
      },
      { noAck: true },
    );
    const client = await database.connect();
    await client.query('begin');
    await client.query(
      "insert into waybill.outbox (type, key, payload) select 'bulk', 'k' || n % 100, json_build_object('n', n) from generate_series(1, $1::int) n",
      [ROWS],
    );
    const lastRow = await client.query<{ lsn: string }>('select pg_current_wal_insert_lsn()::text as lsn');
    await client.query('commit');
    // The position first: a row that is still there after it must not be behind it.
    let looks = 0;
    let tooEarly = 0;
    const look = async (): Promise<void> => {
      const [position] = await database.query<{ moved: boolean }>(
        'select confirmed_flush_lsn > $1::pg_lsn as moved from pg_replication_slots where database = current_database()',
        [lastRow.rows[0]?.lsn],
      );
      if ((await database.query('select from waybill.outbox limit 1')).length === 0) return;
      looks += 1;
      if (position?.moved !== false) tooEarly += 1;
    };
    const all = { withinMs: 300_000, everyMs: 50, what: 'all rows' };
    await until(async () => {
      if (received < ROWS) await look();
      return received >= ROWS;
    }, all);
    expect(tooEarly).toBe(0);
    expect(looks).toBeGreaterThan(0);
    await until(async () => (await database.query('select from waybill.outbox limit 1')).length === 0, {
      withinMs: 60_000,
      what: 'an empty outbox',
    });
    expect(peakRssMiB(relay.pid)).toBeLessThan(150);
    expect({ received, outOfOrder }).toEqual({ received: ROWS, outOfOrder: 0 });
    expect(await relay.stop()).toBe(0);
    await broker.close();
  }, 400_000);
});
