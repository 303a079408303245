import { execFile } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import type { CliContext } from '../../src/cli/context.js';
import { runCli } from '../../src/cli/program.js';
import { freshVhost, type FreshVhost } from '../support/broker.js';
import { freshDatabase, type FreshDatabase } from '../support/database.js';
import { buildProgram, runProgram } from './built-program.js';

let database: FreshDatabase;
let vhost: FreshVhost;
let dir: string;

beforeAll(async () => {
  [database, vhost] = await Promise.all([freshDatabase(), freshVhost(), buildProgram()]);
});
afterAll(() => Promise.all([database.drop(), vhost.drop()]));
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'waybill-init-'));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

/** URLs with a password, as an operator has them. */
function urls() {
  const databaseUrl = new URL(database.url);
  databaseUrl.password ||= 'pgsecret';
  return { WAYBILL_DATABASE_URL: databaseUrl.href, WAYBILL_BROKER_URL: vhost.url };
}

const init = (environment: Record<string, string>, ...args: string[]) =>
  runProgram(['init', '--dir', dir, ...args], environment);
const read = (name: string) => readFileSync(join(dir, name), 'utf8');

test('with the environment: tries both servers, writes configuration and SQL without any password', async () => {
  const environment = urls();
  const { code, out, err } = await init(environment, '--schema', 'shop', '--relay', 'orders');
  expect({ code, err }).toEqual({ code: 0, err: '' });
  expect(out).toContain('Both servers answer');
  expect(out).toContain('max_slot_wal_keep_size is unlimited');
  expect(out).toContain('set WAYBILL_DATABASE_URL where Waybill runs');
  expect(readdirSync(dir).sort()).toEqual(['waybill-roles.sql', 'waybill-schema.sql', 'waybill.yaml']);
  const all = readdirSync(dir).map(read).join('') + out;
  for (const url of Object.values(environment)) expect(all).not.toContain(`:${new URL(url).password}@`);
  expect(read('waybill-schema.sql')).toContain('create table "shop".outbox');

  // What it wrote is a configuration, and SQL that psql runs.
  const config = ['--config', join(dir, 'waybill.yaml')];
  expect(await runProgram([...config, 'config', 'check'], environment)).toMatchObject({ code: 0 });
  await promisify(execFile)('psql', [
    '-qX',
    '-v',
    'ON_ERROR_STOP=1',
    '-d',
    database.url,
    '-f',
    join(dir, 'waybill-schema.sql'),
  ]);
  const doctor = await runProgram([...config, 'doctor'], environment);
  expect(doctor.out).toContain('schema shop is at version');
  await database.query('drop publication shop_outbox; drop schema shop cascade');
});

test('overwrites nothing: with one file there, none is written', async () => {
  writeFileSync(join(dir, 'waybill-schema.sql'), 'mine');
  const { code, err } = await init(urls());
  expect(code).toBe(2);
  expect(err).toContain('already there; nothing was written');
  expect(readdirSync(dir)).toEqual(['waybill-schema.sql']);
  expect(read('waybill-schema.sql')).toBe('mine');
});

test('--secrets files: one file for each URL, readable by its owner alone, and they work', async () => {
  const { code, out } = await init(urls(), '--secrets', 'files');
  expect(code).toBe(0);
  expect(statSync(join(dir, 'database-url.secret')).mode & 0o777).toBe(0o600);
  const exported: Record<string, string> = {};
  for (const [, name = '', value = ''] of out.matchAll(/export (\w+)=(\S+)/g)) exported[name] = value;
  expect(Object.keys(exported)).toEqual(['WAYBILL_DATABASE_URL_FILE', 'WAYBILL_BROKER_URL_FILE']);
  const config = ['--config', join(dir, 'waybill.yaml'), 'config', 'check'];
  expect(await runProgram(config, exported)).toMatchObject({ code: 0 });
  expect((await runProgram(config, {})).code).toBe(2);
});

test('--secrets inline: asked for, so the passwords stand in the configuration, which its owner alone may read', async () => {
  expect((await init(urls(), '--secrets', 'inline')).code).toBe(0);
  expect(statSync(join(dir, 'waybill.yaml')).mode & 0o777).toBe(0o600);
  const check = await runProgram(['--config', join(dir, 'waybill.yaml'), 'config', 'check'], {});
  expect(check).toMatchObject({ code: 0 });
});

test('a server that cannot be used: says which, writes nothing, and --no-check writes all the same', async () => {
  const wrong = { ...urls(), WAYBILL_BROKER_URL: 'amqp://guest:brokersecret@127.0.0.1:1' };
  const refused = await init(wrong);
  expect(refused.code).toBe(2);
  expect(refused.err).toContain('RabbitMQ');
  expect(refused.err + refused.out).not.toContain('brokersecret');
  expect(readdirSync(dir)).toEqual([]);
  expect((await init(wrong, '--no-check')).code).toBe(0);
  expect(readdirSync(dir)).toContain('waybill.yaml');
});

test('without a terminal and without a URL it says which variable to set', async () => {
  const { code, err } = await init({ WAYBILL_DATABASE_URL: database.url });
  expect(code).toBe(2);
  expect(err).toContain('set WAYBILL_BROKER_URL or WAYBILL_BROKER_URL_FILE');
  expect(readdirSync(dir)).toEqual([]);
});

test('a password on the command line is refused, and not repeated', async () => {
  const { code, err } = await init({}, '--database-url', 'postgres://u:argvsecret@localhost/d');
  expect(code).toBe(2);
  expect(err).toContain('password in a command line');
  expect(err).not.toContain('argvsecret');
});

test('on a terminal it asks for both', async () => {
  const answers = Object.values(urls());
  const asked: string[] = [];
  const written: Record<string, string> = {};
  let out = '';
  const context: CliContext = {
    environment: {},
    readFile: () => '',
    exists: () => false,
    writeNew: (path, text) => void (written[path] = text),
    out: (text) => (out += text),
    err: (text) => (out += text),
    outIsTerminal: true,
    ask: (question) => {
      asked.push(question);
      return Promise.resolve(answers[asked.length - 1] ?? '');
    },
    onSignal: () => undefined,
  };
  expect(await runCli(['init'], '1.2.3', context)).toBe(0);
  expect(asked.map((question) => question.split(',')[0])).toEqual(['PostgreSQL', 'RabbitMQ']);
  expect(Object.keys(written)).toEqual(['waybill.yaml', 'waybill-schema.sql', 'waybill-roles.sql']);
  expect(out).toContain('Both servers answer');
});
