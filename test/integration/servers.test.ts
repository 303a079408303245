import * as amqp from 'amqplib';
import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, inject, test, vi } from 'vitest';
import { freshVhost } from '../support/broker.js';
import { startBrokerProbe } from '../support/broker-probe.js';
import { freshDatabase, sharedPostgres } from '../support/database.js';
import { Daemon } from '../support/servers/daemon.js';
import { freePorts } from '../support/servers/ports.js';
import { startPostgres } from '../support/servers/postgres.js';
import type { PostgresServer } from '../support/servers/postgres-server.js';
import type { RabbitServer } from '../support/servers/rabbit-server.js';
import { borrowRabbit, startRabbit } from '../support/servers/rabbit.js';
import { Scratch } from '../support/servers/scratch.js';
import { until } from '../support/waiting.js';

vi.mock(import('../support/servers/ports.js'), async (original) => {
  const { freePorts } = await original();
  return { freePorts: vi.fn(freePorts) };
});

async function query(url: string, sql: string): Promise<unknown[]> {
  const client = new pg.Client({ connectionString: url });
  client.on('error', () => undefined);
  await client.connect();
  try {
    return (await client.query<Record<string, unknown>>(sql)).rows;
  } finally {
    await client.end();
  }
}

async function publish(url: string, queue: string, text: string): Promise<void> {
  const connection = await amqp.connect(url);
  const channel = await connection.createConfirmChannel();
  await channel.assertQueue(queue, { arguments: { 'x-queue-type': 'quorum' } });
  channel.sendToQueue(queue, Buffer.from(text), { persistent: true });
  await channel.waitForConfirms();
  await connection.close();
}

async function get(url: string, queue: string): Promise<string | undefined> {
  const connection = await amqp.connect(url);
  const channel = await connection.createChannel();
  const message = await channel.get(queue, { noAck: true });
  await connection.close();
  return message ? message.content.toString() : undefined;
}

describe('private PostgreSQL', () => {
  let server: PostgresServer;
  beforeAll(async () => {
    server = await startPostgres({ own: true, durable: true, settings: { work_mem: '5MB' } });
  });
  afterAll(() => server.close());

  test('decodes logically, with the settings asked for', async () => {
    const sql = `select current_setting('wal_level') as level, current_setting('work_mem') as memory,
      current_setting('fsync') as fsync, current_setting('server_encoding') as encoding`;
    expect(await query(server.url(), sql)).toEqual([
      { level: 'logical', memory: '5MB', fsync: 'on', encoding: 'UTF8' },
    ]);
  });

  test('keeps its data and port through every kind of stop', async () => {
    await server.createDatabase('kept');
    await query(server.url('kept'), 'create table t as select 1 as n');
    for (const stop of [
      () => server.stop('smart'),
      () => server.stop('fast'),
      () => server.stop('immediate'),
      () => server.kill9(),
    ]) {
      await stop();
      await expect(query(server.url('kept'), 'select 1')).rejects.toThrow('ECONNREFUSED');
      await server.start();
      expect(await query(server.url('kept'), 'select n from t')).toEqual([{ n: 1 }]);
    }
  });

  test('answers nothing while paused', async () => {
    const client = new pg.Client({ connectionString: server.url() });
    await client.connect();
    await server.pause();
    let answered = false;
    const answer = client.query('select 1').then(() => (answered = true));
    const late = new pg.Client({ connectionString: server.url(), connectionTimeoutMillis: 200 });
    await expect(late.connect()).rejects.toThrow('timeout');
    expect(answered).toBe(false);
    await server.resume();
    await answer;
    await client.end();
  });

  test('drops a database together with its slots', async () => {
    await server.createDatabase('slotted');
    await query(server.url('slotted'), `select pg_create_logical_replication_slot('of_slotted', 'pgoutput')`);
    await server.dropDatabase('slotted');
    await server.dropDatabase('slotted');
    expect(await query(server.url(), 'select slot_name from pg_replication_slots')).toEqual([]);
  });
});

test('PostgreSQL 18 from the npm package runs beside the installed one', async () => {
  const [installed, embedded] = await Promise.all([
    startPostgres({ own: true }),
    startPostgres({ version: 'embedded' }),
  ]);
  try {
    expect(embedded.version).toMatch(/^18\./);
    expect(installed.port).not.toBe(embedded.port);
    const slot = `select slot_name from pg_create_logical_replication_slot('s', 'pgoutput')`;
    expect(await query(embedded.url(), slot)).toEqual([{ slot_name: 's' }]);
    await query(embedded.url(), `create collation german (provider = icu, locale = 'de')`);
  } finally {
    await Promise.all([installed.close(), embedded.close()]);
  }
});

