import { createHash } from 'node:crypto';
import type pg from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { FreshDatabase } from '../support/database.js';
import { receive, register, statuses } from '../support/inbox.js';
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
  await client.query('truncate waybill.inbox, waybill.inbox_attempt, waybill.consumer');
  await register(client, { name: 'billing' }, { name: 'emails' });
});

const rows = async (columns: string): Promise<Record<string, unknown>[]> => {
  const found = await client.query<Record<string, unknown>>(`select ${columns} from waybill.inbox order by seq`);
  return found.rows;
};

/** The sessions of this database that wait for a lock. */
const waiting = (): Promise<unknown[]> =>
  database.query(
    `select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' and pid <> pg_backend_pid()`,
  );

describe('a batch', () => {
  test('seq is drawn in the order of delivery, whatever the ids', async () => {
    const ids = ['m', 'z', 'a', 'é', 'B', 'x'];
    const answers = await receive(
      client,
      'billing',
      ids.map((message_id) => ({ message_id })),
    );
    expect(answers.map(({ ordinal, outcome, status }) => [ordinal, outcome, status])).toEqual(
      ids.map((_, index) => [index + 1, 'inserted', 'pending']),
    );
    expect((await rows('message_id')).map((row) => row['message_id'])).toEqual(ids);
    expect(answers.map(({ seq }) => Number(seq))).toEqual(answers.map(({ seq }) => Number(seq)).sort((a, b) => a - b));
  });

  test('keeps each body byte for byte, and every property', async () => {
    const bodies = [
      Buffer.from('{"n": 12345678901234567890, "n": 1}'),
      Buffer.from([0, 255, 0xc3, 0x28]),
      Buffer.alloc(0),
    ];
    const properties = {
      original_id: 'o',
      type: 'order.paid',
      key: 'k',
      schema_version: 2,
      content_type: 'application/json',
      content_encoding: 'gzip',
      headers: { a: [1, { b: null }], big: '9223372036854775807' },
      exchange: 'e',
      routing_key: 'r',
      correlation_id: 'c',
      causation_id: 'ca',
      reply_to: 're',
      app_id: 'app',
      priority: 3,
      traceparent: 'tp',
      tracestate: 'ts',
    };
    await receive(
      client,
      'billing',
      bodies.map((body, index) => ({
        message_id: `m${index}`,
        body,
        ...properties,
        occurred_at: '2026-01-02T03:04:05Z',
      })),
    );
    const stored = await rows(`body, body_hash, occurred_at, ${Object.keys(properties).join()}`);
    expect(stored).toEqual(
      bodies.map((body) => ({
        body,
        body_hash: createHash('sha256').update(body).digest(),
        occurred_at: new Date('2026-01-02T03:04:05Z'),
        ...properties,
      })),
    );
  });

  test('is empty: nothing', async () => {
    expect(await receive(client, 'billing', [])).toEqual([]);
  });

  test.each([0, 3, 5])('whose sizes say %i bytes for 4 is refused as a whole', async (size) => {
    const receiving = client.query('select * from waybill.inbox_receive($1, $2, $3)', [
      'billing',
      JSON.stringify([{ message_id: 'a', size }]),
      Buffer.from('1234'),
    ]);
    await expect(receiving).rejects.toMatchObject({ code: '22023' });
  });

  test('of an unregistered consumer is refused: WB004', async () => {
    await expect(receive(client, 'nobody', [{ message_id: 'a' }])).rejects.toMatchObject({ code: 'WB004' });
  });
});

