import type { Clock } from '../runtime/clock.js';
import type { RelayLog } from './ports.js';
import type { Refusal } from './refusal.js';

const COMPLAIN_EVERY_MS = 60_000;

/** A statement that the table refuses whatever its rows. */
export interface Stopped extends Refusal {
  /** What does not happen because of it. */
  doing: string;
}

/**
 * Statements that the table refuses whatever their rows: a trigger of the user's own for each statement, for example. No
 * row is to blame and no session is made better by another: each is told, and rests for a while.
 */
export class StoppedStatements {
  readonly #clock: Clock;
  readonly #log: RelayLog;
  readonly #retryInMs: number;
  readonly #soLong: string;
  readonly #stopped = new Map<string, { refusal: Refusal; retryAtMs: number; nextWordAtMs: number }>();

  /** `soLong`: what is the case until somebody has mended it, for the log. */
  constructor(options: { clock: Clock; log: RelayLog; retryInMs: number; soLong: string }) {
    this.#clock = options.clock;
    this.#log = options.log;
    this.#retryInMs = options.retryInMs;
    this.#soLong = options.soLong;
  }

  stop(doing: string, refusal: Refusal, error: unknown): void {
    const now = this.#clock.now();
    const nextWordAtMs = this.#stopped.get(doing)?.nextWordAtMs ?? now;
    const isTold = now < nextWordAtMs;
    this.#stopped.set(doing, {
      refusal,
      retryAtMs: now + this.#retryInMs,
      nextWordAtMs: isTold ? nextWordAtMs : now + COMPLAIN_EVERY_MS,
    });
    if (isTold) return;
    this.#log.error(
      { doing, ...refusal, retryInMs: this.#retryInMs, err: error },
      `${doing}: every such statement is refused, whatever its rows: change or drop the trigger of yours that refuses it (\`waybill doctor\` lists them); until then ${this.#soLong}`,
    );
  }

  /** Milliseconds until this may be tried again; 0: now. */
  restMs(doing: string): number {
    return Math.max(0, (this.#stopped.get(doing)?.retryAtMs ?? 0) - this.#clock.now());
  }

  /** Whether it has rested, and was not tried again yet. */
  isRipe(doing: string): boolean {
    return this.#stopped.has(doing) && this.restMs(doing) === 0;
  }

  /** The table has taken such a statement. */
  works(doing: string): void {
    this.#stopped.delete(doing);
  }

  /** The first of them. */
  get first(): Stopped | null {
    const [first] = this.#stopped;
    return first ? { doing: first[0], ...first[1].refusal } : null;
  }
}
