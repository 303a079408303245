import type { Message } from '../core/message.js';
import { WaybillError } from '../core/errors.js';
import { within, type Clock } from '../runtime/clock.js';
import type { BrokerConnection } from './connection.js';
import { toBrokerError } from './errors.js';

/**
 * Publishes messages on a channel of its own and resolves when the broker has confirmed them all, with the ids of those
 * that no queue takes. Rejects when one is refused, the channel dies, or nothing is heard for `limitMs`; what the client
 * itself refuses is its error.
 */
export async function publishConfirmed(
  connection: BrokerConnection,
  messages: readonly Message[],
  clock: Clock,
  limitMs: number,
): Promise<ReadonlySet<string>> {
  const returned = new Set<string>();
  if (messages.length === 0) return returned;
  const open = new Set<number>();
  let done: () => void = () => undefined;
  let fail: (error: Error) => void = () => undefined;
  const confirmed = new Promise<'confirmed'>((resolve, reject) => {
    done = () => resolve('confirmed');
    fail = reject;
  });
  // Awaited only after the publishes, during which it may fail already.
  confirmed.catch(() => undefined);
  const opening = connection.openChannel({
    onAck: (tag, multiple) => {
      if (multiple) for (const each of [...open]) if (each <= tag) open.delete(each);
      open.delete(tag);
      if (open.size === 0) done();
    },
    onNack: () => fail(new WaybillError('WAYBILL_BROKER_UNAVAILABLE', 'RabbitMQ refused to store a message for now')),
    onReturn: (messageId) => returned.add(messageId),
    onClosed: (error) => fail(toBrokerError(error, 'publishing')),
  });
  // During an alarm the broker reads nothing from this connection, so it does not answer this either.
  const channel = await within(clock, opening, limitMs, undefined);
  if (!channel) {
    opening.then((late) => late.close()).catch(() => undefined);
    throw new WaybillError('WAYBILL_BROKER_STALLED', 'RabbitMQ opened no channel');
  }
  try {
    messages.forEach((_, index) => open.add(index + 1));
    for (const message of messages) {
      // It has ended meanwhile: what that was is awaited below.
      if (!channel.isOpen) break;
      channel.publish(message);
    }
    const result = await within(clock, confirmed, limitMs, 'silence');
    if (result === 'silence') throw new WaybillError('WAYBILL_BROKER_STALLED', 'RabbitMQ confirmed nothing');
    return returned;
  } finally {
    await channel.close();
  }
}
