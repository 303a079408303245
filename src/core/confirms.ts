/** Why the broker gave a mandatory message back, from basic.return. */
export interface Return {
  replyCode: number;
  replyText: string;
}

/** What the broker said of one publish. `lost` is not among them: a publish whose channel died is unknown. */
export type Outcome = { kind: 'confirmed' } | { kind: 'returned'; reason: Return } | { kind: 'nacked' };

/** One publish that awaits the broker's word. */
interface Outstanding<T> {
  readonly item: T;
  readonly messageId: string;
  readonly publishedAtMs: number;
  reason: Return | undefined;
}

/**
 * Publisher confirms of one channel: delivery tags in, outcomes out. Tags count from 1 in publish order. Keeps its own
 * books because the client's can hold nulls after out-of-order multiple acks. A tag that is unknown (an ack of another
 * channel's life, or a second ack) changes nothing. Source: https://www.rabbitmq.com/docs/confirms
 */
export class ConfirmTracker<T> {
  readonly #outstanding = new Map<number, Outstanding<T>>();
  #lastTag = 0;

  /** Notes a publish and gives its delivery tag. Call only for what really went to the channel. */
  published(item: T, messageId: string, nowMs: number): number {
    this.#lastTag += 1;
    this.#outstanding.set(this.#lastTag, { item, messageId, publishedAtMs: nowMs, reason: undefined });
    return this.#lastTag;
  }

  /** basic.return comes before the ack of the same message, in publish order: the oldest match is meant. */
  returned(messageId: string, reason: Return): boolean {
    for (const outstanding of this.#outstanding.values()) {
      if (outstanding.messageId !== messageId || outstanding.reason) continue;
      outstanding.reason = reason;
      return true;
    }
    return false;
  }

  ack(tag: number, multiple: boolean, settle: (item: T, outcome: Outcome) => void): void {
    this.#take(tag, multiple, (outstanding) =>
      settle(
        outstanding.item,
        outstanding.reason ? { kind: 'returned', reason: outstanding.reason } : { kind: 'confirmed' },
      ),
    );
  }

  nack(tag: number, multiple: boolean, settle: (item: T, outcome: Outcome) => void): void {
    this.#take(tag, multiple, (outstanding) => settle(outstanding.item, { kind: 'nacked' }));
  }

  /** The channel died: everything outstanding is unknown. Gives the items in publish order and forgets them. */
  lost(): T[] {
    const items = [...this.#outstanding.values()].map((outstanding) => outstanding.item);
    this.#outstanding.clear();
    return items;
  }

  get size(): number {
    return this.#outstanding.size;
  }

  /** When the oldest publish without an answer was made (monotonic milliseconds), or undefined. */
  get oldestAtMs(): number | undefined {
    for (const outstanding of this.#outstanding.values()) return outstanding.publishedAtMs;
    return undefined;
  }

  #take(tag: number, multiple: boolean, use: (outstanding: Outstanding<T>) => void): void {
    const tags: number[] = [];
    if (multiple) {
      // Tag 0 with `multiple` means everything so far.
      for (const known of this.#outstanding.keys()) {
        if (tag !== 0 && known > tag) break;
        tags.push(known);
      }
    } else tags.push(tag);
    for (const each of tags) {
      const outstanding = this.#outstanding.get(each);
      if (!outstanding) continue;
      this.#outstanding.delete(each);
      use(outstanding);
    }
  }
}
