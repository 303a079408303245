import { quoteIdentifier } from '../core/identity.js';
import { within, type Clock } from '../runtime/clock.js';
import { Turns } from '../runtime/turns.js';
import { CLAIM_COLUMNS, toClaim, type Claim } from './message.js';
import type { ClientPool, PooledClient } from './queryable.js';
import type { Settlement } from './verdict.js';

/** How a worker reaches its rows. */
export interface ControlOptions {
  pool: ClientPool;
  schema: string;
  consumer: string;
  clock: Clock;
  /** There may be something to claim. */
  onWake: () => void;
}

/** A silent server is given up after this; nothing that is asked here takes long. */
const ANSWER_MS = 30_000;
const CHANNEL = 'waybill_inbox';
/** For a claim: one that a crash of the server forgets costs nothing, because its token is refused afterwards. */
const FORGETTABLE = "(select pg_catalog.set_config('synchronous_commit', 'off', true)) as forgettable";

/**
 * The worker's own connection, beside those of its transactions: it listens, claims, keeps leases and settles what failed,
 * each in a transaction of its own. A connection that fails once is not used again.
 */
export class Control {
  readonly #client: PooledClient;
  readonly #options: ControlOptions;
  readonly #schema: string;
  readonly #turns = new Turns();
  #isOpen = true;

  private constructor(client: PooledClient, options: ControlOptions) {
    this.#client = client;
    this.#options = options;
    this.#schema = quoteIdentifier(options.schema);
    client.on('error', this.#drop);
    client.on('notification', ({ channel, payload }) => {
      if (channel === CHANNEL && payload === options.consumer) options.onWake();
    });
  }

  /** Takes a connection from the pool and listens. Rejects as the pool or the server does. */
  static async open(options: ControlOptions): Promise<Control> {
    const control = new Control(await options.pool.connect(), options);
    try {
      await control.#query(`listen ${CHANNEL}`);
      return control;
    } catch (error) {
      control.close();
      throw error;
    }
  }

  get isOpen(): boolean {
    return this.#isOpen;
  }

  async claim(most: number, leaseMs: number): Promise<Claim[]> {
    const rows = await this.#query(
      `select ${CLAIM_COLUMNS} from ${FORGETTABLE}, ${this.#schema}.inbox_claim($1, $2, $3::interval)`,
      [this.#options.consumer, most, interval(leaseMs)],
    );
    return rows.map(toClaim);
  }

  /** Prolongs a lease; rejects with WB003 when it is another's by now. */
  async extend({ message, token }: Claim, leaseMs: number): Promise<void> {
    await this.#query(`select ${this.#schema}.inbox_extend($1, $2::pg_catalog.uuid, $3::interval)::pg_catalog.text`, [
      String(message.seq),
      token,
      interval(leaseMs),
    ]);
  }

  /** Writes what became of an attempt that did not succeed; rejects with WB003 when there is nothing to write any more. */
  async settle({ message, token }: Claim, { verdict, error, retryInMs }: Settlement): Promise<void> {
    const row = [String(message.seq), token];
    const delay = retryInMs === undefined ? null : interval(retryInMs);
    if (verdict === 'retry' || verdict === 'never') {
      await this.#query(`select ${this.#schema}.inbox_fail($1, $2::pg_catalog.uuid, $3, $4::interval, $5)`, [
        ...row,
        error,
        delay,
        verdict === 'never',
      ]);
    } else {
      const call = verdict === 'not-yet' ? 'inbox_defer' : 'inbox_release';
      await this.#query(`select ${this.#schema}.${call}($1, $2::pg_catalog.uuid, $3::interval, $4)`, [
        ...row,
        delay,
        error,
      ]);
    }
  }

  close(): void {
    this.#drop();
  }

  /** One statement at a time. */
  #query(text: string, values: unknown[] = []): Promise<Record<string, unknown>[]> {
    return this.#turns.take(async () => {
      if (!this.#isOpen) throw new Error('the connection of the worker is closed');
      const silence = Symbol('silence');
      const answer = await within(this.#options.clock, this.#client.query(text, values), ANSWER_MS, silence);
      if (typeof answer !== 'symbol') return answer.rows;
      this.#drop();
      throw new Error(`PostgreSQL has not answered for ${ANSWER_MS / 1_000} s`);
    });
  }

  /** Closed rather than given back, because it listens. */
  readonly #drop = (): void => {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    this.#client.removeAllListeners('notification');
    this.#client.release(true);
    this.#options.onWake();
  };
}

function interval(ms: number): string {
  return `${Math.max(0, Math.round(ms))} milliseconds`;
}
