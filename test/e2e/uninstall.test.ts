import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, expect, it } from 'vitest';
import type { CliContext } from '../../src/cli/context.js';
import { runCli } from '../../src/cli/program.js';
import { buildProgram, runProgram } from '../integration/built-program.js';
import { relayScene, type RelayScene } from '../support/relay-scene.js';
import { killRelays, startRelay } from '../support/relay.js';
import { until } from '../support/waiting.js';

let scene: RelayScene;
let dir: string;

beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), 'waybill-uninstall-'));
  writeFileSync(
    join(dir, 'waybill.yaml'),
    'relay: { exchange: mine.events }\nconsumers: { billing: { queue: billing, bindings: [{ exchange: mine.events, routingKey: "#" }], retry: { delays: [1s] } } }\n',
  );
  await buildProgram();
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));
afterEach(async () => {
  await killRelays();
  await scene.drop();
});

const waybill = (...args: string[]) =>
  runProgram(['--config', join(dir, 'waybill.yaml'), ...args], {
    WAYBILL_DATABASE_URL: scene.database.url,
    WAYBILL_BROKER_URL: scene.vhost.url,
  });

/** Everything that Waybill could have left, by name. */
async function remains(): Promise<string[]> {
  const rows = await scene.database.query<{ name: string }>(
    `select 'slot ' || slot_name as name from pg_replication_slots where database = current_database()
     union all select 'publication ' || pubname from pg_publication
     union all select 'schema ' || nspname from pg_namespace where nspname = 'waybill'
     union all select 'type ' || typname from pg_type where typname like 'waybill%' or typname like 'inbox%'
     order by 1`,
  );
  const list = async (what: string): Promise<string[]> =>
    (await scene.vhost.server.ctl(`list_${what}`, '-q', '-p', scene.vhost.name, 'name', '--no-table-headers'))
      .split('\n')
      .map((name) => name.trim())
      .filter(
        (name) => name !== '' && !name.startsWith('amq.') && !name.startsWith('probe') && name !== 'waybill.events',
      );
  return [...rows.map(({ name }) => name), ...(await list('queues')), ...(await list('exchanges'))];
}

it('F10: refuses while a relay runs, then while rows are pending; afterwards no slot, publication, queue or schema is left', async () => {
  scene = await relayScene();
  await scene.topology((channel) => channel.assertExchange('mine.events', 'topic', { durable: true }));
  const relay = scene.start({ env: { WAYBILL_RELAY_EXCHANGE: 'mine.events' } });
  await relay.waitForPhase('streaming');
  expect((await waybill('topology', 'apply', '--yes')).code).toBe(0);
  expect((await remains()).length).toBeGreaterThan(7);

  const busy = await waybill('uninstall', '--confirm', 'waybill', '--force');
  expect(busy.code).toBe(1);
  expect(busy.out).toContain('STANDS AGAINST IT');
  expect(busy.err).toContain('WAYBILL_STILL_IN_USE');
  expect(busy.err).toMatch(/it reads slot .*; a relay is running: it holds the lock queue/);
  expect(await relay.stop()).toBe(0);
  await scene.slotReleased();

  await scene.publish(3);
  await scene.database.query('create schema mine');
  await scene.database.query(
    'create table waybill.mine (n int); create view mine.pending as select id from waybill.outbox',
  );
  await scene.database.query(
    `create function mine.on_event(m waybill.inbox_message) returns void language sql as 'select null::void'`,
  );
  const before = await remains();
  const pending = await waybill('uninstall', '--confirm', 'waybill');
  expect(pending.code).toBe(1);
  const told = pending.out.replaceAll(/\s+/g, ' ');
  for (const loss of [
    '3 rows of the outbox are not published',
    'waybill.mine is not of Waybill',
    'function mine.on_event(waybill.inbox_message) uses the schema',
    'view mine.pending uses the schema',
  ]) {
    expect(told).toContain(loss);
  }
  expect((await waybill('uninstall', '--force')).code).toBe(2);
  expect((await waybill('uninstall', '--force', '--confirm', 'waybil')).code).toBe(2);
  expect((await waybill('uninstall', '--dry-run')).code).toBe(4);
  expect(await remains()).toEqual(before);

  const done = await waybill('uninstall', '--force', '--confirm', 'waybill');
  expect(done).toMatchObject({ code: 0, err: '' });
  for (const line of done.out.split('\n')) expect(line.length).toBeLessThanOrEqual(80);
  // Somebody else may publish to the exchanges, which RabbitMQ does not tell.
  expect((await remains()).sort()).toEqual([
    'mine.events',
    'waybill.delay.1000ms',
    'waybill.delay.1000ms',
    'waybill.dlx',
  ]);
  expect(done.out).toContain('waybill uninstall --shared --confirm waybill');
  // Again: there is nothing, and that is well; with what all installations share, nothing at all.
  expect((await waybill('uninstall', '--confirm', 'waybill')).code).toBe(0);
  expect((await waybill('uninstall', '--shared', '--confirm', 'waybill')).code).toBe(0);
  expect(await remains()).toEqual([]);
});

