import type { Return } from '../core/confirms.js';
import type { Fault } from '../core/fault.js';
import { isFault, timestampMs, toMessage, type Message, type MessageDefaults } from '../core/message.js';
import { unroutableDelayMs } from '../core/schedule.js';
import type { Window } from '../core/window.js';
import type { Condition } from '../runtime/signal.js';
import type { ExchangeChecks } from './exchange-checks.js';
import type { LaneTraffic } from './lane-traffic.js';
import type { Publishing } from './publishing.js';
import type { HoldReason, Settler } from './settler.js';
import type { Work, Works } from './work.js';

/** What follows when no queue takes a message. */
export interface UnroutablePolicy {
  retryForMs: number;
  then: 'park' | 'accept';
}

/** After how long a row comes back that the broker nacked for too long; up to a fifth is added. */
const NACKED_RETRY_MS = 5_000;

/** Rows unsettled at once, in windows: what is confirmed and not yet settled is small, but not free. */
const UNSETTLED_WINDOWS = 2;
/** So many rows that the table refuses do not count: until somebody sees to it, they would leave no room for others. */
const REFUSED_BESIDE = 10_000;
/** Parts that may wait for room at the same time, each with a row that counts already. */
const WAITERS = 4;

/**
 * Decides for one row at a time whether it is published, held or settled, and what its outcome means. Bad rows are set
 * aside as rows with their reason; they stop nobody.
 */
export class Admission {
  readonly #defaults: MessageDefaults;
  readonly #policy: UnroutablePolicy;
  readonly #works: Works;
  readonly #window: Window;
  readonly #room: Condition;
  readonly #publishing: Publishing<Work>;
  readonly #exchanges: ExchangeChecks;
  readonly #settler: Settler;
  readonly #databaseNow: () => number;
  readonly #random: () => number;
  readonly #onConfirmed: (work: Work, nowMs: number) => void;
  readonly #check: () => void;
  readonly #checkAlive: () => void;
  readonly #lanes: LaneTraffic | undefined;

  constructor(options: {
    defaults: MessageDefaults;
    policy: UnroutablePolicy;
    works: Works;
    window: Window;
    /** Notified whenever the window or the number of unsettled rows shrinks, and on failure. */
    room: Condition;
    publishing: Publishing<Work>;
    exchanges: ExchangeChecks;
    settler: Settler;
    /** The database's clock in milliseconds since 1970 (F118). */
    databaseNow: () => number;
    random: () => number;
    /** Told of each confirmed row with the time by the database's clock, for measuring. */
    onConfirmed: (work: Work, nowMs: number) => void;
    /** Throws when the session has failed, or is stopping and no transaction is open. */
    check: () => void;
    /** Throws when the session has failed or is over; a stop lets what is in memory go out. */
    checkAlive: () => void;
    /** With `ordering: strict`. */
    lanes: LaneTraffic | undefined;
  }) {
    this.#defaults = options.defaults;
    this.#policy = options.policy;
    this.#works = options.works;
    this.#window = options.window;
    this.#room = options.room;
    this.#publishing = options.publishing;
    this.#exchanges = options.exchanges;
    this.#settler = options.settler;
    this.#databaseNow = options.databaseNow;
    this.#random = options.random;
    this.#onConfirmed = options.onConfirmed;
    this.#check = options.check;
    this.#checkAlive = options.checkAlive;
    this.#lanes = options.lanes;
  }

  /** Rows come for another try: what was wrong with their exchanges is asked anew. */
  tryAgain(): void {
    this.#exchanges.forgetFaults();
  }

  /**
   * Publishes the row or sets it aside; the work must be in `works` already. Returns a promise only when it must wait
   * (for room, or for a first look at an exchange), so that the common case costs none.
   */
  admit(work: Work): Promise<void> | undefined {
    return this.#isCrowded() ? this.#admitWhenCalm(work) : this.#decide(work);
  }

  /**
   * With strict order: whether a row that comes again from the log and has a place in its key gets it anew. Not one that
   * this session has held, in a table pass: it may be on its way out.
   */
  placesAgain({ key }: { key: string | null }): boolean {
    return key !== null && this.#lanes?.isLoaded(key) === true;
  }

  /**
   * With strict order: whether a row that was written into the table with a place gets one where the log brings it. Not
   * when it may have been there as the session began, and others were held behind it.
   */
  placesWritten({ key }: { key: string | null }, holdNo: bigint, replayed: boolean): boolean {
    const lanes = this.#lanes;
    if (key === null || lanes === undefined) return false;
    return !(replayed && lanes.isLoaded(key) && holdNo <= (lanes.lastOrder ?? holdNo));
  }

  /** Gives a row its place anew; the work must be in `works` already. */
  async admitAgain(work: Work): Promise<void> {
    await this.#calm();
    this.#lanes?.again(work);
  }

  /** Keys whose rows must stay in the table for now, when they are read in the order of their seqs. */
  heldUpKeys(): Promise<ReadonlyMap<string, unknown>> {
    return this.#settler.heldUpKeys();
  }

