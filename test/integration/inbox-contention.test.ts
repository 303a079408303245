import { randomInt } from 'node:crypto';
import type pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { FreshDatabase } from '../support/database.js';
import { claim, receive, register } from '../support/inbox.js';
import { migratedDatabase } from '../support/migrated-database.js';
import { within } from '../support/waiting.js';

const MESSAGES = 1200;
const KEYS = 40;
const WORKERS = 4;

let database: FreshDatabase;
let client: pg.Client;

beforeAll(async () => {
  database = await migratedDatabase();
  client = await database.connect();
  await client.query('create table effect (n bigserial, id text, key text, seq bigint)');
});
afterAll(() => database.drop());

const unfinished = async (by: pg.Client, consumer: string): Promise<number> => {
  const { rows } = await by.query<{ open: number }>(
    `select count(*)::int as open from waybill.inbox where consumer = $1 and status <> 'done'`,
    [consumer],
  );
  return rows[0]?.open ?? NaN;
};

/** Delivers all messages in shuffled, overlapping batches, each about twice. */
async function receiver(consumer: string): Promise<void> {
  const session = await database.connect();
  const all = Array.from({ length: MESSAGES }, (_, n) => n);
  for (let i = all.length - 1; i > 0; i -= 1) {
    const j = randomInt(i + 1);
    [all[i], all[j]] = [all[j] ?? 0, all[i] ?? 0];
  }
  while (all.length > 0) {
    const batch = all.splice(0, randomInt(1, 60));
    await receive(
      session,
      consumer,
      batch.map((n) => ({ message_id: `m${n}`, key: `k${n % KEYS}` })),
    );
  }
  await session.end();
}

/** Works until all is done; fails, defers, gives back, vanishes and dies in the middle of a transaction now and then. */
async function worker(consumer: string, received: () => boolean): Promise<string[]> {
  const unexpected: string[] = [];
  let session = await database.connect();
  while (!received() || (await unfinished(session, consumer)) > 0) {
    // As the program does now and then: what came while somebody had its key is an orphan.
    await session.query('select waybill.inbox_sweep($1)', [consumer]);
    const rows = await claim(session, consumer, randomInt(1, 8), '1 second');
    for (const at of rows) {
      const dice = randomInt(100);
      try {
        if (dice < 5) {
          await session.query(`select waybill.inbox_fail($1, $2, 'dice', '10 ms')`, [at.seq, at.claim_token]);
        } else if (dice < 8) {
          await session.query(`select waybill.inbox_defer($1, $2, '10 ms')`, [at.seq, at.claim_token]);
        } else if (dice < 10) {
          await session.query(`select waybill.inbox_release($1, $2)`, [at.seq, at.claim_token]);
        } else if (dice < 12) {
          break;
        } else {
          await session.query('begin');
          await session.query('insert into effect (id, key, seq) values ($1, $2, $3)', [at.message_id, at.key, at.seq]);
          await session.query('select waybill.inbox_complete($1, $2)', [at.seq, at.claim_token]);
          if (dice < 14) {
            await session.end();
            session = await database.connect();
            break;
          }
          await session.query('commit');
        }
      } catch (error) {
        const { code } = error as pg.DatabaseError;
        await session.query('rollback');
        if (code !== 'WB003') unexpected.push(`${code}: ${(error as Error).message}`);
      }
    }
  }
  await session.end();
  return unexpected;
}

/** Has a key, longer than anybody waits for it, some times. */
async function idler(consumer: string, received: () => boolean): Promise<void> {
  const session = await database.connect();
  for (let times = 0; times < 4 && !received(); times += 1) {
    await session.query('begin');
    await session.query("select pg_advisory_xact_lock(waybill.key_lock($1, 'k0')), pg_sleep(1.2)", [consumer]);
    await session.query('commit');
  }
  await session.end();
}

test.each(['none', 'key'])(
  'F18, F124: two receivers and four workers that fail, vanish and crash: each effect once, no row lost; order: %s',
  async (order) => {
    await register(client, {
      name: order,
      order,
      retry_delays: ['10 ms'],
      max_attempts: 1000,
      max_abandoned: 1000,
    });
    let receiving = 2;
    const receivers = [1, 2].map(() => receiver(order).finally(() => (receiving -= 1)));
    const idling = idler(order, () => receiving === 0);
    const workers = Array.from({ length: WORKERS }, () => worker(order, () => receiving === 0));
    await within(Promise.all(receivers), 60_000, 'the receivers');
    // A token that is lost raises; nothing else does, and nobody deadlocks.
    expect((await within(Promise.all(workers), 60_000, 'the workers')).flat()).toEqual([]);
    await idling;
    const { rows } = await client.query<{ effects: number; distinct: number; stored: number }>(
      `select count(*)::int as effects, count(distinct id)::int as distinct,
         (select count(*)::int from waybill.inbox where consumer = $1 and status = 'done') as stored from effect`,
      [order],
    );
    expect(rows).toEqual([{ effects: MESSAGES, distinct: MESSAGES, stored: MESSAGES }]);
    const overtaken = await client.query(
      'select from (select seq, lag(seq) over (partition by key order by n) as before from effect) e where before > seq',
    );
    if (order === 'key') expect(overtaken.rowCount).toBe(0);
    await client.query('truncate effect');
  },
);
