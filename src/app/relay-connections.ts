import type { Config } from '../config/load.js';
import type { Unusable } from '../core/usable-host.js';
import { closeQuietly, connectSql, type DatabaseEndpoint } from '../postgres/connect.js';
import { sqlState, toDatabaseError } from '../postgres/errors.js';
import type { ReplicationIdentity } from '../postgres/identify.js';
import { connectToPrimary, identifyPrimary, sameServer } from '../postgres/primary.js';
import { BrokerConnection } from '../rabbitmq/connection.js';
import type { Clock } from '../runtime/clock.js';
import type { Failure } from '../runtime/signal.js';
import type { Logger } from '../telemetry/log.js';
import { brokerEndpoints, databaseEndpoints, replicationEndpoints } from './endpoints.js';
import type { SqlClient } from './session.js';

const CANNOT_CONNECT_NOW = '57P03';

/** What a session lets go of when it ends. */
interface Held {
  broker: BrokerConnection | undefined;
  readonly clients: SqlClient[];
}

interface Surroundings {
  config: Config;
  /** The connection settings as they are now: passwords and certificates may have been rotated since. */
  connectionSettings: () => Pick<Config, 'database' | 'broker'>;
  log: Logger;
  clock: Clock;
  /** Ends the waiting; what is opened after it is closed at once. */
  failure: Failure;
}

/**
 * Opens the connections of one session. Each is opened with the settings of that moment; the first SQL connection finds
 * the primary, and all others go to the same server, because a slot and a table pass belong to one server.
 */
export class RelayConnections {
  readonly #around: Surroundings;
  readonly #held: Held;
  readonly #name: string;
  #primary: DatabaseEndpoint | undefined;
  #replication: DatabaseEndpoint | undefined;

  constructor(around: Surroundings, held: Held) {
    this.#around = around;
    this.#held = held;
    this.#name = `waybill ${around.config.relay.name}`;
  }

  async sql(purpose: string): Promise<SqlClient> {
    const { failure, connectionSettings } = this.#around;
    const servers = databaseEndpoints(connectionSettings().database);
    // A server that is no longer configured is used until the session ends: half a session elsewhere would be wrong.
    const found = this.#primary && (sameServer(servers, this.#primary) ?? this.#primary);
    const opening = connectToPrimary(found ? [found] : servers, {
      applicationName: `${this.#name} ${purpose}`,
      onError: (error) => failure.fail(toDatabaseError(error, 'the database connection')),
      onUnusable: (unusable) => this.#passedOver('PostgreSQL', unusable),
    });
    const { client } = await failure.race(
      opening.then((opened) => {
        this.#primary = opened.server;
        this.#held.clients.push(opened.client);
        if (failure.error) closeQuietly(opened.client);
        return opened;
      }),
    );
    return client;
  }

  /** Opens a replication connection, asks who answers, and closes it again. */
  async identify(): Promise<ReplicationIdentity> {
    const { failure, connectionSettings } = this.#around;
    const servers = replicationEndpoints(connectionSettings().database, this.#primary);
    const { identity, server } = await failure.race(identifyPrimary(servers, `${this.#name} identify`));
    this.#replication = server;
    return identity;
  }

  /** The server that was identified, with the settings of this moment. */
  replication(): DatabaseEndpoint {
    const servers = replicationEndpoints(this.#around.connectionSettings().database, this.#primary);
    return this.#replication ? (sameServer(servers, this.#replication) ?? this.#replication) : servers[0];
  }

  /**
   * F21: rejects when the server lets nobody in any more, because it shuts down and waits for its clients to go (a smart
   * shutdown): it tells nobody who is in. Anything else that goes wrong is left to those who notice it at their work. Not
   * asked where each connection costs a run of passwordCommand.
   */
  async assertOpen(): Promise<void> {
    const found = this.#primary;
    if (!found || found.password) return;
    const server = sameServer(databaseEndpoints(this.#around.connectionSettings().database), found) ?? found;
    try {
      closeQuietly(await connectSql(server, `${this.#name} look`, () => undefined));
    } catch (error) {
      if (sqlState(error) === CANNOT_CONNECT_NOW) throw error;
    }
  }

  async broker(): Promise<BrokerConnection> {
    const { failure, connectionSettings, log, clock } = this.#around;
    const opening = BrokerConnection.openFirst(
      brokerEndpoints(connectionSettings().broker),
      this.#name,
      {
        onClosed: (error) => failure.fail(error),
        onBlocked: (reason) =>
          log.warn({ reason }, 'RabbitMQ blocks publishing (memory or disk alarm); waiting for it'),
        onUnblocked: () => log.info({}, 'RabbitMQ takes messages again'),
      },
      clock,
      (unusable) => this.#passedOver('RabbitMQ', unusable),
    );
    return failure.race(
      opening.then((opened) => {
        this.#held.broker = opened;
        if (failure.error) opened.abort();
        return opened;
      }),
    );
  }

  #passedOver(what: string, { host, error }: Unusable): void {
    const { log } = this.#around;
    if (error.code === 'WAYBILL_DATABASE_UNSUITABLE') log.info({ host, reason: error.message }, 'not the primary');
    else log.warn({ host, err: error }, `${what} cannot be used on this host; another one is used`);
  }
}
