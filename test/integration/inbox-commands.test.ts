import { randomUUID } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { hostname, tmpdir, userInfo } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { InboxMessageRecord, InboxRow } from '../../src/app/inbox-admin.js';
import type { Trace } from '../../src/app/trace.js';
import { groupDead, listInboxRows } from '../../src/postgres/inbox-operations.js';
import type { FreshDatabase } from '../support/database.js';
import { migratedDatabase } from '../support/migrated-database.js';
import { until } from '../support/waiting.js';
import { buildProgram, runProgram, startProgram } from './built-program.js';

let database: FreshDatabase;

beforeAll(async () => {
  [database] = await Promise.all([migratedDatabase(), buildProgram()]);
  await database.query(`select * from waybill.register_consumers($1)`, [
    JSON.stringify([
      { name: 'billing', owner: 'team-billing', queue: 'billing', handler: 'store' },
      { name: 'mail', queue: 'mail', handler: 'store' },
      { name: 'ledger', queue: 'ledger', handler: 'store', order: 'key' },
    ]),
  ]);
});
const folder = mkdtempSync(join(tmpdir(), 'waybill-commands-'));
afterAll(() => {
  rmSync(folder, { recursive: true });
  return database.drop();
});
beforeEach(async () => {
  await database.query(
    'truncate waybill.inbox, waybill.inbox_attempt, waybill.action_log, waybill.outbox, waybill.outbox_history',
  );
  await database.query('update waybill.consumer set paused_at = null, paused_by = null, paused_reason = null');
});

const waybill = (...args: string[]) => runProgram(args, { WAYBILL_DATABASE_URL: database.url });

/** Receives a message at a consumer, as the daemon does. */
async function receive(consumer: string, given: Record<string, unknown> = {}): Promise<string> {
  const id = randomUUID();
  const message = { message_id: id, type: 'order.paid', size: 2, ...given };
  await database.query(`select * from waybill.inbox_receive($1, $2, '{}'::bytea)`, [
    consumer,
    JSON.stringify([message]),
  ]);
  return message.message_id;
}

const dead = (consumer: string, given: Record<string, unknown> = {}) =>
  receive(consumer, { dead_reason: 'never', error: 'no such customer', ...given });

/** Has an application claim everything and complete it. */
async function applyAll(consumer: string): Promise<void> {
  await database.query(`select waybill.inbox_complete(c.seq, c.claim_token) from waybill.inbox_claim($1, 100) c`, [
    consumer,
  ]);
}

const statuses = async (): Promise<Record<string, string>> => {
  const rows = await database.query<{ id: string; status: string }>(
    `select consumer || ' ' || message_id as id, status from waybill.inbox`,
  );
  return Object.fromEntries(rows.map(({ id, status }) => [id, status]));
};
const actions = () => database.query('select action, target, reason from waybill.action_log order by seq');

