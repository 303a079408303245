import type pg from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { readConsumers } from '../../src/postgres/inbox-backlog.js';
import { listConsumerRows } from '../../src/postgres/inbox-operations.js';
import { inspectConsumers } from '../../src/postgres/inspect-hazards.js';
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
    `truncate waybill.inbox, waybill.inbox_attempt, waybill.consumer, waybill.consumer_grant, waybill.action_log,
       waybill.outbox, waybill.outbox_history`,
  );
  await register(client, { name: 'billing' }, { name: 'emails' });
});

async function answer(call: string): Promise<unknown> {
  return (await client.query<{ answer: unknown }>(`select waybill.${call} as answer`)).rows[0]?.answer;
}
const actions = async (): Promise<unknown[]> =>
  (
    await client.query<Record<string, unknown>>(
      'select action, target, reason, details from waybill.action_log order by seq',
    )
  ).rows;

/** A message of billing in that status. */
async function message(status: string, id = 'a'): Promise<void> {
  await receive(client, 'billing', [{ message_id: id, key: 'k', type: 't', body: '{"card": 1}' }]);
  await client.query(
    `update waybill.inbox set status = $2, failures = 3, abandoned = 1, last_error = 'boom',
       next_attempt_at = case when $2 = 'waiting' then clock_timestamp() + interval '1 hour' end,
       claim_token = case when $2 = 'running' then gen_random_uuid() end,
       lease_until = case when $2 = 'running' then clock_timestamp() end,
       dead_reason = case when $2 = 'dead' then 'attempts' end,
       processed_at = case when $2 in ('done', 'dead', 'discarded') then clock_timestamp() end
     where message_id = $1`,
    [id, status],
  );
}

const STATUSES = ['pending', 'running', 'waiting', 'blocked', 'done', 'dead', 'discarded'];

describe.each([
  [
    'inbox_retry',
    `inbox_retry('billing', 'a', 'mended')`,
    { dead: 'pending', waiting: 'pending' },
    { pending: 'pending', running: 'running', blocked: 'blocked', done: 'already applied', discarded: 'discarded' },
  ],
  [
    'inbox_replay',
    `inbox_replay('billing', 'a', 'mended')`,
    { dead: 'pending', waiting: 'pending', discarded: 'pending' },
    { pending: 'pending', running: 'running', blocked: 'blocked', done: 'already applied' },
  ],
  [
    'F129: inbox_replay with force',
    `inbox_replay('billing', 'a', 'mended', force => true)`,
    { dead: 'pending', waiting: 'pending', discarded: 'pending', done: 'pending' },
    { pending: 'pending', running: 'running', blocked: 'blocked' },
  ],
  [
    'inbox_discard',
    `inbox_discard('billing', 'a', 'mended')`,
    { dead: 'discarded', waiting: 'discarded', pending: 'discarded', blocked: 'discarded' },
    { running: 'running', done: 'already applied', discarded: 'already discarded' },
  ],
  [
    'inbox_postpone',
    `inbox_postpone('billing', 'a', '1 hour', 'mended')`,
    { pending: 'waiting', waiting: 'waiting' },
    { running: 'running', blocked: 'blocked', done: 'already applied', dead: 'dead', discarded: 'discarded' },
  ],
])('%s', (_, call, changing: Record<string, string>, refused: Record<string, string>) => {
  test.each(Object.entries(changing))(
    'of a %s row: %s, in the action_log with the row as it was',
    async (status, expected) => {
      await message(status);
      expect(await answer(call)).toBe(expected);
      expect(await statuses(client, 'billing')).toEqual({ a: expected });
      expect(await actions()).toMatchObject([
        {
          action: expect.stringMatching(/^inbox\.(retry|replay|discard|defer)$/) as string,
          target: 'a',
          reason: 'mended',
          details: {
            consumer: 'billing',
            status,
            type: 't',
            failures: 3,
            abandoned: 1,
            error: 'boom',
            answer: expected,
          },
        },
      ]);
    },
  );

  test.each(Object.entries(refused))('of a %s row: %s, and nothing is changed', async (status, expected) => {
    await message(status);
    expect(await answer(call)).toBe(expected);
    expect(await statuses(client, 'billing')).toEqual({ a: status });
    expect(await actions()).toEqual([]);
  });

  test('covers every status, and tells what never was', async () => {
    expect([...Object.keys(changing), ...Object.keys(refused)].sort()).toEqual(STATUSES.toSorted());
    expect(await answer(call)).toBe('unknown');
  });

  test('acts on one consumer only', async () => {
    await receive(client, 'emails', [{ message_id: 'a' }]);
    expect(await answer(call)).toBe('unknown');
    expect(await statuses(client, 'emails')).toEqual({ a: 'pending' });
  });
});

