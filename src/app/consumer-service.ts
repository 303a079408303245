import { setMaxListeners } from 'node:events';
import type { ConsumerConfig } from '../config/consumers.js';
import type { Config } from '../config/load.js';
import { consequenceOf } from '../core/error-policy.js';
import { ERROR_CODES, isWaybillError, WaybillError } from '../core/errors.js';
import { backoffMs, RECONNECT_BACKOFF } from '../core/schedule.js';
import { DEAD_LETTER_EXCHANGE } from '../core/topology.js';
import type { ConsumerCounters } from '../inbox/ports.js';
import type { HttpHandler } from '../inbox/http-handler.js';
import { Receiver, type HandlerPart } from '../inbox/receiver.js';
import { InboxStore } from '../postgres/inbox-store.js';
import { pause, type Clock } from '../runtime/clock.js';
import type { Logger } from '../telemetry/log.js';
import type { Tracing } from '../telemetry/tracing.js';
import { BrokerLink } from './broker-link.js';
import { ConfiguredConsumerBroker } from './consumer-broker.js';
import { ConsumerDatabase } from './consumer-database.js';
import { registerConsumers } from './consumer-registration.js';
import { httpHandler } from './http-handler.js';
import { consumerSpans } from './trace-consumed.js';

/** The running consumers of a process. */
export interface ConsumerService {
  /** Resolves when they have ended after stop(); rejects when they cannot go on. */
  stopped: Promise<void>;
  /** Takes nothing more in, waits for what is being handled, lets go. Idempotent. */
  stop(): Promise<'drained' | 'incomplete'>;
  /** What each has counted since the start, and whether its breaker is open. */
  look(): readonly ConsumerLook[];
}

/** A part of a consumer that does not work, and why as the manual says it: the error itself may name addresses. */
export interface Trouble {
  part: string;
  code: string | null;
  meaning: string;
}

export interface ConsumerLook {
  name: string;
  counters: Readonly<ConsumerCounters>;
  breaker: 'closed' | 'open' | 'half-open';
  isConsuming: boolean;
  /** What does not work at this moment. */
  troubles: readonly Trouble[];
  /** Of its connections to PostgreSQL and RabbitMQ, which are open; those to RabbitMQ are shared by all consumers. */
  isConnected: Readonly<Record<'database' | 'broker' | 'publishing', boolean>>;
  /** Messages in the queue that were not delivered; undefined while that is unknown. */
  lag: number | undefined;
}

export interface ConsumerServiceOptions {
  /** Reads what is needed to connect again; throws as loadConfig does. */
  reload: () => Config;
  clock: Clock;
  /** Told how long each request of a handler over HTTP took, and each transaction of an sql handler. */
  onHandled?: (consumer: string, seconds: number) => void;
  /** Undefined: nobody traces. */
  tracing?: Tracing | undefined;
}

const OPERATOR_RETRY_MS = 15_000;
/** statement_timeout where no handler runs in the statements. */
const STATEMENT_TIMEOUT_MS = 30_000;

/**
 * Starts every configured consumer: two broker connections and one database connection each. `stopped` rejects when the
 * schema does not fit the program, or a consumer was renamed: that must not look like consumers that run.
 */
export function startConsumers(config: Config, log: Logger, options: ConsumerServiceOptions): ConsumerService {
  return new Consumers(config, log, options);
}

class Consumers implements ConsumerService {
  readonly stopped: Promise<void>;
  readonly #config: Config;
  readonly #log: Logger;
  readonly #clock: Clock;
  readonly #reload: () => Config;
  readonly #onHandled: (consumer: string, seconds: number) => void;
  readonly #tracing: Tracing | undefined;
  readonly #stopping = new AbortController();
  readonly #end: Promise<'drained' | 'incomplete'>;
  /** Why the consumers could not be registered yet. */
  #unregistered: unknown;
  readonly #looks = new Map<string, () => ConsumerLook>();

  constructor(config: Config, log: Logger, { reload, clock, onHandled, tracing }: ConsumerServiceOptions) {
    this.#config = config;
    this.#log = log;
    this.#clock = clock;
    this.#reload = reload;
    this.#onHandled = onHandled ?? (() => undefined);
    this.#tracing = tracing;
    // Each consumer has several loops that listen; Node warns on stderr from 11 on.
    setMaxListeners(0, this.#stopping.signal);
    this.#end = this.#run();
    this.stopped = this.#end.then(() => undefined);
    this.stopped.catch(() => undefined);
  }

  stop(): Promise<'drained' | 'incomplete'> {
    this.#stopping.abort();
    return this.#end;
  }

  look(): readonly ConsumerLook[] {
    return this.#config.consumers.map(({ name }) => this.#looks.get(name)?.() ?? this.#notBegun(name));
  }

  #notBegun(name: string): ConsumerLook {
    const troubles = this.#unregistered === undefined ? [] : [troubleOf('the registration', this.#unregistered)];
    const isConnected = { database: false, broker: false, publishing: false };
    const counters = newCounters();
    return { name, counters, breaker: 'closed', isConsuming: false, isConnected, troubles, lag: undefined };
  }

