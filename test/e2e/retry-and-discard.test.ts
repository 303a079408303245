import { afterAll, afterEach, beforeAll, expect, it } from 'vitest';
import { runProgram } from '../integration/built-program.js';
import { outboxStage, type OutboxStage } from '../support/outbox-stage.js';
import { killRelays, startRelay } from '../support/relay.js';
import { until } from '../support/waiting.js';

let stage: OutboxStage;

beforeAll(async () => {
  stage = await outboxStage();
});
afterEach(killRelays);
afterAll(() => stage.drop());

it('a row parked for a missing exchange is delivered by retry once there is one; another is given up', async () => {
  const environment = { WAYBILL_DATABASE_URL: stage.database.url };
  const waybill = (...args: string[]) => runProgram(['outbox', ...args], environment);
  const relay = startRelay({ databaseUrl: stage.database.url, brokerUrl: stage.vhost.url });
  await relay.waitForPhase('streaming');
  const [wanted] = await stage.write(1, { columns: { exchange: 'late' } });
  const [unwanted] = await stage.write(1, { columns: { exchange: 'never' } });
  await until(async () => (await stage.pending('parked')) === 2, { what: 'both rows to be parked', withinMs: 30_000 });
  const listed = await waybill('list', '--state', 'parked');
  expect(listed.out).toMatch(/late[^]*never/);

  await stage.broker(async (channel) => {
    await channel.assertExchange('late', 'topic', { durable: true });
    await channel.bindQueue(stage.queue, 'late', '#');
  });
  expect((await waybill('discard', unwanted?.id ?? '', '--yes', '--reason', 'sent by hand')).code).toBe(0);
  const outcome = async (id: string | undefined): Promise<string | undefined> => {
    const rows = await stage.database.query<{ outcome: string }>(
      'select outcome from waybill.outbox_history where id = $1',
      [id],
    );
    return rows[0]?.outcome;
  };
  expect((await waybill('retry', wanted?.id ?? '')).code).toBe(0);
  const delivered = async (): Promise<boolean> => (await outcome(wanted?.id)) === 'published';
  await until(delivered, { what: 'the retried row to be delivered, by one retry', withinMs: 30_000, everyMs: 100 });
  const discarded = async (): Promise<boolean> => (await outcome(unwanted?.id)) === 'discarded';
  await until(discarded, { what: 'the other one to be in the history', withinMs: 60_000, everyMs: 100 });
  await stage.emptied();

  expect(await relay.stop()).toBe(0);
  const taken = await stage.taken();
  expect(taken.map(({ id, body }) => [id, body.toString()])).toEqual([[wanted?.id, wanted?.body]]);
  const shown = await waybill('show', unwanted?.id ?? '');
  expect(shown.out).toMatch(/state +discarded\n[^]*outbox\.discard .* sent by hand/);
});
