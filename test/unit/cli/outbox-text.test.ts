import { describe, expect, test } from 'vitest';
import type { MessageRow, OutboxEntry } from '../../../src/app/outbox-admin.js';
import { cell, formatKinds, formatList, formatMessage } from '../../../src/cli/outbox-text.js';

const ID = '00000000-0000-4000-8000-000000000001';

function entry(given: Partial<OutboxEntry> = {}): OutboxEntry {
  return {
    id: ID,
    seq: '1',
    state: 'parked',
    type: 'order.paid',
    key: 'order-1',
    attempts: 3,
    error: 'unroutable: 312 NO_ROUTE',
    createdAt: new Date('2026-01-02T03:04:05Z'),
    ageMs: 7_500_000,
    nextAttemptAt: null,
    dueInMs: null,
    ...given,
  };
}

function message(given: Partial<MessageRow> = {}): MessageRow {
  return {
    id: ID,
    seq: '1',
    state: 'parked',
    type: 'order.paid',
    key: null,
    schemaVersion: 1,
    exchange: null,
    routingKey: null,
    attempts: 3,
    error: 'too\nlarge\u001b[2J',
    createdAt: new Date('2026-01-02T03:04:05Z'),
    occurredAt: null,
    deliverAt: null,
    expiresAt: null,
    nextAttemptAt: null,
    publishedAt: null,
    settledAt: null,
    priority: null,
    contentType: null,
    contentEncoding: null,
    correlationId: null,
    causationId: null,
    replyTo: null,
    traceparent: null,
    tracestate: null,
    headers: {},
    size: 9,
    sha256: null,
    ...given,
  };
}

describe('cell', () => {
  test('is one line without anything that a terminal obeys', () => {
    expect(cell('a\n\tb\u001b[31mc\u202ed', 40)).toBe('a b\ufffd[31mc\ufffdd');
  });

  test('is cut where it is too long, between whole signs', () => {
    expect(cell('abcdef', 6)).toBe('abcdef');
    expect(cell('abcdefg', 6)).toBe('abcde…');
    expect(cell('😀'.repeat(9), 4)).toBe('😀😀😀…');
    expect(cell('\u001b'.repeat(9), 4)).toBe('\ufffd\ufffd\ufffd…');
    expect(cell('x'.repeat(1_000_000), 10)).toBe('xxxxxxxxx…');
  });
});

describe('formatList', () => {
  test('a line for each row, the error below it', () => {
    const text = formatList({
      rows: [entry(), entry({ state: 'ready', key: null, attempts: 0, error: null })],
      more: false,
    });
    expect(text.split('\n')).toEqual([
      'ID                                    STATE   AGE        TYPE',
      `${ID}  parked  2 h 5 min  order.paid`,
      '    key order-1; 3 tries; unroutable: 312 NO_ROUTE',
      `${ID}  ready   2 h 5 min  order.paid`,
    ]);
  });

  test('no line wraps at 80 columns, whatever is in the rows', () => {
    const long = 'x'.repeat(900);
    const rows = [
      entry({ type: long, key: long, error: long, state: 'discarded', ageMs: 86_400_000 * 364.5 }),
      entry({ type: long, key: null }),
      entry({ state: 'scheduled', dueInMs: 90_000, error: `a\n${long}` }),
    ];
    for (const line of formatList({ rows, more: true }).split('\n')) expect(line.length).toBeLessThanOrEqual(80);
  });

  test('a scheduled row says when it is due', () => {
    const due = (dueInMs: number) =>
      formatList({ rows: [entry({ state: 'scheduled', dueInMs, error: 'e' })], more: false });
    expect(due(90_000)).toContain('; due in 90 s; e');
    expect(due(-5)).toContain('; due now; e');
  });

  test('says that there is nothing, or more', () => {
    expect(formatList({ rows: [], more: false })).toBe('No row of the outbox fits.');
    expect(formatList({ rows: [entry()], more: true })).toContain('--limit');
  });
});

describe('formatMessage', () => {
  test('strips control characters and leaves out what is not there', () => {
    const text = formatMessage({ outbox: message(), history: [], actions: [] });
    expect(text).toMatch(/error +too large\ufffd\[2J\n/);
    expect(text).not.toContain('exchange');
    expect(text).not.toContain('body');
  });

  test('tells what operators did, and that the history could not be read', () => {
    const actions = [
      { at: new Date('2026-01-02T03:04:05Z'), actor: 'ada', action: 'outbox.retry', reason: 'mended', details: {} },
    ];
    const text = formatMessage({ outbox: message(), history: null, actions });
    expect(text).toMatch(/2026-01-02T03:04:05.000Z {2}outbox.retry {2}ada {2}mended/);
    expect(text).toContain('may not read it');
  });

  test('a body is text where it is text, without what a terminal obeys', () => {
    const show = (data: Partial<MessageRow>) => formatMessage({ outbox: message(data), history: [], actions: [] });
    expect(show({ body: { encoding: 'text', data: '{"a":\n"\u001b"}' } })).toContain('{"a":\n"\ufffd"}');
    expect(show({ body: { encoding: 'base64', data: Buffer.from('plain').toString('base64') } })).toContain('plain');
    expect(show({ body: { encoding: 'base64', data: '/w==' } })).toContain('base64: /w==');
    expect(show({ body: null, size: 0 })).toContain('is empty');
    expect(show({ body: null })).toContain('not kept');
  });
});

test('kinds are summed up, at most ten of them', () => {
  const kinds = Array.from({ length: 12 }, (_, n) => ({ state: 'parked', type: `t${n}`, count: 100 }));
  const ids = Array.from({ length: 1_200 }, () => ID);
  const text = formatKinds({ kinds, ids });
  expect(text).toMatch(/^1,200 rows: 100 parked t0, /);
  expect(text).toMatch(/100 parked t9, 200 of other kinds$/);
  expect(formatKinds({ kinds: [{ state: 'parked', type: 't', count: 1 }], ids: [ID] })).toBe('1 row: 1 parked t');
});