describe('private RabbitMQ', () => {
  let server: RabbitServer;
  beforeAll(async () => {
    server = await startRabbit({ own: true });
    await server.addVhost('mine');
  });
  afterAll(() => server.close());

  test('keeps confirmed messages through a stop and a kill', async () => {
    const url = server.url('mine');
    await publish(url, 'kept', 'one');
    await server.stop();
    await server.start();
    expect(await get(url, 'kept')).toBe('one');
    await publish(url, 'kept', 'two');
    await server.kill9();
    await expect(amqp.connect(url)).rejects.toThrow('ECONNREFUSED');
    await server.start();
    expect(await until(() => get(url, 'kept'), { what: 'the message' })).toBe('two');
  });

  test('blocks publishers while the alarm is on', async () => {
    const connection = await amqp.connect(server.url('mine'));
    const channel = await connection.createConfirmChannel();
    await channel.assertQueue('alarmed');
    const blocked = once(connection, 'blocked');
    const unblocked = once(connection, 'unblocked');
    await server.alarm(true);
    channel.sendToQueue('alarmed', Buffer.from('x'));
    await blocked;
    await server.alarm(false);
    await unblocked;
    await channel.waitForConfirms();
    await connection.close();
  });

  test('answers nothing while paused', async () => {
    const connection = await amqp.connect(server.url('mine'));
    const channel = await connection.createConfirmChannel();
    const { queue } = await channel.assertQueue('', { exclusive: true });
    await server.pause();
    let confirmed = false;
    channel.sendToQueue(queue, Buffer.from('x'), {}, () => (confirmed = true));
    await expect(amqp.connect(server.url('mine'), { timeout: 200 })).rejects.toThrow('ETIMEDOUT');
    expect(confirmed).toBe(false);
    await server.resume();
    await channel.waitForConfirms();
    await connection.close();
  });

  test('applies policies and deletes virtual hosts', async () => {
    await server.addVhost('limited');
    await server.setPolicy('limited', 'short', '^short$', { 'max-length': 0, overflow: 'reject-publish' }, 'queues');
    const connection = await amqp.connect(server.url('limited'));
    connection.on('error', () => undefined);
    const channel = await connection.createConfirmChannel();
    await channel.assertQueue('short');
    channel.sendToQueue('short', Buffer.from('x'));
    await expect(channel.waitForConfirms()).rejects.toThrow('nacked');
    const closed = once(connection, 'close');
    await server.deleteVhost('limited');
    await closed;
    await expect(server.ctl('list_vhosts')).resolves.not.toContain('limited');
  });
});

test('a port that somebody takes in between costs another try, not the run', async () => {
  const squatter = createServer().listen(0, '127.0.0.1');
  await once(squatter, 'listening');
  const { port } = squatter.address() as AddressInfo;
  const [epmd, distribution] = (await freePorts(2)) as [number, number];
  vi.mocked(freePorts).mockResolvedValueOnce([port]);
  const postgres = await startPostgres({ own: true });
  await postgres.close();
  vi.mocked(freePorts).mockResolvedValueOnce([port, epmd, distribution]);
  const rabbit = await startRabbit({ own: true });
  await rabbit.close();
  vi.mocked(freePorts).mockResolvedValueOnce([await freePorts(1).then(([free]) => free!), port, distribution]);
  await (await startRabbit({ own: true })).close();
  expect([postgres.port, rabbit.port]).not.toContain(port);
  squatter.close();
});

test('a server that cannot start says what was tried and why', async () => {
  await expect(startPostgres({ own: true, settings: { shared_buffers: 'plenty' } })).rejects.toThrow(
    /did not start\.[^]*postgres -D [^]*exit code 1[^]*invalid value for parameter "shared_buffers": "plenty"/,
  );
  await expect(startRabbit({ own: true, settings: { nonsense: 1 } })).rejects.toThrow(
    /did not start\.[^]*rabbitmq-server: exit code 1[^]*tried to set nonsense/,
  );
});

