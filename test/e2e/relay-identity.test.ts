import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { runProgram } from '../integration/built-program.js';
import { freshDatabase } from '../support/database.js';
import { freshVhost, type FreshVhost } from '../support/broker.js';
import { outboxStage, type OutboxStage } from '../support/outbox-stage.js';
import { startFaultProxy } from '../support/fault-proxy.js';
import { startBrokerProbe } from '../support/broker-probe.js';
import { killRelays, startRelay } from '../support/relay.js';

describe('the servers that a relay works with', () => {
  let stage: OutboxStage;
  let other: FreshVhost;

  beforeEach(async () => {
    [stage, other] = await Promise.all([outboxStage(), freshVhost()]);
  });
  afterEach(async () => {
    await killRelays();
    await Promise.all([stage.drop(), other.drop()]);
  });

  it('F56 another virtual host: it halts and publishes nothing, and the command of its hint mends that', async () => {
    const first = startRelay({ databaseUrl: stage.database.url, brokerUrl: stage.vhost.url });
    await first.waitForPhase('streaming');
    expect(await first.stop()).toBe(0);
    const [row] = await stage.write(1);

    const moved = startRelay({ databaseUrl: stage.database.url, brokerUrl: other.url });
    const line = await moved.waitForLog((each) => each.level === 'error', 'the reason why it halts');
    const { code, message, hint } = line['err'] as { code: string; message: string; hint: string };
    expect(code).toBe('WAYBILL_IDENTITY_CHANGED');
    expect(message).toContain(stage.vhost.name);
    expect(message).toContain(other.name);
    expect(moved.phase()).not.toBe('streaming');
    expect(await moved.stop()).toBe(0);
    expect(await stage.pending()).toBe(1);

    const command = /waybill (relay adopt[^.]*)\./.exec(hint)?.[1] ?? '';
    const environment = { WAYBILL_DATABASE_URL: stage.database.url, WAYBILL_BROKER_URL: other.url };
    const adopted = await runProgram([...command.trim().split(' '), '--yes'], environment);
    expect(adopted).toMatchObject({ code: 0, out: expect.stringContaining('adopted') as unknown });

    const again = startRelay({ databaseUrl: stage.database.url, brokerUrl: other.url });
    // The exchange is made by the relay; a row from before may find no queue and waits its second.
    await again.waitForPhase('streaming');
    const probe = await startBrokerProbe({ url: other.url, exchange: 'waybill.events' });
    await stage.emptied();
    expect(probe.ids()).toEqual([row?.id]);
    await probe.close();
    expect(await again.stop()).toBe(0);
  });

  it('F40 a pooler that does not take replication is told as that, by relay and doctor; replicationUrl goes past it', async () => {
    const { server } = stage.database;
    const pooler = await startFaultProxy({ targetHost: server.host, targetPort: server.port });
    // What PgBouncer before 1.23 answers to such a start.
    const fields = Buffer.from('SFATAL\0C08P01\0Munsupported startup parameter: replication\0\0', 'latin1');
    const head = Buffer.from([0x45, 0, 0, 0, 0]);
    head.writeUInt32BE(4 + fields.length, 1);
    pooler.every(({ names, body }) => names.includes('pg.client.startup') && body.includes('replication\0'), {
      answer: Buffer.concat([head, fields]),
    });
    const databaseUrl = pooler.url(stage.database.url);
    const environment = { WAYBILL_DATABASE_URL: databaseUrl, WAYBILL_BROKER_URL: stage.vhost.url };
    expect((await runProgram(['doctor'], environment)).out).toMatch(/replication protocol[^]*replicationUrl/);
    const refused = startRelay({ databaseUrl, brokerUrl: stage.vhost.url });
    const { err } = await refused.waitForLog((each) => each.level === 'error', 'the reason');
    expect(err).toMatchObject({
      code: 'WAYBILL_DATABASE_UNSUITABLE',
      hint: expect.stringContaining('set database.replicationUrl to the server itself') as unknown,
    });
    expect(await refused.stop()).toBe(0);
    const env = { WAYBILL_DATABASE_REPLICATION_URL: stage.database.url };
    const relay = startRelay({ databaseUrl, brokerUrl: stage.vhost.url, env });
    await relay.waitForPhase('streaming');
    await stage.write(3);
    await stage.emptied();
    expect(await relay.stop()).toBe(0);
    await pooler.close();
  });

  it('3.8 a replicationUrl that leads to another database: nothing is made there, and doctor says it beforehand', async () => {
    const elsewhere = await freshDatabase();
    try {
      const environment = {
        WAYBILL_DATABASE_URL: stage.database.url,
        WAYBILL_DATABASE_REPLICATION_URL: elsewhere.url,
        WAYBILL_BROKER_URL: stage.vhost.url,
      };
      const looked = await runProgram(['doctor'], environment);
      expect(looked.code).toBe(4);
      expect(looked.out).toMatch(/FAIL +replication-connection: [^]*correct database\.replicationUrl/);
      const relay = startRelay({
        databaseUrl: stage.database.url,
        brokerUrl: stage.vhost.url,
        env: { WAYBILL_DATABASE_REPLICATION_URL: elsewhere.url },
      });
      const line = await relay.waitForLog((each) => each.level === 'error', 'the reason why it halts');
      expect(JSON.stringify(line)).toContain('WAYBILL_DATABASE_UNSUITABLE');
      expect(await elsewhere.query('select from pg_replication_slots where database = current_database()')).toEqual([]);
      expect(await relay.stop()).toBe(0);
    } finally {
      await elsewhere.drop();
    }
  });
});
