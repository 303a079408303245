import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { LEDGER } from '../support/ledger.js';
import { receiverScene, type ReceiverScene } from '../support/receiver-scene.js';
import { killRelays } from '../support/relay.js';
import { until } from '../support/waiting.js';

const CONSUMER = `
billing:
  handler: { kind: sql, function: billing.on_event }
  order: key
  retry: { delays: [300ms], maxAttempts: 3 }
`;

describe('order: key', () => {
  let scene: ReceiverScene;

  beforeEach(async () => {
    scene = await receiverScene();
    await scene.database.query(LEDGER);
  });
  afterEach(async () => {
    await killRelays();
    await scene.drop();
  });

  /** Amounts booked for a key, in the order of booking. */
  async function booked(key: string): Promise<number[]> {
    const rows = await scene.database.query<{ amount: string }>(
      'select amount from billing.ledger where key = $1 order by n',
      [key],
    );
    return rows.map(({ amount }) => Number(amount));
  }

  it('followers wait behind what is tried again, others do not; two consumers, one of them killed (F96)', async () => {
    const [first, second] = [scene.start(CONSUMER), scene.start(CONSUMER)];
    for (const each of [first, second]) await each.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    const keys = Array.from({ length: 10 }, (_, k) => `k-${k}`);
    const messages = Array.from({ length: 400 }, (_, n) => ({
      messageId: `m-${n}`,
      key: keys[n % 10]!,
      body: `{"amount": ${Math.floor(n / 10)}, "fails": ${n % 37 === 0 ? 2 : 0}}`,
    }));
    await scene.send('billing', messages.slice(0, 200));
    await until(async () => (await scene.rows("status = 'done'")).length > 50, { what: 'some of them' });
    await first.kill9();
    await scene.send('billing', messages.slice(200));
    await scene.waitForRows(400, "status = 'done'", 60_000);
    for (const key of keys) expect(await booked(key)).toEqual(Array.from({ length: 40 }, (_, n) => n));
    expect(await second.stop()).toBe(0);
  });

  it('the one that is active is stopped and replaced, twice, beside another one: no message overtakes another (F96, F112)', async () => {
    const first = scene.start(CONSUMER);
    await first.waitForLog(({ msg }) => msg === 'consuming', 'the first consumer');
    const second = scene.start(CONSUMER);
    await second.waitForLog(({ msg }) => msg === 'consuming', 'the second consumer');
    const messages = Array.from({ length: 900 }, (_, n) => ({
      messageId: `m-${n}`,
      key: `k-${n % 3}`,
      body: `{"amount": ${Math.floor(n / 3)}, "sleep": 0.005}`,
    }));
    await scene.send('billing', messages);
    const done = (count: number) =>
      until(async () => (await scene.rows("status = 'done'")).length > count, { what: `${count} of them` });
    await done(60);
    expect(await first.stop()).toBe(0);
    const third = scene.start(CONSUMER);
    await third.waitForLog(({ msg }) => msg === 'consuming', 'the third consumer');
    await done(300);
    expect(await second.stop()).toBe(0);
    await scene.waitForRows(900, "status = 'done'", 60_000);
    for (const key of ['k-0', 'k-1', 'k-2'])
      expect(await booked(key)).toEqual(Array.from({ length: 300 }, (_, n) => n));
    expect(await third.stop()).toBe(0);
  });

  it('a dead message holds its key until somebody acts (block), or is passed over (skip)', async () => {
    const consumer = scene.start(CONSUMER);
    await consumer.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    const send = () =>
      scene.send('billing', [
        { messageId: 'a-1', key: 'a', body: '{"amount": 1}' },
        { messageId: 'a-2', key: 'a', body: '{"never": true}' },
        { messageId: 'a-3', key: 'a', body: '{"amount": 3}' },
        { messageId: 'b-1', key: 'b', body: '{"amount": 1}' },
        { messageId: 'a-4', key: 'a', body: '{"amount": 4}' },
        { messageId: 'free', body: '{"amount": 9}' },
      ]);
    await send();
    await scene.waitForRows(3, "status = 'done'");
    await scene.waitForRows(2, "status = 'blocked'");
    await scene.database.query("select waybill.inbox_discard('billing', 'a-2', 'a test')");
    await scene.waitForRows(5, "status = 'done'", 45_000);
    expect(await booked('a')).toEqual([1, 3, 4]);
    expect(await consumer.stop()).toBe(0);
    await scene.database.query('truncate billing.ledger; truncate waybill.inbox cascade');
    const skipping = scene.start(`${CONSUMER.trimEnd()}\n  onDead: skip`);
    await skipping.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    await send();
    await scene.waitForRows(5, "status = 'done'");
    expect(await booked('a')).toEqual([1, 3, 4]);
    expect(await skipping.stop()).toBe(0);
  });

  it("an application's transaction that stays open holds up the messages of its key alone, and these follow soon", async () => {
    const consumer = scene.start('billing:\n  handler: { kind: store }\n  order: key\n');
    await consumer.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    await scene.send('billing', [{ messageId: 'a-1', key: 'a' }]);
    await scene.waitForRows(1, "status = 'pending'");
    const application = await scene.database.connect();
    const claimed = await application.query<{ seq: string; claim_token: string }>(
      "select seq, claim_token from waybill.inbox_claim('billing', 1, '10 minutes')",
    );
    await application.query('begin');
    await application.query('select waybill.inbox_complete($1, $2)', Object.values(claimed.rows[0]!));
    await scene.send('billing', [
      { messageId: 'a-2', key: 'a' },
      ...Array.from({ length: 20 }, (_, n) => ({ messageId: `b-${n}`, key: `b-${n}` })),
      { messageId: 'a-3', key: 'a' },
    ]);
    await scene.waitForRows(20, "status = 'pending'", 5_000);
    expect((await scene.waitForRows(2, "status = 'blocked'")).map((row) => row.message_id)).toEqual(['a-2', 'a-3']);
    await until(async () => (await scene.depth('billing')) === 0, { what: 'all to be taken from the queue' });
    await application.query('commit');
    await application.end();
    // Half of the usual time between two sweeps.
    const [next] = await scene.waitForRows(1, "key = 'a' and status = 'pending'", 15_000);
    expect(next?.message_id).toBe('a-2');
    expect(await consumer.stop()).toBe(0);
    expect(await scene.depth('billing')).toBe(0);
  });

  it("an operator's transaction that stays open on a key holds up no other keys that are applied with it, nor its own for good", async () => {
    const consumer = scene.start(CONSUMER.replace('[300ms]', '[2s]'));
    await consumer.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    const keys = ['a', ...Array.from({ length: 20 }, (_, n) => `b-${n}`)];
    await scene.send(
      'billing',
      keys.flatMap((key) => [
        { messageId: `${key}-1`, key, body: '{"amount": 1, "fails": 1}' },
        { messageId: `${key}-2`, key, body: '{"amount": 2}' },
      ]),
    );
    await scene.waitForRows(21, "status = 'blocked'");
    const operator = await scene.database.connect();
    await operator.query('begin');
    await operator.query("select waybill.inbox_discard('billing', 'a-2', 'is it this one?')");
    // Its first message, too: only what that would release is left.
    await scene.waitForRows(41, "status = 'done'", 15_000);
    expect(await booked('a')).toEqual([1]);
    await operator.query('rollback');
    await operator.end();
    await scene.waitForRows(42, "status = 'done'", 45_000);
    for (const key of keys) expect(await booked(key)).toEqual([1, 2]);
    expect(await consumer.stop()).toBe(0);
  });

  it('the order of very many messages is changed at a start, however long that takes', async () => {
    const unordered = scene.start('billing: {}');
    await unordered.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    const messages = ['a-1', 'a-2', 'b-1'].map((messageId) => ({ messageId, key: messageId[0]! }));
    await scene.send('billing', messages);
    await scene.waitForRows(3, "status = 'pending'");
    expect(await unordered.stop()).toBe(0);
    // As long as half a million messages take.
    await scene.database.query(
      `create function billing.wait() returns trigger language plpgsql as $$ begin perform pg_sleep(12); return null; end $$;
       create trigger wait before update on waybill.inbox for each statement execute function billing.wait()`,
    );
    const ordered = scene.start('billing: { order: key, queue: billing.ordered }');
    const told = await ordered.waitForLog(
      ({ msg }) => msg.startsWith('registering the consumers takes long'),
      'word of it',
    );
    expect(told).toMatchObject({ level: 'warn', err: { code: 'WAYBILL_STATEMENT_TOO_SLOW' } });
    await ordered.waitForLog(({ msg }) => msg === 'consuming', 'the consumer', 60_000);
    expect((await scene.rows()).map(({ message_id, status }) => [message_id, status])).toEqual([
      ['a-1', 'pending'],
      ['a-2', 'blocked'],
      ['b-1', 'pending'],
    ]);
    expect(await ordered.stop()).toBe(0);
  });

  it('a queue without a single active consumer is refused', async () => {
    await scene.broker((channel) => channel.assertQueue('billing', { durable: true }));
    const consumer = scene.start(CONSUMER);
    const line = await consumer.waitForLog(({ level }) => level === 'error', 'the refusal');
    expect(JSON.stringify(line)).toContain('WAYBILL_TOPOLOGY_MISMATCH');
  });
});
