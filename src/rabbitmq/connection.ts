import type { Socket } from 'node:net';
import type { ConnectionOptions } from 'node:tls';
import { connect, credentials, type Channel, type ChannelModel } from 'amqplib';
import { WaybillError } from '../core/errors.js';
import type { Fault } from '../core/fault.js';
import { firstUsable, type Unusable } from '../core/usable-host.js';
import type { Clock } from '../runtime/clock.js';
import { handshake } from './closing.js';
import { replyCode, toBrokerError } from './errors.js';
import { PublishChannel, type PublishChannelEvents } from './publish-channel.js';
import { keepUnreadableHeaders } from './unreadable-headers.js';

/** Where and how to connect. Heartbeat in seconds, never 0: without it a frozen broker is never noticed. */
export interface BrokerEndpoint {
  url: string;
  tls?: ConnectionOptions;
  heartbeatSeconds: number;
  connectTimeoutMs: number;
  /** Asked at each connection; what it gives replaces the password of the URL. Rejects with a WaybillError. */
  password?: () => Promise<string>;
}

/** The nodes of one cluster, in the order in which they are tried. */
export type BrokerEndpoints = readonly [BrokerEndpoint, ...BrokerEndpoint[]];

export interface BrokerConnectionEvents {
  /** Once, when the connection has ended for any reason but `close` or `abort`. */
  onClosed(error: WaybillError): void;
  onBlocked(reason: string): void;
  onUnblocked(): void;
}

export const AMQP_PORT = 5672;
export const AMQPS_PORT = 5671;

/**
 * One connection to RabbitMQ. The client's own recovery stays off: it restores neither channels nor unconfirmed
 * publishes. `error` always has a listener (an unheard one ends the process); what happens is driven by `close`.
 */
export class BrokerConnection {
  readonly #model: ChannelModel;
  readonly #clock: Clock;
  /** The virtual host that was entered. */
  readonly vhost: string;
  #ended = false;
  #blocked = false;
  #lastError: Error | undefined;

  private constructor(model: ChannelModel, vhost: string, clock: Clock) {
    this.#model = model;
    this.vhost = vhost;
    this.#clock = clock;
  }

  /** Opens a connection to the first node that can be used; `onUnusable` is told of those before it. */
  static async openFirst(
    endpoints: BrokerEndpoints,
    name: string,
    events: BrokerConnectionEvents,
    clock: Clock,
    onUnusable?: (unusable: Unusable) => void,
  ): Promise<BrokerConnection> {
    return firstUsable({
      hosts: endpoints,
      defaultPort: endpoints[0].url.startsWith('amqps:') ? AMQPS_PORT : AMQP_PORT,
      // A password that is wrong on one node is wrong on all, and time does not mend it.
      gravest: ['WAYBILL_BROKER_REFUSED', 'WAYBILL_BROKER_UNAVAILABLE'],
      open: (endpoint) => BrokerConnection.#open(endpoint, name, events, clock),
      onUnusable,
    });
  }

