import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { receiverScene, type ReceiverScene } from '../support/receiver-scene.js';
import { killRelays } from '../support/relay.js';
import { until } from '../support/waiting.js';

describe('a consumer that stores', () => {
  let scene: ReceiverScene;

  beforeEach(async () => {
    scene = await receiverScene();
  });
  afterEach(async () => {
    await killRelays();
    await scene.drop();
  });

  it('takes messages from its queue into the inbox, acknowledges them, and drains on SIGTERM', async () => {
    const consumer = scene.start('emails: { queue: emails.in }');
    await consumer.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    const body = '{"n" : 1.10, "big": 12345678901234567890}';
    await scene.send('emails.in', [
      { messageId: 'm-1', body, key: 'k-1' },
      { messageId: 'm-2' },
      { messageId: 'm-1', body, key: 'k-1' },
    ]);
    const rows = await scene.waitForRows(2, "status = 'pending'");
    expect(rows.map((row) => row.message_id)).toEqual(['m-1', 'm-2']);
    expect(rows[0]).toMatchObject({ consumer: 'emails', type: 'order.paid', key: 'k-1' });
    expect(rows[0]?.body?.toString()).toBe(body);
    await until(async () => (await scene.depth('emails.in')) === 0, { what: 'the queue to be empty' });
    expect(await consumer.stop()).toBe(0);
    expect(consumer.noise).toEqual([]);
    expect(await scene.depth('emails.in')).toBe(0);
    const claimed = await scene.database.query<{ message_id: string }>("select * from waybill.inbox_claim('emails')");
    expect(claimed.map((row) => row.message_id)).toEqual(['m-1', 'm-2']);
  });
});

describe('what a consumer shows', () => {
  let scene: ReceiverScene;

  beforeEach(async () => {
    scene = await receiverScene();
  });
  afterEach(async () => {
    await killRelays();
    await scene.drop();
  });

  it('F120 counts and readiness over HTTP, also without a relay', async () => {
    const consumer = scene.start('emails: {}\nfaxes: { topology: check }', {
      env: { WAYBILL_ADMIN_LISTEN: '127.0.0.1:0', WAYBILL_ADMIN_COLLECT_INTERVAL: '1s' },
    });
    const { port } = await consumer.waitForLog(({ msg }) => msg === 'admin HTTP listens', 'the admin server');
    const get = (path: string) => fetch(`http://127.0.0.1:${String(port)}${path}`);
    await until(async () => (await get('/readyz')).status === 200, { what: 'readiness' });
    const { parts } = (await (await get('/readyz')).json()) as {
      parts: { detail: Record<string, { state: string }> }[];
    };
    // The queue of the other is not there, and nobody may declare it: that stops nobody else.
    expect(parts[0]?.detail).toMatchObject({ emails: { state: 'consuming' }, faxes: { state: 'not consuming' } });
    await scene.send('emails', [{ messageId: 'a' }, { messageId: 'a' }, { messageId: 'b' }]);
    await scene.waitForRows(2, "status = 'pending'");
    await until(
      async () => {
        const text = await (await get('/metrics')).text();
        // A pause is shown once it has been read from the database.
        return ['waybill_inbox_duplicate_total{consumer="emails"} 1', 'waybill_consumer_paused{'].every((each) =>
          text.includes(each),
        );
      },
      { what: 'the duplicate to be counted, and the pause to be read' },
    );
    const shown = await (await get('/metrics')).text();
    expect(shown).toContain('waybill_inbox_received_total{consumer="emails"} 3');
    expect(shown).toContain('waybill_consumer_paused{consumer="emails"} 0');
    expect(shown).not.toContain('waybill_outbox_published_total');
    await until(
      async () => {
        const text = await (await get('/metrics')).text();
        return (
          text.includes('waybill_inbox_rows{consumer="emails",status="pending"} 2') &&
          text.includes('waybill_inbox_rows{consumer="emails",status="dead"} 0') &&
          /waybill_inbox_oldest_pending_seconds\{consumer="emails"\} 0\.\d*[1-9]|seconds\{consumer="emails"\} [1-9]/.test(
            text,
          )
        );
      },
      { what: 'the inbox to be counted by the database' },
    );
    expect(await consumer.stop()).toBe(0);
  });
});
