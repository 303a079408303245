import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { toInboundRow, type Delivery, type DeliveryProperties, type IntakeRules } from '../../../src/core/delivery.js';

const rules: IntakeRules = {
  identification: { kind: 'message-id' },
  idNamespace: 'none',
  accept: [],
  maxBodyBytes: 1_000,
};
const delivery = (properties: DeliveryProperties, body = '{"n": 1.10}'): Delivery => ({
  deliveryTag: 1,
  redelivered: false,
  exchange: 'events',
  routingKey: 'order.paid',
  properties,
  body: Buffer.from(body),
});

describe('the inbox row of a delivery', () => {
  it('takes properties and our headers, and the body as it is (F103)', () => {
    const row = toInboundRow(
      delivery({
        messageId: 'm-1',
        type: 'order.paid',
        contentType: 'application/json',
        correlationId: 'c',
        replyTo: 'r',
        appId: 'shop',
        priority: 3,
        timestamp: 1_700_000_000,
        headers: {
          'x-waybill-key': 'order-7',
          'x-waybill-schema-version': 2,
          'x-waybill-causation-id': 'cause',
          traceparent: '00-a-b-01',
          bytes: Buffer.from([1, 2]),
          __proto__: null,
        },
      }),
      rules,
    );
    expect(row).toMatchObject({
      messageId: 'm-1',
      dead: null,
      key: 'order-7',
      schemaVersion: 2,
      causationId: 'cause',
      traceparent: '00-a-b-01',
      occurredAt: '2023-11-14T22:13:20.000Z',
      priority: 3,
    });
    expect(row.body.toString()).toBe('{"n": 1.10}');
    expect(JSON.parse(row.headers)).toMatchObject({ bytes: { '!': 'bytes', base64: 'AQI=' } });
  });

  it('keeps a message without an id as dead under an id that its copies share (F99)', () => {
    const [first, again, other] = [
      toInboundRow(delivery({ headers: { a: 1 } }), rules),
      toInboundRow({ ...delivery({ headers: { a: 1, 'x-delivery-count': 4 } }), redelivered: true }, rules),
      toInboundRow(delivery({ headers: { a: 1 } }, '{}'), rules),
    ];
    expect(first.dead?.reason).toBe('no-id');
    expect(first.messageId).toMatch(/^no-id:[0-9a-f]{64}$/);
    expect(again.messageId).toBe(first.messageId);
    expect(other.messageId).not.toBe(first.messageId);
  });

  it.each([
    ['a NUL in a property', { messageId: 'm', type: 'a\0b' }],
    ['a NUL in a header', { messageId: 'm', headers: { deep: [{ x: 'a\0b' }] } }],
    ['a NUL in a header name', { messageId: 'm', headers: { 'a\0': 1 } }],
    ['half a character', { messageId: 'm', appId: '\ud800' }],
    ['half a character in a header', { messageId: 'm', headers: { x: 'a\udfffb' } }],
    ['half a character in its id', { messageId: 'm\udc00' }],
    ['headers without end', { messageId: 'm', headers: nested(40) }],
  ])('keeps a message with %s as malformed, its properties readable (F60, fact 78)', (_, properties) => {
    const row = toInboundRow(delivery(properties), rules);
    expect(row.dead?.reason).toBe('malformed');
    expect(row.messageId).toMatch(/^malformed:[0-9a-f]{64}$/);
    expect(row.originalId).toMatch(/^m\ufffd?$/);
    expect(row.body.toString()).toBe('{"n": 1.10}');
    const texts = [row.type, row.headers, row.rawProperties, row.appId].filter((text) => text !== null);
    for (const text of texts) expect(text.isWellFormed() && !text.includes('\0') && !/\\u0000/.test(text)).toBe(true);
    expect(typeof JSON.parse(row.rawProperties!)).toBe('object');
  });

  it('keeps headers that could not be decoded as bytes, under an id that copies share, and says which they are', () => {
    const unreadableHeaders = [{ name: 'x-\0deep', field: Buffer.from('A...') }];
    const [first, again, other] = [
      toInboundRow(delivery({ messageId: 'm', headers: { a: 1 }, unreadableHeaders }), rules),
      toInboundRow(delivery({ messageId: 'm', headers: { a: 1, 'x-delivery-count': 1 }, unreadableHeaders }), rules),
      toInboundRow(delivery({ messageId: 'm', headers: { a: 1 }, unreadableHeaders: [] }), rules),
    ];
    expect(first).toMatchObject({ originalId: 'm', dead: { reason: 'malformed' } });
    expect(first.dead?.text).toBe(
      'its header "x-\\u0000deep" is nested more than 16 levels deep or cannot be decoded; raw_properties has the bytes',
    );
    expect(JSON.parse(first.rawProperties!)).toMatchObject({
      headers: { a: 1 },
      unreadableHeaders: [{ name: 'x-\u2400deep', field: { '!': 'bytes', base64: 'QS4uLg==' } }],
    });
    expect(again.messageId).toBe(first.messageId);
    expect(other.dead).toBeNull();
  });

  it('keeps the headers also of a message that is malformed for another reason, up to the deepest that a row has', () => {
    const row = toInboundRow(delivery({ messageId: 'm', type: '\0', headers: nested(15) }), rules);
    expect(JSON.parse(row.rawProperties!)).toMatchObject({ headers: nested(15) });
  });

  it('keeps a message as dead whose id is not UTF-8: read as text, two such ids can be one', () => {
    const id = Buffer.from([0x80, 0x41]).toString();
    expect(toInboundRow(delivery({ messageId: id }), rules).dead).toEqual({
      reason: 'malformed',
      text: 'its id is not UTF-8',
    });
    const byHeader: IntakeRules = { ...rules, identification: { kind: 'header', name: 'no' } };
    expect(toInboundRow(delivery({ headers: { no: id } }), byHeader).dead?.reason).toBe('malformed');
    expect(toInboundRow(delivery({ messageId: id, headers: { no: '7' } }), byHeader).dead).toBeNull();
  });

  it('takes tables that look like bytes, or have bytes as their prototype, for what they are', () => {
    // As the client reads a header of the name __proto__.
    const inherits = Object.setPrototypeOf({ a: 1 }, Buffer.from('bytes')) as Record<string, unknown>;
    const looks: Record<string, unknown>[] = [5, null, 'text', [1, -1], { length: 2 ** 40 }].map((data) => ({
      type: 'Buffer',
      data,
    }));
    for (const given of [...looks, inherits]) {
      for (const headers of [given, { inner: given }]) {
        const row = toInboundRow(delivery({ messageId: 'm', headers }), rules);
        expect(row).toMatchObject({ messageId: 'm', dead: null });
        expect(JSON.parse(row.headers)).toEqual(headers === given ? { ...given } : { inner: { ...given } });
      }
    }
  });

  it('takes what only looks like an escape', () => {
    const row = toInboundRow(delivery({ messageId: 'm', headers: { x: '\\u0000', y: '\\\\ud800', z: '😀' } }), rules);
    expect(row.dead).toBeNull();
    expect(JSON.parse(row.headers)).toEqual({ x: '\\u0000', y: '\\\\ud800', z: '😀' });
  });

  it('makes a row of anything that a broker can bring, and nothing that PostgreSQL refuses', () => {
    const value = fc.oneof(fc.string({ unit: 'binary' }), fc.integer(), fc.double(), fc.boolean(), fc.constant(null));
    fc.assert(
      fc.property(
        fc.dictionary(
          fc.string({ unit: 'binary' }),
          fc.oneof(value, fc.array(value), fc.dictionary(fc.string(), value)),
        ),
        fc.option(fc.string({ unit: 'binary' }), { nil: undefined }),
        value,
        (headers, messageId, timestamp) => {
          const row = toInboundRow(delivery({ messageId, headers, timestamp }), rules);
          const texts = Object.values(row).filter((each): each is string => typeof each === 'string');
          for (const text of texts) expect(!text.includes('\0') && text.isWellFormed()).toBe(true);
          for (const json of [row.headers, row.rawProperties ?? '{}']) {
            const parsed = JSON.stringify(JSON.parse(json));
            expect(/(?<!\\)(?:\\\\)*\\u(?:0000|d[89a-f])/i.test(parsed)).toBe(false);
          }
        },
      ),
    );
  });

  it('keeps what the consumer does not accept, and what is too large, visibly (F101, F110)', () => {
    const accept = [{ type: 'order.paid', fromVersion: 1, toVersion: 1 }];
    const refused = toInboundRow(delivery({ messageId: 'm', type: 'order.lost' }), { ...rules, accept });
    expect(refused).toMatchObject({ messageId: 'm', dead: { reason: 'not-accepted' } });
    const large = toInboundRow(delivery({ messageId: 'm' }, 'x'.repeat(1_001)), rules);
    expect(large).toMatchObject({ originalId: 'm', dead: { reason: 'malformed' } });
    expect(large.body.length).toBe(1_001);
  });
});

function nested(depth: number): Record<string, unknown> {
  return depth === 0 ? {} : { x: nested(depth - 1) };
}
