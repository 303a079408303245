import { execFile } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import pg from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { printMigrations, printRoles } from '../../src/app/migrate.js';
import { firstResult, firstTime, InboxWorker, newer, publish, type WorkerEvent } from '../../src/client/index.js';
import type { InboundRow } from '../../src/core/delivery.js';
import { InboxStore } from '../../src/postgres/inbox-store.js';
import type { FreshDatabase } from '../support/database.js';
import { register } from '../support/inbox.js';
import { migratedDatabase } from '../support/migrated-database.js';
import { plantStrangers, strangersRan, STRANGER_RAN, STRANGERS_PATH } from '../support/strangers.js';
import { until } from '../support/waiting.js';

let database: FreshDatabase;
/** On it every name without its schema leads to something of a stranger's. */
let onTheirPath: pg.Client;

/** Exact itself. A deferred constraint of its own has call_handler put that back. */
const HANDLER = `
  create schema app;
  create table app.late (n int constraint late_once unique deferrable initially deferred);
  create function app.h(m waybill.inbox_message) returns text language plpgsql as $$ begin
    insert into app.late values (m.seq);
    case
      when m.message_id operator(pg_catalog.=) 'early' then raise exception using errcode = 'WB001', message = 'early';
      when m.message_id operator(pg_catalog.=) 'never' then raise exception using errcode = 'WB002', message = 'never';
      when m.message_id operator(pg_catalog.=) 'fails' then raise exception using errcode = '22000', message = 'fails';
      when m.message_id operator(pg_catalog.=) 'empty' then return '';
      else return pg_catalog.current_setting('search_path');
    end case; end $$`;

beforeAll(async () => {
  database = await migratedDatabase();
  await database.query(HANDLER);
  await plantStrangers(await database.connect());
  onTheirPath = await database.connect();
  await onTheirPath.query(`set search_path = ${STRANGERS_PATH}`);
});
afterAll(() => database.drop());
afterEach(async () => {
  expect(await strangersRan(database)).toBe(0);
});

test.each([
  ['select now()'],
  ['select 1 + 1'],
  ["select format('%I', 'x')"],
  ["select 'x'::text"],
  ['select unnest(array[1])'],
  ["select nullif('a', 'b')"],
  ["select 'a' is distinct from 'b'"],
])('strangers are run by %s', async (sql) => {
  await expect(onTheirPath.query(sql)).rejects.toThrow(STRANGER_RAN);
  expect(await strangersRan(database)).toBe(1);
});

test('what runs on the search path of its caller is known', async () => {
  const rows = await database.query<{ name: string }>(
    `select p.proname || '(' || oidvectortypes(p.proargtypes) || ')' as name from pg_proc p
     where p.pronamespace = 'waybill'::regnamespace
       and not exists (select from unnest(p.proconfig) c where c ~ '^search_path=pg_catalog, (waybill, )?pg_temp$')
     order by 1`,
  );
  // Whoever adds one here says in it, or by its exact names, why it needs no path of its own, and has it run below.
  expect(rows.map(({ name }) => name)).toEqual([
    'call_handler(text, waybill.inbox_message, text)',
    'inbox_apply(text, bigint[], uuid)',
    'inbox_receive(text, json, bytea, boolean)',
    'inbox_wake(text)',
    'key_lock(text, text)',
    'message_of(waybill.inbox)',
    'payload(waybill.claimed_message)',
    'payload(waybill.inbox)',
    'payload(waybill.inbox_message)',
    'set_handling(waybill.inbox_message)',
  ]);
});

const arrival = (messageId: string, more: Partial<InboundRow> = {}): { row: InboundRow } => ({
  row: {
    messageId,
    originalId: null,
    dead: null,
    type: 'order.paid',
    key: null,
    schemaVersion: 1,
    body: Buffer.from('{"n": 1}'),
    contentType: 'application/json',
    contentEncoding: null,
    headers: '{}',
    exchange: '',
    routingKey: 'billing',
    correlationId: 'c',
    causationId: null,
    replyTo: null,
    appId: null,
    priority: null,
    occurredAt: null,
    traceparent: '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01',
    tracestate: 'a=1',
    rawProperties: null,
    ...more,
  },
});

