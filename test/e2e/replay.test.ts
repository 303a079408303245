import { afterAll, afterEach, beforeAll, expect, it } from 'vitest';
import { runProgram } from '../integration/built-program.js';
import { outboxStage, type OutboxStage } from '../support/outbox-stage.js';
import { killRelays, startRelay } from '../support/relay.js';

let stage: OutboxStage;

beforeAll(async () => {
  stage = await outboxStage();
});
afterEach(killRelays);
afterAll(() => stage.drop());

it('F129, O7: a replayed message goes out again with the id and bytes it had; as new, with another id', async () => {
  const environment = { WAYBILL_DATABASE_URL: stage.database.url };
  const waybill = (...args: string[]) => runProgram(['outbox', ...args], environment);
  const relay = startRelay({
    databaseUrl: stage.database.url,
    brokerUrl: stage.vhost.url,
    env: { WAYBILL_RELAY_HISTORY: 'full' },
  });
  await relay.waitForPhase('streaming');
  const rows = await stage.write(3, { columns: { key: 'k', headers: '{"n": 1}', priority: 3, correlation_id: 'c' } });
  await stage.emptied();
  expect(await waybill('replay', '--all', '--yes')).toMatchObject({ code: 0, out: '3 replayed.\n' });
  await stage.emptied();
  expect(await waybill('replay', rows[0]?.id ?? '', '--as-new', '--yes')).toMatchObject({ code: 0 });
  await stage.emptied();
  expect(await relay.stop()).toBe(0);

  const taken = await stage.taken();
  expect(taken).toHaveLength(7);
  expect(taken.slice(3, 6).map(({ id }) => id)).toEqual(rows.map(({ id }) => id));
  const withoutId = (message: (typeof taken)[number]) => ({
    ...message,
    id: undefined,
    body: message.body.toString(),
    properties: { ...message.properties, messageId: undefined },
  });
  for (const n of [0, 1, 2]) expect(withoutId(taken[n + 3]!)).toEqual(withoutId(taken[n]!));
  expect(withoutId(taken[6]!)).toEqual(withoutId(taken[0]!));
  expect(taken[6]?.id).not.toBe(taken[0]?.id);
  const shown = await waybill('show', rows[0]?.id ?? '');
  expect(shown.out).toMatch(/What operators did\n.*outbox\.replay/);
});
