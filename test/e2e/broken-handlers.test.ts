import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { receiverScene, type ReceiverScene } from '../support/receiver-scene.js';
import { killRelays, type RelayProcess } from '../support/relay.js';
import { until } from '../support/waiting.js';
import { WebServer } from '../support/web-server.js';

let scene: ReceiverScene;
const handlers: WebServer[] = [];

beforeEach(async () => {
  scene = await receiverScene();
});
afterEach(async () => {
  await killRelays();
  await Promise.all(handlers.splice(0).map((handler) => handler.stop()));
  await scene.drop();
});

/** An application that answers everything with the status. */
const answering = async (status: number): Promise<WebServer> => {
  const server = await WebServer.start();
  server.answer = (_, response) => response.writeHead(status).end();
  handlers.push(server);
  return server;
};
const overHttp = (url: string) => `
emails:
  handler: { kind: http, url: "${url}", timeout: 2s, concurrency: 4 }
  retry: { delays: [200ms, 500ms], maxAttempts: 3 }
`;
const inSql = (retry: string) => `
emails:
  handler: { kind: sql, function: app.handle, timeout: 20s }
  retry: { ${retry} }
`;
/** A function that works for so long, and then needs a table that may not be there. */
const sqlHandler = (seconds: number): Promise<unknown> =>
  scene.database.query(`create schema app; create function app.handle(m waybill.inbox_message) returns text
    language plpgsql as $$ begin perform pg_sleep(${seconds}); execute 'select 1 from app.needed'; return 'ok'; end $$`);
const messages = (count: number, name = 'm') =>
  Array.from({ length: count }, (_, n) => ({ messageId: `${name}-${n}` }));
const noted = () =>
  scene.database.query<{ paused_by: string | null; paused_reason: string | null }>(
    'select paused_by, paused_reason from waybill.consumer',
  );
const consuming = (process: RelayProcess) => process.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
const broken = (process: RelayProcess) =>
  process.waitForLog(({ msg }) => msg.startsWith('the handler is broken'), 'the breaker');

describe('F126: what one process finds of its handler', () => {
  it.each(['SIGTERM', 'SIGKILL'] as const)(
    'does not outlive it: %s, and a healthy handler at the next start',
    async (end) => {
      const web = await answering(404);
      const first = scene.start(overHttp(web.url()));
      await consuming(first);
      await scene.send('emails', messages(6));
      await broken(first);
      await until(async () => (await noted())[0]?.paused_by === 'breaker', { what: 'the note' });
      expect(await noted()).toEqual([
        { paused_by: 'breaker', paused_reason: expect.stringContaining('404') as string },
      ]);
      if (end === 'SIGTERM') {
        expect(await first.stop()).toBe(0);
        expect(await noted()).toEqual([{ paused_by: null, paused_reason: null }]);
      } else await first.kill9();
      await scene.database.query("update waybill.inbox set lease_until = clock_timestamp() where status = 'running'");
      web.answer = (_, response) => response.writeHead(204).end();
      const second = scene.start(overHttp(web.url()));
      await scene.send('emails', messages(3, 'n'));
      await scene.waitForRows(9, "status = 'done' and failures = 0");
      expect(await noted()).toEqual([{ paused_by: null, paused_reason: null }]);
      expect(second.log.filter(({ msg }) => msg.startsWith('the handler is broken'))).toEqual([]);
    },
  );

  it('stops no other process, neither while it lives nor when it is gone', async () => {
    const [good, bad] = [await answering(204), await answering(404)];
    const healthy = scene.start(overHttp(good.url()));
    const sick = scene.start(overHttp(bad.url()));
    await Promise.all([consuming(healthy), consuming(sick)]);
    await scene.send('emails', messages(40));
    await broken(sick);
    await scene.send('emails', messages(20, 'n'));
    await scene.waitForRows(60, "status = 'done' and failures = 0", 30_000);
    await until(async () => (await noted())[0]?.paused_by === 'breaker', { what: 'the note' });
    await sick.kill9();
    await scene.send('emails', messages(20, 'o'));
    await scene.waitForRows(80, "status = 'done' and failures = 0");
    expect(good.received.length).toBeGreaterThanOrEqual(80);
  });

  it('is no word on a row that waits: it is probed, and with the next message when there is none', async () => {
    await sqlHandler(0);
    const process = scene.start(inSql('delays: [1h], maxAttempts: 8'));
    await consuming(process);
    await scene.send('emails', messages(4));
    await broken(process);
    // Nobody sees the rows any more, so that nothing is due.
    await until(async () => (await scene.rows('failures = 0')).length === 4, { what: 'attempts to be given back' });
    await until(async () => (await noted())[0]?.paused_by === 'breaker', { what: 'the pause to be noted' });
    await scene.database.query(
      "update waybill.inbox set status = 'waiting', next_attempt_at = clock_timestamp() + interval '1 hour' where status in ('pending', 'waiting')",
    );
    await scene.send('emails', [{ messageId: 'probe' }]);
    await scene.waitForRows(1, "message_id = 'probe'");
    // It was taken as a probe: the probe was broken too, and spent nothing.
    expect(process.log.filter(({ msg }) => msg === 'the handler answers again')).toEqual([]);
    await scene.database.query('create table app.needed ()');
    await process.waitForLog(({ msg }) => msg === 'the handler answers again', 'the end of the pause');
    await scene.waitForRows(1, "message_id = 'probe' and status = 'done' and failures = 0");
    await scene.send('emails', messages(2, 'n'));
    await scene.waitForRows(3, "status = 'done'");
    await until(async () => (await noted())[0]?.paused_by === null, { what: 'the note to be taken back' });
  });

  it('I4: costs nothing, however long the transaction took: nobody is dead, nothing is copied', async () => {
    await sqlHandler(1.5);
    const process = scene.start(inSql('delays: [30s], maxAttempts: 1') + '  deadLetterQueue: buried\n');
    await consuming(process);
    await scene.send('emails', messages(4));
    await broken(process);
    await until(
      async () => (await scene.rows("failures = 0 and status in ('pending', 'waiting', 'running')")).length === 4,
      {
        what: 'attempts to be given back',
      },
    );
    const verdicts = await scene.database.query<{ verdict: string }>(
      'select distinct verdict from waybill.inbox_attempt',
    );
    expect(verdicts).toEqual([{ verdict: 'refunded' }]);
    expect(process.log.filter(({ msg }) => msg === 'a message is dead')).toEqual([]);
    await scene.database.query('create table app.needed ()');
    await scene.waitForRows(4, "status = 'done' and failures = 0", 40_000);
    expect(await scene.depth('buried')).toBe(0);
  });
});

