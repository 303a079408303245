import type { Channel } from 'amqplib';
import { WaybillError } from '../core/errors.js';
import { isBuiltIn, PLUGIN_EXCHANGE_TYPE, type Topology } from '../core/topology.js';
import { systemClock } from '../runtime/clock.js';
import { BrokerConnection, type BrokerEndpoints } from './connection.js';
import { replyCode, toBrokerError } from './errors.js';

/**
 * How a thing is: `missing`; `fits`; `differs` (there, with another type or arguments, which cannot be changed);
 * `unseen` (there, and this user may not compare it); `refused` (this user may not even look); `no-plugin` (the broker
 * does not know its type).
 */
export type TopologyState = 'missing' | 'fits' | 'differs' | 'unseen' | 'refused' | 'no-plugin';

/**
 * One declaration and how it is on the broker. Bindings cannot be seen by AMQP; to declare one twice changes nothing.
 * `missing`: it cannot be there, because its queue or exchange is not; `asserted`: it may be there, or not; `no-source`:
 * its exchange is not there, and is for others to declare.
 */
export interface TopologyStep {
  kind: 'exchange' | 'queue' | 'binding';
  name: string;
  detail: string;
  state: TopologyState | 'asserted' | 'no-source';
}

const REFUSED = 403;
const NOT_FOUND = 404;
const LOCKED = 405;
const DIFFERS = 406;

const HINTS: Readonly<Record<number, string>> = {
  [REFUSED]: 'Give the user the permissions that `waybill topology plan` shows, or apply it as another user.',
  [NOT_FOUND]: 'An exchange that others publish to is declared by them: see that it is there, or correct its name.',
  [DIFFERS]:
    'It is there with other properties, which cannot be changed: delete it when it is empty, or use another name.',
};

/** Connects, works and closes. Rejects with WAYBILL_BROKER_UNAVAILABLE or WAYBILL_BROKER_REFUSED. */
export async function withTopology<T>(
  endpoints: BrokerEndpoints,
  work: (connection: BrokerConnection) => Promise<T>,
): Promise<T> {
  const connection = await BrokerConnection.openFirst(
    endpoints,
    'waybill topology',
    { onClosed: () => undefined, onBlocked: () => undefined, onUnblocked: () => undefined },
    systemClock,
  );
  try {
    return await work(connection);
  } finally {
    await connection.close();
  }
}

/** Compares each declaration with what is there; declares nothing. `delayPlugin`: whether the broker has it. */
export async function lookAtTopology(
  connection: BrokerConnection,
  topology: Topology,
  { delayPlugin }: { delayPlugin: boolean },
): Promise<TopologyStep[]> {
  const steps: TopologyStep[] = [];
  for (const { name, type, arguments: given = {} } of topology.exchanges) {
    const state =
      type === PLUGIN_EXCHANGE_TYPE && !delayPlugin
        ? 'no-plugin'
        : await compare(
            connection,
            (channel) => channel.checkExchange(name),
            (channel) => channel.assertExchange(name, type, { durable: true, arguments: given }),
          );
    steps.push({ kind: 'exchange', name, detail: type, state });
  }
  for (const { name, arguments: given } of topology.queues) {
    const state = await compare(
      connection,
      (channel) => channel.checkQueue(name),
      (channel) => channel.assertQueue(name, { durable: true, arguments: given }),
    );
    steps.push({ kind: 'queue', name, detail: argumentsText(given), state });
  }
  const isMissing = (kind: string, name: string): boolean =>
    steps.some((step) => step.kind === kind && step.name === name && step.state === 'missing');
  const foreign = new Map<string, boolean>();
  for (const { exchange, queue, routingKey } of topology.bindings) {
    const detail = `from ${exchange}${routingKey === '' ? '' : ` by ${routingKey}`}`;
    const isOurs = isBuiltIn(exchange) || topology.exchanges.some(({ name }) => name === exchange);
    if (!isOurs && !foreign.has(exchange)) foreign.set(exchange, await isThere(connection, exchange));
    const state =
      foreign.get(exchange) === false
        ? 'no-source'
        : isMissing('queue', queue) || isMissing('exchange', exchange)
          ? 'missing'
          : 'asserted';
    steps.push({ kind: 'binding', name: queue, detail, state });
  }
  return steps;
}

async function isThere(connection: BrokerConnection, exchange: string): Promise<boolean> {
  const refusal = await refusalOf(connection, (channel) => channel.checkExchange(exchange), 'looking at the broker');
  return refusal?.code !== NOT_FOUND;
}

