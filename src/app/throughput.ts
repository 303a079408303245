/** Messages a second over the last seconds; null until there are two samples so far apart. */
export interface Throughput {
  over10s: number | null;
  over60s: number | null;
}

const LONGEST_MS = 60_000;

/** Rates of a growing count from samples of it. Keeps a minute of them. */
export class Rate {
  #samples: { atMs: number; count: number }[] = [];

  /** Notes the count at a moment, monotonic milliseconds. */
  note(count: number, atMs: number): void {
    this.#samples.push({ atMs, count });
    // One sample stays from before the longest span.
    const first = this.#samples.findIndex((sample) => sample.atMs > atMs - LONGEST_MS);
    if (first > 1) this.#samples.splice(0, first - 1);
  }

  read(): Throughput {
    return { over10s: this.#over(10_000), over60s: this.#over(LONGEST_MS) };
  }

  #over(spanMs: number): number | null {
    const newest = this.#samples.at(-1);
    const oldest = this.#samples.find((sample) => newest && sample.atMs >= newest.atMs - spanMs);
    if (!newest || !oldest || newest === oldest) return null;
    return ((newest.count - oldest.count) * 1000) / (newest.atMs - oldest.atMs);
  }
}