describe('duplicates', () => {
  test('F97: the same id with the same body is a duplicate, before, and within one batch; per consumer', async () => {
    await receive(client, 'billing', [{ message_id: 'a' }]);
    const answers = await receive(client, 'billing', [{ message_id: 'b' }, { message_id: 'a' }, { message_id: 'b' }]);
    expect(answers.map(({ outcome }) => outcome)).toEqual(['inserted', 'duplicate', 'duplicate']);
    expect(answers[2]?.seq).toBe(answers[0]?.seq);
    expect((await receive(client, 'emails', [{ message_id: 'a' }]))[0]?.outcome).toBe('inserted');
    expect(await rows('consumer, message_id')).toHaveLength(3);
  });

  test('F98: the same id with another body is kept dead beside the first, within one batch too, and once', async () => {
    await receive(client, 'billing', [{ message_id: 'a', body: '1' }]);
    const batch = [
      { message_id: 'a', body: '2', type: 't' },
      { message_id: 'b', body: '1' },
      { message_id: 'b', body: '2' },
      { message_id: 'a', body: '2', type: 't' },
    ];
    const answers = await receive(client, 'billing', batch);
    expect(answers.map(({ outcome, dead_reason }) => [outcome, dead_reason])).toEqual([
      ['conflict', 'conflict'],
      ['inserted', null],
      ['conflict', 'conflict'],
      ['conflict', 'conflict'],
    ]);
    expect(answers[3]?.seq).toBe(answers[0]?.seq);
    const kept = await rows('message_id, original_id, status, body, type');
    expect(kept.filter(({ status }) => status === 'dead')).toEqual([
      {
        message_id: expect.stringMatching(/^conflict:[0-9a-f]{64}$/) as string,
        original_id: 'a',
        status: 'dead',
        body: Buffer.from('2'),
        type: 't',
      },
      {
        message_id: expect.stringMatching(/^conflict:[0-9a-f]{64}$/) as string,
        original_id: 'b',
        status: 'dead',
        body: Buffer.from('2'),
        type: null,
      },
    ]);
    expect((await receive(client, 'billing', batch)).map(({ outcome }) => outcome)).toEqual([
      'conflict',
      'duplicate',
      'conflict',
      'conflict',
    ]);
    expect(await rows('seq')).toHaveLength(4);
  });

  test('a duplicate of a redacted message is a duplicate whatever its body', async () => {
    await receive(client, 'billing', [{ message_id: 'a', body: 'secret' }]);
    await client.query(`select waybill.redact(id => 'a')`);
    expect((await receive(client, 'billing', [{ message_id: 'a', body: 'other' }]))[0]?.outcome).toBe('duplicate');
  });

  test('a death that the broker decided is inserted only; a row in any status wins', async () => {
    const death = (message_id: string) => ({
      message_id,
      body: 'other',
      dead_reason: 'broker',
      error: 'delivery limit',
    });
    await receive(client, 'billing', [{ message_id: 'a', body: '1' }]);
    const answers = await receive(client, 'billing', [death('a'), death('b')]);
    expect(answers.map(({ outcome, status }) => [outcome, status])).toEqual([
      ['duplicate', 'pending'],
      ['inserted', 'dead'],
    ]);
    expect(await statuses(client, 'billing')).toEqual({ a: 'pending', b: 'dead' });
  });

  test('F18: whoever inserts an id second waits for the first, and goes ahead if that one rolls back', async () => {
    const first = await database.connect();
    const second = await database.connect();
    for (const [end, outcome] of [
      ['rollback', 'inserted'],
      ['commit', 'duplicate'],
    ] as const) {
      await first.query('begin');
      await receive(first, 'billing', [{ message_id: end }]);
      const answer = receive(second, 'billing', [{ message_id: end }]);
      await until(async () => (await waiting()).length === 1, { what: 'the second to wait' });
      await first.query(end);
      expect((await answer)[0]?.outcome).toBe(outcome);
    }
  });

  test('fact 66: a body that differs from that of a winner who commits meanwhile is seen as a conflict', async () => {
    const first = await database.connect();
    const second = await database.connect();
    await first.query('begin');
    await receive(first, 'billing', [{ message_id: 'a', body: '1' }]);
    const answer = receive(second, 'billing', [{ message_id: 'a', body: '2' }]);
    await until(async () => (await waiting()).length === 1, { what: 'the second to wait' });
    await first.query('commit');
    expect((await answer)[0]?.outcome).toBe('conflict');
  });

  test('F13: a batch whose commit is unknown is sent again, and is all duplicates', async () => {
    const batch = Array.from({ length: 50 }, (_, n) => ({ message_id: `m${n}`, body: `${n}` }));
    await receive(client, 'billing', batch);
    expect((await receive(client, 'billing', batch)).every(({ outcome }) => outcome === 'duplicate')).toBe(true);
  });
});

