import type pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { FreshDatabase } from '../support/database.js';
import { migratedDatabase } from '../support/migrated-database.js';

let database: FreshDatabase;
let client: pg.Client;

beforeAll(async () => {
  database = await migratedDatabase();
  client = await database.connect();
});
afterAll(() => database.drop());

async function publishMany(messages: string): Promise<string[]> {
  const { rows } = await client.query<{ id: string }>('select * from waybill.publish_many($1) as id', [messages]);
  return rows.map(({ id }) => id);
}

async function column<T>(id: string | undefined, expression: string): Promise<T> {
  const { rows } = await client.query<{ value: T }>(`select ${expression} as value from waybill.outbox where id = $1`, [
    id,
  ]);
  return rows[0]!.value;
}

/** What a driver that parses and writes JSON anew would change. */
const AWKWARD = [
  '{"big": 12345678901234567890, "money": 1.10, "exp": 1E5}',
  '{ "b" : 1 ,\n\t"a" : 2 }',
  '{"a": 1, "a": 2}',
  '{"text": "\\u00e9\\/\\ud83d\\ude00", "raw": "é"}',
  '"\\u00e9 alone"',
  '[1.0, -0, 1e-7, {"x": []}]',
  '1.10',
  'true',
];

describe('publish', () => {
  test('takes the form of the manual', async () => {
    const { rows } = await client.query<{ publish: string }>(
      `select waybill.publish('order.paid', '{"id":1}', key => 'o-1')`,
    );
    const id = rows[0]?.publish;
    expect(await column(id, `array[type, key, payload::text, state, headers::text]`)).toEqual([
      'order.paid',
      'o-1',
      '{"id":1}',
      'ready',
      '{}',
    ]);
  });

  test.each(AWKWARD)('keeps the bytes of %s', async (payload) => {
    const { rows } = await client.query<{ id: string }>(`select waybill.publish('t', $1) as id`, [payload]);
    expect(await column(rows[0]?.id, 'payload::text')).toBe(payload);
  });

  test('is equal to a plain insert', async () => {
    const columns = `type, key, schema_version, payload::text, payload_bytes, content_type, content_encoding, headers,
      exchange, routing_key, correlation_id, causation_id, reply_to, traceparent, tracestate, priority, expires_at,
      deliver_at, occurred_at, state, attempts`;
    const values = `'t', 'k', 2, null, '\\x00ff', 'a/b', 'gzip', '{"h": 1}', 'e', 'r', 'co', 'ca', 're', 'tp', 'ts', 7,
      '2040-01-01Z', '2039-01-01Z', '2020-01-01Z'`;
    const names = columns.replace('::text', '').replace(/,\s*state, attempts/, '');
    await client.query('begin');
    await client.query(`insert into waybill.outbox (${names}) values (${values})`);
    const named = names.split(/,\s*/);
    const given = values.split(/,\s+/);
    await client.query(`select waybill.publish(${named.map((name, index) => `${name} => ${given[index]}`).join()})`);
    const pair = await client.query(`select ${columns} from waybill.outbox order by seq desc limit 2`);
    await client.query('commit');
    expect(pair.rows[0]).toEqual(pair.rows[1]);
    expect(pair.rows[0]).toMatchObject({ key: 'k', priority: 7, tracestate: 'ts' });
  });

  test('takes null as the default', async () => {
    const { rows } = await client.query<{ id: string }>(
      `select waybill.publish('t', headers => null, schema_version => null, occurred_at => null, id => null) as id`,
    );
    expect(await column(rows[0]?.id, `headers = '{}' and schema_version = 1 and occurred_at is not null`)).toBe(true);
  });

  test('does not depend on the search path of its caller', async () => {
    await client.query(`create schema trap; create table trap.outbox (id uuid); set search_path = trap, waybill`);
    await client.query(`select waybill.publish('t'), waybill.publish_many('[{"type":"t"}]')`);
    await client.query(`reset search_path`);
    expect((await client.query('select from trap.outbox')).rowCount).toBe(0);
  });
});

