import { randomBytes } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import type { Finding } from '../../src/app/doctor-findings.js';
import { runProgram } from '../integration/built-program.js';
import { killRelays, type RelayProcess } from '../support/relay.js';
import { relayScene, type RelayScene } from '../support/relay-scene.js';

let scene: RelayScene;
let folder: string;
const mark = randomBytes(4).toString('hex');
const user = `rotating_${mark}`;

beforeAll(async () => {
  [scene, folder] = await Promise.all([relayScene(), mkdtemp(join(tmpdir(), 'waybill-passwords-'))]);
  await scene.database.query(`create role ${user} login superuser`);
  await scene.vhost.server.ctl('add_user', user, 'unused');
  await scene.vhost.server.ctl('set_permissions', '-p', scene.vhost.name, user, '.*', '.*', '.*');
});

afterEach(killRelays);

afterAll(async () => {
  await scene.database.query(`drop role ${user}`);
  await scene.vhost.server.ctl('delete_user', user);
  await scene.drop();
  await rm(folder, { recursive: true });
});

const database = {
  url: (password?: string) => withLogin(scene.database.url, password),
  setPassword: async (password: string) => {
    await scene.database.query(`alter role ${user} password '${password}'`);
  },
  cut: async () => {
    await scene.database.query('select pg_terminate_backend(pid) from pg_stat_activity where usename = $1', [user]);
  },
};

const broker = {
  url: (password?: string) => withLogin(scene.vhost.url, password),
  setPassword: async (password: string) => {
    await scene.vhost.server.ctl('change_password', user, password);
  },
  cut: async () => {
    await scene.vhost.server.ctl('close_all_user_connections', user, 'test');
  },
};

function withLogin(urlText: string, password = ''): string {
  const url = new URL(urlText);
  url.username = user;
  url.password = encodeURIComponent(password);
  return url.href;
}

/** Passwords with everything that needs encoding, and a letter that is no ASCII. */
function newPassword(name: string): string {
  return `${name}-${mark}/@:é`;
}

function tells(relay: RelayProcess, secrets: string[]): string[] {
  const text = [...relay.log.map((line) => JSON.stringify(line)), ...relay.noise].join('\n');
  return secrets.flatMap((secret) => [secret, encodeURIComponent(secret)]).filter((form) => text.includes(form));
}

async function publishes(count: number): Promise<void> {
  await scene.publish(count);
  await scene.settled();
}

describe.each([
  { side: 'F38 database', at: database, variable: 'WAYBILL_DATABASE_URL', refused: 'WAYBILL_DATABASE_REFUSED' },
  { side: 'F83 broker', at: broker, variable: 'WAYBILL_BROKER_URL', refused: 'WAYBILL_BROKER_REFUSED' },
])('$side: a rotated password', ({ side, at, variable, refused }) => {
  it('is read from its file at the next connection, and a late file heals the relay', async () => {
    const file = join(folder, variable);
    const [first, second, third] = ['first', 'second', 'third'].map((name) =>
      newPassword(`${name}-${side.slice(-4)}`),
    ) as [string, string, string];
    await at.setPassword(first);
    await writeFile(file, at.url(first));
    const relay = scene.start({ env: { [variable]: '', [`${variable}_FILE`]: file } });
    await relay.waitForPhase('streaming');

    await at.setPassword(second);
    await writeFile(file, at.url(second));
    const cutAt = relay.log.length;
    await at.cut();
    await relay.waitForLog(
      (line) => relay.log.indexOf(line) >= cutAt && line['phase'] === 'streaming',
      'a new session',
    );
    await publishes(10);
    expect(relay.log.some((line) => JSON.stringify(line).includes(refused))).toBe(false);

    await at.setPassword(third);
    await at.cut();
    await relay.waitForLog((line) => (line['err'] as { code?: string } | undefined)?.code === refused, refused);
    await writeFile(file, 'not a URL');
    await relay.waitForLog(
      (line) => line.level === 'error' && JSON.stringify(line['err'] ?? '').includes(`(from ${variable}_FILE)`),
      'the key that is wrong',
    );
    const lateAt = relay.log.length;
    await writeFile(file, at.url(third));
    await relay.waitForLog(
      (line) => relay.log.indexOf(line) >= lateAt && line['phase'] === 'streaming',
      'a session with the late password',
      40_000,
    );
    await publishes(10);
    expect(tells(relay, [first, second, third])).toEqual([]);
    expect(await relay.stop()).toBe(0);
  });
});

describe('password commands', () => {
  const program =
    'process.stdout.write(require("fs").readFileSync(process.argv[1], "utf8") + "\\n"); console.error("noise-of-the-command")';
  const command = (file: string, ...args: string[]): string =>
    JSON.stringify([process.execPath, '-e', program, file, ...args]);

  it('give the password of each connection', async () => {
    const [old, fresh] = [newPassword('old'), newPassword('fresh')];
    const file = join(folder, 'token');
    const setBoth = async (password: string): Promise<void> => {
      await Promise.all([database.setPassword(password), broker.setPassword(password), writeFile(file, password)]);
    };
    await setBoth(old);
    const environment = {
      WAYBILL_DATABASE_URL: database.url('replaced'),
      WAYBILL_DATABASE_PASSWORD_COMMAND: command(file, '{host}'),
      WAYBILL_BROKER_URL: broker.url(),
      WAYBILL_BROKER_PASSWORD_COMMAND: command(file),
    };
    const relay = scene.start({ env: environment });
    await relay.waitForPhase('streaming');
    const setAt = relay.log.length;
    await setBoth(fresh);
    await database.cut();
    await relay.waitForLog(
      (line) => relay.log.indexOf(line) >= setAt && line['phase'] === 'streaming',
      'a new session',
    );
    await publishes(10);
    const doctor = await runProgram(['doctor', '--json'], environment);
    const { findings } = JSON.parse(doctor.out) as { findings: Finding[] };
    const connected = findings.filter(({ id }) => ['database', 'replication-connection', 'broker'].includes(id));
    expect(connected.map(({ severity }) => severity)).toEqual(['ok', 'ok', 'ok']);
    const status = await runProgram(['status', '--check'], environment);
    expect(status).toMatchObject({ code: 0 });
    expect(tells(relay, [old, fresh, 'noise-of-the-command'])).toEqual([]);
    expect(await relay.stop()).toBe(0);
  });

  it('that fail are told with their mend, and heal without a restart', async () => {
    const file = join(folder, 'missing-token');
    const relay = scene.start({
      env: {
        WAYBILL_DATABASE_URL: database.url(),
        WAYBILL_DATABASE_PASSWORD_COMMAND: command(file),
      },
    });
    const { err } = await relay.waitForLog((line) => line['err'] !== undefined, 'the failure');
    expect(err).toMatchObject({ code: 'WAYBILL_DATABASE_REFUSED', hint: expect.stringContaining('by hand') as string });
    expect(JSON.stringify(err)).toContain('database.passwordCommand');
    const password = newPassword('late');
    await database.setPassword(password);
    await writeFile(file, password);
    await relay.waitForPhase('streaming', 40_000);
    expect(tells(relay, [password])).toEqual([]);
  });
});