describe('waybill inbox', () => {
  test('list filters; lines fit 80 columns and have nothing that a terminal obeys', async () => {
    const pending = await receive('billing');
    const died = await dead('billing', { error: 'x\u001b[2Jy' });
    const other = await receive('mail', { type: 'a\u001b]0;z', key: 'k' });
    const list = async (...args: string[]) => {
      const { out } = await waybill('inbox', 'list', '--json', ...args);
      return (JSON.parse(out) as { rows: InboxRow[] }).rows.map(({ messageId }) => messageId);
    };
    expect(await list()).toEqual([pending, died, other]);
    expect(await list('--consumer', 'billing', '--status', 'pending')).toEqual([pending]);
    expect(await list('--error', '[2jY')).toEqual([died]);
    expect(await list('--dead-reason', 'never')).toEqual([died]);
    expect(await list('--key', 'k', '--since', '1h')).toEqual([other]);
    expect(await list('--until', '1h')).toEqual([]);
    const human = await waybill('inbox', 'list');
    expect(human).toMatchObject({ code: 0, err: '' });
    for (const line of human.out.trimEnd().split('\n')) {
      expect(line.length).toBeLessThanOrEqual(80);
      expect(line).not.toMatch(/[\u0000-\u001f\u007f-\u009f]/);
    }
  });

  test('list of one status: by consumer, in the order of their turn', async () => {
    const [late, soon] = [await receive('billing', { failed: 'x' }), await receive('billing', { failed: 'x' })];
    await database.query(
      `update waybill.inbox set next_attempt_at = clock_timestamp() + case message_id when $1 then interval '1 h' else interval '1 min' end`,
      [late],
    );
    const other = await receive('mail');
    const first = await receive('billing');
    const list = async (status: string) => {
      const { out } = await waybill('inbox', 'list', '--json', '--status', status);
      return (JSON.parse(out) as { rows: InboxRow[] }).rows.map(({ messageId }) => messageId);
    };
    expect(await list('waiting')).toEqual([soon, late]);
    expect(await list('pending')).toEqual([first, other]);
    expect((await waybill('inbox', 'list', '--id', late, '--json')).out).toContain(late);
  });

  test('show tells all, bodies only when asked for; the body is as it was received', async () => {
    const id = await dead('billing', { headers: { h: 1 } });
    const plain = await waybill('inbox', 'show', id);
    expect(plain.out).toMatch(/At consumer billing\n +id +\S+\n +status +dead\n +dead because +never\n/);
    expect(plain.out).not.toContain('{}\n');
    expect((await waybill('inbox', 'show', id, '--body')).out.trimEnd().endsWith('{}')).toBe(true);
    const [record] = JSON.parse((await waybill('inbox', 'show', id, '--body', '--json')).out) as InboxMessageRecord[];
    expect(record?.body).toEqual({ encoding: 'text', data: '{}' });
    expect((await waybill('inbox', 'show', id, '--consumer', 'mail')).code).toBe(1);
    expect((await waybill('inbox', 'show', 'nobody')).code).toBe(1);
  });

  test('F129: an act is for one consumer; replay of what was applied answers "already applied" unless forced', async () => {
    const id = await receive('billing');
    await receive('mail', { message_id: id });
    await Promise.all(['billing', 'mail'].map(applyAll));
    expect(await waybill('inbox', 'replay', id)).toMatchObject({ code: 2, out: '' });
    expect(await waybill('inbox', 'replay', '--consumer', 'billing', id)).toMatchObject({
      code: 1,
      out: `${id}  already applied\n`,
    });
    expect(await waybill('inbox', 'replay', '--consumer', 'billing', '--force', id)).toMatchObject({ code: 2 });
    expect(await actions()).toEqual([]);
    expect(await waybill('inbox', 'replay', '--consumer', 'billing', '--force', '--yes', id)).toMatchObject({
      code: 0,
      out: `${id}  pending\n`,
    });
    expect(await statuses()).toEqual({ [`billing ${id}`]: 'pending', [`mail ${id}`]: 'done' });
  });

  test('retry, discard and defer by id, each in the action_log; exit code 1 if one was not to be changed', async () => {
    const [one, two, three] = [await dead('billing'), await dead('billing'), await receive('billing')];
    const retried = await waybill(
      'inbox',
      'retry',
      '--consumer',
      'billing',
      one,
      three,
      'nobody',
      '--reason',
      'mended',
    );
    expect(retried).toMatchObject({
      code: 1,
      out: `${one}  pending\n${three}  pending\nnobody                                unknown\n`,
    });
    expect(await waybill('inbox', 'discard', '--consumer', 'billing', two)).toMatchObject({ code: 2 });
    expect(await waybill('inbox', 'discard', '--consumer', 'billing', two, '--yes')).toMatchObject({
      code: 0,
      out: `${two}  discarded\n`,
    });
    expect((await waybill('inbox', 'defer', '--consumer', 'billing', three)).code).toBe(2);
    expect(await waybill('inbox', 'defer', '--consumer', 'billing', '--for', '30m', three)).toMatchObject({
      code: 0,
      out: `${three}  waiting\n`,
    });
    expect(await actions()).toEqual([
      { action: 'inbox.retry', target: one, reason: 'mended' },
      { action: 'inbox.discard', target: two, reason: null },
      { action: 'inbox.defer', target: three, reason: null },
    ]);
  });

  test('--all: counted before, in several batches, what changed meanwhile is skipped', async () => {
    const many = Array.from({ length: 250 }, (_, n) => ({
      message_id: `m${n}`,
      type: n % 2 === 0 ? 'order.paid' : 'order.sent',
      size: 0,
      dead_reason: 'attempts',
      error: 'timeout',
    }));
    await database.query(`select * from waybill.inbox_receive('ledger', $1, '')`, [JSON.stringify(many)]);
    await dead('mail');
    const scope = ['--consumer', 'ledger', '--all', '--type', 'order.paid', '--error', 'TIME'];
    expect((await waybill('inbox', 'retry', ...scope, '--dry-run')).out).toBe(
      'Would retry 125 rows: 125 dead order.paid. Nothing was changed.\n',
    );
    const done = await waybill('inbox', 'retry', ...scope, '--yes', '--json');
    expect(JSON.parse(done.out)).toEqual({
      act: 'retry',
      dryRun: false,
      rows: 125,
      kinds: [{ state: 'dead', type: 'order.paid', count: 125 }],
      answers: { pending: 125 },
    });
    // At a slow rate there is time for somebody else to change what was chosen.
    const slow = startProgram(['inbox', 'retry', '--consumer', 'ledger', '--all', '--yes', '--rate', '100/s'], {
      WAYBILL_DATABASE_URL: database.url,
    });
    const begun = async (): Promise<boolean> => (await actions()).length > 125;
    await until(begun, { what: 'the first batch' });
    await database.query(`select waybill.inbox_discard('ledger', 'm249')`);
    const { code, out } = await slow.finished;
    expect({ code, out }).toEqual({ code: 0, out: '124 pending; skipped: 1 changed meanwhile.\n' });
    expect((await statuses())['ledger m249']).toBe('discarded');
  });
});