  static async #open(
    endpoint: BrokerEndpoint,
    name: string,
    events: BrokerConnectionEvents,
    clock: Clock,
  ): Promise<BrokerConnection> {
    const url = new URL(endpoint.url);
    const [user, password] = [url.username, url.password].map(decodeURIComponent);
    url.username = url.password = '';
    url.searchParams.set('heartbeat', String(endpoint.heartbeatSeconds));
    let model: ChannelModel;
    try {
      const known = endpoint.password ? await endpoint.password() : password;
      model = await connect(url.toString(), {
        ...endpoint.tls,
        // Why not in the URL: the client decodes it as Latin-1.
        credentials: user || known ? credentials.plain(user ?? '', known ?? '') : credentials.plain('guest', 'guest'),
        noDelay: true,
        keepAlive: true,
        timeout: endpoint.connectTimeoutMs,
        clientProperties: { connection_name: name, product: 'waybill' },
      });
    } catch (error) {
      throw toBrokerError(error, 'connecting to RabbitMQ');
    }
    // Before there is a channel: without one no message comes.
    keepUnreadableHeaders(model.connection);
    const connection = new BrokerConnection(model, virtualHostOf(url), clock);
    connection.#listen(events);
    return connection;
  }

  #listen(events: BrokerConnectionEvents): void {
    this.#model.on('error', (error) => (this.#lastError = error));
    this.#model.on('close', (error) => {
      if (this.#ended) return;
      this.#ended = true;
      events.onClosed(
        toBrokerError(error ?? this.#lastError ?? new Error('connection closed'), 'the broker connection'),
      );
    });
    this.#model.on('blocked', (reason) => {
      this.#blocked = true;
      events.onBlocked(reason);
    });
    this.#model.on('unblocked', () => {
      this.#blocked = false;
      events.onUnblocked();
    });
  }

  /** Whether a memory or disk alarm keeps the broker from reading what this connection publishes. */
  get isBlocked(): boolean {
    return this.#blocked;
  }

  /** As the broker says at the handshake; the name that tells one cluster from another. */
  get clusterName(): string {
    const name: unknown = (this.#model.connection.serverProperties as Record<string, unknown>)['cluster_name'];
    return typeof name === 'string' ? name : '';
  }

  get version(): string {
    return this.#model.connection.serverProperties.version;
  }

  async openChannel(events: PublishChannelEvents): Promise<PublishChannel> {
    try {
      return await PublishChannel.open(this.#model, events, this.#clock);
    } catch (error) {
      throw toBrokerError(error, 'opening a channel');
    }
  }

  /** Whether an exchange may be published to. On a channel of its own, because the answer no closes it. */
  async checkExchange(name: string): Promise<Fault | undefined> {
    if (name === '') return undefined;
    // RabbitMQ leaves these out when it looks, but not when it publishes: the channel would die of each row.
    if (/[\r\n]/.test(name)) {
      return { fault: 'exchange_missing', text: `exchange ${JSON.stringify(name)} cannot exist: it has a line break` };
    }
    try {
      await this.throwaway((channel) => channel.checkExchange(name));
      return undefined;
    } catch (error) {
      if (replyCode(error) === 404) return { fault: 'exchange_missing', text: `exchange ${name} does not exist` };
      if (replyCode(error) === 403) return { fault: 'refused_by_broker', text: `no permission on exchange ${name}` };
      throw toBrokerError(error, `looking for exchange ${name}`);
    }
  }

  /** Makes sure that the exchange is there. An existing one is left as it is, whatever its type. */
  async declareExchange(name: string, type: string): Promise<'exists' | 'declared'> {
    if (name === '' || !(await this.checkExchange(name))) return 'exists';
    try {
      await this.throwaway((channel) => channel.assertExchange(name, type, { durable: true }));
      return 'declared';
    } catch (error) {
      throw new WaybillError('WAYBILL_TOPOLOGY_MISMATCH', `exchange ${name} cannot be declared: ${String(error)}`, {
        hint: `Give the user configure permission on ${name}, or declare it yourself and set relay.topology: check.`,
        cause: error,
      });
    }
  }

  /** Does one thing on a channel of its own and closes it; a refusal closes that channel only. */
  async throwaway<T>(use: (channel: Channel) => Promise<T>): Promise<T> {
    const channel = await this.#model.createChannel();
    channel.on('error', () => undefined);
    const result = await use(channel);
    await handshake(channel.close(), this.#clock);
    return result;
  }

  /** A channel that lives as long as its user wants, for the lock queue. */
  async plainChannel(): Promise<Channel> {
    const channel = await this.#model.createChannel();
    channel.on('error', () => undefined);
    return channel;
  }

  /** Closes with the handshake, for at most 2 s, then drops the socket. Nothing queued is lost by a clean close. */
  async close(): Promise<void> {
    if (!this.#ended) {
      this.#ended = true;
      await handshake(this.#model.close(), this.#clock);
    }
    this.abort();
  }

  /** Drops the socket at once: nothing that is still queued here reaches the broker. */
  abort(): void {
    this.#ended = true;
    const { stream } = this.#model.connection as unknown as { stream: Socket };
    stream.destroy();
  }
}

function virtualHostOf(url: URL): string {
  return decodeURIComponent(url.pathname.slice(1)) || '/';
}
