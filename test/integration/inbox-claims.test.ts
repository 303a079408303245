import type pg from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { FreshDatabase } from '../support/database.js';
import { claim, receive, register, statuses, type Claimed } from '../support/inbox.js';
import { migratedDatabase } from '../support/migrated-database.js';

let database: FreshDatabase;
let client: pg.Client;
let other: pg.Client;

beforeAll(async () => {
  database = await migratedDatabase();
  client = await database.connect();
  other = await database.connect();
  await client.query('create table ledger (id text primary key)');
});
afterAll(() => database.drop());
beforeEach(async () => {
  await client.query('truncate waybill.inbox, waybill.inbox_attempt, waybill.consumer, waybill.action_log, ledger');
  await register(client, { name: 'billing', retry_delays: ['10 s', '20 s', '1 h'], max_attempts: 4 });
});

/** One message, claimed. */
async function claimed(id = 'a', by: pg.Client = client): Promise<Claimed> {
  await receive(client, 'billing', [{ message_id: id }]);
  const [row] = await claim(by, 'billing', 1);
  if (!row) throw new Error('nothing to claim');
  return row;
}

async function row(id = 'a'): Promise<Record<string, unknown>> {
  const found = await client.query<Record<string, unknown>>(
    `select status, failures, abandoned, last_error, dead_reason, result, claim_token, locked_by, body is null as bodiless,
       extract(epoch from next_attempt_at - clock_timestamp())::float8 as due_in
     from waybill.inbox where message_id = $1`,
    [id],
  );
  return found.rows[0] ?? {};
}

const makeDue = () =>
  client.query(`update waybill.inbox set next_attempt_at = clock_timestamp() where status = 'waiting'`);
const expireLeases = () =>
  client.query(`update waybill.inbox set lease_until = clock_timestamp() where status = 'running'`);
const fail = async (at: Claimed, ...more: string[]): Promise<unknown> =>
  (
    await client.query<{ to: string }>(`select waybill.inbox_fail($1, $2, 'no' ${more.join('')}) as to`, [
      at.seq,
      at.claim_token,
    ])
  ).rows[0]?.to;

describe('inbox_claim', () => {
  test('gives each row to one worker, in order, with a token and a lease', async () => {
    await receive(
      client,
      'billing',
      ['c', 'a', 'b'].map((message_id) => ({ message_id, body: message_id })),
    );
    const first = await claim(client, 'billing', 2, '30 seconds');
    const second = await claim(other, 'billing', 2);
    expect(first.map(({ message_id, attempt }) => [message_id, attempt])).toEqual([
      ['c', 1],
      ['a', 1],
    ]);
    expect(second.map(({ message_id, body }) => [message_id, String(body)])).toEqual([['b', 'b']]);
    expect(first[0]?.claim_token).toBe(first[1]?.claim_token);
    expect(first[0]?.claim_token).not.toBe(second[0]?.claim_token);
    expect((first[0]?.lease_until.getTime() ?? 0) - Date.now()).toBeGreaterThan(25_000);
    expect(await claim(client, 'billing')).toEqual([]);
  });

  test('two at once never give the same row, and never wait for one another', async () => {
    await receive(
      client,
      'billing',
      Array.from({ length: 400 }, (_, n) => ({ message_id: `${n}` })),
    );
    await client.query('begin');
    const held = await claim(client, 'billing', 100);
    const rest = await claim(other, 'billing', 1000);
    await client.query('commit');
    expect(new Set([...held, ...rest].map(({ seq }) => seq)).size).toBe(400);
  });

  test('takes rows that are due again before new ones, and none before its time', async () => {
    await fail(await claimed('old'));
    await receive(client, 'billing', [{ message_id: 'new' }]);
    expect((await claim(client, 'billing')).map(({ message_id }) => message_id)).toEqual(['new']);
    await receive(client, 'billing', [{ message_id: 'newer' }]);
    await makeDue();
    const rows = await claim(client, 'billing', 1);
    expect(rows.map(({ message_id, attempt }) => [message_id, attempt])).toEqual([['old', 2]]);
  });

  test('F126: what a breaker has noted of its own process stops nobody, and is not a pause that is resumed', async () => {
    await receive(client, 'billing', [{ message_id: 'a' }]);
    await client.query(`select waybill.consumer_break('billing', 'HTTP 404')`);
    expect(await claim(client, 'billing')).toHaveLength(1);
  });

  test('nothing while an operator has paused the consumer', async () => {
    await receive(client, 'billing', [{ message_id: 'a' }]);
    await client.query(`select waybill.consumer_pause('billing', 'deploying')`);
    expect(await claim(client, 'billing')).toEqual([]);
    await client.query(`select waybill.consumer_resume('billing')`);
    expect(await claim(client, 'billing')).toHaveLength(1);
  });

  test.each([
    ['an unknown consumer', `select waybill.inbox_claim('nobody')`, 'WB004'],
    ['no rows', `select waybill.inbox_claim('billing', 0)`, '22023'],
    ['too many rows', `select waybill.inbox_claim('billing', 1001)`, '22023'],
    ['a lease of nothing', `select waybill.inbox_claim('billing', 1, '0')`, '22023'],
    ['a lease of two days', `select waybill.inbox_claim('billing', 1, '2 days')`, '22023'],
  ])('refuses %s', async (_, sql, code) => {
    await expect(client.query(sql)).rejects.toMatchObject({ code });
  });
});