test('a consumer that nobody knows is told as unknown, with the name that was meant and those that there are', async () => {
  const id = await dead('billing');
  const commands = [
    ['inbox', 'list', '--consumer', 'biling'],
    ['inbox', 'show', id, '--consumer', 'biling'],
    ['inbox', 'retry', '--consumer', 'biling', '--all'],
    ['inbox', 'retry', '--consumer', 'biling', '--all', '--dry-run', '--json'],
    ['inbox', 'replay', '--consumer', 'biling', '--all'],
    ['inbox', 'discard', '--consumer', 'biling', id],
    ['inbox', 'defer', '--consumer', 'biling', '--all', '--for', '1h'],
    ['dead', 'list', '--consumer', 'biling'],
    ['dead', 'list', '--consumer', 'biling', '--group', 'error', '--json'],
    ['dead', 'show', id, '--consumer', 'biling'],
    ['dead', 'discard', '--consumer', 'biling', '--all'],
    ['dead', 'export', '--consumer', 'biling'],
    ['consumer', 'pause', 'biling', '--reason', 'x'],
    ['consumer', 'resume', 'biling'],
    ['consumer', 'drain', 'biling', '--reason', 'x'],
    ['consumer', 'rename', 'biling', 'other'],
    ['consumer', 'forget', 'biling', '--yes'],
    ['tail', '--consumer', 'biling'],
  ];
  for (const command of commands) {
    expect(await waybill(...command), command.join(' ')).toEqual({
      code: 1,
      out: '',
      err:
        'waybill: No consumer is called biling; billing is probably meant.\n' +
        '  code: WAYBILL_CONSUMER_UNKNOWN\n' +
        '  mend: These are known: billing, ledger, mail.\n',
    });
  }
  expect((await waybill('inbox', 'list', '--consumer', 'nothing-like-it')).err).toContain(
    'No consumer is called nothing-like-it.\n',
  );
  expect(await actions()).toEqual([]);

  // One that is only configured is known; before its first run there is nothing to pause.
  const file = join(folder, 'waybill.yaml');
  writeFileSync(file, 'relay: false\nconsumers:\n  parcels: { queue: parcels }\n');
  expect(await waybill('--config', file, 'inbox', 'list', '--consumer', 'parcels')).toMatchObject({ code: 0, err: '' });
  expect((await waybill('--config', file, 'inbox', 'list', '--consumer', 'parcel')).err).toContain(
    'parcels is probably meant',
  );
  expect((await waybill('--config', file, 'consumer', 'pause', 'parcels', '--reason', 'x')).err).toContain(
    'Consumer parcels is configured, but not registered yet.',
  );

  // Messages of one that is not registered any more can be seen to.
  await database.query(`insert into waybill.consumer (name, queue) values ('gone', 'gone')`);
  const left = await dead('gone');
  await database.query(`delete from waybill.consumer where name = 'gone'`);
  expect((await waybill('dead', 'list', '--consumer', 'gone')).out).toContain(left);
});

