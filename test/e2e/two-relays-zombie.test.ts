import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { sharedPostgres } from '../support/database.js';
import { startFaultProxy } from '../support/fault-proxy.js';
import { EXCHANGE, outboxStage, tally, type OutboxStage } from '../support/outbox-stage.js';
import { killRelays, startRelay, type RelayProcess } from '../support/relay.js';
import { until } from '../support/waiting.js';

const WINDOW = 100;

describe('two relays: a leader that was stopped comes back', () => {
  let stage: OutboxStage;
  let old: RelayProcess;

  beforeEach(async () => {
    stage = await outboxStage();
    // Both servers give the silent one up after about two seconds.
    await stage.database.query(`alter database ${stage.database.name} set wal_sender_timeout = '2s'`);
  });
  afterEach(async () => {
    old.signal('SIGCONT');
    await killRelays();
    await stage.drop();
  });

  /** The routing key says which of the two has published a message. */
  function start(who: string, databaseUrl = stage.database.url): RelayProcess {
    return startRelay({
      databaseUrl,
      brokerUrl: stage.vhost.url,
      env: {
        WAYBILL_BROKER_HEARTBEAT: '1s',
        WAYBILL_RELAY_MAX_IN_FLIGHT: String(WINDOW),
        WAYBILL_RELAY_ROUTING_KEY: who,
      },
    });
  }

  it('F116 F117 O8 SIGSTOP under load, takeover, SIGCONT: the old one publishes nothing beside the new one', async () => {
    old = start('old');
    await old.waitForPhase('streaming');
    const load = stage.write(4_000);
    await until(async () => (await stage.pending()) > 0, { what: 'the load to run' });
    await stage.database.query('select 1');
    old.signal('SIGSTOP');
    const next = start('new');
    await next.waitForPhase('streaming', 40_000);
    const arrived = async (): Promise<number> =>
      (await stage.broker((channel) => channel.checkQueue(stage.queue))).messageCount;
    const before = await arrived();
    old.signal('SIGCONT');
    await old.waitForPhase('standby', 40_000);
    const written = await load;
    await stage.emptied();
    expect(await arrived()).toBeGreaterThan(before);
    expect(next.phase()).toBe('streaming');
    expect(await next.stop()).toBe(0);
    await old.waitForPhase('streaming');
    expect(await old.stop()).toBe(0);
    const messages = await stage.taken();
    const publishers = messages.map((message) => message.routingKey);
    expect(publishers.lastIndexOf('old')).toBeLessThan(publishers.indexOf('new'));
    const result = tally(written, messages);
    expect(result).toMatchObject({ lost: 0, phantom: 0, inOrder: true });
    expect(result.duplicates).toBeLessThanOrEqual(5 * WINDOW);
  });

  it('F117 O3 O6 its settle comes after the takeover: nothing is deleted, the checkpoint stays', async () => {
    const postgres = await startFaultProxy({ targetPort: sharedPostgres().port });
    old = start('old', postgres.url(stage.database.url));
    await old.waitForPhase('streaming');
    const settle = postgres.at(
      (unit) => unit.names.includes('pg.client.parse') && unit.body.includes('delete from'),
      1,
      'stall-before',
    );
    await stage.write(20);
    await settle;
    old.signal('SIGSTOP');
    // From here on no queue takes the rows: the new one keeps them in the table, and there they must stay.
    await stage.broker((channel) => channel.unbindQueue(stage.queue, EXCHANGE, '#'));
    const next = start('new');
    await next.waitForPhase('streaming', 40_000);
    await until(async () => (await stage.pending('scheduled')) === 20, { what: 'the rows to wait', withinMs: 20_000 });
    const answers = postgres.count('pg.server.data_row');
    postgres.resume();
    await until(() => postgres.count('pg.server.data_row') > answers, { what: 'the answer to the old settle' });
    expect(await stage.pending()).toBe(20);
    old.signal('SIGCONT');
    await old.waitForPhase('standby', 40_000);
    expect(await stage.pending()).toBe(20);
    await stage.broker((channel) => channel.bindQueue(stage.queue, EXCHANGE, '#'));
    await stage.emptied();
    expect(next.phase()).toBe('streaming');
    expect(next.log.filter((line) => line.level === 'error')).toEqual([]);
    expect(await next.stop()).toBe(0);
    const keys = (await stage.taken()).map((message) => message.routingKey);
    expect(keys.filter((key) => key === 'new')).toHaveLength(20);
    await old.stop();
    await postgres.close();
  });
});
