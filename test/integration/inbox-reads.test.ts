import type pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { InboxStore } from '../../src/postgres/inbox-store.js';
import type { FreshDatabase } from '../support/database.js';
import { receive, register } from '../support/inbox.js';
import { migratedDatabase } from '../support/migrated-database.js';

/** Rows that wait for a time far away, as after a night without a partner. */
const WAITING = 5_000;
const DUE = 10;

let database: FreshDatabase;
let client: pg.Client;
let seqs: string[];

beforeAll(async () => {
  database = await migratedDatabase();
  client = await database.connect();
  await register(client, { name: 'billing', retry_delays: ['10 s'], max_attempts: 4 });
  for (let batch = 0; batch < 10; batch += 1) {
    await receive(
      client,
      'billing',
      Array.from({ length: WAITING / 10 }, (_, n) => ({ message_id: `far-${batch}-${n}` })),
    );
  }
  await receive(
    client,
    'billing',
    Array.from({ length: DUE }, (_, n) => ({ message_id: `due-${n}` })),
  );
  await client.query(
    `update waybill.inbox set status = 'waiting', failures = 1, next_attempt_at = clock_timestamp()
       + case when message_id like 'due-%' then interval '0' else interval '8 hours' end`,
  );
  const due = await client.query<{ seq: string }>(
    `select seq::text from waybill.inbox where message_id like 'due-%' order by seq`,
  );
  seqs = due.rows.map(({ seq }) => seq);
});
afterAll(() => database.drop());

/** How many rows of the inbox a call has read, and how many it answered; it is rolled back. */
async function reads(text: string, values: unknown[]): Promise<{ answered: number; read: number }> {
  const count = async (): Promise<number> =>
    Number(
      (
        await client.query<{ n: string }>(
          `select seq_tup_read + idx_tup_fetch as n from pg_stat_xact_user_tables where relid = 'waybill.inbox'::regclass`,
        )
      ).rows[0]?.n,
    );
  await client.query('begin');
  try {
    const before = await count();
    const { rowCount } = await client.query(text, values);
    return { answered: rowCount ?? 0, read: (await count()) - before };
  } finally {
    await client.query('rollback');
  }
}

// In each form that a plan may have: as first made, and as kept after some calls. Nobody has counted the rows yet.
for (const time of ['at first', 'after some calls']) {
  test.each([
    ['a claim', `select * from waybill.inbox_claim('billing', 60)`, []],
    ['a look at what is due', `select * from waybill.inbox_due('billing', interval '0', 60)`, []],
    [
      'a claim of rows whose timers came',
      `select * from waybill.inbox_claim_rows('billing', $1, array_fill(2, array[${DUE}]))`,
      'seqs',
    ],
  ])(`%s reads what is due, and not what waits: ${time}`, async (_, text, values) => {
    const given = values === 'seqs' ? [seqs] : [];
    if (time !== 'at first') for (let n = 0; n < 6; n += 1) await reads(text, given);
    const { answered, read } = await reads(text, given);
    expect(answered).toBe(DUE);
    expect(read).toBeLessThan(10 * DUE);
  });
}

test.each([true, false])(
  'a claim brings bodies and headers only where the program hands them on: %s',
  async (claimsBodies) => {
    const lending = { use: <T>(_: string, work: (lent: pg.Client) => Promise<T>) => work(client) };
    const store = new InboxStore(lending, {
      schema: 'waybill',
      consumer: 'billing',
      now: () => 0,
      onHandled: () => undefined,
      claimsBodies,
    });
    const [first = ''] = seqs;
    await client.query(
      `update waybill.inbox set body = 'a body', headers = '{"a": 1}', traceparent = 't' where seq = $1`,
      [first],
    );
    await client.query('begin');
    try {
      const claim = await store.claimRows([{ seq: BigInt(first), attempt: null }], 60_000);
      expect(claim?.token).toMatch(/^[0-9a-f-]{36}$/);
      expect(claim?.messages).toMatchObject([
        { seq: BigInt(first), attempt: 2, consumer: 'billing', messageId: 'due-0', traceparent: 't' },
      ]);
      expect(claim?.messages.map(({ body, headers }) => [String(body), headers])).toEqual(
        claimsBodies ? [['a body', { a: 1 }]] : [['', {}]],
      );
    } finally {
      await client.query('rollback');
    }
  },
);

