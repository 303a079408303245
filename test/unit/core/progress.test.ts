import { expect, it } from 'vitest';
import { Progress, type Step } from '../../../src/core/progress.js';

const step = (mark: number, busy = true, name = 'settle'): Step => ({ name, busy, mark });

it('F121: a step that has something to do and gets nowhere is told, with how long', () => {
  const progress = new Progress();
  expect(progress.look([step(1)], 0, 1_000)).toBeUndefined();
  expect(progress.look([step(1)], 1_000, 1_000)).toBeUndefined();
  expect(progress.look([step(1)], 1_001, 1_000)).toEqual({ step: 'settle', forMs: 1_001 });
});

it('a step forward begins the time anew, and so does a rest', () => {
  const progress = new Progress();
  progress.look([step(1)], 0, 1_000);
  progress.look([step(2)], 900, 1_000);
  expect(progress.look([step(2)], 1_800, 1_000)).toBeUndefined();
  progress.look([step(2, false)], 1_850, 1_000);
  expect(progress.look([step(2)], 2_800, 1_000)).toBeUndefined();
  expect(progress.look([step(2)], 2_851, 1_000)).toMatchObject({ forMs: 1_001 });
});

it('of several the one that hangs longest is told; a grace is added to the limit', () => {
  const progress = new Progress();
  progress.look([step(1, true, 'a')], 0, 10);
  progress.look([step(1, true, 'a'), step(1, true, 'b')], 5, 10);
  expect(progress.look([step(1, true, 'a'), step(1, true, 'b')], 100, 10)).toEqual({ step: 'a', forMs: 100 });
  const patient = { ...step(1, true, 'a'), graceMs: 100 };
  expect(progress.look([patient, step(1, true, 'b')], 105, 10)).toEqual({ step: 'b', forMs: 100 });
});

it('a step that was gone begins anew: another session is no hang', () => {
  const progress = new Progress();
  progress.look([step(1)], 0, 10);
  progress.look([], 5, 10);
  expect(progress.look([step(1)], 100, 10)).toBeUndefined();
});
