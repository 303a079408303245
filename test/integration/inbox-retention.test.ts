import type pg from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { FreshDatabase } from '../support/database.js';
import { claim, receive, register, statuses } from '../support/inbox.js';
import { migratedDatabase } from '../support/migrated-database.js';
import { until } from '../support/waiting.js';

let database: FreshDatabase;
let client: pg.Client;

beforeAll(async () => {
  database = await migratedDatabase();
  client = await database.connect();
});
afterAll(() => database.drop());
beforeEach(async () => {
  await client.query(
    'truncate waybill.inbox, waybill.inbox_attempt, waybill.consumer, waybill.idempotency, waybill.freshness',
  );
  await register(
    client,
    { name: 'billing', retain_ids: '14 days', retain_bodies: '1 day', retain_dead: '30 days' },
    { name: 'emails' },
  );
});

describe('inbox_clean', () => {
  const clean = async (
    consumer = 'billing',
    rows = 5000,
  ): Promise<Record<string, [removed: number, remaining: number]>> => {
    const cleaned = await client.query<{ what: string; removed: string; remaining: string }>(
      'select * from waybill.inbox_clean($1, $2)',
      [consumer, rows],
    );
    return Object.fromEntries(cleaned.rows.map((row) => [row.what, [Number(row.removed), Number(row.remaining)]]));
  };
  /** A row that came to that status that many days ago. */
  const aged = async (id: string, status: string, days: number): Promise<void> => {
    await receive(client, 'billing', [{ message_id: id, ...(status === 'dead' ? { dead_reason: 'never' } : {}) }]);
    await client.query(
      `update waybill.inbox set status = $2, processed_at = case when $2 <> 'pending' then clock_timestamp() - make_interval(days => $3) end,
         received_at = clock_timestamp() - make_interval(days => $3) where message_id = $1`,
      [id, status, days],
    );
  };

  test('removes ids, bodies and dead rows, each after its time, of this consumer alone, and nothing that is unfinished', async () => {
    await aged('done 15', 'done', 15);
    await aged('discarded 15', 'discarded', 15);
    await aged('done 13', 'done', 13);
    await aged('done 0', 'done', 0);
    await aged('dead 31', 'dead', 31);
    await aged('dead 29', 'dead', 29);
    await aged('pending 400', 'pending', 400);
    await receive(client, 'emails', [{ message_id: 'x' }]);
    await client.query(
      `update waybill.inbox set status = 'done', processed_at = '2020-01-01' where consumer = 'emails'`,
    );
    expect(await clean()).toEqual({ ids: [2, 0], bodies: [1, 0], dead: [1, 0] });
    const { rows } = await client.query(
      `select message_id as id, body is null as bodiless from waybill.inbox order by seq`,
    );
    expect(rows).toEqual([
      { id: 'done 13', bodiless: true },
      { id: 'done 0', bodiless: false },
      { id: 'dead 29', bodiless: false },
      { id: 'pending 400', bodiless: false },
      { id: 'x', bodiless: false },
    ]);
    expect(await clean()).toEqual({ ids: [0, 0], bodies: [0, 0], dead: [0, 0] });
  });

  test('in bounded batches, and says how much is left', async () => {
    for (let n = 0; n < 7; n += 1) await aged(`d${n}`, 'done', 15);
    expect(await clean('billing', 3)).toMatchObject({ ids: [3, 4], bodies: [3, 1] });
    expect(await clean('billing', 3)).toMatchObject({ ids: [3, 1] });
    expect(await clean('billing', 3)).toMatchObject({ ids: [1, 0] });
  });

  test('does not wait for a row that somebody has, and takes the attempts along', async () => {
    await aged('a', 'done', 15);
    await aged('b', 'done', 15);
    await client.query(
      `insert into waybill.inbox_attempt (inbox_seq, number, verdict) select seq, 1, 'retry' from waybill.inbox`,
    );
    const other = await database.connect();
    await other.query('begin');
    await other.query(`select from waybill.inbox where message_id = 'a' for update`);
    expect(await clean()).toMatchObject({ ids: [1, 1] });
    await other.query('rollback');
    expect(await clean()).toMatchObject({ ids: [1, 0] });
    expect((await client.query('select from waybill.inbox_attempt')).rowCount).toBe(0);
  });

  test('a dead row that blocks its key stays, however old', async () => {
    await register(client, { name: 'billing', order: 'key' }, { name: 'emails' });
    await receive(client, 'billing', [
      { message_id: 'a1', key: 'a', dead_reason: 'never' },
      { message_id: 'a2', key: 'a' },
      { message_id: 'b1', key: 'b', dead_reason: 'never' },
    ]);
    await client.query(`update waybill.inbox set processed_at = '2020-01-01' where status = 'dead'`);
    expect(await clean()).toMatchObject({ dead: [1, 1] });
    expect(await statuses(client, 'billing')).toEqual({ a1: 'dead', a2: 'blocked' });
  });

  test('4.8: a dead row keeps its id for as long as ids are remembered, whatever the time of dead rows', async () => {
    await register(client, { name: 'billing', retain_dead: '1 day', retain_ids: '14 days' }, { name: 'emails' });
    await aged('dead 2', 'dead', 2);
    await aged('dead 15', 'dead', 15);
    expect(await clean()).toMatchObject({ dead: [2, 0] });
    const { rows } = await client.query(`select message_id as id, status, body from waybill.inbox`);
    expect(rows).toEqual([{ id: 'dead 2', status: 'discarded', body: null }]);
    const [again] = await receive(client, 'billing', [{ message_id: 'dead 2' }]);
    expect(again?.outcome).toBe('duplicate');
    await client.query(`update waybill.inbox set processed_at = processed_at - interval '13 days'`);
    expect(await clean()).toMatchObject({ ids: [1, 0] });
  });

  describe('4.6: a row that comes to the key of a dead one', () => {
    beforeEach(async () => {
      await register(client, { name: 'billing', order: 'key' }, { name: 'emails' });
      await receive(client, 'billing', [{ message_id: 'k1', key: 'k', dead_reason: 'never' }]);
      await client.query(`update waybill.inbox set processed_at = '2020-01-01'`);
    });

    test('while that is being removed does not wait behind nothing', async () => {
      const cleaner = await database.connect();
      await cleaner.query('begin');
      await cleaner.query(`select waybill.inbox_clean('billing')`);
      const storing = receive(client, 'billing', [{ message_id: 'k2', key: 'k' }]);
      await until(
        async () =>
          (await database.query(`select from pg_locks where locktype = 'advisory' and not granted`)).length === 1,
        { what: 'the receiver to wait for the key' },
      );
      await cleaner.query('commit');
      expect(await storing).toMatchObject([{ status: 'pending' }]);
    });

    test('before that is looked at keeps it', async () => {
      const receiver = await database.connect();
      await receiver.query('begin');
      await receive(receiver, 'billing', [{ message_id: 'k2', key: 'k' }]);
      expect(await clean()).toMatchObject({ dead: [0, 1] });
      await receiver.query('commit');
      expect(await clean()).toMatchObject({ dead: [0, 1] });
      expect(await statuses(client, 'billing')).toEqual({ k1: 'dead', k2: 'blocked' });
    });
  });
});

