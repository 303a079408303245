import { execFile } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import * as amqp from 'amqplib';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { InboxMessageRecord } from '../../src/app/inbox-admin.js';
import { SCHEMA_VERSION } from '../../src/postgres/migrations.js';
import { freshVhost, type FreshVhost } from '../support/broker.js';
import { freshDatabase, type FreshDatabase } from '../support/database.js';
import { migratedDatabase } from '../support/migrated-database.js';
import { until } from '../support/waiting.js';
import { buildProgram, runProgram, startProgram, type RunningProgram } from './built-program.js';

const run = promisify(execFile);

let dir: string;
let empty: FreshDatabase;
let database: FreshDatabase;
let vhost: FreshVhost;

beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), 'waybill-parts-'));
  [empty, database, vhost] = await Promise.all([freshDatabase(), migratedDatabase(), freshVhost(), buildProgram()]);
});
afterAll(async () => {
  rmSync(dir, { recursive: true });
  await Promise.all([empty.drop(), database.drop(), vhost.drop()]);
});

const to = ({ url }: FreshDatabase) => ({ WAYBILL_DATABASE_URL: url, WAYBILL_BROKER_URL: vhost.url });
const urls = () => to(database);

describe('commands that connect to nothing', () => {
  test('migrate print, given to psql: all of it, or what follows a version; in the schema that is named', async () => {
    const given = async (...args: string[]): Promise<void> => {
      const { code, out, err } = await runProgram(['migrate', 'print', ...args], {});
      expect({ code, err }).toEqual({ code: 0, err: '' });
      const file = join(dir, 'schema.sql');
      writeFileSync(file, out);
      await run('psql', ['-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', empty.url, '-f', file]);
    };
    const version = async (schema: string): Promise<number | undefined> => {
      const rows = await empty.query<{ version: number }>(`select max(version) as version from ${schema}.migration`);
      return rows[0]?.version;
    };
    await given('--schema', 'shop');
    expect(await version('shop')).toBe(SCHEMA_VERSION);
    expect(await runProgram(['migrate', 'status', '--schema', 'shop'], to(empty))).toMatchObject({ code: 0 });
    // As somebody does who had the version before the newest.
    await given();
    expect((await runProgram(['migrate', 'print', '--from', String(SCHEMA_VERSION)], {})).out).toMatch(
      new RegExp(`^(?![^]*create table waybill\\.outbox )[^]*\\b${SCHEMA_VERSION}\\b`),
    );
    expect(await version('waybill')).toBe(SCHEMA_VERSION);
    expect(await runProgram(['migrate', 'up'], to(empty))).toMatchObject({
      code: 0,
      out: 'Schema waybill is up to date.\n',
    });
    expect((await runProgram(['migrate', 'print', '--from', 'x'], {})).code).toBe(2);
  });

  test('config reference is the page that stands in deploy/', async () => {
    const written = readFileSync(new URL('../../deploy/configuration.md', import.meta.url), 'utf8');
    expect(await runProgram(['config', 'reference'], {})).toEqual({ code: 0, out: written, err: '' });
  });
});

