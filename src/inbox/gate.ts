import { Breaker, breakerOutcome, type Ruling, type Ticket } from '../core/breaker.js';
import { backoffMs, type Backoff } from '../core/schedule.js';
import type { Verdict } from '../core/verdict.js';
import { pause, type Clock } from '../runtime/clock.js';
import type { ConsumerLog, InboxStore, Outcome } from './ports.js';

const TELLING_BACKOFF: Backoff = { firstMs: 200, factor: 2, maxMs: 10_000, jitter: 0.3 };

type GateStore = Pick<InboxStore, 'break' | 'mend' | 'giveBack'>;

/**
 * The circuit breaker of one consumer in this process, with its clock, its note in the table and its word in the log
 * (design 4.7, F126). While it is open nothing is handled but one row at a time, the probe, and nothing is taken from the
 * queue unless no row is there to probe with. The note is for whoever looks; it stops no other process.
 */
export class Gate {
  readonly #breaker = new Breaker();
  readonly #store: GateStore;
  readonly #clock: Clock;
  readonly #log: ConsumerLog;
  readonly #listeners = new Set<() => void>();
  readonly #over = new AbortController();
  /** Attempts of each row that the table must give back; removed when it has. */
  readonly #owed = new Map<bigint, number>();
  /** What the table was asked to give back, until it has answered: asked again in the same words, it does so once. */
  #repaying: { call: number; owed: readonly { seq: bigint; attempts: number }[] } | undefined;
  /** Attempts that are being written, and may have to be given back. */
  readonly #writing = new Set<Promise<unknown>>();
  /** What the table must note: why it is open, or null that it is not; undefined: nothing. */
  #note: string | null | undefined;
  #telling: Promise<void> | undefined;
  /** Why it opened last. */
  #reason = '';
  #wantsArrival = false;

  constructor(options: { store: GateStore; clock: Clock; log: ConsumerLog }) {
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

  /** It is open and has no row to probe with: the next arrival is one. */
  get wantsArrival(): boolean {
    return this.isOpen && this.#wantsArrival;
  }

  /** Whether there are rows to probe with. */
  foundRows(some: boolean): void {
    if (this.#wantsArrival === !some) return;
    this.#wantsArrival = !some;
    this.#changed();
  }

  /** Calls whenever it opens, closes, or wants an arrival or no more; the result ends that. */
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
    const ruling = this.#breaker.settle(ticket, String(seq), outcome, this.#clock.now(), this.#clock.random());
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
    if (verdict === 'broken' && !spends) this.#giveBack(seq, 1);
  }

  /** A broken attempt that counts is on its way to the table: it can be given back when it is there. */
  whileWriting(work: Promise<unknown>): void {
    this.#writing.add(work);
    const done = (): void => void this.#writing.delete(work);
    work.then(done, done);
  }

  /** Whether what the table says of this row is about to be taken back. */
  isGivenBack(seq: bigint): boolean {
    return this.#owed.has(seq);
  }

  /** An attempt that ended without a word on its message. */
  withdraw(ticket: Ticket): void {
    this.#breaker.withdraw(ticket);
    this.#changed();
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

  /** Says it again, while it is open: the note is forgotten after a time, because its process may be gone. */
  renew(): void {
    if (this.isOpen) this.#tell(this.#reason);
  }

  /** The process ends: nobody probes any more. What is to be told can be waited for with `told`. */
  leave(): void {
    if (this.isOpen) this.#tell(null);
  }

  /** Tells nothing any more. */
  stop(): void {
    this.#over.abort();
  }

  /** Resolves when the table has been told; not while it cannot be. */
  told(): Promise<void> {
    return this.#telling ?? Promise.resolve();
  }

  #opened(reason: string, { refunds }: Ruling): void {
    this.#log.error({ reason }, 'the handler is broken: the consumer pauses and probes; no message is spent on it');
    this.#reason = reason;
    this.#wantsArrival = false;
    for (const { id, attempts } of refunds) this.#giveBack(BigInt(id), attempts);
    this.#tell(reason);
    this.#changed();
  }

  #closed(): void {
    this.#log.info({}, 'the handler answers again');
    this.#wantsArrival = false;
    this.#tell(null);
    this.#changed();
  }

  #changed(): void {
    for (const listener of this.#listeners) listener();
  }

  #giveBack(seq: bigint, attempts: number): void {
    this.#owed.set(seq, (this.#owed.get(seq) ?? 0) + attempts);
    this.#tell(this.#note);
  }

  #tell(note: string | null | undefined): void {
    this.#note = note;
    this.#telling ??= this.#tellAll().finally(() => {
      this.#telling = undefined;
      const isLeft = this.#owed.size > 0 || this.#note !== undefined;
      if (isLeft && !this.#over.signal.aborted) this.#tell(this.#note);
    });
  }

  /** Until all of it is in the table: an attempt that is not given back is a message spent on somebody else's fault. */
  async #tellAll(): Promise<void> {
    for (let failures = 0; !this.#over.signal.aborted;) {
      try {
        await Promise.allSettled([...this.#writing]);
        if (this.#owed.size > 0) await this.#repay();
        else if (this.#note !== undefined) await this.#writeNote(this.#note);
        else return;
        failures = 0;
      } catch (error) {
        failures += 1;
        if (failures === 1) {
          this.#log.warn({ err: error }, 'the state of the breaker cannot be written now; trying again');
        }
        await pause(this.#clock, backoffMs(TELLING_BACKOFF, failures, this.#clock.random()), this.#over.signal);
      }
    }
  }

  async #repay(): Promise<void> {
    this.#repaying ??= {
      call: Math.floor(this.#clock.random() * Number.MAX_SAFE_INTEGER),
      owed: [...this.#owed].map(([seq, attempts]) => ({ seq, attempts })),
    };
    const { call, owed } = this.#repaying;
    const messages = await this.#store.giveBack(owed, call);
    this.#repaying = undefined;
    for (const { seq, attempts } of owed) {
      const left = (this.#owed.get(seq) ?? 0) - attempts;
      if (left > 0) this.#owed.set(seq, left);
      else this.#owed.delete(seq);
    }
    if (messages > 0)
      this.#log.info({ messages }, 'attempts were given back: the handler was broken, not the messages');
  }

  async #writeNote(note: string | null): Promise<void> {
    if (note === null) await this.#store.mend();
    else await this.#store.break(note);
    if (this.#note === note) this.#note = undefined;
  }
}
