/** Items by the time at which they are due, bounded: the latest is given up when there are too many. */
export class TimerHeap<T> {
  readonly #limit: number;
  /** Sorted, earliest first. */
  #items: { item: T; atMs: number }[] = [];

  constructor(limit: number) {
    this.#limit = limit;
  }

  /** False when something had to be given up for it, or it itself. */
  add(item: T, atMs: number): boolean {
    let low = 0;
    let high = this.#items.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((this.#items[middle]?.atMs ?? 0) <= atMs) low = middle + 1;
      else high = middle;
    }
    this.#items.splice(low, 0, { item, atMs });
    if (this.#items.length <= this.#limit) return true;
    this.#items.pop();
    return false;
  }

  /** When the next item is due. */
  get nextAtMs(): number | undefined {
    return this.#items[0]?.atMs;
  }

  /** Takes what is due, earliest first. */
  takeDue(nowMs: number): T[] {
    let count = 0;
    while (count < this.#items.length && (this.#items[count]?.atMs ?? Infinity) <= nowMs) count += 1;
    return this.#items.splice(0, count).map(({ item }) => item);
  }

  get size(): number {
    return this.#items.length;
  }
}