  /** F38, F83: a rotated password is seen at the next connection; a configuration that went wrong leaves the old one. */
  #fresh(): Config {
    try {
      return this.#reload();
    } catch (error) {
      if (!(error instanceof WaybillError)) throw error;
      return this.#config;
    }
  }

  async #run(): Promise<'drained' | 'incomplete'> {
    const installation = await this.#registered();
    if (installation === undefined) return 'drained';
    const shared = { settings: () => this.#fresh().broker, clock: this.#clock, log: this.#log };
    const links = {
      consuming: new BrokerLink({ ...shared, name: 'waybill consumers' }),
      publishing: new BrokerLink({ ...shared, name: 'waybill timers' }),
    };
    try {
      const ends = await Promise.all(
        this.#config.consumers.map((consumer) => this.#consume(consumer, links, installation)),
      );
      return ends.includes('incomplete') ? 'incomplete' : 'drained';
    } finally {
      await Promise.all([links.consuming.close(), links.publishing.close()]);
    }
  }

  /** The uuid of the installation; undefined: told to stop before it came to that. */
  async #registered(): Promise<string | undefined> {
    for (let attempt = 1; !this.#stopping.signal.aborted; attempt += 1) {
      try {
        const isPatient = isWaybillError(this.#unregistered, 'WAYBILL_STATEMENT_TOO_SLOW');
        return await registerConsumers({ ...this.#config, database: this.#fresh().database }, { isPatient });
      } catch (error) {
        if (
          isWaybillError(
            error,
            'WAYBILL_SCHEMA_MISSING',
            'WAYBILL_SCHEMA_TOO_OLD',
            'WAYBILL_SCHEMA_TOO_NEW',
            'WAYBILL_CONSUMER_RENAMED',
          )
        ) {
          throw error;
        }
        this.#unregistered = error;
        const passes = error instanceof WaybillError && consequenceOf(error.code) === 'again';
        const delayMs = passes ? backoffMs(RECONNECT_BACKOFF, attempt, this.#clock.random()) : OPERATOR_RETRY_MS;
        const fields = { err: error, retryInMs: delayMs };
        if (isWaybillError(error, 'WAYBILL_STATEMENT_TOO_SLOW')) {
          this.#log.warn(
            fields,
            'registering the consumers takes long: where an order was changed, all messages that wait change with it; trying again with more time, half an hour',
          );
        } else if (passes) this.#log.warn(fields, 'the consumers cannot be registered now; trying again');
        else this.#log.error(fields, 'the consumers cannot be registered until this is mended');
        await pause(this.#clock, delayMs, this.#stopping.signal);
      }
    }
    return undefined;
  }

  async #consume(
    consumer: ConsumerConfig,
    links: { consuming: BrokerLink; publishing: BrokerLink },
    installation: string,
  ): Promise<'drained' | 'incomplete'> {
    const { name, handler } = consumer;
    const log = labelled(this.#log, name);
    const database = new ConsumerDatabase({
      settings: () => this.#fresh().database,
      name: `waybill consumer ${name}`,
      statementTimeoutMs: handler.kind === 'sql' ? handler.timeoutMs : STATEMENT_TIMEOUT_MS,
      callsHandlers: handler.kind === 'sql',
    });
    const counters = newCounters();
    const onHandled = (seconds: number): void => this.#onHandled(name, seconds);
    const http = handler.kind === 'http' ? httpHandler(handler, this.#clock) : undefined;
    const receiver = new Receiver({
      consumer: name,
      queue: consumer.queue,
      prefetch: consumer.prefetch,
      handler: handlerPart(consumer, http),
      rules: {
        identification: consumer.identification,
        idNamespace: consumer.idNamespace,
        accept: consumer.accept,
        maxBodyBytes: consumer.maxBodyBytes,
      },
      limits: consumer.batch,
      byKey: consumer.order === 'key',
      logsAll: this.#config.log.messages === 'all',
      deadLetterExchange: DEAD_LETTER_EXCHANGE,
      store: new InboxStore(database, {
        schema: this.#config.database.schema,
        consumer: name,
        now: () => this.#clock.now(),
        onHandled,
        claimsBodies: handler.kind !== 'sql',
      }),
      broker: new ConfiguredConsumerBroker(consumer, links, this.#clock, installation),
      counters,
      clock: this.#clock,
      log,
      spans: this.#tracing && consumerSpans(this.#tracing, name, consumer.queue),
      onHandled,
    });
    this.#looks.set(name, () => ({
      name,
      counters,
      breaker: receiver.gate.state,
      isConsuming: receiver.isConsuming,
      troubles: receiver.troubles.map(({ part, error }) => troubleOf(part, error)),
      isConnected: {
        database: database.isConnected,
        broker: links.consuming.isOpen,
        publishing: links.publishing.isOpen,
      },
      lag: receiver.lag,
    }));
    try {
      return await receiver.run(this.#stopping.signal, this.#config.relay.drainTimeoutMs);
    } finally {
      http?.close();
      database.close();
    }
  }
}

function handlerPart({ handler, retry }: ConsumerConfig, http: HttpHandler | undefined): HandlerPart {
  if (http) return { kind: 'http', handler: http, delaysMs: retry.delaysMs };
  return handler.kind === 'sql' ? { kind: 'sql', timeoutMs: handler.timeoutMs } : { kind: 'store' };
}

function troubleOf(part: string, error: unknown): Trouble {
  return isWaybillError(error)
    ? { part, code: error.code, meaning: ERROR_CODES[error.code] }
    : { part, code: null, meaning: 'an unexpected error, which the log tells' };
}

/** Every line says whose it is. */
function labelled(log: Logger, consumer: string): Logger {
  return {
    debug: (fields, message) => log.debug({ consumer, ...fields }, message),
    info: (fields, message) => log.info({ consumer, ...fields }, message),
    warn: (fields, message) => log.warn({ consumer, ...fields }, message),
    error: (fields, message) => log.error({ consumer, ...fields }, message),
  };
}

function newCounters(): ConsumerCounters {
  return {
    received: 0,
    inserted: 0,
    applied: 0,
    duplicates: 0,
    conflicts: 0,
    malformed: 0,
    retried: 0,
    deferred: 0,
    broken: 0,
    dead: 0,
    lost: 0,
    repeated: 0,
    brokerDeaths: 0,
    timersSent: 0,
    timersReceived: 0,
    timersRefused: 0,
    copies: 0,
  };
}
