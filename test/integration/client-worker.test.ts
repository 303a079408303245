import pg from 'pg';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import {
  currentMessage,
  firstResult,
  firstTime,
  InboxWorker,
  Never,
  newer,
  NotYet,
  publish,
  TryAgain,
  type Handle,
  type InboxWorkerOptions,
  type WorkerEvent,
} from '../../src/client/index.js';
import { rolesSql } from '../../src/postgres/roles.js';
import { freshDatabase, type FreshDatabase } from '../support/database.js';
import { InboxRows } from '../support/inbox-rows.js';
import { migratedDatabase } from '../support/migrated-database.js';
import { until, within } from '../support/waiting.js';

let database: FreshDatabase;
let rows: InboxRows;
let pool: pg.Pool;
let events: WorkerEvent[];
const workers: InboxWorker<pg.PoolClient>[] = [];
const pools: pg.Pool[] = [];
const rolesMade: string[] = [];

beforeAll(async () => {
  database = await migratedDatabase();
  rows = new InboxRows(database, 'billing');
  await database.query('create table ledger (message_id text, attempt int)');
});
afterAll(async () => {
  const { server } = database;
  await database.drop();
  const admin = await freshDatabase({ server });
  for (const role of rolesMade) await admin.query(`drop role if exists ${role}`);
  await admin.drop();
});

beforeEach(async () => {
  pool = poolOf(8);
  events = [];
  await database.query('truncate waybill.inbox, waybill.inbox_attempt, waybill.outbox, waybill.consumer cascade');
  await database.query('truncate ledger');
  await rows.register();
});

afterEach(async () => {
  await Promise.all(workers.splice(0).map((worker) => worker.stop({ timeoutMs: 0 })));
  await Promise.all(pools.splice(0).map((each) => each.end()));
});

function poolOf(max: number, given: pg.PoolConfig = {}): pg.Pool {
  const made = new pg.Pool({ connectionString: database.url, max, ...given });
  made.on('error', () => undefined);
  pools.push(made);
  return made;
}

type Options = InboxWorkerOptions<pg.PoolClient>;

/** A worker that is not woken by looking, so that what wakes it is seen. */
function workerWith(handle: Handle<pg.PoolClient>, given: Partial<Options> = {}): InboxWorker<pg.PoolClient> {
  const worker = new InboxWorker({
    pool,
    consumer: 'billing',
    handle,
    pollMs: 60_000,
    onEvent: (event) => events.push(event),
    ...given,
  });
  workers.push(worker);
  return worker;
}

const applied: Handle<pg.PoolClient> = async (message, client) => {
  await client.query('insert into ledger values ($1, $2)', [message.messageId, message.attempt]);
};

const ledger = () => database.query<{ message_id: string; attempt: number }>('select * from ledger');
const kinds = () => events.map(({ kind }) => kind);
const untilEvents = (...expected: WorkerEvent['kind'][]) =>
  until(() => events.length >= expected.length && JSON.stringify(kinds()) === JSON.stringify(expected), {
    what: `events ${expected.join(', ')}`,
  });

test('effect and word in one transaction: what is claimed is handled, completed and gone, woken by a notification', async () => {
  const worker = workerWith(async (message, client, context) => {
    await applied(message, client, context);
    return `took ${String((message.json() as { n: number }).n)}`;
  });
  await worker.start();
  const [id = ''] = await rows.receive({
    body: '{"n": 42}',
    key: 'order-42',
    schema_version: 3,
    headers: { a: 1 },
    correlation_id: 'corr',
    occurred_at: '2026-01-02T03:04:05.678Z',
  });
  await rows.wake();
  await untilEvents('done');
  expect(await rows.look(id)).toMatchObject({ status: 'done', result: 'took 42', failures: 0 });
  expect(await ledger()).toEqual([{ message_id: id, attempt: 1 }]);
  const [event] = events;
  expect(event?.kind === 'done' && event.message).toMatchObject({
    consumer: 'billing',
    messageId: id,
    type: 'order.paid',
    key: 'order-42',
    schemaVersion: 3,
    body: Buffer.from('{"n": 42}'),
    headers: { a: 1 },
    correlationId: 'corr',
    occurredAt: new Date('2026-01-02T03:04:05.678Z'),
    attempt: 1,
  });
  expect(await worker.stop()).toEqual({ left: 0 });
  expect(pool.idleCount).toBe(pool.totalCount);
});

