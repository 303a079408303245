/** What the lanes know of a row: its place in the order of its key, and what it weighs in memory. */
export interface LaneItem {
  /** Written by the lanes when the row comes; a row that the table gives back has it already. */
  order: bigint | null;
  /** Octets. */
  bytes: number;
}

/** Where a row goes that has just come: out, behind its key in memory, or into the table as `blocked`. */
export type Place = 'go' | 'wait' | 'hold';

/** A key of which something is in memory, or which the table is asked about. */
interface Lane<T> {
  /** Admitted and without a final word. */
  active: T | undefined;
  /** In order. Either all from the stream (`inTable` false), or all given back by the table. */
  waiting: T[];
  /** The table has rows of this key that hold it, or may have. */
  inTable: boolean;
  /** Rows on their way into the table, or to a new place in it. */
  holding: number;
  /** Highest order that left for good; what the table still shows up to it is about to be deleted. */
  passed: bigint;
  /** Grows with each row that goes to the table, so that an older answer does not count. */
  stamp: number;
  /** A question is open. */
  asked: boolean;
  askedAt: number;
  /** The stamp when a row in flight was set aside last. */
  asideAt: number;
}

/** Why one for all: there may be millions of keys. */
const NOTHING_PASSED = -1n;

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
 * these numbers, whatever becomes of its rows. A row goes to the table only when nothing before it is in flight, but it
 * may be there before one that came earlier and that somebody has locked. A crash in between would find it there while
 * its predecessor comes again from the log; so the log gives every row that it brings again a new number (`again`), also
 * one that the table holds, and their order is the order of their commits once more. Nothing of a key is asked for while
 * a row is on its way into the table.
 *
 * A key with more rows than `depth` waiting spills into the table as soon as its active row is done, so that a hot key
 * fills neither memory nor the window that others need. A key whose rows all rest in the table costs its name and a
 * number. Pure: no I/O, no clock.
 */
export class KeyLanes<T extends LaneItem> {
  /** Of keys that do not rest; those that the table holds are below as well. */
  readonly #lanes = new Map<string, Lane<T>>();
  /** Keys that the table held before the session began, with the highest order that left for good when they rest. */
  readonly #loaded = new Map<string, bigint>();
  /** The same of those that this session put there. */
  readonly #held = new Map<string, bigint>();
  readonly #depth: number;
  /** Something has happened to these. */
  readonly #toAsk = new Set<string>();
  /** A walk over all that the table holds, when there is nothing else: nobody knows of a change. */
  #look: Iterator<string> | undefined;
  #hasLooked = false;
  /** Another walk is wanted, from the start. */
  #lookAgain = false;
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
    for (const key of keys) this.#loaded.set(key, NOTHING_PASSED);
    if (this.#loaded.size > 0) this.#look = walk(this.#loaded);
  }

  /** Whether the table held rows of this key before the session began, and does still. */
  isLoaded(key: string): boolean {
    return this.#loaded.has(key);
  }

