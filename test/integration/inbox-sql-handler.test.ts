import type pg from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { FreshDatabase } from '../support/database.js';
import { receive, register, statuses, type Arrival, type Received } from '../support/inbox.js';
import { migratedDatabase } from '../support/migrated-database.js';
import { until } from '../support/waiting.js';

let database: FreshDatabase;
let client: pg.Client;

/** The handler does what the body tells it: {"do": "..."}; it always writes its effect first. */
const HANDLER = `
  create schema billing;
  create table billing.effect (id text, seq bigint, said text);
  create table billing.account (id int primary key);
  insert into billing.account values (1);
  create table billing.pair (tag text, n int constraint pair_twice unique deferrable initially deferred,
    m int constraint pair_now unique deferrable initially immediate);
  create function billing.on_event(message waybill.inbox_message) returns text language plpgsql as $$
  declare
    todo constant text := waybill.payload(message) ->> 'do';
  begin
    insert into billing.effect values (message.message_id, message.seq, todo);
    case coalesce(todo, 'done')
      when 'done' then return 'ok ' || message.attempt;
      when 'boom' then raise exception 'boom';
      when 'early' then raise exception 'no order yet' using errcode = 'WB001';
      when 'never' then raise exception 'wrong currency' using errcode = 'WB002';
      when 'assert' then assert false, 'must be';
      when 'no table' then perform from billing.nothing;
      when 'divide' then perform 1 / 0;
      when 'deferred' then insert into billing.pair (n) values (1), (1);
      when 'juggle' then
        insert into billing.pair (tag, n) values ('second', 1);
        delete from billing.pair where tag = 'second';
      when 'now' then insert into billing.pair (m) values (1), (1);
      when 'deadlock' then raise exception 'x' using errcode = '40P01';
      when 'serialize' then raise exception 'x' using errcode = '40001';
      when 'disk full' then raise exception 'x' using errcode = '53100';
      when 'sleep' then perform pg_sleep(60);
      when 'lock' then perform from billing.account for update;
      when 'nowait' then perform from billing.account for update nowait;
      when 'patient' then set local lock_timeout = 0;
      when 'async' then set local synchronous_commit = off;
      when 'async session' then set synchronous_commit = off;
      when 'local' then set local synchronous_commit = local;
      when 'publish' then perform waybill.publish('invoice.made');
      when 'path' then return current_setting('search_path');
      when 'who' then return current_user;
    end case;
    return null;
  end $$`;

beforeAll(async () => {
  database = await migratedDatabase();
  client = await database.connect();
  await client.query(HANDLER);
});
afterAll(() => database.drop());
beforeEach(async () => {
  await client.query(
    'truncate waybill.inbox, waybill.inbox_attempt, waybill.consumer, waybill.outbox, billing.effect, billing.pair',
  );
  await consumer();
});

const consumer = (more: Record<string, unknown> = {}) =>
  register(client, { name: 'billing', handler: 'sql', function: 'billing.on_event', ...more });

const message = (message_id: string, todo = 'done', more: Record<string, unknown> = {}): Arrival => ({
  message_id,
  body: JSON.stringify({ do: todo }),
  ...more,
});

const effects = async (): Promise<unknown[]> =>
  (await client.query<{ id: string }>('select id from billing.effect order by seq')).rows.map(({ id }) => id);

const column = async (name: string): Promise<unknown[]> =>
  (await client.query<{ value: unknown }>(`select ${name} as value from waybill.inbox order by seq`)).rows.map(
    ({ value }) => value,
  );

