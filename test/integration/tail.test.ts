import { randomUUID } from 'node:crypto';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import type { TailEvent } from '../../src/app/tail.js';
import type { FreshDatabase } from '../support/database.js';
import { migratedDatabase } from '../support/migrated-database.js';
import { until } from '../support/waiting.js';
import { buildProgram, startProgram, type RunningProgram } from './built-program.js';

let database: FreshDatabase;
let running: RunningProgram[] = [];

beforeAll(async () => {
  [database] = await Promise.all([migratedDatabase(), buildProgram()]);
});
afterAll(() => database.drop());
beforeEach(async () => {
  await database.query('truncate waybill.outbox, waybill.outbox_history, waybill.inbox, waybill.inbox_attempt');
});
afterEach(() => {
  for (const { child } of running) child.kill('SIGKILL');
  running = [];
});

async function tail(...args: string[]): Promise<RunningProgram> {
  const program = startProgram(['tail', ...args], { WAYBILL_DATABASE_URL: database.url });
  running.push(program);
  await until(() => program.err().includes('Following'), { what: 'it to follow' });
  return program;
}

const events = (program: RunningProgram): TailEvent[] =>
  program
    .out()
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as TailEvent);

async function leave(outcome = 'published', type = 'order.paid', at = 'clock_timestamp()'): Promise<string> {
  const id = randomUUID();
  await database.query(
    `insert into waybill.outbox_history (outcome, id, type, key, settled_at) values ($1, $2, $3, 'k', ${at})`,
    [outcome, id, type],
  );
  return id;
}

test('tells what goes out and comes in, each once, nothing from before; ends with 0 at Ctrl-C', async () => {
  await leave();
  const program = await tail('--json');
  const gone = [await leave(), await leave('expired')];
  // Committed late: its time lies before the last one that was seen.
  await until(() => events(program).length === 2, { what: 'both messages' });
  const late = await leave(
    'published',
    'late',
    "(select max(settled_at) - interval '1 ms' from waybill.outbox_history)",
  );
  const parked = randomUUID();
  await database.query(
    `insert into waybill.outbox (id, type, state, hold_no, last_error) values ($1, 't', 'parked', nextval('waybill.outbox_hold_no'), 'too_large: x')`,
    [parked],
  );
  await until(() => events(program).some(({ event }) => event === 'parked'), { what: 'the parked one' });
  await database.query(`insert into waybill.consumer (name, queue) values ('billing', 'q') on conflict do nothing`);
  await database.query(
    `insert into waybill.inbox (consumer, message_id, type, body, body_hash) values ('billing', 'm1', 'order.paid', 'x', sha256('x'))`,
  );
  await until(() => events(program).some(({ event }) => event === 'received'), { what: 'the inbound one' });
  await database.query(`update waybill.inbox set status = 'done', processed_at = clock_timestamp()`);
  await until(() => events(program).some(({ event }) => event === 'applied'), { what: 'the applied one' });
  program.child.kill('SIGINT');
  expect(await program.finished).toMatchObject({ code: 0 });
  const told = events(program).map(({ direction, event, id, consumer }) => [direction, event, id, consumer]);
  expect(told).toEqual([
    ['out', 'published', gone[0], null],
    ['out', 'expired', gone[1], null],
    ['out', 'published', late, null],
    ['out', 'parked', parked, null],
    ['in', 'received', 'm1', 'billing'],
    ['in', 'applied', 'm1', 'billing'],
  ]);
});

test('filters; lines for people are without control characters and fit 80 columns', async () => {
  const program = await tail('--only', 'out', '--type', 'wanted\u001b[31m');
  await leave('published', 'other');
  const id = await leave('published', 'wanted\u001b[31m');
  await until(() => program.out().includes(id), { what: 'the line' });
  program.child.kill('SIGTERM');
  expect(await program.finished).toMatchObject({ code: 0 });
  const lines = program.out().trimEnd().split('\n');
  expect(lines).toHaveLength(1);
  expect(lines[0]).toMatch(/^\d\d:\d\d:\d\d\.\d{3} > published [0-9a-f-]{36} wanted/);
  expect(lines[0]).not.toMatch(/[\u0000-\u001f]/);
  expect(lines[0]?.length).toBeLessThanOrEqual(80);
});

test('ends with 0 when whoever reads it has gone', async () => {
  const program = await tail('--json');
  program.child.stdout?.destroy();
  // Each is written to a pipe that nobody reads any more.
  const timer = setInterval(() => void leave().catch(() => undefined), 100);
  try {
    expect((await program.finished).code).toBe(0);
  } finally {
    clearInterval(timer);
  }
});

test('goes on after its connection was cut, and tells what it has missed', async () => {
  const program = await tail('--json');
  await database.query(
    `select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'waybill tail' and datname = current_database()`,
  );
  const id = await leave();
  await until(() => events(program).some((event) => event.id === id), { what: 'the message', withinMs: 20_000 });
  expect(program.err()).toContain('trying again');
});

test('a burst of more rows than one look takes is told whole', async () => {
  const program = await tail('--json');
  await database.query(
    `insert into waybill.outbox_history (outcome, id, type, settled_at)
     select 'published', gen_random_uuid(), 't', clock_timestamp() from generate_series(1, 25000)`,
  );
  await until(() => events(program).length >= 25_000, { what: 'all of them', withinMs: 30_000, everyMs: 200 });
  expect(new Set(events(program).map(({ id }) => id)).size).toBe(25_000);
});
