/** Where a batch ends: whichever comes first. */
export interface GatheringLimits {
  rows: number;
  bytes: number;
  /** How long the first item of a batch may wait for others, milliseconds. */
  waitMs: number;
}

/**
 * Gathers items into batches bounded in rows, bytes and time. An item larger than the byte limit makes a batch of its
 * own. Order is kept.
 */
export class Gathering<T> {
  readonly #limits: GatheringLimits;
  #items: { item: T; bytes: number; atMs: number }[] = [];
  #bytes = 0;

  constructor(limits: GatheringLimits) {
    this.#limits = limits;
  }

  add(item: T, bytes: number, nowMs: number): void {
    this.#items.push({ item, bytes, atMs: nowMs });
    this.#bytes += bytes;
  }

  /** When the next batch is to be taken: now or before if it is full; undefined if there is nothing. */
  dueAtMs(): number | undefined {
    const first = this.#items[0];
    if (!first) return undefined;
    const isFull = this.#items.length >= this.#limits.rows || this.#bytes >= this.#limits.bytes;
    return isFull ? first.atMs : first.atMs + this.#limits.waitMs;
  }

  /** Takes the next batch: at least one item if there is one, never more than the limits allow. */
  take(): T[] {
    let bytes = 0;
    let count = 0;
    for (const each of this.#items) {
      if (count === this.#limits.rows || (count > 0 && bytes + each.bytes > this.#limits.bytes)) break;
      bytes += each.bytes;
      count += 1;
    }
    this.#bytes -= bytes;
    return this.#items.splice(0, count).map(({ item }) => item);
  }

  /** Forgets everything that waits. */
  clear(): void {
    this.#items = [];
    this.#bytes = 0;
  }

  get size(): number {
    return this.#items.length;
  }
}
