import { describe, expect, it } from 'vitest';
import { relayEntry, slotEntry } from '../app/evidence.js';
import type { ConsumerEntry, DeadGroup, InboxRow } from '../../../src/app/inbox-admin.js';
import { formatConsumers, formatGroups, formatInbox } from '../../../src/cli/inbox-text.js';
import { formatRelays } from '../../../src/cli/relay.js';
import { wrapped } from '../../../src/cli/text.js';
import { formatPlan } from '../../../src/cli/topology.js';

const NOW = new Date('2027-02-01T00:00:00Z');
const LONG_AGO = new Date('2026-01-01T00:30:00Z');
const CONFLICT = `conflict:${'a'.repeat(64)}`;
const LONG_NAME = 'billing-of-the-northern-region';

const tooLong = (text: string): string[] => text.split('\n').filter((line) => line.length > 80);

function row(change: Partial<InboxRow>): InboxRow {
  return {
    seq: '1',
    consumer: LONG_NAME,
    messageId: CONFLICT,
    originalId: null,
    type: 'order.paid',
    key: 'k'.repeat(200),
    schemaVersion: 1,
    status: 'discarded',
    deadReason: 'conflict',
    failures: 12,
    abandoned: 0,
    error: 'another body '.repeat(30),
    receivedAt: LONG_AGO,
    processedAt: null,
    nextAttemptAt: null,
    leaseUntil: null,
    lockedBy: null,
    size: 1,
    ...change,
  };
}

function consumer(change: Partial<ConsumerEntry>): ConsumerEntry {
  const state = (name: string) => ({
    state: name,
    count: 10_000,
    accuracy: 'at-least' as const,
    oldestAgeMs: NOW.getTime() - LONG_AGO.getTime(),
  });
  return {
    name: LONG_NAME,
    owner: 'team '.repeat(30),
    queue: 'q'.repeat(200),
    handler: 'store',
    ordering: 'key',
    pausedAt: LONG_AGO,
    pausedBy: 'operator',
    pausedActor: null,
    pausedReason: 'because '.repeat(30),
    renamingTo: 'letters',
    registeredAt: LONG_AGO,
    states: ['pending', 'running', 'waiting', 'blocked', 'dead'].map(state),
    ...change,
  };
}

describe('lists fit 80 columns, and what the next command asks for is whole', () => {
  it('inbox and dead', () => {
    const text = formatInbox({ rows: [row({}), row({ messageId: 'short', consumer: 'b' })], more: true }, NOW);
    expect(tooLong(text)).toEqual([]);
    expect(text).toContain(`\n    id ${CONFLICT}\n`);
    expect(text).not.toContain('id short');
  });

  it('dead by what they have in common', () => {
    const group: DeadGroup = {
      consumer: LONG_NAME,
      reason: 'conflict',
      common: 'text '.repeat(60),
      count: 1_234_567,
      firstAt: LONG_AGO,
      lastAt: LONG_AGO,
      exampleId: CONFLICT,
      isCut: true,
    };
    const text = formatGroups([group], 'error', NOW);
    expect(tooLong(text)).toEqual([]);
    expect(text).toContain(CONFLICT);
  });

  it('consumers', () => {
    const text = formatConsumers([consumer({}), consumer({ name: 'short', pausedAt: null })]);
    expect(tooLong(text)).toEqual([]);
    expect(text).toContain(`\n    consumer ${LONG_NAME}; owner team`);
    expect(text).not.toContain('consumer short');
    // What is asked for is there, also beside a long owner.
    expect(formatConsumers([consumer({ queue: 'invoices-in' })])).toContain('queue invoices-in');
    const by = consumer({ pausedActor: 'operator (ann@db-1)' });
    expect(formatConsumers([by])).toContain('PAUSED by operator (ann@db-1) since 2026-01-01T00:30:00.000Z');
  });

  it('things of the broker: names that differ at their ends can be told apart, and a wide terminal cuts less', () => {
    const step = (name: string) => ({
      kind: 'queue' as const,
      name,
      detail: 'x'.repeat(200),
      state: 'missing' as const,
    });
    const names = ['inbound', 'inbound.dlq'].map((end) => `warehouse.of.the.northern.region.two.${end}`);
    const plan = { steps: names.map(step), permissions: { configure: '^$', write: '^$', read: '^$' } };
    const lines = (width?: number) => formatPlan(plan, width).split('\n').slice(0, 2);
    expect(lines().every((line) => line.length <= 80)).toBe(true);
    expect(lines().map((line) => /(\S+)  x/.exec(line)?.[1])).toEqual([
      'warehouse.of.the.…gion.two.inbound',
      'warehouse.of.the.….two.inbound.dlq',
    ]);
    expect(lines(120).every((line, n) => line.length <= 120 && line.includes(` ${names[n] ?? ''} `))).toBe(true);
  });

  it('relays', () => {
    const record = relayEntry({ slot: 's'.repeat(63), holder: `${'h'.repeat(55)}:12345` });
    const text = formatRelays([{ record, slot: slotEntry({ active: false }) }]);
    expect(tooLong(text)).toEqual([]);
    expect(text).toContain(`\n    slot ${'s'.repeat(63)}\n`);
  });
});

it('a line goes on behind the indent, which counts', () => {
  expect(wrapped('ab cd ef gh', 5, '  ')).toEqual(['ab cd', '  ef', '  gh']);
  expect(wrapped('a verylongword b', 5, '  ')).toEqual(['a', '  verylongword', '  b']);
  expect(wrapped('a b', Infinity, '  ')).toEqual(['a b']);
});

it('breaks lines between words, and never a command in backticks', () => {
  expect(wrapped('run `waybill outbox list --held` and read it', 12)).toEqual([
    'run',
    '`waybill outbox list --held`',
    'and read it',
  ]);
  expect(wrapped('one two three', 7, '  ')).toEqual(['one two', '  three']);
  expect(wrapped('a lone ` is no pair of them', 10)).toEqual(['a lone `', 'is no pair', 'of them']);
});
