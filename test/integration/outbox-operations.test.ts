import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { MessageRecord, OutboxList } from '../../src/app/outbox-admin.js';
import { callForRows } from '../../src/postgres/operator-rows.js';
import { rolesSql } from '../../src/postgres/roles.js';
import { freshDatabase, type FreshDatabase } from '../support/database.js';
import { migratedDatabase } from '../support/migrated-database.js';
import { until } from '../support/waiting.js';
import { buildProgram, runProgram } from './built-program.js';

let database: FreshDatabase;
const rolesMade: string[] = [];

beforeAll(async () => {
  [database] = await Promise.all([migratedDatabase(), buildProgram()]);
});
afterAll(async () => {
  const { server } = database;
  await database.drop();
  const admin = await freshDatabase({ server });
  for (const role of rolesMade) await admin.query(`drop role if exists ${role}`);
  await admin.drop();
});
beforeEach(async () => {
  await database.query('truncate waybill.outbox, waybill.outbox_history, waybill.action_log');
});

const HELD = ['parked', 'blocked'];

/** Writes a row in a state and gives its id. */
async function row(state: string, columns: Record<string, unknown> = {}): Promise<string> {
  const all: Record<string, unknown> = {
    id: randomUUID(),
    type: 'order.paid',
    payload: '{"n": 1}',
    key: 'k',
    state,
    attempts: state === 'ready' ? 0 : 3,
    last_error: state === 'ready' ? null : 'no exchange "x"',
    next_attempt_at: state === 'scheduled' ? '2999-01-01' : null,
    hold_no: HELD.includes(state) ? 1 : null,
    ...columns,
  };
  const names = Object.keys(all);
  await database.query(
    `insert into waybill.outbox (${names.join(', ')}) values (${names.map((_, n) => `$${n + 1}`).join(', ')})`,
    Object.values(all),
  );
  return String(all['id']);
}

async function call(name: 'retry' | 'discard', id: string | null, reason: string | null = null): Promise<unknown> {
  const rows = await database.query<{ answer: string }>(`select waybill.${name}($1, $2) as answer`, [id, reason]);
  return rows[0]?.answer;
}

async function look(id: string): Promise<Record<string, unknown> | undefined> {
  const [found] = await database.query(
    `select state, attempts, last_error, hold_no, next_attempt_at <= clock_timestamp() as due
     from waybill.outbox where id = $1`,
    [id],
  );
  return found;
}

const actions = () =>
  database.query('select actor, action, target, reason, details from waybill.action_log order by seq');

