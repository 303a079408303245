import { expect, test } from 'vitest';
import { checkHazards } from '../../../src/app/doctor-hazards.js';
import type { Hazards, IdleSlot } from '../../../src/postgres/inspect-hazards.js';
import { loadConfig } from '../../../src/config/load.js';

const config = loadConfig({
  environment: { WAYBILL_DATABASE_URL: 'postgres://localhost/shop', WAYBILL_BROKER_URL: 'amqp://localhost' },
  readFile: () => '',
});

const SOUND: Hazards = {
  encoding: 'UTF8',
  readsOnly: false,
  fsync: true,
  fullPageWrites: true,
  autovacuum: true,
  idleSlots: [],
  unlogged: [],
  rowSecurity: [],
  triggers: [],
  constraints: [],
  openSchemas: [],
  rowsInDefaultPartition: false,
};

const found = (slot: Partial<IdleSlot>) => {
  const idle = { name: 'waybill_shop_old_default', keptBytes: 0, database: 'shop', isHere: true, ...slot };
  return checkHazards({ ...SOUND, idleSlots: [idle] }, config).filter(({ severity }) => severity !== 'ok');
};

const MUCH = 5 * 2 ** 30;
const elsewhere = { name: 'waybill_crm_waybill_default', database: 'crm', isHere: false };

test.each<[string, Partial<IdleSlot>, string[]]>([
  ['a relay of this database that is started anew', { keptBytes: 60 * 2 ** 20 }, []],
  ['one that this schema does not know, and nobody reads', { keptBytes: 70 * 2 ** 20 }, ['left-slots']],
  ['a relay of another database that is stopped', { ...elsewhere, keptBytes: 2 ** 30 }, []],
  ['the same with much WAL', { ...elsewhere, keptBytes: MUCH }, ['left-slots']],
  ['a slot of somebody else', { name: 'debezium', keptBytes: 2 ** 30 }, []],
  ['the same with much WAL', { name: 'debezium', keptBytes: MUCH }, ['foreign-slots']],
  ['a standby that took the name', { keptBytes: MUCH, database: null, isHere: false }, ['foreign-slots']],
])('%s', (_, slot, ids) => {
  expect(found(slot).map(({ id }) => id)).toEqual(ids);
});

test('says whose it may be', () => {
  expect(found({ keptBytes: 70 * 2 ** 20 })[0]).toMatchObject({
    finding: expect.stringMatching(/keeps 70 MiB of WAL; .* schema waybill does not know it/) as string,
    mend: expect.stringContaining("select pg_drop_replication_slot('waybill_shop_old_default');") as string,
  });
  expect(found({ ...elsewhere, keptBytes: MUCH })[0]?.finding).toContain('keeps 5.0 GiB of WAL; ');
  expect(found({ ...elsewhere, keptBytes: MUCH })[0]?.finding).toContain('of database crm');
});
