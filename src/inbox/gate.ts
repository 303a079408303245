import { Breaker, breakerOutcome, type Ruling, type Ticket } from '../core/breaker.js';
import type { Verdict } from '../core/verdict.js';
import type { Clock } from '../runtime/clock.js';
import type { ConsumerLog, InboxStore, Outcome } from './ports.js';

/** Of an attempt that was counted a moment ago. */
const REFUND_SPAN_MS = 5_000;

/**
 * The circuit breaker of one consumer with its clock, its record in the table and its word in the log (design 4.7, F126).
 * While it is open nothing is taken from the queue, arrivals are stored without being handled, and one row at a time is
 * the probe.
 */
export class Gate {
  readonly #breaker = new Breaker();
  readonly #store: Pick<InboxStore, 'break' | 'mend' | 'refund'>;
  readonly #clock: Clock;
  readonly #log: ConsumerLog;
  readonly #listeners = new Set<() => void>();
  /** What the table is told, one after the other. */
  #telling: Promise<unknown> = Promise.resolve();

  constructor(options: { store: Pick<InboxStore, 'break' | 'mend' | 'refund'>; clock: Clock; log: ConsumerLog }) {
    this.#store = options.store;
    this.#clock = options.clock;
    this.#log = options.log;
  }

  get isOpen(): boolean {
    return this.#breaker.state !== 'closed';
  }

  get state(): 'closed' | 'open' | 'half-open' {
    return this.#breaker.state;
  }

  /** Calls whenever it opens or closes; the result ends that. */
  onChange(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** The right to make one attempt; while it is open, to one probe at a time, or nothing before its time. */
  admit(): Ticket | undefined {
    const admission = this.#breaker.admit(this.#clock.now());
    return 'ticket' in admission ? admission.ticket : undefined;
  }

  /** How long until a probe may be made, milliseconds; undefined while one is out. */
  probeInMs(): number | undefined {
    const nowMs = this.#clock.now();
    const admission = this.#breaker.admit(nowMs);
    if (!('ticket' in admission)) return admission.untilMs === undefined ? undefined : admission.untilMs - nowMs;
    this.#breaker.withdraw(admission.ticket);
    return 0;
  }

  /** Notes how an attempt ended; false: it must not be counted against its message. */
  settle(ticket: Ticket, seq: bigint, verdict: Verdict): boolean {
    const outcome = breakerOutcome(verdict);
    const nowMs = this.#clock.now();
    const ruling = this.#breaker.settle(ticket, String(seq), outcome, nowMs, this.#clock.random());
    if (ruling.change === 'opened') this.#opened(verdict.kind === 'done' ? '' : verdict.error, ruling);
    if (ruling.change === 'closed') this.#closed();
    return ruling.spends;
  }

  /** The same for an attempt that the table has already counted; what must not count is given back there. */
  settleRow(ticket: Ticket, { seq, verdict, error }: Pick<Outcome, 'seq' | 'verdict' | 'error'>): void {
    if (verdict === null || verdict === 'lost' || verdict === 'release') {
      this.withdraw(ticket);
      return;
    }
    const spends = this.settle(
      ticket,
      seq,
      verdict === 'done' ? { kind: 'done' } : { kind: verdict, error: error ?? '' },
    );
    if (verdict === 'broken' && !spends) this.#tell(() => this.#store.refund([seq], REFUND_SPAN_MS));
  }

  /** An attempt that ended without a word on its message. */
  withdraw(ticket: Ticket): void {
    this.#breaker.withdraw(ticket);
    for (const listener of this.#listeners) listener();
  }

  /** What was seen concerns the consumer, whatever the message. As the end of a probe it makes the pause longer. */
  trip(reason: string, probe?: Ticket): void {
    const nowMs = this.#clock.now();
    if (probe && this.isOpen) {
      this.#breaker.settle(probe, 'consumer', 'broken', nowMs, this.#clock.random());
      return;
    }
    const ruling = this.#breaker.trip(nowMs, this.#clock.random());
    if (ruling.change === 'opened') this.#opened(reason, ruling);
  }

  #opened(reason: string, { refunds, sinceMs }: Ruling): void {
    this.#log.error({ reason }, 'the handler is broken: the consumer pauses and probes; no message is spent on it');
    // A little more than that: the attempt was written a moment after it was noted here.
    const agoMs = this.#clock.now() - sinceMs + 1_000;
    this.#tell(() => this.#store.break(reason));
    if (refunds.length > 0) {
      this.#tell(() =>
        this.#store.refund(
          refunds.map(({ id }) => BigInt(id)),
          agoMs,
        ),
      );
    }
    for (const listener of this.#listeners) listener();
  }

  #closed(): void {
    this.#log.info({}, 'the handler answers again');
    this.#tell(() => this.#store.mend());
    for (const listener of this.#listeners) listener();
  }

  #tell(what: () => Promise<unknown>): void {
    this.#telling = this.#telling.then(what).catch((error: unknown) => {
      this.#log.warn({ err: error }, 'the state of the breaker could not be written');
    });
  }

  /** Resolves when the table has been told. */
  told(): Promise<unknown> {
    return this.#telling;
  }
}
