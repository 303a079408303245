import type { Channel } from 'amqplib';
import { WaybillError } from '../core/errors.js';
import { isBuiltIn, type Topology } from '../core/topology.js';
import type { BrokerConnection } from './connection.js';
import { replyCode, toBrokerError } from './errors.js';

/**
 * Declares exchanges, queues and bindings in their order. A queue that is there is left as it is, whatever its arguments,
 * unless it is `exact`: then other arguments are refused. Each declaration has a channel of its own, because a refusal
 * closes it (fact 43). Throws WAYBILL_TOPOLOGY_MISMATCH with what to do.
 */
export async function declareTopology(
  connection: BrokerConnection,
  { exchanges, queues, bindings }: Topology,
  { exact }: { exact: ReadonlySet<string> },
): Promise<void> {
  for (const { name, type, arguments: args = {} } of exchanges) {
    await attempt(connection, `declaring exchange ${name}`, (channel) =>
      channel.assertExchange(name, type, { durable: true, arguments: args }),
    );
  }
  for (const { name, arguments: args } of queues) {
    if (!exact.has(name) && (await queueExists(connection, name))) continue;
    await attempt(connection, `declaring queue ${name}`, (channel) =>
      channel.assertQueue(name, { durable: true, arguments: args }),
    );
  }
  for (const { exchange, queue, routingKey } of bindings) {
    await attempt(connection, `binding ${queue} to exchange ${exchange}`, (channel) =>
      channel.bindQueue(queue, exchange, routingKey),
    );
  }
}

/**
 * Looks whether everything is there that the consumer needs, exchanges of others that its queue is bound to included;
 * declares nothing. Of bindings and arguments AMQP tells nothing to whoever only looks. Throws WAYBILL_TOPOLOGY_MISMATCH
 * with the names of all that is missing.
 */
export async function checkTopology(
  connection: BrokerConnection,
  { exchanges, queues, bindings }: Topology,
  consumer: string,
): Promise<void> {
  const missing: string[] = [];
  const names = [...exchanges.map(({ name }) => name), ...bindings.map(({ exchange }) => exchange)];
  for (const name of new Set(names)) {
    if (isBuiltIn(name)) continue;
    const fault = await connection.checkExchange(name);
    if (fault) missing.push(fault.text);
  }
  for (const { name } of queues)
    if (!(await queueExists(connection, name))) missing.push(`queue ${name} does not exist`);
  if (missing.length === 0) return;
  throw new WaybillError('WAYBILL_TOPOLOGY_MISMATCH', `consumer ${consumer}: ${missing.join('; ')}`, {
    hint: `Declare what is missing (waybill topology apply, as a user who may), or let Waybill declare it with consumers.${consumer}.topology: assert; with none it looks for nothing.`,
  });
}

/** Whether a queue is there; on a channel of its own, because the answer no closes it. */
export async function queueExists(connection: BrokerConnection, queue: string): Promise<boolean> {
  try {
    await connection.throwaway((channel) => channel.checkQueue(queue));
    return true;
  } catch (error) {
    if (replyCode(error) === 404) return false;
    throw toBrokerError(error, `looking for queue ${queue}`);
  }
}

async function attempt(
  connection: BrokerConnection,
  doing: string,
  work: (channel: Channel) => Promise<unknown>,
): Promise<void> {
  try {
    await connection.throwaway(work);
  } catch (error) {
    const code = replyCode(error);
    if (code !== 404 && code !== 406 && code !== 403) throw toBrokerError(error, doing);
    throw new WaybillError('WAYBILL_TOPOLOGY_MISMATCH', `${doing}: ${String(error)}`, {
      hint:
        code === 404
          ? 'Declare what is missing first (an exchange is declared by whoever publishes to it).'
          : code === 406
            ? 'It is there with other arguments, which cannot be changed: delete it when it is empty, or use another name.'
            : 'Give the user the permissions (waybill topology plan), or declare it yourself and set topology: check.',
      cause: error,
    });
  }
}
