import type { Config } from '../config/load.js';
import { counted } from '../core/counted.js';
import { WaybillError } from '../core/errors.js';
import { publicationName, slotName } from '../core/identity.js';
import { brokerDeathsQueue, isSharedDelay, retryQueue } from '../core/topology.js';
import { toDatabaseError } from '../postgres/errors.js';
import { dropSlot } from '../postgres/forget-relay.js';
import { mayReadInbox } from '../postgres/inbox-rows.js';
import { registeredConsumers } from '../postgres/inspect-hazards.js';
import { readDatabaseName } from '../postgres/inspect-server.js';
import { readInstallation, readRelays } from '../postgres/inspect.js';
import {
  countUnfinished,
  dropPublication,
  dropSchema,
  hasPublication,
  readContents,
  readOwnSlots,
  type OwnSlot,
  type SchemaContents,
} from '../postgres/uninstall.js';
import { lookForRemains, removeRemains, withTopology, type Present } from '../rabbitmq/topology.js';
import { askBroker } from './status.js';
import { brokerEndpoints } from './endpoints.js';
import { withDatabase, type SqlClient } from './session.js';
import { wantedTopology } from './topology.js';

/** Everything that an uninstallation would remove, and what stands against it. */
export interface UninstallPlan {
  database: string;
  schema: string;
  /** Null: there is no such schema. */
  contents: SchemaContents | null;
  slots: OwnSlot[];
  publication: string | null;
  /**
   * Null: the broker is left alone. `shared`: delays and exchanges, which stay, because other installations may use them:
   * RabbitMQ does not tell who publishes to an exchange. `foreign`: what the configuration checks or takes as it is
   * (topology), which was made by somebody else.
   */
  broker: { vhost: string; present: Present[]; shared: string[]; foreign: string[] } | null;
  unfinished: { outbox: number; inbox: number };
  /** Nothing helps but to end these. */
  obstacles: string[];
  /** What would be lost; --force accepts it. */
  losses: string[];
}

/** What was removed and what was left on purpose. */
export interface Uninstalled {
  slots: string[];
  queues: string[];
  exchanges: string[];
  leftExchanges: string[];
  /** Exchanges and delay queues, which other installations on the virtual host may use. */
  leftShared: string[];
  /** What somebody else has made, by the configuration. */
  leftForeign: string[];
}

/** What of the broker is to be removed. */
export interface UninstallScope {
  /** Leave queues and exchanges alone. */
  keepBroker: boolean;
  /** Also what installations on the virtual host may share: somebody knows that no other one is left. */
  shared: boolean;
}

const LIMITS = { lockTimeoutMs: 10_000, statementTimeoutMs: 120_000, workTimeoutMs: 300_000 };
const COUNTED = 1_000_000;

/** Looks at what is there; changes nothing. */
export async function planUninstall(config: Config, scope: UninstallScope): Promise<UninstallPlan> {
  const { database } = config;
  const found = await inDatabase(config, 'looking at the schema', (client) => lookAtDatabase(client, config));
  const broker = scope.keepBroker ? null : await lookAtBroker(config, scope.shared);
  const running = scope.keepBroker ? [] : await heldLocks(config, found);
  const obstacles = [
    ...found.slots.filter(({ active }) => active).map(({ name }) => `a relay is running: it reads slot ${name}`),
    ...running.map((name) => `a relay is running: it holds the lock queue of ${name}`),
    ...(broker?.present ?? [])
      .filter(({ consumers }) => (consumers ?? 0) > 0)
      .map(({ name, consumers }) => `queue ${name} has ${counted(consumers ?? 0, 'consumer')}`),
    ...(found.contents?.mayDrop === false
      ? [`this role may not drop the schema: connect as ${found.contents.owner} or a superuser`]
      : []),
  ];
  const losses = [
    ...(found.unfinished.outbox > 0
      ? [
          `${amount(found.unfinished.outbox, 'row')} of the outbox ${found.unfinished.outbox === 1 ? 'is' : 'are'} not published`,
        ]
      : []),
    ...(found.unfinished.inbox > 0
      ? [
          `${amount(found.unfinished.inbox, 'message')} of the inbox ${found.unfinished.inbox === 1 ? 'is' : 'are'} not applied`,
        ]
      : []),
    ...(broker?.present ?? [])
      .filter(({ messages }) => (messages ?? 0) > 0)
      .map(({ name, messages }) => `queue ${name} holds ${counted(messages ?? 0, 'message')}`),
    ...(scope.keepBroker ? [] : found.elsewhere).map(
      ({ name, queue }) =>
        `consumer ${name} is registered and not in this configuration: its queues stay on the broker (${queuesOf(name, queue).join(', ')})`,
    ),
    ...(found.contents?.foreign ?? []).map(
      (name) => `${database.schema}.${name} is not of Waybill, and goes with the schema`,
    ),
    ...(found.contents?.dependents ?? []).map((name) => `${name} uses the schema, and goes with it`),
  ];
  const { contents, slots, publication, unfinished } = found;
  const name = found.database;
  return {
    database: name,
    schema: database.schema,
    contents,
    slots,
    publication,
    broker,
    unfinished,
    obstacles,
    losses,
  };
}

