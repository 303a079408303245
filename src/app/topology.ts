import type { BrokerConfig } from '../config/load.js';
import {
  consumerTopology,
  isBuiltIn,
  mergeTopologies,
  needsDelayPlugin,
  permissionsFor,
  relayTopology,
  retryQueue,
  brokerDeathsQueue,
  type Permissions,
  type Topology,
} from '../core/topology.js';
import { systemClock } from '../runtime/clock.js';
import { hasDelayPlugin, requireDelayPlugin } from '../rabbitmq/delay-plugin.js';
import { declareTopology, lookAtTopology, withTopology, type TopologyStep } from '../rabbitmq/topology.js';
import { brokerEndpoints } from './endpoints.js';

/** What the configuration wants of the broker, and what its user needs. */
export interface WantedTopology {
  topology: Topology;
  permissions: Permissions;
}

/** The wanted things with how they are, and the permissions of the user. */
export interface TopologyPlan {
  steps: TopologyStep[];
  permissions: Permissions;
}

/** Everything that the configuration wants on the broker; pure. */
export function wantedTopology({ relay, consumers }: BrokerConfig): WantedTopology {
  const topology = mergeTopologies([
    ...(relay.enabled ? [relayTopology(relay)] : []),
    ...consumers.map((consumer) => consumerTopology(consumer)),
  ]);
  const declares =
    (relay.enabled && relay.topology === 'assert') || consumers.some((consumer) => consumer.topology === 'assert');
  const permissions = permissionsFor(topology, {
    locks: relay.enabled,
    declares,
    publishes: relay.enabled ? [relay.exchange] : [],
    consumes: consumers.flatMap(({ name, queue }) => [queue, brokerDeathsQueue(queue), retryQueue(name)]),
  });
  return { topology, permissions };
}

/** Compares what the configuration wants with what is there; changes nothing. */
export async function planTopology(config: BrokerConfig): Promise<TopologyPlan> {
  const { topology, permissions } = wantedTopology(config);
  const endpoints = brokerEndpoints(config.broker);
  const delayPlugin = needsDelayPlugin(topology) && (await hasDelayPlugin(endpoints, systemClock));
  return withTopology(endpoints, async (connection) => ({
    steps: await lookAtTopology(connection, topology, { delayPlugin }),
    permissions,
  }));
}

/**
 * Declares what is missing, and gives what was done. Throws WAYBILL_TOPOLOGY_MISMATCH where something is there with
 * other properties: it is left as it is; and WAYBILL_DELAY_PLUGIN_MISSING before anything is declared.
 */
export async function applyTopology(config: BrokerConfig): Promise<TopologyStep[]> {
  const { topology } = wantedTopology(config);
  const endpoints = brokerEndpoints(config.broker);
  const delayed = config.consumers.filter(({ delay }) => delay === 'x-delayed-message').map(({ name }) => name);
  if (delayed.length > 0) await requireDelayPlugin(endpoints, delayed, systemClock);
  return withTopology(endpoints, async (connection) => {
    const before = await lookAtTopology(connection, topology, { delayPlugin: true });
    await declareTopology(connection, topology);
    return before.filter(({ state }) => state === 'missing' || state === 'asserted' || state === 'no-source');
  });
}

/**
 * The wanted things as definitions that `rabbitmqctl import_definitions` and the management plugin take. With `user`,
 * the permissions of that user too, who must exist.
 */
export function exportTopology(config: BrokerConfig, vhost: string, user: string | undefined): object {
  const { topology, permissions } = wantedTopology(config);
  return {
    vhosts: [{ name: vhost }],
    ...(user === undefined ? {} : { permissions: [{ user, vhost, ...permissions }] }),
    exchanges: topology.exchanges
      .filter(({ name }) => !isBuiltIn(name))
      .map(({ name, type, arguments: given = {} }) => ({
        name,
        vhost,
        type,
        durable: true,
        auto_delete: false,
        internal: false,
        arguments: given,
      })),
    queues: topology.queues.map(({ name, arguments: given }) => ({
      name,
      vhost,
      durable: true,
      auto_delete: false,
      arguments: given,
    })),
    bindings: topology.bindings.map(({ exchange, queue, routingKey }) => ({
      source: exchange,
      vhost,
      destination: queue,
      destination_type: 'queue',
      routing_key: routingKey,
      arguments: {},
    })),
  };
}

/** The virtual host of a broker URL. */
export function vhostOf(url: string): string {
  return decodeURIComponent(new URL(url).pathname.slice(1)) || '/';
}