/** Declares what is missing and binds. Nothing that is there is changed; throws WAYBILL_TOPOLOGY_MISMATCH if it differs. */
export async function declareTopology(connection: BrokerConnection, topology: Topology): Promise<void> {
  const declare = async (what: string, use: (channel: Channel) => Promise<unknown>): Promise<void> => {
    const refusal = await refusalOf(connection, use, `declaring ${what}`);
    if (refusal === undefined) return;
    throw new WaybillError('WAYBILL_TOPOLOGY_MISMATCH', `${what} cannot be declared: RabbitMQ says ${refusal.text}`, {
      hint: HINTS[refusal.code] ?? 'See what RabbitMQ says.',
    });
  };
  for (const { name, type, arguments: given = {} } of topology.exchanges) {
    await declare(`exchange ${name}`, (channel) =>
      channel.assertExchange(name, type, { durable: true, arguments: given }),
    );
  }
  for (const { name, arguments: given } of topology.queues) {
    await declare(`queue ${name}`, (channel) => channel.assertQueue(name, { durable: true, arguments: given }));
  }
  for (const { exchange, queue, routingKey } of topology.bindings) {
    await declare(`the binding of ${queue} to ${exchange}`, (channel) =>
      channel.bindQueue(queue, exchange, routingKey),
    );
  }
}

/** A queue or exchange that is there. Exchanges have no counts. */
export interface Present {
  kind: 'exchange' | 'queue';
  name: string;
  messages: number | null;
  consumers: number | null;
}

/** Those things of the topology that are there, with what is in them. */
export async function lookForRemains(
  connection: BrokerConnection,
  topology: { queues: readonly { name: string }[]; exchanges: readonly { name: string }[] },
): Promise<Present[]> {
  const found: Present[] = [];
  for (const { name } of topology.queues) {
    let counts = { messageCount: 0, consumerCount: 0 };
    const refusal = await refusalOf(
      connection,
      async (channel) => (counts = await channel.checkQueue(name)),
      'looking at the broker',
    );
    if (refusal?.code === NOT_FOUND) continue;
    found.push({ kind: 'queue', name, messages: counts.messageCount, consumers: counts.consumerCount });
  }
  for (const { name } of topology.exchanges) {
    const refusal = await refusalOf(connection, (channel) => channel.checkExchange(name), 'looking at the broker');
    if (refusal?.code !== NOT_FOUND) found.push({ kind: 'exchange', name, messages: null, consumers: null });
  }
  return found;
}

/**
 * Deletes queues, and exchanges that nothing is bound to any more. Gives those exchanges that were left, because others
 * use them. Throws WAYBILL_STILL_IN_USE before it deletes a queue that somebody consumes, or, without `force`, one with
 * messages: they may have come since it was looked at. Why not by a flag of the deletion: quorum queues know none.
 */
export async function removeRemains(
  connection: BrokerConnection,
  remains: readonly Present[],
  force: boolean,
): Promise<string[]> {
  const left: string[] = [];
  for (const { kind, name } of remains) {
    const [now] = kind === 'queue' ? await lookForRemains(connection, { queues: [{ name }], exchanges: [] }) : [];
    if (now && ((now.consumers ?? 0) > 0 || (!force && (now.messages ?? 0) > 0))) {
      const what = (now.consumers ?? 0) > 0 ? 'is consumed' : 'holds messages';
      throw new WaybillError(
        'WAYBILL_STILL_IN_USE',
        `Queue ${name} ${what} since it was looked at; it was not deleted.`,
        {
          hint: 'See what uses it; then call this again: what was removed before stays removed.',
        },
      );
    }
    const refusal = await refusalOf(
      connection,
      (channel) => (kind === 'queue' ? channel.deleteQueue(name) : channel.deleteExchange(name, { ifUnused: true })),
      `deleting ${kind} ${name}`,
    );
    if (refusal === undefined || refusal.code === NOT_FOUND) continue;
    if (kind === 'exchange' && refusal.code === DIFFERS) left.push(name);
    else {
      throw new WaybillError(
        'WAYBILL_BROKER_REFUSED',
        `${kind} ${name} cannot be deleted: RabbitMQ says ${refusal.text}`,
        {
          hint: 'Give the user configure permission on it, or delete it yourself; then call this again.',
        },
      );
    }
  }
  return left;
}

async function compare(
  connection: BrokerConnection,
  look: (channel: Channel) => Promise<unknown>,
  assert: (channel: Channel) => Promise<unknown>,
): Promise<TopologyState> {
  const passive = await refusalOf(connection, look, 'looking at the broker');
  if (passive?.code === NOT_FOUND) return 'missing';
  if (passive?.code === REFUSED) return 'refused';
  if (passive?.code === LOCKED) return 'unseen';
  // It is there, so declaring it creates nothing: the broker compares.
  const active = await refusalOf(connection, assert, 'looking at the broker');
  if (active === undefined) return 'fits';
  return active.code === REFUSED ? 'unseen' : 'differs';
}

async function refusalOf(
  connection: BrokerConnection,
  ask: (channel: Channel) => Promise<unknown>,
  doing: string,
): Promise<{ code: number; text: string } | undefined> {
  try {
    await connection.throwaway(ask);
    return undefined;
  } catch (error) {
    const code = replyCode(error);
    if (code === undefined) throw toBrokerError(error, doing);
    return { code, text: error instanceof Error ? error.message : String(code) };
  }
}

function argumentsText(given: Readonly<Record<string, string | number | boolean>>): string {
  return Object.entries(given)
    .map(([name, value]) => `${name.replace(/^x-/, '')}=${value}`)
    .join(', ');
}
