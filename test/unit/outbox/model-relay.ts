import { Turns } from '../../../src/runtime/turns.js';
import type { Acquired } from '../../../src/app/relay-acquire.js';
import type { SessionOptions } from '../../../src/app/relay-session.js';
import { findStartingPoint, settledOrLeft, type StartingPoint } from '../../../src/app/starting-point.js';
import { WaybillError } from '../../../src/core/errors.js';
import { KeyLanes } from '../../../src/core/key-lanes.js';
import { Ledger } from '../../../src/core/ledger.js';
import { LSN_ZERO, maxLsn, type Lsn } from '../../../src/core/lsn.js';
import { Suspects } from '../../../src/core/suspects.js';
import { Window } from '../../../src/core/window.js';
import { Admission } from '../../../src/outbox/admission.js';
import { ExchangeChecks } from '../../../src/outbox/exchange-checks.js';
import type { RelayCounters } from '../../../src/outbox/ports.js';
import { LaneTraffic } from '../../../src/outbox/lane-traffic.js';
import { Publishing } from '../../../src/outbox/publishing.js';
import { Pump } from '../../../src/outbox/pump.js';
import { RefusedRows } from '../../../src/outbox/refused-rows.js';
import { Settler } from '../../../src/outbox/settler.js';
import { TableFeed } from '../../../src/outbox/table-feed.js';
import { WaitingRows } from '../../../src/outbox/waiting-rows.js';
import { Works, type Work } from '../../../src/outbox/work.js';
import type { RelayStore } from '../../../src/postgres/relay-store.js';
import type { Slot, SlotState } from '../../../src/postgres/slot.js';
import type { TableReader } from '../../../src/postgres/table-reader.js';
import { pause } from '../../../src/runtime/clock.js';
import { Condition, Failure } from '../../../src/runtime/signal.js';
import { turn, type ManualClock } from '../../support/manual-clock.js';
import { ModelConnection, type ModelBroker } from './model-broker.js';
import { Calls } from './model-calls.js';
import type { ModelDatabase } from './model-database.js';

export const MAX_MESSAGES = 3;
export const MAX_BYTES = 40;
/** With strict order. */
const LANE_DEPTH = 2;

const silent = { debug: () => undefined, info: () => undefined, warn: () => undefined, error: () => undefined };

export function noCounts(): RelayCounters {
  const names =
    'published confirmed returned nacked resent accepted expired parked scheduled blocked settled gone rebuilt swept';
  return Object.fromEntries(
    `${names} duplicatesSkipped`.split(' ').map((name) => [name, 0]),
  ) as unknown as RelayCounters;
}

/** Told of what goes out and of what the slot is told. */
interface Watch {
  onPublish(relay: ModelRelay, messageId: string): void;
  onReport(relay: ModelRelay, settled: Lsn): void;
}

/** One session of the real pipeline, wired as the relay wires it, between the model servers. */
export class ModelRelay {
  readonly failure = new Failure();
  readonly databaseCalls = new Calls();
  readonly brokerCalls = new Calls();
  readonly works = new Works();
  readonly window = new Window(MAX_MESSAGES, MAX_BYTES);
  readonly connection: ModelConnection;
  /** Undefined before the stream, and with `source: table`. */
  pump: Pump | undefined;
  readonly settler: Settler;
  readonly publishing: Publishing<Work>;
  readonly feed: TableFeed;
  /** With strict order. */
  readonly lanes: LaneTraffic | undefined;
  /** Where the server starts to send; undefined until it does. */
  startLsn: Lsn | undefined;
  /** The newest position that the stream has spoken of. */
  handedLsn: Lsn = LSN_ZERO;
  reportedLsn: Lsn = LSN_ZERO;
  paused = false;
  /** The next event to send: which transaction, and begin, rows, commit within it. */
  #cursor = { transaction: 0, event: 0 };
  readonly #database: ModelDatabase;
  readonly #clock: ManualClock;
  readonly #watch: Watch;
  readonly #ports: ReturnType<ModelDatabase['connect']>;
  readonly #counters: RelayCounters;
  readonly #admission: Admission;
  readonly #room = new Condition();
  readonly #source: 'wal' | 'table';
  #tasks: Promise<unknown>[] = [];
  readonly #feeding = new Set<string>();

