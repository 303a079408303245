import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer, type IncomingHttpHeaders } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { killRelays } from '../support/relay.js';
import { LEDGER } from '../support/ledger.js';
import { receiverScene, type ReceiverScene } from '../support/receiver-scene.js';
import { relayScene, type RelayScene } from '../support/relay-scene.js';
import { until } from '../support/waiting.js';

const PROBE = fileURLToPath(new URL('../support/trace-probe.mjs', import.meta.url));
const TRACE = '4bf92f3577b34da6a3ce929d0e0e4736';
const PARENT = '00f067aa0ba902b7';

interface Span {
  name: string;
  kind: number;
  traceId: string;
  spanId: string;
  parentSpanId: string;
  startMs: number;
  endMs: number;
  attributes: Record<string, unknown>;
  scope: string;
  links: string[];
  status: { code: number; message?: string };
  tracestate?: string;
}

/** As the SDK numbers them. */
const CLIENT = 2;
const PRODUCER = 3;
const CONSUMER = 4;
const FAILED = 2;

function spansIn(file: string): Span[] {
  if (!existsSync(file)) return [];
  const lines = readFileSync(file, 'utf8').trim().split('\n');
  return lines.map((line) => JSON.parse(line) as Span);
}

describe('OpenTelemetry', () => {
  let scene: RelayScene;
  let folder: string;

  beforeAll(async () => {
    scene = await relayScene();
    folder = await mkdtemp(join(tmpdir(), 'waybill-spans-'));
  });
  afterEach(killRelays);
  afterAll(async () => {
    await scene.drop();
    await rm(folder, { recursive: true });
  });

  const publish = async (traceparent: string | null): Promise<string> =>
    (
      await scene.database.query<{ id: string }>(
        "select waybill.publish('order.paid', '{}', traceparent => $1, tracestate => 'vendor=1') as id",
        [traceparent],
      )
    )[0]?.id ?? '';

  it('with an SDK a row that carries a trace gets a span from its commit to its confirm; the message keeps its context', async () => {
    const file = join(folder, 'spans');
    const relay = scene.start({ env: { NODE_OPTIONS: `--import ${PROBE}`, WAYBILL_TEST_SPANS: file } });
    await relay.waitForPhase('streaming');
    await publish(null);
    await publish('nonsense');
    const databaseMs = async (): Promise<number> =>
      Number(
        (await scene.database.query<{ ms: string }>('select extract(epoch from clock_timestamp()) * 1000 as ms'))[0]
          ?.ms,
      );
    const beforeMs = await databaseMs();
    const id = await publish(`00-${TRACE}-${PARENT}-01`);
    const afterMs = await databaseMs();
    await scene.probe.waitFor(3);
    const spans = (): Span[] => spansIn(file);
    await until(() => spans().length > 0, { what: 'the span' });
    expect(await relay.stop()).toBe(0);
    expect(relay.noise).toEqual([]);
    expect(spans()).toEqual([
      expect.objectContaining({
        name: 'send waybill.events',
        kind: PRODUCER,
        scope: 'waybill',
        traceId: TRACE,
        parentSpanId: PARENT,
        attributes: {
          'messaging.system': 'rabbitmq',
          'messaging.operation.name': 'send',
          'messaging.operation.type': 'send',
          'messaging.destination.name': 'waybill.events:order.paid',
          'messaging.rabbitmq.destination.routing_key': 'order.paid',
          'messaging.message.id': id,
        },
      }),
    ]);
    const [{ startMs, endMs } = { startMs: 0, endMs: 0 }] = spans();
    // It begins at the commit, by the database's clock; its end is an estimate of that clock, and never before.
    expect(startMs).toBeGreaterThanOrEqual(Math.floor(beforeMs));
    expect(startMs).toBeLessThanOrEqual(afterMs);
    expect(endMs - startMs).toBeGreaterThanOrEqual(0);
    expect(endMs - startMs).toBeLessThan(10_000);
    expect(scene.probe.messages.at(-1)?.headers['traceparent']).toBe(`00-${TRACE}-${PARENT}-01`);
  });
});

