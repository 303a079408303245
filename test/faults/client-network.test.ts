import pg from 'pg';
import { afterAll, afterEach, beforeAll, beforeEach, expect, it } from 'vitest';
import { InboxWorker, type Handle, type WorkerEvent } from '../../src/client/index.js';
import { sharedPostgres, type FreshDatabase } from '../support/database.js';
import { startFaultProxy, type FaultProxy } from '../support/fault-proxy.js';
import { InboxRows } from '../support/inbox-rows.js';
import { migratedDatabase } from '../support/migrated-database.js';
import { until, within } from '../support/waiting.js';
import type { WireUnit } from '../support/wire/units.js';

let database: FreshDatabase;
let rows: InboxRows;
let proxy: FaultProxy;
let pool: pg.Pool;
let worker: InboxWorker<pg.PoolClient>;
let events: WorkerEvent[];

beforeAll(async () => {
  proxy = await startFaultProxy({ targetPort: sharedPostgres().port });
});
afterAll(() => proxy.close());

beforeEach(async () => {
  database = await migratedDatabase();
  await database.query('create table ledger (message_id text)');
  rows = new InboxRows(database, 'billing');
  await rows.register();
  events = [];
  pool = new pg.Pool({ connectionString: proxy.url(database.url), max: 3 });
  pool.on('error', () => undefined);
});
afterEach(async () => {
  proxy.resume();
  await worker.stop({ timeoutMs: 0 });
  await pool.end();
  await database.drop();
});

const applied: Handle<pg.PoolClient> = async (message, client) => {
  await client.query('insert into ledger values ($1)', [message.messageId]);
};

async function start(handle = applied): Promise<void> {
  worker = new InboxWorker<pg.PoolClient>({
    pool,
    consumer: 'billing',
    handle,
    concurrency: 1,
    pollMs: 50,
    onEvent: (event) => events.push(event),
  });
  await worker.start();
}

const ended = () => events.filter(({ kind }) => kind !== 'trouble').map(({ kind }) => kind);
const untilEnded = (...kinds: WorkerEvent['kind'][]) =>
  until(() => JSON.stringify(ended()) === JSON.stringify(kinds), { what: `attempts to end as ${kinds.join(', ')}` });
const completes = (tag: string) => (unit: WireUnit) =>
  unit.names.includes('pg.server.command_complete') && unit.body.toString('latin1').startsWith(tag);
const asks = (text: string) => (unit: WireUnit) =>
  unit.names.includes('pg.client.query') && unit.body.toString('latin1').startsWith(text);

it('the answer to the commit is lost: what was committed counts once, and the message is not tried again (F13)', async () => {
  const cut = proxy.at(completes('COMMIT'), 1, 'cut-before');
  const [id = ''] = await rows.receive({});
  await start();
  await within(cut, 10_000, 'the commit');
  await untilEnded('lost');
  expect(await rows.look(id)).toMatchObject({ status: 'done', failures: 0, abandoned: 0 });
  expect(await database.query('select * from ledger')).toEqual([{ message_id: id }]);
});

it('the connection breaks before the commit is sent: nothing of it stays, and the message comes again, unspent (F13, I4)', async () => {
  const cut = proxy.at(asks('commit'), 1, 'cut-before');
  const [id = ''] = await rows.receive({});
  await start();
  await within(cut, 10_000, 'the commit');
  await untilEnded('release', 'done');
  expect(await rows.look(id)).toMatchObject({ status: 'done', failures: 0, abandoned: 0 });
  expect(await database.query('select * from ledger')).toEqual([{ message_id: id }]);
});

it('the answer to a claim is lost: the lease runs out, and another claim finds the message (F12)', async () => {
  const cut = proxy.at(
    (unit) => unit.names.includes('pg.server.data_row') && unit.body.includes('billing'),
    1,
    'cut-before',
  );
  const [id = ''] = await rows.receive({});
  await start();
  await within(cut, 10_000, 'the claim');
  await until(() => events.some(({ kind }) => kind === 'trouble'), { what: 'trouble' });
  expect(await rows.counts()).toEqual({ running: 1 });
  await rows.pass();
  await untilEnded('done');
  expect(await rows.look(id)).toMatchObject({ status: 'done', failures: 0, abandoned: 1 });
});

it('a network that swallows everything does not hold up a stop, and nothing commits afterwards (F64, F112)', async () => {
  const [id = ''] = await rows.receive({});
  let isAtWork = false;
  await start(async (message, client, context) => {
    await applied(message, client, context);
    isAtWork = true;
    await new Promise<void>((resolve) => context.signal.addEventListener('abort', () => resolve()));
  });
  await until(() => isAtWork, { what: 'the handler to be at work' });
  proxy.stall();
  expect(await within(worker.stop({ timeoutMs: 2_500 }), 10_000, 'the stop')).toEqual({ left: 1 });
  expect(worker.handling).toBe(0);
  proxy.resume();
  expect(await database.query('select * from ledger')).toEqual([]);
  expect(['running', 'waiting']).toContain((await rows.look(id))['status']);
});