  constructor(
    database: ModelDatabase,
    broker: ModelBroker,
    clock: ManualClock,
    counters: RelayCounters,
    watch: Watch,
    source: 'wal' | 'table',
  ) {
    this.#database = database;
    this.#clock = clock;
    this.#watch = watch;
    this.#counters = counters;
    this.#source = source;
    const room = this.#room;
    database.epoch += 1;
    const ports = (this.#ports = database.connect(this.databaseCalls, database.epoch));
    this.connection = new ModelConnection(broker, this.brokerCalls, (message) =>
      watch.onPublish(this, message.messageId),
    );
    const exchanges = new ExchangeChecks(this.connection, clock);
    const check = (): void => this.failure.check();
    const heard =
      <A extends unknown[]>(handle: (...args: A) => void) =>
      (...args: A): void => {
        handle(...args);
        room.notify();
      };
    this.publishing = new Publishing<Work>({
      connection: this.connection,
      exchanges,
      window: this.window,
      clock,
      confirmTimeoutMs: 1e12,
      counters,
      suspects: new Suspects(),
      events: {
        onConfirmed: heard((work) => admission.confirmed(work)),
        onReturned: heard((work, reason) => admission.returned(work, reason)),
        onRefused: heard((work, fault) => admission.refused(work, fault)),
        onNackedTooOften: heard((work) => admission.nackedTooOften(work)),
        onFailed: (error) => this.failure.fail(error),
        onChannelDied: () => undefined,
      },
    });
    this.settler = new Settler({
      store: ports,
      ledger: new Ledger(),
      works: this.works,
      clock,
      counters,
      log: silent,
      logsAll: true,
      intervalMs: 200,
      checkpointLsn: null,
      report: (lsn) => this.pump?.report(lsn),
      onSettled: () => room.notify(),
      onStored: (work) => this.lanes?.stored(work),
      onFailed: (error) => this.failure.fail(error),
    });
    if (database.strict) {
      const lanes = new KeyLanes<Work>({ depth: LANE_DEPTH, lastOrder: database.lastHoldNo });
      database.reblock();
      lanes.load(database.heldKeys);
      this.lanes = new LaneTraffic({
        lanes,
        isStreamed: source === 'wal',
        settler: () => this.settler,
        take: (work) => admission.take(work),
        onFailed: (error) => this.failure.fail(error),
      });
    }
    const admission: Admission = (this.#admission = new Admission({
      defaults: { exchange: 'events', routingKey: '{type}', maxBodyBytes: 1_000 },
      policy: { retryForMs: 600_000, then: 'park' },
      works: this.works,
      window: this.window,
      room,
      publishing: this.publishing,
      exchanges,
      settler: this.settler,
      databaseNow: () => clock.now(),
      random: () => clock.random(),
      onConfirmed: () => undefined,
      check,
      checkAlive: check,
      lanes: this.lanes,
    }));
    this.feed = new TableFeed({
      table: ports,
      waiting: new WaitingRows(ports, new RefusedRows(clock, silent), silent),
      works: this.works,
      admission,
      counters,
      log: silent,
      turns: new Turns(),
      check,
      lanes: this.lanes,
      rowsPerKey: LANE_DEPTH,
      listRows: Infinity,
    });
    this.failure.signal.addEventListener('abort', () => {
      room.notify();
      this.pump?.wake();
    });
  }

  async start(): Promise<void> {
    const opened = this.publishing.open();
    this.brokerCalls.step();
    this.brokerCalls.step();
    await opened;
    const { checkpointLsn, slotLsn } = this.#database;
    if (this.#source === 'table') this.#own(this.#poll());
    else if (checkpointLsn !== null && slotLsn !== null) {
      this.#stream({ startLsn: checkpointLsn, ids: new Set(), fence: LSN_ZERO }, this.#database.insertLsn);
    } else this.#own(this.#pass());
  }

  /** The relay's own table pass. */
  async #pass(): Promise<void> {
    const { checkpointLsn, slotLsn, pass } = this.#database;
    const check = (): void => this.failure.check();
    const { signal } = this.failure;
    const record = { checkpointLsn, passAfterSeq: pass.after, passUptoSeq: pass.upto, timeline: 1 };
    const acquired = { record, identity: { timeline: 1 }, replication: {}, server: { version: 15 } };
    const options = { failure: this.failure, log: silent, clock: this.#clock, stopping: new AbortController().signal };
    const point = await findStartingPoint(
      { ...options, onPhase: () => undefined } as unknown as SessionOptions,
      acquired as unknown as Acquired,
      this.#database.slot(this.databaseCalls) as unknown as Slot,
      slotLsn === null ? undefined : ({} as SlotState),
      {
        store: this.#ports as unknown as RelayStore,
        table: this.#ports as unknown as TableReader,
        feed: this.feed,
        allSettled: () =>
          settledOrLeft({
            works: this.works,
            outstanding: () => this.publishing.outstanding + (this.lanes?.outstanding ?? 0),
            settler: this.settler,
            room: this.#room,
            check,
            ending: signal,
          }),
        check,
      },
    );
    this.#stream(point, await this.#ports.position());
  }

  #stream({ startLsn, ids, fence }: StartingPoint, replayEnd: Lsn): void {
    const database = this.#database;
    const ledger = new Ledger(startLsn);
    this.settler.streamFrom(ledger, startLsn);
    this.startLsn = this.handedLsn = maxLsn(startLsn, database.slotLsn ?? LSN_ZERO);
    const from = this.startLsn;
    this.#cursor = { transaction: database.wal.findIndex(({ commitLsn }) => commitLsn >= from), event: 0 };
    if (this.#cursor.transaction < 0) this.#cursor.transaction = database.wal.length;
    this.pump = new Pump({
      ledger,
      works: this.works,
      admission: this.#admission,
      settler: this.settler,
      store: this.#ports,
      counters: this.#counters,
      startLsn,
      replayEnd,
      historyRetentionMs: Infinity,
      databaseNow: () => this.#clock.now(),
      passIds: ids,
      passFence: fence,
      check: () => this.failure.check(),
    });
    this.pump.attach({
      pause: () => (this.paused = true),
      resume: () => (this.paused = false),
      report: (_received, settled) => {
        this.#watch.onReport(this, settled);
        this.reportedLsn = settled;
        if (database.slotLsn === null || settled > database.slotLsn) database.slotLsn = settled;
      },
    });
    this.#own(this.pump.run());
  }

  async #poll(): Promise<never> {
    for (;;) {
      this.failure.check();
      await this.feed.poll();
      await pause(this.#clock, 100, this.failure.signal);
    }
  }

  /** Whether the server has sent the whole transaction in this session, or not had to. */
  hasSent(transaction: number): boolean {
    return this.pump !== undefined && transaction < this.#cursor.transaction;
  }

  /** The server sends its next event; false when there is none, or when the socket rests. */
  send(): boolean {
    const transaction = this.#database.wal[this.#cursor.transaction];
    if (!transaction || !this.pump || this.paused) return false;
    const { commitLsn, endLsn, xid, rows } = transaction;
    const n = this.#cursor.event;
    this.#cursor.event += 1;
    const row = rows[n - 1];
    if (n === 0) this.pump.push({ kind: 'begin', commitLsn, committedAtMs: 0, xid });
    else if (row) this.pump.push({ ...row, row: { ...row.row, body: Buffer.from(row.row.body) } });
    else {
      this.#cursor = { transaction: this.#cursor.transaction + 1, event: 0 };
      this.handedLsn = maxLsn(this.handedLsn, endLsn);
      this.pump.push({ kind: 'commit', endLsn });
    }
    return true;
  }

  /** The server says how far it has read: up to the commit record that it has not sent yet, or to the end. */
  keepalive(): void {
    if (!this.pump) return;
    const walEnd = this.#database.wal[this.#cursor.transaction]?.commitLsn ?? this.#database.insertLsn;
    this.handedLsn = maxLsn(this.handedLsn, walEnd);
    this.pump.push({ kind: 'keepalive', walEnd, replyRequested: false });
  }

  /** Due rows, released rows and the sweep, each beside the others, as the relay's timers start them. */
  feedFrom(what: 'due' | 'sweep'): void {
    if (!this.pump && this.#source === 'wal') return;
    if (what === 'sweep') this.#feed('sweep', () => this.#sweep());
    else {
      const isReplaying = this.pump?.isReplaying === true;
      if (!isReplaying) this.#feed('due', () => this.feed.due());
      this.#feed('release', async () => this.lanes?.ask((await this.feed.release(isReplaying)).again));
    }
  }

  #feed(what: string, work: () => Promise<unknown>): void {
    if (this.#feeding.has(what)) return;
    this.#feeding.add(what);
    this.#own(work().finally(() => this.#feeding.delete(what)));
  }

  async #sweep(): Promise<void> {
    if (!this.#database.strict) this.#database.unblock();
    const passed = (lsn: Lsn): Promise<void> => this.#passed(lsn);
    if (this.pump) await this.feed.sweep(passed);
    await this.feed.removeWithdrawn(this.settler, passed);
  }

  async #passed(lsn: Lsn): Promise<void> {
    // As the relay does it, to ask the server where it is.
    this.pump?.report(LSN_ZERO, true);
    await this.pump?.passed(lsn);
  }

  get isFeeding(): boolean {
    return this.#feeding.size > 0;
  }

  /** The session is lost with everything it held in memory. */
  async lose(late: boolean): Promise<void> {
    const error = new WaybillError('WAYBILL_DATABASE_UNAVAILABLE', 'lost');
    this.failure.fail(error);
    this.databaseCalls.lose(error, late);
    this.brokerCalls.lose(error, late);
    this.connection.channel?.die();
    await this.publishing.close();
    await this.lanes?.end();
    await this.settler.stop();
    await Promise.all(this.#tasks);
    await turn();
  }

  /** Its failure ends the session, as in the relay. */
  #own(task: Promise<unknown>): void {
    this.#tasks.push(task.catch((error: unknown) => this.failure.fail(error as Error)));
  }
}
