import { describe, expect, it } from 'vitest';
import { toInboundRow } from '../../../src/core/delivery.js';
import { WaybillError } from '../../../src/core/errors.js';
import { Persisting } from '../../../src/inbox/persisting.js';
import type { Arrival, ConsumerCounters, ReceivedRow } from '../../../src/inbox/ports.js';
import { silentLogger } from '../../../src/telemetry/log.js';
import { ManualClock, turn } from '../../support/manual-clock.js';

const arrival = (messageId: string): Arrival => {
  const properties = { messageId };
  const delivery = {
    deliveryTag: 1,
    redelivered: false,
    exchange: '',
    routingKey: 'q',
    properties,
    body: Buffer.alloc(0),
  };
  const rules = {
    identification: { kind: 'message-id' as const },
    idNamespace: 'none' as const,
    accept: [],
    maxBodyBytes: 9,
  };
  return { row: toInboundRow(delivery, rules), properties };
};

/** Writes a batch to a store that refuses with these errors, and lets the time of all pauses pass. */
async function write(
  arrivals: readonly Arrival[],
  apply: boolean,
  fails: (batch: readonly Arrival[]) => string | undefined,
) {
  const clock = new ManualClock();
  const calls: string[][] = [];
  const persisting = new Persisting({
    store: {
      receive: (batch) => {
        calls.push(batch.map(({ row }) => row.messageId));
        const code = fails(batch);
        if (code === undefined) return Promise.resolve(batch.map(() => ({}) as ReceivedRow));
        const cause = Object.assign(new Error('as the test says'), { code });
        return Promise.reject(new WaybillError('WAYBILL_TRANSACTION_REPEATED', 'again', { cause }));
      },
    },
    clock,
    log: silentLogger,
    counters: { repeated: 0 } as ConsumerCounters,
    tooSlow: 'too slow',
  });
  let end: ReceivedRow[] | Error | undefined;
  persisting.write(arrivals, apply).then(
    (rows) => (end = rows),
    (error: unknown) => (end = error as Error),
  );
  const startMs = clock.now();
  while (end === undefined) {
    await turn();
    clock.advance(10);
  }
  return { end, calls, tookMs: clock.now() - startMs };
}

describe('a transaction that conflicts again and again', () => {
  const batch = () => ['a', 'bad', 'c'].map(arrival);
  const whereverBadIsHandled = (given: readonly Arrival[]) =>
    given.some(({ row, hold }) => row.messageId === 'bad' && hold !== true) ? '40001' : undefined;

  it('F125 because of one message whose handler raises it: the others are written, that one is kept for itself', async () => {
    const arrivals = batch();
    const { end, calls, tookMs } = await write(arrivals, true, whereverBadIsHandled);
    expect(end).toHaveLength(3);
    expect(arrivals.map(({ hold }) => hold === true)).toEqual([false, true, false]);
    expect(calls.slice(0, 6)).toEqual([...Array<string[]>(5).fill(['a', 'bad', 'c']), ['a']]);
    expect(calls.slice(6)).toEqual([...Array<string[]>(9).fill(['bad']), ['c']]);
    expect(tookMs).toBeLessThan(5_000);
  });

  it('F127 that passes is repeated as it is', async () => {
    let left = 4;
    const arrivals = batch();
    const { calls } = await write(arrivals, true, () => (left-- > 0 ? '40P01' : undefined));
    expect(calls).toEqual(Array<string[]>(5).fill(['a', 'bad', 'c']));
    expect(arrivals.some(({ hold }) => hold)).toBe(false);
  });

  it.each([
    ['a lock that somebody else has', true, '55P03'],
    ['a conflict where no handler is called', false, '40001'],
  ])("is no message's fault: %s", async (_, apply, code) => {
    const arrivals = batch();
    const { end, calls } = await write(arrivals, apply, () => code);
    expect(end).toBeInstanceOf(WaybillError);
    expect(calls).toEqual(Array<string[]>(30).fill(['a', 'bad', 'c']));
    expect(arrivals.some(({ hold }) => hold)).toBe(false);
  });
});