test('a batch that fails is settled row by row as each deserves, in one statement', async () => {
  await client.query('begin');
  try {
    const claimed = await client.query<{ seq: string; claim_token: string }>(
      `select seq::text, claim_token from waybill.inbox_claim_rows('billing', $1)`,
      [seqs],
    );
    const verdicts = ['retry', 'never', 'not-yet', 'done', 'release', 'broken', 'retry', 'done', 'never', 'retry'];
    const results = claimed.rows.map(({ seq }, n) => ({
      seq,
      verdict: verdicts[n],
      error: verdicts[n] === 'done' ? undefined : `no ${n}`,
      result: verdicts[n] === 'done' ? `yes ${n}` : undefined,
      retry_in: n === 6 ? '2 hours' : undefined,
    }));
    // Named twice: it is settled once.
    results.push({ seq: seqs[3] ?? '', verdict: 'retry', error: 'no', result: undefined, retry_in: undefined });
    const answers = await client.query<Record<string, unknown>>(
      `select seq::text, status, verdict, attempt, dead_reason,
         round(extract(epoch from next_attempt_at - clock_timestamp()))::int as due_in
       from waybill.inbox_settle('billing', $1, $2) order by seq, verdict`,
      [claimed.rows[0]?.claim_token, JSON.stringify(results)],
    );
    const answer = (n: number): unknown => answers.rows.filter((row) => row['seq'] === seqs[n]);
    const about = (seconds: number): unknown =>
      expect.toSatisfy((value: unknown) => Number(value) >= seconds - 1 && Number(value) <= 2 * seconds + 1);
    expect(answer(0)).toMatchObject([{ status: 'waiting', verdict: 'retry', attempt: 3, due_in: about(10) }]);
    expect(answer(1)).toMatchObject([{ status: 'dead', verdict: 'never', attempt: 3, dead_reason: 'never' }]);
    expect(answer(2)).toMatchObject([{ status: 'waiting', verdict: 'not-yet', attempt: 2, due_in: about(10) }]);
    expect(answer(3)).toMatchObject([
      { status: 'done', verdict: 'done' },
      { status: null, verdict: 'lost' },
    ]);
    expect(answer(4)).toMatchObject([{ status: 'pending', verdict: 'release', attempt: 2, due_in: null }]);
    expect(answer(5)).toMatchObject([{ status: 'waiting', verdict: 'broken', attempt: 3 }]);
    expect(answer(6)).toMatchObject([{ status: 'waiting', verdict: 'retry', attempt: 3, due_in: 7_200 }]);
    const rows = await client.query<Record<string, unknown>>(
      `select i.failures, i.last_error, i.result, i.claim_token, a.number, a.verdict as noted, a.error
       from waybill.inbox i left join waybill.inbox_attempt a on a.inbox_seq = i.seq
       where i.seq = any ($1) order by i.seq`,
      [seqs],
    );
    expect(rows.rows.map(({ failures, last_error, result, noted }) => [failures, last_error, result, noted])).toEqual([
      [2, 'no 0', null, 'retry'],
      [2, 'no 1', null, 'never'],
      [1, 'no 2', null, null],
      [1, null, 'yes 3', null],
      [1, 'no 4', null, null],
      [2, 'no 5', null, 'broken'],
      [2, 'no 6', null, 'retry'],
      [1, null, 'yes 7', null],
      [2, 'no 8', null, 'never'],
      [2, 'no 9', null, 'retry'],
    ]);
    expect(rows.rows.every(({ claim_token }) => claim_token === null)).toBe(true);
  } finally {
    await client.query('rollback');
  }
});
