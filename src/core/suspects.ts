import type { Fault } from './fault.js';

/** As many messages as are suspected at once; more than fit a window of any sense. */
const MAX_SUSPECTS = 10_000;
/** As many messages as are remembered with the connections that they cost. */
const MAX_KILLERS = 100;
/** A message that was alone on so many connections when the broker closed them is not sent again. */
export const MAX_KILLS = 3;

/**
 * Messages that may have made the broker close a whole connection. The broker does not name the culprit, and with the
 * connection the session is over, so this outlives sessions: it is the only thing that does, it is bounded, and a
 * restart of the process merely begins the search anew. Suspects are sent one by one, and whoever was alone on the
 * wire `MAX_KILLS` times is convicted. Why more than once: a sick broker closes connections with the same reply codes.
 */
export class Suspects {
  #suspected = new Set<string>();
  readonly #kills = new Map<string, number>();
  #reason = '';

  /** The connection was closed while these were on the wire, `alone` if there was one, with nothing else in flight. */
  accuse(messageIds: readonly string[], alone: boolean, reason: string): void {
    const [first] = messageIds;
    if (first === undefined) return;
    this.#reason = reason;
    // With a killer found, the others are under suspicion no more: one is enough to explain what happened.
    this.#suspected = new Set(messageIds.slice(0, MAX_SUSPECTS));
    if (!alone) return;
    const kills = (this.#kills.get(first) ?? 0) + 1;
    this.#kills.delete(first);
    this.#kills.set(first, kills);
    if (this.#kills.size <= MAX_KILLERS) return;
    for (const oldest of this.#kills.keys()) {
      this.#kills.delete(oldest);
      return;
    }
  }

  /** Whether the message must be the only one in flight. */
  has(messageId: string): boolean {
    return this.#suspected.has(messageId) || this.#kills.has(messageId);
  }

  /** The fault of a message that is convicted. */
  verdict(messageId: string): Fault | undefined {
    if ((this.#kills.get(messageId) ?? 0) < MAX_KILLS) return undefined;
    const text = `RabbitMQ closed the connection ${MAX_KILLS} times when nothing but this message was in flight: ${this.#reason}`;
    return { fault: 'refused_by_broker', text };
  }

  /** The broker has said its word about it, or it is not sent any more. */
  forget(messageId: string): void {
    this.#suspected.delete(messageId);
    this.#kills.delete(messageId);
  }
}
