import { chmodSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import type { Finding } from '../../src/app/doctor-findings.js';
import { runProgram } from '../integration/built-program.js';
import { outboxStage, tally, type OutboxStage } from '../support/outbox-stage.js';
import { killRelays, startRelay, type RelayProcess } from '../support/relay.js';
import { certificateAuthority, replaceCertificate, type Authority } from '../support/servers/certificates.js';
import { freePorts } from '../support/servers/ports.js';
import { startPostgres } from '../support/servers/postgres.js';
import type { PostgresServer } from '../support/servers/postgres-server.js';
import type { RabbitServer } from '../support/servers/rabbit-server.js';
import { startRabbit } from '../support/servers/rabbit.js';

describe('TLS to both servers', () => {
  const folder = mkdtempSync(join(tmpdir(), 'waybill-tls-'));
  let authority: Authority;
  let stranger: Authority;
  let certificate: { certFile: string; keyFile: string };
  let postgres: PostgresServer;
  let rabbit: RabbitServer;
  let stage: OutboxStage;
  let secureBroker: string;

  beforeAll(async () => {
    // PostgreSQL runs as somebody else under root.
    chmodSync(folder, 0o755);
    authority = await certificateAuthority(join(folder, 'ours'));
    stranger = await certificateAuthority(join(folder, 'stranger'));
    certificate = authority.sign('localhost');
    const [port] = await freePorts(1);
    const { certFile, keyFile } = certificate;
    [postgres, rabbit] = await Promise.all([
      startPostgres({ own: true, settings: { ssl: 'on', ssl_cert_file: certFile, ssl_key_file: keyFile } }),
      startRabbit({
        own: true,
        settings: {
          'listeners.ssl.1': `127.0.0.1:${port}`,
          'ssl_options.cacertfile': authority.caFile,
          'ssl_options.certfile': certFile,
          'ssl_options.keyfile': keyFile,
          'ssl_options.verify': 'verify_none',
        },
      }),
    ]);
    stage = await outboxStage({ postgres, rabbit });
    const url = new URL(stage.vhost.url);
    url.protocol = 'amqps:';
    url.port = String(port);
    secureBroker = url.href;
  });
  afterEach(killRelays);
  afterAll(async () => {
    await stage.drop();
    await Promise.all([postgres.close(), rabbit.close()]);
    rmSync(folder, { recursive: true });
  });

  interface Change {
    at?: 'DATABASE' | 'BROKER';
    host?: string;
    ca?: string;
  }

  /** `host` and `ca` as seen by one of the two; the other is right. */
  function settings(change: Change = {}) {
    const named = (text: string, at: string): string => {
      const url = new URL(text);
      url.hostname = change.at === at && change.host !== undefined ? change.host : 'localhost';
      return url.href;
    };
    const ca = (at: string): string => (change.at === at && change.ca !== undefined ? change.ca : authority.caFile);
    return {
      databaseUrl: named(stage.database.url, 'DATABASE'),
      brokerUrl: named(secureBroker, 'BROKER'),
      env: {
        WAYBILL_DATABASE_TLS_MODE: 'verify-full',
        WAYBILL_DATABASE_TLS_CA_FILE: ca('DATABASE'),
        WAYBILL_BROKER_TLS_MODE: 'verify-full',
        WAYBILL_BROKER_TLS_CA_FILE: ca('BROKER'),
      },
    };
  }
  const start = (change?: Change): RelayProcess => startRelay(settings(change));

  /** What doctor finds of TLS and of the connections, as an operator would see it. */
  async function examine(change?: Change): Promise<Finding[]> {
    const { databaseUrl, brokerUrl, env } = settings(change);
    const urls = { WAYBILL_DATABASE_URL: databaseUrl, WAYBILL_BROKER_URL: brokerUrl };
    const { out } = await runProgram(['doctor', '--json'], { ...urls, ...env });
    const { findings } = JSON.parse(out) as { findings: Finding[] };
    const ids = ['certificates', 'server-certificates', 'database', 'replication-connection', 'broker'];
    return findings.filter(({ id }) => ids.includes(id));
  }
  const problems = (findings: readonly Finding[]) => findings.filter(({ severity }) => severity !== 'ok');

  /** Both servers show this certificate from their next connection on. */
  async function show(by: typeof certificate): Promise<void> {
    replaceCertificate(certificate, by);
    await stage.database.query('select pg_reload_conf()');
    await rabbit.ctl('eval', 'ssl:clear_pem_cache().');
  }

  async function expectUntrusted(relay: RelayProcess, section: string, why: RegExp): Promise<void> {
    const line = await relay.waitForLog((each) => each.level === 'error', 'the reason why it waits');
    expect(line['err']).toMatchObject({
      code: 'WAYBILL_SERVER_UNTRUSTED',
      message: expect.stringMatching(why) as unknown,
      hint: expect.stringContaining(`${section}.tls.caFile`) as unknown,
    });
    // Not a crash loop: a person must change something.
    expect(Number(line['retryInMs'])).toBeGreaterThanOrEqual(10_000);
    expect(relay.phase()).not.toBe('streaming');
    expect(await relay.stop()).toBe(0);
  }

  it('F85 a relay that trusts the authority works over TLS with both', async () => {
    const relay = start();
    await relay.waitForPhase('streaming');
    const rows = await stage.write(50);
    await stage.emptied();
    const sessions = await stage.database.query(
      `select from pg_stat_ssl s join pg_stat_activity a using (pid)
       where a.application_name like 'waybill default%' and not s.ssl`,
    );
    expect(sessions).toEqual([]);
    expect(await relay.stop()).toBe(0);
    expect(tally(rows, await stage.taken())).toMatchObject({ lost: 0, duplicates: 0 });
  });

  it.each(['DATABASE', 'BROKER'] as const)(
    'F85 %s: an unknown authority and another name are refused and named',
    async (at) => {
      await expectUntrusted(start({ at, ca: stranger.caFile }), at.toLowerCase(), /authority that we do not trust/);
      await expectUntrusted(start({ at, host: '127.0.0.1' }), at.toLowerCase(), /for another name .*127\.0\.0\.1/);
    },
  );

  it('F85 an expired certificate is named as that; with a new one the same relay goes on, and nothing is lost', async () => {
    const expired = authority.sign('localhost', { expired: true });
    const fresh = authority.sign('localhost');
    const rows = await stage.write(10);
    await show(expired);
    const relay = start();
    const line = await relay.waitForLog((each) => each.level === 'error', 'the reason why it waits');
    expect(line['err']).toMatchObject({
      code: 'WAYBILL_SERVER_UNTRUSTED',
      message: expect.stringContaining('has expired') as unknown,
    });
    await show(fresh);
    // What needs a person is looked at again every 15 s.
    await relay.waitForPhase('streaming', 40_000);
    await stage.emptied();
    expect(await relay.stop()).toBe(0);
    expect(tally(rows, await stage.taken())).toMatchObject({ lost: 0 });
  });

  it('doctor: certificates that last are well, and say until when', async () => {
    await show(authority.sign('localhost', { days: 90 }));
    const findings = await examine();
    expect(problems(findings)).toEqual([]);
    const day = new Date(Date.now() + 90 * 86_400_000).toISOString().slice(0, 10);
    for (const server of ['PostgreSQL', 'RabbitMQ']) {
      expect(findings.map(({ finding }) => finding)).toContain(`the certificate of ${server} is valid until ${day}`);
    }
  });

  it('doctor: certificates that end soon are a warning, also those of both servers', async () => {
    await show(authority.sign('localhost', { days: 7 }));
    expect(problems(await examine())).toMatchObject([
      {
        id: 'server-certificates',
        severity: 'warn',
        finding: expect.stringMatching(/PostgreSQL expires on/) as unknown,
      },
      { id: 'server-certificates', severity: 'warn', finding: expect.stringMatching(/RabbitMQ expires on/) as unknown },
    ]);
  });

  it('doctor: expired ones fail the connections, and the day is told', async () => {
    await show(authority.sign('localhost', { expired: true }));
    const found = problems(await examine());
    expect(found.map(({ id, severity }) => `${severity} ${id}`)).toEqual([
      'fail database',
      'fail replication-connection',
      'fail broker',
      'fail server-certificates',
      'fail server-certificates',
    ]);
    for (const { id, finding, mend } of found) {
      expect(finding).toContain('has expired');
      if (id === 'server-certificates') expect(finding).toContain('2020-01-02');
      expect(mend).toMatch(/renew/i);
    }
  });

  it.each(['DATABASE', 'BROKER'] as const)('doctor: %s: an unknown authority and another name', async (at) => {
    await show(authority.sign('localhost', { days: 90 }));
    const ids = at === 'DATABASE' ? ['database', 'replication-connection'] : ['broker'];
    const key = `${at.toLowerCase()}.tls.caFile`;
    for (const [change, why] of [
      [{ at, ca: stranger.caFile }, /an authority that we do not trust/],
      [{ at, host: '127.0.0.1' }, /for another name .*127\.0\.0\.1/],
    ] as const) {
      const found = problems(await examine(change));
      expect(found.map(({ id }) => id)).toEqual(ids);
      for (const { finding, mend } of found) {
        expect(finding).toMatch(why);
        expect(mend).toContain(key);
      }
    }
  });
});