describe('F17: deaths to be copied', () => {
  const deaths = async (): Promise<{ message_id: string; processed_at: Date; seq: string }[]> =>
    (
      await client.query<{ message_id: string; processed_at: Date; seq: string }>(
        `select * from waybill.inbox_deaths('billing', 2)`,
      )
    ).rows;

  test('come in order, those that applications caused too, until they are said to be copied; a copy is never taken back', async () => {
    await receive(
      client,
      'billing',
      ['a', 'b', 'c'].map((message_id) => ({ message_id })),
    );
    for (const at of await claim(client, 'billing')) {
      await client.query(`select waybill.inbox_fail($1, $2, 'no', never => true)`, [at.seq, at.claim_token]);
    }
    const first = await deaths();
    expect(first.map(({ message_id }) => message_id)).toEqual(['a', 'b']);
    expect(await deaths()).toHaveLength(2);
    const copied = (seq: string | undefined): Promise<unknown> =>
      client.query(
        `select waybill.inbox_deaths_copied(consumer, processed_at, seq) from waybill.inbox where seq = $1`,
        [seq],
      );
    await copied(first[1]?.seq);
    expect((await deaths()).map(({ message_id }) => message_id)).toEqual(['c']);
    await copied(first[0]?.seq);
    expect((await deaths()).map(({ message_id }) => message_id)).toEqual(['c']);
  });
});