describe('waybill dead', () => {
  test('list, grouped by what they have in common; retry; export as JSON lines', async () => {
    const [one, two] = [await dead('billing'), await dead('billing')];
    await dead('mail', { error: 'mailbox full', dead_reason: 'attempts' });
    await receive('billing');
    const groups = JSON.parse((await waybill('dead', 'list', '--group', 'error', '--json')).out) as unknown[];
    expect(groups).toMatchObject([
      { consumer: 'billing', common: 'no such customer', count: 2, reason: 'never' },
      { consumer: 'mail', common: 'mailbox full', count: 1, reason: 'attempts' },
    ]);
    expect((await waybill('dead', 'list', '--group', 'type')).out).toMatch(
      /2 at billing \(never\); oldest .*\n {4}order\.paid\n/,
    );
    expect((await waybill('dead', 'list', '--group', 'id')).code).toBe(0);
    expect((await waybill('dead', 'list', '--consumer', 'billing')).out).toContain(one);
    const exported = await waybill('dead', 'export', '--consumer', 'billing', '--body');
    const lines = exported.out
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line) as InboxMessageRecord);
    expect(lines.map(({ messageId, body }) => [messageId, body?.data])).toEqual([
      [one, '{}'],
      [two, '{}'],
    ]);
    expect((await waybill('dead', 'export')).out).not.toContain('"body":{');
    expect(await waybill('dead', 'retry', '--consumer', 'billing', '--all', '--yes')).toMatchObject({
      out: '2 pending.\n',
    });
    expect(await waybill('dead', 'discard', '--consumer', 'mail', '--all', '--yes')).toMatchObject({
      out: '1 discarded.\n',
    });
    expect((await waybill('dead', 'list', '--group', 'error')).out).toBe('Nothing is dead.\n');
  });
});

describe('waybill consumer', () => {
  test('list, pause, resume', async () => {
    await receive('billing');
    await dead('billing');
    const paused = await waybill('consumer', 'pause', 'billing', '--reason', 'a partner is down');
    expect(paused).toMatchObject({ code: 0, out: 'Consumer billing: paused.\n' });
    expect(await database.query(`select * from waybill.inbox_claim('billing')`)).toEqual([]);
    const listed = await waybill('consumer', 'list');
    expect(listed.out).toMatch(/billing +store +1 +0 +0 +0 +1 +\S/);
    expect(listed.out).toMatch(/ {4}owner team-billing; queue billing\n {4}PAUSED by \S+ \(\S+@\S+\)\s+since /);
    expect(listed.out.replaceAll(/\s+/g, ' ')).toContain('a partner is down');
    for (const line of listed.out.split('\n')) expect(line.length).toBeLessThanOrEqual(80);
    expect((await waybill('consumer', 'resume', 'billing')).out).toBe('Consumer billing: resumed.\n');
    expect(await waybill('consumer', 'pause', 'nobody', '--reason', 'x')).toMatchObject({ code: 1 });
    expect(await waybill('consumer', 'pause', 'billing')).toMatchObject({ code: 2 });
  });

  test('drain pauses and waits until what is being handled ends, or says how much is left', async () => {
    await receive('billing');
    const [claim] = await database.query<{ seq: string; claim_token: string }>(
      `select seq::text, claim_token from waybill.inbox_claim('billing')`,
    );
    const late = await waybill('consumer', 'drain', 'billing', '--reason', 'release', '--timeout', '300ms');
    expect(late).toMatchObject({ code: 1 });
    expect(late.out).toContain('1 message is still being handled');
    const drain = startProgram(['consumer', 'drain', 'billing', '--reason', 'release'], {
      WAYBILL_DATABASE_URL: database.url,
    });
    await until(() => drain.err().includes('1 being handled'), { what: 'it to wait' });
    await database.query('select waybill.inbox_complete($1, $2)', [claim?.seq, claim?.claim_token]);
    expect(await drain.finished).toMatchObject({
      code: 0,
      out: 'Consumer billing is paused, and nothing of it is being handled.\n',
    });
  });
});

