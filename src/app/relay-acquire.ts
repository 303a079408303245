import type { Config } from '../config/load.js';
import { WaybillError, isWaybillError } from '../core/errors.js';
import { lockQueueName, publicationName, slotName } from '../core/identity.js';
import { standbyPauseMs } from '../core/standby.js';
import { closeQuietly, forRelay, type DatabaseEndpoint } from '../postgres/connect.js';
import { identifySystemBySql, type SystemIdentity } from '../postgres/identify.js';
import { checkSchema } from '../postgres/migrations.js';
import {
  assertOrdinaryTable,
  ensurePublication,
  installationId,
  loadRelays,
  serverFacts,
  takeEpoch,
  type RelayRecord,
  type ServerFacts,
} from '../postgres/relay-record.js';
import { Slot, type SlotState } from '../postgres/slot.js';
import type { BrokerConnection } from '../rabbitmq/connection.js';
import { probeBroker, takeLockQueue } from '../rabbitmq/lock-queue.js';
import { pause, type Clock } from '../runtime/clock.js';
import type { Failure } from '../runtime/signal.js';
import type { Logger } from '../telemetry/log.js';
import { RelayConnections } from './relay-connections.js';
import { assertOneServer } from './one-server.js';
import { assertPublication, usableSlot, type SlotFacts } from './relay-slot.js';
import type { SqlClient } from './session.js';

/** What a relay session shows of itself to the outside. */
export type RelayPhase =
  'connecting' | 'standby' | 'waiting-for-broker' | 'starting' | 'table-pass' | 'streaming' | 'draining';

export interface SessionContext {
  config: Config;
  /** The connection settings as they are now. Never fails: what cannot be read anew is as it was. */
  connectionSettings: () => Pick<Config, 'database' | 'broker'>;
  log: Logger;
  clock: Clock;
  /** host:pid, for the database and for people. */
  holder: string;
  /** The first failure ends the session. */
  failure: Failure;
  onPhase: (phase: RelayPhase) => void;
  /** The session before found out that the slot cannot decode what it holds. */
  replaceSlot: boolean;
}

/** Everything a session holds, taken in this order: connections, lock queue, epoch, slot. */
export interface Acquired {
  broker: BrokerConnection;
  /** For the store: writes under the epoch. */
  writer: SqlClient;
  /** For the table reader: plain reads. */
  reader: SqlClient;
  replication: DatabaseEndpoint;
  server: ServerFacts;
  /** Undefined with `source: table`. */
  slot: Slot | undefined;
  /** As pg_replication_slots has it; undefined when it must be made. */
  slotState: SlotState | undefined;
  publication: string;
  record: RelayRecord;
  identity: SystemIdentity;
  /** See RelayConnections. */
  assertOpen: () => Promise<void>;
}

/** Opens connections as they are needed and knows how to let go of them. */
export class Holdings {
  broker: BrokerConnection | undefined;
  readonly clients: SqlClient[] = [];

  /** Drops everything at once, the broker's lock last: nobody else publishes while a socket of ours is open. */
  abandon(): void {
    for (const client of this.clients) closeQuietly(client);
    this.broker?.abort();
  }

  /** Closes in reverse order with the handshakes. */
  async close(): Promise<void> {
    await Promise.all(this.clients.map((client) => client.end().catch(() => undefined)));
    await this.broker?.close();
  }
}

/**
 * Takes what a relay needs, in the order that makes two of them safe: lock queue, then epoch, then slot (design 3.7).
 * Standing by for the lock is a phase, not an error. Rejects with the first failure; the caller abandons the holdings.
 */