it('what another installation on the virtual host uses stays, with the timers in it: delay queues, the dead-letter exchange', async () => {
  scene = await relayScene();
  const delays = 'retry: { delays: [1h] }';
  writeFileSync(join(dir, 'one.yaml'), `relay: false\nconsumers: { billing: { queue: billing, ${delays} } }\n`);
  writeFileSync(join(dir, 'other.yaml'), `relay: false\nconsumers: { mails: { queue: mails, ${delays} } }\n`);
  const run = (file: string, ...args: string[]) =>
    runProgram(['--config', join(dir, file), ...args], {
      WAYBILL_DATABASE_URL: scene.database.url,
      WAYBILL_BROKER_URL: scene.vhost.url,
    });
  for (const file of ['one.yaml', 'other.yaml']) expect((await run(file, 'topology', 'apply', '--yes')).code).toBe(0);
  const timers = async (): Promise<number> => {
    let count = 0;
    await scene.topology(async (channel) => {
      count = (await channel.checkQueue('waybill.delay.3600000ms')).messageCount;
    });
    return count;
  };
  await scene.topology((channel) => {
    channel.publish('waybill.delay.3600000ms', 'waybill.retry.mails', Buffer.from('{}'));
    return channel.checkExchange('waybill.dlx');
  });
  await until(async () => (await timers()) === 1, { what: 'the timer of the other one' });

  // It is no loss of this one, so it needs no --force.
  const plan = await run('one.yaml', 'uninstall', '--dry-run', '--json');
  expect(JSON.parse(plan.out)).toMatchObject({
    losses: [],
    broker: { shared: ['waybill.delay.3600000ms', 'waybill.dlx'] },
  });
  const done = await run('one.yaml', 'uninstall', '--force', '--confirm', 'waybill', '--json');
  expect(JSON.parse(done.out)).toMatchObject({
    queues: ['billing.dlq', 'billing', 'waybill.retry.billing'],
    leftExchanges: [],
    leftShared: ['waybill.delay.3600000ms', 'waybill.dlx'],
  });
  expect(await timers()).toBe(1);
  const missing = (await run('other.yaml', 'topology', 'plan', '--json')).out;
  expect(missing).not.toContain('"missing"');

  // Nobody else is left, somebody says: what waits there is told, and lost only by force.
  expect((await run('one.yaml', 'uninstall', '--shared', '--confirm', 'waybill')).code).toBe(1);
  expect(await timers()).toBe(1);
  expect((await run('one.yaml', 'uninstall', '--shared', '--force', '--confirm', 'waybill')).code).toBe(0);
  expect((await remains()).filter((name) => name.startsWith('waybill.delay'))).toEqual([]);
});

