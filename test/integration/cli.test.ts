import { once } from 'node:events';
import { createServer, type AddressInfo } from 'node:net';
import * as amqp from 'amqplib';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import type { Finding } from '../../src/app/doctor-findings.js';
import type { Status } from '../../src/app/status.js';
import { SCHEMA_VERSION } from '../../src/postgres/migrations.js';
import { rolesSql } from '../../src/postgres/roles.js';
import { freshVhost, type FreshVhost } from '../support/broker.js';
import { freshDatabase, type FreshDatabase } from '../support/database.js';
import { until } from '../support/waiting.js';
import { buildProgram, runProgram, startProgram, type RunningProgram } from './built-program.js';

let database: FreshDatabase;
let vhost: FreshVhost;
const running: RunningProgram[] = [];

beforeAll(async () => {
  [database, vhost] = await Promise.all([freshDatabase(), freshVhost(), buildProgram()]);
});

afterAll(async () => {
  for (const { child } of running) child.kill('SIGKILL');
  await Promise.all(running.map(({ finished }) => finished));
  await database.drop();
  await dropRoles();
  await vhost.drop();
});

/** Roles belong to the whole server, so these carry the run's mark and go with the file. */
function role(name: 'owner' | 'app' | 'relay' | 'observer'): string {
  return `cli_${inject('servers').runId}_${name}`;
}

async function dropRoles(): Promise<void> {
  const client = new pg.Client({ connectionString: database.server.url() });
  await client.connect();
  const names = (['owner', 'app', 'relay', 'observer'] as const).map(role);
  await client.query(`drop role if exists ${names.join(', ')}`).finally(() => client.end());
}

function urls(change: Record<string, string> = {}): Record<string, string> {
  return {
    WAYBILL_DATABASE_URL: database.url,
    WAYBILL_BROKER_URL: vhost.url,
    WAYBILL_ADMIN_LISTEN: 'off',
    ...change,
  };
}

const waybill = (args: string, change: Record<string, string> = {}) => runProgram(args.split(' '), urls(change));

async function status(change: Record<string, string> = {}): Promise<Status> {
  return JSON.parse((await waybill('status --json', change)).out) as Status;
}

async function doctor(change: Record<string, string> = {}) {
  const { out, code } = await waybill('doctor --json', change);
  const { findings } = JSON.parse(out) as { findings: Finding[] };
  return { code, find: (id: string) => findings.find((finding) => finding.id === id), findings };
}

/** What is not well, but for what the server of the tests is by itself: without a limit of WAL, made for speed. */
const notWell = (findings: readonly Finding[], besides: readonly string[] = []): Finding[] =>
  findings.filter(
    ({ severity, id }) => severity !== 'ok' && !['slot-keep-size', 'durability', ...besides].includes(id),
  );

function startRelay(change: Record<string, string> = {}): RunningProgram {
  const relay = startProgram(['run'], urls(change));
  running.push(relay);
  return relay;
}

async function untilActive(): Promise<Status> {
  return until(
    async () => (({ activity, ...rest }) => activity === 'active' && { activity, ...rest })(await status()),
    {
      what: 'an active relay',
      withinMs: 30_000,
      everyMs: 200,
    },
  );
}

/** The newest line of the log of actions. */
async function lastAction(): Promise<Record<string, unknown> | undefined> {
  return (await database.query('select action, target, details from waybill.action_log order by seq desc limit 1'))[0];
}

function withUser(url: string, user: string, password: string): string {
  const changed = new URL(url);
  changed.username = user;
  changed.password = password;
  return changed.href;
}

// One after the other: this is the life of an installation.
describe('before the tables are there', () => {
  it('status tells the next command, and --check fails', async () => {
    const { out, code } = await waybill('status --check');
    expect(code).toBe(4);
    expect(out).toContain('next: waybill migrate up');
  });

  it('F123 run and migrate status end with 3', async () => {
    const run = await waybill('run');
    expect(run.code).toBe(3);
    expect(run.err).toContain('waybill migrate up');
    const pending = await waybill('migrate status');
    expect(pending.code).toBe(3);
    expect(pending.out).toMatch(/1 +outbox +missing/);
  });

  it('doctor fails by the schema and tells the rest all the same', async () => {
    const { code, find } = await doctor();
    expect(code).toBe(4);
    expect(find('schema')).toMatchObject({ severity: 'fail' });
    expect(find('wal-level')).toMatchObject({ severity: 'ok' });
    expect(find('broker')).toMatchObject({ severity: 'ok' });
  });

  it('migrate up makes them, without the broker, and once', async () => {
    const first = await runProgram(['migrate', 'up'], { WAYBILL_DATABASE_URL: database.url });
    expect(first).toMatchObject({ code: 0, out: expect.stringContaining(`${SCHEMA_VERSION} applied`) as string });
    expect((await waybill('migrate')).out).toBe('Schema waybill is up to date.\n');
    expect((await waybill('migrate status')).code).toBe(0);
  });
});

