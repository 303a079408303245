import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { ConsumerCounters, Timer } from '../../../src/inbox/ports.js';
import { RetryTimers, type DueRow } from '../../../src/inbox/retry-timers.js';
import { ManualClock } from '../../support/manual-clock.js';

/** The timers of one consumer, and an exchange that keeps every delay exactly. */
class Stage {
  readonly clock = new ManualClock();
  readonly due: { row: DueRow; atMs: number }[] = [];
  readonly hops: number[] = [];
  readonly counters = { timersSent: 0, timersReceived: 0 } as ConsumerCounters;
  readonly timers = new RetryTimers({
    consumer: 'billing',
    clock: this.clock,
    counters: this.counters,
    onDue: (rows) => this.due.push(...rows.map((row) => ({ row, atMs: this.clock.now() }))),
  });

  attach(tiersMs: readonly number[] | null): void {
    this.timers.attach({
      tiersMs,
      isBlocked: false,
      send: (timer: Timer, delayMs: number) => {
        this.hops.push(delayMs);
        this.clock.after(delayMs, () => this.timers.arrived(timer));
      },
    });
  }
}

const ROW = { seq: 7n, attempt: 2 };

describe('timers of rows that wait', () => {
  it('bring each row back exactly when it is due, whatever the delays of the exchange, and lose none', () => {
    fc.assert(
      fc.property(
        fc.oneof(fc.constant(null), fc.uniqueArray(fc.integer({ min: 5, max: 500 }), { minLength: 1, maxLength: 4 })),
        fc.array(fc.integer({ min: 0, max: 2_000 }), { minLength: 1, maxLength: 10 }),
        (tiersMs, delays) => {
          const stage = new Stage();
          stage.attach(tiersMs);
          const beganMs = stage.clock.now();
          delays.forEach((delayMs, n) => stage.timers.schedule({ seq: BigInt(n), attempt: 2 }, delayMs));
          for (let ms = 0; ms <= 2_000; ms += 1) stage.clock.advance(1);
          expect(
            stage.due.map(({ row, atMs }) => [row.seq, atMs - beganMs]).sort(([a], [b]) => Number(a) - Number(b)),
          ).toEqual(delays.map((delayMs, n) => [BigInt(n), delayMs]));
        },
      ),
      { numRuns: 30 },
    );
  });

  it('go by the largest delay that fits, and the rest is kept here', () => {
    const stage = new Stage();
    stage.attach([1_000, 5_000, 15_000]);
    stage.timers.schedule(ROW, 7_300);
    stage.clock.advance(7_000);
    expect(stage.hops).toEqual([5_000, 1_000, 1_000]);
    expect(stage.due).toEqual([]);
    stage.clock.advance(300);
    expect(stage.due.map(({ row }) => row)).toEqual([ROW]);
    expect(stage.counters).toMatchObject({ timersSent: 3, timersReceived: 3 });
  });

  it('are kept here while there is no exchange; one of another consumer means nothing', () => {
    const stage = new Stage();
    stage.timers.schedule(ROW, 60_000);
    stage.timers.arrived({ consumer: 'shipping', seq: '8', attempt: 1, restMs: 0 });
    stage.clock.advance(59_999);
    expect(stage.due).toEqual([]);
    stage.clock.advance(1);
    expect(stage.due.map(({ row }) => row)).toEqual([ROW]);
  });

  it('F71 are kept here while RabbitMQ takes nothing, and go out again when it does', () => {
    const stage = new Stage();
    const exchange = {
      tiersMs: [1_000],
      isBlocked: true,
      send: (_: Timer, delayMs: number) => stage.hops.push(delayMs),
    };
    stage.timers.attach(exchange);
    stage.timers.schedule(ROW, 1_500);
    expect(stage.counters.timersSent).toBe(0);
    exchange.isBlocked = false;
    stage.timers.schedule({ seq: 8n, attempt: 2 }, 1_500);
    expect(stage.hops).toEqual([1_000]);
    stage.clock.advance(1_500);
    expect(stage.due.map(({ row, atMs }) => [row.seq, atMs])).toEqual([[7n, 1_500]]);
  });

  it('an early one waits for the row to be due, and after the stop nothing is due any more', () => {
    const stage = new Stage();
    stage.timers.arrived({ consumer: 'billing', seq: '7', attempt: 2, restMs: 300 });
    stage.clock.advance(299);
    expect(stage.due).toEqual([]);
    stage.timers.stop();
    stage.clock.advance(10_000);
    expect(stage.due).toEqual([]);
  });

  it('fact 44: a wait longer than the plugin takes is asked for in parts, and comes when it is due', () => {
    const stage = new Stage();
    const dayMs = 86_400_000;
    stage.timers.attach({
      tiersMs: null,
      isBlocked: false,
      send: (timer: Timer, delayMs: number) => {
        stage.hops.push(delayMs);
        // The plugin sends at once what is beyond 2^32 ms.
        stage.clock.after(delayMs < 2 ** 32 ? delayMs : 0, () => stage.timers.arrived(timer));
      },
    });
    stage.timers.schedule(ROW, 60 * dayMs + 5_000);
    stage.clock.advance(61 * dayMs);
    expect(stage.due.map(({ atMs }) => atMs)).toEqual([60 * dayMs + 5_000]);
    expect(Math.max(...stage.hops)).toBeLessThan(2 ** 31);
  });
});