it('what others have declared stays, empty or not; consumers that another configuration has are told with their queues', async () => {
  scene = await relayScene();
  await scene.topology(async (channel) => {
    for (const name of ['theirs', 'theirs.dlq', 'waybill.retry.guest'])
      await channel.assertQueue(name, { durable: true });
  });
  const files = {
    'all.yaml': 'relay: false\nconsumers: { billing: { queue: billing }, guest: { queue: theirs, topology: none } }\n',
    'less.yaml': 'relay: false\nconsumers: { guest: { queue: theirs, topology: none } }\n',
  };
  for (const [name, text] of Object.entries(files)) writeFileSync(join(dir, name), text);
  const environment = { WAYBILL_DATABASE_URL: scene.database.url, WAYBILL_BROKER_URL: scene.vhost.url };
  const run = (file: string, ...args: string[]) => runProgram(['--config', join(dir, file), ...args], environment);
  const daemon = startRelay({
    databaseUrl: scene.database.url,
    brokerUrl: scene.vhost.url,
    env: { WAYBILL_CONFIG: join(dir, 'all.yaml') },
  });
  await until(() => daemon.log.filter(({ msg }) => msg === 'consuming').length === 2, { what: 'both consumers' });
  expect(await daemon.stop()).toBe(0);

  const less = await run('less.yaml', 'uninstall', '--confirm', 'waybill', '--json');
  expect(less.code).toBe(1);
  expect(less.err).toContain('consumer billing is registered and not in this configuration');
  expect(less.err).toContain('(billing, billing.dlq, waybill.retry.billing)');

  const done = await run('all.yaml', 'uninstall', '--confirm', 'waybill', '--json');
  expect(JSON.parse(done.out)).toMatchObject({
    queues: ['billing.dlq', 'billing', 'waybill.retry.billing'],
    leftForeign: expect.arrayContaining(['queue theirs', 'queue theirs.dlq', 'queue waybill.retry.guest']) as string[],
  });
  await scene.topology((channel) => channel.checkQueue('theirs'));
});

it('a slot of another database is never touched; an exchange that others are bound to stays', async () => {
  scene = await relayScene();
  const relay = scene.start();
  await relay.waitForPhase('streaming');
  expect(await relay.stop()).toBe(0);
  await scene.slotReleased();
  const other = await relayScene();
  try {
    const theirs = other.start();
    await theirs.waitForPhase('streaming');
    // As if the record had been changed by hand: the name is another database's.
    const slot = await other.slot();
    await scene.database.query(`insert into waybill.relay (name, slot) values ('wrong', $1)`, [slot?.name]);
    const run = await runProgram(['uninstall', '--confirm', 'waybill', '--json'], {
      WAYBILL_DATABASE_URL: scene.database.url,
      WAYBILL_BROKER_URL: scene.vhost.url,
    });
    expect(run.code).toBe(0);
    expect(JSON.parse(run.out)).toMatchObject({ leftShared: ['waybill.events'], exchanges: [] });
    const shared = await runProgram(['uninstall', '--shared', '--confirm', 'waybill', '--json'], {
      WAYBILL_DATABASE_URL: scene.database.url,
      WAYBILL_BROKER_URL: scene.vhost.url,
    });
    expect(JSON.parse(shared.out)).toMatchObject({ leftExchanges: ['waybill.events'], exchanges: [] });
    expect(await other.slot()).toMatchObject({ active: true });
    expect(await theirs.stop()).toBe(0);
  } finally {
    await other.drop();
  }
});

it('on a terminal the name of the schema must be typed', async () => {
  scene = await relayScene();
  let answer = 'yes';
  let text = '';
  const context: CliContext = {
    environment: { WAYBILL_DATABASE_URL: scene.database.url, WAYBILL_BROKER_URL: scene.vhost.url },
    readFile: () => '',
    exists: () => false,
    writeNew: () => undefined,
    out: (more) => (text += more),
    err: (more) => (text += more),
    outIsTerminal: true,
    ask: () => Promise.resolve(answer),
    onSignal: () => undefined,
  };
  expect(await runCli(['uninstall'], '1', context)).toBe(2);
  expect(text).toContain('That is not waybill; nothing was removed.');
  answer = 'waybill';
  expect(await runCli(['uninstall'], '1', context)).toBe(0);
  await until(async () => (await remains()).length === 0, { what: 'everything to be gone' });
});
