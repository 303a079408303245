import { hostname } from 'node:os';
import type { Config } from '../config/load.js';
import { consequenceOf } from '../core/error-policy.js';
import { isWaybillError, WaybillError } from '../core/errors.js';
import { backoffMs, RECONNECT_BACKOFF } from '../core/schedule.js';
import { Suspects } from '../core/suspects.js';
import type { RelayCounters } from '../outbox/ports.js';
import { pause, systemClock, within, type Clock } from '../runtime/clock.js';
import { Failure } from '../runtime/signal.js';
import type { Logger } from '../telemetry/log.js';
import { watchKeptWal } from './kept-wal-watch.js';
import type { RelayPhase } from './relay-acquire.js';
import { runRelaySession, type SessionOptions } from './relay-session.js';
import type { SessionView } from './session-view.js';

/** A running relay. */
export interface RelayService {
  /** Resolves when it has ended after stop(); rejects when it cannot go on. */
  stopped: Promise<void>;
  /** Takes no more in, waits for confirms, settles, lets go of its locks. Idempotent. */
  stop(): Promise<'drained' | 'incomplete'>;
  /** How it is at this moment, from memory. */
  look(): RelayLook;
}

/** A relay at one moment. Times are monotonic milliseconds. */
export interface RelayLook {
  phase: RelayPhase;
  phaseSinceMs: number;
  stopping: boolean;
  /** Sessions begun since the start of the process. */
  sessions: number;
  /** Why the last session ended, until the relay works again. */
  lastError: Error | undefined;
  /** Sessions that ended with an error while they worked, since rows were settled last. */
  fruitless: number;
  counters: Readonly<RelayCounters>;
  /** Undefined between two sessions. */
  session: SessionView | undefined;
}

export interface RelayServiceOptions {
  /** Reads the configuration again, for each connection; throws as loadConfig does. Without it nothing is read anew. */
  reload?: () => Config;
  clock?: Clock;
  onPhase?: (phase: RelayPhase) => void;
  /** Told of each confirmed row, for measuring; must be quick and not throw. */
  onConfirmed?: SessionOptions['onConfirmed'];
  /** Runs one session; for tests of what follows its end. */
  runSession?: typeof runRelaySession;
}

/** A session that had nothing to settle for so long, or stood by, is taken for one that works, milliseconds. */
const STEADY_MS = 5_000;
/** So many sessions that settle nothing are no accident any more: the relay does not get on. */
export const FRUITLESS_LIMIT = 2;
/** How long an error that needs a person is left before another look. */
const OPERATOR_RETRY_MS = 15_000;
const STANDBY_RETRY_MS = 250;
const STOP_LIMIT_MS = 2_000;
/** In these the broker is not to be had, and nobody of ours reads the slot. */
const AWAY: ReadonlySet<RelayPhase> = new Set(['connecting', 'waiting-for-broker']);
/** In these messages may be in flight. */
const WORKING: ReadonlySet<RelayPhase> = new Set(['table-pass', 'streaming', 'draining']);

/**
 * Starts the relay. Errors that may pass are logged and tried again; `stopped` rejects when the schema does not fit the
 * program at the start: that must not look like a relay that runs.
 */
export function startRelayService(config: Config, log: Logger, options: RelayServiceOptions = {}): RelayService {
  return new Supervisor(config, log, options);
}

/**
 * Runs sessions one after the other until it is told to stop. What follows an error is decided in one place,
 * core/error-policy; the error is logged here, once.
 */