describe('one part of the daemon, and one message that is dead', () => {
  let config: string;
  beforeAll(() => {
    config = join(dir, 'waybill.yaml');
    writeFileSync(
      config,
      `admin: { listen: off }
relay: { exchange: events }
consumers:
  billing: { queue: billing, bindings: [{ exchange: events, routingKey: "#" }], accept: ["order.paid"] }
`,
    );
  });

  async function broker<T>(work: (channel: amqp.Channel) => Promise<T>): Promise<T> {
    const connection = await amqp.connect(vhost.url);
    const channel = await connection.createChannel();
    // Looking at a queue that is not there closes the channel.
    channel.on('error', () => undefined);
    try {
      return await work(channel);
    } finally {
      await connection.close();
    }
  }
  const hasQueue = (name: string) =>
    broker((channel) =>
      channel.checkQueue(name).then(
        () => true,
        () => false,
      ),
    );
  const start = (part: string): RunningProgram => startProgram(['run', '--config', config, '--only', part], urls());
  const stop = async ({ child, finished }: RunningProgram): Promise<void> => {
    child.kill('SIGTERM');
    const { code, err } = await finished;
    expect({ code, err }).toEqual({ code: 0, err: '' });
  };
  const counts = async (): Promise<unknown> =>
    (
      await database.query(
        `select (select count(*)::int from waybill.relay) as relays, (select count(*)::int from waybill.consumer) as consumers,
           (select count(*)::int from pg_replication_slots where database = current_database()) as slots,
           (select count(*)::int from waybill.inbox) as received`,
      )
    )[0];

  test('run --only relay publishes, and has no queue, no consumer and no row of the inbox', async () => {
    await broker((channel) => channel.assertExchange('events', 'topic', { durable: true }));
    await broker(async (channel) => {
      await channel.assertQueue('seen', { durable: true });
      await channel.bindQueue('seen', 'events', '#');
    });
    const relay = start('relay');
    await database.query(`select waybill.publish('order.lost', '{"n": 1}')`);
    await until(() => broker(async (channel) => (await channel.checkQueue('seen')).messageCount === 1), {
      what: 'the row to be published',
      withinMs: 30_000,
      everyMs: 200,
    });
    expect(await counts()).toEqual({ relays: 1, consumers: 0, slots: 1, received: 0 });
    expect(await hasQueue('billing')).toBe(false);
    await stop(relay);
  });

  test('run --only consumers receives, and leaves the outbox, the slot and its lock to others', async () => {
    await database.query(`update waybill.relay set holder = 'somebody else'`);
    const consumers = start('consumers');
    await until(() => hasQueue('billing'), { what: 'the queue', withinMs: 30_000, everyMs: 200 });
    await database.query(`select waybill.publish('order.paid', '{}')`);
    await broker(async (channel) => {
      // Not by the exchange: the queue is there before its binding. The answer to the second says that the first went out.
      channel.sendToQueue('billing', Buffer.from('{"n": 2}'), { messageId: 'm-2', type: 'order.lost' });
      await channel.checkQueue('billing');
    });
    await until(async () => (await database.query(`select from waybill.inbox where status = 'dead'`)).length === 1, {
      what: 'the message that nobody accepts to be dead',
      withinMs: 30_000,
    });
    expect(await counts()).toEqual({ relays: 1, consumers: 1, slots: 1, received: 1 });
    expect(await database.query('select state from waybill.outbox')).toEqual([{ state: 'ready' }]);
    expect(await database.query('select holder from waybill.relay')).toEqual([{ holder: 'somebody else' }]);
    await stop(consumers);
  });

  test('run --only of a part that there is not, and of one that is switched off', async () => {
    expect((await runProgram(['run', '--config', config, '--only', 'both'], urls())).code).toBe(2);
    const off = { ...urls(), WAYBILL_RELAY_ENABLED: 'false' };
    const { code, err } = await runProgram(['run', '--only', 'relay'], off);
    expect({ code, err }).toEqual({ code: 2, err: expect.stringContaining('nothing to run') as string });
  });

  test('dead show tells one dead message, its reason and, when asked for, its body; an unknown one fails', async () => {
    const show = (...args: string[]) => runProgram(['dead', 'show', ...args], urls());
    const { code, out, err } = await show('m-2');
    expect({ code, err }).toEqual({ code: 0, err: '' });
    expect(out).toMatch(/At consumer billing\n +id +m-2\n +status +dead\n +dead because +\S+/);
    expect(out).toMatch(/ +type +order\.lost\n/);
    expect(out).not.toContain('"n": 2');
    expect((await show('m-2', '--body')).out).toContain('{"n": 2}');
    const [record] = JSON.parse((await show('m-2', '--json')).out) as InboxMessageRecord[];
    expect(record).toMatchObject({ consumer: 'billing', messageId: 'm-2', status: 'dead' });
    expect((await show('m-2', '--consumer', 'billing')).code).toBe(0);
    expect(await show('m-3')).toMatchObject({ code: 1, out: '' });
  });
});
