/**
 * How long the counts and lists of operators take with a million pending rows and ten million in the history and in the
 * inbox: fresh, analysed, and after the rows of the outbox were deleted and not vacuumed. What `status`, the metrics and
 * doctor count must be there within 50 ms. Usage: npx tsx test/bench/status.ts [pending] [history and inbox] [keep]; with
 * `keep` the server is filled and stays until Ctrl-C, and its URL is printed. With such a URL instead of numbers, what is
 * there is measured and left as it is.
 */
import { once } from 'node:events';
import pg from 'pg';
import { groupDeadMessages, listConsumers, listInbox, showInbox } from '../../src/app/inbox-admin.js';
import { listOutbox } from '../../src/app/outbox-admin.js';
import { traceMessage } from '../../src/app/trace.js';
import { loadConfig } from '../../src/config/load.js';
import { readBacklog, readParkedErrors } from '../../src/postgres/backlog.js';
import { readConsumers } from '../../src/postgres/inbox-backlog.js';
import { inspectConsumers, inspectHazards } from '../../src/postgres/inspect-hazards.js';
import { migrateUp } from '../../src/postgres/migrations.js';
import { startPostgres } from '../support/servers/postgres.js';
import { fillBacklog } from './backlog-fill.js';

const PENDING = Number(process.argv[2] ?? 1_000_000);
const HISTORY = Number(process.argv[3] ?? 10_000_000);
const KEPT = process.argv[4] === 'keep';
const LIMIT_MS = 50;

const FILLED = process.argv[2]?.startsWith('postgres') === true ? process.argv[2] : undefined;

const postgres = FILLED
  ? { url: () => FILLED, close: () => Promise.resolve() }
  : await startPostgres({ own: true, settings: { shared_buffers: '512MB', max_wal_size: '4GB' } });
