import { expect, test } from 'vitest';
import { Permits } from '../../../src/runtime/permits.js';

test('so many at once, in the order of asking; who gives up leaves the queue, and a permit is given back once', async () => {
  const permits = new Permits(2);
  const { signal } = new AbortController();
  const entered: number[] = [];
  const enter = (n: number, who = signal): Promise<() => void> =>
    permits.acquire(who).then((release) => {
      entered.push(n);
      return release;
    });
  const first = await enter(1);
  await enter(2);
  const impatient = new AbortController();
  const third = enter(3, impatient.signal);
  const fourth = enter(4);
  const fifth = enter(5);
  impatient.abort();
  await expect(third).rejects.toMatchObject({ code: 'WAYBILL_STOPPED' });
  first();
  first();
  const release = await fourth;
  expect(entered).toEqual([1, 2, 4]);
  release();
  await fifth;
  expect(entered).toEqual([1, 2, 4, 5]);
  await expect(permits.acquire(impatient.signal)).rejects.toMatchObject({ code: 'WAYBILL_STOPPED' });
});
