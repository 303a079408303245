import { WaybillError } from '../core/errors.js';
import { PLUGIN_EXCHANGE_TYPE } from '../core/topology.js';
import type { Clock } from '../runtime/clock.js';
import { BrokerConnection, type BrokerEndpoints } from './connection.js';
import { replyCode, toBrokerError } from './errors.js';

/** Nobody can make an exchange of such a name. */
const RESERVED_NAME = 'amq.waybill-probe';
const REFUSED = 403;

/**
 * Whether RabbitMQ has the delayed-message plugin. Nothing is made, and no permission is needed: RabbitMQ looks at the
 * type of an exchange before it refuses a reserved name (403). On a connection of its own, because RabbitMQ 3 closes the
 * whole connection over a type that it does not know (503; fact 44), RabbitMQ 4 the channel (406). Rejects with
 * WAYBILL_BROKER_UNAVAILABLE or WAYBILL_BROKER_REFUSED.
 */
export async function hasDelayPlugin(endpoints: BrokerEndpoints, clock: Clock): Promise<boolean> {
  let closedBy: WaybillError | undefined;
  const connection = await BrokerConnection.openFirst(
    endpoints,
    'waybill looks for the delayed-message plugin',
    { onClosed: (error) => (closedBy = error), onBlocked: () => undefined, onUnblocked: () => undefined },
    clock,
  );
  try {
    await connection.throwaway((channel) => channel.assertExchange(RESERVED_NAME, PLUGIN_EXCHANGE_TYPE));
    return true;
  } catch (error) {
    if (replyCode(error) === REFUSED) return true;
    // When the connection is closed, the call itself is only told that no answer will come.
    const told: unknown = closedBy ?? error;
    // `invalid` where it was enabled earlier and is not any more.
    if (/(unknown|invalid) exchange type/.test(String(told))) return false;
    throw toBrokerError(told, 'looking for the delayed-message plugin');
  } finally {
    await connection.close();
  }
}

/** Throws WAYBILL_DELAY_PLUGIN_MISSING, with the keys of these consumers, where the plugin is not; else as hasDelayPlugin. */
export async function requireDelayPlugin(
  endpoints: BrokerEndpoints,
  consumers: readonly string[],
  clock: Clock,
): Promise<void> {
  if (await hasDelayPlugin(endpoints, clock)) return;
  const keys = consumers.map((name) => `consumers.${name}.delay`).join(', ');
  throw new WaybillError(
    'WAYBILL_DELAY_PLUGIN_MISSING',
    `${keys}: x-delayed-message needs a plugin that RabbitMQ does not have or has not enabled`,
    {
      hint:
        'On every node: rabbitmq-plugins enable rabbitmq_delayed_message_exchange; or configure delay: ttl-queues. ' +
        'Until then nothing is lost: the daemon wakes the retries itself.',
    },
  );
}
