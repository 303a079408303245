import type { Ticket } from '../core/breaker.js';
import { consequenceOf } from '../core/error-policy.js';
import { isWaybillError, WaybillError } from '../core/errors.js';
import { backoffMs, type Backoff } from '../core/schedule.js';
import { pause, type Clock } from '../runtime/clock.js';
import { Wakeup } from '../runtime/signal.js';
import type { Gate } from './gate.js';
import type { Claim, ConsumerLog, InboxStore } from './ports.js';
import type { DueRow } from './retry-timers.js';

/** Handles claimed rows, in its own way: one after the other in the database, or several at once over HTTP. */
export interface Processor {
  /** How many rows it would take now; 0: it is busy, and calls `onRoom` when it is not. */
  room(): number;
  /** How long a claim must hold, milliseconds. */
  leaseMs(): number;
  /** Rows that are due again within so many milliseconds of a claim are taken together, as far as there is room. */
  readonly gatherMs: number;
  /** Has the rows handled and settled; resolves when it can be asked again. `broken`: the handler is not to be had. */
  process(claim: Claim, tickets: Ticket[]): Promise<void>;
  /** Gives back what an error left claimed; rejects while that cannot be done. */
  recover?(): Promise<void>;
  /** Resolves when nothing is being handled. */
  idle(): Promise<void>;
}

export interface WorkerOptions {
  store: Pick<InboxStore, 'claim' | 'claimRows' | 'due'>;
  gate: Gate;
  processor: Processor;
  clock: Clock;
  log: ConsumerLog;
}

const FAILURE_BACKOFF: Backoff = { firstMs: 200, factor: 2, maxMs: 10_000, jitter: 0.3 };
/** Rows among which a probe is chosen, so that one bad message does not keep the breaker open. */
const PROBE_CHOICE = 50;
/** How often something is looked for to probe with. */
const PROBE_LOOK_MS = 1_000;
const MOST_DUE = 10_000;

/**
 * Handles rows that are in the table: due again, left pending, or abandoned (design 4.3, 4.4).
 *
 *   timers say "due", the sweep and arrivals say "look" -> claim -> handle -> settle
 *
 * While the breaker is open one row at a time is the probe. I7: a claim that was lost changes nothing. I4: when the
 * database is away nothing is spent; it is looked at again.
 */
export class Worker {
  readonly #options: WorkerOptions;
  readonly #wakeup = new Wakeup();
  #due: DueRow[] = [];
  #alone: DueRow[] = [];
  #look = true;
  #failures = 0;
  #claimedDueAtMs = -Infinity;
  #cancelGathering: (() => void) | undefined;

  constructor(options: WorkerOptions) {
    this.#options = options;
  }

