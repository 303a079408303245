import { setTimeout as delay } from 'node:timers/promises';
import { inspect } from 'node:util';

/** How long `until` waits, and what it says when the wait was in vain. */
export interface Waiting {
  /** Deadline in milliseconds (default 10000). */
  withinMs?: number;
  /** Pause between two looks in milliseconds (default 10). */
  everyMs?: number;
  /** What is awaited, in words, for the failure message. */
  what: string;
}

/**
 * Looks at a condition until it is truthy and returns that value; past the deadline it fails with `what` and the last
 * value or error seen. A condition that throws counts as not yet true.
 */
export async function until<T>(
  condition: () => T | Promise<T>,
  waiting: Waiting,
): Promise<Exclude<T, false | null | undefined | 0 | ''>> {
  const { withinMs = 10_000, everyMs = 10 } = waiting;
  const deadline = performance.now() + withinMs;
  for (;;) {
    let last: unknown;
    try {
      const value = await condition();
      if (value) return value as Exclude<T, false | null | undefined | 0 | ''>;
      last = value;
    } catch (error) {
      last = error;
    }
    if (performance.now() >= deadline) {
      const seen = last instanceof Error ? last.message : inspect(last, { depth: 3, breakLength: 120 });
      throw new Error(`Waited ${withinMs} ms in vain for ${waiting.what}; last seen: ${seen}`, { cause: last });
    }
    await delay(everyMs);
  }
}

/** Settles like the promise, or fails with `what` after the deadline; the promise itself goes on. */
export async function within<T>(promise: Promise<T>, ms: number, what: string): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`Waited ${ms} ms in vain for ${what}`)), ms);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