describe('before the first start', () => {
  it('status says that nothing runs', async () => {
    const { problems, activity, slot } = await status();
    expect({ activity, slot, ids: problems.map(({ id }) => id) }).toEqual({
      activity: 'stopped',
      slot: null,
      ids: ['stopped'],
    });
  });

  it('doctor looks without making anything', async () => {
    const { find, findings } = await doctor();
    expect(find('exchange')?.finding).toContain('the start declares it');
    // Here the tests' superuser asks.
    expect(notWell(findings, ['least-privilege'])).toEqual([]);
    expect(await database.query('select from waybill.relay')).toEqual([]);
    expect(await database.query('select from pg_replication_slots where database = current_database()')).toEqual([]);
    expect((await doctor()).find('exchange')?.finding).toContain('the start declares it');
  });

  it('F131 a slot of our name in another database is told and left alone', async () => {
    const other = await freshDatabase();
    const slot = `waybill_${database.name}_waybill_default`;
    try {
      await other.query("select pg_create_logical_replication_slot($1, 'pgoutput')", [slot]);
      expect((await doctor()).find('slot')).toMatchObject({ severity: 'fail' });
      expect((await status()).problems.map(({ id }) => id)).toContain('slot');
    } finally {
      await other.drop();
    }
  });
});

describe('the role', () => {
  beforeAll(async () => {
    await database.query(
      rolesSql({
        owner: role('owner'),
        app: role('app'),
        relay: role('relay'),
        observer: role('observer'),
      }),
    );
    await database.query(`alter role ${role('relay')} password 'relay-secret'`);
    await database.query(`alter role ${role('app')} login password 'app-secret'`);
  });

  it('of the relay has every grant that doctor looks for, and status works with it', async () => {
    const change = { WAYBILL_DATABASE_URL: withUser(database.url, role('relay'), 'relay-secret') };
    const { findings, find } = await doctor(change);
    expect(notWell(findings)).toEqual([]);
    expect(find('old-transactions')?.finding).toContain('pg_read_all_stats');
    expect((await status(change)).database.error).toBeNull();
  });

  it('F36 F37 of an application is told what it lacks', async () => {
    const change = { WAYBILL_DATABASE_URL: withUser(database.url, role('app'), 'app-secret') };
    const { findings, code } = await doctor(change);
    expect(code).toBe(4);
    const failed = findings.filter(({ severity }) => severity === 'fail').map(({ id }) => id);
    expect(failed).toEqual(expect.arrayContaining(['replication-role', 'replication-connection', 'grants']));
    const { problems } = await status(change);
    expect(problems.map(({ id }) => id)).toContain('database');
  });
});

describe('what cannot be reached', () => {
  it.each([
    ['nobody listens', 'postgres://waybill:db-secret@127.0.0.1:1/shop', 'amqp://waybill:mq-secret@127.0.0.1:1/'],
    ['the password is wrong', 'db-secret', 'mq-secret'],
  ])('is told by both commands without a password: %s', async (_, databaseUrl, brokerUrl) => {
    const change = {
      WAYBILL_DATABASE_URL: databaseUrl.includes(':') ? databaseUrl : withUser(database.url, role('app'), databaseUrl),
      WAYBILL_BROKER_URL: brokerUrl.includes(':') ? brokerUrl : withUser(vhost.url, 'guest', brokerUrl),
    };
    const looks = [
      await waybill('status --check', change),
      await waybill('doctor', change),
      await waybill('status --json', change),
    ];
    expect(looks.map(({ code }) => code)).toEqual([4, 4, 0]);
    for (const { out, err } of looks) {
      expect(out + err).not.toMatch(/db-secret|mq-secret/);
      expect(err).toBe('');
    }
    const failed = (await doctor(change)).findings.filter(({ severity }) => severity === 'fail').map(({ id }) => id);
    expect(failed).toEqual(expect.arrayContaining(['database', 'broker']));
  });

  it('F84 a virtual host that does not exist is named as that', async () => {
    const { find } = await doctor({ WAYBILL_BROKER_URL: vhost.url.replace(vhost.name, 'no-such-vhost') });
    expect(find('broker')?.finding).toContain('virtual host');
  });
});