  /** Rows whose time has come. What is too much is found by a look. */
  due(rows: readonly DueRow[]): void {
    if (this.#due.length + rows.length > MOST_DUE) this.#look = true;
    else this.#due.push(...rows);
    this.#wakeup.wake();
  }

  /** Rows to be handled by themselves, nothing else meanwhile. */
  alone(rows: readonly DueRow[]): void {
    this.#alone.push(...rows);
    this.#wakeup.wake();
  }

  /** There may be rows to handle. */
  look(): void {
    this.#look = true;
    this.#wakeup.wake();
  }

  /** There is room again. */
  wake(): void {
    this.#wakeup.wake();
  }

  async run(stopping: AbortSignal): Promise<void> {
    const { gate, processor } = this.#options;
    const wake = (): void => this.#wakeup.wake();
    stopping.addEventListener('abort', wake, { once: true });
    const forget = gate.onChange(wake);
    try {
      while (!stopping.aborted) {
        try {
          await processor.recover?.();
          const worked = gate.isOpen ? await this.#probe(stopping) : await this.#work();
          this.#failures = 0;
          if (!worked) await this.#wakeup.wait();
        } catch (error) {
          await this.#afterError(error, stopping);
        }
      }
      await processor.idle();
      await processor.recover?.().catch((error: unknown) => this.#options.log.debug({ err: error }, 'claims remain'));
    } finally {
      stopping.removeEventListener('abort', wake);
      forget();
      this.#cancelGathering?.();
    }
  }

  /** False when there is nothing to do until somebody wakes us. */
  async #work(): Promise<boolean> {
    const { store, processor } = this.#options;
    const [alone] = this.#alone;
    if (alone) {
      await processor.idle();
      // Why first: what is refused would be refused for ever, and a look finds it when it can be claimed.
      this.#alone.shift();
      const claim = await store.claimRows([{ seq: alone.seq, attempt: null }], processor.leaseMs());
      if (claim) await this.#process(claim);
      await processor.idle();
      return true;
    }
    const room = processor.room();
    if (room === 0) return false;
    if (this.#due.length > 0) {
      // Why no look meanwhile: it would claim rows whose timers are here already.
      if (!this.#hasGathered(room)) return false;
      // Why before the claim: a hint that is refused would be refused for ever; a look finds what is due.
      const rows = this.#due.splice(0, room);
      const claim = await store.claimRows(rows, processor.leaseMs());
      this.#claimedDueAtMs = this.#options.clock.now();
      // Rows that are only claimed alone, or that somebody holds: a look finds them when it can.
      if ((claim?.messages.length ?? 0) < rows.length && rows.length > 1) this.#look = true;
      if (claim) await this.#process(claim);
      return true;
    }
    if (!this.#look) return false;
    this.#look = false;
    try {
      const claim = await store.claim(room, processor.leaseMs());
      if (!claim) return false;
      this.#look = true;
      await this.#process(claim);
      return true;
    } catch (error) {
      this.#look = true;
      throw error;
    }
  }

  /**
   * Whether what is due is claimed now. A single row is; where one claim follows another, they wait a moment for each
   * other, because a claim of sixty rows costs hardly more than a claim of one.
   */
  #hasGathered(room: number): boolean {
    const { clock, processor } = this.#options;
    const earlyMs = this.#claimedDueAtMs + processor.gatherMs - clock.now();
    if (earlyMs <= 0 || this.#due.length >= room) return true;
    this.#cancelGathering ??= clock.after(earlyMs, () => {
      this.#cancelGathering = undefined;
      this.#wakeup.wake();
    });
    return false;
  }

  async #process(claim: Claim): Promise<void> {
    const { gate, processor } = this.#options;
    const tickets: Ticket[] = [];
    for (let n = 0; n < claim.messages.length; n += 1) {
      const ticket = gate.admit();
      if (ticket) tickets.push(ticket);
    }
    await processor.process(claim, tickets);
  }

  /** One message, chosen by chance among those that wait, shows whether the handler works again. */
  async #probe(stopping: AbortSignal): Promise<boolean> {
    const { store, gate, processor, clock } = this.#options;
    await processor.idle();
    if (!gate.isOpen) return true;
    const inMs = gate.probeInMs();
    if (inMs === undefined) return false;
    if (inMs > 0) {
      await pause(clock, inMs, stopping);
      return true;
    }
    const rows = await store.due(PROBE_CHOICE);
    const row = rows[Math.floor(clock.random() * rows.length)];
    const claim = row && (await store.claimRows([{ seq: row.seq, attempt: null }], processor.leaseMs()));
    // That nothing is due says nothing of the handler: the next arrival is the probe then.
    gate.foundRows(rows.length > 0);
    if (!claim) {
      const cancel = clock.after(PROBE_LOOK_MS, () => this.#wakeup.wake());
      await this.#wakeup.wait();
      cancel();
      return true;
    }
    const ticket = gate.admit();
    await processor.process(claim, ticket ? [ticket] : []);
    await processor.idle();
    this.#look = true;
    return true;
  }

  async #afterError(error: unknown, stopping: AbortSignal): Promise<void> {
    const { clock, log, gate } = this.#options;
    if (isWaybillError(error, 'WAYBILL_HANDLER_BROKEN')) {
      gate.trip(error.message);
      return;
    }
    this.#failures += 1;
    this.#look = true;
    const foreseen = error instanceof WaybillError && consequenceOf(error.code) === 'again';
    const delayMs = backoffMs(FAILURE_BACKOFF, this.#failures, clock.random());
    const fields = { err: error, retryInMs: delayMs };
    if (foreseen) log.warn(fields, 'messages cannot be handled now; trying again');
    else log.error(fields, 'messages cannot be handled until this is mended');
    await pause(clock, delayMs, stopping);
  }
}