describe('publish_many', () => {
  test('answers in the order of its input and keeps every payload as written', async () => {
    const messages = AWKWARD.map((payload, index) => `{"type": "t${index}", "payload":${payload}}`);
    const ids = await publishMany(`[${messages.join(' ,\n')}]`);
    expect(ids).toHaveLength(AWKWARD.length);
    const { rows } = await client.query<{ type: string; payload: string }>(
      `select type, payload::text from unnest($1::uuid[]) with ordinality as i (id, n) join waybill.outbox o using (id) order by n`,
      [ids],
    );
    expect(rows).toEqual(AWKWARD.map((payload, index) => ({ type: `t${index}`, payload })));
  });

  test('seq follows the input', async () => {
    const ids = await publishMany(JSON.stringify(Array.from({ length: 500 }, () => ({ type: 'many' }))));
    const { rows } = await client.query<{ id: string }>(
      `select id from waybill.outbox where type = 'many' order by seq`,
    );
    expect(rows.map(({ id }) => id)).toEqual(ids);
  });

  test('knows every parameter of publish', async () => {
    const message = {
      type: 't',
      key: 'k',
      id: '018f2a3c-0000-7000-8000-0000000000aa',
      payload_bytes: Buffer.from([0, 255]).toString('base64'),
      headers: { h: 'x', n: 1 },
      schema_version: 3,
      content_type: 'a/b',
      content_encoding: 'gzip',
      exchange: 'e',
      routing_key: 'r',
      correlation_id: 'co',
      causation_id: 'ca',
      reply_to: 're',
      traceparent: 'tp',
      tracestate: 'ts',
      priority: 7,
      expires_at: '2040-01-01T00:00:00.000Z',
      deliver_at: '2039-01-01T00:00:00.000Z',
      occurred_at: '2020-01-01T00:00:00.000Z',
    };
    const [id] = await publishMany(JSON.stringify([message]));
    const { rows } = await client.query(`select * from waybill.outbox where id = $1`, [id]);
    expect(JSON.parse(JSON.stringify(rows[0]))).toMatchObject({
      ...message,
      payload: null,
      payload_bytes: { type: 'Buffer', data: [0, 255] },
    });
    const parameters = await client.query<{ name: string }>(
      `select unnest(proargnames) as name from pg_proc where oid = 'waybill.publish'::regproc`,
    );
    expect(Object.keys({ ...message, payload: null }).sort()).toEqual(parameters.rows.map(({ name }) => name).sort());
  });

  test('takes null as absent, and an empty or missing array as nothing to do', async () => {
    const [id] = await publishMany('[{"type": "t", "payload": null, "key": null, "headers": null, "priority": null}]');
    expect(await column(id, 'payload is null and key is null')).toBe(true);
    expect(await publishMany('[]')).toEqual([]);
    expect((await client.query('select * from waybill.publish_many(null)')).rowCount).toBe(0);
  });

  test.each([
    ['[{"type":"a"},{"type":"b","typ":"c"}]', 'message 2 has an unknown name: "typ"'],
    ['[{"type":"a"}, 5]', 'message 2 is not an object'],
    ['[{"type":"a"},{"type":"b"},{"key":"b"}]', 'message 3 has no type'],
    ['[{"type":null}]', 'message 1 has no type'],
    ['{"type":"a"}', 'messages must be an array of objects'],
  ])('%s: %s', async (messages, refusal) => {
    await expect(publishMany(messages)).rejects.toThrow(refusal);
  });

  test('writes all or nothing', async () => {
    await expect(publishMany('[{"type":"whole"},{"type":"whole","priority":300}]')).rejects.toThrow(
      'outbox_priority_is_0_to_255',
    );
    expect((await client.query(`select from waybill.outbox where type = 'whole'`)).rowCount).toBe(0);
  });
});

describe('cancel and publication_status', () => {
  async function row(columns: string, values: string): Promise<string> {
    const { rows } = await client.query<{ id: string }>(
      `insert into waybill.outbox (type, ${columns}) values ('t', ${values}) returning id`,
    );
    return rows[0]!.id;
  }
  async function ask<T>(call: 'cancel' | 'publication_status', id: string): Promise<T> {
    return (await client.query<{ answer: T }>(`select waybill.${call}($1) as answer`, [id])).rows[0]!.answer;
  }

  test.each([
    ['deliver_at', `now() + interval '1 hour'`, 'pending', true],
    ['deliver_at', `now() - interval '1 second'`, 'pending', false],
    ['key', `'k'`, 'pending', false],
    ['state, next_attempt_at', `'scheduled', now()`, 'scheduled', true],
    ['state, hold_no', `'parked', 1`, 'parked', false],
    ['state, key, hold_no', `'blocked', 'k', 1`, 'blocked', false],
    ['state', `'discarded'`, 'discarded', false],
  ])('a row with %s = %s is %s; cancelled: %s', async (columns, values, status, cancelled) => {
    const id = await row(columns, values);
    expect(await ask('publication_status', id)).toBe(status);
    expect(await ask('cancel', id)).toBe(cancelled);
    expect(await ask('publication_status', id)).toBe(cancelled ? 'cancelled' : status);
    expect(await ask('cancel', id)).toBe(false);
  });

  test('the history answers for rows that left, the latest line first', async () => {
    const id = '018f2a3c-0000-7000-8000-0000000000bb';
    expect(await ask('publication_status', id)).toBeNull();
    expect(await ask('cancel', id)).toBe(false);
    await client.query(
      `insert into waybill.outbox_history (outcome, id, type, settled_at)
       values ('expired', $1, 't', now() - interval '1 hour'), ('published', $1, 't', now())`,
      [id],
    );
    expect(await ask('publication_status', id)).toBe('published');
  });
});

test('the backlog counts by state and type', async () => {
  await client.query('truncate waybill.outbox');
  await client.query(`select waybill.publish('a', '"1234"'), waybill.publish('a', payload_bytes => '\\x0011')`);
  await client.query(`select waybill.publish('b')`);
  const { rows } = await client.query(
    `select state, type, count, bytes, oldest_at <= now() as dated, oldest_age >= interval '0' as aged
     from waybill.outbox_backlog order by type`,
  );
  expect(rows).toEqual([
    { state: 'ready', type: 'a', count: '2', bytes: '8', dated: true, aged: true },
    { state: 'ready', type: 'b', count: '1', bytes: '0', dated: true, aged: true },
  ]);
});