describe('3.5 strict order', () => {
  beforeEach(async () => {
    await database.query(
      `insert into waybill.relay (name, ordering) values ('default', 'strict')
       on conflict (name) do update set ordering = 'strict'`,
    );
  });
  afterAll(() => database.query('delete from waybill.relay'));

  test('a retried row keeps its place, and no other one of its key can be retried before it', async () => {
    const first = await row('parked', { hold_no: 5 });
    const second = await row('parked', { hold_no: 7 });
    const other = await row('parked', { hold_no: 6, key: 'other' });
    expect(await call('retry', second)).toBe('blocked');
    expect(await look(second)).toMatchObject({ state: 'parked', hold_no: '7' });
    expect(await call('retry', first)).toBe('scheduled');
    expect(await look(first)).toMatchObject({ state: 'scheduled', hold_no: '5', due: true });
    expect(await call('retry', other)).toBe('scheduled');
  });

  test('a discarded or cancelled row lets the next of its key go, and only if that waited for it', async () => {
    const first = await row('parked', { hold_no: 5 });
    const second = await row('blocked', { hold_no: 6 });
    const third = await row('blocked', { hold_no: 7 });
    expect(await call('discard', second)).toBe('discarded');
    expect(await look(third)).toMatchObject({ state: 'blocked' });
    expect(await call('discard', first)).toBe('discarded');
    expect(await look(third)).toMatchObject({ state: 'scheduled', hold_no: '7', due: true });
    const fourth = await row('blocked', { hold_no: 8 });
    expect(await database.query('select waybill.cancel($1) as done', [third])).toEqual([{ done: true }]);
    expect(await look(fourth)).toMatchObject({ state: 'scheduled', due: true });
  });

  test('two operators on one key take turns, so that nobody is left behind', async () => {
    const first = await row('parked', { hold_no: 5 });
    const second = await row('blocked', { hold_no: 6 });
    const third = await row('blocked', { hold_no: 7 });
    const [one, two] = await Promise.all([database.connect(), database.connect()]);
    await one.query('begin');
    await one.query('select waybill.discard($1)', [second]);
    const waiting = two.query('select waybill.discard($1)', [first]);
    await until(
      async () =>
        (await database.query("select from pg_locks where locktype = 'advisory' and not granted")).length === 1,
      { what: 'the second operator to wait' },
    );
    await one.query('commit');
    await waiting;
    expect(await look(third)).toMatchObject({ state: 'scheduled', due: true });
  });

  test('a row is not retried past one of its key that is in flight', async () => {
    await row('ready', { hold_no: 5 });
    const second = await row('parked', { hold_no: 6 });
    expect(await call('retry', second)).toBe('blocked');
  });

  test('F120: an act on rows of very many keys in one statement leaves room in the table of locks', async () => {
    await database.query(
      `insert into waybill.outbox (type, key, state, hold_no)
       select 'order.paid', n, 'parked', n from generate_series(1, 5000) n`,
    );
    const operator = await database.connect();
    await operator.query('begin');
    await operator.query('select waybill.retry(id) from waybill.outbox');
    const [locks] = await database.query("select count(*)::int as n from pg_locks where locktype = 'advisory'");
    await operator.query('rollback');
    expect(locks?.['n']).toBeGreaterThan(900);
    expect(locks?.['n']).toBeLessThanOrEqual(1024);
  });

  test('without strict order nobody waits for an act on another row of the key', async () => {
    await database.query("update waybill.relay set ordering = 'pipelined'");
    const [first, second] = [await row('parked', { hold_no: 5 }), await row('parked', { hold_no: 6 })];
    const operator = await database.connect();
    await operator.query('begin');
    await operator.query('select waybill.retry($1)', [first]);
    expect(await call('retry', second)).toBe('scheduled');
    await operator.query('rollback');
  });
});

describe('waybill.retry', () => {
  test.each(['parked', 'scheduled'])('a %s row becomes due now, with its attempts counted anew', async (state) => {
    const id = await row(state);
    expect(await call('retry', id, 'mended')).toBe('scheduled');
    expect(await look(id)).toEqual({
      state: 'scheduled',
      attempts: 0,
      last_error: 'no exchange "x"',
      hold_no: null,
      due: true,
    });
    const [session] = await database.query<{ actor: string }>('select session_user::text as actor');
    expect(await actions()).toEqual([
      {
        actor: session?.actor,
        action: 'outbox.retry',
        target: id,
        reason: 'mended',
        details: { state, type: 'order.paid', attempts: 3, error: 'no exchange "x"' },
      },
    ]);
  });

  test.each([
    ['ready', 'not held: ready'],
    ['blocked', 'blocked'],
    ['cancelled', 'not held: cancelled'],
    ['discarded', 'not held: discarded'],
  ])('a %s row is left as it is: %s', async (state, answer) => {
    const id = await row(state);
    const before = await look(id);
    expect(await call('retry', id)).toBe(answer);
    expect(await look(id)).toEqual(before);
    expect(await actions()).toEqual([]);
  });

  test('never goes before deliver_at', async () => {
    const waiting = await row('scheduled', { deliver_at: '2999-01-01' });
    const parked = await row('parked', { deliver_at: '2999-01-01' });
    expect(await call('retry', waiting)).toBe('not due yet');
    expect(await call('retry', parked)).toBe('scheduled');
    expect(await look(parked)).toMatchObject({ state: 'scheduled', due: false });
  });

  test('waits for whoever has the row, and answers by what became of it', async () => {
    const id = await row('scheduled');
    const relay = await database.connect();
    await relay.query('begin');
    await relay.query('delete from waybill.outbox where id = $1', [id]);
    await relay.query("insert into waybill.outbox_history (outcome, id, type) values ('published', $1, 'order.paid')", [
      id,
    ]);
    const client = await database.connect();
    const answer = client.query<{ answer: string }>('select waybill.retry($1) as answer', [id]);
    const waits = () =>
      database.query(
        "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' and query like '%waybill.retry%'",
      );
    await until(async () => (await waits()).length === 1, { what: 'the retry to wait for the row' });
    await relay.query('commit');
    expect((await answer).rows).toEqual([{ answer: 'already published' }]);
  });
});

