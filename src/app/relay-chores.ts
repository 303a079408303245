import { LSN_ZERO, type Lsn } from '../core/lsn.js';
import type { LaneTraffic } from '../outbox/lane-traffic.js';
import type { Pump } from '../outbox/pump.js';
import type { Settler } from '../outbox/settler.js';
import type { TableFeed } from '../outbox/table-feed.js';
import type { WaitingRows } from '../outbox/waiting-rows.js';
import { keptWalBytes } from '../postgres/shed.js';
import type { TableReader } from '../postgres/table-reader.js';
import { pause } from '../runtime/clock.js';
import { HELD_POSITION_INTERVAL_MS, HeldPosition } from './held-position.js';
import { assertPublication } from './relay-slot.js';
import type { SessionOptions } from './relay-session.js';

const DUE_INTERVAL_MS = 1_000;
const PING_INTERVAL_MS = 100;
const CHECK_INTERVAL_MS = 30_000;
const OPEN_INTERVAL_MS = 15_000;
const WITHDRAWN_INTERVAL_MS = 10_000;
const HISTORY_INTERVAL_MS = 3_600_000;
const MIN_POLL_MS = 10;
const MAX_POLL_MS = 160;

/** What is done while rows flow, besides carrying them. */
export interface Flow {
  /** Undefined with `source: table`. */
  pump: Pump | undefined;
  /** Empty with `source: table`. */
  slotName: string;
  feed: TableFeed;
  waiting: WaitingRows;
  settler: Settler;
  /** With `ordering: strict`. */
  lanes: LaneTraffic | undefined;
  /** Without it: frees rows that it held once. */
  unblock: () => Promise<void>;
}

/** What a session does now and then: each chore runs until the session ends, and its error ends the session. */
export class RelayChores {
  readonly #options: SessionOptions;
  readonly #table: TableReader;
  readonly #publication: string;
  readonly #check: () => void;
  /** Why one for all: the signal of the service remembers each that was ever made of it. */
  readonly #ending: AbortSignal;
  /** The database's clock minus ours. */
  #databaseAheadMs = 0;
  #polls = 0;

  constructor(options: SessionOptions, table: TableReader, publication: string, check: () => void) {
    this.#options = options;
    this.#table = table;
    this.#publication = publication;
    this.#check = check;
    this.#ending = AbortSignal.any([options.failure.signal, options.stopping]);
  }

  /** The database's clock in milliseconds since 1970, estimated from its last reading (F118). */
  databaseNow(): number {
    return this.#options.clock.now() + this.#databaseAheadMs;
  }

  async readClock(): Promise<void> {
    this.#databaseAheadMs = (await this.#table.databaseNowMs()) - this.#options.clock.now();
  }

