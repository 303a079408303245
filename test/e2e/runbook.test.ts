import { execFile } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { buildProgram } from '../integration/built-program.js';
import { relayScene, type RelayScene } from '../support/relay-scene.js';
import { killRelays, startRelay, type RelayProcess } from '../support/relay.js';
import { until } from '../support/waiting.js';

const README = readFileSync(new URL('../../README.md', import.meta.url), 'utf8');
const MAIN = fileURLToPath(new URL('../../dist/main.js', import.meta.url));

/** The commands of the runbook by their headings, as they stand there. */
function runbook(): Map<string, string[]> {
  const section = /\n## Runbook\n([^]*?)\n## /.exec(README)?.[1] ?? '';
  const tasks = section.split(/\n### /).slice(1);
  return new Map(
    tasks.map((task) => {
      const blocks = [...task.matchAll(/```sh\n([^]*?)```/g)].map(([, block = '']) => block);
      return [
        task.split('\n')[0] ?? '',
        blocks
          .join('')
          .split('\n')
          .filter((line) => line.trim() !== ''),
      ];
    }),
  );
}

const commands = runbook();
const done = new Set<string>();

let scene: RelayScene;
let dir: string;
let relay: RelayProcess | undefined;
const names = { ID: '', KEY: 'customer-7', CONSUMER: 'billing' };

beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), 'waybill-runbook-'));
  writeFileSync(join(dir, 'waybill'), `#!/bin/sh\nexec "${process.execPath}" "${MAIN}" "$@"\n`);
  chmodSync(join(dir, 'waybill'), 0o755);
  writeFileSync(
    join(dir, 'waybill.yaml'),
    `admin: { listen: off }
relay: { history: full }
consumers: { billing: { queue: billing, bindings: [{ exchange: waybill.events, routingKey: "#" }], retry: { delays: [1s] } } }
`,
  );
  [scene] = await Promise.all([relayScene(), buildProgram()]);
  await start();
});
afterAll(async () => {
  await killRelays();
  await scene.drop();
  rmSync(dir, { recursive: true, force: true });
});

const environment = () => ({
  WAYBILL_DATABASE_URL: scene.database.url,
  WAYBILL_BROKER_URL: scene.vhost.url,
  WAYBILL_CONFIG: join(dir, 'waybill.yaml'),
});

async function start(): Promise<void> {
  relay = startRelay({
    databaseUrl: scene.database.url,
    brokerUrl: scene.vhost.url,
    env: { WAYBILL_CONFIG: join(dir, 'waybill.yaml') },
  });
  await relay.waitForPhase('streaming', 60_000);
}

async function stop(): Promise<void> {
  expect(await relay?.stop()).toBe(0);
  await scene.slotReleased();
}

/** Runs the commands of a task line by line, as somebody would type them; gives what each said. */
async function type(task: string, allowed: Readonly<Record<string, number[]>> = {}): Promise<string[]> {
  const lines = commands.get(task);
  if (!lines || lines.length === 0) throw new Error(`the runbook has no commands for "${task}"`);
  done.add(task);
  const said: string[] = [];
  for (const line of lines) {
    const { code, out, err } = await shell(line);
    const codes = Object.entries(allowed).find(([part]) => line.includes(part))?.[1] ?? [0];
    if (!codes.includes(code)) throw new Error(`${line}\nended with ${code}\n${out}${err}`);
    said.push(out);
  }
  return said;
}

function shell(line: string): Promise<{ code: number; out: string; err: string }> {
  const env = { ...environment(), ...names, PATH: `${dir}:${process.env['PATH'] ?? ''}`, HOME: dir };
  return new Promise((resolve) => {
    execFile('bash', ['-c', line], { env, timeout: 60_000 }, (error, out, err) => {
      resolve({ code: error === null ? 0 : typeof error.code === 'number' ? error.code : -1, out, err });
    });
  });
}

/** A message that billing has received, and applied or not. */
async function received(status: 'done' | 'dead' | 'pending', given: Record<string, unknown> = {}): Promise<string> {
  const id = randomUUID();
  const message = { message_id: id, type: 'order.paid', key: names.KEY, size: 2, ...given };
  if (status === 'dead') Object.assign(message, { dead_reason: 'attempts', error: 'partner does not answer' });
  await scene.database.query(`select * from waybill.inbox_receive('billing', $1, '{}'::bytea)`, [
    JSON.stringify([message]),
  ]);
  if (status === 'done') {
    await scene.database.query(
      `select waybill.inbox_complete(c.seq, c.claim_token) from waybill.inbox_claim('billing', 100) c`,
    );
  }
  return id;
}

const statusOf = async (id: string): Promise<string | undefined> =>
  (await scene.database.query<{ status: string }>('select status from waybill.inbox where message_id = $1', [id]))[0]
    ?.status;