test('F104: errors become verdicts; the effect is rolled back, and what the handler says of the delay holds', async () => {
  const ids = await rows.receive(
    { type: 'plain' },
    { type: 'again' },
    { type: 'early' },
    { type: 'never' },
    { type: 'sql' },
  );
  const more = await rows.receive({ type: 'early-sql' }, { type: 'never-sql' }, { type: 'string' }, { type: 'nul' });
  const all = [...ids, ...more];
  const worker = workerWith(async (message, client, context) => {
    await applied(message, client, context);
    switch (message.type) {
      case 'plain':
        throw new TypeError('a bug');
      case 'again':
        throw new TryAgain('busy', { retryInMs: 600_000 });
      case 'early':
        throw new NotYet('no order yet', { retryInMs: 120_000 });
      case 'never':
        throw new Never('no such product');
      case 'sql':
        await client.query('select 1 / 0');
        break;
      case 'early-sql':
        await client.query(`do $$ begin raise exception 'not here yet' using errcode = 'WB001'; end $$`);
        break;
      case 'never-sql':
        await client.query(`do $$ begin raise exception 'not ever' using errcode = 'WB002'; end $$`);
        break;
      case 'string':
        // eslint-disable-next-line @typescript-eslint/only-throw-error
        throw 'thrown like this';
      default:
        throw new Error('a\0b');
    }
  });
  await worker.start();
  await until(() => events.length === all.length, { what: 'all attempts' });
  const [plain, again, early, never, sql, earlySql, neverSql, string, nul] = await Promise.all(
    all.map((id) => rows.look(id)),
  );
  expect(plain).toMatchObject({ status: 'waiting', failures: 1, last_error: 'TypeError: a bug' });
  expect(again).toMatchObject({ status: 'waiting', failures: 1, last_error: 'TryAgain: busy' });
  expect(again?.['due_in_ms']).toBeGreaterThan(500_000);
  expect(early).toMatchObject({ status: 'waiting', failures: 0, last_error: 'NotYet: no order yet' });
  expect(early?.['due_in_ms']).toBeGreaterThan(100_000);
  expect(never).toMatchObject({ status: 'dead', dead_reason: 'never', last_error: 'Never: no such product' });
  expect(sql).toMatchObject({ status: 'waiting', failures: 1, last_error: 'error: division by zero' });
  expect(earlySql).toMatchObject({ status: 'waiting', failures: 0 });
  expect(neverSql).toMatchObject({ status: 'dead', dead_reason: 'never' });
  expect(string).toMatchObject({ status: 'waiting', failures: 1, last_error: 'thrown like this' });
  expect(nul).toMatchObject({ status: 'waiting', failures: 1, last_error: 'Error: a b' });
  expect(await ledger()).toEqual([]);
});

test('F104: a message that always fails is dead after its last attempt', async () => {
  await rows.register({ max_attempts: 3, retry_delays: ['100 ms'] });
  const [id = ''] = await rows.receive({});
  await workerWith(() => Promise.reject(new Error('poison')), { pollMs: 20 }).start();
  await until(async () => (await rows.look(id))['status'] === 'dead', { what: 'the message to be dead' });
  expect(await rows.look(id)).toMatchObject({ failures: 3, dead_reason: 'attempts' });
});

test('a deferred constraint that fails at commit is a failure of the attempt, not a message done', async () => {
  await database.query('create table parent (id int primary key)');
  await database.query('create table child (id int references parent deferrable initially deferred)');
  const [id = ''] = await rows.receive({});
  await workerWith(async (_, client) => {
    await client.query('insert into child values (1)');
  }).start();
  await untilEvents('retry');
  expect(await rows.look(id)).toMatchObject({ status: 'waiting', failures: 1 });
});

