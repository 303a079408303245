import { describe, expect, it } from 'vitest';
import { parseAcceptance, refusal, type Acceptance } from '../../../src/core/acceptance.js';

const accept = (...texts: string[]): Acceptance[] => texts.map((text) => parseAcceptance(text)!);

describe('accept (F101)', () => {
  it.each([
    ['order.paid', { type: 'order.paid', fromVersion: 0, toVersion: Infinity }],
    ['order.paid@2', { type: 'order.paid', fromVersion: 2, toVersion: 2 }],
    ['order.paid@1-2', { type: 'order.paid', fromVersion: 1, toVersion: 2 }],
    ['order.paid@3-', { type: 'order.paid', fromVersion: 3, toVersion: Infinity }],
    ['order.paid@2-1', undefined],
    ['order.paid@', undefined],
    ['@1', undefined],
    ['order.paid@x', undefined],
    ['order paid', undefined],
  ])('reads %s', (text, entry) => expect(parseAcceptance(text)).toEqual(entry));

  it('takes what is listed and says why it does not take the rest', () => {
    const list = accept('order.paid@1-2', 'order.paid@5', 'order.sent');
    const of = (type: string | null, schemaVersion: number | null) => refusal(list, { type, schemaVersion });
    expect(of('order.paid', 2)).toBeUndefined();
    expect(of('order.paid', 5)).toBeUndefined();
    expect(of('order.paid', null)).toBeUndefined();
    expect(of('order.sent', 77)).toBeUndefined();
    expect(of('order.paid', 3)).toMatch(/version 3/);
    expect(of('order.lost', 1)).toMatch(/type/);
    expect(of(null, 1)).toMatch(/no type/);
    expect(refusal([], { type: null, schemaVersion: null })).toBeUndefined();
  });
});