describe('inbox_complete', () => {
  test('F14: commits with the effect, keeps the result, and the body for its retention', async () => {
    const at = await claimed();
    await client.query('begin');
    await client.query(`insert into ledger values ('a')`);
    await client.query(`select waybill.inbox_complete($1, $2, 'invoice 7')`, [at.seq, at.claim_token]);
    await client.query('commit');
    expect(await row()).toMatchObject({
      status: 'done',
      result: 'invoice 7',
      claim_token: null,
      locked_by: null,
      bodiless: false,
    });
    expect((await receive(client, 'billing', [{ message_id: 'a' }]))[0]).toMatchObject({
      outcome: 'duplicate',
      status: 'done',
    });
  });

  test('retention of bodies 0: the body goes at once', async () => {
    await register(client, { name: 'billing', retain_bodies: '0' });
    const at = await claimed();
    await client.query('select waybill.inbox_complete($1, $2)', [at.seq, at.claim_token]);
    expect(await row()).toMatchObject({ status: 'done', bodiless: true });
  });

  test('F12: a crash in the middle leaves neither the effect nor the completion, and the lease brings it back', async () => {
    const worker = await database.connect();
    const at = await claimed('a', worker);
    await worker.query('begin');
    await worker.query(`insert into ledger values ('a')`);
    await worker.query(`select waybill.inbox_complete($1, $2)`, [at.seq, at.claim_token]);
    await client.query(`select pg_terminate_backend($1)`, [(worker as unknown as { processID: number }).processID]);
    await expect(worker.query('commit')).rejects.toThrow();
    expect((await client.query('select from ledger')).rowCount).toBe(0);
    expect(await row()).toMatchObject({ status: 'running' });
    await expireLeases();
    expect((await claim(client, 'billing'))[0]).toMatchObject({ message_id: 'a', attempt: 2 });
  });

  test('F124: the worker whose lease expired and whose row another one has gets WB003, and its effect rolls back', async () => {
    const zombie = await claimed();
    await expireLeases();
    const [second] = await claim(other, 'billing');
    await client.query('begin');
    await client.query(`insert into ledger values ('zombie')`);
    await expect(
      client.query('select waybill.inbox_complete($1, $2)', [zombie.seq, zombie.claim_token]),
    ).rejects.toMatchObject({ code: 'WB003', detail: 'The row is running.' });
    await client.query('rollback');
    await other.query('begin');
    await other.query(`insert into ledger values ('second')`);
    await other.query('select waybill.inbox_complete($1, $2)', [second?.seq, second?.claim_token]);
    await other.query('commit');
    expect((await client.query('select id from ledger')).rows).toEqual([{ id: 'second' }]);
  });

  test('a lease that expired costs nothing as long as nobody else has the row', async () => {
    const at = await claimed();
    await expireLeases();
    await client.query('select waybill.inbox_complete($1, $2)', [at.seq, at.claim_token]);
    expect(await row()).toMatchObject({ status: 'done', abandoned: 0 });
  });

  test.each([
    ['inbox_complete', '$1, $2'],
    ['inbox_fail', `$1, $2, 'x'`],
    ['inbox_defer', '$1, $2'],
    ['inbox_release', '$1, $2'],
    ['inbox_extend', '$1, $2'],
    ['inbox_handling', '$1, $2'],
  ])('I7: %s with a wrong token, of a settled row or of none raises WB003 and changes nothing', async (name, args) => {
    const at = await claimed();
    const call = (seq: string, token: string) => client.query(`select waybill.${name}(${args})`, [seq, token]);
    const wrong = '00000000-0000-4000-8000-000000000000';
    const before = await row();
    await expect(call(at.seq, wrong)).rejects.toMatchObject({ code: 'WB003' });
    await expect(call('999999', wrong)).rejects.toMatchObject({ code: 'WB003' });
    expect(await row()).toEqual(before);
    await client.query('select waybill.inbox_complete($1, $2)', [at.seq, at.claim_token]);
    await expect(call(at.seq, at.claim_token)).rejects.toMatchObject({ code: 'WB003' });
    expect(await row()).toMatchObject({ status: 'done' });
  });
});

