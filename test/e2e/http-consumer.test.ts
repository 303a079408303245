import { afterEach, beforeEach, expect, it } from 'vitest';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { buildProgram } from '../integration/built-program.js';
import { receiverScene, type ReceiverScene } from '../support/receiver-scene.js';
import { killRelays } from '../support/relay.js';
import { until } from '../support/waiting.js';
import { WebServer } from '../support/web-server.js';

let scene: ReceiverScene;
let application: WebServer;

beforeEach(async () => {
  [scene, application] = await Promise.all([receiverScene(), WebServer.start(), buildProgram()]);
});
afterEach(async () => {
  await killRelays();
  await Promise.all([scene.drop(), application.stop().catch(() => undefined)]);
});

const consumer = (handler = '', retry = 'delays: [200ms], maxAttempts: 3') => `
emails:
  handler: { kind: http, url: "${application.url()}", timeout: 2s, concurrency: 4${handler} }
  retry: { ${retry} }
`;
const idOf = (headers: Record<string, unknown>) => String(headers['x-waybill-id']);

it('F126: an application that is away from the start costs no message an attempt; when it is there, each comes once', async () => {
  const configuration = consumer();
  const { port } = application;
  await application.stop();
  const daemon = scene.start(configuration);
  await daemon.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
  const ids = Array.from({ length: 30 }, (_, n) => `m-${n}`);
  await scene.send(
    'emails',
    ids.map((messageId) => ({ messageId })),
  );
  await daemon.waitForLog(({ msg }) => msg.startsWith('the handler is broken'), 'the breaker');
  const paused = await until(
    async () =>
      (await scene.database.query("select paused_reason from waybill.consumer where paused_by = 'breaker'"))[0],
    { what: 'the pause in the table' },
  );
  expect(paused['paused_reason']).toContain('ECONNREFUSED');
  application = await WebServer.start(undefined, port);
  await scene.waitForRows(30, "status = 'done' and failures = 0 and abandoned = 0", 40_000);
  expect(application.received.map(({ headers }) => idOf(headers)).sort()).toEqual(ids.sort());
  await daemon.waitForLog(({ msg }) => msg === 'the handler answers again', 'the end of the pause');
  expect(await scene.database.query('select paused_by from waybill.consumer')).toEqual([{ paused_by: null }]);
  expect(await daemon.stop()).toBe(0);
});

it('F104, F126: one message that gets a 404 again and again is dead after its attempts, and pauses nobody', async () => {
  application.answer = ({ headers }, response) => response.writeHead(idOf(headers) === 'lost' ? 404 : 204).end();
  const daemon = scene.start(consumer());
  await daemon.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
  await scene.send('emails', [
    { messageId: 'lost' },
    ...Array.from({ length: 20 }, (_, n) => ({ messageId: `m-${n}` })),
  ]);
  await scene.waitForRows(20, "status = 'done'");
  const [dead] = await scene.waitForRows(1, "status = 'dead'");
  expect(dead).toMatchObject({ message_id: 'lost', dead_reason: 'attempts', failures: 3, last_error: 'HTTP 404' });
  expect(daemon.log.filter(({ msg }) => msg.startsWith('the handler is broken'))).toEqual([]);
  expect(await daemon.stop()).toBe(0);
});

it('Retry-After is what the message waits for; the secret is replaced without a restart', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'waybill-secret-'));
  const secretFile = join(folder, 'secret');
  try {
    writeFileSync(secretFile, 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n');
    application.answer = ({ headers }, response) => {
      if (idOf(headers) === 'busy') response.writeHead(503, { 'retry-after': '600' }).end('too much');
      else response.end('thanks\u0007');
    };
    const daemon = scene.start(consumer(`, secretFile: ${secretFile}`));
    await daemon.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    await scene.send('emails', [{ messageId: 'busy' }, { messageId: 'first' }]);
    await scene.waitForRows(1, "status = 'done'");
    const [busy] = await scene.waitForRows(1, "status = 'waiting'");
    expect(busy).toMatchObject({ message_id: 'busy', failures: 1, last_error: 'HTTP 503: too much' });
    const [wait] = await scene.database.query<{ seconds: number }>(
      "select extract(epoch from next_attempt_at - clock_timestamp())::int as seconds from waybill.inbox where status = 'waiting'",
    );
    expect(wait?.seconds).toBeGreaterThan(560);
    expect(wait?.seconds).toBeLessThan(700);
    writeFileSync(secretFile, 'whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD\nwhsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n');
    await scene.send('emails', [{ messageId: 'second' }]);
    await scene.waitForRows(2, "status = 'done'");
    const signatures = Object.fromEntries(
      application.received.map(({ headers }) => [
        idOf(headers),
        String(headers['webhook-signature']).split(' ').length,
      ]),
    );
    expect(signatures).toMatchObject({ first: 1, second: 2 });
    expect(await scene.database.query("select distinct result from waybill.inbox where status = 'done'")).toEqual([
      { result: 'thanks' },
    ]);
    expect(await daemon.stop()).toBe(0);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

it('F112: SIGTERM waits for answers that are under way, and exits with 0', async () => {
  const waiting: (() => void)[] = [];
  application.answer = (_, response) => void waiting.push(() => response.end());
  const daemon = scene.start(consumer());
  await daemon.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
  await scene.send(
    'emails',
    Array.from({ length: 10 }, (_, n) => ({ messageId: `m-${n}` })),
  );
  await until(() => waiting.length === 4, { what: 'four requests' });
  const exit = daemon.stop();
  await until(() => daemon.log.some(({ msg }) => /stop|drain/i.test(msg)), { what: 'the stop to begin' });
  for (const answer of waiting.splice(0)) answer();
  expect(await exit).toBe(0);
  const rows = await scene.rows();
  expect(rows.filter(({ status }) => status === 'done')).toHaveLength(4);
  expect(rows.filter(({ status }) => status === 'running')).toEqual([]);
  expect(application.received).toHaveLength(4);
});