  async #admitWhenCalm(work: Work): Promise<void> {
    await this.#calm();
    await this.#decide(work);
  }

  async #calm(): Promise<void> {
    while (this.#isCrowded()) {
      await this.#room.wait();
      this.#check();
    }
  }

  /** O4: rows that never reach the broker are bounded too, until the database has them. */
  #isCrowded(): boolean {
    // The work itself is among the works already.
    const { maxMessages, maxBytes } = this.#window;
    const waitingBytes = this.#settler.heldBytes + (this.#lanes?.waitingBytes ?? 0);
    const unsettled = this.#works.size - Math.min(this.#settler.refusedRows, REFUSED_BESIDE);
    return unsettled > maxMessages * UNSETTLED_WINDOWS + WAITERS || waitingBytes > maxBytes;
  }

  #decide(work: Work): Promise<void> | undefined {
    const { row } = work;
    // Also when its time has come: a transaction that cancelled it before may be open, or not have been read yet. The
    // table lets it go when nobody has it locked. What is expired goes nowhere.
    if (row.deliverAt !== null && !work.isDue && work.order === null && !this.#isExpired(work)) {
      // A row that its writer put off has its place in the order when it is due, and holds nobody.
      this.#settler.hold(work, { state: 'scheduled', attempts: row.attempts, error: null, delayMs: null });
      return undefined;
    }
    work.bytes = row.body.length + row.headers.length;
    if (this.#lanes && row.key !== null && !this.#lanes.admit(work)) return undefined;
    return this.take(work);
  }

  #isExpired({ row }: Work): boolean {
    return row.expiresAt !== null && timestampMs(row.expiresAt) <= this.#databaseNow();
  }

  /** Publishes a row whose turn it is, or sets it aside. Gives a promise when it must wait. */
  take(work: Work): Promise<void> | undefined {
    if (this.#isExpired(work)) {
      this.#settler.settle(work, 'expired');
      this.#lanes?.done(work);
      return undefined;
    }
    const message = toMessage(work.row, this.#defaults);
    if (isFault(message)) {
      this.refused(work, message);
      return undefined;
    }
    work.message = message;
    if (this.#exchanges.isThere(message.exchange) && this.#hasRoom(work)) {
      this.#publishing.publish(work);
      return undefined;
    }
    return this.#publishLater(work, message);
  }

  async #publishLater(work: Work, message: Message): Promise<void> {
    const check = work.order === null ? this.#check : this.#checkAlive;
    const fault = await this.#exchanges.check(message.exchange);
    // Why: a failure in the meantime has woken everybody already, and nobody would wake this one.
    check();
    if (fault) {
      this.refused(work, fault);
      return;
    }
    while (!this.#hasRoom(work)) {
      await this.#room.wait();
      check();
    }
    this.#publishing.publish(work);
  }

  #hasRoom(work: Work): boolean {
    // Why not in a lane: what crowds may be the rows that wait behind this one.
    return this.#window.hasRoomFor(work.bytes) && (work.order !== null || !this.#isCrowded());
  }

  confirmed(work: Work): void {
    this.#onConfirmed(work, this.#databaseNow());
    this.#settler.settle(work, 'published');
    this.#lanes?.done(work);
  }

  /** O3: a returned message has not arrived anywhere. It is tried again from the table, then parked or accepted. */
  returned(work: Work, reason: Return): void {
    const attempts = work.row.attempts + 1;
    const delayMs = unroutableDelayMs(attempts, this.#policy.retryForMs);
    const error = `unroutable: RabbitMQ returned it (${reason.replyCode} ${reason.replyText}); no queue is bound to exchange ${work.message?.exchange ?? ''} for routing key ${work.message?.routingKey ?? ''}`;
    if (delayMs !== 'give-up') this.#setAside(work, { state: 'scheduled', attempts, error, delayMs });
    else if (this.#policy.then === 'park') this.#setAside(work, { state: 'parked', attempts, error, delayMs: null });
    else {
      this.#settler.settle(work, 'accepted');
      this.#lanes?.done(work);
    }
  }

  /** Permanent faults go aside at once. */
  refused(work: Work, fault: Fault): void {
    const attempts = work.row.attempts + 1;
    this.#setAside(work, { state: 'parked', attempts, error: `${fault.fault}: ${fault.text}`, delayMs: null });
  }

  /** Back-pressure that lasts: the row waits in the table instead of in the window. Not the row's fault: no attempt spent. */
  nackedTooOften(work: Work): void {
    const delayMs = NACKED_RETRY_MS * (1 + this.#random() / 5);
    const error = `nacked: RabbitMQ did not take it (a full queue with overflow reject-publish?)`;
    this.#setAside(work, { state: 'scheduled', attempts: work.row.attempts, error, delayMs });
  }

  /** The row first, then those behind it: held in this order. */
  #setAside(work: Work, reason: HoldReason): void {
    this.#settler.hold(work, reason);
    this.#lanes?.held(work);
  }
}