describe('inbox_fail', () => {
  test('F104: waits by the schedule, only ever longer, and is dead after its attempts, each of them kept', async () => {
    let at = await claimed();
    const delays: unknown[] = [];
    for (let attempt = 1; ; attempt += 1) {
      expect(at.attempt).toBe(attempt);
      const to = await fail(at);
      if (to === 'dead') break;
      delays.push((await row())['due_in']);
      await makeDue();
      at = (await claim(client, 'billing'))[0] as Claimed;
    }
    const least = [10, 20, 3600];
    expect(delays).toHaveLength(3);
    delays.forEach((delay, index) => {
      expect(delay).toBeGreaterThan((least[index] ?? NaN) - 1);
      expect(delay).toBeLessThanOrEqual((least[index] ?? NaN) * 2);
    });
    expect(await row()).toMatchObject({ status: 'dead', dead_reason: 'attempts', failures: 4, last_error: 'no' });
    const attempts = await client.query(
      'select number, verdict, error, worker is not null as said from waybill.inbox_attempt order by number',
    );
    expect(attempts.rows).toEqual(
      [1, 2, 3, 4].map((number) => ({ number, verdict: 'retry', error: 'no', said: true })),
    );
  });

  test('the delays are spread over the whole of their range', async () => {
    await receive(
      client,
      'billing',
      Array.from({ length: 100 }, (_, n) => ({ message_id: `${n}` })),
    );
    for (const at of await claim(client, 'billing', 100)) await fail(at);
    const { rows } = await client.query<{ least: number; most: number }>(
      `select min(extract(epoch from next_attempt_at - clock_timestamp()))::float8 as least,
         max(extract(epoch from next_attempt_at - clock_timestamp()))::float8 as most from waybill.inbox`,
    );
    expect(rows[0]?.least).toBeLessThan(12);
    expect(rows[0]?.most).toBeGreaterThan(17);
  });

  test('retry_in is kept as it is said, and cut at 30 days; a negative one is refused', async () => {
    const at = await claimed();
    await expect(fail(at, `, '-1 s'`)).rejects.toMatchObject({ code: '22023' });
    await fail(at, `, '3 minutes'`);
    expect((await row())['due_in']).toBeCloseTo(180, 0);
    await makeDue();
    await fail((await claim(client, 'billing'))[0] as Claimed, `, '1 year'`);
    expect((await row())['due_in']).toBeCloseTo(30 * 86_400, -1);
  });

  test('never: dead at once', async () => {
    expect(await fail(await claimed(), ', never => true')).toBe('dead');
    expect(await row()).toMatchObject({ status: 'dead', dead_reason: 'never', failures: 1 });
  });

  test('I5: a row that is too old is dead at its next failure, however few it had; an operator may give it new time', async () => {
    const at = await claimed();
    await client.query(`update waybill.inbox set received_at = clock_timestamp() - interval '8 days'`);
    expect(await fail(at)).toBe('dead');
    expect(await row()).toMatchObject({ dead_reason: 'age' });
    await client.query(`select waybill.inbox_retry('billing', 'a')`);
    expect(await fail((await claim(client, 'billing'))[0] as Claimed)).toBe('waiting');
  });
});