describe('on the search path of strangers', () => {
  const store = (consumer: string): InboxStore =>
    new InboxStore(
      { use: (_doing, work) => work(onTheirPath) },
      { schema: 'waybill', consumer, now: () => performance.now(), onHandled: () => undefined, claimsBodies: true },
    );

  test('every call of the inbox store, with functions as handlers', async () => {
    await register(await database.connect(), {
      ...{ name: 'billing', handler: 'sql', function: 'app.h', ordering: 'key', retain_bodies: '0' },
    });
    const billing = store('billing');
    await billing.ping();
    const ids = ['a', 'early', 'never', 'fails', 'empty'];
    const received = await billing.receive([...ids.map((id) => arrival(id)), arrival('k', { key: 'k' })], true);
    expect(received.map(({ verdict }) => verdict)).toEqual(['done', 'not-yet', 'never', 'retry', 'done', 'done']);
    expect(await results()).toMatchObject({ a: STRANGERS_PATH, empty: null, k: STRANGERS_PATH });
    await expect(billing.receive([arrival('a', { body: Buffer.from('{}') })], true)).resolves.toMatchObject([
      { outcome: 'conflict' },
    ]);

    await billing.receive([...ids.map((id) => arrival(id, { key: 'later' })), arrival('b')], false);
    await database.query(`update waybill.inbox set next_attempt_at = clock_timestamp() where status = 'waiting'`);
    expect((await billing.due(10)).length).toBeGreaterThan(0);
    const claimed = await billing.claim(10, 60_000);
    expect(claimed?.messages.length).toBeGreaterThan(0);
    const seqs = claimed?.messages.map(({ seq }) => seq) ?? [];
    await billing.extend(seqs, claimed?.token ?? '', 60_000);
    const applied = await billing.apply(seqs, claimed?.token ?? '');
    expect(applied.map(({ verdict, dueInMs }) => [verdict, dueInMs === null ? null : dueInMs > 0])).toEqual(
      expect.arrayContaining([
        ['done', null],
        ['not-yet', true],
        ['retry', true],
      ]),
    );
    expect(await results()).toMatchObject({ b: STRANGERS_PATH });
    expect((await billing.claimRows([{ seq: seqs[0] ?? 0n, attempt: 1 }], 60_000)) ?? 'none').toBe('none');
    await billing.giveBack([{ seq: seqs[0] ?? 0n, attempts: 1 }], 1);
    await billing.sweepKeys();
    const deaths = await billing.claimDeaths({ rows: 10, bytes: 1_000, leaseMs: 60_000 });
    if (deaths.length === 0) throw new Error('nothing is dead');
    await billing.keepDeaths(deaths, 1, true);
    await billing.deathsCopied(deaths);
    await billing.wake();
    await billing.break('broken');
    await billing.mend();
    expect((await onTheirPath.query('show search_path')).rows).toEqual([{ search_path: STRANGERS_PATH }]);
  });

  test('every function that has no path of its own', async () => {
    await register(await database.connect(), { name: 'mail', handler: 'store' });
    const mail = store('mail');
    await mail.receive([arrival('m')], false);
    const { rows } = await onTheirPath.query(
      `select waybill.payload(i) as a, waybill.payload(waybill.message_of(i)) as b, waybill.key_lock('c', 'k') as lock,
         waybill.set_handling(waybill.message_of(i)), waybill.inbox_wake('mail')
       from waybill.inbox i where i.consumer operator(pg_catalog.=) 'mail'`,
    );
    const [{ lock }] = (await database.query<{ lock: string }>(
      "select hashtextextended('waybill.inbox c' || chr(31) || 'k', 0) as lock",
    )) as [{ lock: string }];
    expect(rows).toMatchObject([{ a: { n: 1 }, b: { n: 1 }, lock }]);
    const claimed = await onTheirPath.query(`select waybill.payload(c) as p from waybill.inbox_claim('mail', 1) c`);
    expect(claimed.rows).toEqual([{ p: { n: 1 } }]);
    const token = (await onTheirPath.query('select claim_token from waybill.inbox where claim_token is not null')).rows;
    const [{ claim_token: proof }] = token as [{ claim_token: string }];
    const seq = (await database.query<{ seq: string }>("select seq from waybill.inbox where consumer = 'mail'"))[0]
      ?.seq;
    await expect(mail.settle(proof, [{ seq: BigInt(seq ?? 0), verdict: { kind: 'done' } }])).resolves.toMatchObject([
      { status: 'done' },
    ]);
  });

  test('waybill/client', async () => {
    await register(await database.connect(), { name: 'orders', handler: 'store' });
    await store('orders').receive([arrival('done'), arrival('fails'), arrival('early')], false);
    const pool = new pg.Pool({ connectionString: database.url, max: 3, options: `-c search_path=public,pg_catalog` });
    pool.on('error', () => undefined);
    const events: WorkerEvent[] = [];
    const worker = new InboxWorker({
      pool,
      consumer: 'orders',
      concurrency: 1,
      handle: async ({ messageId }, client) => {
        if (messageId !== 'done') throw new Error('fails');
        await publish(client, { type: 't', payload: {}, headers: { a: 1 }, deliverAt: new Date(Date.now() + 60_000) });
        return [
          await firstTime(client, 's', 'k'),
          await firstResult(client, 's', 'k'),
          await newer(client, 's', 'k', 1),
        ].join();
      },
      onEvent: (event) => events.push(event),
    });
    await worker.start();
    await until(() => events.length >= 3, { what: 'three messages' });
    await worker.stop();
    await pool.end();
    expect(events.map(({ kind, error }) => `${kind} ${String(error)}`).sort()).toEqual([
      'done undefined',
      'retry Error: fails',
      'retry Error: fails',
    ]);
    expect(await results('orders')).toMatchObject({ done: 'true,,true' });
  });

  const results = async (consumer = 'billing'): Promise<Record<string, unknown>> =>
    Object.fromEntries(
      (
        await database.query<{ message_id: string; result: string | null }>(
          'select message_id, result from waybill.inbox where consumer = $1',
          [consumer],
        )
      ).map(({ message_id, result }) => [message_id, result]),
    );
});

