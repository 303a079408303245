import { expect, it } from 'vitest';
import type { ConsumerCounters, Timer } from '../../../src/inbox/ports.js';
import { RetryTimers } from '../../../src/inbox/retry-timers.js';
import { ManualClock } from '../../support/manual-clock.js';

const DAY_MS = 86_400_000;

it('fact 44: a wait longer than the plugin takes is asked for in parts, and comes when it is due', () => {
  const clock = new ManualClock();
  const asked: number[] = [];
  let dueAtMs: number | undefined;
  const timers = new RetryTimers({
    consumer: 'billing',
    clock,
    counters: { timersSent: 0, timersReceived: 0 } as ConsumerCounters,
    onDue: () => (dueAtMs = clock.now()),
  });
  timers.attach({
    tiersMs: null,
    send(timer: Timer, delayMs: number) {
      asked.push(delayMs);
      // The plugin sends at once what is beyond 2^32 ms.
      clock.after(delayMs < 2 ** 32 ? delayMs : 0, () => timers.arrived(timer));
    },
  });
  timers.schedule({ seq: 1n, attempt: 1 }, 60 * DAY_MS + 5_000);
  clock.advance(61 * DAY_MS);
  expect(dueAtMs).toBe(60 * DAY_MS + 5_000);
  expect(Math.max(...asked)).toBeLessThan(2 ** 31);
});
