import { randomBytes } from 'node:crypto';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { killRelays, type LogLine } from '../support/relay.js';
import { relayScene, type RelayScene } from '../support/relay-scene.js';

const errorCode = (line: LogLine): unknown => (line['err'] as { code?: string } | undefined)?.code;
const LIMIT = 15 * 1024 * 1024;

describe('changes of the outbox table and the rights of the relay', () => {
  let scene: RelayScene;

  beforeAll(async () => {
    scene = await relayScene();
  });
  beforeEach(() => scene.probe.clear());
  afterEach(async () => {
    await killRelays();
    await scene.slotReleased();
  });
  afterAll(() => scene.drop());

  it('a column added, dropped again and moved while it streams changes no message (F48, F133)', async () => {
    const { database } = scene;
    const relay = scene.start();
    await relay.waitForPhase('streaming');
    const ids = await scene.publish(2);
    await database.query(
      "alter table waybill.outbox add column tenant text default 'it''s', add column n numeric default 1.10",
    );
    ids.push(...(await scene.publish(2)));
    await database.query('alter table waybill.outbox drop column tenant');
    const client = await database.connect();
    await client.query('begin');
    ids.push(...(await scene.publish(1, { client })));
    await client.query('alter table waybill.outbox rename column n to amount');
    ids.push(...(await scene.publish(1, { client })));
    await client.query('commit');
    await scene.probe.waitFor(6);
    await scene.settled();
    scene.expectIds(ids);
    for (const message of scene.probe.messages) {
      expect(message.headers['x-waybill-schema-version']).toBe(1);
      expect(message.properties.contentType).toBe('application/json');
      expect(JSON.parse(message.body.toString())).toHaveProperty('n');
    }
    expect(relay.log.filter((line) => line.level === 'error' || line.level === 'warn')).toEqual([]);
    expect(await relay.stop()).toBe(0);
  });

  it('a required column dropped stops the relay with its name; once it is back every row goes out (F48)', async () => {
    const { database } = scene;
    const relay = scene.start();
    await relay.waitForPhase('streaming');
    const before = await scene.publish(1);
    await scene.probe.waitFor(1);
    await scene.settled();
    await database.query('alter table waybill.outbox drop column tracestate');
    const [id = ''] = (
      await database.query<{ id: string }>("insert into waybill.outbox (type) values ('bare') returning id")
    ).map((row) => row.id);
    const line = await relay.waitForLog((each) => errorCode(each) === 'WAYBILL_PUBLICATION_UNFIT', 'the error');
    expect(line.level).toBe('error');
    expect(JSON.stringify(line)).toContain('tracestate');
    expect(scene.probe.ids()).toEqual(before);
    // The slot stays while the column is missing, and what was written without it is read from the table afterwards.
    const slot = await scene.slot();
    await relay.kill9();
    const early = scene.start();
    await early.waitForLog((each) => errorCode(each) === 'WAYBILL_PUBLICATION_UNFIT', 'the error at the start');
    expect((await scene.slot())?.confirmed).toBe(slot?.confirmed);
    await early.kill9();
    await scene.slotReleased();
    await database.query('alter table waybill.outbox add column tracestate text');
    const after = await scene.publish(1);
    const next = scene.start();
    await scene.probe.waitForDistinct(3, 40_000);
    scene.expectIds([...before, id, ...after]);
    expect(await next.stop()).toBe(0);
  });

  it('a publication that hides rows stops the start; dropped, it is made anew and what it hid goes out (F35)', async () => {
    const { database } = scene;
    const first = scene.start();
    await first.waitForPhase('streaming');
    expect(await first.stop()).toBe(0);
    // PostgreSQL 14 knows neither row filters nor lists of columns.
    const [{ filters } = { filters: true }] = await database.query<{ filters: boolean }>(
      "select current_setting('server_version_num')::int >= 150000 as filters",
    );
    const publications = [
      ...(filters ? ['for table waybill.outbox where (seq < 0)', 'for table waybill.outbox (seq, id, type)'] : []),
      "for table waybill.outbox with (publish = 'delete')",
    ];
    const ids: string[] = [];
    for (const definition of publications) {
      await database.query('drop publication waybill_outbox');
      await database.query(`create publication waybill_outbox ${definition}`);
      ids.push(...(await scene.publish(2)));
      const relay = scene.start();
      await relay.waitForLog((each) => errorCode(each) === 'WAYBILL_PUBLICATION_UNFIT', 'the error');
      expect(scene.probe.messages.length).toBe(ids.length - 2);
      await relay.kill9();
      await database.query('drop publication waybill_outbox');
      const next = scene.start();
      await scene.probe.waitFor(ids.length);
      await scene.settled();
      expect(await next.stop()).toBe(0);
      await scene.slotReleased();
    }
    scene.expectIds(ids);
  });

  it('a body of the largest size goes out whole, one byte more is refused at the insert (F46, fact 20)', async () => {
    const { database } = scene;
    const relay = scene.start();
    await relay.waitForPhase('streaming');
    const largest = randomBytes(LIMIT);
    await expect(
      database.query("insert into waybill.outbox (type, payload_bytes) values ('large', $1)", [randomBytes(LIMIT + 1)]),
    ).rejects.toMatchObject({ constraint: 'outbox_payload_at_most_15_MiB' });
    await database.query("insert into waybill.outbox (type, payload_bytes) values ('large', $1)", [largest]);
    await scene.probe.waitFor(1, 30_000);
    expect(scene.probe.messages[0]?.body.equals(largest)).toBe(true);
    await scene.settled();
    expect(await relay.stop()).toBe(0);
  });

  it('a role without REPLICATION is told so, and works once it has it (F36)', async () => {
    const { database } = scene;
    const role = `${database.name}_relay`;
    const password = database.server.password;
    await database.query(`create role ${role} login password '${password.replaceAll("'", "''")}'`);
    try {
      await database.query(`grant create on database ${database.name} to ${role}`);
      await database.query(`grant usage on schema waybill to ${role}`);
      await database.query(`grant all on all tables in schema waybill to ${role}`);
      await database.query(`grant all on all sequences in schema waybill to ${role}`);
      await database.query(`grant execute on all functions in schema waybill to ${role}`);
      const databaseUrl = database.server.url(database.name, role, password);
      const relay = scene.start({ databaseUrl });
      const line = await relay.waitForLog((each) => errorCode(each) === 'WAYBILL_DATABASE_REFUSED', 'the error');
      expect(line.level).toBe('error');
      expect(JSON.stringify(line)).toMatch(/alter role .* replication/);
      await relay.kill9();
      await database.query(`alter role ${role} replication`);
      const next = scene.start({ databaseUrl });
      await next.waitForPhase('streaming');
      const ids = await scene.publish(3);
      await scene.probe.waitFor(3);
      scene.expectIds(ids);
      expect(await next.stop()).toBe(0);
    } finally {
      await killRelays();
      await database.query(`drop owned by ${role}`);
      await database.query(`drop role ${role}`);
    }
  });
});
