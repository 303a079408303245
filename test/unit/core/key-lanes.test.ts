import { expect, test } from 'vitest';
import { KeyLanes, type LaneItem } from '../../../src/core/key-lanes.js';

const item = (order: bigint | null = null): LaneItem => ({ order, bytes: 1 });

test('3.5: a row that was due holds its key although a later one went out while it waited for its time', () => {
  const lanes = new KeyLanes<LaneItem>({ depth: 8, lastOrder: 9n });
  lanes.load(['k']);
  lanes.questions(10);
  // Somebody has given the first its number later.
  const second = item(9n);
  expect(lanes.giveBack('k', second)).toBe('go');
  lanes.done('k', second);
  lanes.answered('k', true);
  lanes.due('k', 5n);
  expect(lanes.questions(10)).toEqual([{ key: 'k', after: 4n }]);
  lanes.answered('k', true);
  expect(lanes.enter('k', item())).toBe('hold');
});

test('3.5: a key is forgotten only by an answer that is newer than its last held row', () => {
  const lanes = new KeyLanes<LaneItem>({ depth: 8, lastOrder: 0n });
  lanes.load(['k']);
  expect(lanes.questions(10)).toEqual([{ key: 'k', after: -1n }]);
  const late = item();
  expect(lanes.enter('k', late)).toBe('hold');
  lanes.stored('k', late);
  lanes.answered('k', false);
  expect(lanes.heldKeys).toBe(1);
  expect(lanes.questions(10)).toHaveLength(1);
  lanes.answered('k', false);
  expect([lanes.heldKeys, lanes.busyKeys, lanes.hasQuestions]).toEqual([0, 0, false]);
});

test('F120: a key with more rows than its depth spills them in order, and the bytes that wait are counted', () => {
  const lanes = new KeyLanes<LaneItem>({ depth: 2, lastOrder: 0n });
  const rows = Array.from({ length: 5 }, () => item());
  expect(rows.map((each) => lanes.enter('k', each))).toEqual(['go', 'wait', 'wait', 'wait', 'wait']);
  expect([lanes.waiting, lanes.waitingBytes]).toEqual([4, 4]);
  expect(lanes.done('k', rows[0]!)).toEqual({ hold: rows.slice(1) });
  expect([lanes.waiting, lanes.waitingBytes]).toEqual([0, 0]);
  expect(lanes.questions(10)).toEqual([]);
  for (const each of rows.slice(1)) lanes.stored('k', each);
  expect(lanes.questions(10)).toEqual([{ key: 'k', after: 1n }]);
});

test('3.5: a row of an answer goes back to the table when the one before it was set aside meanwhile', () => {
  const lanes = new KeyLanes<LaneItem>({ depth: 8, lastOrder: 9n });
  lanes.load(['k']);
  lanes.questions(10);
  const [first, second] = [item(5n), item(6n)];
  expect(lanes.giveBack('k', first)).toBe('go');
  expect(lanes.held('k', first)).toEqual([]);
  expect(lanes.giveBack('k', second)).toBe('hold');
});

test('F120: a key that has something to ask does not wait behind all those that the table holds', () => {
  const lanes = new KeyLanes<LaneItem>({ depth: 1, lastOrder: 0n });
  lanes.load(['a', 'b', 'c']);
  const row = item();
  expect(lanes.enter('d', row)).toBe('go');
  expect(lanes.held('d', row)).toEqual([]);
  lanes.stored('d', row);
  expect(lanes.questions(2).map(({ key }) => key)).toEqual(['d', 'a']);
  lanes.askAll();
  lanes.ask('d');
  expect(lanes.questions(9).map(({ key }) => key)).toEqual(['d', 'b', 'c', 'a']);
  expect(lanes.hasQuestions).toBe(false);
});

test('F120: while the log may bring again what an earlier session had held, only other keys are asked', () => {
  const lanes = new KeyLanes<LaneItem>({ depth: 1, lastOrder: 7n });
  lanes.load(['old']);
  for (const key of ['old', 'new']) {
    const row = item();
    if (lanes.enter(key, row) === 'go') lanes.held(key, row);
    lanes.stored(key, row);
  }
  expect(lanes.questions(9, true).map(({ key }) => key)).toEqual(['new']);
  expect(lanes.questions(9, true)).toEqual([]);
  expect(lanes.questions(9).map(({ key }) => key)).toEqual(['old']);
});

test('F120: a key whose rows rest in the table has no lane in memory, and what left it for good is remembered', () => {
  const lanes = new KeyLanes<LaneItem>({ depth: 1, lastOrder: 9n });
  lanes.load(['old', 'quiet']);
  expect([lanes.heldKeys, lanes.busyKeys]).toEqual([2, 0]);
  for (const key of ['old', 'new']) {
    const row = item();
    if (lanes.enter(key, row) === 'go') lanes.held(key, row);
    lanes.stored(key, row);
  }
  expect([lanes.heldKeys, lanes.busyKeys]).toEqual([3, 0]);
  expect(lanes.questions(9).map(({ key }) => key)).toEqual(['old', 'new', 'quiet']);
  expect(lanes.busyKeys).toBe(3);
  lanes.answered('quiet', true);
  for (const [key, order] of [
    ['old', 5n],
    ['new', 11n],
  ] as const) {
    const row = item(order);
    expect(lanes.giveBack(key, row)).toBe('go');
    lanes.answered(key, true);
    lanes.done(key, row);
  }
  expect([lanes.heldKeys, lanes.busyKeys]).toEqual([3, 0]);
  expect(lanes.questions(9)).toEqual([
    { key: 'old', after: 5n },
    { key: 'new', after: 11n },
  ]);
});

test('3.5: rows that come again from the log are numbered with those that come for the first time, and hold their key until all have their places', () => {
  const lanes = new KeyLanes<LaneItem>({ depth: 8, lastOrder: 7n });
  lanes.load(['k']);
  const [first, again, last] = [item(), item(), item()];
  expect(lanes.enter('k', first)).toBe('hold');
  lanes.again('k', again);
  expect(lanes.enter('k', last)).toBe('hold');
  expect([first.order, again.order, last.order]).toEqual([8n, 9n, 10n]);
  lanes.stored('k', first);
  lanes.stored('k', last);
  expect(lanes.questions(9)).toEqual([]);
  // An operator's act has made one due meanwhile.
  lanes.due('k', 10n);
  expect(lanes.questions(9)).toEqual([]);
  lanes.stored('k', again);
  expect(lanes.questions(9)).toEqual([{ key: 'k', after: -1n }]);
});
