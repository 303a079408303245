import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, beforeEach, describe, expect, inject, test } from 'vitest';
import type { Trace } from '../../src/app/trace.js';
import { rolesSql } from '../../src/postgres/roles.js';
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
    expect(out).toMatch(/2026-01-02T03:04:05\.000Z {2}outbox +written\n[^]*operator +\S+: outbox\.retry: mended\n/);
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

describe('a role that may not read everything', () => {
  const ROLES = ['owner', 'app', 'relay', 'observer', 'operator'] as const;
  const role = (name: (typeof ROLES)[number]): string => `trace_${inject('servers').runId}_${name}`;
  const as = (name: (typeof ROLES)[number], id: string) => {
    const url = new URL(database.url);
    url.username = role(name);
    url.password = 'secret';
    return runProgram(['trace', id], { WAYBILL_DATABASE_URL: url.href });
  };

  afterAll(async () => {
    const names = ROLES.map(role).join(', ');
    await database.query(`reassign owned by ${names} to current_user`);
    await database.query(`drop owned by ${names}`);
    await database.query(`drop role ${names}`);
  });

  test('the relay sees neither that a message was published nor that it was not, and says so', async () => {
    await database.query(rolesSql(Object.fromEntries(ROLES.map((name) => [name, role(name)]))));
    for (const name of ['relay', 'operator'] as const) {
      await database.query(`alter role ${role(name)} password 'secret'`);
    }
    const id = randomUUID();
    await database.query(
      `insert into waybill.outbox_history (id, outcome, type, exchange, routing_key, created_at, published_at, size)
       values ($1, 'published', 't', 'events', 'r', now() - interval '1 s', now(), 12)`,
      [id],
    );
    const seen = await as('relay', id);
    expect(seen).toMatchObject({ code: 1, err: '' });
    expect(seen.out).not.toContain('unknown');
    expect(seen.out.replaceAll(/\s+/g, ' ')).toContain(
      'VERDICT not clear: it is not in the tables that this role may read',
    );
    expect(seen.out).toContain(`   next  WAYBILL_DATABASE_URL="$OPERATOR_URL" waybill trace ${id}\n`);
    const whole = await as('operator', id);
    expect(whole).toMatchObject({ code: 0, err: '' });
    expect(whole.out).toContain('VERDICT  no trouble: RabbitMQ has it');
    expect((await as('operator', randomUUID())).out).toContain('VERDICT  unknown: ');
  });
});
