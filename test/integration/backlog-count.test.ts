import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import type pg from 'pg';
import { readBacklog, readParkedErrors, type Backlog } from '../../src/postgres/backlog.js';
import { readConsumers } from '../../src/postgres/inbox-backlog.js';
import type { FreshDatabase } from '../support/database.js';
import { migratedDatabase } from '../support/migrated-database.js';
import { until } from '../support/waiting.js';

/** Generous, for tests of what is counted: on a busy machine the usual time may run out before the first row. */
const PATIENT_MS = 10_000;
/** What a look with the usual budget may take on such a machine. */
const LIMIT_MS = 1_000;

describe('counting never hurts: the backlog of a long table', () => {
  let database: FreshDatabase;
  let client: pg.Client;

  beforeAll(async () => {
    database = await migratedDatabase();
    client = await database.connect();
    await client.query('alter table waybill.outbox set (autovacuum_enabled = false)');
  });
  beforeEach(() => client.query('truncate waybill.outbox'));
  afterAll(() => database.drop());

  const insert = (state: string, rows: number) =>
    client.query(
      `insert into waybill.outbox (type, key, state, hold_no, next_attempt_at, created_at)
       select 't', 'k' || i % 1000, $1::text, case when $1::text in ('parked', 'blocked') then i end, now() + interval '1 hour', now() - interval '10 minutes'
       from generate_series(1, $2::int) i`,
      [state, rows],
    );
  const look = (): Promise<Backlog> => readBacklog(client, 'waybill', PATIENT_MS);
  /** With the usual budget. */
  const quickLook = async (): Promise<Backlog> => {
    const start = performance.now();
    const backlog = await readBacklog(client, 'waybill');
    expect(performance.now() - start).toBeLessThan(LIMIT_MS);
    return backlog;
  };
  const of = (backlog: Backlog, state: string) => backlog.states.find((each) => each.state === state);

  it('a short one is counted', async () => {
    await insert('ready', 300);
    await insert('parked', 2);
    const backlog = await look();
    expect(backlog.states.map(({ state, count, accuracy }) => [state, count, accuracy])).toEqual([
      ['parked', 2, 'exact'],
      ['ready', 300, 'exact'],
    ]);
    expect(of(backlog, 'ready')?.oldestAgeMs).toBeGreaterThan(599_000);
  });

  it('a long one is estimated near the truth, and what stands out in it is counted', async () => {
    await insert('ready', 150_000);
    await insert('parked', 3);
    await insert('scheduled', 12_000);
    const backlog = await look();
    const ready = of(backlog, 'ready');
    expect(ready?.accuracy).toBe('about');
    expect(Math.abs((ready?.count ?? 0) / 150_000 - 1)).toBeLessThan(0.25);
    expect(ready?.oldestAgeMs).toBeGreaterThan(599_000);
    expect(of(backlog, 'parked')).toMatchObject({ count: 3, accuracy: 'exact' });
    expect(of(backlog, 'scheduled')).toMatchObject({ count: 5_000, accuracy: 'at-least' });
    expect(of(backlog, 'blocked')).toBeUndefined();
    expect(of(await quickLook(), 'ready')?.accuracy).not.toBe('exact');
  });

  it('parked rows behind a long backlog are counted by their index, and so are their errors', async () => {
    await insert('ready', 150_000);
    await insert('parked', 40);
    await client.query('analyze waybill.outbox');
    const scans = async (): Promise<number> => {
      // Otherwise a session hands its counts over once a second.
      await client.query('select pg_stat_force_next_flush()');
      const rows = await database.query<{ n: number }>(
        "select idx_scan::int as n from pg_stat_user_indexes where indexrelname = 'outbox_key_order'",
      );
      return rows[0]?.n ?? 0;
    };
    const before = await scans();
    expect(of(await look(), 'parked')).toMatchObject({ count: 40, accuracy: 'exact' });
    const counted = await scans();
    expect(counted).toBeGreaterThan(before);
    await readParkedErrors(client, 'waybill');
    expect(await scans()).toBeGreaterThan(counted);
    // On a busy machine the time may be over before the first row.
    await until(async () => (await readParkedErrors(client, 'waybill')).map(({ count }) => count).join() === '40', {
      what: 'the errors',
    });
  });

  it('rows before the ready ones do not hide them', async () => {
    await insert('scheduled', 12_000);
    await insert('ready', 5);
    const backlog = await look();
    expect(of(backlog, 'scheduled')).toMatchObject({ count: 5_000, accuracy: 'at-least' });
    expect(of(backlog, 'ready')?.accuracy).toBe('about');
    expect(of(backlog, 'ready')?.count).toBeLessThan(2_000);
    expect(of(backlog, 'ready')?.oldestAgeMs).toBeGreaterThan(599_000);
  });

  it('a long one that there was no time to look at is not called an estimate: what is known is a lower bound', async () => {
    await insert('ready', 150_000);
    expect((await readBacklog(client, 'waybill', 1)).states).toEqual([
      { state: 'ready', count: 0, accuracy: 'at-least', oldestAgeMs: null },
    ]);
  });

  it('dead rows that vacuum has not removed make it an estimate, not a long wait', async () => {
    await insert('ready', 150_000);
    await client.query('delete from waybill.outbox');
    await insert('ready', 4);
    const backlog = await quickLook();
    const ready = of(backlog, 'ready');
    // Counted in time, or said to be an estimate; never a wrong number that looks like a count.
    if (ready?.accuracy === 'exact') expect(ready.count).toBe(4);
    else expect(['about', 'at-least']).toContain(ready?.accuracy);
  });

  it('errors of very many parked rows are still grouped in time', async () => {
    await insert('parked', 100_000);
    const start = performance.now();
    const errors = await readParkedErrors(client, 'waybill');
    expect(performance.now() - start).toBeLessThan(LIMIT_MS);
    for (const { count } of errors) expect(count).toBeLessThanOrEqual(5_000);
  });

  it('the size of the history is estimated without reading it', async () => {
    await client.query(
      `insert into waybill.outbox_history (outcome, id, type) select 'published', gen_random_uuid(), 't' from generate_series(1, 50000)`,
    );
    // A session hands its counts over once a second, with a statement.
    const { history } = await look();
    expect(history.partitions).toBeGreaterThan(0);
    expect(history.bytes).toBeGreaterThan(1e6);
    await until(async () => Math.abs((await look()).history.rows / 50_000 - 1) < 0.1, {
      what: 'the statistics to have it',
    });
  });

  it('an inbox is counted by consumer and status; what is done costs nothing', async () => {
    await client.query(
      `insert into waybill.consumer (name, owner, queue) values ('billing', 'team-a', 'billing'), ('emails', null, 'emails')`,
    );
    const receive = (consumer: string, status: string, rows: number, processed: boolean) =>
      client.query(
        `insert into waybill.inbox (consumer, message_id, body, body_hash, status, processed_at, dead_reason, received_at)
         select $1::text, $2::text || n, 'x', sha256('x'), $2::text, case when $4::bool then now() end,
           case when $2::text = 'dead' then 'attempts' end, now() - interval '10 minutes'
         from generate_series(1, $3::int) n`,
        [consumer, status, rows, processed],
      );
    await receive('billing', 'done', 100_000, true);
    await receive('billing', 'pending', 6_000, false);
    await receive('billing', 'dead', 2, true);
    const start = performance.now();
    await readConsumers(client, 'waybill');
    expect(performance.now() - start).toBeLessThan(LIMIT_MS);
    const consumers = await readConsumers(client, 'waybill', PATIENT_MS);
    expect(consumers).toMatchObject([
      {
        name: 'billing',
        owner: 'team-a',
        pausedAt: null,
        pausedBy: null,
        states: [
          { state: 'pending', count: 1_000, accuracy: 'at-least' },
          { state: 'dead', count: 2, accuracy: 'exact' },
        ],
      },
      { name: 'emails', owner: null, states: [] },
    ]);
    expect(consumers[0]?.states?.[1]?.oldestAgeMs).toBeGreaterThan(599_000);
  });

  it('what is due in an inbox and not taken up is counted, by the time since which it is due', async () => {
    await client.query(`insert into waybill.consumer (name, queue, handler) values ('late', 'late', 'store')`);
    const receive = (status: string, receivedAgo: string, dueAgo: string | null, rows: number) =>
      client.query(
        `insert into waybill.inbox (consumer, message_id, key, body, body_hash, status, received_at, next_attempt_at,
           lease_until, claim_token, dead_reason, processed_at)
         select 'late', gen_random_uuid()::text, 'k', 'x', sha256('x'), $1::text, now() - $2::interval,
           case when $1 = 'waiting' then now() - $3::interval end,
           case when $1 = 'running' then now() - $3::interval end,
           case when $1 = 'running' then gen_random_uuid() end,
           case when $1 = 'dead' then 'attempts' end, case when $1 = 'dead' then now() end
         from generate_series(1, $4::int)`,
        [status, receivedAgo, dueAgo, rows],
      );
    const late = async () =>
      (await readConsumers(client, 'waybill', PATIENT_MS)).find(({ name }) => name === 'late')?.late;
    await receive('pending', '4 min', null, 7);
    await receive('waiting', '9 h', '-10 min', 7);
    await receive('waiting', '9 h', '4 min', 7);
    await receive('running', '9 h', '-1 min', 7);
    await receive('blocked', '9 h', null, 7);
    await receive('dead', '9 h', null, 7);
    expect(await late()).toBeNull();
    await receive('waiting', '6 h', '10 min', 2);
    await receive('running', '7 h', '10 min', 1);
    expect(await late()).toMatchObject({ count: 3, accuracy: 'exact' });
    await receive('pending', '8 h', null, 1_100);
    expect(await late()).toMatchObject({ count: 997, accuracy: 'at-least' });
    expect(Math.round(((await late())?.oldestAgeMs ?? 0) / 3_600_000)).toBe(8);
  });

  it('the oldest of many that wait is found, however late it is its turn', async () => {
    await client.query(`insert into waybill.consumer (name, queue, handler) values ('held', 'held', 'store')`);
    const hold = (status: string, key: string, receivedAgo: string, rows: number) =>
      client.query(
        `insert into waybill.inbox (consumer, message_id, key, body, body_hash, status, received_at, next_attempt_at)
         select 'held', gen_random_uuid()::text, $2::text || n, 'x', sha256('x'), $1::text, now() - $3::interval,
           case when $1 = 'waiting' then now() + $3::interval end from generate_series(1, $4::int) n`,
        [status, key, receivedAgo, rows],
      );
    await hold('waiting', 'a', '1 h', 1_500);
    await hold('waiting', 'a', '9 h', 1);
    await hold('blocked', 'a', '2 h', 1_500);
    await hold('blocked', 'z', '7 h', 1);
    const { states } = (await readConsumers(client, 'waybill', PATIENT_MS)).find(({ name }) => name === 'held') ?? {};
    expect(
      states?.map(({ state, count, oldestAgeMs }) => [state, count, Math.round((oldestAgeMs ?? 0) / 3_600_000)]),
    ).toEqual([
      ['waiting', 1_000, 9],
      ['blocked', 1_000, 7],
    ]);
  });
});