  /** A row comes. After `hold` the caller puts it into the table and says `stored`. */
  enter(key: string, item: T): Place {
    const lane = this.#lane(key);
    item.order = this.#order += 1n;
    if (lane.inTable) {
      this.#hold(key, lane);
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
   * A row comes again from the log that an earlier session has put into the table: it gets a number as if it came for the
   * first time. The caller writes it into the table and says `stored`.
   */
  again(key: string, item: T): void {
    item.order = this.#order += 1n;
    this.#hold(key, this.#lane(key));
  }

  /**
   * The table gives a row back that it held, in an answer; it has its number. It goes back to the table when one before
   * it was set aside since the question: the caller holds it, as after `enter`.
   */
  giveBack(key: string, item: T): Place {
    const lane = this.#lane(key);
    if (lane.asideAt > lane.askedAt) {
      this.#hold(key, lane);
      return 'hold';
    }
    this.#noteHeld(key, lane);
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
    if (!lane.inTable && lane.waiting.length > this.#depth) return { hold: this.#spill(key, lane) };
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
    this.#hold(key, lane);
    lane.asideAt = lane.stamp;
    return this.#spill(key, lane);
  }

  /** A row of the key is in the table, durably. */
  stored(key: string, item: T): void {
    const lane = this.#lane(key);
    lane.holding -= 1;
    // A later one may have gone out meanwhile, by an operator's will; this one holds the key all the same.
    if (orderOf(item) <= lane.passed) lane.passed = orderOf(item) - 1n;
    this.#rest(key, lane);
  }

  /** A row of the key has waited in the table for its time; now it waits for its turn. */
  due(key: string, order: bigint): void {
    const lane = this.#lane(key);
    this.#noteHeld(key, lane);
    if (order <= lane.passed) lane.passed = order - 1n;
    this.#rest(key, lane);
  }

  /**
   * At most `max` keys for which the table may have a row that can go. `fresh` leaves out keys that the table held before
   * the session: what an earlier one had held may come again from the log.
   */
  questions(max: number, fresh = false): LaneQuestion[] {
    const questions: LaneQuestion[] = [];
    for (const key of this.#toAsk) {
      if (questions.length >= max) return questions;
      this.#toAsk.delete(key);
      if (!fresh || !this.#loaded.has(key)) this.#question(key, questions);
      // The walk comes by it.
      else if (this.#hasLooked) this.#lookAtAll();
    }
    while (!fresh && this.#look) {
      if (questions.length >= max) return questions;
      this.#hasLooked = true;
      const next = this.#look.next();
      if (next.done === true) {
        this.#look = undefined;
        if (this.#lookAgain) this.#lookAtAll();
      } else if (!questions.some(({ key }) => key === next.value)) this.#question(next.value, questions);
    }
    return questions;
  }

  /** Puts the question again. */
  ask(key: string): void {
    if (this.#isHeld(key)) this.#toAsk.add(key);
  }

  /** Asks for every key that the table holds, in case somebody has changed its rows by hand. */
  askAll(): void {
    if (this.#loaded.size + this.#held.size > 0) this.#lookAtAll();
  }

  /** The answer was carried out: its rows were given back. `remains`: the table still holds rows of the key. */
  answered(key: string, remains: boolean): void {
    const lane = this.#lanes.get(key);
    if (!lane) return;
    lane.asked = false;
    // Otherwise it is asked again when the last of it has left memory.
    if (isBusy(lane)) return;
    if (remains) this.#leaveMemory(key, lane);
    else if (lane.stamp !== lane.askedAt) this.#rest(key, lane);
    else {
      this.#lanes.delete(key);
      this.#loaded.delete(key);
      this.#held.delete(key);
    }
  }

  /** The highest number that a row was given, or had when the session began. */
  get lastOrder(): bigint {
    return this.#order;
  }

  get hasQuestions(): boolean {
    return this.#toAsk.size > 0 || this.#look !== undefined;
  }

  /** Rows that wait in memory behind their key. */
  get waiting(): number {
    return this.#waiting;
  }

  /** Their octets. */
  get waitingBytes(): number {
    return this.#waitingBytes;
  }

  /** Keys of which something is in memory, or which the table is asked about. */
  get busyKeys(): number {
    return this.#lanes.size;
  }

  /** Keys that the table holds, or may hold. */
  get heldKeys(): number {
    return this.#loaded.size + this.#held.size;
  }

  #isHeld(key: string): boolean {
    return this.#loaded.has(key) || this.#held.has(key);
  }

  #lane(key: string): Lane<T> {
    let lane = this.#lanes.get(key);
    if (!lane) {
      const passed = this.#loaded.get(key) ?? this.#held.get(key);
      lane = {
        active: undefined,
        waiting: [],
        inTable: passed !== undefined,
        holding: 0,
        passed: passed ?? NOTHING_PASSED,
        stamp: 0,
        asked: false,
        askedAt: 0,
        asideAt: 0,
      };
      this.#lanes.set(key, lane);
    }
    return lane;
  }

  #question(key: string, questions: LaneQuestion[]): void {
    // Otherwise it is asked when the last of it has left memory.
    if (!this.#isHeld(key) || isBusy(this.#lanes.get(key))) return;
    const lane = this.#lane(key);
    lane.asked = true;
    lane.askedAt = lane.stamp;
    questions.push({ key, after: lane.passed });
  }

  /** A walk that has begun goes on, and another follows it: what it has passed may have changed. */
  #lookAtAll(): void {
    this.#lookAgain = this.#look !== undefined && this.#hasLooked;
    if (this.#lookAgain) return;
    this.#look = walk(this.#loaded, this.#held);
    this.#hasLooked = false;
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

  #spill(key: string, lane: Lane<T>): T[] {
    const rows = lane.waiting;
    lane.waiting = [];
    for (const each of rows) {
      this.#unwait(each);
      this.#hold(key, lane);
    }
    return rows;
  }

  #hold(key: string, lane: Lane<T>): void {
    this.#noteHeld(key, lane);
    lane.holding += 1;
    lane.stamp += 1;
  }

  #noteHeld(key: string, lane: Lane<T>): void {
    if (lane.inTable) return;
    lane.inTable = true;
    this.#held.set(key, lane.passed);
  }

  /** Nothing of the key is in memory: the table is asked for what follows, or the key is forgotten. */
  #rest(key: string, lane: Lane<T>): void {
    if (isBusy(lane)) return;
    if (lane.inTable) this.#toAsk.add(key);
    this.#leaveMemory(key, lane);
  }

  #leaveMemory(key: string, lane: Lane<T>): void {
    if (lane.asked) return;
    this.#lanes.delete(key);
    if (this.#loaded.has(key)) this.#loaded.set(key, lane.passed);
    else if (lane.inTable) this.#held.set(key, lane.passed);
  }
}

/** Something of the key is in memory. */
function isBusy(lane: Lane<unknown> | undefined): boolean {
  return lane !== undefined && (lane.active !== undefined || lane.waiting.length > 0 || lane.holding > 0);
}

/** Also over keys that come while it is under way. */
function* walk(...held: readonly ReadonlyMap<string, unknown>[]): Generator<string, undefined> {
  for (const keys of held) yield* keys.keys();
  return undefined;
}

function orderOf(item: LaneItem): bigint {
  if (item.order === null) throw new Error('lanes: a row without a number');
  return item.order;
}