describe('OpenTelemetry inbound', () => {
  let scene: ReceiverScene;
  let folder: string;
  let file: string;

  beforeAll(async () => {
    scene = await receiverScene();
    await scene.database.query(LEDGER);
    folder = await mkdtemp(join(tmpdir(), 'waybill-spans-'));
  });
  afterEach(killRelays);
  afterAll(async () => {
    await scene.drop();
    await rm(folder, { recursive: true });
  });

  function start(name: string, consumers: string) {
    file = join(folder, name);
    return scene.start(consumers, { env: { NODE_OPTIONS: `--import ${PROBE}`, WAYBILL_TEST_SPANS: file } });
  }
  const traced = { headers: { traceparent: `00-${TRACE}-${PARENT}-01`, tracestate: 'vendor=1' } };
  const about = (id: string): Span[] =>
    spansIn(file).filter(({ attributes }) => attributes['messaging.message.id'] === id);

  it('a function as handler: one span for each attempt, a child of the message; a failed one is an error', async () => {
    const consumer = start(
      'sql',
      'billing:\n  handler: { kind: sql, function: billing.on_event }\n  retry: { delays: [100ms], maxAttempts: 2 }',
    );
    await consumer.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    await scene.broker(async (channel) => {
      await channel.assertExchange('events', 'topic');
      await channel.bindQueue('billing', 'events', '#');
    });
    await scene.send({ exchange: 'events', routingKey: 'order.paid' }, [
      { messageId: 'none', body: '{"amount": 1}' },
      { messageId: 'fine', body: '{"amount": 1}', ...traced },
      { messageId: 'poison', body: '{"amount": 1, "fails": 9}', ...traced },
      { messageId: 'fine', body: '{"amount": 1}', ...traced },
    ]);
    await scene.waitForRows(1, "status = 'dead'");
    await until(() => about('poison').length === 2 && about('fine').length === 2, { what: 'the spans' });
    expect(await consumer.stop()).toBe(0);
    expect(about('none')).toEqual([]);
    const attributes = {
      'messaging.system': 'rabbitmq',
      'messaging.operation.name': 'process',
      'messaging.operation.type': 'process',
      'messaging.destination.name': 'events:order.paid:billing',
      'messaging.rabbitmq.destination.routing_key': 'order.paid',
      'waybill.consumer': 'billing',
    };
    const common = { kind: CONSUMER, scope: 'waybill', traceId: TRACE, parentSpanId: PARENT, links: [PARENT] };
    const [applied, duplicate] = about('fine').sort((a, b) => a.name.localeCompare(b.name));
    expect(applied).toMatchObject({
      ...common,
      name: 'process billing',
      status: { code: 0 },
      attributes: { ...attributes, 'messaging.message.id': 'fine', 'waybill.attempt': 1, 'waybill.result': 'applied' },
    });
    expect((applied?.endMs ?? 0) - (applied?.startMs ?? 0)).toBeGreaterThan(0);
    expect(duplicate).toMatchObject({ name: 'receive billing', attributes: { 'waybill.result': 'duplicate' } });
    const [first, last] = about('poison').sort((a, b) => a.startMs - b.startMs);
    expect(first).toMatchObject({
      ...common,
      status: { code: FAILED, message: expect.stringContaining('not this time') as unknown },
      attributes: { ...attributes, 'waybill.attempt': 1, 'waybill.result': 'retry', 'error.type': 'retry' },
    });
    expect(last).toMatchObject({
      ...common,
      status: { code: FAILED },
      attributes: { ...attributes, 'waybill.attempt': 2, 'waybill.result': 'dead', 'error.type': 'attempts' },
    });
    // What the handler writes goes on in the trace of the message.
    const [row] = await scene.database.query<{ traceparent: string }>(
      "select traceparent from waybill.inbox where message_id = 'fine'",
    );
    expect(row?.traceparent).toBe(traced.headers.traceparent);
  });

  it('an application over HTTP works beneath the span of its attempt', async () => {
    const asked: IncomingHttpHeaders[] = [];
    const server = createServer((request, response) => {
      asked.push(request.headers);
      request.resume().on('end', () => response.writeHead(asked.length === 1 ? 503 : 204).end());
    }).listen(0, '127.0.0.1');
    await once(server, 'listening');
    try {
      const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/events`;
      const consumer = start('http', `emails:\n  handler: { kind: http, url: "${url}" }\n  retry: { delays: [100ms] }`);
      await consumer.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
      await scene.send('emails', [{ messageId: 'mail', ...traced }]);
      await scene.waitForRows(1, "message_id = 'mail' and status = 'done'");
      await until(() => about('mail').length === 3, { what: 'the spans' });
      expect(await consumer.stop()).toBe(0);
      const [received, first, second] = about('mail').sort((a, b) => a.startMs - b.startMs);
      expect(received).toMatchObject({
        name: 'receive emails',
        kind: CLIENT,
        parentSpanId: PARENT,
        status: { code: 0 },
      });
      expect(first).toMatchObject({ name: 'process emails', kind: CONSUMER, status: { code: FAILED } });
      expect(second).toMatchObject({
        kind: CONSUMER,
        status: { code: 0 },
        parentSpanId: PARENT,
        links: [PARENT],
        tracestate: 'vendor=1',
        attributes: { 'messaging.destination.name': 'emails', 'waybill.attempt': 2, 'waybill.result': 'applied' },
      });
      expect(asked.map(({ traceparent }) => traceparent)).toEqual(
        [first, second].map((span) => `00-${TRACE}-${span?.spanId ?? ''}-01`),
      );
      expect(asked.map(({ tracestate }) => tracestate)).toEqual(['vendor=1', 'vendor=1']);
    } finally {
      server.closeAllConnections();
      server.close();
    }
  });

  it('a stored message has the span of its receipt, and whoever claims it the context of its sender', async () => {
    const consumer = start('store', 'kept: {}');
    await consumer.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
    await scene.send('kept', [{ messageId: 'kept', ...traced }]);
    await until(() => about('kept').length === 1, { what: 'the span' });
    expect(about('kept')).toMatchObject([
      { name: 'receive kept', kind: CLIENT, links: [PARENT], attributes: { 'waybill.result': 'received' } },
    ]);
    expect(await scene.database.query("select traceparent, tracestate from waybill.inbox_claim('kept')")).toEqual([
      { traceparent: traced.headers.traceparent, tracestate: 'vendor=1' },
    ]);
    expect(await consumer.stop()).toBe(0);
  });

  it('without an SDK an application gets the context of the sender', async () => {
    let traceparent: unknown;
    const server = createServer((request, response) => {
      traceparent = request.headers.traceparent;
      request.resume().on('end', () => response.writeHead(204).end());
    }).listen(0, '127.0.0.1');
    await once(server, 'listening');
    try {
      const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/events`;
      const consumer = scene.start(`plain:\n  handler: { kind: http, url: "${url}" }`);
      await consumer.waitForLog(({ msg }) => msg === 'consuming', 'the consumer');
      await scene.send('plain', [{ messageId: 'plain', ...traced }]);
      await scene.waitForRows(1, "message_id = 'plain' and status = 'done'");
      expect(traceparent).toBe(traced.headers.traceparent);
      expect(await consumer.stop()).toBe(0);
    } finally {
      server.close();
    }
  });
});
