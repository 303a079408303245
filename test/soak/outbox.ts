/**
 * Minutes of traffic with faults at random moments: the relay killed, the broker killed, its memory alarm, connections
 * cut, slow and closed over a message, PostgreSQL killed. At the end every committed message must have arrived, with
 * `strict` in the order of its key, and the relay's memory must be flat: after the first third it is not killed any more,
 * and what it takes from there on is judged by flat-memory.ts (in 4 minutes or more). Exit code 1 if anything of this is not
 * so.
 * Usage: npx tsx test/soak/outbox.ts [minutes] [seed] [pipelined|strict]
 */
import { readFileSync } from 'node:fs';
import * as amqp from 'amqplib';
import pg from 'pg';
import { migrateUp } from '../../src/postgres/migrations.js';
import { startFaultProxy } from '../support/fault-proxy.js';
import { killRelays, startRelay, type RelayProcess } from '../support/relay.js';
import { startPostgres } from '../support/servers/postgres.js';
import { startRabbit } from '../support/servers/rabbit.js';
import { until } from '../support/waiting.js';
import { judgeMemory } from './flat-memory.js';

const MINUTES = Number(process.argv[2] ?? 10);
const SEED = Number(process.argv[3] ?? 1);
const ORDERING = process.argv[4] ?? 'pipelined';
const FAULT_EVERY_MS = 10_000;
const QUEUE = 'soak';

type Faults = Record<string, () => Promise<void> | void>;
interface Committed {
  id: string;
  key: string;
}

/** Ids of rows that must end up parked. */
const poisons = new Set<string>();

let state = SEED;
/** A small generator of one's own (mulberry32), so that a run can be repeated. */
function random(): number {
  state = (state + 0x6d2b79f5) | 0;
  let t = Math.imul(state ^ (state >>> 15), 1 | state);
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
  return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
}

const [postgres, rabbit] = await Promise.all([startPostgres({ durable: true }), startRabbit()]);
try {
  const database = await connect();
  await migrateUp(database);
  await database.end();
  await topology();
  const brokerProxy = await startFaultProxy({ targetPort: rabbit.port });
  const databaseProxy = await startFaultProxy({ targetPort: postgres.port });
  const start = (): RelayProcess =>
    startRelay({
      databaseUrl: databaseProxy.url(postgres.url()),
      brokerUrl: brokerProxy.url(rabbit.url()),
      env: { WAYBILL_LOG_LEVEL: 'info', WAYBILL_BROKER_HEARTBEAT: '2s', WAYBILL_RELAY_ORDERING: ORDERING },
    });
  let relay = start();
  await relay.waitForLog((line) => line.msg === 'streaming', 'the relay to stream');
  const arrived = new Map<string, number>();
  const committed: Committed[] = [];
  let written = false;
  let seen = false;
  const consuming = consume(arrived, () => seen);
  const writing = write(committed, () => written);

  const restarts: Faults = {
    'relay killed': async () => {
      await relay.kill9();
      relay = start();
    },
    'relay stopped and started': async () => {
      await relay.stop();
      relay = start();
    },
  };
  const faults: Faults = {
    'broker killed': async () => {
      await rabbit.kill9();
      await rabbit.start();
    },
    'memory alarm for five seconds': async () => {
      await rabbit.alarm(true);
      await lasting(5_000);
      await rabbit.alarm(false);
    },
    'connections to the broker cut': () => brokerProxy.cut(),
    'connections to the database cut': () => databaseProxy.cut(),
    'database killed': async () => {
      await postgres.kill9();
      await postgres.start();
    },
  };
  Object.assign(faults, {
    'a slow network': async () => {
      for (const proxy of [brokerProxy, databaseProxy]) proxy.delay(20);
      await lasting(5_000);
      for (const proxy of [brokerProxy, databaseProxy]) proxy.delay(0);
    },
    'a message that crashes its channel': poison,
  });
  const rss: number[] = [];
  const endAt = performance.now() + MINUTES * 60_000;
  for (let round = 1; performance.now() < endAt; round += 1) {
    await lasting(FAULT_EVERY_MS);
    const isEarly = endAt - performance.now() > (MINUTES * 60_000 * 2) / 3;
    const possible = Object.entries(isEarly ? { ...restarts, ...faults } : faults);
    const [name = '', fault] = possible[Math.floor(random() * possible.length)] ?? [];
    if (!isEarly) rss.push(rssMiB(relay.pid));
    console.log(
      `${String(round).padStart(3)}  committed ${committed.length}  arrived ${arrived.size}  RSS ${rssMiB(relay.pid)} MiB  now: ${name}`,
    );
    await fault?.();
  }
  written = true;
  await writing;
  await until(() => arrived.size >= committed.length, {
    withinMs: 120_000,
    everyMs: 100,
    get what() {
      return `every message (${arrived.size} of ${committed.length})`;
    },
  });
  // Copies that are still on their way are counted, too.
  await lasting(3_000);
  seen = true;
  await consuming;
  const lost = committed.filter(({ id }) => !arrived.has(id)).length;
  const known = new Set([...committed.map(({ id }) => id), ...poisons]);
  const phantom = [...arrived.keys()].filter((id) => !known.has(id)).length;
  const copies = [...arrived.values()].reduce((sum, n) => sum + n, 0);
  const reordered = reorderedInKeys(committed, [...arrived.keys()]);
  const [parked] = await withDatabase((client) => client.query(`select from waybill.outbox where state = 'parked'`));
  console.log(
    `${ORDERING}: committed ${committed.length}  lost ${lost}  phantom ${phantom}  duplicates ${copies - arrived.size}  reordered within a key ${reordered}  parked ${parked} of ${poisons.size}`,
  );
  console.log(`RSS of the last process, each ${FAULT_EVERY_MS / 1000} s or more: ${rss.join(' ')} MiB`);
  const memory = judgeMemory(rss);
  console.log(
    memory
      ? `its median: ${memory.middle} MiB in the middle third, ${memory.last} MiB in the last, at most ${memory.allowed} allowed: ${memory.isFlat ? 'flat' : 'it GROWS'}`
      : `too few readings to judge the memory (${rss.length}): run it for 4 minutes or more`,
  );
  const isFlat = memory?.isFlat ?? MINUTES < 4;
  const isInOrder = ORDERING !== 'strict' || reordered === 0;
  const isRight = lost === 0 && phantom === 0 && parked === poisons.size && isInOrder && isFlat;
  process.exitCode = isRight ? 0 : 1;
  await Promise.all([brokerProxy.close(), databaseProxy.close()]);
} finally {
  await killRelays();
  await Promise.all([postgres.close(), rabbit.close()]);
}

