/** What the lanes know of a row: its place in the order of its key, and what it weighs in memory. */
export interface LaneItem {
  /** Written by the lanes when the row comes; a row that the table gives back has it already. */
  order: bigint | null;
  /** Octets. */
  bytes: number;
}

/** Where a row goes that has just come: out, behind its key in memory, or into the table as `blocked`. */
export type Place = 'go' | 'wait' | 'hold';

interface Lane<T> {
  /** Admitted and without a final word. */
  active: T | undefined;
  /** In order. Either all from the stream (`inTable` false), or all given back by the table. */
  waiting: T[];
  /** The table has rows of this key that hold it, or may have. */
  inTable: boolean;
  /** Rows on their way into the table. */
  holding: number;
  /** Highest order that left for good; what the table still shows up to it is about to be deleted. */
  passed: bigint;
  /** Grows with each row that goes to the table, so that an older answer does not count. */
  stamp: number;
  askedAt: number;
  /** The stamp when a row in flight was set aside last. */
  asideAt: number;
  /** The table had rows of this key before the session began. */
  loaded: boolean;
}

/** A question to the table: may rows of this key go on, from the first after `after`? */
export interface LaneQuestion {
  key: string;
  after: bigint;
}

/**
 * `ordering: strict`: one row in flight per key, and a row that waits in the table holds its key.
 *
 *   row ──enter──▶ go ──▶ active ──done────▶ the next of its key goes
 *             ├──▶ wait (memory)  ──held────▶ all that wait follow it into the table, in order
 *             └──▶ hold (table)   ──ask─────▶ the table gives back the head of the key and what follows it
 *
 * Every row of a key gets a number as it comes, and keeps it in the table (`hold_no`): the order of a key is the order of
 * these numbers, whatever becomes of its rows. A row goes to the table only when nothing before it is in flight: else a
 * crash would find it there while its predecessor comes again from the log, behind it.
 *
 * A key with more rows than `depth` waiting spills into the table as soon as its active row is done, so that a hot key
 * fills neither memory nor the window that others need. Pure: no I/O, no clock.
 */
export class KeyLanes<T extends LaneItem> {
  readonly #lanes = new Map<string, Lane<T>>();
  readonly #depth: number;
  /** Something has happened to these. */
  readonly #toAsk = new Set<string>();
  /** Asked when there is nothing else, because there may be very many: nobody knows of a change. */
  readonly #toLook = new Set<string>();
  #order: bigint;
  #waiting = 0;
  #waitingBytes = 0;

  /** `lastOrder`: the highest number that the table knows. `depth`: rows of one key that may wait in memory. */
  constructor(options: { depth: number; lastOrder: bigint }) {
    this.#depth = options.depth;
    this.#order = options.lastOrder;
  }

  /** Keys that the table holds, before any row comes. */
  load(keys: Iterable<string>): void {
    for (const key of keys) {
      const lane = this.#lane(key);
      lane.inTable = lane.loaded = true;
      this.#toLook.add(key);
    }
  }

  /** A row comes. After `hold` the caller puts it into the table and says `stored`. */
  enter(key: string, item: T): Place {
    const lane = this.#lane(key);
    item.order = this.#order += 1n;
    if (lane.inTable) {
      this.#hold(lane);
      return 'hold';
    }
    if (!lane.active) {
      lane.active = item;
      return 'go';
    }
    this.#wait(lane, item, lane.waiting.length);
    return 'wait';
  }

  /**
   * The table gives a row back that it held; it has its number. A row of an answer (`answer`) goes back to the table when
   * one before it was set aside since the question: the caller holds it, as after `enter`.
   */
  giveBack(key: string, item: T, answer = false): Place {
    const lane = this.#lane(key);
    lane.inTable = true;
    if (answer && lane.asideAt > lane.askedAt) {
      this.#hold(lane);
      return 'hold';
    }
    if (!lane.active) {
      lane.active = item;
      return 'go';
    }
    const at = lane.waiting.findIndex((each) => orderOf(each) > orderOf(item));
    this.#wait(lane, item, at < 0 ? lane.waiting.length : at);
    return 'wait';
  }

