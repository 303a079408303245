import { describe, expect, it } from 'vitest';
import { loadConfig } from '../../../src/config/load.js';
import { ConfigInvalid } from '../../../src/config/problems.js';

const URLS = { WAYBILL_DATABASE_URL: 'postgres://u@localhost/shop', WAYBILL_BROKER_URL: 'amqp://127.0.0.1/' };

function load(text: string, environment: Record<string, string> = {}) {
  return loadConfig({
    file: { name: 'waybill.yaml', text },
    environment: { ...URLS, ...environment },
    readFile: () => '',
  });
}

function problemsOf(...given: Parameters<typeof load>): string[] {
  try {
    load(...given);
  } catch (error) {
    if (error instanceof ConfigInvalid) return error.problems.map(({ at, problem }) => `${at} ${problem}`);
    throw error;
  }
  throw new Error('the configuration was accepted');
}

describe('consumers', () => {
  it('need nothing but a name', () => {
    expect(load('consumers: { emails: }').consumers).toEqual([
      {
        name: 'emails',
        owner: null,
        queue: 'emails',
        queueType: 'quorum',
        topology: 'assert',
        bindings: [],
        accept: [],
        identify: 'message-id',
        identification: { kind: 'message-id' },
        idNamespace: 'none',
        handler: { kind: 'store' },
        order: 'none',
        onDead: 'block',
        prefetch: 400,
        maxBodyBytes: 15 * 2 ** 20,
        batch: { rows: 200, bytes: 8 * 2 ** 20, waitMs: 10 },
        retry: {
          delaysMs: [1_000, 5_000, 30_000, 120_000, 600_000, 3_600_000],
          maxAttempts: 8,
          maxAgeMs: 259_200_000,
          notYetForMs: 86_400_000,
        },
        retention: { idsMs: 14 * 86_400_000, bodiesMs: 86_400_000, deadMs: 30 * 86_400_000 },
        deadLetterQueue: null,
        delay: 'ttl-queues',
      },
    ]);
    expect(load('log: {}').consumers).toEqual([]);
  });

  it('take everything that the design shows', () => {
    const [billing] = load(`
relay: false
consumers:
  billing:
    owner: team-billing
    queue: billing.in
    bindings: [{ exchange: events, routingKey: "order.*" }, { exchange: all }]
    accept: ["order.paid@1-2"]
    identify: "{type}:{header:no}"
    handler: { kind: sql, function: billing.on_event, timeout: 2s }
    order: key
    onDead: skip
    prefetch: 100
    batch: { rows: 50, wait: 5ms }
    retry: { delays: [100ms, 1m], maxAttempts: 3, maxAge: 1h, notYetFor: 2h }
    retention: { ids: 3d, bodies: 0s, dead: 1d }
    deadLetterQueue: billing.dead
    delay: x-delayed-message
`).consumers;
    expect(billing).toMatchObject({
      queue: 'billing.in',
      bindings: [
        { exchange: 'events', routingKey: 'order.*' },
        { exchange: 'all', routingKey: '#' },
      ],
      accept: [{ type: 'order.paid', fromVersion: 1, toVersion: 2 }],
      identification: { kind: 'template', text: '{type}:{header:no}' },
      handler: { kind: 'sql', function: 'billing.on_event', timeoutMs: 2_000 },
      order: 'key',
      onDead: 'skip',
      retry: { delaysMs: [100, 60_000], maxAttempts: 3 },
      retention: { bodiesMs: 0 },
      deadLetterQueue: 'billing.dead',
    });
    expect(load('relay: false').relay.enabled).toBe(false);
    expect(load('relay: { name: x }').relay).toMatchObject({ enabled: true, name: 'x' });
  });

  it('are told all their problems at once, with the nearest right names', () => {
    expect(
      problemsOf(`
consumers:
  Billing: {}
  billing:
    queu: x
    handler: { kind: sql, functon: billing.on_event }
    retry: { delays: [1, 5s], maxAtempts: 3 }
    bindings: [{ exchang: e }]
    accept: ["a b"]
    identify: nowhere
  emails: { queue: shared, retention: { ids: 1d } }
  faxes: { queue: shared, handler: { kind: store, function: a.b }, retry: { delays: [] } }
`),
    ).toEqual([
      'consumers.Billing is not a usable consumer name',
      'consumers.billing.bindings has a binding with an unknown key',
      'consumers.billing.accept has an entry that is no type',
      'consumers.billing.identify is no way to find an id',
      'consumers.billing.handler.functon is no key of Waybill',
      'consumers.billing.retry.delays has no unit (1)',
      'consumers.billing.retry.maxAtempts is no key of Waybill',
      'consumers.billing.queu is no key of Waybill',
      'consumers.emails.retention.ids is not longer than a message may be retried, so that a copy could be applied again',
      'consumers.faxes.handler.function is no key of Waybill',
    ]);
    expect(problemsOf('consumers: { a: { queue: q }, b: { queue: q, retry: { delays: [] } } }')).toEqual([
      'consumers.b.retry.delays is empty',
      'consumers.b.queue is also the queue of a',
    ]);
    expect(
      problemsOf(
        'consumers: { a: { deadLetterQueue: a.dlq }, b: { queue: a.dlq, deadLetterQueue: waybill.retry.a }, c: { queue: waybill.delay.5000ms } }',
      ),
    ).toEqual([
      'consumers.a.deadLetterQueue is the queue that gets what RabbitMQ gives up in a',
      'consumers.b.queue is the queue that gets what RabbitMQ gives up in a',
      'consumers.b.deadLetterQueue is the queue that gets the timers of a',
      'consumers.c.queue is the queue that holds timers',
    ]);
    expect(problemsOf('consumers: { a: { handler: { kind: sql } } }')).toEqual([
      'consumers.a.handler.function (or WAYBILL_CONSUMERS_A_HANDLER_FUNCTION) is missing',
    ]);
    expect(problemsOf('consumers: [a]')).toEqual(['consumers is not a map of names']);
    expect(problemsOf('consumers: { a: 1 }')).toEqual(['consumers.a is not a section']);
  });

  it('take their keys from the environment where the file names them', () => {
    const [consumer] = load('consumers: { billing-eu: {} }', {
      WAYBILL_CONSUMERS_BILLING_EU_QUEUE: 'q',
      WAYBILL_CONSUMERS_BILLING_EU_RETRY_MAX_AGE: '1h',
      WAYBILL_CONSUMERS_BILLING_EU_ACCEPT: '["order.paid"]',
      WAYBILL_CONSUMERS_BILLING_EU_HANDLER_KIND: 'sql',
      WAYBILL_CONSUMERS_BILLING_EU_HANDLER_FUNCTION: 'billing.on_event',
    }).consumers;
    expect(consumer).toMatchObject({
      queue: 'q',
      retry: { maxAgeMs: 3_600_000 },
      accept: [{ type: 'order.paid' }],
      handler: { kind: 'sql', function: 'billing.on_event' },
    });
    expect(problemsOf('consumers: {}', { WAYBILL_CONSUMERS_BILLING_QUEUE: 'q' })).toEqual([
      'WAYBILL_CONSUMERS_BILLING_QUEUE is no key of Waybill',
    ]);
    expect(problemsOf('consumers: { a-b: {}, a_b: {} }', { WAYBILL_CONSUMERS_A_B_OWNER: 'x' })).toEqual([
      'WAYBILL_CONSUMERS_A_B_OWNER stands for keys of two consumers, whose names differ in - and _ only',
    ]);
    expect(load('', { WAYBILL_RELAY_ENABLED: 'false' }).relay.enabled).toBe(false);
  });
});
