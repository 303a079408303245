import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { identify, parseIdentification, type Identifiable } from '../../../src/core/identification.js';

const message = (over: Partial<Identifiable> = {}): Identifiable => ({
  messageId: 'm-1',
  type: 'order.paid',
  appId: 'shop',
  correlationId: null,
  exchange: 'events',
  routingKey: 'order.paid',
  contentType: 'application/json',
  headers: {},
  body: Buffer.from('{}'),
  ...over,
});
const id = (how: string, given: Identifiable, namespace: 'none' | 'app-id' | 'exchange' = 'none') =>
  identify(parseIdentification(how)!, namespace, given);

describe('identity of inbound messages (design 4.2, F99)', () => {
  it.each([
    ['message-id', {}, 'm-1'],
    ['message-id', { messageId: null }, undefined],
    ['message-id', { messageId: '' }, undefined],
    ['header:event-id', { headers: { 'event-id': 'e-7' } }, 'e-7'],
    ['header:event-id', { headers: { 'event-id': 7 } }, '7'],
    ['header:event-id', { headers: { 'event-id': { a: 1 } } }, undefined],
    ['header:toString', {}, undefined],
    ['header:__proto__', {}, undefined],
    ['{type}:{header:no}', { headers: { no: '12' } }, 'order.paid:12'],
    ['{type}:{header:no}', {}, undefined],
    ['{message_id}-{correlation_id}', {}, undefined],
    ['cloudevents', { headers: { 'cloudEvents:source': '/shop', 'cloudEvents:id': '9' } }, '/shop 9'],
    ['cloudevents', { headers: { 'ce-source': '/shop', 'ce-id': '9' } }, '/shop 9'],
    ['cloudevents', { headers: { 'ce-source': '/shop' } }, undefined],
    [
      'cloudevents',
      {
        contentType: 'application/cloudevents+json; charset=utf-8',
        body: Buffer.from('{"source": "/shop", "id": "10"}'),
      },
      '/shop 10',
    ],
    ['cloudevents', { contentType: 'application/cloudevents+json', body: Buffer.from('null') }, undefined],
    ['cloudevents', { contentType: 'application/cloudevents+json', body: Buffer.from('{') }, undefined],
  ])('%s of %j is %s', (how, over, expected) => expect(id(how, message(over))).toBe(expected));

  it('keeps producers apart by app id or exchange', () => {
    expect(id('message-id', message(), 'app-id')).toBe('shop/m-1');
    expect(id('message-id', message(), 'exchange')).toBe('events/m-1');
    expect(id('message-id', message({ appId: null }), 'app-id')).toBeUndefined();
  });

  it('hashes exchange, routing key and body so that no two of them run into one another', () => {
    const of = (exchange: string, routingKey: string, body: string) =>
      id('hash', message({ exchange, routingKey, body: Buffer.from(body) }));
    expect(of('e', 'k', 'b')).toMatch(/^sha256:[0-9a-f]{64}$/);
    fc.assert(
      fc.property(fc.array(fc.string(), { minLength: 6, maxLength: 6 }), ([a, b, c, d, e, f]) => {
        const same = a === d && b === e && c === f;
        expect(of(a!, b!, c!) === of(d!, e!, f!)).toBe(same);
      }),
    );
    expect(of('ab', 'c', '')).not.toBe(of('a', 'bc', ''));
  });

  it('replaces an id that no index takes by its hash', () => {
    expect(id('message-id', message({ messageId: 'x'.repeat(600) }))).toMatch(/^sha256:/);
  });

  it.each(['', 'nothing', 'header:', '{type', 'a{unknown}', '{type}}'])('refuses %j', (text) =>
    expect(parseIdentification(text)).toBeUndefined(),
  );
});