it('I4: PostgreSQL away for a moment while rows are applied: they go back at once, and none counts as abandoned', async () => {
  await sqlHandler(1);
  await scene.database.query('create table app.needed ()');
  const process = scene.start(inSql('maxAttempts: 8'));
  await consuming(process);
  await scene.database.query("select waybill.consumer_pause('emails', 'a test')");
  await scene.send('emails', messages(5));
  await scene.waitForRows(5, "status = 'pending'");
  await scene.database.query("select waybill.consumer_resume('emails')");
  await scene.waitForRows(5, "status = 'running'");
  const [lease] = await scene.database.query<{ s: number }>(
    'select max(extract(epoch from lease_until - clock_timestamp()))::float8 as s from waybill.inbox',
  );
  // Whatever the number of rows: twice the timeout of the handler, and half a minute.
  expect(lease?.s).toBeLessThanOrEqual(70);
  const ended = await scene.database.query(
    `select pg_terminate_backend(pid) from pg_stat_activity
     where application_name = 'waybill consumer emails' and datname = current_database()`,
  );
  expect(ended.length).toBeGreaterThan(0);
  await scene.waitForRows(5, "status = 'done' and abandoned = 0 and failures = 0", 30_000);
});

it('F16: what somebody else sends to the retry queue is dropped, and holds up nobody', async () => {
  const web = await answering(204);
  const process = scene.start(overHttp(web.url()));
  await consuming(process);
  await scene.send('emails', [{ messageId: 'before' }]);
  await scene.waitForRows(1, "status = 'done'");
  const odd = { consumer: 'emails', seq: '9999999999999999999', attempt: 1, restMs: 0 };
  await scene.send('waybill.retry.emails', [
    { body: JSON.stringify(odd) },
    { body: JSON.stringify({ ...odd, seq: '1', attempt: 1.5 }) },
    { body: 'no timer' },
  ]);
  await process.waitForLog(({ msg, refused }) => msg.includes('is no timer') && refused === 3, 'the third one');
  await scene.send('waybill.retry.emails', [
    { body: JSON.stringify({ ...odd, seq: '1', installation: 'another' }) },
    { body: JSON.stringify({ ...odd, seq: '1', installation: 'another' }) },
  ]);
  await process.waitForLog(({ refused }) => refused === 5, 'the fifth one');
  const told = process.log.filter(({ msg }) => msg.startsWith('another installation on this virtual host'));
  expect(told.map(({ level }) => level)).toEqual(['warn']);
  await scene.send('emails', messages(5));
  await scene.waitForRows(6, "status = 'done'");
  expect(process.log.filter(({ level }) => level === 'error')).toEqual([]);
  expect(process.noise).toEqual([]);
});
