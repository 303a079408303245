import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { FreshDatabase } from '../support/database.js';
import { migratedDatabase } from '../support/migrated-database.js';
import { buildProgram, runProgram } from './built-program.js';

let database: FreshDatabase;

beforeAll(async () => {
  [database] = await Promise.all([migratedDatabase(), buildProgram()]);
});
afterAll(() => database.drop());
beforeEach(async () => {
  await database.query('truncate waybill.outbox, waybill.outbox_history, waybill.action_log');
});

/** A message of the history as `relay.history: full` keeps it, unless the columns say else. */
async function published(columns: Record<string, unknown> = {}): Promise<string> {
  const all: Record<string, unknown> = {
    id: randomUUID(),
    outcome: 'published',
    seq: 7,
    type: 'order.paid',
    key: 'k',
    schema_version: 3,
    exchange: 'events',
    routing_key: 'order.paid',
    published_at: new Date(),
    payload: '{"n" : 1.10}',
    headers: { h: 1 },
    priority: 4,
    correlation_id: 'c',
    occurred_at: '2026-01-02T03:04:05Z',
    expires_at: '2026-01-02T03:05:00Z',
    ...columns,
  };
  const names = Object.keys(all);
  await database.query(
    `insert into waybill.outbox_history (${names.join(', ')}) values (${names.map((_, n) => `$${n + 1}`).join(', ')})`,
    Object.values(all),
  );
  return String(all['id']);
}

async function replay(id: string, asNew = false): Promise<string> {
  const rows = await database.query<{ answer: string }>(
    `select waybill.replay($1, reason => 'asked for', as_new => $2) as answer`,
    [id, asNew],
  );
  return rows[0]?.answer ?? '';
}

const pending = () => database.query('select * from waybill.outbox order by seq');
const actions = () => database.query('select action, target, reason, details from waybill.action_log order by seq');

describe('waybill.replay', () => {
  test('writes the same message again: id, body byte for byte, route and headers; times that have passed are left out', async () => {
    const id = await published();
    expect(await replay(id)).toBe('replayed');
    const [row] = await database.query('select *, payload::text as body from waybill.outbox');
    expect(row).toMatchObject({
      id,
      state: 'ready',
      type: 'order.paid',
      key: 'k',
      schema_version: 3,
      body: '{"n" : 1.10}',
      headers: { h: 1 },
      exchange: 'events',
      routing_key: 'order.paid',
      priority: 4,
      correlation_id: 'c',
      expires_at: null,
      occurred_at: new Date('2026-01-02T03:04:05Z'),
    });
    expect(await actions()).toMatchObject([{ action: 'outbox.replay', target: id, reason: 'asked for' }]);
  });

  test('the same id is never twice in the outbox, two operators at once included', async () => {
    const id = await published();
    const [first, second] = [await database.connect(), await database.connect()];
    await first.query('begin');
    await first.query('select waybill.replay($1)', [id]);
    const late = second.query<{ answer: string }>('select waybill.replay($1) as answer', [id]);
    await first.query('commit');
    expect((await late).rows).toEqual([{ answer: 'in the outbox: ready' }]);
    expect(await replay(id)).toBe('in the outbox: ready');
    expect(await pending()).toHaveLength(1);
    expect(await actions()).toHaveLength(1);
  });

  test('as_new gives the copy an id of its own, and the log leads from one to the other', async () => {
    const id = await published();
    const copy = /^replayed as ([0-9a-f-]{36})$/.exec(await replay(id, true))?.[1];
    expect(await pending()).toMatchObject([{ id: copy }]);
    expect(await actions()).toMatchObject([
      { target: id, details: { new_id: copy } },
      { target: copy, details: { copy_of: id } },
    ]);
  });

  test.each([
    [{ headers: null, payload: null }, 'body not kept'],
    [{ outcome: 'discarded' }, 'not published: discarded'],
    [{ outcome: 'expired' }, 'not published: expired'],
  ])('%j is left alone: %s', async (columns, answer) => {
    expect(await replay(await published(columns))).toBe(answer);
    expect(await pending()).toEqual([]);
    expect(await actions()).toEqual([]);
  });

  test('an empty body is a body; what nobody knows is unknown', async () => {
    expect(await replay(await published({ payload: null }))).toBe('replayed');
    expect(await replay(randomUUID())).toBe('unknown');
  });
});

