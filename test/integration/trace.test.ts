import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { Trace } from '../../src/app/trace.js';
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

const trace = (...args: string[]) => runProgram(['trace', ...args], { WAYBILL_DATABASE_URL: database.url });

describe('the outbox side', () => {
  test('a parked row: what happened in order of time, the verdict and the command last', async () => {
    const id = randomUUID();
    await database.query(
      `insert into waybill.outbox (id, type, key, payload, state, attempts, last_error, hold_no, created_at)
       values ($1, 'order.paid', 'order-1', '{"secret": 1}', 'parked', 3, 'exchange_missing: exchange x does not exist', 1, '2026-01-02T03:04:05Z')`,
      [id],
    );
    await database.query(`select waybill.retry($1, 'mended')`, [id]);
    await database.query(`update waybill.outbox set state = 'parked', hold_no = 2`);
    const { code, out, err } = await trace(id);
    expect({ code, err }).toEqual({ code: 0, err: '' });
    const lines = out.trimEnd().split('\n');
    expect(lines[0]).toBe(`message  ${id}`);
    expect(out).toMatch(/2026-01-02T03:04:05\.000Z {2}outbox +written\n[^]*operator \S+ +outbox\.retry: mended\n/);
    expect(out).toContain('outbox  parked: exchange_missing: exchange x does not exist\n');
    expect(out).toContain('VERDICT  the route: ');
    expect(lines.at(-1)).toBe(`   next  waybill outbox retry ${id}`);
    expect(out).not.toContain('secret');
    for (const line of lines) expect(line.length).toBeLessThanOrEqual(80);
  });

  test('a published message whose body is gone says so clearly', async () => {
    const id = randomUUID();
    await database.query(
      `insert into waybill.outbox_history (id, outcome, type, exchange, routing_key, created_at, published_at, size)
       values ($1, 'published', 't', 'events', 'r', now() - interval '1 s', now(), 12)`,
      [id],
    );
    const { code, out } = await trace(id);
    expect(code).toBe(0);
    expect(out.replaceAll(/\s+/g, ' ')).toContain('Its body is gone (relay.history: full would have kept it)');
    expect(out.replaceAll(/\s+/g, ' ')).toMatch(
      / written .* broker confirmed by then: exchange events, routing key r /,
    );
    expect(out).toContain('VERDICT  no trouble: ');
    const json = JSON.parse((await trace(id, '--json')).out) as Trace;
    expect(json.verdict.verdict).toBe('no trouble');
    expect(json.events.map(({ where }) => where)).toEqual(['outbox', 'broker']);
  });

  test('what nobody knows is unknown, with exit code 1; the id may be any text', async () => {
    for (const id of [randomUUID(), 'evt\u001b[31m-1']) {
      const { code, out } = await trace(id);
      expect(code).toBe(1);
      expect(out).toContain('VERDICT  unknown: ');
      expect(out.replaceAll('\n', '')).not.toMatch(/[\u0000-\u001f]/);
    }
  });
});
