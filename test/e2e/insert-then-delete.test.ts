import { randomUUID } from 'node:crypto';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { killRelays } from '../support/relay.js';
import { relayScene, type RelayScene } from '../support/relay-scene.js';

const ROLES = fileURLToPath(new URL('../../sql/roles.sql', import.meta.url));

let scene: RelayScene;
const suffix = randomUUID().slice(0, 8);
const roles = ['owner', 'app', 'relay', 'observer', 'app_delete'].map((name) => [name, `${name}_${suffix}`] as const);
const shop = `shop_${suffix}`;

beforeEach(async () => {
  scene = await relayScene();
});
afterEach(async () => {
  await killRelays();
  for (const role of [shop, ...roles.map(([, name]) => name)]) {
    await scene.database.query(
      `do $$ begin if exists (select from pg_roles where rolname = '${role}') then
         reassign owned by ${role} to current_user; drop owned by ${role}; drop role ${role}; end if; end $$`,
    );
  }
  await scene.drop();
});

it('rows that an application deletes itself, as the README says how: published from the log, and the table stays empty', async () => {
  const variables = roles.flatMap(([name, role]) => ['-v', `${name}=${role}`]);
  const options = ['-X', '-q', '-v', 'ON_ERROR_STOP=1', ...variables, '-d', scene.database.url, '-f', ROLES];
  await promisify(execFile)('psql', options);
  await scene.database.query(`create role ${shop}; grant app_${suffix} to ${shop}`);
  const relay = scene.start();
  await relay.waitForPhase('streaming');

  const client = await scene.database.connect();
  const write = async (): Promise<string> => {
    const id = randomUUID();
    await client.query(`begin; set local role ${shop}`);
    await client.query(`insert into waybill.outbox (id, type, payload) values ($1, 'order.placed', '{}')`, [id]);
    await client.query('delete from waybill.outbox where id = $1', [id]);
    await client.query('commit');
    return id;
  };
  await expect(write()).rejects.toThrow('permission denied for table outbox');
  await client.query('rollback');
  await scene.database.query(`grant app_delete_${suffix} to ${shop}`);
  const ids = [await write(), await write()];
  await scene.probe.waitFor(2);
  scene.expectIds(ids);
  expect(await scene.database.query('select from waybill.outbox')).toEqual([]);
  expect(await relay.stop()).toBe(0);
  expect(await scene.database.query('select insert_then_delete_seen as seen from waybill.relay')).toEqual([
    { seen: true },
  ]);
});
