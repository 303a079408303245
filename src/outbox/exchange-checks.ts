import type { Fault } from '../core/fault.js';
import type { Clock } from '../runtime/clock.js';
import type { PublishConnection } from './ports.js';

/** An exchange of rows that are set aside for its sake. */
export interface UnusableExchange {
  exchange: string;
  reason: string;
  askedSecondsAgo: number;
}

/** How long a "missing" is believed before the broker is asked again. */
const MISSING_FOR_MS = 5_000;
/** The same for one that takes no messages, which only the loss of a channel tells: each costs everybody a window. */
const REFUSED_FOR_MS = 60_000;
/** As many names as are remembered; rows could name any number. */
const MAX_NAMES = 10_000;

interface Known {
  fault: Fault | undefined;
  askedMs: number;
  untilMs: number;
  /** Known by the loss of a channel. */
  isRefused?: boolean;
}

/**
 * Whether exchanges exist, asked once each on a throwaway channel before first use (F72): publishing to a missing one
 * would close the channel for everybody. One that exists is believed until a channel dies.
 */
export class ExchangeChecks {
  readonly #connection: PublishConnection;
  readonly #clock: Clock;
  readonly #known = new Map<string, Known>();
  readonly #asking = new Map<string, Promise<Fault | undefined>>();

  constructor(connection: PublishConnection, clock: Clock) {
    this.#connection = connection;
    this.#clock = clock;
  }

  /** True when the exchange is known to be there, so that nothing need be awaited. */
  isThere(name: string): boolean {
    const known = this.#known.get(name);
    return known !== undefined && known.fault === undefined;
  }

  /** Those that cannot be published to, as far as is known: nobody asks again before a row wants them. At most `limit`. */
  unusable(limit: number): UnusableExchange[] {
    const found: UnusableExchange[] = [];
    const nowMs = this.#clock.now();
    for (const [exchange, { fault, askedMs }] of this.#known) {
      if (found.length === limit) break;
      if (fault) found.push({ exchange, reason: fault.text, askedSecondsAgo: Math.round((nowMs - askedMs) / 1000) });
    }
    return found;
  }

  /** The fault of publishing to this exchange, or undefined. Rejects when the connection dies. */
  check(name: string): Promise<Fault | undefined> {
    const known = this.#known.get(name);
    if (known && this.#clock.now() < known.untilMs) return Promise.resolve(known.fault);
    const asking = this.#asking.get(name);
    if (asking) return asking;
    const question = this.#ask(name).finally(() => this.#asking.delete(name));
    this.#asking.set(name, question);
    return question;
  }

  /** Publishing to it was refused, which looking cannot tell. */
  refuse(name: string, fault: Fault): void {
    const askedMs = this.#clock.now();
    this.#known.set(name, { fault, askedMs, untilMs: askedMs + REFUSED_FOR_MS, isRefused: true });
  }

  /** Forgets what is missing or forbidden: somebody has asked for another try, so it may have been mended. */
  forgetFaults(): void {
    for (const [name, known] of this.#known) if (known.fault) this.#known.delete(name);
  }

  /** A channel died, perhaps because an exchange was deleted: asks again, but for what would only end the next channel. */
  forget(): void {
    for (const [name, known] of this.#known) if (!known.isRefused) this.#known.delete(name);
  }

  async #ask(name: string): Promise<Fault | undefined> {
    const fault = await this.#connection.checkExchange(name);
    if (this.#known.size >= MAX_NAMES) this.#known.clear();
    const askedMs = this.#clock.now();
    this.#known.set(name, { fault, askedMs, untilMs: fault ? askedMs + MISSING_FOR_MS : Infinity });
    return fault;
  }
}