class Supervisor implements RelayService {
  readonly stopped: Promise<void>;
  readonly counters: RelayCounters = {
    published: 0,
    confirmed: 0,
    returned: 0,
    nacked: 0,
    resent: 0,
    accepted: 0,
    expired: 0,
    parked: 0,
    scheduled: 0,
    blocked: 0,
    settled: 0,
    gone: 0,
    rebuilt: 0,
    swept: 0,
    duplicatesSkipped: 0,
  };
  /** What connects is read anew for each connection; the rest is as it was at the start. */
  #config: Config;
  readonly #reload: () => Config;
  /** Why the last reading failed. */
  #unreadable: string | undefined;
  readonly #log: Logger;
  readonly #clock: Clock;
  readonly #stopping = new AbortController();
  readonly #end: Promise<'drained' | 'incomplete'>;
  readonly #onPhase: (phase: RelayPhase) => void;
  readonly #suspects = new Suspects();
  /** Grows the pause before the next session. */
  #failures = 0;
  #fruitless = 0;
  /** Of the sessions that had begun to work, since one of them got on. */
  #unsettled = 0;
  #phase: RelayPhase = 'connecting';
  /** The session's stream has ended by itself; it may do so before the phase is `streaming`. */
  #streamEnded = false;
  /** Some session has come so far that the schema did fit. */
  #hasWorked = false;
  #phaseSinceMs: number;
  #sessions = 0;
  #lastError: Error | undefined;
  #session: SessionView | undefined;
  readonly #onConfirmed: SessionOptions['onConfirmed'];
  readonly #runSession: typeof runRelaySession;

  constructor(config: Config, log: Logger, options: RelayServiceOptions) {
    const {
      reload = () => config,
      clock = systemClock,
      onPhase = () => undefined,
      onConfirmed = () => undefined,
      runSession = runRelaySession,
    } = options;
    this.#config = config;
    this.#reload = reload;
    this.#log = log;
    this.#clock = clock;
    this.#onPhase = onPhase;
    this.#onConfirmed = onConfirmed;
    this.#runSession = runSession;
    this.#phaseSinceMs = clock.now();
    const watching = watchKeptWal(
      () => this.#freshConfig(),
      log,
      clock,
      () => AWAY.has(this.#phase),
      this.#stopping.signal,
    );
    this.#end = this.#run().finally(() => this.#endWatch(watching));
    this.stopped = this.#end.then(() => undefined);
    // Whoever started the service looks at one of these; the others must not end the process.
    this.stopped.catch(() => undefined);
  }

  stop(): Promise<'drained' | 'incomplete'> {
    this.#stopping.abort();
    return this.#end;
  }

  look(): RelayLook {
    this.#seeSteady(this.#session?.live().unsettled ?? 0);
    return {
      phase: this.#phase,
      phaseSinceMs: this.#phaseSinceMs,
      stopping: this.#isStopping(),
      sessions: this.#sessions,
      lastError: this.#lastError,
      fruitless: this.#fruitless,
      counters: this.counters,
      session: this.#session,
    };
  }

  async #run(): Promise<'drained' | 'incomplete'> {
    let narrow = false;
    let replaceSlot = false;
    for (let first = true; ; first = false) {
      const failure = new Failure();
      this.#sessions += 1;
      try {
        return await this.#runSession({
          config: this.#config,
          connectionSettings: () => this.#freshConfig(),
          log: this.#log,
          clock: this.#clock,
          counters: this.counters,
          holder: `${hostname()}:${process.pid}`,
          failure,
          stopping: this.#stopping.signal,
          narrow,
          suspects: this.#suspects,
          onStreamEnd: () => (this.#streamEnded = true),
          onProgress: () => this.#works(),
          // Why the most: one that fails before it has read them again has not settled them.
          onUnsettled: (rows) => (this.#unsettled = Math.max(this.#unsettled, rows)),
          onView: (view) => (this.#session = view),
          onConfirmed: this.#onConfirmed,
          replaceSlot,
          onPhase: (phase) => this.#enter(phase),
        });
      } catch (error) {
        if (isWaybillError(error, 'WAYBILL_STOPPED')) return this.#lastWord();
        if (
          first &&
          !this.#hasWorked &&
          isWaybillError(error, 'WAYBILL_SCHEMA_MISSING', 'WAYBILL_SCHEMA_TOO_OLD', 'WAYBILL_SCHEMA_TOO_NEW')
        ) {
          throw error;
        }
        const phase = this.#phase;
        narrow = isWaybillError(error, 'WAYBILL_BROKER_STALLED');
        // A lost slot is seen in pg_replication_slots; that decoding fails for good is seen only here. A log that was
        // written while columns were missing never gets them; while they still are, the session ends before the slot.
        // Before the stream began, such an error says nothing about the slot.
        if (phase === 'streaming' || this.#streamEnded) {
          replaceSlot = isWaybillError(error, 'WAYBILL_PUBLICATION_MISSING', 'WAYBILL_PUBLICATION_UNFIT');
        }
        if (this.#isStopping()) {
          this.#log.error({ err: error, unsettled: this.#unsettled }, 'the relay session ended while stopping');
          return this.#lastWord();
        }
        await this.#afterError(error);
        if (this.#isStopping()) return this.#lastWord();
      }
    }
  }

  /** F9, F112: what a failed session has left in flight is told, unless another relay has it now. */
  #lastWord(): 'drained' | 'incomplete' {
    return this.#unsettled > 0 && this.#phase !== 'standby' ? 'incomplete' : 'drained';
  }

  #isStopping(): boolean {
    return this.#stopping.signal.aborted;
  }

