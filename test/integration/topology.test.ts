import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as amqp from 'amqplib';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { outboxStage, type OutboxStage } from '../support/outbox-stage.js';
import { freshVhost, type FreshVhost } from '../support/broker.js';
import { killRelays, startRelay } from '../support/relay.js';
import { until } from '../support/waiting.js';
import { buildProgram, runProgram } from './built-program.js';

let dir: string;
let vhost: FreshVhost;
let stage: OutboxStage;

beforeAll(async () => {
  [stage] = await Promise.all([outboxStage(), buildProgram()]);
  dir = mkdtempSync(join(tmpdir(), 'waybill-topology-'));
  writeFileSync(
    join(dir, 'waybill.yaml'),
    `relay: { exchange: shop.events }
consumers:
  billing:
    queue: billing
    bindings: [{ exchange: shop.events, routingKey: "order.*" }]
    retry: { delays: [1s, 5s] }
    deadLetterQueue: ops.dead
`,
  );
});
afterAll(async () => {
  rmSync(dir, { recursive: true, force: true });
  await stage.drop();
});
beforeEach(async () => {
  vhost = await freshVhost();
});
afterEach(async () => {
  await killRelays();
  await vhost.drop();
});

/** Without a database: none of these commands has anything to do with one. */
const topology = (brokerUrl: string, ...args: string[]) =>
  runProgram(['--config', join(dir, 'waybill.yaml'), 'topology', ...args], { WAYBILL_BROKER_URL: brokerUrl });

async function broker<T>(url: string, use: (channel: amqp.Channel) => Promise<T>): Promise<T> {
  const connection = await amqp.connect(url);
  try {
    const channel = await connection.createChannel();
    channel.on('error', () => undefined);
    return await use(channel);
  } finally {
    await connection.close();
  }
}

test('plan, apply, plan: makes what is missing, and then all fits; a message finds its way', async () => {
  const before = await topology(vhost.url, 'plan', '--check');
  expect(before.code).toBe(4);
  expect(before.out).toMatch(/to make +exchange +shop\.events +topic\n/);
  expect(before.out).toMatch(/to make +queue +billing +queue-type=quorum/);
  expect(before.out).toMatch(/to make +binding +billing +from shop\.events by order\.\*\n/);
  expect(before.out).not.toContain('is bound?');
  for (const line of before.out.split("\n\nThe broker's")[0]?.split('\n') ?? []) {
    expect(line.length).toBeLessThanOrEqual(80);
  }
  expect(await topology(vhost.url, 'apply')).toMatchObject({ code: 2 });
  expect((await topology(vhost.url, 'plan', '--check')).code).toBe(4);
  expect(await topology(vhost.url, 'apply', '--yes')).toMatchObject({ code: 0 });
  const after = await topology(vhost.url, 'plan', '--check', '--json');
  expect(after.code).toBe(0);
  const { steps } = JSON.parse(after.out) as { steps: { kind: string; state: string }[] };
  expect(new Set(steps.filter(({ kind }) => kind !== 'binding').map(({ state }) => state))).toEqual(new Set(['fits']));
  // Nobody can see by AMQP whether they are there, so the plan does not say that they are yet to be made.
  const seen = await topology(vhost.url, 'plan');
  expect(seen.out).toMatch(/is bound\? +binding +billing +from shop\.events by order\.\*\n/);
  expect(seen.out.replaceAll(/\s+/g, ' ')).toContain(
    'AMQP cannot list bindings. `waybill topology apply` declares them',
  );
  expect(seen.out).not.toMatch(/to (make|bind)/);
  for (const line of seen.out.split("\n\nThe broker's")[0]?.split('\n') ?? []) {
    expect(line.length).toBeLessThanOrEqual(80);
  }
  const { messageCount } = await broker(vhost.url, async (channel) => {
    channel.publish('shop.events', 'order.paid', Buffer.from('x'));
    channel.publish('waybill.dlx', 'dead.billing', Buffer.from('x'));
    // The answers come in order, so the messages have been routed by then, but for a quorum queue's own pace.
    return until(
      async () => {
        const found = await channel.checkQueue('ops.dead');
        return found.messageCount === 1 && (await channel.checkQueue('billing')).messageCount === 1 && found;
      },
      { what: 'both messages to arrive' },
    );
  });
  expect(messageCount).toBe(1);
});

