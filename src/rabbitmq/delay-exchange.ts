import type { Channel } from 'amqplib';
import type { Clock } from '../runtime/clock.js';
import { delayExchange, PLUGIN_EXCHANGE, retryQueue } from '../core/topology.js';
import { handshake } from './closing.js';
import type { BrokerConnection } from './connection.js';
import { toBrokerError } from './errors.js';

/** A timer as it travels; the field names are its JSON. */
interface Timer {
  consumer: string;
  seq: string;
  attempt: number;
  restMs: number;
}

interface DelayExchangeOptions {
  /** The delays that can be asked for; null where the plugin takes any. */
  tiersMs: readonly number[] | null;
  /** Whose timers these are. */
  installation: string;
}

/**
 * Brings timers back after a delay. With TTL queues, one fanout exchange and queue for each delay, whose messages all
 * wait the same time (F107), and the default exchange behind it: the routing key names the consumer's own retry queue, so
 * nobody else sees them (fact 70), and a consumer that has gone stalls nobody (fact 63: dead-lettered at most once).
 * Timers are expendable: not persistent, not confirmed; a sweep of due rows covers lost ones (F16).
 */
export class DelayExchange {
  readonly #connection: BrokerConnection;
  readonly #channel: Channel;
  readonly #usesPlugin: boolean;
  readonly #installation: string;
  readonly #clock: Clock;
  /** The delays that can be asked for; null: any. */
  readonly tiersMs: readonly number[] | null;
  #ended = false;

  private constructor(
    connection: BrokerConnection,
    channel: Channel,
    { tiersMs, installation }: DelayExchangeOptions,
    clock: Clock,
  ) {
    this.#connection = connection;
    this.#channel = channel;
    this.#clock = clock;
    this.#installation = installation;
    this.tiersMs = tiersMs;
    this.#usesPlugin = tiersMs === null;
  }

  /** Opens a channel for timers; what it publishes to must be there. */
  static async open(
    connection: BrokerConnection,
    options: DelayExchangeOptions,
    onClosed: (error: Error) => void,
    clock: Clock,
  ): Promise<DelayExchange> {
    try {
      const channel = await connection.plainChannel();
      const exchange = new DelayExchange(connection, channel, options, clock);
      let lastError: Error | undefined;
      channel.on('error', (error: Error) => (lastError = error));
      channel.on('close', () => {
        if (exchange.#ended) return;
        exchange.#ended = true;
        onClosed(toBrokerError(lastError ?? new Error('the channel closed'), 'sending timers'));
      });
      return exchange;
    } catch (error) {
      throw toBrokerError(error, 'opening the delay exchange');
    }
  }

  /** Whether RabbitMQ takes nothing now. It says so only once it was sent something: a few timers may lie there. */
  get isBlocked(): boolean {
    return this.#connection.isBlocked;
  }

  /** With TTL queues `delayMs` is one of `tiersMs`. */
  send(timer: Timer, delayMs: number): void {
    if (this.#ended) return;
    const body = writeTimer(timer, this.#installation);
    const options = { persistent: false, contentType: 'application/json', type: 'waybill.timer' };
    const routingKey = retryQueue(timer.consumer);
    if (this.#usesPlugin) {
      this.#channel.publish(PLUGIN_EXCHANGE, routingKey, body, { ...options, headers: { 'x-delay': delayMs } });
    } else this.#channel.publish(delayExchange(delayMs), routingKey, body, options);
  }

  async close(): Promise<void> {
    if (this.#ended) return;
    this.#ended = true;
    await handshake(this.#channel.close(), this.#clock);
  }
}

const MOST_SEQ = 2n ** 63n - 1n;
const MOST_ATTEMPT = 2 ** 31 - 1;
/** Longer than any delay: a retry waits for 30 days at most. */
const MOST_REST_MS = 366 * 86_400_000;

/** With whose it is: two installations may have a consumer of one name on a virtual host, and so one retry queue. */
export function writeTimer(timer: Timer, installation: string): Buffer {
  return Buffer.from(JSON.stringify({ ...timer, installation }));
}

/** What came back to the retry queue: a timer, one of another installation, or undefined when it is neither. */
export function readTimer(body: Buffer, ours: string): Timer | 'foreign' | undefined {
  try {
    const { consumer, seq, attempt, restMs, installation } = JSON.parse(body.toString('utf8')) as Partial<
      Record<keyof Timer | 'installation', unknown>
    >;
    if (typeof consumer !== 'string' || typeof seq !== 'string' || !/^\d{1,19}$/.test(seq)) return undefined;
    if (typeof attempt !== 'number' || typeof restMs !== 'number') return undefined;
    // Whoever may write to the queue may write anything: what PostgreSQL would refuse as a number must not come to it.
    if (BigInt(seq) > MOST_SEQ || !Number.isInteger(attempt) || attempt < 1 || attempt > MOST_ATTEMPT) return undefined;
    if (!(restMs >= 0 && restMs <= MOST_REST_MS)) return undefined;
    // Programs before did not say whose it is.
    if (installation !== undefined && installation !== ours) return 'foreign';
    return { consumer, seq, attempt, restMs };
  } catch {
    return undefined;
  }
}
