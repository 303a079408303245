import fc from 'fast-check';
import { expect, test } from 'vitest';
import { isFault, timestampMs, toMessage, type Message, type OutboxRow } from '../../../src/core/message.js';
import { outboxRow } from '../../support/outbox-rows.js';

const defaults = { exchange: 'events', routingKey: '{type}', maxBodyBytes: 1_000 };
const short = fc.string({ unit: 'grapheme', maxLength: 60 });
const optional = fc.option(short);
const rows: fc.Arbitrary<OutboxRow> = fc
  .record({
    type: short,
    key: optional,
    body: fc.uint8Array({ maxLength: 1_100 }).map((bytes) => Buffer.from(bytes)),
    bodyKind: fc.constantFrom('json' as const, 'bytes' as const, 'none' as const),
    headers: fc
      .dictionary(short, fc.oneof(short, fc.integer(), fc.double({ noNaN: true })), { maxKeys: 4 })
      .map((each) => JSON.stringify(each)),
    contentType: optional,
    contentEncoding: optional,
    exchange: optional,
    routingKey: optional,
    correlationId: optional,
    causationId: optional,
    replyTo: optional,
    traceparent: optional,
    tracestate: optional,
    priority: fc.option(fc.integer({ min: -2, max: 300 })),
  })
  .map((given) => outboxRow(given));

function messageOf(given: Partial<OutboxRow>, routingKey = '{type}'): Message {
  const message = toMessage(outboxRow(given), { ...defaults, routingKey });
  if (isFault(message)) throw new Error(message.text);
  return message;
}

function faultOf(given: Partial<OutboxRow>): string | undefined {
  const made = toMessage(outboxRow(given), defaults);
  return isFault(made) ? made.fault : undefined;
}

test('O7: the message is a function of the row alone, its body untouched', () => {
  fc.assert(
    fc.property(rows, (row) => {
      const copy = { ...row, seq: '99', body: Buffer.from(row.body), attempts: 7, createdAt: '2030-01-01 00:00:00+00' };
      const made = toMessage(row, defaults);
      expect(toMessage(copy, defaults)).toEqual(made);
      if (isFault(made)) return;
      expect(made.body.equals(row.body)).toBe(true);
      expect(made.messageId).toBe(row.id);
    }),
    { numRuns: 500 },
  );
});

test('F78, F80, F81: what passes is within AMQP limits; everything else is a fault', () => {
  const long = fc.option(fc.string({ unit: 'grapheme', minLength: 0, maxLength: 300 }));
  const wide = fc.tuple(
    rows,
    fc.record({ exchange: long, routingKey: long, correlationId: long, replyTo: long, contentType: long }),
  );
  fc.assert(
    fc.property(wide, ([row, given]) => {
      const made = toMessage({ ...row, ...given }, defaults);
      if (isFault(made)) return;
      for (const text of [
        made.exchange,
        made.routingKey,
        made.type,
        made.contentType,
        made.correlationId,
        made.replyTo,
      ]) {
        expect(Buffer.byteLength(text ?? '')).toBeLessThanOrEqual(255);
      }
      expect(made.body.length).toBeLessThanOrEqual(1_000);
      expect(made.priority ?? 0).toBeGreaterThanOrEqual(0);
      expect(made.priority ?? 0).toBeLessThanOrEqual(255);
    }),
  );
  expect(faultOf({ body: Buffer.alloc(1_001) })).toBe('too_large');
  expect(faultOf({ routingKey: 'é'.repeat(128) })).toBe('name_too_long');
  expect(faultOf({ priority: 256 })).toBe('bad_property');
  expect(faultOf({ headers: '{"CC": "x"}' })).toBe('reserved_header');
  expect(faultOf({ replyTo: 'amq.rabbitmq.reply-to' })).toBe('bad_property');
});

test('defaults fill what the row leaves open', () => {
  expect(messageOf({})).toMatchObject({
    exchange: 'events',
    routingKey: 'order.paid',
    contentType: 'application/json',
    timestamp: 1767323045,
  });
  expect(messageOf({ bodyKind: 'bytes' }).contentType).toBe('application/octet-stream');
  expect(messageOf({ exchange: 'x', routingKey: 'y', contentType: 'z' })).toMatchObject({
    exchange: 'x',
    routingKey: 'y',
    contentType: 'z',
  });
  expect(messageOf({ type: '$&{key}', key: '$1' }, '{type}/{key}/{schema_version}').routingKey).toBe('$&$1/$1/1');
  expect(messageOf({ key: 'k', causationId: 'c', traceparent: 'p', tracestate: 's' }).headers).toMatchObject({
    'x-waybill-key': 'k',
    'x-waybill-schema-version': 1,
    'x-waybill-causation-id': 'c',
    traceparent: 'p',
    tracestate: 's',
  });
});

test('business times far away or before 1970 make no timestamp, and never a wrong one', () => {
  for (const occurredAt of ['infinity', '-infinity', '0044-03-15 00:00:00+00 BC', '1969-12-31 23:59:59+00']) {
    expect(messageOf({ occurredAt }).timestamp, occurredAt).toBeNull();
  }
  expect(messageOf({ occurredAt: '1970-01-01 00:00:00+00' }).timestamp).toBe(0);
  expect(messageOf({ occurredAt: '9999-12-31 23:59:59.999999+00' }).timestamp).toBe(253402300799);
});

test('times order as PostgreSQL orders them, also past the year 9999', () => {
  const inOrder = ['-infinity', '0044-03-15 00:00:00+00 BC', '0044-03-15 00:00:00+00', '1969-12-31 23:59:59.5+00'];
  inOrder.push('2026-01-02 03:04:05.678+00', '9999-12-31 23:59:59+00', '12000-01-01 00:00:00+00', 'infinity');
  const values = inOrder.map(timestampMs);
  expect(values.filter(Number.isNaN)).toEqual([]);
  expect(values).toEqual([...values].sort((a, b) => (a === b ? 0 : a - b)));
  // A row that is to go out in the year 12000 does not go out now.
  expect(timestampMs('12000-01-01 00:00:00+00')).toBeGreaterThan(timestampMs('9999-12-31 23:59:59+00'));
});