describe('waybill.discard', () => {
  test.each(['parked', 'blocked', 'scheduled'])('a %s row is given up, and stays for the relay', async (state) => {
    const id = await row(state);
    expect(await call('discard', id)).toBe('discarded');
    expect(await look(id)).toMatchObject({
      state: 'discarded',
      last_error: 'no exchange "x"',
      hold_no: null,
      due: null,
    });
    expect(await actions()).toMatchObject([{ action: 'outbox.discard', target: id, reason: null, details: { state } }]);
    expect(await call('discard', id)).toBe('not held: discarded');
    expect(await actions()).toHaveLength(1);
  });

  test.each(['ready', 'cancelled'])('a %s row is left as it is', async (state) => {
    const id = await row(state);
    expect(await call('discard', id)).toBe(`not held: ${state}`);
    expect(await look(id)).toMatchObject({ state });
  });
});

test.each(['retry', 'discard'] as const)('%s tells what has gone and what never was', async (name) => {
  for (const outcome of ['published', 'accepted', 'cancelled', 'discarded', 'expired']) {
    const id = randomUUID();
    await database.query('insert into waybill.outbox_history (outcome, id, type) values ($1, $2, $3)', [
      outcome,
      id,
      't',
    ]);
    expect(await call(name, id)).toBe(`already ${outcome}`);
  }
  expect(await call(name, randomUUID())).toBe('unknown');
  expect(await call(name, null)).toBe('unknown');
  expect(await actions()).toEqual([]);
});

test('a bulk act leaves alone what has changed since its rows were chosen', async () => {
  const [parked, retried] = [await row('parked'), await row('parked')];
  await call('retry', retried);
  const client = await database.connect();
  const gone = randomUUID();
  expect(await callForRows(client, 'waybill', 'discard', [retried, gone, parked], null, ['parked'])).toEqual([
    { id: retried, answer: 'changed meanwhile' },
    { id: gone, answer: 'changed meanwhile' },
    { id: parked, answer: 'discarded' },
  ]);
  expect(await look(retried)).toMatchObject({ state: 'scheduled' });
});

test('a rolled-back act leaves neither change nor entry', async () => {
  const id = await row('parked');
  const client = await database.connect();
  await client.query('begin');
  await client.query('select waybill.discard($1)', [id]);
  await client.query('rollback');
  expect(await look(id)).toMatchObject({ state: 'parked' });
  expect(await actions()).toEqual([]);
});