export async function acquire(context: SessionContext, holdings: Holdings): Promise<Acquired> {
  const { config, failure } = context;
  const connections = new RelayConnections(context, holdings);

  context.onPhase('connecting');
  const writer = await connections.sql('settle');
  await forRelay(writer, 'writer');
  await checkSchema(writer, { schema: config.database.schema });
  await assertOrdinaryTable(writer, config.database.schema);
  const server = await serverFacts(writer);
  const fromLog = config.relay.source === 'wal';
  assertUsable(server, fromLog);
  const here = await failure.race(identifySystemBySql(writer));
  const identity = fromLog ? await identifyReplication(connections, here, server) : here;
  const broker = await connections.broker();
  const { vhost } = broker;
  await assertSameServers(context, writer, identity, broker.clusterName, vhost);
  const lockQueue = lockQueueName(await installationId(writer, config.database.schema), config.relay.name);
  await waitForLock(context, broker, lockQueue, writer);

  context.onPhase('waiting-for-broker');
  await failure.race(probeBroker(broker, lockQueue));
  await declareTopology(context, broker);

  context.onPhase('starting');
  // Again: while standing by the other one may have been started against other servers.
  await assertSameServers(context, writer, identity, broker.clusterName, vhost);
  const slot = new Slot(slotName(server.database, config.database.schema, config.relay.name), writer);
  const before = await findRelay(writer, config);
  if (!fromLog) assertNothingOnlyInLog(context, before);
  const epoch = await takeEpoch(writer, config.database.schema, {
    name: config.relay.name,
    slot: slot.name,
    source: config.relay.source,
    ordering: config.relay.ordering,
    holder: context.holder,
    systemIdentifier: identity.systemIdentifier,
    timeline: identity.timeline,
    brokerCluster: broker.clusterName,
    brokerVhost: vhost,
  });
  // Another one was faster, with other servers: this says which.
  if (epoch === undefined) await assertSameServers(context, writer, identity, broker.clusterName, vhost);
  const record = await findRelay(writer, config);
  if (epoch === undefined || record?.epoch !== epoch) {
    throw new WaybillError('WAYBILL_EPOCH_LOST', `another process took relay ${config.relay.name} at the same moment`, {
      hint: 'Nothing to do: this process tries again.',
    });
  }
  const publication = publicationName(config.database.schema);
  const fixed = {
    broker,
    writer,
    replication: connections.replication(),
    server,
    publication,
    record,
    identity,
    assertOpen: () => connections.assertOpen(),
  };
  const facts: SlotFacts = {
    database: server.database,
    walSenderTimeoutMs: server.walSenderTimeoutMs,
    fromTimeline: before?.timeline ?? null,
    timeline: identity.timeline,
    expected: before?.checkpointLsn != null,
    publicationMade: false,
    insertThenDeleteSeen: before?.insertThenDeleteSeen ?? false,
    replace: undefined,
  };
  if (!fromLog) {
    // A slot that nobody reads would only pin WAL.
    await usableSlot(context, slot, { ...facts, replace: 'relay.source is table' });
    return { ...fixed, slot: undefined, slotState: undefined, reader: await openReader(connections) };
  }
  const made = await ensurePublication(writer, config.database.schema);
  await assertPublication(writer, config.database.schema, publication);
  const slotState = await usableSlot(context, slot, {
    ...facts,
    publicationMade: made === 'created',
    replace: context.replaceSlot ? 'decoding from it fails' : undefined,
  });
  return { ...fixed, slot, slotState, reader: await openReader(connections) };
}

async function openReader(connections: RelayConnections): Promise<SqlClient> {
  const reader = await connections.sql('table');
  await forRelay(reader, 'reader');
  return reader;
}

async function identifyReplication(
  connections: RelayConnections,
  here: SystemIdentity,
  server: ServerFacts,
): Promise<SystemIdentity> {
  const there = await connections.identify();
  assertOneServer({ ...here, database: server.database }, there);
  return there;
}

/** Rows that only the slot can bring forbid to leave it. */
function assertNothingOnlyInLog(context: SessionContext, before: RelayRecord | undefined): void {
  if (!before?.insertThenDeleteSeen) return;
  throw new WaybillError(
    'WAYBILL_ROWS_ONLY_IN_LOG',
    'an application of this schema deletes its outbox rows itself, and `source: table` cannot see such rows',
    {
      hint: `Set relay.source: wal. If no application does it any more: update ${context.config.database.schema}.relay set insert_then_delete_seen = false;`,
    },
  );
}