  /** The active row is done for good: published, accepted, expired. Gives what goes next, or what spills. */
  done(key: string, item: T): { go?: T; hold: T[] } {
    const lane = this.#leave(key, item);
    if (orderOf(item) > lane.passed) lane.passed = orderOf(item);
    if (!lane.inTable && lane.waiting.length > this.#depth) return { hold: this.#spill(lane) };
    const next = lane.waiting.shift();
    if (next) {
      this.#unwait(next);
      lane.active = next;
      return { go: next, hold: [] };
    }
    this.#rest(key, lane);
    return { hold: [] };
  }

  /** The active row goes to the table; so must these behind it, in this order. The caller says `stored` for each. */
  held(key: string, item: T): T[] {
    const lane = this.#leave(key, item);
    this.#hold(lane);
    lane.asideAt = lane.stamp;
    return this.#spill(lane);
  }

  /** A row of the key is in the table, durably. */
  stored(key: string, item: T): void {
    const lane = this.#lane(key);
    lane.holding -= 1;
    // A later one may have gone out meanwhile, by an operator's will; this one holds the key all the same.
    if (orderOf(item) <= lane.passed) lane.passed = orderOf(item) - 1n;
    this.#rest(key, lane);
  }

  /**
   * At most `max` keys for which the table may have a row that can go. `fresh` leaves out keys that the table held before
   * the session: what an earlier one had held may come again from the log.
   */
  questions(max: number, fresh = false): LaneQuestion[] {
    const questions: LaneQuestion[] = [];
    for (const keys of fresh ? [this.#toAsk] : [this.#toAsk, this.#toLook]) {
      for (const key of keys) {
        if (questions.length >= max) return questions;
        const lane = this.#lanes.get(key);
        if (fresh && lane?.loaded === true) continue;
        this.#toAsk.delete(key);
        this.#toLook.delete(key);
        // Otherwise it is asked when the last of it has left memory.
        if (!lane || isBusy(lane)) continue;
        lane.askedAt = lane.stamp;
        questions.push({ key, after: lane.passed });
      }
    }
    return questions;
  }

  /** Puts the question again. */
  ask(key: string): void {
    if (this.#lanes.has(key)) this.#toAsk.add(key);
  }

  /** Asks for every key that the table holds, in case somebody has changed its rows by hand. */
  askAll(): void {
    for (const [key, lane] of this.#lanes) if (lane.inTable) this.#toLook.add(key);
  }

  /** The answer was carried out: its rows were given back. `remains`: the table still holds rows of the key. */
  answered(key: string, remains: boolean): void {
    const lane = this.#lanes.get(key);
    if (!lane || remains) return;
    if (isBusy(lane)) return;
    if (lane.stamp === lane.askedAt) this.#lanes.delete(key);
    else this.#toAsk.add(key);
  }

  get hasQuestions(): boolean {
    return this.#toAsk.size > 0 || this.#toLook.size > 0;
  }

  /** Rows that wait in memory behind their key. */
  get waiting(): number {
    return this.#waiting;
  }

  /** Their octets. */
  get waitingBytes(): number {
    return this.#waitingBytes;
  }

  /** Keys that have a row in flight, in memory or in the table. */
  get size(): number {
    return this.#lanes.size;
  }

  #lane(key: string): Lane<T> {
    let lane = this.#lanes.get(key);
    if (!lane) {
      lane = {
        active: undefined,
        waiting: [],
        inTable: false,
        holding: 0,
        passed: -1n,
        stamp: 0,
        askedAt: 0,
        asideAt: 0,
        loaded: false,
      };
      this.#lanes.set(key, lane);
    }
    return lane;
  }

  #leave(key: string, item: T): Lane<T> {
    const lane = this.#lanes.get(key);
    if (lane?.active !== item) throw new Error('lanes: a row is done that was not in flight');
    lane.active = undefined;
    return lane;
  }

  #wait(lane: Lane<T>, item: T, at: number): void {
    lane.waiting.splice(at, 0, item);
    this.#waiting += 1;
    this.#waitingBytes += item.bytes;
  }

  #unwait(item: T): void {
    this.#waiting -= 1;
    this.#waitingBytes -= item.bytes;
  }

  #spill(lane: Lane<T>): T[] {
    const rows = lane.waiting;
    lane.waiting = [];
    for (const each of rows) {
      this.#unwait(each);
      this.#hold(lane);
    }
    return rows;
  }

  #hold(lane: Lane<T>): void {
    lane.inTable = true;
    lane.holding += 1;
    lane.stamp += 1;
  }

  /** Nothing of the key is in memory: the table is asked for what follows, or the key is forgotten. */
  #rest(key: string, lane: Lane<T>): void {
    if (isBusy(lane)) return;
    if (lane.inTable) this.#toAsk.add(key);
    else this.#lanes.delete(key);
  }
}

/** Something of the key is in memory. */
function isBusy(lane: Lane<unknown>): boolean {
  return lane.active !== undefined || lane.waiting.length > 0 || lane.holding > 0;
}

function orderOf(item: LaneItem): bigint {
  if (item.order === null) throw new Error('lanes: a row without a number');
  return item.order;
}
