import { describe, expect, test } from 'vitest';
import type { MessageRow } from '../../../src/app/outbox-admin.js';
import { verdictOf, type TraceEvidence } from '../../../src/app/trace-verdict.js';

const ID = '00000000-0000-4000-8000-000000000001';
const AT = new Date('2026-01-02T03:04:05Z');

type Inboxed = NonNullable<TraceEvidence['inbox']>[number];

function inbox(given: Partial<Inboxed> = {}): Inboxed {
  return {
    seq: '1',
    consumer: 'billing',
    messageId: ID,
    originalId: null,
    type: 'order.paid',
    key: null,
    schemaVersion: 1,
    status: 'done',
    deadReason: null,
    failures: 0,
    abandoned: 0,
    error: null,
    receivedAt: AT,
    processedAt: null,
    nextAttemptAt: null,
    leaseUntil: null,
    lockedBy: null,
    size: 2,
    neighbours: null,
    hindrance: null,
    ...given,
  };
}

const message = (state: string, given: Partial<MessageRow> = {}): MessageRow =>
  ({
    id: ID,
    state,
    key: 'order-1',
    error: null,
    nextAttemptAt: null,
    exchange: 'e',
    routingKey: 'r',
    ...given,
  }) as MessageRow;

const verdict = (given: Partial<TraceEvidence>) =>
  verdictOf({ id: ID, outbox: null, history: [], inbox: [], ...given });

const DEAD = { status: 'dead', deadReason: 'attempts', failures: 8 };

describe('the outbox', () => {
  test.each([
    ['parked', 'too_large: the body has 9 bytes', 'source data', `waybill outbox discard ${ID}`],
    ['parked', 'bad_header: x', 'source data', `waybill outbox discard ${ID}`],
    ['parked', 'exchange_missing: exchange x does not exist', 'the route', `waybill outbox retry ${ID}`],
    ['parked', 'unroutable: RabbitMQ returned it', 'the route', `waybill outbox retry ${ID}`],
    ['blocked', null, 'on its way', 'waybill outbox list --state parked --key order-1'],
    ['scheduled', 'unroutable: x', 'on its way', `waybill outbox retry ${ID}`],
    ['scheduled', null, 'on its way', null],
    ['ready', null, 'on its way', 'waybill status'],
    ['discarded', null, 'given up', null],
    ['cancelled', null, 'given up', null],
  ])('a %s row (%s): %s', (state, error, expected, next) => {
    expect(verdict({ outbox: message(state, { error }) })).toMatchObject({ verdict: expected, next });
  });

  test('a key is an argument that a shell takes as it is', () => {
    const { next } = verdict({ outbox: message('blocked', { key: `it's; rm -rf` }) });
    expect(next).toBe(`waybill outbox list --state parked --key 'it'\\''s; rm -rf'`);
  });
});

describe('the history', () => {
  test.each([
    ['published', 'no trouble'],
    ['accepted', 'the route'],
    ['discarded', 'given up'],
    ['expired', 'given up'],
  ])('%s: %s', (state, expected) => {
    expect(verdict({ history: [message(state)] }).verdict).toBe(expected);
  });
  test('what no table knows is unknown', () => {
    expect(verdict({}).verdict).toBe('unknown');
  });
  test.each<[string, Partial<TraceEvidence>, string]>([
    ['history', { history: null }, 'it may not read the history, where it is once it was published;'],
    ['inbox', { inbox: null }, 'it may not read the inbox;'],
    ['history and inbox', { history: null, inbox: null }, 'it may not read the history and the inbox, where'],
  ])('what may be in the %s, which this role may not read, is not clear', (_, unread, reason) => {
    expect(verdict(unread)).toEqual({
      verdict: 'not clear',
      reason: expect.stringContaining(reason) as string,
      next: `WAYBILL_DATABASE_URL="$OPERATOR_URL" waybill trace ${ID}`,
    });
  });
  test('what was read is told, whatever was not', () => {
    expect(verdict({ history: null, inbox: [inbox()] }).verdict).toBe('no trouble');
    expect(verdict({ history: [message('published')], inbox: null }).verdict).toBe('no trouble');
    expect(verdict({ history: null, outbox: message('ready') }).verdict).toBe('on its way');
  });
});

