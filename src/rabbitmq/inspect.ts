import type { ConnectionOptions } from 'node:tls';
import { connect, type Channel, type ChannelModel } from 'amqplib';
import { WaybillError } from '../core/errors.js';

/** Where to look. `tls` belongs to an amqps URL. */
export interface InspectedBroker {
  url: string;
  tls?: ConnectionOptions | undefined;
  heartbeatMs: number;
  connectTimeoutMs: number;
}

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
export type ExchangeState = 'fits' | 'differs' | 'missing' | 'refused';

/** `held`: a relay holds it at this moment. */
export type LockState = 'held' | 'free' | 'unknown';

export interface BrokerFacts {
  product: string;
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
export async function inspectBroker(broker: InspectedBroker, questions: BrokerQuestions): Promise<BrokerFacts> {
  const { hostname, port, username, password, pathname, protocol } = new URL(broker.url);
  const vhost = decodeURIComponent(pathname.slice(1)) || '/';
  const connection = await open(broker, {
    protocol: protocol.slice(0, -1),
    hostname: hostname.replace(/^\[(.*)\]$/, '$1'),
    ...(port === '' ? {} : { port: Number(port) }),
    ...(username === '' && password === ''
      ? {}
      : { username: decodeURIComponent(username), password: decodeURIComponent(password) }),
    vhost: encodeURIComponent(vhost),
    heartbeat: Math.ceil(broker.heartbeatMs / 1000),
  });
  try {
    const properties = connection.connection.serverProperties as unknown as Record<string, unknown>;
    return {
      product: propertyText(properties['product']),
      version: propertyText(properties['version']),
      cluster: propertyText(properties['cluster_name']),
      vhost,
      exchange: await lookAtExchange(connection, questions),
      lock: await lookAtLock(connection, questions.lockQueue),
    };
  } finally {
    await connection.close().catch(() => undefined);
  }
}

async function open(broker: InspectedBroker, options: Parameters<typeof connect>[0]): Promise<ChannelModel> {
  try {
    const connection = await connect(options, { ...broker.tls, timeout: broker.connectTimeoutMs, noDelay: true });
    // What the connection dies of is told by the call that then fails; an unheard error would end the process.
    connection.on('error', () => undefined);
    return connection;
  } catch (error) {
    throw toBrokerError(error);
  }
}

async function lookAtExchange(connection: ChannelModel, questions: BrokerQuestions): Promise<ExchangeState> {
  const { exchange, exchangeType, declares } = questions;
  const passive = await attempt(connection, (channel) => channel.checkExchange(exchange));
  if (passive === NOT_FOUND) return 'missing';
  if (passive === REFUSED) return 'refused';
  if (passive !== undefined || !declares || exchange.startsWith('amq.')) return 'fits';
  // It is there, so declaring it creates nothing: the broker compares, or says that we may not.
  const active = await attempt(connection, (channel) =>
    channel.assertExchange(exchange, exchangeType, { durable: true }),
  );
  if (active === REFUSED) return 'refused';
  return active === PRECONDITION_FAILED ? 'differs' : 'fits';
}

async function lookAtLock(connection: ChannelModel, queue: string | undefined): Promise<LockState> {
  if (queue === undefined) return 'unknown';
  const reply = await attempt(connection, (channel) => channel.checkQueue(queue));
  if (reply === RESOURCE_LOCKED) return 'held';
  return reply === NOT_FOUND ? 'free' : 'unknown';
}

/** Asks on a channel of its own, which a refusal closes; gives the reply code of the refusal, or undefined. */
async function attempt(
  connection: ChannelModel,
  ask: (channel: Channel) => Promise<unknown>,
): Promise<number | undefined> {
  const channel = await connection.createChannel();
  channel.on('error', () => undefined);
  try {
    await ask(channel);
    await channel.close();
    return undefined;
  } catch (error) {
    const code: unknown = typeof error === 'object' && error !== null && 'code' in error ? error.code : undefined;
    if (typeof code === 'number') return code;
    throw toBrokerError(error);
  }
}

function toBrokerError(error: unknown): WaybillError {
  const text = error instanceof Error ? error.message : String(error);
  if (text.includes('Expected ConnectionOpenOk')) {
    return new WaybillError('WAYBILL_BROKER_REFUSED', 'RabbitMQ does not open the virtual host of broker.url.', {
      hint: 'Does it exist, and has the user permissions for it? rabbitmqctl list_permissions -p <vhost>',
      cause: error,
    });
  }
  if (/ACCESS.REFUSED|\b403\b/.test(text)) {
    return new WaybillError('WAYBILL_BROKER_REFUSED', 'RabbitMQ refused the user or password of broker.url.', {
      hint: 'Check both; the user guest may only log in from the same machine.',
      cause: error,
    });
  }
  return new WaybillError('WAYBILL_BROKER_UNAVAILABLE', `RabbitMQ cannot be reached: ${text || errorName(error)}`, {
    hint: 'Is it running, and is broker.url right?',
    cause: error,
  });
}

function errorName(error: unknown): string {
  const code: unknown = typeof error === 'object' && error !== null && 'code' in error ? error.code : undefined;
  return typeof code === 'string' ? code : 'the connection failed';
}

function propertyText(value: unknown): string {
  return typeof value === 'string' ? value : '';
}
