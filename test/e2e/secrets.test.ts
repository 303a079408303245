import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { buildProgram, runProgram } from '../integration/built-program.js';
import { ADMIN_ON, adminOf } from '../support/admin.js';
import { receiverScene, type ReceiverScene } from '../support/receiver-scene.js';
import { killRelays, type RelayProcess } from '../support/relay.js';

const mark = randomBytes(4).toString('hex');
const user = `secretive_${mark}`;
/** Everything that URLs, JSON and shells write in another way. */
const odd = (name: string): string => `${name}-${mark} "q" \\b/@:é#?%41&+='`;
const SECRETS = {
  database: odd('database'),
  broker: odd('broker'),
  printed: odd('printed'),
  token: `token-of-${mark}-"printable"`,
  webhook: randomBytes(24).toString('base64'),
};

describe('security: no secret is written or served, whatever fails', () => {
  let scene: ReceiverScene;
  let folder: string;
  let server: Server;
  let files: Record<'token' | 'webhook' | 'printed', string>;

  beforeAll(async () => {
    [scene] = await Promise.all([receiverScene(), buildProgram()]);
    folder = mkdtempSync(join(tmpdir(), 'waybill-secretive-'));
    files = { token: join(folder, 'token'), webhook: join(folder, 'webhook'), printed: join(folder, 'printed') };
    writeFileSync(files.token, `${SECRETS.token}\n`);
    writeFileSync(files.webhook, `whsec_${SECRETS.webhook}\n`);
    writeFileSync(files.printed, `${SECRETS.printed}\n`);
    await scene.database.query(`create role ${user} login superuser`);
    await scene.vhost.server.ctl('add_user', user, 'unused');
    await scene.vhost.server.ctl('set_permissions', '-p', scene.vhost.name, user, '.*', '.*', '.*');
    // Tells all that it was sent, as a careless application does.
    server = createServer((request, response) => {
      request.resume().on('end', () => response.writeHead(500).end(JSON.stringify(request.headers)));
    }).listen(0, '127.0.0.1');
    await once(server, 'listening');
  });
  afterEach(killRelays);
  afterAll(async () => {
    server.closeAllConnections();
    server.close();
    await scene.database.query(`drop role ${user}`);
    await scene.vhost.server.ctl('delete_user', user);
    await scene.drop();
    rmSync(folder, { recursive: true });
  });

  async function setPasswords(database: string, broker: string): Promise<void> {
    await scene.database.query(`alter role ${user} password '${database.replaceAll("'", "''")}'`);
    await scene.vhost.server.ctl('change_password', user, broker);
  }

  function withLogin(urlText: string, password: string): string {
    const url = new URL(urlText);
    url.username = user;
    url.password = encodeURIComponent(password);
    return url.href;
  }

  function consumers(): string {
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/events`;
    return `emails:
  handler: { kind: http, url: "${url}", secretFile: "${files.webhook}" }
  retry: { delays: [100ms], maxAttempts: 2 }`;
  }

  /** What the commands say, each as text and as JSON. */
  async function commands(environment: Record<string, string>): Promise<string[]> {
    const lines = [
      ['status'],
      ['doctor'],
      ['consumer', 'list'],
      ['dead', 'list'],
      ['topology', 'plan'],
      ['relay', 'list'],
    ];
    const said: string[] = [];
    for (const line of lines) {
      for (const args of [line, [...line, '--json'], ['--verbose', ...line]]) {
        const { out, err } = await runProgram(args, environment);
        said.push(out, err);
      }
    }
    return said;
  }

  async function served(daemon: RelayProcess): Promise<string[]> {
    const admin = await adminOf(daemon);
    const headers = { authorization: `Bearer ${SECRETS.token}` };
    const paths = ['/livez', '/readyz', '/metrics', '/status', '/status/live', '/nothing'];
    return Promise.all(paths.map(async (path) => (await admin.get(path, { headers })).body));
  }

  const written = (daemon: RelayProcess): string[] => [
    ...daemon.log.map((line) => JSON.stringify(line)),
    ...daemon.noise,
  ];

  function expectNone(texts: readonly string[]): void {
    expect(texts.join('').length).toBeGreaterThan(10_000);
    for (const [name, secret] of Object.entries(SECRETS)) {
      const url = new URL('amqp://u@h');
      url.password = secret;
      const forms = [secret, encodeURIComponent(secret), url.password, JSON.stringify(secret).slice(1, -1)];
      const shown = texts.filter((text) => forms.some((form) => text.includes(form)));
      expect({ name, shown }).toEqual({ name, shown: [] });
    }
  }

  it('passwords in URLs, the token and the secret of a webhook', async () => {
    await setPasswords(SECRETS.database, SECRETS.broker);
    const [databaseUrl, brokerUrl] = [
      withLogin(scene.database.url, SECRETS.database),
      withLogin(scene.vhost.url, SECRETS.broker),
    ];
    const env = { ...ADMIN_ON, WAYBILL_ADMIN_TOKEN_FILE: files.token };
    const daemon = scene.start(consumers(), { relay: true, databaseUrl, brokerUrl, env });
    await daemon.waitForPhase('streaming');
    await daemon.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    await scene.send('emails', [{ messageId: 'one' }]);
    await scene.waitForRows(1, "status = 'dead'");
    const environment = { WAYBILL_DATABASE_URL: databaseUrl, WAYBILL_BROKER_URL: brokerUrl, ...env };
    const texts = [...(await served(daemon)), ...(await commands(environment))];
    expect(texts.join('\n')).toContain('streaming');

    await setPasswords('changed', 'changed');
    await scene.vhost.server.ctl('close_all_user_connections', user, 'test');
    await scene.database.query('select pg_terminate_backend(pid) from pg_stat_activity where usename = $1', [user]);
    await daemon.waitForLog(({ err }) => JSON.stringify(err ?? '').includes('_REFUSED'), 'the refusal');
    texts.push(...(await served(daemon)), ...(await commands(environment)));
    await daemon.stop();
    expectNone([...texts, ...written(daemon)]);
  });

  it('what a password command prints', async () => {
    await setPasswords(SECRETS.printed, SECRETS.printed);
    const command = JSON.stringify(['cat', files.printed]);
    const env = {
      ...ADMIN_ON,
      WAYBILL_DATABASE_PASSWORD_COMMAND: command,
      WAYBILL_BROKER_PASSWORD_COMMAND: command,
    };
    const [databaseUrl, brokerUrl] = [withLogin(scene.database.url, ''), withLogin(scene.vhost.url, '')];
    const daemon = scene.start(consumers(), { relay: true, databaseUrl, brokerUrl, env });
    await daemon.waitForPhase('streaming');
    const environment = { WAYBILL_DATABASE_URL: databaseUrl, WAYBILL_BROKER_URL: brokerUrl, ...env };
    const texts = [...(await served(daemon)), ...(await commands(environment))];
    await setPasswords('changed', 'changed');
    await scene.vhost.server.ctl('close_all_user_connections', user, 'test');
    await daemon.waitForLog(({ err }) => JSON.stringify(err ?? '').includes('_REFUSED'), 'the refusal');
    texts.push(...(await served(daemon)), ...(await commands(environment)));
    await daemon.stop();
    expectNone([...texts, ...written(daemon)]);
  });
});
