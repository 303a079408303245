/** At most `count` in `perMs` milliseconds. */
export interface Rate {
  count: number;
  perMs: number;
}

/** Of a second's worth of tokens: how much may go at once after a quiet time. */
const BURST_MS = 100;

/**
 * A bounded rate as a token bucket, counted in time: each token moves the moment at which the bucket is full again. The
 * bucket holds a tenth of a second's tokens, at least one, so that no second sees more than 1.1 times the rate (and one).
 */
export class TokenBucket {
  readonly #intervalMs: number;
  readonly #burstMs: number;
  #fullAtMs = -Infinity;

  constructor({ count, perMs }: Rate) {
    this.#intervalMs = perMs / count;
    this.#burstMs = Math.max(BURST_MS, this.#intervalMs);
  }

  /** Takes a token and says in how many milliseconds it is good; callers wait that long, in the order of asking. */
  take(nowMs: number): number {
    this.#fullAtMs = Math.max(this.#fullAtMs, nowMs) + this.#intervalMs;
    return Math.max(0, this.#fullAtMs - this.#burstMs - nowMs);
  }

  /** Gives back a token that was not used. Those who wait keep their times. */
  giveBack(): void {
    this.#fullAtMs -= this.#intervalMs;
  }
}
