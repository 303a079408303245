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
