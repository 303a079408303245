import * as amqp from 'amqplib';
import { once } from 'node:events';
import pg from 'pg';
import { LogicalReplicationService, PgoutputPlugin } from 'pg-logical-replication';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { freshVhost, type FreshVhost } from '../support/broker.js';
import { startBrokerProbe } from '../support/broker-probe.js';
import { freshDatabase, type FreshDatabase } from '../support/database.js';
import { startFaultProxy, type FaultProxy } from '../support/fault-proxy.js';
import { until } from '../support/waiting.js';
import { connectionClose } from '../support/wire/amqp-frames.js';

let proxy: FaultProxy;
afterEach(() => proxy.close());

describe('in front of RabbitMQ', () => {
  let vhost: FreshVhost;
  let connection: amqp.ChannelModel;
  let channel: amqp.ConfirmChannel;
  let confirmed: number;
  let ended: Promise<unknown>;

  beforeAll(async () => {
    vhost = await freshVhost();
  });
  afterAll(() => vhost.drop());

  beforeEach(async () => {
    proxy = await startFaultProxy({ targetPort: vhost.server.port, targetHost: vhost.server.host });
    connection = await amqp.connect(proxy.url(vhost.url));
    connection.on('error', () => undefined);
    ended = once(connection, 'close').catch(() => undefined);
    channel = await connection.createConfirmChannel();
    channel.on('error', () => undefined);
    confirmed = 0;
  });

  function publishOne(queue: string, messageId: string): void {
    channel.sendToQueue(queue, Buffer.from('body'), { messageId, mandatory: true }, (error: unknown) => {
      if (!error) confirmed++;
    });
  }

  /** Publishes and waits for each confirm, so that each ack is a frame of its own. */
  async function publishSingly(queue: string, count: number): Promise<void> {
    for (let i = 1; i <= count; i++) {
      publishOne(queue, `m${i}`);
      await channel.waitForConfirms();
    }
  }

  test('counts frames by name', async () => {
    const { queue } = await channel.assertQueue('', { exclusive: true });
    const seen: string[] = [];
    const untap = proxy.tap((unit) => seen.push(unit.names[0]!));
    publishOne(queue, 'a');
    await channel.waitForConfirms();
    untap();
    expect(seen).toEqual([
      'amqp.client.basic.publish',
      'amqp.client.header',
      'amqp.client.body',
      'amqp.server.basic.ack',
    ]);
    publishOne('nowhere', 'b');
    await channel.waitForConfirms();
    expect(proxy.count('amqp.client.basic.publish')).toBe(2);
    expect(proxy.count('amqp.server.basic.return')).toBe(1);
    expect(proxy.count('amqp.client.protocol-header')).toBe(1);
    expect(proxy.connections).toBe(1);
    await connection.close();
    await until(() => proxy.connections === 0, { what: 'the end of the connection' });
  });

  test.each([
    ['cut-before', 6],
    ['cut-after', 7],
  ] as const)('%s the 7th confirm lets exactly the earlier frames arrive', async (action, arrived) => {
    const queue = `confirms-${action}`;
    await channel.assertQueue(queue);
    const cut = proxy.at('amqp.server.basic.ack', 7, action);
    await expect(publishSingly(queue, 20)).rejects.toThrow();
    const unit = await cut;
    expect(unit.body.readBigUInt64BE(4)).toBe(7n);
    await ended;
    expect(confirmed).toBe(arrived);
    // The broker had taken the seventh message either way: that is what makes a lost confirm unknown.
    const probe = await startBrokerProbe({ url: vhost.url, queue });
    await probe.waitFor(7);
    expect(probe.ids()).toEqual(['m1', 'm2', 'm3', 'm4', 'm5', 'm6', 'm7']);
    await probe.close();
  });

  test('a message whose last frame is cut never reaches the queue', async () => {
    await channel.assertQueue('halves');
    const cut = proxy.at('amqp.client.body', 3, 'cut-before');
    await expect(publishSingly('halves', 5)).rejects.toThrow();
    await cut;
    const probe = await startBrokerProbe({ url: vhost.url, queue: 'halves' });
    await probe.waitFor(2);
    await connection.close().catch(() => undefined);
    expect(probe.ids()).toEqual(['m1', 'm2']);
    await probe.close();
  });

  test('a stall is silent and loses nothing', async () => {
    const { queue } = await channel.assertQueue('', { exclusive: true });
    const stalled = proxy.at('amqp.server.basic.ack', 3, 'stall-before');
    const done = publishSingly(queue, 5);
    await stalled;
    expect(confirmed).toBe(2);
    await expect(amqp.connect(proxy.url(vhost.url), { timeout: 5000 }).then((c) => c.close())).resolves.not.toThrow();
    expect(confirmed).toBe(2);
    proxy.resume();
    await done;
    expect(confirmed).toBe(5);
    expect(proxy.count('amqp.server.basic.ack')).toBe(5);
    await connection.close();
  });

  test('a stall of everything takes new connections, too, and resume ends it', async () => {
    proxy.stall();
    const connecting = amqp.connect(proxy.url(vhost.url), { timeout: 100 });
    await expect(connecting).rejects.toThrow('ETIMEDOUT');
    proxy.resume();
    await (await amqp.connect(proxy.url(vhost.url))).close();
    await connection.close();
  });

  test('with scope all the other connections are cut as well', async () => {
    const other = await amqp.connect(proxy.url(vhost.url));
    other.on('error', () => undefined);
    const otherEnded = once(other, 'close').catch(() => undefined);
    const { queue } = await channel.assertQueue('', { exclusive: true });
    const cut = proxy.at((unit) => unit.names.includes('amqp.client.header'), 2, 'cut-after', { scope: 'all' });
    await expect(publishSingly(queue, 5)).rejects.toThrow();
    await Promise.all([cut, ended, otherEnded]);
  });

  test('cut, refuse and let in again', async () => {
    proxy.refuse(true);
    proxy.cut();
    await ended;
    await expect(amqp.connect(proxy.url(vhost.url))).rejects.toThrow();
    proxy.refuse(false);
    await (await amqp.connect(proxy.url(vhost.url))).close();
  });

  test('delays both directions from an event on, without narrowing the line, and loses nothing', async () => {
    const { queue } = await channel.assertQueue('', { exclusive: true });
    const late = proxy.at('amqp.client.header', 3, () => proxy.delay(100));
    const waits: number[] = [];
    for (let n = 1; n <= 4; n += 1) {
      const began = performance.now();
      publishOne(queue, `m${n}`);
      await channel.waitForConfirms();
      waits.push(performance.now() - began);
    }
    await late;
    // The third header passed as the delay began; there and back is twice the latency.
    expect(waits[3]).toBeGreaterThanOrEqual(200);
    const began = performance.now();
    for (let n = 1; n <= 200; n += 1) publishOne(queue, `p${n}`);
    await channel.waitForConfirms();
    expect(performance.now() - began).toBeGreaterThanOrEqual(200);
    // One after the other they would take 40 s.
    expect(performance.now() - began).toBeLessThan(10_000);
    expect(confirmed).toBe(204);
    proxy.delay(0);
    await connection.close();
  });

  test('floods: many frames in one chunk, or byte by byte; all of it arrives in order', async () => {
    const queue = 'flooded';
    await channel.assertQueue(queue);
    const socket = connection.connection as unknown as { stream: NodeJS.ReadableStream };
    const chunks: number[] = [];
    socket.stream.on('data', (chunk: Buffer) => chunks.push(chunk.length));
    for (const [flow, names] of [
      ['burst', 'abcdefghij'],
      ['dribble', 'klmnopqrst'],
    ] as const) {
      proxy.flood(flow);
      chunks.length = 0;
      for (const name of names) {
        publishOne(queue, name);
        // A return and its ack: several frames from the server.
        publishOne('nowhere', name);
      }
      await channel.waitForConfirms();
      if (flow === 'burst') expect(Math.max(...chunks)).toBeGreaterThan(500);
      else expect(chunks.reduce((a, b) => a + b, 0) / chunks.length).toBeLessThan(20);
    }
    proxy.flood('as-it-comes');
    expect(confirmed).toBe(40);
    const probe = await startBrokerProbe({ url: vhost.url, queue });
    await probe.waitFor(20);
    expect(probe.ids().join('')).toBe('abcdefghijklmnopqrst');
    await probe.close();
    await connection.close();
  });

  test('answers in the place of the broker at each match, and the broker hears no more', async () => {
    await channel.assertQueue('answered');
    const end = proxy.every((unit) => unit.names.includes('amqp.client.header') && unit.bytes.includes('poison'), {
      answer: connectionClose(501, 'FRAME_ERROR - test'),
    });
    publishOne('answered', 'good');
    await channel.waitForConfirms();
    const error = once(connection, 'error') as Promise<[Error & { code: number }]>;
    publishOne('answered', 'poison');
    publishOne('answered', 'after');
    expect((await error)[0]).toMatchObject({
      code: 501,
      message: expect.stringContaining('FRAME_ERROR - test') as unknown,
    });
    await ended;
    await until(() => proxy.connections === 0, { what: 'the end of the connection' });
    end();
    const probe = await startBrokerProbe({ url: vhost.url, queue: 'answered' });
    await probe.waitFor(1);
    expect(probe.ids()).toEqual(['good']);
    await probe.close();
  });

  test('large bodies pass whole', async () => {
    const { queue } = await channel.assertQueue('', { exclusive: true });
    const body = Buffer.alloc(5_000_000, 'x');
    channel.sendToQueue(queue, body);
    await channel.waitForConfirms();
    const message = await channel.get(queue, { noAck: true });
    expect(message && message.content.equals(body)).toBe(true);
    await connection.close();
  });
});

