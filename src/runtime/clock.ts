/** Time and chance, passed in so that pipelines hold no timers of their own and tests can turn the hands. */
export interface Clock {
  /** Monotonic milliseconds; only differences mean something. */
  now(): number;
  /** Calls once after `delayMs`; the result cancels. */
  after(delayMs: number, call: () => void): () => void;
  /** In [0, 1). */
  random(): number;
}

export const systemClock: Clock = {
  now: () => performance.now(),
  after: (delayMs, call) => {
    const timer = setTimeout(call, delayMs);
    return () => clearTimeout(timer);
  },
  random: () => Math.random(),
};

/** Milliseconds since 1970, for what others compare with their own clocks; nothing here is decided by it. */
export function unixMs(): number {
  return Date.now();
}

/** Resolves after `delayMs`, or at once when `signal` aborts. Never rejects. */
export function pause(clock: Clock, delayMs: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal?.aborted) {
      resolve();
      return;
    }
    const finish = (): void => {
      cancel();
      signal?.removeEventListener('abort', finish);
      resolve();
    };
    const cancel = clock.after(delayMs, finish);
    signal?.addEventListener('abort', finish, { once: true });
  });
}

/** Settles as `work` does, unless `limitMs` passes first: then it resolves to `otherwise` and the work is left behind. */
export async function within<T, U>(clock: Clock, work: Promise<T>, limitMs: number, otherwise: U): Promise<T | U> {
  let cancel: () => void = () => undefined;
  const limit = new Promise<U>((resolve) => {
    cancel = clock.after(limitMs, () => resolve(otherwise));
  });
  try {
    return await Promise.race([work, limit]);
  } finally {
    cancel();
  }
}

/** Settles as `work` does, but once `stopping` has aborted at the latest after `limitMs`: then the work is left behind. */
export async function untilStopped(
  clock: Clock,
  work: Promise<unknown>,
  stopping: AbortSignal,
  limitMs: number,
): Promise<void> {
  const settled = new AbortController();
  const stopped = new Promise<void>((resolve) => {
    if (stopping.aborted) resolve();
    else stopping.addEventListener('abort', () => resolve(), { once: true, signal: settled.signal });
  });
  try {
    await Promise.race([work, stopped.then(() => within(clock, work, limitMs, undefined))]);
  } finally {
    settled.abort();
  }
}
