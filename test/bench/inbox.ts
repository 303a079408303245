/**
 * How fast the inbox's SQL is: batches of deliveries stored and applied, claims behind one dead row with many followers,
 * pairs of batches with the same ids in opposite order. Usage: npx tsx test/bench/inbox.ts [rows]
 */
import pg from 'pg';
import { migrateUp } from '../../src/postgres/migrations.js';
import { claim, receive, register, type Arrival } from '../support/inbox.js';
import { startPostgres } from '../support/servers/postgres.js';

const ROWS = Number(process.argv[2] ?? 100_000);
const FOLLOWERS = 200_000;
const PAIRS = 100;
const body = JSON.stringify({ pad: 'x'.repeat(230) });

const postgres = await startPostgres();
const clients: pg.Client[] = [];
const connect = async (): Promise<pg.Client> => {
  const client = new pg.Client({ connectionString: postgres.url() });
  await client.connect();
  clients.push(client);
  return client;
};

try {
  const client = await connect();
  await migrateUp(client);
  await client.query(`
    create schema billing;
    create table billing.ledger (message_id text primary key, n int);
    create function billing.on_event(message waybill.inbox_message) returns void language plpgsql as $$
      begin
        if message.headers ? 'poison' then raise exception 'poison'; end if;
        insert into billing.ledger values (message.message_id, octet_length(message.body)); end $$`);
  await register(
    client,
    ...[200, 500].map((size) => ({ name: `store${size}` })),
    { name: 'keyed', order: 'key' },
    { name: 'sql', handler: 'sql', function: 'billing.on_event' },
    { name: 'sqlkeyed', handler: 'sql', function: 'billing.on_event', order: 'key' },
    { name: 'poison', handler: 'sql', function: 'billing.on_event' },
    { name: 'pairs' },
    { name: 'claims' },
    { name: 'head', order: 'key' },
  );

  for (const [consumer, size] of [
    ['store200', 200],
    ['store500', 500],
    ['keyed', 200],
    ['sql', 60],
    ['sqlkeyed', 60],
  ] as const) {
    let stored = 0;
    const rate = await timed(ROWS, async () => {
      for (; stored < ROWS; stored += size) await receive(client, consumer, batch(stored, size, consumer));
    });
    console.log(`received by ${consumer}, ${size} a batch: ${rate} rows/s`);
    await client.query('vacuum analyze waybill.inbox');
  }
  let poisoned = 0;
  const mixed = await timed(ROWS, async () => {
    for (; poisoned < ROWS; poisoned += 60) {
      const arrivals = batch(poisoned, 60, 'poison');
      await receive(
        client,
        'poison',
        arrivals.map((arrival, n) => (n % 10 === 0 ? { ...arrival, headers: { poison: true } } : arrival)),
      );
    }
  });
  console.log(`received by sql with one poison message in ten, 60 a batch: ${mixed} rows/s`);
  await receive(client, 'store200', batch(0, 200, 'store200'));
  const again = await timed(20_000, async () => {
    for (let n = 0; n < 20_000; n += 200) await receive(client, 'store200', batch(n, 200, 'store200'));
  });
  console.log(`duplicates, 200 a batch: ${again} rows/s`);

  const claimed = await timed(20_000, async () => {
    for (let n = 0; n < 20_000; n += 100) {
      const rows = await claim(client, 'store200', 100);
      await client.query('select waybill.inbox_complete(s, $2) from unnest($1::bigint[]) s', [
        rows.map(({ seq }) => seq),
        rows[0]?.claim_token,
      ]);
    }
  });
  console.log(`claimed and completed, 100 at a time: ${claimed} rows/s`);

  await head(client);
  await opposite();
} finally {
  await Promise.allSettled(clients.map((client) => client.end()));
  await postgres.close();
}

async function head(client: pg.Client): Promise<void> {
  for (let n = 0; n < FOLLOWERS; n += 1000) {
    await receive(
      client,
      'head',
      Array.from({ length: 1000 }, (_, i) => ({ message_id: `${n + i}`, key: 'k', body })),
    );
  }
  const [first] = await claim(client, 'head', 1);
  if (!first) throw new Error('nothing to claim');
  await client.query('select waybill.inbox_fail($1, $2, $3, never => true)', [first.seq, first.claim_token, 'no']);
  for (const when of ['before analyze', 'after analyze']) {
    const times: number[] = [];
    for (let n = 0; n < 200; n += 1) {
      const id = `${when} ${n}`;
      await receive(client, 'head', [{ message_id: id, key: id, body }]);
      const from = performance.now();
      const rows = await claim(client, 'head', 10);
      times.push(performance.now() - from);
      if (rows.length !== 1) throw new Error(`claimed ${rows.length} rows`);
      await client.query('select waybill.inbox_complete($1, $2)', [rows[0]?.seq, rows[0]?.claim_token]);
    }
    times.sort((a, b) => a - b);
    const at = (share: number): string => (times[Math.floor(times.length * share)] ?? NaN).toFixed(2);
    console.log(`claim behind a dead row with ${FOLLOWERS} followers, ${when}: p50 ${at(0.5)} ms, p99 ${at(0.99)} ms`);
    await client.query('analyze waybill.inbox');
  }
  const view = await timed(1, () => client.query('select * from waybill.inbox_backlog'));
  console.log(`inbox_backlog with them: ${Math.round(1000 / view)} ms`);
  const released = await timed(2000, async () => {
    await client.query(`select waybill.inbox_discard('head', $1)`, [first.message_id]);
    for (let n = 0; n < 2000; n += 1) {
      const [row] = await claim(client, 'head', 1);
      await client.query('select waybill.inbox_complete($1, $2)', [row?.seq, row?.claim_token]);
    }
  });
  console.log(`followers released, claimed and completed one by one: ${released} rows/s`);
}

async function opposite(): Promise<void> {
  const [one, two] = [await connect(), await connect()];
  let escaped = 0;
  for (let pair = 0; pair < PAIRS; pair += 1) {
    const arrivals = batch(0, 500, `pair${pair}`);
    const both = await Promise.allSettled([
      receive(one, 'pairs', arrivals),
      receive(two, 'pairs', arrivals.toReversed()),
    ]);
    escaped += both.filter(({ status }) => status === 'rejected').length;
  }
  console.log(`${PAIRS} pairs of batches of 500 in opposite order: ${escaped} errors`);
}

function batch(from: number, size: number, name: string): Arrival[] {
  return Array.from({ length: size }, (_, i) => ({
    message_id: `${name}-${((from + i) * 7919) % 1_000_003}`,
    type: 'order.paid',
    key: `k${(from + i) % 1000}`,
    content_type: 'application/json',
    headers: { tenant: 't1', n: i },
    exchange: 'events',
    routing_key: 'order.paid',
    occurred_at: '2026-01-02T03:04:05Z',
    body,
  }));
}

async function timed(count: number, work: () => Promise<unknown>): Promise<number> {
  const from = performance.now();
  await work();
  return Math.round(count / ((performance.now() - from) / 1000));
}