test('a handler that ends its transaction, or swallows an error of it, is found out', async () => {
  const [committed = '', swallowed = ''] = await rows.receive({ type: 'commits' }, { type: 'swallows' });
  await workerWith(
    async (message, client) => {
      if (message.type === 'commits') await client.query('commit');
      else await client.query('select 1 / 0').catch(() => undefined);
    },
    { concurrency: 1 },
  ).start();
  await untilEvents('retry', 'retry');
  expect((await rows.look(committed))['last_error']).toContain('ended the transaction');
  expect((await rows.look(swallowed))['last_error']).toContain('current transaction is aborted');
});

test('facts 66, 67: transactions that deadlock are repeated, and spend nothing', async () => {
  await database.query('create table account (id int primary key, balance int)');
  await database.query('insert into account values (1, 0), (2, 0)');
  await rows.receive({ headers: { first: 1, second: 2 } }, { headers: { first: 2, second: 1 } });
  const meeting: (() => void)[] = [];
  let rounds = 0;
  const pay = 'update account set balance = balance + 1 where id = $1';
  await workerWith(async (message, client) => {
    rounds += 1;
    await client.query(pay, [message.headers['first']]);
    // Both have their first lock before either asks for its second.
    if (rounds <= 2) {
      await new Promise<void>((resolve) => {
        meeting.push(resolve);
        if (meeting.length === 2) for (const go of meeting) go();
      });
    }
    await client.query(pay, [message.headers['second']]);
  }).start();
  await untilEvents('done', 'done');
  // Now and then PostgreSQL ends both of them.
  expect(rounds).toBeGreaterThanOrEqual(3);
  expect(await database.query('select balance from account')).toEqual([{ balance: 2 }, { balance: 2 }]);
  expect(await database.query('select failures from waybill.inbox')).toEqual([{ failures: 0 }, { failures: 0 }]);
});

test('I4: a word that cannot be written at once is written later, while the lease holds that was prolonged meanwhile', async () => {
  await rows.receive({});
  const leaseMs = 1_000;
  const locker = await database.connect();
  await workerWith(
    async () => {
      const beganMs = performance.now();
      await until(() => performance.now() - beganMs > 1.5 * leaseMs, { what: 'the first lease to be over' });
      await locker.query('begin; select from waybill.inbox for update');
      throw new Never('no such product');
    },
    { leaseMs, concurrency: 1 },
  ).start();
  // The connection ends while the word is being written.
  await until(
    async () =>
      (
        await database.query(
          `select pg_terminate_backend(pid) from pg_stat_activity
           where datname = current_database() and wait_event_type = 'Lock' and query ~ 'inbox_fail'`,
        )
      ).length > 0,
    { what: 'the word to wait for the row' },
  );
  await locker.query('rollback');
  await until(() => kinds().includes('never') || kinds().includes('lost'), { what: 'the end of the attempt' });
  expect(kinds().filter((kind) => kind !== 'trouble')).toEqual(['never']);
  expect(kinds()).toContain('trouble');
  expect(await database.query('select status, dead_reason from waybill.inbox')).toEqual([
    { status: 'dead', dead_reason: 'never' },
  ]);
});

test('F124, I7: a worker whose lease is over finds its word refused: its effect is rolled back, the other one counts', async () => {
  const [id = ''] = await rows.receive({});
  let goOn = (): void => undefined;
  const slow = new Promise<void>((resolve) => (goOn = resolve));
  let isAtWork = false;
  // A lease is kept by its worker: this one is stopped from doing so, as a frozen process would be.
  const zombie = workerWith(
    async (message, client, context) => {
      await applied(message, client, context);
      isAtWork = true;
      await slow;
    },
    { leaseMs: 3_600_000, concurrency: 1 },
  );
  await zombie.start();
  await until(() => isAtWork, { what: 'the zombie to be at work' });
  await rows.pass();
  const other = workerWith(applied);
  await other.start();
  await untilEvents('done');
  expect(await ledger()).toEqual([{ message_id: id, attempt: 2 }]);
  goOn();
  await untilEvents('done', 'lost');
  expect(await ledger()).toEqual([{ message_id: id, attempt: 2 }]);
  expect(await rows.look(id)).toMatchObject({ status: 'done', abandoned: 1, failures: 0 });
});