describe('first_time', () => {
  const first = async (by: pg.Client, key: string, result: string | null = null): Promise<boolean | undefined> =>
    (await by.query<{ first: boolean }>(`select waybill.first_time('charge', $1, $2) as first`, [key, result])).rows[0]
      ?.first;

  test('true once per scope and key, and keeps the first result', async () => {
    expect([
      await first(client, 'a', 'receipt 7'),
      await first(client, 'a', 'receipt 8'),
      await first(client, 'b'),
    ]).toEqual([true, false, true]);
    const { rows } = await client.query(
      `select waybill.first_result('charge', 'a') as a, waybill.first_result('charge', 'b') as b, waybill.first_time('other', 'a') as other`,
    );
    expect(rows).toEqual([{ a: 'receipt 7', b: null, other: true }]);
  });

  test('waits for a transaction that was first, and is the first time if that one rolls back', async () => {
    const other = await database.connect();
    for (const [end, expected] of [
      ['rollback', true],
      ['commit', false],
    ] as const) {
      await client.query('begin');
      await first(client, end);
      const second = first(other, end);
      await until(
        async () =>
          (await database.query(`select from pg_locks where not granted and locktype = 'transactionid'`)).length === 1,
        { what: 'the second to wait' },
      );
      await client.query(end);
      expect(await second).toBe(expected);
    }
  });

  test('is forgotten after its retention, in bounded batches', async () => {
    for (const key of ['a', 'b', 'c']) await first(client, key);
    await client.query(
      `update waybill.idempotency set first_at = clock_timestamp() - interval '31 days' where key <> 'c'`,
    );
    const forget = async () =>
      (await client.query(`select * from waybill.clean_idempotency('30 days', 1)`)).rows as unknown[];
    expect(await forget()).toEqual([{ removed: '1', remaining: '1' }]);
    expect(await forget()).toEqual([{ removed: '1', remaining: '0' }]);
    expect([await first(client, 'a'), await first(client, 'c')]).toEqual([true, false]);
  });
});

describe('newer', () => {
  test('true only for a version above all that were seen, per scope and key', async () => {
    const versions = [3, 1, 3, 4, 2, 10];
    const answers: unknown[] = [];
    for (const version of versions) {
      const { rows } = await client.query<{ newer: boolean }>(`select waybill.newer('orders', '7', $1) as newer`, [
        version,
      ]);
      answers.push(rows[0]?.newer);
    }
    expect(answers).toEqual([true, false, false, true, false, true]);
    expect((await client.query(`select waybill.newer('orders', '8', 1) as newer`)).rows).toEqual([{ newer: true }]);
  });

  const told = async (...keys: string[]): Promise<void> => {
    for (const key of keys) await client.query(`select waybill.newer('orders', $1, 7)`, [key]);
  };
  const ago = (days: number, ...keys: string[]) =>
    client.query(`update waybill.freshness set at = now() - make_interval(days => $1) where key = any ($2)`, [
      days,
      keys,
    ]);
  const known = async (): Promise<string[]> =>
    (await client.query<{ key: string }>('select key from waybill.freshness order by scope, key')).rows.map(
      ({ key }) => key,
    );
  /** How many days ago versions may be forgotten. */
  const limit = async (days: number): Promise<number | null | undefined> =>
    (
      await client.query<{ days: number | null }>(
        `select round(extract(epoch from now() - waybill.freshness_limit(make_interval(days => $1))) / 86400)::int as days`,
        [days],
      )
    ).rows[0]?.days;

  test('is forgotten after its retention, page by page', async () => {
    await told('a', 'b', 'c', 'd', 'e');
    await ago(91, 'a', 'c', 'e');
    let at = { next_scope: '' as string | null, next_key: '' as string | null };
    const removed: number[] = [];
    while (at.next_key !== null) {
      const { rows } = await client.query<{ removed: string } & typeof at>(
        `select * from waybill.clean_freshness(now() - interval '90 days', $1, $2, 2)`,
        [at.next_scope, at.next_key],
      );
      at = rows[0] as (typeof rows)[0];
      removed.push(Number(rows[0]?.removed));
    }
    expect(await known()).toEqual(['b', 'd']);
    expect(removed.reduce((sum, n) => sum + n)).toBe(3);
    expect(Math.max(...removed)).toBeLessThanOrEqual(2);
    expect((await client.query(`select waybill.newer('orders', 'a', 1) as newer`)).rows).toEqual([{ newer: true }]);
  });

  test('is kept for longer than any consumer remembers ids and retries, and behind what is not finished', async () => {
    expect(await limit(90)).toBeNull();
    await told('a');
    expect(await limit(90)).toBe(90);
    // ids and the age at which a message is given up: 14 + 7 days; then 100 + 7.
    expect(await limit(0)).toBe(21);
    await register(client, { name: 'billing', retain_ids: '100 days' }, { name: 'emails' });
    expect(await limit(90)).toBe(107);
    await expect(
      client.query(`select * from waybill.clean_freshness(now() - interval '106 days')`),
    ).rejects.toMatchObject({ code: '22023' });
    await receive(client, 'emails', [
      { message_id: 'a' },
      { message_id: 'b', dead_reason: 'never' },
      { message_id: 'c' },
    ]);
    await client.query(`update waybill.inbox set received_at = now() - interval '20 days' where message_id = 'a'`);
    expect(await limit(90)).toBe(127);
    await client.query(`update waybill.inbox set received_at = now() - interval '40 days' where message_id = 'b'`);
    expect(await limit(90)).toBe(147);
    // What is done, however old, asks no more.
    await client.query(`update waybill.inbox set status = 'done', dead_reason = null, processed_at = now()`);
    expect(await limit(90)).toBe(107);
  });

  test('a version that is told meanwhile is not forgotten', async () => {
    await told('a');
    await ago(91, 'a');
    const other = await database.connect();
    await other.query('begin');
    await other.query(`select waybill.newer('orders', 'a', 8)`);
    const clean = `select removed from waybill.clean_freshness(now() - interval '90 days')`;
    expect((await client.query(clean)).rows).toEqual([{ removed: '0' }]);
    await other.query('commit');
    expect((await client.query(clean)).rows).toEqual([{ removed: '0' }]);
    expect(await known()).toEqual(['a']);
  });
});