test('a retry counts attempts anew and keeps the id; without a body there is none', async () => {
  await message('dead');
  await answer(`inbox_retry('billing', 'a')`);
  expect((await claim(client, 'billing'))[0]).toMatchObject({ message_id: 'a', attempt: 1 });
  await message('dead', 'b');
  await client.query(`update waybill.inbox set body = null where message_id = 'b'`);
  expect(await answer(`inbox_retry('billing', 'b')`)).toBe('body is gone');
  expect(await answer(`inbox_replay('billing', 'b', force => true)`)).toBe('body is gone');
});

test('what an operator lets go wakes those who listen', async () => {
  const listener = await database.connect();
  const heard = new Promise((resolve) => listener.once('notification', resolve));
  await listener.query('listen waybill_inbox');
  await message('dead');
  await answer(`inbox_retry('billing', 'a')`);
  expect(await heard).toMatchObject({ channel: 'waybill_inbox', payload: 'billing' });
});

test('rows of a consumer that is not registered any more can be seen to', async () => {
  await message('dead');
  await client.query('truncate waybill.consumer');
  expect(await answer(`inbox_discard('billing', 'a')`)).toBe('discarded');
});

describe('consumers', () => {
  test('pause and resume; a pause by the breaker gives way to an operator, not the other way round', async () => {
    expect(await answer(`consumer_break('billing', 'no function')`)).toBe(true);
    expect(await answer(`consumer_break('billing', 'no function')`)).toBe(false);
    expect(await answer(`consumer_resume('billing')`)).toBe('not paused');
    expect(await answer(`consumer_pause('billing', 'looking')`)).toBe('paused');
    expect(await answer(`consumer_pause('billing', 'looking')`)).toBe('already paused');
    expect(await answer(`consumer_mend('billing')`)).toBe(false);
    expect(await answer(`consumer_resume('billing', 'found it')`)).toBe('resumed');
    expect(await answer(`consumer_resume('billing')`)).toBe('not paused');
    expect(await answer(`consumer_pause('nobody', 'x')`)).toBe('unknown');
    expect(await answer(`consumer_resume('nobody')`)).toBe('unknown');
    expect(await actions()).toMatchObject([
      { action: 'consumer.pause', target: 'billing', reason: 'looking' },
      {
        action: 'consumer.resume',
        target: 'billing',
        reason: 'found it',
        details: { paused_by: 'operator', paused_reason: 'looking' },
      },
    ]);
  });

  test('what a breaker notes counts for two minutes after it was said last, wherever pauses are shown', async () => {
    const shown = async () => [
      (await readConsumers(client, 'waybill')).find(({ name }) => name === 'billing')?.pausedBy,
      (await listConsumerRows(client, 'waybill')).find(({ name }) => name === 'billing')?.pausedBy,
      (await inspectConsumers(client, 'waybill', [{ name: 'billing', function: null }]))[0]?.pausedBy,
    ];
    const pass = (seconds: number) =>
      client.query('update waybill.consumer set paused_until = paused_until - make_interval(secs => $1)', [seconds]);
    const since = async () =>
      (await client.query<{ at: Date }>(`select paused_at as at from waybill.consumer where name = 'billing'`)).rows[0]
        ?.at;
    await answer(`consumer_break('billing', 'HTTP 404')`);
    const began = await since();
    await pass(110);
    expect(await shown()).toEqual(['breaker', 'breaker', 'breaker']);
    // Said again: it counts anew, and since when it is so does not change.
    expect(await answer(`consumer_break('billing', 'HTTP 404')`)).toBe(false);
    expect(await since()).toEqual(began);
    await pass(110);
    expect(await shown()).toEqual(['breaker', 'breaker', 'breaker']);
    await pass(11);
    expect(await shown()).toEqual([null, null, null]);
    expect(await answer(`consumer_break('billing', 'HTTP 404')`)).toBe(true);
    expect((await since())?.getTime()).toBeGreaterThan(began?.getTime() ?? Infinity);
    // An operator's word counts until it is taken back.
    await answer(`consumer_pause('billing', 'looking')`);
    await pass(1_000);
    expect(await shown()).toEqual(['operator', 'operator', 'operator']);
  });

  test('are updated at each start; what is left out has its default', async () => {
    const again = await register(
      client,
      { name: 'billing', owner: 'team', max_attempts: 3, retry_delays: ['1500 ms'] },
      { name: 'new' },
    );
    expect(again).toEqual([
      { name: 'billing', action: 'updated' },
      { name: 'new', action: 'created' },
    ]);
    await register(client, { name: 'billing' });
    const { rows } = await client.query(
      `select owner, max_attempts, retry_delays::text from waybill.consumer where name = 'billing'`,
    );
    expect(rows).toEqual([
      { owner: null, max_attempts: 8, retry_delays: '{00:00:01,00:00:05,00:00:30,00:02:00,00:10:00,01:00:00}' },
    ]);
  });

  test.each([
    [{ handler: 'magic' }, 'consumer_handler_is_known'],
    [{ handler: 'sql' }, 'consumer_sql_handlers_have_a_function'],
    [{ handler: 'sql', function: 'no_schema' }, 'consumer_function_is_schema_and_name'],
    [{ order: 'time' }, 'consumer_ordering_is_known'],
    [{ on_dead: 'shrug' }, 'consumer_on_dead_is_known'],
    [{ retry_delays: [] }, 'consumer_retry_delays_are_1_to_32'],
    [{ retry_delays: ['0 s'] }, 'consumer_retry_delays_are_positive'],
    [{ max_attempts: 0 }, 'consumer_max_attempts_is_at_least_1'],
    [{ max_age: '0' }, 'consumer_ages_are_positive'],
    [{ retain_ids: '0' }, 'consumer_retentions_are_not_negative'],
  ])('with %o are refused: %s', async (wrong, constraint) => {
    await expect(register(client, { name: 'x', ...wrong })).rejects.toMatchObject({ constraint });
  });

  test('F128: a new name on the queue of one that vanished is refused, unless it is said to be another consumer', async () => {
    await expect(register(client, { name: 'invoices', queue: 'billing' }, { name: 'emails' })).rejects.toMatchObject({
      code: 'WB005',
      message: expect.stringContaining('"invoices"') as string,
      hint: expect.stringContaining(`waybill.rename_consumer('billing', 'invoices')`) as string,
    });
    // Both are configured: two consumers of one queue are somebody's wish.
    await register(client, { name: 'invoices', queue: 'billing' }, { name: 'billing' });
    await client.query(`delete from waybill.consumer where name = 'invoices'`);
    const { rows } = await client.query<{ action: string }>(
      `select action from waybill.register_consumers('[{"name": "invoices", "queue": "billing"}]', accept_new => true)`,
    );
    expect(rows).toEqual([{ action: 'created' }]);
  });

  test('F128: a renamed consumer still knows what it has applied', async () => {
    await message('done');
    await answer(`grant_consumer('billing', current_user)`);
    expect(await answer(`rename_consumer('billing', 'invoices', 'new team')`)).toBe('1');
    await register(client, { name: 'invoices', queue: 'billing' });
    const [again] = await receive(client, 'invoices', [{ message_id: 'a', body: '{"card": 1}' }]);
    expect(again?.outcome).toBe('duplicate');
    expect((await client.query('select consumer from waybill.consumer_grant')).rows).toEqual([
      { consumer: 'invoices' },
    ]);
    await receive(client, 'emails', [{ message_id: 'x' }]);
    await expect(answer(`rename_consumer('emails', 'invoices')`)).rejects.toMatchObject({ code: '22023' });
    await expect(answer(`rename_consumer('nobody', 'somebody')`)).rejects.toMatchObject({ code: 'WB004' });
  });

  describe('F128: a rename in steps', () => {
    const moved = async (afterSeq: string, rows: number): Promise<{ moved: string; next_seq: string | null }> =>
      (
        await client.query<{ moved: string; next_seq: string | null }>(
          `select * from waybill.rename_rows('billing', 'invoices', $1, $2)`,
          [afterSeq, rows],
        )
      ).rows[0] as { moved: string; next_seq: string | null };
    const renamed = { code: 'WB005', message: 'consumer "billing" is being renamed to "invoices"' };
    beforeEach(async () => {
      for (const id of ['a', 'b', 'c', 'd', 'e']) await message('done', id);
      await receive(client, 'emails', [{ message_id: 'a' }]);
      await answer(`grant_consumer('billing', current_user)`);
    });

    test('half done, a copy is not taken for a new message under either name; the rest goes on', async () => {
      await answer(`rename_begin('billing', 'invoices')`);
      expect(await answer(`rename_wait()`)).toEqual([]);
      const first = await moved('0', 2);
      expect(first.moved).toBe('2');
      for (const name of ['billing', 'invoices']) {
        for (const id of ['a', 'e']) {
          await expect(receive(client, name, [{ message_id: id, body: '{"card": 1}' }])).rejects.toMatchObject(renamed);
        }
        await expect(claim(client, name)).rejects.toMatchObject(renamed);
        for (const call of [
          `inbox_replay('${name}', 'a', force => true)`,
          `inbox_discard('${name}', 'a')`,
          `forget_consumer('${name}', force => true)`,
          `register_consumers('[{"name": "${name}", "queue": "billing"}]', accept_new => true)`,
          `inbox_sweep('${name}')`,
        ]) {
          await expect(answer(call)).rejects.toMatchObject(renamed);
        }
      }
      expect(await receive(client, 'emails', [{ message_id: 'f' }])).toMatchObject([{ outcome: 'inserted' }]);
      expect(await answer(`rename_finish('billing', 'invoices')`)).toBe(false);
      // Somebody who begins anew goes on.
      await answer(`rename_begin('billing', 'invoices')`);
      expect(await moved('0', 100)).toEqual({ moved: '3', next_seq: null });
      expect(await answer(`rename_finish('billing', 'invoices', 'new team', 5)`)).toBe(true);
      for (const id of ['a', 'b', 'c', 'd', 'e']) {
        expect(await receive(client, 'invoices', [{ message_id: id, body: '{"card": 1}' }])).toMatchObject([
          { outcome: 'duplicate' },
        ]);
      }
      expect(await statuses(client, 'emails')).toEqual({ a: 'pending', f: 'pending' });
      expect((await client.query('select consumer from waybill.consumer_grant')).rows).toEqual([
        { consumer: 'invoices' },
      ]);
      expect((await actions()).at(-1)).toMatchObject({
        action: 'consumer.rename',
        target: 'invoices',
        reason: 'new team',
        details: { from: 'billing', rows: 5 },
      });
    });

    test('waits for a receiver that has read the settings before, and takes its row along', async () => {
      const receiver = await database.connect();
      await receiver.query('begin');
      await receive(receiver, 'billing', [{ message_id: 'late', body: '1' }]);
      const pid = (await receiver.query<{ pid: number }>('select pg_backend_pid() as pid')).rows[0]?.pid;
      await answer(`rename_begin('billing', 'invoices')`);
      expect(await answer(`rename_wait('0')`)).toEqual([pid]);
      const waiting = database.query<{ pids: number[] }>(`select waybill.rename_wait() as pids`);
      await receiver.query('commit');
      expect(await waiting).toEqual([{ pids: [] }]);
      expect(await answer(`rename_cancel('billing', 'invoices')`)).toBe(true);
      expect(await receive(client, 'billing', [{ message_id: 'late', body: '1' }])).toMatchObject([
        { outcome: 'duplicate' },
      ]);
      await answer(`rename_begin('billing', 'invoices')`);
      expect(await moved('0', 100)).toMatchObject({ moved: '6' });
      expect(await answer(`rename_cancel('billing', 'invoices')`)).toBe(false);
      await answer(`rename_finish('billing', 'invoices')`);
      expect(await receive(client, 'invoices', [{ message_id: 'late', body: '1' }])).toMatchObject([
        { outcome: 'duplicate' },
      ]);
    });

    test('is refused where the new name is taken, and only goes where it was to go', async () => {
      for (const [call, code] of [
        [`rename_begin('billing', 'emails')`, '22023'],
        [`rename_begin('billing', 'billing')`, '22023'],
        [`rename_begin('nobody', 'somebody')`, 'WB004'],
        [`rename_rows('billing', 'invoices')`, '55000'],
        [`rename_finish('billing', 'invoices')`, '55000'],
      ] as const) {
        await expect(answer(call)).rejects.toMatchObject({ code });
      }
      await answer(`rename_begin('billing', 'invoices')`);
      await expect(answer(`rename_begin('billing', 'other')`)).rejects.toMatchObject(renamed);
      await expect(answer(`rename_begin('emails', 'invoices')`)).rejects.toMatchObject(renamed);
      await expect(answer(`rename_rows('billing', 'other')`)).rejects.toMatchObject({ code: '55000' });
    });
  });

  test('are forgotten with their rows, not while some are unfinished', async () => {
    await message('dead');
    await message('done', 'b');
    expect(await answer(`forget_consumer('billing')`)).toBe('unfinished rows: 1');
    expect(await answer(`forget_consumer('billing', 'gone', force => true)`)).toBe('forgotten');
    expect((await client.query(`select from waybill.inbox`)).rowCount).toBe(0);
    expect(await answer(`forget_consumer('billing')`)).toBe('unknown');
  });
});

