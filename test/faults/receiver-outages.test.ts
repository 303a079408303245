import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { LEDGER } from '../support/ledger.js';
import { receiverScene, type ReceiverScene } from '../support/receiver-scene.js';
import { killRelays } from '../support/relay.js';
import { until } from '../support/waiting.js';

const CONSUMER = `
billing:
  handler: { kind: sql, function: billing.on_event, timeout: 60s }
  retry: { delays: [200ms], maxAttempts: 3 }
`;

describe('consumers in trouble', () => {
  let scene: ReceiverScene;

  beforeEach(async () => {
    scene = await receiverScene();
    await scene.database.query(LEDGER);
  });
  afterEach(async () => {
    await killRelays();
    await scene.drop();
  });

  it('F125 a message that takes the consumer down is handled by itself, and is dead after so many times', async () => {
    let started = scene.start(CONSUMER);
    await started.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    await scene.send('billing', [
      { messageId: 'killer', body: '{"amount": 1, "sleep": 60}' },
      ...Array.from({ length: 20 }, (_, n) => ({ messageId: `m-${n}`, body: '{"amount": 1}' })),
    ]);
    const atWork = () =>
      scene.database.query<{ pid: number; query: string }>(
        "select pid, query from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'",
      );
    // Each time the handler takes both the process and its backend down.
    for (let crash = 0; crash < 12; crash += 1) {
      const working = await until(
        async () => {
          const found = await atWork();
          if (found.length > 0) return 'working' as const;
          return (await scene.rows("status = 'dead'")).length > 0 && ('dead' as const);
        },
        { withinMs: 20_000, what: 'the handler to be at work, or the message to be dead' },
      );
      if (working === 'dead') break;
      await started.kill9();
      for (const { pid } of await atWork()) {
        await scene.database.query('select pg_terminate_backend($1)', [pid]);
      }
      await until(async () => (await atWork()).length === 0, { what: 'the backend to be gone' });
      await scene.database.query("update waybill.inbox set lease_until = clock_timestamp() where status = 'running'");
      started = scene.start(CONSUMER);
      await started.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    }
    const [dead] = await scene.waitForRows(1, "status = 'dead'", 30_000);
    expect(dead).toMatchObject({ message_id: 'killer', dead_reason: 'suspect', failures: 0 });
    await scene.waitForRows(20, "status = 'done'", 30_000);
    const booked = await scene.database.query<{ n: number }>(
      'select count(*)::int as n from billing.ledger group by message_id having count(*) > 1',
    );
    expect(booked).toEqual([]);
    expect(await started.stop()).toBe(0);
  });

  it('F37 F120 a role that may not write to the inbox: its messages stay in the queue, and the relay beside it goes on', async () => {
    const { database } = scene;
    const role = `${database.name}_both`;
    const { password } = database.server;
    await database.query(
      `create role ${role} login replication password '${password.replaceAll("'", "''")}';
       grant create on database ${database.name} to ${role};
       grant usage on schema waybill to ${role};
       grant all on all tables in schema waybill to ${role};
       grant all on all sequences in schema waybill to ${role};
       grant execute on all functions in schema waybill to ${role};
       revoke insert on waybill.inbox from ${role}`,
    );
    try {
      const both = scene.start('emails: {}', {
        databaseUrl: database.server.url(database.name, role, password),
        relay: true,
      });
      await both.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
      await both.waitForPhase('streaming');
      const streaming = both.log.length;
      await scene.broker(async (channel) => {
        await channel.assertQueue('published');
        await channel.bindQueue('published', 'waybill.events', '#');
      });
      await scene.send('emails', [{ messageId: 'm-1' }, { messageId: 'm-2' }]);
      const line = await both.waitForLog(
        ({ err }) => (err as { code?: string } | undefined)?.code === 'WAYBILL_DATABASE_REFUSED',
        'word of the grant',
      );
      expect(line).toMatchObject({ level: 'error', consumer: 'emails' });
      expect(JSON.stringify(line)).toContain('sql/roles.sql');
      await database.query(`insert into waybill.outbox (type) values ('order.paid')`);
      await until(async () => (await scene.depth('published')) === 1, { what: 'the row of the outbox' });
      expect(await scene.rows()).toEqual([]);
      await database.query(`grant insert on waybill.inbox to ${role}`);
      await scene.waitForRows(2, "status = 'pending'", 40_000);
      expect(both.log.slice(streaming).some((each) => each.msg.includes('session ended'))).toBe(false);
      expect(await both.stop()).toBe(0);
    } finally {
      await killRelays();
      await database.query(`drop owned by ${role}`);
      await database.query(`drop role ${role}`);
    }
  });

  it('F128 a renamed consumer is refused, because it would forget what was applied', async () => {
    const first = scene.start('billing: { queue: q }');
    await first.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    expect(await first.stop()).toBe(0);
    const renamed = scene.start('accounting: { queue: q }');
    expect(await renamed.exited).not.toBe(0);
    expect(renamed.noise.join('\n')).toContain('WAYBILL_CONSUMER_RENAMED');
    expect(renamed.noise.join('\n')).toContain('rename_consumer');
  });

  it('two consumers and four workers on one queue: no double effect, no lost row (F18, F124)', async () => {
    const consumers = [scene.start('emails: {}'), scene.start('emails: {}')];
    for (const each of consumers) await each.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    await scene.database.query('create table effect (message_id text, worker int)');
    const over = new AbortController();
    const worker = async (number: number): Promise<void> => {
      const client = await scene.database.connect();
      while (!over.signal.aborted) {
        const { rows } = await client.query<{ seq: string; claim_token: string; message_id: string }>(
          "select seq::text, claim_token, message_id from waybill.inbox_claim('emails', 20, '30 seconds')",
        );
        for (const row of rows) {
          await client.query('begin');
          await client.query('insert into effect values ($1, $2)', [row.message_id, number]);
          await client.query('select waybill.inbox_complete($1, $2)', [row.seq, row.claim_token]);
          await client.query('commit');
        }
        if (rows.length === 0) await until(() => true, { what: 'a turn' });
      }
    };
    const workers = [1, 2, 3, 4].map(worker);
    const messages = Array.from({ length: 1_000 }, (_, n) => ({ messageId: `m-${n % 500}` }));
    await scene.send('emails', messages);
    await scene.waitForRows(500, "status = 'done'", 60_000);
    over.abort();
    await Promise.all(workers);
    const effects = await scene.database.query<{ n: number; ids: number }>(
      'select count(*)::int as n, count(distinct message_id)::int as ids from effect',
    );
    expect(effects).toEqual([{ n: 500, ids: 500 }]);
    for (const each of consumers) expect(await each.stop()).toBe(0);
    expect(await scene.depth('emails')).toBe(0);
  });
});