  /** F38, F83: a rotated password is seen at the next connection. A configuration that went wrong leaves the old one. */
  #freshConfig(): Config {
    try {
      const { database, broker } = this.#reload();
      this.#config = { ...this.#config, database: { ...database, schema: this.#config.database.schema }, broker };
      this.#unreadable = undefined;
    } catch (error) {
      if (!(error instanceof WaybillError)) throw error;
      if (error.message !== this.#unreadable) {
        this.#log.error({ err: error }, 'the configuration cannot be read again; connecting with what was read before');
      }
      this.#unreadable = error.message;
    }
    return this.#config;
  }

  async #endWatch(watching: Promise<void>): Promise<void> {
    this.#stopping.abort();
    await within(this.#clock, watching, STOP_LIMIT_MS, undefined);
  }

  #enter(phase: RelayPhase): void {
    if (phase === 'connecting') this.#streamEnded = false;
    if (WORKING.has(phase)) this.#hasWorked = true;
    this.#seeSteady(this.#session?.live().unsettled ?? 0);
    this.#phase = phase;
    this.#phaseSinceMs = this.#clock.now();
    this.#log.debug({ phase }, 'phase');
    if (phase === 'streaming' || phase === 'standby') {
      // Why not 0: what fails when rows are settled fails after this in every session, and each publishes a window again.
      this.#failures = this.#fruitless;
      if (this.#fruitless < FRUITLESS_LIMIT) this.#lastError = undefined;
    }
    this.#onPhase(phase);
  }

  /** A session got on: what was wrong before is over. */
  #works(): void {
    this.#failures = this.#fruitless = this.#unsettled = 0;
    this.#lastError = undefined;
  }

  /** A relay that nobody gives work settles nothing, and one that stands by neither. */
  #seeSteady(unsettled: number): void {
    if (this.#fruitless === 0 || this.#clock.now() - this.#phaseSinceMs < STEADY_MS) return;
    if (this.#phase === 'standby' || (this.#phase === 'streaming' && unsettled === 0)) this.#works();
  }

  async #afterError(error: unknown): Promise<void> {
    const phase = this.#phase;
    this.#seeSteady(this.#unsettled);
    this.#failures += 1;
    if (WORKING.has(phase)) this.#fruitless += 1;
    this.#phase = 'connecting';
    this.#phaseSinceMs = this.#clock.now();
    this.#lastError = error instanceof Error ? error : new Error(String(error));
    const consequence = error instanceof WaybillError ? consequenceOf(error.code) : 'again';
    const delayMs =
      consequence === 'operator'
        ? OPERATOR_RETRY_MS
        : consequence === 'wait'
          ? STANDBY_RETRY_MS * (1 + this.#clock.random())
          : backoffMs(RECONNECT_BACKOFF, this.#failures, this.#clock.random());
    const fields = { err: error, retryInMs: Math.round(delayMs) };
    if (consequence === 'wait') this.#log.warn(fields, 'the relay lost its place; standing by');
    else if (consequence === 'again') {
      this.#log.warn(
        fields,
        WORKING.has(phase)
          ? 'the relay session ended; everything in flight is sent again'
          : 'the relay session ended before it had begun to work; trying again',
      );
    } else this.#log.error(fields, 'the relay cannot work until this is mended');
    await pause(this.#clock, delayMs, this.#stopping.signal);
  }
}
