import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { receiverScene, type ReceiverScene } from '../support/receiver-scene.js';
import { killRelays } from '../support/relay.js';
import { buildProgram, runProgram } from '../integration/built-program.js';

const BILLING = `billing:
  topology: check
  bindings: [{ exchange: shop.events, routingKey: "order.*" }]
  retry: { delays: [1s] }
  deadLetterQueue: ops.dead`;

let scene: ReceiverScene;
let folder: string;

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'waybill-check-'));
  [scene] = await Promise.all([receiverScene(), buildProgram()]);
});
afterEach(async () => {
  await killRelays();
  await scene.drop();
  rmSync(folder, { recursive: true, force: true });
});

test('topology: check names every queue and exchange that is missing, declares none, and goes on when they are there', async () => {
  const daemon = scene.start(BILLING);
  const { err } = await daemon.waitForLog(
    ({ msg }) => typeof msg === 'string' && msg.startsWith('the queue: cannot go on'),
    'the check to fail',
  );
  const { message, hint } = err as { message: string; hint: string };
  expect(message.split('; ').sort()).toEqual([
    'consumer billing: exchange waybill.dlx does not exist',
    'exchange shop.events does not exist',
    'exchange waybill.delay.1000ms does not exist',
    'queue billing does not exist',
    'queue billing.dlq does not exist',
    'queue ops.dead does not exist',
    'queue waybill.delay.1000ms does not exist',
    'queue waybill.retry.billing does not exist',
  ]);
  expect(hint).toContain('waybill topology apply');
  expect(hint).toContain('consumers.billing.topology: assert');
  expect(await scene.depth('billing')).toBeUndefined();

  // What the hint says, and what others declare.
  await scene.broker((channel) => channel.assertExchange('shop.events', 'topic'));
  const config = join(folder, 'waybill.yaml');
  writeFileSync(config, `relay: false\nconsumers:\n${BILLING.replaceAll(/^/gm, '  ')}\n`);
  const applied = await runProgram(['-c', config, 'topology', 'apply', '--yes'], {
    WAYBILL_BROKER_URL: scene.vhost.url,
  });
  expect(applied).toMatchObject({ code: 0, err: '' });
  await daemon.waitForLog(({ msg }) => msg === 'consuming', 'it to consume', 40_000);
  await scene.send({ exchange: 'shop.events', routingKey: 'order.paid' }, [{ messageId: 'a' }]);
  await scene.waitForRows(1, "status = 'pending'");
  expect(await daemon.stop()).toBe(0);
});

test('topology: none looks for nothing: its queue is enough', async () => {
  await scene.broker((channel) => channel.assertQueue('billing'));
  const daemon = scene.start(BILLING.replace('check', 'none'));
  await daemon.waitForLog(({ msg }) => msg === 'consuming', 'it to consume');
  await scene.send('billing', [{ messageId: 'a' }]);
  await scene.waitForRows(1, "status = 'pending'");
  expect(await daemon.stop()).toBe(0);
});
