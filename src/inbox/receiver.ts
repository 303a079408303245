import type { IntakeRules } from '../core/delivery.js';
import { consequenceOf } from '../core/error-policy.js';
import { isWaybillError, WaybillError } from '../core/errors.js';
import type { GatheringLimits } from '../core/gathering.js';
import { backoffMs, RECONNECT_BACKOFF } from '../core/schedule.js';
import { pause, untilStopped, within, type Clock } from '../runtime/clock.js';
import { Wakeup } from '../runtime/signal.js';
import { fromBrokerDeath } from './dead-letters.js';
import { DeathCopier } from './death-copies.js';
import { Gate } from './gate.js';
import { HttpProcessor } from './http-processor.js';
import { Intake, type IntakeOptions } from './intake.js';
import { Outcomes } from './outcomes.js';
import { Persisting } from './persisting.js';
import type { ConsumerBroker, ConsumerCounters, ConsumerLog, InboxStore, MessageHandler } from './ports.js';
import { RetryTimers, type DueRow } from './retry-timers.js';
import type { MessageSpans } from './spans.js';
import { MOST_SUBTRANSACTIONS, SqlProcessor } from './sql-processor.js';
import { Worker, type Processor } from './worker.js';

/** How a consumer's messages have their effect. */
export type HandlerPart =
  | { kind: 'store' }
  | { kind: 'sql'; timeoutMs: number }
  | { kind: 'http'; handler: MessageHandler & { concurrency: number; longestMs: number }; delaysMs: readonly number[] };

export interface ReceiverOptions {
  consumer: string;
  queue: string;
  /** Deliveries that may be unacknowledged at once. */
  prefetch: number;
  handler: HandlerPart;
  rules: IntakeRules;
  limits: GatheringLimits;
  byKey: boolean;
  logsAll: boolean;
  deadLetterExchange: string;
  store: InboxStore;
  broker: ConsumerBroker;
  counters: ConsumerCounters;
  clock: Clock;
  log: ConsumerLog;
  /** Undefined: nobody traces. */
  spans?: MessageSpans | undefined;
  onHandled?: (seconds: number) => void;
}

/** What differs between the intakes of a consumer. */
type OwnOptions = Pick<IntakeOptions, 'rules' | 'limits' | 'applies' | 'gate' | 'onPending' | 'onSuspects'> &
  Partial<Pick<IntakeOptions, 'counters' | 'spans' | 'usualPrefetch' | 'toArrival'>>;

/** The loops that need the broker, as the log calls them. */
type Part =
  | 'the queue'
  | 'the queue of dead letters'
  | 'the delay exchange'
  | 'the dead-letter exchange'
  | 'copies of dead messages';

/** How often rows are looked for whose timers were lost, orphans, and deaths without a copy. */
const SWEEP_INTERVAL_MS = 30_000;
/** How often rows are looked for that nobody told of: an operator's retry, a lost timer. One statement by an index. */
const LOOK_INTERVAL_MS = 5_000;
const OPERATOR_RETRY_MS = 15_000;
/** A message is taken as a probe at most this often. */
const PROBE_INTERVAL_MS = 1_000;
/** Most bytes of bodies taken and not yet written, whatever the prefetch. */
export const MOST_HELD_BYTES = 64 * 2 ** 20;
/** Applications that claim rows are woken at most this often. */
const WAKE_INTERVAL_MS = 50;
/** Dead messages are looked for at most this often: many die together. */
const COPY_INTERVAL_MS = 200;
/** Closing what was opened, after the deadline of a drain. */
const CLOSING_MS = 2_000;

/**
 * The receiver of one consumer (design 4).
 *
 *   queue ──▶ intake ──▶ inbox ◀── worker ◀── timers ◀── delay exchange
 *                          │                   sweep
 *                          └──▶ deaths ──▶ dead-letter exchange      <queue>.dlq ──▶ intake ──▶ inbox
 *
 * Five loops that share nothing but the table; each goes on by itself after an error, because one that cannot work is no
 * reason for the others to stop. Where a process may die, and what follows:
 *
 *   before the commit of a batch            -> the broker delivers it again (F11, F12)
 *   after the commit, before the ack        -> delivered again, found, acknowledged (F13, F14)
 *   after a row waits, before its timer     -> the sweep (F15); timers are hints, the row decides (F16)
 *   after a death, before its copy is noted -> the copy goes out later, or twice (F17)
 *   while a handler works over HTTP         -> the lease ends, the attempt counts as abandoned
 */