test('F124: the handler is told when its lease is lost', async () => {
  await rows.receive({});
  await workerWith(
    (_, __, { signal }) =>
      new Promise<void>((_resolve, reject) => signal.addEventListener('abort', () => reject(signal.reason as Error))),
    { leaseMs: 1_000 },
  ).start();
  await until(async () => (await rows.counts())['running'] === 1, { what: 'the claim' });
  await database.query(`update waybill.inbox set claim_token = gen_random_uuid()`);
  await untilEvents('lost');
});

test('the lease is kept while the handler works, and not beyond its time', async () => {
  const [id = ''] = await rows.receive({});
  const looks: unknown[] = [];
  let reason: unknown;
  await workerWith(
    async (_, __, { signal }) => {
      const endOf = async () =>
        (await database.query<{ at: Date }>('select lease_until as at from waybill.inbox'))[0]?.at.getTime();
      const first = await endOf();
      looks.push(await until(async () => Number(await endOf()) > Number(first), { what: 'a longer lease' }));
      await new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve()));
      reason = signal.reason;
      throw new Error('gave up');
    },
    { leaseMs: 2_000, timeoutMs: 2_500 },
  ).start();
  await untilEvents('retry');
  expect(looks).toEqual([true]);
  expect(reason).toMatchObject({ message: 'the handler has not ended within 2500 ms' });
  expect(await rows.look(id)).toMatchObject({ status: 'waiting', abandoned: 0, failures: 1 });
});

test('F13, F20, I4: a connection that dies under the handler spends nothing, and the message comes again', async () => {
  const ids = await rows.receive({ type: 'killed' }, { type: 'cut' });
  const faults = new Map([
    ['killed', (client: pg.PoolClient) => client.query('select pg_terminate_backend(pg_backend_pid())')],
    ['cut', (client: pg.PoolClient) => streamOf(client).destroy()],
  ]);
  await workerWith(
    async (message, client, context) => {
      await applied(message, client, context);
      const fault = faults.get(message.type ?? '');
      faults.delete(message.type ?? '');
      await Promise.resolve(fault?.(client));
    },
    { pollMs: 20 },
  ).start();
  await until(() => events.length === 4, { what: 'four attempts' });
  expect(kinds().sort()).toEqual(['done', 'done', 'release', 'release']);
  for (const id of ids) expect(await rows.look(id)).toMatchObject({ status: 'done', failures: 0, abandoned: 0 });
  expect((await ledger()).map(({ message_id: id }) => id).sort()).toEqual(ids.sort());
});

function streamOf(client: pg.PoolClient): { destroy(): void } {
  return (client as unknown as { connection: { stream: { destroy(): void } } }).connection.stream;
}

test("F20: the worker's own connection is made anew, and it listens again", async () => {
  const worker = workerWith(applied);
  await worker.start();
  await until(() => waitingListener(), { what: 'the listener' });
  const listener = await waitingListener();
  await database.query('select pg_terminate_backend($1)', [listener]);
  await until(async () => (await waitingListener()) !== listener && (await waitingListener()) !== undefined, {
    what: 'a new listener',
  });
  await rows.receive({});
  await rows.wake();
  await until(() => kinds().includes('done'), { what: 'the message to be done' });
});

/** The process id of the connection that claims. */
async function waitingListener(): Promise<number | undefined> {
  const [found] = await database.query<{ pid: number }>(
    `select pid from pg_stat_activity
     where datname = current_database() and query like '%inbox_claim(%' and query not like '%pg_stat_activity%'`,
  );
  return found?.pid;
}