describe('a running relay', () => {
  it('is seen by status and cannot be adopted or dropped', async () => {
    const relay = startRelay();
    const { slot, record, broker, problems } = await untilActive();
    expect(slot).toMatchObject({ active: true, plugin: 'pgoutput', database: database.name });
    expect(record?.holder).toContain(`:${relay.child.pid ?? 0}`);
    expect(broker.facts).toMatchObject({ lock: 'held', exchange: 'fits', vhost: vhost.name });
    expect(problems).toEqual([]);
    expect((await waybill('status --check')).code).toBe(0);
    for (const command of ['relay adopt --yes', 'relay drop default --yes']) {
      const { code, err } = await waybill(command);
      expect({ command, code }).toEqual({ command, code: 1 });
      expect(err).toContain('is running');
    }
    expect((await waybill('relay list')).out).toMatch(/default +wal .* in use/);
  });

  it('messages of hours that nobody takes up are a problem', async () => {
    await database.query(`insert into waybill.consumer (name, queue, handler) values ('billing', 'billing', 'store')`);
    const receive = (ago: string) =>
      database.query(
        `insert into waybill.inbox (consumer, message_id, body, body_hash, received_at)
         select 'billing', gen_random_uuid()::text, 'x', sha256('x'), now() - $1::interval from generate_series(1, 200)`,
        [ago],
      );
    await receive('1 s');
    expect((await waybill('status --check')).code).toBe(0);
    await receive('7 h');
    const { out, code } = await waybill('status --check');
    expect(code).toBe(4);
    expect(out.replaceAll(/\s+/g, ' ')).toContain(
      'PROBLEMS - 200 messages of consumer billing are due for more than 5 min and not taken up; the oldest was received 7 h ago.',
    );
    expect(out).toContain('    next: waybill consumer list\n');
    expect(out).toMatch(/^consumers +billing +pending 400; oldest 7 h$/m);
    await database.query('truncate waybill.inbox, waybill.inbox_attempt, waybill.consumer cascade');
  });

  it('F90 an exchange of another type is warned of', async () => {
    const { find } = await doctor({ WAYBILL_RELAY_EXCHANGE_TYPE: 'fanout' });
    expect(find('exchange')).toMatchObject({ severity: 'warn' });
  });

  it('F112 ends with 0 at SIGTERM, and logs JSON alone', async () => {
    const [relay] = running;
    relay?.child.kill('SIGTERM');
    const { code, out } = (await relay?.finished) ?? { code: null, out: '' };
    expect(code).toBe(0);
    for (const line of out.trim().split('\n')) expect(JSON.parse(line)).toHaveProperty('level');
    expect((await status()).activity).toBe('stopped');
  });
});

