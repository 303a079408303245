import { expect, it } from 'vitest';
import { Rate } from '../../../src/app/throughput.js';

it('rates are of the last 10 s and 60 s, and unknown at first', () => {
  const rate = new Rate();
  expect(rate.read()).toEqual({ over10s: null, over60s: null });
  rate.note(0, 0);
  expect(rate.read()).toEqual({ over10s: null, over60s: null });
  rate.note(100, 1_000);
  expect(rate.read()).toEqual({ over10s: 100, over60s: 100 });
  for (let second = 2; second <= 300; second += 1) rate.note(second <= 290 ? second * 100 : 29_000, second * 1_000);
  expect(rate.read()).toEqual({ over10s: 0, over60s: 5_000 / 60 });
});
