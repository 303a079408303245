import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, expect, it } from 'vitest';
import { killRelays } from '../support/relay.js';
import { relayScene, type RelayScene } from '../support/relay-scene.js';
import { until } from '../support/waiting.js';

let scene: RelayScene;
let folder: string;

beforeAll(async () => {
  [scene, folder] = await Promise.all([relayScene(), mkdtemp(join(tmpdir(), 'waybill-hangup-'))]);
});

afterEach(killRelays);

afterAll(async () => {
  await scene.drop();
  await rm(folder, { recursive: true });
});

it('F113 SIGHUP takes up the log level and new secrets, and keeps the old configuration when the new one is wrong', async () => {
  const file = join(folder, 'waybill.yaml');
  const configure = (level: string, more = ''): Promise<void> =>
    writeFile(file, `database: { url: "${scene.database.url}" }\nlog: { level: ${level} }\n${more}`);
  await configure('debug');
  const relay = scene.start({ env: { WAYBILL_CONFIG: file, WAYBILL_DATABASE_URL: '', WAYBILL_LOG_LEVEL: '' } });
  await relay.waitForPhase('streaming');
  const answers = () => relay.log.filter(({ msg }) => msg.startsWith('SIGHUP'));
  const hangUp = async (count: number) => {
    relay.signal('SIGHUP');
    await until(() => answers().length === count, { what: `answer ${count} to SIGHUP` });
    return answers().at(-1);
  };

  await configure('loud');
  const refused = await hangUp(1);
  expect(refused).toMatchObject({ level: 'error', err: { code: 'WAYBILL_CONFIG_INVALID' } });
  expect(JSON.stringify(refused)).toContain('log.level');
  // Also for what connects later: the old URLs are good.
  const cutAt = relay.log.length;
  await scene.database.query(
    `select pg_terminate_backend(pid) from pg_stat_activity
     where application_name like 'waybill default%' and datname = current_database()`,
  );
  const since = () => relay.log.slice(cutAt);
  await until(() => since().some((line) => line['phase'] === 'streaming'), {
    withinMs: 30_000,
    what: 'a new session under the old configuration',
  });
  expect(since().filter(({ msg }) => msg.startsWith('the configuration cannot be read again'))).toHaveLength(1);

  await configure('info', 'relay: { maxInFlight: 7 }\n');
  expect(await hangUp(2)).toMatchObject({ level: 'info', logLevel: 'info', needsRestart: ['relay'] });

  const debugLines = () => relay.log.filter(({ level }) => level === 'debug').length;
  const before = debugLines();
  await scene.publish(10);
  await scene.settled();
  expect(await relay.stop()).toBe(0);
  expect(relay.log.some(({ msg }) => msg.startsWith('Stopped'))).toBe(true);
  expect(debugLines()).toBe(before);
});