/** Rows whose first copies came after that of a later row of the same key. */
function reorderedInKeys(committed: readonly Committed[], firstCopies: readonly string[]): number {
  const places = new Map(committed.map(({ id, key }, place) => [id, { key, place }]));
  const latest = new Map<string, number>();
  let reordered = 0;
  for (const id of firstCopies) {
    const row = places.get(id);
    if (!row) continue;
    if (row.place < (latest.get(row.key) ?? -1)) reordered += 1;
    else latest.set(row.key, row.place);
  }
  return reordered;
}

/** Commits a row over which RabbitMQ closes the whole connection (541); the relay must park it. */
async function poison(): Promise<void> {
  const insert = `insert into waybill.outbox (type, payload, exchange, routing_key)
    values ('poison', '1', '', 'amq.rabbitmq.reply-to.g2dkABByZXBseUA.x==') returning id`;
  const [, rows] = await withDatabase((client) => client.query<{ id: string }>(insert));
  for (const { id } of rows) poisons.add(id);
}

async function withDatabase<T extends pg.QueryResultRow>(
  use: (client: pg.Client) => Promise<pg.QueryResult<T>>,
): Promise<[number, T[]]> {
  const client = await until(() => connect(), { withinMs: 60_000, what: 'the database to be there' });
  try {
    const { rows } = await use(client);
    return [rows.length, rows];
  } finally {
    await client.end();
  }
}

async function connect(): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: postgres.url() });
  client.on('error', () => undefined);
  await client.connect();
  return client;
}

async function topology(): Promise<void> {
  const connection = await amqp.connect(rabbit.url());
  const channel = await connection.createChannel();
  await channel.assertExchange('waybill.events', 'topic', { durable: true });
  await channel.assertQueue(QUEUE, { durable: true, arguments: { 'x-queue-type': 'quorum' } });
  await channel.bindQueue(QUEUE, 'waybill.events', '#');
  await connection.close();
}

/** Commits small transactions, some of them rolled back, through whatever happens to the server. */
async function write(committed: Committed[], isOver: () => boolean): Promise<void> {
  let client: pg.Client | undefined;
  while (!isOver()) {
    try {
      client ??= await connect();
      await client.query('begin');
      const { rows } = await client.query<Committed>(
        "select waybill.publish('soak', json_build_object('n', n), key => 'k' || n) as id, 'k' || n as key from generate_series(1, $1::int) n",
        [1 + Math.floor(Math.random() * 40)],
      );
      if (Math.random() < 0.1) await client.query('rollback');
      else {
        // Why before: when the server dies in the commit, it may have happened. Such a batch counts if it is there.
        try {
          await client.query('commit');
          committed.push(...rows);
        } catch {
          client = undefined;
          const kept = await survivors(rows.map((row) => row.id));
          committed.push(...rows.filter(({ id }) => kept.has(id)));
        }
      }
    } catch {
      client = undefined;
    }
    await lasting(20);
  }
  await client?.end();
}

async function survivors(ids: string[]): Promise<Set<string>> {
  const client = await until(() => connect(), { withinMs: 60_000, what: 'the database to be back' });
  const { rows } = await client.query<{ id: string }>(
    'select id from waybill.outbox where id = any($1::uuid[]) union select id from waybill.outbox_history where id = any($1::uuid[])',
    [ids],
  );
  await client.end();
  return new Set(rows.map((row) => row.id));
}

/** Counts copies by id, connecting again whenever the broker was away. */
async function consume(arrived: Map<string, number>, isOver: () => boolean): Promise<void> {
  while (!isOver()) {
    try {
      const connection = await amqp.connect(`${rabbit.url()}?heartbeat=5`);
      const closed = new Promise<void>((resolve) => connection.on('close', () => resolve()));
      connection.on('error', () => undefined);
      const channel = await connection.createChannel();
      channel.on('error', () => undefined);
      await channel.prefetch(500);
      await channel.consume(QUEUE, (message) => {
        if (!message) return;
        const id = String(message.properties.messageId);
        arrived.set(id, (arrived.get(id) ?? 0) + (message.fields.redelivered && arrived.has(id) ? 0 : 1));
        channel.ack(message);
      });
      await Promise.race([
        closed,
        until(isOver, { withinMs: MINUTES * 60_000 + 600_000, everyMs: 200, what: 'the end' }),
      ]);
      if (isOver()) await connection.close().catch(() => undefined);
    } catch {
      await lasting(300);
    }
  }
}

function lasting(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

function rssMiB(pid: number): number {
  try {
    return Math.round(Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0) / 1024);
  } catch {
    return 0;
  }
}