test('F112: a stop waits for what is under way, and cuts off what takes too long: it goes back, nothing is spent', async () => {
  const [first = '', second = ''] = await rows.receive({ type: 'quick' }, { type: 'slow' });
  let goOn = (): void => undefined;
  const quick = new Promise<void>((resolve) => (goOn = resolve));
  let aborted = false;
  const worker = workerWith(
    async (message, client, context) => {
      await applied(message, client, context);
      context.signal.addEventListener('abort', () => (aborted = true));
      await (message.type === 'quick' ? quick : new Promise(() => undefined));
    },
    { concurrency: 2 },
  );
  await worker.start();
  await until(() => worker.handling === 2, { what: 'both to be under way' });
  const [third = ''] = await rows.receive({});
  const stopped = worker.stop({ timeoutMs: 4_500 });
  expect(worker.stop()).toBe(stopped);
  goOn();
  expect(await stopped).toEqual({ left: 1 });
  expect(aborted).toBe(true);
  expect(kinds()).toEqual(['done', 'release']);
  expect(await rows.look(first)).toMatchObject({ status: 'done' });
  expect(await rows.look(second)).toMatchObject({ failures: 0, abandoned: 0 });
  expect((await rows.look(second))['status']).toBe('waiting');
  expect(await rows.look(third)).toMatchObject({ status: 'pending' });
  expect(await ledger()).toEqual([{ message_id: first, attempt: 1 }]);
  expect([worker.handling, pool.waitingCount, pool.idleCount]).toEqual([0, 0, pool.totalCount]);
});

test('what a handler publishes, in its transaction or in another, is caused by the message it handles', async () => {
  const traceparent = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01';
  const [id = ''] = await rows.receive({ correlation_id: 'corr', traceparent, tracestate: 'v=1' });
  expect(currentMessage()).toBeUndefined();
  const published: string[] = [];
  await workerWith(async (message, client) => {
    expect(currentMessage()).toBe(message);
    published.push(await publish(client, { type: 'a', payload: { total: 1.5 }, key: 'k', headers: { h: true } }));
    published.push(await publish(pool, { type: 'b', payloadText: '{"n": 12345678901234567890}' }));
    published.push(await publish(client, { type: 'c', payloadBytes: Buffer.from([0, 1]), causationId: 'mine' }));
    await client.query(`insert into waybill.outbox (type, payload) values ('d', '{}')`);
  }).start();
  await untilEvents('done');
  const found = await database.query(
    `select id, type, payload::text, payload_bytes, key, headers, causation_id, correlation_id, traceparent, tracestate
     from waybill.outbox order by type`,
  );
  const caused = { causation_id: id, correlation_id: 'corr', traceparent, tracestate: 'v=1' };
  expect(found).toMatchObject([
    { ...caused, id: published[0], payload: '{"total":1.5}', key: 'k', headers: { h: true } },
    { ...caused, id: published[1], payload: '{"n": 12345678901234567890}' },
    { ...caused, id: published[2], causation_id: 'mine', payload_bytes: Buffer.from([0, 1]) },
    { ...caused, type: 'd' },
  ]);
  const outside = await publish(pool, { type: 'e', deliverAt: new Date('2999-01-01T00:00:00Z') });
  expect(await database.query('select causation_id, deliver_at from waybill.outbox where id = $1', [outside])).toEqual([
    { causation_id: null, deliver_at: new Date('2999-01-01T00:00:00Z') },
  ]);
  await expect(publish(pool, { type: 'f', payload: 1, payloadText: '1' })).rejects.toThrow(TypeError);
});