test('A message is missing', async () => {
  const [id = ''] = await scene.publish(1);
  await scene.settled();
  const isThere = async (): Promise<boolean> => (await statusOf(id)) !== undefined;
  await until(isThere, { what: 'billing to have received it', withinMs: 30_000, everyMs: 100 });
  names.ID = id;
  const [trace, , , status] = await type('A message is missing');
  expect(trace).toMatch(/outbox +written\n[^]*broker +confirmed[^]*VERDICT {2}on its way/);
  expect(trace).toMatch(/billing +received\n/);
  expect(status).toContain('active');
});

test('The disk fills', async () => {
  await scene.database.query(
    `insert into waybill.relay (name, slot) values ('retired', 'waybill_retired_' || current_setting('port'))`,
  );
  await scene.database.query(
    `select pg_create_logical_replication_slot('waybill_retired_' || current_setting('port'), 'pgoutput')`,
  );
  const [relays, , slots] = await type('The disk fills', { doctor: [0, 4] });
  expect(relays).toContain('retired');
  expect(slots).toContain('kept');
  expect(
    await scene.database.query(`select from pg_replication_slots where slot_name like 'waybill\\_retired%'`),
  ).toEqual([]);
});

test('A poison message', async () => {
  names.ID = await received('dead');
  const lines = commands.get('A poison message') ?? [];
  // One is tried again or given up, not both: it dies once more in between.
  const discard = lines.findIndex((line) => line.includes('dead discard'));
  commands.set('A poison message', lines.slice(0, discard));
  const [groups, shown] = await type('A poison message');
  expect(groups).toContain('partner does not answer');
  expect(shown).toContain('dead because');
  expect(await statusOf(names.ID)).toBe('pending');
  names.ID = await received('dead');
  commands.set('A poison message', lines.slice(discard));
  await type('A poison message');
  expect(await statusOf(names.ID)).toBe('discarded');
});

test('A partner was down all night', async () => {
  const ids = [await received('dead'), await received('dead')];
  const said = await type('A partner was down all night');
  expect(said[1]).toContain('PAUSED by ');
  expect(said[3]).toContain('Would retry 2 rows');
  expect(await Promise.all(ids.map(statusOf))).toEqual(['pending', 'pending']);
  await scene.database.query(`select waybill.inbox_discard('billing', $1)`, [ids[0]]);
});

test("Replay yesterday's orders for one consumer", async () => {
  const id = await received('done');
  await scene.database.query(
    `update waybill.inbox set received_at = received_at - interval '1 day' where message_id = $1`,
    [id],
  );
  const [dry, replayed] = await type("Replay yesterday's orders for one consumer");
  expect(dry).toContain('Would replay 1 row: 1 done order.paid');
  expect(replayed).toContain('1 pending');
  expect(await statusOf(id)).toBe('pending');
});

test('Fail over', async () => {
  const [status, , pending] = await type('Fail over', { doctor: [0, 4] });
  expect(status).toContain('active');
  expect(pending).toBe('No row of the outbox fits.\n');
});

test('Upgrade PostgreSQL', async () => {
  await stop();
  const [adopted] = await type('Upgrade PostgreSQL', { doctor: [0, 4] });
  expect(adopted).toContain('is adopted');
  await start();
  const [id = ''] = await scene.publish(1);
  await until(() => scene.probe.ids().includes(id), { what: 'the message', withinMs: 30_000 });
});

test('Roll Waybill back', async () => {
  const [status, newest] = await type('Roll Waybill back');
  expect(status).toContain('applied');
  expect(newest).toMatch(/^\d+\|\w+\|1\n$/);
});

test('Restore a backup', async () => {
  await stop();
  const [adopted] = await type('Restore a backup', { doctor: [0, 4] });
  expect(adopted).toContain('is adopted');
});

test('Erase a customer', async () => {
  const id = await received('done');
  const [dry] = await type('Erase a customer');
  expect(dry).toContain('Nothing was changed');
  const kept = await scene.database.query('select from waybill.inbox where message_id = $1 and body is not null', [id]);
  expect(kept).toEqual([]);
});

test('Remove Waybill', async () => {
  await scene.database.query(
    `update waybill.inbox set status = 'discarded', processed_at = now(), claim_token = null, lease_until = null, next_attempt_at = null where status in ('pending', 'running', 'waiting', 'blocked')`,
  );
  const [plan] = await type('Remove Waybill');
  expect(plan).toContain('To be removed');
  expect(await scene.database.query(`select from pg_namespace where nspname = 'waybill'`)).toEqual([]);
  expect(await scene.slot()).toBeUndefined();
});

test('every task of the runbook was done, and there are no others', () => {
  expect([...commands.keys()]).toEqual([...done]);
  expect(commands.size).toBe(11);
});
