import type { OutboxRow } from '../../src/core/message.js';

/** A row as the log or a query would bring it; what the test is about is given. */
export function outboxRow(given: Partial<OutboxRow> = {}): OutboxRow {
  return {
    seq: '1',
    id: '00000000-0000-4000-8000-000000000001',
    type: 'order.paid',
    key: null,
    schemaVersion: 1,
    body: Buffer.from('{"n":1}'),
    bodyKind: 'json',
    contentType: null,
    contentEncoding: null,
    headers: '{}',
    exchange: null,
    routingKey: null,
    correlationId: null,
    causationId: null,
    replyTo: null,
    traceparent: null,
    tracestate: null,
    priority: null,
    expiresAt: null,
    deliverAt: null,
    occurredAt: '2026-01-02 03:04:05.678901+00',
    createdAt: '2026-01-02 03:04:05.678901+00',
    attempts: 0,
    ...given,
  };
}