  /** What goes on from the start, also during a table pass, which may take hours. */
  always(assertOpen: () => Promise<void>): Promise<never>[] {
    return [
      this.#stayingWelcome(assertOpen),
      this.every(CHECK_INTERVAL_MS, () => this.readClock()),
      this.every(HISTORY_INTERVAL_MS, () => this.#keepHistory()),
    ];
  }

  /** F21: asks now and then whether the server lets anybody in; it had let us in a moment ago. */
  async #stayingWelcome(assertOpen: () => Promise<void>): Promise<never> {
    const aWhile = (): Promise<void> => pause(this.#options.clock, OPEN_INTERVAL_MS, this.#ending);
    await aWhile();
    // Why the race: a server that does not answer must hold up no stop.
    return this.every(OPEN_INTERVAL_MS, () => Promise.race([assertOpen(), aWhile()]));
  }

  /** What goes on while rows flow. */
  during(flow: Flow): Promise<never>[] {
    const { sweepIntervalMs } = this.#options.config.relay;
    const { pump, slotName, feed, settler, lanes, unblock } = flow;
    const withdrawn = this.every(WITHDRAWN_INTERVAL_MS, () =>
      feed.removeWithdrawn(settler, (lsn) => this.#passed(pump, lsn)),
    );
    const due = this.every(DUE_INTERVAL_MS, () => this.#due(flow));
    const always = [withdrawn, due];
    if (lanes) {
      always.push(
        this.#releasing(flow, lanes),
        this.every(sweepIntervalMs, () => {
          lanes.askAll();
          feed.pollFromStart();
        }),
      );
    } else {
      always.push(
        this.every(sweepIntervalMs, async () => {
          await unblock();
          feed.pollFromStart();
        }),
      );
    }
    if (!pump) return always;
    const held = new HeldPosition({
      settler,
      keptWalBytes: () => this.#table.use((client) => keptWalBytes(client, slotName)),
      maxKeptWalBytes: this.#options.config.relay.maxKeptWalBytes,
      log: this.#options.log,
      nowMs: () => this.#options.clock.now(),
    });
    return [
      ...always,
      this.every(HELD_POSITION_INTERVAL_MS, () => held.look()),
      this.every(sweepIntervalMs, async () => {
        await feed.sweep((lsn) => this.#passed(pump, lsn));
      }),
      this.every(CHECK_INTERVAL_MS, () => this.#checkPublication()),
    ];
  }

  /** Grows with each poll of `source: table`. */
  get polls(): number {
    return this.#polls;
  }

  /** The intake of `source: table`: polls, soon again while there is work, slower when there is none. */
  async polling(feed: TableFeed): Promise<never> {
    const { clock, log } = this.#options;
    log.info({}, 'polling the table');
    for (let waitMs = MIN_POLL_MS; ;) {
      this.#check();
      waitMs = (await feed.poll()) > 0 ? MIN_POLL_MS : Math.min(waitMs * 2, MAX_POLL_MS);
      this.#polls += 1;
      await pause(clock, waitMs, this.#ending);
    }
  }

  /** Runs now and again at each interval until the session ends. */
  async every(intervalMs: number, task: () => Promise<void> | void): Promise<never> {
    for (;;) {
      this.#check();
      await task();
      await pause(this.#options.clock, intervalMs, this.#ending);
    }
  }

  async #due({ pump, feed, lanes, waiting, unblock }: Flow): Promise<void> {
    if (!lanes && waiting.mayUnblock) await unblock();
    // A row that an earlier session has held may come again from the log; sent before that, it would be sent twice.
    if (pump?.isReplaying === true) return;
    while (await feed.due()) this.#check();
  }

  /** Strict order: lets held rows go as soon as nothing before them holds them. */
  async #releasing({ pump, feed }: Flow, lanes: LaneTraffic): Promise<never> {
    for (;;) {
      this.#check();
      await lanes.someQuestion(this.#ending);
      this.#check();
      // As for due rows: what an earlier session has held may come again from the log. What this one has held may not.
      const fresh = pump?.isReplaying === true;
      const { again, restMs } = await feed.release(fresh);
      this.#askLater(lanes, again);
      // What the table refuses whatever the key would be asked for one key after the other.
      if (restMs > 0) await pause(this.#options.clock, restMs, this.#ending);
      if (fresh) await pause(this.#options.clock, PING_INTERVAL_MS, this.#ending);
    }
  }

  /** Somebody has locked these keys, for the length of a transaction. */
  #askLater(lanes: LaneTraffic, keys: readonly string[]): void {
    if (keys.length > 0) this.#options.clock.after(DUE_INTERVAL_MS, () => lanes.ask(keys));
  }

  /** F33: PostgreSQL 18 skips the rows of a publication that is gone without a word to its reader. */
  async #checkPublication(): Promise<void> {
    const { schema } = this.#options.config.database;
    await this.#table.use((client) => assertPublication(client, schema, this.#publication));
  }

  /** Resolves when the pump has handled everything up to `lsn`; pings so that an idle server says where it is. */
  async #passed(pump: Pump | undefined, lsn: Lsn): Promise<void> {
    if (!pump) return;
    let isPassed = false;
    // Why one for all rounds: each would be woken by every event of a long backlog.
    const passed = pump.passed(lsn).finally(() => (isPassed = true));
    do {
      if (pump.handledLsn < lsn) pump.report(LSN_ZERO, true);
      await Promise.race([passed, pause(this.#options.clock, PING_INTERVAL_MS, this.#options.failure.signal)]);
    } while (!isPassed);
    await passed;
  }

  async #keepHistory(): Promise<void> {
    const { config, log } = this.#options;
    if (config.relay.history === 'off') return;
    try {
      for (const done of await this.#table.keepHistory(config.relay.historyRetentionMs)) {
        log.info(done, 'history partition');
      }
    } catch (error) {
      // Why not the session's failure: rows of a day without a partition go to the default one, and settling goes on.
      log.warn({ err: error }, 'the history partitions could not be kept; trying again in an hour');
    }
  }
}
