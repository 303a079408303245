import { isWaybillError, WaybillError } from '../core/errors.js';
import { formatLsn, LSN_ZERO } from '../core/lsn.js';
import { KeyLanes } from '../core/key-lanes.js';
import { Ledger } from '../core/ledger.js';
import type { Suspects } from '../core/suspects.js';
import { Window } from '../core/window.js';
import { Admission } from '../outbox/admission.js';
import { ExchangeChecks } from '../outbox/exchange-checks.js';
import type { RelayCounters } from '../outbox/ports.js';
import { LaneTraffic } from '../outbox/lane-traffic.js';
import { Publishing, STALL_HINT, STRICT_MAX_NACKS } from '../outbox/publishing.js';
import { Pump } from '../outbox/pump.js';
import { RefusedRows } from '../outbox/refused-rows.js';
import { Settler } from '../outbox/settler.js';
import { TableFeed } from '../outbox/table-feed.js';
import { WaitingRows } from '../outbox/waiting-rows.js';
import { Works, type Work } from '../outbox/work.js';
import { RelayStore } from '../postgres/relay-store.js';
import { ReplicationStream } from '../postgres/stream.js';
import type { Slot } from '../postgres/slot.js';
import { TableReader } from '../postgres/table-reader.js';
import { within } from '../runtime/clock.js';
import { Condition } from '../runtime/signal.js';
import { Turns } from '../runtime/turns.js';
import { acquire, Holdings, type Acquired, type SessionContext } from './relay-acquire.js';
import { RelayChores } from './relay-chores.js';
import { SessionView, type SessionParts } from './session-view.js';
import { findStartingPoint, settledOrLeft, type StartingPoint } from './starting-point.js';

export interface SessionOptions extends SessionContext {
  counters: RelayCounters;
  /** Aborts when the service is to stop: intake ends, what is in flight is drained. */
  stopping: AbortSignal;
  /** The broker stalled before: the first message is the probe. */
  narrow: boolean;
  /** Messages that may have made the broker close the connections of earlier sessions. */
  suspects: Suspects;
  /** Told when the stream ends by itself, also before it counts as streaming. */
  onStreamEnd: (error: WaybillError) => void;
  /** Told whenever rows have left the window for good: the session does what it is there for. */
  onProgress: () => void;
  /** Told at its end how many rows the session had taken up and not settled. */
  onUnsettled: (rows: number) => void;
  /** Given the session to look at from outside when it begins, and undefined when it has ended. */
  onView: (view: SessionView | undefined) => void;
  /** Told of each confirmed row with the time by the database's clock, milliseconds since 1970. */
  onConfirmed: (work: Work, nowMs: number) => void;
}

const WATCH_INTERVAL_MS = 500;
/** Of the drain, for settling what was confirmed. */
const LAST_SETTLE_MS = 2_000;
const HELD_KEYS_AT_ONCE = 10_000;

/**
 * One session of the relay: from taking the locks to losing or giving them back.
 *
 *   acquire ─▶ [table pass] ─▶ stream ─▶ drain ─▶ 'drained' | 'incomplete'
 *        any failure ─▶ everything is dropped at once, and the error goes to the supervisor
 *
 * Nothing is carried over to the next session but what the database and the slot keep: after a failover ids and
 * positions of the old timeline mean nothing. The one exception are the suspects: which messages must go alone.
 */
export async function runRelaySession(options: SessionOptions): Promise<'drained' | 'incomplete'> {
  const { failure, stopping } = options;
  const holdings = new Holdings();
  const view = new SessionView(holdings, options.counters);
  options.onView(view);
  const stopEarly = (): void =>
    failure.fail(new WaybillError('WAYBILL_STOPPED', 'stopping before the relay had begun to work'));
  stopping.addEventListener('abort', stopEarly, { once: true });
  try {
    if (stopping.aborted) stopEarly();
    failure.check();
    const acquired = await acquire(options, holdings);
    stopping.removeEventListener('abort', stopEarly);
    const pipeline = new Pipeline(options, acquired);
    view.parts = () => pipeline.parts();
    try {
      const end = await pipeline.run();
      await holdings.close();
      return end;
    } finally {
      // First the sockets: a statement that a silent server never answers ends only with its connection.
      holdings.abandon();
      await pipeline.abandon();
    }
  } finally {
    stopping.removeEventListener('abort', stopEarly);
    holdings.abandon();
    options.onView(undefined);
  }
}

