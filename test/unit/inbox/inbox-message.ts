import type { InboxMessage } from '../../../src/inbox/ports.js';

/** A message with every property, but for what a test says. */
export function inboxMessage(given: Partial<InboxMessage> = {}): InboxMessage {
  return {
    seq: 7n,
    consumer: 'emails',
    messageId: 'b3b1c5e2-0000-4000-8000-000000000001',
    type: 'order.paid',
    key: 'order-42',
    schemaVersion: 2,
    body: Buffer.from('{"order":42,"total":12345678901234567890}'),
    contentType: 'application/json',
    contentEncoding: null,
    headers: {},
    correlationId: 'corr-1',
    causationId: 'cause-1',
    replyTo: null,
    appId: null,
    occurredAt: new Date('2026-01-02T03:04:05.678Z'),
    traceparent: '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01',
    tracestate: 'vendor=1',
    exchange: 'events',
    routingKey: 'order.paid',
    attempt: 3,
    ...given,
  };
}