describe('the consumers', () => {
  test.each<[string, Inboxed[], string]>([
    ['all applied it', [inbox(), inbox({ consumer: 'mail' })], 'no trouble'],
    ['one fails, another applied it', [inbox(DEAD), inbox({ consumer: 'mail' })], 'this consumer'],
    ['two fail alike', [inbox(DEAD), inbox({ ...DEAD, consumer: 'mail' })], 'source data'],
    ['it alone fails', [inbox({ ...DEAD, neighbours: { applied: 90, failing: 1 } })], 'source data'],
    ['the others of its type fail, too', [inbox({ ...DEAD, neighbours: { applied: 3, failing: 9 } })], 'this consumer'],
    ['nothing to compare with', [inbox({ ...DEAD, neighbours: { applied: 0, failing: 0 } })], 'not clear'],
    [
      'it waits after a failure',
      [inbox({ status: 'waiting', failures: 1, neighbours: { applied: 0, failing: 5 } })],
      'this consumer',
    ],
    ['malformed', [inbox({ status: 'dead', deadReason: 'malformed' })], 'source data'],
    ['no id', [inbox({ status: 'dead', deadReason: 'no-id' })], 'source data'],
    [
      'a conflict beside the one that was applied',
      [inbox(), inbox({ status: 'dead', deadReason: 'conflict' })],
      'source data',
    ],
    ['not accepted', [inbox({ status: 'dead', deadReason: 'not-accepted' })], 'this consumer'],
    ['pending', [inbox({ status: 'pending' })], 'on its way'],
    ['running', [inbox({ status: 'running' })], 'on its way'],
    ['blocked', [inbox({ status: 'blocked' })], 'on its way'],
    ['deferred', [inbox({ status: 'waiting' })], 'on its way'],
    ['discarded', [inbox({ status: 'discarded' })], 'given up'],
  ])('%s', (_, rows, expected) => {
    expect(verdict({ inbox: rows, history: [message('published')] }).verdict).toBe(expected);
  });

  const pause = { at: AT, by: 'operator' as const, reason: 'ticket 4711', actor: 'ann' };
  const ahead = { messageId: "o'k", status: 'dead' };

  test('what failed, and waits at a paused consumer: both are told', () => {
    const failed = { status: 'waiting', failures: 3, hindrance: { pause, ahead: null } };
    const { reason, next } = verdict({ inbox: [inbox(failed)] });
    expect(reason).toBe(
      `no other message of this type is there to compare it with; message ${ID} fails at billing; and it waits: the consumer is paused by ann since 2026-01-02T03:04:05.000Z: ticket 4711 (\`waybill consumer resume billing\`)`,
    );
    expect(next).toBe(`waybill inbox show --consumer billing ${ID}`);
    const broken = { ...failed, hindrance: { pause: { ...pause, by: 'breaker' as const }, ahead: null } };
    expect(verdict({ inbox: [inbox(broken)] }).reason).toMatch(/its handler is broken, .*: ticket 4711$/);
  });

  test.each<[string, Partial<Inboxed>, string, string | null]>([
    [
      'pending at a paused consumer',
      { status: 'pending', hindrance: { pause, ahead: null } },
      'it waits to be taken up; the consumer is paused by ann since 2026-01-02T03:04:05.000Z: ticket 4711',
      'waybill consumer resume billing',
    ],
    [
      'waiting at a paused consumer, by somebody who may not be known',
      { status: 'waiting', hindrance: { pause: { ...pause, reason: null, actor: null }, ahead: null } },
      'it waits; the consumer is paused by an operator since 2026-01-02T03:04:05.000Z',
      'waybill consumer resume billing',
    ],
    [
      'pending where the handler is broken',
      { status: 'pending', hindrance: { pause: { ...pause, by: 'breaker', reason: 'HTTP 404' }, ahead: null } },
      'it waits to be taken up; its handler is broken, and tried with one message at a time: HTTP 404',
      'waybill doctor',
    ],
    [
      'blocked behind a dead one',
      { status: 'blocked', hindrance: { pause: null, ahead } },
      "it waits behind message o'k of its key, which is dead",
      `waybill trace 'o'\\''k'`,
    ],
    [
      'running at a paused consumer',
      { status: 'running', lockedBy: 'w1', hindrance: { pause, ahead: null } },
      'it is being processed by w1',
      null,
    ],
    ['pending', { status: 'pending' }, 'it waits to be taken up', 'waybill consumer list'],
  ])('what keeps it from being taken up: %s', (_, row, reason, next) => {
    expect(verdict({ inbox: [inbox(row)] })).toEqual({
      verdict: 'on its way',
      reason: `at consumer billing ${reason}`,
      next,
    });
  });

  test('what an operator discarded is brought back by replay; retry answers that it is discarded', () => {
    expect(verdict({ inbox: [inbox({ status: 'discarded' })] }).next).toBe(
      `waybill inbox replay --consumer billing ${ID}`,
    );
  });

  test('one other message is told as one', () => {
    const rows = (applied: number, failing: number) => [inbox({ ...DEAD, neighbours: { applied, failing } })];
    expect(verdict({ inbox: rows(1, 0) }).reason).toContain('applied 1 other message of this type');
    expect(verdict({ inbox: rows(1, 1) }).reason).toContain(
      'fails on 1 other message of this type, too (1 was applied around it)',
    );
  });

  test('the next command names the consumer and the id under which the row is kept', () => {
    const rows = [inbox({ ...DEAD, deadReason: 'conflict', messageId: 'conflict:ab', originalId: ID })];
    expect(verdict({ inbox: rows }).next).toBe('waybill inbox show --consumer billing conflict:ab');
  });
});