describe('redact', () => {
  const redact = async (args: string): Promise<Record<string, number>> => {
    const { rows } = await client.query<{ place: string; rows: string }>(
      `select * from waybill.redact(${args}, reason => 'asked to')`,
    );
    return Object.fromEntries(rows.map((row) => [row.place, Number(row.rows)]));
  };
  const SECRET = 'ann@example.org';
  /** Everything that Waybill keeps, as text. */
  const everything = async (): Promise<string> => {
    const tables = ['inbox', 'inbox_attempt', 'outbox', 'outbox_history', 'action_log'];
    let all = '';
    for (const table of tables) {
      const { rows } = await client.query<{ text: string }>(
        `select coalesce(string_agg(t::text, ' '), '') as text from waybill.${table} t`,
      );
      all += rows[0]?.text ?? '';
    }
    return all;
  };
  const kept = async (): Promise<boolean> => {
    const text = await everything();
    return text.includes(SECRET) || text.includes(Buffer.from(SECRET).toString('hex'));
  };

  test('by key: nothing of the person stays in any table, ids do, and what is unfinished is discarded', async () => {
    const all = {
      key: SECRET,
      type: 't',
      headers: { mail: SECRET },
      routing_key: SECRET,
      correlation_id: SECRET,
      reply_to: SECRET,
    };
    for (const consumer of ['billing', 'emails']) {
      await receive(client, consumer, [
        { message_id: 'done', body: SECRET, ...all },
        { message_id: 'failed', body: SECRET, ...all },
        {
          message_id: 'odd',
          body: SECRET,
          ...all,
          dead_reason: 'malformed',
          error: SECRET,
          raw_properties: Buffer.from(SECRET).toString('base64'),
        },
        { message_id: 'other', key: 'bob' },
      ]);
    }
    const rows = await claim(client, 'billing', 2);
    await client.query('select waybill.inbox_complete($1, $2, $3)', [rows[0]?.seq, rows[0]?.claim_token, SECRET]);
    await client.query('select waybill.inbox_fail($1, $2, $3, never => true)', [
      rows[1]?.seq,
      rows[1]?.claim_token,
      SECRET,
    ]);
    await answer(`inbox_postpone('emails', 'done', '1 h')`);
    await answer(`inbox_retry('billing', 'failed')`);
    await client.query(
      `insert into waybill.outbox (type, key, payload, state, hold_no, last_error)
       values ('t', $1, to_json($1::text), 'parked', 1, $1), ('t', 'bob', '1', 'parked', 2, 'x')`,
      [SECRET],
    );
    await client.query(
      `insert into waybill.outbox_history (outcome, id, type, key, payload, headers, routing_key) values ('published', gen_random_uuid(), 't', $1, to_json($1::text), '{}', $1)`,
      [SECRET],
    );
    expect(await kept()).toBe(true);
    expect(await redact(`key => '${SECRET}'`)).toEqual({
      inbox: 6,
      inbox_attempt: 1,
      outbox: 1,
      outbox_pending: 0,
      outbox_history: 1,
      action_log: 2,
    });
    expect(await kept()).toBe(false);
    expect(await statuses(client, 'billing')).toEqual({
      done: 'done',
      failed: 'discarded',
      odd: 'discarded',
      other: 'pending',
    });
    expect(await statuses(client, 'emails')).toMatchObject({ done: 'discarded', other: 'pending' });
    const [again] = await receive(client, 'billing', [{ message_id: 'done', body: SECRET, ...all }]);
    expect(again?.outcome).toBe('duplicate');
    expect(await kept()).toBe(false);
    const log = await client.query(
      `select reason, details -> 'inbox' as inbox from waybill.action_log where action = 'redact'`,
    );
    expect(log.rows).toEqual([{ reason: 'asked to', inbox: 6 }]);
  });

  test('by id: that message, its conflicts, in every consumer; a zombie that has it gets WB003; its key goes on', async () => {
    await register(client, { name: 'billing', order: 'key' }, { name: 'emails' });
    await receive(client, 'billing', [
      { message_id: 'a', key: 'k', body: SECRET },
      { message_id: 'b', key: 'k', body: '1' },
      { message_id: 'a', key: 'k', body: `${SECRET}!` },
    ]);
    await receive(client, 'emails', [{ message_id: 'a', body: SECRET }]);
    const [at] = await claim(client, 'billing');
    expect(await redact(`id => 'a'`)).toMatchObject({ inbox: 3 });
    expect(await kept()).toBe(false);
    await expect(
      client.query('select waybill.inbox_complete($1, $2)', [at?.seq, at?.claim_token]),
    ).rejects.toMatchObject({
      code: 'WB003',
    });
    expect(await statuses(client, 'billing')).toMatchObject({ a: 'discarded', b: 'pending' });
  });

  test('counts beforehand what it then does, and locks nothing for that', async () => {
    await message('dead');
    await answer(`inbox_retry('billing', 'a')`);
    await client.query(
      `insert into waybill.outbox (type, key, state, hold_no) values ('t', 'k', 'parked', 1), ('t', 'k', 'ready', null);
       insert into waybill.outbox_history (outcome, id, type, key) values ('published', gen_random_uuid(), 't', 'k');`,
    );
    await client.query('begin');
    const before = await client.query(`select place, rows::int from waybill.redact_count(key => 'k')`);
    const locks = await client.query(
      `select from pg_locks where pid = pg_backend_pid() and mode not in ('AccessShareLock', 'ExclusiveLock')`,
    );
    await client.query('commit');
    expect(locks.rowCount).toBe(0);
    expect((await client.query(`select place, rows::int from waybill.redact(key => 'k')`)).rows).toEqual(before.rows);
    expect(before.rows).toContainEqual({ place: 'inbox', rows: 1 });
    expect(before.rows).toContainEqual({ place: 'outbox_pending', rows: 1 });
    for (const args of ['', `key => 'k', id => 'a'`]) {
      await expect(client.query(`select * from waybill.redact_count(${args})`)).rejects.toMatchObject({
        code: '22023',
      });
    }
  });

  test('does not keep receivers waiting while it searches, and finds what they stored meanwhile', async () => {
    await register(client, { name: 'billing', order: 'key' }, { name: 'emails' });
    await message('done');
    const holder = await database.connect();
    await holder.query('begin; lock table waybill.outbox_history in access exclusive mode');
    const redacting = database.query<{ place: string; rows: string }>(`select * from waybill.redact(key => 'k')`);
    await until(
      async () =>
        (await client.query(`select from pg_locks where not granted and mode = 'AccessShareLock'`)).rowCount === 1,
      { what: 'the redaction to search' },
    );
    await client.query(`set lock_timeout = '1s'`);
    const stored = await receive(client, 'billing', [{ message_id: 'b', key: 'k', body: SECRET }]);
    await client.query('reset lock_timeout');
    expect(stored).toMatchObject([{ outcome: 'inserted', status: 'pending' }]);
    await holder.query('rollback');
    expect((await redacting)[0]).toEqual({ place: 'inbox', rows: '2' });
    expect(await kept()).toBe(false);
  });

  test('by id finds the rows of consumers that are not registered too', async () => {
    await message('done');
    await client.query(`update waybill.inbox set consumer = 'former'`);
    expect(await redact(`id => 'a'`)).toMatchObject({ inbox: 1 });
  });

  test('what is about to be published is left and said', async () => {
    const id = await answer(`publish('t', to_json('${SECRET}'::text), key => '${SECRET}')`);
    expect(await redact(`id => '${String(id)}'`)).toMatchObject({ outbox: 0, outbox_pending: 1 });
    expect((await client.query('select state from waybill.outbox')).rows).toEqual([{ state: 'ready' }]);
  });

  test.each(['', `key => 'k', id => 'a'`])('of (%s) is refused', async (args) => {
    await expect(client.query(`select * from waybill.redact(${args})`)).rejects.toMatchObject({ code: '22023' });
  });
});