test('F128: a renamed consumer still knows what it has applied; one that is gone for good is forgotten', async () => {
  await database.query(`insert into waybill.consumer (name, queue) values ('post', 'post')`);
  const id = await receive('post');
  await applyAll('post');
  expect((await waybill('consumer', 'rename', 'post', 'letters')).code).toBe(2);
  expect(await waybill('consumer', 'rename', 'post', 'letters', '--yes', '--reason', 'clearer')).toMatchObject({
    code: 0,
    out: 'Consumer post is letters now; 1 message went along.\n',
  });
  expect(await waybill('inbox', 'replay', '--consumer', 'letters', id)).toMatchObject({
    out: `${id}  already applied\n`,
  });
  expect((await waybill('consumer', 'rename', 'nobody', 'x', '--yes')).code).toBe(1);
  // While somebody may be writing under the old name, nothing is begun.
  const writer = await database.connect();
  await writer.query(`begin; select * from waybill.inbox_receive('letters', '[]', '')`);
  expect(await waybill('consumer', 'rename', 'letters', 'parcels', '--yes')).toMatchObject({
    code: 1,
    err: expect.stringContaining('WAYBILL_STILL_IN_USE') as string,
  });
  await writer.query('rollback');
  expect(await waybill('inbox', 'replay', '--consumer', 'letters', id)).toMatchObject({
    out: `${id}  already applied\n`,
  });
  // One that was interrupted goes on.
  await database.query(`select waybill.rename_begin('letters', 'parcels')`);
  expect(await waybill('inbox', 'replay', '--consumer', 'letters', id)).toMatchObject({
    code: 1,
    err: expect.stringContaining('consumer rename letters parcels') as string,
  });
  expect((await waybill('consumer', 'list')).out).toContain(
    '    HALF RENAMED; go on with it, or take it back with --cancel:\n    waybill consumer rename letters parcels\n',
  );
  // It can be taken back as long as no message has the new name.
  const cancelled = await waybill('consumer', 'rename', 'letters', 'parcels', '--cancel');
  expect(cancelled).toMatchObject({
    code: 0,
    out: 'Consumer letters keeps its name; messages are received and handed out again.\n',
  });
  expect(await waybill('inbox', 'replay', '--consumer', 'letters', id)).toMatchObject({
    out: `${id}  already applied\n`,
  });
  expect(await waybill('consumer', 'rename', 'letters', 'parcels', '--cancel')).toMatchObject({
    code: 1,
    err: expect.stringContaining('No rename of letters to parcels was begun.') as string,
  });
  await database.query(`select waybill.rename_begin('letters', 'parcels')`);
  await database.query(`select * from waybill.rename_rows('letters', 'parcels', 0)`);
  expect(await waybill('consumer', 'rename', 'letters', 'parcels', '--cancel')).toMatchObject({
    code: 1,
    err: expect.stringContaining('Go on with it: waybill consumer rename letters parcels') as string,
  });
  expect((await waybill('consumer', 'rename', 'letters', 'parcels', '--yes')).code).toBe(0);
  expect((await waybill('consumer', 'rename', 'parcels', 'letters', '--yes')).code).toBe(0);
  await receive('letters');
  expect(await waybill('consumer', 'forget', 'letters', '--yes')).toMatchObject({
    code: 1,
    out: 'Consumer letters: unfinished rows: 1.\n',
  });
  expect(await waybill('consumer', 'forget', 'letters', '--force', '--yes')).toMatchObject({ code: 0 });
  expect(await statuses()).toEqual({});
  expect(await actions()).toMatchObject([
    { action: 'consumer.rename', reason: 'clearer' },
    { action: 'consumer.rename', target: 'parcels' },
    { action: 'consumer.rename', target: 'letters' },
    { action: 'consumer.forget' },
  ]);
});

test('redact counts first, then removes content everywhere; ids stay, so that a duplicate is still known', async () => {
  const id = await receive('billing', { key: 'customer-7' });
  await applyAll('billing');
  await database.query(
    `insert into waybill.outbox_history (id, outcome, type, key, payload, headers) values ($1, 'published', 't', 'customer-7', '{"name": "Ada"}', '{}')`,
    [randomUUID()],
  );
  expect((await waybill('redact')).code).toBe(2);
  const dry = await waybill('redact', '--key', 'customer-7', '--dry-run');
  expect(dry).toMatchObject({ code: 0 });
  expect(dry.out).toMatch(/inbox +1\n[^]*outbox_history +1\n[^]*Nothing was changed/);
  expect(await waybill('redact', '--key', 'customer-7')).toMatchObject({ code: 2 });
  const kept = `select (select count(*)::int from waybill.inbox where body is not null) + (select count(*)::int from waybill.outbox_history where payload is not null) as n`;
  expect(await database.query(kept)).toEqual([{ n: 2 }]);
  const done = await waybill('redact', '--key', 'customer-7', '--yes', '--reason', 'article 17', '--json');
  expect(done.code).toBe(0);
  expect(await database.query(kept)).toEqual([{ n: 0 }]);
  expect(await actions()).toMatchObject([{ action: 'redact', reason: 'article 17' }]);
  expect((await waybill('inbox', 'show', id)).out).toContain('the body is gone');
});