describe('inbox_defer', () => {
  test('"an event delayed by minutes": its data is not there yet, no attempt is spent, and it is bounded by age', async () => {
    let at = await claimed();
    for (let round = 0; round < 20; round += 1) {
      const { rows } = await client.query<{ to: string }>(
        `select waybill.inbox_defer($1, $2, error => 'no order 7') as to`,
        [at.seq, at.claim_token],
      );
      expect(rows[0]?.to).toBe('waiting');
      await makeDue();
      at = (await claim(client, 'billing'))[0] as Claimed;
      expect(at.attempt).toBe(1);
    }
    expect((await client.query('select from waybill.inbox_attempt')).rowCount).toBe(0);
    await client.query(`update waybill.inbox set received_at = clock_timestamp() - interval '25 hours'`);
    await client.query(`select waybill.inbox_defer($1, $2, error => 'no order 7')`, [at.seq, at.claim_token]);
    expect(await row()).toMatchObject({
      status: 'dead',
      dead_reason: 'not-yet',
      failures: 0,
      last_error: 'no order 7',
    });
    expect((await client.query('select verdict from waybill.inbox_attempt')).rows).toEqual([{ verdict: 'not-yet' }]);
  });

  test('waits as long as it is told, and by itself longer and longer, up to 20 minutes', async () => {
    const defer = async (at: Claimed, delay: string | null): Promise<number> => {
      await client.query('select waybill.inbox_defer($1, $2, $3)', [at.seq, at.claim_token, delay]);
      const waits = Number((await row())['due_in']);
      await makeDue();
      return waits;
    };
    expect(await defer(await claimed(), '90 s')).toBeCloseTo(90, 0);
    const next = async () => (await claim(client, 'billing'))[0] as Claimed;
    const early = await defer(await next(), null);
    await client.query(`update waybill.inbox set received_at = clock_timestamp() - interval '10 hours'`);
    const late = await defer(await next(), null);
    expect(early).toBeGreaterThan(9);
    expect(early).toBeLessThanOrEqual(20);
    expect(late).toBeGreaterThan(599);
    expect(late).toBeLessThanOrEqual(1200);
  });
});

describe('inbox_release', () => {
  test('gives the row back as if it had not been claimed, also past every age', async () => {
    const at = await claimed();
    await client.query(`update waybill.inbox set received_at = clock_timestamp() - interval '1 year'`);
    await client.query('select waybill.inbox_release($1, $2)', [at.seq, at.claim_token]);
    expect(await row()).toMatchObject({ status: 'pending', failures: 0, abandoned: 0, claim_token: null });
    const [again] = await claim(client, 'billing');
    expect(again?.attempt).toBe(1);
    await client.query(`select waybill.inbox_release($1, $2, '1 minute', 'stopping')`, [
      again?.seq,
      again?.claim_token,
    ]);
    expect(await row()).toMatchObject({ status: 'waiting', last_error: 'stopping', failures: 0 });
  });
});