describe('clean_actions', () => {
  const logged = async (): Promise<unknown[]> =>
    (await client.query<{ target: string }>('select target from waybill.action_log order by seq')).rows.map(
      ({ target }) => target,
    );
  beforeEach(async () => {
    await client.query(`truncate waybill.action_log; insert into waybill.action_log (action, target, at)
      select 'inbox.retry', d::text, now() - make_interval(days => d) from unnest('{400,380,370,360,31,1}'::int[]) d`);
  });

  test('removes what is older, the oldest first, in bounded batches', async () => {
    const clean = async () =>
      (await client.query(`select * from waybill.clean_actions('365 days', 2)`)).rows as unknown[];
    expect(await clean()).toEqual([{ removed: '2', remaining: '1' }]);
    expect(await clean()).toEqual([{ removed: '1', remaining: '0' }]);
    expect(await logged()).toEqual(['360', '31', '1']);
  });

  test('never what was done within 30 days, or as long as the age of a retried row counts', async () => {
    await expect(client.query(`select waybill.clean_actions('29 days')`)).rejects.toMatchObject({ code: '22023' });
    await register(client, { name: 'billing', max_age: '365 days' }, { name: 'emails' });
    await client.query(`select waybill.clean_actions('30 days')`);
    expect(await logged()).toEqual(['360', '31', '1']);
  });
});

describe('payload', () => {
  const payload = async (body: Buffer | string, content_encoding: string | null = null): Promise<string> => {
    await client.query('truncate waybill.inbox cascade');
    await receive(client, 'billing', [{ message_id: 'a', body, content_encoding }]);
    const { rows } = await client.query<{ text: string }>(
      'select waybill.payload(i)::text as text from waybill.inbox i',
    );
    return rows[0]?.text ?? '';
  };

  test('F103: gives the text as it was sent', async () => {
    const text = '{"b": 12345678901234567890,  "a": 1.50, "a": "é"}';
    expect(await payload(text)).toBe(text);
    expect(await payload(`\uFEFF${text}`)).toBe(text);
    for (const encoding of ['identity', 'UTF-8', 'utf8']) expect(await payload(text, encoding)).toBe(text);
  });

  test.each([
    ['encoded', Buffer.from('{}'), 'gzip', /is encoded: "gzip"/],
    ['not UTF-8', Buffer.from([0x22, 0xff, 0x22]), null, /not UTF-8/],
    ['NUL', Buffer.from('"\u0000"'), null, /not UTF-8|not JSON/],
    ['not JSON', Buffer.from('{'), null, /not JSON/],
    ['empty', Buffer.alloc(0), null, /not JSON/],
    ['F102: nested a hundred thousand deep', Buffer.from('['.repeat(100_000)), null, /not JSON/],
  ])('F100: %s raises WB002 with a hint', async (_, body, encoding, said) => {
    await expect(payload(body, encoding)).rejects.toMatchObject({
      code: 'WB002',
      message: expect.stringMatching(said) as string,
      hint: expect.stringContaining('column body') as string,
    });
  });

  test('gone: says so', async () => {
    await payload('{}');
    await client.query(`select waybill.redact(id => 'a')`);
    await expect(client.query('select waybill.payload(i) from waybill.inbox i')).rejects.toMatchObject({
      code: 'WB002',
      message: 'the body of message "a" is gone',
    });
  });
});

test('inbox_backlog counts what is unfinished, by consumer and status', async () => {
  await receive(client, 'billing', [
    { message_id: 'a', body: '123' },
    { message_id: 'b', body: '4567' },
    { message_id: 'c', dead_reason: 'never' },
  ]);
  await receive(client, 'emails', [{ message_id: 'd' }]);
  const [at] = await claim(client, 'emails');
  await client.query('select waybill.inbox_complete($1, $2)', [at?.seq, at?.claim_token]);
  const { rows } = await client.query(
    `select consumer, status, count::int, bytes::int, oldest_age < interval '1 minute' as young from waybill.inbox_backlog order by 1, 2`,
  );
  expect(rows).toEqual([
    { consumer: 'billing', status: 'dead', count: 1, bytes: 2, young: true },
    { consumer: 'billing', status: 'pending', count: 2, bytes: 7, young: true },
  ]);
});
