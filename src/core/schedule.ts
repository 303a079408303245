/** Growing delays: the n-th is `firstMs * factor^(n-1)`, at most `maxMs`. Jitter only lengthens. */
export interface Backoff {
  firstMs: number;
  factor: number;
  maxMs: number;
  /** Up to this share is added, 0.2 = up to a fifth. */
  jitter: number;
}

/** Delay before attempt `attempt` (from 1) is made again. `random` is in [0, 1). */
export function backoffMs(backoff: Backoff, attempt: number, random: number): number {
  const plain = Math.min(backoff.maxMs, backoff.firstMs * backoff.factor ** (Math.max(1, attempt) - 1));
  return Math.round(plain * (1 + backoff.jitter * random));
}

/** When a relay's connections are tried again. */
export const RECONNECT_BACKOFF: Backoff = { firstMs: 100, factor: 2, maxMs: 15_000, jitter: 0.3 };

/** When a nacked message is published again: a full queue is back-pressure, not a fault of the message. */
export const NACK_BACKOFF: Backoff = { firstMs: 50, factor: 2, maxMs: 5_000, jitter: 0.2 };

/** When an unroutable row is tried again from the table. */
const UNROUTABLE_BACKOFF: Backoff = { firstMs: 1_000, factor: 2, maxMs: 60_000, jitter: 0 };

/**
 * What becomes of a row that the broker could not route, at its `attempt`-th failure (from 1): the delay until the next
 * try, or `give-up` when the tries so far span `retryForMs`. The span follows from the count, so no start time is kept.
 */
export function unroutableDelayMs(attempt: number, retryForMs: number): number | 'give-up' {
  let spanMs = 0;
  for (let n = 1; n < attempt && spanMs < retryForMs; n += 1) spanMs += backoffMs(UNROUTABLE_BACKOFF, n, 0);
  if (spanMs >= retryForMs) return 'give-up';
  return Math.min(backoffMs(UNROUTABLE_BACKOFF, attempt, 0), retryForMs - spanMs);
}
