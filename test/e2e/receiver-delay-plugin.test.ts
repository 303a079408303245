import { execFile } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { buildProgram, runProgram, type Finished } from '../integration/built-program.js';
import { startBrokerProbe } from '../support/broker-probe.js';
import { LEDGER } from '../support/ledger.js';
import { receiverScene, type ReceiverScene } from '../support/receiver-scene.js';
import { killRelays, type LogLine, type RelayProcess } from '../support/relay.js';
import { hasPlugin } from '../support/servers/find-rabbitmq.js';
import type { RabbitServer } from '../support/servers/rabbit-server.js';
import { startRabbit } from '../support/servers/rabbit.js';
import { until } from '../support/waiting.js';

const PLUGIN = 'rabbitmq_delayed_message_exchange';
const PLUGIN_WANTED = `
delayed:
  queue: delayed.in
  handler: { kind: sql, function: billing.on_event }
  retry: { delays: [500ms, 1s], maxAttempts: 4 }
  delay: x-delayed-message
`;
const NEIGHBOUR = `neighbour:
  queue: neighbour.in
  handler: { kind: sql, function: billing.on_event }
  retry: { delays: [500ms, 1s], maxAttempts: 4 }
`;

let rabbit: RabbitServer | undefined;

const saysThatItIsMissing = ({ level, err }: LogLine): boolean =>
  level === 'error' && (err as { code?: string } | undefined)?.code === 'WAYBILL_DELAY_PLUGIN_MISSING';
const connectionsEnded = ({ log }: RelayProcess): LogLine[] =>
  log.filter(({ msg }) => /^the connection ".*" ended$/.test(msg));

async function bothConsume(daemon: RelayProcess): Promise<void> {
  await until(() => daemon.log.filter(({ msg }) => msg === 'consuming').length === 2, { what: 'both consumers' });
}

describe('a broker without the delayed-message plugin (fact 44)', () => {
  let scene: ReceiverScene;
  let dir: string;

  beforeAll(buildProgram);
  beforeEach(async () => {
    dir = mkdtempSync(join(tmpdir(), 'waybill-delay-'));
    scene = await receiverScene();
    await scene.database.query(LEDGER);
  });
  afterEach(async () => {
    rmSync(dir, { recursive: true, force: true });
    await killRelays();
    await scene.drop();
  });

  it('the daemon names the key and the mend, wakes the retries itself, and holds up nobody', async () => {
    const daemon = scene.start(PLUGIN_WANTED + NEIGHBOUR);
    const told = await daemon.waitForLog(saysThatItIsMissing, 'the error');
    expect(told).toMatchObject({
      consumer: 'delayed',
      msg: 'the delay exchange: cannot go on until this is mended',
      err: { message: expect.stringContaining('consumers.delayed.delay: x-delayed-message') as string },
    });
    const { hint } = told['err'] as { hint: string };
    expect(hint).toContain(`rabbitmq-plugins enable ${PLUGIN}`);
    expect(hint).toContain('delay: ttl-queues');
    await bothConsume(daemon);
    for (const queue of ['delayed.in', 'neighbour.in']) {
      await scene.send(queue, [
        { messageId: `${queue}-1`, body: '{"fails": 2}' },
        { messageId: `${queue}-2`, body: '{"fails": 0}' },
      ]);
    }
    // 0.5 and 1 s, each up to twice as long; well before a sweep of another process would find them.
    await scene.waitForRows(4, "status = 'done'", 10_000);
    // A second look at the broker must not touch what the consumers share either.
    await until(() => daemon.log.filter(saysThatItIsMissing).length >= 2, { what: 'a second look', withinMs: 30_000 });
    expect(connectionsEnded(daemon)).toEqual([]);
    expect(daemon.log.filter(({ msg }) => msg === 'consuming').length).toBe(2);
    expect(await daemon.stop()).toBe(0);
    expect(daemon.noise).toEqual([]);
  });

  it('topology and doctor tell it, and nothing is declared', async () => {
    const file = join(dir, 'waybill.yaml');
    writeFileSync(file, `relay: false\nconsumers:\n${PLUGIN_WANTED.replaceAll(/^/gm, '  ')}\n`);
    const waybill = (...args: string[]): Promise<Finished> =>
      runProgram(['--config', file, ...args], {
        WAYBILL_DATABASE_URL: scene.database.url,
        WAYBILL_BROKER_URL: scene.vhost.url,
      });
    const plan = await waybill('topology', 'plan', '--check');
    expect(plan.code).toBe(4);
    expect(plan.out).toMatch(/NO PLUGIN +exchange +waybill\.delay +x-delayed-message\n/);
    expect(plan.out).toContain(`rabbitmq-plugins enable ${PLUGIN}`);
    const applied = await waybill('topology', 'apply', '--yes');
    expect(applied.code).toBe(1);
    expect(applied.err).toContain('WAYBILL_DELAY_PLUGIN_MISSING');
    expect(applied.err).toContain('consumers.delayed.delay');
    const doctor = await waybill('doctor');
    expect(doctor.code).toBe(4);
    expect(doctor.out).toContain(`rabbitmq-plugins enable ${PLUGIN}`);
    expect(await scene.depth('delayed.in')).toBeUndefined();
  });
});