describe('psql, where a superuser has strangers on his path', () => {
  test('migrations and roles, printed and as files', async () => {
    const suffix = randomUUID().slice(0, 8);
    const names = { owner: `o_${suffix}`, app: `a_${suffix}`, relay: `r_${suffix}`, observer: `v_${suffix}` };
    const variables = { schema: 'by_psql', ...names, app_delete: `d_${suffix}`, operator: `p_${suffix}` };
    try {
      await psql(printMigrations('by_psql'));
      await psql(printRoles({ ...variables, appDelete: variables.app_delete }));
      const file = fileURLToPath(new URL('../../sql/roles.sql', import.meta.url));
      const settings = Object.entries(variables).flatMap(([name, value]) => ['-v', `${name}=${value}`]);
      await run('psql', [...PSQL, ...settings, '-d', database.url, '-f', file], { env: THEIR_ENV });
    } finally {
      await database.query('drop publication if exists by_psql_outbox; drop schema if exists by_psql cascade');
      for (const role of Object.values(variables).slice(1)) {
        if ((await database.query('select from pg_roles where rolname = $1', [role])).length > 0)
          await database.query(`drop owned by ${role}; drop role ${role}`);
      }
    }
  });
});

const run = promisify(execFile);
const PSQL = ['-X', '-q', '-v', 'ON_ERROR_STOP=1'];
const THEIR_ENV = { ...process.env, PGOPTIONS: `-c search_path=${STRANGERS_PATH.replaceAll(' ', '')}` };

function psql(sql: string): Promise<unknown> {
  const running = run('psql', [...PSQL, '-d', database.url, '-f', '-'], { env: THEIR_ENV });
  // Why: psql that stops at an error reads no further, and says itself what it is.
  running.child.stdin?.on('error', () => undefined).end(sql);
  return running;
}
