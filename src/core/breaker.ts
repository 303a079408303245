import { backoffMs, type Backoff } from './schedule.js';
import type { Verdict } from './verdict.js';

/** When a consumer counts as broken, and how often it is probed. */
export interface BreakerPolicy {
  /** Distinct messages that must fail as `broken` in a row, none having been answered in between. */
  threshold: number;
  /** The pauses before each probe: growing, capped. */
  pause: Backoff;
}

/** Three messages in a row; probes after a second, then slower, once a minute in the end. */
const DEFAULT_BREAKER: BreakerPolicy = {
  threshold: 3,
  pause: { firstMs: 1_000, factor: 2, maxMs: 60_000, jitter: 0.2 },
};

/**
 * What an attempt says of the consumer. `answered`: it works, whatever it said of the message. `failed`: it is there, and
 * this attempt failed. `broken`: it is not what it should be.
 */
export type BreakerOutcome = 'answered' | 'failed' | 'broken';

/** How a verdict counts for the breaker. */
export function breakerOutcome(verdict: Verdict): BreakerOutcome {
  if (verdict.kind === 'broken') return 'broken';
  return verdict.kind === 'retry' ? 'failed' : 'answered';
}

/** The right to make one attempt; given back once, by `settle` or `withdraw`. */
export interface Ticket {
  readonly period: number;
}

/** A ticket, or the time before which asking again is vain; undefined: when the probe that is out has come back. */
export type Admission = { ticket: Ticket } | { untilMs: number | undefined };

/** Attempts of a message that were counted against it and turned out to be the consumer's fault. */
export interface Refund {
  id: string;
  attempts: number;
}

/** What follows from an outcome. */
export interface Ruling {
  /** Whether this attempt counts against its message: a failure, or a `broken` while the breaker is closed. */
  spends: boolean;
  change: 'none' | 'opened' | 'probe-failed' | 'closed';
  /** Only when it opened: what earlier attempts have cost and must not. */
  refunds: readonly Refund[];
}

/**
 * The circuit breaker of a consumer (design 4.7, F126), without clock or chance of its own.
 *
 *   closed ──threshold distinct ids broken in a row──▶ open ──pause is over, one probe──▶ half-open
 *     ▲                                                  ▲ ◀── broken (longer pause) or failed ──┤
 *     └───────────────────────────────── answered ───────┼──────────────────────────────────────┘
 *
 * Closed, a `broken` attempt is spent like any failure, because one message that gets a 404 again and again must come to
 * an end. Once it opens, those attempts are refunded and nothing more is spent. Failures neither open it nor are they
 * refunded: a message that takes the handler down must not be cleared by the refused connections that follow. Probes
 * should be of changing messages, so that such a one does not keep the breaker open.
 */
export class Breaker {
  readonly #policy: BreakerPolicy;
  /** Attempts of each message that were broken since the last answer; fewer than `threshold` of them. */
  readonly #streak = new Map<string, number>();
  /** Counts openings, so that an attempt which began before one is known. */
  #period = 0;
  #open: { untilMs: number; probes: number; probe: Ticket | undefined } | undefined;

  constructor(policy: BreakerPolicy = DEFAULT_BREAKER) {
    this.#policy = policy;
  }

  get state(): 'closed' | 'open' | 'half-open' {
    if (!this.#open) return 'closed';
    return this.#open.probe ? 'half-open' : 'open';
  }

  /** Asks whether a message may be handled now. */
  admit(nowMs: number): Admission {
    const open = this.#open;
    if (open?.probe) return { untilMs: undefined };
    if (open && nowMs < open.untilMs) return { untilMs: open.untilMs };
    const ticket = { period: this.#period };
    if (open) open.probe = ticket;
    return { ticket };
  }

  /** Notes how an attempt ended. `random` is in [0, 1). */
  settle(ticket: Ticket, id: string, outcome: BreakerOutcome, nowMs: number, random: number): Ruling {
    const ruling = { spends: outcome === 'failed', change: 'none', refunds: [] } as const;
    if (this.#open && this.#open.probe === ticket) return { ...ruling, change: this.#probed(outcome, nowMs, random) };
    // An attempt from before the last opening: if broken, then by the consumer's fault like those that were refunded.
    if (ticket.period !== this.#period) return ruling;
    if (outcome === 'answered') this.#streak.clear();
    if (outcome !== 'broken') return ruling;
    const before = this.#streak.get(id) ?? 0;
    if (before === 0 && this.#streak.size + 1 >= this.#policy.threshold) return this.#trip(nowMs, random);
    this.#streak.set(id, before + 1);
    return { ...ruling, spends: true };
  }

  /** Opens it at once: what was seen concerns the consumer whatever the message, such as a handler that is not there. */
  trip(nowMs: number, random: number): Ruling {
    if (this.#open) return { spends: false, change: 'none', refunds: [] };
    return this.#trip(nowMs, random);
  }

  /** An attempt that ended without a word on the message, because the service stops or the database failed. */
  withdraw(ticket: Ticket): void {
    if (this.#open?.probe === ticket) this.#open.probe = undefined;
  }

  #trip(nowMs: number, random: number): Ruling {
    const refunds = [...this.#streak].map(([id, attempts]) => ({ id, attempts }));
    this.#streak.clear();
    this.#period += 1;
    this.#pause(0, nowMs, random);
    return { spends: false, change: 'opened', refunds };
  }

  #probed(outcome: BreakerOutcome, nowMs: number, random: number): 'closed' | 'probe-failed' {
    if (outcome === 'answered') {
      this.#open = undefined;
      return 'closed';
    }
    const probes = this.#open?.probes ?? 0;
    // A failure says that somebody is there: looked at again after the same pause.
    this.#pause(outcome === 'broken' ? probes + 1 : probes, nowMs, random);
    return 'probe-failed';
  }

  #pause(probes: number, nowMs: number, random: number): void {
    const untilMs = nowMs + backoffMs(this.#policy.pause, probes + 1, random);
    this.#open = { untilMs, probes, probe: undefined };
  }
}
