import { isDeepStrictEqual } from 'node:util';
import { bare, malformed } from '../core/delivery.js';
import { isWaybillError } from '../core/errors.js';
import { backoffMs, type Backoff } from '../core/schedule.js';
import { pause, type Clock } from '../runtime/clock.js';
import type { Arrival, ConsumerCounters, ConsumerLog, InboxStore, ReceivedRow } from './ports.js';

/** A transaction that was ended for another's sake is repeated soon; chance keeps the two apart. */
const REPEAT: Backoff = { firstMs: 5, factor: 2, maxMs: 500, jitter: 1 };
const MOST_REPEATS = 30;
/** So often where handlers are called in it: one of them may end the transaction each time, and holds up all others. */
const MOST_CONFLICTS = { together: 5, alone: 8 };

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
 *   the same again and again, of handlers -> row by row; the one that is alone in it is stored to be handled by itself (F125)
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

  /** What became of each arrival, in their order. One that came to be handled by itself says so afterwards (`hold`). */
  async write(arrivals: readonly Arrival[], apply: boolean): Promise<ReceivedRow[]> {
    const handled = apply ? arrivals.filter(isHandled).length : 0;
    try {
      return await this.#repeating(arrivals, apply, handled);
    } catch (error) {
      if (isWaybillError(error, 'WAYBILL_STATEMENT_TOO_SLOW')) return this.#oneByOne(arrivals, apply, error);
      if (isWaybillError(error, 'WAYBILL_ROW_REFUSED')) return this.#halves(arrivals, apply, error);
      if (isConflict(error) && handled > 0) return this.#apart(arrivals, apply, error);
      throw error;
    }
  }

  async #repeating(arrivals: readonly Arrival[], apply: boolean, handled: number): Promise<ReceivedRow[]> {
    const { store, clock, counters } = this.#options;
    const mostConflicts = handled === 0 ? MOST_REPEATS : MOST_CONFLICTS[arrivals.length > 1 ? 'together' : 'alone'];
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await store.receive(arrivals, apply);
      } catch (error) {
        const most = isConflict(error) ? mostConflicts : MOST_REPEATS;
        if (!isWaybillError(error, 'WAYBILL_TRANSACTION_REPEATED') || attempt >= most) throw error;
        counters.repeated += 1;
        await pause(clock, backoffMs(REPEAT, attempt, clock.random()));
      }
    }
  }

  async #apart(arrivals: readonly Arrival[], apply: boolean, error: unknown): Promise<ReceivedRow[]> {
    const { log } = this.#options;
    const [only, ...others] = arrivals;
    if (only && others.length === 0) {
      const { messageId, type, key } = only.row;
      log.warn({ messageId, type, key, err: error }, 'its transaction fails again and again; it is handled by itself');
      only.hold = true;
      return this.write(arrivals, apply);
    }
    log.info(
      { rows: arrivals.length, err: error },
      'a batch fails again and again; its messages are handled one by one',
    );
    const results: ReceivedRow[] = [];
    for (const arrival of arrivals) results.push(...(await this.write([arrival], apply)));
    return results;
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

/** Whether its handler is called as it is written. */
function isHandled({ row, hold, failed }: Arrival): boolean {
  return row.dead === null && hold !== true && failed === undefined;
}

/** A deadlock or a serialization failure, which a handler can raise itself; not a lock that somebody else has. */
function isConflict(error: unknown): boolean {
  if (!isWaybillError(error, 'WAYBILL_TRANSACTION_REPEATED')) return false;
  const { cause } = error;
  return typeof cause === 'object' && cause !== null && 'code' in cause && String(cause.code).startsWith('40');
}