/**
 * Removes everything, in this order: slots, because they keep WAL; publication; queues and exchanges; the schema. Each
 * step can be repeated. Throws WAYBILL_STILL_IN_USE where something stands against it.
 */
export async function uninstall(config: Config, plan: UninstallPlan, force: boolean): Promise<Uninstalled> {
  const against = [...plan.obstacles, ...(force ? [] : plan.losses)];
  if (against.length > 0) {
    throw new WaybillError('WAYBILL_STILL_IN_USE', `Nothing was removed: ${against.join('; ')}.`, {
      hint: plan.obstacles.length > 0 ? 'End that first; then call this again.' : 'To lose that: --force.',
    });
  }
  await inDatabase(config, 'dropping slots and publication', async (client) => {
    for (const { name } of plan.slots) await dropSlot(client, name);
    if (plan.publication !== null) await dropPublication(client, plan.publication);
  });
  const present = plan.broker?.present ?? [];
  const left = await withBroker(config, present, force);
  await inDatabase(config, 'dropping the schema', (client) => dropSchema(client, config.database.schema));
  return {
    slots: plan.slots.map(({ name }) => name),
    queues: present.filter(({ kind }) => kind === 'queue').map(({ name }) => name),
    exchanges: present.filter(({ kind, name }) => kind === 'exchange' && !left.includes(name)).map(({ name }) => name),
    leftExchanges: left,
    leftShared: plan.broker?.shared ?? [],
    leftForeign: plan.broker?.foreign ?? [],
  };
}

async function withBroker(config: Config, present: readonly Present[], force: boolean): Promise<string[]> {
  if (present.length === 0) return [];
  return withTopology(brokerEndpoints(config.broker), (connection) => removeRemains(connection, present, force));
}

/** The relays whose lock queue somebody holds: the configured one, and all that ever ran on this schema. */
async function heldLocks(config: Config, found: { installation?: string | undefined; relays: string[] }) {
  const held: string[] = [];
  for (const name of new Set([config.relay.name, ...found.relays])) {
    const { lock } = await askBroker({ ...config, relay: { ...config.relay, name } }, found.installation);
    if (lock === 'held') held.push(name);
  }
  return held;
}

function queuesOf(consumer: string, queue: string): string[] {
  return [queue, brokerDeathsQueue(queue), retryQueue(consumer)];
}

async function lookAtBroker(config: Config, withShared: boolean): Promise<UninstallPlan['broker']> {
  const { relay, consumers } = config;
  const { topology } = wantedTopology(config);
  const own = wantedTopology({
    ...config,
    relay: { ...relay, enabled: relay.enabled && relay.topology === 'assert' },
    consumers: consumers.filter((consumer) => consumer.topology === 'assert'),
  }).topology;
  const isOwn = ({ kind, name }: Present): boolean =>
    (kind === 'queue' ? own.queues : own.exchanges).some((each) => each.name === name);
  return withTopology(brokerEndpoints(config.broker), async (connection) => {
    const all = await lookForRemains(connection, topology);
    const found = all.filter(isOwn);
    const isLeft = ({ kind, name }: Present): boolean => !withShared && (kind === 'exchange' || isSharedDelay(name));
    return {
      vhost: connection.vhost,
      present: found.filter((each) => !isLeft(each)),
      shared: [...new Set(found.filter(isLeft).map(({ name }) => name))],
      foreign: all.filter((each) => !isOwn(each)).map(({ kind, name }) => `${kind} ${name}`),
    };
  });
}

async function lookAtDatabase(client: SqlClient, { database: { schema }, relay, consumers }: Config) {
  const database = await readDatabaseName(client);
  const contents = (await readContents(client, schema)) ?? null;
  const relays = contents === null ? [] : await readRelays(client, schema);
  const installation = contents === null ? undefined : await readInstallation(client, schema);
  // The configured name, too: a slot outlives a schema that was dropped by hand.
  const names = [...relays.flatMap(({ slot }) => slot ?? []), slotName(database, schema, relay.name)];
  const publication = publicationName(schema);
  const hasInbox = contents !== null && (await mayReadInbox(client, schema)) === 'yes';
  const registered = hasInbox ? await registeredConsumers(client, schema) : [];
  return {
    database,
    contents,
    installation,
    relays: relays.map(({ name }) => name),
    elsewhere: registered.filter(({ name }) => !consumers.some((consumer) => consumer.name === name)),
    slots: await readOwnSlots(client, names),
    publication: (await hasPublication(client, publication)) ? publication : null,
    unfinished: contents === null ? { outbox: 0, inbox: 0 } : await countUnfinished(client, schema, COUNTED),
  };
}

/** Why without a look at the schema's version: whatever is left of one must be removable. */
async function inDatabase<T>(config: Config, doing: string, act: (client: SqlClient) => Promise<T>): Promise<T> {
  return withDatabase(config.database, LIMITS, async (client) => {
    try {
      return await act(client);
    } catch (error) {
      throw toDatabaseError(error, doing);
    }
  });
}

function amount(count: number, one: string): string {
  return `${count >= COUNTED ? 'at least ' : ''}${counted(count, one)}`;
}
