import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { SCHEMA_VERSION } from '../../src/postgres/migrations.js';
import { freshVhost, type FreshVhost } from '../support/broker.js';
import type { FreshDatabase } from '../support/database.js';
import { migratedDatabase } from '../support/migrated-database.js';
import { buildProgram, runProgram } from './built-program.js';

const README = readFileSync(new URL('../../README.md', import.meta.url), 'utf8');

let database: FreshDatabase;
let vhost: FreshVhost;
let folder: string;

beforeAll(async () => {
  [database, vhost] = await Promise.all([migratedDatabase(), freshVhost(), buildProgram()]);
  folder = mkdtempSync(join(tmpdir(), 'waybill-json-'));
  writeFileSync(
    join(folder, 'waybill.yaml'),
    'relay: { exchange: shop.events }\nconsumers: { billing: { bindings: [{ exchange: shop.events, routingKey: "#" }] } }\n',
  );
});
afterAll(async () => {
  rmSync(folder, { recursive: true, force: true });
  await Promise.all([database.drop(), vhost.drop()]);
});
beforeEach(async () => {
  await database.query('truncate waybill.inbox, waybill.inbox_attempt, waybill.action_log, waybill.consumer cascade');
  await database.query(`insert into waybill.consumer (name, queue) values ('billing', 'billing')`);
});

/** The keys of a command's answer, as README promises them. */
function promised(command: string): string[] {
  const line = README.split('\n').find((each) => each.startsWith(`| \`${command}\` |`)) ?? '';
  return [
    ...line
      .split('|')
      .slice(2)
      .join('|')
      .matchAll(/`(\w+)`/g),
  ].map(([, key]) => key ?? '');
}

/** Runs a command with --json; its answer is one document with the keys that README promises. */
async function answer(command: string, args: readonly string[] = [], environment: Record<string, string> = {}) {
  const words = [...command.split(' '), ...args, '--json'];
  const { code, out, err } = await runProgram(words, {
    WAYBILL_CONFIG: join(folder, 'waybill.yaml'),
    WAYBILL_DATABASE_URL: database.url,
    WAYBILL_BROKER_URL: vhost.url,
    ...environment,
  });
  const document = JSON.parse(out) as Record<string, unknown>;
  expect(Object.keys(document).sort()).toEqual(promised(command).sort());
  return { code, err, document };
}

const actions = () => database.query('select action, target, reason from waybill.action_log order by seq');

test('migrate up', async () => {
  const first = await answer('migrate up', ['--schema', 'other']);
  expect(first).toMatchObject({ code: 0, document: { schema: 'other' } });
  expect(first.document['applied']).toHaveLength(SCHEMA_VERSION);
  expect(first.document['applied']).toMatchObject([
    { version: 1, name: 'outbox' },
    ...Array<object>(SCHEMA_VERSION - 1).fill({}),
  ]);
  expect(first.err).toContain('applied 0001_outbox.sql');
  expect((await answer('migrate up', ['--schema', 'other'])).document).toEqual({ schema: 'other', applied: [] });
});

describe('consumer', () => {
  const reason = ['--reason', 'a partner is down'];

  test('pause and resume', async () => {
    const paused = { act: 'pause', consumer: 'billing', answer: 'paused' };
    expect(await answer('consumer pause', ['billing', ...reason])).toMatchObject({ code: 0, document: paused });
    const again = { ...paused, answer: 'already paused' };
    expect(await answer('consumer pause', ['billing', ...reason])).toMatchObject({ code: 0, document: again });
    expect(await answer('consumer resume', ['billing'])).toMatchObject({
      code: 0,
      document: { act: 'resume', consumer: 'billing', answer: 'resumed' },
    });
    expect(await actions()).toMatchObject([
      { action: 'consumer.pause', reason: 'a partner is down' },
      { action: 'consumer.resume', reason: null },
    ]);
  });

  test('an error is a text on stderr, and nothing is answered', async () => {
    const { code, out, err } = await runProgram(['consumer', 'pause', 'biling', ...reason, '--json'], {
      WAYBILL_DATABASE_URL: database.url,
    });
    expect({ code, out }).toEqual({ code: 1, out: '' });
    expect(err).toContain('billing is probably meant');
  });

  test('drain, with what is left of it', async () => {
    expect(await answer('consumer drain', ['billing', ...reason])).toMatchObject({
      code: 0,
      document: { act: 'drain', consumer: 'billing', answer: 'drained', running: 0 },
    });
    await answer('consumer resume', ['billing']);
    await database.query(`select * from waybill.inbox_receive('billing', $1, 'x')`, [
      JSON.stringify([{ message_id: 'a', type: 't', size: 1 }]),
    ]);
    await database.query(`select * from waybill.inbox_claim('billing')`);
    expect(await answer('consumer drain', ['billing', ...reason, '--timeout', '300ms'])).toMatchObject({
      code: 1,
      document: { answer: 'still running', running: 1 },
    });
  });

  test('rename, and what was begun of it taken back', async () => {
    expect(await answer('consumer rename', ['billing', 'invoices', '--yes'])).toMatchObject({
      code: 0,
      document: { act: 'rename', consumer: 'billing', to: 'invoices', answer: 'renamed', moved: 0 },
    });
    await database.query(`select waybill.rename_begin('invoices', 'bills')`);
    expect(await answer('consumer rename', ['invoices', 'bills', '--cancel'])).toMatchObject({
      code: 0,
      document: { act: 'rename', consumer: 'invoices', to: 'bills', answer: 'taken back', moved: 0 },
    });
  });

  test('forget', async () => {
    expect(await answer('consumer forget', ['billing', '--yes', ...reason])).toMatchObject({
      code: 0,
      document: { act: 'forget', consumer: 'billing', answer: 'forgotten' },
    });
    expect(await actions()).toMatchObject([{ action: 'consumer.forget', reason: 'a partner is down' }]);
  });
});