describe('after it', () => {
  it('parked rows are grouped by error, and the oldest is told', async () => {
    await database.query(
      `insert into waybill.outbox (type, payload, state, hold_no, last_error, created_at)
       select 'order.paid', '{}', 'parked', i, case when i < 3 then 'no queue' else 'too large' end, now() - interval '1 hour'
       from generate_series(1, 3) i`,
    );
    const { backlog, parkedErrors, problems } = await status();
    expect(backlog?.states).toMatchObject([{ state: 'parked', count: 3, accuracy: 'exact' }]);
    expect(parkedErrors.map(({ error, count }) => [error, count])).toEqual([
      ['no queue', 2],
      ['too large', 1],
    ]);
    expect(problems.map(({ id }) => id)).toEqual(['stopped', 'parked']);
    await database.query('delete from waybill.outbox');
  });

  it('a long backlog is estimated, and says so; what stands out in it is counted', async () => {
    await database.query(
      "insert into waybill.outbox (type, state, hold_no) select 't', case when i = 100100 then 'parked' else 'ready' end, case when i = 100100 then i end from generate_series(1, 100100) i",
    );
    try {
      // On a busy machine the time may run out before all of it is known; then the next look tells it.
      const states = await until(
        async () => {
          const found = (await status()).backlog?.states;
          const isCounted = found?.some(({ state, accuracy }) => state === 'parked' && accuracy === 'exact');
          return isCounted === true && found?.some(({ accuracy }) => accuracy === 'about') && found;
        },
        { what: 'a look that gets through', withinMs: 30_000 },
      );
      const ready = states.find(({ state }) => state === 'ready');
      expect(Math.abs((ready?.count ?? 0) - 100_099)).toBeLessThan(20_000);
      expect(states.find(({ state }) => state === 'parked')?.count).toBe(1);
    } finally {
      await database.query('truncate waybill.outbox');
    }
  });

  it('F56 F66 another cluster is told, and adopt mends it only for the one that is expected', async () => {
    const [before] = await database.query<{ system_identifier: string }>('select system_identifier from waybill.relay');
    await database.query("update waybill.relay set system_identifier = 42, broker_cluster = 'rabbit@elsewhere'");
    expect((await status()).problems.map(({ id }) => id)).toEqual(['identity', 'identity', 'stopped']);
    expect((await doctor()).find('broker-identity')).toMatchObject({ severity: 'fail' });
    expect(await waybill('relay adopt --expect 43')).toMatchObject({ code: 1 });
    expect(await waybill('relay adopt')).toMatchObject({ code: 2 });
    const here = before?.system_identifier ?? '';
    expect(await waybill(`relay adopt --expect ${here}`)).toMatchObject({ code: 0 });
    expect(await database.query('select system_identifier, broker_cluster, checkpoint_lsn from waybill.relay')).toEqual(
      [{ system_identifier: null, broker_cluster: null, checkpoint_lsn: null }],
    );
    expect(await lastAction()).toMatchObject({
      action: 'relay.adopt',
      target: 'default',
      details: { system_identifier: '42', broker_cluster: 'rabbit@elsewhere' },
    });
    expect((await status()).problems.map(({ id }) => id)).toEqual(['stopped']);
  });

  it('3.7 a lock queue that is held forbids to adopt and to drop, though nobody reads the slot', async () => {
    const [installation] = await database.query<{ id: string }>('select id from waybill.installation');
    const connection = await amqp.connect(vhost.url);
    const channel = await connection.createChannel();
    await channel.assertQueue(`waybill.lock.${installation?.id}.default`, { exclusive: true });
    const before = await database.query('select * from waybill.relay');
    for (const command of ['relay adopt --yes', 'relay drop default --yes']) {
      const { code, err } = await waybill(command);
      expect({ command, code }).toEqual({ command, code: 1 });
      expect(err).toMatch(/is running: its lock queue waybill\.lock\..* is held/);
    }
    expect(await database.query('select * from waybill.relay')).toEqual(before);
    await connection.close();
  });

  it('a broker that is gone forbids neither, and that it was not asked is told', async () => {
    const nowhere = { WAYBILL_BROKER_URL: 'amqp://127.0.0.1:1/' };
    const { code, out } = await waybill('relay adopt --yes', nowhere);
    expect({ code, out }).toMatchObject({ code: 0, out: expect.stringContaining('could not be seen') as unknown });
  });

  it('drop takes slot and record away, and only when told so if applications delete rows themselves', async () => {
    expect(await waybill('relay drop other --yes')).toMatchObject({ code: 1 });
    await database.query('update waybill.relay set insert_then_delete_seen = true');
    const before = await database.query(
      'select (select slot_name from pg_replication_slots where database = current_database()), name from waybill.relay',
    );
    const refused = await waybill('relay drop default --yes');
    expect(refused).toMatchObject({ code: 1, err: expect.stringContaining('delete rows themselves') as unknown });
    expect(refused.err).toContain('relay drop default --force');
    expect(
      await database.query(
        'select (select slot_name from pg_replication_slots where database = current_database()), name from waybill.relay',
      ),
    ).toEqual(before);
    expect((await waybill('status')).out).toContain('applications delete rows themselves');
    const seen = (await doctor()).find('own-deletes');
    expect(seen?.finding).toContain('update waybill.relay set insert_then_delete_seen = false;');
    expect(await waybill('relay drop default --yes --force')).toMatchObject({
      code: 0,
      out: expect.not.stringContaining('could not be seen') as unknown,
    });
    expect(await lastAction()).toMatchObject({ action: 'relay.drop', target: 'default' });
    expect(await database.query('select from waybill.relay')).toEqual([]);
    expect(await database.query('select from pg_replication_slots where database = current_database()')).toEqual([]);
  });
});

describe('a database in trouble', () => {
  it('status waits for no lock, and still tells what it could read', async () => {
    const client = await database.connect();
    await client.query('begin');
    await client.query('lock table waybill.outbox in access exclusive mode');
    try {
      const { database: seen, backlog, activity, problems } = await status();
      expect(seen.error?.message).toContain('lock timeout');
      expect({ backlog, activity, version: seen.schemaVersion }).toEqual({
        backlog: null,
        activity: 'stopped',
        version: SCHEMA_VERSION,
      });
      expect(problems.map(({ id }) => id)).toContain('database');
    } finally {
      await client.end();
    }
  });

  it('F64 status gives up on a server that is silent', async () => {
    const silent = createServer();
    silent.listen(0, '127.0.0.1');
    await once(silent, 'listening');
    const { port } = silent.address() as AddressInfo;
    try {
      const { problems } = await status({ WAYBILL_DATABASE_URL: `postgres://u:p@127.0.0.1:${port}/shop` });
      expect(problems).toMatchObject([{ id: 'database', next: 'waybill doctor' }]);
    } finally {
      silent.close();
    }
  });
});