/** The parts of a session wired together. */
class Pipeline {
  readonly #options: SessionOptions;
  readonly #acquired: Acquired;
  readonly #store: RelayStore;
  readonly #table: TableReader;
  readonly #refused: RefusedRows;
  readonly #waiting: WaitingRows;
  readonly #window: Window;
  readonly #works: Works;
  readonly #room = new Condition();
  readonly #exchanges: ExchangeChecks;
  readonly #publishing: Publishing<Work>;
  readonly #chores: RelayChores;
  /** With `ordering: strict`, once the held keys are read. */
  #lanes: LaneTraffic | undefined;
  /** Set once the position to start from is known. */
  #ledger = new Ledger();
  #settler: Settler;
  #admission: Admission;
  #pump: Pump | undefined;
  #stream: ReplicationStream | undefined;
  #lastWordMs: number;
  readonly #feedTurns = new Turns();
  readonly #over = new AbortController();

  constructor(options: SessionOptions, acquired: Acquired) {
    this.#options = options;
    this.#acquired = acquired;
    this.#works = new Works(acquired.slot !== undefined);
    const { config, clock, counters, failure } = options;
    const { schema } = config.database;
    this.#store = new RelayStore(acquired.writer, {
      schema,
      relay: config.relay.name,
      epoch: acquired.record.epoch,
      history: config.relay.history,
      ordering: config.relay.ordering,
    });
    this.#table = new TableReader(acquired.reader, schema, this.#store, clock);
    this.#refused = new RefusedRows(clock, options.log);
    this.#waiting = new WaitingRows(this.#table, this.#refused, options.log);
    this.#chores = new RelayChores(options, this.#table, acquired.publication, () => this.#check());
    this.#window = new Window(config.relay.maxInFlight, config.relay.maxInFlightBytes);
    if (options.narrow) this.#window.narrow();
    this.#exchanges = new ExchangeChecks(acquired.broker, clock);
    this.#lastWordMs = clock.now();
    const heard =
      <A extends unknown[]>(handle: (...args: A) => void) =>
      (...args: A): void => {
        this.#lastWordMs = clock.now();
        handle(...args);
        this.#room.notify();
      };
    this.#publishing = new Publishing<Work>({
      connection: acquired.broker,
      exchanges: this.#exchanges,
      window: this.#window,
      clock,
      counters,
      confirmTimeoutMs: config.relay.confirmTimeoutMs,
      suspects: options.suspects,
      ...(config.relay.ordering === 'strict' ? { maxNacks: STRICT_MAX_NACKS } : {}),
      events: {
        onConfirmed: heard((work) => this.#admission.confirmed(work)),
        onReturned: heard((work, reason) => this.#admission.returned(work, reason)),
        onRefused: heard((work, fault) => this.#admission.refused(work, fault)),
        onNackedTooOften: heard((work) => this.#admission.nackedTooOften(work)),
        onFailed: (error) => failure.fail(error),
        onChannelDied: (error, unconfirmed) =>
          // Why later: when the connection ends, its channels close first, and then nothing is sent again here.
          queueMicrotask(() => {
            if (failure.error) return;
            options.log.warn(
              { err: error, unconfirmed },
              'a channel closed; what it had not confirmed is sent again one by one',
            );
          }),
      },
    });
    [this.#settler, this.#admission] = this.#settling();
    failure.signal.addEventListener('abort', () => this.#cutOff(), { once: true });
    // Why with an end: this signal lives as long as the service, and would keep every session that ever was.
    options.stopping.addEventListener('abort', () => this.#wakeAll(), { once: true, signal: this.#over.signal });
  }

  /** What may be looked at from outside, as it is now. */
  parts(): SessionParts {
    return {
      window: this.#window,
      works: this.#works,
      publishing: this.#publishing,
      settler: this.#settler,
      refused: this.#refused,
      chores: this.#chores,
      table: this.#table,
      exchanges: this.#exchanges,
      pump: this.#pump,
      stream: this.#stream,
    };
  }

  async run(): Promise<'drained' | 'incomplete'> {
    const { failure } = this.#options;
    await failure.race(this.#publishing.open());
    await this.#chores.readClock();
    await this.#openLanes();
    const parts: Promise<void>[] = [];
    const start = (work: Promise<unknown>): void => {
      const part = this.#guard(work);
      // All are awaited at the end; one that fails before must not count as unheard.
      part.catch(() => undefined);
      parts.push(part);
    };
    try {
      // The watch before the intake, because a table pass may stall, too.
      start(this.#chores.every(WATCH_INTERVAL_MS, () => this.#watch()));
      for (const chore of this.#chores.always(this.#acquired.assertOpen)) start(chore);
      const intake = await this.#startIntake();
      this.#options.onPhase('streaming');
      const feed = this.#feed();
      start(intake(feed));
      const flow = {
        pump: this.#pump,
        slotName: this.#acquired.slot?.name ?? '',
        feed,
        waiting: this.#waiting,
        settler: this.#settler,
        lanes: this.#lanes,
        unblock: () => this.#unblock(),
      };
      for (const chore of this.#chores.during(flow)) start(chore);
      await Promise.race(parts);
      throw new Error('a part of the relay ended without a reason');
    } catch (error) {
      this.#options.onUnsettled(this.#works.size);
      if (!this.#options.stopping.aborted || failure.error) throw failure.error ?? error;
      try {
        return await this.#drain(Promise.allSettled(parts));
      } finally {
        this.#options.onUnsettled(this.#works.size);
      }
    }
  }

  /** Ends what is still open when the connections are gone. */
  async abandon(): Promise<void> {
    this.#over.abort();
    await this.#stream?.abort();
    this.#publishing.abandon();
    this.#room.notify();
    await this.#lanes?.end();
    await this.#settler.stop();
  }

  /** Throws when the session has failed or is to stop. */
  readonly #check = (): void => {
    this.#options.failure.check();
    if (this.#options.stopping.aborted) throw new WaybillError('WAYBILL_STOPPED', 'stopping');
  };

  /** An error of one part is the session's failure, so that all the others end too. */
  async #guard(work: Promise<unknown>): Promise<void> {
    try {
      await work;
    } catch (error) {
      if (!this.#options.stopping.aborted) this.#options.failure.fail(error as Error);
      throw error;
    }
  }

  /** O8: whatever failed, nothing is published from this moment on, not even by work that is under way. */
  #cutOff(): void {
    this.#acquired.broker.abort();
    const { failure, suspects } = this.#options;
    if (isWaybillError(failure.error, 'WAYBILL_CONNECTION_CLOSED')) {
      const { messageIds, alone } = this.#publishing.lost;
      suspects.accuse(messageIds, alone, failure.error.message);
    }
    this.#wakeAll();
  }

  #wakeAll(): void {
    this.#room.notify();
    this.#pump?.wake();
    this.#lanes?.wake();
  }

  #settling(): [Settler, Admission] {
    const { config, clock, counters, log, failure } = this.#options;
    const settler = new Settler({
      store: this.#store,
      ledger: this.#ledger,
      works: this.#works,
      clock,
      counters,
      log,
      intervalMs: config.relay.checkpointIntervalMs,
      logsAll: config.log.messages === 'all',
      checkpointLsn: null,
      report: (lsn) => this.#pump?.report(lsn),
      onSettled: () => this.#room.notify(),
      onStored: (work) => this.#lanes?.stored(work),
      onProgress: () => this.#options.onProgress(),
      onFailed: (error) => failure.fail(error),
    });
    const admission = new Admission({
      defaults: config.relay,
      policy: config.relay.onUnroutable,
      works: this.#works,
      window: this.#window,
      room: this.#room,
      publishing: this.#publishing,
      exchanges: this.#exchanges,
      settler,
      databaseNow: () => this.#chores.databaseNow(),
      random: () => clock.random(),
      onConfirmed: this.#options.onConfirmed,
      // On a stop the pump finishes the transaction that is open.
      check: () => (this.#ledger.inTransaction ? failure.check() : this.#check()),
      checkAlive: () => {
        failure.check();
        this.#over.signal.throwIfAborted();
      },
      lanes: this.#lanes,
    });
    return [settler, admission];
  }

  /** Strict order: the keys that the table holds are known before any row comes. */
  async #openLanes(): Promise<void> {
    const { config, failure, log } = this.#options;
    if (config.relay.ordering === 'pipelined') {
      await this.#unblock();
      return;
    }
    const lastOrder = await failure.race(this.#waiting.reblock());
    const lanes = new KeyLanes<Work>({ depth: laneDepth(this.#window.maxMessages), lastOrder });
    for (let after: string | null = null, isLast = false; !isLast;) {
      const keys: string[] = await failure.race(this.#store.heldKeys(after, HELD_KEYS_AT_ONCE));
      lanes.load(keys);
      after = keys.at(-1) ?? null;
      isLast = keys.length < HELD_KEYS_AT_ONCE;
    }
    if (lanes.heldKeys > 0) log.info({ keys: lanes.heldKeys }, 'keys with rows that wait');
    this.#lanes = new LaneTraffic({
      lanes,
      isStreamed: this.#acquired.slot !== undefined,
      settler: () => this.#settler,
      take: (work) => this.#admission.take(work),
      onFailed: (error) => failure.fail(error),
    });
    [this.#settler, this.#admission] = this.#settling();
  }

  async #unblock(): Promise<void> {
    const { failure, log } = this.#options;
    const rows = await failure.race(this.#waiting.unblock());
    if (rows > 0) log.info({ rows }, 'rows that strict order held are free, because the order is pipelined now');
  }

  /** Rows without a final word of the broker, in lanes or sent. */
  get #outstanding(): number {
    return this.#publishing.outstanding + (this.#lanes?.outstanding ?? 0);
  }

  #feed(): TableFeed {
    const { counters, log } = this.#options;
    return new TableFeed({
      table: this.#table,
      waiting: this.#waiting,
      works: this.#works,
      admission: this.#admission,
      counters,
      log,
      turns: this.#feedTurns,
      check: this.#check,
      lanes: this.#lanes,
      rowsPerKey: laneDepth(this.#window.maxMessages),
      // With strict order half a window, so that it is not crowded by the rows of one key.
      listRows: this.#lanes ? Math.max(1, Math.floor(this.#window.maxMessages / 2)) : Infinity,
    });
  }

  /** Brings the session to where rows flow; what is returned makes them flow until the session ends. */
  async #startIntake(): Promise<(feed: TableFeed) => Promise<never>> {
    const { slot, slotState } = this.#acquired;
    if (!slot) return (feed) => this.#chores.polling(feed);
    const point = await findStartingPoint(this.#options, this.#acquired, slot, slotState, {
      store: this.#store,
      table: this.#table,
      feed: this.#feed(),
      allSettled: () => this.#allSettled(),
      check: this.#check,
    });
    const pump = await this.#startStream(slot, point);
    return () => pump.run();
  }

  async #allSettled(): Promise<void> {
    const { failure, stopping } = this.#options;
    await settledOrLeft({
      works: this.#works,
      outstanding: () => this.#outstanding,
      settler: this.#settler,
      room: this.#room,
      check: this.#check,
      ending: AbortSignal.any([failure.signal, stopping]),
    });
  }

  async #startStream(slot: Slot, { startLsn, ids, fence }: StartingPoint): Promise<Pump> {
    const { config, clock, failure, counters, log } = this.#options;
    const { publication, replication, server } = this.#acquired;
    this.#ledger = new Ledger(startLsn);
    this.#settler.streamFrom(this.#ledger, startLsn);
    const pump = new Pump({
      ledger: this.#ledger,
      works: this.#works,
      admission: this.#admission,
      settler: this.#settler,
      store: this.#store,
      counters,
      startLsn,
      replayEnd: await this.#table.position(),
      historyRetentionMs: config.relay.historyRetentionMs,
      databaseNow: () => this.#chores.databaseNow(),
      passIds: ids,
      passFence: fence,
      check: this.#check,
    });
    this.#pump = pump;
    const opening = ReplicationStream.open({
      endpoint: replication,
      applicationName: `waybill ${config.relay.name} stream`,
      schema: config.database.schema,
      slot: slot.name,
      publication,
      startLsn,
      walSenderTimeoutMs: server.walSenderTimeoutMs,
      clock,
      onEvent: (event) => pump.push(event),
      onEnd: (error) => {
        this.#options.onStreamEnd(error);
        failure.fail(error);
      },
    }).then(async (stream) => {
      // Why: a session that failed meanwhile has nobody left to close it, and it would hold the slot for ever.
      if (failure.error) await stream.abort();
      failure.check();
      return stream;
    });
    this.#stream = await failure.race(opening);
    pump.attach(this.#stream);
    log.info({ slot: slot.name, from: formatLsn(startLsn) }, 'streaming');
    return pump;
  }

  /** 3.8: rows wait for the broker's word and none comes: let go of the server, so that it can shut down. */
  #watch(): void {
    const { clock, config, failure } = this.#options;
    const stalledMs = clock.now() - this.#lastWordMs;
    if (this.#outstanding === 0) this.#lastWordMs = clock.now();
    else if (stalledMs > config.relay.stallTimeoutMs) {
      failure.fail(
        new WaybillError('WAYBILL_BROKER_STALLED', `RabbitMQ has said nothing for ${Math.round(stalledMs / 1000)} s`, {
          hint: STALL_HINT,
        }),
      );
    }
  }

  /** Graceful end: nothing new, wait for the broker's word, settle, report, and only then let go (F112). */
  async #drain(parts: Promise<unknown>): Promise<'drained' | 'incomplete'> {
    const { clock, config, failure } = this.#options;
    this.#options.onPhase('draining');
    const deadline = new AbortController();
    const lastWord = new AbortController();
    const cancelLast = clock.after(Math.max(0, config.relay.drainTimeoutMs - LAST_SETTLE_MS), () => {
      lastWord.abort();
      this.#room.notify();
    });
    const cancel = clock.after(config.relay.drainTimeoutMs, () => deadline.abort());
    try {
      // Every part is told to stop; the last rows that they publish are waited for like the others.
      await failure.race(within(clock, parts, config.relay.drainTimeoutMs - LAST_SETTLE_MS, undefined));
      this.#stream?.pause();
      while (this.#outstanding > 0 && !lastWord.signal.aborted) {
        failure.check();
        await this.#room.wait();
      }
      await failure.race(this.#settler.flush(deadline.signal, 'refused'));
      const drained = this.#outstanding === 0 && this.#settler.isIdle;
      const { locked, refused, stopped } = this.#settler.outOfReach;
      if (locked + refused > 0 || stopped) {
        const what =
          'rows are left that cannot be settled: somebody has locked them, or a constraint or trigger refuses it';
        this.#options.log.warn({ locked, refused, ...stopped }, what);
      }
      this.#pump?.report(this.#settler.checkpointLsn ?? LSN_ZERO);
      await this.#stream?.close();
      await this.#publishing.close();
      return drained ? 'drained' : 'incomplete';
    } finally {
      cancelLast();
      cancel();
    }
  }
}

/** Rows of one key that wait in memory, and that come back from the table at once: an eighth of the window, 1 to 32. */
function laneDepth(maxInFlight: number): number {
  return Math.min(32, Math.max(1, Math.floor(maxInFlight / 8)));
}
