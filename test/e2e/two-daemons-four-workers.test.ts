import { afterEach, beforeEach, expect, it } from 'vitest';
import { buildProgram } from '../integration/built-program.js';
import { receiverScene, type ReceiverScene, type Sent } from '../support/receiver-scene.js';
import { killRelays } from '../support/relay.js';
import { until } from '../support/waiting.js';
import { killWorkers, WorkerProcess } from '../support/worker-process.js';

const MESSAGES = 1_000;
const KEYS = 25;
let scene: ReceiverScene;

beforeEach(async () => {
  [scene] = await Promise.all([receiverScene(), buildProgram()]);
  await scene.database.query('create table ledger (place bigserial, message_id text, key text, seq bigint)');
});
afterEach(async () => {
  await Promise.all([killRelays(), killWorkers()]);
  await scene.drop();
});

/** Sends all messages, every fifth of them twice, while daemons and workers are killed and started again. */
async function run(consumer: string): Promise<void> {
  const daemon = () => scene.start(consumer);
  const worker = () => new WorkerProcess({ DATABASE_URL: scene.database.url, CONSUMER: 'billing' });
  const daemons = [daemon(), daemon()];
  await daemons[0]?.waitForLog(({ msg }) => msg === 'consuming', 'the first consumer', 60_000);
  const workers = Array.from({ length: 4 }, worker);
  const messages: Sent[] = Array.from({ length: MESSAGES }, (_, n) => ({
    messageId: `m-${String(n).padStart(4, '0')}`,
    key: `k-${n % KEYS}`,
  }));
  for (let n = 0; n < 4; n += 1) {
    const part = messages.slice((n * MESSAGES) / 4, ((n + 1) * MESSAGES) / 4);
    await scene.send('billing', [...part, ...part.filter((_, index) => index % 5 === 0)]);
    const victim = workers.shift()!;
    await victim.waitFor('handling', 5);
    await victim.kill9();
    workers.push(worker());
    if (n % 2 === 0) {
      await daemons.shift()?.kill9();
      daemons.push(daemon());
    }
  }
  await until(async () => (await scene.rows("status <> 'done'")).length === 0 && (await done()) === MESSAGES, {
    withinMs: 120_000,
    everyMs: 200,
    what: 'all messages to be done',
  });
  expect(await Promise.all(workers.map((each) => each.stop()))).toEqual([0, 0, 0, 0]);
  expect(await Promise.all(daemons.map((each) => each.stop()))).toEqual([0, 0]);
  const [ledger] = await scene.database.query(
    'select count(*)::int as effects, count(distinct message_id)::int as messages from ledger',
  );
  expect(ledger).toEqual({ effects: MESSAGES, messages: MESSAGES });
  expect(await scene.depth('billing')).toBe(0);
}

async function done(): Promise<number> {
  return (await scene.rows("status = 'done'")).length;
}

it('two daemons and four workers, killed in the middle, with duplicates: no double effect, no lost message (F11-F14, F18, F97, F124)', async () => {
  await run('billing: { queue: billing }');
});

it('the same with order: key: the effects of each key in the order in which they were sent (F96)', async () => {
  await run('billing: { queue: billing, order: key }');
  const outOfOrder = await scene.database.query(
    `select * from (select key, message_id, lag(message_id) over (partition by key order by place) as before from ledger) l
     where before > message_id`,
  );
  expect(outOfOrder).toEqual([]);
});
