import type { Config } from '../config/load.js';
import { lockQueueName, slotName } from '../core/identity.js';
import { isWaybillError } from '../core/errors.js';
import type { Unusable } from '../core/usable-host.js';
import { toDatabaseError } from '../postgres/errors.js';
import { readBacklog, readParkedErrors, type Backlog, type ParkedError } from '../postgres/backlog.js';
import { readConsumers, type ConsumerBacklog } from '../postgres/inbox-backlog.js';
import { readDatabaseName, readSystemIdentifier } from '../postgres/inspect-server.js';
import { readInstallation, readRelays, readSlot, type RelayEntry, type SlotEntry } from '../postgres/inspect.js';
import { checkSchema, migrationStatus, SCHEMA_VERSION } from '../postgres/migrations.js';
import { inspectBroker, type BrokerFacts } from '../rabbitmq/inspect.js';
import { brokerEndpoints } from './endpoints.js';
import { askLive } from './live-client.js';
import type { LiveStatus } from './live-status.js';
import { withDatabase, type SqlClient } from './session.js';
import { findProblems, type StatusProblem } from './status-problems.js';

/** Why one side could not be looked at. */
interface Unavailable {
  code: string;
  message: string;
  hint: string | null;
}

/**
 * `active`: a relay publishes. `starting`: one holds the lock and does not stream yet. `stopped`: none. `unknown`: the
 * broker cannot be asked who holds the lock, and nobody streams, which is right during an outage of the broker.
 */
export type Activity = 'active' | 'starting' | 'stopped' | 'unknown';

/** What `waybill status` knows; this is also the shape of --json. What could not be read is null. */
export interface Status {
  at: string;
  relay: string;
  /** Whether this configuration runs it; one that only consumes does not (`relay: false`). */
  relayEnabled: boolean;
  schema: string;
  activity: Activity;
  database: {
    error: Unavailable | null;
    name: string | null;
    schemaVersion: number | null;
    neededSchemaVersion: number;
    systemIdentifier: string | null;
  };
  record: RelayEntry | null;
  otherRelays: string[];
  slotName: string | null;
  slot: SlotEntry | null;
  backlog: Backlog | null;
  parkedErrors: ParkedError[];
  /** Null: not read. */
  consumers: ConsumerBacklog[] | null;
  broker: { error: Unavailable | null; exchange: string; facts: BrokerFacts | null };
  /** What the running process says of itself; null when it does not answer at admin.listen. */
  live: LiveStatus | null;
  problems: StatusProblem[];
}

/** Everything but the verdict on it. */
export type StatusFacts = Omit<Status, 'problems'>;

/** Looking must neither wait long nor burden a database in trouble. */
const LIMITS = { lockTimeoutMs: 1_000, statementTimeoutMs: 10_000, workTimeoutMs: 20_000 };

/** What the caller knows already and need not be asked. */
interface KnownStatus {
  /** Null: there is none to be asked. */
  live?: LiveStatus | null;
  broker?: Status['broker'] | undefined;
}

/** Looks at the database, then at the broker; what cannot be reached becomes a problem, never an exception. */
export async function collectStatus(config: Config, known: KnownStatus = {}): Promise<Status> {
  const facts = await collectFacts(config, known);
  return { ...facts, problems: findProblems(facts, config) };
}

async function collectFacts(config: Config, known: KnownStatus): Promise<StatusFacts> {
  const asking = known.live === undefined ? askLive(config) : Promise.resolve(known.live);
  const facts: StatusFacts = {
    at: new Date().toISOString(),
    relay: config.relay.name,
    relayEnabled: config.relay.enabled,
    schema: config.database.schema,
    activity: 'unknown',
    database: {
      error: null,
      name: null,
      schemaVersion: null,
      neededSchemaVersion: SCHEMA_VERSION,
      systemIdentifier: null,
    },
    record: null,
    otherRelays: [],
    slotName: null,
    slot: null,
    backlog: null,
    parkedErrors: [],
    consumers: null,
    broker: known.broker ?? { error: null, exchange: config.relay.exchange, facts: null },
    live: null,
  };
  let installation: string | undefined;
  try {
    await withDatabase(config.database, LIMITS, async (client) => {
      await readRelayState(client, config, facts);
      installation = await readInstallation(client, config.database.schema);
      await readRows(client, config.database.schema, facts);
    });
  } catch (error) {
    facts.database.error = unavailable(toDatabaseError(error, 'looking at the outbox'));
  }
  try {
    if (!known.broker) facts.broker.facts = await askBroker(config, installation);
  } catch (error) {
    facts.broker.error = unavailable(error);
  }
  facts.live = (await asking) ?? null;
  facts.activity = activityOf(facts, config.relay.source);
  return facts;
}

/** Fills the facts step by step, so that a failure leaves what was read before it. */
async function readRelayState(client: SqlClient, config: Config, facts: StatusFacts): Promise<void> {
  const { schema } = config.database;
  const database = await readDatabaseName(client);
  facts.database.name = database;
  facts.database.systemIdentifier = await readSystemIdentifier(client);
  facts.database.schemaVersion = (await migrationStatus(client, { schema })).version;
  await checkSchema(client, { schema });
  const relays = await readRelays(client, schema);
  facts.record = relays.find(({ name }) => name === config.relay.name) ?? null;
  facts.otherRelays = relays.map(({ name }) => name).filter((name) => name !== config.relay.name);
  facts.slotName = facts.record?.slot ?? slotName(database, schema, config.relay.name);
  facts.slot = (await readSlot(client, facts.slotName)) ?? null;
}

async function readRows(client: SqlClient, schema: string, facts: StatusFacts): Promise<void> {
  facts.backlog = await readBacklog(client, schema);
  if (facts.backlog.states.some(({ state }) => state === 'parked')) {
    facts.parkedErrors = await readParkedErrors(client, schema);
  }
  facts.consumers = await readConsumers(client, schema);
}

/** What doctor and status ask the broker. */
export function askBroker(
  config: Config,
  installation: string | undefined,
  onUnusable?: (unusable: Unusable) => void,
): Promise<BrokerFacts> {
  const { name, exchange, exchangeType, topology } = config.relay;
  const questions = {
    exchange,
    exchangeType,
    declares: topology === 'assert',
    lockQueue: installation === undefined ? undefined : lockQueueName(installation, name),
  };
  return inspectBroker(brokerEndpoints(config.broker), questions, onUnusable);
}

function activityOf({ slot, broker }: StatusFacts, source: Config['relay']['source']): Activity {
  const lock = broker.facts?.lock ?? 'unknown';
  if (lock === 'held') return slot?.active === true || source === 'table' ? 'active' : 'starting';
  if (slot?.active === true) return lock === 'free' ? 'starting' : 'active';
  return lock === 'free' ? 'stopped' : 'unknown';
}

/** An error as a value that can be shown and serialised. */
function unavailable(error: unknown): Unavailable {
  if (isWaybillError(error)) return { code: error.code, message: error.message, hint: error.hint ?? null };
  throw error;
}
