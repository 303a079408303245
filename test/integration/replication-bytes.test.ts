import { randomBytes, randomUUID } from 'node:crypto';
import pg from 'pg';
import { afterEach, describe, expect, it } from 'vitest';
import { migrateUp } from '../../src/postgres/migrations.js';
import { freshDatabase, sharedPostgres, type FreshDatabase } from '../support/database.js';
import { killRelays } from '../support/relay.js';
import { relayScene, type RelayScene } from '../support/relay-scene.js';

interface Given {
  what: string;
  payload?: string;
  bytes?: Buffer;
  headers?: string;
  occurredAt?: string;
  timestamp?: number;
  /** Headers as they must arrive. */
  arrives?: Record<string, unknown>;
}

const MEGABYTE = 1024 * 1024;

/** Bodies that a JSON parser, a type parser or a driver would write anew. */
const PORTABLE: Given[] = [
  { what: 'big integers', payload: '{"n": 12345678901234567890, "m": -9007199254740993}' },
  { what: 'decimals with a zero at the end', payload: '{"price": 1.10, "e": 1E+2, "z": -0.0}' },
  { what: 'key order and duplicate keys', payload: '{"b":1,"a":2,"b":3}' },
  { what: 'whitespace', payload: ' { "a" :\n\t[ 1 ,2 ] } \n' },
  { what: 'unicode escapes', payload: '{"e": "\\u00e9\\ud83d\\ude00", "nul": "\\u0000", "s": "\\/"}' },
  { what: 'letters of Latin-1', payload: '{"name": "Äpfel ÿ £"}' },
  { what: 'a bare JSON null', payload: 'null' },
  { what: 'an empty string', payload: '""' },
  { what: 'no payload at all' },
  { what: 'bytes with zeros', bytes: Buffer.from([0, 1, 0, 255, 92, 120, 39, 10, 0]) },
  { what: 'bytes that look like an escape', bytes: Buffer.from('\\x41\\000') },
  { what: 'no bytes', bytes: Buffer.alloc(0) },
  { what: 'a megabyte of bytes', bytes: randomBytes(MEGABYTE) },
  { what: 'a megabyte of JSON', payload: JSON.stringify({ text: randomBytes(MEGABYTE / 2).toString('hex') }) },
  {
    what: 'headers with numbers',
    payload: '1',
    headers: '{"whole": 7, "big": 12345678901234567890, "price": 1.10, "yes": true, "text": "1.10", "half": 0.5}',
    arrives: { whole: 7, big: '12345678901234567890', price: '1.10', yes: true, text: '1.10', half: 0.5 },
  },
  {
    what: 'a business time with microseconds and an offset',
    payload: '2',
    occurredAt: '2001-02-03 04:05:06.999999+02',
    timestamp: Date.UTC(2001, 1, 3, 2, 5, 6) / 1000,
  },
  { what: 'the oldest business time', payload: '3', occurredAt: '1970-01-01 00:00:00.000001+00', timestamp: 0 },
  {
    what: 'a business time far ahead',
    payload: '4',
    occurredAt: '9999-12-31 00:00:00+00',
    timestamp: Date.UTC(9999, 11, 31) / 1000,
  },
];

const UNICODE: Given[] = [
  { what: 'emoji and other planes', payload: '{"🚚": "Zażółć 日本 \u{10FFFF}"}' },
  { what: 'emoji in headers', payload: '5', headers: '{"🚚": "Ω"}', arrives: { '🚚': 'Ω' } },
];

const HOSTILE = [
  "bytea_output = 'escape'",
  "datestyle = 'SQL, DMY'",
  "timezone = 'Asia/Kathmandu'",
  'extra_float_digits = -15',
  "intervalstyle = 'sql_standard'",
  "search_path = 'nowhere'",
];

