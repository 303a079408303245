import type { Config } from '../config/load.js';
import { isWaybillError } from '../core/errors.js';
import { closeQuietly, withDurableCommits } from '../postgres/connect.js';
import { toInboxError } from '../postgres/inbox-errors.js';
import { connectToPrimary } from '../postgres/primary.js';
import { Turns } from '../runtime/turns.js';
import { databaseEndpoints } from './endpoints.js';
import type { SqlClient } from './session.js';

const LOCK_TIMEOUT_MS = 5_000;
/**
 * Where handlers are called; and no more than a tenth of statement_timeout. Short, because it is waited for in each batch, and
 * spends nothing: a message whose handler finds a lock waits in the table.
 */
const HANDLER_LOCK_TIMEOUT_MS = 1_000;

/**
 * One SQL connection, lent for one piece of work at a time. It is opened when it is needed, with the settings of that
 * moment, and dropped when the server was found to be away, so that the next piece of work connects anew.
 */
export class ConsumerDatabase {
  readonly #settings: () => Config['database'];
  readonly #name: string;
  readonly #statementTimeoutMs: number;
  readonly #callsHandlers: boolean;
  readonly #turns = new Turns();
  #client: SqlClient | undefined;
  #isClosed = false;

  /** `callsHandlers`: what is called in the database has the search path of the role. */
  constructor(options: {
    settings: () => Config['database'];
    name: string;
    statementTimeoutMs: number;
    callsHandlers?: boolean;
  }) {
    this.#settings = options.settings;
    this.#name = options.name;
    this.#statementTimeoutMs = options.statementTimeoutMs;
    this.#callsHandlers = options.callsHandlers ?? false;
  }

  async use<T>(doing: string, work: (client: SqlClient) => Promise<T>): Promise<T> {
    return this.#turns.take(async () => {
      try {
        return await work(await this.#connected());
      } catch (error) {
        const known = toInboxError(error, doing);
        if (isWaybillError(known, 'WAYBILL_DATABASE_UNAVAILABLE')) this.#drop();
        throw known;
      }
    });
  }

  async #connected(): Promise<SqlClient> {
    if (this.#client) return this.#client;
    // Why not the answer itself: the connection may be lost before there is one.
    const opened: { client?: SqlClient } = {};
    const { client } = await connectToPrimary(databaseEndpoints(this.#settings()), {
      applicationName: this.#name,
      onError: () => {
        if (opened.client && this.#client === opened.client) this.#drop();
      },
      limits: {
        lockTimeoutMs: this.#callsHandlers
          ? Math.ceil(Math.min(HANDLER_LOCK_TIMEOUT_MS, this.#statementTimeoutMs / 10))
          : LOCK_TIMEOUT_MS,
        statementTimeoutMs: this.#statementTimeoutMs,
        keepsSearchPath: this.#callsHandlers,
      },
    });
    opened.client = client;
    try {
      await withDurableCommits(client);
    } catch (error) {
      closeQuietly(client);
      throw error;
    }
    if (this.#isClosed) closeQuietly(client);
    else this.#client = client;
    return client;
  }

  get isConnected(): boolean {
    return this.#client !== undefined;
  }

  #drop(): void {
    if (this.#client) closeQuietly(this.#client);
    this.#client = undefined;
  }

  /** Ends the connection until it is needed again, once nobody is at it. */
  async rest(): Promise<void> {
    await this.#turns.take(() => {
      this.#drop();
      return Promise.resolve();
    });
  }

  /** Ends the connection, and with it what runs on it. */
  close(): void {
    this.#isClosed = true;
    this.#drop();
  }
}
