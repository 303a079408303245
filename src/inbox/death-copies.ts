import { WaybillError } from '../core/errors.js';
import { backoffMs, type Backoff } from '../core/schedule.js';
import { toCopy } from './dead-letters.js';
import type { ConsumerCounters, ConsumerLog, CopyPublisher, Death, InboxStore } from './ports.js';

const MOST_ROWS = 100;
/** Of bodies and headers that are held at once; one message may be larger. */
const MOST_BYTES = 4 * 2 ** 20;
/** Longer than one batch can take, with the declarations that it may need. */
const LEASE_MS = 120_000;
/** A copy that was alone on so many connections when they were lost may be the reason. */
const MOST_LOST = 3;
/** When a copy that was refused is tried again. */
const REFUSED_BACKOFF: Backoff = { firstMs: 60_000, factor: 4, maxMs: 3_600_000, jitter: 0 };

export interface DeathCopierOptions {
  consumer: string;
  exchange: string;
  store: Pick<InboxStore, 'claimDeaths' | 'deathsCopied' | 'keepDeaths'>;
  publisher: CopyPublisher;
  counters: ConsumerCounters;
  log: ConsumerLog;
}

/**
 * Copies dead messages to the dead-letter exchange. Each death stays noted in the database until the broker has its copy,
 * so none is missed; one that is published when the process dies goes out again, under the same id (F17). Programs
 * that work for the same consumer claim different deaths.
 *
 *   refused, in a batch   -> all of it goes one by one
 *   refused, alone        -> once more without the message's own headers, then put off, ever longer; the others go on
 *   the connection lost   -> given back; with the same one alone three times, as if refused
 *   no queue takes it     -> done; given back where a queue was configured for it
 */
export class DeathCopier {
  readonly #options: DeathCopierOptions;
  /** Written when they are claimed, emptied when the database knows what became of them. */
  #claimed: readonly Death[] = [];
  /** So many deaths go one by one: a batch failed, and it may be because of one of them. */
  #alone = 0;
  #lost = { seq: -1n, times: 0 };
  #hasToldUnroutable = false;

  constructor(options: DeathCopierOptions) {
    this.#options = options;
  }

  /** Until there is none left that may go out now, or the stop. Rejects when it cannot go on; then nothing is claimed. */
  async run(stopping: AbortSignal): Promise<void> {
    const { store } = this.#options;
    const isOver = (): boolean => stopping.aborted;
    while (!isOver()) {
      const rows = this.#alone > 0 ? 1 : MOST_ROWS;
      const deaths = await store.claimDeaths({ rows, bytes: MOST_BYTES, leaseMs: LEASE_MS });
      if (deaths.length === 0) {
        this.#alone = 0;
        return;
      }
      this.#claimed = deaths;
      if (isOver()) return this.giveBack();
      await this.#copy(deaths);
      this.#claimed = [];
    }
  }

  /** Gives back what is claimed, for somebody else or the next start. */
  async giveBack(): Promise<void> {
    const left = this.#claimed;
    this.#claimed = [];
    if (left.length > 0) await this.#options.store.keepDeaths(left, null, false);
  }

  async #copy(deaths: readonly Death[]): Promise<void> {
    const { publisher, exchange, store, counters } = this.#options;
    const copies = deaths.map((death) => toCopy(death, exchange));
    let sent;
    try {
      sent = await publisher.publish(copies);
    } catch (error) {
      await this.#failed(deaths, error).catch(() => undefined);
      throw error;
    }
    if (sent.kind === 'refused') return this.#refused(deaths, sent.error);
    const { unroutable } = sent;
    if (unroutable.size > 0 && publisher.queue !== null) {
      await this.giveBack();
      throw this.#noQueue(publisher.queue);
    }
    if (unroutable.size > 0) this.#tellUnroutable();
    await store.deathsCopied(deaths);
    counters.copies += copies.filter(({ messageId }) => !unroutable.has(messageId)).length;
    this.#alone = Math.max(0, this.#alone - 1);
  }

  async #refused(deaths: readonly Death[], error: unknown): Promise<void> {
    const { store, log } = this.#options;
    const [first] = deaths;
    if (deaths.length > 1 || !first) {
      this.#alone = deaths.length;
      await store.keepDeaths(deaths, null, false);
      return;
    }
    const fields = { seq: String(first.message.seq), messageId: first.message.messageId, err: error };
    if (first.refused === 0) {
      // Alone again: it comes first.
      this.#alone = Math.max(1, this.#alone);
      log.warn(fields, 'the copy of a dead message is refused; it goes without the headers of its own');
      await store.keepDeaths(deaths, null, true);
      return;
    }
    const retryInMs = backoffMs(REFUSED_BACKOFF, first.refused, 0);
    log.error(
      { ...fields, retryInMs },
      'the copy of a dead message is refused; the message stays in the table, and other copies go on',
    );
    await store.keepDeaths(deaths, retryInMs, true);
    this.#alone = Math.max(0, this.#alone - 1);
  }

  /** What failed is the broker's business, or that of one copy which it does not name. */
  async #failed(deaths: readonly Death[], error: unknown): Promise<void> {
    const [first] = deaths;
    if (deaths.length > 1 || !first) {
      this.#alone = deaths.length;
      return this.giveBack();
    }
    const { seq } = first.message;
    this.#lost = { seq, times: this.#lost.seq === seq ? this.#lost.times + 1 : 1 };
    if (this.#lost.times < MOST_LOST) return this.giveBack();
    this.#lost = { seq: -1n, times: 0 };
    await this.#refused(deaths, error);
  }

  #noQueue(queue: string): WaybillError {
    const { consumer, exchange } = this.#options;
    return new WaybillError(
      'WAYBILL_TOPOLOGY_MISMATCH',
      `queue ${queue} does not get the copies of dead messages: it is not bound to exchange ${exchange}`,
      { hint: `Bind it with the routing key dead.${consumer}; the copies wait for that in the database.` },
    );
  }

  #tellUnroutable(): void {
    if (this.#hasToldUnroutable) return;
    this.#hasToldUnroutable = true;
    const { consumer, exchange, log } = this.#options;
    log.info(
      { exchange, routingKey: `dead.${consumer}` },
      'no queue is bound for copies of dead messages; the messages are in the table',
    );
  }
}
