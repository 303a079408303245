import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { sharedPostgres } from '../support/database.js';
import { startFaultProxy } from '../support/fault-proxy.js';
import { receiverScene, type ReceiverScene } from '../support/receiver-scene.js';
import { killRelays } from '../support/relay.js';
import { until } from '../support/waiting.js';

interface Seen {
  id: string;
  attempt: string;
  idempotencyKey: string;
  body: string;
}

describe('a consumer that posts to an application', () => {
  let scene: ReceiverScene;
  let server: Server;
  let url: string;
  let seen: Seen[];
  let answer: (seen: Seen) => number | undefined | Promise<number>;

  beforeEach(async () => {
    seen = [];
    answer = () => 204;
    server = createServer((request, response) => {
      const chunks: Buffer[] = [];
      request.on('data', (chunk: Buffer) => chunks.push(chunk));
      request.on('end', () => {
        const header = (name: string): string => String(request.headers[name] ?? '');
        const idempotencyKey = header('idempotency-key');
        const one = {
          id: idempotencyKey.split(':').slice(1).join(':'),
          attempt: header('waybill-attempt') || header('x-waybill-attempt'),
          idempotencyKey,
          body: Buffer.concat(chunks).toString(),
        };
        seen.push(one);
        Promise.resolve(answer(one)).then(
          (status) => {
            if (status !== undefined) response.writeHead(status).end();
          },
          () => response.destroy(),
        );
      });
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/events`;
    scene = await receiverScene();
  });
  afterEach(async () => {
    await killRelays();
    server.closeAllConnections();
    server.close();
    await scene.drop();
  });

  const consumer = () => `
emails:
  handler: { kind: http, url: "${url}", timeout: 2s, concurrency: 4 }
  retry: { delays: [200ms, 500ms], maxAttempts: 3 }
`;

  it('posts each message once with its key, tries again what may pass, and buries what may not', async () => {
    answer = ({ id, attempt }) =>
      id === 'later' && attempt !== '3' ? 503 : id === 'bad' ? 422 : id === 'down' ? 500 : 204;
    const process = scene.start(consumer());
    await process.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    const messages = Array.from({ length: 40 }, (_, n) => ({ messageId: `m-${n}`, body: `{"n" : ${n}.10}` }));
    await scene.send('emails', [...messages, { messageId: 'later' }, { messageId: 'bad' }, { messageId: 'down' }]);
    await scene.waitForRows(41, "status = 'done'");
    const dead = await scene.waitForRows(2, "status = 'dead'");
    expect(dead.map((row) => [row.message_id, row.dead_reason])).toEqual([
      ['bad', 'never'],
      ['down', 'attempts'],
    ]);
    expect(seen.filter(({ id }) => id.startsWith('m-')).length).toBe(40);
    expect(seen.find(({ id }) => id === 'm-7')).toMatchObject({ idempotencyKey: 'emails:m-7', body: '{"n" : 7.10}' });
    expect(seen.filter(({ id }) => id === 'later').length).toBe(3);
    expect(await process.stop()).toBe(0);
  });

  it('pauses while the application is not there, spends nothing, and goes on when it is (F126)', async () => {
    answer = () => 404;
    const process = scene.start(consumer());
    await process.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    await scene.send(
      'emails',
      Array.from({ length: 20 }, (_, n) => ({ messageId: `m-${n}` })),
    );
    await process.waitForLog(({ msg }) => msg.startsWith('the handler is broken'), 'the breaker');
    await process.waitForLog(({ msg }) => msg === 'not consuming', 'the end of the intake');
    await until(
      async () => (await scene.database.query("select from waybill.consumer where paused_by = 'breaker'")).length === 1,
      { what: 'the pause in the table' },
    );
    await until(async () => (await scene.rows('failures > 0')).length === 0, { what: 'attempts to be given back' });
    const asked = seen.length;
    answer = () => 204;
    await scene.waitForRows(20, "status = 'done' and failures = 0", 30_000);
    // Three that opened it, those in flight beside them, and a probe or two.
    expect(asked).toBeLessThan(20);
    expect(await process.stop()).toBe(0);
  });

  it('I4 an answer that cannot be written down while the database is away is not an abandoned attempt', async () => {
    const proxy = await startFaultProxy({ targetPort: sharedPostgres().port });
    try {
      const process = scene.start(consumer(), { databaseUrl: proxy.url(scene.database.url) });
      await process.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
      answer = async () => {
        await until(() => seen.length === 3, { what: 'all requests' });
        return 204;
      };
      const cut = proxy.at(
        (unit) => unit.names.includes('pg.client.parse') && unit.body.includes('inbox_settle('),
        1,
        () => {
          proxy.refuse(true);
          proxy.cut();
        },
      );
      await scene.send('emails', [{ messageId: 'a' }, { messageId: 'b' }, { messageId: 'c' }]);
      await cut;
      await until(
        () => process.log.filter(({ msg }) => msg.startsWith('an answer cannot be written down')).length === 3,
        { what: 'three answers that cannot be written down' },
      );
      // The outage lasts longer than the lease: by the rows' own clock.
      await scene.database.query("update waybill.inbox set lease_until = clock_timestamp() where status = 'running'");
      proxy.refuse(false);
      await scene.waitForRows(3, "status = 'done'");
      expect((await scene.rows()).map(({ abandoned, failures }) => [abandoned, failures])).toEqual(
        Array.from({ length: 3 }, () => [0, 0]),
      );
      expect(seen.length).toBe(3);
      expect(await process.stop()).toBe(0);
    } finally {
      await proxy.close();
    }
  });

  it('consumer crash in the middle of processing: the message comes again under the same key', async () => {
    answer = ({ id }) => (id === 'stuck' && seen.filter((one) => one.id === 'stuck').length === 1 ? undefined : 204);
    const first = scene.start(consumer());
    await first.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    await scene.send('emails', [{ messageId: 'stuck' }, { messageId: 'fine' }]);
    await scene.waitForRows(1, "message_id = 'fine' and status = 'done'");
    await until(() => seen.some(({ id }) => id === 'stuck'), { what: 'the request' });
    await first.kill9();
    await scene.waitForRows(1, "message_id = 'stuck' and status = 'running'");
    // The lease ends: by the row's own clock.
    await scene.database.query("update waybill.inbox set lease_until = clock_timestamp() where status = 'running'");
    const second = scene.start(consumer());
    await scene.waitForRows(2, "status = 'done'");
    const [row] = await scene.rows("message_id = 'stuck'");
    expect(row).toMatchObject({ abandoned: 1, failures: 0 });
    expect(new Set(seen.filter(({ id }) => id === 'stuck').map((one) => one.idempotencyKey)).size).toBe(1);
    expect(await second.stop()).toBe(0);
  });
});
