/**
 * Tells which deliveries of one channel may be acknowledged together. Delivery tags count from 1 without gaps; a tag is
 * acknowledged with `multiple` only when every tag up to it is settled (I1, I2). Tags of another channel mean nothing
 * here: a new channel gets a new prefix.
 */
export class AckPrefix {
  #delivered = 0;
  #acked = 0;
  readonly #settledAhead = new Set<number>();

  /** Notes the next delivery. Throws when tags do not follow one another. */
  deliver(tag: number): void {
    if (tag !== this.#delivered + 1) throw new Error(`delivery tag ${tag} after ${this.#delivered}`);
    this.#delivered = tag;
  }

  /** Settles deliveries; gives the tag to acknowledge with `multiple`, or undefined when an earlier one is open. */
  settle(tags: readonly number[]): number | undefined {
    for (const tag of tags) {
      if (tag > this.#delivered || tag <= this.#acked || this.#settledAhead.has(tag)) {
        throw new Error(`I2: delivery tag ${tag} cannot be settled`);
      }
      this.#settledAhead.add(tag);
    }
    const before = this.#acked;
    while (this.#settledAhead.delete(this.#acked + 1)) this.#acked += 1;
    return this.#acked > before ? this.#acked : undefined;
  }

  /** Deliveries that are not acknowledged. */
  get open(): number {
    return this.#delivered - this.#acked;
  }
}
