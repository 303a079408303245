import { expect, test } from 'vitest';
import { HeldPosition } from '../../../src/app/held-position.js';

function bench() {
  const state = { keepingPosition: 0, kept: 0, nowMs: 0, asked: 0, lets: [] as boolean[], told: [] as string[] };
  const tell = (_: object, message: string): void => void state.told.push(message);
  const held = new HeldPosition({
    settler: {
      get keepingPosition() {
        return state.keepingPosition;
      },
      letHeldPass: (lets) => state.lets.push(lets),
    },
    keptWalBytes: () => {
      state.asked += 1;
      return Promise.resolve(state.kept);
    },
    maxKeptWalBytes: 100,
    log: { debug: tell, info: tell, warn: tell, error: tell },
    nowMs: () => state.nowMs,
  });
  return { state, held };
}

test('3.4: rows hold the position up to maxKeptWal; past it those in the table let it go, until little is kept again', async () => {
  const { state, held } = bench();
  state.kept = 1_000;
  await held.look();
  // Nothing holds it: it is not this that keeps the log.
  expect([state.asked, state.lets]).toEqual([0, [false]]);
  state.keepingPosition = 3;
  state.kept = 100;
  await held.look();
  expect(state.lets.at(-1)).toBe(false);
  state.kept = 101;
  await held.look();
  await held.look();
  expect(state.lets.at(-1)).toBe(true);
  expect(state.told).toHaveLength(1);
  expect(state.told[0]).toContain('cannot be set aside');
  state.keepingPosition = 0;
  await held.look();
  expect(state.lets.at(-1)).toBe(false);
});

test('3.4: rows that only the log has are told when they go on to hold it, and again now and then', async () => {
  const { state, held } = bench();
  state.keepingPosition = 1;
  state.kept = 101;
  for (; state.nowMs < 1_200_000; state.nowMs += 10_000) await held.look();
  expect(state.told.map((text) => text.includes('only the log has'))).toEqual([false, true, true]);
});