describe('the commands', () => {
  const waybill = (args: string[], url = database.url) =>
    runProgram(['outbox', ...args], { WAYBILL_DATABASE_URL: url });
  const list = async (...args: string[]): Promise<string[]> => {
    const { out } = await waybill(['list', '--json', ...args]);
    return (JSON.parse(out) as OutboxList).rows.map(({ id }) => id);
  };

  test('list filters, in the order of the table', async () => {
    const parked = await row('parked');
    const other = await row('parked', { type: 'order.sent', key: 'other', last_error: 'Too LARGE: 100%' });
    const old = await row('parked', { created_at: new Date(Date.now() - 7_200_000) });
    const ready = await row('ready', { key: null });
    expect(await list()).toEqual([parked, other, old, ready]);
    expect(await list('--state', 'ready')).toEqual([ready]);
    expect(await list('--type', 'order.sent')).toEqual([other]);
    expect(await list('--key', 'other')).toEqual([other]);
    expect(await list('--error', 'too large: 100%')).toEqual([other]);
    expect(await list('--state', 'parked', '--since', '1h')).toEqual([parked, other]);
    expect(await list('--older', '1h')).toEqual([old]);
    expect(await list('--limit', '2')).toEqual([parked, other]);
    const human = await waybill(['list', '--limit', '2']);
    expect(human).toMatchObject({ code: 0, err: '' });
    expect(human.out).toMatch(/ID +STATE +AGE +TYPE\n/);
    expect(human.out).toContain('    key k; 3 tries; no exchange "x"\n');
    expect(human.out).toContain('More fit than the 2 shown');
    expect((await waybill(['list', '--key', 'nobody'])).out).toBe('No row of the outbox fits.\n');
  });

  test('list shows nothing that a terminal would obey', async () => {
    await row('parked', { type: 'a\u001b]0;owned\u0007\nb', key: '\u009b31m', last_error: 'x\r\n\u001b[2Jy' });
    const { out } = await waybill(['list']);
    expect(out.replaceAll('\n', '')).not.toMatch(/[\u0000-\u001f\u007f-\u009f]/);
    expect(out.trimEnd().split('\n')).toHaveLength(3);
  });

  test('show looks in the outbox, then in the history; bodies only when asked for', async () => {
    const id = await row('parked', { payload: '{"secret": 1}' });
    const plain = await waybill(['show', id.toUpperCase()]);
    expect(plain).toMatchObject({ code: 0, err: '' });
    expect(plain.out).toMatch(/In the outbox\n +id +[0-9a-f-]{36}\n +state +parked\n +error +no exchange "x"\n/);
    expect(plain.out).not.toContain('secret');
    expect((await waybill(['show', id, '--json'])).out).not.toContain('secret');
    expect((await waybill(['show', id, '--body'])).out).toContain('{"secret": 1}');
    const bytes = await row('parked', { payload: null, payload_bytes: Buffer.from([255, 0]) });
    const shown = JSON.parse((await waybill(['show', bytes, '--json', '--body'])).out) as MessageRecord;
    expect(shown.outbox?.body).toEqual({ encoding: 'base64', data: '/wA=' });

    const gone = randomUUID();
    await database.query(
      "insert into waybill.outbox_history (outcome, id, type, size, sha256) values ('published', $1, 't', 2, '\\x00ff')",
      [gone],
    );
    const { out } = await waybill(['show', gone, '--body']);
    expect(out).toMatch(/In the history\n[^]*state +published\n[^]*sha-256 +00ff\n[^]*not kept/);
    const unknown = await waybill(['show', randomUUID()]);
    expect(unknown).toMatchObject({ code: 1, out: '' });
    expect(unknown.err).toContain('is known');
  });

  test('retry by id answers for each, and fails if one was not to be retried', async () => {
    const [parked, ready] = [await row('parked'), await row('ready')];
    const dry = await waybill(['retry', parked, ready, '--dry-run']);
    expect(dry.code).toBe(0);
    expect(dry.out).toContain(`${parked}  parked\n${ready}  ready\n`);
    expect(await actions()).toEqual([]);
    const both = await waybill(['retry', parked, ready, parked, '--reason', 'mended']);
    expect(both).toMatchObject({ code: 1, out: `${parked}  scheduled\n${ready}  not held: ready\n` });
    expect(await waybill(['retry', parked])).toMatchObject({ code: 0, out: `${parked}  scheduled\n` });
    expect(await actions()).toMatchObject([
      { target: parked, reason: 'mended' },
      { target: parked, reason: null },
    ]);
    const shown = await waybill(['show', parked]);
    expect(shown.out).toMatch(/What operators did\n.* outbox\.retry .* mended\n/);
  });

  test('discard asks, and without a terminal needs --yes', async () => {
    const id = await row('parked');
    expect(await waybill(['discard', id])).toMatchObject({ code: 2, out: '' });
    expect(await waybill(['discard', '--all'])).toMatchObject({ code: 2, out: '' });
    expect(await look(id)).toMatchObject({ state: 'parked' });
    expect(await waybill(['discard', id, '--yes'])).toMatchObject({ code: 0, out: `${id}  discarded\n` });
    expect(await look(id)).toMatchObject({ state: 'discarded' });
  });

  test('--all means the parked rows that the filters let through, in several batches', async () => {
    await database.query(
      `insert into waybill.outbox (type, state, hold_no, next_attempt_at, attempts, last_error)
       select 'order.' || (i % 2), case when i <= 1200 then 'parked' else 'scheduled' end, i, '2999-01-01', 4, 'e' || (i % 3)
       from generate_series(1, 1300) i`,
    );
    const states = () =>
      database.query<{ state: string; n: number }>(
        `select state, count(*)::int as n from waybill.outbox group by state order by state`,
      );
    const dry = await waybill(['retry', '--all', '--error', 'E1', '--dry-run']);
    expect(dry.out).toBe('Would retry 400 rows: 200 parked order.0, 200 parked order.1. Nothing was changed.\n');
    expect(await waybill(['retry', '--all', '--error', 'e1', '--yes'])).toMatchObject({
      code: 0,
      out: '400 scheduled.\n',
    });
    expect(await states()).toEqual([
      { state: 'parked', n: 800 },
      { state: 'scheduled', n: 500 },
    ]);
    const some = await waybill(['discard', '--all', '--type', 'order.0', '--limit', '10', '--yes']);
    expect(some).toMatchObject({ code: 0, out: '10 discarded.\n' });
    expect(await waybill(['discard', '--all', '--yes', '--reason', 'old'])).toMatchObject({ out: '790 discarded.\n' });
    expect(await states()).toEqual([
      { state: 'discarded', n: 800 },
      { state: 'scheduled', n: 500 },
    ]);
    expect(await actions()).toHaveLength(1_200);
    expect(await waybill(['discard', '--all', '--yes'])).toMatchObject({
      code: 0,
      out: 'No row of the outbox that is parked fits.\n',
    });
    expect(await waybill(['retry', '--all', '--state', 'scheduled', '--yes'])).toMatchObject({
      out: '500 scheduled.\n',
    });
  });

  test('the roles: an operator may, the relay may but for the history, an application may not', async () => {
    const mark = database.name.slice(-10);
    const name = (role: string) => `ops_${role}_${mark}`;
    const names = { owner: name('owner'), app: name('app'), relay: name('relay'), observer: name('observer') };
    await database.query(rolesSql({ ...names, operator: name('operator') }));
    rolesMade.push(...Object.values(names), name('operator'));
    const as = (role: string) => {
      const url = new URL(database.url);
      url.username = role;
      url.password = 'secret';
      return url.href;
    };
    for (const role of [name('operator'), names.relay, names.app]) {
      await database.query(`alter role ${role} login password 'secret'`);
    }
    const [first, second] = [await row('parked'), await row('parked')];
    expect((await waybill(['list'], as(name('operator')))).out).toContain(first);
    expect((await waybill(['show', randomUUID()], as(name('operator')))).code).toBe(1);
    expect(await waybill(['discard', first, '--yes'], as(name('operator')))).toMatchObject({ code: 0 });
    expect(await waybill(['retry', second], as(names.relay))).toMatchObject({ code: 0 });
    expect((await waybill(['show', second], as(names.relay))).out).toContain('may not read it');
    const person = (role: string) => ({ actor: expect.stringMatching(new RegExp(`^${role} \\(.+@.+\\)$`)) as string });
    expect(await actions()).toMatchObject([person(name('operator')), person(names.relay)]);
    const refused = await waybill(['retry', second], as(names.app));
    expect(refused.code).toBe(1);
    expect(refused.err).toContain('permission denied');
  });

  test('without the tables the exit code is 3', async () => {
    const empty = await freshDatabase();
    try {
      expect(await waybill(['list'], empty.url)).toMatchObject({ code: 3, out: '' });
    } finally {
      await empty.drop();
    }
  });
});