export class Receiver {
  readonly #options: ReceiverOptions;
  readonly #giveUp = new AbortController();
  readonly #deathSeen = new Wakeup();
  readonly gate: Gate;
  readonly #outcomes: Outcomes;
  readonly #timers: RetryTimers;
  readonly #worker: Worker | undefined;
  readonly #persisting: Persisting;
  readonly #copier: DeathCopier;
  #wakeCancel: (() => void) | undefined;
  #isConsuming = false;
  #lag: number | undefined;
  /** Looks that are sweeps for orphans besides: written by a message that was blocked as it came. */
  #looksForOrphans = 0;
  /** Why a loop is not at work, by its name: written by its failure, taken away when it works again. */
  readonly #troubles = new Map<Part, unknown>();
  #hasSeenForeign = false;
  /** Smaller than configured once the bodies were found to be large. */
  #prefetch: number | undefined;

  constructor(options: ReceiverOptions) {
    this.#options = options;
    const { store, clock, log, counters, handler, consumer } = options;
    this.gate = new Gate({ store, clock, log });
    this.#timers = new RetryTimers({ consumer, clock, counters, onDue: (rows) => this.#due(rows) });
    this.#outcomes = new Outcomes({
      counters,
      log,
      logsAll: options.logsAll,
      followers: {
        onWaiting: ({ seq, attempt, dueInMs }) => this.#timers.schedule({ seq, attempt }, dueInMs),
        onDead: () => this.#deathSeen.wake(),
        onReleased: () => this.#pending(),
        onBlocked: () => (this.#looksForOrphans = SWEEP_INTERVAL_MS / LOOK_INTERVAL_MS),
      },
      isGivenBack: (seq) => this.gate.isGivenBack(seq),
    });
    const tooSlow =
      handler.kind === 'sql' ? `the handler took longer than ${handler.timeoutMs} ms` : 'the statement took too long';
    this.#persisting = new Persisting({ store, clock, log, counters, tooSlow });
    this.#copier = new DeathCopier({
      consumer,
      exchange: options.deadLetterExchange,
      store,
      publisher: options.broker.copies,
      counters,
      log,
    });
    const processor = this.#processor(tooSlow);
    if (processor) this.#worker = new Worker({ store, gate: this.gate, processor, clock, log });
  }

  /** Whether messages are taken from the queue at this moment. */
  get isConsuming(): boolean {
    return this.#isConsuming;
  }

  /** What does not work at this moment, with the error that said so. */
  get troubles(): readonly { part: Part; error: unknown }[] {
    return [...this.#troubles].map(([part, error]) => ({ part, error }));
  }

  /** Messages in the queue that were not delivered, as they were last seen; undefined while that is unknown. */
  get lag(): number | undefined {
    return this.#lag;
  }

  #processor(tooSlow: string): Processor | undefined {
    const { handler, store, clock, counters, log, spans, onHandled } = this.#options;
    const shared = { store, gate: this.gate, outcomes: this.#outcomes, clock, spans };
    if (handler.kind === 'sql')
      return new SqlProcessor({
        ...shared,
        counters,
        timeoutMs: handler.timeoutMs,
        tooSlow,
        onAlone: (rows) => this.#worker?.alone(rows),
      });
    if (handler.kind === 'store') return undefined;
    return new HttpProcessor({
      ...shared,
      handler: handler.handler,
      delaysMs: handler.delaysMs,
      log,
      giveUp: this.#giveUp.signal,
      onRoom: () => this.#worker?.wake(),
      ...(onHandled ? { onHandled } : {}),
    });
  }

  /**
   * Runs until it is told to stop and everything that was taken is in the table. `drainMs` bounds the time from the stop
   * on; what is not done by then comes again.
   */
  async run(stopping: AbortSignal, drainMs: number): Promise<'drained' | 'incomplete'> {
    const { clock, handler, limits } = this.#options;
    const ended = new AbortController();
    const loops = Promise.all([
      this.#keepGoing('the queue', stopping, () =>
        this.#take(
          {
            rules: this.#options.rules,
            limits: handler.kind === 'sql' ? { ...limits, rows: Math.min(limits.rows, MOST_SUBTRANSACTIONS) } : limits,
            applies: handler.kind === 'sql',
          },
          stopping,
        ),
      ),
      this.#keepGoing('the queue of dead letters', stopping, () => this.#takeDeaths(stopping)),
      this.#keepGoing('the delay exchange', stopping, () => this.#keepTimers(stopping)),
      this.#worker?.run(stopping),
      this.#keepGoing('copies of dead messages', stopping, () => this.#copyDeaths(stopping)),
      this.#sweepNowAndThen(stopping),
    ]);
    const onStop = (): void => {
      this.#deathSeen.wake();
      const cancel = clock.after(drainMs, () => this.#giveUp.abort());
      ended.signal.addEventListener('abort', cancel, { once: true });
    };
    if (stopping.aborted) onStop();
    else stopping.addEventListener('abort', onStop, { once: true });
    const gaveUp = new Promise<'incomplete'>((resolve) => {
      this.#giveUp.signal.addEventListener('abort', () => resolve('incomplete'), { once: true });
    });
    try {
      const result = await Promise.race([loops.then(() => 'drained' as const), gaveUp]);
      if (result === 'incomplete') await within(clock, loops, CLOSING_MS, undefined);
      this.gate.leave();
      await within(clock, this.gate.told(), CLOSING_MS, undefined);
      return result;
    } finally {
      stopping.removeEventListener('abort', onStop);
      ended.abort();
      this.gate.stop();
      this.#timers.stop();
      this.#wakeCancel?.();
    }
  }

  /** Until the stop: again after each end, with growing pauses after errors. */
  async #keepGoing(what: Part, stopping: AbortSignal, work: () => Promise<void>): Promise<void> {
    const { clock, log } = this.#options;
    let failures = 0;
    const isOver = (): boolean => stopping.aborted;
    while (!isOver()) {
      const beganMs = clock.now();
      try {
        await work();
        failures = 0;
      } catch (error) {
        if (isOver()) return;
        this.#troubles.set(what, error);
        failures = clock.now() - beganMs > OPERATOR_RETRY_MS ? 1 : failures + 1;
        const passes = error instanceof WaybillError && consequenceOf(error.code) === 'again';
        const delayMs = passes ? backoffMs(RECONNECT_BACKOFF, failures, clock.random()) : OPERATOR_RETRY_MS;
        const fields = { err: error, retryInMs: Math.round(delayMs) };
        if (passes) log.warn(fields, `${what}: trying again`);
        else log.error(fields, `${what}: cannot go on until this is mended`);
        await pause(clock, delayMs, stopping);
      }
    }
  }

  async #take(
    part: Pick<IntakeOptions, 'rules' | 'limits' | 'applies' | 'toArrival'>,
    stopping: AbortSignal,
  ): Promise<void> {
    const { store, broker, log, spans, prefetch } = this.#options;
    await this.#gateTakes(stopping);
    if (stopping.aborted) return;
    if (this.gate.isOpen) {
      await this.#takeProbe(stopping);
      return;
    }
    // F109: nothing is taken from the queue before the database answers.
    await store.ping();
    await broker.prepare();
    const intake = this.#intake({
      ...part,
      gate: this.gate,
      spans,
      ...(this.#prefetch === undefined ? {} : { usualPrefetch: prefetch }),
      onPending: () => this.#pending(),
      onSuspects: (rows) => this.#worker?.alone(rows),
    });
    try {
      const end = await intake.run(async (events) => {
        const channel = await broker.consume(events, this.#prefetch);
        this.#isConsuming = true;
        this.#troubles.delete('the queue');
        log.info({}, 'consuming');
        return channel;
      }, stopping);
      log.info({ end }, 'not consuming');
      if (end === 'roomy') {
        this.#prefetch = undefined;
        log.info({ prefetch }, 'the bodies are small again; going on with the usual prefetch');
      }
      if (end === 'too-much') {
        this.#prefetch = intake.fitting;
        log.warn(
          { prefetch: this.#prefetch },
          'the bodies are too large for the prefetch; going on with a smaller one',
        );
      }
    } finally {
      this.#isConsuming = false;
    }
  }

  /** With what all intakes of this consumer share. */
  #intake(own: OwnOptions): Intake {
    const { store, counters, log, clock, byKey } = this.#options;
    const answers = (): Promise<boolean> =>
      store.ping().then(
        () => true,
        () => false,
      );
    const shared = { persisting: this.#persisting, outcomes: this.#outcomes, counters, log, clock, byKey };
    return new Intake({ ...shared, mostHeldBytes: MOST_HELD_BYTES, answers, ...own });
  }

  /** Until the breaker is closed, or wants a message to probe with. */
  async #gateTakes(stopping: AbortSignal): Promise<void> {
    while (this.gate.isOpen && !this.gate.wantsArrival && !stopping.aborted) {
      const changed = new Wakeup();
      const forget = this.gate.onChange(() => changed.wake());
      const onStop = (): void => changed.wake();
      stopping.addEventListener('abort', onStop, { once: true });
      await changed.wait();
      stopping.removeEventListener('abort', onStop);
      forget();
    }
  }

  /** While the breaker is open and no row is there to probe with: the next message is stored, and the worker probes with it. */
  async #takeProbe(stopping: AbortSignal): Promise<void> {
    const { store, broker, log, clock, rules, limits } = this.#options;
    const enough = new AbortController();
    const stop = (): void => enough.abort();
    const forget = this.gate.onChange(() => {
      if (!this.gate.wantsArrival) stop();
    });
    stopping.addEventListener('abort', stop, { once: true });
    const arrived = (): void => {
      this.gate.foundRows(true);
      this.#pending();
    };
    try {
      await store.ping();
      await broker.prepare();
      if (stopping.aborted || !this.gate.wantsArrival) return;
      const intake = this.#intake({
        rules,
        limits,
        applies: false,
        // One that is closed: here it is not the gate that ends it.
        gate: new Gate({ store, clock, log }),
        onPending: arrived,
        onSuspects: arrived,
      });
      await intake.run((events) => broker.consume(events, 1), enough.signal);
    } finally {
      stopping.removeEventListener('abort', stop);
      forget();
    }
    // While an operator has paused the consumer none of them becomes a probe.
    await pause(clock, PROBE_INTERVAL_MS, stopping);
  }

  async #takeDeaths(stopping: AbortSignal): Promise<void> {
    const { store, broker, counters, log, clock, queue, rules, limits } = this.#options;
    await store.ping();
    const hasDeaths = await broker.hasDeaths();
    this.#troubles.delete('the queue of dead letters');
    if (!hasDeaths) {
      await pause(clock, SWEEP_INTERVAL_MS, stopping);
      return;
    }
    const intake = this.#intake({
      rules,
      limits,
      applies: false,
      // A gate of its own: dead rows are written also while the handler is broken.
      gate: new Gate({ store, clock, log }),
      counters: { ...counters },
      onPending: () => undefined,
      onSuspects: () => undefined,
      toArrival: (delivery) => {
        counters.brokerDeaths += 1;
        return fromBrokerDeath(delivery, queue, rules);
      },
    });
    await intake.run((events) => broker.consumeDeaths(events), stopping);
  }

  async #keepTimers(stopping: AbortSignal): Promise<void> {
    const { broker } = this.#options;
    const over = new Wakeup();
    let closedBy: Error | undefined;
    const opened = await broker.openTimers(
      (timer) => (typeof timer === 'object' ? this.#timers.arrived(timer) : this.#refuseTimer(timer)),
      (error) => {
        closedBy = error;
        over.wake();
      },
    );
    const stop = (): void => over.wake();
    stopping.addEventListener('abort', stop, { once: true });
    this.#timers.attach(opened.exchange);
    this.#troubles.delete('the delay exchange');
    try {
      if (!stopping.aborted) await over.wait();
    } finally {
      stopping.removeEventListener('abort', stop);
      this.#timers.attach(undefined);
      await opened.close();
    }
    if (closedBy) throw closedBy;
  }

  #refuseTimer(what: 'foreign' | undefined): void {
    const { counters, log } = this.#options;
    if (what === 'foreign' && !this.#hasSeenForeign) {
      this.#hasSeenForeign = true;
      log.warn(
        {},
        'another installation on this virtual host has a consumer of this name, and so the same retry queue: retries of both may be late by half a minute; give one of them another name',
      );
    }
    counters.timersRefused += 1;
    // Once: whoever sends such messages may send many.
    const level = counters.timersRefused === 1 ? 'warn' : 'debug';
    log[level]({ refused: counters.timersRefused }, 'what came to the retry queue is no timer; it is dropped');
  }

  async #copyDeaths(stopping: AbortSignal): Promise<void> {
    const { clock } = this.#options;
    const isOver = (): boolean => stopping.aborted;
    while (!isOver()) {
      // What is about to be given back must not be told of as dead.
      await within(clock, this.gate.told(), CLOSING_MS, undefined);
      await untilStopped(clock, this.#copier.run(stopping), stopping, CLOSING_MS);
      this.#troubles.delete('copies of dead messages');
      if (isOver()) break;
      await this.#deathSeen.wait();
      await pause(clock, COPY_INTERVAL_MS, stopping);
    }
    // Copies that are left behind go out at the next start, or by another program, and need not wait for a lease.
    await within(clock, this.#copier.giveBack(), CLOSING_MS, undefined);
  }

  async #sweepNowAndThen(stopping: AbortSignal): Promise<void> {
    const { clock, store, broker, log, byKey } = this.#options;
    const looks = SWEEP_INTERVAL_MS / LOOK_INTERVAL_MS;
    for (let n = 0; !stopping.aborted; n += 1) {
      try {
        // What was blocked behind a transaction that did not see it (left open, or repeatable read) is soon an orphan.
        if (byKey && (n % looks === 0 || this.#looksForOrphans > 0)) {
          this.#looksForOrphans = Math.max(0, this.#looksForOrphans - 1);
          const released = await store.sweepKeys();
          if (released > 0) log.warn({ released }, 'rows waited behind nothing; they go on');
        }
        if (n % looks === 0) this.gate.renew();
        if (this.#worker) this.#worker.look();
        else await store.wake();
      } catch (error) {
        log.debug({ err: error }, 'the sweep failed; the next one will see');
      }
      this.#lag = this.#isConsuming ? await broker.waiting().catch(() => undefined) : undefined;
      if (n % looks === 0) this.#deathSeen.wake();
      if (n > 0 && n % looks === 0) await this.#keepDeadLetters();
      await pause(clock, LOOK_INTERVAL_MS, stopping);
    }
  }

  /** A broker that is away is told of by those who wait for it. */
  async #keepDeadLetters(): Promise<void> {
    const part = 'the dead-letter exchange';
    try {
      await this.#options.broker.keepDeadLetters();
      this.#troubles.delete(part);
    } catch (error) {
      if (!isWaybillError(error, 'WAYBILL_TOPOLOGY_MISMATCH')) return;
      if (!this.#troubles.has(part))
        this.#options.log.error({ err: error }, `${part}: cannot go on until this is mended`);
      this.#troubles.set(part, error);
    }
  }

  #due(rows: DueRow[]): void {
    if (this.#worker) this.#worker.due(rows);
    else this.#wakeApplications();
  }

  #pending(): void {
    if (this.#worker) this.#worker.look();
    else this.#wakeApplications();
  }

  /** Debounced, in a transaction of its own: NOTIFY takes a lock that every commit with one waits for. */
  #wakeApplications(): void {
    if (this.#wakeCancel) return;
    const { clock, store, log } = this.#options;
    this.#wakeCancel = clock.after(WAKE_INTERVAL_MS, () => {
      this.#wakeCancel = undefined;
      store.wake().catch((error: unknown) => log.debug({ err: error }, 'workers were not woken; they also poll'));
    });
  }
}
