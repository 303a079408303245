import { afterAll, afterEach, beforeAll, expect, it } from 'vitest';
import type { FreshDatabase } from '../support/database.js';
import { InboxRows } from '../support/inbox-rows.js';
import { migratedDatabase } from '../support/migrated-database.js';
import type { PostgresServer } from '../support/servers/postgres-server.js';
import { startPostgres } from '../support/servers/postgres.js';
import { until } from '../support/waiting.js';
import { killWorkers, WorkerProcess } from '../support/worker-process.js';
import { buildProgram } from '../integration/built-program.js';

const MESSAGES = 600;
let server: PostgresServer;
let database: FreshDatabase;
let rows: InboxRows;

beforeAll(async () => {
  [server] = await Promise.all([startPostgres({ own: true, durable: true }), buildProgram()]);
});
afterEach(async () => {
  await killWorkers();
  await database.drop();
});
afterAll(() => server.close());

/** A consumer with messages of 20 keys, and the table in which their effects are counted. */
async function scene(settings: Record<string, unknown> = {}): Promise<void> {
  database = await migratedDatabase({ server });
  rows = new InboxRows(database, 'billing');
  await database.query('create table ledger (place bigserial, message_id text, key text, seq bigint)');
  await rows.register({ max_abandoned: 100, ...settings });
  await rows.receive(...Array.from({ length: MESSAGES }, (_, n) => ({ key: `k${n % 20}` })));
}

const start = () => new WorkerProcess({ DATABASE_URL: database.url, CONSUMER: 'billing' });

async function allDone(): Promise<void> {
  await until(async () => (await rows.counts())['done'] === MESSAGES, {
    withinMs: 90_000,
    everyMs: 100,
    what: 'all messages to be done',
  });
}

/** Each effect once, and none of a message that is not there. */
async function expectLedgerToMatch(): Promise<void> {
  const [found] = await database.query(
    `select count(*)::int as effects, count(distinct l.message_id)::int as messages, count(i.seq)::int as known
     from ledger l left join waybill.inbox i on i.consumer = 'billing' and i.message_id = l.message_id`,
  );
  expect(found).toEqual({ effects: MESSAGES, messages: MESSAGES, known: MESSAGES });
}

it('consumer crash in the middle of processing: four workers killed again and again, each effect once (F12-F14, F18, F124)', async () => {
  await scene();
  const workers = Array.from({ length: 4 }, start);
  for (let kills = 0; kills < 8; kills += 1) {
    const victim = workers.shift()!;
    await victim.waitFor('handling', 15);
    await victim.kill9();
    workers.push(start());
  }
  await allDone();
  expect(await Promise.all(workers.map((worker) => worker.stop()))).toEqual([0, 0, 0, 0]);
  await expectLedgerToMatch();
  expect(await database.query('select sum(failures)::int as failures from waybill.inbox')).toEqual([{ failures: 0 }]);
});

it('order: key with four workers, two of them killed: the effects of each key in their order', async () => {
  await scene({ order: 'key' });
  const workers = Array.from({ length: 4 }, start);
  for (let kills = 0; kills < 2; kills += 1) {
    const victim = workers.shift()!;
    await victim.waitFor('handling', 20);
    await victim.kill9();
    workers.push(start());
  }
  await allDone();
  await expectLedgerToMatch();
  const outOfOrder = await database.query(
    `select * from (select key, seq, lag(seq) over (partition by key order by place) as before from ledger) l
     where before > seq`,
  );
  expect(outOfOrder).toEqual([]);
});

it('PostgreSQL killed and stopped at once under four messages at a time: nothing lost, nothing twice, nothing spent (F13, F20, I4)', async () => {
  await scene();
  const worker = start();
  for (const fault of ['kill9', 'immediate', 'fast'] as const) {
    await worker.waitFor('done', worker.count('done') + 100);
    if (fault === 'kill9') await server.kill9();
    else await server.stop(fault);
    await server.start();
  }
  await allDone();
  await expectLedgerToMatch();
  expect(await database.query('select sum(failures)::int as failures from waybill.inbox')).toEqual([{ failures: 0 }]);
  expect(await worker.stop()).toBe(0);
});