test('trace follows a message to its consumers, and says where the trouble is', async () => {
  const id = randomUUID();
  await database.query(
    `insert into waybill.outbox_history (id, outcome, type, exchange, routing_key, created_at, published_at) values ($1, 'published', 'order.paid', 'e', 'r', now(), now())`,
    [id],
  );
  await receive('mail', { message_id: id });
  await applyAll('mail');
  await receive('billing', { message_id: id });
  await database.query(
    `select waybill.inbox_fail(c.seq, c.claim_token, 'no such customer', never => true) from waybill.inbox_claim('billing', 100) c`,
  );
  const { code, out } = await waybill('trace', id);
  expect(code).toBe(0);
  expect(out).toMatch(
    /broker +confirmed[^]*mail +received[^]*billing +received[^]*billing +attempt 1: never: no such customer\n/,
  );
  expect(out).toContain('VERDICT  this consumer: mail applied it, billing does not.');
  expect(out.trimEnd().endsWith(`next  waybill inbox show --consumer billing ${id}`)).toBe(true);
  await database.query(`select waybill.inbox_retry('billing', $1)`, [id]);
  const trace = JSON.parse((await waybill('trace', id, '--json')).out) as Trace;
  expect(trace.verdict.verdict).toBe('on its way');
  expect(trace.inbox?.map(({ consumer, attempts }) => [consumer, attempts.length])).toEqual([
    ['billing', 1],
    ['mail', 0],
  ]);
});

describe('waybill trace of a message that waits', () => {
  const verdictOf = async (id: string) => (JSON.parse((await waybill('trace', '--json', id)).out) as Trace).verdict;

  test('at a paused consumer: that it is, by whom and why', async () => {
    const id = await receive('billing');
    await waybill('consumer', 'pause', 'mail', '--reason', 'another');
    expect((await verdictOf(id)).next).toBe('waybill consumer list');
    await waybill('consumer', 'pause', 'billing', '--reason', 'partner is down, ticket 4711');
    const [{ me } = { me: '' }] = await database.query<{ me: string }>(
      'select actor as me from waybill.action_log limit 1',
    );
    const { verdict, reason, next } = await verdictOf(id);
    expect([verdict, next]).toEqual(['on its way', 'waybill consumer resume billing']);
    expect(reason).toContain(`the consumer is paused by ${me} since `);
    expect(reason).toContain(': partner is down, ticket 4711');
    await waybill('consumer', 'resume', 'billing');
    expect((await verdictOf(id)).next).toBe('waybill consumer list');
  });

  test('after a failed attempt, at a consumer that was paused since: both', async () => {
    const id = await receive('billing');
    await database.query(
      `select waybill.inbox_fail(c.seq, c.claim_token, 'partner answers 500') from waybill.inbox_claim('billing') c`,
    );
    await waybill('consumer', 'pause', 'billing', '--reason', 'partner is down');
    const { reason, next } = await verdictOf(id);
    expect(reason).toMatch(/fails at billing; and it waits: the consumer is paused by .* since .*: partner is down/);
    expect(reason).toContain('`waybill consumer resume billing`');
    expect(next).toBe(`waybill inbox show --consumer billing ${id}`);
  });

  test('behind one of its key: which', async () => {
    const head = await dead('ledger', { key: 'k' });
    const [second, third] = [await receive('ledger', { key: 'k' }), await receive('ledger', { key: 'k' })];
    await dead('ledger', { key: 'k' });
    await dead('ledger', { key: 'other' });
    for (const id of [second, third]) {
      expect(await verdictOf(id)).toEqual({
        verdict: 'on its way',
        reason: `at consumer ledger it waits behind message ${head} of its key, which is dead`,
        next: `waybill trace ${head}`,
      });
    }
    await waybill('dead', 'discard', '--consumer', 'ledger', head, '--yes', '--reason', 'sent by hand');
    expect((await verdictOf(second)).reason).toBe('at consumer ledger it waits to be taken up');
    expect((await verdictOf(third)).reason).toContain(`behind message ${second} of its key, which is pending`);
  });
});