describe('in front of PostgreSQL', () => {
  let database: FreshDatabase;
  beforeAll(async () => {
    database = await freshDatabase();
    await database.query('create table t (n int primary key, big text)');
    await database.query('create publication p for table t');
    await database.query(`select pg_create_logical_replication_slot('proxied', 'pgoutput')`);
  });
  afterAll(() => database.drop());

  beforeEach(async () => {
    proxy = await startFaultProxy({ targetPort: database.server.port, targetHost: database.server.host });
  });

  async function connect(): Promise<pg.Client> {
    const client = new pg.Client({ connectionString: proxy.url(database.url) });
    client.on('error', () => undefined);
    await client.connect();
    return client;
  }

  test('counts messages by name and cuts at a statement, before and after it ran', async () => {
    const commit = (unit: { names: string[]; body: Buffer }) =>
      unit.names.includes('pg.client.query') && unit.body.toString('utf8').startsWith('commit');
    for (const [n, action, expected] of [
      [1, 'cut-before', 0],
      [2, 'cut-after', 1],
    ] as const) {
      const client = await connect();
      await client.query('begin');
      await client.query('insert into t values ($1)', [n]);
      const cut = proxy.at(commit, 1, action);
      await expect(client.query('commit')).rejects.toThrow('Connection terminated');
      await cut;
      const [row] = await until(
        async () => {
          const rows = await database.query<{ rows: string; busy: string }>(
            `select (select count(*) from t) as rows,
               (select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()
                 and backend_type = 'client backend') as busy`,
          );
          return rows[0]?.busy === '0' && rows;
        },
        { what: 'the end of the session that was cut' },
      );
      expect(Number(row?.rows)).toBe(expected);
    }
    expect(proxy.count('pg.client.startup')).toBe(2);
    expect(proxy.count('pg.client.parse')).toBe(2);
    expect(proxy.count('pg.server.ready_for_query')).toBeGreaterThanOrEqual(6);
  });

  test('large rows pass whole', async () => {
    const client = await connect();
    const { rows } = await client.query<{ size: string }>(`select length($1) as size, repeat('y', 3000000) as big`, [
      'x'.repeat(3_000_000),
    ]);
    expect(rows[0]).toMatchObject({ size: 3_000_000, big: 'y'.repeat(3_000_000) });
    await client.end();
  });

  test('what has passed before a cut arrives, however large', async () => {
    const client = await connect();
    const cut = proxy.at('pg.server.data_row', 1, 'cut-after');
    const query = client.query(new pg.Query<{ big: string }>(`select repeat('y', 50000000) as big`));
    query.on('error', () => undefined);
    const row = once(query, 'row') as Promise<[{ big: string }]>;
    await cut;
    expect((await row)[0].big).toHaveLength(50_000_000);
    await until(() => proxy.connections === 0, { what: 'the cut' });
  });

  test('sees into the replication stream and stops it at an exact message', async () => {
    const service = new LogicalReplicationService(
      { connectionString: proxy.url(database.url) },
      { acknowledge: { auto: false, timeoutSeconds: 0 } },
    );
    service.on('error', () => undefined);
    const inserted: unknown[] = [];
    service.on('data', (_: string, message: { tag: string; new?: { n: number } }) => {
      if (message.tag === 'insert') inserted.push(message.new?.n);
    });
    const stalled = proxy.at('pg.server.xlogdata.commit', 2, 'stall-before');
    const subscription = service
      .subscribe(new PgoutputPlugin({ protoVersion: 1, publicationNames: ['p'] }), 'proxied')
      .catch(() => undefined);
    await database.query('insert into t values (10)');
    await database.query('insert into t values (11)');
    await database.query('insert into t values (12)');
    await stalled;
    const before = proxy.count('pg.server.xlogdata.insert');
    expect(proxy.count('pg.server.xlogdata.begin')).toBe(proxy.count('pg.server.xlogdata.commit'));
    proxy.resume();
    await until(() => inserted.includes(12), { what: 'the row behind the stall' });
    expect(proxy.count('pg.server.xlogdata.insert')).toBeGreaterThan(before);
    expect(proxy.count('pg.server.xlogdata.relation')).toBeGreaterThan(0);

    const status = proxy.at('pg.client.standby_status', 1, 'cut-after');
    await service.acknowledge('0/1');
    const unit = await status;
    expect(unit.body).toHaveLength(34);
    await until(() => proxy.connections === 0, { what: 'the cut' });
    await service.destroy().catch(() => undefined);
    await subscription;
  });
});