// Why it may be skipped, unlike tests whose server is missing: the plugin is optional, comes with no RabbitMQ and is not
// among Debian's packages. What it would have shown is said.
describe('a broker with the delayed-message plugin', () => {
  let scene: ReceiverScene;

  beforeAll(async () => {
    if (await hasPlugin(PLUGIN)) rabbit = await startRabbit({ own: true, plugins: [PLUGIN] });
  });
  afterAll(() => rabbit?.close());
  beforeEach(async ({ skip }) => {
    if (!rabbit) skip(`${PLUGIN} is not installed here: delay: x-delayed-message was NOT tried (test/README says how)`);
    scene = await receiverScene({ rabbit: rabbit! });
    await scene.database.query(LEDGER);
  });
  afterEach(async () => {
    if (!rabbit) return;
    await killRelays();
    await scene.drop();
  });

  it('retries come back through it when they are due, and only to their consumer', async () => {
    const daemon = scene.start(PLUGIN_WANTED + NEIGHBOUR);
    await bothConsume(daemon);
    await until(() => exchangeIsThere(scene), { what: 'the exchange of the plugin' });
    const timers = await startBrokerProbe({
      url: scene.vhost.url,
      exchange: 'waybill.delay',
      routingKey: 'waybill.retry.delayed',
    });
    await scene.send(
      'delayed.in',
      Array.from({ length: 20 }, (_, n) => ({ messageId: `m-${n}`, body: `{"fails": ${n % 4}}` })),
    );
    await scene.waitForRows(20, "status = 'done'", 30_000);
    // 5 messages each with 1, 2 and 3 retries.
    await timers.waitFor(30);
    expect(timers.messages.length).toBe(30);
    for (const { headers } of timers.messages) expect(Math.abs(Number(headers['x-delay']))).toBeGreaterThan(0);
    const took = await scene.database.query<{ ms: number }>(
      `select extract(epoch from processed_at - received_at)::float8 * 1000 as ms from waybill.inbox where failures = 3`,
    );
    expect(took.length).toBe(5);
    // 0.5 + 1 + 1 s, each up to twice as long, and what the way takes.
    for (const { ms } of took) {
      expect(ms).toBeGreaterThanOrEqual(2_500);
      expect(ms).toBeLessThan(5_000 * 1.2);
    }
    await timers.close();
    expect(await daemon.stop()).toBe(0);
    expect(daemon.noise).toEqual([]);
  });

  it('disabled under a running daemon, and enabled again: only its consumer is told, nothing is lost', async () => {
    const daemon = scene.start(PLUGIN_WANTED + NEIGHBOUR);
    await bothConsume(daemon);
    await until(() => exchangeIsThere(scene), { what: 'the exchange of the plugin' });
    const failOnce = async (queue: string): Promise<void> => {
      await scene.send(queue, [{ messageId: `${queue}-${sent++}`, body: '{"fails": 1}' }]);
    };
    let sent = 0;
    await plugins('disable', PLUGIN);
    await failOnce('delayed.in');
    await failOnce('neighbour.in');
    // The timer is lost; the row is found.
    await scene.waitForRows(2, "status = 'done'", 20_000);
    await daemon.waitForLog(saysThatItIsMissing, 'the error', 45_000);

    await plugins('enable', PLUGIN);
    const timers = await startBrokerProbe({
      url: scene.vhost.url,
      exchange: 'waybill.delay',
      routingKey: 'waybill.retry.delayed',
    });
    await until(
      async () => {
        await failOnce('delayed.in');
        return timers.messages.length > 0;
      },
      { what: 'timers through the plugin again', everyMs: 500, withinMs: 45_000 },
    );
    await timers.close();
    await scene.waitForRows(sent, "status = 'done'", 20_000);
    const errors = daemon.log.filter(({ level }) => level === 'error');
    expect(new Set(errors.map(({ consumer, msg }) => `${String(consumer)}: ${msg}`))).toEqual(
      new Set(['delayed: the delay exchange: cannot go on until this is mended']),
    );
    expect(connectionsEnded(daemon)).toEqual([]);
    expect(await daemon.stop()).toBe(0);
    expect(daemon.noise).toEqual([]);
  });
});

/** Runs rabbitmq-plugins on the running node. */
async function plugins(...args: string[]): Promise<void> {
  const { scripts, env } = rabbit!.node!;
  await promisify(execFile)(join(scripts, 'rabbitmq-plugins'), args, { env, cwd: env['HOME'] });
}

/** Looks without declaring. */
async function exchangeIsThere(scene: ReceiverScene): Promise<boolean> {
  return scene
    .broker((channel) => channel.checkExchange('waybill.delay'))
    .then(
      () => true,
      () => false,
    );
}