describe('one batch in one transaction', () => {
  test('F62, F104: each row by itself: its verdict, and the effects of those that are done', async () => {
    const verdicts: [todo: string, verdict: string, status: string, error: RegExp | null][] = [
      ['done', 'done', 'done', null],
      ['boom', 'retry', 'waiting', /^P0001: boom$/],
      ['early', 'not-yet', 'waiting', /^WB001: no order yet$/],
      ['never', 'never', 'dead', /^WB002: wrong currency$/],
      ['assert', 'retry', 'waiting', /^P0004: must be$/],
      ['no table', 'broken', 'waiting', /^42P01: /],
      ['divide', 'retry', 'waiting', /^22012: /],
      ['deferred', 'retry', 'waiting', /^23505: .*pair_twice/],
      ['now', 'retry', 'waiting', /^23505: .*pair_now/],
      ['done', 'done', 'done', null],
    ];
    const answers = await receive(
      client,
      'billing',
      verdicts.map(([todo], index) => message(`${index}`, todo)),
    );
    expect(answers.map(({ verdict, status }) => [verdict, status])).toEqual(
      verdicts.map(([, verdict, status]) => [verdict, status]),
    );
    verdicts.forEach(([, , , error], index) => {
      if (error === null) expect(answers[index]?.error).toBeNull();
      else expect(answers[index]?.error).toMatch(error);
    });
    expect(await effects()).toEqual(['0', '9']);
    expect(await column('result')).toEqual(['ok 1', ...Array.from({ length: 8 }, () => null), 'ok 1']);
    const attempts = await client.query<{ verdict: string }>(
      'select verdict from waybill.inbox_attempt order by inbox_seq',
    );
    expect(attempts.rows.map(({ verdict }) => verdict)).toEqual([
      'retry',
      'never',
      'retry',
      'broken',
      'retry',
      'retry',
      'retry',
    ]);
  });

  test('fact 67: a deferred constraint is checked with its row, and is deferred again for the next', async () => {
    await client.query('insert into billing.pair (n) values (1), (2)');
    const answers = await receive(
      client,
      'billing',
      ['deferred', 'juggle', 'juggle', 'deferred'].map((todo, n) => message(`${n}`, todo)),
    );
    expect(answers.map(({ verdict }) => verdict)).toEqual(['retry', 'done', 'done', 'retry']);
  });

  test.each([
    ['deadlock', '40P01'],
    ['serialize', '40001'],
    ['disk full', '53100'],
  ])('F61: %s ends the whole batch, and spends nothing', async (todo, code) => {
    await expect(receive(client, 'billing', [message('a'), message('b', todo)])).rejects.toMatchObject({ code });
    expect(await statuses(client, 'billing')).toEqual({});
    expect(await effects()).toEqual([]);
  });

  test('F61: a lock that somebody has spends no attempt, and the rest of the batch waits for locks a moment only', async () => {
    const [patient, stranger] = [await database.connect(), await database.connect()];
    await patient.query(`set lock_timeout = '2s'`);
    await stranger.query('begin; select from billing.account for update');
    const beganAt = performance.now();
    const batch = [...Array.from({ length: 10 }, (_, n) => message(`locked-${n}`, 'lock')), message('free', 'patient')];
    await patient.query('begin');
    const answers = await receive(patient, 'billing', [...batch, message('last', 'lock'), message('nowait', 'nowait')]);
    const took = performance.now() - beganAt;
    // Waybill's own locks are waited for as before.
    expect((await patient.query<{ lock_timeout: string }>('show lock_timeout')).rows).toEqual([{ lock_timeout: '2s' }]);
    await patient.query('commit');
    expect(answers.map(({ verdict, attempt }) => [verdict, attempt])).toEqual([
      ...Array.from({ length: 10 }, () => ['not-yet', 1]),
      ['done', 1],
      ['not-yet', 1],
      ['not-yet', 1],
    ]);
    expect(answers[0]?.error).toMatch(/^55P03: /);
    expect(took).toBeGreaterThan(2_000);
    expect(took).toBeLessThan(5_000);
    expect(await column('failures')).toEqual(Array.from({ length: 13 }, () => 0));
    await stranger.query('rollback');
    const [free] = await receive(patient, 'billing', [message('later', 'lock')]);
    expect(free).toMatchObject({ verdict: 'done' });
    await Promise.all([patient.end(), stranger.end()]);
  });

  test.each(['async', 'async session', 'local'])(
    'I1: the transaction is as durable as before, whatever the handler sets (%s)',
    async (todo) => {
      const own = await database.connect();
      const atCommit = async (messages: Arrival[]): Promise<string | undefined> => {
        await own.query('begin');
        expect((await receive(own, 'billing', messages)).map(({ verdict }) => verdict)).toEqual(
          messages.map(() => 'done'),
        );
        const { rows } = await own.query<{ synchronous_commit: string }>('show synchronous_commit');
        await own.query('commit');
        return rows[0]?.synchronous_commit;
      };
      expect(await atCommit([message('a', todo), message('b')])).toBe('on');
      expect(await atCommit([message('c'), message('d', todo)])).toBe('on');
      await own.end();
    },
  );

  test('a statement that takes too long is cancelled as a whole; alone, its row is stored as failed without a call', async () => {
    const impatient = await database.connect();
    await impatient.query(`set statement_timeout = '300ms'`);
    const batch = [message('a'), message('slow', 'sleep')];
    await expect(receive(impatient, 'billing', batch)).rejects.toMatchObject({ code: '57014' });
    expect(await statuses(client, 'billing')).toEqual({});
    const answers = await receive(impatient, 'billing', [
      message('a'),
      message('slow', 'sleep', { failed: 'took over 300 ms' }),
    ]);
    expect(answers).toMatchObject([
      { status: 'done', verdict: 'done' },
      { status: 'waiting', verdict: 'retry', attempt: 2, error: 'took over 300 ms' },
    ]);
    expect(await effects()).toEqual(['a']);
  });

  test('F14, F97: a duplicate has no second effect; a body that is no JSON is dead at once (F100)', async () => {
    await receive(client, 'billing', [message('a')]);
    const answers = await receive(client, 'billing', [
      message('a'),
      { message_id: 'b', body: '{' },
      message('b2'),
      message('b2'),
    ]);
    expect(answers.map(({ outcome, verdict, status }) => [outcome, verdict, status])).toEqual([
      ['duplicate', null, 'done'],
      ['inserted', 'never', 'dead'],
      ['inserted', 'done', 'done'],
      ['duplicate', null, 'done'],
    ]);
    expect(await effects()).toEqual(['a', 'b2']);
  });

  test('retention of bodies 0: a done row never has one, a failed one keeps it', async () => {
    await consumer({ retain_bodies: '0' });
    await receive(client, 'billing', [message('a'), message('b', 'boom')]);
    expect(await column('body is null')).toEqual([true, false]);
    expect(await column('body_hash is null')).toEqual([false, false]);
  });

  test('over 60 messages are refused', async () => {
    const many = Array.from({ length: 61 }, (_, n) => message(`${n}`));
    await expect(receive(client, 'billing', many)).rejects.toMatchObject({ code: '22023' });
    expect(await receive(client, 'billing', many.slice(1))).toHaveLength(60);
  });

  test('while an operator has paused the consumer, rows are stored and the handler is not called', async () => {
    await client.query(`select waybill.consumer_pause('billing', 'looking')`);
    expect(await receive(client, 'billing', [message('a')])).toMatchObject([{ status: 'pending', verdict: null }]);
    expect(await effects()).toEqual([]);
  });

  test('F126: what a breaker has noted keeps nobody else from applying', async () => {
    await client.query(`select waybill.consumer_break('billing', 'function is missing')`);
    expect(await receive(client, 'billing', [message('a')])).toMatchObject([{ status: 'done', verdict: 'done' }]);
    expect(await effects()).toEqual(['a']);
  });

  test('dead at arrival, suspects: not called', async () => {
    const answers = await receive(client, 'billing', [
      message('a', 'done', { dead_reason: 'malformed', error: 'x' }),
      message('b', 'done', { hold: true }),
    ]);
    expect(answers).toMatchObject([
      { status: 'dead', verdict: null },
      { status: 'pending', verdict: null, attempt: 3 },
    ]);
    expect(await effects()).toEqual([]);
  });
});