try {
  const client = new pg.Client({ connectionString: postgres.url() });
  client.on('error', () => undefined);
  await client.connect();
  if (FILLED) {
    await counts('as it is');
    await lists();
    await client.end();
    process.exit();
  }
  await migrateUp(client);
  await counts('empty');
  const began = performance.now();
  await fillBacklog(client, { pending: PENDING, history: HISTORY, inbox: HISTORY });
  console.log(`filled in ${Math.round((performance.now() - began) / 1000)} s`);
  if (KEPT) {
    console.log(postgres.url());
    await once(process, 'SIGINT');
  } else {
    await counts(`${PENDING} ready, 40,000 held, ${HISTORY} each in history and inbox, fresh`);
    await client.query('analyze waybill.outbox, waybill.inbox');
    await counts('the same, analysed');
    await lists();
    await client.query('alter table waybill.outbox set (autovacuum_enabled = false)');
    await client.query('delete from waybill.outbox');
    await counts('the outbox all deleted, not vacuumed');
  }
  await client.end();

  /** What is asked at every interval, and by everybody who looks. */
  async function counts(what: string): Promise<void> {
    console.log(what);
    let shown = '';
    await measure('counts of the outbox', LIMIT_MS, async () => {
      const { states, history } = await readBacklog(client, 'waybill');
      await readParkedErrors(client, 'waybill');
      const parts = states.map(({ state, count, accuracy }) => `${state} ${accuracy} ${count}`);
      shown = [...parts, `history about ${history.rows}`].join(', ');
    });
    console.log(`    ${shown}`);
    await measure('counts of the inbox', LIMIT_MS, async () => {
      const consumers = await readConsumers(client, 'waybill');
      shown = consumers
        .map(({ name, states }) => {
          const parts = states?.map(({ state, count, accuracy }) => `${state} ${accuracy} ${count}`);
          return `${name}: ${parts?.join(', ') ?? 'not counted'}`;
        })
        .join('; ');
    });
    console.log(`    ${shown}`);
    await measure('what doctor counts', LIMIT_MS, async () => {
      await inspectHazards(client, 'waybill', []);
      const names = ['billing', 'mails', 'search', 'stock'].map((name) => ({ name, function: null }));
      await inspectConsumers(client, 'waybill', names);
    });
  }

  /** What an operator asks for: each opens a connection of its own, as the command does. */
  async function lists(): Promise<void> {
    const { database } = loadConfig({
      environment: { WAYBILL_DATABASE_URL: postgres.url(), WAYBILL_BROKER_URL: 'amqp://localhost' },
      readFile: () => '',
    });
    const one = async (sql: string): Promise<string> => {
      const { rows } = await client.query<{ id: string }>(sql);
      return rows[0]?.id ?? '';
    };
    const sent = await one(`select id::text from waybill.outbox_history where type = 'rare' limit 1`);
    const dead = await one(
      `select message_id as id from waybill.inbox where status = 'dead' and consumer = 'stock' limit 1`,
    );
    const lastHour = { agoMs: 3_600_000 };
    console.log('lists, with the connection');
    await measure('outbox list', undefined, () => listOutbox(database, {}, 50));
    await measure('outbox list --state parked', undefined, () => listOutbox(database, { states: ['parked'] }, 50));
    await measure('outbox list --state scheduled --error', undefined, () =>
      listOutbox(database, { states: ['scheduled'], error: 'exchange 6' }, 50),
    );
    await measure('outbox list --state cancelled', undefined, () =>
      listOutbox(database, { states: ['cancelled'] }, 50),
    );
    await measure('outbox list --key', undefined, () => listOutbox(database, { key: 'k7' }, 50));
    await measure('outbox list --key, of none', undefined, () => listOutbox(database, { key: 'none' }, 50));
    await measure('outbox list --since 1h --type, of none', undefined, () =>
      listOutbox(database, { type: 'none', since: lastHour }, 50),
    );
    await measure('inbox list', undefined, () => listInbox(database, {}, 50));
    for (const status of ['pending', 'running', 'waiting', 'blocked', 'done', 'dead', 'discarded']) {
      await measure(`inbox list --status ${status}`, undefined, () => listInbox(database, { states: [status] }, 50));
      await measure(`inbox list --status ${status} --consumer`, undefined, () =>
        listInbox(database, { states: [status], consumer: 'stock' }, 50),
      );
    }
    await measure('inbox list --type, rare', undefined, () => listInbox(database, { type: 'rare' }, 50));
    await measure('inbox list --key', undefined, () => listInbox(database, { key: 'k7' }, 50));
    await measure('inbox list --key, of none', undefined, () => listInbox(database, { key: 'none' }, 50));
    await measure('inbox list --since 1h', undefined, () => listInbox(database, { since: lastHour }, 50));
    await measure('inbox list --since 1h --key, of none', undefined, () =>
      listInbox(database, { since: lastHour, key: 'none' }, 50),
    );
    await measure('inbox list --id', undefined, () => listInbox(database, { ids: [dead] }, 50));
    await measure('dead list', undefined, () => listInbox(database, { states: ['dead'] }, 50));
    await measure('dead list --since 1h --error', undefined, () =>
      listInbox(database, { states: ['dead'], since: lastHour, error: 'customer 7' }, 50),
    );
    for (const by of ['error', 'type', 'id'] as const) {
      await measure(`dead list --group ${by}`, undefined, () => groupDeadMessages(database, {}, by, 50));
    }
    await measure('inbox show', undefined, () => showInbox(database, dead, undefined, false));
    await measure('consumer list', undefined, () => listConsumers(database));
    await measure('trace of a published message', undefined, () => traceMessage(database, sent));
    await measure('trace of a dead message', undefined, () => traceMessage(database, dead));
    await measure('trace of nothing', undefined, () => traceMessage(database, 'nothing'));
  }
} finally {
  await postgres.close();
}

/** The first time is with cold caches. `limitMs` is what the median must not exceed. */
async function measure(what: string, limitMs: number | undefined, work: () => Promise<unknown>): Promise<void> {
  const times: number[] = [];
  const end = performance.now() + 10_000;
  let problem = '';
  while (times.length < 21 && (times.length === 0 || performance.now() < end) && problem === '') {
    const start = performance.now();
    try {
      await work();
    } catch (error) {
      problem = `  FAILED: ${String(error)}`;
    }
    times.push(performance.now() - start);
  }
  const first = times[0] ?? 0;
  times.sort((a, b) => a - b);
  const median = times[Math.floor(times.length / 2)] ?? 0;
  const verdict = limitMs !== undefined && median > limitMs ? `  OVER ${limitMs} ms` : '';
  if (verdict !== '') process.exitCode = 1;
  const numbers = `first ${first.toFixed(0)} ms, median ${median.toFixed(0)} ms, longest ${(times.at(-1) ?? 0).toFixed(0)} ms`;
  console.log(`  ${what.padEnd(44)} ${numbers}${verdict}${problem}`);
}
