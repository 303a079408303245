import { tierFor } from '../core/delay-tiers.js';
import { TimerHeap } from '../core/timer-heap.js';
import type { Clock } from '../runtime/clock.js';
import type { ConsumerCounters, Timer, TimerExchange } from './ports.js';

/** A row whose time has come, at this attempt. */
export interface DueRow {
  seq: bigint;
  attempt: number;
}

/** Held here at most; the sweep finds what does not fit. */
const MOST_HELD = 10_000;
/**
 * The longest wait that is asked of an exchange that takes any delay; the rest follows when the timer has come back. Why:
 * the plugin sends what is beyond 2^32 ms on at once.
 */
const LONGEST_ASKED_MS = 86_400_000;

/**
 * Brings rows back when they are due (design 4.4): through the delay exchange by the largest delay that is not longer than
 * what remains, again if need be, and the rest here. The row decides whether a timer means anything (F16); a timer is
 * never more than a hint, and without the exchange, or while RabbitMQ takes nothing, everything is kept here.
 */
export class RetryTimers {
  readonly #consumer: string;
  readonly #clock: Clock;
  readonly #counters: ConsumerCounters;
  readonly #onDue: (rows: DueRow[]) => void;
  readonly #held = new TimerHeap<DueRow>(MOST_HELD);
  /** Set while the publishing connection is there; written by `attach`. */
  #exchange: TimerExchange | undefined;
  #cancel: (() => void) | undefined;
  #over = false;

  constructor(options: {
    consumer: string;
    clock: Clock;
    counters: ConsumerCounters;
    onDue: (rows: DueRow[]) => void;
  }) {
    this.#consumer = options.consumer;
    this.#clock = options.clock;
    this.#counters = options.counters;
    this.#onDue = options.onDue;
  }

  /** From now on timers go through this exchange; undefined: it is gone. */
  attach(exchange: TimerExchange | undefined): void {
    this.#exchange = exchange;
  }

  /** Has the row called when it is due. */
  schedule(row: DueRow, dueInMs: number): void {
    if (this.#over) return;
    const exchange = this.#exchange?.isBlocked ? undefined : this.#exchange;
    const delayMs =
      exchange && (exchange.tiersMs ? tierFor(dueInMs, exchange.tiersMs) : Math.min(dueInMs, LONGEST_ASKED_MS));
    if (!exchange || delayMs === undefined || delayMs <= 0) {
      this.#hold(row, dueInMs);
      return;
    }
    this.#counters.timersSent += 1;
    exchange.send(
      {
        consumer: this.#consumer,
        seq: String(row.seq),
        attempt: row.attempt,
        restMs: Math.max(0, Math.round(dueInMs - delayMs)),
      },
      Math.round(delayMs),
    );
  }

  /** A timer came back. */
  arrived(timer: Timer): void {
    this.#counters.timersReceived += 1;
    if (timer.consumer !== this.#consumer) return;
    this.schedule({ seq: BigInt(timer.seq), attempt: timer.attempt }, timer.restMs);
  }

  stop(): void {
    this.#over = true;
    this.#cancel?.();
  }

  #hold(row: DueRow, dueInMs: number): void {
    const before = this.#held.nextAtMs;
    this.#held.add(row, this.#clock.now() + Math.max(0, dueInMs));
    if (this.#held.nextAtMs !== before) this.#arm();
  }

  #arm(): void {
    this.#cancel?.();
    this.#cancel = undefined;
    const next = this.#held.nextAtMs;
    if (next === undefined || this.#over) return;
    // Why a bound: a timer of the runtime that is longer than 2^31 ms fires at once.
    const waitMs = Math.min(Math.max(0, next - this.#clock.now()), 3_600_000);
    this.#cancel = this.#clock.after(waitMs, () => {
      const due = this.#held.takeDue(this.#clock.now());
      if (due.length > 0) this.#onDue(due);
      this.#arm();
    });
  }
}