test('once for a key in committed transactions, and only what is newer', async () => {
  const client = await database.connect();
  await client.query('begin');
  expect(await firstTime(client, 'charge', 'order-1', { result: 'r-1' })).toBe(true);
  await client.query('rollback');
  expect(await firstTime(client, 'charge', 'order-1', { result: 'r-2' })).toBe(true);
  expect(await firstTime(client, 'charge', 'order-1')).toBe(false);
  expect(await firstResult(client, 'charge', 'order-1')).toBe('r-2');
  expect(await firstResult(client, 'charge', 'order-2')).toBeNull();
  expect(await newer(client, 'stock', 'p', 5)).toBe(true);
  expect(await newer(client, 'stock', 'p', 5n)).toBe(false);
  expect(await newer(client, 'stock', 'p', 9_007_199_254_740_993n)).toBe(true);
  expect(await newer(client, 'stock', 'p', 9_007_199_254_740_992n)).toBe(false);
});

test('parsers of types that an application sets do not reach a message', async () => {
  const TEXT = 25;
  const odd = poolOf(3, {
    types: { getTypeParser: (type: number) => (text: string) => (type === TEXT ? text : 'odd') },
  });
  await rows.receive({ headers: { a: [1, '😀'] }, body: Buffer.from([0, 255, 10]), schema_version: 7 });
  let seen: unknown;
  await workerWith(
    (message) => {
      seen = { body: message.body, headers: message.headers, version: message.schemaVersion, seq: typeof message.seq };
      return Promise.resolve();
    },
    { pool: odd, concurrency: 2 },
  ).start();
  await untilEvents('done');
  expect(seen).toEqual({ body: Buffer.from([0, 255, 10]), headers: { a: [1, '😀'] }, version: 7, seq: 'bigint' });
});

test("the application's role handles the rows that it was granted, and no others", async () => {
  const prefix = database.name.slice(-10);
  const names = { owner: '', app: '', relay: '', observer: '' };
  for (const role of Object.keys(names) as (keyof typeof names)[]) names[role] = `t${prefix}_${role}`;
  rolesMade.push(...Object.values(names));
  await database.query(rolesSql(names));
  await database.query(`alter role ${names.app} login password 'secret'`);
  await database.query(`grant insert on ledger to ${names.app}`);
  const url = new URL(database.url);
  [url.username, url.password] = [names.app, 'secret'];
  const own = poolOf(4, { connectionString: url.href });
  const [id = ''] = await rows.receive({});
  const worker = workerWith(
    async (message, client, context) => {
      await applied(message, client, context);
      await publish(client, { type: 'invoice.sent' });
      if (message.attempt === 1) throw new TryAgain('once more', { retryInMs: 1 });
    },
    { pool: own, concurrency: 3, pollMs: 20 },
  );
  await worker.start();
  await until(() => events.length > 0, { what: 'trouble' });
  expect(events[0]).toMatchObject({ kind: 'trouble', error: { code: 'WB007' } });
  await database.query(`select waybill.grant_consumer('billing', $1)`, [names.app]);
  await until(() => kinds().includes('done'), { what: 'the message to be done' });
  expect(kinds().filter((kind) => kind !== 'trouble')).toEqual(['retry', 'done']);
  expect(await ledger()).toEqual([{ message_id: id, attempt: 2 }]);
  const stuck = await rows.receive({});
  await until(async () => (await rows.look(stuck[0] ?? ''))['status'] === 'done', { what: 'the next message' });
});

test('a worker without a server, without its consumer, or with too small a pool says so', async () => {
  const nowhere = new pg.Pool({ connectionString: 'postgres://localhost:1/none' });
  await expect(workerWith(applied, { pool: nowhere }).start()).rejects.toThrow('ECONNREFUSED');
  await nowhere.end();
  expect(() => workerWith(applied, { concurrency: 8 })).toThrow('8 connections; 8 messages at once need 9');
  const worker = workerWith(applied, { consumer: 'nobody' });
  await worker.start();
  await until(() => events.length > 0, { what: 'trouble' });
  expect(events[0]).toMatchObject({ kind: 'trouble', error: { code: 'WB004' } });
  expect(await within(worker.stop(), 5_000, 'the stop')).toEqual({ left: 0 });
});