describe('F126: the handler is broken, not the messages: WB006, and nothing is written', () => {
  const broken = async (handler: string): Promise<string> => {
    await consumer({ function: handler });
    const error = await receive(client, 'billing', [message('a')]).then(
      () => undefined,
      (reason: unknown) => reason as pg.DatabaseError,
    );
    expect(error?.code).toBe('WB006');
    expect(await statuses(client, 'billing')).toEqual({});
    return error?.message ?? '';
  };

  test('no function, no schema, another argument, a procedure', async () => {
    await client.query('create function billing.other(text) returns void language sql as $$ $$');
    await client.query(
      'create procedure billing.proc(waybill.inbox_message) language plpgsql as $$ begin null; end $$',
    );
    expect(await broken('billing.nothing')).toContain('no function billing.nothing(');
    expect(await broken('nowhere.on_event')).toContain('no function nowhere.on_event(');
    expect(await broken('billing.other')).toContain('no function billing.other(');
    expect(await broken('billing.proc')).toContain('no function billing.proc(');
  });
});

describe('what the handler sees', () => {
  test('the search path of the session, not of a function of ours', async () => {
    await client.query(`set search_path = billing, public`);
    await receive(client, 'billing', [message('a', 'path')]);
    await client.query('reset search_path');
    expect(await column('result')).toEqual(['billing, public']);
  });

  test('what it publishes is caused by its own message, also after one that failed', async () => {
    await receive(client, 'billing', [
      message('a', 'publish', { correlation_id: 'story', traceparent: 'tp' }),
      message('b', 'boom', { traceparent: 'wrong' }),
      message('c', 'publish'),
    ]);
    await client.query(`select waybill.publish('afterwards')`);
    const { rows } = await client.query(
      'select causation_id as c, correlation_id as r, traceparent as t from waybill.outbox order by seq',
    );
    expect(rows).toEqual([
      { c: 'a', r: 'story', t: 'tp' },
      { c: 'c', r: 'c', t: null },
      { c: null, r: null, t: null },
    ]);
  });

  test('every attribute of the message', async () => {
    await client.query(`create or replace function billing.look(message waybill.inbox_message) returns json language sql
      as 'select row_to_json(message)'`);
    await consumer({ function: 'billing.look' });
    const [answer] = await receive(client, 'billing', [message('a', 'done', { type: 't', key: 'k', priority: 1 })]);
    const [result] = await column('result::json');
    expect(result).toMatchObject({
      seq: Number(answer?.seq),
      attempt: 1,
      consumer: 'billing',
      message_id: 'a',
      type: 't',
      key: 'k',
    });
    expect(Object.keys(result as object)).toHaveLength(23);
  });
});