describe('inbox_extend', () => {
  test('prolongs the lease from now, and the row is not given to others meanwhile', async () => {
    const at = await claimed();
    await expireLeases();
    const { rows } = await client.query<{ until: Date }>(`select waybill.inbox_extend($1, $2, '5 minutes') as until`, [
      at.seq,
      at.claim_token,
    ]);
    expect((rows[0]?.until.getTime() ?? 0) - Date.now()).toBeGreaterThan(290_000);
    expect(await claim(other, 'billing')).toEqual([]);
  });
});

describe('expired leases', () => {
  test('F125: count as abandoned, not as failures; after two the row comes alone, and after five it is dead: suspect', async () => {
    await receive(
      client,
      'billing',
      ['poison', 'a', 'b', 'c'].map((message_id) => ({ message_id })),
    );
    const seen: string[][] = [];
    for (let round = 0; round < 5; round += 1) {
      const rows = await claim(client, 'billing');
      seen.push(rows.map(({ message_id }) => message_id));
      if (round < 2) {
        // Twice it takes others down with it; here these are as if it had not.
        await client.query(`update waybill.inbox set abandoned = 0 where message_id <> 'poison'`);
      }
      await expireLeases();
    }
    expect(seen[0]).toEqual(['poison', 'a', 'b', 'c']);
    expect(seen.slice(2)).toEqual([['poison'], ['poison'], ['poison']]);
    const rest = await claim(client, 'billing');
    expect(rest.map(({ message_id }) => message_id)).not.toContain('poison');
    expect(await row('poison')).toMatchObject({ status: 'dead', dead_reason: 'suspect', failures: 0, abandoned: 5 });
    const attempts = await client.query(
      `select verdict from waybill.inbox_attempt a join waybill.inbox i on i.seq = a.inbox_seq where message_id = 'poison'`,
    );
    expect(attempts.rows).toEqual(Array.from({ length: 5 }, () => ({ verdict: 'abandoned' })));
  });

  test('a suspect that is not due does not keep others waiting', async () => {
    await receive(client, 'billing', [{ message_id: 'a', hold: true }, { message_id: 'b' }]);
    const [alone] = await claim(client, 'billing');
    expect(alone).toMatchObject({ message_id: 'a', attempt: 3 });
    await fail(alone as Claimed);
    expect((await claim(client, 'billing')).map(({ message_id }) => message_id)).toEqual(['b']);
    expect(await statuses(client, 'billing')).toEqual({ a: 'waiting', b: 'running' });
  });
});

describe('what the handler of a message publishes', () => {
  test('defaults to being caused by it; what is said stays as it is said; the next transaction is free of it', async () => {
    await receive(client, 'billing', [
      { message_id: 'cause', correlation_id: 'story', traceparent: 'tp', tracestate: 'ts' },
    ]);
    const [at] = await claim(client, 'billing');
    await client.query('begin');
    await client.query('select waybill.inbox_handling($1, $2)', [at?.seq, at?.claim_token]);
    await client.query(`select waybill.publish('by.publish')`);
    await client.query(`select waybill.publish_many('[{"type": "by.many"}]')`);
    await client.query(`insert into waybill.outbox (type) values ('by.insert')`);
    await client.query(`select waybill.publish('own', causation_id => 'x', correlation_id => 'y', traceparent => 'z')`);
    await client.query('commit');
    await client.query(`select waybill.publish('later')`);
    const { rows } = await client.query(
      'select type, causation_id as c, correlation_id as r, traceparent as p, tracestate as s from waybill.outbox order by seq',
    );
    const caused = { c: 'cause', r: 'story', p: 'tp', s: 'ts' };
    expect(rows).toEqual([
      { type: 'by.publish', ...caused },
      { type: 'by.many', ...caused },
      { type: 'by.insert', ...caused },
      { type: 'own', c: 'x', r: 'y', p: 'z', s: 'ts' },
      { type: 'later', c: null, r: null, p: null, s: null },
    ]);
  });
});