test('relay adopt and drop, each with its reason in the action_log', async () => {
  await database.query(`insert into waybill.relay (name, slot) values ('orders', 'not_there')`);
  const adopted = await answer('relay adopt', ['--relay', 'orders', '--yes', '--reason', 'restored']);
  expect(adopted).toMatchObject({ code: 0, document: { act: 'adopt', relay: 'orders', lockUnseen: null } });
  expect(adopted.document['systemIdentifier']).toMatch(/^\d+$/);
  const nowhere = { WAYBILL_BROKER_URL: 'amqp://127.0.0.1:1/' };
  const dropped = await answer('relay drop', ['orders', '--yes', '--reason', 'retired'], nowhere);
  expect(dropped).toMatchObject({
    code: 0,
    document: { act: 'drop', relay: 'orders', slot: 'absent', slotName: 'not_there' },
  });
  expect(dropped.document['lockUnseen']).toMatch(/127\.0\.0\.1/);
  expect(await actions()).toEqual([
    { action: 'relay.adopt', target: 'orders', reason: 'restored' },
    { action: 'relay.drop', target: 'orders', reason: 'retired' },
  ]);
});

test('topology apply: what was to be done, and what was done', async () => {
  const queue = { kind: 'queue', name: 'billing', state: 'missing' };
  const dry = await answer('topology apply', ['--dry-run']);
  expect(dry).toMatchObject({ code: 0, document: { act: 'apply', dryRun: true, done: [] } });
  expect(dry.document['steps']).toContainEqual(expect.objectContaining(queue));
  const done = await answer('topology apply', ['--yes']);
  expect(done).toMatchObject({ code: 0, document: { act: 'apply', dryRun: false, steps: dry.document['steps'] } });
  expect(done.document['done']).toContainEqual(expect.objectContaining(queue));
  const again = await answer('topology apply', ['--yes']);
  expect((again.document['done'] as { kind: string }[]).filter(({ kind }) => kind !== 'binding')).toEqual([]);
});

test('config check: every problem, with its mend, in the answer itself', async () => {
  expect(await answer('config check')).toMatchObject({ code: 0, document: { valid: true, problems: [] } });
  const wrong = await answer('config check', [], {
    WAYBILL_LOG_LEVEL: 'loud',
    WAYBILL_DATABASE_URL: 'postgres://u:hidden-secret@db.example/shop?sslmode=disable',
  });
  expect(wrong).toMatchObject({ code: 2, err: '', document: { valid: false } });
  expect(wrong.document['problems']).toContainEqual({
    at: expect.stringContaining('log.level') as string,
    problem: 'is none of the known words',
    mend: 'write one of debug, info, warn, error',
  });
  expect(JSON.stringify(wrong.document)).not.toContain('hidden-secret');
});

test('init: findings, files and what the environment still needs', async () => {
  const dir = mkdtempSync(join(folder, 'init-'));
  const { code, document } = await answer('init', ['--dir', dir, '--schema', 'shop'], { WAYBILL_CONFIG: '' });
  expect(code).toBe(0);
  const names = ['waybill.yaml', 'waybill-schema.sql', 'waybill-roles.sql'];
  expect(document['written']).toEqual(names.map((name) => join(dir, name)));
  expect(readdirSync(dir).sort()).toEqual([...names].sort());
  expect(document['findings']).toContainEqual(expect.objectContaining({ id: 'slot-keep-size', severity: 'fail' }));
});