test('the action_log names the person behind the role, as the program tells it', async () => {
  const env = { WAYBILL_DATABASE_URL: database.url };
  const [{ me } = { me: '' }] = await database.query<{ me: string }>('select session_user::text as me');
  const pause = (change: Record<string, string>) =>
    runProgram(['consumer', 'pause', 'billing', '--reason', 'x'], { ...env, ...change });
  const acted = async () => (await database.query('select actor from waybill.action_log order by seq desc limit 1'))[0];
  await pause({});
  const { username } = userInfo();
  expect(await acted()).toEqual({ actor: `${me} (${username}@${hostname()})` });
  await waybill('consumer', 'resume', 'billing');
  await pause({ WAYBILL_OPERATOR: `ann o'hara \\ on call` });
  expect(await acted()).toEqual({ actor: `${me} (ann o'hara \\ on call@${hostname()})` });
  await waybill('consumer', 'resume', 'billing');
  // From psql there is the role alone.
  await database.query(`select waybill.consumer_pause('billing', 'x')`);
  expect(await acted()).toEqual({ actor: me });
});

describe('lists of a long inbox', () => {
  const client = () => database.connect();

  test('--since begins where the time does, and misses nothing of it, also where numbers and times are in disorder', async () => {
    const connection = await client();
    // Times that go on by a minute a row, in disorder by up to ten minutes, and numbers with gaps.
    await connection.query(
      `insert into waybill.inbox (consumer, message_id, type, body, body_hash, received_at)
       select 'billing', 'm-' || n, 't', 'x', sha256('x'), now() - interval '1 min' * (20000 - n + n * 7919 % 10)
       from generate_series(1, 20000) n`,
    );
    await connection.query(`delete from waybill.inbox where seq % 5 = 0 or message_id between 'm-7' and 'm-8'`);
    for (const minutes of [-5, 0, 3, 60, 3_333, 12_345, 19_990, 30_000]) {
      const expected = await database.query<{ id: string }>(
        `select message_id as id from waybill.inbox where received_at >= statement_timestamp() - $1::int * interval '1 min' order by seq limit 40`,
        [minutes],
      );
      const found = await listInboxRows(connection, 'waybill', { since: { agoMs: minutes * 60_000 } }, 40);
      expect([minutes, found.map(({ messageId }) => messageId)]).toEqual([minutes, expected.map(({ id }) => id)]);
    }
    const read = async (): Promise<number> => {
      const { rows } = await connection.query<{ n: string }>(
        `select seq_tup_read + idx_tup_fetch as n from pg_stat_xact_user_tables where relid = 'waybill.inbox'::regclass`,
      );
      return Number(rows[0]?.n);
    };
    await connection.query('analyze waybill.inbox; begin');
    const before = await read();
    expect(await listInboxRows(connection, 'waybill', { since: { agoMs: 600_000 }, key: 'none' }, 40)).toEqual([]);
    expect((await read()) - before).toBeLessThan(500);
    await connection.query('rollback');
    await connection.query('truncate waybill.inbox cascade');
    expect(await listInboxRows(connection, 'waybill', { since: { agoMs: 600_000 } }, 40)).toEqual([]);
    await connection.end();
  });

  test('the dead are grouped from the latest of each consumer, and what was left out is told', async () => {
    for (let n = 0; n < 7; n += 1) await dead('billing', { error: `error ${n % 2}` });
    await dead('mail', { error: 'another' });
    const connection = await client();
    const grouped = async (most: number) =>
      (await groupDead(connection, 'waybill', {}, 'error', 10, most)).map(({ consumer, common, count, isCut }) => [
        consumer,
        common,
        count,
        isCut,
      ]);
    expect(await grouped(100)).toEqual([
      ['billing', 'error 0', 4, false],
      ['billing', 'error 1', 3, false],
      ['mail', 'another', 1, false],
    ]);
    expect(await grouped(3)).toEqual([
      ['billing', 'error 0', 2, true],
      ['mail', 'another', 1, false],
      ['billing', 'error 1', 1, true],
    ]);
    await connection.end();
  });
});
