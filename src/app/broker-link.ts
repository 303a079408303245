import type { Config } from '../config/load.js';
import { BrokerConnection, type BrokerEndpoints } from '../rabbitmq/connection.js';
import type { Clock } from '../runtime/clock.js';
import type { Logger } from '../telemetry/log.js';
import { brokerEndpoints } from './endpoints.js';

/**
 * One connection to RabbitMQ that several share. It is opened when somebody asks for it, and again when it has died: what
 * was open on it tells its users, who ask again after a pause of their own.
 */
export class BrokerLink {
  readonly #settings: () => Config['broker'];
  readonly #name: string;
  readonly #clock: Clock;
  readonly #log: Logger;
  #opening: Promise<BrokerConnection> | undefined;
  #isOpen = false;
  #isClosed = false;

  constructor(options: { settings: () => Config['broker']; name: string; clock: Clock; log: Logger }) {
    this.#settings = options.settings;
    this.#name = options.name;
    this.#clock = options.clock;
    this.#log = options.log;
  }

  get(): Promise<BrokerConnection> {
    this.#opening ??= this.#open();
    return this.#opening;
  }

  /** The nodes as they are configured now, for a connection that is not shared. */
  endpoints(): BrokerEndpoints {
    return brokerEndpoints(this.#settings());
  }

  async #open(): Promise<BrokerConnection> {
    const forget = (): void => {
      this.#opening = undefined;
      this.#isOpen = false;
    };
    try {
      const connection = await BrokerConnection.openFirst(
        this.endpoints(),
        this.#name,
        {
          onClosed: (error) => {
            forget();
            if (!this.#isClosed) this.#log.warn({ err: error }, `the connection "${this.#name}" ended`);
          },
          onBlocked: (reason) => this.#log.warn({ reason }, 'RabbitMQ blocks publishing (memory or disk alarm)'),
          onUnblocked: () => this.#log.info({}, 'RabbitMQ takes messages again'),
        },
        this.#clock,
      );
      if (this.#isClosed) connection.abort();
      // A connection that died meanwhile is forgotten already.
      else this.#isOpen = this.#opening !== undefined;
      return connection;
    } catch (error) {
      forget();
      throw error;
    }
  }

  get isOpen(): boolean {
    return this.#isOpen;
  }

  /** Nothing is opened afterwards. */
  async close(): Promise<void> {
    this.#isClosed = true;
    this.#isOpen = false;
    const connection = await this.#opening?.catch(() => undefined);
    await connection?.close();
  }
}
