import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { rolesSql } from '../../src/postgres/roles.js';
import { buildProgram, startProgram, type RunningProgram } from '../integration/built-program.js';
import { relayScene, type RelayScene } from '../support/relay-scene.js';
import { until } from '../support/waiting.js';

/** Security: a daemon with the roles of sql/roles.sql and nothing more, through all that it does once it is migrated. */

let scene: RelayScene;
let dir: string;
let names: { owner: string; app: string; relay: string; observer: string };
const running: RunningProgram[] = [];

beforeAll(async () => {
  [scene] = await Promise.all([relayScene(), buildProgram()]);
  const name = (role: string): string => `wb_${role}_${scene.database.name.slice(-10)}`;
  names = { owner: name('owner'), app: name('app'), relay: name('relay'), observer: name('observer') };
  await scene.database.query(rolesSql(names));
  await scene.database.query(`alter role ${names.relay} login password 'relay-secret'`);
  await scene.database.query(`alter role ${names.app} login password 'app-secret'`);
  await scene.database.query(`create schema shop; create table shop.seen (type text);
    create function shop.on_event(m waybill.inbox_message) returns void language plpgsql as $$
      begin
        if m.type = 'order.bad' then raise exception 'never' using errcode = 'WB002'; end if;
        insert into shop.seen values (m.type);
      end $$;
    grant usage on schema shop to ${names.relay}; grant insert on shop.seen to ${names.relay}`);
  dir = mkdtempSync(join(tmpdir(), 'waybill-rights-'));
  writeFileSync(
    join(dir, 'waybill.yaml'),
    `admin: { listen: off }
retention: { interval: 200ms }
relay: { history: full }
consumers:
  billing: { queue: billing, bindings: [{ exchange: waybill.events, routingKey: "#" }], handler: { kind: sql, function: shop.on_event }, order: key }
`,
  );
});
afterAll(async () => {
  for (const { child } of running) child.kill('SIGKILL');
  await Promise.all(running.map(({ finished }) => finished));
  rmSync(dir, { recursive: true });
  const { server } = scene.database;
  await scene.drop();
  const admin = new pg.Client({ connectionString: server.url() });
  await admin.connect();
  for (const role of Object.values(names)) await admin.query(`drop role if exists ${role}`);
  await admin.end();
});

function as(role: 'relay' | 'app'): string {
  const url = new URL(scene.database.url);
  url.username = names[role];
  url.password = `${role}-secret`;
  return url.href;
}

async function publish(...types: string[]): Promise<void> {
  const client = new pg.Client({ connectionString: as('app') });
  await client.connect();
  for (const type of types) await client.query(`select waybill.publish($1, '{}', key => 'k')`, [type]);
  await client.end();
}

const seen = async (): Promise<string[]> =>
  (await scene.database.query<{ type: string }>('select type from shop.seen order by ctid')).map(({ type }) => type);

function start(): RunningProgram {
  const daemon = startProgram(['run', '--config', join(dir, 'waybill.yaml')], {
    WAYBILL_DATABASE_URL: as('relay'),
    WAYBILL_BROKER_URL: scene.vhost.url,
  });
  running.push(daemon);
  return daemon;
}

async function stop({ child, finished }: RunningProgram): Promise<string> {
  child.kill('SIGTERM');
  const { code, out, err } = await finished;
  expect({ code, err }).toEqual({ code: 0, err: '' });
  return out;
}

test('the relay and a consumer as the relay role: first start, a death, cleaning, a lost slot; nothing is refused', async () => {
  const [rights] = await scene.database.query(
    'select rolsuper, rolcreaterole, rolcreatedb, rolbypassrls, rolreplication from pg_roles where rolname = $1',
    [names.relay],
  );
  expect(rights).toEqual({
    rolsuper: false,
    rolcreaterole: false,
    rolcreatedb: false,
    rolbypassrls: false,
    rolreplication: true,
  });
  await publish('order.first');
  const first = start();
  const consuming = (): boolean => first.out().includes('consuming') && first.out().includes('streaming');
  await until(consuming, { what: 'both parts to be at work', withinMs: 30_000 });
  await publish('order.paid', 'order.bad');
  await until(
    async () => (await scene.database.query(`select from waybill.inbox where status = 'dead'`)).length === 1,
    {
      what: 'the bad message to be dead',
      withinMs: 30_000,
    },
  );
  await until(async () => (await seen()).includes('order.paid'), { what: 'the message to be applied' });
  await scene.settled();
  await scene.database.query(
    `update waybill.inbox set received_at = now() - interval '60 d', processed_at = now() - interval '60 d'`,
  );
  await until(async () => (await scene.database.query('select from waybill.inbox')).length === 0, {
    what: 'the cleaner to remove what is over',
  });
  const logs = [await stop(first)];
  await scene.slotReleased();
  await scene.database.query('select pg_drop_replication_slot($1)', [(await scene.slot())?.name]);
  await publish('order.later');
  const second = start();
  await until(async () => (await seen()).includes('order.later'), { what: 'the table pass', withinMs: 30_000 });
  await scene.settled();
  logs.push(await stop(second));
  for (const log of logs) expect(log).not.toMatch(/42501|permission denied|WAYBILL_DATABASE_REFUSED|cannot be removed/);
  expect(
    await scene.database.query('select outcome, count(*)::int as n from waybill.outbox_history group by 1'),
  ).toEqual([{ outcome: 'published', n: 4 }]);
});
