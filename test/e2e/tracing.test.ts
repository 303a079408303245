import { existsSync, readFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { killRelays } from '../support/relay.js';
import { relayScene, type RelayScene } from '../support/relay-scene.js';
import { until } from '../support/waiting.js';

const PROBE = fileURLToPath(new URL('../support/trace-probe.mjs', import.meta.url));
const TRACE = '4bf92f3577b34da6a3ce929d0e0e4736';
const PARENT = '00f067aa0ba902b7';

interface Span {
  name: string;
  kind: number;
  traceId: string;
  parentSpanId: string;
  startMs: number;
  endMs: number;
  attributes: Record<string, unknown>;
  scope: string;
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
    const id = await publish(`00-${TRACE}-${PARENT}-01`);
    await scene.probe.waitFor(3);
    const spans = (): Span[] =>
      existsSync(file)
        ? readFileSync(file, 'utf8')
            .trim()
            .split('\n')
            .map((line) => JSON.parse(line) as Span)
        : [];
    await until(() => spans().length > 0, { what: 'the span' });
    expect(await relay.stop()).toBe(0);
    expect(relay.noise).toEqual([]);
    expect(spans()).toEqual([
      expect.objectContaining({
        name: 'send waybill.events',
        kind: 3,
        scope: 'waybill',
        traceId: TRACE,
        parentSpanId: PARENT,
        attributes: {
          'messaging.system': 'rabbitmq',
          'messaging.operation.type': 'send',
          'messaging.destination.name': 'waybill.events',
          'messaging.rabbitmq.destination.routing_key': 'order.paid',
          'messaging.message.id': id,
        },
      }),
    ]);
    const [{ startMs, endMs } = { startMs: 0, endMs: 0 }] = spans();
    expect(endMs - startMs).toBeGreaterThan(0);
    expect(endMs - startMs).toBeLessThan(10_000);
    expect(scene.probe.messages.at(-1)?.headers['traceparent']).toBe(`00-${TRACE}-${PARENT}-01`);
  });
});