describe('rows from the table', () => {
  const due = () =>
    client.query(`update waybill.inbox set next_attempt_at = clock_timestamp() where status = 'waiting'`);
  const claimRows = async (
    seqs: unknown[],
    attempts: unknown[] | null,
  ): Promise<{ seq: string; claim_token: string; attempt: number }[]> =>
    (
      await client.query<{ seq: string; claim_token: string; attempt: number }>(
        `select * from waybill.inbox_claim_rows('billing', $1, $2)`,
        [seqs, attempts],
      )
    ).rows;
  const apply = async (seqs: unknown[], token: unknown): Promise<Partial<Received & { released: string }>[]> =>
    (await client.query<Received>(`select * from waybill.inbox_apply('billing', $1, $2)`, [seqs, token])).rows;

  test('F16: a timer that is early, late or doubled, or for another attempt, claims nothing', async () => {
    const [answer] = await receive(client, 'billing', [message('a', 'boom')]);
    const seq = answer?.seq;
    expect(answer?.attempt).toBe(2);
    expect(await claimRows([seq], [2])).toEqual([]);
    await due();
    expect(await claimRows([seq], [1])).toEqual([]);
    expect(await claimRows([seq], [3])).toEqual([]);
    const [first] = await claimRows([seq], [2]);
    expect(first?.attempt).toBe(2);
    expect(await claimRows([seq], [2])).toEqual([]);
  });

  test('a retry: applied, settled, its effect once; a wrong token is lost', async () => {
    const [answer] = await receive(client, 'billing', [message('a', 'boom')]);
    await due();
    const [row] = await claimRows([answer?.seq], null);
    expect(await apply([row?.seq], '00000000-0000-4000-8000-000000000000')).toMatchObject([
      { verdict: 'lost', status: null },
    ]);
    expect(await effects()).toEqual([]);
    expect(await apply([row?.seq], row?.claim_token)).toMatchObject([
      { verdict: 'retry', status: 'waiting', attempt: 3 },
    ]);
    await client.query(`update waybill.inbox set body = '{}'`);
    await due();
    const [again] = await claimRows([answer?.seq], [3]);
    expect(await apply([again?.seq], again?.claim_token)).toMatchObject([{ verdict: 'done', status: 'done' }]);
    expect(await apply([again?.seq], again?.claim_token)).toMatchObject([{ verdict: 'lost' }]);
    expect(await effects()).toEqual(['a']);
    expect(await column('result')).toEqual(['ok 3']);
  });

  test('a row that was abandoned twice is claimed only alone', async () => {
    const answers = await receive(client, 'billing', [message('a', 'done', { hold: true }), message('b', 'boom')]);
    await due();
    const seqs = answers.map(({ seq }) => seq);
    expect((await claimRows(seqs, null)).map(({ seq }) => seq)).toEqual([seqs[1]]);
    expect((await claimRows([seqs[0]], [3])).map(({ seq }) => seq)).toEqual([seqs[0]]);
  });

  test('the breaker probes by claiming rows; a pause by an operator holds for that too', async () => {
    const [answer] = await receive(client, 'billing', [message('a', 'boom')]);
    await due();
    const dueRows = async () => (await client.query<Received>(`select * from waybill.inbox_due('billing')`)).rows;
    await client.query(`select waybill.consumer_break('billing', 'x')`);
    expect(await dueRows()).toMatchObject([{ seq: answer?.seq, attempt: 2, status: 'waiting', alone: false }]);
    expect(await claimRows([answer?.seq], [2])).toHaveLength(1);
    await client.query(`update waybill.inbox set lease_until = clock_timestamp()`);
    await client.query(`select waybill.consumer_pause('billing', 'x')`);
    expect(await claimRows([answer?.seq], null)).toEqual([]);
    expect(await dueRows()).toEqual([]);
    const mended = await client.query<{ done: boolean }>(`select waybill.consumer_mend('billing') as done`);
    expect(mended.rows).toEqual([{ done: false }]);
  });

  test('while a row is being applied for longer than its lease, nobody else gets it', async () => {
    const [answer] = await receive(client, 'billing', [message('a', 'sleep', { hold: true })]);
    const [row] = await claimRows([answer?.seq], null);
    const slow = await database.connect();
    const applying = slow.query(`select * from waybill.inbox_apply('billing', $1, $2)`, [[row?.seq], row?.claim_token]);
    const failing = expect(applying).rejects.toMatchObject({ code: '57014' });
    await until(
      async () =>
        (
          await database.query(
            `select from pg_stat_activity where wait_event = 'PgSleep' and datname = current_database()`,
          )
        ).length === 1,
      { what: 'the handler to sleep' },
    );
    expect((await client.query(`select waybill.inbox_claim('billing')`)).rows).toEqual([]);
    await client.query('select pg_cancel_backend($1)', [(slow as unknown as { processID: number }).processID]);
    await failing;
    expect(await statuses(client, 'billing')).toEqual({ a: 'running' });
  });

  test('inbox_settle: what an http handler came to, each row by itself', async () => {
    const answers = await receive(
      client,
      'billing',
      ['a', 'b', 'c', 'd', 'e', 'f'].map((id) => message(id, 'boom')),
    );
    await due();
    const rows = await claimRows(
      answers.map(({ seq }) => seq),
      null,
    );
    const verdicts = [
      { verdict: 'done', result: '204' },
      { verdict: 'retry', error: '503', retry_in: '90 s' },
      { verdict: 'not-yet', error: '425' },
      { verdict: 'never', error: '422' },
      { verdict: 'broken', error: '404' },
      { verdict: 'release' },
    ];
    const settle = async (token: string | undefined) =>
      (
        await client.query<Received>(`select * from waybill.inbox_settle('billing', $1, $2)`, [
          token,
          JSON.stringify(verdicts.map((verdict, index) => ({ seq: rows[index]?.seq, ...verdict }))),
        ])
      ).rows;
    const lost = await settle('00000000-0000-4000-8000-000000000000');
    expect(lost.map(({ verdict, status }) => [verdict, status])).toEqual(verdicts.map(() => ['lost', null]));
    const settled = await settle(rows[0]?.claim_token);
    expect(settled.map(({ verdict, status, attempt, dead_reason }) => [verdict, status, attempt, dead_reason])).toEqual(
      [
        ['done', 'done', null, null],
        ['retry', 'waiting', 3, null],
        ['not-yet', 'waiting', 2, null],
        ['never', 'dead', 3, 'never'],
        ['broken', 'waiting', 3, null],
        ['release', 'pending', 2, null],
      ],
    );
    expect((settled[1]?.next_attempt_at?.getTime() ?? 0) - Date.now()).toBeGreaterThan(85_000);
  });

  test('F126: what was spent while the handler was broken is given back, and what died of it waits again', async () => {
    await consumer({ max_attempts: 2 });
    const [answer] = await receive(client, 'billing', [message('a', 'boom')]);
    // As text: a Date has no microseconds, and the first failure was less than a millisecond ago.
    const [{ since } = { since: '' }] = await database.query<{ since: string }>(
      'select clock_timestamp()::text as since',
    );
    await due();
    const [row] = await claimRows([answer?.seq], null);
    const settle = JSON.stringify([{ seq: row?.seq, verdict: 'broken', error: '404' }]);
    await client.query(`select * from waybill.inbox_settle('billing', $1, $2)`, [row?.claim_token, settle]);
    expect(await statuses(client, 'billing')).toEqual({ a: 'dead' });
    const refund = () =>
      client.query<{ n: number }>(`select waybill.inbox_refund('billing', $1, $2) as n`, [[row?.seq], since]);
    expect((await refund()).rows).toEqual([{ n: 1 }]);
    expect((await refund()).rows).toEqual([{ n: 0 }]);
    expect(await statuses(client, 'billing')).toEqual({ a: 'waiting' });
    expect(await column('failures')).toEqual([1]);
    const attempts = await client.query<{ verdict: string }>(
      'select verdict from waybill.inbox_attempt order by number',
    );
    expect(attempts.rows.map(({ verdict }) => verdict)).toEqual(['retry', 'refunded']);
  });

  describe('F126, I4: what a broken handler has cost is given back by its number', () => {
    const settle = async (verdict: string): Promise<void> => {
      await due();
      const { rows } = await client.query<{ seq: string }>('select seq from waybill.inbox');
      const [row] = await claimRows([rows[0]?.seq], null);
      await client.query(`select * from waybill.inbox_settle('billing', $1, $2)`, [
        row?.claim_token,
        JSON.stringify([{ seq: row?.seq, verdict, error: verdict }]),
      ]);
    };
    const giveBack = async (attempts: number, call: number | null = null): Promise<number | undefined> => {
      const { rows } = await client.query<{ n: number }>(
        `select waybill.inbox_give_back('billing', array(select seq from waybill.inbox), array[$1::int], $2) as n`,
        [attempts, call],
      );
      return rows[0]?.n;
    };
    const verdicts = async () =>
      (await client.query<{ verdict: string }>('select verdict from waybill.inbox_attempt order by number')).rows.map(
        ({ verdict }) => verdict,
      );
    const deaths = async () => (await client.query(`select from waybill.inbox_deaths('billing')`)).rows.length;

    test('the newest ones, however long ago they were written; failures of the message stay', async () => {
      await receive(client, 'billing', [message('a', 'boom')]);
      await settle('broken');
      await settle('retry');
      await settle('broken');
      await settle('broken');
      await client.query(`update waybill.inbox_attempt set at = at - interval '1 hour'`);
      expect(await giveBack(2)).toBe(1);
      expect(await verdicts()).toEqual(['retry', 'broken', 'retry', 'refunded', 'refunded']);
      expect(await column('failures')).toEqual([3]);
      // It need not wait for somebody else's fault.
      expect(await column('next_attempt_at <= clock_timestamp()')).toEqual([true]);
      expect(await giveBack(5)).toBe(1);
      expect(await giveBack(5)).toBe(0);
      expect(await column('failures')).toEqual([2]);
    });

    test('once, however often it is asked for because the answer was lost', async () => {
      await receive(client, 'billing', [message('a', 'boom')]);
      for (const verdict of ['broken', 'broken', 'broken']) await settle(verdict);
      expect(await giveBack(1, 17)).toBe(1);
      expect(await giveBack(1, 17)).toBe(0);
      expect(await verdicts()).toEqual(['retry', 'broken', 'broken', 'refunded']);
      expect(await column('failures')).toEqual([3]);
      // Also while the first call, whose connection was lost, is still being carried out.
      const lost = await database.connect();
      const sql = `select waybill.inbox_give_back('billing', array(select seq from waybill.inbox), array[1], 18) as n`;
      await lost.query(`begin`);
      expect((await lost.query(sql)).rows).toEqual([{ n: 1 }]);
      const again = giveBack(1, 18);
      await until(
        async () =>
          (
            await lost.query(
              `select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`,
            )
          ).rowCount === 1,
        { what: 'it to wait', everyMs: 5 },
      );
      await lost.query('commit');
      await lost.end();
      expect(await again).toBe(0);
      expect(await column('failures')).toEqual([2]);
      // Another call is another debt; programs for version 17 say none.
      expect(await giveBack(1, 19)).toBe(1);
      expect(
        (
          await client.query(
            `select waybill.inbox_give_back('billing', array(select seq from waybill.inbox), array[1]) as n`,
          )
        ).rows,
      ).toEqual([{ n: 0 }]);
    });

    test('of a row that somebody keeps locked: the others of the consumer do not wait for that for long', async () => {
      await receive(client, 'billing', [message('a', 'boom')]);
      await settle('broken');
      const other = await database.connect();
      await other.query('begin; select from waybill.inbox for update');
      await client.query("set lock_timeout = '20s'");
      const beganAt = performance.now();
      await expect(giveBack(1, 20)).rejects.toMatchObject({ code: '55P03' });
      expect(performance.now() - beganAt).toBeLessThan(10_000);
      await client.query('reset lock_timeout');
      await other.end();
      await until(async () => (await giveBack(1, 20).catch(() => 0)) === 1, { what: 'it to be given back' });
    });

    test('a death of it is taken back, and its copy has waited for that; not a death of something else', async () => {
      await consumer({ max_attempts: 2 });
      await receive(client, 'billing', [message('a', 'boom')]);
      await settle('broken');
      expect(await statuses(client, 'billing')).toEqual({ a: 'dead' });
      expect(await deaths()).toBe(0);
      expect(await giveBack(1)).toBe(1);
      expect(await statuses(client, 'billing')).not.toEqual({ a: 'dead' });
      expect(await column('failures')).toEqual([1]);
      await settle('broken');
      await client.query(`update waybill.inbox set processed_at = processed_at - interval '31 seconds'`);
      expect(await deaths()).toBe(1);
      await client.query(`select waybill.inbox_retry('billing', 'a', 'again')`);
      await settle('retry');
      await settle('retry');
      expect(await deaths()).toBe(1);
      expect(await giveBack(1)).toBe(1);
      expect(await statuses(client, 'billing')).toEqual({ a: 'dead' });
    });
  });
});