describe('bodies, headers and times, from the log and from the table (O7, facts 8, 9, 55, 69)', () => {
  let scene: RelayScene;

  afterEach(async () => {
    await killRelays();
    await scene.drop();
  });

  it('are what was written, twice the same, in a plain database', async () => {
    scene = await relayScene();
    await twice(scene, [...PORTABLE, ...UNICODE]);
  });

  it('are the same under settings of the database that change text output', async () => {
    scene = await relayScene();
    const { database } = scene;
    for (const setting of HOSTILE) await database.query(`alter database ${database.name} set ${setting}`);
    await twice(scene, [...PORTABLE, ...UNICODE]);
  });

  it('are the same under settings of the role, and another client_encoding', async () => {
    scene = await relayScene();
    const { database } = scene;
    for (const setting of [...HOSTILE, "client_encoding = 'LATIN1'"]) {
      await database.query(`alter role current_user in database ${database.name} set ${setting}`);
    }
    await twice(scene, [...PORTABLE, ...UNICODE]);
  });

  it('are UTF-8 out of a LATIN1 database (F60)', async () => {
    scene = await relayScene({ database: await latin1Database() });
    await twice(scene, PORTABLE);
  });
});

/** Sends the rows through the log and, under the same ids, through a table pass, and compares. */
async function twice(scene: RelayScene, given: Given[]): Promise<void> {
  const rows = given.map((each) => ({ ...each, id: randomUUID() }));
  const first = scene.start();
  await first.waitForPhase('streaming');
  await write(scene.database, rows);
  await scene.probe.waitFor(rows.length);
  const fromLog = [...scene.probe.messages];
  await scene.settled();
  expect(await first.stop()).toBe(0);

  // Without its slot the relay has only the table.
  await scene.slotReleased();
  await scene.database.query('select pg_drop_replication_slot($1)', [(await scene.slot())?.name]);
  scene.probe.clear();
  await write(scene.database, rows);
  const second = scene.start();
  await scene.probe.waitFor(rows.length);
  await second.waitForPhase('streaming');
  await scene.settled();
  expect(second.log.some((line) => line.msg === 'table pass published the backlog')).toBe(true);
  expect(scene.probe.messages.length).toBe(rows.length);

  for (const row of rows) {
    const one = fromLog.find((message) => message.id === row.id);
    const two = scene.probe.messages.find((message) => message.id === row.id);
    if (!one || !two) throw new Error(`${row.what}: did not arrive twice`);
    const written = row.bytes ?? Buffer.from(row.payload ?? '');
    for (const copy of [one, two]) expect(copy.body.equals(written), `${row.what}: the body`).toBe(true);
    expect(two.properties, row.what).toEqual(one.properties);
    expect([two.exchange, two.routingKey], row.what).toEqual([one.exchange, one.routingKey]);
    if (row.arrives) expect(one.headers, row.what).toMatchObject(row.arrives);
    if (row.timestamp !== undefined) expect(one.properties.timestamp, row.what).toBe(row.timestamp);
  }
  expect(await second.stop()).toBe(0);
}

async function write(database: FreshDatabase, rows: (Given & { id: string })[]): Promise<void> {
  const client = await database.connect();
  // What a session asks for is its own affair; the values here are written for these settings.
  await client.query("set datestyle = 'ISO, MDY'; set client_encoding = 'UTF8'");
  for (const row of rows) {
    await client.query(
      `insert into waybill.outbox (id, type, payload, payload_bytes, headers, occurred_at, expires_at)
       values ($1, 'bytes', $2::json, $3::bytea, $4::jsonb, coalesce($5::timestamptz, '2024-02-29 12:34:56.789+00'),
         '2999-01-02 03:04:05.000006+00')`,
      [row.id, row.payload ?? null, row.bytes ?? null, row.headers ?? '{}', row.occurredAt ?? null],
    );
  }
  await client.end();
}

async function latin1Database(): Promise<FreshDatabase> {
  const server = sharedPostgres();
  const database = await freshDatabase({ server });
  await server.dropDatabase(database.name);
  const admin = new pg.Client({ connectionString: server.url() });
  await admin.connect();
  await admin.query(`create database ${database.name} template template0 encoding 'LATIN1' locale 'C'`);
  await admin.end();
  const client = await database.connect();
  await migrateUp(client);
  return database;
}
