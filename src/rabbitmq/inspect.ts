import type { Channel } from 'amqplib';
import { systemClock } from '../runtime/clock.js';
import type { Unusable } from '../core/usable-host.js';
import { BrokerConnection, type BrokerEndpoints } from './connection.js';
import { replyCode, toBrokerError } from './errors.js';

/** What is asked of the broker. */
export interface BrokerQuestions {
  exchange: string;
  exchangeType: string;
  /** Whether the relay may declare it. An exchange that is not there is never declared by looking. */
  declares: boolean;
  /** The lock queue of this relay; undefined while the installation is unknown. */
  lockQueue: string | undefined;
}

/** `fits`: there, and as configured as far as can be seen. `differs`: there with another type or arguments. */
type ExchangeState = 'fits' | 'differs' | 'missing' | 'refused';

/** `held`: a relay holds it at this moment. */
export type LockState = 'held' | 'free' | 'unknown';

export interface BrokerFacts {
  version: string;
  cluster: string;
  vhost: string;
  exchange: ExchangeState;
  lock: LockState;
}

const REFUSED = 403;
const NOT_FOUND = 404;
const RESOURCE_LOCKED = 405;
const PRECONDITION_FAILED = 406;

/** Connects, looks and closes; changes nothing. Rejects with WAYBILL_BROKER_UNAVAILABLE or WAYBILL_BROKER_REFUSED. */
export async function inspectBroker(
  endpoints: BrokerEndpoints,
  questions: BrokerQuestions,
  onUnusable?: (unusable: Unusable) => void,
): Promise<BrokerFacts> {
  return withBroker(endpoints, onUnusable, async (connection) => ({
    version: connection.version,
    cluster: connection.clusterName,
    vhost: connection.vhost,
    exchange: await lookAtExchange(connection, questions),
    lock: await lookAtLock(connection, questions.lockQueue),
  }));
}

/** Whether a relay holds this lock queue. Rejects as inspectBroker. */
export function inspectLock(endpoints: BrokerEndpoints, lockQueue: string): Promise<LockState> {
  return withBroker(endpoints, undefined, (connection) => lookAtLock(connection, lockQueue));
}

async function withBroker<T>(
  endpoints: BrokerEndpoints,
  onUnusable: ((unusable: Unusable) => void) | undefined,
  look: (connection: BrokerConnection) => Promise<T>,
): Promise<T> {
  const connection = await BrokerConnection.openFirst(
    endpoints,
    'waybill inspection',
    // What the connection dies of is told by the call that then fails.
    { onClosed: () => undefined, onBlocked: () => undefined, onUnblocked: () => undefined },
    systemClock,
    onUnusable,
  );
  try {
    return await look(connection);
  } finally {
    await connection.close();
  }
}

async function lookAtExchange(connection: BrokerConnection, questions: BrokerQuestions): Promise<ExchangeState> {
  const { exchange, exchangeType, declares } = questions;
  const passive = await refusalOf(connection, (channel) => channel.checkExchange(exchange));
  if (passive === NOT_FOUND) return 'missing';
  if (passive === REFUSED) return 'refused';
  if (passive !== undefined || !declares || exchange.startsWith('amq.')) return 'fits';
  // It is there, so declaring it creates nothing: the broker compares. The relay itself leaves an existing one alone,
  // so a missing permission to declare it does not matter.
  const active = await refusalOf(connection, (channel) =>
    channel.assertExchange(exchange, exchangeType, { durable: true }),
  );
  return active === PRECONDITION_FAILED ? 'differs' : 'fits';
}

async function lookAtLock(connection: BrokerConnection, queue: string | undefined): Promise<LockState> {
  if (queue === undefined) return 'unknown';
  const refusal = await refusalOf(connection, (channel) => channel.checkQueue(queue));
  if (refusal === RESOURCE_LOCKED) return 'held';
  return refusal === NOT_FOUND ? 'free' : 'unknown';
}

/** The reply code with which the broker refuses, or undefined if it does not. */
async function refusalOf(
  connection: BrokerConnection,
  ask: (channel: Channel) => Promise<unknown>,
): Promise<number | undefined> {
  try {
    await connection.throwaway(ask);
    return undefined;
  } catch (error) {
    const code = replyCode(error);
    if (code !== undefined) return code;
    throw toBrokerError(error, 'looking at the broker');
  }
}