function assertUsable(server: ServerFacts, fromLog: boolean): void {
  if (server.inRecovery) {
    throw new WaybillError('WAYBILL_DATABASE_UNSUITABLE', 'connected to a standby server, which cannot be written to', {
      hint: 'Point database.url at the primary.',
    });
  }
  if (fromLog && server.walLevel !== 'logical') {
    throw new WaybillError('WAYBILL_DATABASE_UNSUITABLE', `wal_level is ${server.walLevel}, not logical`, {
      hint: 'alter system set wal_level = logical; then restart PostgreSQL. Where that cannot be, set relay.source: table.',
    });
  }
}

async function findRelay(client: SqlClient, config: Config): Promise<RelayRecord | undefined> {
  const relays = await loadRelays(client, config.database.schema);
  const other = relays.find((relay) => relay.name !== config.relay.name);
  if (other) {
    throw new WaybillError(
      'WAYBILL_SECOND_RELAY',
      `schema ${config.database.schema} is served by relay ${other.name}, not ${config.relay.name}`,
      { hint: `Set relay.name: ${other.name}, or remove the other one with: waybill relay drop ${other.name}` },
    );
  }
  return relays[0];
}

/** Halts when this is another PostgreSQL or RabbitMQ cluster than before: a copy must not publish as the original. */
async function assertSameServers(
  { config }: SessionContext,
  client: SqlClient,
  identity: SystemIdentity,
  cluster: string,
  vhost: string,
): Promise<void> {
  const relay = await findRelay(client, config);
  if (!relay) return;
  const changes: string[] = [];
  const compare = (what: string, before: string | null, now: string): void => {
    if (before !== null && before !== now) changes.push(`${what} was ${before} and is ${now}`);
  };
  compare('PostgreSQL system identifier', relay.systemIdentifier, identity.systemIdentifier);
  compare('RabbitMQ cluster', relay.brokerCluster, cluster);
  compare('RabbitMQ virtual host', relay.brokerVhost, vhost);
  if (changes.length === 0) return;
  throw new WaybillError(
    'WAYBILL_IDENTITY_CHANGED',
    `relay ${relay.name} worked with other servers: ${changes.join('; ')}`,
    {
      hint: `If this is meant (an upgrade, a new broker), say so with: waybill relay adopt. If this is a copy of a database, give it its own broker.url.`,
    },
  );
}

async function waitForLock(
  context: SessionContext,
  broker: BrokerConnection,
  lockQueue: string,
  client: SqlClient,
): Promise<void> {
  const { clock, failure, log } = context;
  const lost = (): void =>
    failure.fail(
      new WaybillError('WAYBILL_LOCK_LOST', `lock queue ${lockQueue} is gone`, {
        hint: 'Somebody deleted it. This relay takes it again, or stands by if another one has it.',
      }),
    );
  for (let refusals = 1; ; refusals += 1) {
    try {
      await failure.race(takeLockQueue(broker, lockQueue, lost));
      return;
    } catch (error) {
      if (!isWaybillError(error, 'WAYBILL_LOCK_TAKEN')) throw error;
      if (refusals === 1) {
        context.onPhase('standby');
        // The broker does not tell who; this is whom this database knows. A copy of a database knows the original's.
        const holder = (await findRelay(client, context.config))?.holder ?? 'unknown';
        log.info({ lockQueue, holder }, 'standing by: another relay of this installation holds the lock queue');
      }
      await pause(clock, standbyPauseMs(refusals, clock.random()), failure.signal);
      failure.check();
    }
  }
}

async function declareTopology({ config, failure, log }: SessionContext, broker: BrokerConnection): Promise<void> {
  const { topology, exchange, exchangeType } = config.relay;
  if (topology === 'none') return;
  if (topology === 'assert') {
    const done = await failure.race(broker.declareExchange(exchange, exchangeType));
    if (done === 'declared') log.info({ exchange, exchangeType }, 'declared the exchange');
    return;
  }
  const fault = await failure.race(broker.checkExchange(exchange));
  if (fault) {
    throw new WaybillError('WAYBILL_TOPOLOGY_MISMATCH', fault.text, {
      hint: 'Declare it, set relay.exchange to one that exists, or let Waybill declare it with relay.topology: assert.',
    });
  }
}
