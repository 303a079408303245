import { monitorEventLoopDelay } from 'node:perf_hooks';
import type { Clock } from './clock.js';

const RESOLUTION_MS = 20;
const SPAN_MS = 5_000;

/** Measures how late the event loop is (F116). */
export interface EventLoopWatch {
  /** The longest delay of the last five to ten seconds, in seconds. */
  lagSeconds(): number;
  stop(): void;
}

export function watchEventLoop(clock: Clock): EventLoopWatch {
  const histogram = monitorEventLoopDelay({ resolution: RESOLUTION_MS });
  histogram.enable();
  let before = 0;
  // What is measured is the pause between two ticks; a tick itself is no delay.
  const now = (): number => Math.max(0, histogram.max / 1e9 - RESOLUTION_MS / 1e3);
  let cancel: () => void = () => undefined;
  const turn = (): void => {
    before = now();
    histogram.reset();
    cancel = clock.after(SPAN_MS, turn);
  };
  turn();
  return {
    lagSeconds: () => Math.max(before, now()),
    stop() {
      cancel();
      histogram.disable();
    },
  };
}
