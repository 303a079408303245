import { expect, test } from 'vitest';
import { MAX_KILLS, Suspects } from '../../../src/core/suspects.js';

test('nobody is convicted for being near, and whoever is cleared is forgotten', () => {
  const suspects = new Suspects();
  for (let n = 0; n < 10; n += 1) suspects.accuse(['a', 'b'], false, '541');
  expect([suspects.has('a'), suspects.verdict('a')]).toEqual([true, undefined]);
  suspects.forget('a');
  expect([suspects.has('a'), suspects.has('b')]).toEqual([false, true]);
});

test('one that was alone often enough is convicted with the reason; the others are free', () => {
  const suspects = new Suspects();
  suspects.accuse(['a', 'b', 'c'], false, '541');
  for (let n = 1; n <= MAX_KILLS; n += 1) {
    expect(suspects.verdict('b')).toBeUndefined();
    suspects.accuse(['b'], true, '501 FRAME_ERROR');
    expect([suspects.has('a'), suspects.has('b')]).toEqual([false, true]);
  }
  expect(suspects.verdict('b')).toMatchObject({
    fault: 'refused_by_broker',
    text: expect.stringContaining('501') as unknown,
  });
  // A killer is remembered while another one is searched for.
  suspects.accuse(['x', 'y'], false, '541');
  expect(suspects.verdict('b')).toBeDefined();
  suspects.forget('b');
  expect([suspects.has('b'), suspects.verdict('b')]).toEqual([false, undefined]);
});

test('a connection that ends with nothing on the wire accuses nobody', () => {
  const suspects = new Suspects();
  suspects.accuse(['a'], false, '541');
  suspects.accuse([], false, '541');
  expect(suspects.has('a')).toBe(true);
});

test('memory is bounded, whatever is accused', () => {
  const suspects = new Suspects();
  const names = Array.from({ length: 20_000 }, (_, n) => `m${n}`);
  suspects.accuse(names, false, '541');
  expect(names.filter((name) => suspects.has(name))).toEqual(names.slice(0, 10_000));
  for (const name of names.slice(0, 1_000)) suspects.accuse([name], true, '541');
  expect(names.filter((name) => suspects.has(name))).toEqual(names.slice(900, 1_000));
});