describe('the servers that a run shares', () => {
  test('a database comes from a template that is prepared once', async () => {
    let prepared = 0;
    const options = {
      template: 'counted',
      prepare: async (client: pg.Client) => {
        prepared++;
        await client.query('create table t (n int)');
      },
    };
    const [one, two] = await Promise.all([freshDatabase(options), freshDatabase(options)]);
    expect(prepared).toBe(1);
    await one.query('insert into t values (1)');
    expect(await one.query('select n from t')).toEqual([{ n: 1 }]);
    expect(await two.query('select n from t')).toEqual([]);
    await Promise.all([one.drop(), two.drop()]);
    await expect(sharedPostgres().kill9()).rejects.toThrow('startPostgres({ own: true })');
  });

  test('a virtual host comes with a probe that sees copies in order', async () => {
    const vhost = await freshVhost();
    const connection = await amqp.connect(vhost.url);
    connection.on('error', () => undefined);
    const channel = await connection.createConfirmChannel();
    await channel.assertExchange('events', 'topic');
    const probe = await startBrokerProbe({ url: vhost.url, exchange: 'events', routingKey: 'order.*' });
    for (const messageId of ['a', 'b', 'a']) {
      channel.publish('events', 'order.paid', Buffer.from(messageId), { messageId, type: 'order.paid' });
    }
    await channel.waitForConfirms();
    await probe.waitFor(3);
    expect(probe.ids()).toEqual(['a', 'b', 'a']);
    expect(probe.firstIds()).toEqual(['a', 'b']);
    expect(probe.messages[0]).toMatchObject({ type: 'order.paid', routingKey: 'order.paid', body: Buffer.from('a') });
    await expect(probe.waitForDistinct(3, 50)).rejects.toThrow('(2 came)');
    await probe.close();
    await vhost.drop();
  });

  test('URLs from the environment are used instead of private servers, unless own ones are asked for', async () => {
    vi.stubEnv('WAYBILL_TEST_DATABASE_URL', inject('servers').postgresUrl);
    vi.stubEnv('WAYBILL_TEST_BROKER_URL', inject('servers').brokerUrl);
    try {
      const [postgres, rabbit, own] = await Promise.all([startPostgres(), startRabbit(), startPostgres({ own: true })]);
      expect(await query(postgres.url(), 'select 1 as one')).toEqual([{ one: 1 }]);
      expect([postgres.private, rabbit.private, own.private]).toEqual([false, false, true]);
      await expect(rabbit.alarm(true)).rejects.toThrow('startRabbit({ own: true })');
      await Promise.all([postgres.close(), rabbit.close(), own.close()]);
      expect(await query(postgres.url(), 'select 1 as one')).toEqual([{ one: 1 }]);
    } finally {
      vi.unstubAllEnvs();
    }
  });

  test('a borrowed broker says what is missing for administration', async () => {
    await expect(borrowRabbit(inject('servers').brokerUrl).addVhost('x')).rejects.toThrow('MANAGEMENT_URL');
  });
});

describe('nothing stays behind', () => {
  const run = promisify(execFile);

  /** Starts the owner in a temporary folder of its own, so that everything it makes can be told from others'. */
  async function startOwner(mode: string): Promise<{ owner: ChildProcess; folder: string; pids: number[] }> {
    const folder = await mkdtemp(join(tmpdir(), 'waybill-owner-'));
    await run('chmod', ['711', folder]);
    const script = fileURLToPath(new URL('./owner-of-servers.ts', import.meta.url));
    const owner = spawn(process.execPath, ['--import', 'tsx', script, mode], {
      env: { ...process.env, TMPDIR: folder, TSX_DISABLE_CACHE: '1' },
      detached: true,
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    await once(createInterface(owner.stdout), 'line');
    const pids = await descendantsOf(owner.pid!);
    return { owner, folder, pids };
  }

  async function descendantsOf(root: number): Promise<number[]> {
    const { stdout } = await run('ps', ['-A', '-o', 'pid=,ppid='], { maxBuffer: 1 << 24 });
    const all = stdout
      .trim()
      .split('\n')
      .map((line) => line.trim().split(/\s+/).map(Number));
    const found = [root];
    for (const parent of found) found.push(...all.filter((p) => p[1] === parent).map((p) => p[0]!));
    return found.slice(1);
  }

  async function running(pids: number[]): Promise<string[]> {
    const { stdout } = await run('ps', ['-A', '-o', 'pid=,stat=,comm=']);
    const lines = stdout
      .trim()
      .split('\n')
      .map((line) => line.trim());
    return lines.filter((line) => pids.includes(parseInt(line)) && !/^\d+\s+Z/.test(line));
  }

  test.each([
    ['SIGKILL to the owner', 'running', (pid: number) => process.kill(pid, 'SIGKILL')],
    ['SIGKILL to the owner of frozen servers', 'frozen', (pid: number) => process.kill(pid, 'SIGKILL')],
    ['Ctrl-C, which goes to its whole process group', 'running', (pid: number) => process.kill(-pid, 'SIGINT')],
  ])('after %s', async (_, mode, end) => {
    const { owner, folder, pids } = await startOwner(mode);
    const names = (await running(pids)).join('\n');
    for (const name of ['sh', 'postgres', 'beam', 'epmd']) expect(names).toContain(` ${name}`);
    expect(await readdir(folder)).toHaveLength(2);
    end(owner.pid!);
    await until(async () => (await readdir(folder)).length === 0, { what: 'empty temporary folder', withinMs: 20_000 });
    await until(async () => (await running(pids)).length === 0, { what: `the end of ${pids.join()}` });
    await rm(folder, { recursive: true });
  });

  test('of a process that has left its folder', async () => {
    const scratch = await Scratch.open();
    const server = await Daemon.start(scratch, {
      command: '/bin/sh',
      args: ['-c', 'cd / && echo away && exec sleep 1000'],
      env: { PATH: process.env['PATH'] },
      logFile: scratch.path('log'),
    });
    await until(async () => (await readFile(scratch.path('log'), 'utf8')) === 'away\n', { what: 'it to leave' });
    await scratch.remove();
    expect(await running([server.pid])).toEqual([]);
  });
});
