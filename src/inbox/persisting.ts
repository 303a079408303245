import { isDeepStrictEqual } from 'node:util';
import { bare, malformed } from '../core/delivery.js';
import { isWaybillError } from '../core/errors.js';
import { backoffMs, type Backoff } from '../core/schedule.js';
import { pause, type Clock } from '../runtime/clock.js';
import type { Arrival, ConsumerCounters, ConsumerLog, InboxStore, ReceivedRow } from './ports.js';

/** A transaction that was ended for another's sake is repeated soon; chance keeps the two apart. */
const REPEAT: Backoff = { firstMs: 5, factor: 2, maxMs: 500, jitter: 1 };
const MOST_REPEATS = 30;

export interface PersistingOptions {
  store: Pick<InboxStore, 'receive'>;
  clock: Clock;
  log: ConsumerLog;
  counters: ConsumerCounters;
  /** How the failure of a row whose handler took too long is told. */
  tooSlow: string;
}

/**
 * Writes batches of arrivals, whatever is wrong with one of their rows (design 4.1, 4.3):
 *
 *   deadlock, serialization, lock timeout -> the batch again, nothing spent (F61, F127)
 *   statement timeout                     -> row by row; the one that is alone too slow waits with that failure
 *   a value that PostgreSQL refuses       -> halves; the one that is left is kept as malformed (F60, fact 78)
 *
 * Everything else is the caller's to decide. An answer that never came (F13) is repeated by the caller: the unique
 * constraint says what was written (I3).
 */
export class Persisting {
  readonly #options: PersistingOptions;

  constructor(options: PersistingOptions) {
    this.#options = options;
  }

  /** What became of each arrival, in their order. */
  async write(arrivals: readonly Arrival[], apply: boolean): Promise<ReceivedRow[]> {
    try {
      return await this.#repeating(arrivals, apply);
    } catch (error) {
      if (isWaybillError(error, 'WAYBILL_STATEMENT_TOO_SLOW')) return this.#oneByOne(arrivals, apply, error);
      if (isWaybillError(error, 'WAYBILL_ROW_REFUSED')) return this.#halves(arrivals, apply, error);
      throw error;
    }
  }

  async #repeating(arrivals: readonly Arrival[], apply: boolean): Promise<ReceivedRow[]> {
    const { store, clock, counters } = this.#options;
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await store.receive(arrivals, apply);
      } catch (error) {
        if (!isWaybillError(error, 'WAYBILL_TRANSACTION_REPEATED') || attempt === MOST_REPEATS) throw error;
        counters.repeated += 1;
        await pause(clock, backoffMs(REPEAT, attempt, clock.random()));
      }
    }
  }

  async #oneByOne(arrivals: readonly Arrival[], apply: boolean, error: Error): Promise<ReceivedRow[]> {
    const { log, tooSlow } = this.#options;
    const [only, ...others] = arrivals;
    if (only && others.length === 0) {
      if (!apply || only.failed !== undefined) throw error;
      return this.write([{ ...only, failed: tooSlow }], apply);
    }
    log.info({ rows: arrivals.length, err: error }, 'a batch took too long; its messages are handled one by one');
    const results: ReceivedRow[] = [];
    for (const arrival of arrivals) results.push(...(await this.write([arrival], apply)));
    return results;
  }

  async #halves(arrivals: readonly Arrival[], apply: boolean, error: Error): Promise<ReceivedRow[]> {
    const [only, ...others] = arrivals;
    if (only && others.length === 0) {
      const least = bare(only.row);
      if (isDeepStrictEqual(only.row, least)) throw error;
      const isMalformed = only.row.dead?.reason === 'malformed';
      // Why not the server's words: they quote values.
      const row = isMalformed ? least : malformed(only.row, only.properties, 'PostgreSQL refuses it as a row');
      return this.write([{ ...only, row }], apply);
    }
    const middle = Math.ceil(arrivals.length / 2);
    return [
      ...(await this.write(arrivals.slice(0, middle), apply)),
      ...(await this.write(arrivals.slice(middle), apply)),
    ];
  }
}