test('facts 39, 64: dead letters that were looked at 25 times are still there', async () => {
  expect(await topology(vhost.url, 'apply', '--yes')).toMatchObject({ code: 0 });
  const queues = ['billing.dlq', 'ops.dead'];
  await broker(vhost.url, async (channel) => {
    for (const queue of queues) channel.sendToQueue(queue, Buffer.from('x'), { persistent: true });
    await channel.checkExchange('waybill.dlx');
  });
  // RabbitMQ 4 drops what came more often than the limit of its queue, which is 20 where the queue has none.
  for (let look = 1; look <= 25; look++) {
    for (const queue of queues) {
      const got = broker(vhost.url, (channel) =>
        until(async () => (await channel.get(queue)) || undefined, { what: `look ${look} into ${queue}` }),
      );
      expect((await got).content.toString()).toBe('x');
    }
  }
});

test('F90: what is there with other properties is told, and left as it is', async () => {
  await broker(vhost.url, (channel) =>
    channel.assertQueue('billing', { durable: true, arguments: { 'x-max-length': 5 } }),
  );
  const plan = await topology(vhost.url, 'plan', '--check');
  expect(plan.code).toBe(4);
  expect(plan.out).toContain('DIFFERS: queue billing.');
  const applied = await topology(vhost.url, 'apply', '--yes');
  expect(applied.code).toBe(1);
  expect(applied.err).toContain('WAYBILL_TOPOLOGY_MISMATCH');
  await broker(vhost.url, (channel) =>
    channel.assertQueue('billing', { durable: true, arguments: { 'x-max-length': 5 } }),
  );
});

test('a binding to an exchange of others that is not there says whose matter that is', async () => {
  writeFileSync(
    join(dir, 'other.yaml'),
    `relay: false\nconsumers: { mail: { bindings: [{ exchange: theirs, routingKey: "#" }] } }\n`,
  );
  const other = (...args: string[]) =>
    runProgram(['--config', join(dir, 'other.yaml'), ...args], {
      WAYBILL_DATABASE_URL: stage.database.url,
      WAYBILL_BROKER_URL: vhost.url,
    });
  const plan = await other('topology', 'plan', '--check');
  expect(plan.code).toBe(4);
  expect(plan.out).toMatch(/NO SOURCE +binding +mail +from theirs by #\n/);
  const { out } = await other('doctor', '--json');
  expect((JSON.parse(out) as { findings: unknown[] }).findings).toContainEqual(
    expect.objectContaining({
      id: 'topology',
      severity: 'fail',
      finding: 'queue mail is to be bound from theirs by #, an exchange that is not there',
    }),
  );
  const { code, err } = await other('topology', 'apply', '--yes');
  expect(code).toBe(1);
  expect(err).toContain('declared by them');

  await broker(vhost.url, async (channel) => {
    await channel.assertExchange('theirs', 'fanout');
    await channel.deleteQueue('mail');
  });
  expect((await other('topology', 'plan')).out).toMatch(/to make +binding +mail +from theirs by #\n/);
  expect(await other('topology', 'apply', '--yes')).toMatchObject({
    code: 0,
    out: expect.stringContaining('; 8 bindings declared.') as string,
  });
});

test('the rules for the URL of the broker hold without a database, too', async () => {
  const { code, err } = await topology('amqp://user:secret@broker.example', 'plan');
  expect(code).toBe(2);
  expect(err).toContain('amqp://, which sends the password');
  expect(err).not.toContain('database.url');
});

test('export is imported by rabbitmqctl; then all fits, and the relay runs with no more rights than it names', async () => {
  const { server } = vhost;
  const user = `wb-${vhost.name.slice(-10)}`;
  await server.ctl('add_user', user, 'secret');
  try {
    const file = join(dir, 'definitions.json');
    const exported = await topology(vhost.url, 'export', '--user', user);
    expect(exported).toMatchObject({ code: 0, err: '' });
    writeFileSync(file, exported.out);
    await server.ctl('import_definitions', file);
    const restricted = new URL(vhost.url);
    restricted.username = user;
    restricted.password = 'secret';
    const plan = await topology(restricted.href, 'plan', '--check');
    expect(plan.out).not.toContain('REFUSED');
    expect(plan.code).toBe(0);

    await broker(vhost.url, (channel) => channel.bindQueue('billing', 'shop.events', '#'));
    const relay = startRelay({
      databaseUrl: stage.database.url,
      brokerUrl: restricted.href,
      env: { WAYBILL_RELAY_EXCHANGE: 'shop.events' },
    });
    await relay.waitForPhase('streaming');
    await stage.write(3);
    await stage.emptied();
    expect(await relay.stop()).toBe(0);
    const { messageCount } = await broker(vhost.url, (channel) => channel.checkQueue('billing'));
    expect(messageCount).toBe(3);
    // A right that was not asked for is not there.
    await expect(broker(restricted.href, (channel) => channel.assertExchange('mine', 'topic'))).rejects.toThrow('403');
  } finally {
    await server.ctl('delete_user', user);
  }
});
