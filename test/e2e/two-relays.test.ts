import pg from 'pg';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { sharedRabbit } from '../support/broker.js';
import { sharedPostgres } from '../support/database.js';
import { startFaultProxy } from '../support/fault-proxy.js';
import { outboxStage, tally, type OutboxStage } from '../support/outbox-stage.js';
import { killRelays, startRelay } from '../support/relay.js';
import { until } from '../support/waiting.js';

const WINDOW = 100;
const noLoss = { lost: 0, phantom: 0, differing: [] };

/** As an operator would: nobody may be connected to the original while it is copied. */
async function copyDatabase(from: string, to: string): Promise<void> {
  const admin = new pg.Client({ connectionString: sharedPostgres().url() });
  await admin.connect();
  try {
    await admin.query('select pg_terminate_backend(pid) from pg_stat_activity where datname = $1', [from]);
    await until(async () => (await sharedPostgres().createDatabase(to, from), true), { what: 'the copy' });
  } finally {
    await admin.end();
  }
}

describe('two relays on one schema', () => {
  let stage: OutboxStage;

  beforeEach(async () => {
    stage = await outboxStage();
  });
  afterEach(async () => {
    await killRelays();
    await stage.drop();
  });

  const start = (env: Record<string, string> = {}, urls: { databaseUrl?: string; brokerUrl?: string } = {}) =>
    startRelay({
      databaseUrl: stage.database.url,
      brokerUrl: stage.vhost.url,
      ...urls,
      env: { WAYBILL_RELAY_MAX_IN_FLIGHT: String(WINDOW), ...env },
    });
  const record = async (): Promise<{ epoch: number; holder: string } | undefined> =>
    (await stage.database.query<{ epoch: number; holder: string }>('select epoch::int, holder from waybill.relay'))[0];

  it('F117 one works and one stands by without a crash loop; it takes over within seconds of a kill -9', async () => {
    const first = start();
    await first.waitForPhase('streaming');
    const second = start();
    await second.waitForPhase('standby');
    const line = await second.waitForLog((each) => each.msg.startsWith('standing by'), 'who works');
    expect(line['holder']).toMatch(new RegExp(`:${first.pid}$`));
    const before = await stage.write(500);
    await stage.emptied();
    expect(second.phase()).toBe('standby');
    expect(second.log.filter((each) => each.level === 'warn' || each.level === 'error')).toEqual([]);

    const load = stage.write(3_000);
    await until(async () => (await stage.pending()) > 0, { what: 'the load to run' });
    await first.kill9();
    await second.waitForPhase('streaming', 15_000);
    const written = [...before, ...(await load)];
    await stage.emptied();
    expect((await record())?.epoch).toBe(2);
    expect((await record())?.holder).toMatch(new RegExp(`:${second.pid}$`));
    expect(await second.stop()).toBe(0);
    const result = tally(written, await stage.taken());
    expect(result).toMatchObject(noLoss);
    expect(result.duplicates).toBeLessThanOrEqual(5 * WINDOW);
  });

  it('F117 F112 a rolling deployment: the old one drains, the new one takes over, nothing comes twice, order stays', async () => {
    const first = start();
    await first.waitForPhase('streaming');
    const second = start();
    await second.waitForPhase('standby');
    const load = stage.write(3_000);
    await until(async () => (await stage.pending()) > 0, { what: 'the load to run' });
    expect(await first.stop()).toBe(0);
    await second.waitForPhase('streaming', 15_000);
    const written = await load;
    await stage.emptied();
    expect(await second.stop()).toBe(0);
    expect(tally(written, await stage.taken())).toEqual({ ...noLoss, duplicates: 0, inOrder: true });
  });

  it('F112 SIGTERM of one that stands by ends it at once with exit code 0', async () => {
    const first = start();
    await first.waitForPhase('streaming');
    const second = start();
    await second.waitForPhase('standby');
    expect(await second.stop()).toBe(0);
    expect(first.phase()).toBe('streaming');
  });

  it('F117 one that stands by asks for the lock queue ever more rarely: RabbitMQ logs each refusal as an error', async () => {
    const first = start();
    await first.waitForPhase('streaming');
    const proxy = await startFaultProxy({ targetPort: sharedRabbit().port });
    const refusal = (nth: number): Promise<number> =>
      proxy.at('amqp.server.channel.close', nth, () => undefined).then(() => performance.now());
    try {
      const refusedAtMs = Promise.all([refusal(1), refusal(5), refusal(6)]);
      const second = start({}, { brokerUrl: proxy.url(stage.vhost.url) });
      await second.waitForPhase('standby');
      const [firstMs, fifthMs, sixthMs] = await refusedAtMs;
      // Soon at first: most deployments overlap for moments.
      expect(fifthMs - firstMs).toBeLessThan(12_000);
      expect(sixthMs - fifthMs).toBeGreaterThan(2_400);
      expect(await second.stop()).toBe(0);
    } finally {
      await proxy.close();
    }
  });

  it('O8 fact 73 a lock queue that an operator deletes: publishing stops at once, then the relay takes it again', async () => {
    const proxy = await startFaultProxy({ targetPort: sharedRabbit().port });
    const relay = start({}, { brokerUrl: proxy.url(stage.vhost.url) });
    await relay.waitForPhase('streaming');
    let late = 0;
    let lost = false;
    proxy.tap(({ names: [name] }) => {
      // The broker tells the consumer; a new connection begins with the protocol header.
      if (name === 'amqp.server.basic.cancel') lost = true;
      if (name === 'amqp.client.protocol-header') lost = false;
      if (name === 'amqp.client.basic.publish' && lost) late += 1;
    });
    const load = stage.write(2_000);
    await until(async () => (await stage.pending()) > 0, { what: 'the load to run' });
    const queues = await stage.vhost.server.ctl('list_queues', '-p', stage.vhost.name, 'name');
    const lockQueue = queues.split('\n').find((name) => name.startsWith('waybill.lock.')) ?? '';
    // Why eval: an exclusive queue can be deleted by its own connection, or by an operator on the node.
    await stage.vhost.server.ctl(
      'eval',
      `{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"${stage.vhost.name}">>, queue, <<"${lockQueue}">>)), rabbit_amqqueue:delete(Q, false, false, <<"test">>).`,
    );
    const line = await relay.waitForLog((each) => each.msg.startsWith('the relay lost its place'), 'the loss');
    expect(line['err']).toMatchObject({ code: 'WAYBILL_LOCK_LOST' });
    // What was under way when the broker told it.
    expect(late).toBeLessThanOrEqual(2 * WINDOW);
    const written = await load;
    await relay.waitForPhase('streaming');
    await stage.emptied();
    expect((await record())?.epoch).toBe(2);
    expect(await relay.stop()).toBe(0);
    const result = tally(written, await stage.taken());
    expect(result).toMatchObject(noLoss);
    expect(result.duplicates).toBeLessThanOrEqual(5 * WINDOW);
    await proxy.close();
  });

  it('F130 F56 a staging copy with the broker of production stands by, says who works, and publishes nothing', async () => {
    const first = start();
    await first.waitForPhase('streaming');
    expect(await first.stop()).toBe(0);
    const copy = `${stage.database.name}_staging`;
    const postgres = stage.database.server;
    await copyDatabase(stage.database.name, copy);
    await until(() => stage.database.query('select 1'), { what: 'the connection of the test to be made anew' });
    try {
      const production = start();
      await production.waitForPhase('streaming');
      const staging = start({}, { databaseUrl: postgres.url(copy) });
      await staging.waitForPhase('standby');
      const line = await staging.waitForLog((each) => each.msg.startsWith('standing by'), 'who works');
      // The copy knows the holder of the moment at which it was made.
      expect(line).toMatchObject({ holder: expect.stringMatching(new RegExp(`:${first.pid}$`)) as unknown });
      expect(line['lockQueue']).toMatch(/^waybill\.lock\..*\.default$/);
      const written = await stage.write(20);
      await stage.emptied();
      expect(staging.phase()).toBe('standby');
      expect(await staging.stop()).toBe(0);
      expect(await production.stop()).toBe(0);
      const arrived = (await stage.taken()).filter(({ id }) => written.some((row) => row.id === id));
      expect(tally(written, arrived)).toEqual({ ...noLoss, duplicates: 0, inOrder: true });
    } finally {
      await killRelays();
      await postgres.dropDatabase(copy);
    }
  });
});
