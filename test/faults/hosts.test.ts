import pg from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import type { Finding } from '../../src/app/doctor-findings.js';
import type { Status } from '../../src/app/status.js';
import { runProgram } from '../integration/built-program.js';
import { killRelays } from '../support/relay.js';
import { relayScene, type RelayScene } from '../support/relay-scene.js';
import { freePorts } from '../support/servers/ports.js';
import type { PostgresServer } from '../support/servers/postgres-server.js';
import { startPostgres } from '../support/servers/postgres.js';
import { startStandby, type Standby } from '../support/servers/standby.js';
import { until } from '../support/waiting.js';

let primary: PostgresServer;
let standby: Standby;
let scene: RelayScene;
let deadPort: number;

beforeAll(async () => {
  primary = await startPostgres({ own: true, version: 'installed', settings: { listen_addresses: '127.0.0.1, ::1' } });
  [deadPort = 1] = await freePorts(1);
  scene = await relayScene({ server: primary });
  standby = await startStandby(primary);
});

afterEach(killRelays);

afterAll(async () => {
  // The primary is stopped by the last test, and its database goes with it.
  await scene.probe.close();
  await scene.vhost.drop();
  await Promise.all([standby.close(), primary.close()]);
});

/** The URL with these hosts instead of its own. */
function withHosts(url: string, ...hosts: string[]): string {
  return url.replace(/@[^/]+/, `@${hosts.join(',')}`);
}

const dead = (): string => `127.0.0.1:${deadPort}`;
const ofStandby = (): string => `127.0.0.1:${standby.port}`;
const ofPrimary = (): string => `127.0.0.1:${primary.port}`;
const databaseAt = (...hosts: string[]): string => withHosts(scene.database.url, ...hosts);
const brokerAt = (...hosts: string[]): string => withHosts(scene.vhost.url, ...hosts);
const liveBroker = (): string => `${scene.vhost.server.host}:${scene.vhost.server.port}`;

async function examine(command: 'doctor' | 'status', databaseUrl: string, brokerUrl = scene.vhost.url) {
  const { out, code } = await runProgram([command, '--json'], {
    WAYBILL_DATABASE_URL: databaseUrl,
    WAYBILL_BROKER_URL: brokerUrl,
  });
  return { code, answer: JSON.parse(out) as unknown };
}

// One after the other: the last test is the failover.
describe('several hosts', () => {
  it('F39 the first that takes writes is used, for SQL and for replication, by IPv6 too', async () => {
    const ipv6 = `[::1]:${primary.port}`;
    const url = databaseAt(dead(), ofStandby(), ipv6);
    const relay = scene.start({ databaseUrl: url, brokerUrl: brokerAt(dead(), liveBroker()) });
    await relay.waitForPhase('streaming');
    const connected = await scene.database.query<{ application_name: string; client_addr: string }>(
      "select application_name, host(client_addr) as client_addr from pg_stat_activity where application_name like 'waybill %' order by 1",
    );
    expect(connected.map((row) => row.application_name)).toEqual([
      'waybill default settle',
      'waybill default stream',
      'waybill default table',
    ]);
    expect(new Set(connected.map((row) => row.client_addr))).toEqual(new Set(['::1']));
    await scene.publish(20);
    await scene.settled();
    await scene.probe.waitFor(20);
    expect(await relay.stop()).toBe(0);
  });

  it('doctor and status go the same way and tell of hosts that are passed over', async () => {
    const url = databaseAt(dead(), ofStandby(), ofPrimary());
    const { answer } = await examine('doctor', url, brokerAt(dead(), liveBroker()));
    const { findings } = answer as { findings: Finding[] };
    const hosts = findings.filter(({ id }) => id.endsWith('-hosts'));
    expect(hosts.map(({ id, severity }) => [id, severity])).toEqual([
      ['database-hosts', 'warn'],
      ['database-hosts', 'ok'],
      ['broker-hosts', 'warn'],
    ]);
    expect(hosts[0]?.finding).toContain(dead());
    const connected = findings.filter(({ id }) =>
      ['database', 'primary', 'replication-connection', 'broker'].includes(id),
    );
    expect(connected.map(({ severity }) => severity)).toEqual(['ok', 'ok', 'ok', 'ok']);
    const status = (await examine('status', url)).answer as Status;
    expect(status).toMatchObject({ database: { error: null }, broker: { error: null } });
  });

  it('none usable is one error that names each host and why, without the password', async () => {
    const url = databaseAt(dead(), ofStandby());
    const status = (await examine('status', url, brokerAt(dead(), `[::1]:${deadPort}`))).answer as Status;
    expect(status.database.error?.code).toBe('WAYBILL_DATABASE_UNAVAILABLE');
    expect(status.database.error?.message).toMatch(
      new RegExp(`none of 2 hosts can be used: ${dead()}: .*ECONNREFUSED.*; ${ofStandby()}: it is a standby`),
    );
    expect(status.broker.error?.code).toBe('WAYBILL_BROKER_UNAVAILABLE');
    expect(status.broker.error?.message).toContain(`[::1]:${deadPort}: `);
    expect(JSON.stringify(status)).not.toContain(primary.password);
  });

  it('a standby alone is unsuitable, in a list and by itself', async () => {
    for (const url of [databaseAt(ofStandby()), databaseAt(ofStandby(), ofStandby())]) {
      const relay = scene.start({ databaseUrl: url });
      const { err } = await relay.waitForLog((line) => line['err'] !== undefined, 'the refusal');
      expect(err).toMatchObject({ code: 'WAYBILL_DATABASE_UNSUITABLE' });
      await relay.kill9();
    }
  });

  it('F23 the relay follows the primary to a promoted standby', async () => {
    const relay = scene.start({ databaseUrl: databaseAt(ofPrimary(), ofStandby()) });
    await relay.waitForPhase('streaming');
    await primary.stop('immediate');
    await standby.promote();
    const promotedAt = relay.log.length;
    await relay.waitForLog(
      (line) => relay.log.indexOf(line) >= promotedAt && line['phase'] === 'streaming',
      'the relay to stream from the new primary',
      60_000,
    );
    const client = new pg.Client({ connectionString: standby.url(scene.database.name) });
    await client.connect();
    const ids = await scene.publish(20, { client });
    await client.end();
    await until(() => ids.every((id) => scene.probe.ids().includes(id)), { what: 'the rows of the new primary' });
    expect(await relay.stop()).toBe(0);
  });
});