describe.each(['none', 'key'])('F127: two batches with the same ids in opposite order, order: %s', (order) => {
  test('never deadlock', async () => {
    await register(client, { name: 'pairs', order });
    const [one, two] = [await database.connect(), await database.connect()];
    for (let pair = 0; pair < 40; pair += 1) {
      const batch = Array.from({ length: 200 }, (_, n) => ({
        message_id: `${pair}-${(n * 7919) % 1009}`,
        key: `k${n % 20}`,
      }));
      const [left, right] = await Promise.all([
        receive(one, 'pairs', batch),
        receive(two, 'pairs', batch.toReversed()),
      ]);
      const inserted = [...left, ...right].filter(({ outcome }) => outcome === 'inserted');
      expect(inserted).toHaveLength(200);
      expect([...left, ...right].filter(({ outcome }) => outcome === 'duplicate')).toHaveLength(200);
    }
  });
});

describe('what cannot be handled', () => {
  test('F99, F100, F101: is kept dead with its reason, error, body and raw properties', async () => {
    const raw = Buffer.from('{"type":"a\\u0000b"}');
    const arrivals = [
      { message_id: 'synthetic-1', dead_reason: 'no-id', error: 'no message id' },
      {
        message_id: 'synthetic-2',
        dead_reason: 'malformed',
        error: 'NUL',
        raw_properties: raw.toString('base64'),
        body: '\u0000',
      },
      {
        message_id: 'c',
        original_id: 'c',
        dead_reason: 'not-accepted',
        error: 'type x@3',
        type: 'x',
        schema_version: 3,
      },
    ];
    const answers = await receive(client, 'billing', arrivals);
    expect(answers).toMatchObject(
      arrivals.map(({ dead_reason, error }) => ({
        outcome: 'inserted',
        status: 'dead',
        verdict: null,
        dead_reason,
        error,
      })),
    );
    expect(await rows('last_error, raw_properties, body, processed_at is not null as said')).toEqual([
      { last_error: 'no message id', raw_properties: null, body: Buffer.from('{}'), said: true },
      { last_error: 'NUL', raw_properties: raw, body: Buffer.from('\u0000'), said: true },
      { last_error: 'type x@3', raw_properties: null, body: Buffer.from('{}'), said: true },
    ]);
    expect((await client.query('select * from waybill.inbox_claim($1)', ['billing'])).rows).toEqual([]);
  });

  test.each([
    ['NUL in a text', { type: 'a\u0000b' }, '22P05'],
    ['NUL in a header', { headers: { h: '\u0000' } }, '22P05'],
    ['headers that are no object', { headers: [1] }, '23514'],
    ['a key of over 1,024 bytes', { key: 'k'.repeat(1025) }, '23514'],
    ['an id of over 1,024 bytes', { message_id: 'k'.repeat(1025) }, '23514'],
    ['no id', { message_id: null }, '23502'],
    ['a priority that is none', { priority: 99999 }, '22003'],
    ['a time that is none', { occurred_at: 'soon' }, '22007'],
  ])('fact 78: %s refuses the whole batch by a data error, and nothing stays', async (_, wrong, code) => {
    const batch = [{ message_id: 'good' }, { message_id: 'bad', ...wrong } as { message_id: string }];
    await expect(receive(client, 'billing', batch)).rejects.toMatchObject({ code });
    expect(await rows('seq')).toEqual([]);
  });
});
