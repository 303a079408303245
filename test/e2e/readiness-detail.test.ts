import { once } from 'node:events';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { Status } from '../../src/app/status.js';
import { ADMIN_ON, adminOf, type Admin } from '../support/admin.js';
import { receiverScene, type ReceiverScene } from '../support/receiver-scene.js';
import { killRelays } from '../support/relay.js';
import { until } from '../support/waiting.js';

interface ConsumerDetail {
  state: string;
  breaker: string;
  reason: string | null;
  note: string | null;
}

describe('F121 readiness in detail: which exchange or consumer, and why', () => {
  let scene: ReceiverScene;
  let server: Server;
  let url: string;
  let answer: number;

  beforeEach(async () => {
    answer = 204;
    server = createServer((request, response) => {
      request.resume().on('end', () => response.writeHead(answer).end());
    }).listen(0, '127.0.0.1');
    await once(server, 'listening');
    url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/events`;
    scene = await receiverScene();
  });
  afterEach(async () => {
    await killRelays();
    server.closeAllConnections();
    server.close();
    await scene.drop();
  });

  async function consumer(admin: Admin, name: string): Promise<ConsumerDetail | undefined> {
    const { parts } = await admin.ready();
    return parts.find((part) => part.name === 'consumers')?.detail[name] as ConsumerDetail | undefined;
  }

  it('consumers that cannot work are named with their reason, and take nobody else away', async () => {
    const daemon = scene.start(
      `good: {}
lost: { topology: none, queue: nowhere }
bound: { bindings: [{ exchange: not-there, routingKey: "#" }] }
emails: { handler: { kind: http, url: "${url}" }, retry: { delays: [100ms] } }`,
      { relay: true, env: ADMIN_ON },
    );
    const admin = await adminOf(daemon);
    await daemon.waitForPhase('streaming');
    const detail = (name: string, what: string, holds: (found: ConsumerDetail) => boolean) =>
      until(async () => ((found) => found !== undefined && holds(found))(await consumer(admin, name)), {
        withinMs: 40_000,
        what,
      });
    for (const name of ['good', 'emails']) {
      await detail(name, `${name} to work`, ({ state, reason }) => state === 'consuming' && reason === null);
    }
    for (const name of ['lost', 'bound']) {
      await detail(name, `${name} to be named`, (found) => found.reason?.includes('queue is missing') === true);
      expect(await consumer(admin, name)).toMatchObject({ state: 'not consuming', breaker: 'closed' });
    }
    expect(await admin.ready()).toMatchObject({ status: 200, ready: true });

    answer = 404;
    await scene.send(
      'emails',
      Array.from({ length: 10 }, (_, n) => ({ messageId: `m-${n}` })),
    );
    await detail('emails', 'the breaker', (found) => found.reason?.includes('fails for every message') === true);
    expect(await consumer(admin, 'emails')).toMatchObject({ state: 'paused' });
    const { status, body } = await admin.get('/readyz');
    expect(status).toBe(200);
    // Whoever may ask is not told addresses.
    expect(body).not.toContain('127.0.0.1');
    answer = 204;
    await scene.broker((channel) => channel.assertExchange('not-there', 'topic'));
    for (const name of ['emails', 'bound']) {
      await detail(name, `${name} to work again`, ({ state, reason }) => state === 'consuming' && reason === null);
    }
    expect(await daemon.stop()).toBe(0);
  });

  it('an exchange that is missing is named, while rows for others go out', async () => {
    const daemon = scene.start('good: {}', { relay: true, env: ADMIN_ON });
    const admin = await adminOf(daemon);
    await daemon.waitForPhase('streaming');
    await scene.broker(async (channel) => {
      await channel.assertQueue('taken');
      await channel.bindQueue('taken', 'waybill.events', '#');
    });
    await scene.database.query(
      `select waybill.publish('a', '{}', exchange => 'gone-away'), waybill.publish('b', '{}')`,
    );
    await until(async () => (await scene.depth('taken')) === 1, { what: 'the other row' });
    const relay = async () => (await admin.ready()).parts.find(({ name }) => name === 'relay');
    await until(
      async () => ((await relay())?.detail['unusableExchanges'] as { exchange: string }[] | undefined)?.length === 1,
      { what: 'the exchange to be named' },
    );
    expect(await relay()).toMatchObject({
      ready: true,
      reason: null,
      detail: { unusableExchanges: [{ exchange: 'gone-away', reason: 'exchange gone-away does not exist' }] },
    });
    await scene.broker((channel) => channel.assertExchange('gone-away', 'topic'));
    await scene.database.query("select waybill.retry(id) from waybill.outbox where exchange = 'gone-away'");
    await until(async () => JSON.stringify((await relay())?.detail['unusableExchanges']) === '[]', {
      what: 'it to be well again',
    });
    expect(await daemon.stop()).toBe(0);
  });

  it('consumers without a relay: ready while one of them works, and not when none does', async () => {
    const daemon = scene.start('good: {}\nlost: { topology: none, queue: nowhere }', {
      env: { ...ADMIN_ON, WAYBILL_ADMIN_COLLECT_INTERVAL: '1s' },
    });
    const admin = await adminOf(daemon);
    await until(async () => (await admin.ready()).ready, { withinMs: 20_000, what: 'readiness' });

    // What an operator has paused is a note, and no reason to be unready; why is told only to those with a token.
    expect(await consumer(admin, 'good')).toMatchObject({ state: 'consuming', reason: null, note: null });
    await scene.database.query("select waybill.consumer_pause('good', 'a partner is down')");
    await until(async () => (await consumer(admin, 'good'))?.note?.startsWith('paused by an operator'), {
      what: 'the note',
    });
    expect(await admin.ready()).toMatchObject({ status: 200, ready: true });
    expect((await admin.get('/readyz')).body).not.toContain('a partner is down');

    // /status of such a process is the whole of it: what the database knows, what is wrong, and the live numbers.
    await scene.database.query("select waybill.rename_begin('lost', 'found')");
    const { status, body } = await admin.get('/status');
    expect(status).toBe(200);
    const whole = JSON.parse(body) as Status & { live: { consumers: { name: string; isConsuming: boolean }[] } };
    expect(whole.consumers).toMatchObject([
      { name: 'good', pausedBy: 'operator', pausedReason: 'a partner is down', states: [] },
      { name: 'lost', renamingTo: 'found' },
    ]);
    expect(whole.problems).toMatchObject([
      { id: 'consumer-paused', next: 'waybill consumer resume good' },
      { id: 'consumer-renaming', next: 'waybill consumer rename lost found' },
    ]);
    expect(whole.live.consumers).toMatchObject([
      { name: 'good', isConsuming: true },
      { name: 'lost', isConsuming: false },
    ]);
    await scene.database.query("select waybill.rename_cancel('lost', 'found'), waybill.consumer_resume('good')");
    await until(async () => (await consumer(admin, 'good'))?.note === null, { what: 'the note to go' });
    await daemon.stop();
    const none = scene.start('lost: { topology: none, queue: nowhere }', { env: ADMIN_ON });
    const other = await adminOf(none);
    await until(async () => (await consumer(other, 'lost'))?.reason?.includes('queue is missing') === true, {
      withinMs: 20_000,
      what: 'the reason',
    });
    expect(await other.ready()).toMatchObject({ status: 503, ready: false });
    expect(await none.stop()).toBe(0);
  });
});
