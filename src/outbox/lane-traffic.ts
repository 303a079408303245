import type { KeyLanes, LaneQuestion } from '../core/key-lanes.js';
import { Wakeup } from '../runtime/signal.js';
import type { Settler } from './settler.js';
import type { Work } from './work.js';

/**
 * Does what the lanes of `ordering: strict` say: sends the next row of a key when the one before it is done, and has rows
 * held as `blocked` behind one that waits in the table. One of these lives as long as the session.
 */
export class LaneTraffic {
  readonly #lanes: KeyLanes<Work>;
  readonly #isStreamed: boolean;
  readonly #settler: () => Settler;
  readonly #take: (work: Work) => Promise<void> | undefined;
  readonly #onFailed: (error: Error) => void;
  readonly #question = new Wakeup();
  /** Next of their keys, while another of them waits for room or for a look at its exchange. */
  #ready: Work[] = [];
  #sending: Promise<void> | undefined;

  constructor(options: {
    lanes: KeyLanes<Work>;
    /** False with `source: table`. */
    isStreamed: boolean;
    settler: () => Settler;
    /** Publishes a row or sets it aside; gives a promise when it must wait. */
    take: (work: Work) => Promise<void> | undefined;
    onFailed: (error: Error) => void;
  }) {
    this.#lanes = options.lanes;
    this.#isStreamed = options.isStreamed;
    this.#settler = options.settler;
    this.#take = options.take;
    this.#onFailed = options.onFailed;
  }

  /** A keyed row comes. True when it may go out now; else it waits here or in the table. */
  admit(work: Work): boolean {
    const key = keyOf(work);
    const place = work.order === null ? this.#lanes.enter(key, work) : this.#lanes.giveBack(key, work);
    if (place === 'hold') this.#block([work]);
    return place === 'go';
  }

  /** Whether an earlier session may have held rows of this key. */
  isLoaded(key: string): boolean {
    return this.#lanes.isLoaded(key);
  }

  /** A row comes again from the log that an earlier session has held: it gets its place anew, and holds its key. */
  again(work: Work): void {
    this.#lanes.again(keyOf(work), work);
    this.#settler().place(work);
  }

  /** Rows have waited in the table for their time; now they wait for their turn. */
  due(rows: readonly { key: string; order: bigint }[]): void {
    for (const { key, order } of rows) this.#lanes.due(key, order);
    this.#wakeForQuestions();
  }

  /** The row is done for good. */
  done(work: Work): void {
    if (work.order === null) return;
    const { go, hold } = this.#lanes.done(keyOf(work), work);
    this.#block(hold);
    if (go) this.#advance(go);
    this.#wakeForQuestions();
  }

  /** The row was handed to the settler to be held. */
  held(work: Work): void {
    if (work.order !== null) this.#block(this.#lanes.held(keyOf(work), work));
  }

  /** The table has the held row. */
  stored(work: Work): void {
    if (work.order === null) return;
    this.#lanes.stored(keyOf(work), work);
    this.#wakeForQuestions();
  }

  /**
   * What the table may release. Somebody else's row may be there with any number; the log brings it, and gives it one.
   */
  get lastOrder(): bigint | null {
    return this.#isStreamed ? this.#lanes.lastOrder : null;
  }

  questions(max: number, fresh: boolean): LaneQuestion[] {
    return this.#lanes.questions(max, fresh);
  }

  /** The rows of an answer have been admitted. */
  answered(key: string, remains: boolean): void {
    this.#lanes.answered(key, remains);
  }

  /** Puts questions again that had no answer. */
  ask(keys: readonly string[]): void {
    for (const key of keys) this.#lanes.ask(key);
    this.#wakeForQuestions();
  }

  /** Asks for every key that the table holds. */
  askAll(): void {
    this.#lanes.askAll();
    this.#wakeForQuestions();
  }

  /** Resolves when there are questions, or when `ending` has aborted and `wake` was called. One waiter. */
  async someQuestion(ending: AbortSignal): Promise<void> {
    while (!this.#lanes.hasQuestions && !ending.aborted) await this.#question.wait();
  }

  /** Wakes the waiter for questions, so that it looks whether the session is over. */
  wake(): void {
    this.#question.wake();
  }

  /** Rows in memory that are not published yet. */
  get outstanding(): number {
    return this.#lanes.waiting + this.#ready.length + (this.#sending ? 1 : 0);
  }

  get waitingBytes(): number {
    return this.#lanes.waitingBytes;
  }

  /** Resolves when no row is on its way to the channel; the session is over, so those that wait give up. */
  async end(): Promise<void> {
    this.#ready = [];
    await this.#sending;
  }

  #wakeForQuestions(): void {
    if (this.#lanes.hasQuestions) this.#question.wake();
  }

  #block(works: readonly Work[]): void {
    for (const work of works) {
      this.#settler().hold(work, { state: 'blocked', attempts: work.row.attempts, error: null, delayMs: null });
    }
  }

  #advance(work: Work): void {
    if (this.#sending) {
      this.#ready.push(work);
      return;
    }
    const wait = this.#take(work);
    if (wait) this.#sending = this.#send(wait);
  }

  async #send(first: Promise<void>): Promise<void> {
    try {
      await first;
      for (let work = this.#ready.shift(); work; work = this.#ready.shift()) await this.#take(work);
    } catch (error) {
      this.#onFailed(error as Error);
    } finally {
      this.#sending = undefined;
    }
  }
}

function keyOf(work: Work): string {
  if (work.row.key === null) throw new Error('lanes: a row without a key');
  return work.row.key;
}