describe('waybill outbox replay', () => {
  const waybill = (...args: string[]) =>
    runProgram(['outbox', 'replay', ...args], { WAYBILL_DATABASE_URL: database.url });

  test('by id: asks, tells each answer, fails if one was not replayed', async () => {
    const [good, bare] = [await published(), await published({ headers: null, payload: null })];
    expect(await waybill(good)).toMatchObject({ code: 2, out: '' });
    expect((await waybill(good, bare, '--dry-run')).out).toContain(
      `${good}  published, body kept\n${bare}  published, body not kept\n`,
    );
    expect(await pending()).toEqual([]);
    expect(await waybill(good, bare, '--yes')).toMatchObject({
      code: 1,
      out: `${good}  replayed\n${bare}  body not kept\n`,
    });
    const told = await waybill(good, '--yes', '--json');
    expect(told.code).toBe(1);
    expect(JSON.parse(told.out)).toEqual({
      act: 'replay',
      dryRun: false,
      answers: [{ id: good, answer: 'in the outbox: ready' }],
    });
  });

  test('"replay the orders of a night": filters by type and time, counted before, in the order they went out', async () => {
    const at = (hour: number) => ({ settled_at: `2026-01-02T0${hour}:00:00Z` });
    const [second, first] = [await published({ ...at(3), seq: 5 }), await published({ ...at(2), seq: 9 })];
    await published({ ...at(4), type: 'other' });
    await published(at(8));
    await published({ ...at(3), headers: null });
    await published({ ...at(3), outcome: 'discarded' });
    const night = ['--all', '--type', 'order.paid', '--since', '2026-01-02T01:00Z', '--until', '2026-01-02T07:00Z'];
    const dry = await waybill(...night, '--dry-run');
    expect(dry.out).toBe(
      'Would replay 3 rows: 2 published order.paid, 1 body not kept order.paid. Nothing was changed.\n',
    );
    expect(JSON.parse((await waybill(...night, '--dry-run', '--json')).out)).toMatchObject({ rows: 3, answers: {} });
    const done = await waybill(...night, '--yes', '--rate', '1000/s', '--reason', 'lost by billing');
    expect(done).toMatchObject({ code: 0, out: '2 replayed; skipped: 1 body not kept.\n', err: '' });
    expect((await pending()).map(({ id }) => id as string)).toEqual([first, second]);
    expect((await waybill('--all', '--key', 'nobody', '--yes')).out).toBe(
      'No published message of the history fits.\n',
    );
  });

  test('--rate holds the pace', async () => {
    await Promise.all(Array.from({ length: 6 }, () => published()));
    const startedAt = performance.now();
    expect(await waybill('--all', '--yes', '--rate', '4/s')).toMatchObject({ code: 0, out: '6 replayed.\n' });
    // Six rows in batches of two: the last batch is due one second after the first.
    expect(performance.now() - startedAt).toBeGreaterThan(1_000);
  });

  test.each([
    [['--all', '--error', 'x'], "unknown option '--error'"],
    [['--all', '--since', 'yesterday'], '2026-01-31T12:00Z'],
    [['--all', '--since', '2026-13-45'], 'no date'],
    [['--all', '--rate', '0'], 'whole number'],
    [[], '--all'],
  ])('%j is refused with the mend', async (args, mend) => {
    const refused = await waybill(...args);
    expect(refused.code).toBe(2);
    expect(refused.err).toContain(mend);
  });
});
